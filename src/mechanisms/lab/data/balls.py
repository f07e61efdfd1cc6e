"""Balls that move in a box and bounce off its walls and each other: generated films, for predicting video.

After the data set of Relational Neural Expectation Maximization (van Steenkiste et al., 2018), which the paper on
recurrent independent mechanisms uses: all balls have one mass, collisions are elastic, pixels are black or white.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mechanisms._base.seeds import numpy_generator
from mechanisms._base.validation import check_number

BOX = 10.0  # side of the box
SPEED = 0.5  # of every ball at the start, in units of length per frame
SUBSTEPS = 10  # of a frame: a ball moves at most a small part of its radius before collisions are looked for
TRIES = 50  # places drawn for a ball before its row of balls begins anew
PIXELS = 2**24  # that are drawn at once
ROUNDS = 200  # beginnings of a row before the balls are said not to fit


@dataclass(frozen=True, eq=False)
class Balls:
    """Films of balls, and where the balls were.

    Args:
        frames: (films, time, size, size) uint8 of 0 and 1: whether a pixel's centre is inside a ball.
        position, velocity: (films, time, balls, 2) float64, in a box of side 10; velocities per frame.

    >>> films = bouncing_balls(2, seed=0, num_frames=3)
    >>> films.frames.shape, films.position.shape
    ((2, 3, 64, 64), (2, 3, 4, 2))
    """

    frames: np.ndarray
    position: np.ndarray
    velocity: np.ndarray


def bouncing_balls(
    num_films: int,
    *,
    seed: int,
    num_balls: int = 4,
    radius: float | int = 1.2,
    num_frames: int = 51,
    size: int = 64,
    curtain: tuple[int, int] | None = None,
) -> Balls:
    """Films of balls of equal mass that bounce off the walls and each other without losing energy.

    They start at places drawn so that none touch, with a speed of 0.5 per frame in a direction drawn at random. In each
    of 10 sub-steps of a frame all move; a ball that overlaps a wall and moves towards it is reflected, and two
    that overlap and approach exchange the parts of their velocities along the line of their centres.

    Args:
        num_films: how many.
        seed: everything follows from it.
        num_balls: in each film. The paper trains on 4 and tests on 6 to 8.
        radius: of every ball, in a box of side 10; 0.8 for 8 balls.
        num_frames: in each film.
        size: height and width of a frame in pixels.
        curtain: (height, width) in pixels of a band that is painted over the middle of every frame, or none.

    Raises:
        TypeError: what is counted is no whole number.
        ValueError: a number below 1, a radius that is not between 0 and 5, a curtain larger than the frame, or balls
            that do not fit into the box.

    >>> films = bouncing_balls(2, seed=0, num_frames=20, size=16)
    >>> energy = (films.velocity**2).sum((2, 3)) / 2
    >>> bool(abs(energy - 4 * 0.5**2 / 2).max() < 1e-12)
    True
    """
    if curtain is not None and (not isinstance(curtain, Sequence) or len(curtain) != 2):
        raise ValueError(f"curtain={curtain!r}: expected (height, width) in pixels")
    whole = {"num_films": num_films, "num_balls": num_balls, "num_frames": num_frames, "size": size}
    for name, number in (whole | dict(zip(("curtain height", "curtain width"), curtain or (), strict=False))).items():
        check_number(number, name, at_least=1)
        if not isinstance(number, int | np.integer):
            raise TypeError(f"{name} must be a whole number, got {number!r}")
    if not 0 < radius < BOX / 2:
        raise ValueError(f"radius={radius}: a ball in a box of side {BOX:g} has a radius above 0 and below {BOX / 2:g}")
    if curtain is not None and not all(0 < side <= size for side in curtain):
        raise ValueError(f"curtain={curtain}: height and width lie between 1 and size={size}")
    generator = numpy_generator(seed, f"bouncing balls {num_balls}")
    position = _start(generator, num_films, num_balls, radius)
    angle = generator.uniform(0, 2 * np.pi, (num_films, num_balls))
    velocity = SPEED * np.stack([np.cos(angle), np.sin(angle)], -1)
    places, speeds = [position.copy()], [velocity.copy()]
    for _ in range(num_frames - 1):
        for _ in range(SUBSTEPS):
            position += velocity / SUBSTEPS
            _bounce(position, velocity, radius)
        places.append(position.copy())
        speeds.append(velocity.copy())
    where = np.stack(places, 1)
    frames = _render(where, radius, size)
    if curtain is not None:
        top, left = (size - curtain[0]) // 2, (size - curtain[1]) // 2
        frames[:, :, top : top + curtain[0], left : left + curtain[1]] = 1
    return Balls(frames, where, np.stack(speeds, 1))


def _start(generator: np.random.Generator, films: int, balls: int, radius: float | int) -> np.ndarray:
    """Places (films, balls, 2), one ball after the other where none lies yet."""
    placed = np.zeros((films, balls, 2))
    todo = np.arange(films)
    for _ in range(ROUNDS):
        stuck = np.zeros(films, bool)
        for ball in range(balls):
            open_ = todo[~stuck[todo]]
            for _ in range(TRIES):
                if len(open_) == 0:
                    break
                drawn = generator.uniform(radius, BOX - radius, (len(open_), 2))
                placed[open_, ball] = drawn
                gaps = ((placed[open_, :ball] - drawn[:, None]) ** 2).sum(-1)
                open_ = open_[(gaps <= (2 * radius) ** 2).any(1)]
            stuck[open_] = True
        todo = todo[stuck[todo]]
        if len(todo) == 0:
            return placed
    raise ValueError(f"{balls} balls of radius {radius:g} do not fit into a box of side {BOX:g}: take fewer or smaller")


def _bounce(position: np.ndarray, velocity: np.ndarray, radius: float | int) -> None:
    """Collisions with walls and between pairs, in place."""
    out = ((position < radius) & (velocity < 0)) | ((position > BOX - radius) & (velocity > 0))
    velocity[out] *= -1
    balls = position.shape[1]
    first, second = np.triu_indices(balls, 1)
    apart = position[:, second] - position[:, first]
    touching = (apart**2).sum(-1) < (2 * radius) ** 2
    # A ball may touch two others: pair by pair, so that each exchange sees the one before.
    for pair in np.flatnonzero(touching.any(0)):
        rows, one, other = np.flatnonzero(touching[:, pair]), first[pair], second[pair]
        line = apart[rows, pair]
        line = line / np.linalg.norm(line, axis=-1, keepdims=True)
        closing = ((velocity[rows, one] - velocity[rows, other]) * line).sum(-1, keepdims=True)
        exchanged = np.maximum(closing, 0) * line  # those that part already go on
        velocity[rows, one] -= exchanged
        velocity[rows, other] += exchanged


def _render(position: np.ndarray, radius: float | int, size: int) -> np.ndarray:
    """Whether each pixel's centre is inside a ball; some films at a time and ball by ball, to bound memory."""
    centres = (np.arange(size) + 0.5) * BOX / size
    films, time, balls, _ = position.shape
    frames = np.zeros((films, time, size, size), np.uint8)
    at_once = max(1, PIXELS // (time * size * size))
    for begin in range(0, films, at_once):
        part = slice(begin, begin + at_once)
        for ball in range(balls):
            across, down = (((centres - position[part, :, ball, axis, None]) ** 2) for axis in (0, 1))
            frames[part] |= down[..., :, None] + across[..., None, :] <= radius**2
    return frames
