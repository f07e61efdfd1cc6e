"""Sparse attentive backtracking in place of `torch.nn.LSTM`: the top layer is reminded, those below are plain."""

import warnings
from typing import Any

import torch
from torch import Tensor

from mechanisms.recurrent._flat_network import FlatNetwork
from mechanisms.recurrent._trees import Tree
from mechanisms.recurrent.backtracking import SparseAttentiveBacktracking
from mechanisms.recurrent.cells import LSTMCell
from mechanisms.recurrent.module import Recurrent
from mechanisms.recurrent.protocol import Cell, Device, State


class SABLSTM(FlatNetwork):
    """`torch.nn.LSTM` whose top layer attends sparsely to its own past, and backpropagates through what it attends to.

    The LSTM's parameters have torch's names: `load_state_dict(nn.LSTM(...).state_dict(), strict=False)` takes them, and
    leaves those of the attention (`key_weight_l0`, `query_weight_l0`, `score_weight_l0`) as they are.

    The output of a direction has size 2 * hidden_size, hidden state beside attended summary: read it with a layer of
    that size, or pass `readout="hidden"`. Layers below the top are plain and keep their whole gradient.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as for `torch.nn.LSTM`.
        k_trunc, k_top, k_att, score, sparsifier, attention_size, block_attention_gradient, max_memory, readout: as for
            `SparseAttentiveBacktracking`.
        backend: "auto" takes a fused path where there is one, "eager" single steps, "kernel" insists.
        device, dtype: of the parameters.

    Raises:
        ValueError: sizes below 1, unknown names, or `proj_size`.

    Source: section 3 of the paper; layers are not in it.

    >>> lstm = SABLSTM(3, 4, num_layers=2, k_trunc=5, k_top=2)
    >>> output, state = lstm(torch.randn(9, 2, 3))
    >>> output.shape, state[-1].values.shape
    (torch.Size([9, 2, 8]), torch.Size([2, 5, 4]))
    >>> output, state = lstm(torch.randn(4, 2, 3), state)  # goes on, with all that was stored
    >>> state[-1].values.shape
    torch.Size([2, 7, 4])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float | int = 0.0,
        bidirectional: bool = False,
        *,
        k_trunc: int | None = 10,
        k_top: int | None = 5,
        k_att: int = 2,
        score: str = "additive",
        sparsifier: str = "topk",
        attention_size: int | None = None,
        block_attention_gradient: bool = False,
        max_memory: int | None = None,
        readout: str = "both",
        backend: str = "auto",
        device: Device = None,
        dtype: torch.dtype | None = None,
        proj_size: int = 0,
    ) -> None:
        super().__init__()
        if proj_size:
            raise ValueError(f"proj_size={proj_size}: SABLSTM does not offer it; put an nn.Linear behind it")
        self.input_size, self.hidden_size, self.num_layers, self.bias = input_size, hidden_size, num_layers, bias
        self.batch_first, self.dropout, self.bidirectional = batch_first, float(dropout), bidirectional
        self.k_att = k_att

        def plain(size: int) -> Cell:
            return LSTMCell(size, hidden_size, bias, device=device, dtype=dtype)

        def reminded(size: int) -> Cell:
            return SparseAttentiveBacktracking(
                plain(size),
                k_trunc=k_trunc,
                k_top=k_top,
                k_att=k_att,
                score=score,
                sparsifier=sparsifier,
                attention_size=attention_size,
                block_attention_gradient=block_attention_gradient,
                max_memory=max_memory,
                readout=readout,
            )

        network = _Stack(
            [plain] * (num_layers - 1) + [reminded],
            input_size,
            num_layers=num_layers,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            backend=backend,
        )
        self.output_size = network.output_size
        self._adopt(network)

    def forward(
        self,
        input: Any,
        hx: Any = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        generator: torch.Generator | None = None,
        need_info: bool = False,
    ) -> Any:
        """Run over whole sequences.

        Args:
            input: (time, batch, size), (batch, time, size) with `batch_first`, (time, size), or, with `max_memory`, a
                PackedSequence.
            hx: a state as returned before, with its store; or `(h_0, c_0)` as torch takes it, whose h_0 is the first
                entry of the store.
            lengths: valid steps of each row of a padded input; outputs beyond are zero.
            reset: booleans in the layout of the input: where true, that row begins anew (all rows at once, unless
                `max_memory` is set).
            generator: where dropout comes from.
            need_info: whether to return a third value, a `SABInfo` of the top layer, leaves (time, batch, n) in the
                layout of the input; n is the last step's, and what was not yet there has weight 0 and is not valid. For
                two directions a tuple of two, the backward one in the order in which it ran.

        Returns:
            `(output, state)`, states a tuple over layers and directions, batch first, as `Recurrent` returns them.

        Raises:
            TypeError: integers as input, another network's state, a packed sequence for a store that grows.
            ValueError: shapes do not fit.
        """
        with self._lent() as network:
            if isinstance(input, Tensor) and hx is None and (steps := self._steps(input)) < self.k_att:
                warnings.warn(
                    f"k_att={self.k_att} is longer than the {steps} steps of the input: nothing but the initial state "
                    "is ever stored; take a smaller k_att",
                    stacklevel=2,
                )
            found = network(
                input, self._begun(hx, input), lengths=lengths, reset=reset, generator=generator, need_info=need_info
            )
        if not need_info:
            return found
        output, state, info = found
        return output, state, info if self.bidirectional else info[0]

    def _steps(self, input: Tensor) -> int:
        return input.shape[1 if self.batch_first and input.dim() == 3 else 0]

    def initial_state(
        self, batch_size: int, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> tuple[State, ...]:
        """The state before the first step, one entry per layer and direction."""
        with self._lent() as network:
            return network.initial_state(batch_size, device=device, dtype=dtype)

    def step(self, input: Tensor, hx: Any = None) -> tuple[Tensor, tuple[State, ...]]:
        """One step (batch, size) through all layers, for streams: `(output, state)`.

        Raises:
            ValueError: the network is bidirectional.
        """
        with self._lent() as network:
            return network.step(input, self._begun(hx, None))

    def reset(self, state: tuple[State, ...], done: Any) -> tuple[State, ...]:
        """The state with the rows where `done` (batch,) is true started anew; all rows, unless `max_memory` is set."""
        with self._lent() as network:
            return network.reset(state, done)

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as a fresh network has them."""
        with self._lent() as network:
            for module in network.cells.modules():
                if isinstance(module, LSTMCell | SparseAttentiveBacktracking):
                    module.reset_parameters()

    def extra_repr(self) -> str:
        """Sizes, what is not the default, and the attention's settings."""
        return (
            f"{self.input_size}, {self.hidden_size}, {self._network.extra_repr()}, "
            f"{self._network.cells[-1].extra_repr()}"
        )


class _Stack(Recurrent):
    """Layers of which the top one alone records anything."""

    def _layer(
        self,
        layer: int,
        inputs: Tree,
        states: list[State | None],
        layout: Any,
        new: list[State],
        generator: torch.Generator | None,
        need_info: bool,
    ) -> tuple[Tree, list[Tree]]:
        top = layer == self.num_layers - 1
        return super()._layer(layer, inputs, states, layout, new, generator, need_info and top)
