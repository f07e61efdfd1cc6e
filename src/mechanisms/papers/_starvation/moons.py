"""Two moons that one straight line nearly separates: what bends the boundary of a small network (figures 1 to 3)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mechanisms.lab import Bench, config

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

FRAME = ((-1.4, 1.4), (-1.8, 2.2))  # of the pictures, in the two coordinates
PIXELS = 31  # of the pictures, in each direction: they stay in the records
FINE = 241  # of the grid on which the boundary is found


@config
class Moons:
    """Settings of the moons; the network is 2-500-1 with ReLU, torch's default initialisation, full batches."""

    n: int = 300
    noise: float = 0.1
    margin: float = 0.1
    hidden: int = 500
    steps: int = 1000
    lr: float = 1e-2
    momentum: float = 0.9
    coefficient: float = 0.003
    weight_decay: float = 0.01
    test: int = 1000
    every: int = 100


@dataclass(frozen=True)
class Way:
    """What a variant changes."""

    sd: bool = False
    coefficient: float = 0.0  # instead of the settings' one
    margin: float = 0.0  # times the settings' one is added to it
    decay: float = 0.0  # times the settings' one
    adam: float = 0.0
    dropout: float = 0.0
    batch_norm: bool = False
    layers: int = 1
    width: float | int = 1
    longer: int = 1
    turned: bool = False


VARIANTS: dict[str, Way] = {
    "ce-overlap": Way(margin=-2.0),  # margin -0.1 where the others have +0.1
    "ce": Way(),
    "sd": Way(sd=True),
    "weight-decay": Way(decay=1.0),
    "dropout": Way(dropout=0.7),
    "batch-norm": Way(batch_norm=True),
    "longer": Way(longer=10),
    "adam-slow": Way(adam=1e-4),
    "adam-fast": Way(adam=3e-3),
    "rotated": Way(turned=True),
    "rotated-sd": Way(turned=True, sd=True),
    "narrow": Way(width=0.1),
}
# Figure 3 has these too; they take long, so they are for paper scale.
LARGE: dict[str, Way] = {**VARIANTS, "deep": Way(layers=5), "wide": Way(width=10)}
LONG: dict[str, Way] = {
    "ce": Way(),
    "sd": Way(sd=True),
    "sd-strong": Way(sd=True, coefficient=0.01),
    "sd-strongest": Way(sd=True, coefficient=0.1),
}


def moons(n: int, noise: float, margin: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The paper's moons: x (n, 2) and labels in {-1, +1}; the first coordinate separates, with twice `margin` between.

    A negative margin lets the classes interlock, so that no straight line separates them.
    """
    import numpy as np
    from sklearn.datasets import make_moons

    x, y = make_moons(n, noise=noise, random_state=seed)
    x, signs = np.asarray(x, np.float64), np.asarray(2 * y - 1, np.float64)
    x[:, 0] -= 0.5
    x[:, 1] -= 0.3 * signs
    x[:, 1] -= x[:, 1].mean()
    x[:, 1] *= np.sign(-x[:, 1] * signs)  # every point to the side of its class
    x[:, 1] -= signs * margin
    return x[:, ::-1].astype(np.float32), signs.astype(np.float32)


def turn(x: np.ndarray) -> np.ndarray:
    """By 45 degrees."""
    import numpy as np

    half = np.float32(0.5**0.5)
    return x @ np.array([[half, -half], [half, half]], np.float32)


def make_network(way: Way, hidden: int, bench: Bench) -> nn.Sequential:
    """The perceptron; networks of one shape start from the same weights for the same seed."""
    from torch import nn

    from mechanisms._base.seeds import seeded, stream_seed

    width = max(1, round(hidden * way.width))
    with seeded(stream_seed(bench.seed, "weights")):
        sizes = [2] + [width] * way.layers
        linear = [nn.Linear(one, other) for one, other in itertools.pairwise(sizes)]
        last = nn.Linear(width, 1)
    layers: list[nn.Module] = []
    for layer in linear:
        layers += [layer, *([nn.BatchNorm1d(width)] * way.batch_norm), nn.ReLU()]
        layers += [nn.Dropout(way.dropout)] * (way.dropout > 0)
    return nn.Sequential(*layers, last)


def train(settings: Moons, way: Way, x: Tensor, y: Tensor, bench: Bench, weight_decay: float, watch: Any) -> nn.Module:
    """Full-batch training on the mean loss; `watch(step, logits)` sees the logits before every step."""
    import torch
    from torch.nn import functional as F

    from mechanisms._base.seeds import seeded, stream_seed
    from mechanisms.dynamics.decoupling import spectral_decoupling

    network = make_network(way, settings.hidden, bench).to(bench.device)
    coefficient = (way.coefficient or settings.coefficient) if way.sd else 0.0
    if way.adam:
        optimizer: torch.optim.Optimizer = torch.optim.Adam(network.parameters(), lr=way.adam)
    else:
        optimizer = torch.optim.SGD(
            network.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=weight_decay
        )
    steps = settings.steps * way.longer
    with seeded(stream_seed(bench.seed, "dropout"), bench.device):
        for step in range(steps):
            logits = network(x)[:, 0]
            watch(step, logits)
            loss = F.softplus(-y * logits).mean()
            if coefficient:
                loss = loss + coefficient * spectral_decoupling(logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bench.progress(step + 1, steps, loss=loss.detach())
    return network.eval()


def data_of(settings: Moons, way: Way, bench: Bench) -> tuple[Tensor, Tensor]:
    """The training set of a variant, inputs (n, 2) and labels in {-1, +1}."""
    import torch

    x, y = moons(settings.n, settings.noise, settings.margin * (1 + way.margin), bench.seed)
    return torch.from_numpy(turn(x) if way.turned else x).to(bench.device), torch.from_numpy(y).to(bench.device)


def run_moons(settings: Moons, variant: str, bench: Bench) -> dict[str, Any]:
    """Train one variant; test where only a bent boundary is right; measure the distance to it and draw it."""
    import torch

    from mechanisms._base.seeds import stream_seed

    way = LARGE[variant]
    x, y = data_of(settings, way, bench)
    every = settings.every * way.longer

    def watch(step: int, logits: Tensor) -> None:
        if step % every == 0:
            bench.log(step, train_accuracy=float((logits.detach() * y > 0).float().mean()))

    network = train(settings, way, x, y, bench, settings.weight_decay * way.decay, watch)
    metrics: dict[str, Any] = {}
    with torch.no_grad():
        margins = network(x)[:, 0] * y
        metrics["train_accuracy"] = float((margins > 0).float().mean())
        for name, margin in (("03", -0.3), ("05", -0.5)):
            fresh, signs = moons(settings.test, settings.noise, margin, stream_seed(bench.seed, "test") % 2**32)
            fresh = torch.from_numpy(turn(fresh) if way.turned else fresh).to(bench.device)
            right = network(fresh)[:, 0] * torch.from_numpy(signs).to(bench.device) > 0
            metrics[f"test_{name}"] = float(right.float().mean())
        distance = smallest_distance(network, x, FINE)
        metrics["distance"] = distance
        # Differences of logarithms are ratios, which the claim is about.
        metrics["log_distance"] = math.log(max(distance, 1e-3))
        metrics["picture"] = picture(network, x.device, way.turned)
    return metrics


def lattice(pixels: int, device: torch.device, turned: bool = False) -> Tensor:
    """The points of the frame, row by row of the second coordinate: (pixels * pixels, 2)."""
    import torch

    first, second = (torch.linspace(low, high, pixels, device=device) for low, high in FRAME)
    points = torch.stack([first.expand(pixels, -1), second[:, None].expand(-1, pixels)], -1).reshape(-1, 2)
    return torch.from_numpy(turn(points.cpu().numpy())).to(device) if turned else points


def picture(network: nn.Module, device: torch.device, turned: bool) -> list[float]:
    """Logits over the frame, rounded; a turned set is turned back, so that pictures can be compared."""
    values = network(lattice(PIXELS, device, turned))[:, 0].clamp(-9, 9)
    return [round(value, 2) for value in values.tolist()]


def smallest_distance(network: nn.Module, x: Tensor, pixels: int) -> float:
    """The smallest distance of a training point to the boundary, which is interpolated on a fine grid."""
    import torch

    points = lattice(pixels, x.device).reshape(pixels, pixels, 2) * 1.5  # holds the turned set too
    values = torch.cat([network(row)[:, 0] for row in points.reshape(-1, 2).split(20_000)]).reshape(pixels, pixels)
    edges = []
    for one, other, left, right in (
        (points[:, :-1], points[:, 1:], values[:, :-1], values[:, 1:]),
        (points[:-1], points[1:], values[:-1], values[1:]),
    ):
        crossed = (left > 0) != (right > 0)
        share = (left / (left - right))[crossed][:, None]
        edges.append(one[crossed] + share * (other[crossed] - one[crossed]))
    boundary = torch.cat(edges)
    if len(boundary) == 0:
        return 0.0  # all points are given one class
    return float(torch.cdist(x, boundary).min())


def run_long(settings: Moons, variant: str, bench: Bench) -> dict[str, Any]:
    """Train long without weight decay; how alike the margins of the training set become."""
    import torch

    from mechanisms.dynamics.dual import decoupled_margin

    way = LONG[variant]
    x, y = data_of(settings, way, bench)

    def watch(step: int, logits: Tensor) -> None:
        if step % settings.every == 0:
            margins = logits.detach() * y
            mean, spread = float(margins.mean()), float(margins.std())
            bench.log(step, mean_margin=round(mean, 4), variation=round(spread / max(abs(mean), 1e-6), 4))

    network = train(settings, way, x, y, bench, 0.0, watch)
    with torch.no_grad():
        margins = network(x)[:, 0] * y
    mean = float(margins.mean())
    metrics: dict[str, Any] = {"mean_margin": mean, "variation": float(margins.std()) / abs(mean)}
    if way.sd:
        expected = float(decoupled_margin(2 * (way.coefficient or settings.coefficient)))
        metrics |= {"expected_margin": expected, "margin_error": abs(mean / expected - 1)}
    return metrics


RESPONSES: dict[str, Way] = {
    "overlap": Way(margin=-2.0, decay=1.0),
    "separable": Way(decay=1.0),
    "separable-sd": Way(decay=1.0, sd=True),
}
SHOWN = (1, 6)  # the features that the paper plots, counted from 1


def run_responses(settings: Moons, variant: str, bench: Bench) -> dict[str, Any]:
    """Follow the responses to features of the tangent kernel at initialisation (figure 2)."""
    import torch

    from mechanisms.dynamics.features import decompose, jacobian_features, responses

    way = RESPONSES[variant]
    x, y = data_of(settings, way, bench)
    start = make_network(way, settings.hidden, bench).to(bench.device).eval()
    found = decompose(jacobian_features(start, x), y)
    shown = {0, *torch.logspace(0, math.log10(settings.steps), 60).long().tolist()}

    def watch(step: int, logits: Tensor) -> None:
        if step in shown:
            z = responses(logits.detach(), y, found).abs().tolist()
            bench.log(step, **{f"z_{j}": round(z[j - 1], 4) for j in SHOWN})

    network = train(settings, way, x, y, bench, settings.weight_decay, watch)
    with torch.no_grad():
        z = responses(network(x)[:, 0], y, found).abs().tolist()
    return {f"z_{j}": z[j - 1] for j in range(1, 9)} | {
        f"strength_{j}": float(found.strengths[j - 1]) for j in range(1, 9)
    }
