"""What the fused sequences of the attention wrappers share: the cell inside, the struct of C, buffers of both passes.

Shapes: T steps, B rows, H hidden units, A the size of keys, `room` places of a row: entries that came with the state,
then those that the sequence adds.
"""

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mechanisms.recurrent._native import (
    GateGradients,
    Packed,
    SequenceJob,
    Struct,
    activations,
    fields,
    pack_rows,
    threads_for,
)
from mechanisms.recurrent.cells import GRUCell, LSTMCell, LSTMState, RNNCell
from mechanisms.recurrent.kernels import NEVER, Hold, Weights, unavailable
from mechanisms.recurrent.protocol import Cell, State
from mechanisms.recurrent.zoneout import FUSED, StaticState, Zoneout

KINDS = {LSTMCell: 0, GRUCell: 1, RNNCell: 2}


class AttentionJob(Struct):
    """`struct Attention` of attention.h."""

    _fields_ = (
        ("cell", SequenceJob),
        *fields(ctypes.c_int64, "kind", "size", "room"),
        *fields(ctypes.c_void_p, "key", "query", "score", "key_back", "query_back", "values", "keys", "queries"),
        *fields(ctypes.c_int64, "query_step"),
        *fields(ctypes.c_void_p, "weights", "offset", "width", "list", "energy", "arrived", "grad_out"),
        *fields(ctypes.c_void_p, "grad_values", "grad_keys", "grad_queries", "grad_score"),
    )


class Inner(NamedTuple):
    """The cell inside a wrapper, as the kernels know it.

    Attributes:
        kind: 0 LSTM, 1 GRU, 2 plain.
        relu: whether a plain cell has relu for tanh.
        hold_h, hold_c: Zoneout of h and c.
    """

    kind: int
    relu: bool
    hold_h: Hold
    hold_c: Hold


class Known(NamedTuple):
    """An `Inner` with its tensors, and the way back to the cell's own state."""

    inner: Inner
    weights: Weights
    h: Tensor
    c: Tensor | None
    rebuild: Callable[[Tensor, Tensor | None], State]


def known_cell(cell: Cell, state: State, noise: Any, steps: int, lengths: list[int] | None = None) -> Known | None:
    """The cell inside a wrapper, if the kernels compute it: an LSTM, a GRU, a plain one, or Zoneout around these.

    >>> known_cell(GRUCell(3, 4), GRUCell(3, 4).initial_state(2), None, 5).inner.kind
    1
    """
    base, own, holds, step = cell, state, {}, None
    if type(cell) is Zoneout:
        base, own = cell.cell, cell._inner(state)
        holds = cell._holds(state, noise, steps)
        step = state.step if cell.mask == "static" else None
    if type(base) not in FUSED or not isinstance(base, FUSED):
        return None
    relu = False
    if isinstance(base, RNNCell):
        if not isinstance(base.nonlinearity, str):
            return None
        relu = base.nonlinearity == "relu"
    h, c = (own.h, own.c) if isinstance(own, LSTMState) else (own.h, None)
    held = []
    for leaf in ("h", "c"):
        hold = holds.get(leaf, NEVER)
        if hold.mask is not None:
            if hold.mask.dtype is not torch.bool:  # weights in between
                return None
            hold = Hold(hold.mask.expand(steps, *h.shape).contiguous())
        held.append(hold)

    taken = steps if lengths is None else torch.tensor(lengths)

    def rebuild(h: Tensor, c: Tensor | None) -> State:
        made = LSTMState(h, c) if c is not None else type(own)(h)
        return made if step is None else StaticState(made, step + taken)

    weights = Weights(base.weight_ih, base.weight_hh, base.bias_ih, base.bias_hh)
    return Known(Inner(KINDS[type(base)], relu, *held), weights, h, c, rebuild)


def plain_products(*parts: nn.Module) -> bool:
    """Whether these are linear layers without bias, and without hooks: all that the kernels know is a weight.

    >>> plain_products(nn.Linear(3, 4, bias=False)), plain_products(nn.Linear(3, 4))
    (True, False)
    """
    return all(
        type(part) is nn.Linear and part.bias is None and not part._forward_hooks and not part._forward_pre_hooks
        for part in parts
    )


def applies(source: str, *tensors: Tensor | None) -> bool:
    """Whether the kernels of a source compute with these tensors, here and now."""
    given = [tensor for tensor in tensors if tensor is not None]
    if any(not tensor.is_floating_point() for tensor in given):
        return False
    return unavailable(*given, source=source) is None


def check_shapes(
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    inner: Inner,
    weights: Weights,
    expected: dict[str, tuple[Any, tuple[int, ...]]],
) -> None:
    """C reads what shapes say, so they must be true.

    Raises:
        ValueError: one is not.
    """
    if x.dim() != 3 or h.dim() != 2 or not x.shape[0]:
        raise ValueError(f"expected inputs (T, B, I) and h (B, H), got {tuple(x.shape)} and {tuple(h.shape)}")
    (steps, batch, inputs), hidden = x.shape, h.shape[1]
    rows = (4, 3, 1)[inner.kind] * hidden
    known = {
        "h": (h, (batch, hidden)),
        "c": (c, (batch, hidden)),
        "weight_ih": (weights.ih, (rows, inputs)),
        "weight_hh": (weights.hh, (rows, hidden)),
        "bias_ih": (weights.bias_ih, (rows,)),
        "bias_hh": (weights.bias_hh, (rows,)),
        "the mask of h": (inner.hold_h.mask, (steps, batch, hidden)),
        "the mask of c": (inner.hold_c.mask, (steps, batch, hidden)),
    }
    for name, (tensor, shape) in (known | expected).items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; with inputs {tuple(x.shape)} it must be {shape}")


class Attended(NamedTuple):
    """Parameters of the attention: U_a or W_2 (A, H), V_a or W_3 (A, H), v or w_1 (1, A); two may be missing."""

    key: Tensor | None
    query: Tensor | None
    score: Tensor


class Buffers(NamedTuple):
    """What the forward pass keeps for the other: activations, c and h of every step, queries."""

    saved: Tensor | None
    c: Tensor | None
    out: Tensor
    queries: Tensor


def fill_cell(job: SequenceJob, inner: Inner, x: Tensor, h0: Tensor, c0: Tensor | None) -> None:
    """Sizes, inputs and masks: what both passes need."""
    (steps, batch, inputs), hidden = x.shape, h0.shape[1]
    job.steps, job.batch, job.inputs, job.hidden, job.relu = steps, batch, inputs, hidden, inner.relu
    job.rate_h, job.rate_c, job.keeps_memory = inner.hold_h.rate, inner.hold_c.rate, True
    job.point(x=x, h0=h0, c0=c0, keep_h=inner.hold_h.mask, keep_c=inner.hold_c.mask)


def pack_attention(library: ctypes.CDLL, job: AttentionJob, attended: Attended) -> list[Tensor]:
    """Parameters for the forward pass; what is returned must be kept alive."""
    packed = [pack_rows(library, weight.t()) for weight in attended[:2] if weight is not None]
    score = attended.score.contiguous()
    if packed:
        job.point(key=packed[0], query=packed[1])
    job.point(score=score)
    return [*packed, score]


def forward_buffers(
    library: ctypes.CDLL,
    job: AttentionJob,
    packed: Packed,
    x: Tensor,
    h0: Tensor,
    c_n: Tensor | None,
    *,
    trains: bool,
    keeps_out: bool = False,
) -> Buffers:
    """Room for the forward pass; `c_n` holds the memory and becomes its last value.

    Without training there is room for one step, except of h where `keeps_out` is set.
    """
    keeps_out = keeps_out or trains
    (steps, batch), hidden, size = x.shape[:2], h0.shape[1], job.size
    cell = job.cell
    saved = activations(x, packed, hidden, library.lanes()) if trains else None
    c = x.new_empty(steps, batch, hidden) if trains and c_n is not None else None
    out = x.new_empty(steps if keeps_out else 1, batch, hidden)
    queries = x.new_empty(steps if trains else 1, batch, size)
    cell.keeps_memory, cell.out_step = trains, batch * hidden * keeps_out
    cell.point(wx=packed.wx, wh=packed.wh, bias=packed.bias, saved=saved, out=out, c=c if trains else c_n, cn=c_n)
    job.query_step = batch * size * trains
    job.point(queries=queries)
    return Buffers(saved, c, out, queries)


class BackwardPass:
    """Room and sums of a backward pass over a sequence or a segment of one.

    Args:
        library: of the right type.
        size: of keys.
        needed: whether gradients of x, `weight_ih`, `weight_hh` are wanted.
        x, weights, attended: as in the forward pass.
        threads: how many threads there will be.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        size: int,
        needed: tuple[bool, bool, bool],
        x: Tensor,
        weights: Weights,
        attended: Attended,
        threads: int,
    ) -> None:
        batch, hidden = x.shape[1], weights.hh.shape[1]
        self.sums = GateGradients(needed, x, weights.ih, weights.hh)
        self.chunk = self.sums.chunk()
        self.d_gates = x.new_empty(self.chunk, batch, self.sums.slots * hidden)
        self.d_queries = x.new_empty(self.chunk, batch, size)
        self.d_bias = x.new_zeros(threads, self.sums.slots, hidden)
        self.d_score = x.new_zeros(threads, attended.score.numel())
        self.d_query = torch.zeros_like(attended.query) if attended.query is not None else None
        self.threads = threads
        self._back = pack_rows(library, weights.hh)
        self._pointers = {
            "grad_queries": self.d_queries,
            "arrived": x.new_empty(batch, hidden),
            "score": attended.score.contiguous(),
        }
        if attended.key is not None and attended.query is not None:
            self._pointers["key_back"] = pack_rows(library, attended.key)
            self._pointers["query_back"] = pack_rows(library, attended.query)

    def give(self, job: AttentionJob) -> None:
        """Point a job to what is here."""
        job.point(**self._pointers)
        job.cell.point(back=self._back, grad_gates=self.d_gates)

    def point(self, own: Any, part: int) -> None:
        """Sums of one thread."""
        own.attention.cell.point(db=self.d_bias[part])
        own.attention.point(grad_score=self.d_score[part])

    def add(self, begin: int, end: int, fed: tuple[Tensor, Tensor], asked: Tensor) -> None:
        """Take in a chunk: what the cell was fed at its first step and at the others, and what queries were made of."""
        self.sums.add(begin, end, self.d_gates, *fed)
        if self.d_query is not None:
            rows = self.d_queries[: end - begin].view(-1, self.d_queries.shape[2])
            self.d_query.addmm_(rows.t(), asked.reshape(-1, asked.shape[-1]))


def space(x: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """Room for the list of entries of each row, and for their energies."""
    return x.new_empty(x.shape[1], room, dtype=torch.int32), x.new_empty(x.shape[1], room)


def attention_threads(x: Tensor, hidden: int, entries: int, size: int) -> int:
    """Threads for a pass: products of the gates and keys, and a tanh (about ten multiplications) for each entry."""
    return threads_for(x.shape[0], x.shape[1], hidden * (x.shape[2] + hidden) + 10 * entries * size)
