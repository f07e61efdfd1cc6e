"""Does a curve descend twice? A detector for recorded or predicted error curves.

Epoch-wise double descent is a minimum of the test error, a later maximum, and a descent behind it. Recorded curves
wiggle, so a turn counts only if it is large enough.

Reference: the phenomenon is described by Nakkiran et al., "Deep Double Descent", ICLR 2020; its cause by Pezeshki et
al., ICML 2022, arXiv 2112.03215.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.signal import find_peaks
from torch import Tensor

from mechanisms._base.validation import as_finite, check_number

ROUNDING = 1e-9  # of the curve's range: turns below it are no turns


@dataclass(frozen=True)
class Descents:
    """The turns of a curve.

    Attributes:
        minima: (time, height) of each minimum, in order; the ends count if the curve rises from them.
        maxima: (time, height) of each maximum between the ends, in order.
        is_double: whether there are a minimum, a later maximum at least `min_drop` above it, and a still later value
            at least `min_drop` below that maximum.
        first_minimum: the first minimum.
        peak: of a double descent, the maximum from which the curve descends again; else None.
        second_minimum: of a double descent, the lowest point behind the peak; else None.

    >>> descents([3.0, 1.0, 2.0, 0.0]).peak
    (2.0, 2.0)
    """

    minima: tuple[tuple[float, float], ...]
    maxima: tuple[tuple[float, float], ...]
    is_double: bool
    first_minimum: tuple[float, float]
    peak: tuple[float, float] | None
    second_minimum: tuple[float, float] | None


def descents(
    error: Tensor | ArrayLike,
    times: Tensor | ArrayLike | None = None,
    *,
    min_drop: float | int = 0.0,
    smooth: float | int = 0.0,
) -> Descents:
    """The minima and maxima of a curve over time, and whether it descends twice.

    Args:
        error: the curve, (times,), at least three points.
        times: increasing, (times,); 0, 1, 2, ... by default.
        min_drop: how far the curve must rise and fall again for a turn to count (a maximum's or minimum's prominence),
            in units of the error. At 0 any turn counts that is larger than rounding.
        smooth: width of a running mean in log-time, in e-folds (0.1 averages over about a tenth of the time that has
            passed); 0 leaves the curve as it is. Times must then be above 0; epochs count from 1 by default.

    Returns:
        `Descents`; heights are those of the smoothed curve.

    Raises:
        TypeError, ValueError: fewer than three points, values that are not finite, times that do not increase or do
            not match, a negative `min_drop` or `smooth`.

    >>> t = torch.linspace(0, 10, 101)
    >>> found = descents((t - 2).abs().minimum(4 + 0 * t) * torch.exp(-t / 3), t, min_drop=0.1)
    >>> found.is_double, round(found.first_minimum[0], 3)
    (True, 2.0)
    """
    curve = as_finite(error, "error", dtype=torch.float64).detach().cpu().numpy()
    min_drop = check_number(min_drop, "min_drop", at_least=0)
    smooth = check_number(smooth, "smooth", at_least=0)
    if curve.ndim != 1 or len(curve) < 3:
        raise ValueError(f"error has shape {curve.shape}; expected one curve of at least three points, (times,)")
    if times is None:
        clock = np.arange(len(curve), dtype=np.float64) + (smooth > 0)
    else:
        clock = as_finite(times, "times", dtype=torch.float64).detach().cpu().numpy()
    if clock.shape != curve.shape or not (np.diff(clock) > 0).all():
        raise ValueError(
            f"times have shape {clock.shape}, error {curve.shape}; expected one increasing time for each value"
        )
    if smooth > 0:
        curve = _smoothed(curve, clock, smooth)
    low, high = float(curve.min()), float(curve.max())
    prominence = max(min_drop, ROUNDING * (high - low), np.finfo(np.float64).tiny)
    # Walls at both ends make an end from which the curve rises a minimum like any other.
    walled = np.concatenate([[high + 1], curve, [high + 1]])
    minima = find_peaks(-walled, prominence=prominence)[0] - 1
    maxima = find_peaks(curve, prominence=prominence)[0]

    def at(place: int | np.integer) -> tuple[float, float]:
        return float(clock[place]), float(curve[place])

    first, peak, second = (minima[0] if len(minima) else int(curve.argmin())), None, None
    for place in maxima:
        before, behind = curve[:place], curve[place + 1 :]
        if curve[place] - before.min() >= prominence and curve[place] - behind.min() >= prominence:
            peak, second = at(place), at(place + 1 + int(behind.argmin()))
            break
    return Descents(
        minima=tuple(at(place) for place in minima),
        maxima=tuple(at(place) for place in maxima),
        is_double=peak is not None,
        first_minimum=at(first),
        peak=peak,
        second_minimum=second,
    )


def _smoothed(curve: np.ndarray, clock: np.ndarray, width: float) -> np.ndarray:
    """A running mean with Gaussian weights in log-time."""
    if clock[0] <= 0:
        raise ValueError(f"times start at {clock[0]:g}; smoothing is in log-time and needs times above 0")
    logs = np.log(clock)
    kernel = np.exp(-0.5 * ((logs[:, None] - logs) / width) ** 2)
    return kernel @ curve / kernel.sum(1)
