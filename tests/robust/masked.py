"""Classifiers whose robustness is known: linear ones in closed form, and some that only hide their gradients."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from mechanisms._base.seeds import seeded, torch_generator


def linear(n: int, features: int, classes: int, seed: int = 0) -> tuple[nn.Linear, Tensor, Tensor]:
    """A linear classifier, inputs in [0.3, 0.7], away from the box, and its own predictions as labels."""
    generator = torch_generator(seed, "linear")
    layer = nn.Linear(features, classes)
    x = 0.3 + 0.4 * torch.rand(n, features, generator=generator)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, features, generator=generator))
        layer.bias.copy_(-layer.weight @ torch.full((features,), 0.5))
        y = layer(x).argmax(1)
    return layer.eval(), x, y


def closed_form(layer: nn.Linear, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Which examples no input within eps turns: min_k (w_y - w_k).x + b_y - b_k - eps ||w_y - w_k||_1 > 0."""
    with torch.no_grad():
        logits, weight = layer(x), layer.weight
        margin = logits.gather(1, y[:, None]) - logits
        length = (weight[y][:, None] - weight[None]).abs().sum(2)
        return (margin - eps * length).scatter(1, y[:, None], torch.inf).amin(1) > 0


def digits(n: int) -> tuple[Tensor, Tensor]:
    """The first n test images of scikit-learn's digits, as rows."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images[1297 : 1297 + n] / 16, dtype=torch.float32), torch.tensor(labels[1297 : 1297 + n])


def trained(epochs: int = 30, seed: int = 0) -> nn.Sequential:
    """An undefended network on the digits, about 95 % right."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images[:1297] / 16, dtype=torch.float32), torch.tensor(labels[:1297])
    with seeded(seed):
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(128):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
        optimizer.zero_grad()
    return model.eval()


class Scaled(nn.Module):
    """Logits so large that the softmax is exactly 0 or 1."""

    def forward(self, logits: Tensor) -> Tensor:
        return 1e4 * logits


class Quantised(nn.Module):
    """Inputs of five levels: the derivative is zero almost everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return (4 * x).round() / 4


class Cut(nn.Module):
    """Nothing flows back."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class NoNumber(nn.Module):
    """The identity, whose derivative is no number: 0 times an infinite slope."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (0.0 * x).sqrt()


class Noisy(nn.Module):
    """Noise on the inputs at all times."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        return x + self.std * torch.randn_like(x)
