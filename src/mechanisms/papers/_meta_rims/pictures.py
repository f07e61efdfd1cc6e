"""The figures of the recipe that are not stock: success over both phases, and which modules are active when."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

from mechanisms.lab.figures import INK, NOTHING, PALETTE, SYMBOLS, canvas, line, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import plotly.graph_objects

    from mechanisms.lab.records import Cell, Curve

ACTIONS = ("left", "right", "forward")


def draw_learning(variants: tuple[str, ...]) -> Callable[[Cell], plotly.graph_objects.Figure]:
    """Success over frames of training and, behind a line at the switch, of transfer; bands are Student intervals."""

    def draw(cell: Cell) -> plotly.graph_objects.Figure:
        figure = canvas(x="frames, of all updates", y="success of finished episodes", height=460)
        switch = 0.0
        for place, variant in _places(cell, variants):
            shown = False
            for phase in ("training", "transfer"):
                frames, mean, half = _band(cell.curves(f"{phase}_success", variant))
                if not frames:
                    continue
                if phase == "training":
                    switch = max(switch, frames[-1])
                else:
                    frames = [one + switch for one in frames]
                _add(figure, place, plain(variant), frames, mean, half, legend=not shown)
                shown = True
        if switch and any(cell.curves("transfer_success", variant) for variant in variants):
            figure.add_vline(x=switch, line={"color": INK[0], "width": 1, "dash": "dot"})
            figure.add_annotation(x=switch, y=0.02, yref="paper", text="the task changes", showarrow=False, xshift=58)
        return _or_nothing(figure)

    return draw


def draw_sixths(variants: tuple[str, ...]) -> Callable[[Cell], plotly.graph_objects.Figure]:
    """The six windows of each phase, whose mean is the area under the curve."""

    def draw(cell: Cell) -> plotly.graph_objects.Figure:
        figure = canvas(y="success of finished episodes", height=420)
        rows: list[str] = []
        for phase in ("training", "transfer"):
            rows += [f"{phase} {sixth}" for sixth in range(1, 7)]
        for place, variant in _places(cell, variants):
            x, y, spread = [], [], []
            for phase in ("training", "transfer"):
                runs = [list(one) for one in cell.values(f"{phase}_sixths", variant).values()]
                for sixth, values in enumerate(zip(*runs, strict=True), 1):
                    there = [float(one) for one in values if one is not None and math.isfinite(one)]
                    if there:
                        x.append(f"{phase} {sixth}")
                        y.append(statistics.fmean(there))
                        spread.append(_half(there))
            if x:
                figure.add_scatter(
                    x=x,
                    y=y,
                    error_y={
                        "array": [min(half, 1 - mean) for half, mean in zip(spread, y, strict=True)],
                        "arrayminus": [min(half, mean) for half, mean in zip(spread, y, strict=True)],
                        "thickness": 1.2,
                        "width": 5,
                    },
                    mode="markers",
                    name=plain(variant),
                    marker={"size": 9, "symbol": SYMBOLS[place % len(SYMBOLS)], "color": PALETTE[place % 8][0]},
                )
        figure.update_layout(scattermode="group", scattergap=0.4)
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=rows)
        return _or_nothing(figure)

    return draw


def draw_activation(variant: str) -> Callable[[Cell], plotly.graph_objects.Figure]:
    """Which modules are active at each step of one greedy episode, with the actions taken."""

    def draw(cell: Cell) -> plotly.graph_objects.Figure:
        records = [record for record in cell.of(variant) if record.metrics.get("activation")]
        figure = canvas(x="step of the episode", y="module", height=300, legend=False)
        if not records:
            return _or_nothing(figure)
        metrics: Mapping[str, Any] = min(records, key=lambda record: record.seed).metrics
        actions = [int(one) for one in metrics["activation_actions"]]
        table = _table(metrics["activation"], len(actions))
        figure.add_heatmap(
            x=list(range(1, len(actions) + 1)),
            y=list(range(1, len(table) + 1)),
            z=table,
            zmin=0,
            zmax=1,
            xgap=1,
            ygap=2,
            colorscale=[[0, "#e6e9ed"], [1, PALETTE[0][0]]],
            showscale=False,
            hovertemplate="step %{x}<br>module %{y}<br>active: %{z}<extra></extra>",
        )
        for step, action in enumerate(actions, 1):
            figure.add_annotation(x=step, y=len(table) + 0.85, text="←→↑"[action], showarrow=False)
        figure.update_xaxes(tick0=1, dtick=max(1, len(actions) // 12))
        figure.update_yaxes(tickvals=list(range(1, len(table) + 1)), range=[0.4, len(table) + 1.3])
        return figure

    return draw


def draw_activity(variants: tuple[str, ...]) -> Callable[[Cell], plotly.graph_objects.Figure]:
    """The share of steps at which each module is active, by the action taken, in the first seed's greedy episodes."""

    def draw(cell: Cell) -> plotly.graph_objects.Figure:
        figure = canvas(height=150 + 110 * len(variants), legend=False)
        rows, table = [], []
        for variant in variants:
            records = [record for record in cell.of(variant) if record.metrics.get("active_by_action")]
            if not records:
                continue
            first: Any = min(records, key=lambda record: record.seed).metrics["active_by_action"]
            for action, shares in zip(ACTIONS, _table(first, len(ACTIONS), by_row=True), strict=True):
                rows.append(f"{plain(variant)}: {action}")
                table.append(shares)
        if rows:
            figure.add_heatmap(
                x=[f"module {place}" for place in range(1, len(table[0]) + 1)],
                y=rows,
                z=table,
                zmin=0,
                zmax=1,
                colorscale="Viridis",
                colorbar={"title": "share"},
                hovertemplate="%{y}<br>%{x}<br>active: %{z:.2f}<extra></extra>",
            )
            figure.update_xaxes(type="category")
            figure.update_yaxes(type="category", autorange="reversed")
        return _or_nothing(figure)

    return draw


def _places(cell: Cell, variants: tuple[str, ...]) -> list[tuple[int, str]]:
    """The variants there are records of, each with its place in the palette: the same as in stock figures."""
    return [(cell.variants.index(variant), variant) for variant in variants if variant in cell.variants]


def _add(
    figure: plotly.graph_objects.Figure,
    place: int,
    name: str,
    x: list[float],
    mean: list[float],
    half: list[float],
    *,
    legend: bool,
) -> None:
    """A line with its band."""
    colour = PALETTE[place % len(PALETTE)][0]
    if any(half):
        low = [max(m - h, 0.0) for m, h in zip(mean, half, strict=True)]
        high = [min(m + h, 1.0) for m, h in zip(mean, half, strict=True)]
        figure.add_scatter(
            x=x + x[::-1],
            y=high + low[::-1],
            fill="toself",
            fillcolor=colour + "26",
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            legendgroup=name,
        )
    figure.add_scatter(
        x=x,
        y=mean,
        mode="lines+markers",
        name=name,
        legendgroup=name,
        showlegend=legend,
        line=line(place),
        marker={"color": colour, "size": 6, "symbol": SYMBOLS[place % len(SYMBOLS)], "maxdisplayed": 10},
    )


def _band(runs: Mapping[int, Curve]) -> tuple[list[float], list[float], list[float]]:
    """Frames, mean over seeds, and half the width of its 95 % Student interval (0 for one seed)."""
    points: dict[float, list[float]] = {}
    for run in runs.values():
        for step, value in zip(run.step, run.value, strict=True):
            if value is not None and math.isfinite(value):
                points.setdefault(step, []).append(value)
    frames = sorted(points)
    return frames, [statistics.fmean(points[one]) for one in frames], [_half(points[one]) for one in frames]


def _half(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    from mechanisms.lab.statistics import student_interval

    low, high = student_interval(values)
    return float(high - low) / 2


def _table(numbers: Sequence[float], count: int, *, by_row: bool = False) -> list[list[float]]:
    """Numbers stored row after row: `count` steps of all modules as modules x steps, or `count` rows as they are."""
    width = len(numbers) // count
    rows = [[float(one) for one in numbers[row * width : (row + 1) * width]] for row in range(count)]
    return rows if by_row else [list(column) for column in zip(*rows, strict=True)]


def _or_nothing(figure: plotly.graph_objects.Figure) -> plotly.graph_objects.Figure:
    if not figure.data:
        figure.add_annotation(x=0.5, y=0.5, xref="paper", yref="paper", text=NOTHING, showarrow=False)
    return figure
