"""The figures of the recipe on Zoneout."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mechanisms.lab.figures import SYMBOLS, canvas, line
from mechanisms.lab.paper import Figure
from mechanisms.lab.records import Cell

if TYPE_CHECKING:
    import plotly.graph_objects


def learning_curves(variants: Sequence[str], measure: str) -> Callable[[Cell], plotly.graph_objects.Figure]:
    """Validation (whole lines) and training (dotted) of some variants, means over seeds; for `Figure`."""
    return partial(_draw_learning, tuple(variants), measure)


def _draw_learning(variants: tuple[str, ...], measure: str, cell: Cell) -> plotly.graph_objects.Figure:
    words = "bits per character" if measure == "bpc" else measure
    figure = canvas(x="update", y=words, height=460)
    for variant in variants:
        # The colour that the other figures of the cell give it.
        place = cell.variants.index(variant) if variant in cell.variants else len(cell.variants)
        for part, look in (("validation", {"dash": "solid"}), ("train", {"dash": "dot", "width": 1.6})):
            steps, means = mean_curve(cell, f"{part}_{measure}", variant)
            figure.add_scatter(
                x=steps or [None],
                y=means or [None],
                name=f"{variant}, {part}" + ("" if steps else " (no records yet)"),
                mode="lines+markers",
                line=line(place, **look),
                marker={"symbol": SYMBOLS[place % len(SYMBOLS)], "size": 6, "maxdisplayed": 8},
                legendgroup=variant,
                hovertemplate="%{x}: %{y:.3f}",
            )
    figure.update_layout(hovermode="closest")
    return figure


def mean_curve(cell: Cell, name: str, variant: str) -> tuple[list[float], list[float]]:
    """Steps that all seeds logged, and the means there: a seed that ended early ends the curve."""
    runs = [dict(zip(curve.step, curve.value, strict=True)) for curve in cell.curves(name, variant).values()]
    if not runs:
        return [], []
    means = {}
    for step in sorted(set(runs[0]).intersection(*runs[1:])):
        values = [value for run in runs if (value := run[step]) is not None and math.isfinite(value)]
        if len(values) == len(runs):
            means[step] = math.fsum(values) / len(values)
    return list(means), list(means.values())


def in_powers(figure: Figure) -> Figure:
    """The same with powers of ten on its axis: a gradient of 10 n says nothing."""
    return replace(figure, draw=partial(_draw_in_powers, figure.draw))


def _draw_in_powers(draw: Callable[[Cell], plotly.graph_objects.Figure], cell: Cell) -> plotly.graph_objects.Figure:
    return draw(cell).update_yaxes(exponentformat="power")


def draw_time_scales(cell: Cell) -> plotly.graph_objects.Figure:
    """Steps until half of a unit's value (or of the gradient on its direct path) is gone, by rate; closed form."""
    figure = canvas(x="zoneout rate of the memory", y="steps to one half", log_y=True)
    rates = [place / 100 for place in range(100)]
    for place, (forget, bias) in enumerate(((0.5, "0"), (0.731, "1"), (0.9, "2.2"), (0.99, "4.6"))):
        figure.add_scatter(
            x=rates,
            y=[math.log(0.5) / math.log(rate + (1 - rate) * forget) for rate in rates],
            name=f"forget gate {forget:g} (bias {bias})",
            line=line(place),
        )
    figure.update_yaxes(exponentformat="power")
    for rate, name in ((0.05, "0.05"), (0.5, "0.5")):
        figure.add_vline(x=rate, line={"color": "#888", "dash": "dot", "width": 1}, annotation_text=name)
    return figure
