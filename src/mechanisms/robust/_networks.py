"""Calling networks that users bring: fresh ones, inputs in their dtype and device, and errors that explain."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mechanisms.robust._rows import tensors_of


def check_factory(make_model: Any) -> None:
    """An error unless the argument can be called for fresh networks.

    Raises:
        TypeError: a network itself, or something that cannot be called.

    >>> check_factory(nn.Linear(3, 2))
    Traceback (most recent call last):
        ...
    TypeError: model is a Linear, not a function; give a callable that returns a fresh module, as lambda: Linear(...)
    """
    if isinstance(make_model, nn.Module) or not callable(make_model):
        name = type(make_model).__name__
        raise TypeError(
            f"model is a {name}, not a function; give a callable that returns a fresh module, as lambda: {name}(...)"
        )


def to_network(inputs: Any, network: nn.Module, device: torch.device) -> Any:
    """Inputs on the device, floating-point ones in the dtype of the network's first floating-point parameter.

    >>> to_network(torch.ones(1).double(), nn.Linear(1, 1), torch.device("cpu")).dtype
    torch.float32
    """
    dtype = floating_dtype(network)

    def move(values: Tensor) -> Tensor:
        return values.to(device, dtype if values.is_floating_point() else None, non_blocking=True)

    return map_tensors(inputs, move)


def floating_dtype(network: nn.Module) -> torch.dtype | None:
    """The dtype of the network's first floating-point parameter, None without any.

    >>> floating_dtype(nn.Linear(1, 1).double())
    torch.float64
    """
    return next((one.dtype for one in network.parameters() if one.is_floating_point()), None)


def call_network(network: nn.Module, inputs: Any) -> Any:
    """The network's outputs, or an error that says why it does not take whole numbers.

    Raises:
        ValueError: integer inputs for layers that compute with them.
    """
    try:
        return network(inputs)
    except RuntimeError as error:
        whole = {str(values.dtype) for values in tensors_of(inputs) if not values.is_floating_point()}
        if not whole or isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"the model cannot take inputs of {', '.join(sorted(whole))} ({error}); convert images to floats first, "
            "for example x.float() / 255"
        ) from error


def check_logits(logits_a: Tensor, logits_b: Tensor) -> None:
    """An error that names the first row whose logits (n, K) are not finite.

    Raises:
        ValueError: logits that are not finite.

    >>> check_logits(torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [torch.nan, 0.0]]))
    Traceback (most recent call last):
        ...
    ValueError: the logits of row 1 are not finite: its inputs contain NaN or infinity, or the twins diverged (lower lr)
    """
    wrong = ~(logits_a.isfinite() & logits_b.isfinite()).all(1)
    if wrong.any():
        raise ValueError(
            f"the logits of row {int(wrong.nonzero()[0])} are not finite: its inputs contain NaN or infinity, or the "
            "twins diverged (lower lr)"
        )


def map_tensors(inputs: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The function applied to every tensor of a tensor, dictionary, list or tuple.

    >>> map_tensors({"x": torch.ones(1)}, torch.neg)
    {'x': tensor([-1.])}
    """
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {name: map_tensors(value, function) for name, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        return [map_tensors(value, function) for value in inputs]
    raise TypeError(f"inputs are a {type(inputs).__name__}; give a tensor, or a dictionary, list or tuple of tensors")
