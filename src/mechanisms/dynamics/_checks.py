"""What the doors of this topic check alike: counts, values that broadcast, labelled data."""

from __future__ import annotations

import operator
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


def together(*named: tuple[Values, str]) -> tuple[Tensor, ...]:
    """Values as float64 tensors of one shape and on one device, each given with its name.

    >>> [tuple(value.shape) for value in together((1.0, "a"), ([1.0, 2.0], "b"))]
    [(2,), (2,)]
    """
    place = next((value.device for value, _ in named if isinstance(value, Tensor)), None)
    values = [as_finite(value, name, dtype=torch.float64) for value, name in named]
    try:
        return torch.broadcast_tensors(*(value.to(place) if value.ndim == 0 else value for value in values))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for (_, name), value in zip(named, values, strict=True))
        raise ValueError(f"the arguments must broadcast together, got {shapes}") from None


def check_count(value: Any, name: str, *, at_least: int = 1) -> int:
    """A whole number, as an int; NumPy's are taken, floats and truth values are not.

    Raises:
        TypeError: it is no integer.
        ValueError: it is below `at_least`.

    >>> check_count(3, "draws")
    3
    """
    try:
        number = at_least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < at_least:
        raise ValueError(f"{name}={value!r}: it must be an integer >= {at_least}")
    return number


def place_of(generator: torch.Generator | None) -> torch.device:
    """Where a generator draws: its device; the CPU for None, which is torch's own.

    Raises:
        TypeError: a seed, or anything else.

    >>> place_of(torch.Generator())
    device(type='cpu')
    """
    if generator is None:
        return torch.device("cpu")
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator is a {type(generator).__name__}; expected a torch.Generator, for a seed "
            "torch.Generator().manual_seed(seed)"
        )
    return generator.device


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
