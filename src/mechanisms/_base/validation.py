"""What the doors for users' data and numbers check alike: what was given, what is expected, what to do."""

import math
from typing import Any, SupportsFloat

import torch
from torch import Tensor


def as_finite(values: Any, name: str, *, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of finite floating-point numbers from what users pass: a tensor, an array or nested numbers.

    Args:
        values: a floating-point tensor keeps its type and device; integers and Python numbers become `dtype`.
        name: how the message calls it.
        dtype: type of the result; by default that of a floating-point input, else torch's default.

    Raises:
        TypeError: `values` are no real numbers.
        ValueError: some are infinite or not a number; the message says how many and where the first is.

    >>> as_finite([1, 2], "times")
    tensor([1., 2.])
    """
    try:
        # Python's numbers are in double precision; without a type torch would read them in single.
        plain = isinstance(values, float | list | tuple)
        tensor = torch.as_tensor(values, dtype=dtype if plain else None)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be a tensor or an array of numbers, got {type(values).__name__}: {error}"
        ) from None
    if tensor.is_complex():
        raise TypeError(f"{name} must be real, got {tensor.dtype}")
    if dtype is None:
        dtype = tensor.dtype if tensor.is_floating_point() else torch.get_default_dtype()
    tensor = tensor.to(dtype)
    bad = ~torch.isfinite(tensor)
    if bool(bad.any()):
        first = tuple(int(place) for place in bad.nonzero()[0])
        raise ValueError(
            f"{name} has {int(bad.sum())} of {tensor.numel()} values that are infinite or not a number, the first at "
            f"{first}; clean or drop them"
        )
    return tensor


def check_number(
    value: SupportsFloat,
    name: str,
    *,
    above: float | int | None = None,
    at_least: float | int | None = None,
    below: float | int | None = None,
    at_most: float | int | None = None,
) -> float:
    """A finite number within bounds, as a float.

    Raises:
        TypeError: it is no number.
        ValueError: it is infinite, not a number or out of bounds; the message says which bounds hold.

    >>> check_number(0.5, "lr", above=0)
    0.5
    """
    if isinstance(value, str | bool) or not isinstance(value, SupportsFloat):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    bounds = {
        f"> {above}": above is None or number > above,
        f">= {at_least}": at_least is None or number >= at_least,
        f"< {below}": below is None or number < below,
        f"<= {at_most}": at_most is None or number <= at_most,
    }
    if not math.isfinite(number) or not all(bounds.values()):
        wanted = " and ".join(text for text in bounds if not text.endswith("None")) or "finite"
        raise ValueError(f"{name}={value}: it must be {wanted}")
    return number


def check_choice(value: Any, name: str, choices: tuple[str, ...]) -> str:
    """One of some names.

    Raises:
        ValueError: it is none of them; the message lists them.

    >>> check_choice("flow", "method", ("flow", "ridge"))
    'flow'
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r}: it must be one of {', '.join(map(repr, choices))}")
    return value
