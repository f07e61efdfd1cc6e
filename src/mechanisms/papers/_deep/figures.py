"""The figures of the recipe: drawn from what the runs recorded, with the closed forms' curves beside it."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from mechanisms.lab import Figure
from mechanisms.lab.figures import PALETTE, SYMBOLS, bars, canvas, curves, line
from mechanisms.papers._deep.digits import FREQUENCIES
from mechanisms.papers._deep.modes import LOSSES

if TYPE_CHECKING:
    import plotly.graph_objects

    from mechanisms.lab.records import Cell, Curve

FATES = ((-1, "undecided", "#b8860b"), (0, "dies", "#d55e00"), (1, "learns", "#0072b2"))


def _first(cell: Cell, name: str, variant: str) -> Curve | None:
    """The curve of the first seed that has it."""
    found = cell.curves(name, variant)
    return found[min(found)] if found else None


def _dots(place: int) -> dict[str, Any]:
    return {
        "mode": "markers",
        "marker": {"color": PALETTE[place][0], "symbol": SYMBOLS[place], "size": 7, "maxdisplayed": 40},
    }


def _pairs(
    names: tuple[tuple[str, str, str, str], ...],
    axes: dict[str, Any],
    cell: Cell,
    kinds: tuple[str, str] = ("predicted", "simulated"),
) -> plotly.graph_objects.Figure:
    """Pairs of theory (a line) and network (dots): (variant, curve of the theory, curve of the network, label)."""
    figure = canvas(**axes)
    for place, (variant, theory, network, label) in enumerate(names):
        for name, look, kind in (
            (theory, {"mode": "lines", "line": line(place)}, kinds[0]),
            (network, _dots(place), kinds[1]),
        ):
            if name and (curve := _first(cell, name, variant)) is not None:
                figure.add_scatter(x=curve.step, y=curve.value, name=f"{label}, {kind}", **look)
    return figure


def _error_figure(log_time: bool) -> Figure:
    names = tuple((loss, "predicted_error", "simulated_error", loss) for loss in LOSSES)
    return Figure(
        f"The error over training, {'logarithmic' if log_time else 'linear'} time",
        partial(_pairs, names, {"x": "time (step size times steps)", "y": "error", "log_x": log_time}),
        "Class +1 of the first seed: a plateau, a fast drop, a slow tail. Hinge stops at margin 1, an error of 0.269.",
    )


ONE_MODE = (
    _error_figure(False),
    _error_figure(True),
    bars("relative_error", "Largest relative difference of network and theory"),
)

INDEPENDENT = (
    Figure(
        "Class +1 while class -1 is scaled",
        partial(
            _pairs,
            tuple((variant, "margin", "margin_with_scaled_class", variant) for variant in ("separable", "overlapping")),
            {"x": "time", "y": "mean margin of class +1"},
            kinds=("as they are", "scaled"),
        ),
        "Lines: as they are. Dots: inputs of class -1 three times as long.",
    ),
    curves(
        "difference",
        "How far class +1's outputs move when class -1 is scaled",
        variants=("separable", "overlapping"),
        x="time",
        caption="Largest difference over the samples of class +1: nothing at all where the classes are separable.",
    ),
)


def _portrait(variant: str, cell: Cell) -> plotly.graph_objects.Figure:
    figure = canvas(x="a = w.x", y="z", height=520)
    values = cell.values("portrait", variant)
    if not values:
        return figure
    config = cell.config
    size, reach, r = config["grid"], config["reach"], config["norm"]
    fates = values[min(values)]
    side = [-reach + 2 * reach * k / (size - 1) for k in range(size)]
    for fate, name, colour in FATES:
        places = [k for k, value in enumerate(fates) if int(value) == fate]
        if places:
            figure.add_scatter(
                x=[side[k % size] for k in places],
                y=[side[k // size] for k in places],
                mode="markers",
                marker={"color": colour, "size": 7, "symbol": SYMBOLS[fate], "opacity": 0.55},
                name=name,
            )
    for c in (-4.0, -1.0, 1.0, 4.0):
        for sign in (-1, 1):
            # a^2 - r^2 z^2 = c: over z where c > 0, over a where c < 0.
            if c > 0:
                z = side
                a = [sign * math.sqrt(c + (r * value) ** 2) for value in z]
            else:
                a = side
                z = [sign * math.sqrt(value**2 - c) / r for value in a]
            figure.add_scatter(
                x=a,
                y=z,
                mode="lines",
                line=line(5, width=1.5, dash="solid"),
                showlegend=c == 1.0 and sign == 1,
                name="a² − r²z² constant",
                legendgroup="hyperbolae",
            )
    figure.add_scatter(
        x=[0, 0, reach], y=[reach, 0, -reach / r], mode="lines", line=line(2, width=3), name="predicted border"
    )
    figure.update_xaxes(range=[-1.05 * reach, 1.05 * reach])
    figure.update_yaxes(range=[-1.05 * reach, 1.05 * reach])
    return figure


FAILURE = (
    *(
        Figure(
            f"Fates of a unit over the plane: {loss}",
            partial(_portrait, loss),
            "Each mark is a simulated unit that started there. Units move on the hyperbolae.",
        )
        for loss in LOSSES
    ),
    Figure(
        "Random layers that never learn the class",
        partial(
            _pairs,
            tuple((loss, "expected", "failed", loss) for loss in LOSSES),
            {"x": "width", "y": "share that fails", "log_y": True},
        ),
        "Line: (5/8)^width at equal scales. Dots: simulated, first seed. Both losses fail for the same draws.",
    ),
)

SPEED = tuple(
    Figure(
        f"Time to error 0.1 by {words}",
        partial(
            _pairs,
            tuple((variant, "theory", "network", label) for variant, label in variants),
            {"x": words, "y": "time", "log_x": True, "log_y": True},
        ),
        caption,
    )
    for words, variants, caption in (
        ("frequency", (("frequency", "balanced"),), "A straight line of slope -1."),
        (
            "norm",
            (("norm", "balanced from one margin"), ("norm-unbalanced", "unbalanced from the same weights")),
            "Slope -1 where balanced. From equal weights longer inputs also begin further up, and C has its own scale.",
        ),
    )
)

LOSS_FIGURES = (
    curves("error", "Error under both losses", variants=tuple(LOSSES), x="time", log_x=True, log_y=True),
    curves("margin", "Margin under both losses", variants=tuple(LOSSES), x="time", log_x=True),
)


def _depths(cell: Cell) -> plotly.graph_objects.Figure:
    names = tuple(
        ("chain", f"predicted_{depth}", f"simulated_{depth}", f"{depth} layer{'s' * (depth > 1)}")
        for depth in cell.config["depths"]
    )
    return _pairs(names[:8], {"x": "time, as a share of the time to error 0.05", "y": "error"}, cell)


DEPTH = (
    Figure(
        "The error for several depths",
        _depths,
        "From the same margin: the deeper, the longer the plateau and the sharper the drop.",
    ),
)


def _responses(variant: str, cell: Cell) -> plotly.graph_objects.Figure:
    figure = canvas(x="time", y="response", log_x=True)
    for place, frequency in enumerate(cell.config["frequencies"]):
        for name, dash, words in (("frequent", "solid", "s1"), ("rare", "dot", "s2")):
            curve = _first(cell, f"{name}_{round(100 * frequency)}", variant)
            if curve is not None:
                label = f"{words}, q = {frequency:g}"
                figure.add_scatter(x=curve.step, y=curve.value, mode="lines", line=line(place, dash=dash), name=label)
    return figure


TWO_FEATURES = tuple(
    Figure(
        f"Frequent (s1) and rare (s2) feature: {variant}",
        partial(_responses, variant),
        "Both are equally informative where they are; the rare one hardly grows once the frequent one is learned.",
    )
    for variant in ("cross-entropy", "hinge", "exponential")
)


def _over_frequency(metric: str, words: str, cell: Cell) -> plotly.graph_objects.Figure:
    figure = canvas(x="fraction q of training samples with the shortcut", y=words)
    for place, loss in enumerate(("cross-entropy", "hinge")):
        x, mean, spread = [], [], []
        for name, q in FREQUENCIES.items():
            values = [float(value) for value in cell.values(metric, f"{loss}-{name}").values()]
            if values:
                centre = sum(values) / len(values)
                x.append(q)
                mean.append(centre)
                spread.append(math.sqrt(sum((v - centre) ** 2 for v in values) / max(len(values) - 1, 1)))
        if x:
            look = line(place)
            marker = {"symbol": SYMBOLS[place], "size": 8, "color": look["color"]}
            figure.add_scatter(
                x=x, y=mean, error_y={"array": spread}, mode="lines+markers", line=look, marker=marker, name=loss
            )
    return figure


DIGITS = (
    *(
        Figure(title, partial(_over_frequency, metric, words), "Mean over seeds; the bars are one standard deviation.")
        for metric, title, words in (
            ("margin_ratio", "Margin that is left without the shortcut", "margin ratio"),
            ("flipped_accuracy", "Accuracy with the shortcut turned round", "accuracy"),
            ("accuracy", "Accuracy without the shortcut", "accuracy"),
        )
    ),
    curves("train_error", "Mean error on training digits under both losses", variants=("cross-entropy-0", "hinge-0")),
)
