"""Helpers for states: trees of tensors, batch first in every leaf.

Each works on the state of any cell, of wrapped cells, and on the tuple of states that `Recurrent` returns.
"""

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mechanisms.recurrent._doors import as_flags
from mechanisms.recurrent._trees import first_tensor, named_leaves, per_row, shapes, tensors, tree_map

State = Any


def get_leaf(state: State, name: str) -> Tensor:
    """A leaf of a state by its name.

    Raises:
        TypeError: there is none of that name.

    >>> get_leaf({"h": torch.zeros(2)}, "h")
    tensor([0., 0.])
    """
    found = state.get(name) if isinstance(state, dict) else getattr(state, name, None)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"the state {shapes(state)} has no leaf {name!r}; name it so, or override hidden and with_hidden"
        )
    return found


def with_leaves(state: State, leaves: Mapping[str, Tensor]) -> State:
    """The state with some leaves replaced.

    >>> with_leaves({"h": torch.zeros(2)}, {"h": torch.ones(2)})
    {'h': tensor([1., 1.])}
    """
    return {**state, **leaves} if isinstance(state, dict) else state._replace(**leaves)


def reset(cell: Any, state: State, done: Tensor | ArrayLike) -> State:
    """The state with the rows where `done` (batch,) is true replaced by the initial state.

    Raises:
        ValueError: `done` has another shape, or holds other values than true and false (0 and 1).

    >>> from mechanisms.recurrent.cells import GRUCell, GRUState
    >>> reset(GRUCell(3, 2), GRUState(torch.ones(2, 2)), torch.tensor([True, False])).h
    tensor([[0., 0.],
            [1., 1.]])
    """
    like = first_tensor(state)
    return cell.reset(state, as_flags(done, "done", (like.shape[0],), like.device))


def detach(state: State) -> State:
    """The state without its history: gradients stop here.

    >>> detach((torch.ones(2, requires_grad=True) * 2,))[0].requires_grad
    False
    """
    return tree_map(lambda leaf: leaf.detach(), state)


def select(state: State, rows: Tensor | slice | list[int]) -> State:
    """Some rows of a state: indices, a mask or a slice.

    >>> select({"h": torch.arange(3)}, [2, 0])
    {'h': tensor([2, 0])}
    """
    return tree_map(lambda leaf: leaf[rows], state)


def expand(state: State, n: int) -> State:
    """Each row `n` times, next to each other, as beam search wants it.

    >>> expand({"h": torch.arange(2)}, 2)
    {'h': tensor([0, 0, 1, 1])}
    """
    return tree_map(lambda leaf: leaf.repeat_interleave(n, 0), state)


def freeze(active: Tensor, new: State, old: State) -> State:
    """Row by row the new state where `active` (batch,), else the old one.

    >>> freeze(torch.tensor([True, False]), {"h": torch.ones(2)}, {"h": torch.zeros(2)})
    {'h': tensor([1., 0.])}
    """
    return tree_map(lambda after, before: torch.where(per_row(active, after), after, before), new, old)


def to_torch_state(states: tuple[State, ...]) -> Any:
    """The states of layers and directions as `torch.nn.LSTM` returns them: `(h_n, c_n)`, or `h_n` for one leaf.

    Args:
        states: one state per layer and direction, leaves (batch, hidden).

    Returns:
        Per leaf a tensor (layers * directions, batch, hidden).

    >>> from mechanisms.recurrent.cells import LSTMCell
    >>> h, c = to_torch_state((LSTMCell(3, 4).initial_state(2),))
    >>> h.shape
    torch.Size([1, 2, 4])
    """
    stacked = tuple(torch.stack(leaves) for leaves in zip(*[tensors(state) for state in states], strict=True))
    return stacked if len(stacked) > 1 else stacked[0]


def from_torch_state(like: tuple[State, ...], state: Tensor | tuple[Tensor, ...]) -> tuple[State, ...]:
    """States of layers and directions from `(h_0, c_0)` (or `h_0`), each (layers * directions, batch, hidden).

    Args:
        like: states of the same layers, whose structure is taken (`initial_state(1)` will do).
        state: what `torch.nn.LSTM` takes.

    Raises:
        TypeError: there are more or fewer tensors than leaves.
        ValueError: the number of layers does not fit.

    >>> from mechanisms.recurrent.cells import LSTMCell
    >>> (state,) = from_torch_state((LSTMCell(3, 4).initial_state(1),), (torch.ones(1, 2, 4), torch.zeros(1, 2, 4)))
    >>> state.h.shape
    torch.Size([2, 4])
    """
    given = (state,) if isinstance(state, Tensor) else tuple(state)
    names = [name for name, _ in named_leaves(like[0])]
    if len(given) != len(names):
        raise TypeError(
            f"{len(given)} tensors were given as the initial state; this network has {len(names)} per layer "
            f"({', '.join(names)})"
        )
    for name, tensor in zip(names, given, strict=True):
        if tensor.dim() != 3 or tensor.shape[0] != len(like):
            raise ValueError(
                f"the initial {name} has shape {tuple(tensor.shape)}; expected ({len(like)}, batch, hidden): layers "
                "times directions first, as in torch.nn.LSTM, whatever batch_first says"
            )
    layers = zip(*[tensor.unbind(0) for tensor in given], strict=True)
    return tuple(_fill(one, list(leaves)) for one, leaves in zip(like, layers, strict=True))


def _fill(like: State, leaves: list[Tensor]) -> State:
    rest = iter(leaves)
    return tree_map(lambda _: next(rest), like)


def state_to_dict(state: State) -> dict[str, Tensor]:
    """The leaves of a state under flat names such as "inner.h", to be saved without pickle (safetensors, say).

    >>> from mechanisms.recurrent.cells import LSTMCell
    >>> sorted(state_to_dict(LSTMCell(3, 4).initial_state(2)))
    ['c', 'h']
    """
    return {
        name: torch.tensor(leaf)
        if isinstance(leaf, int)
        else leaf.detach().clone(memory_format=torch.contiguous_format)
        for name, leaf in named_leaves(state)
    }


def state_from_dict(cell: Any, leaves: Mapping[str, Tensor]) -> State:
    """The state whose leaves `state_to_dict` had named.

    Args:
        cell: the cell (or `Recurrent`) the state belongs to.
        leaves: tensors by name; none may be missing or left over.

    Raises:
        ValueError: names are missing or unknown.

    >>> from mechanisms.recurrent.cells import LSTMCell
    >>> cell = LSTMCell(3, 4)
    >>> state_from_dict(cell, state_to_dict(cell.initial_state(2))).h.shape
    torch.Size([2, 4])
    """
    like = cell.initial_state(1)
    names = dict(named_leaves(like))
    if set(names) != set(leaves):
        raise ValueError(
            f"the saved state has the leaves {', '.join(sorted(leaves))}; {type(cell).__name__} has "
            f"{', '.join(sorted(names))}: it was saved by another kind of cell"
        )
    return _named(like, leaves, "")


def _named(like: State, leaves: Mapping[str, Tensor], name: str) -> State:
    if isinstance(like, Tensor):
        return leaves[name or "state"]
    if isinstance(like, int):
        return int(leaves[name or "state"])
    if isinstance(like, dict):
        return {key: _named(part, leaves, f"{name}.{key}" if name else str(key)) for key, part in like.items()}
    if isinstance(like, tuple):
        fields = getattr(like, "_fields", range(len(like)))
        parts = [
            _named(part, leaves, f"{name}.{key}" if name else str(key)) for key, part in zip(fields, like, strict=True)
        ]
        return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
    return like
