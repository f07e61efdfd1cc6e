"""A recurrent network with a linear layer on its last output."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


class LastOutputClassifier(nn.Module):
    """Class scores from the last output of a network.

    Args:
        network: maps (time, batch, size) to an output (time, batch, features) and a state.
        classes: how many there are.

    >>> import torch
    >>> scores, outputs = LastOutputClassifier(nn.LSTM(1, 8), 10)(torch.rand(64, 2, 1))
    >>> scores.shape, outputs.shape
    (torch.Size([2, 10]), torch.Size([64, 2, 8]))
    """

    def __init__(self, network: Any, classes: int) -> None:
        super().__init__()
        self.network = network
        self.head = nn.Linear(output_size(network), classes)

    def forward(
        self, x: Float[Tensor, "time batch size"]
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "time batch features"]]:
        """Scores (batch, classes), and all outputs of the network."""
        outputs, _ = self.network(x)
        return self.head(outputs[-1]), outputs


def output_size(network: Any) -> int:
    """Features of a network's outputs: its `output_size`, or what `torch.nn.LSTM` and its kind have.

    >>> output_size(nn.LSTM(1, 8, bidirectional=True))
    16
    """
    found = getattr(network, "output_size", None)
    return network.hidden_size * (2 if network.bidirectional else 1) if found is None else found
