"""Sparse attentive backtracking over whole sequences, on the CPU, in one call of C each way for each segment.

The same numbers as the steps of `SparseAttentiveBacktracking`. Stored states are places of a trajectory; all are
scored, but only the chosen ones are remembered, since the weights depend on the k_top + 1 largest scores alone: the
others have a gradient of exactly zero. Gradients of values and keys are added up in place, from the last step to the
first.

With checkpoints a sequence is cut into segments. What links them is the store and the state at their borders, so that
is all that is kept: the backward pass runs each segment again before it goes through it.

Shapes: T steps, B rows, I inputs, H hidden units, A the size of keys, P entries that came with the state, `room` places
of a row.
"""

import ctypes
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mechanisms.recurrent._attention_kernel import (
    Attended,
    AttentionJob,
    BackwardPass,
    Buffers,
    Inner,
    attention_threads,
    check_shapes,
    fill_cell,
    forward_buffers,
    pack_attention,
    space,
)
from mechanisms.recurrent._native import Struct, fields, load_library, over_rows, pack_gates, refuse_second_derivatives
from mechanisms.recurrent.kernels import Hold, Weights

SOURCE = "reminding.c"
MANY = 2**62  # more than any store holds


class RemindingJob(Struct):
    """`struct Reminding` of reminding.c."""

    _fields_ = (
        ("attention", AttentionJob),
        *fields(ctypes.c_int64, "cut", "every", "top", "rank", "most", "raw", "linear", "own", "blocked", "both"),
        *fields(ctypes.c_int64, "replay"),
        *fields(ctypes.c_double, "margin"),
        *fields(ctypes.c_void_p, "taken", "held"),
        *fields(ctypes.c_int64, "start"),
        *fields(ctypes.c_void_p, "out", "chosen"),
        *fields(ctypes.c_int64, "kept"),
        *fields(ctypes.c_void_p, "fresh"),
    )


@dataclass(frozen=True)
class Reminding:
    """Settings of a sequence, and the part of its state that carries no gradient.

    Attributes:
        inner: the cell inside.
        cut: steps between cuts of the gradient, 0 for none.
        every: steps between stored states.
        top: entries that may have a weight; `None` for all.
        released: the released sparsifier.
        linear: the score is that of the entry alone, `own` adds that of the present state.
        blocked: no gradient from the scores to the states.
        both: the output is h beside the attended summary, else h.
        most: entries that are seen, the latest so many; `None` for all.
        taken, held: (B), int64: steps each row has taken, entries that came with the state.
        segment: steps between checkpoints, `None` for none.
    """

    inner: Inner
    cut: int
    every: int
    top: int | None
    released: bool
    linear: bool
    own: bool
    blocked: bool
    both: bool
    most: int | None
    taken: Tensor
    held: Tensor
    segment: int | None


class Reminded(NamedTuple):
    """What a sequence gives: outputs (T, B, H or 2H), the last c, the store: values and keys (B, room, ...)."""

    output: Tensor
    c: Tensor | None
    values: Tensor
    keys: Tensor


def reminded_sequence(
    settings: Reminding,
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    weights: Weights,
    attended: Attended,
    values: Tensor,
    keys: Tensor,
) -> Reminded:
    """Run a sequence.

    Args:
        settings: see `Reminding`.
        x: inputs (T, B, I).
        h, c: the state before the first step (B, H).
        weights: of the inner cell.
        attended: W_2, W_3, w_1; for the released score `None`, `None`, w (1, 2H).
        values, keys: entries that came with the state, (B, P, H) and (B, P, A).
    """
    (batch, hidden), (prefix, size) = h.shape, keys.shape[1:]
    check_shapes(
        *(x, h, c, settings.inner, weights),
        {
            "the key's weight": (attended.key, (size, hidden)),
            "the query's weight": (attended.query, (size, hidden)),
            "the score's weight": (attended.score, (1, 2 * hidden if settings.linear else size)),
            "values": (values, (batch, prefix, hidden)),
            "keys": (keys, (batch, prefix, 1 if settings.linear else size)),
            "taken": (settings.taken, (batch,)),
            "held": (settings.held, (batch,)),
        },
    )
    if batch and (
        int(settings.taken.min()) < 0 or not 0 <= int(settings.held.min()) <= int(settings.held.max()) <= prefix
    ):
        raise ValueError(f"counts of the state do not fit its {prefix} entries: {settings.held.tolist()}")
    given = [None if one is None else one.contiguous() for one in (x, h, c)]
    given += [*weights, *attended, values, keys]
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in given):
        return Reminded(*_Reminded.apply(settings, *given))
    run = _Run(settings, given)
    values, keys = run.store()
    return Reminded(*run.forward(values, keys, keeps=False)[:2], values, keys)


class _Reminded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: Reminding, *given: Any) -> Any:
        run = _Run(settings, list(given))
        values, keys = run.store()
        output, c, kept = run.forward(values, keys, keeps=True)
        ctx.set_materialize_grads(False)
        ctx.settings = settings
        # Between checkpoints the output is computed again, so that nobody need keep it.
        ctx.save_for_backward(*given, values, keys, None if settings.segment else output, *kept)
        return output, c, values, keys

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        refuse_second_derivatives()
        with torch.autocast("cpu", enabled=False):
            kept = ctx.saved_tensors
            run = _Run(ctx.settings, list(kept[:12]))
            return None, *run.backward(ctx.needs_input_grad[1:], kept[12:], grads)


class _Piece(NamedTuple):
    """What a segment keeps for its backward pass."""

    buffers: Buffers
    shares: Tensor
    chosen: Tensor


class _Run:
    """A sequence with its packed weights, for either pass."""

    def __init__(self, settings: Reminding, given: list[Any]) -> None:
        self.settings = settings
        self.x, self.h0, self.c0 = given[:3]
        self.weights, self.attended = Weights(*given[3:7]), Attended(*given[7:10])
        self.old_values, self.old_keys = given[10:]
        self.library = load_library(SOURCE, self.x.dtype)
        self.steps, self.batch, self.hidden = *self.x.shape[:2], self.h0.shape[1]
        self.size, self.prefix = self.old_keys.shape[2], self.old_keys.shape[1]
        taken, held = settings.taken.unsqueeze(1), settings.held.unsqueeze(1)
        added = (taken + torch.arange(self.steps + 1)) // settings.every - taken // settings.every
        count = held + added  # entries before each step, and after the last
        self.last = count[:, -1] if self.steps else settings.held
        self.room = max(self.prefix, int(count.max())) if self.batch else self.prefix
        most = self.room if settings.most is None else settings.most
        seen = count[:, : self.steps].amax(0).clamp(max=most) if self.batch else torch.zeros(self.steps).long()
        dense = settings.top is None or settings.top >= most or settings.top >= int(seen.max())
        self.top = MANY if dense else settings.top
        self.rank = 0 if dense or settings.top is None else settings.top + (not settings.released)
        self.width = seen if dense else torch.full_like(seen, self.rank + 1)
        self.entries = int(seen.max())
        self.packed = pack_gates(self.library, *self.weights)
        self.row = self.hidden * (2 if settings.both else 1)

    def store(self) -> tuple[Tensor, Tensor]:
        """Room for the entries, with those that came with the state."""
        values, keys = (
            self.x.new_zeros(self.batch, self.room, size)
            if self.settings.most
            else self.x.new_empty(self.batch, self.room, size)
            for size in (self.hidden, self.size)
        )
        values[:, : self.prefix], keys[:, : self.prefix] = self.old_values, self.old_keys
        return values, keys

    def forward(self, values: Tensor, keys: Tensor, *, keeps: bool) -> tuple[Tensor, Tensor | None, list[Any]]:
        """Outputs, the last c, and what is to be kept: a piece for the whole sequence, or the state at the borders."""
        output = self.x.new_empty(self.steps, self.batch, self.row)
        h, c = self.h0, self.c0
        every = self.settings.segment
        if not every:
            c, piece = self._piece(0, self.steps, h, c, output, values, keys, keeps=keeps)
            return output, c, [*piece.buffers, piece.shares, piece.chosen] if keeps else []
        borders: list[list[Any]] = [[], []]
        for begin in range(0, self.steps, every):
            end = min(begin + every, self.steps)
            borders[0].append(h)
            borders[1].append(c)
            c, _ = self._piece(begin, end, h, c, output[begin:end], values, keys, keeps=False)
            h = output[end - 1, :, : self.hidden].contiguous()
        return output, c, [torch.stack(borders[0]), None if c is None else torch.stack(borders[1])]

    def _job(
        self, begin: int, end: int, h: Tensor, c: Tensor | None, out: Tensor, width: Tensor, *, replay: bool
    ) -> tuple[RemindingJob, list[Any]]:
        settings, x = self.settings, self.x[begin:end]
        job = RemindingJob(
            cut=settings.cut,
            every=settings.every,
            top=self.top,
            rank=self.rank,
            most=settings.most or MANY,
            raw=settings.released and settings.top is not None,
            linear=settings.linear,
            own=settings.own,
            blocked=settings.blocked,
            both=settings.both,
            replay=replay,
            margin=1e-7 if settings.released else 0.0,
            start=begin,
        )
        attention = job.attention
        attention.kind, attention.size, attention.room = settings.inner.kind, self.size, self.room
        entries, energy = space(x, self.room)
        arrived, fresh = x.new_empty(self.batch, self.hidden), x.new_empty(self.batch, self.size)
        attention.point(list=entries, energy=energy, width=width, arrived=arrived)
        attention.cell.fed_row = self.row
        attention.cell.point(fed=out)
        held = [Hold(None if hold.mask is None else hold.mask[begin:end], hold.rate) for hold in settings.inner[2:]]
        inner = settings.inner._replace(hold_h=held[0], hold_c=held[1])
        fill_cell(attention.cell, inner, x, h, c)
        job.point(taken=settings.taken, held=settings.held, out=out, fresh=fresh)
        return job, [entries, energy, arrived, fresh, inner]

    def _piece(
        self,
        begin: int,
        end: int,
        h: Tensor,
        c: Tensor | None,
        out: Tensor,
        values: Tensor,
        keys: Tensor,
        *,
        keeps: bool,
        replay: bool = False,
    ) -> tuple[Tensor | None, _Piece]:
        """The forward pass of a segment; its outputs go to `out`."""
        width = self.width[begin:end]
        job, alive = self._job(begin, end, h, c, out, width, replay=replay)
        attention = job.attention
        offset = self._offsets(width) if keeps else torch.zeros_like(width)
        shares = self.x.new_empty(int(width.sum() if keeps else width.max()) * self.batch)
        chosen = self.x.new_empty(end - begin if keeps else 1, self.batch, self.rank, dtype=torch.int32)
        c_n, h_n = None if c is None else c.clone(), torch.empty_like(h)
        alive += [pack_attention(self.library, attention, self.attended), h_n]
        x = self.x[begin:end]
        buffers = forward_buffers(self.library, attention, self.packed, x, h, c_n, trains=keeps)
        attention.cell.point(hn=h_n)
        attention.point(values=values, keys=keys, weights=shares, offset=offset)
        job.kept = keeps
        job.point(chosen=chosen)
        over_rows(self.library.reminding_forward, job, self._threads())
        alive.clear()
        return c_n, _Piece(buffers, shares, chosen)

    def _offsets(self, width: Tensor) -> Tensor:
        return (width.cumsum(0) - width) * self.batch

    def _threads(self) -> int:
        return attention_threads(self.x, self.hidden, self.entries, self.size)

    def backward(
        self,
        needed: tuple[bool, ...],
        kept: tuple[Any, ...],
        grads: tuple[Any, ...],
    ) -> tuple[Tensor | None, ...]:
        """Gradients of all that was given, segment by segment from the last."""
        (values, keys, output), kept = kept[:3], kept[3:]
        grad_out, grad_c, grad_values, grad_keys = grads
        settings, attended = self.settings, self.attended
        d_values, d_keys = (
            torch.zeros_like(like) if grad is None else grad.clone(memory_format=torch.contiguous_format)
            for grad, like in ((grad_values, values), (grad_keys, keys))
        )
        dh, dc = torch.zeros_like(self.h0), None
        if self.c0 is not None:
            dc = torch.zeros_like(self.c0) if grad_c is None else grad_c.clone(memory_format=torch.contiguous_format)
        grad_out = None if grad_out is None else grad_out.contiguous()
        wanted = needed[0], needed[3], needed[4]
        work = BackwardPass(self.library, self.size, wanted, self.x, self.weights, attended, self._threads())
        every = settings.segment or self.steps
        for begin in reversed(range(0, self.steps, every)):
            end = min(begin + every, self.steps)
            if output is None:
                h, c = kept[0][begin // every], None if kept[1] is None else kept[1][begin // every]
                out = self.x.new_empty(end - begin, self.batch, self.row)
                _, piece = self._piece(begin, end, h, c, out, values, keys, keeps=True, replay=True)
            else:
                h, c, out = self.h0, self.c0, output
                piece = _Piece(Buffers(*kept[:4]), *kept[4:])
            width = self.width[begin:end]
            job, alive = self._job(begin, end, h, c, out, width, replay=False)
            attention, cell = job.attention, job.attention.cell
            offset = self._offsets(width)
            buffers = piece.buffers
            attention.cell.out_step, attention.query_step = self.batch * self.hidden, self.batch * self.size
            work.give(attention)
            cell.point(saved=buffers.saved, c=buffers.c, out=buffers.out, dh=dh, dc=dc)
            attention.point(values=values, keys=keys, queries=buffers.queries, weights=piece.shares, offset=offset)
            attention.point(grad_out=None if grad_out is None else grad_out[begin:end])
            attention.point(grad_values=d_values, grad_keys=d_keys)
            job.kept = True
            job.point(chosen=piece.chosen)
            states = out[:, :, : self.hidden]
            for last in range(end, begin, -work.chunk):
                first = max(begin, last - work.chunk)
                cell.begin, cell.end = first - begin, last - begin
                over_rows(self.library.reminding_backward, job, work.threads, work.point)
                fed = states[first - begin - 1] if first > begin else h, states[first - begin : last - begin - 1]
                work.add(first, last, fed, buffers.out[first - begin : last - begin])
            alive.clear()
        old = self._old(d_values), self._old(d_keys)
        d_key = self._key_gradient(d_keys, values) if attended.key is not None and needed[7] else None
        return (
            *(work.sums.dx, dh, dc, work.sums.ih_sum, work.sums.hh_sum),
            *work.sums.biases(work.d_bias, wanted=self.weights.bias_ih is not None),
            *(d_key, work.d_query, work.d_score.sum(0).view_as(attended.score)),
            *old,
        )

    def _old(self, grads: Tensor) -> Tensor:
        """Gradients of the entries that came with the state; places that were filled since are not theirs."""
        found = grads[:, : self.prefix]
        held, place = self.settings.held.unsqueeze(1), torch.arange(self.prefix)
        if self.settings.most is None:
            return found
        return found.masked_fill(((place >= held) & (place < self.last.unsqueeze(1))).unsqueeze(2), 0)

    def _key_gradient(self, d_keys: Tensor, values: Tensor) -> Tensor:
        """That of W_2, by the entries of this sequence."""
        if self.settings.most is None:
            d_keys, values = d_keys[:, self.prefix :], values[:, self.prefix :]
        else:
            old = torch.arange(self.room) < self.settings.held.unsqueeze(1)
            d_keys = d_keys.masked_fill(old.unsqueeze(2), 0)
        return d_keys.reshape(-1, self.size).t() @ values.reshape(-1, self.hidden)
