"""Small worlds and agents for the tests of recurrent agents."""

import math

import torch
from sb3_contrib import RecurrentPPO
from torch import nn

from mechanisms.recurrent.agents import RecurrentPolicy, SB3VecEnv
from mechanisms.worlds.grid import VectorGoTo

LSTM = {"name": "LSTMCell", "hidden_size": 8}
LEARNED = {"name": "LSTMCell", "hidden_size": 8, "learn_initial_state": True}
RIM = {
    "name": "RIMCell",
    "hidden_size": 4,
    "num_modules": 3,
    "num_active": 2,
    "key_size": 8,
    "comm_key_size": 4,
    "comm_heads": 2,
    "qkv_std": 0.1,
}
ATTENTIVE = {"name": "RelevancyScreening", "cell": LSTM, "short_term": 2, "relevant": 2}
CELLS = {"lstm": LSTM, "learned": LEARNED, "rim": RIM, "relevancy": ATTENTIVE, "gru": {**LSTM, "name": "GRUCell"}}


def world(num_envs: int = 4, **options) -> SB3VecEnv:
    # Episodes of at most 7 steps, so that rollouts of 10 hold several, cut and ended ones.
    return SB3VecEnv(VectorGoTo(num_envs, size=4, max_steps=7, seed=3, **options))


def agent(cell, env=None, *, fast_slow=None, seed: int = 0, policy=None, **options) -> RecurrentPPO:
    settings = {"n_steps": 10, "batch_size": 40, "n_epochs": 2, "device": "cpu", "seed": seed, **options}
    if fast_slow is not None:
        settings.setdefault("max_grad_norm", math.inf)
        policy = {**(policy or {}), "fast_slow": fast_slow}
    return RecurrentPPO(RecurrentPolicy, env or world(), policy_kwargs={"cell": cell, **(policy or {})}, **settings)


def values(module: nn.Module) -> list[torch.Tensor]:
    return [one.detach().clone() for one in module.parameters()]


def same(first, second) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
