"""Pictures of decision boundaries, and responses over training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mechanisms._base.extras import require
from mechanisms.lab import Figure
from mechanisms.lab.figures import INK, NOTHING, PALETTE, canvas, line
from mechanisms.lab.records import Cell
from mechanisms.papers._starvation.moons import FRAME, LARGE, PIXELS, RESPONSES, SHOWN, moons

if TYPE_CHECKING:
    import plotly.graph_objects

COLUMNS = 4


def boundaries(variants: Sequence[str], title: str, caption: str = "") -> Figure:
    """A figure with one picture for each variant: its training set and the regions of the two classes, one seed."""
    return Figure(
        title,
        partial(_draw_boundaries, tuple(variants)),
        caption or "The network of the first seed, with its training set. White is where it is undecided.",
    )


def _draw_boundaries(variants: tuple[str, ...], cell: Cell) -> plotly.graph_objects.Figure:
    subplots = require("plotly.subplots", "lab")
    columns = min(COLUMNS, len(variants))
    rows = math.ceil(len(variants) / columns)
    figure = canvas(height=60 + 260 * rows, legend=False)
    layout = figure.layout.to_plotly_json()
    figure = subplots.make_subplots(
        rows, columns, subplot_titles=variants, horizontal_spacing=0.02, vertical_spacing=0.3 / (rows + 1)
    )
    keep = ("template", "font", "paper_bgcolor", "plot_bgcolor", "height", "showlegend")
    figure.update_layout({name: layout[name] for name in keep if name in layout})
    figure.update_layout(margin={"l": 12, "r": 16, "t": 34, "b": 12})
    axes = [[round(low + place * (high - low) / (PIXELS - 1), 4) for place in range(PIXELS)] for low, high in FRAME]
    for place, variant in enumerate(variants):
        where = {"row": place // columns + 1, "col": place % columns + 1}
        records = cell.of(variant)
        if not records:
            figure.add_annotation(x=0, y=0, text=NOTHING, showarrow=False, **where)
            continue
        record = min(records, key=lambda record: record.seed)
        values: Any = record.metrics["picture"]
        figure.add_contour(
            x=axes[0],
            y=axes[1],
            z=[values[row * PIXELS : (row + 1) * PIXELS] for row in range(PIXELS)],
            zmin=-4,
            zmax=4,
            contours={"start": -4, "end": 4, "size": 0.5},
            line={"width": 0},
            colorscale=[[0, PALETTE[1][0]], [0.5, "#ffffff"], [1, PALETTE[0][0]]],
            opacity=0.55,
            showscale=False,
            hoverinfo="skip",
            **where,
        )
        figure.add_contour(
            x=axes[0],
            y=axes[1],
            z=[values[row * PIXELS : (row + 1) * PIXELS] for row in range(PIXELS)],
            contours={"start": 0, "end": 0, "size": 1, "coloring": "none"},
            line={"width": 2.2, "color": INK[0]},
            showscale=False,
            hoverinfo="skip",
            **where,
        )
        settings: Any = record.config
        margin = settings["margin"] * (1 + LARGE[variant].margin)
        x, y = moons(settings["n"], settings["noise"], margin, record.seed)
        for sign, colour in ((1, PALETTE[0][0]), (-1, PALETTE[1][0])):
            figure.add_scatter(
                x=x[y == sign, 0].round(3).tolist(),
                y=x[y == sign, 1].round(3).tolist(),
                mode="markers",
                marker={"size": 3.5, "color": colour, "line": {"width": 0.3, "color": "#ffffff"}},
                hoverinfo="skip",
                **where,
            )
    figure.update_xaxes(showticklabels=False, showgrid=False, zeroline=False, range=list(FRAME[0]))
    figure.update_yaxes(showticklabels=False, showgrid=False, zeroline=False, range=list(FRAME[1]))
    return figure


def _draw_responses(cell: Cell) -> plotly.graph_objects.Figure:
    figure = canvas(x="step", y="|response|", log_x=True, log_y=True)
    for place, variant in enumerate(RESPONSES):
        for feature in SHOWN:
            curve = next(iter(cell.curves(f"z_{feature}", variant).values()), None)
            if curve is None:
                continue
            shown = [(s, v) for s, v in zip(curve.step, curve.value, strict=True) if s > 0 and v]
            figure.add_scatter(
                x=[s for s, _ in shown],
                y=[v for _, v in shown],
                name=f"{variant}, feature {feature}",
                line=line(place, dash="solid" if feature == SHOWN[0] else "dot"),
                mode="lines",
            )
    return figure


RESPONSES_FIGURE = Figure(
    "Responses to two features over training (figure 2)",
    _draw_responses,
    "Features of the tangent kernel at initialisation, in the order of their strengths; first seed.",
)
