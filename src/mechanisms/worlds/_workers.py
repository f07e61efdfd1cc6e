"""A few processes that step many environments: each process a share of them, observations through shared memory.

Gymnasium's `AsyncVectorEnv` runs one process for each environment. With simulator steps of 0.2 ms, the messages to and
from sixty-four processes cost more than what they save on a laptop. Here what it takes for one environment is a share
of them, stepped by a `SyncVectorEnv` in the worker; one message goes to each worker and one comes back.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

Maker = Callable[[], gymnasium.Env]


class Workers(VectorEnv):
    """Environments in processes; the interface, the seeds and the results are those of one `SyncVectorEnv` of them all.

    Args:
        makers: what makes each environment.
        workers: number of processes; it must divide the number of environments.
    """

    def __init__(self, makers: Sequence[Maker], workers: int):
        self._share = len(makers) // workers
        assert self._share * workers == len(makers)
        shares = [_Share(makers[start : start + self._share]) for start in range(0, len(makers), self._share)]
        # A share resets its own environments, so that the process in charge has nothing to reset.
        self._outer = _Processes(shares, autoreset_mode=AutoresetMode.DISABLED)
        one = makers[0]()
        self.single_observation_space, self.single_action_space = one.observation_space, one.action_space
        self.metadata = {**one.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = one.render_mode
        one.close()
        self.num_envs = len(makers)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    @property
    def processes(self) -> list[Any]:
        """The workers."""
        return self._outer.processes

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        if options is not None and "reset_mask" in options:
            raise ValueError("reset_mask is for environments in this process: workers=0")
        if seed is None or isinstance(seed, int):
            seeds = [None if seed is None else seed + index for index in range(self.num_envs)]
        else:
            seeds = list(seed)
        shares = [seeds[start : start + self._share] for start in range(0, self.num_envs, self._share)]
        observation, info = self._outer.reset(seed=shares, options=options)  # pyrefly: ignore
        return self._flat(observation), self._merged(info)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions have shape {actions.shape}; it must be {self.action_space.shape}")
        observation, *rest, info = self._outer.step(actions.reshape(-1, self._share, *actions.shape[1:]))
        reward, terminated, truncated = (values.reshape(self.num_envs) for values in rest)
        return self._flat(observation), reward, terminated, truncated, self._merged(info)

    def render(self) -> tuple[Any, ...] | None:
        if self.render_mode is None:
            return None
        return tuple(frame for frames in self._outer.call("render") for frame in frames)

    def close_extras(self, **kwargs: Any) -> None:
        self._outer.close(**kwargs)

    def _flat(self, observation: Any) -> Any:
        """(workers, share, ...) as (environments, ...)."""
        if isinstance(observation, dict):
            return {name: self._flat(values) for name, values in observation.items()}
        return observation.reshape(self.num_envs, *observation.shape[2:])

    def _merged(self, info: dict[str, Any]) -> dict[str, Any]:
        """The information of all shares, as if one had given it."""
        merged: dict[str, Any] = {}
        for number, found in enumerate(info.get("share", ())):
            self._put(merged, found[0], slice(number * self._share, (number + 1) * self._share))
        return merged

    def _put(self, merged: dict[str, Any], found: dict[str, Any], place: slice) -> None:
        for name, values in found.items():
            if isinstance(values, dict):
                self._put(merged.setdefault(name, {}), values, place)
            else:
                empty = None if values.dtype == object else 0
                whole = merged.setdefault(name, np.full((self.num_envs, *values.shape[1:]), empty, values.dtype))
                whole[place] = values


class _Share:
    """Makes the environments of one worker, as what `AsyncVectorEnv` takes for one environment."""

    def __init__(self, makers: Sequence[Maker]):
        self.makers = makers
        self.owner = os.getpid()

    def __call__(self) -> gymnasium.Env:
        if os.getpid() != self.owner:
            # Ctrl-C reaches all processes of a terminal; the one in charge stops its workers.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return _Together(SyncVectorEnv(self.makers, copy=False, autoreset_mode=AutoresetMode.SAME_STEP))


class _Together(gymnasium.Env):
    """Several environments as one, whose observations, rewards and ends are arrays."""

    def __init__(self, envs: SyncVectorEnv):
        self.envs = envs
        self.observation_space, self.action_space = envs.observation_space, envs.action_space
        self.metadata, self.render_mode = envs.metadata, envs.render_mode

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.envs.reset(seed=seed, options=options)
        return observation, {"share": [info]}  # in a list, or the process in charge would take it apart

    def step(self, action: Any) -> Any:
        *found, info = self.envs.step(action)
        return *found, {"share": [info]}

    def render(self) -> Any:
        return self.envs.render()

    def close(self) -> None:
        self.envs.close()


class _Processes(AsyncVectorEnv):
    """Gymnasium's processes, which also end when a step was interrupted or a worker died."""

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """Ask the workers to end; end them where that cannot work."""
        idle = getattr(self._state, "value", None) == "default"
        if idle and not terminate and all(process.is_alive() for process in self.processes):
            super().close_extras(timeout=timeout)
            return
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self.parent_pipes:
            if pipe is not None:
                pipe.close()


def number_of_workers(num_envs: int, workers: int | None) -> int:
    """How many processes to use; 0 for none.

    Args:
        num_envs: number of environments.
        workers: what the user asks for; None is one for each processor that this process may use, or fewer, so that
            all have the same share; 0 where there is one processor or one environment, and in processes that may not
            start others.

    Raises:
        ValueError: it does not divide the number of environments.

    >>> number_of_workers(6, 3)
    3
    """
    if workers is not None:
        if workers < 0 or (workers and num_envs % workers):
            raise ValueError(
                f"workers={workers} for {num_envs} environments: give 0 (no processes) or a divisor of {num_envs}"
            )
        return workers
    if multiprocessing.current_process().daemon:
        return 0
    places = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = max(count for count in range(1, min(places, num_envs) + 1) if num_envs % count == 0)
    return 0 if most == 1 else most
