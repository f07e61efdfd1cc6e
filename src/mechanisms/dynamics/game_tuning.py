r"""The best step size and momentum of a game, from the eigenvalues or the Jacobian of its vector field.

All players together, gradient steps: |1 - eta lambda|² = 1 - eta |lambda|² (2 Re(1/lambda) - eta). Play converges near
the equilibrium iff every Re(lambda) > 0 and eta < 2 min_k Re(1/lambda_k), and the best step minimises a maximum of
parabolas, which is convex in eta.

Reference: Gidel et al., "Negative Momentum for Improved Game Dynamics", AISTATS 2019, arXiv 1807.04740, sections 3-5.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mechanisms._base.validation import as_finite, check_choice
from mechanisms.dynamics.spectra import METHODS, ORDERS, as_double, spectral_radii


class Step(NamedTuple):
    """A step size and the rate of play with it.

    Args:
        lr: step size.
        rate: spectral radius, per step.

    >>> Step(lr=0.5, rate=0.9).rate
    0.9
    """

    lr: float
    rate: float


class Tuned(NamedTuple):
    """A step size, momenta and the rate of play with them.

    Args:
        lr: step size of every player.
        momentum: one for each player.
        rate: spectral radius, per step.

    >>> Tuned(lr=0.5, momentum=(-0.5, -0.5), rate=0.9).momentum
    (-0.5, -0.5)
    """

    lr: float
    momentum: tuple[float, ...]
    rate: float


def best_step(eigenvalues: Tensor | ArrayLike) -> Step:
    """The step size at which gradient steps of all players together converge fastest, and their rate.

    Args:
        eigenvalues: of the game Jacobian, a vector; see `games.game_eigenvalues`.

    Returns:
        For one eigenvalue eta = Re(1/lambda) and rate |sin(arg lambda)|; for a real positive spectrum eta = 2 /
        (smallest + largest). Where an eigenvalue has a real part of 0 or less no step converges: a step of 0 and a rate
        of 1, with a warning.

    Raises:
        ValueError: no vector, or numbers that are not finite.

    >>> best_step([1.0, 3.0])
    Step(lr=0.5, rate=0.5)
    """
    given = eigenvalues if isinstance(eigenvalues, Tensor) else np.asarray(eigenvalues)
    values = torch.as_tensor(given).to(torch.complex128).cpu()
    if values.ndim != 1 or not values.numel():
        raise ValueError(f"eigenvalues have shape {tuple(values.shape)}; expected a vector of at least one")
    as_finite(torch.view_as_real(values), "eigenvalues")
    real, square = values.real, values.abs() ** 2
    if bool((real <= 0).any()):
        worst = float(real.min())
        warnings.warn(
            f"an eigenvalue has the real part {worst:.3g}: gradient steps of all players together do not converge at "
            "any step size; try alternating steps with negative momentum (best_momentum), which converge where real "
            "parts are 0",
            stacklevel=2,
        )
        return Step(0.0, 1.0)
    # Bisection on the slope of the largest parabola, 2 (eta |lambda|² - Re lambda).
    low, high = 0.0, 2 * float((real / square).min())
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        active = int((middle**2 * square - 2 * middle * real).argmax())
        if middle * float(square[active]) > float(real[active]):
            high = middle
        else:
            low = middle
    eta = (low + high) / 2
    return Step(eta, float((1 - eta * values).abs().amax()))


def best_momentum(
    jacobian: Tensor | ArrayLike,
    sizes: Sequence[int],
    *,
    order: str = "alternating",
    same: bool = True,
) -> Tuned:
    """The step size and momenta, of either sign, at which play converges fastest.

    A search on batched spectral radii: a coarse grid, then finer ones around the best point. Its time grows like n³:
    about a second for n = 10, minutes for n = 100; `game_analysis.analyse_game` first reduces larger games.

    Args:
        jacobian: J, (n, n), players in the order of play.
        sizes: numbers of parameters of the players.
        order: "alternating" or "simultaneous".
        same: one momentum for all players; otherwise one for each.

    Returns:
        The best that was found. Its rate is 1 or more where nothing converges.

    Raises:
        ValueError: as for `spectra.update_operator`, or a Jacobian of zeros.

    >>> best = best_momentum([[0.0, 1.0], [-1.0, 0.0]], (1, 1))
    >>> round(best.lr, 2), [round(beta, 2) for beta in best.momentum], round(best.rate, 3)
    (1.78, [-0.08, -0.08], 0.484)
    """
    check_choice(order, "order", ORDERS)
    matrix = as_double(jacobian, "the Jacobian")
    players, top = len(sizes), _scale(matrix)

    def radii(steps: Tensor, momenta: Tensor) -> Tensor:
        return spectral_radii(matrix, lr=steps, momentum=momenta, order=order, sizes=sizes)

    # Steps on a logarithmic scale: where rotation dominates the best one is far below that of the largest eigenvalue.
    log_lr, low_log = torch.linspace(-7.0, 0.0, 36, dtype=torch.float64), -16.0
    beta = torch.linspace(-0.95, 0.95, 39, dtype=torch.float64)
    found = radii(top * log_lr.exp(), beta)
    row, column = divmod(int(found.argmin()), len(beta))
    centre = torch.cat([log_lr[row, None], beta[column].expand(1 if same else players)])
    best, width = float(found[row, column]), torch.tensor([0.4] + [0.1] * (len(centre) - 1), dtype=torch.float64)
    # The rate has ridges where two multipliers tie: a denser net while it is cheap.
    offsets = torch.linspace(-1, 1, 9 if len(centre) == 2 or len(matrix) <= 4 else 5, dtype=torch.float64)
    while float(width.max()) > 1e-5:
        logs = (centre[0] + width[0] * offsets).clamp(low_log, 0.7)
        axes = [(centre[i] + width[i] * offsets).clamp(-0.999, 0.999) for i in range(1, len(centre))]
        points = torch.cartesian_prod(*axes).reshape(-1, len(axes))
        found = radii(top * logs.exp(), points[:, 0] if same else points)
        row, column = divmod(int(found.argmin()), len(points))
        if float(found[row, column]) < best:
            best, centre = float(found[row, column]), torch.cat([logs[row, None], points[column]])
        width = width * 0.5
    momentum = centre[1:].expand(players) if same else centre[1:]
    return Tuned(top * float(centre[0].exp()), tuple(momentum.tolist()), best)


def best_lr(
    system: Tensor | ArrayLike,
    *,
    order: str = "simultaneous",
    sizes: Sequence[int] | None = None,
    method: str = "momentum",
) -> Step:
    """The step size at which a method without momentum converges fastest: gradient, extragradient, optimistic steps.

    Args:
        system: the game Jacobian or its eigenvalues; see `spectra.spectral_radius`.
        order: "simultaneous" or "alternating".
        sizes: numbers of parameters of the players, for an alternating order.
        method: "momentum" (with momentum 0), "extragradient" or "optimistic".

    Raises:
        ValueError: as for `spectra.spectral_radius`.

    >>> step = best_lr([1j, -1j], method="extragradient")  # 1 - x² + x⁴ is smallest at x² = 1/2
    >>> round(step.lr, 4), round(step.rate**2, 4)
    (0.7071, 0.75)
    """
    check_choice(method, "method", METHODS)
    values = torch.as_tensor(system if isinstance(system, Tensor) else np.asarray(system)).detach().cpu()
    top = _scale(values)

    def radii(logs: Tensor) -> Tensor:
        return spectral_radii(values, lr=top * logs.exp(), order=order, sizes=sizes, method=method)[:, 0]

    return _zoom(radii, top)


def _zoom(radii: Callable[[Tensor], Tensor], top: float) -> Step:
    """The best of a row of logarithms of step sizes (in units of `top`), then of finer rows around it."""
    logs = torch.linspace(-12.0, 0.0, 121, dtype=torch.float64)
    best, centre, width = float("inf"), 0.0, 0.1
    while width > 1e-7:
        found = radii(logs)
        if float(found.min()) < best:
            best, centre = float(found.min()), float(logs[found.argmin()])
        logs, width = centre + width * torch.linspace(-1, 1, 9, dtype=torch.float64), width * 0.4
    return Step(top * float(torch.tensor(centre, dtype=torch.float64).exp()), best)


def _scale(system: Tensor) -> float:
    """4 / the largest magnitude of an eigenvalue: no step beyond it converges."""
    values = system if system.ndim == 1 else torch.linalg.eigvals(system.double())
    largest = float(values.abs().amax())
    if largest == 0:
        raise ValueError("all eigenvalues are 0: the losses do not depend on the parameters near this point")
    return 4 / largest
