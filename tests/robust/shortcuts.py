"""A small set with a shortcut, and what tests of twins on it share."""

import pytest
import torch
from torch import nn

from mechanisms.robust.xrm import (
    TwinTrainer,
)

# A test of a warning-free run would otherwise pass or fail by the small sets used here.

quiet = pytest.mark.filterwarnings("ignore::UserWarning")


def shortcut(n: int = 600, seed: int = 0, classes: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, labels and backgrounds; the background agrees with the label in nine of ten and is easy to see."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    background = torch.where(torch.arange(n) // classes % 10 == 9, (y + 1) % classes, y)
    x = torch.randn(n, 6 + classes, generator=generator)
    x[torch.arange(n), background] += 8.0
    x[:, classes] += 0.5 * y
    return x, y, background


def trainer_on(x, y, make=None, classes=2, lr=0.1, **options) -> TwinTrainer:
    options = {"generator": 0, "device": "cpu"} | options
    make = make or (lambda: nn.Linear(x.shape[1], classes).to(x.dtype))
    return TwinTrainer(make, y, classes, make_optimizer=lambda ps: torch.optim.SGD(ps, lr=lr, momentum=0.9), **options)


def zero_head(features: int, classes: int = 2, dtype=torch.float64) -> nn.Linear:
    head = nn.Linear(features, classes, dtype=dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
