"""A level of a ladder network: normalisation of the segments of a batch, and the cost of a reconstruction.

Rows of a batch come in up to three segments, each normalised by its own statistics: the labelled ones of the corrupted
pass, the unlabelled ones of the corrupted pass, and the unlabelled ones of the clean pass. The clean pass of labelled
rows enters no cost and is left out.

    (zhat - mu) / sigma - z = (zhat - zpre) / sigma        since z = (zpre - mu) / sigma in the clean pass

so the target of a level is what its clean pass was before the normalisation, and a scale 1 / sigma.

All functions take any number of leading axes: networks that train side by side have one in front.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mechanisms.robust import _ladder_kernels as kernels

EPSILON = 1e-10  # of the reference; in half precision it would be zero, so statistics are never taken in it


class Level(NamedTuple):
    """What a level of the encoder gives.

    Attributes:
        h: of all rows, after beta and the activation, (..., R, d); without `relu` before gamma.
        lateral: noisy values of the unlabelled rows, before beta, (..., n, d).
        target: clean values of the unlabelled rows before the normalisation, (..., n, d).
        scale: 1 / sigma of these, (..., d); None where they were not normalised (the inputs).
    """

    h: Tensor
    lateral: Tensor | None
    target: Tensor | None
    scale: Tensor | None


def full(values: Tensor) -> Tensor:
    """At least single precision: what statistics are taken in."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def normalise_level(
    pre: Float[Tensor, "*models rows units"],
    noise: Float[Tensor, "*models noisy units"] | None,
    beta: Float[Tensor, "*models units"],
    ends: tuple[int, ...],
    *,
    relu: bool,
) -> Level:
    """Normalise each segment, add noise to the first rows, add beta, and activate.

    Args:
        pre: linear map's output.
        noise: of the corrupted rows, scaled.
        beta: shift.
        ends: where the one or three segments end.
        relu: whether negative values become 0.

    Raises:
        ValueError: the map's output is of another size; a layer of the user's own may give that.
    """
    pre = full(pre)
    expected = (*beta.shape[:-1], ends[-1], beta.shape[-1])
    if tuple(pre.shape) != expected:
        raise ValueError(f"a layer gave values of shape {tuple(pre.shape)}; its `shape` promised {expected}")
    # The kernels know no gradient of the noise.
    fixed = noise is None or not noise.requires_grad
    if fixed and kernels.usable(pre, beta, *(() if noise is None else (noise,))):
        return Level(*kernels.Normalise.apply(pre, noise, beta, ends, relu, EPSILON))
    bounds = (0, *ends)
    parts = [pre[..., first:end, :] for first, end in zip(bounds, ends, strict=False)]
    normalised = [_normalise(part) for part in parts]
    z = torch.cat([values for values, _ in normalised], -2)
    if noise is not None:
        noisy = noise.shape[-2]
        z = torch.cat([z[..., :noisy, :] + noise, z[..., noisy:, :]], -2)
    h = z + full(beta).unsqueeze(-2)
    if relu:
        h = h.relu()
    if len(ends) == 1:
        return Level(h, None, None, None)
    return Level(h, z[..., ends[0] : ends[1], :], parts[2], normalised[2][1].squeeze(-2))


def normalise(pre: Float[Tensor, "*models rows units"]) -> Float[Tensor, "*models rows units"]:
    """Values with mean 0 and variance 1 over the rows: the decoder's normalisation.

    >>> normalise(torch.tensor([[1.0], [3.0]])).flatten().tolist()
    [-1.0, 1.0]
    """
    pre = full(pre)
    if kernels.usable(pre):
        return kernels.Normalise.apply(pre, None, None, (pre.shape[-2],), False, EPSILON)[0]
    return _normalise(pre)[0]


def reconstruction_cost(
    guess: Float[Tensor, "*models rows units"],
    target: Float[Tensor, "*models rows units"],
    scale: Float[Tensor, "*models units"] | None,
) -> Float[Tensor, "*models"]:
    """Mean over rows and units of ((guess - target) scale)^2, for each model.

    >>> reconstruction_cost(torch.ones(4, 2), torch.zeros(4, 2), torch.full((2,), 3.0)).item()
    9.0
    """
    guess = full(guess)
    given = (guess, target) if scale is None else (guess, target, scale)
    if kernels.usable(*given):
        return kernels.Cost.apply(*given[:2], scale)
    away = guess - target
    if scale is not None:
        away = away * scale.unsqueeze(-2)
    return away.square().mean((-2, -1))


def _normalise(part: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(part, -2, correction=0, keepdim=True)
    scale = (variance + EPSILON).rsqrt()
    return (part - mean) * scale, scale
