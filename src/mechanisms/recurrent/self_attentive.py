"""Full self-attention in a recurrent network: the state attends to every earlier one.

This is what relevancy screening makes affordable (see `mechanisms.recurrent.relevancy`, whose equations it shares, with
all past states in the place of buffer and set): gradients reach any step through one attention weight, at a cost and a
memory that grow with the number of steps.

Kerg et al., NeurIPS 2020, arXiv 2006.09471: MemRNN and MemLSTM.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mechanisms.recurrent._doors import check_whole
from mechanisms.recurrent._screening_sequence import self_attentive_sequence
from mechanisms.recurrent._self_attention import SelfAttention, as_type
from mechanisms.recurrent._trees import Tree, first_tensor
from mechanisms.recurrent.protocol import Cell, Device, State


class SelfAttentiveState(NamedTuple):
    """State of `SelfAttentiveCell`: n entries, one more after each step, or `max_memory` of them.

    Attributes:
        inner: the inner cell's state.
        s: what the next step reads (batch, hidden).
        values, keys: past hidden vectors, oldest first (batch, n, hidden), and their keys.
        index: the step each comes from, -1 for empty places (batch, n).
        count: how many steps each row has taken (batch).

    >>> from mechanisms.recurrent.cells import LSTMCell
    >>> SelfAttentiveCell(LSTMCell(3, 4)).initial_state(1).values.shape
    torch.Size([1, 0, 4])
    """

    inner: State
    s: Tensor
    values: Tensor
    keys: Tensor
    index: Tensor
    count: Tensor


class SelfAttentiveInfo(NamedTuple):
    """What a step records: attention weights and the steps they go to.

    Attributes:
        weights: (batch, n); those of steps to come are 0 when steps are stacked.
        index: source steps, -1 for empty places (batch, n).
        inner: what the inner cell records, if anything.

    >>> SelfAttentiveInfo(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64)).inner is None
    True
    """

    weights: Tensor
    index: Tensor
    inner: Tree = None


class SelfAttentiveCell(SelfAttention):
    """Attention over all past states around a cell: MemLSTM and MemRNN.

    Args:
        cell: any cell with a hidden vector (leaf `h`).
        max_memory: attend to so many last states at most, with a state of fixed shape, as agents and packed sequences
            need it; older ones are dropped. By default all are kept, and the state grows.
        attention_size, combine, readout, released: as for `RelevancyScreening`.

    Attributes:
        key, query, score: U_a, V_a and v, linear without bias.

    Raises:
        TypeError: the inner cell attends already.
        ValueError: `max_memory` below 1, or an unknown name.

    Source: section 3 of the paper.

    >>> from mechanisms.recurrent.cells import LSTMCell
    >>> from mechanisms.recurrent.scan import scan
    >>> output, state = scan(SelfAttentiveCell(LSTMCell(3, 4)), torch.randn(20, 2, 3))
    >>> output.shape, state.values.shape
    (torch.Size([20, 2, 4]), torch.Size([2, 20, 4]))
    """

    def __init__(
        self,
        cell: Cell,
        *,
        max_memory: int | None = None,
        attention_size: int | None = None,
        combine: str = "mean",
        readout: str = "state",
        released: bool = False,
    ) -> None:
        super().__init__(cell, attention_size, combine, readout, released)
        self.max_memory = None if max_memory is None else check_whole(max_memory, "max_memory")
        self.growing = cell.growing or max_memory is None

    def initial_state(
        self, batch_size: int, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> SelfAttentiveState:
        """Nothing, or empty places; s is the inner cell's initial hidden vector."""
        return self.begin(self.cell.initial_state(batch_size, device=device, dtype=dtype))

    def begin(self, inner: State) -> SelfAttentiveState:
        """The state before the first step when the inner cell starts from `inner`: s is its hidden vector.

        >>> from mechanisms.recurrent.cells import LSTMCell, LSTMState
        >>> cell = SelfAttentiveCell(LSTMCell(3, 4))
        >>> cell.begin(LSTMState(torch.ones(2, 4), torch.zeros(2, 4))).s.sum(1)
        tensor([4., 4.])
        """
        s, place = self.cell.hidden(inner), first_tensor(inner).device
        batch_size, entries = s.shape[0], self.max_memory or 0
        return SelfAttentiveState(
            inner,
            s,
            s.new_zeros(batch_size, entries, self.output_size),
            s.new_zeros(batch_size, entries, self.attention_size),
            torch.full((batch_size, entries), -1, dtype=torch.int64, device=place),
            torch.zeros(batch_size, dtype=torch.int64, device=place),
        )

    def step(
        self, projected: Tree, state: SelfAttentiveState, noise: Tree = None, *, need_info: bool = False
    ) -> tuple[Any, ...]:
        """The inner step, then attention with the old state's query."""
        output, inner, recorded, h = self._inner_step(projected, state, noise, need_info)
        key = as_type(self.key(h), state.keys)
        first = 0 if self.max_memory is None else 1
        values = torch.cat([state.values[:, first:], h.unsqueeze(1)], 1)
        keys = torch.cat([state.keys[:, first:], key.unsqueeze(1)], 1)
        index = torch.cat([state.index[:, first:], state.count.unsqueeze(1)], 1)
        weights = self._weights(state.s, keys, index)
        s = self._combined(h, weights, values)
        new = SelfAttentiveState(inner, s, values, keys, index, state.count + 1)
        read = self._output(output, h, s)
        return (read, new, SelfAttentiveInfo(weights, index, recorded)) if need_info else (read, new)

    def sequence(self, inputs: Tree, state: SelfAttentiveState, noise: Tree) -> tuple[Tensor, SelfAttentiveState] | Any:
        """All steps in the fused kernel on the CPU, around LSTM, GRU, plain cells and `Zoneout` of these.

        Subclasses, which may compute otherwise, step singly unless they define their own.
        """
        if type(self) is not SelfAttentiveCell:
            return NotImplemented
        return self_attentive_sequence(self, inputs, state, noise)

    def freeze(self, active: Tensor, new: SelfAttentiveState, old: SelfAttentiveState) -> SelfAttentiveState:
        """Finished rows keep everything; where the memory grows, they get an empty place."""
        if self.max_memory is None:
            old = old._replace(
                values=F.pad(old.values, (0, 0, 0, 1)),
                keys=F.pad(old.keys, (0, 0, 0, 1)),
                index=F.pad(old.index, (0, 1), value=-1),
            )
        return super().freeze(active, new, old)

    def extra_repr(self) -> str:
        """What is not the default."""
        memory = "" if self.max_memory is None else f"max_memory={self.max_memory}"
        return ", ".join(part for part in (memory, super().extra_repr()) if part)
