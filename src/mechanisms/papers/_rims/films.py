"""The figures of bouncing balls: predicted frames beside true ones, and the error of each frame of a roll-out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mechanisms.lab.figures import canvas, line, plain
from mechanisms.papers._rims.pictures import or_nothing
from mechanisms.papers._rims.video import SHOWN

if TYPE_CHECKING:
    import plotly.graph_objects

    from mechanisms.lab.records import Cell

GAP = 1  # pixels between frames


def draw_frames(cell: Cell) -> plotly.graph_objects.Figure:
    """One film of the first seed: what came (top row), and what each network predicted from its own predictions."""
    figure = canvas(legend=False)
    rows: list[tuple[str, list[list[list[float]]]]] = []
    for variant in cell.variants:
        record = cell.of(variant)[0]
        if "frames" not in record.metrics:
            continue
        frames = [_frame(text) for text in str(record.metrics["frames"]).split("\n")]
        rows = rows or [("true", frames[::2])]
        rows.append((plain(variant), frames[1::2]))
    if not rows:
        return or_nothing(figure)
    side, count = len(rows[0][1][0]), len(rows[0][1])
    stride = side + GAP
    table: list[list[float | None]] = [[None] * (count * stride - GAP) for _ in range(len(rows) * stride - GAP)]
    for row, (_, frames) in enumerate(rows):
        for column, frame in enumerate(frames):
            for y, pixels in enumerate(frame):
                start = column * stride
                table[row * stride + y][start : start + side] = pixels
    figure.add_heatmap(
        z=table, zmin=0, zmax=1, colorscale="Greys", reversescale=True, showscale=False, hoverinfo="skip"
    )
    middle = (side - 1) / 2
    figure.update_xaxes(
        tickvals=[column * stride + middle for column in range(count)],
        ticktext=[f"frame {step}" for step in SHOWN[:count]],
        showgrid=False,
        zeroline=False,
        constrain="domain",
    )
    figure.update_yaxes(
        tickvals=[row * stride + middle for row in range(len(rows))],
        ticktext=[name for name, _ in rows],
        autorange="reversed",
        scaleanchor="x",
        showgrid=False,
        zeroline=False,
    )
    figure.update_layout(height=60 + 150 * len(rows))
    return figure


def draw_difference(cell: Cell, first: str = "rims", second: str = "lstm") -> plotly.graph_objects.Figure:
    """Cross-entropy of each frame of a roll-out, RIMs minus LSTM, with 95 % Student intervals over seeds."""
    from mechanisms.lab.statistics import student_interval

    figure = canvas(x="frame of the roll-out", y="cross-entropy of a pixel, RIMs minus LSTM")
    config: Any = cell.config
    for place, balls in enumerate(config.get("test_balls", ())):
        name = f"bce_{balls}_by_step"
        one, other = cell.curves(name, first), cell.curves(name, second)
        seeds = sorted(set(one) & set(other))
        if not seeds:
            continue
        steps = one[seeds[0]].step
        apart = [
            [(one[seed].value[at] or math.nan) - (other[seed].value[at] or math.nan) for seed in seeds]
            for at in range(len(steps))
        ]
        halves = []
        for values in apart:
            low, high = student_interval(values) if len(values) > 1 else (0.0, 0.0)
            halves.append(float(high - low) / 2)
        figure.add_scatter(
            x=[step + 0.1 * place for step in steps],
            y=[sum(values) / len(values) for values in apart],
            error_y={"array": halves, "thickness": 1.2, "width": 4},
            mode="lines+markers",
            name=f"{balls} balls",
            line=line(place),
        )
    if figure.data:
        figure.add_hline(y=0, line={"width": 1, "dash": "dot"})
    return or_nothing(figure)


def _frame(text: str) -> list[list[float]]:
    side = math.isqrt(len(text))
    return [[int(pixel) / 9 for pixel in text[row * side : (row + 1) * side]] for row in range(side)]
