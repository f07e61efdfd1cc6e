"""How good generated images are by a classifier's probabilities, and a small picture of them for the record."""

from __future__ import annotations

import base64
import io

import numpy as np
from jaxtyping import Float, UInt8

from mechanisms._base.extras import MissingExtra, require

LARGEST_PICTURE = 7000  # bytes before base64: a record holds 20 kB


def classifier_score(probabilities: Float[np.ndarray, "examples classes"], splits: int = 10) -> float:
    """The Inception score's formula on any classifier: exp of the mean divergence of p(y | x) from p(y).

    It lies between 1 and the number of classes, and is the mean over `splits` parts of the examples. Scores of
    different classifiers cannot be compared; the published ones use an Inception network trained on ImageNet.

    Raises:
        ValueError: rows that are no probabilities, or fewer examples than splits.

    >>> classifier_score(np.eye(4)[np.arange(8) % 4], splits=2), classifier_score(np.full((8, 4), 0.25), splits=2)
    (4.0, 1.0)
    """
    p = np.asarray(probabilities, np.float64)
    if len(p) < splits or not np.all((p >= 0) & (p <= 1)) or not np.allclose(p.sum(1), 1, atol=1e-3):
        raise ValueError(f"expected at least {splits} rows of probabilities that add up to 1, got shape {p.shape}")
    scores = []
    for part in np.array_split(p, splits):
        mean = part.mean(0)
        ratio = np.where(part > 0, part, 1.0) / np.where(mean > 0, mean, 1.0)
        scores.append(np.exp((part * np.log(ratio)).sum(1).mean()))
    return float(np.mean(scores))


def picture(images: UInt8[np.ndarray, "n height width channels"], columns: int = 8) -> str:
    """A sheet of images as the address of a small JPEG picture, "data:image/jpeg;base64,..."; empty without Pillow.

    The quality is as high as the place in a record allows.
    """
    try:
        pillow = require("PIL.Image", "images")
    except MissingExtra:
        return ""
    rows = len(images) // columns
    n, height, width, channels = (rows * columns, *images.shape[1:])
    sheet = images[:n].reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    sheet = sheet[..., 0] if channels == 1 else sheet
    content = b""
    for quality in (80, 60, 45, 30, 20, 10, 5):
        file = io.BytesIO()
        pillow.fromarray(sheet).save(file, "JPEG", quality=quality, optimize=True)
        content = file.getvalue()
        if len(content) <= LARGEST_PICTURE:
            break
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()
