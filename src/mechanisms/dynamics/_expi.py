"""The exponential integral Ei for positive arguments, in torch, which has none; scaled so that it does not overflow."""

import math
from typing import Any

import torch
from torch import Tensor

EULER = 0.57721566490153286061
SWITCH = 40.0  # from here on the divergent expansion is exact to rounding: its smallest term is about exp(-x)
SERIES_TERMS = 140  # x^k / (k k!) at x = SWITCH falls below rounding well before
TAIL_TERMS = 36
CHUNK = 1 << 14  # values at a time, so that they stay in the processor's cache


class _ScaledExpi(torch.autograd.Function):
    """The values by series and expansion; the derivative of Ei(x) e^(-x) is 1/x less the value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        value = torch.cat([_values(part) for part in x.reshape(-1).split(CHUNK)]) if x.numel() else x
        value = value.reshape(x.shape)
        ctx.save_for_backward(x, value)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, value = ctx.saved_tensors
        return grads[0] * (1 / x - value)


def _values(x: Tensor) -> Tensor:
    small, large = x.clamp(max=SWITCH), x.clamp(min=SWITCH)
    series = torch.full_like(small, 1 / (SERIES_TERMS * math.factorial(SERIES_TERMS)))
    for k in range(SERIES_TERMS - 1, 0, -1):
        series.mul_(small).add_(1 / (k * math.factorial(k)))
    near = (EULER + small.log() + series * small) * (-small).exp()
    tail, inverse = torch.ones_like(large), 1 / large
    for k in range(TAIL_TERMS, 0, -1):
        tail.mul_(inverse).mul_(k).add_(1)
    return torch.where(x < SWITCH, near, tail * inverse)


def scaled_expi(x: Tensor) -> Tensor:
    """Ei(x) e^(-x) for x > 0, to about 1e-15 of max(1, Ei(x)) e^(-x); differentiable.

    Below 40 the series gamma + ln x + sum x^k / (k k!), whose terms are all positive, and from there on the asymptotic
    expansion (1/x) sum k!/x^k. (The expansion cannot begin much earlier: at x = 6 its best error is e^(-6).)

    >>> round(float(scaled_expi(torch.tensor(1.0, dtype=torch.float64))) * math.e, 10)
    1.8951178164
    """
    return _ScaledExpi.apply(x)


def expi(x: Tensor) -> Tensor:
    """Ei(x) for x > 0; infinite where it exceeds the largest number (x above about 716 in float64).

    >>> round(float(expi(torch.tensor(2.0, dtype=torch.float64))), 10)
    4.954234356
    """
    return scaled_expi(x) * x.exp()
