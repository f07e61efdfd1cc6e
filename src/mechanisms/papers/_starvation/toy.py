"""Two coupled features (figure 6): how the response to the second falls as the first grows, and who starves whom."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from mechanisms.lab import Bench, Figure, config
from mechanisms.lab.figures import canvas, line
from mechanisms.lab.records import Cell

if TYPE_CHECKING:
    import plotly.graph_objects
    from torch import Tensor

    from mechanisms.dynamics.features import FeatureDecomposition

# First strength: z_1, z_2 and d z_2 / d s_1^2 under weight decay (lambda 0.01), by Newton's method.
TABLE = {
    2: (6.12044, 1.63997, 0.0),
    3: (7.06815, 1.58311, -0.016074),
    4: (7.81205, 1.46681, -0.016327),
    5: (8.46519, 1.32902, -0.014259),
    6: (9.07102, 1.18534, -0.011938),
}
DECOUPLED = (6.37267, 1.70755)  # under spectral decoupling (lambda 0.002), whatever the strengths
POINTS = 50


@config
class Toy:
    """Settings of the two-feature toy; the strengths of the first feature are those of the table."""

    delta: float = 0.5
    second: float = 2.0
    l2: float = 0.01
    l2_logits: float = 0.002
    lr: float = 0.05
    steps: int = 5000
    time: float = 100.0


def features(first: float | int, delta: float, second: float) -> FeatureDecomposition:
    """Two examples that share two features, coupled by delta."""
    import torch

    from mechanisms.dynamics.features import FeatureDecomposition

    rest = (1 - delta**2) ** 0.5
    weights = torch.tensor([[rest, -delta], [delta, rest]], dtype=torch.float64)
    return FeatureDecomposition(weights, torch.tensor([first, second], dtype=torch.float64))


def run_toy(settings: Toy, variant: str, bench: Bench) -> dict[str, Any]:
    """Fixed points for all strengths, and the way there by gradient descent (`ce`, `sd`) or by the dual flow."""
    from mechanisms.dynamics.dual import fixed_point
    from mechanisms.dynamics.starvation import starvation_matrix

    penalty, l2 = ("logits", settings.l2_logits) if variant == "sd" else ("weights", settings.l2)
    metrics: dict[str, Any] = {name: [] for name in ("z_1", "z_2", "table_error", "way_error")}
    slopes = []
    for done, (first, (*table, slope)) in enumerate(TABLE.items(), 1):
        found = features(first, settings.delta, settings.second)
        rest = fixed_point(found, l2, penalty=penalty).responses.tolist()
        expected = DECOUPLED if variant == "sd" else table
        metrics["z_1"].append(rest[0])
        metrics["z_2"].append(rest[1])
        # The table has five decimals, and so have we before they are compared.
        metrics["table_error"] += [round(z, 5) - e for z, e in zip(rest, expected, strict=True)]
        steps, way = flow(settings, found) if variant == "dual" else descend(settings, found, penalty, bench)
        for step, (z_1, z_2) in zip(steps, way.abs().tolist(), strict=True):
            bench.log(step, **{f"z1_{first}": round(z_1, 4), f"z2_{first}": round(z_2, 4)})
        metrics["way_error"] += (way[-1] - way.new_tensor(rest)).tolist()
        if variant != "sd":
            slopes.append(float(starvation_matrix(found, l2)[0, 1]))
            metrics.setdefault("slope_error", []).append(round(slopes[-1], 6) - slope)
        bench.progress(done, len(TABLE))
    z_2 = metrics["z_2"]
    metrics["falls"] = [later < sooner for sooner, later in itertools.pairwise(z_2)]
    metrics["spread"] = max(z_2) - min(z_2)
    return metrics


def descend(settings: Toy, found: FeatureDecomposition, penalty: str, bench: Bench) -> tuple[list[int], Tensor]:
    """Full-batch gradient descent from zero; responses at steps that are spread over a logarithmic scale."""
    import torch

    angle = 2 * torch.pi * torch.rand((), generator=bench.generator("rotation"), dtype=torch.float64)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    phi = found.weights * found.strengths @ turn
    theta = torch.zeros(2, dtype=torch.float64)
    shown = sorted({0, *torch.logspace(0, torch.log10(torch.tensor(settings.steps)), POINTS).long().tolist()})
    way = []
    for step in range(settings.steps + 1):
        f = phi @ theta
        if step in shown:
            way.append(found.weights.T @ f)
        decay = settings.l2 * theta if penalty == "weights" else settings.l2_logits * (phi.T @ f)
        theta = theta - settings.lr * (decay - phi.T @ torch.sigmoid(-f))
    return shown, torch.stack(way)


def flow(settings: Toy, found: FeatureDecomposition) -> tuple[list[float], Tensor]:
    """The gradient flow of the dual from alpha = 1e-8; responses over time."""
    import torch

    from mechanisms.dynamics.dual import dual_flow

    times = torch.logspace(-6, torch.log10(torch.tensor(settings.time)).item(), POINTS, dtype=torch.float64)
    alpha = dual_flow(found, settings.l2, times)
    return [float(f"{time:.4g}") for time in times.tolist()], alpha @ found.weights * found.strengths**2 / settings.l2


def _draw_ways(cell: Cell) -> plotly.graph_objects.Figure:
    figure = canvas(x="|z<sub>1</sub>|", y="|z<sub>2</sub>|", height=460)
    figure.update_xaxes(title="|z<sub>1</sub>|")
    figure.update_yaxes(title="|z<sub>2</sub>|")
    names = {"ce": "cross-entropy, weight decay", "sd": "spectral decoupling", "dual": "dual flow"}
    for place, (variant, name) in enumerate(names.items()):
        for first in TABLE:
            one = next(iter(cell.curves(f"z1_{first}", variant).values()), None)
            two = next(iter(cell.curves(f"z2_{first}", variant).values()), None)
            if one is None or two is None:
                continue
            figure.add_scatter(
                x=one.value,
                y=two.value,
                mode="lines+markers",
                marker={"size": [0] * (len(one.value) - 1) + [9], "opacity": 1},
                line=line(place, width=1.0 + 0.5 * (first - 2)),
                name=name,
                legendgroup=variant,
                showlegend=first == 4,
                hovertemplate=f"{name}, s<sub>1</sub> = {first}: %{{x:.3f}}, %{{y:.3f}}<extra></extra>",
            )
    return figure


def _draw_rest(cell: Cell) -> plotly.graph_objects.Figure:
    figure = canvas(x="strength of the first feature", y="response to the second at rest")
    for place, (variant, name) in enumerate({"ce": "cross-entropy, weight decay", "sd": "spectral decoupling"}.items()):
        values = next(iter(cell.values("z_2", variant).values()), [])
        figure.add_scatter(
            x=list(TABLE)[: len(values)],
            y=values,
            name=name,
            mode="lines+markers",
            line=line(place),
            marker={"size": 8},
        )
    return figure


def _draw_signs(cell: Cell) -> plotly.graph_objects.Figure:
    import torch

    from mechanisms.dynamics.starvation import starvation_matrix

    settings = Toy()
    figure = canvas(x="coupling", y="dz2 / ds1²")
    deltas = torch.linspace(-0.68, 0.68, 69).tolist()
    for place, first in enumerate((2, 3, 4, 6)):
        slopes = [
            float(starvation_matrix(features(first, delta, settings.second), settings.l2)[0, 1]) for delta in deltas
        ]
        figure.add_scatter(x=deltas, y=slopes, name=f"s<sub>1</sub> = {first}", line=line(place), mode="lines")
    return figure


FIGURES = (
    Figure(
        "Responses over training (figure 6)",
        _draw_ways,
        "Each line leads from the origin to rest, thicker for a stronger first feature (2 to 6). Under weight decay "
        "the end sinks as the first feature grows; under spectral decoupling all lines end at one point.",
    ),
    Figure(
        "Response to the second feature at rest", _draw_rest, "Falls under weight decay, constant under decoupling."
    ),
    Figure(
        "Who starves whom depends on the coupling",
        _draw_signs,
        "d z_2 / d s_1^2 at rest, closed form, s_2 = 2, lambda = 0.01. Below zero the first feature starves the "
        "second; for a negative coupling it feeds it; at equal strengths nothing happens.",
    ),
)
