"""Modes: is the error sigmoidal and predicted, are classes independent, what do frequency, norm, loss and depth do?"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mechanisms.lab import Bench, config

if TYPE_CHECKING:
    from torch import Tensor

LOSSES: dict[str, Any] = {"cross-entropy": "cross_entropy", "hinge": "hinge"}


@config
class OneMode:
    """Two classes of one direction each, a network under H1 and H2, gradient descent."""

    widths: tuple[int, ...] = (20,)
    dim: int = 10
    frequency: float = 0.3
    norms: tuple[float, float] = (1.7, 1.0)
    scale: float = 0.03
    lr: float = 0.01
    horizon: float = 60.0
    points: int = 50


def run_one_mode(settings: OneMode, variant: str, bench: Bench) -> dict[str, Any]:
    """Gradient descent beside the closed form, and the closed form beside an adaptive integration of (1)."""
    import torch

    from mechanisms.dynamics import GradientFlow, margin_curve, mode_initialisation, mode_state, separable_classes

    draws = bench.generator("data")
    X, y = separable_classes(2, settings.dim, generator=draws, norms=settings.norms, single_direction=True)
    share = torch.tensor([settings.frequency, 1 - settings.frequency], dtype=torch.float64)
    # Points that are even in time, and others that are even in its logarithm.
    early = [settings.horizon ** (k / settings.points) for k in range(settings.points)]
    times = sorted(
        {round(time / settings.lr) * settings.lr for time in early}
        | set(_multiples(settings.horizon, settings.lr, settings.points))
    )
    relative, apart, modes = [], 0.0, []
    for width in settings.widths:
        scale = settings.scale * math.sqrt(20 / width)  # a wider network starts from the same margin
        W, z = mode_initialisation(
            X, y, width, generator=bench.generator("weights"), weight_scale=scale, output_scale=scale
        )
        # The copies of each input are one row here, with their share as its weight.
        modes = [replace(mode, frequency=p) for mode, p in zip(mode_state((W, z), X, y), share.tolist(), strict=True)]
        found = GradientFlow(settings.lr, method="descent").simulate(
            W, z, X, y, times, loss=LOSSES[variant], weights=share, progress=bench.progress
        )
        simulated = y[:, None] * found.outputs.T
        theory = torch.stack([margin_curve(mode, times, loss=LOSSES[variant]) for mode in modes])
        relative.append(float(((simulated - theory) / theory).abs().max()))
        apart = max(apart, *(_integration_error(mode, LOSSES[variant], times[-1]) for mode in modes))
        if width == settings.widths[0]:
            for time, one, two in zip(times, torch.sigmoid(-simulated[0]), torch.sigmoid(-theory[0]), strict=True):
                bench.log(time, simulated_error=one, predicted_error=two)
    return {
        "relative_error": relative,
        "integration_error": apart,
        "imbalance": float(modes[0].fields()[3]),
        "initial_margin": float(modes[0].fields()[2]),
    }


def _multiples(horizon: float, step: float, points: int) -> list[float]:
    """Times up to the horizon that are multiples of the step."""
    steps = round(horizon / step)
    return sorted({round(steps * k / points) * step for k in range(points + 1)})


def _integration_error(mode: Any, loss: Any, horizon: float) -> float:
    """Largest difference between the closed form and scipy's adaptive integration of df/dt."""
    import numpy as np
    from scipy.integrate import solve_ivp

    from mechanisms.dynamics import margin_curve, time_to_margin

    p, r, f0, c = (float(value) for value in mode.fields())
    if loss == "hinge":
        horizon = min(horizon, 0.999 * float(time_to_margin(mode, 1.0, loss="hinge")))
    times = np.linspace(0, horizon, 50)

    def rate(_: float, f: np.ndarray) -> np.ndarray:
        g = 1 / (1 + np.exp(f)) if loss == "cross_entropy" else 1.0
        return p * g * np.sqrt(c**2 + 4 * r**2 * f**2)

    found = solve_ivp(rate, (0, horizon), [f0], t_eval=times, rtol=1e-12, atol=1e-13, method="DOP853")
    return float(np.abs(found.y[0] - margin_curve(mode, times, loss=loss).numpy()).max())


@config
class Independent:
    """Classes of many directions, trained twice: as they are, and with class -1 scaled."""

    num_samples: int = 40
    dim: int = 10
    width: int = 20
    lr: float = 0.1
    steps: int = 2000
    scale: float = 3.0
    points: int = 20


def run_independent(settings: Independent, variant: str, bench: Bench) -> dict[str, Any]:
    """How far class +1's outputs move when class -1's inputs are scaled; with classes that overlap, too."""
    import torch

    from mechanisms.dynamics import GradientFlow, check_separability, mode_initialisation, separable_classes

    X, y = separable_classes(settings.num_samples, settings.dim, generator=bench.generator("data"))
    W, z = mode_initialisation(X, y, settings.width, generator=bench.generator("weights"))
    other = (y < 0)[:, None]
    if variant == "overlapping":  # class -1 leans towards class +1, where it leaned away
        X = torch.where(other, X.abs(), X)
    times = _multiples(settings.steps * settings.lr, settings.lr, settings.points)
    flow = GradientFlow(settings.lr, method="descent")
    plain, scaled = (
        flow.simulate(W, z, inputs, y, times, progress=bench.progress).outputs[:, y > 0]
        for inputs in (X, torch.where(other, settings.scale * X, X))
    )
    apart = (plain - scaled).abs().amax(dim=1)
    for time, one, two, difference in zip(times, plain.mean(dim=1), scaled.mean(dim=1), apart, strict=True):
        bench.log(time, margin=one, margin_with_scaled_class=two, difference=difference)
    change = (plain - scaled).abs().max()
    return {
        "change": float(change),
        "relative_change": float(change / plain.abs().max()),
        "separable": check_separability(X, y).holds,
    }


@config
class Speed:
    """Balanced modes over a range of frequencies or norms; time to an error."""

    frequencies: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8)
    norms: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    width: int = 20
    initial_margin: float = 0.01
    error: float = 0.1
    lr: float = 0.01


def run_speed(settings: Speed, variant: str, bench: Bench) -> dict[str, Any]:
    """A network of two orthogonal classes for each frequency or norm, by gradient descent, beside the closed form."""
    import numpy as np
    import torch

    from mechanisms.dynamics import GradientFlow, Mode, time_to_confidence

    by_frequency = variant == "frequency"
    grid = torch.tensor(settings.frequencies if by_frequency else settings.norms, dtype=torch.float64)
    p = grid if by_frequency else torch.full_like(grid, 0.5)
    r = torch.ones_like(grid) if by_frequency else grid
    half = settings.width // 2
    imbalance = torch.zeros_like(grid)
    a, z = (
        (settings.initial_margin / half * r).sqrt().expand(half, -1).T,
        (settings.initial_margin / half / r).sqrt().expand(half, -1).T,
    )
    if variant == "norm-unbalanced":  # every network starts with the same weights, so that C is no longer 0
        z = torch.full_like(z, 0.02)
        a = 0.1 * r[:, None].expand_as(z)
        s = (a.square() + r[:, None].square() * z.square()).sum(dim=1)
        imbalance = (s.square() - 4 * r.square() * (a * z).sum(dim=1).square()).sqrt()
    margins = (a * z).sum(dim=1)
    expected = time_to_confidence(Mode(p, r, margins, imbalance), 1 - settings.error)
    # Class +1 along the first axis with norm r; class -1 along the second with norm 1.
    X = torch.zeros(len(grid), 2, 2, dtype=torch.float64)
    X[:, 0, 0], X[:, 1, 1] = r, 1.0
    one = torch.full((len(grid), half), 0.1, dtype=torch.float64)
    W = torch.zeros(len(grid), 2 * half, 2, dtype=torch.float64)
    W[:, :half, 0], W[:, half:, 1] = a / r[:, None], one
    times = _multiples(1.05 * float(expected.max()), settings.lr, 3000)
    y = torch.tensor([1.0, -1.0], dtype=torch.float64)
    found = GradientFlow(settings.lr, method="descent").simulate(
        W, torch.cat([z, -one], dim=1), X, y, times, weights=torch.stack([p, 1 - p], dim=1), progress=bench.progress
    )
    margin = math.log(1 / settings.error - 1)
    measured = torch.stack([_crossing(found.times, curve, margin) for curve in found.outputs[..., 0]])
    for value, network, theory in zip(grid.tolist(), measured, expected, strict=True):
        bench.log(value, network=network, theory=theory)
    slope = np.polyfit(np.log((p * r).numpy()), np.log(measured.numpy()), 1)[0]
    return {"slope": float(slope), "time_error": float((measured / expected - 1).abs().max())}


def _crossing(times: Tensor, curve: Tensor, level: float) -> Tensor:
    """When a rising curve first reaches a level, between two points by a straight line."""
    import torch

    place = int((curve >= level).int().argmax()) if bool((curve >= level).any()) else -1
    if place < 1:
        return torch.tensor(math.nan if place < 0 else 0.0, dtype=times.dtype)
    share = (level - curve[place - 1]) / (curve[place] - curve[place - 1])
    return times[place - 1] + share * (times[place] - times[place - 1])


@config
class Losses:
    """One balanced mode under both losses."""

    frequency: float = 0.3
    norm: float = 1.7
    initial_margin: float = 0.00425
    width: int = 20
    lr: float = 0.01
    errors: tuple[float, ...] = (0.4, 0.1, 0.01, 0.001)


def run_losses(settings: Losses, variant: str, bench: Bench) -> dict[str, Any]:
    """A network on copies of one input: when hinge arrives at margin 1, when cross-entropy at each error."""
    import torch

    from mechanisms.dynamics import GradientFlow, Mode, time_to_confidence, time_to_margin

    loss = LOSSES[variant]
    mode = Mode(settings.frequency, settings.norm, settings.initial_margin)
    end = time_to_confidence(mode, 1 - min(settings.errors))
    each = math.sqrt(settings.initial_margin / settings.norm / settings.width)
    W = torch.full((settings.width, 1), each, dtype=torch.float64)
    times = _multiples(1.02 * float(end), settings.lr, 4000)
    found = GradientFlow(settings.lr, method="descent").simulate(
        W, W[:, 0], [[settings.norm]], [1], times, loss=loss, weights=[settings.frequency], progress=bench.progress
    )
    margin = found.outputs[:, 0]
    for place in range(0, len(times), max(1, len(times) // 80)):
        bench.log(max(times[place], settings.lr), error=torch.sigmoid(-margin[place]), margin=margin[place])
    if variant == "hinge":
        expected, arrived = float(time_to_margin(mode, 1.0, loss="hinge")), float(_crossing(found.times, margin, 1.0))
        return {"time_to_one": arrived, "time_error": arrived / expected - 1, "final_margin": float(margin[-1])}
    taken = [float(_crossing(found.times, margin, math.log(1 / error - 1))) for error in settings.errors]
    predicted = time_to_confidence(mode, [1 - error for error in settings.errors]).tolist()
    growth = taken[-1] / taken[-2]
    return {
        "times": taken,
        "time_error": max(abs(a / b - 1) for a, b in zip(taken, predicted, strict=True)),
        "growth": growth,
        "short_of_four": max(0.0, 4.0 - growth),
        "final_margin": float(margin[-1]),
    }


@config
class Depth:
    """Balanced chains of several depths from the same margin."""

    depths: tuple[int, ...] = (1, 2, 3, 4)
    initial_margin: float = 0.01
    early: float = 0.45
    late: float = 0.05
    step: float = 0.05
    points: int = 40


def run_depth(settings: Depth, variant: str, bench: Bench) -> dict[str, Any]:
    """How long the drop takes beside the plateau, for each depth; chains simulated beside the closed form."""
    import torch

    from mechanisms.dynamics import Mode, chain_flow, error_curve, time_to_confidence

    sharpness, apart = [], 0.0
    for depth in settings.depths:
        mode = Mode(1.0, 1.0, settings.initial_margin, depth=depth)
        plateau, drop = time_to_confidence(mode, [1 - settings.early, 1 - settings.late]).tolist()
        sharpness.append((drop - plateau) / plateau)
        times = torch.linspace(0, 1.5 * drop, settings.points, dtype=torch.float64)
        theory = error_curve(mode, times)
        layers = [settings.initial_margin ** (1 / depth)] * depth
        chain = torch.sigmoid(-chain_flow(layers, times, step=settings.step))
        apart = max(apart, float((chain - theory).abs().max()))
        for time, predicted, simulated in zip(times.tolist(), theory, chain, strict=True):
            bench.log(time / drop, **{f"predicted_{depth}": predicted, f"simulated_{depth}": simulated})
    falling = all(later < earlier for earlier, later in pairwise(sharpness))
    return {"sharpness": sharpness, "decreasing": falling, "simulation_error": apart}
