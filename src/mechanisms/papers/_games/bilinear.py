"""Exact runs: the bilinear game, the interval of helpful steps, and the original's grid of step sizes and momenta."""

from __future__ import annotations

import math
from typing import Any

from mechanisms.lab import Bench, config

ORDERS = ("alternating", "simultaneous")
# Momenta of (theta, phi) by variant, and the order of play.
PLAYS: dict[str, tuple[str, tuple[float, float]]] = {
    "simultaneous": ("simultaneous", (0.0, 0.0)),
    "simultaneous-negative": ("simultaneous", (-0.5, -0.5)),
    "alternating": ("alternating", (0.0, 0.0)),
    "alternating-negative": ("alternating", (-0.5, 0.0)),
    "alternating-both-negative": ("alternating", (-0.5, -0.5)),
    "alternating-positive": ("alternating", (0.5, 0.5)),
}
METHODS = ("extragradient", "optimistic", "consensus")
DRAWN = 200  # steps of the trajectory that a record keeps


@config
class Bilinear:
    """min over theta, max over phi of theta^T M phi, M diagonal."""

    singular_values: tuple[float, ...] = (1.0, 0.5, 0.2)
    lr: float = 0.3
    steps: int = 100_000
    grid: int = 60
    consensus: float = 0.5


def run_bilinear(settings: Bilinear, variant: str, bench: Bench) -> dict[str, Any]:
    """Play the game, fit its rate, and compare with the roots; the start is the same for all variants."""
    import torch

    from mechanisms.dynamics.spectra import bilinear_multipliers, spectral_radii, spectral_radius

    sigma = torch.tensor(settings.singular_values, dtype=torch.float64)
    game = bilinear_game(sigma)
    size = len(sigma)
    if variant in METHODS:
        order, method = "simultaneous", "momentum" if variant == "consensus" else variant
        # Consensus optimisation follows v + gamma J^T v, in the game as it stands near the equilibrium.
        shown = game + settings.consensus * game.T @ game if variant == "consensus" else game
        operator = operator_of(shown, (size, size), settings.lr, (0.0, 0.0), order, method)
        predicted = spectral_radius(shown, lr=settings.lr, method=method) ** 2
        found: dict[str, Any] = {}
    else:
        order, momenta = PLAYS[variant]
        operator = operator_of(game, (size, size), settings.lr, momenta, order, "momentum")
        predicted = float(bilinear_multipliers(settings.lr * sigma, momenta, order).abs().amax()) ** 2
        found = {}
    path = follow(operator, 2 * size, settings.steps)
    bench.progress(settings.steps, settings.steps)
    norms = path.norm(dim=1)
    # What has grown by 100 orders of magnitude has shown its rate; beyond come infinities.
    norms = norms[: int((~(norms < 1e100)).int().argmax()) or len(norms)]
    for step in range(min(DRAWN, len(norms) - 1) + 1):
        bench.log(step, theta=float(path[step, 0]), phi=float(path[step, size]), distance=float(norms[step]))
    found |= {
        "predicted_rate": predicted,
        "growth_300": float(norms[min(300, len(norms) - 1)] / norms[0]),
        "largest": float(norms.max() / norms[0]),
        "smallest": float(norms.min() / norms[0]),
    }
    usable = int((norms > 1e-140).sum()) - 1
    first = usable // 10
    # A line through the logarithm of the squared distance: rotation only ripples around it.
    time = torch.arange(first, usable + 1, dtype=torch.float64)
    logs = 2 * norms[first : usable + 1].log()
    if len(time) > 2:
        centred = time - time.mean()
        exponent = float((centred * logs).sum() / (centred**2).sum())
        found["rate"] = math.exp(exponent)
        if abs(math.log(predicted)) > 1e-9:
            found["exponent_error"] = exponent / math.log(predicted) - 1
    smallest = float(sigma.min())
    found["bound"] = max(0.5, 1 - (settings.lr * smallest) ** 2 / 16)
    found["radius"] = math.sqrt(predicted)
    found["grew"] = float(found["growth_300"] > 1)
    found["bounded"] = float(found["largest"] <= 3 and found["smallest"] >= 1 / 3)
    found["within_bound"] = float(found.get("rate", math.inf) <= found["bound"])
    if variant == "simultaneous":
        grid = torch.linspace(-0.999, 0.999, settings.grid, dtype=torch.float64)
        pairs = torch.cartesian_prod(grid, grid)
        steps = torch.linspace(3 / settings.grid, 3, settings.grid, dtype=torch.float64)
        radii = spectral_radii(bilinear_game(torch.ones(1).double()), lr=steps, momentum=pairs, sizes=(1, 1))
        found["least_radius"] = float(radii.min())
        found["all_diverge"] = float((radii > 1).all())
    return found


def bilinear_game(sigma: Any) -> Any:
    """The game Jacobian for singular values `sigma`."""
    import torch

    matrix, zero = torch.diag(sigma), torch.zeros(len(sigma), len(sigma), dtype=sigma.dtype)
    return torch.cat([torch.cat([zero, matrix], 1), torch.cat([-matrix, zero], 1)])


def operator_of(
    game: Any, sizes: tuple[int, int], lr: float, momenta: tuple[float, float], order: str, method: str
) -> Any:
    """The map of one step on the full state."""
    from mechanisms.dynamics.spectra import update_operator

    return update_operator(game, sizes, lr=lr, momentum=momenta, order=order, method=method)


def follow(operator: Any, size: int, steps: int, block: int = 500) -> Any:
    """Positions (steps + 1, size) from ones: powers of the map, a block of steps in one product.

    The state starts with previous positions equal to the positions; previous gradients, where the method keeps these
    instead, start at the first gradients.
    """
    import torch

    powers = [torch.eye(len(operator), dtype=operator.dtype)]
    for _ in range(min(block, steps)):
        powers.append(operator @ powers[-1])
    stacked = torch.stack(powers[1:])
    start = torch.ones(size, dtype=operator.dtype)
    if len(operator) == size:
        state = start
    else:
        # Rows of the second half say what it holds: positions (an identity), or gradients.
        state = torch.cat([start, operator[size:, :size] @ start])
    path = [state[None, :size]]
    left = steps
    while left > 0:
        moved = stacked[: min(left, len(stacked))] @ state
        path.append(moved[:, :size])
        state, left = moved[-1], left - len(moved)
    return torch.cat(path)


@config
class Intervals:
    """Random eigenvalues and step sizes."""

    draws: int = 2000


def run_intervals(settings: Intervals, variant: str, bench: Bench) -> dict[str, Any]:
    """Does the sign of rho'(0) say what I(lambda) says? By differences of the exact roots."""
    from mechanisms.dynamics.spectra import helpful_steps, spectral_radius

    random, agree, half = bench.numpy("eigenvalues"), 0, 1e-6
    for draw in range(settings.draws):
        eigenvalue = complex(random.uniform(0.05, 2), random.uniform(-2, 2))
        lr = float(random.uniform(0.05, 3) / abs(eigenvalue))
        plus, minus = (spectral_radius([eigenvalue], lr=lr, momentum=beta) for beta in (half, -half))
        low, high = helpful_steps(eigenvalue)
        agree += (plus > minus) == (low < lr < high)
        bench.progress(draw + 1, settings.draws)
    return {"agreement": agree / settings.draws, "draws": settings.draws}


@config
class Toy:
    """The original's toy: f = theta phi from (1/2, 1/2), until |omega|² leaves (1e-3, 10)."""

    momenta: tuple[float, ...] = (-0.9, -0.5, -0.1, 0.0, 0.1, 0.5, 0.9)
    lrs: tuple[float, ...] = (0.1, 1e-3, 1e-4)
    steps: int = 5_000_000
    block: int = 1000


def run_toy(settings: Toy, variant: str, bench: Bench) -> dict[str, Any]:
    """Steps to convergence, or to divergence (negative), of the whole grid at once; 0 for neither."""
    import torch

    from mechanisms.dynamics.spectra import update_operator

    game = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    found: dict[str, Any] = {}
    for who in ("both", "discriminator", "generator"):
        pairs = [
            (lr, (beta * (who != "generator"), beta * (who != "discriminator")))
            for lr in settings.lrs
            for beta in settings.momenta
        ]
        maps = torch.stack([update_operator(game, (1, 1), lr=lr, momentum=m, order=variant) for lr, m in pairs])
        found[f"steps_{who}"] = stopping_times(maps, settings, bench)
    return found


def stopping_times(maps: Any, settings: Toy, bench: Bench) -> list[int]:
    """First step of each map at which |omega|² < 1e-3 (positive) or > 10 (negative)."""
    import torch

    powers = [maps]
    for _ in range(settings.block - 1):
        powers.append(maps @ powers[-1])
    stacked = torch.stack(powers, dim=1)  # (maps, block, 4, 4)
    state = torch.full((len(maps), 4), 0.5, dtype=maps.dtype)
    times = torch.zeros(len(maps), dtype=torch.long)
    running = torch.ones(len(maps), dtype=torch.bool)
    for done in range(0, settings.steps, settings.block):
        places = running.nonzero()[:, 0]
        path = torch.einsum("mbij,mj->mbi", stacked[places], state[places])
        squares = path[..., :2].square().sum(-1)
        over = (squares < 1e-3) | ~(squares <= 10)
        for row, place in enumerate(places.tolist()):
            if bool(over[row].any()):
                step = int(over[row].nonzero()[0, 0])
                times[place] = (done + step + 1) * (1 if float(squares[row, step]) < 1e-3 else -1)
                running[place] = False
        state[places] = path[:, -1]
        bench.progress(done + settings.block, settings.steps)
        if not bool(running.any()):
            break
    return times.tolist()
