"""Paths of users' data: against the loop, scikit-learn's ridge, and hand-made cases."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from mechanisms.dynamics import gradient_descent, training_path

GENERATOR = torch.Generator().manual_seed(0)
TALL, WIDE, SQUARE = (
    torch.randn(n, d, generator=GENERATOR, dtype=torch.float64) for n, d in ((30, 8), (8, 30), (9, 9))
)
ANY = pytest.mark.parametrize("x", [TALL, WIDE, SQUARE], ids=["tall", "wide", "square"])


def targets(x: Tensor, outputs: int = 3) -> Tensor:
    return torch.randn(len(x), outputs, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@ANY
@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("rate", [0.1, 1.0, 1.9])
def test_gd_is_the_explicit_loop(x: Tensor, l2: float, rate: float) -> None:
    """Also where lr times an eigenvalue exceeds 1, and the base of the power is negative."""
    y, steps = targets(x), [0, 1, 2, 3, 50, 400]
    lr = rate / (float(torch.linalg.matrix_norm(x, 2)) ** 2 + l2)
    exact = training_path(x, y, steps, lr=lr, l2=l2, method="gd")
    torch.testing.assert_close(exact, gradient_descent(x, y, steps, lr=lr, l2=l2), atol=1e-12, rtol=1e-12)
    weights = torch.zeros(x.shape[1], 3, dtype=torch.float64)
    for _ in range(50):
        weights = weights - lr * (x.mT @ (x @ weights - y) + l2 * weights)
    torch.testing.assert_close(exact[4], weights, atol=1e-12, rtol=1e-12)


@ANY
def test_one_step_is_the_gradient_at_zero(x: Tensor) -> None:
    y = targets(x)
    torch.testing.assert_close(training_path(x, y, [1], lr=1e-3, method="gd")[0], 1e-3 * x.mT @ y)


@ANY
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_ridge_is_scikit_learn_s(x: Tensor, l2: float) -> None:
    y, times = targets(x), [0.5, 3.0, 100.0]
    ours = training_path(x, y, times, lr=0.2, l2=l2, method="ridge")
    for t, weights in zip(times, ours, strict=True):
        theirs = Ridge(alpha=l2 + 1 / (0.2 * t), fit_intercept=False, solver="svd").fit(x.numpy(), y.numpy()).coef_.T
        np.testing.assert_allclose(weights.numpy(), theirs, atol=1e-10)


@ANY
def test_flow_solves_its_differential_equation(x: Tensor) -> None:
    y = targets(x)
    times = torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64, requires_grad=True)
    path = training_path(x, y, times, lr=0.1, l2=0.2)
    for place in range(3):
        slope = torch.stack(
            [torch.autograd.grad(entry, times, retain_graph=True)[0][place] for entry in path[place].flatten()]
        ).view_as(path[place])
        force = -(x.mT @ (x @ path[place] - y) + 0.2 * path[place])
        torch.testing.assert_close(slope, 0.1 * force, atol=1e-10, rtol=1e-8)


@ANY
@pytest.mark.parametrize("method", ["flow", "ridge"])
def test_the_end_is_the_solution_of_least_norm(x: Tensor, method: str) -> None:
    y = targets(x)
    path = training_path(x, y, [1e13], method=method)
    torch.testing.assert_close(path[0], torch.linalg.pinv(x) @ y, atol=1e-6, rtol=1e-6)


def test_directions_without_data_stay_at_zero_for_ever() -> None:
    x = torch.cat([TALL, TALL[:, :2]], 1)  # of rank 8 with 10 columns
    path = training_path(x, targets(x), [1e15, 1e16])
    torch.testing.assert_close(path[0], torch.linalg.pinv(x) @ targets(x), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(path[0], path[1], atol=1e-10, rtol=1e-10)


def test_batches_outputs_and_rates_are_independent() -> None:
    x = torch.randn(2, 3, 12, 5, generator=GENERATOR, dtype=torch.float64)
    y = torch.randn(2, 3, 12, 4, generator=GENERATOR, dtype=torch.float64)
    lr = 0.01 * torch.arange(1, 7, dtype=torch.float64).view(2, 3)
    for path in (training_path, gradient_descent):
        together = path(x, y, [0, 5, 20], lr=lr)
        assert together.shape == (2, 3, 3, 5, 4)
        alone = path(x[1, 2], y[1, 2, :, 3], [0, 5, 20], lr=0.06)
        torch.testing.assert_close(together[1, 2, ..., 3], alone)
        assert path(x, y[..., 0], [1], lr=lr).shape == (2, 3, 1, 5)


def test_stable_is_one_over_the_largest_damped_eigenvalue() -> None:
    lr = 1 / (float(torch.linalg.matrix_norm(TALL, 2)) ** 2 + 0.5)
    for path in (training_path, gradient_descent):
        stable, given = (path(TALL, targets(TALL), [3], lr=rate, l2=0.5) for rate in ("stable", lr))
        torch.testing.assert_close(stable, given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_dtype_is_computed_in_double_and_given_back(dtype: torch.dtype) -> None:
    x, y = TALL.to(dtype), targets(TALL).to(dtype)
    path = training_path(x, y, [2.0], lr=0.01)
    assert path.dtype == dtype
    assert torch.equal(path, training_path(x.double(), y.double(), [2.0], lr=0.01).to(dtype))


def test_single_precision_inputs_keep_a_condition_number_of_ten_thousand() -> None:
    x = torch.diag(torch.tensor([1.0, 1e-4]))
    path = training_path(x, torch.tensor([1.0, 1.0]), [1e8])
    torch.testing.assert_close(path[0], torch.tensor([1.0, 1e4 * (1 - math.exp(-1))]))


def test_the_loop_tells_how_far_it_is() -> None:
    seen: list[tuple[int, int]] = []
    gradient_descent(TALL, targets(TALL), [0, 5, 20], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 20), (5, 20), (20, 20)]


def test_arrays_and_lists_are_taken() -> None:
    x, y = TALL.numpy(), targets(TALL).numpy()
    torch.testing.assert_close(training_path(x, y, np.array([1, 2])), training_path(TALL, targets(TALL), [1, 2]))
    assert training_path([[1, 0], [0, 1]], [1, 2], [1]).dtype == torch.get_default_dtype()


@ANY
@pytest.mark.parametrize("method", ["flow", "gd", "ridge"])
def test_paths_are_differentiable_in_features_and_targets(x: Tensor, method: str) -> None:
    x, y = x[:6, :5].clone().requires_grad_(), targets(x)[:6].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: training_path(a, b, [1, 4], lr=0.02, l2=0.1, method=method), (x, y))
    assert torch.autograd.gradcheck(lambda a, b: gradient_descent(a, b, [1, 4], lr=0.02, l2=0.1), (x, y))


@pytest.mark.user_input
@pytest.mark.parametrize("path", [training_path, gradient_descent])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": torch.ones(3)}, "samples, features"),
        ({"features": torch.ones(0, 3), "targets": torch.ones(0)}, "at least one of each"),
        ({"targets": torch.ones(4)}, "expected"),
        ({"targets": torch.ones(3, 1, 1)}, "expected"),
        ({"features": torch.full((3, 2), math.nan)}, "features has 6 of 6"),
        ({"targets": torch.tensor([1.0, math.inf, 0.0])}, "targets has 1 of 3"),
        ({"times": [2, 1]}, "increasing"),
        ({"l2": -0.1}, "l2=-0.1"),
        ({"lr": 0.0}, "must be > 0"),
        ({"lr": "best"}, "a number or 'stable'"),
        ({"lr": torch.ones(2)}, "one for each"),
    ],
)
def test_bad_data_are_refused(path, arguments: dict, message: str) -> None:
    whole = {"features": torch.eye(3)[:, :2], "targets": torch.ones(3), "times": [0, 1], "lr": 0.1} | arguments
    with pytest.raises(ValueError, match=message):
        path(**whole)


@pytest.mark.user_input
def test_rates_that_diverge_and_steps_that_are_none_are_refused() -> None:
    x, y = 2 * torch.eye(3), torch.ones(3)
    for run in (gradient_descent, lambda *a, **k: training_path(*a, method="gd", **k)):
        run(x, y, [5], lr=0.49)
        with pytest.raises(ValueError, match=r"diverge.*0\.5"):
            run(x, y, [5], lr=0.5)
        with pytest.raises(ValueError, match="whole numbers"):
            run(x, y, [0.5], lr=0.1)
    with pytest.raises(ValueError, match="2\\^53"):
        training_path(x, y, [1e17], lr=0.1, method="gd")
    training_path(x, y, [1e17], lr=10.0)
    with pytest.raises(ValueError, match="'flow', 'gd', 'ridge'"):
        training_path(x, y, [1], method="adam")
    with pytest.raises(ValueError, match="all zero"):
        training_path(0 * x, y, [1], lr="stable")
    with pytest.raises(TypeError, match="real"):
        training_path(x * 1j, y, [1])


@pytest.mark.gpu
def test_paths_stay_on_their_accelerator() -> None:
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        pytest.skip("no accelerator")
    for path in (training_path, gradient_descent):
        there = path(TALL.to(device), targets(TALL), [0, 3], lr=0.01)
        assert there.device.type == device.type
        torch.testing.assert_close(there.cpu(), path(TALL, targets(TALL), [0, 3], lr=0.01))
