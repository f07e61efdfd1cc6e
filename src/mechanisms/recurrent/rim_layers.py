"""Modular recurrent networks in place of `torch.nn.LSTM`: layers of RIMs, and BRIMs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from mechanisms.recurrent._trees import first_tensor, shapes, tree_map
from mechanisms.recurrent.brim_cell import BRIMCell
from mechanisms.recurrent.module import Recurrent
from mechanisms.recurrent.rim_cell import RIMCell
from mechanisms.recurrent.rim_states import RIMState


class _ModularNetwork(nn.Module):
    """What both layers do around their `Recurrent`: inputs of one sequence, and the doors for states."""

    network: Recurrent

    def _sizes(self, input: Any) -> tuple[int, int, bool]:
        """Rows and steps of an input, and whether it has a batch."""
        if isinstance(input, PackedSequence):
            return int(input.batch_sizes[0]), len(input.batch_sizes), True
        like = first_tensor(input)
        if like.dim() != 3:
            return 1, like.shape[0] if like.dim() else 0, False  # other shapes are refused further in
        steps, rows = (1, 0) if self.network.batch_first else (0, 1)
        return like.shape[rows], like.shape[steps], True

    def _fitting(self, name: str, leaf: Tensor, wanted: tuple[int, ...], steps: int, layout: str) -> None:
        """Refuse a leaf of another shape, and say what to do."""
        if tuple(leaf.shape) == wanted:
            return
        hint = ""
        if leaf.numel() == torch.Size(wanted).numel():
            hint = f": the modules are apart, call .reshape{wanted}"
        elif leaf.dim() == len(wanted) and leaf.shape[-3:-2] == (steps,) and not self.network.batch_first:
            hint = ". Is the input (batch, time, size)? Then batch_first=True"
        raise ValueError(f"{name} has shape {tuple(leaf.shape)}; expected {layout} = {wanted}{hint}")

    def flatten_parameters(self) -> None:
        """Does nothing: it is here for code that calls it on `nn.LSTM`."""


class RIM(_ModularNetwork):
    """Layers of recurrent independent mechanisms that take what `torch.nn.LSTM` takes.

    `hidden_size` is the size of **one** module; outputs have num_modules * hidden_size units, and states keep the
    modules apart: `(h_n, c_n)`, each (num_layers, batch, num_modules, hidden_size); GRU modules have `h_n` alone.

    Each layer reads the whole state of the layer below at the same step. This is no BRIM: nothing comes from above.

    Args:
        input_size: size of the input, or sizes of several slots (the input is then a tuple of tensors).
        hidden_size: units **per module**.
        num_modules, num_active: modules of a layer, and how many of them are updated at a step.
        num_layers: layers, all alike.
        batch_first: whether inputs and outputs are (batch, time, size).
        dropout: rate of dropout between layers, in training.
        pass_inactive: whether a layer hands up the state of all modules; `False` puts zeros for inactive ones.
        truncate, checkpoint, backend: as for `scan`.
        cell: the other arguments of `RIMCell`, `device` and `dtype` among them.

    For both directions, or other wrappings, there is `Recurrent(lambda size: RIMCell(size, ...), ...)`.

    Raises:
        ValueError: sizes or options do not fit.

    Source: section 2 of the RIMs paper; layers from the authors' code.

    >>> rim = RIM(16, 10, num_modules=6, num_active=4)
    >>> output, (h, c) = rim(torch.randn(5, 2, 16))
    >>> output.shape, h.shape
    (torch.Size([5, 2, 60]), torch.Size([1, 2, 6, 10]))
    >>> rim(torch.randn(5, 2, 16), need_info=True)[2][0].mask.sum(-1).unique()  # always four of six
    tensor([4])
    """

    def __init__(
        self,
        input_size: int | Sequence[int],
        hidden_size: int,
        num_modules: int,
        num_active: int,
        num_layers: int = 1,
        *,
        batch_first: bool = False,
        dropout: float | int = 0.0,
        pass_inactive: bool = True,
        truncate: int | tuple[int, int] | None = None,
        checkpoint: int | bool | None = None,
        backend: str = "auto",
        **cell: Any,
    ) -> None:
        super().__init__()
        if "readout" in cell:
            raise ValueError("readout: say pass_inactive, which concerns what layers hand up; outputs are whole states")
        layers = iter(range(num_layers))

        def make(size: int | tuple[int, ...]) -> RIMCell:
            whole = pass_inactive or next(layers) == num_layers - 1
            readout = "state" if whole else "active"
            return RIMCell(size, hidden_size, num_modules, num_active, readout=readout, **cell)

        self.network = Recurrent(
            make,
            input_size if isinstance(input_size, int) else tuple(input_size),
            num_layers=num_layers,
            batch_first=batch_first,
            dropout=dropout,
            truncate=truncate,
            checkpoint=checkpoint,
            backend=backend,
            torch_state=True,
        )
        self.hidden_size, self.num_modules, self.num_active = hidden_size, num_modules, num_active
        self.num_layers, self.output_size = num_layers, self.network.output_size
        first = self.network.cells[0]
        assert isinstance(first, RIMCell)
        self.leaves = first.zoneable

    def forward(
        self,
        input: Any,
        hx: Any = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        generator: torch.Generator | None = None,
        need_info: bool = False,
    ) -> tuple[Any, ...]:
        """Run over whole sequences.

        Args:
            input: (time, batch, size), or (batch, time, size) with `batch_first`; (time, size) without a batch; or a
                PackedSequence, which comes back as one.
            hx: `(h_0, c_0)`, each (num_layers, batch, num_modules, hidden_size), or `h_0` for GRU modules; without the
                batch where the input has none. Zeros by default.
            lengths: valid steps of each row; outputs beyond are 0.
            reset: booleans in the layout of the input: where true, that row starts anew at that step.
            generator: where dropout comes from.
            need_info: whether to return, as a third value, a tuple of the layers' `RIMInfo`, time in front.

        Returns:
            `(output, (h_n, c_n))`, or `(output, h_n)` for GRU modules.

        Raises:
            TypeError: integers as input, or a state of another kind.
            ValueError: shapes do not fit.
        """
        rows, steps, batched = self._sizes(input)
        states = None if hx is None else self._states(hx, rows, steps, batched)
        return self.network(input, states, lengths=lengths, reset=reset, generator=generator, need_info=need_info)

    def _states(self, hx: Any, rows: int, steps: int, batched: bool) -> tuple[RIMState, ...]:
        given = (hx,) if isinstance(hx, Tensor) else hx
        names = tuple(f"{leaf}_0" for leaf in self.leaves)
        fits = isinstance(given, tuple | list) and len(given) == len(names)
        if not fits or not all(isinstance(leaf, Tensor) for leaf in given):
            raise TypeError(f"the initial state must be {' and '.join(names)}, a tensor each; got {shapes(hx)}")
        modules = (self.num_modules, self.hidden_size)
        wanted = (self.num_layers, rows, *modules) if batched else (self.num_layers, *modules)
        layout = "(num_layers, B, n, d)" if batched else "(num_layers, n, d)"
        for name, leaf in zip(names, given, strict=True):
            self._fitting(name, leaf, wanted, steps, layout)
        leaves = [leaf if batched else leaf.unsqueeze(1) for leaf in given]
        return tuple(RIMState(*layer) for layer in zip(*[leaf.unbind(0) for leaf in leaves], strict=True))

    def extra_repr(self) -> str:
        """The sizes, and the whole."""
        return (
            f"{self.network.input_size}, {self.num_modules} modules x {self.hidden_size} = {self.output_size}, "
            f"{self.num_active} active"
        )


class BRIM(_ModularNetwork):
    """Bidirectional recurrent independent mechanisms, whole sequences as `torch.nn.LSTM` takes them.

    Bidirectional is up and down between layers, not forward and backward in time: a BRIM never sees the future.

    Args:
        input_size: size of the input.
        hidden_size, num_modules, num_active: units per module, modules and active modules of each layer, from the
            bottom to the top.
        top_down: which layer a layer reads from above, at the step before: "next", "top", or `None`.
        batch_first: whether inputs and outputs are (batch, time, size).
        truncate, checkpoint, backend: as for `scan`.
        cell: the other arguments of `RIMCell`, the same for all layers, `device` and `dtype` among them.

    The output is the state of the top layer, of num_modules[-1] * hidden_size[-1] units. The state is a tuple of one
    `RIMState` per layer, from the bottom to the top, leaves (batch, modules, hidden).

    Raises:
        ValueError: sizes or options do not fit.

    Source: section 3 of the BRIMs paper.

    >>> brim = BRIM(16, [10, 20], [6, 3], [4, 2])
    >>> output, state = brim(torch.randn(5, 2, 16))
    >>> output.shape, state[0].h.shape
    (torch.Size([5, 2, 60]), torch.Size([2, 6, 10]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: Sequence[int],
        num_modules: Sequence[int],
        num_active: Sequence[int],
        *,
        top_down: str | None = "next",
        batch_first: bool = False,
        truncate: int | tuple[int, int] | None = None,
        checkpoint: int | bool | None = None,
        backend: str = "auto",
        **cell: Any,
    ) -> None:
        super().__init__()
        inner = BRIMCell(input_size, hidden_size, num_modules, num_active, top_down=top_down, **cell)
        self.network = Recurrent(
            inner, input_size, batch_first=batch_first, truncate=truncate, checkpoint=checkpoint, backend=backend
        )
        self.output_size = inner.output_size

    @property
    def cell(self) -> BRIMCell:
        """The cell inside."""
        found = self.network.cells[0]
        assert isinstance(found, BRIMCell)
        return found

    def forward(
        self,
        input: Any,
        state: Any = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        generator: torch.Generator | None = None,
        need_info: bool = False,
    ) -> tuple[Any, ...]:
        """Run over whole sequences.

        Args:
            input: (time, batch, size), or (batch, time, size) with `batch_first`; (time, size) without a batch; or a
                PackedSequence, which comes back as one.
            state: a tuple of the layers' `RIMState`, leaves (batch, modules, hidden), (modules, hidden) without a
                batch. Zeros by default.
            lengths: valid steps of each row; outputs beyond are 0.
            reset: booleans in the layout of the input: where true, that row starts anew at that step.
            generator: where dropout comes from.
            need_info: whether to return, as a third value, a tuple of the layers' `RIMInfo`, time in front.

        Raises:
            TypeError: integers as input, or a state of another kind.
            ValueError: shapes do not fit.
        """
        rows, steps, batched = self._sizes(input)
        given = None if state is None else (self._states(state, rows, steps, batched),)
        output, (after,), *info = self.network(
            input, given, lengths=lengths, reset=reset, generator=generator, need_info=need_info
        )
        if not batched:
            after = tree_map(lambda leaf: leaf.squeeze(0), after)
        return (output, after, info[0][0]) if need_info else (output, after)

    def _states(self, state: Any, rows: int, steps: int, batched: bool) -> tuple[RIMState, ...]:
        like = self.cell.initial_state(rows)
        fits = isinstance(state, tuple | list) and len(state) == len(like)
        if not fits or not all(isinstance(one, RIMState) for one in state):
            raise TypeError(
                f"the state must be a tuple of {len(like)} RIMState, from the bottom layer to the top, such as "
                f"{shapes(like)}; got {shapes(tuple(state) if isinstance(state, list) else state)}"
            )
        for place, (one, wanted) in enumerate(zip(state, like, strict=True)):
            for name, leaf, zeros in zip(one._fields, one, wanted, strict=True):
                if (leaf is None) != (zeros is None):
                    raise TypeError(f"layer {place} of the state: expected {shapes(wanted)}, got {shapes(one)}")
                if leaf is not None and zeros is not None:
                    shape = tuple(zeros.shape) if batched else tuple(zeros.shape[1:])
                    layout = "(B, n, d)" if batched else "(n, d)"
                    self._fitting(f"{name} of layer {place}", leaf, shape, steps, layout)
        return tuple(tree_map(lambda leaf: leaf if batched else leaf.unsqueeze(0), one) for one in state)

    def extra_repr(self) -> str:
        """The sizes, and the whole."""
        layers = [self.cell.layer(place) for place in range(len(self.cell.layers))]
        said = [f"{one.num_modules} modules x {one.hidden_size} = {one.output_size}" for one in layers]
        return f"{self.network.input_size}, " + ", ".join(said)
