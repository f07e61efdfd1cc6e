"""The detector of descents: hand-made curves, noise, and bad input."""

import math

import numpy as np
import pytest
import torch

from mechanisms.dynamics import descents


def test_a_curve_that_only_falls_descends_once() -> None:
    found = descents([3.0, 2.0, 1.0, 0.5])
    assert not found.is_double
    assert found.maxima == ()
    assert found.minima == ((3.0, 0.5),)
    assert found.first_minimum == (3.0, 0.5)
    assert found.peak is None
    assert found.second_minimum is None


def test_a_u_shape_is_no_double_descent() -> None:
    found = descents([3.0, 1.0, 2.0, 2.5])
    assert not found.is_double
    assert found.minima == ((1.0, 1.0),)
    assert found.maxima == ()


def test_down_up_down_is_one() -> None:
    found = descents([3.0, 1.0, 2.0, 0.5, 0.7], [1, 10, 100, 1000, 10_000], min_drop=0.5)
    assert found.is_double
    assert (found.first_minimum, found.peak, found.second_minimum) == ((10.0, 1.0), (100.0, 2.0), (1000.0, 0.5))
    assert found.minima == ((10.0, 1.0), (1000.0, 0.5))


def test_an_end_from_which_the_curve_rises_is_a_minimum() -> None:
    found = descents([1.0, 2.0, 0.0])
    assert found.is_double
    assert found.minima == ((0.0, 1.0), (2.0, 0.0))


@pytest.mark.parametrize(("drop", "double"), [(0.0, True), (0.29, True), (0.31, False), (0.6, False)])
def test_turns_smaller_than_the_drop_do_not_count(drop: float, double: bool) -> None:
    found = descents([3.0, 1.0, 1.3, 0.5], min_drop=drop)
    assert found.is_double == double
    assert bool(found.maxima) == double


def test_the_peak_is_the_one_behind_which_the_curve_descends_by_the_drop() -> None:
    found = descents([2.0, 1.0, 1.5, 1.2, 3.0, 0.0], min_drop=0.4)
    assert found.peak == (4.0, 3.0)


def test_rounding_makes_no_turn() -> None:
    curve = np.linspace(1, 0.5, 200) + 1e-13 * np.random.default_rng(0).normal(size=200)
    assert descents(curve).maxima == ()
    assert not descents(np.ones(5)).is_double
    assert descents(np.ones(5)).first_minimum == (2.0, 1.0)


def test_plateaus_turn_in_their_middle() -> None:
    found = descents([3.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 0.0])
    assert found.first_minimum == (2.0, 1.0)
    assert found.peak == (5.0, 2.0)


def test_smoothing_in_log_time_finds_the_turns_of_a_noisy_curve() -> None:
    t = np.arange(1, 1001.0)
    clean = np.interp(np.log(t), np.log([1, 25, 70, 1000]), [0.6, 0.2, 0.26, 0.18])
    noisy = clean + 0.02 * np.random.default_rng(0).normal(size=len(t))
    assert len(descents(noisy, t).maxima) > 50
    found = descents(noisy, t, min_drop=0.02, smooth=0.15)
    assert found.is_double
    assert len(found.maxima) == 1
    assert found.first_minimum[0] == pytest.approx(25, rel=0.4)
    assert found.peak is not None
    assert found.peak[0] == pytest.approx(70, rel=0.4)
    # By default epochs count from 1 when they are smoothed, so that the first has a logarithm.
    assert descents(noisy, min_drop=0.02, smooth=0.15).peak == found.peak


def test_tensors_of_any_kind_are_taken() -> None:
    for curve in (torch.tensor([3.0, 1, 2, 0], requires_grad=True), torch.tensor([3, 1, 2, 0]), [3, 1, 2, 0]):
        assert descents(curve).is_double


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"error": [1.0, 2.0]}, "at least three"),
        ({"error": [[1.0, 2.0, 3.0]]}, "one curve"),
        ({"error": [1.0, math.nan, 2.0]}, "not a number"),
        ({"times": [0, 1]}, "one increasing time"),
        ({"times": [0, 1, 1]}, "one increasing time"),
        ({"min_drop": -1}, "min_drop=-1"),
        ({"smooth": -1}, "smooth=-1"),
        ({"smooth": 1, "times": [0, 1, 2]}, "above 0"),
    ],
)
def test_bad_curves_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        descents(**({"error": [1.0, 2.0, 1.0]} | arguments))
