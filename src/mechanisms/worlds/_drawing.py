"""Pictures and texts of rooms, for all of them at once."""

import numpy as np

# minigrid's names, in its order; the shades are softer than its primary colours.
COLOURS = {
    "red": (214, 60, 52),
    "green": (60, 160, 72),
    "blue": (52, 104, 208),
    "purple": (132, 72, 180),
    "yellow": (232, 190, 40),
    "grey": (150, 150, 150),
}
TILE = 24  # side of a cell, in pixels
_FLOOR, _GRID, _WALL, _AGENT = (28, 30, 34), (52, 55, 60), (104, 108, 114), (245, 245, 245)
_LETTERS, _HEADS = "rgbpyx", ">v<^"


def draw_rooms(
    rooms: np.ndarray, positions: np.ndarray, headings: np.ndarray, targets: np.ndarray, seen: np.ndarray
) -> tuple[np.ndarray, ...]:
    """A picture for each room: (height, width, 3), uint8.

    Args:
        rooms: (B, n, n), 0 for an empty cell and 1 + colour for a ball.
        positions: (B, 2), row and column of the agents.
        headings: (B,), 0 east, 1 south, 2 west, 3 north.
        targets: (B,), the missions' colours.
        seen: (B, n + 2, n + 2), which cells of the room and its wall the agents see.
    """
    tiles = _tiles()
    wall, agent = len(COLOURS) + 1, len(COLOURS) + 2
    shown = np.pad(rooms.astype(np.int64), ((0, 0), (1, 1), (1, 1)), constant_values=wall)
    each = np.arange(len(rooms))
    shown[each, positions[:, 0] + 1, positions[:, 1] + 1] = agent + headings
    lit = np.where(seen[..., None, None, None], 0.25, 0.0)
    picture = tiles[shown]
    picture = picture + lit * (255 - picture)
    picture[:, 0, 0] = tiles[1 + targets]  # the mission, in the corner
    count, side = shown.shape[:2]
    flat = picture.swapaxes(2, 3).reshape(count, side * TILE, side * TILE, 3)
    return tuple(flat.round().astype(np.uint8))


def as_text(rooms: np.ndarray, positions: np.ndarray, headings: np.ndarray, targets: np.ndarray) -> tuple[str, ...]:
    """A text for each room: the mission in words, then the room with its wall."""
    letters = np.array(list("." + _LETTERS))
    shown = np.pad(letters[rooms], ((0, 0), (1, 1), (1, 1)), constant_values="#")
    shown[np.arange(len(rooms)), positions[:, 0] + 1, positions[:, 1] + 1] = np.array(list(_HEADS))[headings]
    names = list(COLOURS)
    return tuple(
        "\n".join([f"go to the {names[target]} ball", *("".join(row) for row in room)])
        for room, target in zip(shown, targets, strict=True)
    )


def _tiles() -> np.ndarray:
    """What a cell can look like: empty, a ball of each colour, wall, an agent of each heading; (11, T, T, 3)."""
    middle = (np.arange(TILE) + 0.5) / TILE - 0.5
    down, right = middle[:, None], middle[None, :]
    floor = np.full((TILE, TILE, 3), _FLOOR, np.float64)
    floor[0], floor[:, 0] = _GRID, _GRID
    tiles = [floor]
    disc = np.hypot(down, right) < 0.36
    tiles += [np.where(disc[..., None], colour, floor) for colour in COLOURS.values()]
    tiles.append(np.full((TILE, TILE, 3), _WALL, np.float64))
    triangle = (np.abs(down) < (0.38 - right) / 2) & (right > -0.32)  # its tip to the east
    tiles += [np.where(np.rot90(triangle, -heading)[..., None], _AGENT, floor) for heading in range(4)]
    return np.stack(tiles)
