"""One driver that runs any cell over time: lengths, resets, truncation, checkpoints, hoisting, compilation."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechanisms._base.validation import check_choice
from mechanisms.recurrent._doors import as_flags, as_lengths, check_given, check_inputs, check_noise
from mechanisms.recurrent._driver import Plan, has_kernel, run_kernel, run_loop, transformed
from mechanisms.recurrent._trees import Tree, first_tensor, shapes, tree_map
from mechanisms.recurrent.protocol import Cell
from mechanisms.recurrent.states import State, detach

# Fewer cuts than one in so many steps leave segments long enough for the fused path to pay.
SPARSE = 8


@dataclass
class ScanResult:
    """What a scan gives. It unpacks as `output, state = ...`, or `output, state, info = ...` when info was asked for.

    Attributes:
        output: outputs (time, batch, ...), in the structure of the cell's output.
        state: the state after the last (valid) step of each row.
        info: what the cell recorded, leaves (time, batch, ...); what grows with the steps is filled up with zeros.
            Cells with batch statistics record them in training whether asked or not.
        states: the state after each step, when `keep_states` was set.
        need_info: whether info was asked for.

    >>> output, state = ScanResult(output=1, state=2)
    """

    output: Tree
    state: State
    info: Tree = None
    states: list[State] | None = None
    need_info: bool = False

    def __iter__(self) -> Iterator[Any]:
        return iter((self.output, self.state, self.info) if self.need_info else (self.output, self.state))


def scan(
    cell: Cell,
    inputs: Tree,
    state: State | None = None,
    *,
    lengths: Any = None,
    reset: Any = None,
    reverse: bool = False,
    truncate: int | tuple[int, int] | None = None,
    checkpoint: int | bool | None = None,
    noise: Tree = None,
    generator: torch.Generator | None = None,
    hoist: int | None = None,
    backend: str = "auto",
    compile: bool | str = False,
    need_info: bool = False,
    keep_states: bool = False,
    twice_differentiable: bool = False,
) -> ScanResult:
    """Run a cell over a sequence.

    At each step, in this order: gradients are cut at a truncation boundary, rows are reset, the cell steps, rows that
    have ended are frozen.

    Args:
        cell: any cell of the protocol.
        inputs: (time, batch, size), or a tuple of such tensors for cells that take several.
        state: the state to start from, batch first; the cell's initial state by default.
        lengths: valid steps of each row, (batch,) integers between 0 and time. Outputs beyond are exactly 0, and the
            returned state is that after the last valid step. A tensor on a GPU costs one synchronisation.
        reset: (time, batch) booleans: "the input at t begins a new episode"; that row starts from its initial state.
            Flags beyond a row's length do nothing.
        reverse: whether to run from the last step of each row to its first; outputs stay in the input's order.
        truncate: k, or (k, first): gradients are cut before steps first, first + k, ...; first is k by default. This
            limits the gradient, not the memory: for that there is `scan_chunks`.
        checkpoint: keep nothing but the state every k steps and compute again in the backward pass; `True` stands for
            the square root of the number of steps.
        noise: the cell's noise, leaves (time, batch, ...), in place of a fresh draw.
        generator: where the noise comes from; it must live on the inputs' device. torch's own by default.
        hoist: how many steps to project at once, which bounds memory; by default all, when their projections take at
            most 64 MiB, else 64.
        backend: "eager" steps through the cell, "kernel" insists on its fused path, "auto" takes that where there is
            one and it applies (no info, no kept states, no checkpoints, few resets).
        compile: "step" compiles the step with torch.compile, "scan" the unrolled loop; both pay after some thousand
            updates only, and do not concern the fused path.
        need_info: whether to return what the cell records.
        keep_states: whether to return the state after each step.
        twice_differentiable: whether gradients of gradients will be taken; the fused path may not allow that.

    Raises:
        TypeError: integers as inputs, the state of another cell, info of a cell that records none.
        ValueError: shapes or options do not fit.

    >>> from mechanisms.recurrent.cells import LSTMCell
    >>> output, state = scan(LSTMCell(3, 4), torch.ones(5, 2, 3), lengths=[5, 2])
    >>> output.shape, bool((output[2:, 1] == 0).all())
    (torch.Size([5, 2, 4]), True)
    """
    check_inputs(cell, inputs, leading=2)
    steps, rows = first_tensor(inputs).shape[:2]
    device = first_tensor(inputs).device
    if steps == 0:
        raise ValueError(f"the input has no steps: {shapes(inputs)}; at least one is needed")
    check_options(backend, compile, checkpoint=checkpoint, hoist=hoist)
    if compile == "scan" and steps > 64:
        warnings.warn(
            f"compile='scan' unrolls all {steps} steps: 20 steps take 8 seconds to compile, 50 take 23, and it gains "
            "4 to 18 %; compile='step' does not grow with the number of steps",
            stacklevel=2,
        )
    if keep_states and (checkpoint or compile == "scan" or backend == "kernel"):
        raise ValueError(
            "keep_states=True needs the plain loop: leave out checkpoint, compile='scan', backend='kernel'"
        )
    if state is None:
        state = cell.initial_state(rows, device=device)
    else:
        check_given(cell, state, steps, rows)
    if noise is None:
        noise = cell.noise(steps, rows, generator=generator, device=device)
    else:
        check_noise(noise, steps, rows)
    valid = None if lengths is None else as_lengths(lengths, steps, rows, least=0)
    if valid is not None and min(valid, default=steps) == steps:
        valid = None
    flags, reset_at = _resets(reset, valid, steps, rows, device)
    if reverse:
        if reset is not None:
            raise ValueError(
                "reset with reverse=True: an episode's start is not known before its end; use reverse=False"
            )
        inputs = tree_map(_turned(valid, steps, device), inputs)
    if not cell.twice_differentiable and twice_differentiable:
        raise ValueError(f"{type(cell).__name__} declares that its gradients cannot be differentiated again")
    # Cells with batch statistics hand them out as info, for their running averages.
    asked = need_info or (cell.training and not cell.rows_independent)
    plan = Plan(
        steps,
        detach_at=boundaries(truncate, steps),
        reset_at=reset_at,
        reset=flags,
        lengths=valid,
        mark=bool(compile),
    )
    refusal = _no_kernel(cell, plan, backend, checkpoint, asked, keep_states, twice_differentiable)
    found = run_kernel(cell, inputs, state, noise, plan, checkpoint) if refusal is None else NotImplemented
    if found is NotImplemented:
        if backend == "kernel":
            refusal = refusal or "it does not take these types, devices or options"
            raise ValueError(f"backend='kernel': {type(cell).__name__} has no fused path here ({refusal}); use 'auto'")
        segment = None
        if checkpoint:
            segment = math.ceil(math.sqrt(steps)) if checkpoint is True else checkpoint
        output, state, info, states = run_loop(
            cell,
            inputs,
            state,
            noise,
            plan,
            segment=segment,
            hoist=hoist,
            compile=compile,
            need_info=asked,
            keep_states=keep_states,
        )
    else:
        (output, state), info, states = found, None, []
    if reverse:
        output = tree_map(_turned(valid, steps, device), output)
    return ScanResult(output, state, info, states if keep_states else None, need_info)


def scan_chunks(
    cell: Cell,
    inputs: Tree,
    state: State | None = None,
    *,
    size: int,
    lengths: Any = None,
    reset: Any = None,
    noise: Tree = None,
    **options: Any,
) -> Iterator[ScanResult]:
    """Truncated backpropagation that also bounds memory: `size` steps at a time, the state handed over detached.

    Call `backward` on each chunk's loss before the next chunk is asked for.

    Args:
        cell, inputs, state, lengths, reset, noise: as for `scan`. Without `noise` each chunk draws its own.
        size: steps of a chunk; the last may be shorter.
        options: the other options of `scan`, save `reverse`.

    Raises:
        ValueError: `size` is below 1, or `reverse` is set.

    >>> from mechanisms.recurrent.cells import LSTMCell
    >>> [len(chunk.output) for chunk in scan_chunks(LSTMCell(3, 4), torch.ones(5, 2, 3), size=2)]
    [2, 2, 1]
    """
    if size < 1:
        raise ValueError(f"size={size}: a chunk needs at least one step")
    if options.get("reverse"):
        raise ValueError("reverse=True needs the whole sequence; use scan")
    check_inputs(cell, inputs, leading=2)
    steps, rows = first_tensor(inputs).shape[:2]
    valid = None if lengths is None else as_lengths(lengths, steps, rows, least=0)
    flags = None if reset is None else as_flags(reset, "reset", (steps, rows), first_tensor(inputs).device)
    if noise is not None:
        check_noise(noise, steps, rows)
    for begin in range(0, steps, size):
        end = min(begin + size, steps)
        part = slice(begin, end)
        result = scan(
            cell,
            tree_map(lambda leaf, part=part: leaf[part], inputs),
            state,
            lengths=None if valid is None else [min(max(length - begin, 0), end - begin) for length in valid],
            reset=None if flags is None else flags[part],
            noise=None if noise is None else tree_map(lambda leaf, part=part: leaf[part], noise),
            **options,
        )
        yield result
        state = detach(result.state)


def _resets(
    reset: Any, lengths: list[int] | None, steps: int, rows: int, device: torch.device
) -> tuple[Tensor | None, frozenset[int]]:
    """The flags of valid steps, and the steps at which any is set: read once for all steps."""
    if reset is None:
        return None, frozenset()
    flags = as_flags(reset, "reset", (steps, rows), device)
    if lengths is not None:
        flags = flags & (torch.arange(steps, device=device).unsqueeze(1) < torch.tensor(lengths, device=device))
    return flags, frozenset(t for t, any_set in enumerate(flags.any(1).tolist()) if any_set)


def check_options(backend: str, compile: bool | str, **counts: int | bool | None) -> None:
    """What `scan` and those that call it later are asked to do.

    Raises:
        ValueError: an unknown name, or fewer steps than one.

    >>> check_options("auto", False, checkpoint=0)
    Traceback (most recent call last):
        ...
    ValueError: checkpoint=0: at least one step is needed
    """
    check_choice(backend, "backend", ("auto", "eager", "kernel"))
    if compile not in (False, "step", "scan"):
        raise ValueError(f"compile={compile!r}: it must be False, 'step' or 'scan'")
    for name, count in counts.items():
        if count is not None and count is not False and count < 1:
            raise ValueError(f"{name}={count}: at least one step is needed")


def boundaries(truncate: int | tuple[int, int] | None, steps: int) -> frozenset[int]:
    """The steps before which gradients are cut.

    Raises:
        ValueError: a segment shorter than one step, or a first cut before the first step.

    >>> sorted(boundaries((3, 2), steps=9))
    [2, 5, 8]
    """
    if truncate is None:
        return frozenset()
    every, first = truncate if isinstance(truncate, tuple) else (truncate, truncate)
    if every < 1 or first < 0:
        raise ValueError(f"truncate={truncate}: a segment needs at least one step, and the first cut is at 0 or later")
    return frozenset(range(first, steps, every))


def _turned(lengths: list[int] | None, steps: int, device: torch.device) -> Any:
    """A function that flips (time, batch, ...) within each row's own length; it undoes itself."""
    if lengths is None:
        return lambda leaf: leaf.flip(0)
    time = torch.arange(steps, device=device).unsqueeze(1)
    ends = torch.tensor(lengths, device=device)
    index = torch.where(time < ends, ends - 1 - time, time)

    def turn(leaf: Tensor) -> Tensor:
        return leaf.gather(0, index.view(*index.shape, *[1] * (leaf.dim() - 2)).expand_as(leaf))

    return turn


def _no_kernel(
    cell: Cell,
    plan: Plan,
    backend: str,
    checkpoint: int | bool | None,
    need_info: bool,
    keep_states: bool,
    twice_differentiable: bool,
) -> str | None:
    """Why the fused path is not taken; `None` when it may be tried."""
    if backend == "eager" or not has_kernel(cell):
        return "it defines no sequence()"
    reasons = {
        "info and batch statistics come from single steps": need_info,
        "kept states come from single steps": keep_states,
        "checkpoints go through single steps": bool(checkpoint) and not _recomputes(cell, plan),
        "gradients of gradients go through single steps": twice_differentiable,
        "a growing memory has one length for all rows": cell.growing and plan.lengths is not None,
        "batch statistics need equal lengths": not cell.rows_independent and plan.lengths is not None,
        "torch.func and torch.jit.trace go through single steps": transformed(),
        # Short segments lose more to calls than the fused path gains.
        "there are too many resets or cuts": backend == "auto" and len(plan.events - {0}) * SPARSE > plan.steps,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _recomputes(cell: Cell, plan: Plan) -> bool:
    """Whether the fused path has checkpoints of its own."""
    return bool(getattr(cell, "sequence_takes_checkpoint", False)) and plan.lengths is None
