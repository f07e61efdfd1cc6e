"""A network with an embedding in front and a linear readout behind."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class WithReadout(nn.Module):
    """From (time, batch, inputs), or tokens (time, batch), to predictions of each step or of the last.

    Args:
        make_network: makes the network for an input size; it returns `(output, state)` and has `output_size`.
        inputs: size of the inputs; with `tokens`, of their embedding.
        outputs: numbers to predict.
        tokens: how many tokens there are, or `None` where inputs are numbers.
        last: read the last step alone.
    """

    def __init__(
        self,
        make_network: Callable[[int], Any],
        inputs: int,
        outputs: int,
        *,
        tokens: int | None = None,
        last: bool = False,
    ) -> None:
        super().__init__()
        self.embed = None if tokens is None else nn.Embedding(tokens, inputs)
        self.network = make_network(inputs)
        self.readout, self.last = nn.Linear(self.network.output_size, outputs), last

    def forward(self, inputs: Tensor) -> Tensor:
        """Predictions (time, batch, outputs), or (batch, outputs) of the last step."""
        output = self.network(inputs if self.embed is None else self.embed(inputs))[0]
        return self.readout(output[-1] if self.last else output)
