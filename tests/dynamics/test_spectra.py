"""Rates of linear games: closed forms, the operator against play itself, boundaries of stability, published tables."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mechanisms.dynamics.extrapolation import ExtraGradient, OptimisticGradient
from mechanisms.dynamics.games import play
from mechanisms.dynamics.negative_momentum import NegativeMomentumSGD
from mechanisms.dynamics.spectra import (
    bilinear_multipliers,
    helpful_steps,
    spectral_radii,
    spectral_radius,
    update_operator,
)

BILINEAR = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
ORDERS = ("alternating", "simultaneous")


def random_game(seed: int, sizes: tuple[int, ...]) -> Tensor:
    return torch.randn(sum(sizes), sum(sizes), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_game(jacobian: Tensor, sizes: tuple[int, ...]) -> tuple[list[nn.Parameter], list]:
    """Players whose own gradients are the rows of J omega."""
    generator = torch.Generator().manual_seed(1)
    players = [nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64)) for size in sizes]
    ends = np.cumsum((0, *sizes))

    def loss(i: int) -> Tensor:
        rows = jacobian[ends[i] : ends[i + 1]].split(list(sizes), dim=1)
        own = rows[i]
        # The gradient of x' A x / 2 is the symmetric part of A; the rest enters as if it were constant.
        value = players[i] @ ((own + own.T) / 4) @ players[i] + players[i] @ ((own - own.T) / 2) @ players[i].detach()
        return value + sum(players[i] @ rows[j] @ players[j] for j in range(len(sizes)) if j != i)

    return players, [lambda i=i: loss(i) for i in range(len(sizes))]


def state(players: list[nn.Parameter]) -> Tensor:
    return torch.cat([player.detach() for player in players])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sizes", [(2, 3), (1, 1), (2, 1, 3)])
def test_the_operator_is_a_step_of_play(order: str, sizes: tuple[int, ...]) -> None:
    jacobian = random_game(len(sizes), sizes)
    lrs, momenta = [0.1, 0.05, 0.07][: len(sizes)], [-0.5, 0.3, -0.2][: len(sizes)]
    players, losses = linear_game(jacobian, sizes)
    optimizers = [
        NegativeMomentumSGD([player], lr=lr, momentum=beta)
        for player, lr, beta in zip(players, lrs, momenta, strict=True)
    ]
    operator = update_operator(jacobian, sizes, lr=lrs, momentum=momenta, order=order)
    predicted = torch.cat([state(players)] * 2)
    for _ in range(5):
        previous = state(players)
        play(losses, optimizers, order=order)
        predicted = operator @ predicted
        found = torch.cat([state(players), previous])
        assert float((predicted - found).abs().max()) < 1e-14 * max(1.0, float(found.abs().max()))


@pytest.mark.parametrize("order", ORDERS)
def test_the_operator_of_optimistic_steps_is_a_step_of_play(order: str) -> None:
    jacobian, sizes = random_game(4, (2, 3)), (2, 3)
    players, losses = linear_game(jacobian, sizes)
    optimizers = [OptimisticGradient([player], lr=lr) for player, lr in zip(players, (0.1, 0.05), strict=True)]
    operator = update_operator(jacobian, sizes, lr=[0.1, 0.05], order=order, method="optimistic")
    play(losses, optimizers, order=order)
    held = torch.cat(
        [optimizer.state[p]["previous_gradient"] for p, optimizer in zip(players, optimizers, strict=True)]
    )
    predicted = torch.cat([state(players), held])
    for _ in range(5):
        play(losses, optimizers, order=order)
        predicted = operator @ predicted
        assert float((predicted[:5] - state(players)).abs().max()) < 1e-13


def test_the_operator_of_extragradient_steps_is_a_step_of_play() -> None:
    jacobian, sizes = random_game(5, (2, 3)), (2, 3)
    players, losses = linear_game(jacobian, sizes)
    optimizers = [ExtraGradient([player], lr=lr) for player, lr in zip(players, (0.1, 0.05), strict=True)]
    operator = update_operator(jacobian, sizes, lr=[0.1, 0.05], order="simultaneous", method="extragradient")
    predicted = state(players)
    for _ in range(5):
        play(losses, optimizers, order="simultaneous")
        predicted = operator @ predicted
        assert float((predicted - state(players)).abs().max()) < 1e-13


def test_the_operator_has_the_blocks_of_the_paper() -> None:
    """Two players, in turn: theta' from (theta, phi), then phi' from (theta', phi)."""
    jacobian = random_game(2, (2, 2))
    a, b, c, d = jacobian[:2, :2], jacobian[:2, 2:], jacobian[2:, :2], jacobian[2:, 2:]
    e1, e2, b1, b2, one = 0.2, 0.3, -0.4, 0.1, torch.eye(2, dtype=torch.float64)
    zero = torch.zeros(2, 2, dtype=torch.float64)
    first = (1 + b1) * one - e1 * a
    second = [-e2 * c @ first, (1 + b2) * one - e2 * d + e1 * e2 * c @ b, e2 * b1 * c, -b2 * one]
    rows = [[first, -e1 * b, -b1 * one, zero], second, [one, zero, zero, zero], [zero, one, zero, zero]]
    expected = torch.cat([torch.cat(row, dim=1) for row in rows])
    found = update_operator(jacobian, (2, 2), lr=[e1, e2], momentum=[b1, b2])
    assert float((found - expected).abs().max()) < 1e-15
    together = update_operator(jacobian, (2, 2), lr=[e1, e2], momentum=[b1, b2], order="simultaneous")
    expected = torch.cat([-e2 * c, (1 + b2) * one - e2 * d, zero, -b2 * one], dim=1)
    assert float((together[2:4] - expected).abs().max()) < 1e-15


@pytest.mark.parametrize("order", ORDERS)
def test_roots_of_the_quartic_are_eigenvalues_of_the_operator(order: str) -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        matrix = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        zero = torch.zeros(3, 3, dtype=torch.float64)
        jacobian = torch.cat([torch.cat([zero, matrix], 1), torch.cat([-matrix.T, zero], 1)])
        lrs = (0.1 + 0.4 * torch.rand(2, generator=generator, dtype=torch.float64)).tolist()
        momenta = (1.8 * torch.rand(2, generator=generator, dtype=torch.float64) - 0.9).tolist()
        operator = update_operator(jacobian, (3, 3), lr=lrs, momentum=momenta, order=order)
        found = torch.linalg.eigvals(operator).numpy()
        x = math.sqrt(lrs[0] * lrs[1]) * torch.linalg.svdvals(matrix)
        roots = bilinear_multipliers(x, momenta, order).flatten().numpy()
        distances = np.abs(found[:, None] - roots[None])
        assert max(distances.min(axis=0).max(), distances.min(axis=1).max()) < 1e-12


TABLE = {  # rho² in turn, at x = .01 .1 .3 .5 .8 1
    (-0.5, 0.0): (0.999978, 0.997776, 0.979866, 0.943398, 0.850790, 0.760690),
    (-0.5, -0.5): (0.999970, 0.997038, 0.973397, 0.926490, 0.815302, 1.0),
    (-0.1, -0.1): (0.999985, 0.998496, 0.986379, 0.961662, 0.898365, 0.835265),
    (0.5, 0.5): (1.000798, 1.065636, 1.330160, 1.610918, 2.033651, 2.317516),
    (-0.9, -0.9): (0.999974, 0.997379, 1.120946, 1.436092, 2.194096, 3.013721),
}


@pytest.mark.parametrize("momenta", TABLE)
def test_the_table_of_rates_and_its_symmetry(momenta: tuple[float, float]) -> None:
    x = torch.tensor([0.01, 0.1, 0.3, 0.5, 0.8, 1.0], dtype=torch.float64)
    found = bilinear_multipliers(x, momenta).abs().amax(-1) ** 2
    assert found.tolist() == pytest.approx(TABLE[momenta], abs=1e-6)
    assert torch.allclose(found, bilinear_multipliers(x, momenta[::-1]).abs().amax(-1) ** 2, atol=1e-13)


def test_together_the_bilinear_game_diverges_for_every_momentum() -> None:
    betas = torch.linspace(-0.999, 0.999, 41, dtype=torch.float64).tolist()
    x = torch.linspace(0.01, 3, 60, dtype=torch.float64)
    for first, second in itertools.product(betas, betas):
        radii = bilinear_multipliers(x, (first, second), "simultaneous").abs().amax(-1)
        assert float(radii.min()) > 1
    plain = bilinear_multipliers(x, 0.0, "simultaneous").abs().amax(-1) ** 2
    assert torch.allclose(plain, 1 + x**2, atol=1e-10)
    u1, u2 = 1 / 1.5, 1 / 0.7
    small = float(bilinear_multipliers(0.001, (-0.5, 0.3), "simultaneous").abs().amax() ** 2 - 1) / 1e-6
    assert small == pytest.approx(u1 * u2 * (u1 + u2 - 1), rel=0.01)


def test_in_turn_without_momentum_the_bilinear_game_keeps_its_volume() -> None:
    x = torch.linspace(0.05, 1.95, 39, dtype=torch.float64)
    for value in x.tolist():
        operator = update_operator(BILINEAR, (1, 1), lr=value)[:2, :2]  # on (theta, phi) alone
        assert float(torch.linalg.det(operator)) == pytest.approx(1.0, abs=1e-14)
        roots = bilinear_multipliers(value, 0.0)
        kept = roots[roots.abs() > 1e-6]
        assert abs(complex(kept.prod()) - 1) < 1e-12
        assert float((kept.abs() - 1).abs().max()) < 1e-12
    assert float(bilinear_multipliers(2.1, 0.0).abs().amax()) > 1


@settings(max_examples=80, deadline=None)
@given(st.floats(-0.95, 0.0), st.floats(-0.95, 0.0))
def test_in_turn_negative_momenta_converge_up_to_their_boundary(first: float, second: float) -> None:
    if first > -0.02 and second > -0.02:
        first = -0.3  # both near 0: nothing to tell from 1
    edge = 2 * math.sqrt((1 + first) * (1 + second))
    below = float(bilinear_multipliers(0.999 * edge, (first, second)).abs().amax())
    above = float(bilinear_multipliers(1.001 * edge, (first, second)).abs().amax())
    assert below < 1 < above


def test_at_the_edge_of_the_paper_s_choice_a_multiplier_is_minus_one() -> None:
    roots = bilinear_multipliers(1.0, -0.5)
    assert float((roots + 1).abs().min()) < 1e-12
    assert float(roots.abs().amax()) == pytest.approx(1.0, abs=1e-12)


def test_in_turn_positive_momenta_always_diverge() -> None:
    x = torch.linspace(0.02, 3, 150, dtype=torch.float64)
    for first, second in ((0.1, 0.0), (0.0, 0.5), (0.5, 0.5), (0.9, 0.1), (0.95, 0.95)):
        assert float(bilinear_multipliers(x, (first, second)).abs().amax(-1).min()) > 1


@pytest.mark.parametrize("momenta", [(-0.5, -0.5), (-0.5, 0.0), (-0.1, -0.8), (0.3, -0.3)])
def test_small_steps_have_their_coefficient(momenta: tuple[float, float]) -> None:
    u1, u2 = (1 / (1 - beta) for beta in momenta)
    squared = float(bilinear_multipliers(0.01, momenta).abs().amax() ** 2)
    assert (1 - squared) / 1e-4 == pytest.approx(u1 * u2 * (2 - u1 - u2), rel=0.01)


def test_minus_one_half_is_the_best_small_step_momentum() -> None:
    betas = torch.linspace(-0.95, 0.0, 96, dtype=torch.float64)
    radii = spectral_radii(BILINEAR, lr=[0.005], momentum=betas, order="alternating", sizes=(1, 1))[0]
    assert float(betas[radii.argmin()]) == pytest.approx(-0.5, abs=0.011)


def test_the_paper_s_bound_holds_for_one_negative_momentum_and_not_for_two() -> None:
    x = torch.linspace(0.01, 1, 200, dtype=torch.float64)
    bound = torch.clamp(1 - x**2 / 16, min=0.5)
    assert bool((bilinear_multipliers(x, (-0.5, 0.0)).abs().amax(-1) ** 2 <= bound).all())
    assert not bool((bilinear_multipliers(x, (-0.5, -0.5)).abs().amax(-1) ** 2 <= bound).all())


def test_eigenvalues_and_jacobian_give_the_same_rate() -> None:
    jacobian = random_game(7, (3, 2))
    eigenvalues = torch.linalg.eigvals(jacobian)
    for method, beta in (("momentum", 0.0), ("momentum", -0.4), ("extragradient", 0.0), ("optimistic", 0.0)):
        closed = spectral_radius(eigenvalues, lr=0.2, momentum=beta, method=method)
        assert closed == pytest.approx(spectral_radius(jacobian, lr=0.2, momentum=beta, method=method), abs=1e-12)
        operator = update_operator(jacobian, (3, 2), lr=0.2, momentum=beta, order="simultaneous", method=method)
        assert closed == pytest.approx(float(torch.linalg.eigvals(operator).abs().amax()), abs=1e-12)


def test_the_map_of_rates_is_the_rate_at_each_point() -> None:
    jacobian, sizes = random_game(8, (2, 2)), (2, 2)
    lrs, betas = [0.05, 0.3], [-0.5, 0.0, 0.4]
    pairs = [[-0.5, 0.0], [0.2, -0.3]]
    for order, method in (
        ("alternating", "momentum"),
        ("simultaneous", "momentum"),
    ):
        radii = spectral_radii(jacobian, lr=lrs, momentum=betas, order=order, sizes=sizes, method=method)
        mixed = spectral_radii(jacobian, lr=lrs, momentum=pairs, order=order, sizes=sizes, method=method)
        for i, lr in enumerate(lrs):
            for j, beta in enumerate(betas):
                one = spectral_radius(jacobian, lr=lr, momentum=beta, order=order, sizes=sizes)
                assert float(radii[i, j]) == pytest.approx(one, abs=1e-12)
            for j, pair in enumerate(pairs):
                one = spectral_radius(jacobian, lr=lr, momentum=pair, order=order, sizes=sizes)
                assert float(mixed[i, j]) == pytest.approx(one, abs=1e-12)
    radii = spectral_radii(jacobian, lr=lrs, order="alternating", sizes=sizes, method="optimistic")
    one = spectral_radius(jacobian, lr=0.3, order="alternating", sizes=sizes, method="optimistic")
    assert float(radii[1, 0]) == pytest.approx(one, abs=1e-12)


def slope(eigenvalue: complex, lr: float) -> float:
    """d rho / d beta at 0, with rho the squared radius, by central differences."""
    h = 1e-6
    plus, minus = (spectral_radius([eigenvalue], lr=lr, momentum=beta) ** 2 for beta in (h, -h))
    return (plus - minus) / (2 * h)


def test_negative_momentum_helps_exactly_on_the_interval() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        eigenvalue = complex(generator.uniform(0.05, 2), generator.uniform(-2, 2))
        lr = generator.uniform(0, 3) / abs(eigenvalue)
        low, high = helpful_steps(eigenvalue)
        if min(abs(lr - low), abs(lr - high), abs(1 - lr * eigenvalue)) < 1e-3:
            continue
        assert (slope(eigenvalue, lr) > 0) == (low < lr < high)
        z = 1 - lr * eigenvalue
        closed = -2 * lr * (eigenvalue * z.conjugate() ** 2).real / abs(z) ** 2
        assert slope(eigenvalue, lr) == pytest.approx(closed, rel=1e-3, abs=1e-4)


def test_at_its_best_step_every_rotating_eigenvalue_is_helped() -> None:
    for eigenvalue in (1 + 0.1j, 1 + 1j, 0.1 - 2j):
        best = (1 / eigenvalue).real
        assert slope(eigenvalue, best) == pytest.approx(2 * eigenvalue.real * best, rel=1e-4)
        assert helpful_steps(eigenvalue)[0] < best < helpful_steps(eigenvalue)[1]


@pytest.mark.parametrize(("angle", "inside"), [(29.9, False), (30.1, True)])
def test_steps_up_to_twice_the_best_are_helped_from_thirty_degrees_on(angle: float, inside: bool) -> None:
    eigenvalue = complex(math.cos(math.radians(angle)), math.sin(math.radians(angle)))
    assert (2 * (1 / eigenvalue).real <= helpful_steps(eigenvalue)[1]) == inside


def test_the_interval_of_special_eigenvalues() -> None:
    low, high = helpful_steps(2.0)
    assert low == high == 0.5
    assert helpful_steps(1j) == (0.0, math.inf)
    assert helpful_steps(-1 + 1j) == (0.0, math.inf)
    assert slope(1j, 0.3) > 0
    assert slope(-1 + 1j, 0.3) > 0


@pytest.mark.user_input
def test_wrong_input_says_what_is_expected() -> None:
    with pytest.raises(ValueError, match="expected a square matrix"):
        update_operator(torch.ones(2, 3), (1, 1), lr=0.1)
    with pytest.raises(ValueError, match="do not divide the 2 parameters"):
        update_operator(BILINEAR, (1, 2), lr=0.1)
    with pytest.raises(ValueError, match="lr=0"):
        update_operator(BILINEAR, (1, 1), lr=0.0)
    with pytest.raises(ValueError, match="momentum=-1"):
        update_operator(BILINEAR, (1, 1), lr=0.1, momentum=-1.0)
    with pytest.raises(ValueError, match="3 values for 2 players"):
        update_operator(BILINEAR, (1, 1), lr=[0.1, 0.1, 0.1])
    with pytest.raises(ValueError, match="order='parallel'"):
        spectral_radius(BILINEAR, lr=0.1, order="parallel")
    with pytest.raises(ValueError, match="method='adam'"):
        spectral_radius(BILINEAR, lr=0.1, method="adam")
    with pytest.raises(ValueError, match="has no momentum"):
        spectral_radius(BILINEAR, lr=0.1, momentum=-0.5, method="optimistic")
    with pytest.raises(ValueError, match="defined for all players together"):
        spectral_radius(BILINEAR, lr=0.1, order="alternating", sizes=(1, 1), method="extragradient")
    with pytest.raises(ValueError, match="give the Jacobian and sizes"):
        spectral_radius([1j, -1j], lr=0.1, order="alternating")
    with pytest.raises(ValueError, match="sizes, the numbers of parameters"):
        spectral_radius(BILINEAR, lr=0.1, order="alternating")
    with pytest.raises(ValueError, match="the Jacobian has 1 of 4 values"):
        spectral_radius([[float("nan"), 0.0], [0.0, 1.0]], lr=0.1)
    with pytest.raises(ValueError, match="expected a real"):
        spectral_radius(torch.ones(2, 2, 2), lr=0.1)
    with pytest.raises(ValueError, match="expected step sizes"):
        spectral_radii(BILINEAR, lr=[0.0, 0.1])
    with pytest.raises(ValueError, match="need the Jacobian and sizes"):
        spectral_radii(BILINEAR, lr=[0.1], order="alternating")
    with pytest.raises(ValueError, match="3 columns for 2 players"):
        spectral_radii(BILINEAR, lr=[0.1], momentum=torch.zeros(1, 3), sizes=(1, 1))
    with pytest.raises(ValueError, match="negative value"):
        bilinear_multipliers(-1.0, 0.0)
    with pytest.raises(ValueError, match="other than 0"):
        helpful_steps(0)
