"""A shortcut that is there for a fraction q of the training digits: how much does the network rely on it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mechanisms.lab import Bench, config

if TYPE_CHECKING:
    from torch import Tensor

FREQUENCIES = {"0": 0.0, "25": 0.25, "50": 0.5, "75": 0.75, "90": 0.9, "97": 0.97, "100": 1.0}
VARIANTS = tuple(f"{loss}-{name}" for loss in ("cross-entropy", "hinge") for name in FREQUENCIES)


@config
class Digits:
    """Digits 4 against 9 with a signed extra input b = y * amplitude on a fraction of the training samples."""

    amplitude: float = 2.0
    num_train: int = 240
    hidden: int = 100
    lr: float = 0.05
    steps: int = 1500
    points: int = 15


@dataclass(frozen=True)
class Data:
    """One seed's images with the extra input as last column, labels, and initial weights."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    weights: tuple[Tensor, ...]


def run_digits(settings: Digits, variant: str, bench: Bench) -> dict[str, Any]:
    """One seed; see `run_digits_block`."""
    return run_digits_block(settings, variant, [bench])[0]


def run_digits_block(settings: Digits, variant: str, benches: Sequence[Bench]) -> list[dict[str, Any]]:
    """All seeds as one batch of networks: full-batch SGD, then accuracy without and with the flipped shortcut."""
    import torch
    from torch.nn import functional as F

    loss, _, name = variant.rpartition("-")
    drawn = [_draw(settings, FREQUENCIES[name], bench) for bench in benches]
    device = benches[0].device
    x, y, test_x, test_y = (
        torch.stack([getattr(one, part) for one in drawn]).to(device)
        for part in ("train_x", "train_y", "test_x", "test_y")
    )
    w1, b1, w2, b2 = (
        torch.stack(part).to(device).requires_grad_() for part in zip(*(one.weights for one in drawn), strict=True)
    )
    parameters = [w1, b1, w2, b2]

    def output(inputs: Tensor) -> Tensor:
        hidden = torch.baddbmm(b1.unsqueeze(1), inputs, w1.mT).relu()
        return torch.baddbmm(b2.unsqueeze(1), hidden, w2.mT).squeeze(-1)

    def flipped() -> Tensor:
        turned = torch.cat([test_x[..., :-1], -settings.amplitude * test_y.unsqueeze(-1)], dim=-1)
        return test_y * output(turned)

    optimizer = torch.optim.SGD(parameters, lr=settings.lr)
    every = max(1, settings.steps // settings.points)
    for step in range(settings.steps + 1):
        margins = y * output(x)
        if step % every == 0 or step == settings.steps:
            with torch.no_grad():
                without, against = test_y * output(test_x), flipped()
                error = torch.sigmoid(-margins).mean(dim=1)
                for place, bench in enumerate(benches):
                    bench.log(
                        step,
                        train_error=error[place],
                        flipped_accuracy=(against[place] > 0).double().mean(),
                    )
        if step == settings.steps:
            break
        each = F.softplus(-margins) if loss == "cross-entropy" else (1 - margins).relu()
        optimizer.zero_grad()
        each.mean(dim=1).sum().backward()
        optimizer.step()
        benches[0].progress(step + 1, settings.steps)
    with torch.no_grad():
        margins, without, against = y * output(x), test_y * output(test_x), flipped()
    return [
        {
            "margin_ratio": float(without[place].mean() / margins[place].mean()),
            "flipped_accuracy": float((against[place] > 0).double().mean()),
            "accuracy": float((without[place] > 0).double().mean()),
            "train_margin": float(margins[place].mean()),
        }
        for place in range(len(benches))
    ]


def _draw(settings: Digits, frequency: float, bench: Bench) -> Data:
    import numpy as np
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    from mechanisms._base.seeds import seeded, stream_seed

    images, labels = load_digits(return_X_y=True)
    chosen = np.isin(labels, (4, 9))
    order = bench.numpy("data").permutation(int(chosen.sum()))
    x = torch.from_numpy(images[chosen][order] / 16).float()
    y = torch.from_numpy(np.where(labels[chosen][order] == 9, 1.0, -1.0)).float()
    # One draw per sample, so that a larger fraction marks the same samples and more.
    marked = torch.from_numpy(bench.numpy("shortcut").permutation(settings.num_train))
    shortcut = torch.zeros(len(y))
    some = marked < round(frequency * settings.num_train)
    shortcut[: settings.num_train][some] = settings.amplitude * y[: settings.num_train][some]
    x = torch.cat([x, shortcut[:, None]], dim=1)
    with seeded(stream_seed(bench.seed, "weights")):
        first, second = nn.Linear(x.shape[1], settings.hidden), nn.Linear(settings.hidden, 1)
    weights = tuple(value.detach() for layer in (first, second) for value in (layer.weight, layer.bias))
    n = settings.num_train
    return Data(x[:n], y[:n], x[n:], y[n:], weights)
