"""`mech discover`: environments for a table of one's own, without annotations."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from mechanisms.robust.tables import Encoded

COLUMN = "environment"
SHOWN = 5  # columns in the summary on the screen
DRAWN = 20  # columns in the page's figure
LISTED = 200  # columns in the page's table


def discover(
    table: Annotated[Path, typer.Argument(help="The table: .csv, .tsv, .txt (also .gz), .parquet or .npz.")],
    out: Annotated[Path, typer.Option(help="Where to write it with the column 'environment': CSV or Parquet.")],
    label: Annotated[str | None, typer.Option(help="The column that holds the classes.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="A column to leave out; may be repeated.")] = None,
    page: Annotated[Path | None, typer.Option(help="Where to write an HTML page of what was found.")] = None,
    save: Annotated[Path | None, typer.Option(help="Where to keep the discovery, to annotate other tables.")] = None,
    apply: Annotated[Path | None, typer.Option(help="Annotate with a kept discovery instead of a new one.")] = None,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Training steps; by default 40 epochs, 1500 to 5000.")] = None,
    search: Annotated[int | None, typer.Option(help="Combinations of settings to try; 10 by default.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Find two environments in a labelled table, without annotations.

    Twin classifiers learn to predict the label until both rely on its shortcut alone. Rows that either of them gets
    wrong are environment 1, the others environment 0. Groups of (label, environment) can then be balanced or weighted,
    and the page says which columns differ between the environments within each class.

    Images and texts: embed them first (mechanisms.robust.embed) and give the embeddings as a table.
    \f

    Raises:
        typer.Exit: with code 2 after one line of error; nothing was written.

    >>> with contextlib.redirect_stderr(None):
    ...     try:
    ...         discover(Path("nowhere.csv"), out=Path("found.csv"), label="animal")
    ...     except typer.Exit as end:
    ...         end.exit_code
    2
    """
    from mechanisms._base.extras import MissingExtra
    from mechanisms.lab.paper import NotHere

    try:
        request = _Request(table, out, label, tuple(exclude or ()), page, save, apply, seed, steps, search, device)
        request.check()
        request.carry_out()
    except (ValueError, OSError, MemoryError, MissingExtra, NotHere) as error:
        from rich.console import Console
        from rich.text import Text

        reason = " ".join(str(error).split()) or type(error).__name__
        Console(stderr=True, soft_wrap=True).print(Text("error: ", style="red"), _shown(reason), sep="")
        raise typer.Exit(2) from None


@dataclass(frozen=True)
class _Request:
    """What was asked for on the command line."""

    table: Path
    out: Path
    label: str | None
    exclude: tuple[str, ...]
    page: Path | None
    save: Path | None
    apply: Path | None
    seed: int
    steps: int | None
    search: int | None
    device: str

    def check(self) -> None:
        """Refuse what cannot be done before anything is read or computed."""
        from mechanisms._base.device import resolve_device
        from mechanisms.lab.table_files import check_folder, check_writable

        if self.apply is None and self.label is None:
            raise ValueError("give --label COLUMN, or --apply MODEL with a kept discovery")
        for name, given in (("exclude", self.exclude), ("save", self.save), ("steps", self.steps)):
            if self.apply is not None and given:
                raise ValueError(f"--apply uses a kept discovery as it is; leave out --{name}")
        if self.apply is not None and self.search is not None:
            raise ValueError("--apply uses a kept discovery as it is; leave out --search")
        for name, number in (("steps", self.steps), ("search", self.search)):
            if number is not None and number < 1:
                raise ValueError(f"--{name} must be at least 1, got {number}")
        resolve_device(self.device)
        check_writable(self.out)
        written = {"--out": self.out}
        for name, path in (("--page", self.page), ("--save", self.save)):
            if path is not None:
                check_folder(path)
                written[name] = path
        taken = {_place(self.table): "the table itself"}
        if self.apply is not None:
            taken[_place(self.apply)] = "the kept discovery"
        for name, path in written.items():
            if (place := _place(path)) in taken:
                raise ValueError(f"{name} {path} is {taken[place]}; it would be overwritten: choose another name")
            taken[place] = f"the file of {name}"

    def carry_out(self) -> None:
        """Read, find, write, and say what was found."""
        import numpy as np

        from mechanisms.lab.table_files import read_table, write_table
        from mechanisms.robust.differences import column_differences
        from mechanisms.robust.saved import discovery_bytes

        frame = read_table(self.table)
        if COLUMN in frame.columns:
            raise ValueError(
                f"{self.table} has a column {COLUMN!r} already; rename or drop it (--exclude does not, because the "
                "result gets a column of that name)"
            )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            encoded, found, environment = self._annotate(frame)
            names = [column.name for column in encoded.encoder.columns]
            classes = np.array(encoded.encoder.classes)[encoded.y]
            differences = column_differences(frame[names], classes, environment)
        notes = [*encoded.notes, *dict.fromkeys(str(warning.message) for warning in caught)]
        counts = np.bincount(2 * encoded.y + environment, minlength=2 * len(encoded.encoder.classes)).reshape(-1, 2)
        rows = list(zip(encoded.encoder.classes, counts.tolist(), strict=True))
        flip_rate = found.flip_rate if self.apply is None else None

        result = self._as_read(frame).assign(**{COLUMN: environment})
        # All contents are there before the first file takes its place.
        with contextlib.ExitStack() as files:
            write_table(result, files.enter_context(_written(self.out)), self.out)
            if self.page is not None:
                content = self._page(rows, differences, notes, flip_rate)
                files.enter_context(_written(self.page)).write(content)
            if self.save is not None:
                files.enter_context(_written(self.save)).write(discovery_bytes(found, encoded.encoder))
        self._say(rows, differences, notes, flip_rate)

    def _annotate(self, frame: pd.DataFrame) -> tuple[Encoded, Any, np.ndarray]:
        import numpy as np

        from mechanisms.robust.saved import load_discovery
        from mechanisms.robust.tables import encode
        from mechanisms.robust.xrm import discover_environments

        if self.apply is not None:
            found, encoder = load_discovery(self.apply)
            if self.label not in (None, encoder.label):
                raise ValueError(f"{self.apply} was found for the label {encoder.label!r}, not {self.label!r}")
            encoded = encoder.transform(frame)
            if not len(frame):
                raise ValueError(f"{self.table} has no rows")
            labels = np.array(encoder.classes)[encoded.y]
            return encoded, found, found.annotate(encoded.x, labels, device=self.device).numpy()
        assert self.label is not None
        encoded = encode(frame, self.label, self.exclude)
        labels = np.array(encoded.encoder.classes)[encoded.y]
        with _progress() as progress:
            found = discover_environments(
                encoded.x,
                labels,
                search=self.search or 10,
                steps=self.steps,
                device=self.device,
                random_state=self.seed,
                progress=progress,
            )
        return encoded, found, found.train.numpy()

    def _as_read(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The table as it goes out: from text to text every cell stays as it was written ("007", "1.50", "")."""
        from mechanisms.lab.table_files import is_text, read_table

        if not (is_text(self.table) and is_text(self.out)):
            return frame
        again = read_table(self.table, text=True)
        if len(again) != len(frame) or list(again.columns) != list(frame.columns):
            raise ValueError(f"{self.table} changed while it was being read; try again")
        return again

    def _say(self, rows: list, differences: pd.DataFrame, notes: Iterable[str], flip_rate: float | None) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        out, err = Console(), Console(stderr=True, soft_wrap=True)
        for note in notes:
            err.print(Text("note: ", style="yellow"), _shown(note), sep="")
        counts = Table("class", box=box.SIMPLE_HEAD, title="Rows by class and environment", title_justify="left")
        for name in ("environment 0", "environment 1", "share of 1"):
            counts.add_column(name, justify="right")
        for name, (zero, one) in rows:
            counts.add_row(_shown(name), f"{zero:,}", f"{one:,}", f"{one / (zero + one):.1%}" if zero + one else "")
        out.print(counts)
        if flip_rate is not None:
            out.print(f"flip rate {flip_rate:.3f}: the share of labels that the twins turned around", highlight=False)
        for name in _degenerate(rows):
            err.print(
                Text("warning: ", style="bold red"),
                _shown(f"all rows of class {name!r} are in one environment; do not train on these environments as is"),
                sep="",
            )
        ranked = differences[differences["rank"] <= SHOWN]
        if ranked["effect"].notna().any():
            top = Table(box=box.SIMPLE_HEAD, title="Columns that differ most within the classes", title_justify="left")
            for name, justify in (("column", "left"), ("class", "left"), ("difference", "right"), ("AUC", "right")):
                top.add_column(name, justify=justify)  # type: ignore[arg-type]
            top.add_column("95 %", justify="right")
            for row in ranked.to_dict("records"):
                name = f"{row['column']} = {row['category']}" if row["category"] else row["column"]
                interval = f"{row['auc_low']:.2f} to {row['auc_high']:.2f}"
                numbers = (f"{row['difference']:+.2f}", f"{row['auc']:.2f}", interval)
                top.add_row(_shown(name), _shown(row["class"]), *numbers)
            out.print(top)
        for what, path in (("table", self.out), ("page", self.page), ("discovery", self.save)):
            if path is not None:
                out.print(Text(f"{what}: "), _shown(str(path)), sep="", soft_wrap=True)

    def _page(self, rows: list, differences: pd.DataFrame, notes: Iterable[str], flip_rate: float | None) -> bytes:
        from mechanisms import __version__
        from mechanisms.lab.report import Section, Table
        from mechanisms.lab.report import page as write_page

        counts = Table(
            ["class", "environment 0", "environment 1", "share of 1"],
            [[name, zero, one, one / (zero + one) if zero + one else None] for name, (zero, one) in rows],
        )
        found: list[Any] = [counts]
        if flip_rate is not None:
            found.append(f"Flip rate {flip_rate:.3f}: the share of labels that the twins turned around.")
        found += [
            f"All rows of class {name!r} are in one environment: do not train on these environments as they are."
            for name in _degenerate(rows)
        ]
        explanation = (
            "Environment 1 against environment 0 within each class, ranked by the smaller |AUC - 0.5| over the "
            "classes. Difference: of the means in standard deviations; of categories, the one whose frequency differs "
            "most. AUC: the probability that a value of environment 1 is the larger one; categories are scored by the "
            "share of environment 1 among the other half of the rows. Intervals: 95 %, for one column at a time. "
            "Marginal: over all classes together; a shortcut that is balanced over the classes leaves it flat."
        )
        made = "with the discovery kept in " + str(self.apply) if self.apply else f"anew with seed {self.seed}"
        sections = [
            Section("Environments", found),
            Section("What differs within the classes", [explanation, _figure(differences), _listed(differences)]),
            Section("How this was made", [f"{self.table}, {made}, mechanisms {__version__}.", *notes]),
        ]
        lead = "Rows that either of the twin classifiers gets wrong are environment 1, the others environment 0."
        with tempfile.TemporaryDirectory() as folder:
            path = write_page(f"Environments in {self.table.name}", sections, Path(folder) / "page.html", lead=lead)
            return path.read_bytes()


def _listed(differences: pd.DataFrame) -> Any:
    """The differences as a table that fits on a page."""
    from mechanisms.lab.report import Table

    columns = differences["rank"].nunique()
    heads = ["column", "class", "difference", "95 %", "AUC", "95 % of AUC"]
    return Table(
        [*heads, "marginal", "marginal AUC"],
        [
            [
                f"{row['column']} = {row['category']}" if row["category"] else row["column"],
                row["class"],
                row["difference"],
                _range(row["low"], row["high"]),
                row["auc"],
                _range(row["auc_low"], row["auc_high"]),
                row["marginal_difference"],
                row["marginal_auc"],
            ]
            for row in differences[differences["rank"] <= LISTED].to_dict("records")
        ],
        caption=f"The first {LISTED} columns of {columns}" if columns > LISTED else "",
    )


def _range(low: float, high: float) -> str | None:
    # Spaces that do not break keep an interval on one line.
    return f"{low:.2f}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{high:.2f}".replace("-", "−") if low == low else None


def _figure(differences: pd.DataFrame) -> Any:
    """AUC with intervals: one row a column, one marker a class."""
    import plotly.graph_objects as go

    from mechanisms.lab.figures import FONT, PALETTE, SYMBOLS, plain

    drawn = differences[(differences["rank"] <= DRAWN) & differences["auc"].notna()]
    figure = go.Figure()
    classes = list(dict.fromkeys(drawn["class"]))
    for place, name in enumerate(classes):
        part = drawn[drawn["class"] == name]
        offset = 0.5 * ((place + 0.5) / len(classes) - 0.5)
        figure.add_scatter(
            x=part["auc"].tolist(),
            y=(part["rank"] + offset).tolist(),
            error_x={
                "array": (part["auc_high"] - part["auc"]).tolist(),
                "arrayminus": (part["auc"] - part["auc_low"]).tolist(),
                "thickness": 1.5,
            },
            mode="markers",
            marker={"color": PALETTE[place % len(PALETTE)][0], "symbol": SYMBOLS[place % len(SYMBOLS)], "size": 8},
            name=plain(f"class {name}"),
            text=[plain(column) for column in part["column"]],
            hovertemplate="%{text}<br>AUC %{x:.3f}<extra>%{fullData.name}</extra>",
        )
    heads = drawn.drop_duplicates("rank")
    figure.add_scatter(
        x=heads["marginal_auc"].tolist(),
        y=heads["rank"].tolist(),
        mode="markers",
        marker={"color": PALETTE[5][0], "symbol": "circle-open", "size": 9},
        name="all classes together",
        text=[plain(column) for column in heads["column"]],
        hovertemplate="%{text}<br>AUC %{x:.3f}<extra>%{fullData.name}</extra>",
    )
    figure.add_vline(x=0.5, line={"dash": "dot", "color": "#808080"})
    figure.update_layout(
        template="plotly_white",
        font={"family": FONT, "size": 13},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 12, "r": 16, "t": 12, "b": 12},
        height=140 + 26 * max(1, len(heads)),
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
    )
    figure.update_xaxes(title="AUC of environment 1 against 0", range=[-0.02, 1.02], automargin=True)
    figure.update_yaxes(
        tickvals=heads["rank"].tolist(),
        ticktext=[plain(column if len(column) <= 40 else column[:39] + "…") for column in heads["column"]],
        autorange="reversed",
        automargin=True,
        zeroline=False,
    )
    return figure


def _degenerate(rows: list) -> list[str]:
    """Classes whose rows are all in one environment."""
    return [name for name, counts in rows if sum(counts) and not min(counts)]


def _place(path: Path) -> tuple:
    """What tells files apart, links followed."""
    try:
        status = os.stat(path)
        return status.st_dev, status.st_ino
    except OSError:
        return (str(path.resolve()),)


@contextlib.contextmanager
def _written(path: Path) -> Generator[Any]:
    """A file that takes its place when all is well; the disk's complaints name it."""
    from mechanisms.lab.folders import whole_file

    try:
        with whole_file(path) as file:
            yield file
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror or error})") from None


@contextlib.contextmanager
def _progress() -> Generator[Any]:
    """A bar on the screen; nothing where the errors go to a file."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("twins", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _shown(text: object) -> Any:
    """Text as it is on the screen: no markup, no control characters."""
    from rich.text import Text

    return Text("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text)))
