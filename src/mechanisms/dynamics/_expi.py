"""The exponential integral Ei for positive arguments, in torch, which has none; scaled so that it does not overflow."""

import math

import torch
from torch import Tensor

EULER = 0.57721566490153286061
SWITCH = 40.0  # from here on the divergent expansion is exact to rounding: its smallest term is about exp(-x)
SERIES_TERMS = 140  # x^k / (k k!) at x = SWITCH falls below rounding well before
TAIL_TERMS = 36


def scaled_expi(x: Tensor) -> Tensor:
    """Ei(x) e^(-x) for x > 0, to about 1e-15 of max(1, Ei(x)) e^(-x); differentiable.

    Below 40 the series gamma + ln x + sum x^k / (k k!), whose terms are all positive, and from there on the asymptotic
    expansion (1/x) sum k!/x^k. (The expansion cannot begin much earlier: at x = 6 its best error is e^(-6).)

    >>> round(float(scaled_expi(torch.tensor(1.0, dtype=torch.float64))) * math.e, 10)
    1.8951178164
    """
    small, large = x.clamp(max=SWITCH), x.clamp(min=SWITCH)
    series = torch.full_like(small, 1 / (SERIES_TERMS * math.factorial(SERIES_TERMS)))
    for k in range(SERIES_TERMS - 1, 0, -1):
        series = series * small + 1 / (k * math.factorial(k))
    near = (EULER + small.log() + series * small) * (-small).exp()
    tail = torch.ones_like(large)
    for k in range(TAIL_TERMS, 0, -1):
        tail = 1 + k / large * tail
    return torch.where(x < SWITCH, near, tail / large)


def expi(x: Tensor) -> Tensor:
    """Ei(x) for x > 0; infinite where it exceeds the largest number (x above about 716 in float64).

    >>> round(float(expi(torch.tensor(2.0, dtype=torch.float64))), 10)
    4.954234356
    """
    return scaled_expi(x) * x.exp()
