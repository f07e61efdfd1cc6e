"""Grid worlds: many rooms in one array, and the levels of MiniGrid and BabyAI behind the same interface.

`VectorGoTo` is a world for small studies of agents: go to the ball of the colour that is asked for. All its rooms are
stepped, seen and reset by the same few NumPy operations, which makes it a hundred times as fast as a simulator that
steps them one by one; a study of an agent then costs what the agent costs. It is a `gymnasium.vector.VectorEnv`.

The world, for a room of n x n cells with k balls (the numbers in brackets are the defaults, as in the study of fast
and slow learning):

- the agent sees v x v cells (v = 5) in front of it, itself in the middle of the last row: the cell in row r and column
  c of its view is `position + (v - 1 - r) * forward + (c - v // 2) * right`. Walls are no obstacle to its sight;
- actions: 0 turns left, 1 turns right, 2 goes forward if the next cell is free;
- after the action, an agent that faces a ball of the mission's colour has succeeded: reward `1 - 0.9 t / T` in step t
  of at most T (64), and the episode terminates. At t = T it is truncated, with reward 0;
- a new room: one ball has the mission's colour, the others any *other* colour, at cells without replacement, as is the
  agent's; its heading and the mission are uniform.

A random agent already succeeds in about half of the episodes of the default world: judge by learning curves.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mechanisms._base.extras import require
from mechanisms._base.validation import check_choice

require("gymnasium", "worlds")  # first, for its clear message

import gymnasium  # noqa: E402
from gymnasium import spaces  # noqa: E402
from gymnasium.vector import AutoresetMode, VectorEnv  # noqa: E402
from gymnasium.vector.utils import batch_space  # noqa: E402

from mechanisms.worlds._drawing import COLOURS, as_text, draw_rooms  # noqa: E402
from mechanisms.worlds._streams import draw  # noqa: E402
from mechanisms.worlds.levels import make_minigrid  # noqa: E402

__all__ = ["VectorGoTo", "make_minigrid"]

_EMPTY, _WALL, _BALL = 0, 1, 2  # what a cell holds; a ball of colour c is 2 + c
_LEFT, _RIGHT, _FORWARD = 0, 1, 2
_TURNS = np.array([3, 1, 0])  # of the headings east, south, west, north
_AHEAD = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])  # (row, column) of one step in each heading
_STATE = ("rooms", "positions", "headings", "targets", "steps", "episodes")


class VectorGoTo(VectorEnv):
    """Many rooms with coloured balls; in each an agent that is to go to the ball of its mission's colour.

    Episodes that end are followed by a new room in the same step (`AutoresetMode.SAME_STEP`): the observation that is
    returned is the new room's, the last one of the old room is in `info["final_obs"]`, as gymnasium does it.
    `info["final_info"]["is_success"]` says which of the ended episodes succeeded. A time limit is `truncated`, never
    `terminated`: an agent that is to treat it as part of the task, as the time is no part of what it sees, bootstraps
    from the value of `final_obs`.

    The rooms of environment i follow from the seed, i and the number of its episodes alone: other actions, or more
    environments beside it, do not change them.

    Args:
        num_envs: number of rooms B.
        size: side n of a room, in cells.
        num_balls: number of balls k; the first has the mission's colour.
        missions: colours that may be asked for.
        num_colors: number of colours, at most 6; their order is that of minigrid: red, green, blue, purple, yellow,
            grey.
        view_size: side v of what the agent sees, an odd number.
        max_steps: time limit T in steps.
        observation: "flat", an array of shape (B, (1 + num_colors) * v * v + num_colors) and type float32, the view
            of walls and of the balls of each colour (row by row), then the mission as one-hot; or "dict" with "image"
            of shape (B, 1 + num_colors, v, v), the same zeros and ones, and "mission" of shape (B,), the colour.
        seed: seed of the first `reset()` that is given none; None takes a fresh one from the operating system.
        render_mode: "rgb_array" for pictures, "ansi" for text, or None.

    Raises:
        ValueError: a size that is out of bounds, a mission that is no colour, more balls than cells; the message says
            what holds.

    Source:
        Our small stand-in for BabyAI's GoToObj and GoToLocal, in the study of "Fast and Slow Learning of Recurrent
        Independent Mechanisms" (arXiv 2105.08710): training has n = 5, k = 2, missions (0, 1), transfer n = 7, k = 4,
        missions (0, 1, 2). The dynamics are those of `minigrid`.

    >>> env = VectorGoTo(num_envs=64)
    >>> observation, info = env.reset(seed=0)
    >>> observation.shape
    (64, 103)
    >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    >>> bool((reward[terminated] > 0).all())
    True
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - gymnasium's own attribute
        "render_modes": ["rgb_array", "ansi"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 64,
        *,
        size: int = 5,
        num_balls: int = 2,
        missions: Sequence[int] = (0, 1),
        num_colors: int = 3,
        view_size: int = 5,
        max_steps: int = 64,
        observation: str = "flat",
        seed: int | np.integer | None = None,
        render_mode: str | None = None,
    ):
        self.num_envs = _whole(num_envs, "num_envs", 1)
        self.size = _whole(size, "size", 2)
        self.num_colors = _whole(num_colors, "num_colors", 1, len(COLOURS))
        self.num_balls = _whole(num_balls, "num_balls", 1, self.size**2 - 1)
        if self.num_balls > 1 and self.num_colors == 1:
            raise ValueError(
                f"num_balls={num_balls} with one colour: the other balls need another colour than the first; "
                "set num_colors to 2 or more"
            )
        self.missions = tuple(_whole(mission, "a mission", 0, self.num_colors - 1) for mission in missions)
        if not self.missions or len(set(self.missions)) < len(self.missions):
            raise ValueError(f"missions={tuple(missions)}: name one colour or more, each once")
        self.view_size = _whole(view_size, "view_size", 3)
        if self.view_size % 2 == 0:
            raise ValueError(f"view_size={view_size}: it must be odd, for the agent stands in the middle")
        self.max_steps = _whole(max_steps, "max_steps", 1)
        self.observation = check_choice(observation, "observation", ("flat", "dict"))
        if render_mode is not None:
            check_choice(render_mode, "render_mode", tuple(self.metadata["render_modes"]))
        self.render_mode = render_mode
        self._seed = None if seed is None else _seed(seed)

        channels, side = 1 + self.num_colors, self.view_size
        if self.observation == "flat":
            self.single_observation_space = spaces.Box(0.0, 1.0, (channels * side**2 + self.num_colors,), np.float32)
        else:
            image = spaces.Box(0.0, 1.0, (channels, side, side), np.float32)
            self.single_observation_space = spaces.Dict({"image": image, "mission": spaces.Discrete(self.num_colors)})
        self.single_action_space = spaces.Discrete(3)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._lay_out()

    def _lay_out(self) -> None:
        """Arrays that hold the rooms, and the places in them: one index for room, row and column together."""
        # A border as thick as the view is deep keeps every view inside the array.
        border = self.view_size - 1
        self._width = width = self.size + 2 * border
        self._origin = np.arange(self.num_envs) * width**2
        rows = border + np.arange(self.size)
        self._floor = (rows[:, None] * width + rows).ravel()
        self._forward = _AHEAD @ (width, 1)
        right = self._forward[(np.arange(4) + 1) % 4]
        depth = border - np.arange(self.view_size)
        across = np.arange(self.view_size) - self.view_size // 2
        seen = depth[None, :, None] * self._forward[:, None, None] + across[None, None, :] * right[:, None, None]
        self._seen = seen.reshape(4, -1)
        self._shown = np.array([_WALL, *range(_BALL, _BALL + self.num_colors)], np.uint8)[:, None]
        self._one_hot = np.eye(self.num_colors, dtype=np.float32)
        self._choices = np.array(self.missions)

        self._cells = np.full(self.num_envs * width**2, _WALL, np.uint8)
        self._place = np.zeros(self.num_envs, np.int64)
        self._heading = np.zeros(self.num_envs, np.int64)
        self._target = np.zeros(self.num_envs, np.int64)
        self._steps = np.zeros(self.num_envs, np.int64)
        self._episodes = np.zeros(self.num_envs, np.int64)
        self._key: int | None = None

    # --- gymnasium's interface --------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | np.integer | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """New rooms.

        Args:
            seed: begins the streams of rooms anew, in all environments; None goes on with them.
            options: {"reset_mask": bools of shape (B,)} gives new rooms only where it is True; nothing else is known.

        Returns:
            The observations, and an empty dictionary.

        Raises:
            ValueError: options that are unknown, or a mask of another shape or type.
        """
        which = self._masked(options)
        if seed is None and self._key is None:
            seed = self._seed
        if seed is not None or self._key is None:
            super().reset(seed=None if seed is None else _seed(seed))
            self._key = int(self.np_random.integers(2**64, dtype=np.uint64))
            self._episodes[:] = 0
            which = np.arange(self.num_envs)  # another seed, other rooms everywhere
        self._begin(which)
        return self._as_observation(self._view(slice(None)), self._target), {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One action in each room.

        Args:
            actions: whole numbers of shape (B,): 0 turns left, 1 turns right, 2 goes forward.

        Returns:
            Observations, rewards (float64), terminated, truncated (bool), each of shape (B, ...), and the information
            about episodes that ended.

        Raises:
            gymnasium.error.ResetNeeded: before the first `reset`.
            ValueError: actions of another shape, or that are none of 0, 1, 2.
        """
        if self._key is None:
            raise gymnasium.error.ResetNeeded("call reset() before the first step()")
        actions = self._checked(actions)
        self._heading = heading = (self._heading + _TURNS[actions]) & 3
        forward = self._forward[heading]
        ahead = self._place + forward
        moves = (self._cells[ahead] == _EMPTY) & (actions == _FORWARD)
        self._place = np.where(moves, ahead, self._place)
        self._steps += 1
        terminated = self._cells[self._place + forward] == self._target + _BALL
        truncated = (self._steps >= self.max_steps) & ~terminated
        reward = np.where(terminated, 1 - 0.9 * self._steps / self.max_steps, 0.0)

        view = self._view(slice(None))
        info: dict[str, Any] = {}
        over = terminated | truncated
        ended = over.nonzero()[0]
        if ended.size:
            info = self._final(view[ended], ended, over, terminated)
            self._begin(ended)
            view[ended] = self._view(ended)
        return self._as_observation(view, self._target), reward, terminated, truncated, info

    def render(self) -> tuple[Any, ...] | None:
        """Every room as it is: a picture of shape (height, width, 3) and type uint8, or a text, as `render_mode` says.

        A picture shows the wall around the room, the balls, the agent as a triangle, what it sees lightened, and the
        mission's colour in the upper left corner. A text has `#` for walls, the first letters of colours for balls
        (but `x` for grey), and an arrow head for the agent.

        Raises:
            gymnasium.error.ResetNeeded: before the first `reset`.
        """
        if self.render_mode is None:
            return None
        if self._key is None:
            raise gymnasium.error.ResetNeeded("call reset() before the first render()")
        state = self.state_dict()
        if self.render_mode == "ansi":
            return as_text(state["rooms"], state["positions"], state["headings"], state["targets"])
        seen = np.zeros(self._cells.shape, bool)
        seen[self._place[:, None] + self._seen[self._heading]] = True
        return draw_rooms(
            state["rooms"], state["positions"], state["headings"], state["targets"], self._inside(seen, margin=1)
        )

    # --- state: for checkpoints, planning and tests -----------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the future depends on, as copies; `load_state_dict` goes on from it with the same bits.

        Returns:
            "rooms": (B, n, n) uint8, 0 for an empty cell and 1 + colour for a ball; "positions": (B, 2), row and
            column of the agents; "headings": 0 east, 1 south, 2 west, 3 north; "targets": the missions' colours;
            "steps" since the episodes began; "episodes" begun so far; and "key", which with these gives the rooms to
            come.

        >>> env = VectorGoTo(num_envs=1, size=3)
        >>> _ = env.reset(seed=0)
        >>> sorted(env.state_dict()["rooms"].ravel().tolist())[-2:] != [0, 0]
        True
        """
        row, column = np.divmod(self._place - self._origin, self._width)
        border = self.view_size - 1
        rooms = self._inside(self._cells)
        return {
            "rooms": np.where(rooms == _EMPTY, 0, rooms - (_BALL - 1)).astype(np.uint8),
            "positions": np.stack([row, column], 1) - border,
            "headings": self._heading.copy(),
            "targets": self._target.copy(),
            "steps": self._steps.copy(),
            "episodes": self._episodes.copy(),
            "key": self._key,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave, or that was built by hand.

        Raises:
            ValueError: an entry is missing, unknown, of another shape, or out of bounds.

        >>> env, other = VectorGoTo(num_envs=2), VectorGoTo(num_envs=2)
        >>> _ = env.reset(seed=0)
        >>> other.load_state_dict(env.state_dict())
        >>> bool((env.step([2, 0])[0] == other.step([2, 0])[0]).all())
        True
        """
        if set(state) != {*_STATE, "key"}:
            raise ValueError(f"the state has {sorted(state)}; it must have {sorted([*_STATE, 'key'])}")
        shapes = {"rooms": (self.num_envs, self.size, self.size), "positions": (self.num_envs, 2)}
        limits = {"rooms": self.num_colors, "positions": self.size - 1, "headings": 3, "targets": self.num_colors - 1}
        found = {name: np.asarray(state[name]) for name in _STATE}
        for name, values in found.items():
            shape = shapes.get(name, (self.num_envs,))
            if values.shape != shape or values.dtype.kind not in "iu":
                raise ValueError(f"{name} has shape {values.shape} ({values.dtype}); it must be whole numbers {shape}")
            most = limits.get(name)
            if values.min() < 0 or (most is not None and values.max() > most):
                bounds = "0 or more" if most is None else f"from 0 to {most}"
                raise ValueError(f"{name} has values from {values.min()} to {values.max()}; they must be {bounds}")
        row, column = found["positions"].T
        if found["rooms"][np.arange(self.num_envs), row, column].any():
            raise ValueError("positions: an agent stands where a ball is")
        rooms = found["rooms"].astype(np.uint8)
        grid = self._cells.reshape(self.num_envs, -1)
        grid[:, self._floor] = np.where(rooms == 0, _EMPTY, rooms + (_BALL - 1)).reshape(self.num_envs, -1)
        border = self.view_size - 1
        self._place = self._origin + (row + border) * self._width + column + border
        self._heading, self._target, self._steps, self._episodes = (
            found[name].astype(np.int64) for name in ("headings", "targets", "steps", "episodes")
        )
        self._key = None if state["key"] is None else int(state["key"])

    # --- the rooms --------------------------------------------------------------------------------------------------

    def _begin(self, envs: np.ndarray) -> None:
        """New rooms for these environments."""
        if not envs.size:
            return
        assert self._key is not None
        cells = self.size**2
        numbers = draw(self._key, envs, self._episodes[envs], cells + 1 + self.num_balls)
        # The order of independent random numbers is a uniform permutation.
        order = self._origin[envs, None] + self._floor[numbers[:, :cells].argsort(axis=1)]
        target = self._choices[numbers[:, cells] % np.uint64(len(self._choices))]
        colours = np.empty((len(envs), self.num_balls), np.int64)
        colours[:, 0] = target
        if self.num_balls > 1:
            others = (numbers[:, cells + 2 :] % np.uint64(self.num_colors - 1)).astype(np.int64)
            colours[:, 1:] = others + (others >= target[:, None])  # skips the mission's colour
        self._cells[order] = _EMPTY
        self._cells[order[:, : self.num_balls]] = _BALL + colours
        self._place[envs] = order[:, -1]
        self._heading[envs] = numbers[:, cells + 1] >> np.uint64(62)
        self._target[envs] = target
        self._steps[envs] = 0
        self._episodes[envs] += 1

    def _view(self, envs: np.ndarray | slice) -> np.ndarray:
        """What the agents of these environments see and their missions, flat."""
        seen = self._cells[self._place[envs, None] + self._seen[self._heading[envs]]]
        channels, cells = len(self._shown), self._seen.shape[1]
        view = np.empty((len(seen), channels * cells + self.num_colors), np.float32)
        np.equal(
            seen[:, None, :],
            self._shown,
            out=view[:, : channels * cells].reshape(-1, channels, cells),
            casting="unsafe",
        )
        view[:, channels * cells :] = self._one_hot[self._target[envs]]
        return view

    def _as_observation(self, view: np.ndarray, target: np.ndarray) -> Any:
        """Flat views as users asked for them."""
        if self.observation == "flat":
            return view
        image = view[:, : -self.num_colors].reshape(-1, 1 + self.num_colors, self.view_size, self.view_size)
        return {"image": image, "mission": target.copy()}

    def _final(self, view: np.ndarray, ended: np.ndarray, over: np.ndarray, terminated: np.ndarray) -> dict[str, Any]:
        """The information about episodes that ended, in the form of gymnasium's own vector environments."""
        last = np.full(self.num_envs, None, dtype=object)
        observation = self._as_observation(view, self._target[ended])
        for row, env in enumerate(ended):
            if self.observation == "flat":
                last[env] = observation[row]
            else:
                last[env] = {name: values[row] for name, values in observation.items()}
        success = {"is_success": terminated.copy(), "_is_success": over.copy()}
        return {"final_obs": last, "_final_obs": over, "final_info": success, "_final_info": over.copy()}

    def _inside(self, values: np.ndarray, margin: int = 0) -> np.ndarray:
        """Values of cells as (B, rows, columns), without the border but for a margin."""
        cut = slice(self.view_size - 1 - margin, self._width - self.view_size + 1 + margin)
        return values.reshape(self.num_envs, self._width, self._width)[:, cut, cut]

    # --- the doors --------------------------------------------------------------------------------------------------

    def _checked(self, actions: Any) -> np.ndarray:
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise ValueError(
                f"actions have shape {actions.shape} and type {actions.dtype}; give whole numbers of shape "
                f"({self.num_envs},), one for each environment"
            )
        if actions.min() < 0 or actions.max() > _FORWARD:
            raise ValueError(
                f"actions are from {actions.min()} to {actions.max()}; known are 0 (left), 1 (right), 2 (forward)"
            )
        return actions

    def _masked(self, options: dict[str, Any] | None) -> np.ndarray:
        """The environments that are to be reset."""
        options = dict(options or {})
        mask = options.pop("reset_mask", None)
        if options:
            raise ValueError(f"options {sorted(options)} are unknown; there is only 'reset_mask'")
        if mask is None:
            return np.arange(self.num_envs)
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise ValueError(
                f"reset_mask has shape {mask.shape} and type {mask.dtype}; it must be bools of shape ({self.num_envs},)"
            )
        return mask.nonzero()[0]


def _whole(value: Any, name: str, least: int, most: int | None = None) -> int:
    """A whole number within bounds."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    number = operator.index(value)
    if number < least or (most is not None and number > most):
        bounds = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}={number}: it must be {bounds}")
    return number


def _seed(seed: Any) -> int:
    """A seed that gymnasium takes."""
    return _whole(seed, "seed", 0)
