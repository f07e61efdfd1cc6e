"""Gradient starvation in its smallest form: two features, one rarer, under three losses."""

from __future__ import annotations

from typing import Any

from mechanisms.lab import Bench, config


@config
class TwoFeatures:
    """Frequencies of the rarer feature, and how long."""

    frequencies: tuple[float, ...] = (0.1, 0.5, 0.9)
    horizon: float = 1e6
    points: int = 45


def run_two_features(settings: TwoFeatures, variant: str, bench: Bench) -> dict[str, Any]:
    """Responses over time for each frequency, the relation between them, and an adaptive reference."""
    import numpy as np
    import torch
    from scipy.integrate import solve_ivp

    from mechanisms.dynamics import starvation_curve

    loss = variant.replace("-", "_")
    q = torch.tensor(settings.frequencies, dtype=torch.float64)
    times = torch.logspace(-1, np.log10(settings.horizon), settings.points, dtype=torch.float64)
    s1, s2 = starvation_curve(q, times, loss=loss)  # pyrefly: ignore
    for place, time in enumerate(times.tolist()):
        for row, frequency in enumerate(settings.frequencies):
            name = f"{round(100 * frequency)}"
            bench.log(time, **{f"frequent_{name}": s1[row, place], f"rare_{name}": s2[row, place]})
    pull = {
        "cross_entropy": lambda m: 1 / (1 + np.exp(m)),
        "exponential": lambda m: np.exp(-m),
        "hinge": lambda m: np.where(m < 1, 1.0, 0.0),
    }[loss]
    apart = 0.0
    for frequency in settings.frequencies:
        # Hinge switches twice: the reference needs short steps there.
        kind = {"max_step": 0.01, "rtol": 1e-6} if loss == "hinge" else {"rtol": 1e-10, "atol": 1e-12}
        end = 5.0 if loss == "hinge" else settings.horizon

        def rates(_: float, s: np.ndarray, share: float = frequency) -> list[Any]:
            both = share * pull(s[0] + s[1])
            return [both + (1 - share) * pull(s[0]), both]

        method = "RK45" if loss == "hinge" else "LSODA"
        found = solve_ivp(rates, (0, end), [0.0, 0.0], method=method, t_eval=[end], **kind)
        ours = torch.stack(starvation_curve(frequency, [end], loss=loss)).numpy()  # pyrefly: ignore
        apart = max(apart, float(np.abs(found.y - ours).max()))
    relation = s2 + (1 - q[:, None]) / q[:, None] * s2.expm1()
    share = q / (1 + q)
    return {
        "rare": s2[:, -1].tolist(),
        "frequent": s1[:, -1].tolist(),
        "ratio": float(s2[0, -1] / s1[0, -1]),
        "relation_error": float(((relation - s1) / s1)[:, -1].abs().max()),
        "hinge_share_error": float((s2[:, -1] - share).abs().max()),
        "integration_error": apart,
    }
