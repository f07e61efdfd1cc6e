"""What a column of a user's table holds: numbers, truth values, dates or categories, whatever type it came as."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mechanisms._base.extras import require

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["number", "boolean", "date", "category"]
ISO_DATE = r"\d{4}-\d{2}-\d{2}([T ].*)?"


@dataclass(frozen=True, eq=False)
class Column:
    """The values of a column.

    Args:
        kind: what they are.
        numbers: (rows,) float64, NaN where missing or infinite: numbers, 0 and 1, or days since 1970.
        codes: (rows,) index into `levels`, -1 where missing; categories only.
        levels: the distinct texts of a category.
        infinite: how many infinite numbers count as missing.
    """

    kind: Kind
    numbers: np.ndarray | None = None
    codes: np.ndarray | None = None
    levels: tuple[str, ...] = ()
    infinite: int = 0

    @property
    def missing(self) -> np.ndarray:
        """(rows,) where there is no value."""
        if self.codes is not None:
            return self.codes < 0
        assert self.numbers is not None
        return np.isnan(self.numbers)


class UnreadableColumn(ValueError):
    """The cells of a column are no single values; the message says what they are."""


def read_column(series: pd.Series) -> Column:
    """Find out what a column holds; text that is all numbers, truth values or ISO dates is read as such.

    Raises:
        UnreadableColumn: complex numbers, lists, dictionaries and the like.
    """
    pd = require("pandas", "lab")
    dtype = series.dtype
    types = pd.api.types
    if types.is_complex_dtype(dtype):
        raise UnreadableColumn("complex numbers")
    if types.is_bool_dtype(dtype) and not isinstance(dtype, pd.CategoricalDtype):
        return Column("boolean", series.to_numpy(np.float64, na_value=np.nan))
    if types.is_numeric_dtype(dtype):
        return _numbers("number", series.to_numpy(np.float64, na_value=np.nan))
    if types.is_datetime64_any_dtype(dtype) or types.is_timedelta64_dtype(dtype):
        return Column("date", _days(series))
    try:
        codes, distinct = pd.factorize(series)
    except TypeError:
        raise UnreadableColumn("cells that are no single values") from None
    texts = texts_of(distinct)
    kind, values = _parse(texts)
    if values is not None:
        numbers = np.append(values, np.nan)[codes]  # code -1, a missing cell, takes the NaN at the end
        return _numbers("number", numbers) if kind == "number" else Column(kind, numbers)
    # Different values can have the same text: 1 and "1" in a column of mixed types.
    again, levels = pd.factorize(np.array(texts, dtype=object))
    return Column("category", codes=np.append(again, -1)[codes], levels=tuple(levels))


def texts_of(values: Iterable[Any]) -> list[str]:
    """Texts by which values are the same in any table: 1, 1.0 and "1" are "1"."""
    return [str(int(v)) if isinstance(v, float | np.floating) and float(v).is_integer() else str(v) for v in values]


def as_numbers(column: Column) -> np.ndarray:
    """A column as numbers, whatever it was read as; texts that are none become missing."""
    if column.numbers is not None:
        return column.numbers
    assert column.codes is not None
    return np.append(_to_numeric(column.levels), np.nan)[column.codes]


def as_codes(column: Column, series: pd.Series, levels: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Codes of a column by given levels, whatever it was read as.

    Returns:
        Index into `levels`, -1 where missing and -2 where the value is none of them; and the values that are none.
    """
    pd = require("pandas", "lab")
    if column.codes is None:
        codes, distinct = pd.factorize(series)
        column = Column("category", codes=codes, levels=tuple(texts_of(distinct)))
    assert column.codes is not None
    place = {level: i for i, level in enumerate(levels)}
    mapped = np.array([*(place.get(level, -2) for level in column.levels), -1])
    return mapped[column.codes], tuple(level for level in column.levels if level not in place)


def _numbers(kind: Kind, values: np.ndarray) -> Column:
    infinite = np.isinf(values)
    count = int(infinite.sum())
    return Column(kind, np.where(infinite, np.nan, values) if count else values, infinite=count)


def _days(series: pd.Series) -> np.ndarray:
    """Days since 1970 (dates), or days (durations)."""
    pd = require("pandas", "lab")
    if getattr(series.dtype, "tz", None) is not None:
        series = series.dt.tz_convert("UTC").dt.tz_localize(None)
    start = pd.Timestamp(0) if pd.api.types.is_datetime64_any_dtype(series.dtype) else pd.Timedelta(0)
    return ((series - start) / pd.Timedelta(days=1)).to_numpy(np.float64, na_value=np.nan)


def _parse(texts: list[str]) -> tuple[Kind, np.ndarray | None]:
    """What all texts can be read as; None when they are categories."""
    pd = require("pandas", "lab")
    if not texts:
        return "number", np.empty(0)
    if {text.lower() for text in texts} <= {"true", "false"}:
        return "boolean", np.array([float(text.lower() == "true") for text in texts])
    values = _to_numeric(texts)
    if not np.isnan(values).any():
        return "number", values
    dates = pd.Series(texts, dtype=str)
    if dates.str.fullmatch(ISO_DATE).all():
        parsed = pd.to_datetime(dates, format="ISO8601", errors="coerce", utc=True)
        if parsed.notna().all():
            return "date", _days(parsed)
    return "category", None


def _to_numeric(texts: Iterable[str]) -> np.ndarray:
    """Texts as float64; NaN for those that are no numbers. Whole numbers of any length are read."""
    pd = require("pandas", "lab")
    return pd.to_numeric(pd.Series(list(texts), dtype=object), errors="coerce").to_numpy(np.float64)
