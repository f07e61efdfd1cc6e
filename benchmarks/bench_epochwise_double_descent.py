"""Learning curves beside their peers, in one run: `python benchmarks/bench_epochwise_double_descent.py [--quick]`.

One thread on the CPU; medians of several runs, ours and the peer's in turns.

(a) Closed forms: 1,000 time points by ridge (at most 5 ms), a map of 100 x 100 settings x 100 times (at most 5 s); by
    gradient flow one curve of 1,000 times (at most 0.3 s) and a map of 20 x 20 settings x 100 times, all settings at
    once, beside the same curves one by one.
(b) The simulation of n=150, d=100 at 300 times against the authors' way of working: for each draw two Haar matrices,
    a decomposition of X^T X, and for each time products of d x d matrices with F and its inverse. At least 10 times
    faster, and within 3 times of the batched decomposition alone, which is the limit.
(c) A training path against the plain loop of gradient descent, and leaving rows out from one decomposition against
    one path for each row: reported.

Before timing, peer and ours are given the same inputs and have to agree.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mechanisms.dynamics import (
    TeacherStudent,
    gradient_descent,
    learning_curve,
    learning_curves,
    predict_test_error,
    simulate,
    training_path,
)

NOISE = 0.2
PROBLEM = TeacherStudent.two_scales(150, 100, 70, 100, NOISE)


def haar(d: int, generator: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def peer_draw(z: Tensor, f: Tensor, times: Tensor, lr: float) -> tuple[Tensor, Tensor]:
    """R and Q of one draw as the authors' code has them: products of d x d matrices for each time."""
    d = f.shape[0]
    x = z @ f
    _, eigenvalues, vt = torch.linalg.svd(x.mT @ x)
    inverse = torch.linalg.inv(f)
    alignment, norm = [], []
    for t in times.tolist():
        learned = torch.diag(1 - torch.exp(-lr * t * eigenvalues))
        signal = f @ vt.mT @ learned @ vt @ inverse
        filtered = torch.diag((1 - torch.exp(-lr * t * eigenvalues)) / eigenvalues)
        noise = f @ vt.mT @ filtered @ vt @ x.mT
        alignment.append(signal.trace() / d)
        norm.append((signal.square().sum() + NOISE**2 * noise.square().sum()) / d)
    return torch.stack(alignment), torch.stack(norm)


def check_agreement() -> None:
    """Peer and simulation on the same draw: equal while X^T X keeps the digits of the slow directions."""
    problem = TeacherStudent.two_scales(150, 100, 70, 10, NOISE)
    times = torch.logspace(-1, 4, 20, dtype=torch.float64)
    ours = simulate(problem, times, draws=1, lr=0.2, generator=torch.Generator().manual_seed(0))
    z = torch.randn(150, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 10
    alignment, norm = peer_draw(z, torch.diag(problem.singular_values), times, 0.2)
    torch.testing.assert_close(ours.alignment[0], alignment, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(ours.norm[0], norm, atol=1e-8, rtol=1e-8)
    data = problem.sample(1, generator=torch.Generator().manual_seed(1))
    kept = [0, 1, 10, 1000]
    walked, solved = (
        path(data.features, data.targets, kept, lr=0.2, **extra)
        for path, extra in ((gradient_descent, {}), (training_path, {"method": "gd"}))
    )
    torch.testing.assert_close(walked, solved, atol=1e-10, rtol=1e-10)


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def medians(repeats: int, *actions: Callable[[], object]) -> list[float]:
    """Median seconds of each, measured in turns, so that a busy machine slows all alike."""
    for action in actions:
        action()
    rounds = [[seconds(action) for action in actions] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def closed_forms(repeats: int) -> None:
    times, few = torch.logspace(-1, 8, 1000, dtype=torch.float64), torch.logspace(-1, 8, 100, dtype=torch.float64)

    def grid(side: int) -> list[TeacherStudent]:
        strengths = (10.0 ** -torch.linspace(0.1, 8, side)).tolist()
        scales = torch.logspace(0, 3, side).tolist()
        return [TeacherStudent.two_scales(120, 100, 80, kappa, NOISE, l2) for l2 in strengths for kappa in scales]

    (one,) = medians(9 * repeats, lambda: learning_curve(PROBLEM, times, method="ridge"))
    limit("ridge, 1,000 times", one, 5e-3)
    large = grid(100)
    (whole,) = medians(repeats, lambda: learning_curves(large, few, method="ridge"))
    limit("ridge, 100 x 100 settings x 100 times", whole, 5.0)
    (one,) = medians(3 * repeats, lambda: learning_curve(PROBLEM, times))
    limit("gradient flow, 1,000 times", one, 0.3)
    small = grid(20)
    together, alone = medians(
        repeats,
        lambda: learning_curves(small, few),
        lambda: [learning_curve(problem, few) for problem in small],
    )
    ratio("gradient flow, 20 x 20 x 100 / one by one", together, alone)


def simulation(repeats: int, draws: int) -> None:
    times = torch.logspace(-1, 8, 300, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    scales = PROBLEM.singular_values

    def ours() -> None:
        simulate(PROBLEM, times, draws=draws, generator=generator)

    def peer() -> None:
        f = haar(100, generator) @ torch.diag(scales) @ haar(100, generator).mT
        z = torch.randn(150, 100, generator=generator, dtype=torch.float64) / 10
        peer_draw(z, f, times, 0.2)

    inputs = torch.randn(draws, 150, 100, generator=generator, dtype=torch.float64) / 10 * scales

    def decomposition() -> None:
        torch.linalg.svd(inputs, full_matrices=False)

    mine, loop, svd = medians(repeats, ours, peer, decomposition)
    loop *= draws  # one draw is timed; the loop does them one after the other
    ratio(f"simulation, {draws} draws x 300 times / loop", mine, loop, ">= 10", loop / mine >= 10)
    print(f"{'... / the batched decomposition':<46} {mine / svd:>28.2f}  <= 3: {verdict(mine / svd <= 3)}")


def paths(repeats: int) -> None:
    generator = torch.Generator().manual_seed(0)
    data = PROBLEM.sample(1, generator=generator)
    x, y = data.features[0], data.targets[0]
    times = torch.tensor([0.0, 1e2, 1e3, 1e4], dtype=torch.float64)
    solved, walked = medians(
        repeats,
        lambda: training_path(x, y, times, lr=0.2, method="gd"),
        lambda: gradient_descent(x, y, times, lr=0.2),
    )
    ratio("path of 10,000 steps / plain loop", solved, walked)
    grid = torch.logspace(-1, 6, 100, dtype=torch.float64)

    def refit() -> None:
        for row in range(len(x)):
            rest = torch.arange(len(x)) != row
            torch.einsum("d,td->t", x[row], training_path(x[rest], y[rest], grid, lr=0.2))

    once, rows = medians(repeats, lambda: predict_test_error(x, y, grid, lr=0.2), refit)
    ratio("leaving 150 rows out / one path for each", once, rows)


def verdict(met: bool) -> str:
    return "met" if met else "missed"


def limit(name: str, measured: float, most: float) -> None:
    print(f"{name:<46} {measured * 1e3:>9.2f} ms {'':>16}  <= {most * 1e3:g} ms: {verdict(measured <= most)}")


def ratio(name: str, ours: float, peer: float, target: str = "", met: bool = True) -> None:
    tail = f"  {target}: {verdict(met)}" if target else "  reported"
    print(f"{name:<46} {ours * 1e3:>9.2f} ms {peer * 1e3:>9.1f} ms {peer / ours:>6.1f}{tail}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and draws: a check, not a measurement")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    check_agreement()
    repeats = 1 if quick else 5
    print(f"medians of {repeats} or more runs, one thread, torch {torch.__version__}")
    print(f"{'':<46} {'ours':>12} {'peer':>12} {'ratio':>6}  target")
    closed_forms(repeats)
    simulation(repeats, 5 if quick else 50)
    paths(repeats)


if __name__ == "__main__":
    main()
