"""Figures from records: errors by variant, what tuning saw, what the untuned weight would have shown, costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mechanisms.lab.figures import DASHES, INK, NOTHING, PALETTE, SYMBOLS, canvas, line, plain
from mechanisms.papers._ladder.peers import PEERS
from mechanisms.papers._ladder.settings import TUNED_NOISE, suffix

if TYPE_CHECKING:
    import plotly.graph_objects

    from mechanisms.lab.records import Cell

Draw = Callable[["Cell"], "plotly.graph_objects.Figure"]


def draw_tuning(labels: str) -> Draw:
    """Validation error by the multiple of the reference's weights, each variant's mean over the tuning seeds."""

    def draw(cell: Cell) -> plotly.graph_objects.Figure:
        multiples = [float(value) for value in cell.config["multiples"]]
        figure = canvas(x="multiple of the reference's weights", y="error on validation rows", log_x=True, height=420)
        shown = _weighted(cell)
        for variant in shown:
            rows = _list(cell, f"validation_{labels}", variant)
            if not rows:
                continue
            count = len(rows) // len(multiples)
            means = [statistics.fmean(rows[first : first + count]) for first in range(0, len(rows), count)]
            place = cell.variants.index(variant)
            chosen = means.index(min(means))
            figure.add_scatter(
                x=multiples,
                y=means,
                mode="lines+markers",
                name=plain(variant),
                line=_line(place),
                marker={
                    "symbol": _symbol(place),
                    "size": [13 if at == chosen else 6 for at in range(len(means))],
                    "color": PALETTE[place % len(PALETTE)][0],
                },
                hovertemplate=f"<b>{plain(variant)}</b> times %{{x}}<br>%{{y:.3f}}<extra></extra>",
            )
        figure.update_layout(height=420 + 8 * len(shown))  # room for the legend
        figure.update_xaxes(tickvals=multiples, ticktext=[f"{value:g}" for value in multiples])
        return _or_nothing(figure, cell, labels)

    return draw


def draw_untuned(labels: str) -> Draw:
    """Error with the reference's weights and with each variant's own, on the deciding seeds."""

    def draw(cell: Cell) -> plotly.graph_objects.Figure:
        variants = [
            name
            for name in _weighted(cell)
            if all(_numbers(cell, f"{metric}_{labels}", name) for metric in ("untuned", "error"))
        ]
        figure = canvas(x="error on test rows", height=120 + 60 * max(1, len(variants)))
        kinds = (("untuned", "the reference's weights"), ("error", "weights of its own"))
        for place, (metric, name) in enumerate(kinds):
            samples = [_numbers(cell, f"{metric}_{labels}", variant) for variant in variants]
            if not variants:
                break
            figure.add_bar(
                y=[plain(variant) for variant in variants],
                x=[statistics.fmean(sample) for sample in samples],
                error_x={"array": [_half(sample) for sample in samples], "color": INK[0], "thickness": 1.4},
                orientation="h",
                name=name,
                marker={
                    "color": PALETTE[place][0] + "55",
                    "line": {"color": PALETTE[place][0], "width": 1.5},
                    "pattern": {"shape": ("/", "")[place]},
                },
            )
        figure.update_layout(barmode="group")
        figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
        return _or_nothing(figure, cell, labels)

    return draw


def draw_costs(labels: str) -> Draw:
    """What the decoder misses at each level, as a share of the clean values' variance; mean over seeds."""

    def draw(cell: Cell) -> plotly.graph_objects.Figure:
        hidden = len(cell.config["hidden"])
        names = ["inputs", *(f"layer {level + 1}" for level in range(hidden)), "top"]
        rows: dict[str, list[float | None]] = {}
        for variant in cell.variants:
            runs = [one for one in cell.values(f"unrecovered_{labels}", variant).values() if isinstance(one, list)]
            if runs:
                rows[plain(variant)] = [
                    None if None in column else statistics.fmean(float(cost) for cost in column)
                    for column in zip(*runs, strict=True)
                ]
        figure = canvas(x="level", height=130 + 32 * max(1, len(rows)), legend=False)
        if rows:
            figure.add_heatmap(
                x=names,
                y=list(rows),
                # Colours in powers of ten: what matters lies between 0.01 and 1.
                z=[[None if one is None else math.log10(max(one, 1e-4)) for one in row] for row in rows.values()],
                text=[["" if one is None else f"{one:.3g}" for one in row] for row in rows.values()],
                texttemplate="%{text}",
                zmin=-2,
                zmax=0.3,
                colorscale="Viridis",
                showscale=False,
                hovertemplate="<b>%{y}</b>, %{x}: misses %{text}<extra></extra>",
            )
            figure.update_xaxes(type="category", showgrid=False)
            figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
        return _or_nothing(figure, cell, labels)

    return draw


def draw_errors(labels: str) -> Draw:
    """Error of every variant, best first: mean over seeds, its 95 % Student interval, and a point for each seed."""

    def draw(cell: Cell) -> plotly.graph_objects.Figure:
        found = {variant: _numbers(cell, f"error_{labels}", variant) for variant in cell.variants}
        order = sorted((name for name in found if found[name]), key=lambda name: statistics.fmean(found[name]))
        figure = canvas(x="error on test rows", height=110 + 30 * max(1, len(order)), legend=False)
        for row, variant in enumerate(order):
            place, sample = cell.variants.index(variant), found[variant]
            colour = PALETTE[place % len(PALETTE)][0]
            figure.add_scatter(
                x=[statistics.fmean(sample)],
                y=[row],
                error_x={"array": [_half(sample)], "color": colour, "thickness": 2},
                mode="markers",
                name=plain(variant),
                marker={"symbol": _symbol(place), "size": 11, "color": colour},
                hovertemplate=f"<b>{plain(variant)}</b> %{{x:.4f}}, {len(sample)} seeds<extra></extra>",
            )
            figure.add_scatter(
                x=sample,
                y=[row] * len(sample),
                mode="markers",
                name=plain(variant),
                marker={"size": 5, "color": colour, "opacity": 0.4},
                hovertemplate="%{x:.4f}<extra></extra>",
            )
        figure.update_yaxes(
            tickvals=list(range(len(order))),
            ticktext=[plain(name) for name in order],
            range=[len(order) - 0.5, -0.5],
            zeroline=False,
        )
        return _or_nothing(figure, cell, labels)

    return draw


def _weighted(cell: Cell) -> list[str]:
    """Variants of which weights are tried."""
    return [variant for variant in cell.variants if variant not in PEERS and variant != TUNED_NOISE]


def _symbol(place: int) -> str:
    """Variants of one colour have different ones."""
    return SYMBOLS[(place + place // len(PALETTE)) % len(SYMBOLS)]


def _line(place: int) -> dict:
    """More variants than colours differ by dash: every round of the palette has its own."""
    return line(place, dash=DASHES[(place + place // len(PALETTE)) % len(DASHES)])


def _list(cell: Cell, metric: str, variant: str) -> list[float]:
    """A metric that all seeds of a block share."""
    values = list(cell.values(metric, variant).values())
    return [float(one) for one in values[0]] if values and isinstance(values[0], list) else []


def _numbers(cell: Cell, metric: str, variant: str) -> list[float]:
    """A metric of each seed, without what diverged."""
    values = cell.values(metric, variant).values()
    return [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]


def _half(sample: Sequence[float]) -> float:
    """Half the width of the 95 % Student interval of the mean."""
    from mechanisms.lab.statistics import student_interval

    if len(sample) < 2:
        return 0.0
    low, high = student_interval(sample)
    return float(high - low) / 2


def _or_nothing(figure: plotly.graph_objects.Figure, cell: Cell, labels: str) -> plotly.graph_objects.Figure:
    """The figure; without records a low one that says so, or that these settings have no such number of labels."""
    if not figure.data:
        asked = {suffix(int(one)) for one in cell.config["labels"]}
        figure.update_layout(height=100, showlegend=False)
        figure.update_xaxes(visible=False)
        figure.update_yaxes(visible=False)
        text = NOTHING if labels in asked else "these settings do not ask for this number of labels"
        figure.add_annotation(x=0.5, y=0.5, xref="paper", yref="paper", text=text, showarrow=False)
    return figure
