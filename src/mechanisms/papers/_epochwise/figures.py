"""The paper's pictures: formulas are drawn as they are, simulated curves from the records beside them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from mechanisms.lab import Figure
from mechanisms.lab.figures import SYMBOLS, canvas, curves, line, plain
from mechanisms.papers._epochwise.finite import agreement_problem, decoupled_problem
from mechanisms.papers._epochwise.settings import (
    CONDITION_NUMBERS,
    SLICES,
    VARIANTS_OF_1,
    figure_1,
    figure_2,
    figure_3,
    log_times,
    published_clock,
)
from mechanisms.papers._epochwise.theory import problems

if TYPE_CHECKING:
    import plotly.graph_objects
    from torch import Tensor

    from mechanisms.lab.records import Cell

POINTS = 240
TIME, ERROR = "time (learning rate x steps, + 1)", "generalisation error"
PARTS = (("both", "both"), ("fast", "only fast features"), ("slow", "only slow features"))
FORMULAS = (("decoupled", "the paper's formula"), ("ridge", "exact, ridge"), ("flow", "exact, gradient flow"))


def figure_one(method: str, sizes: tuple[int, int, int] = (150, 100, 70)) -> Figure:
    """Figure 1 or a variant of it: both scales, and each alone."""
    n, d, p = sizes
    words = dict(FORMULAS)[method]
    return Figure(
        f"Figure 1{'' if sizes == VARIANTS_OF_1[0] else ' variant'}, n={n}, d={d}, p={p}: {words}",
        partial(_draw_parts, method, sizes),
        "Fast features alone are learned and then overfitted; slow ones alone only help. Together they make two "
        "descents. Condition number 100, no label noise, the time axis of the paper (scales halved, t + 1).",
    )


def _draw_parts(method: str, sizes: tuple[int, int, int], cell: Cell) -> plotly.graph_objects.Figure:
    from mechanisms.dynamics.epochwise import learning_curve

    t = log_times(-3, 8, POINTS)
    figure = canvas(x=TIME, y=ERROR, log_x=True)
    for place, (features, label) in enumerate(PARTS):
        error = learning_curve(published_clock(figure_1(*sizes)), t, lr=1.0, method=method, features=features).error
        _line(figure, t + 1, error, label, place)
    return figure


def _draw_map(method: str, cell: Cell) -> plotly.graph_objects.Figure:
    import torch

    from mechanisms.dynamics.epochwise import learning_curves

    x = torch.linspace(0.1, 8, 60).tolist()
    t = log_times(-1, 8, 100)
    error = learning_curves([figure_2(value) for value in x], t, lr=1.0, method=method).error
    figure = canvas(x=TIME, y="weight decay", log_x=True, log_y=True, height=440, legend=False)
    figure.add_heatmap(
        x=_rounded(t + 1),
        y=[10.0**-value for value in x],
        z=[_rounded(row) for row in error],
        colorscale="Viridis",
        colorbar={"title": {"text": "error"}},
    )
    for value in SLICES.values():
        figure.add_hline(y=10.0**-value, line={"color": "white", "width": 1, "dash": "dot"})
    figure.update_xaxes(range=[0, 8])
    figure.update_yaxes(exponentformat="power")
    return figure


def _draw_slices(cell: Cell) -> plotly.graph_objects.Figure:
    from mechanisms.dynamics.epochwise import learning_curve

    t = log_times(-1, 9, POINTS)
    figure = canvas(x="time (learning rate x steps)", y=ERROR, log_x=True)
    for place, (name, x) in enumerate(SLICES.items()):
        exact = learning_curve(figure_2(x), t, lr=1.0).error
        paper = learning_curve(figure_2(x), t, lr=1.0, method="decoupled").error
        _line(figure, t, exact, f"{name}: exact", place, dash="solid")
        _line(figure, t, paper, f"{name}: the paper's formula", place, dash="dot", width=1.4)
        _recorded(figure, cell, name, f"{name}: simulated", place)
    return figure


def _draw_plane(method: str, cell: Cell) -> plotly.graph_objects.Figure:
    """R and Q over time, over the map of the error 1/2 (1 - 2R + Q) that they give."""
    import torch

    from mechanisms.dynamics.epochwise import learning_curves

    grid_r, grid_q = torch.linspace(0, 1, 51), torch.linspace(0, 1.4, 57)
    error = (1 - 2 * grid_r[None] + grid_q[:, None]) / 2
    # Q >= R^2: below that there is no student.
    error = torch.where(grid_q[:, None] >= grid_r[None] ** 2, error, torch.nan)
    figure = canvas(x="R, alignment with the teacher", y="Q, norm of the student", height=520)
    figure.add_heatmap(
        x=_rounded(grid_r),
        y=_rounded(grid_q),
        z=[[None if value != value else round(value, 3) for value in row] for row in error.tolist()],
        colorscale="Greys",
        colorbar={"title": {"text": "error"}},
        hoverinfo="skip",
    )
    curve = learning_curves([figure_3(kappa) for kappa in CONDITION_NUMBERS], log_times(-2, 13, POINTS), method=method)
    for place, kappa in enumerate(CONDITION_NUMBERS):
        _line(figure, curve.alignment[place], curve.norm[place], f"condition number {kappa}", place)
    return figure


def _draw_over_time(method: str, cell: Cell) -> plotly.graph_objects.Figure:
    from mechanisms.dynamics.epochwise import learning_curves

    t = log_times(-1, 12, POINTS)
    figure = canvas(x="step (learning rate 1 / largest eigenvalue)", y=ERROR, log_x=True)
    error = learning_curves([figure_3(kappa) for kappa in CONDITION_NUMBERS], t, method=method).error
    for place, kappa in enumerate(CONDITION_NUMBERS):
        _line(figure, t, error[place], f"condition number {kappa}", place)
        if method == "flow":
            _recorded(figure, cell, f"kappa-{kappa}", f"{kappa}, simulated", place, legend=False)
    return figure


def _draw_agreement(variants: tuple[str, ...], cell: Cell) -> plotly.graph_objects.Figure:
    from mechanisms.dynamics.epochwise import learning_curve

    t = log_times(-1, 10, POINTS)
    figure = canvas(x="step (learning rate 1 / largest eigenvalue)", y=ERROR, log_x=True)
    for place, variant in enumerate(variants):
        error = learning_curve(agreement_problem(variant), t).error
        _line(figure, t, error, f"{variant}: theory", place, dash="solid")
        _recorded(figure, cell, variant, f"{variant}: simulated", place)
    return figure


def _draw_decoupled(variant: str, cell: Cell) -> plotly.graph_objects.Figure:
    from mechanisms.dynamics.epochwise import learning_curve

    t = log_times(-1, 8, POINTS)
    figure = canvas(x="time (learning rate x steps)", y=ERROR, log_x=True)
    for place, (method, label) in enumerate(FORMULAS):
        _line(figure, t, learning_curve(decoupled_problem(variant), t, lr=1.0, method=method).error, label, place)
    _recorded(figure, cell, variant, "simulated, ridge", len(FORMULAS))
    return figure


def _draw_flow_and_ridge(cell: Cell) -> plotly.graph_objects.Figure:
    from mechanisms.dynamics.epochwise import learning_curve

    t = log_times(-2, 8, POINTS)
    figure = canvas(x="time (learning rate x steps)", y=ERROR, log_x=True)
    for place, (name, problem) in enumerate(problems().items()):
        for method, dash in (("flow", "solid"), ("ridge", "dot")):
            error = learning_curve(problem, t, lr=1.0, method=method).error
            _line(figure, t, error, f"{name}: {method}", place, dash=dash)
    return figure


def _line(figure: plotly.graph_objects.Figure, x: Tensor, y: Tensor, label: str, place: int, **look: Any) -> None:
    figure.add_scatter(x=_rounded(x), y=_rounded(y), name=plain(label), mode="lines", line=line(place, **look))


def _recorded(
    figure: plotly.graph_objects.Figure, cell: Cell, variant: str, label: str, place: int, *, legend: bool = True
) -> None:
    """Points of the mean over seeds of a recorded error curve."""
    runs = [curve for curve in cell.curves("error", variant).values() if curve.step]
    if not runs:
        return
    mean = [sum(values) / len(runs) for values in zip(*(_values(curve) for curve in runs), strict=False)]
    every = max(1, len(mean) // 28)
    figure.add_scatter(
        x=runs[0].step[: len(mean) : every],
        y=[round(value, 5) for value in mean[::every]],
        name=plain(label),
        mode="markers",
        marker={"color": line(place)["color"], "size": 6, "symbol": f"{SYMBOLS[place % len(SYMBOLS)]}-open"},
        showlegend=legend,
    )


def _values(curve: Any) -> list[float]:
    return [float("nan") if value is None else value for value in curve.value]


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]


ATTRIBUTION = (
    figure_one("decoupled"),
    figure_one("flow"),
    *(figure_one("decoupled", sizes) for sizes in VARIANTS_OF_1[1:]),
)
RIDGE_READING = (
    Figure(
        "Early stopping beside ridge",
        _draw_flow_and_ridge,
        "Gradient flow at time tau, and ridge at penalty 1/tau: the same shape on a shifted clock.",
    ),
)
AGREEMENT_FIGURES = (
    Figure(
        "Theory and simulation by condition number",
        partial(_draw_agreement, ("kappa-1", "kappa-100", "kappa-10000")),
        "Gradient flow in the limit (lines) and the mean over draws at d=100 (markers).",
    ),
    Figure(
        "Theory and simulation by size",
        partial(_draw_agreement, ("d-50", "kappa-100", "d-200")),
        "One limit, three sizes: d=50, 100 (kappa-100) and 200, condition number 100.",
    ),
)
CONDITION_FIGURES = (
    Figure(
        "Figure 3, left: the (R, Q) plane",
        partial(_draw_plane, "decoupled"),
        "The paper's formula. Each training run is a path from (0, 0) to (1, 1); the grey map is the error. "
        "The larger the condition number, the farther the path bends towards large Q before R grows again.",
    ),
    Figure(
        "Figure 3, left, by gradient flow",
        partial(_draw_plane, "flow"),
        "The same by the exact formula.",
    ),
    Figure("Figure 3, right: error over time", partial(_draw_over_time, "decoupled"), "The paper's formula."),
    Figure(
        "Figure 3, right, by gradient flow",
        partial(_draw_over_time, "flow"),
        "The exact formula (lines) and the mean over draws (markers). At condition number 7 gradient flow descends "
        "twice, where the paper's formula and ridge do not.",
    ),
)
WEIGHT_DECAY_FIGURES = (
    Figure(
        "Figure 2 c: error over weight decay and time",
        partial(_draw_map, "decoupled"),
        "The paper's formula; dotted lines are the slices of figure 2 d.",
    ),
    Figure(
        "Figure 2 c, by gradient flow",
        partial(_draw_map, "flow"),
        "The exact formula: the second descent needs less weight decay than the paper's formula says.",
    ),
    Figure(
        "Figure 2 d: three slices",
        _draw_slices,
        "Lines: exact. Dots: the paper's formula. Markers: simulated. Time is learning rate times steps.",
    ),
)
DECOUPLED_FIGURES = tuple(
    Figure(
        f"The paper's formula, the exact ones and simulation: {variant}",
        partial(_draw_decoupled, variant),
        "In the slow phase the paper's formula lets the slow group learn from all n samples, where the fast group has "
        "used up p of them.",
    )
    for variant in ("figure-1", "d-200")
)
STUDENT_FIGURES = (curves("error", "Error of the two-layer linear student", x="step", log_x=True),)
FINDING_FIGURES = tuple(
    curves("error", title, variants=(variant,), x=x, log_x=True)
    for title, variant, x in (
        ("Test error of the ReLU student", "relu", "step"),
        ("Test error of the MLP on digits with wrong labels", "digits-mlp", "epoch"),
    )
)
