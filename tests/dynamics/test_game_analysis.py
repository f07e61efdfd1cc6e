"""The analysis of a game: what it says of games whose answer is known, and that large games get the same answer."""

import sys

import pytest
import torch
from torch import Tensor, nn

from mechanisms.dynamics.game_analysis import analyse_game
from mechanisms.dynamics.games import game_jacobian
from mechanisms.dynamics.spectra import spectral_radius


def quadratic_game(size: int, seed: int = 0, damping: float = 0.1) -> tuple[list, list[list[nn.Parameter]]]:
    """min_theta max_phi theta' M phi + damping (|theta|² - |phi|²) / 2."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    matrix = basis @ torch.diag(torch.linspace(0.2, 1.0, size, dtype=torch.float64))
    theta, phi = (nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64)) for _ in range(2))

    def value() -> Tensor:
        return theta @ matrix @ phi + damping / 2 * (theta @ theta - phi @ phi)

    return [value, lambda: -value()], [[theta], [phi]]


def rates(found: object) -> dict[str, float]:
    return {setting.name: setting.rate for setting in found.settings}


def test_the_bilinear_game_is_understood() -> None:
    theta, phi = (nn.Parameter(torch.ones(())) for _ in range(2))
    found = analyse_game([lambda: theta * phi, lambda: -theta * phi], [[theta], [phi]])
    assert found.vector_field.tolist() == [1, -1]
    assert found.rotation == pytest.approx(1.0)
    assert not found.converges("simultaneous").any()
    betas, lrs = found.momentum, found.lr
    expected = (betas[None] < -1e-9) & (lrs[:, None] < 2 * (1 + betas[None]) * (1 - 1e-6))
    assert torch.equal(found.converges("alternating"), expected)
    assert found.best is not None
    assert found.best.name == "alternating momentum"
    by_name = rates(found)
    assert by_name["extragradient"] == pytest.approx(0.75**0.5, abs=1e-6)
    assert by_name["simultaneous optimistic gradient"] == pytest.approx(0.5**0.5, abs=1e-3)
    assert by_name["simultaneous gradient"] >= 1
    text = found.summary()
    assert "simultaneous gradient              does not converge" in text
    assert text.endswith(found.recommendation)


def test_a_minimisation_does_not_rotate_and_positive_momentum_is_best() -> None:
    x = nn.Parameter(torch.ones(2, dtype=torch.float64))
    found = analyse_game([lambda: x[0] ** 2 / 2 + x[1] ** 2 / 20], [[x]])
    assert found.rotation == pytest.approx(0.0, abs=1e-12)
    assert found.best is not None
    assert found.best.name.endswith("momentum")
    assert found.best.momentum[0] > 0.2


@pytest.mark.parametrize("size", [20, 60])
def test_rates_of_reduced_games_are_those_of_the_whole_game(size: int) -> None:
    losses, players = quadratic_game(size)
    found = analyse_game(losses, players)
    jacobian = game_jacobian(losses, players)
    assert found.reduced
    for setting in found.settings:
        exact = spectral_radius(
            jacobian,
            lr=setting.lr,
            momentum=setting.momentum,
            order=setting.order,
            sizes=(size, size),
            method=setting.method,
        )
        assert setting.rate == pytest.approx(exact, abs=1e-9)
    # Both ends of the spectrum are kept, so that the map is that of the whole game.
    for order in ("alternating", "simultaneous"):
        for i, j in ((20, 4), (28, 9), (30, 14)):
            exact = spectral_radius(
                jacobian,
                lr=float(found.lr[i]),
                momentum=[float(found.momentum[j])] * 2,
                order=order,
                sizes=(size, size),
            )
            assert float(found.radii[order][i, j]) == pytest.approx(exact, rel=0.02)
    assert found.best is not None


def test_without_a_jacobian_the_leading_eigenvalues_agree() -> None:
    losses, players = quadratic_game(40)
    whole, leading = analyse_game(losses, players), analyse_game(losses, players, k=8)
    assert leading.jacobian is None
    assert leading.reduced
    assert leading.eigenvalues.abs().tolist() == pytest.approx(whole.eigenvalues[:8].abs().tolist(), rel=1e-6)
    top = leading.lr[-4:]
    assert torch.allclose(whole.lr[-4:], top)
    # The largest eigenvalues decide where large steps diverge.
    assert torch.allclose(leading.radii["alternating"][-4:], whole.radii["alternating"][-4:], rtol=0.05)


def test_networks_with_more_parameters_than_a_jacobian_should_have() -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(2, 60), nn.Tanh(), nn.Linear(60, 60), nn.Tanh(), nn.Linear(60, 1))
    generator = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    noise, real = torch.randn(32, 2), torch.randn(32, 2)

    def value() -> Tensor:
        return (
            nn.functional.logsigmoid(critic(real)).mean() + nn.functional.logsigmoid(-critic(generator(noise))).mean()
        )

    found = analyse_game([lambda: -value(), value], [critic, generator])
    assert found.jacobian is None
    assert found.sizes == (3901, 42)
    assert len(found.eigenvalues) >= 16
    assert bool(torch.isfinite(found.radii["alternating"]).all())
    assert found.recommendation


def test_directions_that_change_nothing_are_left_out() -> None:
    """A 4 x 6 bilinear game: two directions of phi have no effect, and would make every rate 1."""
    matrix = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta, phi = nn.Parameter(torch.ones(4, dtype=torch.float64)), nn.Parameter(torch.ones(6, dtype=torch.float64))
    found = analyse_game([lambda: theta @ matrix @ phi, lambda: -theta @ matrix @ phi], [[theta], [phi]])
    assert found.sizes == (4, 6)
    assert found.best is not None
    assert found.best.rate < 1
    assert len(found.eigenvalues) == 10


def test_three_players_share_a_momentum() -> None:
    players = [nn.Parameter(torch.tensor(1.0)) for _ in range(3)]

    def loss(i: int) -> Tensor:
        return players[i] * (players[(i + 1) % 3] - players[(i + 2) % 3]) + 0.2 * players[i] ** 2

    found = analyse_game([lambda i=i: loss(i) for i in range(3)], [[player] for player in players])
    assert found.best is not None
    assert len(found.best.momentum) == 3


def test_a_point_that_repels_is_named() -> None:
    x = nn.Parameter(torch.ones(2))
    found = analyse_game([lambda: x[0] ** 2 - x[1] ** 2], [[x]])
    assert found.best is None
    assert "real part -2" in found.recommendation


def test_the_plot_shows_eigenvalues_and_both_maps() -> None:
    losses, players = quadratic_game(2)
    figure = analyse_game(losses, players, lr=[0.1, 0.5, 1.0], momentum=[-0.5, 0.0]).plot()
    assert [trace.type for trace in figure.data] == ["scatter", "heatmap", "contour", "heatmap", "contour"]
    assert len(figure.data[1].z) == 3


def test_without_plotly_only_the_plot_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    losses, players = quadratic_game(2)
    found = analyse_game(losses, players)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ImportError, match=r"mechanisms\[lab\]"):
        found.plot()


@pytest.mark.user_input
def test_wrong_input_says_what_is_expected() -> None:
    theta, phi = (nn.Parameter(torch.ones(())) for _ in range(2))
    losses = [lambda: theta * phi, lambda: -theta * phi]
    with pytest.raises(ValueError, match="the game Jacobian is 0"):
        analyse_game([lambda: theta + 0, lambda: phi + 0], [[theta], [phi]])
    with pytest.raises(ValueError, match="k=0"):
        analyse_game(losses, [[theta], [phi]], k=0)
    with pytest.raises(ValueError, match="expected step sizes"):
        analyse_game(losses, [[theta], [phi]], lr=[-1.0])
    with pytest.raises(ValueError, match="both own"):
        analyse_game(losses, [[theta], [theta, phi]])
