"""What the experiments on agents have in common: their variants, and the settings of PPO and of the networks."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from mechanisms._base.extras import MissingExtra
from mechanisms.lab import NotHere, config

VARIANTS = ("meta", "reversed", "joint", "lstm")


@config
class Agents:
    """Settings of the agents and of PPO.

    `steps` of each environment and `epochs` make an update; `inner_updates` of them go to the fast set, then one to the
    slow. A run may be gone on with behind each `segment` of updates, where environments and memories begin anew.
    `evaluation` fresh greedy episodes end a phase.
    """

    num_envs: int = 64
    steps: int = 20
    epochs: int = 3
    batch_size: int = 1280
    lr: float = 1e-3
    gamma: float = 0.99
    gae_lambda: float = 0.99
    clip: float = 0.2
    entropy: float = 0.01
    value: float = 0.5
    max_grad_norm: float = 0.5
    head_size: int = 64
    modules: int = 4
    module_size: int = 16
    active: int = 2
    key_size: int = 16
    communication_heads: int = 4
    communication_key_size: int = 8
    communicate: bool = True
    init_std: float = 0.1
    lstm_size: int = 64
    inner_updates: int = 4
    training_updates: int = 150
    transfer_updates: int = 120
    segment: int = 150
    evaluation: int = 500


@contextlib.contextmanager
def extras() -> Generator[None]:
    """Without the grid world or PPO a run is not run, as one without its data is."""
    try:
        yield
    except MissingExtra as error:
        raise NotHere(str(error)) from None
