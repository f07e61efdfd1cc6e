"""What follows from the formulas alone: whose doing each part of the curve is, and how far ridge is from flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mechanisms.lab import Bench, config
from mechanisms.papers._epochwise.settings import figure_1, figure_2, figure_3, log_times, published_clock

if TYPE_CHECKING:
    from mechanisms.dynamics.epochwise import TeacherStudent

FEATURES = {"both": "both", "fast-only": "fast", "slow-only": "slow"}
FORMULAS = ("decoupled", "ridge", "flow")


@config
class Closed:
    """Settings of the experiments that need no random numbers."""

    times: int = 600


def run_attribution(settings: Closed, variant: str, bench: Bench) -> dict[str, Any]:
    """The curve of figure 1 when both, only fast or only slow features are learned, by each formula."""
    from mechanisms.dynamics.epochwise import learning_curve

    t = log_times(-3, 9, settings.times)
    metrics: dict[str, Any] = {}
    for name in FORMULAS:
        error = learning_curve(published_clock(figure_1()), t, lr=1.0, method=name, features=FEATURES[variant]).error
        metrics |= {
            f"{name}_minimum": float(error.min()),
            f"{name}_end": float(error[-1]),
            f"{name}_rise": float(error.diff().max().clamp(min=0)),
        }
    return metrics


def problems() -> dict[str, TeacherStudent]:
    """The settings in which flow and ridge are compared."""
    return {"figure-1": figure_1(), "figure-2-small": figure_2(8), "figure-3-kappa-30": figure_3(30)}


def run_ridge_reading(settings: Closed, variant: str, bench: Bench) -> dict[str, Any]:
    """The largest difference over time between gradient flow and ridge at penalty 1/tau."""
    from mechanisms.dynamics.curves import descents
    from mechanisms.dynamics.epochwise import learning_curve

    t = log_times(-3, 9, settings.times)
    flow, ridge = (learning_curve(problems()[variant], t, lr=1.0, method=name).error for name in ("flow", "ridge"))
    return {
        "sup_difference": float((flow - ridge).abs().max()),
        "flow_first_minimum": descents(flow, t, min_drop=0.01).first_minimum[1],
        "ridge_first_minimum": descents(ridge, t, min_drop=0.01).first_minimum[1],
    }
