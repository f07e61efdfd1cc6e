"""Numbers out of records, for claims: seed by seed, paired, with a remark on everything that was left out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from mechanisms.lab.records import Cell


class Missing(Exception):
    """There is nothing to decide on; the message says what is missing, in one line.

    >>> units_of(Cell("p", "e", "laptop", {}, []), "accuracy", "erm")
    Traceback (most recent call last):
    mechanisms.lab.readings.Missing: no records of erm
    """


class Reads(dict):
    """One run's metrics, which remembers whether a value that is not finite was read by name.

    >>> metrics = Reads({"accuracy": math.nan, "loss": 1.0})
    >>> metrics["loss"], metrics.diverged, metrics["accuracy"], metrics.diverged
    (1.0, False, nan, True)
    """

    diverged = False

    def __getitem__(self, name: Any) -> Any:
        value = super().__getitem__(name)
        items = value if isinstance(value, list) else [value]
        self.diverged |= any(isinstance(item, float) and not math.isfinite(item) for item in items)
        return value

    def get(self, name: Any, default: Any = None) -> Any:
        """The value of a metric, or the default where it is missing."""
        # By way of [], which remembers what it read.
        return self[name] if name in self else default  # noqa: SIM401


def widen(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as they were before JSON turned what is not finite into null.

    >>> widen({"loss": None, "solved": [1, None]})
    {'loss': nan, 'solved': [1, nan]}
    """
    return {
        name: [math.nan if item is None else item for item in value]
        if isinstance(value, list)
        else (math.nan if value is None else value)
        for name, value in metrics.items()
    }


def units_of(cell: Cell, metric: str, variant: str) -> tuple[dict[int, list[float]], list[str]]:
    """The numbers of a metric by seed, one for each unit, and marks on seeds without it.

    Raises:
        Missing: no records of the variant, none with that metric, or a metric that is text.

    >>> from mechanisms.lab.records import Record
    >>> record = Record("p", "e", "laptop", "erm", 10, {}, {"solved": [1, 0]})
    >>> units_of(Cell("p", "e", "laptop", {}, [record]), "solved", "erm")
    ({10: [1.0, 0.0]}, [])
    """
    records = cell.of(variant)
    if not records:
        raise Missing(f"no records of {variant}")
    found: dict[int, list[float]] = {}
    for seed, value in cell.values(metric, variant).items():
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, str) for item in items):
            raise Missing(f"metric {metric!r} of {variant} is text, a number is needed")
        if items:
            found[seed] = [math.nan if item is None else float(item) for item in items]
    if not found:
        raise Missing(f"metric {metric!r} is missing in the records of {variant}")
    without = sorted({record.seed for record in records} - set(found))
    return found, [f"metric {metric!r} of {variant} is missing: {seed_list(without)}"] if without else []


def numbers(cell: Cell, metric: str, variants: tuple[str, ...]) -> tuple[dict[int, list[float]], list[str]]:
    """A metric of several variants by seed, one number each (the mean over units), for the seeds that all have.

    Raises:
        Missing: as in `units_of`, or no seed is common to the variants.

    >>> from mechanisms.lab.records import Record
    >>> runs = [("erm", 10, 0.5), ("xrm", 10, 0.75), ("xrm", 11, 0.5)]
    >>> records = [Record("p", "e", "laptop", variant, seed, {}, {"accuracy": x}) for variant, seed, x in runs]
    >>> numbers(Cell("p", "e", "laptop", {}, records), "accuracy", ("xrm", "erm"))
    ({10: [0.75, 0.5]}, ['1 unpaired seed left out'])
    """
    columns: list[dict[int, float]] = []
    marks: list[str] = []
    for variant in variants:
        found, remarks = units_of(cell, metric, variant)
        columns.append({seed: sum(row) / len(row) for seed, row in found.items()})
        marks += remarks
    seeds = sorted(set.intersection(*(set(column) for column in columns)))
    if not seeds:
        raise Missing(f"no seed has {metric!r} of all of {', '.join(variants)}")
    left_out = len(set.union(*(set(column) for column in columns))) - len(seeds)
    if left_out:
        marks.append(f"{left_out} unpaired seed{'s' * (left_out != 1)} left out")
    return {seed: [column[seed] for column in columns] for seed in seeds}, marks


def seed_list(seeds: Iterable[int]) -> str:
    """Seeds in words.

    >>> seed_list([3]), seed_list([3, 4])
    ('seed 3', 'seeds 3, 4')
    """
    names = [str(seed) for seed in seeds]
    return f"seed{'s' * (len(names) != 1)} {', '.join(names)}"
