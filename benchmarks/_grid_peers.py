"""The world of `VectorGoTo` as others would write it: an environment in plain Python, and one on top of minigrid.

Both take a room from outside (`layout`, as `VectorGoTo.state_dict` gives it), so that they can be compared step for
step; without one they draw their own.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Ball
from minigrid.minigrid_env import MiniGridEnv

COLOURS = ("red", "green", "blue")
STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # (row, column) of east, south, west, north


class PlainGoTo(gymnasium.Env):
    """One room, as lists and loops."""

    def __init__(self, size: int = 5, num_balls: int = 2, missions: tuple[int, ...] = (0, 1), max_steps: int = 64):
        self.size, self.num_balls, self.missions, self.max_steps = size, num_balls, missions, max_steps
        self.action_space = spaces.Discrete(3)
        self.observation_space = spaces.Box(0.0, 1.0, (103,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        layout = (options or {}).get("layout") or self.random_layout()
        self.balls = {
            (row, column): int(layout["room"][row][column]) - 1
            for row in range(self.size)
            for column in range(self.size)
            if layout["room"][row][column]
        }
        self.position = tuple(int(value) for value in layout["position"])
        self.heading, self.target, self.time = int(layout["heading"]), int(layout["target"]), 0
        return self.look(), {}

    def random_layout(self) -> dict[str, Any]:
        target = self.missions[self.np_random.integers(len(self.missions))]
        cells = self.np_random.permutation(self.size**2)
        room = np.zeros((self.size, self.size), np.int64)
        for ball in range(self.num_balls):
            other = [colour for colour in range(3) if colour != target]
            colour = target if ball == 0 else other[self.np_random.integers(2)]
            room[divmod(cells[ball], self.size)] = 1 + colour
        position = divmod(cells[-1], self.size)
        return {"room": room, "position": position, "heading": self.np_random.integers(4), "target": target}

    def is_wall(self, row: int, column: int) -> bool:
        return not (0 <= row < self.size and 0 <= column < self.size)

    def look(self) -> np.ndarray:
        view = np.zeros((4, 5, 5), np.float32)
        forward, right = STEPS[self.heading], STEPS[(self.heading + 1) % 4]
        for k in range(-4, 1):
            for l in range(-2, 3):  # noqa: E741 - the letters of the definition
                row = self.position[0] - k * forward[0] + l * right[0]
                column = self.position[1] - k * forward[1] + l * right[1]
                if self.is_wall(row, column):
                    view[0, k + 4, l + 2] = 1
                elif (row, column) in self.balls:
                    view[1 + self.balls[row, column], k + 4, l + 2] = 1
        mission = np.zeros(3, np.float32)
        mission[self.target] = 1
        return np.concatenate([view.ravel(), mission])

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        self.heading = (self.heading + (-1, 1, 0)[action]) % 4
        forward = STEPS[self.heading]
        ahead = (self.position[0] + forward[0], self.position[1] + forward[1])
        if action == 2 and not self.is_wall(*ahead) and ahead not in self.balls:
            self.position = ahead
            ahead = (ahead[0] + forward[0], ahead[1] + forward[1])
        success = self.balls.get(ahead) == self.target
        reward = 1 - 0.9 * self.time / self.max_steps if success else 0.0
        return self.look(), reward, success, self.time >= self.max_steps and not success, {}


class MiniGridGoTo(MiniGridEnv):
    """The same room in minigrid, with its own movements and its own partial view."""

    def __init__(self, size: int = 5, max_steps: int = 64):
        self.size = size
        super().__init__(
            mission_space=MissionSpace(lambda color: f"go to the {color} ball", [list(COLOURS)]),
            width=size + 2,
            height=size + 2,
            max_steps=max_steps,
            see_through_walls=True,
            agent_view_size=5,
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        assert options is not None
        self.layout = options["layout"]
        return super().reset(seed=seed)

    def _gen_grid(self, width: int, height: int) -> None:
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        for row, column in np.argwhere(self.layout["room"]):
            self.put_obj(Ball(COLOURS[self.layout["room"][row, column] - 1]), column + 1, row + 1)
        row, column = self.layout["position"]
        self.agent_pos, self.agent_dir = (int(column) + 1, int(row) + 1), int(self.layout["heading"])
        self.mission = f"go to the {COLOURS[self.layout['target']]} ball"

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict]:
        observation, reward, terminated, truncated, info = super().step(action)
        front = self.grid.get(*self.front_pos)
        if front is not None and front.type == "ball" and front.color == COLOURS[self.layout["target"]]:
            reward, terminated = self._reward(), True
        return observation, float(reward), terminated, truncated, info


def minigrid_view(image: np.ndarray) -> np.ndarray:
    """A partial view of minigrid, (column, row, 3), as the channels of `VectorGoTo`: (4, row, column)."""
    kind, colour = image[..., 0].T, image[..., 1].T
    return np.stack([kind == 2, *[(kind == 6) & (colour == each) for each in range(3)]]).astype(np.float32)


def layouts(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The rooms of `VectorGoTo.state_dict`, one by one."""
    names = {"rooms": "room", "positions": "position", "headings": "heading", "targets": "target"}
    return [{short: state[name][env] for name, short in names.items()} for env in range(len(state["rooms"]))]
