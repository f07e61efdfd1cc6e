"""Extragradient and optimistic steps: recursions, closed-form rates, and orders of calls that are refused."""

import copy
import math

import pytest
import torch
from torch import nn

from mechanisms.dynamics.extrapolation import ExtraGradient, OptimisticGradient
from mechanisms.dynamics.games import play
from mechanisms.dynamics.spectra import spectral_radius

BILINEAR = [[0.0, 1.0], [-1.0, 0.0]]


def bilinear() -> tuple[list[nn.Parameter], list]:
    theta, phi = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (1.0, 0.5))
    return [theta, phi], [lambda: theta * phi, lambda: -theta * phi]


@pytest.mark.parametrize("x", [0.1, 0.3, 0.7, 0.99, 1.2])
def test_extragradient_on_the_bilinear_game_has_its_closed_form(x: float) -> None:
    assert spectral_radius(BILINEAR, lr=x, method="extragradient") ** 2 == pytest.approx(1 - x**2 + x**4, abs=1e-13)
    players, losses = bilinear()
    optimizers = [ExtraGradient([player], lr=x) for player in players]
    for _ in range(20):
        before = sum(float(player) ** 2 for player in players)
        play(losses, optimizers, order="simultaneous")
        # Every step shrinks the distance alike: both multipliers have the same modulus, and the map is normal.
        after = sum(float(player) ** 2 for player in players)
        assert after / before == pytest.approx(1 - x**2 + x**4, rel=1e-12)


@pytest.mark.parametrize("x", [0.1, 0.3, 0.49, 0.55, 0.7])
def test_optimistic_steps_on_the_bilinear_game_have_their_closed_form(x: float) -> None:
    """z² - (1 - 2 i x) z - i x = 0 has the roots (1 - 2 i x ± sqrt(1 - 4 x²)) / 2."""
    squared = (1 + math.sqrt(1 - 4 * x**2)) / 2 if x <= 0.5 else 0.25 + (2 * x + math.sqrt(4 * x**2 - 1)) ** 2 / 4
    assert spectral_radius(BILINEAR, lr=x, method="optimistic") ** 2 == pytest.approx(squared, abs=1e-12)
    assert (squared < 1) == (x < 1 / math.sqrt(3))
    players, losses = bilinear()
    optimizers = [OptimisticGradient([player], lr=x) for player in players]
    norms = []
    for _ in range(300):
        play(losses, optimizers, order="simultaneous")
        norms.append(math.log(sum(float(player) ** 2 for player in players)))
    # The fitted rate of the squared distance; at 300 steps the transient is below a percent of the exponent.
    assert (norms[-1] - norms[100]) / 199 == pytest.approx(math.log(squared), rel=0.02, abs=2e-3)


def test_the_first_optimistic_step_is_a_plain_one_and_later_ones_use_the_change() -> None:
    x = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = OptimisticGradient([x], lr=0.1, weight_decay=0.5)
    x.grad = torch.tensor([1.0, 1.0])
    optimizer.step()
    first = torch.tensor([1.0, 1.0]) + 0.5 * torch.tensor([1.0, 2.0])
    here = torch.tensor([1.0, 2.0]) - 0.1 * first
    assert torch.allclose(x, here)
    x.grad = torch.tensor([0.0, 3.0])
    optimizer.step()
    second = torch.tensor([0.0, 3.0]) + 0.5 * here
    assert torch.allclose(x, here - 0.1 * (2 * second - first))
    assert torch.equal(x.grad, torch.tensor([0.0, 3.0]))


@pytest.mark.parametrize("optimizer", [ExtraGradient, OptimisticGradient])
def test_climbing_is_descending_the_negative(optimizer: type) -> None:
    ends = []
    for sign in (1.0, -1.0):
        x = nn.Parameter(torch.tensor([1.0]))
        steps = optimizer([x], lr=0.1, maximize=sign < 0)

        def closure(x: nn.Parameter = x, sign: float = sign) -> torch.Tensor:
            x.grad = sign * x.detach().clone()
            return sign * x.detach() ** 2 / 2

        for _ in range(3):
            steps.step(closure)
        ends.append(x.detach())
    assert torch.equal(*ends)


def test_one_extragradient_optimiser_for_all_players_steps_like_one_for_each() -> None:
    players, losses = bilinear()
    optimizers = [ExtraGradient([player], lr=0.3, weight_decay=0.1) for player in players]
    together, same_losses = bilinear()
    optimizer = ExtraGradient(together, lr=0.3, weight_decay=0.1)

    def closure() -> torch.Tensor:
        values = [loss() for loss in same_losses]
        for player, value in zip(together, values, strict=True):
            player.grad = torch.autograd.grad(value, player)[0]
        return values[0].detach()

    for _ in range(5):
        value = play(losses, optimizers, order="simultaneous")
        assert torch.equal(value[0], optimizer.step(closure))
    assert [float(p) for p in players] == [float(p) for p in together]


def test_a_step_can_be_interrupted_by_saving() -> None:
    x = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = ExtraGradient([x], lr=0.1)
    x.grad = torch.ones(2)
    optimizer.extrapolate()
    twin = nn.Parameter(x.detach().clone())
    other = ExtraGradient([twin], lr=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.looks_ahead
    for parameter, steps in ((x, optimizer), (twin, other)):
        parameter.grad = torch.full((2,), 3.0)
        steps.step()
    assert torch.equal(x, twin)
    assert torch.allclose(x, torch.tensor([0.7, 1.7]))
    assert not optimizer.looks_ahead


def test_parameters_without_gradients_stay() -> None:
    used, unused = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    for optimizer in (OptimisticGradient([used, unused], lr=0.1), ExtraGradient([used, unused], lr=0.1)):
        used.grad = torch.ones(1)
        if isinstance(optimizer, ExtraGradient):
            optimizer.extrapolate()
        optimizer.step()
        assert float(unused) == 1.0


@pytest.mark.user_input
def test_wrong_orders_and_settings_are_refused() -> None:
    x = nn.Parameter(torch.ones(1))
    optimizer = ExtraGradient([x], lr=0.1)
    x.grad = torch.ones(1)
    with pytest.raises(RuntimeError, match="without a look ahead"):
        optimizer.step()
    optimizer.extrapolate()
    with pytest.raises(RuntimeError, match="called twice"):
        optimizer.extrapolate()
    for kind in (ExtraGradient, OptimisticGradient):
        with pytest.raises(ValueError, match="lr=0"):
            kind([x], lr=0.0)
        with pytest.raises(ValueError, match="weight_decay=-1"):
            kind([x], lr=0.1, weight_decay=-1.0)
        with pytest.raises(ValueError, match="lr=-1"):
            kind([x], lr=0.1).add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": -1.0})


@pytest.mark.user_input
def test_extragradient_players_move_together_or_not_at_all() -> None:
    players, losses = bilinear()
    extra = [ExtraGradient([player], lr=0.1) for player in players]
    with pytest.raises(ValueError, match="for all players together"):
        play(losses, extra, order="alternating")
    with pytest.raises(ValueError, match="1 of 2 players use ExtraGradient"):
        play(losses, [extra[0], torch.optim.SGD([players[1]], lr=0.1)], order="simultaneous")
    with pytest.raises(ValueError, match="with a scaler"):
        play(losses, extra, order="simultaneous", scaler=torch.amp.GradScaler("cpu"))
