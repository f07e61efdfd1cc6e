"""The figures of recall and images: what is kept over delays, which modules work when, accuracy over resolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mechanisms.lab.figures import NOTHING, PALETTE, SYMBOLS, canvas, line, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import plotly.graph_objects

    from mechanisms.lab.records import Cell


def draw_retention(cell: Cell) -> plotly.graph_objects.Figure:
    """Accuracy above chance at each delay, divided by that at the trained one, by variant."""
    figure = canvas(x="delay at test, in steps", y="share of the accuracy that is kept", log_x=True)
    delays: list[int] = []
    for place, variant in enumerate(cell.variants):
        rows: list[Any] = [record.metrics for record in cell.of(variant)]
        config: Any = cell.of(variant)[0].config
        delays = [int(config["delay"]), *(int(one) for one in config["test_delays"])]
        names = ["accuracy", *(f"accuracy_at_{delay}" for delay in delays[1:])]
        # As in the metric: a network that has not learned the task keeps nothing of it, and loses nothing.
        learned = [row for row in rows if row.get("retention") is not None and row["retention"] == row["retention"]]
        if not learned:
            continue
        points = [
            [(row[name] - row["chance"]) / (row["accuracy"] - row["chance"]) for row in learned] for name in names
        ]
        _with_intervals(figure, delays, points, plain(variant), place)
    figure.update_xaxes(tickvals=delays, ticktext=[str(delay) for delay in delays])
    figure.update_yaxes(range=[-0.25, 1.25])  # two or three seeds have intervals far beyond
    return or_nothing(figure)


def draw_delays(cell: Cell) -> plotly.graph_objects.Figure:
    """Accuracy at each delay, by variant."""
    figure = canvas(x="delay at test, in steps", y="accuracy of the recalled symbols", log_x=True)
    delays: list[int] = []
    chance = None
    for place, variant in enumerate(cell.variants):
        records = cell.of(variant)
        config: Any = records[0].config
        delays = [int(config["delay"]), *(int(one) for one in config["test_delays"])]
        names = ["accuracy", *(f"accuracy_at_{delay}" for delay in delays[1:])]
        points = [list(cell.values(name, variant).values()) for name in names]
        chance = next(iter(cell.values("chance", variant).values()), chance)
        _with_intervals(figure, delays, points, plain(variant), place)
    if chance is not None:
        figure.add_hline(y=chance, line={"dash": "dot", "width": 1}, annotation_text="chance")
    figure.update_xaxes(tickvals=delays, ticktext=[str(delay) for delay in delays])
    figure.update_yaxes(range=[0, 1.03])
    return or_nothing(figure)


def draw_activation(variant: str, seeds: int = 3) -> Callable[[Cell], plotly.graph_objects.Figure]:
    """How often each module is updated at each step, in the first seeds of a variant."""

    def draw(cell: Cell) -> plotly.graph_objects.Figure:
        from plotly.subplots import make_subplots

        records = [record for record in cell.of(variant) if "activation" in record.metrics][:seeds]
        if not records:
            return or_nothing(canvas())
        figure = make_subplots(
            rows=len(records),
            shared_xaxes=True,
            vertical_spacing=0.12,
            subplot_titles=[f"seed {record.seed}" for record in records],
            figure=canvas(legend=False),
        )
        for row, record in enumerate(records, start=1):
            config: Any = record.config
            n, delay, modules = (int(config[name]) for name in ("n", "shown_delay", "modules"))
            flat: Any = record.metrics["activation"]
            steps = len(flat) // modules
            figure.add_heatmap(
                z=[flat[place * steps : (place + 1) * steps] for place in range(modules)],
                x=list(range(1, steps + 1)),
                y=[str(module) for module in range(modules)],
                zmin=0,
                zmax=1,
                colorscale="Blues",
                showscale=row == 1,
                colorbar={"title": "updated", "len": 1 / len(records), "y": 1, "yanchor": "top"},
                xgap=1,
                ygap=1,
                hovertemplate="step %{x}, module %{y}: updated in %{z:.0%} of the sequences<extra></extra>",
                row=row,
                col=1,
            )
            for end in (n, n + delay - 1):  # the marker asks for the symbols
                figure.add_vline(x=end + 0.5, line={"width": 2, "color": PALETTE[1][0]}, row=row, col=1)
            figure.update_yaxes(title="module", type="category", autorange="reversed", row=row, col=1)
        figure.update_xaxes(title="step: symbols are read, blanks pass, symbols are asked for", row=len(records), col=1)
        figure.update_layout(height=60 + 170 * len(records), margin={"t": 30})
        return figure

    return draw


def draw_resolutions(cell: Cell) -> plotly.graph_objects.Figure:
    """Accuracy at each size, by variant; dotted with the epoch that is best on validation images of that size."""
    figure = canvas(x="height and width of the test images", y="accuracy", height=440)
    sizes: list[int] = []
    for place, variant in enumerate(cell.variants):
        config: Any = cell.of(variant)[0].config
        sizes = [int(config["size"]), *(int(one) for one in config["test_sizes"])]
        points = [list(cell.values(f"accuracy_{size}", variant).values()) for size in sizes]
        _with_intervals(figure, sizes, points, plain(variant), place)
        tuned = [points[0], *(list(cell.values(f"tuned_{size}", variant).values()) for size in sizes[1:])]
        if all(tuned):
            figure.add_scatter(
                x=sizes,
                y=[sum(values) / len(values) for values in tuned],
                mode="lines",
                name=f"{plain(variant)}, selected at each size",
                line=line(place, dash="dot", width=1.4),
                showlegend=False,
            )
    figure.update_xaxes(tickvals=sizes)
    figure.update_yaxes(range=[0, 1.03])
    return or_nothing(figure)


def draw_learning(
    curve: str, y: str, variants: Sequence[str] = (), *, x: str = "update", log_y: bool = False
) -> Callable[[Cell], plotly.graph_objects.Figure]:
    """A curve over training, mean over seeds with its 95 % Student interval."""

    def draw(cell: Cell) -> plotly.graph_objects.Figure:
        from mechanisms.lab.statistics import student_interval

        figure = canvas(x=x, y=y, log_y=log_y)
        for place, variant in enumerate(variants or cell.variants):
            by_step: dict[float, list[float]] = {}
            for run in cell.curves(curve, variant).values():
                for step, value in zip(run.step, run.value, strict=True):
                    if value is not None:
                        by_step.setdefault(step, []).append(value)
            if not by_step:
                continue
            steps = sorted(by_step)
            if all(len(by_step[step]) > 1 for step in steps):
                ends = [student_interval(by_step[step]) for step in steps]
                figure.add_scatter(
                    x=steps + steps[::-1],
                    y=[float(high) for _, high in ends] + [float(low) for low, _ in ends[::-1]],
                    fill="toself",
                    fillcolor=PALETTE[place % len(PALETTE)][0] + "26",
                    line={"width": 0},
                    hoverinfo="skip",
                    showlegend=False,
                )
            figure.add_scatter(
                x=steps,
                y=[sum(by_step[step]) / len(by_step[step]) for step in steps],
                mode="lines+markers",
                name=plain(variant),
                line=line(place),
                marker={"size": 7, "symbol": SYMBOLS[place % len(SYMBOLS)], "maxdisplayed": 14},
            )
        return or_nothing(figure)

    return draw


def _with_intervals(
    figure: plotly.graph_objects.Figure, x: Sequence[int], points: Sequence[Sequence[float]], name: str, place: int
) -> None:
    """A line of means with 95 % Student intervals, where every point has values."""
    from mechanisms.lab.statistics import student_interval

    if not points or not all(points):
        return
    halves = []
    for values in points:
        low, high = student_interval(values) if len(values) > 1 else (0.0, 0.0)
        halves.append(float(high - low) / 2)
    figure.add_scatter(
        x=list(x),
        y=[sum(values) / len(values) for values in points],
        error_y={"array": halves, "thickness": 1.2, "width": 4},
        mode="lines+markers",
        name=name,
        line=line(place),
        marker={"size": 8, "symbol": SYMBOLS[place % len(SYMBOLS)]},
    )


def or_nothing(figure: plotly.graph_objects.Figure) -> plotly.graph_objects.Figure:
    """The figure, or one that says that there are no records."""
    if not figure.data:
        figure.update_xaxes(visible=False)
        figure.update_yaxes(visible=False)
        figure.add_annotation(x=0.5, y=0.5, xref="paper", yref="paper", text=NOTHING, showarrow=False)
    return figure
