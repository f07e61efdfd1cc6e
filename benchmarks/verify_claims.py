"""How often the verdicts err: claims that are exactly borderline, decided many times on simulated seeds.

`python benchmarks/verify_claims.py` writes the tables into docs/guides/verdicts.md; `--check` only compares them.
The intervals and marks are those of `mechanisms.lab.statistics`, which the claims use themselves.
"""

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mechanisms.lab.claims import STAGES
from mechanisms.lab.statistics import log_wealth, satisfies, skewed, student_interval, violates, zero_variance

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "verdicts.md"
SEEDS = (3, 5, 10, 20)
REPLICATES = 20_000


@dataclass(frozen=True)
class Metric:
    """A distribution of what one seed measures, with its true mean, at which the claim is exactly borderline."""

    name: str
    mean: float
    draw: Callable[[np.random.Generator, tuple[int, int]], NDArray]
    bounds: tuple[float, float] | None = None


def _one_bad_in_five(generator: np.random.Generator, size: tuple[int, int]) -> NDArray:
    return generator.normal(0.0, 0.01, size) - 0.1 * (generator.random(size) < 0.2)


METRICS = (
    Metric("normal", 0.0, lambda generator, size: generator.normal(size=size)),
    Metric("left-skewed", 0.0, lambda generator, size: 1.0 - generator.exponential(size=size)),
    Metric("near the ceiling", 0.95, lambda generator, size: generator.beta(9.5, 0.5, size), (0.0, 1.0)),
    Metric("one bad seed in five", -0.02, _one_bad_in_five, (-1.0, 1.0)),
)


@dataclass(frozen=True)
class Rates:
    """Shares of the replicates, for one metric and number of seeds; None where the metric has no bounds."""

    metric: str
    seeds: int
    holds: float  # Student's interval says that the mean is at least its true value
    unmarked: float  # the same, and no mark warns
    covers: float  # Student's interval contains the true mean
    marked: float
    bounded_holds: float | None
    bounded_covers: float | None


def draw(metric: Metric, seeds: int, replicates: int = REPLICATES) -> NDArray:
    """Simulated samples, shape (replicates, seeds), the same at every call."""
    return metric.draw(np.random.default_rng(20_240), (replicates, seeds))


def rates(metric: Metric, seeds: int, replicates: int = REPLICATES) -> Rates:
    """Decide "the mean is at least its true value" on every replicate."""
    samples = draw(metric, seeds, replicates)
    low, high = student_interval(samples)
    holds = satisfies(low, high, smallest=metric.mean)
    marks = skewed(samples) | zero_variance(samples)
    bounded_holds = bounded_covers = None
    if metric.bounds is not None:
        above, below = bounded_refutations(samples, metric.bounds, metric.mean, 0.95)
        bounded_holds, bounded_covers = float(above.mean()), float((~above & ~below).mean())
    covers = (low <= metric.mean) & (metric.mean <= high)
    return Rates(
        metric.name,
        seeds,
        float(holds.mean()),
        float((holds & ~marks).mean()),
        float(covers.mean()),
        float(marks.mean()),
        bounded_holds,
        bounded_covers,
    )


def bounded_refutations(
    samples: NDArray, bounds: tuple[float, float], mean: float, confidence: float
) -> tuple[NDArray, NDArray]:
    """Whether `bounded_interval` lies above `mean`, and below it, without searching for its ends."""
    unit = (samples - bounds[0]) / (bounds[1] - bounds[0])
    candidate = np.full(len(samples), (mean - bounds[0]) / (bounds[1] - bounds[0]))
    needed = np.log(2 / (1 - confidence))
    return log_wealth(unit, candidate) >= needed, log_wealth(1 - unit, 1 - candidate) >= needed


def until_decided(metric: Metric, replicates: int = REPLICATES) -> tuple[float, float, float, float]:
    """Look at every stage until the claim is decided.

    Returns:
        shares of *holds*, *fails* and *undecided* at the end, and the mean number of seeds used.
    """
    samples = draw(metric, STAGES[-1], replicates)
    holds, fails = np.zeros(replicates, bool), np.zeros(replicates, bool)
    used = np.zeros(replicates)
    for stage in STAGES:
        open_ = ~holds & ~fails
        used[open_] = stage
        low, high = student_interval(samples[:, :stage], 1 - 0.05 / len(STAGES))
        holds |= open_ & satisfies(low, high, smallest=metric.mean)
        fails |= open_ & violates(low, high, smallest=metric.mean)
    return float(holds.mean()), float(fails.mean()), float((~holds & ~fails).mean()), float(used.mean())


def tables() -> dict[str, str]:
    """The Markdown tables by the name of their markers."""
    lines = [
        "| metric | seeds | says *holds* | ... without a mark | covers | marked | bounded *holds* | bounded covers |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for metric in METRICS:
        for seeds in SEEDS:
            r = rates(metric, seeds)
            numbers = (r.holds, r.unmarked, r.covers, r.marked, r.bounded_holds, r.bounded_covers)
            lines.append(f"| {r.metric} | {seeds} | {' | '.join(map(_percent, numbers))} |")
    stages = ["| metric | says *holds* | says *fails* | still *undecided* | mean seeds |", "|---|--:|--:|--:|--:|"]
    for metric in METRICS:
        *shares, used = until_decided(metric)
        stages.append(f"| {metric.name} | {' | '.join(map(_percent, shares))} | {used:.1f} |")
    return {"rates": "\n".join(lines), "stages": "\n".join(stages)}


def _percent(rate: float | None) -> str:
    return "—" if rate is None else f"{100 * rate:.1f} %"


def with_tables(page: str, new: dict[str, str]) -> str:
    """The page with each table put between its markers."""
    for name, table in new.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"{PAGE.name} needs the markers {begin} and {end}, once each")
        page = re.sub(f"{begin}.*?{end}", lambda _, b=begin, t=table, e=end: f"{b}\n{t}\n{e}", page, flags=re.DOTALL)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the committed tables differ; write nothing")
    arguments = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    new = with_tables(page, tables())
    if arguments.check and new != page:
        raise SystemExit(f"{PAGE} does not have the tables that this computes; run it without --check")
    if not arguments.check:
        PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
