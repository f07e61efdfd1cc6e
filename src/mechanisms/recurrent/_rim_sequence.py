"""Whole sequences of RIM and BRIM cells at once: from states, noise and parameters to the kernel's form, and back.

Shapes: T steps, B rows, n modules of d units.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mechanisms.recurrent._attention_kernel import applies, plain_products
from mechanisms.recurrent._driver import transformed
from mechanisms.recurrent._rim_jobs import INPUT, LayerShape, LayerTensors, Plan, Slot
from mechanisms.recurrent._rim_kernel import SOURCE, run_stack
from mechanisms.recurrent._trees import Tree, tree_map
from mechanisms.recurrent.grouped import GroupLSTMCell
from mechanisms.recurrent.module_attention import CommunicationAttention, InputAttention

if TYPE_CHECKING:
    from mechanisms.recurrent.brim_cell import BRIMCell
    from mechanisms.recurrent.rim_cell import RIMCell

SLOTS = 2  # as many as the kernel knows
MOST = 1 << 14  # scores of a row: C holds them on the stack


def rim_sequence(cell: "RIMCell", inputs: Tree, state: Any, noise: Tree, lengths: list[int] | None = None) -> Any:
    """`(outputs, state)` for all steps, or `NotImplemented`: then the cell steps singly."""
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    found = _run([cell], [(INPUT,) * len(given)], given, [state], [noise], lengths)
    return NotImplemented if found is None else (found[0], found[1][0])


def brim_sequence(cell: "BRIMCell", inputs: Tree, state: Any, noise: Tree, lengths: list[int] | None = None) -> Any:
    """`(outputs, state)` for all steps, or `NotImplemented`: then the cell steps singly."""
    layers = [cell.layer(place) for place in range(len(cell.layers))]
    sources = []
    for place, above in enumerate(cell.above):
        below = INPUT if place == 0 else place - 1
        sources.append((below,) if above is None else (below, above))
    noises = [None] * len(layers) if noise is None else list(noise)
    found = _run(layers, sources, (inputs,), list(state), noises, lengths)
    return NotImplemented if found is None else (found[0], tuple(found[1]))


def rim_step(cell: "RIMCell", input: Tree, state: Any, noise: Tree) -> Any:
    """A single step as a sequence of one, or `NotImplemented`; without gradients, as a step can be differentiated twice
    and a sequence cannot."""
    return _one(rim_sequence, cell, input, state, noise)


def brim_step(cell: "BRIMCell", input: Tree, state: Any, noise: Tree) -> Any:
    """The same for a stack."""
    return _one(brim_sequence, cell, input, state, noise)


def _one(sequence: Any, cell: Any, input: Tree, state: Any, noise: Tree) -> Any:
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or transformed():
        return NotImplemented
    input, noise = (tree_map(lambda leaf: leaf.unsqueeze(0), tree) for tree in (input, noise))
    found = sequence(cell, input, state, noise)
    return found if found is NotImplemented else (found[0][0], found[1])


def _run(
    cells: Sequence["RIMCell"],
    sources: Sequence[tuple[int, ...]],
    inputs: tuple[Any, ...],
    states: Sequence[Any],
    noises: Sequence[Any],
    lengths: list[int] | None,
) -> tuple[Tensor, list[Any]] | None:
    """All steps in the kernel, or `None` where it does not apply."""
    if torch.compiler.is_compiling() or torch.is_anomaly_enabled():  # single steps say where no module can be chosen
        return None
    masks = [_masks(noise) for noise in noises]
    if not all(
        one.dtype == torch.bool and one.device.type == "cpu" for pair in masks for one in pair if one is not None
    ):
        return None
    if not all(_known(cell, own) for cell, own in zip(cells, sources, strict=True)):
        return None
    kind = cells[0].dynamics.weight_hh.dtype
    if inputs[0].device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        inputs = tuple(one.to(kind) for one in inputs)  # as torch's own kernels: in and out in the parameters' type
    layers = [_tensors(cell, state) for cell, state in zip(cells, states, strict=True)]
    slots = [_slots(cell) for cell in cells]
    flat = [one for layer in layers for one in layer] + [one for pairs in slots for pair in pairs for one in pair]
    if not applies(SOURCE, *inputs, *flat):
        return None
    steps, batch = inputs[0].shape[:2]
    if not batch:
        return None
    ends = None if lengths is None else torch.tensor(lengths)
    shapes = tuple(_shape(cell, own) for cell, own in zip(cells, sources, strict=True))
    plan = Plan(shapes, tuple(masks), ends)
    output, mask, last = run_stack(plan, inputs, layers, slots)
    if cells[-1].readout == "active":
        output = torch.where(mask.bool().unsqueeze(3), output.view(*mask.shape, -1), 0.0).flatten(2)
    if ends is not None and int(ends.min()) < steps:
        time = torch.arange(steps).unsqueeze(1)
        output = torch.where((time < ends).unsqueeze(2), output, 0.0)
    return output, [type(state)(*leaves) for state, leaves in zip(states, last, strict=True)]


def _known(cell: "RIMCell", sources: tuple[int, ...]) -> bool:
    """Whether the kernel computes what this cell does."""
    attention = cell.input_attention
    talk = 0 if cell.communication is None else cell.communication.num_heads * cell.num_active
    if cell.competition != "null" or len(sources) > SLOTS or type(attention) is not InputAttention:
        return False
    if cell.communication is not None and not _plain(cell.communication):
        return False
    if cell.num_modules * max(attention.num_heads, talk) > MOST:
        return False
    maps = [*attention.value, *(attention.key or ())]
    return len(attention.value) == len(sources) and plain_products(*maps)


def _plain(talk: nn.Module) -> bool:
    """Whether the communication, which single steps call as a module, is ours and nothing listens to its calls."""
    hooks = talk._forward_hooks, talk._forward_pre_hooks, talk._backward_hooks, talk._backward_pre_hooks
    return type(talk) is CommunicationAttention and not any(hooks)


def _shape(cell: "RIMCell", sources: tuple[int, ...]) -> LayerShape:
    attention, talk = cell.input_attention, cell.communication
    return LayerShape(
        modules=cell.num_modules,
        size=cell.hidden_size,
        active=cell.num_active,
        heads=attention.num_heads,
        key=0 if attention.query is None else attention.key_size,
        value=attention.value_size,
        gru=cell.kind == "gru",
        comm_heads=0 if talk is None else talk.num_heads,
        comm_key=0 if talk is None else talk.key_size,
        comm_value=0 if talk is None else talk.value_size,
        held=cell.comm_source == "held",
        blocked=cell.block_inactive_grad,
        sources=sources,
        read_scale=1 / (1 - cell.input_dropout),
        comm_scale=1 / (1 - cell.comm_dropout),
    )


def _tensors(cell: "RIMCell", state: Any) -> LayerTensors:
    dynamics, attention, talk = cell.dynamics, cell.input_attention, cell.communication
    if isinstance(dynamics, GroupLSTMCell):
        biases = dynamics.bias, None
    else:
        biases = dynamics.bias_ih, dynamics.bias_hh
    own = state.h, state.c, None if attention.query is None else attention.query.weight
    rest = (None,) * 7
    if talk is not None:
        maps = talk.query.weight, talk.key.weight, talk.value.weight
        rest = (*maps, talk.output.weight, talk.output.bias, talk.gate.weight, talk.gate.bias)
    return LayerTensors(*own, dynamics.weight_ih, dynamics.weight_hh, *biases, *rest)


def _slots(cell: "RIMCell") -> list[Slot]:
    values: list[Any] = list(cell.input_attention.value)
    keys: list[Any] = [None] * len(values) if cell.input_attention.key is None else list(cell.input_attention.key)
    return [(None if key is None else key.weight, value.weight) for key, value in zip(keys, values, strict=True)]


def _masks(noise: Any) -> tuple[Tensor | None, ...]:
    """What the two dropouts keep."""
    if noise is None:
        return None, None
    return tuple(None if one is None else one.contiguous() for one in noise)
