"""Tables as features: numbers, categories, truth values and dates into a matrix, the same way again for a second table.

Everything that was decided on the first table (what a column holds, its centre and scale, its categories, what was left
out and why) is kept in a `TableEncoder`, which is stored as JSON beside a saved discovery.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from mechanisms._base.extras import require
from mechanisms.robust._columns import Column, Kind, UnreadableColumn, as_codes, as_numbers, read_column, texts_of

if TYPE_CHECKING:
    import pandas as pd

FEWEST_ROWS = 10
FORMAT = "mechanisms.table-encoder.1"


@dataclass(frozen=True)
class EncodedColumn:
    """How one column becomes features.

    Args:
        name: of the column.
        kind: "number", "boolean", "date" (days since 1970) or "category".
        varies: whether there is a feature beside the one for missing values.
        missing: whether there is a feature for missing values.
        fill: what stands for a missing number: the median.
        centre, scale: the mean that is taken off and the standard deviation that is divided out.
        levels: the categories that have a feature each.
        other: whether rare categories share a feature.

    >>> EncodedColumn("breed", "category", levels=("cow", "camel")).features()
    ['breed=cow', 'breed=camel']
    """

    name: str
    kind: Kind
    varies: bool = True
    missing: bool = False
    fill: float = 0.0
    centre: float = 0.0
    scale: float = 1.0
    levels: tuple[str, ...] = ()
    other: bool = False

    def features(self) -> list[str]:
        """Names of its features, in order."""
        own = [f"{self.name}={level}" for level in self.levels] if self.kind == "category" else [self.name]
        extra = [f"{self.name} (other)"] * self.other + [f"{self.name} (missing)"] * self.missing
        return own * self.varies + extra


@dataclass(frozen=True, eq=False)
class Encoded:
    """A table as arrays.

    Args:
        x: (rows, features) float32; numbers and dates standardised, the others 0 and 1; nothing missing.
        y: (rows,) int64 index into the encoder's `classes`.
        encoder: makes the same features of another table.
        notes: one line for everything that was left out, filled in or pooled.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"grass": [0.9, 0.1] * 5, "animal": ["cow", "camel"] * 5})
    >>> encode(table, "animal").x.shape
    (10, 1)
    """

    x: np.ndarray
    y: np.ndarray
    encoder: TableEncoder
    notes: tuple[str, ...]


def encode(frame: pd.DataFrame, label: str, exclude: Iterable[str] = (), *, max_categories: int = 50) -> Encoded:
    """Turn a table into features and classes; see `TableEncoder.fit`.

    Args:
        frame: the table.
        label: the column that holds the classes.
        exclude: columns to leave out.
        max_categories: rarer categories of a column share one feature.

    Raises:
        ValueError: see `TableEncoder.fit`.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"grass": [0.9, 0.1] * 5, "zoo": ["Rome"] * 10, "animal": ["cow", "camel"] * 5})
    >>> encoded = encode(table, "animal")
    >>> encoded.encoder.classes, encoded.notes
    (('camel', 'cow'), ("column 'zoo' is left out: it is the same in all rows",))
    """
    frame = _named(frame)
    encoder, columns, notes = _fit(frame, label, tuple(exclude), max_categories)
    y = _class_codes(frame[label], label)[0]
    return Encoded(_matrix(encoder, columns, len(frame)), y, encoder, tuple(notes))


@dataclass(frozen=True)
class TableEncoder:
    """How tables with these columns become features and classes; made by `TableEncoder.fit` or `encode`.

    Args:
        label: the column that holds the classes.
        classes: texts of the classes, in the order of their indices.
        columns: those that are used.

    >>> encoder = TableEncoder("animal", ("camel", "cow"), (EncodedColumn("grass", "number"),))
    >>> TableEncoder.from_json(encoder.to_json()) == encoder
    True
    """

    label: str
    classes: tuple[str, ...]
    columns: tuple[EncodedColumn, ...]

    @classmethod
    def fit(
        cls, frame: pd.DataFrame, label: str, exclude: Iterable[str] = (), *, max_categories: int = 50
    ) -> TableEncoder:
        """Decide on each column.

        Numbers and dates are standardised; missing ones are filled with the median and get a feature that says so.
        Categories get a feature each, the rarest share one when there are more than `max_categories`. Left out are
        columns that are the same in all rows, texts that differ in nearly every row (names, identifiers), running row
        numbers, and cells that are no single values.

        Raises:
            ValueError: fewer than ten rows, column names that occur twice, the label or an excluded column missing,
                rows without a label, one class only, a class with a single row, labels that are measurements or
                identifiers, or no column left.

        >>> import pandas as pd
        >>> table = pd.DataFrame({"grass": [0.9, None] * 5, "animal": ["cow", "camel", "cow", "camel", "cow"] * 2})
        >>> TableEncoder.fit(table, "animal").feature_names
        ['grass (missing)']
        """
        return _fit(_named(frame), label, tuple(exclude), max_categories)[0]

    @property
    def feature_names(self) -> list[str]:
        """Names of the features, in the order of the matrix's columns."""
        return [feature for column in self.columns for feature in column.features()]

    @property
    def feature_columns(self) -> list[str]:
        """The table's column behind each feature."""
        return [column.name for column in self.columns for _ in column.features()]

    def transform(self, frame: pd.DataFrame) -> Encoded:
        """The features and classes of another table; columns that are not known are not looked at.

        Raises:
            ValueError: a column or the label is missing, a row has no label, or a label was not among the classes.

        >>> import pandas as pd
        >>> encoder = TableEncoder("animal", ("camel", "cow"), (EncodedColumn("zoo", "category", levels=("Rome",)),))
        >>> encoder.transform(pd.DataFrame({"zoo": ["Rome", "Bern"], "animal": ["cow", "camel"]})).notes
        ("column 'zoo': 1 row with values not seen before ('Bern')",)
        """
        frame = _named(frame)
        absent = [name for name in (self.label, *(column.name for column in self.columns)) if name not in frame.columns]
        if absent:
            raise ValueError(f"the table lacks the columns {_list(absent)}; it has {_list(frame.columns)}")
        codes, classes = _class_codes(frame[self.label], self.label)
        unknown = [name for name in classes if name not in self.classes]
        if unknown:
            raise ValueError(
                f"labels {_list(unknown)} are not among the classes {_list(self.classes)} of the discovery"
            )
        y = np.array([self.classes.index(name) for name in classes], np.int64)[codes]
        notes: list[str] = []
        columns = {plan.name: _read_as(frame[plan.name], plan, notes) for plan in self.columns}
        return Encoded(_matrix(self, columns, len(frame)), y, self, tuple(notes))

    def to_json(self) -> str:
        """Everything as JSON text."""
        return json.dumps({"format": FORMAT} | asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TableEncoder:
        """An encoder from what `to_json` gave.

        Raises:
            ValueError: other text.
        """
        try:
            content = json.loads(text)
            if content.pop("format") != FORMAT:
                raise ValueError("another format")
            columns = [EncodedColumn(**column | {"levels": tuple(column["levels"])}) for column in content["columns"]]
            if not all(column.kind in get_args(Kind) for column in columns):
                raise ValueError("a column of an unknown kind")
            return cls(str(content["label"]), tuple(map(str, content["classes"])), tuple(columns))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no encoder of a table ({error})") from None


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with texts as column names, each once."""
    names = [str(name) for name in frame.columns]
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"the column names {_list(repeated)} occur more than once; rename them")
    return frame.set_axis(names, axis=1)


def _fit(
    frame: pd.DataFrame, label: str, exclude: tuple[str, ...], max_categories: int
) -> tuple[TableEncoder, dict[str, Column], list[str]]:
    if max_categories < 2:
        raise ValueError(f"max_categories must be at least 2, got {max_categories}")
    for name, role in ((label, "label"), *((name, "excluded") for name in exclude)):
        if name not in frame.columns:
            raise ValueError(f"there is no column {name!r} ({role}); the table has {_list(frame.columns)}")
    if len(frame) < FEWEST_ROWS:
        raise ValueError(f"the table has {len(frame)} rows; at least {FEWEST_ROWS} are needed to find environments")
    codes, classes = _class_codes(frame[label], label)
    _check_classes(codes, classes, label)
    plans, columns, notes = [], {}, []
    for name in frame.columns:
        if name == label or name in exclude:
            continue
        try:
            column = read_column(frame[name])
        except UnreadableColumn as error:
            notes.append(f"column {name!r} is left out: it holds {error}")
            continue
        if reason := _useless(column):
            notes.append(f"column {name!r} is left out: {reason}")
            continue
        plan = _plan_category(name, column, max_categories) if column.codes is not None else _plan(name, column)
        notes += _notes(plan, column)
        plans.append(plan)
        columns[name] = column
    if not plans:
        reasons = f" ({'; '.join(notes[:3])})" if notes else ""
        raise ValueError(f"no column is left to find environments with{reasons}")
    return TableEncoder(label, classes, tuple(plans)), columns, notes


def _class_codes(labels: pd.Series, label: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class index of every row, and the texts of the classes: in the order of numbers if they are, else of texts."""
    pd = require("pandas", "lab")
    try:
        codes, distinct = pd.factorize(labels)
    except TypeError:
        raise ValueError(f"the labels in {label!r} are no single values") from None
    if len(unlabelled := np.flatnonzero(codes < 0)):
        rows = ", ".join(str(row + 1) for row in unlabelled[:5]) + (", ..." if len(unlabelled) > 5 else "")
        raise ValueError(
            f"{_rows(len(unlabelled))} without a label in {label!r} (counted from 1: {rows}); fill or drop them"
        )
    texts = np.array(texts_of(distinct), dtype=object)
    again, names = pd.factorize(texts)
    numbers = pd.to_numeric(pd.Series(names, dtype=object), errors="coerce").to_numpy(np.float64)
    keys = list(zip(numbers if not np.isnan(numbers).any() else np.zeros(len(names)), names, strict=True))
    order = sorted(range(len(names)), key=keys.__getitem__)
    place = np.empty(len(names), np.int64)
    place[order] = np.arange(len(names))
    return place[again[codes]] if len(codes) else np.empty(0, np.int64), tuple(names[i] for i in order)


def _check_classes(codes: np.ndarray, classes: tuple[str, ...], label: str) -> None:
    if len(classes) < 2:
        raise ValueError(f"at least two classes are needed; {label!r} holds only {_list(classes)}")
    if len(classes) > max(20, len(codes) // 10):
        raise ValueError(
            f"{label!r} has {len(classes)} different values in {len(codes)} rows; labels must be classes, not "
            "measurements or identifiers (sort measurements into ranges first)"
        )
    counts = np.bincount(codes, minlength=len(classes))
    if counts.min() < 2:
        single = [classes[i] for i in np.flatnonzero(counts < 2)]
        raise ValueError(f"the classes {_list(single)} of {label!r} have one row each; at least two are needed")


def _useless(column: Column) -> str:
    """Why a column says nothing about rows it has not seen; empty when it may."""
    missing = column.missing
    present = int((~missing).sum())
    if not present:
        return "it has no value in any row"
    if column.codes is not None:
        distinct = len(column.levels)
        if distinct == 1 and present == len(missing):
            return "it is the same in all rows"
        if distinct > present / 2 and (distinct > 50 or distinct == present):
            return f"it differs in nearly every row ({distinct} values), as names and identifiers do"
        return ""
    assert column.numbers is not None
    low, high = np.nanmin(column.numbers), np.nanmax(column.numbers)
    if low == high and present == len(missing):
        return "it is the same in all rows"
    if column.kind == "number" and present == len(missing) and high - low == present - 1:
        places = column.numbers - low
        if np.array_equal(places, np.round(places)) and len(np.unique(places)) == present:
            return "it numbers the rows"
    return ""


def _plan(name: str, column: Column) -> EncodedColumn:
    assert column.numbers is not None
    missing = column.missing
    values = column.numbers[~missing]
    # The largest is divided out first: squares of huge integers would overflow.
    largest = float(np.abs(values).max()) or 1.0
    fill = float(np.median(values / largest)) * largest
    if column.kind == "boolean":
        fill, centre, scale = float(values.mean() > 0.5), 0.0, 1.0
    else:
        filled = np.where(missing, fill, column.numbers) / largest
        centre, scale = float(filled.mean()) * largest, float(filled.std()) * largest
    varies = bool(values.min() < values.max())
    return EncodedColumn(
        name, column.kind, varies=varies, missing=bool(missing.any()), fill=fill, centre=centre, scale=scale or 1.0
    )


def _plan_category(name: str, column: Column, max_categories: int) -> EncodedColumn:
    assert column.codes is not None
    counts = np.bincount(column.codes[column.codes >= 0], minlength=len(column.levels))
    order = np.argsort(-counts, kind="stable")
    other = len(order) > max_categories
    kept = order[: max_categories - 1] if other else order
    return EncodedColumn(
        name,
        "category",
        varies=len(order) > 1,
        missing=bool((column.codes < 0).any()),
        levels=tuple(column.levels[i] for i in kept),
        other=other,
    )


def _notes(plan: EncodedColumn, column: Column) -> list[str]:
    notes = []
    if column.infinite:
        notes.append(f"column {plan.name!r}: {_rows(column.infinite)} with infinite values, taken as missing")
    if plan.missing:
        filled = "" if plan.kind == "category" or not plan.varies else ", filled with the median"
        filled = ", filled with the more frequent value" if plan.kind == "boolean" and plan.varies else filled
        notes.append(
            f"column {plan.name!r}: {_rows(int(column.missing.sum()))} without a value{filled}; a feature says which"
        )
    if plan.other:
        rare = len(column.levels) - len(plan.levels)
        notes.append(f"column {plan.name!r}: its {rare} rarest of {len(column.levels)} categories share one feature")
    return notes


def _read_as(series: pd.Series, plan: EncodedColumn, notes: list[str]) -> Column:
    """A column of a later table, read as what it was in the first."""
    try:
        column = read_column(series)
    except UnreadableColumn as error:
        raise ValueError(f"column {plan.name!r} holds {error}, where the discovery had a {plan.kind}") from None
    if plan.kind == "category":
        codes, unseen = as_codes(column, series, plan.levels)
        count = int((codes == -2).sum())
        if unseen and not plan.other:
            notes.append(f"column {plan.name!r}: {_rows(count)} with values not seen before ({_list(unseen)})")
        column = Column("category", codes=codes, levels=plan.levels)
    else:
        before = int(column.missing.sum())
        column = Column(plan.kind, as_numbers(column))
        if unread := int(column.missing.sum()) - before:
            notes.append(f"column {plan.name!r}: {_rows(unread)} with text where a {plan.kind} is expected, filled in")
    absent = int((column.codes == -1).sum()) if column.codes is not None else int(column.missing.sum())
    if absent and not plan.missing:
        notes.append(f"column {plan.name!r}: {_rows(absent)} without a value, which the first table had in every row")
    return column


def _matrix(encoder: TableEncoder, columns: dict[str, Column], rows: int) -> np.ndarray:
    """(rows, features) float32."""
    x = np.zeros((rows, len(encoder.feature_names)), np.float32)
    start = 0
    for plan in encoder.columns:
        column = columns[plan.name]
        stop = start + len(plan.features())
        if plan.varies:
            if column.codes is None:
                assert column.numbers is not None
                values = np.where(np.isnan(column.numbers), plan.fill, column.numbers)
                x[:, start] = np.clip((values - plan.centre) / plan.scale, -1e6, 1e6)
            else:
                codes = _codes_by(plan, column)
                seen = np.flatnonzero(codes >= 0)
                x[seen, start + codes[seen]] = 1
        if plan.missing:
            x[:, stop - 1] = column.codes == -1 if column.codes is not None else column.missing
        start = stop
    return x


def _codes_by(plan: EncodedColumn, column: Column) -> np.ndarray:
    """Index of the feature within the column's, negative for none."""
    assert column.codes is not None
    place = {level: i for i, level in enumerate(plan.levels)}
    rest = len(plan.levels) if plan.other else -1
    # Codes -2 (not seen before) and -1 (missing) index the two entries at the end.
    mapped = np.array([*(place.get(level, rest) for level in column.levels), rest, -1])
    return mapped[column.codes]


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"


def _list(names: Iterable[Any]) -> str:
    shown = [repr(str(name)) for name in names]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
