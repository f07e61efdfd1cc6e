"""Pictures of the Z-Forcing recipe: waves of the data, of the models, and between two of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mechanisms.papers._z_forcing.generated import SAMPLES

if TYPE_CHECKING:
    import plotly.graph_objects

    from mechanisms.lab.records import Cell

APART = 3.2  # between the zero lines of neighbouring waves


def draw_waves(cell: Cell) -> plotly.graph_objects.Figure:
    """Three sequences of the data, and three of each model, one seed."""
    from mechanisms.lab.figures import canvas, line

    rows: list[tuple[str, int, list[float]]] = []
    for place, variant in enumerate(("rnn", "latent", "aux")):
        shown = _recorded(cell, variant)
        if shown is None:
            continue
        if not rows:
            rows += [("data", 3, wave) for wave in _cut(shown["shown_data"], 3)]
        rows += [(variant, place, wave) for wave in _cut(shown["shown_samples"], 3)]
    figure = canvas(x="sample (ten make a frame)", height=100 + 62 * max(3, len(rows)))
    names: set[str] = set()
    for row, (name, place, wave) in enumerate(rows):
        figure.add_scatter(
            y=[value - APART * row for value in wave],
            name=name,
            legendgroup=name,
            showlegend=name not in names,
            line=line(place, width=1.4, dash="solid"),
            hoverinfo="name",
        )
        names.add(name)
    figure.update_yaxes(showticklabels=False, showgrid=False, zeroline=False)
    return figure if rows else _nothing(figure)


def draw_between(cell: Cell) -> plotly.graph_objects.Figure:
    """Five sequences decoded from latents on the way from one sequence's to another's."""
    from mechanisms.lab.figures import canvas, line

    figure = canvas(x="sample", height=420)
    shown = _recorded(cell, "aux", "shown_between")
    if shown is None:
        return _nothing(figure)
    for row, wave in enumerate(_cut(shown["shown_between"], 5)):
        figure.add_scatter(
            y=[value - APART * row for value in wave],
            name=f"{row / 4:.0%} of the way",
            line=line(row, width=1.6, dash="solid"),
            hoverinfo="name",
        )
    figure.update_yaxes(showticklabels=False, showgrid=False, zeroline=False)
    figure.update_xaxes(dtick=SAMPLES)
    return figure


def _recorded(cell: Cell, variant: str, key: str = "shown_samples") -> Any:
    """The metrics of the one seed that recorded waves."""
    return next((record.metrics for record in cell.of(variant) if key in record.metrics), None)


def _cut(values: list[float], count: int) -> list[list[float]]:
    size = len(values) // count
    return [values[place * size : (place + 1) * size] for place in range(count)]


def _nothing(figure: plotly.graph_objects.Figure) -> plotly.graph_objects.Figure:
    figure.add_annotation(x=0.5, y=0.5, xref="paper", yref="paper", text="nothing recorded", showarrow=False)
    return figure
