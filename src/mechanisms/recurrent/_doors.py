"""What the doors of this package check: inputs, states, flags, lengths and noise that users pass."""

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mechanisms.recurrent._trees import Tree, named_leaves, shapes, tensors

if TYPE_CHECKING:
    from mechanisms.recurrent.protocol import Cell


def check_whole(value: Any, name: str, *, at_least: int = 1) -> int:
    """A whole number, of whatever integer type.

    Raises:
        TypeError: it is none; 2.0 is none either.
        ValueError: it is too small.

    >>> check_whole(3, "k_top")
    3
    """
    try:
        whole = value if type(value) is int else operator.index(value)
    except TypeError:
        whole = True
    if isinstance(value, bool) or isinstance(whole, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if whole < at_least:
        raise ValueError(f"{name}={value}: it must be at least {at_least}")
    return whole


def as_flags(flags: Any, name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Truth values of a given shape from a tensor or an array of booleans, or of zeros and ones.

    Raises:
        ValueError: the shape differs, or other values occur.

    >>> as_flags([0, 1], "done", (2,), torch.device("cpu"))
    tensor([False,  True])
    """
    tensor = torch.as_tensor(flags, device=device)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}")
    if tensor.dtype is torch.bool:
        return tensor
    if bool(((tensor != 0) & (tensor != 1)).any()):
        raise ValueError(f"{name} must hold booleans, or zeros and ones, got {tensor.dtype} with other values")
    return tensor.bool()


def check_inputs(cell: "Cell", inputs: Tree, *, leading: int) -> None:
    """Shapes and types of inputs with `leading` dimensions before the last: 2 for (time, batch, size), 1 for a step.

    Raises:
        TypeError: integers, or something that is no tensor.
        ValueError: dimensions do not fit.

    >>> from mechanisms.recurrent.cells import LSTMCell
    >>> check_inputs(LSTMCell(3, 4), torch.ones(5, 2, 3), leading=2)
    """
    sizes = cell.input_size
    if isinstance(sizes, int):
        if not isinstance(inputs, Tensor):
            raise TypeError(f"{type(cell).__name__} takes one tensor, got {shapes(inputs)}")
        pairs = [(inputs, sizes)]
    else:
        parts = tensors(inputs)
        if not isinstance(inputs, tuple) or not 0 < len(parts) <= len(sizes):
            raise TypeError(f"{type(cell).__name__} takes a tuple of up to {len(sizes)} tensors, got {shapes(inputs)}")
        pairs = list(zip(parts, sizes, strict=False))
    names = ("T, B, " if leading == 2 else "B, ") if leading else ""
    for tensor, size in pairs:
        if not tensor.is_floating_point():
            raise TypeError(
                f"the input has type {tensor.dtype}; floating-point numbers are expected: embed tokens first"
            )
        if tensor.dim() != leading + 1:
            raise ValueError(f"expected an input of shape ({names}{size}), got {tuple(tensor.shape)}")
        if tensor.shape[-1] != size:
            raise ValueError(
                f"the last dimension of the input is {tensor.shape[-1]}, this {type(cell).__name__} has "
                f"input_size={size}: expected ({names}{size}), got {tuple(tensor.shape)}"
            )
        if tensor.shape[:leading] != pairs[0][0].shape[:leading]:
            raise ValueError(f"the inputs' leading sizes differ: {shapes(inputs)}")


def check_state(cell: "Cell", state: Any, batch_size: int) -> None:
    """Whether a state is one of this cell, of `batch_size` rows, on its device and of its type.

    Raises:
        TypeError: the structure is another one.
        ValueError: shapes, types or devices differ.

    >>> from mechanisms.recurrent.cells import LSTMCell
    >>> cell = LSTMCell(3, 4)
    >>> check_state(cell, cell.initial_state(2), 2)
    """
    expected = cell.initial_state(batch_size)
    if _structure(expected) != _structure(state):
        raise TypeError(
            f"the state does not belong to {type(cell).__name__}: expected {shapes(expected)}, got {shapes(state)}"
        )
    for (name, want), (_, got) in zip(named_leaves(expected), named_leaves(state), strict=True):
        if not isinstance(want, Tensor) or not isinstance(got, Tensor):
            continue
        same = got.shape[:1] == want.shape[:1] if cell.growing else got.shape == want.shape
        if not same or got.dtype != want.dtype or got.device != want.device:
            raise ValueError(
                f"leaf {name!r} of the state is {shapes(got)} on {got.device}; {type(cell).__name__} with {batch_size} "
                f"rows has {shapes(want)} on {want.device}"
            )


def _structure(tree: Tree) -> Any:
    """What two trees must share to be exchanged."""
    if isinstance(tree, tuple):
        return type(tree), tuple(_structure(part) for part in tree)
    if isinstance(tree, dict):
        return dict, tuple((key, _structure(part)) for key, part in tree.items())
    return Tensor if isinstance(tree, Tensor) else type(tree)


def as_lengths(lengths: Any, steps: int, rows: int, *, least: int) -> list[int]:
    """Lengths as a list of integers.

    Args:
        lengths: a tensor, an array or a list.
        steps, rows: sizes of the sequences.
        least: the least length that is allowed.

    Raises:
        TypeError: they are no integers.
        ValueError: there are more or fewer than rows, or one is out of range.

    >>> as_lengths(torch.tensor([5, 2]), steps=5, rows=2, least=1)
    [5, 2]
    """
    given = torch.as_tensor(lengths)
    if given.numel() == 0 and not isinstance(lengths, Tensor):
        given = given.long()  # an empty list has no type
    if given.is_floating_point() or given.is_complex() or given.dtype is torch.bool:
        raise TypeError(f"lengths must be integers, got {given.dtype}")
    if tuple(given.shape) != (rows,):
        raise ValueError(f"lengths has shape {tuple(given.shape)}; expected ({rows},), one for each row of the batch")
    found = given.tolist()
    for row, length in enumerate(found):
        if not least <= length <= steps:
            raise ValueError(
                f"lengths[{row}] is {length}; it must be between {least} and the {steps} steps of the input"
            )
    return found


def check_given(cell: "Cell", state: Any, steps: int, rows: int) -> None:
    try:
        check_state(cell, state, rows)
    except ValueError as error:
        found = next(
            (leaf.shape[0] for _, leaf in named_leaves(state) if isinstance(leaf, Tensor) and leaf.dim()), rows
        )
        if found == steps != rows:
            raise ValueError(f"{error}. Is the input (batch, time, size)? Then batch_first=True?") from None
        raise


def check_noise(noise: Tree, steps: int, rows: int) -> None:
    for name, leaf in named_leaves(noise):
        if isinstance(leaf, Tensor) and tuple(leaf.shape[:2]) != (steps, rows):
            raise ValueError(
                f"noise {name!r} has shape {tuple(leaf.shape)}; it must lead with ({steps}, {rows}): all steps and "
                "rows, as cell.noise(steps, batch_size) draws it"
            )
