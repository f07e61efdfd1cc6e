"""From the state of `SparseAttentiveBacktracking` to the form of its kernel, and back."""

import math
from typing import Any

import torch
from torch import Tensor

from mechanisms.recurrent._attention_kernel import Attended, applies, known_cell, plain_products
from mechanisms.recurrent._reminding_kernel import SOURCE, Reminding, reminded_sequence
from mechanisms.recurrent._trees import Tree


def reminded_by_kernel(
    cell: Any, inputs: Tree, state: Any, noise: Tree, checkpoint: int | bool | None = None
) -> tuple[Tensor, Any] | Any:
    """All steps of a `SparseAttentiveBacktracking` in the kernel, or `NotImplemented`."""
    if not isinstance(inputs, Tensor) or state.ragged or not applies(SOURCE, state.values, state.keys):
        return NotImplemented
    steps = len(inputs)
    known = known_cell(cell.cell, state.inner, noise, steps)
    if known is None:
        return NotImplemented
    if inputs.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        inputs = inputs.to(known.weights.ih.dtype)  # as torch's own kernels: in and out in the parameters' type
    linear = cell.score_kind == "released"
    if not plain_products(cell.score, *() if linear else (cell.key, cell.query)):
        return NotImplemented
    attended = Attended(*(None, None) if linear else (cell.key.weight, cell.query.weight), cell.score.weight)
    if not applies(SOURCE, inputs, known.h, known.c, *known.weights, *attended, state.values, state.keys):
        return NotImplemented
    size = state.values.shape[1]
    values, keys, held = state.values, state.keys, state.count
    skipped = torch.zeros_like(held)  # entries that were overwritten before this sequence
    if cell.max_memory is not None:
        skipped, held = (held - size).clamp(min=0), held.clamp(max=size)
        if bool(skipped.any()):  # the ring, from its oldest entry on
            values, keys = (
                _gathered(leaf, (skipped.unsqueeze(1) + torch.arange(size)) % size) for leaf in (values, keys)
            )
    segment = None
    if checkpoint:
        segment = checkpoint
        if checkpoint is True:
            segment = cell.k_trunc if cell.k_trunc is not None else math.ceil(math.sqrt(steps))
    settings = Reminding(
        known.inner,
        cut=cell.k_trunc or 0,
        every=cell.k_att,
        top=cell.k_top,
        released=cell.sparsifier == "released",
        linear=linear,
        own=linear and cell.sparsifier == "released" and cell.k_top is not None,
        blocked=cell.block_attention_gradient,
        both=cell.readout == "both",
        most=cell.max_memory,
        taken=state.step.contiguous(),
        held=held.contiguous(),
        segment=segment,
    )
    reminded = reminded_sequence(settings, inputs, known.h, known.c, known.weights, attended, values, keys)
    h = reminded.output[-1, :, : cell.hidden_size].clone()  # so that the state does not hold all outputs
    step = state.step + steps
    count = state.count + step // cell.k_att - state.step // cell.k_att
    values, keys = reminded.values, reminded.keys
    if cell.max_memory is not None:
        # The number of the entry that each slot of the ring holds; where there is none, what the slot held.
        last, places = count.unsqueeze(1) - 1, torch.arange(size)
        number = last - (last - places) % size
        place = torch.where(number < 0, places, number - skipped.unsqueeze(1))
        values, keys = _gathered(values, place), _gathered(keys, place)
    clock = None if state.clock is None else state.clock + steps
    inner = known.rebuild(h, reminded.c)
    return reminded.output, state._replace(inner=inner, values=values, keys=keys, step=step, count=count, clock=clock)


def _gathered(leaf: Tensor, place: Tensor) -> Tensor:
    return leaf.gather(1, place.unsqueeze(2).expand(-1, -1, leaf.shape[2]))
