"""Task lists: environments that one agent plays one after the other, and so must show and take the same."""

from collections.abc import Iterable, Iterator, Sequence

from mechanisms._base.extras import require

require("gymnasium", "worlds")  # first, for its clear message

from gymnasium.vector import VectorEnv  # noqa: E402


def check_tasks(tasks: Iterable[VectorEnv]) -> Iterable[VectorEnv]:
    """The same tasks, after checking that one agent can play them all.

    Args:
        tasks: vectorised environments. A list is checked at once, an iterator (which may have no end) as it goes.

    Returns:
        The list itself, or an iterator over the same environments.

    Raises:
        TypeError: a task is no `gymnasium.vector.VectorEnv`.
        ValueError: there is no task, or one differs from the first in its observations, its actions, its number of
            environments or the way it resets.

    >>> from mechanisms.worlds import VectorGoTo
    >>> train, transfer = VectorGoTo(8), VectorGoTo(8, size=7, num_balls=4, missions=(0, 1, 2))
    >>> tasks = check_tasks([train, transfer])
    >>> check_tasks([train, VectorGoTo(8, num_colors=4)])
    Traceback (most recent call last):
        ...
    ValueError: task 1 differs from task 0 in its observation space: Box(0.0, 1.0, (129,), float32) after Box(0.0, ...
    """
    if not isinstance(tasks, Sequence):
        return _checked(tasks)
    if not tasks:
        raise ValueError("there is no task; give one environment or more")
    for _ in _checked(tasks):
        pass
    return tasks


def _checked(tasks: Iterable[VectorEnv]) -> Iterator[VectorEnv]:
    first: dict[str, object] | None = None
    for number, task in enumerate(tasks):
        if not isinstance(task, VectorEnv):
            raise TypeError(
                f"task {number} is a {type(task).__name__}; it must be a gymnasium.vector.VectorEnv, for example from "
                "gymnasium.make_vec"
            )
        found = {
            "observation space": task.single_observation_space,
            "action space": task.single_action_space,
            "number of environments": task.num_envs,
            "mode of reset": task.metadata.get("autoreset_mode"),
        }
        first = first or found
        for name, value in found.items():
            if value != first[name]:
                raise ValueError(
                    f"task {number} differs from task 0 in its {name}: {value} after {first[name]}; one agent cannot "
                    "play both"
                )
        yield task
