"""The figures: paired differences, errors of hidden states with the detector's threshold, the ensemble by budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mechanisms.lab.figures import INK, NOTHING, PALETTE, SYMBOLS, canvas, line, plain

if TYPE_CHECKING:
    import plotly.graph_objects

    from mechanisms.lab.records import Cell

# What each claim compares: the first minus the second.
DIFFERENCES = (
    ("fortified", "at"),
    ("fortified", "at-dae"),
    ("fortified", "fortified-rec"),
    ("fortified", "fortified-input"),
    ("fortified-no-at", "plain"),
)
ATTACKS = ("pgd", "apgd_ce", "apgd_dlr", "deepfool", "square", "transfer")


def draw_differences(cell: Cell) -> plotly.graph_objects.Figure:
    """Differences of PGD and of clean accuracy, paired by seed, each with its 95 % Student interval."""
    figure = canvas(x="difference in accuracy, paired by seed", height=110 + 62 * len(DIFFERENCES))
    drawn = False
    for place, (metric, label) in enumerate((("pgd_accuracy", "under PGD"), ("accuracy", "clean"))):
        rows, means, halves = [], [], []
        for row, (first, second) in enumerate(DIFFERENCES):
            one, other = cell.values(metric, first), cell.values(metric, second)
            pairs = [float(one[seed]) - float(other[seed]) for seed in sorted(set(one) & set(other))]
            if not pairs:
                continue
            drawn = True
            mean, half = _student(pairs)
            rows.append(row + 0.2 * (2 * place - 1))
            means.append(mean)
            halves.append(half)
            figure.add_scatter(
                x=pairs,
                y=[rows[-1]] * len(pairs),
                mode="markers",
                marker={"color": PALETTE[place][0], "size": 5, "symbol": SYMBOLS[place], "opacity": 0.45},
                showlegend=False,
                hovertemplate="%{x:+.4f}<extra></extra>",
            )
        figure.add_scatter(
            x=means or [None],
            y=rows or [None],
            mode="markers",
            name=label,
            marker={"color": PALETTE[place][0], "size": 11, "symbol": SYMBOLS[place]},
            error_x={"array": halves, "color": PALETTE[place][0], "thickness": 2, "width": 7},
            hovertemplate="mean %{x:+.4f}<extra></extra>",
        )
    if not drawn:
        return _nothing(figure)
    figure.add_vline(x=0, line={"dash": "dot", "width": 1.2})
    names = [plain(f"{first} − {second}") for first, second in DIFFERENCES]
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.5, -0.5])
    figure.update_yaxes(showgrid=False, zeroline=False)
    return figure


def draw_errors(variants: Sequence[str]) -> Callable[[Cell], plotly.graph_objects.Figure]:
    """Reconstruction errors of clean and adversarial inputs, one panel for each of some variants; for `Figure`."""
    return partial(_draw_errors, tuple(variants))


def _draw_errors(variants: tuple[str, ...], cell: Cell) -> plotly.graph_objects.Figure:
    from plotly.subplots import make_subplots

    there = [variant for variant in variants if cell.curves("clean_errors", variant)]
    if not there:
        return _nothing(canvas())
    figure = make_subplots(
        rows=len(there),
        shared_xaxes=True,
        subplot_titles=[plain(variant) for variant in there],
        figure=canvas(height=90 + 190 * len(there)),
        vertical_spacing=0.3 / len(there),
    )
    for row, variant in enumerate(there, 1):
        highest = 0.0
        for place, (name, label) in enumerate((("clean_errors", "clean"), ("adversarial_errors", "adversarial"))):
            x, y = _mean_histogram(cell, name, variant)
            highest = max(highest, *y)
            figure.add_scatter(
                x=[10**value for value in x],
                y=y,
                name=label,
                mode="lines",
                line=line(place, shape="hvh"),
                fill="tozeroy",
                fillcolor=PALETTE[place][0] + "22",
                legendgroup=label,
                showlegend=row == 1,
                hovertemplate="%{x:.3g}: %{y:.3f}",
                row=row,
                col=1,
            )
        thresholds = [float(value) for value in cell.values("threshold", variant).values()]
        middle = math.exp(math.fsum(math.log(max(value, 1e-12)) for value in thresholds) / len(thresholds))
        # A trace, not a shape: labels of shapes miss their place on logarithmic axes.
        figure.add_scatter(
            x=[middle, middle],
            y=[0, 1.05 * highest],
            name="threshold",
            mode="lines",
            line={"color": INK[0], "dash": "dot", "width": 1.5},
            legendgroup="threshold",
            showlegend=row == 1,
            hovertemplate="threshold %{x:.3g}<extra></extra>",
            row=row,
            col=1,
        )
    figure.update_xaxes(type="log", exponentformat="power", showticklabels=True)
    figure.update_xaxes(title="reconstruction error of an input's hidden states", row=len(there), col=1)
    figure.update_yaxes(title="share", rangemode="tozero")
    figure.update_layout(legend={"y": 1.06})
    return figure


def draw_ensemble(cell: Cell) -> plotly.graph_objects.Figure:
    """Accuracy against budget: after PGD alone (dotted) and after all attacks, with 95 % Student intervals."""
    figure = canvas(x="budget eps (L-infinity)", y="accuracy", height=440)
    for place, variant in enumerate(cell.variants):
        for name, label, look in (
            ("ensemble_accuracy", "all attacks", {"dash": "solid"}),
            ("pgd_accuracy", "PGD alone", {"dash": "dot", "width": 1.6}),
        ):
            runs = [dict(zip(curve.step, curve.value, strict=True)) for curve in cell.curves(name, variant).values()]
            if not runs:
                continue
            budgets = sorted(set(runs[0]).intersection(*runs[1:]))
            points = [_student([float(run[eps] or 0.0) for run in runs]) for eps in budgets]
            figure.add_scatter(
                x=budgets,
                y=[mean for mean, _ in points],
                error_y={"array": [half for _, half in points], "thickness": 1.2, "width": 4},
                name=plain(f"{variant}, {label}"),
                mode="lines+markers",
                line=line(place, **look),
                marker={"size": 8, "symbol": SYMBOLS[place % len(SYMBOLS)]},
                legendgroup=variant,
                hovertemplate="%{y:.3f}",
            )
    if not figure.data:
        return _nothing(figure)
    figure.update_yaxes(range=[-0.02, 1.02])
    return figure


def draw_attacks(cell: Cell) -> plotly.graph_objects.Figure:
    """What each attack and those before it left of the accuracy, in the order in which they were run."""
    figure = canvas(y="accuracy left", height=400)
    for place, variant in enumerate(cell.variants):
        steps: list[tuple[str, float, float]] = []
        for name, label in (("accuracy", "clean"), *((f"after_{one}", one.replace("_", "-")) for one in ATTACKS)):
            values = [float(value) for value in cell.values(name, variant).values()]
            if values:
                steps.append((label, *_student(values)))
        if not steps:
            continue
        figure.add_scatter(
            x=[label for label, _, _ in steps],
            y=[mean for _, mean, _ in steps],
            error_y={"array": [half for _, _, half in steps], "thickness": 1.2, "width": 4},
            name=plain(variant),
            mode="lines+markers",
            line=line(place),
            marker={"size": 9, "symbol": SYMBOLS[place % len(SYMBOLS)]},
            hovertemplate="%{y:.3f}",
        )
    if not figure.data:
        return _nothing(figure)
    figure.update_xaxes(type="category")  # a canvas's axes are of numbers, on which names have no place
    figure.update_yaxes(rangemode="tozero")
    return figure


def _mean_histogram(cell: Cell, name: str, variant: str) -> tuple[list[float], list[float]]:
    """Means over seeds; what a seed left out is an empty bin."""
    runs = [dict(zip(curve.step, curve.value, strict=True)) for curve in cell.curves(name, variant).values()]
    places = sorted(set().union(*runs))
    return places, [math.fsum(float(run.get(place) or 0.0) for run in runs) / len(runs) for place in places]


def _student(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % Student interval; 0 for a single value."""
    from mechanisms.lab.statistics import student_interval

    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    low, high = student_interval(values)
    return mean, float(high - low) / 2


def _nothing(figure: Any) -> plotly.graph_objects.Figure:
    figure.update_layout(height=120, showlegend=False)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.add_annotation(x=0.5, y=0.5, xref="paper", yref="paper", text=NOTHING, showarrow=False, font={"size": 15})
    return figure
