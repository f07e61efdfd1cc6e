"""The small network of Z-Forcing: one hidden layer, everything clamped."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mechanisms.recurrent._stochastic_kernel import BOUND, LIMIT, SLOPE


class Perceptron(nn.Module):
    """`clamp(W2 φ(W1 x + b1) + b2, -limit, limit)` with `φ(u) = clamp(leaky_relu(u, 1/3), -3, 3)`.

    Args:
        inputs, width, outputs: sizes.
        limit: of the outputs.
    """

    def __init__(self, inputs: int, width: int, outputs: int, *, limit: float = LIMIT) -> None:
        super().__init__()
        self.first, self.second, self.limit = nn.Linear(inputs, width), nn.Linear(width, outputs), limit

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs (..., outputs)."""
        return self.rest(self.first(inputs))

    def rest(self, hidden: Tensor) -> Tensor:
        """What follows the first product, which may have been computed elsewhere for many steps at once."""
        return self.second(F.leaky_relu(hidden, SLOPE).clamp(-BOUND, BOUND)).clamp(-self.limit, self.limit)

    def split(self, size: int) -> tuple[Tensor, Tensor]:
        """The first layer's weights of the first `size` inputs, and of the others."""
        first, others = self.first.weight.split([size, self.first.in_features - size], 1)
        return first, others


def in_type(tensor: Tensor, like: Tensor) -> Tensor:
    """In the type of another: under autocast products come back in half precision."""
    return tensor if tensor.dtype is like.dtype else tensor.to(like.dtype)


def gaussian_sample(statistics: Tensor, noise: Tensor | None) -> Tensor:
    """`mean + exp(logvar / 2) noise` from (..., 2Z); the mean without noise."""
    mean, logvar = statistics.chunk(2, -1)
    return mean if noise is None else torch.addcmul(mean, torch.exp(0.5 * logvar), noise)
