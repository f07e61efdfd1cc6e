"""Finite sizes beside the limit: agreement, double descent, weight decay, condition numbers, the decoupled formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mechanisms.lab import Bench, config
from mechanisms.papers._epochwise.settings import CONDITION_NUMBERS, SLICES, figure_1, figure_2, figure_3, log_times

if TYPE_CHECKING:
    from torch import Tensor

    from mechanisms.dynamics.epochwise import TeacherStudent

MIN_DROP = 0.01  # smaller turns are no turns, in all claims
AGREEMENT = ("kappa-1", "kappa-100", "kappa-10000", "d-50", "d-200")
DECOUPLED = ("figure-1", "d-200")
BY_CONDITION = tuple(f"kappa-{kappa}" for kappa in CONDITION_NUMBERS)


@config
class Finite:
    """Settings of the simulations; `shrink` divides all sizes."""

    draws: int = 50
    times: int = 160
    compared: int = 20
    loop_steps: int = 500
    shrink: int = 1


def agreement_problem(variant: str, shrink: int = 1) -> TeacherStudent:
    """n=150, d=100, p=70 at a condition number; or condition number 100 at another size of the same ratios."""
    from mechanisms.dynamics.epochwise import TeacherStudent

    kind, value = variant.split("-")
    dim = (100 if kind == "kappa" else int(value)) // shrink
    return TeacherStudent.two_scales(dim * 3 // 2, dim, dim * 7 // 10, float(value) if kind == "kappa" else 100.0)


def run_agreement(settings: Finite, variant: str, bench: Bench) -> dict[str, Any]:
    """Theory beside simulated gradient flow, and the decomposition beside plain gradient descent."""
    from mechanisms.dynamics.epochwise import learning_curve
    from mechanisms.dynamics.simulation import simulate

    problem = agreement_problem(variant, settings.shrink)
    t = log_times(-1, 10, settings.times)
    drawn = simulate(problem, t, draws=settings.draws, generator=bench.generator("inputs")).error
    mean, error = drawn.mean(0), drawn.std(0) / settings.draws**0.5
    theory = learning_curve(problem, t).error
    places = [round(i * (settings.times - 1) / (settings.compared - 1)) for i in range(settings.compared)]
    gap = (mean - theory).abs()[places]
    _log(bench, t, error=mean)
    _log(bench, t[places], standard_error=error[places])
    found, expected = _turns(mean, t), _turns(theory, t)
    return {
        "excess": float((gap - 4 * error[places] - 0.01).max()),
        "largest_gap": float(gap.max()),
        "loop_gap": _loop_gap(problem, settings.loop_steps, bench),
        **found,
        **{f"theory_{name}": value for name, value in expected.items()},
        "first_minimum_shift": found["first_minimum_log_time"] - expected["first_minimum_log_time"],
        "peak_shift": found["peak_log_time"] - expected["peak_log_time"],
        "rise_gap": found["rise"] - expected["rise"],
        "monotone": int(found["maxima"] == 0 and found["rise"] < MIN_DROP),
        "as_theory": int(_is_double(mean, t) == _is_double(theory, t)),
    }


def run_condition_numbers(settings: Finite, variant: str, bench: Bench) -> dict[str, Any]:
    """Does the simulated curve of figure 3 descend twice exactly where gradient flow's does?"""
    from mechanisms.dynamics.epochwise import learning_curve
    from mechanisms.dynamics.simulation import simulate

    kappa = int(variant.split("-")[1])
    problem = figure_3(kappa, 100 // settings.shrink)
    t = log_times(-1, 4 + 2 * len(str(kappa)), settings.times)
    mean = simulate(problem, t, draws=settings.draws, generator=bench.generator("inputs")).error.mean(0)
    theory, ridge, decoupled = (
        learning_curve(problem, t, method=name).error for name in ("flow", "ridge", "decoupled")
    )
    _log(bench, t, error=mean)
    double = {
        name: _is_double(curve, t)
        for name, curve in (("simulated", mean), ("flow", theory), ("ridge", ridge), ("decoupled", decoupled))
    }
    return {
        **{f"{name}_is_double": int(value) for name, value in double.items()},
        "as_theory": int(double["simulated"] == double["flow"]),
        **_turns(mean, t),
        **{f"theory_{name}": value for name, value in _turns(theory, t).items()},
    }


def run_weight_decay(settings: Finite, variant: str, bench: Bench) -> dict[str, Any]:
    """Figure 2 by simulation: a slice of the map at one strength of weight decay."""
    from mechanisms.dynamics.simulation import simulate

    problem = figure_2(SLICES[variant], 100 // settings.shrink)
    t = log_times(-1, 9, settings.times)
    mean = simulate(problem, t, draws=settings.draws, lr=1.0, generator=bench.generator("inputs")).error.mean(0)
    _log(bench, t, error=mean)
    turns = _turns(mean, t)
    return {
        **turns,
        "end": float(mean[-1]),
        "end_over_first_minimum": float(mean[-1]) - turns["first_minimum"],
        "is_monotone": int(turns["rise"] < MIN_DROP),
        "is_double": int(turns["rise"] >= MIN_DROP and turns["fall"] >= MIN_DROP),
        "descends_once": int(turns["fall"] < MIN_DROP),
    }


def decoupled_problem(variant: str, shrink: int = 1) -> TeacherStudent:
    """Figure 1, or the same ratios at d=200."""
    dim = (100 if variant == "figure-1" else 200) // shrink
    return figure_1(dim * 3 // 2, dim, dim * 7 // 10)


def run_decoupled(settings: Finite, variant: str, bench: Bench) -> dict[str, Any]:
    """The paper's formula and the exact one, both for early stopping read as ridge, beside ridge on drawn data."""
    from mechanisms.dynamics.curves import descents
    from mechanisms.dynamics.epochwise import learning_curve
    from mechanisms.dynamics.simulation import simulate

    problem = decoupled_problem(variant, settings.shrink)
    t = log_times(-1, 8, settings.times)
    generator = bench.generator("inputs")
    mean = simulate(problem, t, draws=settings.draws, method="ridge", lr=1.0, generator=generator).error.mean(0)
    peak = descents(mean, t, min_drop=MIN_DROP).peak
    fast = t <= (peak[0] if peak else t[-1])
    _log(bench, t, error=mean)
    metrics: dict[str, Any] = {"has_peak": int(peak is not None)}
    for name in ("decoupled", "ridge"):
        gap = (learning_curve(problem, t, lr=1.0, method=name).error - mean).abs()
        metrics[f"{name}_fast_gap"] = float(gap[fast].max())
        metrics[f"{name}_slow_gap"] = float(gap[~fast].max()) if bool((~fast).any()) else 0.0
    return metrics


def _turns(error: Tensor, t: Tensor) -> dict[str, float]:
    """First minimum, the rise from it to the largest maximum behind it, and the fall behind that."""
    from mechanisms.dynamics.curves import descents

    found = descents(error, t, min_drop=MIN_DROP)
    place = int((t - found.first_minimum[0]).abs().argmin())
    top = place + int(error[place:].argmax())
    return {
        "first_minimum": found.first_minimum[1],
        "first_minimum_log_time": float(t[place].log10()),
        "peak": float(error[top]),
        "peak_log_time": float(t[top].log10()),
        "rise": float(error[top] - error[place]),
        "fall": float(error[top] - error[top:].min()),
        "maxima": len(found.maxima),
    }


def _is_double(error: Tensor, t: Tensor) -> bool:
    from mechanisms.dynamics.curves import descents

    return descents(error, t, min_drop=MIN_DROP).is_double


def _loop_gap(problem: TeacherStudent, steps: int, bench: Bench) -> float:
    """How far the decomposition is from gradient descent step by step, in the students' order parameters."""
    import torch

    from mechanisms.dynamics.paths import gradient_descent, training_path
    from mechanisms.dynamics.simulation import order_parameters

    data = problem.sample(2, generator=bench.generator("loop"))
    kept = sorted({0, 1, 2, 5, 10, steps // 2, steps})
    rate = 1 / torch.linalg.matrix_norm(data.features, 2).square()
    walked = gradient_descent(data.features, data.targets, kept, lr=rate)
    solved = training_path(data.features, data.targets, kept, lr=rate, method="gd")
    one, other = (order_parameters(problem, data.teacher, weights) for weights in (walked, solved))
    return max(float((a - b).abs().max()) for a, b in zip(one[1:], other[1:], strict=True))


def _log(bench: Bench, t: Tensor, **curves: Tensor) -> None:
    """Points of a curve, rounded so that a record stays small."""
    for name, curve in curves.items():
        for time, value in zip(t.tolist(), curve.tolist(), strict=True):
            bench.log(float(f"{time:.5g}"), **{name: round(value, 5)})
