"""Which columns of a table two environments differ in, within each class: what the shortcut may be.

A shortcut that is equally frequent among the classes leaves no trace in the marginals (cows on grass are environment 0,
camels on grass environment 1), so every column is compared within each class, and ranked by its smaller difference
over the classes.

    d   = (mean_1 - mean_0) / pooled standard deviation            variance (n0 + n1) / (n0 n1) + d^2 / (2 (n0 + n1))
    AUC = P(v_1 > v_0) + P(v_1 = v_0) / 2                          variance of DeLong, DeLong and Clarke-Pearson (1988)

with values v_e of environment e. Everything follows from one sort of a column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from mechanisms._base.extras import require
from mechanisms._base.seeds import numpy_generator
from mechanisms.robust._columns import Column, UnreadableColumn, read_column

if TYPE_CHECKING:
    import pandas as pd

FEWEST = 2  # rows of each environment that a class needs to be compared in
MISSING = "(missing)"
HEADS = (
    "rank", "column", "kind", "class", "difference", "low", "high", "auc", "auc_low", "auc_high", "category", "effect",
    "marginal_difference", "marginal_auc",
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """How far environment 1 lies from environment 0 in one column, NaN where it cannot be said.

    Args:
        difference, low, high: standardised difference and its interval.
        auc, auc_low, auc_high: probability that a value of environment 1 is the larger, and its interval.
        category: the category that the difference is about; empty for numbers.

    >>> Difference().auc
    nan
    """

    difference: float = np.nan
    low: float = np.nan
    high: float = np.nan
    auc: float = np.nan
    auc_low: float = np.nan
    auc_high: float = np.nan
    category: str = ""

    @property
    def effect(self) -> float:
        """Distance of the AUC from chance, 0 to 0.5; categories, whose order is learned, cannot lie below chance."""
        return max(self.auc - 0.5, 0.0) if self.category else abs(self.auc - 0.5)


def column_differences(
    frame: pd.DataFrame, y: ArrayLike, environment: ArrayLike, *, confidence: float = 0.95
) -> pd.DataFrame:
    """Compare environment 1 with environment 0 in every column, within each class.

    Numbers (also dates, as days, and truth values) by standardised difference and AUC. Categories by the category whose
    frequency differs most: `difference` is its frequency difference divided by the standard deviation of belonging to
    it. Their AUC is that of scoring each category with the share of environment 1 in it, estimated on the other half of
    the rows, so that it stays at 0.5 when there is nothing to see, however many categories there are. Missing values
    of a number are compared as a column of their own, "NAME (missing)", those of categories as a category.

    The intervals are for one column and class at a time, not for all at once, and treat the environments as given:
    environments were found on the same rows, so small differences are to be expected in any column.

    Args:
        frame: the columns to compare, without the label.
        y: (rows,) classes.
        environment: (rows,) 0 or 1.
        confidence: of the intervals.

    Returns:
        One row for each column and class: `rank` (from 1), `column`, `kind`, `class`, `difference`, `low`, `high`,
        `auc`, `auc_low`, `auc_high`, `category`, `effect` (the smaller |AUC - 0.5| over the classes, by which the
        columns are ranked), `marginal_difference` and `marginal_auc` (over all classes together, flat for a balanced
        shortcut). Classes with fewer than two rows in an environment are not compared (NaN); columns that cannot be
        compared in any class come last, those whose cells are no single values not at all.

    Raises:
        ValueError: lengths that differ, environments other than 0 and 1, or a confidence outside (0, 1).

    >>> import pandas as pd
    >>> table = pd.DataFrame({"grass": [9, 8, 1, 2, 2, 1, 8, 9], "legs": [4, 3, 4, 3, 4, 3, 4, 3]})
    >>> y, environment = [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 1, 1]
    >>> found = column_differences(table, y, environment)
    >>> found[["rank", "column", "class", "auc", "marginal_auc"]].iloc[:2].values.tolist()
    [[1, 'grass', 0, 0.0, 0.5], [1, 'grass', 1, 1.0, 0.5]]
    """
    pd = require("pandas", "lab")
    classes, labels = np.unique(np.asarray(y), return_inverse=True)
    e = np.asarray(environment)
    if labels.ndim != 1 or e.shape != labels.shape or len(frame) != len(labels):
        raise ValueError(
            f"the table has {len(frame)} rows, y has shape {labels.shape} and environment {e.shape}; "
            "they must have one entry for each row"
        )
    if not np.isin(e, (0, 1)).all():
        raise ValueError(f"environment must hold 0 and 1, got {np.unique(e)[:5].tolist()}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    z = float(ndtri(0.5 + confidence / 2))
    e = e.astype(bool)
    rows_of = [np.flatnonzero(labels == k) for k in range(len(classes))]
    half = numpy_generator(0, "halves").random(len(e)) < 0.5

    found = []
    for name in frame.columns:
        try:
            columns = _parts(str(name), read_column(frame[name]))
        except UnreadableColumn:
            continue
        for part, column in columns:
            within = [_compare(column, rows, e, half, z) for rows in rows_of]
            effects = [difference.effect for difference in within if not np.isnan(difference.auc)]
            marginal = _compare(column, None, e, half, z)
            found.append((min(effects, default=np.nan), part, column.kind, within, marginal))
    found.sort(key=lambda entry: (np.isnan(entry[0]), -entry[0] if entry[0] == entry[0] else 0.0))
    return pd.DataFrame(
        [
            {
                "rank": rank,
                "column": part,
                "kind": kind,
                "class": label,
                "difference": one.difference,
                "low": one.low,
                "high": one.high,
                "auc": one.auc,
                "auc_low": one.auc_low,
                "auc_high": one.auc_high,
                "category": one.category,
                "effect": effect,
                "marginal_difference": marginal.difference,
                "marginal_auc": marginal.auc,
            }
            for rank, (effect, part, kind, within, marginal) in enumerate(found, start=1)
            for label, one in zip(classes.tolist(), within, strict=True)
        ],
        columns=list(HEADS),
    )


def _parts(name: str, column: Column) -> list[tuple[str, Column]]:
    """A column, and its missing values as a column beside it."""
    missing = column.missing
    if column.codes is not None:
        codes = np.where(missing, len(column.levels), column.codes)
        return [(name, Column("category", codes=codes, levels=(*column.levels, MISSING)))]
    if not missing.any():
        return [(name, column)]
    return [(name, column), (f"{name} {MISSING}", Column("boolean", missing.astype(np.float64)))]


def _compare(column: Column, rows: np.ndarray | None, e: np.ndarray, half: np.ndarray, z: float) -> Difference:
    """Environment 1 against environment 0 in some rows (all of them for None)."""
    pick = slice(None) if rows is None else rows
    if column.codes is not None:
        return _compare_categories(column.codes[pick], column.levels, e[pick], half[pick], z)
    assert column.numbers is not None
    values, e = column.numbers[pick], e[pick]
    if (missing := np.isnan(values)).any():
        values, e = values[~missing], e[~missing]
    n1 = int(e.sum())
    n0 = len(e) - n1
    if min(n0, n1) < FEWEST:
        return Difference()
    counts0, counts1 = _counts(values, e)
    auc, variance = _auc(counts0, counts1)
    # The largest is divided out: squares of huge integers would overflow.
    values = values / (float(np.abs(values).max()) or 1.0)
    one, zero = values[e], values[~e]
    pooled = np.sqrt(((n0 - 1) * zero.var(ddof=1) + (n1 - 1) * one.var(ddof=1)) / (n0 + n1 - 2))
    gap = float(one.mean() - zero.mean())
    d = gap / float(pooled) if pooled > 0 else (0.0 if gap == 0 else float(np.copysign(np.inf, gap)))
    spread = z * np.sqrt((n0 + n1) / (n0 * n1) + d * d / (2 * (n0 + n1)))
    low, high = (d - spread, d + spread) if np.isfinite(d) else (d, d)
    return Difference(d, float(low), float(high), auc, *_interval(auc, variance, min(n0, n1), z))


def _counts(values: np.ndarray, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of either environment at each distinct value, smallest first."""
    order = np.argsort(values)
    values, e = values[order], e[order]
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    counts1 = np.add.reduceat(e.astype(np.int64), starts)
    return np.diff(np.append(starts, len(values))) - counts1, counts1


def _auc(counts0: np.ndarray, counts1: np.ndarray) -> tuple[float, float]:
    """AUC and DeLong's variance of it, from the counts at each value in rising order."""
    n0, n1 = int(counts0.sum()), int(counts1.sum())
    # Share of the other environment that a row of one beats, ties counting half.
    beats = (np.cumsum(counts0) - counts0 / 2) / n0
    beaten = 1 - (np.cumsum(counts1) - counts1 / 2) / n1
    auc = float(counts1 @ beats / n1)
    variance1 = counts1 @ (beats - auc) ** 2 / max(n1 - 1, 1)
    variance0 = counts0 @ (beaten - auc) ** 2 / max(n0 - 1, 1)
    return auc, float(variance1 / n1 + variance0 / n0)


def _interval(auc: float, variance: float, fewer: int, z: float) -> tuple[float, float]:
    """Normal interval; where the environments are apart without exception, the exact one for that many successes."""
    if variance > 0:
        spread = z * float(np.sqrt(variance))
        return max(auc - spread, 0.0), min(auc + spread, 1.0)
    from scipy.special import ndtr

    bound = float((1 - ndtr(z)) ** (1 / fewer))
    if auc == 1:
        return bound, 1.0
    return (0.0, 1 - bound) if auc == 0 else (auc, auc)


def _compare_categories(
    codes: np.ndarray, levels: tuple[str, ...], e: np.ndarray, half: np.ndarray, z: float
) -> Difference:
    n1 = int(e.sum())
    n0 = len(e) - n1
    if min(n0, n1) < FEWEST:
        return Difference()
    # counts[h, e, level]: rows of half h and environment e in each category
    index = (half.astype(np.int64) * 2 + e) * len(levels) + codes
    counts = np.bincount(index, minlength=4 * len(levels)).reshape(2, 2, len(levels))
    total0, total1 = counts.sum(0)
    share0, share1 = total0 / n0, total1 / n1
    most = int(np.abs(share1 - share0).argmax())
    p0, p1 = float(share0[most]), float(share1[most])
    overall = (total0[most] + total1[most]) / (n0 + n1)
    scale = float(np.sqrt(overall * (1 - overall))) or 1.0
    spread = z * np.sqrt(p0 * (1 - p0) / n0 + p1 * (1 - p1) / n1)
    low, high = (p1 - p0 - spread) / scale, (p1 - p0 + spread) / scale
    aucs = [_learned_auc(scored=counts[h], learned=counts[1 - h]) for h in (0, 1)]
    if any(part is None for part in aucs):
        return Difference((p1 - p0) / scale, float(low), float(high), category=levels[most])
    auc = float(np.mean([part[0] for part in aucs if part]))
    variance = float(np.mean([part[1] for part in aucs if part])) / 2
    interval = _interval(auc, variance, min(n0, n1), z)
    return Difference((p1 - p0) / scale, float(low), float(high), auc, *interval, category=levels[most])


def _learned_auc(scored: np.ndarray, learned: np.ndarray) -> tuple[float, float] | None:
    """AUC of one half when categories are ordered by the share of environment 1 in the other half."""
    if scored.sum(1).min() < 1 or learned.sum(1).min() < 1:
        return None
    overall = learned[1].sum() / learned.sum()
    # One row at the overall share is added, so that categories that half has not seen stand in the middle.
    share = (learned[1] + overall) / (learned.sum(0) + 1)
    _, place = np.unique(share, return_inverse=True)
    counts0, counts1 = (np.bincount(place, weights=row) for row in scored)
    return _auc(counts0, counts1)
