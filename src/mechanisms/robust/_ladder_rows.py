"""What users give a ladder network: checked, and as rows of numbers in the precision that statistics are taken in."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechanisms._base.seeds import torch_generator
from mechanisms.robust._ladder_levels import full
from mechanisms.robust.ladder_layers import LevelShape


def rows_of(x: Tensor, shape: LevelShape) -> Tensor:
    """Examples as rows, one for each position of an image: (..., n, d) or (n, C, H, W) to (..., n * P, C).

    >>> rows_of(torch.zeros(2, 3, 4, 4), LevelShape(3, 4, 4)).shape
    torch.Size([32, 3])
    """
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    return x.permute(0, 2, 3, 1).reshape(-1, shape.channels) if shape.positions > 1 else x.reshape(*_lead(x, shape))


def _lead(x: Tensor, shape: LevelShape) -> tuple[int, ...]:
    return (len(x), shape.channels) if x.dim() == 4 else tuple(x.shape)


def check_inputs(x: Any, name: str, network: Any, *, at_least: int = 0) -> None:
    """An error unless these are examples for the network, and so many.

    Raises:
        TypeError: no tensor.
        ValueError: a shape that does not fit, fewer rows.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; give a tensor, as torch.as_tensor(...) makes one")
    shape, models = network.shapes[0], network.num_models
    vectors = shape.positions == 1 and x.shape[-1:] == (shape.channels,)
    fits = x.dim() == 2 and vectors
    fits |= x.dim() == 3 and vectors and x.shape[0] == models
    fits |= x.dim() == 4 and tuple(x.shape[1:]) == tuple(shape)
    if not fits:
        expected = f"(n, {shape.channels})" if shape.positions == 1 else f"(n, {', '.join(map(str, shape))})"
        if models is not None:
            expected += f" for all networks, or ({models}, n, {shape.channels})"
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {expected}")
    if (count := _count(x)) < at_least:
        raise ValueError(f"{name} has {count} row(s); batch statistics need at least {at_least}, each part its own")


def _count(x: Tensor) -> int:
    return x.shape[-2 if x.dim() == 3 else 0]


def check_labels(y: Any, name: str, x: Tensor, network: Any) -> None:
    """An error unless these are labels of the rows x; their values are not looked at.

    Raises:
        TypeError: no tensor.
        ValueError: a shape that does not fit, labels that are no integers.
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"{name} is a {type(y).__name__}; give a tensor, as torch.as_tensor(...) makes one")
    count = _count(x)
    if tuple(y.shape) not in ((count,), (network.num_models, count)):
        raise ValueError(f"{name} has shape {tuple(y.shape)}; expected ({count},), one label for each row")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"{name} has type {y.dtype}; expected integers from 0 to {network.num_classes - 1}")


def check_batch(x_labelled: Any, y: Any, x_unlabelled: Any, network: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Labelled rows, labels and unlabelled rows of a batch, ready for the network.

    Raises:
        TypeError: no tensors.
        ValueError: shapes that do not fit, fewer than two rows, labels that are no integers from 0 to K - 1.
    """
    rows = []
    for x, name in ((x_labelled, "x_labelled"), (x_unlabelled, "x_unlabelled")):
        check_inputs(x, name, network, at_least=2)
        one = rows_of(x, network.shapes[0])
        if network.num_models is not None and one.dim() == 2:
            one = one.expand(network.num_models, *one.shape)
        rows.append(one)
    check_labels(y, "y", x_labelled, network)
    # On an accelerator looking at the values would wait for it; there the gather below refuses them.
    if y.device.type == "cpu" and not torch.compiler.is_compiling():
        least, most = int(y.min()), int(y.max())
        if least < 0 or most >= network.num_classes:
            raise ValueError(
                f"y holds labels from {least} to {most}; expected 0 to {network.num_classes - 1} (unlabelled rows, "
                "often marked -1, belong in x_unlabelled)"
            )
    return rows[0], y.long(), rows[1]


def scaled_noise(
    network: Any,
    given: Sequence[Tensor] | None,
    generator: torch.Generator | int | None,
    like: Float[Tensor, "*models rows units"],
    rows: int,
) -> list[Tensor | None]:
    """Noise of each level for so many rows, given or drawn, scaled; None where there is none.

    Raises:
        ValueError: given noise of another shape.
    """
    if given is not None:
        if len(given) != len(network.shapes):
            raise ValueError(f"noise has {len(given)} tensors for {len(network.shapes)} levels, inputs included")
        for level, (one, shape) in enumerate(zip(given, network.shapes, strict=True)):
            fits = one.dim() > 1 and one.shape[-2] >= rows * shape.positions and one.shape[-1] == shape.channels
            if not fits or one.shape[:-2] not in ((), like.shape[:-2]):
                raise ValueError(
                    f"noise[{level}] has shape {tuple(one.shape)}; expected "
                    f"({rows * shape.positions}, {shape.channels})"
                )
    source = torch_generator(generator, "noise", like.device) if isinstance(generator, int) else generator
    noise: list[Tensor | None] = []
    std = full(network.noise_std)
    for level, (shape, noisy) in enumerate(zip(network.shapes, network._noisy, strict=True)):
        if not noisy:
            noise.append(None)
            continue
        size = rows * shape.positions
        if given is not None:
            drawn = given[level][..., :size, :]
        else:
            shape_drawn = (*like.shape[:-2], size, shape.channels)
            drawn = torch.randn(shape_drawn, generator=source, device=like.device, dtype=like.dtype)
        # Contiguous when scaled: rows of what was drawn for several networks at once are not.
        noise.append(drawn * std[..., level, None, None])
    return noise
