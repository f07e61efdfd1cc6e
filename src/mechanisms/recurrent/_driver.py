"""What `scan` does once its arguments are checked: the loop over time, and the fused path where a cell has one."""

import bisect
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint as checkpointed

from mechanisms.recurrent._trees import (
    Tree,
    first_tensor,
    joined,
    named_leaves,
    per_row,
    split,
    tensors,
    tree_map,
    unbind,
)
from mechanisms.recurrent.protocol import Cell, State, project
from mechanisms.recurrent.states import detach, select

# Projections of all steps at once up to this size; beyond it, of so many steps at a time.
HOIST_BYTES = 64 * 2**20
HOIST_STEPS = 64


@dataclass(frozen=True)
class Plan:
    """What happens at which step, beside the steps themselves.

    Order of events at a step: gradients are cut, rows are reset, the cell steps, finished rows are frozen.
    """

    steps: int
    detach_at: frozenset[int] = frozenset()
    reset_at: frozenset[int] = frozenset()
    reset: Tensor | None = None
    lengths: list[int] | None = None
    mark: bool = False
    shortest: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "shortest", self.steps if self.lengths is None else min(self.lengths, default=self.steps)
        )

    @property
    def events(self) -> frozenset[int]:
        """Steps before which something happens to the state."""
        return self.detach_at | self.reset_at

    def before(self, cell: Cell, state: State, t: int) -> State:
        """The state that step t sees."""
        if t in self.detach_at:
            state = self._cut(state, t)
        if t in self.reset_at and self.reset is not None:
            state = cell.reset(state, self.reset[t])
        return differentiable(cell, state) if self.mark else state

    def _cut(self, state: State, t: int) -> State:
        """The state without its history, except in rows that have ended: their last state is no longer in the way."""
        if self.lengths is None or t < self.shortest:
            return detach(state)
        active = torch.tensor([length > t for length in self.lengths], device=first_tensor(state).device)
        return tree_map(lambda leaf: torch.where(per_row(active, leaf), leaf.detach(), leaf), state)


def differentiable(cell: Cell, state: State) -> State:
    """The state with every leaf that may carry gradients marked so.

    A compiled step is compiled anew for each pattern of leaves with and without gradients; so all steps share one.
    """
    if not torch.is_grad_enabled():
        return state
    constant = {id(leaf) for name, leaf in named_leaves(state) if name.split(".")[-1] in cell.constant_leaves}

    def mark(leaf: Tensor) -> Tensor:
        if id(leaf) in constant or leaf.requires_grad or not leaf.is_floating_point():
            return leaf
        return leaf.detach().requires_grad_()

    return tree_map(mark, state)


# --- the loop ---------------------------------------------------------------------------------------------------------


@dataclass
class Trace:
    """What the steps of a segment gave."""

    outputs: list[Tree] = field(default_factory=list)
    infos: list[Tree] = field(default_factory=list)
    states: list[State] = field(default_factory=list)


def run_loop(
    cell: Cell,
    inputs: Tree,
    state: State,
    noise: Tree,
    plan: Plan,
    *,
    segment: int | None,
    hoist: int | None,
    compile: bool | str,
    need_info: bool,
    keep_states: bool,
) -> tuple[Tree, State, Tree, list[State]]:
    """All steps, one after the other: outputs, last state, info, and the states after each step."""
    steps, device = plan.steps, first_tensor(inputs).device
    lengths = None if plan.lengths is None else torch.tensor(plan.lengths, device=device)
    compiled: Callable[..., Any] | None = torch.compile(cell.step) if compile == "step" else None
    if plan.mark:
        state = differentiable(cell, state)
    if hoist is None:
        hoist = _steps_at_once(cell, inputs, noise, min(segment or steps, steps))

    def body(inputs: Tree, state: State, noise: Tree, start: int, count: int) -> tuple[Trace, State]:
        trace = Trace()
        # Made here, so that a segment that is computed again takes the parameters anew.
        step = compiled or cell._stepper()
        sizes = [min(hoist, count - begin) for begin in range(0, count, hoist)]
        t = start
        for part, part_noise, size in zip(split(inputs, sizes), split(noise, sizes), sizes, strict=True):
            projected = unbind(project(cell, part, part_noise), size)
            if bare:  # what is asked for is looked at once, not at each step
                for projection, own in zip(projected, unbind(part_noise, size), strict=True):
                    output, state = step(projection, state, own)
                    trace.outputs.append(output)
                continue
            for projection, own in zip(projected, unbind(part_noise, size), strict=True):
                if t in events:
                    state = plan.before(cell, state, t)
                if need_info:
                    found = step(projection, state, own, need_info=True)
                    if len(found) == 2:
                        raise TypeError(f"{type(cell).__name__} records nothing; leave need_info out")
                    output, new, info = found
                    trace.infos.append(info)
                else:
                    output, new = step(projection, state, own)
                if t >= plan.shortest and lengths is not None:
                    active = lengths > t
                    output = _masked(output, active)
                    new = cell.freeze(active, new, state)
                state = new
                trace.outputs.append(output)
                if keep_states:
                    trace.states.append(state)
                t += 1
        return trace, state

    events = plan.events
    bare = not (events or need_info or keep_states or lengths is not None)
    run = torch.compile(body) if compile == "scan" else body
    if segment is None:
        trace, state = run(inputs, state, noise, 0, steps)
        info = joined(_stack, trace.infos) if need_info else None
        return joined(torch.stack, trace.outputs), state, info, trace.states

    def whole(*arguments: Any) -> tuple[Tree, Tree, State]:
        trace, state = run(*arguments)
        return joined(torch.stack, trace.outputs), joined(_stack, trace.infos) if need_info else None, state

    sizes = [min(segment, steps - begin) for begin in range(0, steps, segment)]
    outputs, infos, start = [], [], 0
    for part, part_noise, size in zip(split(inputs, sizes), split(noise, sizes), sizes, strict=True):
        # Nothing random is left to a step, so no state of a random stream has to be kept.
        output, info, state = checkpointed(
            whole, part, state, part_noise, start, size, use_reentrant=False, preserve_rng_state=False
        )
        outputs.append(output)
        infos.append(info)
        start += size
    return joined(torch.cat, outputs), state, joined(_cat, infos) if need_info else None, []


def _steps_at_once(cell: Cell, inputs: Tree, noise: Tree, most: int) -> int:
    """How many steps to project at once: all when they are few or small."""
    if most <= HOIST_STEPS or torch.compiler.is_compiling():
        return most
    with torch.no_grad():
        one = project(cell, tree_map(lambda leaf: leaf[:1], inputs), tree_map(lambda leaf: leaf[:1], noise))
    size = sum(leaf.numel() * leaf.element_size() for leaf in tensors(one))
    return most if size * most <= HOIST_BYTES else HOIST_STEPS


def _masked(output: Tree, active: Tensor) -> Tree:
    return tree_map(lambda leaf: torch.where(per_row(active, leaf), leaf, leaf.new_zeros(())), output)


def _widest(infos: list[Tensor]) -> list[Tensor]:
    """Info of one width: what grows with the steps (weights over a memory) is filled up with zeros at its end."""
    if all(info.shape == infos[0].shape for info in infos):
        return infos
    widest = max(info.shape[-1] for info in infos)
    return [torch.nn.functional.pad(info, (0, widest - info.shape[-1])) for info in infos]


def _stack(infos: list[Tensor]) -> Tensor:
    return torch.stack(_widest(infos))


def _cat(infos: list[Tensor]) -> Tensor:
    return torch.cat(_widest(infos))


# --- the fused path ---------------------------------------------------------------------------------------------------


def has_kernel(cell: Cell) -> bool:
    """Whether a cell offers a fused path at all."""
    return type(cell).sequence is not Cell.sequence


def transformed() -> bool:
    """Whether something is at work that cannot see into a fused path: `functional`, or torch.jit.trace."""
    return functional() or (not torch.compiler.is_compiling() and torch.jit.is_tracing())


def functional() -> bool:
    """Whether torch.func (vmap, jvp, grad) or forward-mode derivatives are at work, which torch's kernels lack too."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def run_kernel(
    cell: Cell, inputs: Tree, state: State, noise: Tree, plan: Plan, checkpoint: int | bool | None = None
) -> Any:
    """All steps through `cell.sequence`, cut where the plan asks for it; `NotImplemented` when the cell has no way."""
    begins = sorted(plan.events | {0})
    sizes = [end - begin for begin, end in zip(begins, [*begins[1:], plan.steps], strict=True)]
    outputs: list[Tree] = []
    for begin, size, part, own in zip(begins, sizes, split(inputs, sizes), split(noise, sizes), strict=True):
        if begin in plan.events:
            state = plan.before(cell, state, begin)
        lengths = None if plan.lengths is None else [min(max(length - begin, 0), size) for length in plan.lengths]
        if lengths is not None and max(lengths, default=size) == 0:
            outputs.append(None)  # nothing but padding, filled in below
            continue
        sequence: Callable[..., Any] = cell.sequence
        if checkpoint:
            sequence = functools.partial(sequence, checkpoint=checkpoint)
        if lengths is None or min(lengths, default=size) == size:
            found = sequence(part, state, own)
        elif getattr(cell, "sequence_takes_lengths", False):  # Zoneout's kernel does
            found = sequence(part, state, own, lengths=lengths)
        else:
            found = _run_lengths(cell, part, state, own, lengths, size)
        if found is NotImplemented:
            return NotImplemented
        output, state = found
        outputs.append(output)
    if any(output is None for output in outputs):
        like = next((output for output in outputs if output is not None), None)
        if like is None:
            first, own = (tree_map(lambda leaf: leaf[:1], tree) for tree in (inputs, noise))
            found = cell.sequence(first, detach(state), own)
            if found is NotImplemented:
                return NotImplemented
            like = detach(found[0])
        for place, size in enumerate(sizes):
            if outputs[place] is None:
                outputs[place] = _zeros(like, size)
    return (outputs[0] if len(outputs) == 1 else joined(torch.cat, outputs)), state


def _zeros(like: Tree, steps: int) -> Tree:
    """Outputs of padding."""
    return tree_map(lambda leaf: leaf.new_zeros(steps, *leaf.shape[1:]), like)


def _run_lengths(cell: Cell, inputs: Tree, state: State, noise: Tree, lengths: list[int], steps: int) -> Any:
    """Rows of different lengths: longest first, with fewer rows after each length, as packed sequences run."""
    device = first_tensor(inputs).device
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    ordered = [lengths[row] for row in order]
    rows = torch.tensor(order, device=device)
    inputs, noise = (tree_map(lambda leaf: leaf.index_select(1, rows), tree) for tree in (inputs, noise))
    state = tree_map(lambda leaf: leaf.index_select(0, rows), state)
    ends = sorted(set(lengths) | {0})
    sizes = [end - begin for begin, end in itertools.pairwise(ends)]
    rest = steps - ends[-1]
    inputs, noise = (split(tree, [*sizes, rest]) for tree in (inputs, noise))
    outputs, finished, count = [], [], len(order)
    for begin, part, own in zip(ends, inputs, noise, strict=False):
        # How many rows are longer than `begin`; they are in front.
        still = bisect.bisect_left(ordered, -begin, key=lambda length: -length)
        if still < count:
            finished.append(select(state, slice(still, count)))
            state, count = select(state, slice(0, still)), still
        if not still:
            break
        found = cell.sequence(_front(part, still), state, _front(own, still))
        if found is NotImplemented:
            return NotImplemented
        output, state = found
        outputs.append(tree_map(lambda leaf: _filled(leaf, len(order)), output))
    finished.append(state)
    back = torch.empty_like(rows).scatter_(0, rows, torch.arange(len(order), device=device))
    if rest:
        outputs.append(_zeros(outputs[0], rest))
    output = tree_map(lambda leaf: leaf.index_select(1, back), joined(torch.cat, outputs))
    last = joined(torch.cat, [part for part in reversed(finished) if first_tensor(part).shape[0]])
    return output, tree_map(lambda leaf: leaf.index_select(0, back), last)


def _front(tree: Tree, rows: int) -> Tree:
    """The first rows of (time, batch, ...)."""
    return tree_map(lambda leaf: leaf[:, :rows], tree)


def _filled(output: Tensor, rows: int) -> Tensor:
    """Zeros for the rows that are finished."""
    missing = rows - output.shape[1]
    if not missing:
        return output
    return torch.cat([output, output.new_zeros(output.shape[0], missing, *output.shape[2:])], 1)
