"""Students that are no linear regression: two linear layers, a ReLU network, an MLP on digits with wrong labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mechanisms.lab import Bench, config
from mechanisms.papers._epochwise.settings import figure_3

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@config
class Students:
    """Settings of networks on the problem of figure 3, and of the MLP on digits."""

    dim: int = 100
    draws: int = 5
    hidden: int = 200
    lr: float = 0.01
    momentum: float = 0.9
    steps: int = 5000
    relu_draws: int = 5
    relu_steps: int = 1000
    epochs: int = 200
    turn: float = 0.02
    label_noise: float = 0.2
    batch_size: int = 128
    mlp_lr: float = 0.1
    mlp_hidden: int = 256
    mlp_turn: float = 0.04


def kept_steps(last: int, points: int = 60) -> list[int]:
    """Steps at which a curve is kept: the first twenty, 5, 20, and some on a logarithmic scale up to the last."""
    import numpy as np

    return sorted({*range(min(21, last + 1)), *np.geomspace(1, last, points).round().astype(int).tolist()})


LINEAR = {"kappa-30": (30, 1), "kappa-1": (1, 1), "kappa-30-quarter-rate": (30, 4)}  # condition number, slower by


def run_linear(settings: Students, variant: str, bench: Bench) -> dict[str, Any]:
    """Two linear layers trained on all data by SGD with momentum, on the summed loss; the exact error over steps.

    Steps are counted at the full rate: a quarter of the rate takes four times as many.
    """
    import math

    import torch

    from mechanisms.dynamics.curves import descents
    from mechanisms.dynamics.simulation import order_parameters

    kappa, slower = LINEAR[variant]
    problem = figure_3(kappa, settings.dim)
    data = problem.sample(settings.draws, generator=bench.generator("data"))
    # N(0, 2/d) and a tenth of N(0, 1/h).
    first, last = initial(settings, problem.dim, settings.draws, bench.generator("weights"))
    kept = kept_steps(settings.steps)
    products = linear_path(
        data.features,
        data.targets,
        first,
        last,
        [slower * step for step in kept],
        settings.lr / slower,
        settings.momentum,
        bench.progress,
    )
    stable = products.isfinite().flatten(1).all(1)
    diverged = int((~stable).sum())
    if diverged:
        bench.note(f"{diverged} of {settings.draws} students diverged; the curve is the mean of the others")
    if not bool(stable.any()):
        return {"diverged": diverged, "rise_5_to_20": math.nan, "end": math.nan, "is_double": math.nan}
    error = order_parameters(problem, data.teacher[stable], products[stable], noisy_test=False).error.mean(0)
    steps = torch.tensor(kept, dtype=torch.float64)
    for step, value in zip(kept, error.tolist(), strict=True):
        bench.log(step, error=round(value, 5))
    at = dict(zip(kept, error.tolist(), strict=True))
    # From the first step on: fresh weights are no better than none, whichever way the curve then goes.
    found = descents(error[1:], steps[1:], min_drop=0.01)
    return {
        "diverged": diverged,
        "error_5": at[5],
        "error_20": at[20],
        "rise_5_to_20": at[20] - at[5],
        # What a diverged student would have ended at is unknown.
        "end": math.nan if diverged else at[kept[-1]],
        "is_double": int(found.is_double),
        "descends_once": int(not found.maxima),
    }


def initial(settings: Students, dim: int, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weights of the first layer (draws, dim, hidden) and of the last (draws, hidden)."""
    import torch

    first = torch.randn(draws, dim, settings.hidden, generator=generator, dtype=torch.float64) * (2 / dim) ** 0.5
    last = 0.1 * torch.randn(draws, settings.hidden, generator=generator, dtype=torch.float64) / settings.hidden**0.5
    return first, last


def linear_path(
    x: Tensor,
    y: Tensor,
    first: Tensor,
    last: Tensor,
    kept: list[int],
    lr: float,
    momentum: float,
    progress: Callable[[int, int], object] = lambda step, total: None,
) -> Tensor:
    """The product of both layers, (draws, kept, dim), along SGD with momentum on 1/2 |X W a - y|^2.

    Written out, since the gradient of the first layer is an outer product: a step costs two passes over its weights,
    where back-propagation through X costs as many as there are samples.
    """
    import torch

    gram, known = x.mT @ x, x.mT @ y[..., None]
    first, last = first.clone(), last[..., None].clone()
    first_before, last_before = first.clone(), last.clone()
    products = []
    for step in range(kept[-1] + 1):
        product = first @ last
        if step == kept[len(products)]:
            products.append(product[..., 0])
        force = gram @ product - known
        # Momentum without a buffer of its own: w + momentum (w - w before) - lr gradient, written over w before.
        last_next = last_before.lerp(last, 1 + momentum) - lr * (first.mT @ force)
        first_before.lerp_(first, 1 + momentum).addcmul_(force, last.mT, value=-lr)
        first, first_before = first_before, first
        last, last_before = last_next, last
        progress(step, kept[-1])
    return torch.stack(products, 1)


def run_findings(settings: Students, variant: str, bench: Bench) -> dict[str, Any]:
    """Networks that do not descend twice: what they do instead."""
    from mechanisms.dynamics.curves import descents

    relu = variant == "relu"
    steps, error = relu_curve(settings, bench) if relu else digits_curve(settings, bench)
    for step, value in zip(steps, error, strict=True):
        bench.log(step, error=round(value, 5))
    # On 500 images a share has a standard error of about 0.014: turns below three of them are noise.
    found = descents(error, steps, min_drop=settings.turn if relu else settings.mlp_turn, smooth=0.15)
    lowest = min(error)
    behind = error[error.index(lowest) :]
    top = max(behind)
    return {
        "lowest": lowest,
        "end": sum(error[-5:]) / len(error[-5:]),
        "rise": top - lowest,
        "second_fall": found.peak[1] - found.second_minimum[1] if found.peak and found.second_minimum else 0.0,
        "is_double": int(found.is_double),
        "descends_once": int(not found.is_double),
    }


def relu_curve(settings: Students, bench: Bench) -> tuple[list[float], list[float]]:
    """Test error over steps of a ReLU network in place of the linear one; condition number 30."""
    import torch

    problem = figure_3(30, settings.dim)
    data = problem.sample(settings.relu_draws, 1000, generator=bench.generator("data"), dtype=torch.float32)
    first, last = (w.float() for w in initial(settings, problem.dim, settings.relu_draws, bench.generator("weights")))
    weights = [first.requires_grad_(), last.requires_grad_()]
    optimizer = torch.optim.SGD(weights, lr=settings.lr, momentum=settings.momentum)
    kept = set(kept_steps(settings.relu_steps)[1:])
    steps, error = [], []
    for step in range(settings.relu_steps + 1):
        if step in kept:
            with torch.no_grad():
                test = (data.test_features @ first).relu() @ last[..., None]
                steps.append(float(step))
                error.append(float((test[..., 0] - data.test_targets).square().mean() / 2))
        loss = ((data.features @ first).relu() @ last[..., None])[..., 0].sub(data.targets).square().sum() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bench.progress(step, settings.relu_steps)
    return steps, error


def digits_curve(settings: Students, bench: Bench) -> tuple[list[float], list[float]]:
    """Test error over epochs of an MLP on scikit-learn's digits, with a share of the training labels drawn anew."""
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    from mechanisms._base.seeds import seeded

    order = bench.generator("split")
    images, labels = load_digits(return_X_y=True)
    rows = torch.randperm(len(labels), generator=order)
    x, y = torch.as_tensor(images, dtype=torch.float32)[rows] / 16, torch.as_tensor(labels)[rows]
    train, test = slice(0, 1297), slice(1297, None)
    noisy = y[train].clone()
    wrong = torch.rand(len(noisy), generator=order) < settings.label_noise
    # Another class, each alike: a shift by 1 to 9.
    shift = torch.randint(1, 10, noisy.shape, generator=order)
    noisy = torch.where(wrong, (noisy + shift) % 10, noisy)
    with seeded(bench.generator("weights").initial_seed()):
        model = nn.Sequential(nn.Linear(64, settings.mlp_hidden), nn.ReLU(), nn.Linear(settings.mlp_hidden, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.mlp_lr, momentum=settings.momentum)
    batches = bench.generator("batches")
    epochs, error = [], []
    for epoch in range(1, settings.epochs + 1):
        for part in torch.randperm(len(noisy), generator=batches).split(settings.batch_size):
            loss = nn.functional.cross_entropy(model(x[part]), noisy[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            epochs.append(float(epoch))
            error.append(float((model(x[test]).argmax(1) != y[test]).double().mean()))
        bench.progress(epoch, settings.epochs)
    return epochs, error
