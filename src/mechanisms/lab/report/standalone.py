"""One page on its own: headings, text, tables and Plotly figures in a single file, in the style of the report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechanisms.lab.records import write_atomic
from mechanisms.lab.report.rendering import assets, figure_data, render, safe, script_hash
from mechanisms.lab.report.texts import number

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Table:
    """A table that readers can sort by clicking a column's head.

    Args:
        columns: heads of the columns.
        rows: one sequence of values a row, as many as there are columns; numbers are formatted, aligned and sorted as
            numbers, None and NaN show as a dash.
        caption: a line above it.

    >>> Table(["column", "auc"], [["age", 0.93], ["income", None]]).columns
    ['column', 'auc']
    """

    columns: Sequence[Any]
    rows: Sequence[Sequence[Any]]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"a row has {len(row)} values where the table has {len(self.columns)} columns: {row!r}"
                )


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, in this order.

    Args:
        heading: "" for none.
        content: text (a paragraph, shown as it is), `Table` or pandas DataFrame, Plotly figures; a lone one or several.
        caption: below the section's figures.

    >>> Section("What was found", ["Two environments.", Table(["environment", "rows"], [[0, 950], [1, 50]])]).heading
    'What was found'
    """

    heading: str
    content: Any
    caption: str = ""


def page(title: str, sections: Sequence[Section], path: str | Path, *, lead: str = "") -> Path:
    """Write one stand-alone HTML file, which opens from disk without a network.

    Style and scripts lie inside it, plotly.js (about 5 MB) only when there is a figure. Everything is shown as text:
    HTML in a value, a column's head or a heading does nothing.

    Args:
        title: of the page.
        sections: what it says.
        path: the file; its folder is made if it is missing, and an older file is replaced in one step.
        lead: a paragraph under the title.

    Returns:
        The path.

    Raises:
        TypeError: a section holds something that cannot be shown.
        OSError: the file cannot be written.

    >>> import tempfile
    >>> counts = Section("Counts", Table(["class", "rows"], [["cat", 12]]))
    >>> path = page("Environments", [counts], Path(tempfile.mkdtemp()) / "environments.html")
    >>> "cat" in path.read_text()
    True
    """
    blocks = [(section, [_block(item) for item in _items(section.content)]) for section in sections]
    drawn = any(kind == "figure" for _, block in blocks for kind, _ in block)
    files = {name: content.decode() for name, content in assets().items()}
    scripts = [files["plotly.min.js"]] * drawn + [files["report.js"]]
    # "</script" would end the element and "<!--" change how it is read; with an escaped "<" they do neither.
    scripts = [re.sub(r"<(?=/script|!--)", r"\\x3c", script, flags=re.IGNORECASE) for script in scripts]
    path = Path(path)
    content = render(
        "page.html",
        title=title,
        lead=lead,
        sections=blocks,
        style=safe(files["report.css"]),
        scripts=[safe(script) for script in scripts],
        hashes=safe(" ".join(script_hash(script) for script in scripts)),
    )
    write_atomic(path, content)
    return path


def _items(content: Any) -> list[Any]:
    return list(content) if isinstance(content, list | tuple) else [content]


def _block(item: Any) -> tuple[str, Any]:
    """What the template needs to lay out one item."""
    if isinstance(item, str):
        return "text", item
    if isinstance(item, Table):
        return "table", _cells(item)
    if hasattr(item, "to_plotly_json"):
        return "figure", figure_data(item)
    if hasattr(item, "itertuples"):
        return "table", _cells(_from_frame(item))
    raise TypeError(
        f"a section holds a {type(item).__name__}; give text, a Table, a pandas DataFrame or a Plotly figure"
    )


def _from_frame(frame: pd.DataFrame) -> Table:
    """A DataFrame as a table; an index that says something becomes the first column."""
    if frame.index.nlevels > 1 or frame.index.name is not None or frame.index.dtype.kind not in "iu":
        frame = frame.reset_index()
    return Table(list(frame.columns), list(frame.itertuples(index=False, name=None)))


def _cells(table: Table) -> dict[str, Any]:
    """Texts, and for numbers what to sort by; a column is aligned as numbers when all its values are."""
    rows = [[_plain(value) for value in row] for row in table.rows]
    numeric = [
        any(row[i] is not None for row in rows) and all(row[i] is None or _is_number(row[i]) for row in rows)
        for i in range(len(table.columns))
    ]
    return {
        "caption": table.caption,
        "columns": [(str(name), numeric[i]) for i, name in enumerate(table.columns)],
        "rows": [
            [(_text(value), _order(value, numeric[i]), numeric[i]) for i, value in enumerate(row)] for row in rows
        ],
    }


def _plain(value: Any) -> Any:
    """NumPy's and pandas's scalars as Python's own; what pandas calls missing as None."""
    value = value.item() if hasattr(value, "item") else value
    missing = value != value or type(value).__name__ in ("NAType", "NaTType")
    return None if missing else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return number(value) if value is None or isinstance(value, bool | int | float) else str(value)


def _order(value: Any, numeric: bool) -> str | None:
    if not numeric:
        return None
    return "NaN" if value is None else repr(float(value))
