"""Bouncing balls: they begin apart, keep their energy, stay in the box, and are drawn where they are."""

import numpy as np
import pytest

from mechanisms.lab.data.balls import Balls, _bounce, bouncing_balls

SETTINGS = pytest.mark.parametrize(("balls", "radius"), [(1, 1.2), (4, 1.2), (6, 1.2), (8, 0.8)])


def gaps(films: Balls, radius: float | int) -> np.ndarray:
    """Room between every two balls (films, time, pairs), negative where they overlap."""
    first, second = np.triu_indices(films.position.shape[2], 1)
    apart = films.position[:, :, first] - films.position[:, :, second]
    return np.linalg.norm(apart, axis=-1) - 2 * radius


@SETTINGS
def test_balls_begin_without_overlap_and_later_never_overlap_by_more_than_sub_steps_allow(balls, radius) -> None:
    films = bouncing_balls(60, seed=0, num_balls=balls, radius=radius, size=8)
    room = gaps(films, radius)
    assert (room[:, 0] > 0).all()
    # All the energy in two balls that meet head on is the fastest approach; in jams of three a second sub-step follows.
    fastest = 2 * 0.5 * np.sqrt(balls / 2)
    assert room.min(initial=0) > -2 * fastest / 10


@SETTINGS
def test_energy_is_conserved(balls, radius) -> None:
    films = bouncing_balls(60, seed=1, num_balls=balls, radius=radius, size=8)
    energy = (films.velocity**2).sum((2, 3)) / 2
    np.testing.assert_allclose(energy, balls * 0.5**2 / 2, atol=1e-6)
    # They do collide: speeds differ in the end, unless there is nothing to collide with.
    speeds = np.linalg.norm(films.velocity[:, -1], axis=-1)
    assert (np.abs(speeds - 0.5).max() > 0.1) == (balls > 1)


@SETTINGS
def test_balls_stay_in_the_box_but_for_a_sub_step(balls, radius) -> None:
    films = bouncing_balls(60, seed=2, num_balls=balls, radius=radius, size=8)
    out = max((radius - films.position).max(), (films.position - (10 - radius)).max())
    assert out <= 0.5 * np.sqrt(balls) / 10


def test_momentum_is_exchanged_along_the_line_of_centres() -> None:
    position = np.array([[[4.0, 5.0], [6.0, 5.0]]])
    velocity = np.array([[[0.5, 0.2], [-0.3, 0.1]]])
    _bounce(position, velocity, 1.2)
    np.testing.assert_allclose(velocity, [[[-0.3, 0.2], [0.5, 0.1]]], atol=1e-12)
    _bounce(position, velocity, 1.2)  # they still overlap, but part already
    np.testing.assert_allclose(velocity, [[[-0.3, 0.2], [0.5, 0.1]]], atol=1e-12)


def test_a_pixel_is_white_where_its_centre_is_inside_a_ball() -> None:
    films = bouncing_balls(5, seed=3, size=20, num_frames=4)
    centres = (np.arange(20) + 0.5) / 2
    for film, time in ((0, 0), (4, 3)):
        for row, column in ((0, 0), (7, 12), (13, 3), (10, 10)):
            apart = films.position[film, time] - (centres[column], centres[row])  # x is across, y is down
            assert films.frames[film, time, row, column] == (np.linalg.norm(apart, axis=-1) <= 1.2).any()
    # The discs' share of the box, but for how pixels cut them and where two overlap: 4 discs cover 18 %.
    assert 0.16 < films.frames.mean() < 0.2


def test_films_are_the_same_however_many_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bouncing_balls(7, seed=3, size=16, num_frames=4).frames
    monkeypatch.setattr("mechanisms.lab.data.balls.PIXELS", 2 * 4 * 16 * 16)
    np.testing.assert_array_equal(whole, bouncing_balls(7, seed=3, size=16, num_frames=4).frames)


def test_the_seed_decides_everything_and_a_curtain_only_covers() -> None:
    one, other, covered = (
        bouncing_balls(3, seed=4, num_frames=6, size=16, curtain=curtain) for curtain in (None, None, (16, 5))
    )
    np.testing.assert_array_equal(one.frames, other.frames)
    np.testing.assert_array_equal(one.position, covered.position)
    assert covered.frames[..., 5:10].all()
    np.testing.assert_array_equal(one.frames[..., :5], covered.frames[..., :5])
    assert not np.array_equal(one.position, bouncing_balls(3, seed=5, num_frames=6, size=16).position)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_balls": 0}, "num_balls"),
        ({"radius": 5}, "radius=5"),
        ({"num_balls": 40}, "40 balls of radius 1.2 do not fit"),
        ({"curtain": (17, 4)}, "curtain"),
    ],
)
def test_what_cannot_be_is_refused(changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bouncing_balls(2, **({"seed": 0, "size": 16, "num_frames": 2} | changes))


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_balls": 2.0}, TypeError, "num_balls must be a whole number, got 2.0"),
        ({"size": "16"}, TypeError, "size must be a number"),
        ({"curtain": 5}, ValueError, "expected \\(height, width\\)"),
        ({"curtain": (3,)}, ValueError, "expected \\(height, width\\)"),
        ({"curtain": (3, 2.5)}, TypeError, "curtain width must be a whole number"),
    ],
)
def test_what_is_no_count_is_refused_by_name(changes, error, message: str) -> None:
    with pytest.raises(error, match=message):
        bouncing_balls(2, **({"seed": 0, "size": 16, "num_frames": 2} | changes))
