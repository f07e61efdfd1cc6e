"""Relevancy screening: a recurrent network that attends to its last states and to a few that proved relevant.

    h_t     = cell(x_t, s_{t-1})                                  s_0 = 0
    e_{i,t} = v^T tanh(V_a s_{t-1} + U_a h_i)                     i in S_t (the last ν states) or R_t (ρ relevant ones)
    α_{·,t} = softmax of e over S_t and R_t
    s_t     = (h_t + Σ_i α_{i,t} h_i) / 2

Attention makes shortcuts through time, along which gradients do not vanish; screening keeps its cost constant. The
relevance of a state is the sum of the weights it receives in its ν steps in the short-term buffer S. When it leaves, it
enters the relevant set R if that has a free place, or else replaces the least relevant member if it is strictly more
relevant; otherwise it is forgotten. Gradients flow through the values in S and R, not through the choice of members.

A bias to know: the first states compete with few others for attention, so that their relevance is high whatever the
input. An untrained network keeps exactly the first ρ states. `relevance="normalised"` corrects for that.

Kerg, Kanuparthi, Goyal, Goyette, Bengio, Lajoie: "Untangling tradeoffs between recurrence and self-attention in neural
networks", NeurIPS 2020, arXiv 2006.09471.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mechanisms._base.validation import check_choice
from mechanisms.recurrent._doors import check_whole
from mechanisms.recurrent._screening_sequence import relevancy_sequence
from mechanisms.recurrent._self_attention import SelfAttention, as_type, wide
from mechanisms.recurrent._trees import Tree, first_tensor
from mechanisms.recurrent.protocol import Cell, Device, State

RELEVANCE = ("sum", "normalised")


class RelevancyState(NamedTuple):
    """State of `RelevancyScreening`; every size is fixed, and an empty place has the index -1.

    Attributes:
        inner: the inner cell's state.
        s: what the next step reads (batch, hidden).
        buffer_value, buffer_key: the last ν hidden vectors, oldest first (batch, ν, hidden), and their keys.
        buffer_relevance: the weights each has received so far (batch, ν); no gradient.
        buffer_index: the step each comes from (batch, ν).
        set_value, set_key, set_relevance, set_index: the same for the relevant set (batch, ρ, ...).

    >>> from mechanisms.recurrent.cells import LSTMCell
    >>> RelevancyScreening(LSTMCell(3, 4), short_term=2, relevant=3).initial_state(1).set_index
    tensor([[-1, -1, -1]])
    """

    inner: State
    s: Tensor
    buffer_value: Tensor
    buffer_key: Tensor
    buffer_relevance: Tensor
    buffer_index: Tensor
    set_value: Tensor
    set_key: Tensor
    set_relevance: Tensor
    set_index: Tensor


class RelevancyInfo(NamedTuple):
    """What a step records: attention weights and the steps they go to, the buffer's ν entries before the set's ρ.

    Attributes:
        weights: (batch, ν + ρ).
        index: source steps, -1 for empty places (batch, ν + ρ).
        inner: what the inner cell records, if anything.

    >>> RelevancyInfo(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64)).inner is None
    True
    """

    weights: Tensor
    index: Tensor
    inner: Tree = None


class RelevancyScreening(SelfAttention):
    """Self-attention with a short-term buffer and a relevant set around a cell.

    Args:
        cell: any cell with a hidden vector (leaf `h`): LSTM, GRU, plain cells, one's own, `Zoneout` around any of them.
        short_term: ν, how many of the last states are attended.
        relevant: ρ, places for relevant states; 0 is attention over a sliding window.
        attention_size: size of keys and queries; the hidden size by default.
        combine: how s comes from h and the attended c: "mean", their mean, as the released code has it; "sum" is the
            paper's.
        readout: whether a step puts out "state", s_t, as in the paper, or "hidden", h_t, as the released code does. The
            latter sees what attention finds one step later.
        relevance: "sum" adds up attention weights, as the paper does; "normalised" multiplies each by the number of
            entries that compete at that step, so that early states have no advantage.
        released: the released code's form: combine="mean", readout="hidden", relevance="sum".

    Attributes:
        key, query, score: U_a, V_a and v, linear without bias.

    Without noise the numbers in `train()` and `eval()` agree. `scan(..., need_info=True)` records `RelevancyInfo`.

    Raises:
        TypeError: the inner cell attends already.
        ValueError: `short_term` below 1, `relevant` below 0, an unknown name, or one that `released` contradicts.

    Source: sections 4 and 5 of the paper; the released code (bhargav104/MemoryNets).

    >>> from mechanisms.recurrent.cells import LSTMCell
    >>> from mechanisms.recurrent.scan import scan
    >>> cell = RelevancyScreening(LSTMCell(3, 4), short_term=2, relevant=3)
    >>> output, state = scan(cell, torch.randn(20, 2, 3))
    >>> output.shape, state.set_value.shape
    (torch.Size([20, 2, 4]), torch.Size([2, 3, 4]))
    """

    def __init__(
        self,
        cell: Cell,
        *,
        short_term: int = 10,
        relevant: int = 15,
        attention_size: int | None = None,
        combine: str = "mean",
        readout: str = "state",
        relevance: str = "sum",
        released: bool = False,
    ) -> None:
        check_choice(relevance, "relevance", RELEVANCE)
        super().__init__(cell, attention_size, combine, readout, released, relevance=relevance)
        self.short_term = check_whole(short_term, "short_term")
        self.relevant = check_whole(relevant, "relevant", at_least=0)
        self.relevance = relevance
        self.constant_leaves = (*cell.constant_leaves, "buffer_relevance", "set_relevance")

    def initial_state(
        self, batch_size: int, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> RelevancyState:
        """Zeros and empty places; s is the inner cell's initial hidden vector."""
        return self.begin(self.cell.initial_state(batch_size, device=device, dtype=dtype))

    def begin(self, inner: State) -> RelevancyState:
        """The state before the first step when the inner cell starts from `inner`: s is its hidden vector.

        >>> from mechanisms.recurrent.cells import LSTMCell, LSTMState
        >>> cell = RelevancyScreening(LSTMCell(3, 4))
        >>> cell.begin(LSTMState(torch.ones(2, 4), torch.zeros(2, 4))).s.sum(1)
        tensor([4., 4.])
        """
        s, place = self.cell.hidden(inner), first_tensor(inner).device
        batch_size = s.shape[0]

        def empty(entries: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            return (
                s.new_zeros(batch_size, entries, self.output_size),
                s.new_zeros(batch_size, entries, self.attention_size),
                wide(s.new_zeros(batch_size, entries)),
                torch.full((batch_size, entries), -1, dtype=torch.int64, device=place),
            )

        return RelevancyState(inner, s, *empty(self.short_term), *empty(self.relevant))

    def step(
        self, projected: Tree, state: RelevancyState, noise: Tree = None, *, need_info: bool = False
    ) -> tuple[Any, ...]:
        """The inner step; the oldest entry is screened; h enters the buffer; attention with the old state's query."""
        output, inner, recorded, h = self._inner_step(projected, state, noise, need_info)
        set_value, set_key, set_relevance, set_index = self._screened(state)
        newest = state.buffer_index[:, -1:] + 1
        key = as_type(self.key(h), state.buffer_key)
        buffer_value = torch.cat([state.buffer_value[:, 1:], h.unsqueeze(1)], 1)
        buffer_key = torch.cat([state.buffer_key[:, 1:], key.unsqueeze(1)], 1)
        buffer_index = torch.cat([state.buffer_index[:, 1:], newest], 1)
        index = torch.cat([buffer_index, set_index], 1)
        weights = self._weights(state.s, torch.cat([buffer_key, set_key], 1), index)
        s = self._combined(h, weights, torch.cat([buffer_value, set_value], 1))
        received = weights.detach()[:, : self.short_term]
        if self.relevance == "normalised":
            received = received * (index >= 0).sum(1, keepdim=True)
        kept = torch.cat([state.buffer_relevance[:, 1:], torch.zeros_like(state.buffer_relevance[:, :1])], 1)
        new = RelevancyState(
            inner,
            s,
            buffer_value,
            buffer_key,
            kept + as_type(received, kept),
            buffer_index,
            set_value,
            set_key,
            set_relevance,
            set_index,
        )
        read = self._output(output, h, s)
        return (read, new, RelevancyInfo(weights, index, recorded)) if need_info else (read, new)

    sequence_takes_lengths = True

    def sequence(
        self, inputs: Tree, state: RelevancyState, noise: Tree, *, lengths: list[int] | None = None
    ) -> tuple[Tensor, RelevancyState] | Any:
        """All steps in the fused kernel on the CPU, around LSTM, GRU, plain cells and `Zoneout` of these.

        Subclasses, which may compute otherwise, step singly unless they define their own.
        """
        if type(self) is not RelevancyScreening:
            return NotImplemented
        return relevancy_sequence(self, inputs, state, noise, lengths)

    def _screened(self, state: RelevancyState) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The relevant set after the buffer's oldest entry has left and, perhaps, entered it."""
        kept = state.set_value, state.set_key, state.set_relevance, state.set_index
        if not self.relevant:
            return kept
        leaving = state.buffer_value, state.buffer_key, state.buffer_relevance, state.buffer_index
        # Free places come first, then the least relevant member; of equal ones the first.
        least, place = torch.where(state.set_index < 0, -math.inf, state.set_relevance).min(1, keepdim=True)
        enters = (state.buffer_index[:, :1] >= 0) & (state.buffer_relevance[:, :1] > least)
        put = enters & (torch.arange(self.relevant, device=place.device) == place)
        value, key, relevance, index = (
            torch.where(put.unsqueeze(2) if old.dim() == 3 else put, new[:, :1], old)
            for new, old in zip(leaving, kept, strict=True)
        )
        return value, key, relevance, index

    def extra_repr(self) -> str:
        """Sizes, and what is not the default."""
        relevance = "" if self.relevance == RELEVANCE[0] else f"relevance={self.relevance}"
        parts = (f"short_term={self.short_term}", f"relevant={self.relevant}", relevance, super().extra_repr())
        return ", ".join(part for part in parts if part)
