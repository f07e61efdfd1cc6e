"""The agents of the recipe: a cell as the memory of sb3-contrib's RecurrentPPO, and the two sets of its parameters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mechanisms._base.extras import require
from mechanisms._base.seeds import stream_seed
from mechanisms.papers._meta_rims.training import streams
from mechanisms.recurrent.agents import FastSlowCallback, RecurrentPolicy
from mechanisms.recurrent.scan import scan

RecurrentPPO: Any = require("sb3_contrib", "rl").RecurrentPPO
Logger: Any = require("stable_baselines3.common.logger", "rl").Logger

if TYPE_CHECKING:
    from mechanisms.lab import Bench
    from mechanisms.papers._meta_rims.settings import Agents

# The optimiser's settings by variant. Where all is learnt in every update, both sets' gradients are clipped together.
MODES: dict[str, dict[str, Any]] = {
    "meta": {"mode": "meta"},
    "reversed": {"mode": "reversed"},
    "joint": {"mode": "joint"},
    "lstm": {"mode": "joint"},
    "two-timescales": {"mode": "meta", "together": True},
}


def make_agent(settings: Agents, variant: str, envs: Any, bench: Bench, **policy: Any) -> Any:
    """An agent with fresh weights, which follow from the seed alone.

    Args:
        settings: of PPO and of the modules.
        variant: which parameters are fast and which slow, or "lstm".
        envs: what it will act in, or a task like it.
        bench: gives the seed and the device.
        policy: further settings of the policy.
    """
    with streams(stream_seed(bench.seed, "weights"), bench.device):
        model = RecurrentPPO(
            RecurrentPolicy,
            envs,
            learning_rate=settings.lr,
            n_steps=settings.steps,
            batch_size=settings.batch_size,
            n_epochs=settings.epochs,
            gamma=settings.gamma,
            gae_lambda=settings.gae_lambda,
            clip_range=settings.clip,
            ent_coef=settings.entropy,
            vf_coef=settings.value,
            max_grad_norm=math.inf,  # the optimiser clips each set by itself
            device=bench.device,
            policy_kwargs={
                "cell": cell(settings, variant),
                "net_arch": {"pi": [settings.head_size], "vf": [settings.head_size]},
                "linear_init": "unit_rows",
                "optimizer_kwargs": {"eps": 1e-5},
                "fast_slow": MODES[variant] | {"max_grad_norm": settings.max_grad_norm},
                **policy,
            },
        )
    model.set_logger(Logger(folder=None, output_formats=[]))  # sb3 would make a folder for its own
    return model


def cell(settings: Agents, variant: str) -> dict[str, Any]:
    """The settings of the agent's memory."""
    if variant == "lstm":
        return {"name": "LSTMCell", "hidden_size": settings.lstm_size}
    return {
        "name": "RIMCell",
        "hidden_size": settings.module_size,
        "num_modules": settings.modules,
        "num_active": settings.active,
        "key_size": settings.key_size,
        "comm_heads": settings.communication_heads,
        "comm_key_size": settings.communication_key_size,
        "communicate": settings.communicate,
        "qkv_std": settings.init_std,
    }


def phases(inner_updates: int | float) -> FastSlowCallback:
    """What switches between the two sets; infinity and 0 leave all updates to the fast or the slow one."""
    return FastSlowCallback(inner_updates=inner_updates)


@torch.no_grad()
def activity(model: Any, envs: Any, seed: int, steps: int) -> dict[str, list[Any]]:
    """Which modules are active in greedy episodes.

    Returns:
        `activation`, step after step whether each module is active, in the longest first episode that succeeded (that
        of the first environment, if none did), with `activation_actions`, the actions taken; `active_by_action`, for
        each action the share of steps at which each module is active, over all environments and `steps` steps.
    """
    policy: Any = model.policy
    policy.set_training_mode(False)
    core = policy.lstm_actor.cell
    envs.seed(seed % 2**31)
    observations, starts = envs.reset(), torch.zeros(1, envs.num_envs, dtype=torch.bool)
    state = core.initial_state(envs.num_envs)
    masks: list[Tensor] = []
    actions: list[np.ndarray] = []
    ends: list[np.ndarray] = []
    wins: list[np.ndarray] = []
    for _ in range(steps):
        features = policy.extract_features(policy.obs_to_tensor(observations)[0])
        result = scan(core, features.unsqueeze(0), state, reset=starts, need_info=True)
        state = result.state
        logits = policy.action_net(policy.mlp_extractor.forward_actor(result.output[0]))
        masks.append(result.info.mask[0].cpu())
        actions.append(logits.argmax(1).cpu().numpy())
        observations, rewards, done, _ = envs.step(actions[-1])
        ends.append(done)
        wins.append(done & (rewards > 0))
        starts = torch.as_tensor(done).unsqueeze(0)
    active, taken = torch.stack(masks).numpy(), np.stack(actions)
    over, won = np.stack(ends), np.stack(wins)
    lengths = np.where(over.any(0), over.argmax(0) + 1, steps)
    first = over.argmax(0)
    shown = int(np.where(won[first, np.arange(len(first))], lengths, 0).argmax())
    number = int(model.action_space.n)
    shares = np.stack(
        [
            active[taken == action].mean(0) if (taken == action).any() else np.zeros(active.shape[2])
            for action in range(number)
        ]
    )
    return {
        "activation": active[: lengths[shown], shown].astype(int).ravel().tolist(),
        "activation_actions": taken[: lengths[shown], shown].tolist(),
        "active_by_action": shares.round(3).ravel().tolist(),
    }
