"""The ledger: what the records say of every claim."""

from __future__ import annotations

import dataclasses
import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mechanisms.lab.claims import Claim, Outcome, describe, verdict_label
from mechanisms.lab.configuration import as_dict, config_hash
from mechanisms.lab.paper import Experiment, Paper
from mechanisms.lab.records import Cell, Record, cells
from mechanisms.lab.registry import code_hash


@dataclass(frozen=True)
class Row:
    """One claim at one scale and configuration.

    Attributes:
        slug, experiment, scale: where it belongs.
        changed: settings that differ from the scale's own (empty for the standard configuration).
        claim: text, published figure and note.
        outcome: the verdict with its figures.
        date: of the latest record (UTC, day), "" when not run.
        devices: where the records were made, for example ("cpu",).
        stale: some record was made by older code.
        config_hash: the name of the configuration.
    """

    slug: str
    experiment: str
    scale: str
    changed: Mapping[str, Any]
    claim: Claim
    outcome: Outcome
    date: str
    devices: tuple[str, ...]
    stale: bool
    config_hash: str = ""


def rows(papers: Sequence[Paper], records: Sequence[Record]) -> list[Row]:
    """Every claim of the papers at every scale that has records; at the deciding scale also where it has none."""
    by_experiment: dict[tuple[str, str], list[Cell]] = {}
    first = {(p.slug, e.name): e.first_seed for p in papers for e in p.experiments}
    # Seeds below an experiment's first are those that settings were tuned on: they decide nothing.
    deciding = (r for r in records if r.seed >= first.get((r.slug, r.experiment), 0))
    for cell in cells(deciding):
        by_experiment.setdefault((cell.slug, cell.experiment), []).append(cell)
    found: list[Row] = []
    for paper in papers:
        for experiment in paper.experiments:
            there = by_experiment.get((paper.slug, experiment.name), [])
            for cell in _with_missing(paper, experiment, there):
                found += [
                    _row(paper, experiment, cell, claim) for claim in experiment.claims if cell.scale in claim.scales
                ]
    return found


def _with_missing(paper: Paper, experiment: Experiment, there: list[Cell]) -> list[Cell]:
    """The cells in the order of the scales, the standard configuration first; the deciding scale always has one."""
    chosen: list[Cell] = []
    for scale, settings in experiment.scales.items():
        mine = [cell for cell in there if cell.scale == scale]
        standard = [cell for cell in mine if cell.config_hash == config_hash(settings)]
        if not standard and scale == experiment.deciding_scale:
            standard = [Cell(paper.slug, experiment.name, scale, as_dict(settings), ())]
        chosen += standard + [cell for cell in mine if cell not in standard]
    return chosen


def _row(paper: Paper, experiment: Experiment, cell: Cell, claim: Claim) -> Row:
    used = [record for record in cell.records if record.variant in claim.variants]
    return Row(
        slug=paper.slug,
        experiment=experiment.name,
        scale=cell.scale,
        changed=changed_settings(experiment, cell),
        claim=claim,
        outcome=claim.check.evaluate(cell, looks=cell.looks),
        date=max((record.started[:10] for record in used), default=""),
        devices=tuple(sorted({record.device for record in used})),
        stale=any(record.code != code_hash(paper.slug) for record in used),
        config_hash=cell.config_hash,
    )


def changed_settings(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """The settings of a cell that differ from its scale's own; one that older code did not have is "not recorded"."""
    standard = as_dict(experiment.scales[cell.scale])
    differing = {key: value for key, value in cell.config.items() if key not in standard or standard[key] != value}
    return differing | {key: "not recorded" for key in standard if key not in cell.config}


def unclaimed(papers: Sequence[Paper], records: Iterable[Record]) -> list[str]:
    """One line for each group of records that no installed paper, experiment or scale asks for."""
    known = {(paper.slug, e.name, scale) for paper in papers for e in paper.experiments for scale in e.scales}
    counts = Counter((record.slug, record.experiment, record.scale) for record in records)
    return [
        f"{slug}/{experiment} at {scale}: {count} records are not shown, because no installed paper has that experiment"
        for (slug, experiment, scale), count in sorted(counts.items())
        if (slug, experiment, scale) not in known
    ]


def remarks(outcome: Outcome) -> list[str]:
    """What to know before believing a verdict: marks, those of its parts too, and the verdict for bounded means."""
    found = list(outcome.marks)
    for part in outcome.parts:
        found += [mark for mark in part.marks if mark not in found]
    if outcome.bounded is not None and outcome.bounded != outcome.verdict:
        found.append(f"for bounded means: {outcome.bounded}")
    return found


def verdict_notes(row: Row) -> list[str]:
    """What stands beside a verdict wherever it is shown."""
    return [*remarks(row.outcome), *(["stale"] if row.stale else [])]


def to_json(found: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows as plain JSON values, for programs."""
    return [
        {
            "paper": row.slug,
            "experiment": row.experiment,
            "scale": row.scale,
            "changed": dict(row.changed),
            "claim": row.claim.text,
            "published": row.claim.published,
            **dataclasses.asdict(row.outcome),
            "label": verdict_label(row.outcome),
            "date": row.date,
            "devices": list(row.devices),
            "stale": row.stale,
        }
        for row in found
    ]


def to_markdown(found: Iterable[Row]) -> str:
    """The rows as a Markdown table, for a README or a page."""
    lines = [
        "| paper | experiment | claim | published | measured | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        changed = "".join(f", {key}={value}" for key, value in row.changed.items())
        cells = (
            row.slug,
            f"{row.experiment} ({row.scale}{changed})",
            row.claim.text,
            row.claim.published,
            describe(row.outcome),
            f"**{verdict_label(row.outcome)}**" + "".join(f"; {text}" for text in verdict_notes(row)),
        )
        lines.append("| " + " | ".join(_cell(text) for text in cells) + " |")
    return "\n".join(lines)


def tally(found: Iterable[Row], slug: str) -> Counter[str]:
    """How many claims of a paper hold, fail, are undecided or not run, in the experiments' own configurations."""
    return Counter(row.outcome.verdict for row in found if row.slug == slug and not row.changed)


def papers_to_markdown(papers: Iterable[Paper], found: Sequence[Row]) -> str:
    """A table of papers and the tally of their verdicts, for a README that says where `[slug]` leads."""
    verdicts = ("holds", "fails", "undecided", "not run")
    lines = [f"| paper | topic | what it does | {' | '.join(verdicts)} |", "|---|---|---|" + "--:|" * len(verdicts)]
    for paper in papers:
        counts = tally(found, paper.slug)
        what = f"{paper.title} ({paper.authors}, {paper.venue or paper.year}): {paper.summary}"
        cells = (f"[{paper.slug}]", paper.topic, _cell(what), *(str(counts[verdict] or "") for verdict in verdicts))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text that cannot break out of a table cell or be read as HTML."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")
