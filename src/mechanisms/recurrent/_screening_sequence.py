"""From the states of `RelevancyScreening` and `SelfAttentiveCell` to the index form of their kernel, and back."""

from typing import Any

import torch
from torch import Tensor

from mechanisms.recurrent._attention_kernel import Attended, applies, known_cell, plain_products
from mechanisms.recurrent._screening_kernel import SOURCE, Screened, Screening, screened_sequence
from mechanisms.recurrent._self_attention import SelfAttention
from mechanisms.recurrent._trees import Tree
from mechanisms.recurrent.protocol import State


def relevancy_sequence(
    cell: Any, inputs: Tree, state: Any, noise: Tree, lengths: list[int] | None = None
) -> tuple[Tensor, Any] | Any:
    """All steps of a `RelevancyScreening` in the kernel, or `NotImplemented`."""
    relevances = state.set_relevance, state.buffer_relevance
    leaves = (state.buffer_value, state.buffer_key, state.set_value, state.set_key, *relevances)
    if not isinstance(inputs, Tensor) or not applies(SOURCE, *leaves):
        return NotImplemented
    filled = state.buffer_index >= 0
    if bool((filled[:, :-1] & ~filled[:, 1:]).any()):
        return NotImplemented  # the buffer of no run of steps: what is in it ends with the newest
    rows, window, places = len(filled), cell.short_term, cell.relevant
    # A state without entries needs no room, unless gradients of its empty places are asked for.
    fresh = not bool(filled.any()) and not any(leaf.requires_grad for leaf in leaves)
    prefix = 0 if fresh else places + window
    members = torch.where(state.set_index < 0, -1, torch.arange(places))
    lacking = (~filled).sum(1)
    found = _run(
        cell,
        inputs,
        state,
        noise,
        lengths,
        window=window,
        normalised=cell.relevance == "normalised",
        first=torch.zeros_like(lacking) if fresh else lacking + places,
        members=torch.full_like(members, -1) if fresh else members,
        relevance=None if fresh else torch.cat(relevances, 1).detach(),
        values=None if fresh else torch.cat([state.set_value, state.buffer_value], 1),
        keys=None if fresh else torch.cat([state.set_key, state.buffer_key], 1),
    )
    if found is NotImplemented:
        return NotImplemented
    screened, new = found
    steps = len(inputs)
    taken = torch.full((rows, 1), steps) if lengths is None else torch.tensor(lengths).unsqueeze(1)
    source = state.buffer_index[:, -1:] + 1 + torch.arange(steps)
    if not fresh:
        source = torch.cat([state.set_index, state.buffer_index, source], 1)
    relevance = screened.relevance
    if not fresh and any(leaf.requires_grad for leaf in relevances):  # as single steps hand it on
        old = torch.cat(relevances, 1)
        relevance = relevance + torch.nn.functional.pad(old - old.detach(), (0, steps))
    last = prefix + taken + torch.arange(-window, 0)
    chosen = screened.members.to(torch.int64)
    if not fresh:  # an empty place holds what it held
        chosen = torch.where(chosen < 0, torch.arange(places), chosen)
    buffer, kept = (_picked(screened, relevance, source, place) for place in (last, chosen))
    return screened.output, new._replace(
        **{f"buffer_{name}": leaf for name, leaf in buffer.items()},
        **{f"set_{name}": leaf for name, leaf in kept.items()},
    )


def _picked(screened: Screened, relevance: Tensor, source: Tensor, place: Tensor) -> dict[str, Tensor]:
    """The leaves of the entries at some places (B, n); those before the trajectory are empty."""
    empty = place < 0
    some = bool(empty.any())
    at = place.clamp(min=0) if some else place

    def rows(leaf: Tensor) -> Tensor:
        found = leaf.gather(1, at.unsqueeze(2).expand(-1, -1, leaf.shape[2]))
        return found.masked_fill(empty.unsqueeze(2), 0) if some else found

    relevance, index = relevance.gather(1, at), source.gather(1, at)
    if some:
        relevance, index = relevance.masked_fill(empty, 0), index.masked_fill(empty, -1)
    return {"value": rows(screened.values), "key": rows(screened.keys), "relevance": relevance, "index": index}


def self_attentive_sequence(cell: Any, inputs: Tree, state: Any, noise: Tree) -> tuple[Tensor, Any] | Any:
    """All steps of a `SelfAttentiveCell` in the kernel, or `NotImplemented`."""
    if not isinstance(inputs, Tensor) or not applies(SOURCE, state.values, state.keys):
        return NotImplemented
    filled = state.index >= 0
    rows, size = filled.shape
    if bool((filled[:, :-1] & ~filled[:, 1:]).any()) or (cell.max_memory is None and not bool(filled.all())):
        return NotImplemented  # rows that ended early have empty places among the others
    steps = len(inputs)
    found = _run(
        cell,
        inputs,
        state,
        noise,
        None,
        window=size + steps if cell.max_memory is None else cell.max_memory,
        normalised=False,
        first=(~filled).sum(1),
        members=torch.empty(rows, 0, dtype=torch.int64),
        relevance=state.values.new_zeros(rows, size),
        values=state.values if size else None,
        keys=state.keys if size else None,
    )
    if found is NotImplemented:
        return NotImplemented
    screened, new = found
    index = torch.cat([state.index, state.count.unsqueeze(1) + torch.arange(steps)], 1)
    leaves = screened.values, screened.keys, index
    if cell.max_memory is not None:  # copies, so that the state does not hold the whole trajectory
        leaves = tuple(leaf[:, steps:].clone(memory_format=torch.contiguous_format) for leaf in leaves)
    values, keys, index = leaves
    return screened.output, new._replace(values=values, keys=keys, index=index, count=state.count + steps)


def _run(
    cell: SelfAttention,
    inputs: Tensor,
    state: Any,
    noise: Tree,
    lengths: list[int] | None,
    *,
    window: int,
    normalised: bool,
    first: Tensor,
    members: Tensor,
    relevance: Tensor | None,
    values: Tensor | None,
    keys: Tensor | None,
) -> tuple[Screened, State] | Any:
    """The kernel, and the state with the leaves that both cells have."""
    known = known_cell(cell.cell, state.inner, noise, len(inputs), lengths)
    if known is None or not plain_products(cell.key, cell.query, cell.score):
        return NotImplemented
    if inputs.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        inputs = inputs.to(known.weights.ih.dtype)  # as torch's own kernels: in and out in the parameters' type
    attended = Attended(cell.key.weight, cell.query.weight, cell.score.weight)
    if not applies(SOURCE, inputs, state.s, known.h, known.c, *known.weights, *attended, values, keys):
        return NotImplemented
    ends = None if lengths is None else torch.tensor(lengths)
    settings = Screening(
        known.inner,
        window=window,
        share=0.5 if cell.combine == "mean" else 1.0,
        reads_state=cell.readout == "state",
        normalised=normalised,
        first=first.to(torch.int32).contiguous(),
        members=members.to(torch.int32),
        relevance=inputs.new_zeros(len(first), 0) if relevance is None else relevance.contiguous(),
        lengths=ends,
    )
    screened = screened_sequence(settings, inputs, state.s, known.c, known.weights, attended, values, keys)
    h = screened.values[:, -1]
    if ends is not None:
        last = (screened.values.shape[1] - len(inputs) + ends - 1).clamp(min=0)
        h = screened.values[torch.arange(len(last)), last]
        h = torch.where((ends > 0).unsqueeze(1), h, known.h)
    # A copy, so that the state does not hold the whole trajectory.
    inner = known.rebuild(h.clone(), screened.c)
    return screened, state._replace(inner=inner, s=screened.s)
