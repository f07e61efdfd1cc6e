"""Linear teacher-student problems in the limit of many dimensions, as tensors: one problem or a whole map of them.

With n samples, d dimensions and groups of p_i directions of singular value s_i, let n, d, p_i grow at fixed ratios
nu = n/d and H_i = p_i/d. Everything that gradient descent does then follows from (nu, H, s, sigma, lambda), which
`Limit` holds for any number of problems at once. Its entries may be any tensors, also ones that require gradients.

Reference: Pezeshki, Mitra, Bengio, Lajoie, "Multi-scale Feature Learning Dynamics: Insights for Double Descent",
ICML 2022, arXiv 2112.03215.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mechanisms._base.validation import as_finite

NEWTON_STEPS = 100


class Limit(NamedTuple):
    """Problems in the limit, one for each entry of `ratio`; what `learning_curves` takes for a map.

    Attributes:
        ratio: samples for each dimension, nu = n/d, above 0, (problems,).
        shares: fraction of the directions in each group, H_i = p_i/d, summing to 1, (problems, groups).
        scales: singular value s_i of each group, 0 or more, (problems, groups).
        noise: standard deviation sigma of the label noise, 0 or more, (problems,).
        l2: strength lambda of weight decay, 0 or more, (problems,).

    >>> l2 = torch.logspace(-8, 0, 5, dtype=torch.float64)
    >>> one = torch.ones_like(l2)
    >>> scales = torch.tensor([[1.0, 0.01]], dtype=torch.float64).expand(5, 2)
    >>> limit = Limit(1.2 * one, torch.full_like(scales, 0.5), scales, 0.2 * one, l2)
    >>> limit.checked().shares.shape
    torch.Size([5, 2])
    """

    ratio: Tensor
    shares: Tensor
    scales: Tensor
    noise: Tensor
    l2: Tensor

    def checked(self) -> "Limit":
        """The same in float64, with its values checked.

        Raises:
            TypeError, ValueError: something is no tensor of finite numbers, shapes do not fit, or values are out of
                their range; the message says which.
        """
        fields = [as_finite(value, name, dtype=torch.float64) for name, value in self._asdict().items()]
        ratio, shares, scales, noise, l2 = fields
        wanted = {
            "ratio": ratio.dim() == 1,
            "shares": shares.dim() == 2 and shares.shape[:1] == ratio.shape and shares.shape[1] > 0,
            "scales": scales.shape == shares.shape,
            "noise": noise.shape == ratio.shape,
            "l2": l2.shape == ratio.shape,
        }
        for name, good in wanted.items():
            if not good:
                shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in zip(self._fields, fields, strict=True))
                raise ValueError(
                    f"{name} does not fit: got {shapes}; expected ratio, noise and l2 of shape (problems,), shares and "
                    "scales of shape (problems, groups)"
                )
        ranges = {
            "ratio must be above 0": ratio > 0,
            "shares must be 0 or more": shares >= 0,
            "shares must sum to 1 for each problem": (shares.sum(1) - 1).abs() < 1e-9,
            "scales must be 0 or more": scales >= 0,
            "some scale of each problem must be above 0": ((scales > 0) & (shares > 0)).any(1),
            "noise must be 0 or more": noise >= 0,
            "l2 must be 0 or more": l2 >= 0,
        }
        for text, good in ranges.items():
            if not bool(good.all()):
                raise ValueError(f"{text}; it is not at index {tuple(int(i) for i in (~good).nonzero()[0])}")
        return Limit(*fields)


def largest_eigenvalue(limit: Limit) -> Float[Tensor, " problems"]:
    """The largest eigenvalue of X^T X in the limit, for each problem: 1 over it is a stable learning rate.

    It is the upper edge of the spectrum, min over x > max s_i^2 of nu x + sum_i H_i s_i^2 x / (x - s_i^2) (Silverstein
    and Choi 1995); for one group of share H that is nu s^2 (1 + sqrt(H/nu))^2, the value the paper's figures use.

    Args:
        limit: the problems.

    Returns:
        (problems,), float64.

    >>> one = torch.ones(1, dtype=torch.float64)
    >>> scales = torch.tensor([[1.0, 0.01]], dtype=torch.float64)
    >>> round(largest_eigenvalue(Limit(1.5 * one, torch.tensor([[0.7, 0.3]]), scales, 0 * one, 0 * one)).item(), 3)
    4.249
    """
    ratio, shares, scales, _, _ = limit.checked()
    squares = torch.where(shares > 0, scales.square(), 0.0)
    top = squares.max(1, keepdim=True).values
    squares = squares / top
    # Newton for the minimum, in y = x - 1: from the left of the root the decreasing, convex derivative is followed
    # monotonically; the group of the top eigenvalue alone gives a start that is left of it.
    highest = torch.where(squares == 1, shares, 0.0).sum(1)
    y = (highest / ratio).sqrt()
    for _ in range(NEWTON_STEPS):
        gap = y[:, None] + (1 - squares)
        slope = (shares * squares.square() / gap.square()).sum(1) - ratio
        bend = 2 * (shares * squares.square() / gap**3).sum(1)
        step = (slope / bend).clamp(min=0)  # at the root, rounding would push y back and forth
        y = y + step
        if bool((step <= 1e-15 * y).all()):
            break
    x = 1 + y[:, None]
    return top[:, 0] * (ratio * x[:, 0] + (shares * squares * x / (x - squares)).sum(1))
