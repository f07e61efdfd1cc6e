"""Relevancy screening and full self-attention over whole sequences, on the CPU, in one call of C each way.

The same numbers as the steps of `RelevancyScreening` and `SelfAttentiveCell`, in the index form: hidden vectors and
keys of the trajectory are kept once, an entry is a place among them, and their gradients are added up in place.
The backward pass is written by hand; it recomputes tanh of the scores. Gradients of gradients are refused.

    de_j = α_j (dα_j - Σ_k α_k dα_k),    dp_j = de_j v (1 - z_j²),    dh_t = DH_t + DK_t U_a

Shapes: T steps, B rows, I inputs, H hidden units, A the size of keys, P entries that came with the state, N = P + T.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechanisms.recurrent._attention_kernel import (
    Attended,
    AttentionJob,
    BackwardPass,
    Inner,
    attention_threads,
    check_shapes,
    fill_cell,
    forward_buffers,
    pack_attention,
    space,
)
from mechanisms.recurrent._native import Struct, fields, load_library, over_rows, pack_gates, refuse_second_derivatives
from mechanisms.recurrent.kernels import Weights

SOURCE = "screening.c"


class ScreeningJob(Struct):
    """`struct Screening` of screening.c."""

    _fields_ = (
        ("attention", AttentionJob),
        *fields(ctypes.c_int64, "prefix", "window", "places", "normalised", "reads_state"),
        *fields(ctypes.c_double, "share"),
        *fields(ctypes.c_void_p, "first", "members", "kept", "relevance", "states", "last"),
    )


@dataclass(frozen=True)
class Screening:
    """Settings of a sequence, and the part of its state that carries no gradient.

    Attributes:
        inner: the cell inside.
        window: ν, entries of the buffer; the whole trajectory for full attention.
        share: λ of s = λ (h + c).
        reads_state: whether the output is s, else h.
        normalised: whether relevance is weights times the number of entries.
        first: (B), int32: the place of the buffer's first entry.
        members: (B, ρ), int32: places of the set's members, -1 for none.
        relevance: (B, P): of the entries that came with the state.
        lengths: steps of each row (B), int64, or `None`.
    """

    inner: Inner
    window: int
    share: float
    reads_state: bool
    normalised: bool
    first: Tensor
    members: Tensor
    relevance: Tensor
    lengths: Tensor | None


@dataclass
class Screened:
    """What a sequence gives: outputs (T, B, H), s and c after each row's last step, the trajectory, the set."""

    output: Tensor
    s: Tensor
    c: Tensor | None
    values: Tensor
    keys: Tensor
    relevance: Tensor
    members: Tensor


def screened_sequence(
    settings: Screening,
    x: Tensor,
    s: Tensor,
    c: Tensor | None,
    weights: Weights,
    attended: Attended,
    values: Tensor | None,
    keys: Tensor | None,
) -> Screened:
    """Run a sequence.

    Args:
        settings: see `Screening`.
        x: inputs (T, B, I).
        s, c: the state before the first step (B, H).
        weights: of the inner cell.
        attended: U_a, V_a, v.
        values, keys: entries that came with the state, (B, P, H) and (B, P, A), or `None`.
    """
    (batch, hidden), size = s.shape, attended.score.shape[1]
    prefix, places = 0 if values is None else values.shape[1], settings.members.shape[1]
    check_shapes(
        *(x, s, c, settings.inner, weights),
        {
            "the key's weight": (attended.key, (size, hidden)),
            "the query's weight": (attended.query, (size, hidden)),
            "the score's weight": (attended.score, (1, size)),
            "values": (values, (batch, prefix, hidden)),
            "keys": (keys, (batch, prefix, size)),
            "relevance": (settings.relevance, (batch, prefix)),
            "first": (settings.first, (batch,)),
            "members": (settings.members, (batch, places)),
            "lengths": (settings.lengths, (batch,)),
        },
    )
    if (
        settings.lengths is not None
        and batch
        and not 0 <= int(settings.lengths.min()) <= int(settings.lengths.max()) <= len(x)
    ):
        raise ValueError(f"lengths must be between 0 and the {len(x)} steps of the input: {settings.lengths.tolist()}")
    given = [None if one is None else one.contiguous() for one in (x, s, c)]
    given += [*weights, *attended, values, keys]
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in given):
        return Screened(*_Screened.apply(settings, *given))
    return Screened(*_forward(settings, given, trains=False)[0])


class _Screened(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: Screening, *given: Any) -> Any:
        results, kept = _forward(settings, list(given), trains=True)
        output, s, _, values, keys, relevance, members = results
        ctx.set_materialize_grads(False)
        ctx.settings = settings
        ctx.mark_non_differentiable(relevance, members)
        ctx.save_for_backward(*given, output, s, values, keys, *kept)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        refuse_second_derivatives()
        with torch.autocast("cpu", enabled=False):
            return None, *_backward(ctx.settings, ctx.needs_input_grad[1:], ctx.saved_tensors, grads[:5])


def _job(settings: Screening, given: list[Any]) -> tuple[ScreeningJob, list[Any]]:
    """Sizes and settings, for both passes; and what must be kept alive."""
    x, s0, c0 = given[:3]
    steps = len(x)
    score = given[9]
    prefix = 0 if given[10] is None else given[10].shape[1]
    room, places = prefix + steps, settings.members.shape[1]
    entries, energy = space(x, room)
    # Where there is room for it a step has weights for `window` entries of the buffer and all of the set.
    width = (torch.arange(prefix + 1, room + 1) - places * bool(prefix)).clamp(max=settings.window) + places
    job = ScreeningJob(
        prefix=prefix,
        window=settings.window,
        places=places,
        normalised=settings.normalised,
        reads_state=settings.reads_state,
        share=settings.share,
    )
    attention = job.attention
    attention.kind, attention.size, attention.room = settings.inner.kind, score.numel(), room
    attention.point(list=entries, energy=energy, width=width)
    attention.cell.fed_row = s0.shape[1]
    attention.cell.point(lengths=settings.lengths)
    fill_cell(attention.cell, settings.inner, x, s0, c0)
    job.point(first=settings.first)
    return job, [entries, energy, width]


def _forward(settings: Screening, given: list[Any], *, trains: bool) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Results, and what the backward pass needs beside them."""
    x, s0, c0, *_ = given
    weights, attended, (old_values, old_keys) = Weights(*given[3:7]), Attended(*given[7:10]), given[10:]
    library = load_library(SOURCE, x.dtype)
    steps, batch = x.shape[:2]
    hidden = s0.shape[1]
    job, alive = _job(settings, given)
    attention, cell = job.attention, job.attention.cell
    prefix, room, places = job.prefix, attention.room, job.places
    values, keys = x.new_empty(batch, room, hidden), x.new_empty(batch, room, attention.size)
    relevance = x.new_zeros(batch, room)
    if prefix:
        values[:, :prefix], keys[:, :prefix], relevance[:, :prefix] = old_values, old_keys, settings.relevance
    members = settings.members.clone(memory_format=torch.contiguous_format)
    members_of_steps = members.new_empty(steps, batch, places) if trains else None
    width = alive[-1]
    offset = (width.cumsum(0) - width) * batch if trains else torch.zeros_like(width)
    shares = x.new_empty(int(width.sum() if trains else width.max()) * batch)
    states = x.new_empty(steps, batch, hidden)
    s_n, c_n, h_n = s0.clone(), None if c0 is None else c0.clone(), torch.empty_like(s0)
    packed = pack_gates(library, *weights)
    alive += [packed, pack_attention(library, attention, attended)]
    keeps_out = not settings.reads_state
    kept = forward_buffers(library, attention, packed, x, s0, c_n, trains=trains, keeps_out=keeps_out)
    cell.point(hn=h_n, fed=states)
    attention.point(values=values, keys=keys, weights=shares, offset=offset)
    job.point(members=members, kept=members_of_steps, relevance=relevance, states=states, last=s_n)
    threads = attention_threads(x, hidden, min(settings.window, room) + places, attention.size)
    over_rows(library.screening_forward, job, threads)
    output = states if settings.reads_state else kept.out
    if not trains:
        return (output, s_n, c_n, values, keys, relevance, members), ()
    fed = None if settings.reads_state else states
    return (output, s_n, c_n, values, keys, relevance, members), (
        *(fed, kept.saved, kept.c, kept.queries, shares, offset, members_of_steps),
    )


def _backward(
    settings: Screening, needed: tuple[bool, ...], kept: tuple[Any, ...], grads: tuple[Any, ...]
) -> tuple[Tensor | None, ...]:
    given = list(kept[:12])
    x, s0, c0, *_ = given
    weights, attended = Weights(*given[3:7]), Attended(*given[7:10])
    output, _, values, keys, fed, saved, c, queries, shares, offset, members_of_steps = kept[12:]
    grad_out, grad_s, grad_c, grad_values, grad_keys = grads
    states = output if fed is None else fed
    library = load_library(SOURCE, x.dtype)
    job, alive = _job(settings, given)
    attention, cell = job.attention, job.attention.cell
    d_values, d_keys, ds, dc = (
        torch.zeros_like(like) if grad is None else grad.clone(memory_format=torch.contiguous_format)
        for grad, like in ((grad_values, values), (grad_keys, keys), (grad_s, s0), (grad_c, s0))
    )
    grad_out = None if grad_out is None else grad_out.contiguous()
    hidden, size = s0.shape[1], attention.size
    threads = attention_threads(x, hidden, min(settings.window, attention.room) + job.places, size)
    work = BackwardPass(library, size, (needed[0], needed[3], needed[4]), x, weights, attended, threads)
    work.give(attention)
    cell.point(saved=saved, c=c, fed=states, dh=ds, dc=dc if c0 is not None else None)
    attention.query_step = queries.shape[1] * size
    attention.point(values=values, keys=keys, queries=queries, weights=shares, offset=offset)
    attention.point(grad_out=grad_out, grad_values=d_values, grad_keys=d_keys)
    job.point(kept=members_of_steps)
    for end in range(x.shape[0], 0, -work.chunk):
        begin = max(0, end - work.chunk)
        cell.begin, cell.end = begin, end
        over_rows(library.screening_backward, job, threads, work.point)
        first, rest = states[begin - 1] if begin else s0, states[begin : end - 1]
        work.add(begin, end, (first, rest), torch.cat([first.unsqueeze(0), rest]))
    prefix = job.prefix
    d_key = None
    if needed[7]:
        d_key = d_keys[:, prefix:].reshape(-1, size).t() @ values[:, prefix:].reshape(-1, hidden)
    alive.clear()
    return (
        *(work.sums.dx, ds, dc if c0 is not None else None, work.sums.ih_sum, work.sums.hh_sum),
        *work.sums.biases(work.d_bias, wanted=weights.bias_ih is not None),
        *(d_key, work.d_query, work.d_score.sum(0).view_as(attended.score)),
        *(d_values[:, :prefix] if prefix else None, d_keys[:, :prefix] if prefix else None),
    )
