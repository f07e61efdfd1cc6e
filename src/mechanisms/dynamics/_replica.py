"""Order parameters of ridge regression in the limit of many dimensions, and the paper's decoupled approximation.

For a ridge penalty that is 1/g_i for group i (g_i = s_i^2 / lambda), mu is the root of

    mu (1 + sum_i H_i g_i / (1 + mu g_i)) = nu,        r_i = mu g_i / (1 + mu g_i),

r_i the learned fraction of group i. Then S = sum_i H_i r_i^2 and

    R = sum_i H_i r_i,   T = (sigma^2 + sum_i H_i (1 - r_i)^2) / (1 - S/nu),   Q = S (1 + T/nu),   E = T/2.

Written in g, time 0 (g = 0) is a regular point. All tensors here are float64 or complex128.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor

from mechanisms.dynamics.limits import Limit

TOLERANCE = 1e-13
MOST_STEPS = 100


class Order(NamedTuple):
    """Alignment R, norm Q, and twice the error on noisy targets T, each (problems, times)."""

    alignment: Float[Tensor, "problems times"]
    norm: Float[Tensor, "problems times"]
    twice_error: Float[Tensor, "problems times"]


def mismatch(
    mu: Num[Tensor, "*points"],
    shares: Num[Tensor, "*#points groups"],
    g: Num[Tensor, "*points groups"],
    ratio: Float[Tensor, "*#points"],
) -> tuple[Num[Tensor, "*points"], Num[Tensor, "*points"]]:
    """mu (1 + sum ...) - nu and its derivative by mu; shares sum to 1.

    Written with 1 - r_i in place of r_i: at n = d both mu and 1 - r_i vanish, and the difference keeps its digits.
    """
    unlearned = 1 / (1 + mu[..., None] * g)
    weighted = shares * unlearned
    return mu - (ratio - 1) - weighted.sum(-1), 1 + (weighted * g * unlearned).sum(-1)


def solve_mu(
    shares: Float[Tensor, "*#points groups"], g: Float[Tensor, "*points groups"], ratio: Float[Tensor, "*#points"]
) -> Float[Tensor, "*points"]:
    """The root mu > 0, differentiable once in all arguments.

    The mismatch is concave and increasing in mu, so Newton from the left of the root rises to it monotonically. Both
    starts are left of it: nu - 1, since every r_i <= 1, and what the equation gives with mu = 0 inside the sum.
    """
    with torch.no_grad():
        mu = torch.maximum(ratio / (1 + (shares * g).sum(-1)), (ratio - 1).expand(g.shape[:-1]))
        for _ in range(MOST_STEPS):
            value, slope = mismatch(mu, shares, g, ratio)
            step = value / slope
            mu = mu - step
            if bool((step.abs() <= TOLERANCE * mu).all()):
                break
    return with_gradient(mu, shares, g, ratio)


def with_gradient(
    mu: Num[Tensor, "*points"],
    shares: Num[Tensor, "*#points groups"],
    g: Num[Tensor, "*points groups"],
    ratio: Float[Tensor, "*#points"],
) -> Num[Tensor, "*points"]:
    """The root with the gradient of the implicit function: one Newton step whose slope counts as a constant."""
    if not (torch.is_grad_enabled() and (shares.requires_grad or g.requires_grad or ratio.requires_grad)):
        return mu
    value, slope = mismatch(mu, shares, g, ratio)
    return mu - value / slope.detach()


def penalties(limit: Limit, tau: Float[Tensor, "problems times"]) -> Float[Tensor, "problems times groups"]:
    """g_i = s_i^2 / lambda_t for early stopping read as ridge: lambda_t = lambda + 1/tau (the paper's lemma B.1)."""
    inverse = tau / (1 + limit.l2[:, None] * tau)
    return inverse[..., None] * limit.scales.square()[:, None]


def from_fractions(
    limit: Limit, learned: Float[Tensor, "problems times groups"], unlearned: Float[Tensor, "problems times groups"]
) -> Order:
    """R, Q and T from the learned fractions r_i and from 1 - r_i."""
    shares, ratio = limit.shares[:, None], limit.ratio[:, None]
    overlap = (shares * learned.square()).sum(-1)
    missing = limit.noise.square()[:, None] + (shares * unlearned.square()).sum(-1)
    twice_error = missing / (1 - overlap / ratio)
    return Order((shares * learned).sum(-1), overlap * (1 + twice_error / ratio), twice_error)


def ridge_order(limit: Limit, tau: Float[Tensor, "problems times"]) -> Order:
    """Order parameters of early stopping read as ridge, exact for ridge itself."""
    g = penalties(limit, tau)
    mu = solve_mu(limit.shares[:, None], g, limit.ratio[:, None])
    unlearned = 1 / (1 + mu[..., None] * g)
    return from_fractions(limit, mu[..., None] * g * unlearned, unlearned)


def decoupled_order(limit: Limit, tau: Float[Tensor, "problems times"]) -> Order:
    """The paper's equations 12 and 14: each group learns as if the other were not there.

    With alpha = n/p_i and l = lambda_t / (H_i s_i^2) the paper's 1/a is solved for in w = 1/l, which is regular at
    time 0; its learned fraction is alpha/a. The norm then follows from the fractions as in the exact formula: the
    paper's equations for Q_1 and Q_2 are the same in other letters.
    """
    shares = limit.shares[:, None]
    alpha = limit.ratio[:, None, None] / shares
    w = shares * penalties(limit, tau)
    shifted = 1 + (alpha - 1) * w
    inverse = 2 * w / (2 * w + (shifted.square() + 4 * w).sqrt() + shifted)
    learned = alpha * inverse
    return from_fractions(limit, learned, 1 - learned)
