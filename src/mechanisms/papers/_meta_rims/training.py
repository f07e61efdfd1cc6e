"""PPO on one task, then on another: updates in segments that can be gone on with, and the episodes they finished."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mechanisms._base.extras import require
from mechanisms._base.seeds import seeded, stream_seed
from mechanisms.lab import Bench

BaseCallback: Any = require("stable_baselines3.common.callbacks", "rl").BaseCallback

WINDOWS = 6


class Tally(BaseCallback):
    """Counts episodes that finished, and those that ended with a reward, by update.

    Args:
        updates: number of updates to come.
        report: called behind each update with their number so far and the success rate within the update.
    """

    def __init__(self, updates: int, report: Callable[[int, float], None]) -> None:
        super().__init__()
        self.finished, self.succeeded = np.zeros((2, updates), np.int64)
        self.update = 0
        self._report = report

    def _on_step(self) -> bool:
        dones = self.locals["dones"]
        self.finished[self.update] += dones.sum()
        self.succeeded[self.update] += (dones & (self.locals["rewards"] > 0)).sum()
        return True

    def _on_rollout_end(self) -> None:
        self.update += 1
        self._report(self.update, self.rate(self.update - 1, self.update))

    def rate(self, first: int, last: int) -> float:
        """Success among all episodes that finished in updates `first` to `last` - 1; NaN when none did."""
        finished = int(self.finished[first:last].sum())
        return int(self.succeeded[first:last].sum()) / finished if finished else math.nan

    def windows(self, count: int = WINDOWS) -> list[float]:
        """Success in each of `count` windows of (nearly) as many updates."""
        edges = np.linspace(0, len(self.finished), count + 1).round().astype(int)
        return [self.rate(int(a), int(b)) for a, b in itertools.pairwise(edges)]

    def state_dict(self) -> dict[str, Any]:
        """The counts so far."""
        return {
            "update": self.update,
            "finished": torch.from_numpy(self.finished.copy()),
            "succeeded": torch.from_numpy(self.succeeded.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from counts."""
        self.update = int(state["update"])
        self.finished, self.succeeded = state["finished"].numpy().copy(), state["succeeded"].numpy().copy()


def mean_of(windows: Sequence[float]) -> float:
    """The area under a curve: the mean of its windows, of those in which an episode finished."""
    there = [one for one in windows if math.isfinite(one)]
    return math.fsum(there) / len(there) if there else math.nan


def learn(
    model: Any,
    envs: Any,
    *,
    task: str,
    variant: str,
    updates: int,
    segment: int,
    bench: Bench,
    callbacks: Sequence[Any] = (),
    report: Callable[[int, float], None] = lambda update, success: None,
) -> Tally:
    """Updates of PPO on one set of environments.

    After each segment the run may be left: rooms, states and random streams of the next one follow from the seed and
    its number alone, so that a run that goes on from there ends with the same bits.

    Args:
        model: sb3-contrib's RecurrentPPO.
        envs: of stable-baselines3's interface.
        task: name of the task; rooms and random streams follow from it and the seed.
        variant: name of what is learnt by whom; it has no say in these.
        updates: how many.
        segment: updates between two places at which the run may be left.
        bench: gives the seed, and keeps the checkpoint.
        callbacks: those of stable-baselines3 that are called too.
        report: see `Tally`.
    """
    from stable_baselines3.common.callbacks import CallbackList

    tally = Tally(updates, report)
    checkpoint = bench.checkpoint(f"{task}-{variant}")
    parts = {"policy": model.policy, "optimizer": model.policy.optimizer, "tally": tally}
    done = checkpoint.restore(parts)
    frames = model.n_steps * model.n_envs
    while done < updates:
        with streams(stream_seed(bench.seed, f"{task} {done}"), bench.device) as seed:
            envs.seed(seed)
            model.set_env(envs)  # so that they begin anew
            more = min(segment, updates - done)
            model.learn(more * frames, CallbackList([tally, *callbacks]), reset_num_timesteps=True, log_interval=None)
        done += more
        checkpoint.keep(done, parts, now=done == updates)
    return tally


@contextlib.contextmanager
def streams(seed: int, device: torch.device | str = "cpu") -> Generator[int]:
    """The global random streams that stable-baselines3 draws from, seeded inside the block and as before behind it."""
    from stable_baselines3.common.utils import set_random_seed

    before = random.getstate(), np.random.get_state()  # noqa: NPY002 - stable-baselines3's own stream
    short = seed % 2**31
    with seeded(short, device):
        try:
            set_random_seed(short)
            yield short
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002


def greedy_success(model: Any, envs: Any, episodes: int, seed: int) -> float:
    """The share of fresh episodes in which the most likely actions succeed.

    Each environment plays as many episodes as the others, so that short ones do not count more often.

    Args:
        model: gives `predict`.
        envs: of stable-baselines3's interface.
        episodes: of each environment.
        seed: of the environments.
    """
    envs.seed(seed % 2**31)
    observations, state, starts = envs.reset(), None, np.ones(envs.num_envs, bool)
    left, won = np.full(envs.num_envs, episodes), 0
    while left.any():
        actions, state = model.predict(observations, state, starts, deterministic=True)
        observations, rewards, starts, _ = envs.step(actions)
        counted = starts & (left > 0)
        won += int((counted & (rewards > 0)).sum())
        left -= counted
    return won / (envs.num_envs * episodes)
