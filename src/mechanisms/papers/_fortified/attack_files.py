"""The files of `mech attack`: the table as Markdown, CSV and JSON, and a page with accuracy against budget."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechanisms.robust.robustness_report import RobustnessReport

NAME = "robustness"  # of the files written
RANGE = "95 %"  # the column with the interval


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    factory: str
    weights: str
    data: str
    eps: tuple[float, ...]
    attacks: tuple[str, ...] | None
    restarts: int
    steps: int
    queries: int
    images: int
    surrogate: str | None
    surrogate_weights: str | None
    draws: int | None
    checks: bool
    batch_size: int
    device: str
    seed: int


def write_report(
    report: RobustnessReport, request: Request, to: Path, *, seconds: float, notes: list[str]
) -> list[Path]:
    """The table as Markdown, CSV and JSON, and a page with the plot, each whole or not at all.

    >>> from torch import ones
    >>> from mechanisms.robust import RobustnessReport
    >>> report = RobustnessReport(1.0, {0.1: 1.0}, {"pgd": {0.1: 1.0}}, correct=ones(1, 4))
    >>> request = Request("net:make", "w.pt", "d.npz", (0.1,), None, 1, 9, 9, 4, None, None, None, False, 4, "cpu", 0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [path.name for path in write_report(report, request, Path(folder), seconds=1.0, notes=[])]
    ['robustness.md', 'robustness.csv', 'robustness.json', 'robustness.html']
    """
    import platform

    import torch

    from mechanisms import __version__
    from mechanisms.lab.folders import whole_file

    made = {"mechanisms": __version__, "torch": torch.__version__, "python": platform.python_version()}
    everything = report.to_dict() | {"request": asdict(request), "versions": made, "seconds": round(seconds, 1)}
    everything["notes"] = [*everything["notes"], *notes]
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=report.heads())
    writer.writeheader()
    writer.writerows(report.rows())
    title = f"# Robustness of {request.factory}\n\n{_made(report, request, seconds)}\n\n"
    text = title + report.to_markdown() + "".join(f"\nNote: {note}.\n" for note in notes)
    contents = {
        "md": text.encode(),
        "csv": table.getvalue().encode(),
        "json": (json.dumps(everything, indent=2, ensure_ascii=False) + "\n").encode(),
        "html": _page(report, request, seconds, notes),
    }
    paths = []
    for suffix, content in contents.items():
        path = to / f"{NAME}.{suffix}"
        try:
            with whole_file(path) as file:
                file.write(content)
        except OSError as error:
            raise OSError(f"{path} cannot be written ({error.strerror or error})") from None
        paths.append(path)
    return paths


def _page(report: RobustnessReport, request: Request, seconds: float, notes: list[str]) -> bytes:
    from mechanisms.lab.report import Section, Table
    from mechanisms.lab.report import page as write_page

    columns = heads(report)
    rows = [
        [shown_range(row["low"], row["high"]) if head == RANGE else row.get(head) for head in columns]
        for row in report.rows()
    ]
    table = Table(columns, rows)
    explanation = (
        "The share of images that are classified rightly whatever was tried in the budget: an upper bound, with its "
        "95\N{NO-BREAK SPACE}% interval for images drawn at random. The columns behind it say what each attack of the "
        "first round left, in this order."
    )
    sections = [Section("Accuracy against budget", [draw_accuracy(report), explanation, table])]
    if report.checks:
        checks = Table(
            ["check", "verdict", "found", "expected"],
            [[check.name, check.verdict, check.found, check.expected] for check in report.checks],
        )
        words = f"At eps {report.checked_eps:g}: {report.verdict()}."
        sections.append(Section("Can the gradients be believed?", [words, checks]))
    sections.append(Section("How this was made", [_made(report, request, seconds), *report.notes, *notes]))
    verdict = report.verdict()
    lead = f"{verdict[0].upper()}{verdict[1:]}." + (" Interrupted: the figures so far." if not report.complete else "")
    with tempfile.TemporaryDirectory() as folder:
        path = write_page(f"Robustness of {request.factory}", sections, Path(folder) / "page.html", lead=lead)
        return path.read_bytes()


def draw_accuracy(report: RobustnessReport) -> Any:
    """Accuracy against budget: without attack, after the first attack, and after all, with its interval.

    >>> from torch import ones
    >>> from mechanisms.robust import RobustnessReport
    >>> report = RobustnessReport(1.0, {0.1: 1.0}, {"pgd": {0.1: 1.0}}, correct=ones(1, 4))
    >>> [trace.name for trace in draw_accuracy(report).data]
    ['after all attacks', 'after pgd alone']
    """
    from mechanisms.lab.figures import canvas, line, plain

    figure = canvas(x="budget eps (L-infinity)", y="accuracy", height=420)
    budgets = list(report.robust_accuracy)
    with_zero = [0.0, *budgets] if budgets[0] > 0 else budgets
    start = [report.clean_accuracy] * (len(with_zero) - len(budgets))
    ends = [report.interval(eps) for eps in budgets]
    robust = [*start, *report.robust_accuracy.values()]
    above = [*[0.0] * len(start), *(high - report.at(eps) for eps, (_, high) in zip(budgets, ends, strict=True))]
    below = [*[0.0] * len(start), *(report.at(eps) - low for eps, (low, _) in zip(budgets, ends, strict=True))]
    figure.add_scatter(
        x=with_zero,
        y=robust,
        mode="lines+markers",
        name="after all attacks",
        line=line(0),
        error_y={"array": above, "arrayminus": below, "thickness": 1.5, "width": 5},
        hovertemplate="eps %{x:.4g}: at most %{y:.3f}<extra></extra>",
    )
    first = next(iter(report.after), None)
    if first is not None:
        y = [*start, *(report.after[first].get(eps) for eps in budgets)]
        figure.add_scatter(x=with_zero, y=y, mode="lines+markers", name=plain(f"after {first} alone"), line=line(1))
    figure.update_yaxes(range=[-0.02, 1.02])
    return figure


def _made(report: RobustnessReport, request: Request, seconds: float) -> str:
    from mechanisms import __version__

    random = f", {report.draws} draws of a randomised network averaged" if report.randomised else ""
    return (
        f"{request.factory} with {request.weights}, {report.images} images of {request.data}; attacks "
        f"{', '.join(report.after)}; restarts {report.restarts}, steps {report.steps}, queries "
        f"{report.queries}{random}; seed {report.seed}, {seconds:.0f} s, mechanisms {__version__}."
    )


def heads(report: RobustnessReport) -> list[str]:
    """The columns for readers: the answer first, in sight on small screens too.

    >>> from torch import ones
    >>> from mechanisms.robust import RobustnessReport
    >>> heads(RobustnessReport(1.0, {0.1: 1.0}, {"pgd": {0.1: 1.0}}, correct=ones(1, 4)))
    ['eps', 'clean', 'robust', '95 %', 'after pgd']
    """
    first = ["eps", "clean", "robust", RANGE]
    return [*first, *(head for head in report.heads() if head not in (*first, "low", "high"))]


def shown_range(low: float, high: float) -> str:
    """An interval as text, on one line.

    >>> shown_range(0.25, 0.5).split()
    ['0.250', 'to', '0.500']
    """
    return f"{low:.3f}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{high:.3f}"
