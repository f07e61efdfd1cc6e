"""Any cell with the face of `torch.nn.LSTM`: layers, directions, dropout, packed sequences, initial states."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mechanisms._base.validation import check_number
from mechanisms.recurrent._doors import as_flags
from mechanisms.recurrent._layers import Layout, cells_of, in_torch_layout, make_cells, torch_module
from mechanisms.recurrent._trees import Tree, first_tensor, joined, shapes, tree_map
from mechanisms.recurrent._whole import plain_cells, run_whole
from mechanisms.recurrent.protocol import Cell, Device
from mechanisms.recurrent.scan import boundaries, check_options, scan
from mechanisms.recurrent.states import State, from_torch_state, to_torch_state


class Recurrent(nn.Module):
    """A recurrent network of any cells that takes what `torch.nn.LSTM` takes and returns what it returns.

    Args:
        make_cell: a function that makes the cell for a layer's input size, called per layer and direction; or a list
            of such functions, one per layer; or, for one layer and one direction, a cell.
        input_size: last dimension of the input (a tuple for cells that take several inputs).
        num_layers: layers; each reads the outputs of the one below, of both directions.
        batch_first: whether inputs, outputs and `reset` are (batch, time, ...).
        dropout: rate of dropout between layers, in training.
        bidirectional: whether each layer also runs backwards.
        truncate, checkpoint, compile, backend: as for `scan`.
        torch_state: whether to return states in torch's layout always; else only when one was given.

    States are a tuple over layers, forward before backward, of the cells' states: batch first, whatever `batch_first`
    says. `(h_0, c_0)` in torch's layout (layers * directions, batch, hidden) is accepted too, and then returned.

    The parameters of `nn.LSTM` come in with `Recurrent.from_torch`, and go back with `to_torch`.

    Raises:
        ValueError: sizes or options do not fit, or one cell is given for several layers.

    >>> from mechanisms.recurrent.cells import LSTMCell
    >>> network = Recurrent(lambda size: LSTMCell(size, 8), 3, num_layers=2)
    >>> output, state = network(torch.randn(5, 2, 3))
    >>> output.shape, len(state), state[0].c.shape
    (torch.Size([5, 2, 8]), 2, torch.Size([2, 8]))
    >>> output, (h, c) = network(torch.randn(5, 2, 3), (torch.zeros(2, 2, 8), torch.zeros(2, 2, 8)))
    >>> h.shape
    torch.Size([2, 2, 8])
    """

    def __init__(
        self,
        make_cell: Any,
        input_size: int | tuple[int, ...],
        *,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float | int = 0.0,
        bidirectional: bool = False,
        truncate: int | tuple[int, int] | None = None,
        checkpoint: int | bool | None = None,
        compile: bool | str = False,
        backend: str = "auto",
        torch_state: bool = False,
    ) -> None:
        super().__init__()
        check_number(num_layers, "num_layers", at_least=1)
        self.dropout = check_number(dropout, "dropout", at_least=0, at_most=1)
        self.input_size, self.bidirectional, self.batch_first = input_size, bidirectional, batch_first
        check_options(backend, compile, checkpoint=checkpoint)
        boundaries(truncate, steps=1)
        cells, self.num_layers = make_cells(make_cell, input_size, num_layers, 2 if bidirectional else 1)
        self.cells = nn.ModuleList(cells)
        self.output_size = sum(cell.output_size for cell in cells[-(2 if bidirectional else 1) :])
        self.truncate, self.checkpoint, self.compile_, self.backend = truncate, checkpoint, compile, backend
        self.torch_state = torch_state
        if dropout and self.num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
                f"num_layers greater than 1, but got dropout={dropout} and num_layers={self.num_layers}",
                stacklevel=2,
            )

    def forward(
        self,
        input: Any,
        state: Any = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        generator: torch.Generator | None = None,
        need_info: bool = False,
    ) -> Any:
        """Run over whole sequences.

        Args:
            input: (time, batch, size), or (batch, time, size) with `batch_first`; (time, size) without a batch; or a
                PackedSequence, which comes back as one.
            state: the initial state, as returned by an earlier call or in torch's layout.
            lengths: valid steps of each row, integers from 1 to time; outputs beyond are 0, the state is that after
                the last valid step.
            reset: booleans in the layout of the input: where true, that row begins a new episode at that step.
            generator: where the cells' noise and the dropout come from; torch's own by default.
            need_info: whether to return, as a third value, what the cells record, a tuple over layers and directions,
                `None` for those that record nothing.

        Returns:
            `(output, state)`: outputs of the top layer, directions side by side; and the state after the last step.

        Raises:
            TypeError: integers as input; a state of another network; a packed sequence for a memory that grows.
            ValueError: shapes or options do not fit.
        """
        layout = Layout(input, self.input_size, self.batch_first, lengths, reset)
        if layout.packed is not None and any(cell.growing for cell in self.cells):
            raise TypeError("a memory that grows has one length for all rows: pass padded input with lengths=...")
        if reset is not None and self.bidirectional:
            raise ValueError("reset with bidirectional=True: the backward direction would need the future")
        found = None if need_info or reset is not None else self._whole(input, layout, state, generator)
        if found is not None:
            return found
        like = first_tensor(layout.input)
        states, as_torch = self._states(state, like, layout.batched)
        output, info = layout.input, []
        new: list[State] = []
        for layer in range(self.num_layers):
            if layer:
                output = self._dropped(first_tensor(output), generator)
            output, extra = self._layer(layer, output, states, layout, new, generator, need_info)
            info += extra
        if as_torch:
            last = to_torch_state(tuple(new))
            last = last if layout.batched else tree_map(lambda leaf: leaf.squeeze(1), last)
        else:
            last = tuple(new)
        if need_info:
            return layout.back(output), last, tuple(layout.back(one) for one in info)
        return layout.back(output), last

    def _whole(
        self, input: Any, layout: Layout, state: Any, generator: torch.Generator | None
    ) -> tuple[Any, Any] | None:
        """All layers in one call of torch, where they are plain and nothing is asked that it does not know."""
        if self.truncate is not None or self.checkpoint or self.compile_ or self.backend == "eager":
            return None
        dropped = self.dropout > 0 and self.training and self.num_layers > 1
        cells = plain_cells(self.cells)
        if not cells or (dropped and generator is not None):
            return None
        as_torch = self.torch_state
        if state is not None:
            as_torch = in_torch_layout(state, None) or as_torch
            if not layout.batched:
                return None
        found = run_whole(
            cells,
            layout.input if layout.packed is None else layout.packed,
            state,
            None if layout.packed is not None else layout.lengths,
            num_layers=self.num_layers,
            dropout=self.dropout,
            train=self.training,
            torch_state=as_torch,
        )
        if found is None or layout.packed is not None:
            return found
        output, last = found
        if as_torch and not layout.batched:
            last = tree_map(lambda leaf: leaf.squeeze(1), last)
        return layout.back(output), last

    def _layer(
        self,
        layer: int,
        inputs: Tree,
        states: list[State | None],
        layout: Layout,
        new: list[State],
        generator: torch.Generator | None,
        need_info: bool,
    ) -> tuple[Tree, list[Tree]]:
        """Both directions of one layer; the states after it are added to `new`."""
        outputs, infos = [], []
        directions = 2 if self.bidirectional else 1
        for direction in range(directions):
            place = layer * directions + direction
            cell = self._cell(place)
            # Asking where nothing is recorded is a mistake only when no cell does.
            asked = need_info and (cell.records or not any(self._cell(one).records for one in range(len(self.cells))))
            result = scan(
                cell,
                inputs,
                states[place],
                lengths=layout.lengths,
                reset=layout.reset,
                reverse=direction == 1,
                truncate=self.truncate,
                checkpoint=self.checkpoint,
                generator=generator,
                backend=self.backend,
                compile=self.compile_,
                need_info=asked,
            )
            if not cell.rows_independent and cell.training:
                cell.update_statistics(result.info)
            outputs.append(result.output)
            new.append(result.state)
            if need_info:
                infos.append(result.info if asked else None)
        if directions == 1:
            return outputs[0], infos
        return joined(lambda parts: torch.cat(parts, -1), outputs), infos

    def step(
        self, input: Tree, state: Any = None, *, generator: torch.Generator | None = None
    ) -> tuple[Any, tuple[State, ...]]:
        """One step through all layers, for streams and agents.

        Args:
            input: (batch, size).
            state: the state, as returned before; the initial one by default.
            generator: where noise and dropout come from.

        Raises:
            ValueError: the network is bidirectional.
        """
        if self.bidirectional:
            raise ValueError("step with bidirectional=True: the backward direction would need the future")
        if state is None:
            states: Any = [None] * self.num_layers
        elif type(state) is tuple and len(state) == self.num_layers and not isinstance(state[0], Tensor):
            states = state
        else:
            states, _ = self._states(state, first_tensor(input), True)
        output, new = input, []
        for layer, cell in enumerate(self.cells):
            if layer:
                output = self._dropped(first_tensor(output), generator)
            output, after = cell(output, states[layer], generator=generator)
            new.append(after)
        return output, tuple(new)

    def initial_state(
        self, batch_size: int, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> tuple[State, ...]:
        """The state before the first step, one entry per layer and direction."""
        return tuple(
            self._cell(place).initial_state(batch_size, device=device, dtype=dtype) for place in range(len(self.cells))
        )

    def reset(self, state: tuple[State, ...], done: Any) -> tuple[State, ...]:
        """The state with the rows where `done` (batch,) is true started anew.

        Raises:
            ValueError: the network is bidirectional, or `done` has another shape.
        """
        if self.bidirectional:
            raise ValueError("reset with bidirectional=True: the backward direction would need the future")
        like = first_tensor(state)
        flags = as_flags(done, "done", (like.shape[0],), like.device)
        return tuple(self._cell(place).reset(one, flags) for place, one in enumerate(state))

    def flatten_parameters(self) -> None:
        """Does nothing: it is here for code that calls it on `nn.LSTM`."""

    @classmethod
    def from_torch(cls, module: nn.LSTM | nn.GRU | nn.RNN) -> "Recurrent":
        """A network around a module of torch; both share their parameters. States come in torch's layout.

        Raises:
            TypeError: it is no LSTM, GRU or RNN of torch.
            ValueError: it has a `proj_size`.

        >>> theirs = nn.LSTM(3, 4, num_layers=2)
        >>> output, (h, c) = Recurrent.from_torch(theirs)(torch.ones(5, 2, 3))
        >>> bool(torch.allclose(output, theirs(torch.ones(5, 2, 3))[0], atol=1e-6))
        True
        """
        cells = iter(cells_of(module))
        return cls(
            lambda size: next(cells),
            module.input_size,
            num_layers=module.num_layers,
            batch_first=module.batch_first,
            dropout=module.dropout if module.num_layers > 1 else 0.0,
            bidirectional=module.bidirectional,
            torch_state=True,
        ).train(module.training)

    def to_torch(self) -> nn.LSTM | nn.GRU | nn.RNN:
        """torch's own module with the same weights, copied.

        Raises:
            TypeError: torch has no module for these cells.
            ValueError: the layers differ, or have learned initial states.
        """
        return torch_module(
            [self._cell(place) for place in range(len(self.cells))],
            self.num_layers,
            batch_first=self.batch_first,
            dropout=self.dropout,
            bidirectional=self.bidirectional,
        ).train(self.training)

    def extra_repr(self) -> str:
        """What is not the default."""
        said = {"batch_first": self.batch_first, "dropout": self.dropout, "bidirectional": self.bidirectional}
        return ", ".join([f"num_layers={self.num_layers}", *[f"{key}={value}" for key, value in said.items() if value]])

    def _cell(self, place: int) -> Cell:
        cell = self.cells[place]
        assert isinstance(cell, Cell)
        return cell

    def _states(self, state: Any, like: Tensor, batched: bool) -> tuple[list[State | None], bool]:
        """One state per layer and direction (or `None`), and whether to return them in torch's layout."""
        if state is None:
            return [None] * len(self.cells), self.torch_state
        structure = self.initial_state(1)
        if not in_torch_layout(state, structure[0]):
            if len(state) != len(self.cells):
                raise TypeError(
                    f"the state has {len(state)} entries; this network has {len(self.cells)} layers times directions, "
                    f"each like {shapes(structure[0])}"
                )
            return list(state), self.torch_state
        given = (state,) if isinstance(state, Tensor) else tuple(state)
        if not batched:
            given = tuple(leaf.unsqueeze(1) if leaf.dim() == 2 else leaf for leaf in given)
        return list(from_torch_state(structure, given)), True

    def _dropped(self, output: Tensor, generator: torch.Generator | None) -> Tensor:
        if not self.training or not self.dropout:
            return output
        if generator is None:
            return F.dropout(output, self.dropout)
        kept = torch.rand(output.shape, generator=generator, device=output.device) >= self.dropout
        return output * kept / (1 - self.dropout) if self.dropout < 1 else output * 0
