"""Confidence intervals for a handful of seeds: Student's, Clopper and Pearson's, and an exact one for bounded means.

All functions take arrays whose last axis is the sample, so that one call decides one claim and another call decides
a hundred thousand simulated ones (`benchmarks/verify_claims.py`): what is verified is what is used.

- Student: `mean ± t_{n-1}(1 - α/2) s / √n`. Exact for normal data, approximate otherwise.
- Clopper and Pearson (1934): quantiles of Beta(k, n - k + 1) and Beta(k + 1, n - k). Exact for independent successes.
- Betting (Waudby-Smith and Ramdas, 2024, "Estimating means of bounded random variables by betting"): for x in [0, 1]
  the wealth `K(m) = average over c of Π_i (1 + c (x_i / m - 1))` has mean one when m is the true mean, so by Markov's
  inequality `K(m) >= 2 / α` happens with probability at most α / 2, whatever the distribution and at any n.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from mechanisms.lab.outcomes import Number

# Spelled out for the shape checks of the tests, where a lone number is no `ArrayLike`, and a mean is no `NDArray`.
Values = ArrayLike | Number
Result = NDArray | np.floating
Truth = NDArray[np.bool_] | np.bool_

SKEWNESS = 1.0  # a sample whose |skewness| is above it is marked
ROUNDING = 1e-12  # relative; 0.87 - 0.90 is a hair below -0.03 in binary and must still count as -0.03
_NODES = 32  # of the average over bets; any number is valid, and this one is exact up to 63 seeds


def student_interval(samples: Values, confidence: float = 0.95) -> tuple[Result, Result]:
    """The two-sided Student interval of the mean over the last axis.

    Args:
        samples: shape (..., n), n >= 2, finite.
        confidence: between 0 and 1.

    Returns:
        lower and upper ends, each of shape (...).

    Raises:
        ValueError: fewer than two values, or a confidence outside (0, 1).

    >>> low, high = student_interval([-0.009, -0.019, 0.006, -0.014, -0.097])
    >>> print(f"{low:.3f} {high:.3f}")
    -0.077 0.024
    """
    values = _sample(samples, confidence, smallest=2)
    n = values.shape[-1]
    half = special.stdtrit(n - 1, (1 + confidence) / 2) * values.std(axis=-1, ddof=1) / np.sqrt(n)
    mean = values.mean(axis=-1)
    return mean - half, mean + half


def clopper_pearson(successes: Values, units: Values, confidence: float = 0.95) -> tuple[Result, Result]:
    """The exact two-sided interval of a share from independent successes (Clopper and Pearson, 1934).

    Args:
        successes: numbers of successes, between 0 and `units`.
        units: numbers of independent units, at least 1.
        confidence: between 0 and 1.

    Raises:
        ValueError: no units, more successes than units, or a confidence outside (0, 1).

    >>> low, high = clopper_pearson(9, 10)
    >>> print(f"{low:.3f} {high:.3f}")
    0.555 0.997
    """
    _check_confidence(confidence)
    k, n = np.broadcast_arrays(np.asarray(successes, float), np.asarray(units, float))
    if not np.all((n >= 1) & (k >= 0) & (k <= n)):
        raise ValueError(f"{successes} successes of {units} units: expected 0 <= successes <= units and a unit or more")
    tail = (1 - confidence) / 2
    with np.errstate(invalid="ignore"):  # Beta(0, ·) has no quantile: there the ends are 0 and 1
        low = np.where(k == 0, 0.0, special.betaincinv(k, n - k + 1, tail))
        high = np.where(k == n, 1.0, special.betaincinv(k + 1, n - k, 1 - tail))
    return low, high


def bounded_interval(samples: Values, bounds: tuple[Number, Number], confidence: float = 0.95) -> tuple[Result, Result]:
    """An interval of the mean over the last axis that covers at any n, for independent values within known bounds.

    Betting against every candidate mean `m`, averaged over fixed stakes. Chosen over Hoeffding's interval because it
    adapts to the variance and is narrower, and over sequential bets because it does not depend on the order of seeds.

    Args:
        samples: shape (..., n), n >= 1, all within the bounds.
        bounds: smallest and largest possible value.
        confidence: between 0 and 1.

    Returns:
        lower and upper ends, each of shape (...), within the bounds.

    Raises:
        ValueError: values outside the bounds, bounds in the wrong order, or a confidence outside (0, 1).

    >>> low, high = bounded_interval([0.9] * 10, (0.0, 1.0))
    >>> print(f"{low:.2f} {high:.2f}")
    0.55 0.94
    """
    smallest, largest = bounds
    if not (np.isfinite(smallest) and np.isfinite(largest) and smallest < largest):
        raise ValueError(f"bounds are {bounds}: expected two finite numbers, the smaller first")
    values = _sample(samples, confidence, smallest=1)
    slack = ROUNDING * max(1.0, abs(smallest), abs(largest))
    if not np.all((values >= smallest - slack) & (values <= largest + slack)):
        raise ValueError(f"values from {values.min():g} to {values.max():g} leave the bounds {bounds}")
    width = largest - smallest
    unit = np.clip((values - smallest) / width, 0.0, 1.0)
    return smallest + width * _lower_end(unit, confidence), largest - width * _lower_end(1 - unit, confidence)


def log_wealth(unit_samples: Values, mean: Values) -> Result:
    """Logarithm of what bets that the true mean exceeds `mean` have earned; falls as `mean` grows.

    The stakes are Chebyshev nodes with equal weights, which integrate the bets over Beta(1/2, 1/2), the prior of
    Cover's universal portfolio: close to the best fixed stake, whatever it is.

    Args:
        unit_samples: shape (..., n), within [0, 1].
        mean: shape (...), above 0.

    >>> log_wealth([1.0, 1.0, 1.0], 0.5) > 0 > log_wealth([0.0, 0.0, 0.0], 0.5)
    np.True_
    """
    ratio = np.asarray(unit_samples, float) / np.asarray(mean, float)[..., None] - 1
    stakes = (1 + np.cos((np.arange(_NODES) + 0.5) * np.pi / _NODES)) / 2
    logs = np.log1p(ratio[..., None, :] * stakes[:, None]).sum(axis=-1)
    largest = logs.max(axis=-1, keepdims=True)
    return np.log(np.exp(logs - largest).mean(axis=-1)) + largest[..., 0]


def _lower_end(unit: NDArray, confidence: float) -> NDArray:
    """The largest mean that the bets refute, by bisection; 0 where they refute none."""
    needed = np.log(2 / (1 - confidence))
    low, high = np.zeros(unit.shape[:-1]), unit.mean(axis=-1)  # at the sample mean no bet has won
    for _ in range(50):
        middle = (low + high) / 2
        # Where all values are 0 there is nothing to bisect; any positive mean stands in for 0.
        refuted = log_wealth(unit, np.maximum(middle, np.finfo(float).tiny)) >= needed
        low, high = np.where(refuted, middle, low), np.where(refuted, high, middle)
    return np.asarray(low)


def satisfies(
    low: Values, high: Values, smallest: Number = -np.inf, largest: Number = np.inf, *, strict: bool = False
) -> Truth:
    """Whether whole intervals lie within [smallest, largest] (its interior if strict), up to rounding.

    >>> satisfies(-0.03, 0.01, smallest=-0.03), satisfies(0.0, 0.01, smallest=0.0, strict=True)
    (np.True_, np.False_)
    """
    slack = _slack(smallest, largest) * (-1 if strict else 1)
    if strict:
        return np.logical_and(np.asarray(low) > smallest - slack, np.asarray(high) < largest + slack)
    return np.logical_and(np.asarray(low) >= smallest - slack, np.asarray(high) <= largest + slack)


def violates(
    low: Values, high: Values, smallest: Number = -np.inf, largest: Number = np.inf, *, strict: bool = False
) -> Truth:
    """Whether whole intervals lie outside [smallest, largest] (outside its interior if strict), up to rounding.

    >>> violates(-0.05, -0.04, smallest=-0.03), violates(0.0, 0.0, smallest=0.0, strict=True)
    (np.True_, np.True_)
    """
    slack = _slack(smallest, largest) * (-1 if strict else 1)
    if strict:
        return np.logical_or(np.asarray(high) <= smallest - slack, np.asarray(low) >= largest + slack)
    return np.logical_or(np.asarray(high) < smallest - slack, np.asarray(low) > largest + slack)


def zero_variance(samples: Values) -> Truth:
    """Whether all values of a sample (last axis, two or more) are the same up to rounding.

    >>> zero_variance([0.87 - 0.90, 0.77 - 0.80])
    np.True_
    """
    values = np.asarray(samples, float)
    scale = np.maximum(1.0, np.abs(values).max(axis=-1))
    return np.logical_and(values.shape[-1] > 1, np.ptp(values, axis=-1) <= ROUNDING * scale)


def skewed(samples: Values) -> Truth:
    """Whether a sample (last axis) is suspiciously skewed: |skewness| above 1.

    The skewness is `m_3 / m_2^1.5` with moments about the mean. Three values reach at most 0.71, so with three the rule
    is 99 % of that: one value far from two that agree. Fewer than three values are never marked.

    >>> skewed([-0.009, -0.019, 0.006, -0.014, -0.097]), skewed([0.1, 0.2, 0.3, 0.4])
    (np.True_, np.False_)
    """
    values = np.asarray(samples, float)
    n = values.shape[-1]
    if n < 3:
        return np.zeros(values.shape[:-1], bool)
    centred = values - values.mean(axis=-1, keepdims=True)
    second, third = (centred**2).mean(axis=-1), (centred**3).mean(axis=-1)
    limit = min(SKEWNESS, 0.99 * (n - 2) / np.sqrt(n - 1))
    return np.logical_and(np.logical_not(zero_variance(values)), np.abs(third) > limit * second**1.5)


def _slack(smallest: Number, largest: Number) -> float:
    return ROUNDING * max([1.0, *(abs(end) for end in (smallest, largest) if np.isfinite(end))])


def _sample(samples: Values, confidence: float, smallest: int) -> NDArray:
    _check_confidence(confidence)
    values = np.asarray(samples, float)
    if values.ndim == 0 or values.shape[-1] < smallest:
        raise ValueError(f"a sample of shape {values.shape}: this interval needs {smallest} or more values")
    return values


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: expected a number between 0 and 1, for example 0.95")
