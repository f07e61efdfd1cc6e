"""Generated data sets: the truth about them is known, and they need no download."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mechanisms._base.seeds import numpy_generator, stream_seed
from mechanisms.lab.data.splits import Split, Splits

# Examples by (label, attribute): (0, 0), (0, 1), (1, 0), (1, 1), as in the Waterbirds photographs.
WATERBIRDS_SIZES: Mapping[str, tuple[int, int, int, int]] = {
    "train": (3498, 184, 56, 1057),
    "validation": (467, 466, 133, 133),
    "test": (2255, 2255, 642, 642),
}
CORE, SPURIOUS = slice(0, 8), slice(8, 16)


def waterbirds_like(
    seed: int,
    *,
    spurious: float | int = 2.0,
    core: float | int = 1.5,
    dim: int = 64,
    rotate: bool = True,
    sizes: Mapping[str, tuple[int, int, int, int]] = WATERBIRDS_SIZES,
) -> Splits:
    """Gaussian features with the group sizes of Waterbirds: the label is weakly visible, a spurious attribute strongly.

    `x ~ N(0, I)`; coordinates 0 to 7 are shifted by `(2y - 1) core / sqrt(8)` and coordinates 8 to 15 by
    `(2a - 1) spurious / sqrt(8)`, so that the best classifier from the core alone is right with probability
    `Phi(core)` (0.933) and the attribute is known with `Phi(spurious)`. Then one random rotation, the same for all
    splits, hides which coordinates are which.

    Args:
        seed: everything follows from it; the same seed with and without `rotate` gives the same points.
        spurious: distance of the attribute's means from zero (2.0; 3.0 is easy).
        core: distance of the label's means from zero.
        dim: number of features, at least 16.
        rotate: leave it out to see the coordinates.
        sizes: examples by (label, attribute) in each split.

    Returns:
        `x` (examples, dim) float32, `y` in {0, 1}, `attribute` in {0, 1}; in random order.

    >>> splits = waterbirds_like(seed=0)
    >>> splits.train.x.shape, np.bincount(2 * splits.train.y + splits.train.attribute).tolist()
    ((4795, 64), [3498, 184, 56, 1057])
    """
    if dim < 16:
        raise ValueError(f"dim must be at least 16 (eight core and eight spurious coordinates), got {dim}")
    generator = numpy_generator(seed, "data")
    rotation = _random_rotation(dim, numpy_generator(seed, "data/rotation")) if rotate else None

    def split(counts: tuple[int, int, int, int]) -> Split:
        group = generator.permutation(np.repeat(np.arange(4), counts))
        y, a = group // 2, group % 2
        x = generator.standard_normal((len(group), dim))
        x[:, CORE] += (2 * y - 1)[:, None] * core / np.sqrt(8)
        x[:, SPURIOUS] += (2 * a - 1)[:, None] * spurious / np.sqrt(8)
        if rotation is not None:
            x = x @ rotation
        return Split(x.astype(np.float32), y, attribute=a)

    return Splits(split(sizes["train"]), split(sizes["validation"]), split(sizes["test"]))


def _random_rotation(dim: int, generator: np.random.Generator) -> np.ndarray:
    """An orthogonal matrix drawn uniformly: QR of a Gaussian matrix, with the signs that make it unique."""
    q, r = np.linalg.qr(generator.standard_normal((dim, dim)))
    return q * np.sign(np.diag(r))


def two_moons(seed: int, n: int = 500, noise: float | int = 0.1) -> Split:
    """Two interleaved half circles, scikit-learn's.

    Args:
        seed: everything follows from it.
        n: number of points.
        noise: standard deviation of the Gaussian noise.

    Returns:
        `x` (n, 2) float32, `y` in {0, 1}, in random order.

    >>> two_moons(seed=0, n=10).x.shape
    (10, 2)
    """
    from sklearn.datasets import make_moons

    x, y = make_moons(n, noise=noise, random_state=stream_seed(seed, "data") % 2**32)
    return Split(x.astype(np.float32), y.astype(np.int64))


def gaussian_blobs(seed: int, n: int = 500, *, classes: int = 3, dim: int = 2, spread: float | int = 1.0) -> Split:
    """One round Gaussian cloud per class, scikit-learn's; the centres are uniform in [-10, 10].

    Args:
        seed: everything follows from it, the centres too.
        n: number of points, shared evenly.
        classes: number of clouds.
        dim: number of features.
        spread: standard deviation of each cloud.

    Returns:
        `x` (n, dim) float32, `y` in {0, ..., classes - 1}, in random order.

    >>> np.bincount(gaussian_blobs(seed=0, n=9).y).tolist()
    [3, 3, 3]
    """
    from sklearn.datasets import make_blobs

    x, y, *_ = make_blobs(
        n, n_features=dim, centers=classes, cluster_std=spread, random_state=stream_seed(seed, "data") % 2**32
    )
    return Split(np.asarray(x, np.float32), np.asarray(y, np.int64))
