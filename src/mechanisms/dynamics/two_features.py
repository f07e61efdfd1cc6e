r"""Gradient starvation in its smallest form: two features, equally informative, one of them rarer.

The samples of a class are of two kinds: x1 + x2, a fraction q, and x1 alone; x1 and x2 are orthonormal. Logistic
regression from zero has the responses s_j = w.x_j, with g(m) = sigmoid(-m) for cross-entropy and 1[m < 1] for hinge:

    ds1/dt = q g(s1 + s2) + (1 - q) g(s1),      ds2/dt = q g(s1 + s2)

Where the loss has an exponential tail, and for cross-entropy late in training,

    s1 = s2 + ((1 - q)/q) (e^s2 - 1):           s2 grows like ln s1, that is like ln ln t.

The frequent feature takes the gradient away from the rare one although both separate the samples that have both.

Reference: Tachet des Combes, Pezeshki, Shabanian, Courville, Bengio, "On the Learning Dynamics of Deep Neural
Networks", 2018, arXiv:1809.06848.

>>> s1, s2 = starvation_curve(0.1, 1e6)
>>> round(float(s1), 3), round(float(s2), 4)
(13.757, 0.8907)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from mechanisms._base.validation import as_finite, check_choice
from mechanisms.dynamics._checks import Values, refuse
from mechanisms.dynamics._clock import solve_relation

LOSSES = ("cross_entropy", "hinge", "exponential")
STEP = 0.02  # of ln(1 + t): the error of the curves is below 1e-8


def starvation_curve(
    frequency: Values,
    times: Values,
    *,
    loss: Literal["cross_entropy", "hinge", "exponential"] = "cross_entropy",
) -> tuple[Tensor, Tensor]:
    """The responses s1 (frequent feature) and s2 (rare feature) over time, from zero.

    Hinge is a closed form. The other two are integrated in ln(1 + t) by the classical Runge-Kutta method, all
    frequencies at once, to about 1e-8; a time of 1e6 takes some 700 steps.

    Args:
        frequency: q in (0, 1], of shape B.
        times: 0 or more, of shape (times,) or a single number.
        loss: "cross_entropy", "hinge" or "exponential" (e^-m, the tail of cross-entropy).

    Returns:
        s1 and s2, float64 of shape (B..., times), or B for a single time.

    Raises:
        ValueError: a frequency outside (0, 1], negative or non-finite times, times of more than one dimension.

    >>> s1, s2 = starvation_curve([0.5, 1.0], 100.0, loss="hinge")
    >>> s1, s2
    (tensor([1.0000, 0.5000], dtype=torch.float64), tensor([0.3333, 0.5000], dtype=torch.float64))
    """
    check_choice(loss, "loss", LOSSES)
    q, t = (as_finite(v, name, dtype=torch.float64) for v, name in ((frequency, "frequency"), (times, "times")))
    refuse((q <= 0) | (q > 1), q, "frequency", "it is a fraction of the samples, in (0, 1]")
    refuse(t < 0, t, "times", "they start at 0")
    if t.ndim > 1:
        raise ValueError(f"times has shape {tuple(t.shape)}; expected one number or (times,)")
    shape = q.shape + t.shape
    q, t = q.reshape(-1, 1), t.to(q.device).reshape(1, -1)
    s1, s2 = _hinge(q, t) if loss == "hinge" else _integrated(q, t, loss)
    return s1.reshape(shape), s2.reshape(shape)


def starved_response(s1: Values, frequency: Values) -> Tensor:
    """The rare feature's response s2 at which the frequent one has reached s1, for a loss with an exponential tail.

    The inverse of `s1 = s2 + k (e^s2 - 1)` with `k = (1 - q)/q`. In Lambert's function it is
    `s2 = s1 + k - W(k e^(s1 + k))`; Newton's method on the relation itself neither overflows nor cancels.

    Args:
        s1: 0 or more.
        frequency: q in (0, 1]; both broadcast together.

    Returns:
        float64, differentiable (twice too).

    Raises:
        ValueError: a frequency outside (0, 1], a negative or non-finite response.

    >>> [round(float(starved_response(s1, 0.5)), 3) for s1 in (1.0, 10.0, 1e4)]
    [0.443, 2.177, 9.21]
    """
    s, q = (as_finite(v, name, dtype=torch.float64) for v, name in ((s1, "s1"), (frequency, "frequency")))
    refuse((q <= 0) | (q > 1), q, "frequency", "it is a fraction of the samples, in (0, 1]")
    refuse(s < 0, s, "s1", "responses start at 0 and grow")
    return solve_relation(s, (1 - q) / q)


def _hinge(q: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Both grow, at rates 1 and q, until s1 + s2 = 1; then s1 alone, at 1 - q, until it is 1."""
    both = torch.minimum(t, 1 / (1 + q))
    alone = (t - both) * (1 - q)
    # For q = 1 nothing is left to learn after the first phase.
    s1 = torch.where(alone > 0, (both + alone).clamp(max=1), both)
    return s1, q * both


def _integrated(q: Tensor, t: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    g: Callable[[Tensor], Tensor] = (
        (lambda m: torch.exp(-m)) if loss == "exponential" else (lambda m: torch.sigmoid(-m))
    )

    def rates(state: Tensor, clock: float) -> Tensor:
        first, second = state
        shared = q * g(first + second)
        return math.exp(clock) * torch.stack([shared + (1 - q) * g(first), shared])

    marks = t.log1p().flatten()
    steps = max(1, math.ceil(float(marks.max()) / STEP)) if marks.numel() else 1
    h = float(marks.max()) / steps if marks.numel() else 0.0
    state = torch.zeros(2, *q.shape, dtype=q.dtype, device=q.device)
    states, slopes = [state], [rates(state, 0.0)]
    for step in range(steps):
        clock, k1 = step * h, slopes[-1]
        k2 = rates(state + h / 2 * k1, clock + h / 2)
        k3 = rates(state + h / 2 * k2, clock + h / 2)
        k4 = rates(state + h * k3, clock + h)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        states.append(state)
        slopes.append(rates(state, clock + h))
    values, grads = torch.cat(states, dim=-1), torch.cat(slopes, dim=-1)
    # The cubic through both ends of the step in which each mark lies.
    place = (marks / h).floor().long().clamp(0, steps - 1) if h else torch.zeros_like(marks, dtype=torch.long)
    x = (marks / h - place).clamp(0, 1) if h else torch.zeros_like(marks)
    low, high = values[..., place], values[..., place + 1]
    rise, fall = h * grads[..., place], h * grads[..., place + 1]
    curve = low + (high - low) * x**2 * (3 - 2 * x) + x * (1 - x) * (rise * (1 - x) - fall * x)
    return curve[0], curve[1]
