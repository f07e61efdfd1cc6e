"""A recurrent network between an encoder and a decoder of frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Predictor(nn.Module):
    """Logits of the next frame from the frames so far.

    Args:
        make: makes the network from its input size.
        size: height and width of a frame; a multiple of 8 for convolutions.
        features: of an encoded frame.
        kind: "linear", or "convolutional": a layer of stride 4, one of stride 2, and the same back.
    """

    def __init__(self, make: Callable[[int], Any], size: int, features: int, kind: str) -> None:
        super().__init__()
        if kind == "convolutional" and size % 8:
            raise ValueError(f"size={size}: convolutions of stride 4 and 2 need a multiple of 8")
        self.network = make(features)
        inner = self.network.output_size
        if kind == "linear":
            self.encode: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(size * size, features), nn.ReLU())
            self.decode: nn.Module = nn.Sequential(nn.Linear(inner, size * size), nn.Unflatten(1, (1, size, size)))
        else:
            small = size // 8
            self.encode = nn.Sequential(
                nn.Conv2d(1, 16, 8, stride=4, padding=2),
                nn.ReLU(),
                nn.Conv2d(16, 32, 4, stride=2, padding=1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(32 * small * small, features),
                nn.ReLU(),
            )
            self.decode = nn.Sequential(
                nn.Linear(inner, 32 * small * small),
                nn.ReLU(),
                nn.Unflatten(1, (32, small, small)),
                nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
                nn.ReLU(),
                nn.ConvTranspose2d(16, 1, 8, stride=4, padding=2),
            )

    def forward(self, frames: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Logits (time, films, size, size), one frame ahead of the input (time, films, size, size), and the state."""
        steps, films = frames.shape[:2]
        encoded = self.encode(frames.flatten(0, 1).unsqueeze(1))
        output, state = self.network(encoded.view(steps, films, -1), state)
        return self.decode(output.flatten(0, 1)).view(frames.shape), state
