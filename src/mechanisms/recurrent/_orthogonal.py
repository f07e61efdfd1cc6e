"""Weights whose square blocks are orthogonal, as Zoneout's released code begins."""

import torch
from torch import Tensor, nn


def fill_with_orthogonal_blocks(weight: Tensor, hidden_size: int) -> None:
    """Fill (gates * hidden, size) gate by gate with orthogonal squares of the smaller side, cut where they stick out.

    >>> weight = torch.empty(4, 2)
    >>> fill_with_orthogonal_blocks(weight, 2)
    >>> bool(torch.allclose(weight[:2] @ weight[:2].T, torch.eye(2), atol=1e-5))
    True
    """
    with torch.no_grad():
        side = min(hidden_size, weight.shape[1])
        for gate in weight.split(hidden_size):
            for rows in gate.split(side):
                for part in rows.split(side, 1):
                    square = part.new_empty(side, side)
                    nn.init.orthogonal_(square)
                    part.copy_(square[: part.shape[0], : part.shape[1]])
