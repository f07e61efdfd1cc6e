"""States in the buffers of reinforcement learning: one row of numbers per environment, zeros at an episode's start.

Such buffers reset a state by multiplying it with zero. So what is packed is every leaf minus its initial value: zeros
are the initial state, also where that is learned, or where an empty slot of a memory has the index -1.

Everything for an agent of sb3-contrib's `RecurrentPPO` can be imported from here too; it needs the extra `rl`, and is
loaded when it is first used.
"""

from typing import Any

import torch
from torch import Tensor

from mechanisms._base.lazy import lazy_names
from mechanisms.recurrent._doors import as_flags
from mechanisms.recurrent._trees import first_tensor, per_row, shapes, tensors, tree_map
from mechanisms.recurrent.states import State

_HOMES = {
    "BabyAIEncoder": "agent_encoders",
    "FastSlowCallback": "agent_callback",
    "MlpEncoder": "agent_encoders",
    "RecurrentPolicy": "agent_policy",
    "SB3Core": "agent_core",
    "SB3VecEnv": "agent_env",
    "load_agent": "agent_saving",
    "make_cell": "agent_core",
    "save_agent": "agent_saving",
}
__getattr__ = lazy_names("mechanisms.recurrent", _HOMES)


def pack_state(cell: Any, state: State) -> Tensor:
    """A state as one matrix (batch, numbers) of type float32.

    Integers are exact up to 2^24.

    Args:
        cell: the cell (or `Recurrent`) the state belongs to.
        state: its state, leaves (batch, ...).

    Raises:
        TypeError: the cell's memory grows with the steps.

    >>> from mechanisms.recurrent.cells import LSTMCell
    >>> cell = LSTMCell(3, 4)
    >>> pack_state(cell, cell.initial_state(2)).shape
    torch.Size([2, 8])
    """
    _refuse_growing(cell)
    like = first_tensor(state)
    initial = cell.initial_state(like.shape[0], device=like.device)
    parts = [
        _flat(leaf.to(torch.float32) - start.detach().to(torch.float32))
        for leaf, start in zip(tensors(state), tensors(initial), strict=True)
    ]
    return torch.cat(parts, 1)


def unpack_state(cell: Any, packed: Tensor, *, dtype: torch.dtype | None = None, start: Tensor | None = None) -> State:
    """The state that `pack_state` had packed.

    Args:
        cell: the cell (or `Recurrent`) it belongs to.
        packed: (batch, numbers).
        dtype: type of the floating-point leaves; by default as the cell's initial state.
        start: booleans (batch,), true in rows at the start of an episode: there a learned initial state gets gradients,
            in the others it is a constant.

    Raises:
        TypeError: the cell's memory grows with the steps.
        ValueError: the cell's state has another number of numbers.

    >>> from mechanisms.recurrent.cells import LSTMCell
    >>> unpack_state(LSTMCell(3, 4), torch.zeros(2, 8)).c.shape
    torch.Size([2, 4])
    """
    _refuse_growing(cell)
    initial = cell.initial_state(packed.shape[0], device=packed.device, dtype=dtype)
    sizes = [_flat(leaf).shape[1] for leaf in tensors(initial)]
    if packed.dim() != 2 or packed.shape[1] != sum(sizes):
        raise ValueError(
            f"the packed state has shape {tuple(packed.shape)}; expected (batch, {sum(sizes)}) for {shapes(initial)}"
        )
    rest = iter(packed.split(sizes, 1))
    flags = None if start is None else as_flags(start, "start", (packed.shape[0],), packed.device)

    return tree_map(lambda leaf: _unpacked(leaf, next(rest), flags), initial)


def _unpacked(initial: Tensor, numbers: Tensor, start: Tensor | None) -> Tensor:
    """One leaf from its numbers and its initial value, which is a constant but in the rows of `start`."""
    numbers = numbers.view(initial.shape)
    if not initial.is_floating_point():
        return (initial.to(torch.float32) + numbers).round().to(initial.dtype)
    constant = initial.detach()
    base = constant if start is None else torch.where(per_row(start, initial), initial, constant)
    return base + numbers.to(initial.dtype)


def _flat(leaf: Tensor) -> Tensor:
    return leaf.flatten(1) if leaf.dim() > 1 else leaf.unsqueeze(1)


def _refuse_growing(cell: Any) -> None:
    for one in getattr(cell, "cells", [cell]):
        if one.growing:
            raise TypeError(
                f"the memory of {type(one).__name__} grows and has no fixed size to pack; set max_memory=..."
            )
