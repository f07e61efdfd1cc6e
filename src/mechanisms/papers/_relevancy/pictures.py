"""The figures of the recipe that are not stock: the toy, accuracy over delays, and what the relevant set holds."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from mechanisms.lab.figures import NOTHING, PALETTE, canvas, line, plain

if TYPE_CHECKING:
    from collections.abc import Callable

    import plotly.graph_objects

    from mechanisms.lab.records import Cell

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")
KINDS = (
    ("untrained", "blanks"),
    ("untrained", "symbols"),
    ("trained", "blanks"),
    ("trained", "symbols"),
)


def draw_toy(cell: Cell) -> plotly.graph_objects.Figure:
    """Derivatives of the toy with and without attention, and the slopes that the theory gives."""
    figure = canvas(x="step t", y="log10 of the derivative of h_t by h_1", log_x=True, height=440)
    strengths = [float(one) for one in cell.config.get("strengths", (0.2, 0.3, 0.4))]
    for variant, dash in (("attention", "solid"), ("recurrence", "dot")):
        for place, strength in enumerate(strengths):
            runs = cell.curves(f"log10_derivative_{strength:g}", variant)
            if not runs:
                continue
            curve = next(iter(runs.values()))
            # What vanishes at once would flatten the rest.
            points = [
                (t, float(value))
                for t, value in zip(curve.step, curve.value, strict=True)
                if value is not None and value > -8
            ]
            figure.add_scatter(
                x=[t for t, _ in points],
                y=[value for _, value in points],
                mode="lines+markers",
                name=f"λ = {strength:g}, {'with' if variant == 'attention' else 'without'} attention",
                line=line(place, dash=dash),
                marker={"size": 6, "symbol": SYMBOLS[place], "color": PALETTE[place][0]},
            )
            if variant == "attention" and len(points) > 1:
                last, value = points[-1]
                first = last / 1000
                slope = strength / (1 - strength) - 1
                figure.add_scatter(
                    x=[first, last],
                    y=[value + 3 * -slope + 0.15, value + 0.15],
                    mode="lines",
                    name=f"slope {slope:.3f}",
                    line=line(place, width=1, dash="dash", color="#24292f"),
                )
    return _or_nothing(figure)


def draw_delays(variants: tuple[str, ...]) -> Callable[[Cell], plotly.graph_objects.Figure]:
    """Accuracy at the trained delay and at longer ones, mean over seeds."""

    def draw(cell: Cell) -> plotly.graph_objects.Figure:
        trained = int(cell.config["delay"])
        delays = (trained, *(int(one) for one in cell.config["test_delays"]))
        figure = canvas(x="delay", y="accuracy of the recalled symbols", log_x=True)
        for place, variant in enumerate(variants):
            metrics = ["accuracy", *(f"accuracy_at_{delay}" for delay in delays[1:])]
            values = [list(cell.values(metric, variant).values()) for metric in metrics]
            if not all(values):
                continue
            figure.add_scatter(
                x=list(delays),
                y=[statistics.fmean(one) for one in values],
                error_y={"array": [statistics.stdev(one) if len(one) > 1 else 0 for one in values], "thickness": 1},
                mode="lines+markers",
                name=plain(variant),
                line=line(place),
                marker={"size": 9, "symbol": SYMBOLS[place % len(SYMBOLS)], "color": PALETTE[place % 8][0]},
            )
        chance = [one for variant in variants for one in cell.values("chance", variant).values()]
        if chance:
            figure.add_scatter(
                x=[delays[0], delays[-1]], y=[chance[0]] * 2, mode="lines", name="chance", line=line(5, width=1)
            )
        figure.update_xaxes(tickvals=list(delays), ticktext=[str(delay) for delay in delays])
        return _or_nothing(figure)

    return draw


def draw_held(variants: tuple[str, ...]) -> Callable[[Cell], plotly.graph_objects.Figure]:
    """How often each step is in the relevant set when the marker is read, if it showed a symbol and if it did not."""

    def draw(cell: Cell) -> plotly.graph_objects.Figure:
        figure = canvas(x="step", height=140 + 120 * len(variants), legend=False)
        rows, table, steps = [], [], []
        for variant in variants:
            for when, what in KINDS:
                runs = cell.curves(f"held_{what}_{when}", variant).values()
                if not runs:
                    continue
                by_step: dict[int, list[float]] = {}
                for run in runs:
                    for step, value in zip(run.step, run.value, strict=True):
                        by_step.setdefault(int(step), []).append(value or 0.0)
                steps = list(range(max(len(steps), 1 + max(by_step))))
                rows.append(f"{plain(variant)}: {what}, {when}")
                table.append([statistics.fmean(by_step[step]) if step in by_step else None for step in steps])
        if rows:
            figure.add_heatmap(
                x=steps,
                y=rows,
                z=[[None if one is None else round(one, 3) for one in row] for row in table],
                zmin=0,
                zmax=1,
                colorscale="Viridis",
                colorbar={"title": "share"},
                hovertemplate="step %{x}<br>%{y}<br>in the set: %{z}<extra></extra>",
            )
        figure.update_yaxes(type="category", autorange="reversed")
        return _or_nothing(figure)

    return draw


def _or_nothing(figure: plotly.graph_objects.Figure) -> plotly.graph_objects.Figure:
    if not figure.data:
        figure.add_annotation(x=0.5, y=0.5, xref="paper", yref="paper", text=NOTHING, showarrow=False)
    return figure
