"""Best steps and momenta: closed forms, and searches that find what theory gives."""

import math

import pytest
import torch

from mechanisms.dynamics.game_tuning import best_lr, best_momentum, best_step
from mechanisms.dynamics.spectra import spectral_radii, spectral_radius

BILINEAR = [[0.0, 1.0], [-1.0, 0.0]]


@pytest.mark.parametrize("eigenvalue", [2.0, 1 + 1j, 0.1 - 3j, 5e-4 + 1e-4j])
def test_the_best_step_for_one_eigenvalue(eigenvalue: complex) -> None:
    found = best_step([eigenvalue])
    inverse = 1 / complex(eigenvalue)
    assert found.lr == pytest.approx(inverse.real, rel=1e-12)
    squared = 1 - complex(eigenvalue).real ** 2 / abs(eigenvalue) ** 2
    assert found.rate == pytest.approx(math.sqrt(squared), abs=1e-8)


def test_the_best_step_of_a_minimisation() -> None:
    found = best_step(torch.tensor([0.3, 1.0, 2.5]))
    assert found.lr == pytest.approx(2 / 2.8, rel=1e-6)
    assert found.rate == pytest.approx(2.2 / 2.8, rel=1e-6)


def test_no_other_step_is_better_and_the_paper_s_bounds_hold() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        real = 0.05 + torch.rand(6, generator=generator, dtype=torch.float64)
        values = torch.complex(real, 2 * torch.randn(6, generator=generator, dtype=torch.float64))
        found = best_step(values)
        first = float((1 / values).real.min())
        assert first <= found.lr * (1 + 1e-12)
        assert found.lr <= 2 * first
        delta = float((values.abs() ** 2 * (2 * (1 / values).real - first)).min())
        assert found.rate**2 <= 1 - first * delta + 1e-12
        grid = torch.linspace(1e-3, 2, 4000, dtype=torch.float64) * first
        assert found.rate <= float(spectral_radii(values, lr=grid).min()) + 1e-12


def test_without_a_stable_step_it_warns_and_points_to_momentum() -> None:
    for values in ([1j, -1j], [-1.0, 1.0]):
        with pytest.warns(UserWarning, match="alternating steps with negative momentum"):
            assert best_step(values) == (0.0, 1.0)


def test_the_best_momentum_of_one_rotation() -> None:
    found = best_momentum(BILINEAR, (1, 1))
    # A grid of 0.001 and 0.0005 finds no better than 0.48395.
    assert found.rate == pytest.approx(0.4839, abs=2e-4)
    assert found.rate == pytest.approx(
        spectral_radius(BILINEAR, lr=found.lr, momentum=found.momentum, order="alternating", sizes=(1, 1)), abs=1e-12
    )
    assert found.momentum[0] == found.momentum[1] < 0
    each = best_momentum(BILINEAR, (1, 1), same=False)
    assert each.rate <= found.rate + 1e-9


def test_the_best_momentum_of_many_rotations() -> None:
    """At a condition of 10, x_max = 1.609 and beta = -0.193 give 1 - rho = 0.2953 / 100; the best is a bit better."""
    jacobian = torch.zeros(4, 4, dtype=torch.float64)
    jacobian[:2, 2:] = torch.diag(torch.tensor([1.0, 0.1]))
    jacobian[2:, :2] = -jacobian[:2, 2:]
    found = best_momentum(jacobian, (2, 2))
    assert 0.0029531 <= 1 - found.rate <= 0.00298
    assert found.momentum[0] == pytest.approx(-0.193, abs=0.02)
    assert found.lr == pytest.approx(1.609, abs=0.03)


def test_one_negative_momentum_at_a_condition_of_ten() -> None:
    x = torch.linspace(1.4, 1.9, 101, dtype=torch.float64)
    betas = torch.linspace(-0.5, 0.0, 101, dtype=torch.float64)
    pairs = torch.stack([betas, torch.zeros_like(betas)], dim=1)
    jacobian = torch.zeros(4, 4, dtype=torch.float64)
    jacobian[:2, 2:] = torch.diag(torch.tensor([1.0, 0.1]))
    jacobian[2:, :2] = -jacobian[:2, 2:]
    radii = spectral_radii(jacobian, lr=x, momentum=pairs, order="alternating", sizes=(2, 2))
    assert 100 * (1 - float(radii.min())) == pytest.approx(0.248, abs=0.003)


def test_positive_momentum_is_best_in_a_minimisation() -> None:
    """Heavy ball: beta = ((sqrt(k) - 1) / (sqrt(k) + 1))² and rate sqrt(beta), for condition k = 10."""
    found = best_momentum(torch.diag(torch.tensor([1.0, 0.1])), (2,), order="simultaneous")
    beta = ((math.sqrt(10) - 1) / (math.sqrt(10) + 1)) ** 2
    assert found.momentum[0] == pytest.approx(beta, abs=0.01)
    assert found.rate == pytest.approx(math.sqrt(beta), abs=0.01)


def test_together_no_momentum_saves_the_bilinear_game() -> None:
    assert best_momentum(BILINEAR, (1, 1), order="simultaneous").rate >= 1


def test_best_steps_of_the_methods_on_one_rotation() -> None:
    extra = best_lr(BILINEAR, method="extragradient")
    assert (extra.lr, extra.rate**2) == pytest.approx((math.sqrt(0.5), 0.75), abs=1e-6)
    # The double root at x = 1/2 loses half the digits of the rate.
    optimistic = best_lr([1j, -1j], method="optimistic")
    assert (optimistic.lr, optimistic.rate**2) == pytest.approx((0.5, 0.5), abs=1e-3)
    assert best_lr(BILINEAR, order="alternating", sizes=(1, 1)).rate == pytest.approx(1.0, abs=1e-9)


@pytest.mark.user_input
def test_wrong_input_says_what_is_expected() -> None:
    with pytest.raises(ValueError, match="expected a vector"):
        best_step(torch.ones(2, 2))
    with pytest.raises(ValueError, match="infinite or not a number"):
        best_step([float("nan")])
    with pytest.raises(ValueError, match="all eigenvalues are 0"):
        best_momentum(torch.zeros(2, 2), (1, 1))
    with pytest.raises(ValueError, match="order='both'"):
        best_momentum(BILINEAR, (1, 1), order="both")
    with pytest.raises(ValueError, match="do not divide"):
        best_momentum(BILINEAR, (1, 3))
    with pytest.raises(ValueError, match="method='sgd'"):
        best_lr(BILINEAR, method="sgd")
