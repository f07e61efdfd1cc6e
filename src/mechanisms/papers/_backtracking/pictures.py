"""The figures: accuracy over delay, which inputs get a gradient, and what a trained network looks at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mechanisms.lab.figures import NOTHING, SYMBOLS, canvas, line, plain

if TYPE_CHECKING:
    import plotly.graph_objects

    from mechanisms.lab.records import Cell


def draw_transfer(cell: Cell) -> plotly.graph_objects.Figure:
    """Accuracy over the delay at test, by model; the trained delay is the leftmost."""
    from mechanisms.lab.statistics import student_interval

    figure = canvas(x="delay at test, in steps", y="accuracy of the recalled symbols", log_x=True, height=440)
    chance = None
    for place, variant in enumerate(cell.variants):
        records = cell.of(variant)
        found: list[Any] = [record.metrics for record in records]
        names = sorted(
            (name for name in found[0] if name.startswith("accuracy_at_")),
            key=lambda name: int(name.rsplit("_", 1)[1]),
        )
        delays = [int(records[0].config["delay"]), *(int(name.rsplit("_", 1)[1]) for name in names)]
        chance = found[0]["chance"]
        points = [[float(metrics[name]) for metrics in found] for name in ("accuracy", *names)]
        halves = []
        for values in points:
            low, high = student_interval(values) if len(values) > 1 else (0.0, 0.0)
            halves.append(float(high - low) / 2)
        figure.add_scatter(
            x=delays,
            y=[sum(values) / len(values) for values in points],
            error_y={"array": halves, "thickness": 1.2, "width": 4},
            mode="lines+markers",
            name=plain(variant),
            line=line(place),
            marker={"size": 8, "symbol": SYMBOLS[place % len(SYMBOLS)]},
        )
        figure.update_xaxes(tickvals=delays)
    if chance is None:
        return _nothing(figure)
    figure.add_hline(y=chance, line={"dash": "dot", "width": 1}, annotation_text="chance")
    figure.update_yaxes(range=[0, 1.03])
    return figure


def draw_reach(cell: Cell) -> plotly.graph_objects.Figure:
    """For the loss at a step (rows), whether the input of a step (columns) gets a gradient; first seed."""
    from plotly.subplots import make_subplots

    variants = [variant for variant in cell.variants if cell.of(variant)]
    if not variants:
        return _nothing(canvas())
    figure = make_subplots(
        rows=len(variants),
        shared_xaxes=True,
        subplot_titles=variants,
        figure=canvas(legend=False),
        vertical_spacing=0.05,
    )
    for row, variant in enumerate(variants, start=1):
        record = cell.of(variant)[0]
        cells = [[int(one) for one in text] for text in str(record.metrics["map"]).split("\n")]
        every = int(record.config["map_every"])
        figure.add_heatmap(
            z=cells,
            x=list(range(1, len(cells[0]) + 1)),
            y=[(place + 1) * every for place in range(len(cells))],
            colorscale=[[0, "#e9edf1"], [1, "#0072b2"]],
            zmin=0,
            zmax=1,
            showscale=False,
            hovertemplate="loss at step %{y}, input of step %{x}: %{z}<extra></extra>",
            row=row,
            col=1,
        )
        figure.update_yaxes(title="loss at step" if row == (len(variants) + 1) // 2 else "", row=row, col=1)
    figure.update_xaxes(title="input of step", row=len(variants), col=1)
    figure.update_layout(height=40 + 150 * len(variants), margin={"t": 30})
    return figure


def draw_attention(cell: Cell) -> plotly.graph_objects.Figure:
    """Weights of each step over the stored states, by when these were stored; first seed of each trained network."""
    from plotly.subplots import make_subplots

    variants = [v for v in cell.variants if cell.of(v) and "attention" in cell.of(v)[0].metrics]
    if not variants:
        return _nothing(canvas())
    figure = make_subplots(
        cols=len(variants),
        shared_yaxes=True,
        subplot_titles=variants,
        figure=canvas(legend=False),
        horizontal_spacing=0.03,
    )
    for column, variant in enumerate(variants, start=1):
        record = cell.of(variant)[0]
        metrics: Any = record.metrics
        rows = _rows(metrics["attention"], int(metrics["attention_steps"]))
        every = int(record.config["k_att"])
        last = int(record.config["delay"]) + (2 * int(record.config["n"]) if record.config["task"] != "adding" else 0)
        figure.add_heatmap(
            z=rows,
            x=[place * every for place in range(len(rows[0]))],
            y=list(range(last - len(rows) + 1, last + 1)),
            colorscale="Blues",
            zmin=0,
            zmax=1,
            showscale=column == len(variants),
            hovertemplate="step %{y} looks at the state after step %{x}: %{z}<extra></extra>",
            row=1,
            col=column,
        )
        figure.update_xaxes(title="stored after step", row=1, col=column)
    figure.update_yaxes(autorange="reversed")
    figure.update_yaxes(title="step", row=1, col=1)
    figure.update_layout(height=430, margin={"t": 30})
    return figure


def _rows(flat: Any, steps: int) -> list[list[float]]:
    width = len(flat) // steps
    return [list(flat[row * width : (row + 1) * width]) for row in range(steps)]


def _nothing(figure: plotly.graph_objects.Figure) -> plotly.graph_objects.Figure:
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.add_annotation(x=0.5, y=0.5, xref="paper", yref="paper", text=NOTHING, showarrow=False, font={"size": 15})
    return figure
