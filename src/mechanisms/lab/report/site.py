"""The report as a folder of pages: the ledger, a page per paper, a page per experiment, and what they share.

    index.html                         the ledger of all papers
    papers/<slug>.html                 a paper: what it is, its claims, its experiments
    papers/<slug>.<experiment>.html    an experiment: claims, metrics, figures, settings, versions, records
    assets/                            style, script, and plotly.js once

Each file is put in place in one step, what others refer to first and the ledger last; pages that are no longer needed
go at the end. A build that is interrupted leaves a site that opens, with some pages older than others.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mechanisms.lab import ledger
from mechanisms.lab.paper import Experiment, Paper
from mechanisms.lab.records import Record, write_atomic
from mechanisms.lab.report import views
from mechanisms.lab.report.rendering import GENERATOR, assets, page_name, render

VERDICTS = ("holds", "fails", "undecided", "not run")


def build_report(
    papers: Sequence[Paper], records: Sequence[Record], folder: Path, *, problems: Sequence[str] = ()
) -> Path:
    """Write the report as a static site that opens from disk without a network.

    Args:
        papers: what to report on, in this order.
        records: of any papers; those that no paper asks for are named among the problems.
        folder: where to write; it is made if it is missing, and files of others in it are left alone.
        problems: lines for the reader, for example of records that could not be read.

    Returns:
        The ledger's page, `folder/index.html`.

    Raises:
        OSError: the disk is full or the folder cannot be written; the pages that were there still open.
        FileExistsError: the folder holds somebody else's `index.html`.

    >>> import tempfile
    >>> build_report([], [], Path(tempfile.mkdtemp())).name
    'index.html'
    """
    index = folder / "index.html"
    if index.exists() and not _is_ours(index):
        raise FileExistsError(errno.EEXIST, "it holds an index.html of somebody else; choose another folder")
    rows = ledger.rows(papers, records)
    problems = [*problems, *ledger.unclaimed(papers, records)]
    for name, content in assets().items():
        target = folder / "assets" / name
        if not target.is_file() or target.read_bytes() != content:
            write_atomic(target, content)
    written = set()

    def write(name: str, content: bytes) -> None:
        write_atomic(folder / "papers" / name, content)
        written.add(name)

    for paper in papers:
        mine = [row for row in rows if row.slug == paper.slug]
        for experiment in paper.experiments:
            content, found = _experiment_page(paper, experiment, records, mine, problems)
            problems += found
            write(page_name(paper, experiment), content)
        write(page_name(paper), render("paper.html", root="../", paper=paper, rows=mine, verdicts=_counts(mine)))
    content = render(
        "index.html",
        root="",
        papers=papers,
        titles={paper.slug: paper for paper in papers},
        rows=rows,
        verdicts=_counts(rows),
        topics=sorted({paper.topic for paper in papers}),
        runs=len(records),
        latest=max((record.started[:10] for record in records), default=""),
        problems=problems,
    )
    write_atomic(index, content)
    for page in (folder / "papers").glob("*.html"):
        if page.name not in written and _is_ours(page):
            page.unlink()
    return index


def _is_ours(page: Path) -> bool:
    return GENERATOR.encode() in page.read_bytes()[:600]


def _experiment_page(
    paper: Paper, experiment: Experiment, records: Sequence[Record], rows: Sequence[ledger.Row], problems: Sequence[str]
) -> tuple[bytes, list[str]]:
    """The page and the problems that came up while drawing it."""
    own = [record for record in records if (record.slug, record.experiment) == (paper.slug, experiment.name)]
    mine = [row for row in rows if row.experiment == experiment.name]
    cells = views.cell_views(paper, experiment, own, mine)
    drawn = [f"{paper.slug}/{experiment.name} at {view.cell.scale}: {line}" for view in cells for line in view.problems]
    content = render(
        "experiment.html",
        root="../",
        paper=paper,
        experiment=experiment,
        cells=cells,
        missing=[row for row in mine if not any(row in view.rows for view in cells)],
        problems=[*(line for line in problems if f"{paper.slug}/{experiment.name}" in line), *drawn],
    )
    return content, drawn


def _counts(rows: Sequence[ledger.Row]) -> list[tuple[str, int]]:
    """How many claims have each verdict, in a fixed order."""
    found = Counter(row.outcome.verdict for row in rows)
    return [(verdict, found[verdict]) for verdict in VERDICTS]
