"""Sparse attentive backtracking: a recurrent network that is reminded of a few states of its past.

Every k_att-th hidden state is stored. At each step the new state looks at the store, the k_top entries that score best
get a weight, and their weighted sum is added to the state:

    if (t + 1) mod k_trunc = 0:   h_{t-1}, c_{t-1} <- stop_gradient
    ĥ_t = cell(x_t, h_{t-1}, c_{t-1}),      e_i = w_1 · tanh(W_2 m_i + W_3 ĥ_t)
    u_i = relu(e_i - e_(k_top + 1)),        w_i = u_i / Σ u_j,        a_t = Σ w_i m_i
    h_t = ĥ_t + a_t,                        if (t + 1) mod k_att = 0:   store h_t

Gradients walk back k_trunc steps at most, and jump: through the attended entries, which keep their history, to the
steps where these were stored. So credit reaches any distance, and most of the past is never replayed. The store begins
with the initial state, and an entry is first seen at the step after it was stored.

Ke, Goyal, Bilaniuk, Binas, Mozer, Pal, Bengio: "Sparse Attentive Backtracking: Temporal Credit Assignment Through
Reminding", NeurIPS 2018, arXiv 1809.03702.
"""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mechanisms._base.validation import check_choice
from mechanisms.recurrent._doors import check_whole
from mechanisms.recurrent._reminding_sequence import reminded_by_kernel
from mechanisms.recurrent._trees import Tree, per_row, shapes, tree_map
from mechanisms.recurrent.protocol import Cell, Device, State, project
from mechanisms.recurrent.sparsifier import masked_softmax, sparse_attention
from mechanisms.recurrent.states import detach

SCORES = ("additive", "released")
SPARSIFIERS = ("topk", "released")
READOUTS = ("both", "hidden")


class SABState(NamedTuple):
    """State of `SparseAttentiveBacktracking`: the inner cell's, and the store.

    Attributes:
        inner: the inner cell's state; its hidden vector is the final h.
        values: the stored states (batch, n, hidden); zero where there is no entry.
        keys: what the score reads of them (batch, n, keys), in float32 at least.
        step: steps each row has taken (batch).
        count: entries each row has stored, the initial state among them (batch).
        clock: steps that were taken since the start, the same for all rows; `None` with `max_memory`.
        ragged: 1 when some row has taken fewer, as its sequence had ended; else 0; `None` with `max_memory`.

    >>> from mechanisms.recurrent.cells import LSTMCell
    >>> state = SparseAttentiveBacktracking(LSTMCell(3, 4)).initial_state(2)
    >>> state.values.shape, state.clock
    (torch.Size([2, 1, 4]), 0)
    """

    inner: State
    values: Tensor
    keys: Tensor
    step: Tensor
    count: Tensor
    clock: int | None
    ragged: int | None


class SABInfo(NamedTuple):
    """What a step looked at: `need_info=True` returns it.

    Attributes:
        weights: attention weights of the entries (batch, n).
        valid: where there is an entry (batch, n); beyond, weights are 0.
        stored: after how many steps each entry was stored (batch, n); 0 is the initial state.
        inner: what the inner cell recorded, or `None`.

    >>> SABInfo(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.int64)).inner
    """

    weights: Tensor
    valid: Tensor
    stored: Tensor
    inner: Tree = None


class SparseAttentiveBacktracking(Cell):
    """A cell that is reminded: it attends to a store of its own past states, and truncates its gradient elsewhere.

    Wraps any cell with a hidden vector; of an LSTM, `c` is carried and cut but not attended. Train with the norm of the
    gradient clipped (to 1, say): where scores are nearly equal, as at the start, gradients of the weights are huge.

    The output is (batch, 2H), the hidden state beside the attended summary, unless `readout="hidden"`. The store grows
    by a state every k_att steps; for streams without an end, and for single rows that are reset, set `max_memory`.

    Args:
        cell: the cell inside.
        k_trunc: steps between the cuts of the gradient through time, the first before step k_trunc - 1; `None` never
            cuts.
        k_top: how many entries get a weight; `None` takes the softmax over all (dense attention).
        k_att: every how many steps a state is stored. Attention happens at every step all the same.
        score: "additive" is the paper's; "released" is what the authors' code does, w · tanh([ĥ; m_i]), in which the
            present state cancels: what is remembered does not depend on it.
        sparsifier: "topk" keeps k_top entries; "released" does as the authors' code, see `sparse_attention`.
        attention_size: size of the additive score's inner layer; by default that of the hidden state.
        block_attention_gradient: let no gradient flow from the scores to the states; the attended values still carry
            it.
        max_memory: keep so many entries at most, the initial state among them; the oldest are overwritten.
        readout: "both" or "hidden".

    Submodules: `cell`, `key` (W_2), `query` (W_3), `score` (w_1); for the released score `score` alone (w, of 2H).

    Raises:
        TypeError: the cell inside has no hidden vector, or attends itself.
        ValueError: numbers below 1, or unknown names.

    Source: section 3 of the paper; the released score and sparsifier from the authors' code.

    >>> from mechanisms.recurrent.cells import LSTMCell
    >>> from mechanisms.recurrent.scan import scan
    >>> cell = SparseAttentiveBacktracking(LSTMCell(3, 4), k_trunc=5, k_top=2, k_att=2)
    >>> output, state = scan(cell, torch.randn(9, 2, 3))
    >>> output.shape, state.values.shape
    (torch.Size([9, 2, 8]), torch.Size([2, 5, 4]))
    """

    attends = True  # no attention around it

    def __init__(
        self,
        cell: Cell,
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
    ) -> None:
        super().__init__()
        size, like = _hidden_size(cell)
        self.cell, self.hidden_size = cell, size
        self.k_trunc = None if k_trunc is None else check_whole(k_trunc, "k_trunc")
        self.k_top = None if k_top is None else check_whole(k_top, "k_top")
        self.k_att = check_whole(k_att, "k_att")
        self.max_memory = None if max_memory is None else check_whole(max_memory, "max_memory")
        self.score_kind = check_choice(score, "score", SCORES)
        self.sparsifier = check_choice(sparsifier, "sparsifier", SPARSIFIERS)
        self.readout = check_choice(readout, "readout", READOUTS)
        self.block_attention_gradient = block_attention_gradient
        if sparsifier == "released" and k_top == 1:
            warnings.warn(
                "sparsifier='released' keeps k_top - 1 entries: with k_top=1 nothing is attended once there are two; "
                "take sparsifier='topk', or k_top=2",
                stacklevel=2,
            )
        self.input_size, self.output_size = cell.input_size, size if readout == "hidden" else 2 * size
        self.growing, self.rows_independent = max_memory is None, cell.rows_independent
        self.exact_gradient = cell.exact_gradient and k_trunc is None and not block_attention_gradient
        self.constant_leaves, self.noise_in_eval = cell.constant_leaves, cell.noise_in_eval
        self.twice_differentiable = cell.twice_differentiable
        options: dict[str, Any] = {"bias": False, "device": like.device, "dtype": like.dtype}
        if score == "additive":
            inner = size if attention_size is None else check_whole(attention_size, "attention_size")
            self.key, self.query = nn.Linear(size, inner, **options), nn.Linear(size, inner, **options)
            self.score = nn.Linear(inner, 1, **options)
        else:
            if attention_size is not None:
                raise ValueError(
                    f"attention_size={attention_size}: the released score has no inner layer; leave it out, or take "
                    "score='additive'"
                )
            self.score = nn.Linear(2 * size, 1, **options)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The attention's weights: as a linear layer's, and the released score from N(0, 0.01²)."""
        if self.score_kind == "released":
            nn.init.normal_(self.score.weight, std=0.01)
        else:
            for part in (self.key, self.query, self.score):
                part.reset_parameters()

    # --- states -------------------------------------------------------------------------------------------------------

    def initial_state(self, batch_size: int, *, device: Device = None, dtype: torch.dtype | None = None) -> SABState:
        """The inner cell's initial state, which is the first entry of the store."""
        return self.begin(self.cell.initial_state(batch_size, device=device, dtype=dtype))

    def begin(self, inner: State) -> SABState:
        """The state before the first step when the inner cell starts from `inner`: its hidden vector is the only entry.

        >>> from mechanisms.recurrent.cells import LSTMCell, LSTMState
        >>> cell = SparseAttentiveBacktracking(LSTMCell(3, 4))
        >>> cell.begin(LSTMState(torch.ones(2, 4), torch.zeros(2, 4))).values[:, 0].sum(1)
        tensor([4., 4.])
        """
        h = self.cell.hidden(inner)
        values, keys = h.unsqueeze(1), self._key(h).unsqueeze(1)
        step = torch.zeros(h.shape[0], dtype=torch.int64, device=h.device)
        if self.max_memory is None:
            return SABState(inner, values, keys, step, torch.ones_like(step), 0, 0)
        rest = (0, 0, 0, self.max_memory - 1)
        return SABState(inner, F.pad(values, rest), F.pad(keys, rest), step, torch.ones_like(step), None, None)

    def hidden(self, state: SABState) -> Tensor:
        """The final h (batch, hidden), the attended summary in it."""
        return self.cell.hidden(state.inner)

    def with_hidden(self, state: SABState, h: Tensor) -> SABState:
        """The state with another h; what is stored stays.

        Raises:
            ValueError: `h` has another size; the output of a step is not `h` unless `readout="hidden"`.
        """
        if h.shape[-1] != self.hidden_size:
            raise ValueError(
                f"h has size {h.shape[-1]}, expected {self.hidden_size}. The output is (T, B, {2 * self.hidden_size}): "
                f"hidden and attended summary; pass readout='hidden' for {self.hidden_size}"
            )
        return state._replace(inner=self.cell.with_hidden(state.inner, h))

    def freeze(self, active: Tensor, new: SABState, old: SABState) -> SABState:
        """Row by row the new state where `active`; the slot that a growing store has gained is empty in the others."""

        def keep(after: Tensor, before: Tensor) -> Tensor:
            if after is before:
                return after
            missing = after.shape[1] - before.shape[1]
            before = F.pad(before, (0, 0, 0, missing)) if missing else before
            return torch.where(per_row(active, after), after, before)

        return SABState(
            self.cell.freeze(active, new.inner, old.inner),
            keep(new.values, old.values),
            keep(new.keys, old.keys),
            torch.where(active, new.step, old.step),
            torch.where(active, new.count, old.count),
            new.clock,
            None if new.ragged is None else 1,
        )

    # --- a step -------------------------------------------------------------------------------------------------------

    def noise(
        self,
        steps: int,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> Tree:
        """The inner cell's."""
        return self.cell.noise(steps, batch_size, generator=generator, device=device, dtype=dtype)

    def project(self, inputs: Tree, noise: Tree = None) -> Tree:
        """The inner cell's."""
        return project(self.cell, inputs, noise)

    def step(self, projected: Tree, state: SABState, noise: Tree = None, *, need_info: bool = False) -> tuple[Any, ...]:
        """Cut the gradient where it is time, take the inner step, add what is remembered, store where it is time."""
        start = self._cut(state)
        _, inner, *recorded = (
            self.cell.step(projected, start, noise, need_info=True)
            if need_info
            else self.cell.step(projected, start, noise)
        )
        provisional = self.cell.hidden(inner)
        valid = self._valid(state) if _by_row(state) else None
        weights = self._weights(self._scores(provisional, state.keys), valid)
        values = state.values
        summary = torch.bmm(weights.unsqueeze(1).to(values.dtype), values).squeeze(1).to(values.dtype)
        h = provisional.to(values.dtype) + summary
        new = self._stored(state, self.cell.with_hidden(inner, h), h)
        output = h if self.readout == "hidden" else torch.cat([h, summary], 1)
        if not need_info:
            return output, new
        held = self._valid(state)
        return output, new, SABInfo(weights, held, self._times(state, held), recorded[0] if recorded else None)

    sequence_takes_checkpoint = True

    def sequence(self, inputs: Tree, state: SABState, noise: Tree, *, checkpoint: int | bool | None = None) -> Any:
        """All steps in the fused kernel on the CPU, around LSTM, GRU, plain cells and `Zoneout` of these.

        With `checkpoint` (steps of a segment; `True` takes k_trunc) segments are run again in the backward pass, and
        nothing is kept but the store and the states between them.

        Subclasses, which may compute otherwise, step singly unless they define their own.
        """
        if type(self) is not SparseAttentiveBacktracking:
            return NotImplemented
        return reminded_by_kernel(self, inputs, state, noise, checkpoint)

    def _cut(self, state: SABState) -> State:
        """The inner state that the step sees: without its history where the time has come."""
        if self.k_trunc is None:
            return state.inner
        if state.clock is not None and not state.ragged:
            return detach(state.inner) if (state.clock + 1) % self.k_trunc == 0 else state.inner
        due = (state.step + 1) % self.k_trunc == 0
        return tree_map(lambda leaf: torch.where(per_row(due, leaf), leaf.detach(), leaf), state.inner)

    def _valid(self, state: SABState) -> Tensor:
        places = torch.arange(state.values.shape[1], device=state.count.device)
        return places < state.count.unsqueeze(1)

    def _times(self, state: SABState, held: Tensor) -> Tensor:
        """After how many steps the entry of each slot was stored."""
        size = state.values.shape[1]
        last = state.count.unsqueeze(1) - 1
        places = torch.arange(size, device=last.device)
        # The newest entry whose number falls on this slot of the ring; without a ring that is the slot's own number.
        return torch.where(held, last - (last - places) % size, 0) * self.k_att

    def _key(self, h: Tensor) -> Tensor:
        """What is kept of an entry for its score: W_2 m, or the released score itself."""
        if self.block_attention_gradient:
            h = h.detach()
        weight = self.key.weight if self.score_kind == "additive" else self.score.weight
        wide = torch.promote_types(h.dtype, torch.float32)
        if self.score_kind == "additive":
            return F.linear(h.to(weight), weight).to(h.device, wide)
        return (
            _dot(torch.tanh(h.to(weight.device, wide)), weight[0, self.hidden_size :]).to(h.device, wide).unsqueeze(1)
        )

    def _scores(self, provisional: Tensor, keys: Tensor) -> Tensor:
        """Scores (batch, n) of the entries, in the keys' type."""
        if self.block_attention_gradient:
            provisional = provisional.detach()
        if self.score_kind == "additive":
            query = self.query(provisional.to(self.query.weight.dtype)).to(keys.dtype)
            return _dot(torch.tanh(keys + query.unsqueeze(1)), self.score.weight[0])
        scores = keys.squeeze(2)
        if self.sparsifier == "topk" or self.k_top is None:
            return scores  # the part of the present state is the same for all entries, and cancels
        own = _dot(torch.tanh(provisional.to(keys.dtype)), self.score.weight[0, : self.hidden_size])
        return scores + own.unsqueeze(1)

    def _weights(self, scores: Tensor, valid: Tensor | None) -> Tensor:
        if self.k_top is None:
            return masked_softmax(scores, valid)
        return sparse_attention(scores, self.k_top, valid=valid, released=self.sparsifier == "released")

    def _stored(self, state: SABState, inner: State, h: Tensor) -> SABState:
        """The state after the step: h is stored where it is time, with its history and with a in it."""
        step, clock = state.step + 1, None if state.clock is None else state.clock + 1
        grows = clock is not None and clock % self.k_att == 0
        if not _by_row(state):
            if not grows:
                return SABState(inner, state.values, state.keys, step, state.count, clock, state.ragged)
            values = torch.cat([state.values, h.unsqueeze(1)], 1)
            keys = torch.cat([state.keys, self._key(h).unsqueeze(1)], 1)
            return SABState(inner, values, keys, step, state.count + 1, clock, state.ragged)
        values, keys = state.values, state.keys
        if grows:
            values, keys = F.pad(values, (0, 0, 0, 1)), F.pad(keys, (0, 0, 0, 1))
        size, due = values.shape[1], step % self.k_att == 0
        places = torch.arange(size, device=step.device)
        here = (due.unsqueeze(1) & (places == (state.count % size).unsqueeze(1))).unsqueeze(2)
        values = torch.where(here, h.unsqueeze(1), values)
        keys = torch.where(here, self._key(h).unsqueeze(1), keys)
        return SABState(inner, values, keys, step, state.count + due, clock, state.ragged)

    def update_statistics(self, info: SABInfo) -> None:
        """The inner cell's."""
        self.cell.update_statistics(info.inner)

    def extra_repr(self) -> str:
        """Settings that matter, and what is not the default."""
        said = [f"k_trunc={self.k_trunc}, k_top={self.k_top}, k_att={self.k_att}, score={self.score_kind}"]
        said += [f"sparsifier={self.sparsifier}"] if self.sparsifier != "topk" else []
        said += [f"max_memory={self.max_memory}"] if self.max_memory is not None else []
        return ", ".join([*said, "readout=hidden"] if self.readout == "hidden" else said)


def _by_row(state: SABState) -> bool:
    """Whether rows stand at different steps, so that each has a time of its own."""
    return state.clock is None or bool(state.ragged)


def _dot(rows: Tensor, weight: Tensor) -> Tensor:
    """Products along the last dimension in the type of `rows`, under autocast too: a sum knows nothing of it."""
    return (rows * weight.to(rows)).sum(-1)


def _hidden_size(cell: Cell) -> tuple[int, Tensor]:
    """The size of a cell's hidden vector, and the vector of an initial state."""
    if getattr(cell, "attends", False):
        raise TypeError(f"{type(cell).__name__} attends already; one attention wrapper around a cell is all there is")
    if cell.growing:
        raise TypeError(
            f"the state of {type(cell).__name__} grows; SparseAttentiveBacktracking needs one of fixed shape"
        )
    state = cell.initial_state(1)
    try:
        h = cell.hidden(state)
    except TypeError as error:
        raise TypeError(f"{type(cell).__name__} has no hidden vector to attend to: {error}") from error
    if h.dim() != 2:
        raise TypeError(
            f"hidden() of {type(cell).__name__} gives {shapes(h)}; expected is one vector for each row, (batch, hidden)"
        )
    return h.shape[1], h
