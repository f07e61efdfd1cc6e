"""Levels of MiniGrid and BabyAI, many at once: missions as numbers, and a share of the environments on each processor.

The levels are those of `minigrid`, by their names; here is what agents need around them. A simulator step takes some
0.2 ms, so that the simulator, not the agent, is what several processors are for.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from mechanisms._base.extras import require

require("gymnasium", "worlds")  # first, for its clear message

import gymnasium  # noqa: E402
from gymnasium import spaces  # noqa: E402
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv  # noqa: E402

from mechanisms.worlds._workers import Workers, number_of_workers  # noqa: E402
from mechanisms.worlds.missions import Vocabulary, level_names, mission_vocabulary  # noqa: E402


def make_minigrid(
    ids: str | Sequence[str],
    num_envs: int,
    seed: int | None = None,
    rgb: bool = False,
    *,
    workers: int | None = None,
    vocabulary: Vocabulary | None = None,
    max_length: int | None = None,
    render_mode: str | None = None,
    **settings: Any,
) -> tuple[VectorEnv, Vocabulary]:
    """Environments with levels of MiniGrid and BabyAI, and the vocabulary of their missions.

    Episodes that end are followed by new ones in the same step (`AutoresetMode.SAME_STEP`), as in `VectorGoTo`:
    `info["final_obs"]` has the last observations, `info["final_info"]["is_success"]` who succeeded (reward > 0).

    Args:
        ids: levels by their names in gymnasium; environment i plays `ids[i % len(ids)]`.
        num_envs: number of environments B.
        seed: environment i begins with the seed `seed + i`, at its first reset that is given none.
        rgb: whether "image" shows the view as a picture.
        workers: number of processes, each with the same share of the environments; 0 steps them all in this process.
            None is a process for each processor that may be used, or fewer so that the shares are equal; and 0 with
            one processor, or in a process that may not start others. The results do not depend on it.
        vocabulary: of all levels that the agent will play, from `mission_vocabulary`; by default that of `ids`.
        max_length: most words of a mission; by default what the levels' grammar allows.
        render_mode: as gymnasium.make takes it, for example "rgb_array".
        **settings: further arguments of the levels, for example max_steps=50, agent_view_size=5.

    Returns:
        A `gymnasium.vector.VectorEnv` and the vocabulary. Observations are a dictionary: "image" of shape (B, 7, 7, 3),
        minigrid's codes of object, colour and state (column first), or (B, 56, 56, 3) colours; uint8. "direction" of
        shape (B,), the heading. "mission" of shape (B, max_length), numbers of words, zeros behind them; int64.

    Raises:
        MissingExtra: gymnasium or minigrid is not installed.
        ValueError: levels with different observations or actions, fewer environments than levels, or a number of
            workers that does not divide that of the environments.
        KeyError: a mission (in `reset` or `step`) has a word that the vocabulary lacks.

    >>> env, vocabulary = make_minigrid("BabyAI-GoToObj-v0", 2, seed=0, workers=0)
    >>> observation, info = env.reset()
    >>> observation["image"].shape
    (2, 7, 7, 3)
    >>> vocabulary.decode(observation["mission"][0]).startswith("go to the")
    True
    >>> env.close()
    """
    require("minigrid", "worlds")
    names = level_names(ids)
    if num_envs < len(names):
        raise ValueError(f"num_envs={num_envs} for {len(names)} levels; give each level an environment or more")
    processes = number_of_workers(num_envs, workers)
    if vocabulary is None:
        vocabulary = mission_vocabulary(names, max_length)
    elif max_length is not None:
        vocabulary = Vocabulary(vocabulary.words, max_length)
    makers = [
        _Maker(
            names[index % len(names)], None if seed is None else seed + index, rgb, vocabulary, render_mode, settings
        )
        for index in range(num_envs)
    ]
    _check_same(names, makers)
    if processes:
        return Workers(makers, processes), vocabulary
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP), vocabulary


class _Level(gymnasium.Wrapper):
    """One level: its mission as numbers, its first seed, who succeeded, and no prints."""

    def __init__(self, env: gymnasium.Env, seed: int | None, vocabulary: Vocabulary):
        super().__init__(env)
        self._first_seed, self._vocabulary = seed, vocabulary
        inner = env.observation_space
        assert isinstance(inner, spaces.Dict)
        mission = spaces.Box(0, len(vocabulary) - 1, (vocabulary.max_length,), np.int64)
        self.observation_space = spaces.Dict({**inner.spaces, "mission": mission})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        seed, self._first_seed = self._first_seed if seed is None else seed, None
        # BabyAI prints each level that it rejects.
        with contextlib.redirect_stdout(io.StringIO()):
            observation, info = self.env.reset(seed=seed, options=options)
        self._mission, self._numbers = observation["mission"], self._vocabulary.encode(observation["mission"])
        return self._as_numbers(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            info = {**info, "is_success": float(reward) > 0}
        return self._as_numbers(observation), reward, terminated, truncated, info

    def _as_numbers(self, observation: dict[str, Any]) -> dict[str, Any]:
        # The mission is the same text in all steps of nearly all levels.
        if observation["mission"] != self._mission:
            self._mission, self._numbers = observation["mission"], self._vocabulary.encode(observation["mission"])
        return {**observation, "mission": self._numbers}


class _Maker:
    """Makes one level, here or in a worker."""

    def __init__(
        self,
        name: str,
        seed: int | None,
        rgb: bool,
        vocabulary: Vocabulary,
        render_mode: str | None,
        settings: dict[str, Any],
    ):
        self.name, self.seed, self.rgb, self.vocabulary = name, seed, rgb, vocabulary
        self.render_mode, self.settings = render_mode, settings

    def __call__(self) -> gymnasium.Env:
        import minigrid.wrappers

        env = gymnasium.make(self.name, disable_env_checker=True, render_mode=self.render_mode, **self.settings)
        if self.rgb:
            env = minigrid.wrappers.RGBImgPartialObsWrapper(env, tile_size=8)
        return _Level(env, self.seed, self.vocabulary)


def _check_same(names: Sequence[str], makers: Sequence[_Maker]) -> None:
    """All levels show and take the same."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, maker in zip(names, makers, strict=False):
        if name not in found:
            env = maker()
            found[name] = env.observation_space, env.action_space
            env.close()
    for name, seen in found.items():
        if seen != found[names[0]]:
            raise ValueError(
                f"{name} and {names[0]} have different spaces, and cannot be stepped together:\n"
                f"{seen[0]}, {seen[1]}\n{found[names[0]][0]}, {found[names[0]][1]}\nmake an environment of each"
            )
