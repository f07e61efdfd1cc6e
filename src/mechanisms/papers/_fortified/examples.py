"""Images in [0, 1] and labels, drawn by the seed alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from mechanisms.lab import Bench
    from mechanisms.papers._fortified.settings import Fortified


@dataclass(frozen=True)
class Examples:
    """Images (n, channels, height, width) float32 in [0, 1] and labels (n,), for training and for the test."""

    x: torch.Tensor
    y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.x.shape[1:]
        return channels, height, width


def load(settings: Fortified, bench: Bench) -> Examples:
    """The examples of one seed: digits are split anew, of the large sets other training images are drawn.

    Raises:
        NotHere: the data are not on this machine.
        ValueError: more images are asked for than there are.
    """
    x, y, test_x, test_y = _whole(settings, bench)
    x, y = _cut(settings.num_train, "num_train", x, y, bench.numpy("subset").permutation(len(y)))
    test_x, test_y = _cut(settings.num_test, "num_test", test_x, test_y, np.arange(len(test_y)))
    return Examples(_images(x), torch.from_numpy(y), _images(test_x), torch.from_numpy(test_y))


def _whole(settings: Fortified, bench: Bench) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    from mechanisms.lab import data

    if settings.data == "digits":
        splits = data.digits(bench.seed)
        parts = (splits.train, splits.validation, splits.test)
        x, y = np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts])
        return x[:1297], y[:1297], x[1297:], y[1297:]
    if settings.data == "generated":
        from mechanisms.papers._vision import generated_images

        colours, side = (3, 32) if settings.network == "resnet" else (1, 28)
        splits = generated_images(settings.num_train, settings.num_test, 10, bench.seed, side)
        train, test = splits.train, splits.test
        return train.x[..., :colours], train.y, test.x[..., :colours], test.y
    if settings.data == "fashion-mnist":
        splits = data.fashion_mnist(settings.path or None)
    elif settings.data == "mnist":
        splits = data.mnist(settings.path or None, hub=settings.hub, num_validation=0)
    else:
        splits = data.cifar10(settings.path or None, hub=settings.hub)
    x = np.concatenate([splits.train.x, splits.validation.x])
    y = np.concatenate([splits.train.y, splits.validation.y])
    return x, y, splits.test.x, splits.test.y


def _cut(count: int, name: str, x: np.ndarray, y: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not 0 <= count <= len(y):
        raise ValueError(f"{name}={count}: there are {len(y)} images; give at most so many, or 0 for all")
    rows = order[: count or len(y)]
    return x[rows], y[rows]


def _images(x: np.ndarray) -> torch.Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(x if x.ndim == 4 else x[..., None])).permute(0, 3, 1, 2)
    return (pixels.float() / 255 if x.dtype == np.uint8 else pixels.float()).contiguous()
