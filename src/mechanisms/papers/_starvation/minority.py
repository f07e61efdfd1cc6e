"""A shortcut with a few counter-examples: does spectral decoupling, without a target by class, protect the minority?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mechanisms.lab import Bench, config

if TYPE_CHECKING:
    from torch import Tensor

COEFFICIENTS = {"ce": 0.0, "sd": 0.01, "sd-strong": 0.1}


@config
class Minority:
    """Settings: a core feature, a stronger spurious one, and noise in many dimensions; a linear logistic model."""

    n: int = 500
    n_test: int = 5000
    conflict: float = 0.05
    spurious: float = 3.0
    core_noise: float = 0.6
    spurious_noise: float = 0.3
    noise: float = 0.1
    noise_dims: int = 1000
    lr: float = 0.01
    steps: int = 1000
    every: int = 200


def draw(settings: Minority, n: int, conflict: float, bench: Bench, stream: str) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (n, 2 + noise_dims), labels and attributes in {-1, +1}; both features are their sign plus noise."""
    import torch

    generator = bench.generator(stream)
    y = 2.0 * torch.randint(2, (n,), generator=generator) - 1
    attribute = torch.where(torch.rand(n, generator=generator) < conflict, -y, y)
    x = torch.randn(n, 2 + settings.noise_dims, generator=generator)
    x[:, 0] = y + settings.core_noise * x[:, 0]
    x[:, 1] = settings.spurious * (attribute + settings.spurious_noise * x[:, 1])
    x[:, 2:] *= settings.noise
    return x.to(bench.device), y.to(bench.device), attribute.to(bench.device)


def run_minority(settings: Minority, variant: str, bench: Bench) -> dict[str, Any]:
    """Full-batch gradient descent with momentum from zero; accuracy on the test examples that break the shortcut."""
    import torch
    from torch.nn import functional as F

    from mechanisms.dynamics.decoupling import spectral_decoupling

    x, y, _ = draw(settings, settings.n, settings.conflict, bench, "train")
    test, test_y, attribute = draw(settings, settings.n_test, 0.5, bench, "test")
    weights = torch.zeros(x.shape[1], device=x.device, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=settings.lr, momentum=0.9)
    coefficient = COEFFICIENTS[variant]
    metrics: dict[str, Any] = {}
    for step in range(settings.steps + 1):
        if step % settings.every == 0 or step == settings.steps:
            with torch.no_grad():
                right = (test @ weights) * test_y > 0
                worst = float(right[attribute != test_y].float().mean())
                majority = float(right[attribute == test_y].float().mean())
            metrics = {"worst_group_accuracy": worst, "majority_accuracy": majority}
            bench.log(step, **{name: round(value, 4) for name, value in metrics.items()})
        logits = x @ weights
        loss = F.softplus(-y * logits).mean() + coefficient * spectral_decoupling(logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bench.progress(step, settings.steps, loss=loss.detach())
    return metrics
