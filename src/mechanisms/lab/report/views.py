"""What the pages show, prepared from papers and records: plain values that the templates only lay out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mechanisms.lab import ledger
from mechanisms.lab.configuration import as_dict, config_hash
from mechanisms.lab.paper import Experiment, Figure, Paper
from mechanisms.lab.records import Cell, Record, cells
from mechanisms.lab.report.rendering import figure_data

if TYPE_CHECKING:
    import markupsafe


@dataclass(frozen=True)
class Summary:
    """One variant's entry in the table of metrics: mean and deviation over seeds, or the texts that were returned."""

    n: int
    mean: float | None = None
    deviation: float | None = None
    missing: int = 0
    texts: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Drawing:
    """A figure of the page: its data, or why it could not be drawn."""

    name: str
    caption: str
    data: markupsafe.Markup | None
    problem: str = ""


@dataclass(frozen=True)
class Setting:
    """One line of the settings; `standard` is what the scale has, where that differs."""

    name: str
    value: Any
    standard: Any = None
    changed: bool = False


@dataclass(frozen=True)
class CellView:
    """One experiment at one scale and configuration.

    Attributes:
        anchor: identifier of its section on the page.
        cell: the records.
        rows: the claims decided on them.
        variants: in the experiment's order; variants that the experiment no longer has come last.
        metrics: for each metric, one summary for each variant (None where the variant has none).
        drawings: the figures.
        settings: all of them, changed ones marked.
        changed: whether any is.
        versions: for each name, the versions among the records.
        stages: seconds of each cached stage, summed.
        notes: the runs' remarks, each with the number of runs that made it.
        stale: records of older code, by (variant, seed).
        problems: what stood in the way of drawing.
    """

    anchor: str
    cell: Cell
    rows: Sequence[ledger.Row]
    variants: Sequence[str]
    metrics: Sequence[tuple[str, Sequence[Summary | None]]]
    drawings: Sequence[Drawing]
    settings: Sequence[Setting]
    changed: bool
    versions: Sequence[tuple[str, Sequence[str]]]
    stages: Sequence[tuple[str, float]]
    notes: Sequence[tuple[str, int]]
    stale: frozenset[tuple[str, int]]

    @property
    def records(self) -> list[Record]:
        """By variant, in the order of the table, then by seed."""
        return [record for variant in self.variants for record in self.cell.of(variant)]

    @property
    def seconds(self) -> float:
        """Of all runs, without their cached stages."""
        return math.fsum(record.seconds for record in self.cell.records)

    @property
    def peak_memory(self) -> int:
        """The largest among the runs, in bytes."""
        return max((record.peak_memory for record in self.cell.records), default=0)

    def distinct(self, name: str) -> list[Any]:
        """The different values of a field of the records."""
        return sorted({getattr(record, name) for record in self.cell.records})

    @property
    def problems(self) -> list[str]:
        """Figures that could not be drawn."""
        return [f"figure {drawing.name!r}: {drawing.problem}" for drawing in self.drawings if drawing.problem]


def cell_views(
    paper: Paper, experiment: Experiment, records: Iterable[Record], rows: Sequence[ledger.Row]
) -> list[CellView]:
    """The cells of an experiment by scale, "smoke" last, the standard configuration of each first."""
    order = {scale: place for place, scale in enumerate(sorted(experiment.scales, key=lambda name: name == "smoke"))}
    found = [cell for cell in cells(records) if cell.scale in order]
    standard = {scale: config_hash(settings) for scale, settings in experiment.scales.items()}
    found.sort(key=lambda cell: (order[cell.scale], cell.config_hash != standard[cell.scale], cell.config_hash))
    return [_view(paper, experiment, cell, rows) for cell in found]


def _view(paper: Paper, experiment: Experiment, cell: Cell, rows: Sequence[ledger.Row]) -> CellView:
    there = cell.variants
    variants = [v for v in experiment.variants if v in there] + [v for v in there if v not in experiment.variants]
    names = list(
        dict.fromkeys(
            name
            for variant in variants
            for record in cell.of(variant)
            for name, value in record.metrics.items()
            if not (isinstance(value, str) and value.startswith("data:"))  # a picture: a figure shows it
        )
    )
    code = ledger.code_hash(paper.slug)
    stages: Counter[str] = Counter()
    for record in cell.records:
        stages.update(record.stages)
    settings = _settings(experiment, cell)
    return CellView(
        anchor=f"{cell.scale}-{cell.config_hash}",
        cell=cell,
        rows=[row for row in rows if (row.scale, row.config_hash) == (cell.scale, cell.config_hash)],
        variants=variants,
        metrics=[(name, [_summary(cell, name, variant) for variant in variants]) for name in names],
        drawings=[_drawing(figure, cell) for figure in experiment.figures],
        settings=settings,
        changed=any(setting.changed for setting in settings),
        versions=_versions(cell.records),
        stages=sorted(stages.items()),
        notes=Counter(note for record in cell.records for note in record.notes).most_common(),
        stale=frozenset((record.variant, record.seed) for record in cell.records if record.code != code),
    )


def _settings(experiment: Experiment, cell: Cell) -> list[Setting]:
    standard = as_dict(experiment.scales[cell.scale])
    changed = ledger.changed_settings(experiment, cell)
    return [Setting(key, value, standard.get(key), key in changed) for key, value in cell.config.items()]


def _versions(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for record in records for name in record.versions)
    return [(name, sorted({r.versions[name] for r in records if name in r.versions})) for name in names]


def _summary(cell: Cell, metric: str, variant: str) -> Summary | None:
    values = list(cell.values(metric, variant).values())
    if not values:
        return None
    texts = Counter(value for value in values if isinstance(value, str))
    if texts:
        return Summary(n=len(values), texts=tuple(texts.most_common()))
    means = [_mean(value) for value in values]
    finite = [mean for mean in means if math.isfinite(mean)]
    if not finite:
        return Summary(n=0, missing=len(means))
    mean = math.fsum(finite) / len(finite)
    squares = math.fsum((value - mean) ** 2 for value in finite)
    deviation = math.sqrt(squares / (len(finite) - 1)) if len(finite) > 1 else None
    return Summary(n=len(finite), mean=mean, deviation=deviation, missing=len(means) - len(finite))


def _mean(value: Any) -> float:
    """A metric as one number: lists (one number per unit) count with the mean of their units."""
    units = value if isinstance(value, list) else [value]
    numbers = [math.nan if unit is None else float(unit) for unit in units]
    return math.fsum(numbers) / len(numbers) if numbers else math.nan


def _drawing(figure: Figure, cell: Cell) -> Drawing:
    try:
        drawn = figure_data(figure.draw(cell))
    except Exception as error:
        # A recipe's own code: the page says what happened in its place, and the rest of the report is built.
        return Drawing(figure.name, figure.caption, None, f"could not be drawn: {type(error).__name__}: {error}")
    return Drawing(figure.name, figure.caption, drawn)
