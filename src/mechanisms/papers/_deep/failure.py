"""Initialisations that fail: single units over the plane of (a, z), and random layers of several widths."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mechanisms.lab import Bench, config
from mechanisms.papers._deep.modes import LOSSES

if TYPE_CHECKING:
    from torch import Tensor


@config
class Failure:
    """Single-direction class; units and layers drawn at random, simulated until their fate is clear."""

    norm: float = 1.5
    frequency: float = 0.5
    units: int = 1000
    networks: int = 1000
    widths: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    weight_std: float = 1.0
    output_std: float = 1.0
    grid: int = 31
    reach: float = 2.0
    horizon: float = 40.0
    step: float = 0.2
    margin: float = 1e-2


def run_failure(settings: Failure, variant: str, bench: Bench) -> dict[str, Any]:
    """Predicted and simulated fates, the share of layers that fail by width, and the phase portrait."""
    import torch

    from mechanisms.dynamics import success_probability, will_learn

    r, generator = settings.norm, bench.generator("weights")
    draws = torch.randn(2, settings.units, generator=generator, dtype=torch.float64)
    a, z = settings.weight_std * r * draws[0], settings.output_std * draws[1]
    fate = _fate(settings, variant, a[:, None], z[:, None])
    far = _distance(a, z, r) > settings.margin
    wrong = (fate != will_learn(a, z, r).long()) & far
    failed, deviations = [], []
    for place, width in enumerate(settings.widths):
        bench.progress(place, len(settings.widths))
        draws = torch.randn(2, settings.networks, width, generator=generator, dtype=torch.float64)
        end = _fate(settings, variant, settings.weight_std * r * draws[0], settings.output_std * draws[1])
        share = float((end == 0).double().mean())
        expected = float(1 - success_probability(settings.weight_std, settings.output_std, width))
        failed.append(share)
        error = math.sqrt(expected * (1 - expected) / settings.networks)
        deviations.append(abs(share - expected) / error)
        bench.log(width, failed=share, expected=expected)
    side = torch.linspace(-settings.reach, settings.reach, settings.grid, dtype=torch.float64)
    portrait = _fate(
        settings, variant, side.repeat(settings.grid)[:, None], side.repeat_interleave(settings.grid)[:, None]
    )
    return {
        "mismatches": int(wrong.sum()),
        "compared": int(far.sum()),
        "failed": failed,
        "deviation": max(deviations),
        "portrait": portrait.tolist(),
    }


def _fate(settings: Failure, variant: str, a: Tensor, z: Tensor) -> Tensor:
    """1 for layers (rows of units) that learn, 0 for those that have no gradient left, -1 for those not decided yet."""
    import torch

    from mechanisms.dynamics import GradientFlow

    end = GradientFlow(settings.step).simulate(
        (a / settings.norm).unsqueeze(-1),
        z,
        [[settings.norm]],
        [1],
        [settings.horizon],
        loss=LOSSES[variant],
        weights=[settings.frequency],
    )
    learned = end.outputs[:, 0, 0] > 0
    dead = (end.W[..., 0] <= 0).all(dim=-1)
    return torch.where(learned, 1, torch.where(dead, 0, -1))


def _distance(a: Tensor, z: Tensor, r: float) -> Tensor:
    """Distance of (a, z) from the border of the region that learns: the rays a = 0, z >= 0 and a = -r z, z <= 0."""
    import torch

    def to_ray(x: float, y: float) -> Tensor:
        along = (a * x + z * y).clamp(min=0)
        return torch.hypot(a - along * x, z - along * y)

    length = math.hypot(r, 1)
    return torch.minimum(to_ray(0.0, 1.0), to_ray(r / length, -1 / length))
