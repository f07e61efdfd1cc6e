"""Learning curves of modes: closed forms against scipy, conserved quantities, scaling, gradients, bad input."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from scipy.integrate import quad, solve_ivp

from mechanisms.dynamics import (
    GradientFlow,
    Mode,
    error_curve,
    imbalance,
    margin_curve,
    time_to_confidence,
    time_to_margin,
)
from mechanisms.dynamics._expi import expi, scaled_expi
from mechanisms.dynamics.modes import LOSSES

TIMES = torch.linspace(0, 300, 400, dtype=torch.float64)
PULL: dict[str, Callable] = {
    "cross_entropy": lambda f: 1 / (1 + np.exp(f)),
    "hinge": lambda f: np.where(f < 1, 1.0, 0.0),
}


def reference(rate: Callable, f0: float, times: torch.Tensor, **options: object) -> np.ndarray:
    found = solve_ivp(
        lambda _, f: rate(f), (0, float(times[-1])), [f0], t_eval=times.numpy(), rtol=1e-12, atol=1e-13, method="DOP853"
    )
    return found.y[0]


def d(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_ei_is_that_of_scipy() -> None:
    x = torch.logspace(-12, math.log10(700), 4000, dtype=torch.float64)
    expected = torch.from_numpy(special.expi(x.numpy()))
    assert ((expi(x) - expected).abs() / expected.abs().clamp(min=1)).max() < 1e-12
    assert torch.isfinite(scaled_expi(d(1e5))).all()
    assert torch.isinf(expi(d(1e3))).all()


def test_ei_has_its_derivative() -> None:
    x = torch.tensor([0.1, 0.37, 3.0, 39.0, 41.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(scaled_expi, (x,))


def test_logarithm_plus_ei_grows_like_time() -> None:
    p, r = 0.3, 1.7
    f = margin_curve(Mode(p, r, 0.00425), TIMES)
    rest = f.log() + torch.from_numpy(special.expi(f.numpy())) - 2 * p * r * TIMES
    assert (rest - rest[0]).abs().max() < 1e-8


@pytest.mark.parametrize(("c", "f0"), [(0.0, 0.01), (1e-9, 0.01), (0.4, 0.01), (3.0, 0.0), (1.3, -0.8), (0.05, -2.0)])
def test_cross_entropy_is_the_solution_of_equation_1(c: float, f0: float) -> None:
    p, r = 0.3, 1.7
    expected = reference(lambda f: p * PULL["cross_entropy"](f) * np.sqrt(c**2 + 4 * r**2 * f**2), f0, TIMES)
    assert np.abs(margin_curve(Mode(p, r, f0, c), TIMES).numpy() - expected).max() < 1e-9


def test_the_time_to_a_margin_is_the_integral_2() -> None:
    p, r, c, f0 = 0.4, 1.2, 0.7, -0.1
    for f1 in (0.3, 2.0, 9.0):
        expected = quad(lambda u: (1 + math.exp(u)) / math.sqrt(c**2 + 4 * r**2 * u**2), f0, f1, epsabs=1e-12)[0] / p
        assert float(time_to_margin(Mode(p, r, f0, c), f1)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("loss", LOSSES)
def test_depth_follows_its_equation(depth: int, loss: str) -> None:
    p, r, f0 = 0.4, 1.3, 0.05
    mode = Mode(p, r, f0, depth=depth)
    stop = 0.999 * float(time_to_margin(mode, 1.0, loss=loss)) if loss == "hinge" else 200.0
    times = torch.linspace(0, stop, 100, dtype=torch.float64)
    rate = lambda f: depth * p * r ** (2 / depth) * PULL[loss](f) * f ** (2 - 2 / depth)  # noqa: E731
    assert np.abs(margin_curve(mode, times, loss=loss).numpy() - reference(rate, f0, times)).max() < 1e-9


def test_depth_one_is_logistic_regression() -> None:
    p, r = 0.3, 1.7
    f = margin_curve(Mode(p, r, -0.5, depth=1), TIMES)
    rest = f + f.exp() - p * r**2 * TIMES
    assert (rest - rest[0]).abs().max() < 1e-10


def test_depth_two_is_equation_1_without_imbalance() -> None:
    p, r, f0 = 0.3, 1.7, 0.02
    by_depth = reference(lambda f: 2 * p * r * PULL["cross_entropy"](f) * f, f0, TIMES)
    assert np.abs(margin_curve(Mode(p, r, f0), TIMES).numpy() - by_depth).max() < 1e-9


def test_hinge_grows_exponentially_and_stops_at_one() -> None:
    p, r, f0 = 0.3, 1.7, 0.00425
    end = math.log(1 / f0) / (2 * p * r)
    assert float(time_to_margin(Mode(p, r, f0), 1.0, loss="hinge")) == pytest.approx(end, rel=1e-14)
    times = torch.linspace(0, end, 50, dtype=torch.float64)[:-1]
    f = margin_curve(Mode(p, r, f0), times, loss="hinge")
    assert ((f - f0 * (2 * p * r * times).exp()) / f).abs().max() < 1e-12
    assert margin_curve(Mode(p, r, f0), [end, end + 1, 1e300], loss="hinge") == pytest.approx([1, 1, 1], abs=1e-12)


@pytest.mark.parametrize(("c", "f0"), [(0.7, 0.1), (0.7, -0.5), (5.0, 0.0)])
def test_hinge_with_imbalance_is_a_hyperbolic_sine(c: float, f0: float) -> None:
    p, r = 0.3, 1.7
    mode = Mode(p, r, f0, c)
    times = torch.linspace(0, 0.999 * float(time_to_margin(mode, 1.0, loss="hinge")), 50, dtype=torch.float64)
    expected = c / (2 * r) * (2 * r * p * times + math.asinh(2 * r * f0 / c)).sinh()
    assert (margin_curve(mode, times, loss="hinge") - expected).abs().max() < 1e-12


def test_the_example_of_both_losses() -> None:
    mode = Mode(0.3, 1.7, 0.00425)
    assert float(time_to_margin(mode, 1.0, loss="hinge")) == pytest.approx(5.354, abs=5e-4)
    assert time_to_confidence(mode, [0.6, 0.9, 0.99, 0.999]) == pytest.approx(
        [9.375, 16.518, 40.955, 186.017], abs=5e-4
    )


def test_both_conserved_quantities_are_conserved() -> None:
    """c_i of every unit and C^2, along a reference integration of the units."""
    p, r = 0.4, 1.3
    a0, z0 = np.array([0.3, 0.1, 0.7, 0.2]), np.array([0.2, -0.05, 0.1, 0.3])

    def rates(_: float, state: np.ndarray) -> np.ndarray:
        a, z = state[:4], state[4:]
        g = PULL["cross_entropy"](a @ z)
        return np.concatenate([p * g * r**2 * z, p * g * a])

    found = solve_ivp(rates, (0, 40), np.concatenate([a0, z0]), rtol=1e-12, atol=1e-14, method="DOP853")
    a, z = found.y[:4], found.y[4:]
    each = a**2 - r**2 * z**2
    f = (a * z).sum(axis=0)
    c = imbalance((a**2 + r**2 * z**2).sum(axis=0), f, r)
    assert np.abs(each - each[:, :1]).max() < 1e-9
    assert (c - c[0]).abs().max() < 1e-9
    curve = margin_curve(Mode(p, r, float(f[0]), c[0]), found.t)
    assert np.abs(curve.numpy() - f).max() < 1e-8


def test_a_unit_split_in_two_changes_nothing() -> None:
    X, y, times = [[1.3]], [1], [0.0, 1.0, 10.0]
    flow = GradientFlow(step=0.1)
    one = flow.simulate([[0.4], [0.1]], [0.3, 0.2], X, y, times).outputs
    half = 1 / math.sqrt(2)
    two = flow.simulate([[0.4 * half], [0.4 * half], [0.1]], [0.3 * half, 0.3 * half, 0.2], X, y, times).outputs
    assert torch.allclose(one, two, atol=1e-12, rtol=0)


@given(
    p=st.floats(0.01, 1.0),
    r=st.floats(0.1, 10.0),
    f0=st.floats(1e-6, 3.0),
    c=st.sampled_from([0.0, 1e-3, 0.5, 20.0]),
    depth=st.sampled_from([1, 2, 3, 5]),
    loss=st.sampled_from(LOSSES),
)
@settings(max_examples=60, deadline=None)
def test_times_and_margins_are_inverse_and_curves_rise(
    p: float, r: float, f0: float, c: float, depth: int, loss: str
) -> None:
    mode = Mode(p, r, f0, c if depth == 2 else 0.0, depth=depth)
    times = torch.linspace(0, 50, 30, dtype=torch.float64)
    if loss == "hinge":
        times = times[times < time_to_margin(mode, 1.0, loss="hinge")]
    f = margin_curve(mode, times, loss=loss)
    assert (f.diff() >= 0).all()
    assert torch.allclose(time_to_margin(mode, f, loss=loss), times, rtol=1e-9, atol=1e-9)
    assert torch.allclose(error_curve(mode, times, loss=loss), torch.sigmoid(-f), atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("c", [0.0, 0.7])
def test_half_the_frequency_takes_exactly_twice_the_time(loss: str, c: float) -> None:
    one = margin_curve(Mode(0.5, 1.7, 0.01, c), TIMES / 8, loss=loss)
    assert torch.equal(one, margin_curve(Mode(0.25, 1.7, 0.01, c), TIMES / 4, loss=loss))


def test_norms_scale_time_only_where_balanced() -> None:
    same = time_to_margin(Mode(0.5, d(1.0, 2.0), 0.01), 2.0)
    assert float(same[0] / same[1]) == pytest.approx(2.0, rel=1e-12)
    other = time_to_margin(Mode(0.5, d(1.0, 2.0), 0.01, 0.5), 2.0)
    assert abs(float(other[0] / other[1]) - 2.0) > 0.1


def test_the_error_is_a_sigmoid_in_time() -> None:
    """A plateau at one half, one inflection, decay; and late error 1 / (2 p r t ln t)."""
    mode = Mode(0.5, 1.0, 1e-3)
    e = error_curve(mode, torch.linspace(0, 60, 601, dtype=torch.float64))
    assert e[0] > 0.4997
    assert e[50] > 0.49
    assert int((e.diff().diff().sign().diff() != 0).sum()) == 1
    late = 1e12
    assert float(error_curve(mode, late)) * late * math.log(late) == pytest.approx(1.0, rel=0.2)


def test_hinge_never_passes_one() -> None:
    mode = Mode(0.5, 1.0, 0.1)
    assert math.isinf(float(time_to_margin(mode, 1.0 + 1e-9, loss="hinge")))
    assert margin_curve(Mode(0.5, 1.0, 1.5), [0.0, 10.0], loss="hinge").tolist() == [1.5, 1.5]
    assert float(time_to_margin(Mode(0.5, 1.0, 1.5), 1.2, loss="hinge")) == 0.0


def test_extreme_states_stay_finite() -> None:
    mode = Mode(d(1e-3, 1.0), d(0.1, 100.0), d(1e-140, 600.0))
    f = margin_curve(mode, d(0.0, 1.0, 1e8, 1e200))
    assert torch.isfinite(f).all()
    assert (f.diff() >= 0).all()


def test_batches_are_their_modes_one_by_one() -> None:
    mode = Mode(d(0.2, 0.5, 0.9).reshape(3, 1), d(1.0, 2.0), 0.01, d(0.0, 0.3))
    assert mode.shape == (3, 2)
    times = d(0.0, 1.0, 7.0, 50.0)
    f = margin_curve(mode, times)
    assert f.shape == (3, 2, 4)
    single = torch.stack([margin_curve(one, times) for one in mode]).reshape(3, 2, 4)
    assert torch.allclose(f, single, atol=1e-12)
    own = times.expand(3, 2, 4) * d(1.0, 2.0)[:, None]
    assert torch.allclose(margin_curve(mode, own)[:, 0], f[:, 0], atol=1e-12)
    assert margin_curve(mode, 7.0).shape == (3, 2)
    assert margin_curve(Mode(0.5, 1, 0.1), 7.0).shape == ()
    assert margin_curve(mode, d()).shape == (3, 2, 0)
    assert margin_curve(Mode(np.array([0.5]), 1, [0.1, 0.2]), np.array([1.0])).dtype == torch.float64


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_gradients_of_curves_and_times(loss: str, depth: int) -> None:
    p, r, f0 = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.3, 0.5], [1.0, 2.0], [0.1, 0.2]))
    t = torch.tensor([0.5, 3.1, 20.0], dtype=torch.float64, requires_grad=True)
    f = torch.tensor([0.5, 0.8], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda p, r, f0, t: margin_curve(Mode(p, r, f0, depth=depth), t, loss=loss), (p, r, f0, t)
    )
    assert torch.autograd.gradcheck(
        lambda p, r, f0, f: time_to_margin(Mode(p, r, f0, depth=depth), f, loss=loss), (p, r, f0, f)
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_with_respect_to_the_imbalance(loss: str) -> None:
    c = torch.tensor([0.7, 0.2], dtype=torch.float64, requires_grad=True)
    f0 = torch.tensor([-0.1, 0.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f0, c: margin_curve(Mode(0.4, 1.5, f0, c), d(0.1, 8.0), loss=loss), (f0, c))
    assert torch.autograd.gradcheck(
        lambda f0, c: time_to_margin(Mode(0.4, 1.5, f0, c), d(0.3, 0.9), loss=loss), (f0, c)
    )


def test_second_derivatives_are_refused_and_not_wrong() -> None:
    t = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(margin_curve(Mode(0.5, 1.0, 0.1), t).sum(), t, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        first.sum().backward()


def test_imbalance_is_zero_where_balanced_and_refuses_impossible_states() -> None:
    a = d(0.3, 0.5)
    assert float(imbalance((a**2 + a**2).sum(), (a * a / 2).sum(), 2.0)) == pytest.approx(0.0, abs=1e-8)
    assert float(imbalance(1.0, -0.3, 1.0)) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="C\\^2 < 0"):
        imbalance(1.0, 0.6, 1.0)


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frequency": 0.0}, "frequency=0: it is a fraction"),
        ({"frequency": [0.5, 1.5]}, r"frequency=1.5 at \(1,\)"),
        ({"norm": 0.0}, "norm=0: it must be above 0"),
        ({"norm": float("nan")}, "infinite or not a number"),
        ({"initial_margin": 0.0}, "saddle for ever"),
        ({"initial_margin": -1.0}, "saddle for ever"),
        ({"initial_margin": 800.0}, "at most 700"),
        ({"imbalance": -0.1}, "imbalance=-0.1"),
        ({"imbalance": 0.1, "depth": 3}, "only depth 2 has it"),
        ({"depth": 0}, "depth=0"),
        ({"depth": 2.0}, "depth=2.0"),
        ({"frequency": [0.1, 0.2], "norm": [1.0, 2.0, 3.0]}, "broadcast together"),
    ],
)
def test_bad_modes_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mode(**{"frequency": 0.5, "norm": 1.0, "initial_margin": 0.1} | fields)


@pytest.mark.user_input
def test_bad_times_margins_and_losses_are_refused() -> None:
    mode = Mode([0.5, 0.6], 1.0, 0.1)
    with pytest.raises(ValueError, match="times=-1"):
        margin_curve(mode, [-1.0])
    with pytest.raises(ValueError, match=r"times has shape \(3, 4\).*\(2, 'times'\)"):
        margin_curve(mode, torch.ones(3, 4))
    with pytest.raises(ValueError, match="infinite or not a number"):
        margin_curve(mode, [float("inf")])
    with pytest.raises(ValueError, match="loss='mse'"):
        margin_curve(mode, [1.0], loss="mse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="margin=1000"):
        time_to_margin(mode, 1000.0)
    with pytest.raises(ValueError, match="confidence=1"):
        time_to_confidence(mode, 1.0)
    with pytest.raises(TypeError, match="frequency must be"):
        Mode("half", 1.0, 0.1)  # type: ignore[arg-type]
