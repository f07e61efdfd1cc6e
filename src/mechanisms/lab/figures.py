"""Stock figures for recipes: bars with intervals, and curves with bands, drawn alike for every paper.

Colours come from a palette that people with any colour vision can tell apart (after Okabe and Ito); the report swaps
in lighter ones on a dark page. Variants differ by dash and marker too, never by colour alone.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mechanisms._base.extras import require
from mechanisms.lab.paper import Figure
from mechanisms.lab.records import Cell, Curve

if TYPE_CHECKING:
    import plotly.graph_objects

# (on a light page, on a dark page): the ink of texts and error bars, then one colour for each variant.
INK = ("#24292f", "#e4e7eb")
PALETTE = (
    ("#0072b2", "#56aee8"),
    ("#d55e00", "#ff8f4d"),
    ("#009e73", "#2cc79b"),
    ("#b0578d", "#e39ac5"),
    ("#b8860b", "#f0c04a"),
    ("#5a6a7a", "#a5b1bd"),
    ("#4b3fa8", "#a79cf2"),
    ("#7a4a1e", "#d3a273"),
)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "triangle-down")
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", sans-serif'
NOTHING = "no records yet"


def plain(text: str) -> str:
    """Text for a Plotly label, title or hover that is shown as it is: Plotly would read some HTML tags in it.

    >>> plain("a < b & <b>c</b>")
    'a &lt; b &amp; &lt;b&gt;c&lt;/b&gt;'
    """
    return html.escape(text, quote=False)


def bars(metric: str, title: str = "", *, variants: Sequence[str] = (), caption: str = "") -> Figure:
    """A figure of one metric: a bar for each variant's mean, its 95 % Student interval, and a point for each seed.

    Args:
        metric: name of the metric; lists (one number per unit) count with their mean.
        title: heading; the metric's name in words by default.
        variants: which variants, in this order; those without records are shown as such. All that have it by default.
        caption: what to see in it; says what is drawn by default.

    >>> bars("worst_group_accuracy").name
    'worst group accuracy'
    """
    return Figure(
        name=title or metric.replace("_", " "),
        draw=partial(_draw_bars, metric, tuple(variants)),
        caption=caption or "Mean over seeds with its 95 % Student interval; each point is one seed.",
    )


def curves(
    name: str,
    title: str = "",
    *,
    variants: Sequence[str] = (),
    x: str = "step",
    log_x: bool = False,
    log_y: bool = False,
    caption: str = "",
) -> Figure:
    """A figure of one logged curve: each variant's mean over seeds, and a band of one standard deviation.

    Args:
        name: name under which the runs logged it.
        title: heading; the curve's name in words by default.
        variants: which variants, in this order; those without records are shown as such. All that have it by default.
        x: what the runs logged as the step, for the axis.
        log_x, log_y: logarithmic axes.
        caption: what to see in it; says what is drawn by default.

    >>> curves("flip_rate").name
    'flip rate'
    """
    return Figure(
        name=title or name.replace("_", " "),
        draw=partial(_draw_curves, name, tuple(variants), {"x": x, "log_x": log_x, "log_y": log_y}),
        caption=caption or "Mean over seeds; the band is one standard deviation to either side.",
    )


def _draw_bars(metric: str, variants: tuple[str, ...], cell: Cell) -> plotly.graph_objects.Figure:
    go = require("plotly.graph_objects", "lab")
    order = variants or tuple(v for v in cell.variants if _numbers(cell.values(metric, v)))
    figure = go.Figure()
    for row, variant in enumerate(order):
        colour, symbol, _ = _look(variant, cell)
        values = _numbers(cell.values(metric, variant))
        if not values:
            figure.add_annotation(x=0, y=row, xref="paper", xanchor="left", text=NOTHING, showarrow=False, xshift=6)
            continue
        mean, half = _student(list(values.values()))
        interval = "" if half is None else f" [{mean - half:.4g}, {mean + half:.4g}]"
        runs = "1 seed" if len(values) == 1 else f"{len(values)} seeds"
        figure.add_bar(
            x=[mean],
            y=[row],
            orientation="h",
            width=0.62,
            marker={"color": colour + "38", "line": {"color": colour, "width": 1.5}},
            error_x={
                "array": [half or 0.0],
                "color": INK[0],
                "thickness": 1.6,
                "width": 7,
                "visible": half is not None,
            },
            text=[f"<b>{plain(variant)}</b><br>mean {mean:.4g}{interval}<br>{runs}"],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
            name=plain(variant),
        )
        # Spread across the bar's width, in the order of the seeds, so that equal values stay visible.
        spread = [row + 0.44 * ((i + 0.5) / len(values) - 0.5) for i in range(len(values))]
        figure.add_scatter(
            x=list(values.values()),
            y=spread,
            mode="markers",
            marker={"color": colour, "size": 6, "symbol": symbol, "opacity": 0.75},
            text=[f"<b>{plain(variant)}</b><br>seed {seed}: {value:.4g}" for seed, value in values.items()],
            hovertemplate="%{text}<extra></extra>",
            name=plain(variant),
        )
    labels = [plain(variant) for variant in order]
    figure.update_layout(_layout(), showlegend=False, height=92 + 54 * max(1, len(order)), bargap=0.3)
    figure.update_xaxes(title=plain(metric.replace("_", " ")))
    figure.update_yaxes(tickvals=list(range(len(order))), ticktext=labels, range=[len(order) - 0.5, -0.5])
    figure.update_yaxes(showgrid=False, zeroline=False, ticklabelstandoff=6)
    if not figure.data:
        _say_nothing(figure)
    return figure


def canvas(
    *, x: str = "", y: str = "", log_x: bool = False, log_y: bool = False, height: int = 380, legend: bool = True
) -> plotly.graph_objects.Figure:
    """An empty Plotly figure in the look of all figures, for a recipe that draws something of its own.

    Args:
        x, y: titles of the axes.
        log_x, log_y: logarithmic axes.
        height: in pixels; the width is the page's.
        legend: whether there is one.

    >>> figure = canvas(x="time", y="error", log_x=True)
    >>> _ = figure.add_scatter(x=[1, 10], y=[0.5, 0.1], name="theory", line=line(0))
    >>> figure.layout.xaxis.type
    'log'
    """
    go = require("plotly.graph_objects", "lab")
    figure = go.Figure()
    figure.update_layout(_layout(), showlegend=legend, height=height)
    figure.update_xaxes(title=plain(x), type="log" if log_x else "linear")
    figure.update_yaxes(title=plain(y), type="log" if log_y else "linear")
    return figure


def line(place: int, **changes: Any) -> dict[str, Any]:
    """Colour, width and dash of the line at a place of the palette, for `line=` of a Plotly trace.

    >>> line(1, width=1)["width"]
    1
    """
    look = {"color": PALETTE[place % len(PALETTE)][0], "width": 2.2, "dash": DASHES[place % len(DASHES)]}
    return look | changes


def _draw_curves(
    name: str, variants: tuple[str, ...], axes: Mapping[str, Any], cell: Cell
) -> plotly.graph_objects.Figure:
    figure = canvas(y=name.replace("_", " "), **axes)
    drawn = False
    for variant in variants or tuple(v for v in cell.variants if cell.curves(name, v)):
        colour, symbol, dash = _look(variant, cell)
        label = plain(variant)
        runs = cell.curves(name, variant)
        steps, mean, spread, count = _band(runs)
        look = {
            "mode": "lines+markers",
            "line": {"color": colour, "width": 2.2, "dash": dash},
            "marker": {"color": colour, "size": 7, "symbol": symbol, "maxdisplayed": 14},
            "legendgroup": variant,
        }
        if not steps:
            figure.add_scatter(x=[None], y=[None], name=f"{label} ({NOTHING})", **look)
            continue
        drawn = True
        if max(count) > 1:
            figure.add_scatter(
                x=steps + steps[::-1],
                y=[m + s for m, s in zip(mean, spread, strict=True)]
                + [m - s for m, s in zip(mean[::-1], spread[::-1], strict=True)],
                fill="toself",
                fillcolor=colour + "26",
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                legendgroup=variant,
                name=label,
            )
        figure.add_scatter(
            x=steps,
            y=mean,
            name=label,
            text=[
                f"<b>{label}</b> {m:.4g}" + (f" ± {s:.2g} ({n} seeds)" if n > 1 else " (1 seed)")
                for m, s, n in zip(mean, spread, count, strict=True)
            ],
            hovertemplate="%{text}<extra></extra>",
            **look,
        )
    figure.update_layout(hovermode="x unified")
    if not drawn:
        _say_nothing(figure)
    return figure


def _look(variant: str, cell: Cell) -> tuple[str, str, str]:
    """Colour, marker and dash of a variant: the same in all figures of a cell, whichever variants each one shows."""
    there = cell.variants
    place = there.index(variant) if variant in there else len(there)
    return PALETTE[place % len(PALETTE)][0], SYMBOLS[place % len(SYMBOLS)], DASHES[place % len(DASHES)]


def _numbers(values: Mapping[int, Any]) -> dict[int, float]:
    """The finite numbers by seed; a list counts with the mean of its units, text does not count."""
    found = {}
    for seed, value in values.items():
        units = [unit for unit in (value if isinstance(value, list | tuple) else [value]) if unit is not None]
        if units and not any(isinstance(unit, str) for unit in units):
            mean = math.fsum(float(unit) for unit in units) / len(units)
            if math.isfinite(mean):
                found[seed] = mean
    return found


def _student(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half the width of its 95 % Student interval (None for a single value)."""
    from mechanisms.lab.statistics import student_interval

    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    low, high = student_interval(values)
    return mean, float(high - low) / 2


def _band(runs: Mapping[int, Curve]) -> tuple[list[float], list[float], list[float], list[int]]:
    """Steps, mean, standard deviation and number of seeds; curves that were thinned differently are interpolated.

    A curve counts between its first and its last finite value only, so that a run that diverged is not continued.
    """
    import numpy as np

    finite = []
    for curve in runs.values():
        points = [(s, v) for s, v in zip(curve.step, curve.value, strict=True) if v is not None and math.isfinite(v)]
        if points:
            finite.append(np.array(points).T)
    if not finite:
        return [], [], [], []
    steps = np.unique(np.concatenate([points[0] for points in finite]))
    table = np.stack([np.interp(steps, x, y, left=np.nan, right=np.nan) for x, y in finite])
    present = np.isfinite(table)
    steps, table, present = (part[..., present.any(axis=0)] for part in (steps, table, present))
    count = present.sum(axis=0)
    mean = np.nansum(table, axis=0) / count
    squares = np.nansum((table - mean) ** 2, axis=0)
    spread = np.sqrt(squares / np.maximum(count - 1, 1))
    return steps.tolist(), mean.tolist(), spread.tolist(), count.tolist()


def _say_nothing(figure: plotly.graph_objects.Figure) -> None:
    """An empty figure says why, in place of axes without values."""
    figure.layout.annotations = ()
    figure.update_layout(height=120, showlegend=False)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.add_annotation(x=0.5, y=0.5, xref="paper", yref="paper", text=NOTHING, showarrow=False, font={"size": 15})


def _layout() -> dict[str, Any]:
    """What all stock figures share; on the report's pages grid and text take the page's colours."""
    return {
        "template": "plotly_white",
        "font": {"family": FONT, "size": 13},
        "margin": {"l": 12, "r": 16, "t": 12, "b": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
        "xaxis": {"automargin": True},
        "yaxis": {"automargin": True},
    }
