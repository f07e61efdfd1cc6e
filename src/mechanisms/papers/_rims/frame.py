"""What stands around a network: an encoding in front, dropout before and behind, embeddings of tokens, a readout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Frame(nn.Module):
    """A network behind a linear encoding, with dropout; it takes and returns what the network does.

    Args:
        make: makes the network from its input size.
        size: features of the input.
        encoding: features the network sees; 0 for the input as it is.
        dropout: rate before and behind the network.
    """

    def __init__(self, make: Callable[[int], Any], size: int, encoding: int, dropout: float | int) -> None:
        super().__init__()
        self.encode = nn.Linear(size, encoding) if encoding else None
        self.network = make(encoding or size)
        self.output_size, self.dropout = self.network.output_size, dropout

    def forward(self, x: Tensor, state: Any = None, *, generator: torch.Generator | None = None) -> tuple[Tensor, Any]:
        """Outputs (time, batch, features) and the state."""
        x = x if self.encode is None else self.encode(x)
        output, state = self.network(self._dropped(x, generator), state, generator=generator)
        return self._dropped(output, generator), state

    def initial_state(self, *sizes: Any, **options: Any) -> Any:
        """The network's."""
        return self.network.initial_state(*sizes, **options)

    def _dropped(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return drop(x, self.dropout, generator) if self.training and self.dropout else x


class TokenClassifier(nn.Module):
    """Class scores from the last output of a network that reads tokens.

    Args:
        make: makes the network from its input size.
        tokens: how many there are in each channel.
        channels: tokens that are read at each step, each with embeddings of its own, which are put side by side.
        embedding: features of a step, divided among the channels.
        classes: how many there are.
        dropout: rate behind the embedding and behind the network.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        *,
        tokens: int,
        channels: int,
        embedding: int,
        classes: int,
        dropout: float | int,
    ) -> None:
        super().__init__()
        if embedding % channels:
            raise ValueError(f"embedding={embedding} is not divided evenly by {channels} channels")
        self.tokens = tokens
        # One table for all channels, each with its own rows.
        self.embed = nn.Embedding(tokens * channels, embedding // channels)
        self.register_buffer("first_row", torch.arange(channels) * tokens, persistent=False)
        self.network = Frame(make, embedding, 0, dropout)
        self.head = nn.Linear(self.network.output_size, classes)
        # The released code's: with weights near 1 the attention to the input would be sharp from the start.
        for module in (self.embed, self.head):
            nn.init.uniform_(module.weight, -0.1, 0.1)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (batch, classes) of tokens (time, batch, channels), and all outputs of the network."""
        outputs, _ = self.network(self.embed(tokens + self.first_row).flatten(2))
        return self.head(outputs[-1]), outputs


def drop(x: Tensor, rate: float | int, generator: torch.Generator | None) -> Tensor:
    """Dropout whose draws come from a generator, if one is given."""
    if generator is None:
        return F.dropout(x, rate)
    kept = torch.rand(x.shape, generator=generator, device=x.device) >= rate
    return x * kept / (1 - rate)
