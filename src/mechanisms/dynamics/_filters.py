"""Spectral filters: what a linear method has made of an eigendirection of X^T X after t steps from zero.

With eigenvalues L of X^T X, weights at time t are V phi_t(L) V^T X^T y for

    flow   phi = (1 - exp(-tau (L + lambda))) / (L + lambda),        tau = lr t
    gd     phi = (1 - (1 - lr (L + lambda))^t) / (L + lambda)
    ridge  phi = 1 / (L + lambda + 1/tau)
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from mechanisms._base.validation import as_finite

METHODS = ("flow", "gd", "ridge")
LARGEST_STEP = 2.0**53  # beyond, float64 skips integers


class Spectrum(NamedTuple):
    """Thin singular value decomposition X = U diag(sigma) V^T, with sigma 0 where it is but rounding."""

    left: Float[Tensor, "*batch samples rank"]
    sigma: Float[Tensor, "*batch rank"]
    right: Float[Tensor, "*batch features rank"]


def decompose(features: Float[Tensor, "*batch samples features"]) -> Spectrum:
    """Decompose X itself: X^T X would square the condition number."""
    left, sigma, right = torch.linalg.svd(features, full_matrices=False)
    # Directions without data carry no targets; left in, a long time would blow up their rounding.
    cut = torch.finfo(features.dtype).eps * max(features.shape[-2:]) * sigma[..., :1]
    return Spectrum(left, torch.where(sigma > cut, sigma, 0.0), right.mT)


def filter_values(
    method: str,
    eigenvalues: Float[Tensor, "*batch rank"],
    steps: Float[Tensor, " times"],
    lr: Float[Tensor, "*#batch"],
    l2: float | int | Float[Tensor, ""],
) -> Float[Tensor, "*batch times rank"]:
    """phi_t(L) for all times at once; `lr` is checked for "gd" by `check_rate`."""
    rate, time = lr[..., None, None], steps[:, None]
    damped = eigenvalues[..., None, :] + l2
    tau = rate * time
    if method == "ridge":
        return tau / (1 + tau * damped)
    # At eigenvalue 0 without weight decay both limits are tau.
    zero = damped == 0
    safe = torch.where(zero, 1.0, damped)
    if method == "flow":
        learned = -torch.expm1(-tau * safe)
    else:
        # log1p keeps the digits of small steps; beyond 1 the base is negative and the plain power knows its sign.
        step = rate * safe
        small = step < 1
        learned = torch.where(
            small,
            -torch.expm1(time * torch.log1p(-torch.where(small, step, 0.0))),
            1 - (1 - torch.where(small, 1.0, step)) ** time,
        )
    return torch.where(zero, tau, learned / safe)


def check_steps(steps: Float[Tensor, " times"]) -> None:
    """Gradient descent takes whole steps, and no more than float64 can count.

    Raises:
        ValueError: fractions, or more than 2^53.
    """
    if bool((steps > LARGEST_STEP).any()):
        raise ValueError(
            f"times reach {float(steps.max()):.4g}; method='gd' counts whole steps, exact up to 2^53 = "
            f"{LARGEST_STEP:.4g}; use method='flow' for later times"
        )
    if bool((steps != steps.round()).any()):
        raise ValueError("times hold fractions of a step; method='gd' needs whole numbers; use method='flow', or round")


def check_rate(lr: Float[Tensor, "*#batch"], largest: Float[Tensor, "*batch"], l2: float | int) -> None:
    """Gradient descent diverges from lr = 2 / (largest eigenvalue + l2) on.

    Raises:
        ValueError: the rate is not below that limit.
    """
    limit = float((2 / (largest.detach() + l2)).min())
    if bool((lr * (largest + l2) >= 2).any()):
        raise ValueError(
            f"lr={float(lr.max()):.6g} makes gradient descent diverge: it must be below 2 / (largest eigenvalue of "
            f"X^T X + l2) = {limit:.6g}; lr='stable' is half of that, method='flow' has no limit"
        )


def as_rates(
    lr: float | int | str | Tensor | ArrayLike, largest: Float[Tensor, "*batch"], l2: float | int
) -> Float[Tensor, "*#batch"]:
    """A learning rate above 0, one for all or one for each data set; "stable" is 1 / (largest eigenvalue + l2).

    Raises:
        TypeError, ValueError: no finite number above 0, another name, or a shape that fits no batch.
    """
    if isinstance(lr, str):
        if lr != "stable":
            raise ValueError(f"lr={lr!r}: it must be a number or 'stable'")
        if bool((largest + l2 <= 0).any()):
            raise ValueError("lr='stable' needs features that are not all zero; give a number")
        return 1 / (largest + l2)
    given = torch.tensor(lr, dtype=largest.dtype) if isinstance(lr, float | int) else lr
    rates = as_finite(given, "lr", dtype=largest.dtype).to(largest.device)
    if bool((rates <= 0).any()):
        raise ValueError(f"lr={lr}: it must be > 0")
    if rates.dim() and rates.shape != largest.shape:
        raise ValueError(f"lr has shape {tuple(rates.shape)}; expected a number, or one for each of {largest.shape}")
    return rates
