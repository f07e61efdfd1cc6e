"""Closed-form learning curves beside an ODE solver: `python benchmarks/bench_deep_learning_dynamics.py [--quick]`.

One thread on the CPU; seconds are those of the processor, which a busy machine does not lengthen much.

(a) 1,000 modes x 1,000 times, cross-entropy, with imbalance (C > 0): target at most 5 s; without (C = 0): at most 1 s.
(b) The same curves by `scipy.integrate.solve_ivp` called for each mode, at a tolerance of 1e-12, ours: target at least
    100 times slower with its default method, RK45; the faster ones stand beside it. A share of the modes is integrated
    and the time is scaled up.
(c) The inverse, the time to 1,000 margins for each of 1,000 modes.
(d) 1,000 tiny networks simulated in one batch against one after the other.

Before timing, peer and ours have to agree to 1e-9.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.integrate import solve_ivp

from mechanisms.dynamics import GradientFlow, Mode, margin_curve, time_to_margin


def modes(count: int, *, balanced: bool) -> Mode:
    generator = torch.Generator().manual_seed(0)
    p, r, f0, c = torch.rand(4, count, generator=generator, dtype=torch.float64)
    return Mode(0.1 + 0.9 * p, 0.5 + 1.5 * r, 1e-3 + 0.1 * f0, 0.0 if balanced else 0.05 + c)


def peer(mode: Mode, times: np.ndarray, method: str) -> np.ndarray:
    """One call of the solver for each mode, as a script would do it."""
    curves = []
    for p, r, f0, c in zip(*(value.tolist() for value in mode.fields()), strict=True):
        found = solve_ivp(
            lambda _, f, p=p, r=r, c=c: p / (1 + np.exp(f)) * np.sqrt(c * c + 4 * r * r * f * f),
            (0.0, times[-1]),
            [f0],
            t_eval=times,
            rtol=1e-12,
            atol=1e-13,
            method=method,
        )
        curves.append(found.y[0])
    return np.stack(curves)


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    function()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def curves_against_solver(balanced: bool, repeats: int, share: int) -> None:
    mode, times = modes(1000, balanced=balanced), torch.linspace(0, 200, 1000, dtype=torch.float64)
    few = modes(1000, balanced=balanced)
    few = Mode(*(value[:share] for value in few.fields()))
    seconds: dict[str, float] = {}
    for method in ("RK45", "DOP853", "LSODA"):
        start = time.process_time()
        found = peer(few, times.numpy(), method)
        seconds[method] = (time.process_time() - start) * 1000 / share
        difference = np.abs(found - margin_curve(few, times).numpy()).max()
        assert difference < 1e-9, f"{method} and ours differ by {difference:.1e}"
    ours = median_seconds(lambda: margin_curve(mode, times), repeats)
    what, target = ("C = 0", 1.0) if balanced else ("C > 0", 5.0)
    print(f"curves, 1,000 modes x 1,000 times, {what}: {ours:.3f} s (target at most {target:g} s)")
    ratios = ", ".join(f"{name} {taken:.1f} s, {taken / ours:.0f} times" for name, taken in seconds.items())
    print(f"  solve_ivp, one call for each mode: {ratios} (target: RK45, its default, at least 100 times)")
    margins = torch.linspace(0.2, 6, 1000, dtype=torch.float64)
    print(f"  times to 1,000 margins: {median_seconds(lambda: time_to_margin(mode, margins), repeats):.3f} s")


def networks_in_a_batch(repeats: int, few: int) -> None:
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(1000, 4, 2, generator=generator, dtype=torch.float64)
    z = torch.randn(1000, 4, generator=generator, dtype=torch.float64)
    X, y, flow = torch.eye(2, dtype=torch.float64), torch.tensor([1, -1]), GradientFlow(0.1)

    def one_by_one() -> list[torch.Tensor]:
        return [flow.simulate(W[k], z[k], X, y, [10.0]).outputs for k in range(few)]

    torch.testing.assert_close(flow.simulate(W[:few], z[:few], X, y, [10.0]).outputs, torch.stack(one_by_one()))
    ours = median_seconds(lambda: flow.simulate(W, z, X, y, [10.0]), repeats)
    alone = median_seconds(one_by_one, 1) * 1000 / few
    print(f"1,000 networks of 4 units, 100 Runge-Kutta steps: {ours:.3f} s in a batch, {alone / ours:.0f} times faster "
          "than one by one")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and fewer modes for the solver")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    for balanced in (False, True):
        curves_against_solver(balanced, 3 if quick else 9, 5 if quick else 50)
    networks_in_a_batch(3 if quick else 9, 5 if quick else 20)
