"""Margins and adversarial examples in small: scikit-learn's digits 4 against 9, attacked within a box."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mechanisms.lab import Bench, config

if TYPE_CHECKING:
    from torch import Tensor, nn

VARIANTS = ("ce", "sd", "sd-strong", "weight-decay")


@config
class Attack:
    """Settings: a perceptron 64-200-200-1, Adam, full batches; projected gradient ascent on the loss."""

    hidden: int = 200
    lr: float = 1e-3
    steps: int = 600
    weight_decay: float = 0.01
    radius: float = 0.1
    attack_steps: int = 40
    attack_lr: float = 0.01
    share: float = 0.7


def run_attack(settings: Attack, variant: str, bench: Bench) -> dict[str, Any]:
    """Train, attack the test images, and measure the margins of the training images."""
    import numpy as np
    import torch
    from torch.nn import functional as F

    from mechanisms.dynamics.decoupling import spectral_decoupling
    from mechanisms.lab import data
    from mechanisms.papers._starvation.coloured import make_network

    splits = data.digits(bench.seed)
    images = np.concatenate([part.x for part in (splits.train, splits.validation, splits.test)])
    labels = np.concatenate([part.y for part in (splits.train, splits.validation, splits.test)])
    chosen = (labels == 4) | (labels == 9)
    x = torch.from_numpy(images[chosen].reshape(-1, 64)).to(bench.device)
    y = torch.from_numpy(np.where(labels[chosen] == 4, 1.0, -1.0)).to(x)
    seen = round(settings.share * len(x))
    network = make_network(64, settings.hidden, bench).to(bench.device)
    decay = settings.weight_decay if variant == "weight-decay" else 0.0
    coefficient = {"sd": 0.01, "sd-strong": 0.1}.get(variant, 0.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr, weight_decay=decay)
    for step in range(settings.steps):
        logits = network(x[:seen])[:, 0]
        loss = F.softplus(-y[:seen] * logits).mean() + coefficient * spectral_decoupling(logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bench.progress(step + 1, settings.steps, loss=loss.detach())
    attacked = ascend(network, x[seen:], y[seen:], settings, bench)
    with torch.no_grad():
        margins = network(x[:seen])[:, 0] * y[:seen]
        clean, robust = ((network(part)[:, 0] * y[seen:] > 0).float().mean() for part in (x[seen:], attacked))
    return {
        "test_accuracy": float(clean),
        "robust_accuracy": float(robust),
        "mean_margin": float(margins.mean()),
        "margin_variation": float(margins.std() / margins.mean()),
    }


def ascend(network: nn.Module, x: Tensor, y: Tensor, settings: Attack, bench: Bench) -> Tensor:
    """Projected gradient ascent on the margin's loss from a random start in the box, within [0, 1]."""
    import torch

    noise = torch.rand(x.shape, generator=bench.generator("attack")).to(x)
    moved = (x + settings.radius * (2 * noise - 1)).clamp(0, 1)
    for _ in range(settings.attack_steps):
        moved.requires_grad_()
        # The margin's own sign: that of the loss vanishes where the network is sure.
        (slope,) = torch.autograd.grad((network(moved)[:, 0] * y).sum(), moved)
        stepped = moved.detach() - settings.attack_lr * slope.sign()
        moved = torch.minimum(torch.maximum(stepped, x - settings.radius), x + settings.radius).clamp(0, 1)
    return moved.detach()
