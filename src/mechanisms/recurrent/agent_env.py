"""Gymnasium's vectorised environments for the algorithms of stable-baselines3, which have an interface of their own."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mechanisms._base.extras import require

require("stable_baselines3", "rl")  # first, for its clear message

import gymnasium  # noqa: E402
from gymnasium.vector import AutoresetMode, VectorEnv  # noqa: E402
from stable_baselines3.common.vec_env import VecEnv  # noqa: E402


class SB3VecEnv(VecEnv):
    """A `gymnasium.vector.VectorEnv` as a `VecEnv` of stable-baselines3.

    At the end of an episode the observation is the next one's first, and the last one is in the info, under
    "terminal_observation", beside "TimeLimit.truncated" and whatever the environment says of the episode.

    Args:
        env: an environment that resets in the same step (`AutoresetMode.SAME_STEP`), as sb3 expects it.
        bootstrap: whether an episode that was cut (by a time limit) counts as truncated, so that the value of its last
            observation is added to its reward; otherwise it counts as ended.

    Raises:
        ValueError: the environment resets at another time.

    >>> env = gymnasium.make_vec(
    ...     "CartPole-v1", 2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}
    ... )
    >>> SB3VecEnv(env).reset().shape
    (2, 4)
    """

    def __init__(self, env: VectorEnv, *, bootstrap: bool = True) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"the environment has autoreset_mode={getattr(mode, 'name', mode)}; stable-baselines3 needs SAME_STEP: "
                "gymnasium.make_vec(..., vector_kwargs={'autoreset_mode': AutoresetMode.SAME_STEP})"
            )
        self.env, self.bootstrap = env, bootstrap
        self._actions: np.ndarray | None = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Any:
        """All environments' first observations; with the seeds and options that were set before."""
        seeds: Any = None if all(seed is None for seed in self._seeds) else list(self._seeds)
        if seeds is not None and None not in seeds and seeds == list(range(seeds[0], seeds[0] + self.num_envs)):
            seeds = seeds[0]  # which means the same to gymnasium, and is all that some environments take
        observation, infos = self.env.reset(seed=seeds, options=self._options[0] or None)
        self.reset_infos = [
            {name: _at(values, row) for name, values in _fields(infos, row).items()} for row in range(self.num_envs)
        ]
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions of the next step."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Observations, rewards, ends and infos of the step."""
        observation, rewards, terminated, truncated, found = self.env.step(self._actions)
        ended = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        whole = {name: values for name, values in found.items() if name not in ("final_obs", "final_info")}
        if any(not name.startswith("_") for name in whole):
            for row, info in enumerate(infos):
                info.update({name: _at(values, row) for name, values in _fields(whole, row).items()})
        for row in ended.nonzero()[0].tolist():
            info = infos[row]
            info["terminal_observation"] = _at(found["final_obs"], row)
            info["TimeLimit.truncated"] = bool(self.bootstrap and truncated[row] and not terminated[row])
            last = found.get("final_info", {})
            info.update({name: _at(values, row) for name, values in _fields(last, row).items()})
        return observation, np.asarray(rewards, np.float32), ended, infos

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    # --- what sb3 asks of single environments; here they are one -----------------------------------------------------

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the vectorised environment, once for each of `indices`."""
        return [
            self.env.get_wrapper_attr(attr_name)
            if hasattr(self.env, "get_wrapper_attr")
            else getattr(self.env, attr_name)
        ] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the vectorised environment, for all at once.

        Raises:
            ValueError: only some environments are meant.
        """
        if len(self._rows(indices)) != self.num_envs:
            raise ValueError("the environments are one object; attributes can be set for all of them only")
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of the vectorised environment once; its result, once for each of `indices`."""
        return [getattr(self.env, method_name)(*method_args, **method_kwargs)] * len(self._rows(indices))

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Whether the vectorised environment has such a wrapper."""
        env, found = self.env, False
        while not found and isinstance(env, gymnasium.vector.VectorWrapper):
            found, env = isinstance(env, wrapper_class), env.env
        return [found] * len(self._rows(indices))

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Pictures of all environments."""
        return self.env.render()  # pyrefly: ignore

    def _rows(self, indices: Any) -> list[int]:
        if indices is None:
            return list(range(self.num_envs))
        return [indices] if isinstance(indices, int) else list(indices)


def _fields(infos: dict[str, Any], row: int) -> dict[str, Any]:
    """What gymnasium's info says of one environment: fields whose mask, "_name", is set there."""
    return {
        name: values
        for name, values in infos.items()
        if not name.startswith("_") and (f"_{name}" not in infos or infos[f"_{name}"][row])
    }


def _at(values: Any, row: int) -> Any:
    """The part of one environment, of an array or of a dictionary of them."""
    if isinstance(values, dict):
        return {name: _at(part, row) for name, part in _fields(values, row).items()}
    return values[row]
