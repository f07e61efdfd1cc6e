"""Copying and adding: trained at one delay, tested at longer ones; and which modules work when."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from mechanisms.lab import Bench, config
from mechanisms.papers._rims.networks import RIMS, Sizes, in_frame, make_network
from mechanisms.papers._sequences.recall import Recall, draw, train_recall_network, with_readout

if TYPE_CHECKING:
    from torch import Tensor

LEARNED = 0.05  # accuracy above chance below which retention says nothing


@config
class Memory(Recall, Sizes):
    """A task of memory and the sizes of the networks; by default copying in small.

    Args:
        encoding_size: features of a linear encoding in front of the network; 0 for none. Tokens are embedded already.
        dropout: before and behind the network.
        probe: sequences in which it is looked at which modules work.
        shown_delay: delay of the sequences whose activations are kept for the figure.
    """

    task: Literal["copying", "denoise", "adding"] = "copying"
    delay: int = 10
    n: int = 5
    symbols: int = 8
    encoding: Literal["one_hot", "tokens", "scalar"] = "tokens"
    embedding: int = 32
    batch_size: int = 64
    updates: int = 3000
    lstm_updates: int = 6000
    hidden_size: int = 96
    lr: float = 2e-3
    clip: float = 1.0
    test_delays: tuple[int, ...] = (20, 40, 80)
    test_size: int = 512
    encoding_size: int = 0
    dropout: float = 0.0
    probe: int = 256
    shown_delay: int = 40


TINY = Memory(
    hidden_size=8,
    module_size=4,
    layer_sizes=(4, 4),
    batch_size=4,
    updates=2,
    lstm_updates=2,
    every=1,
    test_delays=(20, 80),
    test_size=16,
    probe=8,
)


def run_memory(settings: Memory, variant: str, bench: Bench) -> dict[str, Any]:
    """Train and test; for RIMs on copying also which modules work when.

    Beside what `train_recall` returns: `retention`, the accuracy above chance at the longest delay over that at the
    trained one (not a number for a network that has not learned the task); what `work` returns; and of that
    `specialisation_at_start`, `blank_or_recall_at_start` and `frozen_at_start`, of the network before its first update.
    """
    from dataclasses import replace

    from mechanisms._base.seeds import seeded, stream_seed

    updates = settings.lstm_updates if variant.startswith("lstm") else settings.updates
    make = in_frame(make_network(variant, settings), encoding=settings.encoding_size, dropout=settings.dropout)
    # Dropout draws from torch's own generator.
    with seeded(stream_seed(bench.seed, "noise"), bench.device):
        found, model = train_recall_network(replace(settings, updates=updates), make, bench)
    if settings.task == "adding":
        return found
    found["retention"] = retention(found, max(settings.test_delays))
    if variant not in RIMS:
        return found
    with seeded(stream_seed(bench.seed, "weights")):
        untrained = with_readout(settings, make).to(bench.device)
    at_start = work(settings, untrained, bench)
    found |= {f"{name}_at_start": at_start[name] for name in ("specialisation", "blank_or_recall", "frozen")}
    return found | work(settings, model, bench)


def retention(found: Mapping[str, float], delay: int) -> float:
    """The accuracy above chance at a delay over that at the trained one; not a number where little was learned.

    >>> retention({"accuracy": 0.625, "accuracy_at_80": 0.25, "chance": 0.125}, 80)
    0.25
    """
    learned = found["accuracy"] - found["chance"]
    return (found[f"accuracy_at_{delay}"] - found["chance"]) / learned if learned > LEARNED else math.nan


def work(settings: Memory, model: Any, bench: Bench) -> dict[str, Any]:
    """Which modules a trained network updates while it reads, waits and recalls.

    Returns:
        `specialisation`: total variation between the mean activations of reading and waiting, divided by 2 active;
        `blank_or_recall`: the same between waiting and recalling; `reading`, `waiting`, `recalling`: those means, one
        number for each module, which add up to `active`; `frozen`: the share of modules that are never updated in the
        whole delay, and whose state is therefore the same at its end to the bit; `activation`: the mean activation of
        each module (rows) at each step (columns) of sequences with `shown_delay`, one row after the other.
    """
    from mechanisms.recurrent import activation_vector, specialisation

    n, delay = settings.n, settings.delay
    # n symbols, delay - 1 blanks, the marker, and n blanks of which the first is read as the first symbol is recalled.
    reading, waiting, recalling = slice(0, n), slice(n, n + delay - 1), slice(n + delay, None)
    mask = activity(model, _probes(settings, delay, bench))
    longer = activity(model, _probes(settings, settings.shown_delay, bench)).float().mean(1)
    phases = {"reading": reading, "waiting": waiting, "recalling": recalling}
    return {
        "specialisation": specialisation(mask, reading, waiting),
        "blank_or_recall": specialisation(mask, waiting, recalling),
        "frozen": float((~mask[waiting].any(0)).float().mean()),
        **{name: [round(float(one), 4) for one in activation_vector(mask, steps)] for name, steps in phases.items()},
        "activation": [round(float(one), 2) for row in longer.T for one in row],
    }


def activity(model: Any, inputs: Tensor) -> Tensor:
    """Which modules were updated, booleans (time, batch, modules), of a network that was trained on recall."""
    import torch

    model.eval()
    with torch.no_grad():
        x = inputs if model.embed is None else model.embed(inputs)
        frame = model.network
        x = x if frame.encode is None else frame.encode(x)
        _, _, (info,) = frame.network(x, need_info=True)
    return info.mask


def _probes(settings: Memory, delay: int, bench: Bench) -> Tensor:
    inputs, _ = draw(settings, settings.probe, delay, bench.generator(f"probe {delay}"), bench.device)
    return inputs
