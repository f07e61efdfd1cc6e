"""Generators and discriminators of images of 32 by 32 pixels: the original code's, and residual ones."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Architecture = Literal["dcgan", "residual"]
NOISE = 128  # dimensions of the generator's input


def generator(architecture: Architecture, channels: int, width: int, norm: bool) -> nn.Module:
    """A network from noise (batch, 128) to images (batch, channels, 32, 32) in [-1, 1].

    Args:
        architecture: "dcgan" is the original code's, "residual" has three residual blocks.
        channels: of the images.
        width: of the layers; 128 in the original code.
        norm: whether there is batch norm.
    """
    if architecture == "residual":
        blocks = [Up(width, norm) for _ in range(3)]
        last = [*_norm(width, norm), nn.ReLU(), nn.Conv2d(width, channels, 3, padding=1), nn.Tanh()]
        return nn.Sequential(nn.Linear(NOISE, 16 * width), nn.Unflatten(1, (width, 4, 4)), *blocks, *last)
    layers: list[nn.Module] = [nn.Linear(NOISE, 64 * width), nn.Unflatten(1, (4 * width, 4, 4))]
    layers += [*_norm(4 * width, norm), nn.ReLU()]
    for before, after in ((4 * width, 2 * width), (2 * width, width)):
        layers += [nn.ConvTranspose2d(before, after, 2, 2), *_norm(after, norm), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, channels, 2, 2), nn.Tanh())


def discriminator(architecture: Architecture, channels: int, width: int) -> nn.Module:
    """A network from images (batch, channels, 32, 32) in [-1, 1] to logits (batch, 1); it never has batch norm."""
    if architecture == "residual":
        first = [
            nn.Conv2d(channels, width, 3, padding=1),
            Down(width, 2),
            Down(width, 2),
            Down(width, 1),
            Down(width, 1),
        ]
        return nn.Sequential(*first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1))
    layers: list[nn.Module] = []
    for before, after in ((channels, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * width, 1))


class Up(nn.Module):
    """A pre-activated residual block that doubles height and width."""

    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(*_norm(width, norm), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            *_norm(width, norm),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Float[Tensor, "batch width h w"]) -> Float[Tensor, "batch width h2 w2"]:
        """One block."""
        larger = functional.interpolate(self.first(x), scale_factor=2.0)
        return self.body(larger) + functional.interpolate(x, scale_factor=2.0)


class Down(nn.Module):
    """A pre-activated residual block that divides height and width by `stride`."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.body = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Float[Tensor, "batch width h w"]) -> Float[Tensor, "batch width h2 w2"]:
        """One block."""
        y = self.body(x) + x
        return functional.avg_pool2d(y, self.stride) if self.stride > 1 else y


def _norm(width: int, norm: bool) -> list[nn.Module]:
    return [nn.BatchNorm2d(width)] if norm else []
