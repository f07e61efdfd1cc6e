r"""Why does my game oscillate, and what would stop it? The spectrum of a game and the settings it asks for.

`analyse_game` takes the players' losses and parameters and computes the Jacobian of the game's vector field, or its
leading eigenvalues for large networks. For the linearised game it works out which step sizes and momenta converge when
the players move in turn or together, and which settings, extragradient and optimistic steps included, do so fastest.

Reference: Gidel et al., "Negative Momentum for Improved Game Dynamics", AISTATS 2019, arXiv 1807.04740.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Complex, Float
from numpy.typing import ArrayLike
from torch import Tensor

from mechanisms._base.extras import require
from mechanisms._base.validation import check_number
from mechanisms.dynamics.game_tuning import best_lr, best_momentum, best_step
from mechanisms.dynamics.games import Loss, Player, field_of, left_eigenpairs, left_products, own_parameters
from mechanisms.dynamics.spectra import ORDERS, spectral_radii, spectral_radius

if TYPE_CHECKING:
    import plotly.graph_objects

DENSE = 1500  # parameters up to which the whole Jacobian is built by default
LEADING = 16  # eigenvalues that are computed where it is not
REDUCED = 16  # parameters of the game on which maps and searches are made
CHECKED = 300  # parameters up to which their result is checked on the whole game
EDGE = 1 - 1e-9  # rates from here on are 1 but for rounding
NEUTRAL = 1e-7  # of the largest: singular values below are directions that change nothing


@dataclass(frozen=True)
class Setting:
    """A way to play, tuned, and how fast it converges.

    Args:
        name: in words.
        order, method: as for `spectra.spectral_radius`.
        lr: step size of every player.
        momentum: one for each player.
        rate: spectral radius for each step: below 1 it converges.
        gradients: how many gradients of each player a step takes.

    >>> Setting("extragradient", "simultaneous", "extragradient", 0.7, (0.0, 0.0), 0.81, 2).rate_per_gradient
    0.9
    """

    name: str
    order: str
    method: str
    lr: float
    momentum: tuple[float, ...]
    rate: float
    gradients: int = 1

    @property
    def rate_per_gradient(self) -> float:
        """The rate at equal cost."""
        return self.rate ** (1 / self.gradients)


@dataclass(frozen=True)
class GameAnalysis:
    """What `analyse_game` found.

    Args:
        vector_field: v at the current parameters; the analysis describes play near a point where it is 0.
        jacobian: J, or `None` where only leading eigenvalues were computed.
        sizes: numbers of parameters of the players.
        eigenvalues: of J, complex, by descending magnitude.
        lr, momentum: the grid of the maps.
        radii: for each order the spectral radii (step sizes, momenta); below 1 play converges.
        settings: ways to play, tuned, the fastest per gradient first.
        reduced: the maps and settings are those of a smaller game that keeps the players and the eigenvalues of
            largest (and, where J was built, smallest) magnitude.

    >>> theta, phi = (torch.nn.Parameter(torch.ones(())) for _ in range(2))
    >>> found = analyse_game([lambda: theta * phi, lambda: -theta * phi], [[theta], [phi]])
    >>> bool(found.converges("simultaneous").any()), bool(found.converges("alternating").any())
    (False, True)
    """

    vector_field: Float[Tensor, " n"]
    jacobian: Float[Tensor, "n n"] | None
    sizes: tuple[int, ...]
    eigenvalues: Complex[Tensor, " k"]
    lr: Float[Tensor, " steps"]
    momentum: Float[Tensor, " momenta"]
    radii: dict[str, Tensor]
    settings: tuple[Setting, ...]
    reduced: bool

    def converges(self, order: str = "alternating") -> Tensor:
        """Where on the grid the linearised game converges: booleans (step sizes, momenta)."""
        return self.radii[order] < EDGE

    @property
    def rotation(self) -> float:
        """The largest |Im l| / |l| of an eigenvalue that is not 0: 0 for a minimisation, 1 for a pure rotation."""
        size = self.eigenvalues.abs()
        kept = size > NEUTRAL * size.amax()
        return float((self.eigenvalues.imag.abs() / size)[kept].amax()) if bool(kept.any()) else 0.0

    @property
    def best(self) -> Setting | None:
        """The setting that converges fastest per gradient; `None` if none of them converges."""
        return self.settings[0] if self.settings and self.settings[0].rate < EDGE else None

    @property
    def recommendation(self) -> str:
        """What to do, in words."""
        if self.best is None:
            lowest = float(self.eigenvalues.real.min())
            if lowest < -1e-6 * float(self.eigenvalues.abs().amax()):
                return f"nothing converges to this point: an eigenvalue has the real part {lowest:.3g} and repels play"
            return "nothing converges to this point; add a gradient penalty, say, or analyse another point"
        chosen = self.best
        momenta = ", ".join(f"{beta:+.2f}" for beta in chosen.momentum)
        with_momentum = f", momentum {momenta}" if any(chosen.momentum) else ""
        return (
            f"{chosen.name} at lr {chosen.lr:.3g}{with_momentum}: the distance shrinks by {chosen.rate:.4g} a step"
            f"{' of two gradients' if chosen.gradients == 2 else ''}"
        )

    def summary(self) -> str:
        """The game and the settings, one a line, and the recommendation."""
        largest = float(self.eigenvalues.abs().amax())
        lines = [
            f"{len(self.sizes)} players with {', '.join(map(str, self.sizes))} parameters; |v| = "
            f"{float(self.vector_field.norm()):.3g}",
            f"{len(self.eigenvalues)} eigenvalues: largest |l| {largest:.3g}, smallest real part "
            f"{float(self.eigenvalues.real.min()):.3g}, rotation {self.rotation:.3g}",
        ]
        if self.reduced:
            lines.append("maps and settings: of the reduced game")
        for setting in self.settings:
            momenta = " ".join(f"{beta:+.2f}" for beta in setting.momentum)
            tuned = f"lr {setting.lr:<9.3g} momentum {momenta}  rate {setting.rate:.5f}"
            lines.append(f"  {setting.name:<34} {tuned if setting.rate < EDGE else 'does not converge'}")
        return "\n".join([*lines, self.recommendation])

    def plot(self) -> plotly.graph_objects.Figure:
        """Eigenvalues in the complex plane, and for both orders the rate over step size and momentum.

        Raises:
            MissingExtra: Plotly is not installed.
        """
        go = require("plotly.graph_objects", "lab")
        subplots = require("plotly.subplots", "lab")
        figure = subplots.make_subplots(
            cols=3, subplot_titles=("eigenvalues of the game Jacobian", *(f"rate, {order}" for order in ORDERS))
        )
        figure.add_trace(
            go.Scatter(x=self.eigenvalues.real.tolist(), y=self.eigenvalues.imag.tolist(), mode="markers", name="l"),
            row=1,
            col=1,
        )
        for column, order in enumerate(ORDERS, start=2):
            shared = {"x": self.momentum.tolist(), "y": self.lr.tolist(), "z": self.radii[order].clamp(max=2).tolist()}
            look = {"colorscale": "RdBu", "reversescale": True, "zmid": 1.0, "showscale": column == 3}
            figure.add_trace(go.Heatmap(**shared, **look, name="rate"), row=1, col=column)
            edge = {"start": 1.0, "end": 1.0, "size": 1.0, "coloring": "none"}
            figure.add_trace(
                go.Contour(**shared, contours=edge, line={"color": "black"}, showscale=False, hoverinfo="skip"),
                row=1,
                col=column,
            )
            figure.update_xaxes(title="momentum", row=1, col=column)
            figure.update_yaxes(title="step size", type="log", row=1, col=column)
        figure.update_xaxes(title="real part", row=1, col=1)
        figure.update_yaxes(title="imaginary part", row=1, col=1)
        figure.update_layout(template="plotly_white", showlegend=False, height=420)
        return figure


def analyse_game(
    losses: Sequence[Loss],
    parameters: Sequence[Player],
    *,
    lr: Tensor | ArrayLike | None = None,
    momentum: Tensor | ArrayLike | None = None,
    k: int | None = None,
) -> GameAnalysis:
    """The spectrum of a game at its current parameters, and the step sizes and momenta for which it converges.

    Up to 1,500 parameters the whole Jacobian is built; beyond, or with `k`, only leading eigenvalues. Maps and searches
    need hundreds of eigenvalue problems of twice the game's size, so a game of more than 16 parameters is first reduced
    to one whose players are projected onto the leading eigenvectors; up to 300 parameters the rates of the settings are
    then computed anew on the whole game. Directions in which a player's parameters change nothing are left out: there
    every rate is 1.

    Args:
        losses: one function for each player, deterministic: fix the batch and the noise. Two networks with a shared
            batch are an example; see `games.vector_field`.
        parameters: modules or sequences of parameters, one for each loss, in the order of play.
        lr: step sizes of the maps; by default 32 up to 4 / |largest eigenvalue|, beyond which nothing converges.
        momentum: momenta of the maps; by default 19 from -0.9 to 0.9.
        k: compute this many leading eigenvalues in place of all.

    Raises:
        ValueError, TypeError: as for `games.play`, a grid out of range, or losses that are flat at this point.
        RuntimeError: Arnoldi's method did not converge.

    >>> theta, phi = (torch.nn.Parameter(torch.ones(())) for _ in range(2))
    >>> found = analyse_game([lambda: theta * phi, lambda: -theta * phi], [[theta], [phi]])
    >>> found.recommendation
    'alternating momentum at lr 1.8..., momentum -0.10, -0.05: the distance shrinks by 0.47... a step'
    """
    own = own_parameters(losses, parameters)
    field = field_of(losses, own, create_graph=True)
    size = len(field)
    k = None if k is None else int(check_number(k, "k", at_least=1))
    if size <= DENSE if k is None else k >= size - 1:
        linear = _whole(field, own)
    else:
        linear = _leading(field, own, min(LEADING, size - 2) if k is None else k)
    largest = float(linear.eigenvalues.abs().amax())
    if largest == 0:
        raise ValueError("the game Jacobian is 0 at this point: the losses are linear in the parameters of everyone")
    lr = 4 / largest * torch.logspace(-3, 0, 32, dtype=torch.float64) if lr is None else torch.as_tensor(lr).double()
    if momentum is None:
        momentum = torch.linspace(-0.9, 0.9, 19, dtype=torch.float64)
    momentum = torch.as_tensor(momentum).double()
    radii = {
        "alternating": spectral_radii(linear.game, lr=lr, momentum=momentum, order="alternating", sizes=linear.sizes),
        "simultaneous": spectral_radii(linear.together, lr=lr, momentum=momentum),
    }
    settings = _settings(linear)
    if linear.full is not None and len(linear.full[0]) <= CHECKED:
        settings = [_checked(setting, *linear.full) for setting in settings]
    return GameAnalysis(
        vector_field=field.detach(),
        jacobian=linear.jacobian,
        sizes=_sizes(own),
        eigenvalues=linear.eigenvalues,
        lr=lr,
        momentum=momentum,
        radii=radii,
        settings=tuple(sorted(settings, key=lambda setting: setting.rate_per_gradient)),
        reduced=linear.jacobian is None or linear.full is not None,
    )


@dataclass(frozen=True)
class _Linear:
    """The linearised game: its eigenvalues, and the game on which maps and searches are made.

    `together` are the eigenvalues for players that move together, all of them where they are known. `full` is the game
    before it was reduced, where there is one.
    """

    jacobian: Tensor | None
    eigenvalues: Tensor
    game: Tensor
    sizes: tuple[int, ...]
    together: Tensor
    full: tuple[Tensor, tuple[int, ...]] | None = None


def _sizes(players: list[list[Tensor]]) -> tuple[int, ...]:
    return tuple(sum(parameter.numel() for parameter in player) for player in players)


def _whole(field: Tensor, players: list[list[Tensor]]) -> _Linear:
    """From the whole Jacobian."""
    identity = torch.eye(len(field), dtype=field.dtype, device=field.device)
    jacobian = left_products(field, players, identity, 128).detach()
    exact = jacobian.double().cpu()
    eigenvalues = torch.linalg.eigvals(exact)
    eigenvalues = eigenvalues[eigenvalues.abs().argsort(descending=True)]
    game, sizes = _without_neutral(exact, _sizes(players))
    if len(game) <= REDUCED:
        return _Linear(jacobian, eigenvalues, game, sizes, torch.linalg.eigvals(game))
    together, vectors = _by_magnitude(*torch.linalg.eig(game.T))
    small, small_sizes = _project(lambda rows: rows @ game, vectors, sizes, both_ends=True)
    return _Linear(jacobian, eigenvalues, small, small_sizes, together, full=(game, sizes))


def _leading(field: Tensor, players: list[list[Tensor]], k: int) -> _Linear:
    """From the `k` eigenvalues of largest magnitude, without building the Jacobian."""
    values, columns = left_eigenpairs(field, players, k, "LM")
    eigenvalues, vectors = _by_magnitude(torch.as_tensor(values), torch.as_tensor(columns))

    def left(rows: Tensor) -> Tensor:
        return left_products(field, players, rows.to(field), 16).double().cpu()

    game, sizes = _project(left, vectors, _sizes(players), both_ends=False)
    return _Linear(None, eigenvalues, game, sizes, torch.linalg.eigvals(game))


def _by_magnitude(values: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    order = values.abs().argsort(descending=True)
    return values[order].to(torch.complex128), vectors[:, order].to(torch.complex128)


def _settings(linear: _Linear) -> list[Setting]:
    """Each way to play, with the best step size and momentum."""
    players = len(linear.sizes)
    zero = (0.0,) * players
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no step converges is in the rate
        plain = best_step(linear.together)
    found = [Setting("simultaneous gradient", "simultaneous", "momentum", plain.lr, zero, plain.rate)]
    for name, order, method, gradients in (
        ("alternating gradient", "alternating", "momentum", 1),
        ("extragradient", "simultaneous", "extragradient", 2),
        ("simultaneous optimistic gradient", "simultaneous", "optimistic", 1),
        ("alternating optimistic gradient", "alternating", "optimistic", 1),
    ):
        system = linear.game if order == "alternating" else linear.together
        step = best_lr(system, order=order, sizes=linear.sizes, method=method)
        found.append(Setting(name, order, method, step.lr, zero, step.rate, gradients))
    for order in ORDERS:
        # A momentum for each player is a grid of one more dimension; beyond two players they share one.
        tuned = best_momentum(linear.game, linear.sizes, order=order, same=players != 2)
        found.append(Setting(f"{order} momentum", order, "momentum", *tuned))
    return found


def _checked(setting: Setting, game: Tensor, sizes: tuple[int, ...]) -> Setting:
    """The setting with its rate on the whole game."""
    if setting.lr == 0:
        return setting
    rate = spectral_radius(
        game, lr=setting.lr, momentum=setting.momentum, order=setting.order, sizes=sizes, method=setting.method
    )
    return Setting(setting.name, setting.order, setting.method, setting.lr, setting.momentum, rate, setting.gradients)


def _without_neutral(jacobian: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """The game without directions in which one player's parameters change nothing; exact, and players stay apart."""
    columns = jacobian.split(list(sizes), dim=1)
    parts = [torch.linalg.svd(column, full_matrices=False)[1:] for column in columns]
    top = max(float(values.amax()) for values, _ in parts)
    if top == 0:
        return jacobian, sizes
    # One direction at least stays of each player, so that there is a player.
    bases = [vectors[: max(1, int((values > NEUTRAL * top).sum()))].T for values, vectors in parts]
    if all(basis.shape[0] == basis.shape[1] for basis in bases):
        return jacobian, sizes
    basis = torch.block_diag(*bases)
    return basis.T @ jacobian @ basis, tuple(basis.shape[1] for basis in bases)


def _project(
    left: Callable[[Tensor], Tensor], vectors: Complex[Tensor, "n k"], sizes: tuple[int, ...], *, both_ends: bool
) -> tuple[Tensor, tuple[int, ...]]:
    """The game on the span of eigenvectors of J's transpose, each cut into its players' parts.

    The span contains the eigenvectors, so their eigenvalues are exactly those of the smaller game.

    Args:
        left: `rows -> rows @ J`.
        vectors: eigenvectors of J's transpose, by descending magnitude of their eigenvalues.
        sizes: numbers of parameters of the players.
        both_ends: take the largest and the smallest, not the largest alone.
    """
    width = max(2, REDUCED // len(sizes))
    chosen = vectors[:, :width]
    if both_ends:
        chosen = torch.cat([vectors[:, : width - width // 2], vectors[:, -(width // 2) :]], dim=1)
    bases = []
    for part in torch.cat([chosen.real, chosen.imag], dim=1).split(list(sizes)):
        columns, values, _ = torch.linalg.svd(part, full_matrices=False)
        bases.append(columns[:, : max(1, int((values > NEUTRAL * values.amax()).sum()))])
    basis = torch.block_diag(*bases)
    return left(basis.T.contiguous()) @ basis, tuple(base.shape[1] for base in bases)
