"""How far gradients reach: through untrained networks, and in the toy whose decay is a power law.

The toy is linear and scalar: `h_{t+1} = λ s_t`, where `s_t = h_t + (1/t) Σ_{i<=t} h_i` attends uniformly to all states.
The derivatives `g_t = ∂h_t / ∂h_1` obey the same recursion from g_1 = 1 and decay like t^(a-1), a = λ / (1 - λ);
without attention they are λ^(t-1).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mechanisms.lab import Bench, config

if TYPE_CHECKING:
    from torch import Tensor

    from mechanisms.recurrent import Cell

# Relevant places of each variant; None is full attention. The last two cut one of the two ways back.
SIZES = {"relevant": 15, "relevant-3": 3, "relevant-8": 8, "relevant-18": 18, "relevant-25": 25}
CUTS = ("attention-only", "recurrence-only")
VARIANTS = ("lstm", "full", *SIZES, *CUTS)
TOYS = ("attention", "recurrence")


@config
class Reach:
    """An untrained network with random inputs, whose loss is the sum of its last output; a curve has `points`."""

    input_size: int = 10
    hidden_size: int = 64
    steps: int = 200
    short_term: int = 10
    points: int = 50


@config
class Toy:
    """λ of the scalar toy, and the steps between which the exponent is measured."""

    strengths: tuple[float, ...] = (0.2, 0.3, 0.4)
    first: int = 2000
    last: int = 20_000
    points: int = 40


def run_reach(settings: Reach, variant: str, bench: Bench) -> dict[str, Any]:
    """Norms of the gradients of all states relative to that of the last, in double precision.

    The LSTM that they are compared with has the same weights. All variants of a seed have the same inputs and weights.
    """
    import torch

    from mechanisms._base.seeds import seeded, stream_seed
    from mechanisms.recurrent import LSTMCell, gradient_flow
    from mechanisms.recurrent.scan import scan

    with seeded(stream_seed(bench.seed, "weights")):
        inner = LSTMCell(settings.input_size, settings.hidden_size)
    plain = gradient_flow(inner, inputs := _inputs(settings, bench), _last)
    if variant == "lstm":
        cell, flow = inner, plain
    else:
        with seeded(stream_seed(bench.seed, "attention")):
            cell = _cell(variant, inner, settings.short_term)
        flow = gradient_flow(cell, inputs, _last, leaf="inner.h")
    relative, baseline = flow / flow[-1], plain / plain[-1]
    shown = torch.linspace(0, settings.steps - 1, settings.points).round().long().unique()
    for step in shown.tolist():
        bench.log(step, log10_gradient=round(_log10(relative[step]), 3))
    found: dict[str, Any] = {
        "log10_first": _log10(relative[0]),
        "log10_quarter": _log10(relative[settings.steps // 4]),
    }
    gone = settings.steps - settings.short_term  # states that have left the buffer
    if variant in SIZES:
        state = scan(cell.double(), inputs.double()).state
        members = [i for i in state.set_index[0].tolist() if i >= 0]
        others = sorted(set(range(gone)) - set(members))
        gains = torch.log10(relative) - torch.log10(baseline)
        found |= {
            "members": len(members),
            "latest_member": max(members),
            "log10_members": _log10(relative[members].median()),
            "log10_others": _log10(relative[others].median()),
            # Of the member that gains least.
            "log10_gain": float(gains[members].min()),
        }
    return found


def _inputs(settings: Reach, bench: Bench) -> Tensor:
    import torch

    return torch.randn(settings.steps, 1, settings.input_size, generator=bench.generator("inputs"))


def _last(outputs: Tensor) -> Tensor:
    return outputs[-1].sum()


def _log10(value: Tensor) -> float:
    return math.log10(max(float(value), 1e-300))


def _cell(variant: str, inner: Cell, short_term: int) -> Cell:
    from mechanisms.papers._relevancy.cuts import AttentionOnly, RecurrenceOnly
    from mechanisms.recurrent import RelevancyScreening, SelfAttentiveCell

    if variant == "full":
        return SelfAttentiveCell(inner)
    if variant in CUTS:
        return (AttentionOnly if variant == "attention-only" else RecurrenceOnly)(inner)
    return RelevancyScreening(inner, short_term=short_term, relevant=SIZES[variant])


def run_toy(settings: Toy, variant: str, bench: Bench) -> dict[str, Any]:
    """The exponent of the decay between two steps, for each λ, against λ / (1 - λ) - 1."""
    errors, exponents = [], []
    shown = sorted({round(settings.last ** (k / (settings.points - 1))) for k in range(settings.points)})
    for strength in settings.strengths:
        logs = _toy(strength, settings.last, attention=variant == "attention")
        for t in shown:
            bench.log(t, **{f"log10_derivative_{strength:g}": round(logs[t - 1], 4)})
        slope = (logs[settings.last - 1] - logs[settings.first - 1]) / math.log10(settings.last / settings.first)
        exponents.append(slope)
        errors.append(slope - (strength / (1 - strength) - 1))
    return {"exponent": exponents, "exponent_error": errors}


def _toy(strength: float, steps: int, *, attention: bool) -> list[float]:
    """Logarithms of the derivatives of h_1, ..., h_steps with respect to h_1."""
    if not attention:
        return [t * math.log10(strength) for t in range(steps)]
    derivative, total, logs = 1.0, 0.0, []
    for t in range(1, steps + 1):
        logs.append(math.log10(derivative))
        total += derivative
        derivative = strength * (derivative + total / t)
    return logs
