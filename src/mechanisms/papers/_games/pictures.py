"""The figures of the recipe: spectra, rates over step size and momentum, trajectories, and the eight Gaussians."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mechanisms.lab.figures import NOTHING, PALETTE, canvas, line, plain
from mechanisms.papers._games.gaussians import NEAR

if TYPE_CHECKING:
    import plotly.graph_objects

    from mechanisms.lab.records import Cell

Figure = "plotly.graph_objects.Figure"
# Marks apart from colour, as everywhere.
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")


def draw_spectra(cell: Cell) -> plotly.graph_objects.Figure:
    """The multipliers of the bilinear game at x = 0.3 for each way to play, and the unit circle."""
    from mechanisms.dynamics.spectra import bilinear_multipliers

    figure = canvas(x="real part of the multiplier", y="imaginary part", height=520)
    circle = [math.tau * k / 200 for k in range(201)]
    figure.add_scatter(
        x=[math.cos(angle) for angle in circle],
        y=[math.sin(angle) for angle in circle],
        mode="lines",
        name="edge of stability",
        line=line(5, width=1.2),
    )
    for place, (name, order, momenta) in enumerate(
        (
            ("simultaneous, 0", "simultaneous", (0.0, 0.0)),
            ("simultaneous, −½ and −½", "simultaneous", (-0.5, -0.5)),
            ("alternating, 0", "alternating", (0.0, 0.0)),
            ("alternating, −½ and 0", "alternating", (-0.5, 0.0)),
            ("alternating, −½ and −½", "alternating", (-0.5, -0.5)),
            ("alternating, +½ and +½", "alternating", (0.5, 0.5)),
        )
    ):
        roots = bilinear_multipliers(0.8, momenta, order)
        figure.add_scatter(
            x=roots.real.tolist(),
            y=roots.imag.tolist(),
            mode="markers",
            name=f"{name}: radius {float(roots.abs().amax()):.3f}",
            marker={"size": 11, "symbol": SYMBOLS[place], "color": PALETTE[place][0]},
        )
    figure.update_yaxes(scaleanchor="x")
    return figure


def draw_regions(cell: Cell) -> plotly.graph_objects.Figure:
    """Eigenvalues (times the step size) for which simultaneous play converges, by momentum."""
    import torch

    figure = canvas(x="step size times real part of the eigenvalue", y="... times imaginary part", height=460)
    angles = torch.linspace(0, math.tau, 721, dtype=torch.float64)[1:-1]
    for place, beta in enumerate((-0.5, -0.25, 0.0, 0.25, 0.5)):
        # On the edge z = e^{i a}: z² - (1 - s + beta) z + beta = 0 gives s = 1 + beta - z - beta / z.
        z = torch.polar(torch.ones_like(angles), angles)
        edge = 1 + beta - z - beta / z
        figure.add_scatter(
            x=edge.real.tolist(), y=edge.imag.tolist(), mode="lines", name=f"{beta:+g}", line=line(place)
        )
    figure.update_yaxes(scaleanchor="x")
    return figure


def draw_rates(cell: Cell) -> plotly.graph_objects.Figure:
    """Spectral radius over momentum and step size, in turn and together."""
    import torch
    from plotly.subplots import make_subplots

    from mechanisms.dynamics.spectra import spectral_radii

    figure = canvas(height=440, legend=False)
    figure = make_subplots(
        cols=2,
        shared_yaxes=True,
        subplot_titles=("alternating", "simultaneous"),
        figure=figure,
        horizontal_spacing=0.06,
    )
    game = [[0.0, 1.0], [-1.0, 0.0]]
    steps = torch.linspace(0.04, 2.4, 60, dtype=torch.float64)
    momenta = torch.linspace(-0.95, 0.95, 58, dtype=torch.float64)
    for column, order in enumerate(("alternating", "simultaneous"), start=1):
        radii = spectral_radii(game, lr=steps, momentum=momenta, order=order, sizes=(1, 1)).clamp(max=1.6)
        shared = {"x": _round(momenta), "y": _round(steps), "z": [_round(row) for row in radii]}
        figure.add_heatmap(
            **shared,
            row=1,
            col=column,
            colorscale="RdBu",
            reversescale=True,
            zmid=1.0,
            zmin=0.4,
            zmax=1.6,
            showscale=column == 2,
            hovertemplate="momentum %{x}<br>step %{y}<br>radius %{z}<extra></extra>",
        )
        if order == "alternating":
            # The edge x = 2 (1 + beta) of both momenta below 0.
            edge = [beta for beta in momenta.tolist() if beta <= 0]
            figure.add_scatter(
                x=edge,
                y=[2 * (1 + beta) for beta in edge],
                mode="lines",
                line=line(5, color="#24292f"),
                row=1,
                col=column,
                hoverinfo="skip",
            )
        figure.update_xaxes(title="momentum of both", row=1, col=column)
    figure.update_yaxes(title="step size times singular value", range=[0, 2.4], row=1, col=1)
    figure.update_layout(margin={"t": 36})
    return figure


def draw_slices(cell: Cell) -> plotly.graph_objects.Figure:
    """The squared radius over the step size, for momenta in turn and for the other methods."""
    import torch

    from mechanisms.dynamics.spectra import bilinear_multipliers, spectral_radii

    figure = canvas(x="step size times singular value", y="squared spectral radius", height=440)
    x = torch.linspace(0.02, 2.0, 150, dtype=torch.float64)
    curves = {
        f"alternating, {first:+g} and {second:+g}": bilinear_multipliers(x, (first, second)).abs().amax(-1)
        for first, second in ((-0.5, -0.5), (-0.5, 0.0), (-0.1, -0.1), (0.0, 0.0), (0.5, 0.5))
    }
    curves["simultaneous, 0"] = bilinear_multipliers(x, 0.0, "simultaneous").abs().amax(-1)
    for method in ("extragradient", "optimistic"):
        curves[method] = spectral_radii([1j, -1j], lr=x, method=method)[:, 0]
    for place, (name, radii) in enumerate(curves.items()):
        figure.add_scatter(x=_round(x), y=_round(radii**2), mode="lines", name=name, line=line(place))
    figure.update_yaxes(range=[0.2, 1.5])
    return figure


def draw_trajectories(names: tuple[str, str], variants: tuple[str, ...], steps: int) -> Any:
    """A figure of the first steps in the plane of two logged curves, one trace for each variant."""

    def draw(cell: Cell) -> plotly.graph_objects.Figure:
        figure = canvas(x=names[0], y=names[1], height=520)
        for place, variant in enumerate(variants):
            first, second = (next(iter(cell.curves(name, variant).values()), None) for name in names)
            if first is None or second is None:
                figure.add_scatter(x=[None], y=[None], name=f"{plain(variant)} ({NOTHING})")
                continue
            figure.add_scatter(
                x=[value for step, value in zip(first.step, first.value, strict=True) if step <= steps],
                y=[value for step, value in zip(second.step, second.value, strict=True) if step <= steps],
                mode="lines+markers",
                name=plain(variant),
                line=line(place, width=1.5),
                marker={"size": 5, "symbol": SYMBOLS[place % len(SYMBOLS)], "maxdisplayed": 60},
            )
        figure.update_yaxes(scaleanchor="x", range=[-4, 4])
        figure.update_xaxes(range=[-4, 4])
        return figure

    return draw


def draw_interval(cell: Cell) -> plotly.graph_objects.Figure:
    """I(lambda) over the angle of an eigenvalue of modulus 1, with the best and the largest stable step."""
    from mechanisms.dynamics.spectra import helpful_steps

    figure = canvas(x="angle of the eigenvalue (degrees)", y="step size times |eigenvalue|", height=420)
    degrees = [0.5 * k for k in range(175)]
    values = [complex(math.cos(math.radians(a)), math.sin(math.radians(a))) for a in degrees]
    ends = [helpful_steps(value) for value in values]
    low, high = [end[0] for end in ends], [end[1] for end in ends]
    figure.add_scatter(
        x=degrees + degrees[::-1],
        y=high + low[::-1],
        fill="toself",
        fillcolor=PALETTE[0][0] + "30",
        line={"width": 0},
        name="negative momentum helps",
    )
    best = [value.real for value in values]
    figure.add_scatter(x=degrees, y=best, mode="lines", name="best step", line=line(1))
    figure.add_scatter(x=degrees, y=[2 * b for b in best], mode="lines", name="largest stable step", line=line(2))
    figure.add_vline(x=30, line={"color": PALETTE[5][0], "dash": "dot"})
    figure.update_yaxes(range=[0, 3])
    return figure


def draw_toy(cell: Cell) -> plotly.graph_objects.Figure:
    """Steps to convergence (blue) or divergence (red) of the original's toy, by momentum, step size and who has it."""
    from mechanisms.papers._games.bilinear import Toy

    settings = Toy(**{key: value for key, value in cell.config.items() if key in Toy.__dataclass_fields__})
    figure = canvas(x="momentum", height=520, legend=False)
    rows: list[str] = []
    table: list[list[float]] = []
    text: list[list[str]] = []
    for order in ("alternating", "simultaneous"):
        for who in ("both", "discriminator", "generator"):
            times = next(iter(cell.values(f"steps_{who}", order).values()), None)
            if times is None:
                continue
            for place, lr in enumerate(settings.lrs):
                count = len(settings.momenta)
                cut = [int(time) for time in times[place * count : (place + 1) * count]]
                rows.append(f"{order}, {who}, step {lr:g}")
                # From the fastest convergence (1) by neither (0) to the fastest divergence (-1).
                table.append([math.copysign(1 / math.log10(10 + abs(t)), t) if t else 0.0 for t in cut])
                text.append([f"{t:,}" if t else "neither" for t in cut])
    figure.add_heatmap(
        x=[f"{beta:+g}" for beta in settings.momenta],
        y=rows,
        z=table,
        text=text,
        texttemplate="%{text}",
        colorscale="RdBu",
        zmid=0.0,
        showscale=False,
        hovertemplate="%{y}<br>momentum %{x}<br>%{text}<extra></extra>",
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category", autorange="reversed")
    return figure


def draw_samples(variants: tuple[str, ...]) -> Any:
    """A figure of the last samples of the first seed, a panel for each variant."""

    def draw(cell: Cell) -> plotly.graph_objects.Figure:
        from plotly.subplots import make_subplots

        from mechanisms.papers._games.gaussians import centres

        columns = 3
        rows = math.ceil(len(variants) / columns)
        figure = make_subplots(
            rows=rows,
            cols=columns,
            subplot_titles=[plain(variant) for variant in variants],
            figure=canvas(height=300 * rows, legend=False),
            horizontal_spacing=0.04,
            vertical_spacing=0.1,
        )
        for place, variant in enumerate(variants):
            where = {"row": place // columns + 1, "col": place % columns + 1}
            middle = centres()
            figure.add_scatter(
                x=middle[:, 0].tolist(),
                y=middle[:, 1].tolist(),
                mode="markers",
                marker={"size": 16, "symbol": "circle-open", "color": PALETTE[5][0]},
                hoverinfo="skip",
                **where,
            )
            samples = next(iter(cell.values("samples", variant).values()), None)
            if samples is not None:
                figure.add_scatter(
                    x=list(samples)[0::2],
                    y=list(samples)[1::2],
                    mode="markers",
                    marker={"size": 4, "color": PALETTE[place % len(PALETTE)][0], "opacity": 0.6},
                    **where,
                )
            figure.update_xaxes(range=[-2.2, 2.2], showticklabels=False, **where)
            figure.update_yaxes(range=[-2.2, 2.2], showticklabels=False, **where)
        figure.update_layout(margin={"t": 36})
        return figure

    return draw


def draw_game_eigenvalues(cell: Cell) -> plotly.graph_objects.Figure:
    """Leading eigenvalues of the game Jacobian at the end of training, of one seed of each variant."""
    figure = canvas(x="real part", y="imaginary part", height=460)
    for place, variant in enumerate(cell.variants):
        real = next(iter(cell.values("eigenvalues_real", variant).values()), None)
        imaginary = next(iter(cell.values("eigenvalues_imaginary", variant).values()), None)
        if not real or not imaginary:
            continue
        figure.add_scatter(
            x=list(real),
            y=list(imaginary),
            mode="markers",
            name=plain(variant),
            marker={"size": 8, "symbol": SYMBOLS[place % len(SYMBOLS)], "color": PALETTE[place % len(PALETTE)][0]},
        )
    if not figure.data:
        figure.add_annotation(x=0.5, y=0.5, xref="paper", yref="paper", text=NOTHING, showarrow=False)
    return figure


def draw_grid(cell: Cell) -> plotly.graph_objects.Figure:
    """Modes at the end by variant (rows) and momentum (columns), at the best step size."""
    from mechanisms.papers._games.gaussians import Grid

    settings = Grid(**{key: value for key, value in cell.config.items() if key in Grid.__dataclass_fields__})
    figure = canvas(x="momentum", height=420, legend=False)
    table = []
    for variant in cell.variants:
        row = []
        for momentum in settings.momenta:
            found = list(cell.values(f"best_modes_at_{momentum:g}", variant).values())
            row.append(sum(found) / len(found) if found else None)
        table.append(row)
    figure.add_heatmap(
        x=[f"{momentum:+g}" for momentum in settings.momenta],
        y=[plain(variant) for variant in cell.variants],
        z=table,
        zmin=0,
        zmax=8,
        colorscale="Blues",
        texttemplate="%{z:.1f}",
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category", autorange="reversed")
    return figure


def near_caption() -> str:
    """What a mode is, for captions."""
    return f"A mode is a centre with more than 1 % of 2,000 samples within {NEAR}."


def _round(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]
