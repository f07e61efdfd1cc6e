"""First values of recurrent matrices that only rotate: blocks of two units, each turned by a random angle.

Such a matrix is the exponential of a skew-symmetric one, so it is orthogonal with determinant 1, and a plain network
that starts from it neither forgets nor explodes at first.
"""

import math

import torch
from torch import Tensor


def henaff_init_(weight: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill a square matrix with rotations of pairs of units by angles uniform in (-π, 0).

    Args:
        weight: (n, n), changed in place. Of an odd n the last unit is kept as it is.
        generator: where the angles come from; torch's own by default.

    Returns:
        `weight`.

    Raises:
        ValueError: it is not square.

    Source: Henaff, Szlam and LeCun, 2016; the released code of Kerg et al., 2020, for copying and denoising.

    >>> weight = henaff_init_(torch.empty(4, 4))
    >>> bool(torch.allclose(weight @ weight.T, torch.eye(4), atol=1e-6))
    True
    """
    return _rotate_(weight, -math.pi * _uniform(weight, generator))


def cayley_init_(weight: Tensor, *, released: bool = False, generator: torch.Generator | None = None) -> Tensor:
    """Fill a square matrix with rotations of pairs of units by angles u uniform in (0, π/2): slow rotations.

    It is the Cayley transform `(I + A)^-1 (I - A)` of the skew-symmetric A with blocks of `-tan(u / 2)`.

    Args:
        weight: (n, n), changed in place. Of an odd n the last unit is kept as it is.
        released: take the exponential of A in place of its Cayley transform, as the released code of Kerg et al. does:
            angles `-tan(u / 2)`, slower still.
        generator: where u comes from; torch's own by default.

    Returns:
        `weight`.

    Raises:
        ValueError: it is not square.

    Source: Helfrich, Willmott and Ye, 2018.

    >>> weight = cayley_init_(torch.empty(3, 3))
    >>> weight[2].tolist()
    [0.0, 0.0, 1.0]
    """
    u = _uniform(weight, generator) * math.pi / 2
    return _rotate_(weight, -torch.tan(u / 2) if released else u)


def _uniform(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    """A number in [0, 1) for each pair of units."""
    if weight.dim() != 2 or weight.shape[0] != weight.shape[1]:
        raise ValueError(f"the matrix has shape {tuple(weight.shape)}; rotations need a square one")
    device = weight.device if generator is None else generator.device
    return torch.rand(weight.shape[0] // 2, generator=generator, device=device, dtype=torch.float64)


def _rotate_(weight: Tensor, angles: Tensor) -> Tensor:
    """Blocks [[cos a, sin a], [-sin a, cos a]] on the diagonal: the exponential of [[0, a], [-a, 0]]."""
    first = torch.arange(0, 2 * len(angles), 2, device=weight.device)
    cosine, sine = (function(angles).to(weight) for function in (torch.cos, torch.sin))
    with torch.no_grad():
        weight.zero_().fill_diagonal_(1)
        weight[first, first] = weight[first + 1, first + 1] = cosine
        weight[first, first + 1] = sine
        weight[first + 1, first] = -sine
    return weight
