"""What a ladder network is built of: dense, convolutional and pooling layers, each with its way up and its way down.

A layer is a line of data. `DenseLayer(250)`, `ConvLayer(32, 3)` and `PoolLayer(2)` say what comes out of it; from what
comes in they make two modules, the linear map of the encoder and the one with which the decoder goes back:

    dense            h W'                          zhat V'
    convolution      convolution with W            transposed convolution with V
    pooling          maximum or mean               every value spread over the cells it came from

There are no biases: a normalisation follows each map. Weights start as N(0, 1/fan_in).

Inside the network a level is a matrix with one column per channel and one row per example and position, so that batch
statistics, combinators and costs are the same for images and for vectors. Shapes: R examples, P positions, C channels.
"""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ConvLayer", "DenseLayer", "Layer", "LevelShape", "PoolLayer"]


class LevelShape(NamedTuple):
    """Channels and size of a level; vectors have height and width 1.

    >>> LevelShape(3, 8, 8).positions
    64
    """

    channels: int
    height: int = 1
    width: int = 1

    @property
    def positions(self) -> int:
        """Rows that an example has at this level."""
        return self.height * self.width

    @property
    def size(self) -> int:
        """Numbers that an example has at this level."""
        return self.positions * self.channels


@runtime_checkable
class Layer(Protocol):
    """What a layer has to offer; one of your own needs these three methods.

    The two modules take and return matrices (..., R * P, C), those of `LevelShape`.

    >>> DenseLayer(4).shape(LevelShape(8))
    LevelShape(channels=4, height=1, width=1)
    """

    def shape(self, below: LevelShape) -> LevelShape:
        """The level above."""
        ...

    def up(self, below: LevelShape, generator: torch.Generator) -> nn.Module:
        """The encoder's map."""
        ...

    def down(self, below: LevelShape, generator: torch.Generator) -> nn.Module:
        """The decoder's map."""
        ...


@dataclass(frozen=True)
class DenseLayer:
    """Every number below to `width` numbers; below may be an image. A plain integer stands for it.

    Raises:
        ValueError: a width below 1.

    >>> DenseLayer(5).up(LevelShape(3), torch.Generator())(torch.ones(2, 3)).shape
    torch.Size([2, 5])
    """

    width: int

    def __post_init__(self) -> None:
        _check_counts(width=self.width)

    def shape(self, below: LevelShape) -> LevelShape:
        """`width` channels at one position."""
        return LevelShape(self.width)

    def up(self, below: LevelShape, generator: torch.Generator) -> nn.Module:
        """Rows of the level below, laid side by side, times W'."""
        return _Product(below, self.shape(below), generator)

    def down(self, below: LevelShape, generator: torch.Generator) -> nn.Module:
        """Back to all numbers of the level below."""
        return _Product(self.shape(below), below, generator)


@dataclass(frozen=True)
class ConvLayer:
    """A convolution.

    Args:
        channels: that come out.
        kernel_size, stride: as in `torch.nn.Conv2d`, square.
        padding: zeros around the image; None, the default, is `kernel_size // 2`, which keeps the size at stride 1.

    Raises:
        ValueError: numbers out of range; from `shape`, an image smaller than the kernel.

    >>> ConvLayer(8, 3, stride=2).shape(LevelShape(1, 28, 28))
    LevelShape(channels=8, height=14, width=14)
    """

    channels: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | None = None

    def __post_init__(self) -> None:
        _check_counts(channels=self.channels, kernel_size=self.kernel_size, stride=self.stride)
        if self.padding is not None and self.padding < 0:
            raise ValueError(f"padding={self.padding}: it must be at least 0")

    @property
    def _padding(self) -> int:
        return self.kernel_size // 2 if self.padding is None else self.padding

    def shape(self, below: LevelShape) -> LevelShape:
        """Channels and size that come out."""
        sizes = [(side + 2 * self._padding - self.kernel_size) // self.stride + 1 for side in below[1:]]
        if min(sizes) < 1:
            raise ValueError(f"{self} does not fit on an image of {below.height} x {below.width}; pad it or leave it")
        return LevelShape(self.channels, *sizes)

    def up(self, below: LevelShape, generator: torch.Generator) -> nn.Module:
        """The convolution."""
        return _Convolution(self.stride, self._padding, self.kernel_size, below, self.shape(below), False, generator)

    def down(self, below: LevelShape, generator: torch.Generator) -> nn.Module:
        """A transposed convolution with weights of its own, to exactly the size below."""
        return _Convolution(self.stride, self._padding, self.kernel_size, below, self.shape(below), True, generator)


@dataclass(frozen=True)
class PoolLayer:
    """Pooling over squares that do not overlap; the decoder gives each cell the value of its square.

    Args:
        size: side of the squares; None is the whole image ("global").
        kind: "max" or "mean".

    Raises:
        ValueError: an unknown kind, a size below 1; from `shape`, an image smaller than a square.

    Source: Rasmus et al. 2015, section 4.2.

    >>> PoolLayer(2).shape(LevelShape(8, 7, 7))
    LevelShape(channels=8, height=3, width=3)
    """

    size: int | None = 2
    kind: str = "max"

    def __post_init__(self) -> None:
        if self.kind not in ("max", "mean"):
            raise ValueError(f"kind={self.kind!r}: it must be one of 'max', 'mean'")
        if self.size is not None:
            _check_counts(size=self.size)

    def _sides(self, below: LevelShape) -> tuple[int, int]:
        return (below.height, below.width) if self.size is None else (self.size, self.size)

    def shape(self, below: LevelShape) -> LevelShape:
        """The same channels, fewer positions."""
        sizes = [whole // side for whole, side in zip(below[1:], self._sides(below), strict=True)]
        if min(sizes) < 1:
            raise ValueError(f"{self} does not fit on an image of {below.height} x {below.width}; leave it out")
        return LevelShape(below.channels, *sizes)

    def up(self, below: LevelShape, generator: torch.Generator) -> nn.Module:
        """The pooling; it has no weights."""
        return _Pooling(self._sides(below), self.kind, below)

    def down(self, below: LevelShape, generator: torch.Generator) -> nn.Module:
        """The spreading; it has no weights."""
        return _Spreading(self._sides(below), below, self.shape(below))


def as_layer(layer: Any) -> Layer:
    """A layer, or the dense one that an integer stands for.

    Raises:
        TypeError: something else.

    >>> as_layer(3)
    DenseLayer(width=3)
    """
    if isinstance(layer, Integral) and not isinstance(layer, bool):
        return DenseLayer(int(layer))
    if isinstance(layer, type) or not isinstance(layer, Layer):
        raise TypeError(
            f"a layer is {layer!r}; give a width, or a layer such as ConvLayer(32, 3) with the methods shape, up, down"
        )
    return layer


def as_input(shape: Any) -> LevelShape:
    """The level of the inputs: a number of features, or (channels, height, width).

    Raises:
        ValueError: neither.

    >>> as_input((1, 28, 28)).positions
    784
    """
    sizes = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    whole = all(isinstance(size, Integral) and not isinstance(size, bool) and int(size) > 0 for size in sizes)
    if len(sizes) not in (1, 3) or not whole:
        raise ValueError(f"widths start with {shape!r}; expected a number of features, or (channels, height, width)")
    return LevelShape(*map(int, sizes))


class _Product(nn.Module):
    def __init__(self, below: LevelShape, above: LevelShape, generator: torch.Generator) -> None:
        super().__init__()
        self._below, self._above = below.positions, above
        self.weight = nn.Parameter(_normal((above.size, below.size), below.size, generator))

    def forward(self, h: Float[Tensor, "... rows below"]) -> Float[Tensor, "*models rows_out above"]:
        if self._below > 1:
            h = h.unflatten(-2, (-1, self._below)).flatten(-2)
        out = h.to(self.weight.dtype) @ self.weight.mT
        if self._above.positions > 1:
            out = out.unflatten(-1, (self._above.positions, self._above.channels)).flatten(-3, -2)
        return out


class _Convolution(nn.Module):
    """Up, or with `back` down; both from a level `below` to or from `above`."""

    def __init__(
        self,
        stride: int,
        padding: int,
        kernel: int,
        below: LevelShape,
        above: LevelShape,
        back: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self._stride, self._padding, self._start = stride, padding, above if back else below
        # What a strided convolution leaves out at the far edge, the way back has to add.
        self._rest = None
        if back:
            self._rest = [
                low - ((high - 1) * stride - 2 * padding + kernel)
                for low, high in zip(below[1:], above[1:], strict=True)
            ]
        shape = (above.channels, below.channels, kernel, kernel)
        fan_in = self._start.channels * kernel**2
        self.weight = nn.Parameter(_normal(shape, fan_in, generator))

    def forward(self, h: Float[Tensor, "rows start"]) -> Float[Tensor, "rows_out end"]:
        images = _as_images(h.to(self.weight.dtype), self._start)
        if self._rest is None:
            return _as_rows(F.conv2d(images, self.weight, None, self._stride, self._padding))
        return _as_rows(F.conv_transpose2d(images, self.weight, None, self._stride, self._padding, self._rest))


class _Pooling(nn.Module):
    def __init__(self, sides: tuple[int, int], kind: str, below: LevelShape) -> None:
        super().__init__()
        self._sides, self._below = sides, below
        self._pool = F.max_pool2d if kind == "max" else F.avg_pool2d

    def forward(self, h: Float[Tensor, "rows channels"]) -> Float[Tensor, "rows_out channels"]:
        return _as_rows(self._pool(_as_images(h, self._below), self._sides))


class _Spreading(nn.Module):
    def __init__(self, sides: tuple[int, int], below: LevelShape, above: LevelShape) -> None:
        super().__init__()
        self._sides, self._above = sides, above
        # Cells at the far edge that no square covers get the value of the nearest one.
        height, width = (whole - side * many for whole, side, many in zip(below[1:], sides, above[1:], strict=True))
        self._rest = (0, width, 0, height)

    def forward(self, h: Float[Tensor, "rows channels"]) -> Float[Tensor, "rows_out channels"]:
        height, width = self._sides
        images = _as_images(h, self._above).repeat_interleave(height, 2).repeat_interleave(width, 3)
        return _as_rows(F.pad(images, self._rest, mode="replicate") if any(self._rest) else images)


def _as_images(h: Tensor, shape: LevelShape) -> Tensor:
    return h.view(-1, shape.height, shape.width, shape.channels).permute(0, 3, 1, 2)


def _as_rows(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])


def _normal(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    return (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        .div_(math.sqrt(fan_in))
        .to(torch.get_default_dtype())
    )


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}={count!r}: it must be an integer of at least 1")
