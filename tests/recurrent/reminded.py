"""Reminded cells in double precision, and inputs for them, as the tests share them."""

from typing import Any

import torch
from torch import Tensor, nn

from mechanisms.recurrent import LSTMCell, SparseAttentiveBacktracking, Zoneout


def make(inner: Any = LSTMCell, size: int = 4, zoneout: float = 0.0, **options: Any) -> SparseAttentiveBacktracking:
    """A cell in double precision whose scores are far from ties."""
    options = {"k_trunc": 3, "k_top": 2, "k_att": 2} | options
    cell = inner(3, size)
    cell = SparseAttentiveBacktracking(Zoneout(cell, zoneout) if zoneout else cell, **options).double()
    for parameter in (p for name, p in cell.named_parameters() if not name.startswith("cell")):
        nn.init.normal_(parameter)
    return cell


def draw(steps: int, batch: int = 2) -> Tensor:
    return torch.randn(steps, batch, 3, dtype=torch.float64)
