"""Random numbers for many streams at once: each stream has its own, whatever the others do.

A generator shared by all environments would make the next room of one depend on when the others finished. Here the
numbers are a function of (key, stream, episode) instead, so that two agents with the same seed meet the same rooms in
the same order, and the first environment of one meets what the first of sixty-four meets. NumPy's own counter-based
generator takes one key per call; the mixing function below (Steele, Lea and Flood 2014, "SplitMix") takes arrays.
"""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, made odd: successive multiples spread evenly
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def draw(key: int, streams: np.ndarray, episodes: np.ndarray, count: int) -> np.ndarray:
    """For each stream and its episode `count` uniform 64-bit numbers, of shape (streams, count) and type uint64.

    >>> first = draw(7, np.array([0, 1]), np.array([0, 0]), 3)
    >>> bool((draw(7, np.array([1]), np.array([0]), 3) == first[1]).all())
    True
    """
    start = _mixed(np.uint64(key) + _GOLDEN * (streams.astype(np.uint64) + np.uint64(1)))
    start = _mixed(start + _GOLDEN * (episodes.astype(np.uint64) + np.uint64(1)))
    return _mixed(start[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))


def _mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit numbers in which every bit of the result depends on every bit of the argument."""
    values = (values ^ (values >> _SHIFTS[0])) * _FIRST
    values = (values ^ (values >> _SHIFTS[1])) * _SECOND
    return values ^ (values >> _SHIFTS[2])
