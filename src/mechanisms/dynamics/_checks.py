"""What the doors of the modes of deep networks check alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechanisms._base.validation import as_finite

# What users pass where one number or many are asked for.
Values = Tensor | np.ndarray | np.generic | Sequence[Any] | float | int


def refuse(bad: Tensor, values: Tensor, name: str, why: str) -> None:
    """Raise with the first value that is out of range, and its place in a batch."""
    if bool(bad.any()):
        place = tuple(int(i) for i in bad.nonzero()[0])
        where = f" at {place}" if place else ""
        value = float(values.expand(bad.shape)[place])
        raise ValueError(f"{name}={value:g}{where}: {why}")


def labelled(X: Values, y: Values) -> tuple[Float[Tensor, "samples features"], Float[Tensor, " samples"]]:
    """Inputs and labels as float64, checked: two dimensions, one label +1 or -1 for each sample.

    >>> labelled([[1, 2]], [-1])
    (tensor([[1., 2.]], dtype=torch.float64), tensor([-1.], dtype=torch.float64))
    """
    inputs = as_finite(X, "X", dtype=torch.float64)
    if inputs.ndim != 2 or inputs.numel() == 0:
        raise ValueError(f"X has shape {tuple(inputs.shape)}; expected (samples, features), at least one of each")
    labels = as_finite(y, "y", dtype=torch.float64).to(inputs.device)
    if labels.shape != inputs.shape[:1]:
        raise ValueError(f"y has shape {tuple(labels.shape)}; expected one label for each of {len(inputs)} samples")
    refuse(labels.abs() != 1, labels, "y", "labels are +1 and -1; for 0 and 1 pass 2 * y - 1")
    return inputs, labels
