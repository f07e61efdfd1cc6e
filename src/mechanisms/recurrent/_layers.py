"""What `Recurrent` does around its scans: layouts of inputs and states, and the way to torch's modules and back."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from mechanisms.recurrent._doors import as_lengths
from mechanisms.recurrent._trees import Tree, first_tensor, shapes, tree_map
from mechanisms.recurrent.cells import GRUCell, LSTMCell, RNNCell, _Plain, share
from mechanisms.recurrent.protocol import Cell

KINDS = {"LSTM": LSTMCell, "GRU": GRUCell, "RNN_TANH": RNNCell, "RNN_RELU": RNNCell}


def make_cells(
    make_cell: Any, input_size: int | tuple[int, ...], num_layers: int, directions: int
) -> tuple[list[Cell], int]:
    """The cells of all layers, forward before backward, and the number of layers.

    Raises:
        TypeError: what is made is no cell.
        ValueError: one ready-made cell for several layers, another number of makers than layers, sizes that differ.
    """
    makers = list(make_cell) if isinstance(make_cell, Sequence | nn.ModuleList) else None
    if makers is not None:
        if num_layers not in (1, len(makers)):
            raise ValueError(f"{len(makers)} cells were given for num_layers={num_layers}; give one per layer")
        num_layers = len(makers)
    elif isinstance(make_cell, Cell) and num_layers * directions > 1:
        raise ValueError(
            f"one {type(make_cell).__name__} was given for {num_layers} layers and {directions} directions; give a "
            "function that makes a cell for a size, such as lambda size: LSTMCell(size, 64)"
        )
    cells: list[Cell] = []
    size = input_size
    for layer in range(num_layers):
        maker = makers[layer] if makers is not None else make_cell
        for _ in range(directions):
            if isinstance(maker, Cell) and directions > 1:
                raise ValueError("a ready-made cell runs in one direction; give a function that makes one for a size")
            cell = maker if isinstance(maker, Cell) else maker(size)
            if not isinstance(cell, Cell):
                raise TypeError(
                    f"layer {layer} got a {type(cell).__name__}, which is no Cell; subclass mechanisms.recurrent.Cell, "
                    "or wrap a cell of torch with from_torch"
                )
            if cell.input_size != size:
                raise ValueError(
                    f"the cell of layer {layer} has input_size={cell.input_size}, but what it reads has size {size}"
                )
            cells.append(cell)
        size = sum(cell.output_size for cell in cells[-directions:])
    return cells, num_layers


class Layout:
    """How an input came: packed, batch first, unbatched; and the way back for outputs.

    Args:
        input: a tensor, a tuple of tensors or a packed sequence.
        sizes: the input size, for messages.
        batch_first: whether the batch leads.
        lengths: valid steps of each row, or `None`.
        reset: flags in the layout of the input, or `None`.
    """

    def __init__(self, input: Any, sizes: int | tuple[int, ...], batch_first: bool, lengths: Any, reset: Any) -> None:
        self.packed = input if isinstance(input, PackedSequence) else None
        self.batched, self.batch_first = True, batch_first and self.packed is None
        self.lengths: list[int] | None = None
        self._input: Tree = None
        if self.packed is not None:
            if lengths is not None:
                raise ValueError("a PackedSequence brings its lengths; leave lengths out")
        else:
            self._input = self._led_by_time(input, sizes)
            steps, rows = first_tensor(self._input).shape[:2]
            if lengths is not None:
                if not self.batched:
                    raise ValueError("an unbatched input has one sequence: cut it instead of passing lengths")
                self.lengths = as_lengths(lengths, steps, rows, least=1)
        self.reset = None if reset is None else self._turned(torch.as_tensor(reset))

    @property
    def input(self) -> Tree:
        """The input (time, batch, ...), of a packed sequence padded when it is asked for."""
        if self._input is None:
            assert self.packed is not None
            self._input, valid = nn.utils.rnn.pad_packed_sequence(self.packed)
            self.lengths = valid.tolist()
        return self._input

    def _led_by_time(self, input: Tree, sizes: int | tuple[int, ...]) -> Tree:
        like = first_tensor(input)
        if like.dim() not in (2, 3):
            names = "(B, T, {})" if self.batch_first else "(T, B, {})"
            raise ValueError(f"expected {names.format(sizes)} or (T, {sizes}), got {tuple(like.shape)}")
        self.batched = like.dim() == 3
        return tree_map(self._turned, input)

    def _turned(self, leaf: Tensor) -> Tensor:
        if not self.batched:
            return leaf.unsqueeze(1)
        return leaf.transpose(0, 1) if self.batch_first else leaf

    def back(self, output: Tree) -> Tree:
        """Outputs (time, batch, ...) in the layout of the input."""
        if self.packed is not None:
            return tree_map(self._packed, output)
        if not self.batched:
            return tree_map(lambda leaf: leaf.squeeze(1), output)
        return tree_map(lambda leaf: leaf.transpose(0, 1), output) if self.batch_first else output

    def _packed(self, leaf: Tensor) -> PackedSequence:
        like = self.packed
        assert like is not None
        assert self.lengths is not None
        lengths = torch.tensor(self.lengths, device="cpu")  # as packing asks, whatever the default device
        if like.sorted_indices is not None:
            leaf = leaf.index_select(1, like.sorted_indices)
            lengths = lengths[like.sorted_indices.cpu()]
        data = pack_padded_sequence(leaf, lengths).data
        return PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)


def in_torch_layout(state: Any, like: Any) -> bool:
    """Whether a state is `(h_0, c_0)` or `h_0` as torch's modules take it, not one state per layer."""
    if isinstance(state, Tensor):
        return True
    if not isinstance(state, tuple | list):
        raise TypeError(f"the initial state must be a tuple of states, or (h_0, c_0); got {shapes(state)}")
    plain = type(state) in (tuple, list) and len(state) > 0 and not isinstance(like, Tensor)
    return plain and all(isinstance(part, Tensor) for part in state)


def cells_of(module: nn.LSTM | nn.GRU | nn.RNN) -> list[Cell]:
    """Cells that share the parameters of a module of torch, in the order of `h_n`.

    Raises:
        TypeError: it is none of the three.
        ValueError: it projects its hidden state.
    """
    if not isinstance(module, nn.LSTM | nn.GRU | nn.RNN):
        raise TypeError(
            f"from_torch takes nn.LSTM, nn.GRU or nn.RNN, got {type(module).__name__}; for single cells there is "
            "mechanisms.recurrent.from_torch"
        )
    if module.proj_size:
        raise ValueError(f"proj_size={module.proj_size}: proj_size is not offered; put a linear layer on the output")
    kind = KINDS[module.mode]
    options: dict[str, Any] = {"nonlinearity": module.nonlinearity} if kind is RNNCell else {}
    directions = 2 if module.bidirectional else 1
    cells: list[Cell] = []
    for layer in range(module.num_layers):
        size = module.input_size if layer == 0 else directions * module.hidden_size
        for suffix in (f"_l{layer}", f"_l{layer}_reverse")[:directions]:
            cell = kind(size, module.hidden_size, bool(module.bias), device="meta", **options)
            share(cell, module, suffix)
            cells.append(cell)
    return cells


def torch_module(cells: Sequence[Cell], num_layers: int, **options: Any) -> nn.LSTM | nn.GRU | nn.RNN:
    """torch's module with the same weights, copied.

    Raises:
        TypeError: cells that torch has no module for.
        ValueError: layers that differ, or learned initial states.
    """
    first = cells[0]
    if not isinstance(first, _Plain):
        raise TypeError(f"torch has no module for {type(first).__name__}; LSTMCell, GRUCell and RNNCell have one")
    nonlinearity = getattr(first, "nonlinearity", None)
    for cell in cells:
        same = type(cell) is type(first) and isinstance(cell, _Plain) and cell.hidden_size == first.hidden_size
        if not same or cell.bias != first.bias or getattr(cell, "nonlinearity", None) != nonlinearity:
            raise ValueError("torch's modules have layers of one kind and size; these differ")
    if any(getattr(first, f"initial_{leaf}") is not None for leaf in first.zoneable):
        raise ValueError("learned initial states have no place in torch's modules; pass them as the initial state")
    if isinstance(nonlinearity, nn.Module):
        raise TypeError(f"torch has no module for a plain network with {type(nonlinearity).__name__}")
    kind: type[nn.LSTM | nn.GRU | nn.RNN] = (
        nn.LSTM if isinstance(first, LSTMCell) else nn.GRU if isinstance(first, GRUCell) else nn.RNN
    )
    if nonlinearity is not None:
        options["nonlinearity"] = nonlinearity
    options |= {"device": first.weight_hh.device, "dtype": first.weight_hh.dtype}
    module = kind(
        first.input_size,
        first.hidden_size,
        num_layers,
        bias=first.bias,
        **options,
    )
    directions = len(cells) // num_layers
    with torch.no_grad():
        for place, cell in enumerate(cells):
            suffix = f"_l{place // directions}" + ("_reverse" if place % directions else "")
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                if getattr(cell, name) is not None:
                    getattr(module, name + suffix).copy_(getattr(cell, name))
    return module
