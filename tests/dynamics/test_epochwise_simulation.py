"""Finite sizes: the decomposition is the loop, and means over draws are the limit."""

import pytest
import torch
from torch import Tensor

from mechanisms.dynamics import TeacherStudent, gradient_descent, learning_curve, order_parameters, simulate
from mechanisms.dynamics._filters import filter_values

SMALL = TeacherStudent.two_scales(30, 20, 14, 5, 0.3, 1e-2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_samples_are_what_the_paper_says() -> None:
    problem = TeacherStudent.two_scales(400, 50, 30, 10, 0.5)
    data = problem.sample(40, 300, generator=generator())
    assert data.features.shape == (40, 400, 50)
    assert data.targets.shape == (40, 400)
    assert data.test_features.shape == (40, 300, 50)
    assert data.test_targets.shape == (40, 300)
    variance = data.features.square().mean((0, 1)) * 50
    # 16,000 squares each: a relative standard error of 0.011; 0.08 is seven of them.
    torch.testing.assert_close(variance, problem.singular_values.square(), rtol=0.08, atol=0)
    for x, y in ((data.features, data.targets), (data.test_features, data.test_targets)):
        noise = y - ((x / problem.singular_values) @ data.teacher[..., None]).squeeze(-1)
        assert noise.std().item() == pytest.approx(0.5, rel=0.05)
    assert problem.sample(2, dtype=torch.float32, generator=generator()).features.dtype == torch.float32


def test_one_seed_gives_one_sample_and_one_simulation() -> None:
    for make in (
        lambda seed: SMALL.sample(2, 3, generator=generator(seed)).features,
        lambda seed: simulate(SMALL, [0, 1, 5], draws=3, generator=generator(seed)).error,
    ):
        assert torch.equal(make(1), make(1))
        assert not torch.equal(make(1), make(2))


@pytest.mark.parametrize("method", ["flow", "gd", "ridge"])
@pytest.mark.parametrize("samples", [12, 20, 30])
def test_the_mean_over_teachers_is_exact(method: str, samples: int) -> None:
    """The same inputs with each unit vector as teacher, and each unit vector as noise: the mean in full."""
    problem = TeacherStudent.two_scales(samples, 20, 14, 5, 0.3, 1e-2)
    steps = torch.tensor([0.0, 1.0, 7.0, 100.0], dtype=torch.float64)
    averaged = simulate(problem, steps, draws=1, method=method, lr=0.3, generator=generator())
    z = torch.randn(1, samples, 20, generator=generator(), dtype=torch.float64)[0] / 20**0.5
    scales = problem.singular_values
    left, sigma, right = torch.linalg.svd(z * scales, full_matrices=False)
    phi = filter_values(method, sigma**2, steps, torch.tensor(0.3, dtype=torch.float64), problem.l2)
    for place in range(len(steps)):
        to_weights = right.mT @ torch.diag(phi[place] * sigma) @ left.mT
        seen_signal, seen_noise = scales[:, None] * (to_weights @ z), scales[:, None] * to_weights
        assert averaged.alignment[0, place].item() == pytest.approx(seen_signal.trace().item() / 20, abs=1e-12)
        expected = (seen_signal.square().sum() + 0.09 * seen_noise.square().sum()).item() / 20
        assert averaged.norm[0, place].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("problem", [SMALL, TeacherStudent.two_scales(15, 20, 14, 5, 0.3)])
def test_the_decomposition_is_the_plain_loop(problem: TeacherStudent) -> None:
    steps = [0, 1, 2, 10, 500]
    curve = simulate(problem, steps, draws=4, method="gd", lr=0.2, average_teacher=False, generator=generator())
    # The same draws, in the order in which the simulation takes them.
    same = generator()
    latent = torch.randn(4, problem.num_samples, 20, generator=same, dtype=torch.float64) / 20**0.5
    teacher = torch.randn(4, 20, 1, generator=same, dtype=torch.float64)
    noise = torch.randn(4, problem.num_samples, 1, generator=same, dtype=torch.float64)
    targets = (latent @ teacher + problem.noise * noise)[..., 0]
    weights = gradient_descent(latent * problem.singular_values, targets, steps, lr=0.2, l2=problem.l2)
    loop = order_parameters(problem, teacher[..., 0], weights, times=steps)
    for a, b in zip(curve, loop, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_a_simulation_in_blocks_is_of_the_same_law(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = simulate(SMALL, [1, 10], draws=64, generator=generator()).error
    monkeypatch.setattr("mechanisms.dynamics.simulation.LARGEST_BLOCK", 10 * 600)
    blocks = simulate(SMALL, [1, 10], draws=64, generator=generator()).error
    assert blocks.shape == whole.shape == (64, 2)
    # With the teacher averaged nothing but the inputs is drawn, so blocks draw the same.
    torch.testing.assert_close(whole, blocks, atol=1e-13, rtol=1e-13)


def test_the_error_is_that_measured_on_test_samples() -> None:
    data = SMALL.sample(3, 20_000, generator=generator())
    weights = gradient_descent(data.features, data.targets, [50], lr=0.2)
    exact = order_parameters(SMALL, data.teacher, weights).error[:, 0]
    predicted = (data.test_features @ weights[:, 0, :, None])[..., 0]
    squares = (predicted - data.test_targets).square() / 2
    error = squares.std(1) / squares.shape[1] ** 0.5
    assert ((squares.mean(1) - exact).abs() < 5.5 * error).all()


@pytest.mark.parametrize(
    ("sizes", "method"),
    [
        ((150, 100, 70, 100, 0.0), "flow"),
        ((90, 100, 70, 10, 0.3), "flow"),
        ((75, 100, 50, 5, 0.5), "flow"),
        ((150, 100, 70, 100, 0.0), "ridge"),
        ((90, 100, 70, 10, 0.3), "ridge"),
        ((120, 100, 80, 40, 0.2, 1e-3), "flow"),
        ((120, 100, 80, 40, 0.2, 1e-3), "ridge"),
    ],
)
def test_the_limit_is_the_mean_of_finite_draws(sizes: tuple, method: str) -> None:
    problem = TeacherStudent.two_scales(*sizes)
    t = 10.0 ** torch.arange(-1, 7, dtype=torch.float64)
    theory = learning_curve(problem, t, method=method).error
    drawn = simulate(problem, t, draws=40, method=method, generator=generator()).error
    error = drawn.std(0) / 40**0.5
    # 5.5 standard errors, and what d = 100 is from the limit: at most some 1/d of the error.
    assert ((drawn.mean(0) - theory).abs() <= 5.5 * error + 0.01).all()


def test_three_scales_and_a_blind_direction_follow_the_limit() -> None:
    problem = TeacherStudent(180, 120, ((60, 1.0), (30, 0.1), (20, 0.01), (10, 0.0)), 0.1)
    t = 10.0 ** torch.arange(-1, 8, dtype=torch.float64)
    theory = learning_curve(problem, t).error
    drawn = simulate(problem, t, draws=30, generator=generator()).error
    assert ((drawn.mean(0) - theory).abs() <= 5.5 * drawn.std(0) / 30**0.5 + 0.01).all()


def test_clocks_of_the_limit_and_of_each_draw_differ_by_its_largest_eigenvalue() -> None:
    limit = simulate(SMALL, [1.0, 5.0], draws=5, lr="stable", generator=generator()).alignment
    draws = simulate(SMALL, [1.0, 5.0], draws=5, lr="per-draw", generator=generator()).alignment
    assert not torch.allclose(limit, draws)
    assert (limit - draws).abs().max() < 0.1


def test_clean_tests_lack_the_noise_of_the_targets() -> None:
    noisy, clean = (
        simulate(SMALL, [0, 10], draws=2, noisy_test=noisy, generator=generator()).error for noisy in (True, False)
    )
    torch.testing.assert_close(noisy - clean, torch.full((2, 2), 0.045, dtype=torch.float64))


def test_filters_agree_to_first_order_and_flow_is_the_limit_of_small_steps() -> None:
    eigenvalues = torch.tensor([4.0, 1.0, 1e-6, 0.0], dtype=torch.float64)

    def phi(method: str, t: float, lr: float) -> Tensor:
        steps = torch.tensor([t], dtype=torch.float64)
        return filter_values(method, eigenvalues, steps, torch.tensor(lr, dtype=torch.float64), 0.1)[0]

    for method in ("gd", "ridge"):
        torch.testing.assert_close(phi(method, 1, 1e-6), phi("flow", 1, 1e-6), rtol=1e-5, atol=0)
    torch.testing.assert_close(phi("gd", 10**7, 1e-7), phi("flow", 10**7, 1e-7), rtol=1e-6, atol=0)


def test_filters_at_eigenvalue_zero_take_their_limit_and_are_differentiable() -> None:
    steps = torch.tensor([0.0, 1.0, 10.0], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    for method in ("flow", "gd", "ridge"):
        phi = filter_values(method, zero, steps, torch.tensor(0.5, dtype=torch.float64), 0.0)
        torch.testing.assert_close(phi[:, 0], 0.5 * steps)
        (slope,) = torch.autograd.grad(phi.sum(), steps)
        assert slope.isfinite().all()


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "decoupled"}, "'flow', 'gd', 'ridge'"),
        ({"draws": 0}, "draws=0"),
        ({"draws": 2.5}, "draws=2.5"),
        ({"lr": "fast"}, "'stable', 'per-draw'"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"lr": 3.0, "method": "gd"}, "diverge: it must be below"),
        ({"times": [0.5], "method": "gd"}, "whole numbers"),
        ({"times": [2.0**54], "method": "gd"}, "2\\^53"),
        ({"times": [2.0, 1.0]}, "increasing"),
    ],
)
def test_impossible_simulations_are_refused(arguments: dict, message: str) -> None:
    whole = {"problem": SMALL, "times": [0.0, 1.0], "draws": 2} | arguments
    with pytest.raises(ValueError, match=message):
        simulate(**whole)


@pytest.mark.user_input
def test_students_that_do_not_fit_their_teacher_are_refused() -> None:
    for teacher, weights in (((20,), (3, 19)), ((2, 20), (3, 20)), ((20,), (20,))):
        with pytest.raises(ValueError, match="dim=20"):
            order_parameters(SMALL, torch.zeros(teacher), torch.zeros(weights))
    with pytest.raises(ValueError, match="num_draws"):
        SMALL.sample(0)
