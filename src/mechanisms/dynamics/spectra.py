r"""How fast play converges near an equilibrium: multipliers and spectral radii of a game's linearised updates.

Near a point where the vector field vanishes the state follows a linear map, and its spectral radius rho is the rate:
the distance shrinks like rho^t, and grows where rho > 1. With an eigenvalue lambda of the game Jacobian J, step eta
and momentum beta, all players moving together:

    gradient       z = 1 - eta lambda
    momentum       z² - (1 - eta lambda + beta) z + beta = 0
    extragradient  z = 1 - eta lambda + eta² lambda²
    optimistic     z² - (1 - 2 eta lambda) z - eta lambda = 0

Players that move in turn couple the eigenvalues, so their rate takes J itself: one linear map for each player,
multiplied in the order of play (`update_operator`). On the bilinear game min_theta max_phi theta^T M phi with x = eta
sigma, sigma a singular value of M, the multipliers are the roots of

    simultaneous  (z - 1)² (z - beta_1) (z - beta_2) + x² z² = 0
    alternating   (z - 1)² (z - beta_1) (z - beta_2) + x² z³ = 0.

Reference: Gidel et al., "Negative Momentum for Improved Game Dynamics", AISTATS 2019, arXiv 1807.04740.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Complex, Float
from numpy.typing import ArrayLike
from torch import Tensor

from mechanisms._base.validation import as_finite, check_choice, check_number

ORDERS = ("alternating", "simultaneous")
METHODS = ("momentum", "extragradient", "optimistic")
Numbers = float | int | Sequence[float | int] | Tensor
Grid = Tensor | ArrayLike | float | int

# Operators of a grid are built and solved in pieces of at most so many numbers.
PIECE = 4_000_000


def update_operator(
    jacobian: Tensor | ArrayLike,
    sizes: Sequence[int],
    *,
    lr: Numbers,
    momentum: Numbers = 0.0,
    order: str = "alternating",
    method: str = "momentum",
) -> Tensor:
    """The linear map of one step of play on the linear(ised) game with Jacobian J.

    Args:
        jacobian: J, (n, n), rows and columns in the order of play; see `games.game_jacobian`.
        sizes: numbers of parameters of the players, n in all.
        lr: step size, one for all players or one for each.
        momentum: between -1 and 1, one for all players or one for each; for "momentum" only.
        order: "alternating" or "simultaneous".
        method: "momentum" (gradient steps with momentum 0); "optimistic", in either order; "extragradient", together.

    Returns:
        For "momentum" a (2n, 2n) matrix on (omega, previous omega); for "optimistic" one on (omega, previous
        gradients); for "extragradient" an (n, n) matrix on omega.

    Raises:
        ValueError: a matrix that is not square, sizes that do not sum to n, numbers out of range or of the wrong
            count, unknown names, momentum with another method, or extragradient steps in turn.

    >>> update_operator([[0.0, 1.0], [-1.0, 0.0]], (1, 1), lr=0.5, momentum=-0.5)
    tensor([[ 0.5000, -0.5000,  0.5000,  0.0000],
            [ 0.2500,  0.2500,  0.2500,  0.5000],
            [ 1.0000,  0.0000,  0.0000,  0.0000],
            [ 0.0000,  1.0000,  0.0000,  0.0000]])
    """
    matrix, parts = _check_game(jacobian, sizes)
    _check_method(method, order, momentum)
    steps = _for_each_player(lr, "lr", len(parts), above=0).to(matrix)
    momenta = _for_each_player(momentum, "momentum", len(parts), above=-1, below=1).to(matrix)
    return operators(matrix, parts, steps, momenta, order, method)


def spectral_radius(
    system: Tensor | ArrayLike,
    *,
    lr: Numbers,
    momentum: Numbers = 0.0,
    order: str = "simultaneous",
    sizes: Sequence[int] | None = None,
    method: str = "momentum",
) -> float:
    """The asymptotic rate of play: the distance to the equilibrium shrinks like rho^t, and diverges for rho > 1.

    Args:
        system: the game Jacobian, a real (n, n) matrix, or its eigenvalues, a vector. Eigenvalues are enough for
            players that move together with one step size and one momentum.
        lr, momentum: one for all players or one for each.
        order: "simultaneous" or "alternating".
        sizes: numbers of parameters of the players; needed unless they move together with the same numbers.
        method: "momentum", "extragradient" or "optimistic".

    Raises:
        ValueError: as for `update_operator`, or eigenvalues where the Jacobian and `sizes` are needed.

    >>> spectral_radius([1j, -1j], lr=0.5)  # gradient steps together on the bilinear game: sqrt(1 + 0.25)
    1.118...
    >>> bilinear = [[0.0, 1.0], [-1.0, 0.0]]
    >>> spectral_radius(bilinear, lr=0.5, momentum=-0.5, order="alternating", sizes=(1, 1)) ** 2
    0.92649...
    """
    _check_method(method, order, momentum)
    values = _as_system(system)
    together = order == "simultaneous" and all(
        isinstance(numbers, float | int) or torch.as_tensor(numbers).ndim == 0 for numbers in (lr, momentum)
    )
    if values.ndim == 1 or together:
        if not together:
            raise ValueError(
                "eigenvalues describe players that move together with one lr and one momentum; for others give the "
                "Jacobian and sizes"
            )
        return float(spectral_radii(values, lr=lr, momentum=momentum, method=method))
    if sizes is None:
        raise ValueError("sizes, the numbers of parameters of the players, are needed to tell them apart")
    operator = update_operator(values, sizes, lr=lr, momentum=momentum, order=order, method=method)
    return float(torch.linalg.eigvals(operator).abs().amax())


def spectral_radii(
    system: Tensor | ArrayLike,
    *,
    lr: Grid,
    momentum: Grid = 0.0,
    order: str = "simultaneous",
    sizes: Sequence[int] | None = None,
    method: str = "momentum",
) -> Tensor:
    """`spectral_radius` on a whole grid of step sizes and momenta, in batched operations.

    Args:
        system: as for `spectral_radius`.
        lr: step sizes (a,), each for all players; or one.
        momentum: momenta (b,), each for all players; or (b, players), a row for each point; or one.
        order, sizes, method: as for `spectral_radius`.

    Returns:
        Spectral radii (a, b), of double precision.

    Raises:
        ValueError: as for `spectral_radius`.

    >>> spectral_radii([1j, -1j], lr=[0.3, 0.5], momentum=[-0.5, 0.0]) > 1
    tensor([[True, True],
            [True, True]])
    """
    steps = torch.atleast_1d(as_double(lr, "lr"))
    momenta = torch.atleast_1d(as_double(momentum, "momentum"))
    if steps.ndim != 1 or momenta.ndim not in (1, 2) or bool((steps <= 0).any()) or bool((momenta.abs() >= 1).any()):
        raise ValueError(
            f"lr of shape {tuple(steps.shape)} and momentum of shape {tuple(momenta.shape)}: expected step sizes (a,) "
            "above 0 and momenta (b,) or (b, players) between -1 and 1"
        )
    _check_method(method, order, momenta)
    values = _as_system(system)
    if order == "simultaneous" and momenta.ndim == 1:
        return _radii_of_eigenvalues(_eigenvalues(values), steps, momenta, method)
    if values.ndim == 1 or sizes is None:
        raise ValueError("players that move in turn, or with momenta of their own, need the Jacobian and sizes")
    matrix, parts = _check_game(values, sizes)
    if momenta.ndim == 2 and momenta.shape[1] != len(parts):
        raise ValueError(f"momentum has {momenta.shape[1]} columns for {len(parts)} players")
    columns = momenta if momenta.ndim == 2 else momenta[:, None].expand(-1, len(parts))
    grid = torch.cartesian_prod(torch.arange(len(steps)), torch.arange(len(momenta)))
    found = []
    for piece in grid.split(max(1, PIECE // (4 * len(matrix) ** 2))):
        chosen = steps[piece[:, 0], None].expand(-1, len(parts))
        maps = operators(matrix.double(), parts, chosen, columns[piece[:, 1]], order, method)
        found.append(torch.linalg.eigvals(maps).abs().amax(-1))
    return torch.cat(found).reshape(len(steps), len(momenta))


def bilinear_multipliers(
    lr_sigma: Grid, momentum: float | int | Sequence[float | int], order: str = "alternating"
) -> Tensor:
    """The four multipliers of play on the bilinear game, for one singular value.

    Args:
        lr_sigma: x = eta sigma, of any shape; for two step sizes eta_1 and eta_2 use sqrt(eta_1 eta_2) sigma.
        momentum: between -1 and 1, one for both players or one for each.
        order: "alternating" or "simultaneous".

    Returns:
        Complex roots, of the shape of `lr_sigma` with a last axis of 4.

    Raises:
        ValueError: numbers out of range, or an unknown order.

    >>> bilinear_multipliers(1.0, -0.5).abs().amax().item()  # the edge of stability of (-1/2, -1/2)
    1.0...
    """
    check_choice(order, "order", ORDERS)
    x = as_double(lr_sigma, "lr_sigma")
    if bool((x < 0).any()):
        raise ValueError(f"lr_sigma has the negative value {float(x.min())}; it is a step size times a singular value")
    first, second = (float(beta) for beta in _for_each_player(momentum, "momentum", 2, above=-1, below=1))
    total, product = first + second, first * second
    # (z - 1)² (z² - total z + product), lowest power first; then x² z² or x² z³ on top.
    lowest = [product, -total - 2 * product, 1 + 2 * total + product, -2 - total]
    coefficients = torch.tensor(lowest, dtype=torch.float64).repeat(*x.shape, 1)
    coefficients[..., 3 if order == "alternating" else 2] += x**2
    companion = torch.zeros(*x.shape, 4, 4, dtype=torch.float64)
    companion[..., 1:, :3] = torch.eye(3, dtype=torch.float64)
    companion[..., :, 3] = -coefficients
    return torch.linalg.eigvals(companion)


def helpful_steps(eigenvalue: complex | float | int) -> tuple[float, float]:
    """I(lambda): the step sizes at which a little negative momentum speeds up an eigenvalue, for players together.

    rho'(0) > 0 exactly for eta in ( (|l| - |Im l|) / (|l| Re l), (|l| + |Im l|) / (|l| Re l) ), an open interval. It
    contains the best step Re(1/l) of every eigenvalue that is not real, and all of (Re(1/l), 2 Re(1/l)) from |arg l| =
    pi/6 on. For a real eigenvalue, as in minimisation, it is empty: both ends are the same.

    Args:
        eigenvalue: lambda, not 0. With a real part of 0 or less every step size belongs to it: negative momentum slows
            a divergence that it cannot stop.

    Returns:
        The two ends.

    Raises:
        ValueError: 0, or not a finite number.

    >>> helpful_steps(3 + 4j)
    (0.0666..., 0.6)
    >>> helpful_steps(2.0)
    (0.5, 0.5)
    """
    value = complex(eigenvalue)
    size = abs(value)
    if not math.isfinite(size) or size == 0:
        raise ValueError(f"eigenvalue={eigenvalue}: expected a finite number other than 0")
    if value.real <= 0:
        return 0.0, math.inf
    # |l| - |Im l| = (Re l)² / (|l| + |Im l|), which keeps its digits where the real part is small.
    return value.real / (size * (size + abs(value.imag))), (size + abs(value.imag)) / (size * value.real)


def operators(
    jacobian: Float[Tensor, "n n"],
    parts: list[slice],
    lr: Float[Tensor, "... players"],
    momentum: Float[Tensor, "... players"],
    order: str,
    method: str,
) -> Float[Tensor, "... m m"]:
    """`update_operator` for a batch of step sizes and momenta, without checks.

    >>> one = torch.ones(1)
    >>> operators(2 * torch.eye(1), [slice(0, 1)], 0.25 * one, 0 * one, "simultaneous", "extragradient")
    tensor([[0.7500]])
    """
    n = len(jacobian)
    batch = torch.broadcast_shapes(lr.shape, momentum.shape)[:-1]
    lr, momentum = lr.expand(*batch, -1), momentum.expand(*batch, -1)
    if method == "extragradient":
        widths = torch.tensor([part.stop - part.start for part in parts], device=jacobian.device)
        scaled = lr.repeat_interleave(widths, dim=-1)[..., None] * jacobian
        return torch.eye(n).to(jacobian) - scaled + scaled @ scaled
    # The map so far; a player's move replaces its own rows of both halves.
    state = torch.eye(2 * n).to(jacobian).expand(*batch, -1, -1)
    moved = state.clone()
    for player, part in enumerate(parts):
        source = moved.clone() if order == "alternating" else state
        behind = slice(n + part.start, n + part.stop)
        eta, beta = lr[..., player, None, None], momentum[..., player, None, None]
        here, there, gradient = source[..., part, :], source[..., behind, :], jacobian[part] @ source[..., :n, :]
        if method == "optimistic":
            moved[..., part, :] = here - eta * (2 * gradient - there)
            moved[..., behind, :] = gradient
        else:
            moved[..., part, :] = (1 + beta) * here - eta * gradient - beta * there
            moved[..., behind, :] = here
    return moved


def as_double(values: Grid | Numbers, name: str) -> Tensor:
    """Finite numbers in double precision, on the CPU; Python numbers keep all their digits.

    >>> as_double(0.1, "lr").item()
    0.1
    """
    # By way of torch's default type they would lose half of them.
    given = values if isinstance(values, Tensor) else np.asarray(values)
    return as_finite(given, name, dtype=torch.float64).cpu()


def _radii_of_eigenvalues(
    eigenvalues: Complex[Tensor, " n"], lr: Tensor, momentum: Tensor, method: str
) -> Float[Tensor, "steps momenta"]:
    """Radii on a grid, from the closed forms at the top of the file."""
    eta, beta = lr[:, None, None], momentum[None, :, None]
    scaled = eta * eigenvalues
    if method == "extragradient":
        return (1 - scaled + scaled**2).abs().amax(-1).expand(-1, len(momentum)).contiguous()
    middle, constant = (1 - 2 * scaled, -scaled) if method == "optimistic" else (1 - scaled + beta, beta)
    root = (middle**2 - 4 * constant).sqrt()
    radii = torch.maximum((middle + root).abs(), (middle - root).abs()).amax(-1) / 2
    return radii.expand(len(lr), len(momentum)).contiguous()


def _as_system(system: Tensor | ArrayLike) -> Tensor:
    """A real square matrix, or a vector of eigenvalues (complex), in double precision on the CPU."""
    given = torch.as_tensor(system if isinstance(system, Tensor) else np.asarray(system)).detach().cpu()
    if given.ndim == 2 and not given.is_complex():
        return as_finite(given, "the Jacobian", dtype=torch.float64)
    if given.ndim != 1 or not given.numel():
        raise ValueError(
            f"system has shape {tuple(given.shape)} and type {given.dtype}: expected a real (n, n) Jacobian or a "
            "vector of its eigenvalues"
        )
    as_finite(torch.view_as_real(given.to(torch.complex128)), "the eigenvalues")
    return given.to(torch.complex128)


def _eigenvalues(system: Tensor) -> Complex[Tensor, " n"]:
    if system.ndim == 1:
        return system
    if system.shape[0] != system.shape[1]:
        raise ValueError(f"the Jacobian has shape {tuple(system.shape)}; expected a square matrix")
    return torch.linalg.eigvals(system)


def _check_game(jacobian: Tensor | ArrayLike, sizes: Sequence[int]) -> tuple[Tensor, list[slice]]:
    matrix = as_finite(jacobian, "the Jacobian")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"the Jacobian has shape {tuple(matrix.shape)}; expected a square matrix")
    if not sizes or min(sizes) < 1 or sum(sizes) != len(matrix):
        raise ValueError(f"sizes={tuple(sizes)} do not divide the {len(matrix)} parameters of the Jacobian")
    ends = torch.tensor(list(sizes)).cumsum(0).tolist()
    return matrix, [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _check_method(method: str, order: str, momentum: Numbers) -> None:
    check_choice(order, "order", ORDERS)
    check_choice(method, "method", METHODS)
    if method != "momentum" and bool((torch.as_tensor(momentum) != 0).any()):
        raise ValueError(f"method={method!r} has no momentum; leave it at 0")
    if method == "extragradient" and order != "simultaneous":
        raise ValueError('extragradient steps are defined for all players together; use order="simultaneous"')


def _for_each_player(numbers: Numbers, name: str, players: int, **bounds: float | int) -> Tensor:
    values = as_double(numbers, name).flatten()
    if len(values) not in (1, players):
        raise ValueError(f"{name} has {len(values)} values for {players} players; give one, or one for each")
    for value in values.tolist():
        check_number(value, name, **bounds)
    return values.expand(players)
