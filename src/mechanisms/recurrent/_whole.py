"""All layers and directions of plain cells in one call of torch, as `nn.LSTM`, `nn.GRU` and `nn.RNN` make it.

`Recurrent` would otherwise call torch once per layer and direction; that costs a tenth of the time at small sizes, and
on a GPU the layers would not overlap. Whatever is out of the ordinary is left to `scan`, which also says what is wrong.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from mechanisms.recurrent._driver import functional
from mechanisms.recurrent.cells import GRUCell, GRUState, LSTMCell, LSTMState, RNNCell, RNNState, _Plain
from mechanisms.recurrent.states import State

STATES: dict[type[_Plain], Any] = {LSTMCell: LSTMState, GRUCell: GRUState, RNNCell: RNNState}


def plain_cells(cells: nn.ModuleList) -> list[_Plain]:
    """The cells, when all are of one plain kind, size and type; else none.

    They are looked at in each call, because a user may put another cell in a layer, or move one.
    """
    found: list[Any] = list(cells._modules.values())
    first = found[0]
    kind = type(first)
    if kind not in STATES:  # no subclass: it may step differently
        return []
    weight, nonlinearity = first.weight_hh, getattr(first, "nonlinearity", None)
    if isinstance(nonlinearity, nn.Module) or first.initial_h is not None:
        return []
    for cell in found[1:]:
        other = cell.weight_hh if type(cell) is kind else None
        if other is None or other.shape != weight.shape or other.dtype != weight.dtype or other.device != weight.device:
            return []
        if cell.bias != first.bias or getattr(cell, "nonlinearity", None) != nonlinearity or cell.initial_h is not None:
            return []
    return found


def run_whole(
    cells: list[_Plain],
    input: Tensor | PackedSequence,
    state: Any,
    lengths: list[int] | None,
    *,
    num_layers: int,
    dropout: float,
    train: bool,
    torch_state: bool,
) -> tuple[Any, Any] | None:
    """Outputs (time, batch, ...) or packed, and the states after them.

    Args:
        cells: what `plain_cells` found.
        input: (time, batch, size), or packed.
        state: `None`, a state for each cell, or (layers * directions, batch, hidden) for each leaf.
        lengths: valid steps of each row of an input that is not packed.
        num_layers, dropout: of the network.
        train: whether dropout acts.
        torch_state: whether to return states in torch's layout.

    Returns:
        `None` where it does not apply: other types, devices or shapes, autocast, transforms.
    """
    first = cells[0]
    leaves = len(first.zoneable)
    weight = first.weight_hh
    packed = input if isinstance(input, PackedSequence) else None
    data = input if packed is None else packed.data
    assert isinstance(data, Tensor)
    if data.dtype != weight.dtype or data.device != weight.device or data.dim() != (3 if packed is None else 2):
        return None
    if data.shape[-1] != first.input_size or not data.shape[0] or not data.shape[-2] or functional():
        return None
    if torch.is_autocast_enabled(weight.device.type):
        return None
    rows = data.shape[1] if packed is None else int(packed.batch_sizes[0])
    steps = data.shape[0] if packed is None else len(packed.batch_sizes)
    uneven = data.shape[0] < steps * rows if packed is not None else lengths is not None and min(lengths) < steps
    if uneven and weight.device.type == "cpu" and not isinstance(first, RNNCell) and steps >= 2 * rows:
        return None  # on the CPU torch's packed path is up to five times slower than `scan` between the ends of rows
    if lengths is not None and uneven:
        packed = pack_padded_sequence(data, torch.tensor(lengths, device="cpu"), enforce_sorted=False)
        data = packed.data
    shape = (len(cells), rows, first.hidden_size)
    start = _start(state, cells, leaves, shape, data)
    if start is None:
        return None
    if packed is not None and packed.sorted_indices is not None and state is not None:
        start = [leaf.index_select(1, packed.sorted_indices) for leaf in start]
    weights = [weight for cell in cells for weight in cell._weights()]
    kernel: Any = _kernel(first)
    hx = start if leaves > 1 else start[0]
    # cuDNN keeps what its backward needs only when told that it trains; dropout then acts, unless its rate is zero.
    options = (
        first.bias,
        num_layers,
        dropout if train else 0.0,
        train or torch.is_grad_enabled(),
        len(cells) > num_layers,
    )
    if packed is None:
        output, *last = kernel(data, hx, weights, *options, False)
    else:
        output, *last = kernel(data, packed.batch_sizes, hx, weights, *options)
        if packed.unsorted_indices is not None:
            last = [leaf.index_select(1, packed.unsorted_indices) for leaf in last]
        output = PackedSequence(output, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        if isinstance(input, Tensor):
            output, _ = pad_packed_sequence(output, total_length=input.shape[0])
    if torch_state:
        return output, tuple(last) if leaves > 1 else last[0]
    made = STATES[type(first)]
    return output, tuple(made(*parts) for parts in zip(*[leaf.unbind(0) for leaf in last], strict=True))


def _kernel(cell: _Plain) -> Any:
    if isinstance(cell, RNNCell):
        return torch.rnn_tanh if cell.nonlinearity == "tanh" else torch.rnn_relu
    return torch.lstm if isinstance(cell, LSTMCell) else torch.gru


def _start(state: State, cells: list[_Plain], leaves: int, shape: tuple[int, ...], like: Tensor) -> list[Tensor] | None:
    """The states before the first step, (layers * directions, batch, hidden) each; `None` when they do not fit."""
    if state is None:
        return [like.new_zeros(shape)] * leaves
    if isinstance(state, Tensor):
        given = [state]
    elif all(isinstance(part, Tensor) for part in state):
        given = list(state)
    elif len(state) == len(cells) and all(type(part) is type(state[0]) and len(part) == leaves for part in state):
        if any(part.shape != shape[1:] for one in state for part in one):
            return None
        given = [torch.stack(parts) for parts in zip(*state, strict=True)]
    else:
        return None
    fits = len(given) == leaves and all(
        leaf.shape == shape and leaf.dtype == like.dtype and leaf.device == like.device for leaf in given
    )
    return given if fits else None
