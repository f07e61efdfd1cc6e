"""Modular layers over whole sequences, on the CPU, in one call of C each way: RIMs, and stacks of them (BRIMs).

The same numbers as the steps of the cells up to rounding, which decides where modules compete nearly alike. Keys and
values of the input are made for many steps at once; the rest is in the loop of `rims.c`. Its backward pass is written
by hand: a module that lost a step has no gradient there (with the defaults), so it takes no part; what entered the
gates of those that won is gathered, module by module, and multiplied with the gates' gradients for many steps at once.
Gradients of weights that are frozen are not computed.

Shapes as in `_rim_jobs`.
"""

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mechanisms.recurrent._native import load_library, over_rows, refuse_second_derivatives, threads_for
from mechanisms.recurrent._rim_gradients import LayerGradients
from mechanisms.recurrent._rim_jobs import (
    INPUT,
    OWN,
    LayerJob,
    LayerShape,
    LayerTensors,
    Plan,
    RunLayer,
    Slot,
    Space,
    StackJob,
    view,
)
from mechanisms.recurrent._spare_pages import empty

SOURCE = "rims.c"
GATHERED = 1 << 24  # bytes of gathered rows and gradients that are held at once in the backward pass
AHEAD = 64  # as in rims.h: steps whose keys and values of the input are made at once


def run_stack(
    plan: Plan, inputs: Sequence[Tensor], layers: Sequence[LayerTensors], slots: Sequence[Sequence[Slot]]
) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor | None]]]:
    """Run a sequence: the states of the top layer (T, B, n d), which of its modules were active (T, B, n), and (h, c)
    of each layer after each row's last step.

    Args:
        plan: see `Plan`.
        inputs: (T, B, I) for each slot that reads the input, in the order of layers and slots.
        layers: see `LayerTensors`.
        slots: for each layer the keys' and values' matrices of each slot, (H dk, I) or `None`, and (H dv, I).
    """
    if torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return run_stack(plan, inputs, layers, slots)
    _check(plan, inputs, layers, slots)
    flat: list[Any] = [one.contiguous() for one in inputs]
    for layer, pairs in zip(layers, slots, strict=True):
        flat += [layer.h.contiguous(), None if layer.c is None else layer.c.contiguous(), *layer[2:]]
        flat += [matrix for pair in pairs for matrix in pair]
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in flat):
        output, mask, *states = _Stacked.apply(plan, *flat)
    else:
        output, mask, states = Run(plan, flat).forward(keep=False)[:3]
    return output, mask, list(zip(states[::2], states[1::2], strict=True))


def _check(
    plan: Plan, inputs: Sequence[Tensor], layers: Sequence[LayerTensors], slots: Sequence[Sequence[Slot]]
) -> None:
    """C reads what shapes say, so they must be true.

    Raises:
        ValueError: one is not.
    """
    steps, batch = inputs[0].shape[:2]
    expected: list[tuple[str, Any, tuple[int, ...]]] = [("lengths", plan.lengths, (batch,))]
    given = iter(inputs)
    for place, (shape, layer, pairs) in enumerate(zip(plan.shapes, layers, slots, strict=True)):
        n, d, gates = shape.modules, shape.size, (3 if shape.gru else 4)
        told = shape.comm_heads * shape.comm_value
        sizes = (
            *((batch, n, d),) * 2,
            (n, d, shape.heads * shape.key),
            *((n, shape.read, gates * d), (n, d, gates * d), (n, gates * d), (n, gates * d)),
            *((n, d, shape.comm_heads * shape.comm_key),) * 2,
            *((n, d, told), (d, told), (d,), (d, told), (d,)),
        )
        expected += [(name, one, size) for name, one, size in zip(layer._fields, layer, sizes, strict=True)]
        read_mask, comm_mask = plan.masks[place]
        expected += [("read mask", read_mask, (steps, batch, n, shape.read)), ("mask", comm_mask, (steps, batch, n, d))]
        for source, (key, value) in zip(shape.sources, pairs, strict=True):
            if source == INPUT:
                one = next(given)
                size = one.shape[-1]
                expected.append(("input", one, (steps, batch, size)))
            else:
                other = plan.shapes[source]
                size = other.modules * other.size
            expected += [("key", key, (shape.heads * shape.key, size)), ("value", value, (shape.read, size))]
    for name, one, size in expected:
        if one is not None and tuple(one.shape) != size:
            raise ValueError(f"{name} has shape {tuple(one.shape)}; here it must be {size}")


class _Stacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, *flat: Any) -> Any:
        run = Run(plan, list(flat))
        output, mask, states, kept = run.forward(keep=True)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(mask)
        ctx.plan, ctx.inputs = plan, len(flat)
        ctx.save_for_backward(*flat, output, *kept)
        return output, mask, *states

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        refuse_second_derivatives()
        with torch.autocast("cpu", enabled=False):
            saved = ctx.saved_tensors
            run = Run(ctx.plan, list(saved[: ctx.inputs]))
            output, *kept = saved[ctx.inputs :]
            return None, *run.backward(ctx.needs_input_grad[1:], output, kept, grads)


class Run:
    """A sequence with its tensors, for either pass."""

    def __init__(self, plan: Plan, flat: list[Any]) -> None:
        self.plan = plan
        external = sum(source == INPUT for shape in plan.shapes for source in shape.sources)
        self.inputs: list[Tensor] = flat[:external]
        self.like = self.inputs[0]
        self.steps, self.batch = self.like.shape[:2]
        self.library = load_library(SOURCE, self.like.dtype)
        self.lanes = self.library.lanes()
        pack = self.library.pack_modules
        if pack.argtypes is None:
            self.library.space_row.restype = ctypes.c_int64
            pack.argtypes = (ctypes.c_void_p, *[ctypes.c_int64] * 6, ctypes.c_void_p)  # last: other threads look at it
        self.layers: list[RunLayer] = []
        at, used = external, 0
        for shape in plan.shapes:
            own = LayerTensors(*flat[at : at + OWN])
            slots = []
            for place, source in enumerate(shape.sources):
                key, value = flat[at + OWN + 2 * place : at + OWN + 2 * place + 2]
                slots.append((used if source == INPUT else -1, value if key is None else torch.cat([key, value])))
                used += source == INPUT
            self.layers.append(RunLayer(shape, own, slots, at, *_joined_gates(shape, own)))
            at += OWN + 2 * len(slots)
        self.flat = flat
        self.work = sum(
            2 * one.shape.modules * (one.shape.read + one.shape.size) * 4 * one.shape.size for one in self.layers
        )
        self.alive: list[Any] = []

    # --- forward ------------------------------------------------------------------------------------------------------

    def forward(self, *, keep: bool) -> tuple[Tensor, Tensor, list[Any], list[Tensor]]:
        """Outputs, the top layer's activity, last states, and what the backward pass needs."""
        shape = self.layers[-1].shape
        output = self.like.new_empty(self.steps, self.batch, shape.modules * shape.size)
        job, jobs, kept = self._jobs(output, keep=keep)
        for layer, own in zip(self.layers, jobs, strict=True):
            self.pack_forward(layer, own)
        self._spaces(jobs)
        over_rows(self.library.stack_forward, job, threads_for(self.steps, self.batch, self.work))
        states: list[Tensor | None] = []
        for layer, own in zip(self.layers, jobs, strict=True):
            one = self.batch, layer.shape.modules, layer.shape.size
            last = output[-1] if layer is self.layers[-1] else view(kept[0], own.h, (self.steps, *one))[-1]
            states.append(last.reshape(one).clone())
            kept_steps = self.steps if keep else 1
            states.append(None if layer.shape.gru else view(kept[0], own.c, (kept_steps, *one))[-1].clone())
        mask = view(kept[2], jobs[-1].mask, (self.steps, self.batch, shape.modules)).clone()
        self.alive.clear()
        return output, mask, states, kept if keep else []

    def _jobs(
        self, output: Tensor, *, keep: bool, kept: list[Tensor] | None = None
    ) -> tuple[StackJob, Any, list[Tensor]]:
        """The structs of C, and what a step makes: room for it, of all steps or of one, or where it has been kept."""
        jobs = (LayerJob * len(self.layers))()
        reals, small, bytes_ = Space(), Space(), Space()
        rows = self.batch * (self.steps if keep else 1)
        for layer, job, masks in zip(self.layers, jobs, self.plan.masks, strict=True):
            shape = layer.shape
            for name, value in shape._asdict().items():
                if name != "sources":
                    setattr(job, name, value)
            n, d, active = shape.modules, shape.size, shape.active
            job.slots, job.comm, job.keep = len(layer.slots), shape.comm_heads > 0, keep
            job.point(read_mask=masks[0], comm_mask=masks[1], h0=layer.own.h, c0=layer.own.c)
            if layer is self.layers[-1]:
                job.h = output.data_ptr()
            else:
                reals.add(job, "h", self.steps * self.batch * n * d)
            if not shape.gru:
                reals.add(job, "c", rows * n * d)
            reals.add(job, "alpha", rows * job.slots * n * shape.heads)
            reals.add(job, "z", rows * n * 4 * d)
            reals.add(job, "u", rows * n * d)
            if job.comm:
                reals.add(job, "share", rows * active * shape.comm_heads * n)
                reals.add(job, "y", rows * active * shape.comm_heads * shape.comm_value)
                reals.add(job, "p", rows * active * 2 * d)
            small.add(job, "chosen", rows * active)
            bytes_.add(job, "mask", self.steps * self.batch * n)
            for place, own in enumerate(layer.slots):
                slot, ahead = job.slot[place], rows if own[0] < 0 or keep else self.batch * AHEAD
                slot.source, slot.size = shape.sources[place], own[1].shape[1]
                slot.point(x=self.inputs[own[0]] if own[0] >= 0 else None)
                reals.add(slot, "kv", ahead * shape.kv)
        if kept is None:
            kinds = (reals, self.like.dtype), (small, torch.int32), (bytes_, torch.uint8)
            kept = [empty(space.total, kind) for space, kind in kinds]
        for space, made in zip((reals, small, bytes_), kept, strict=True):
            space.point(made)
        self.alive += [jobs, kept, output]
        job = StackJob(count=len(self.layers), layers=ctypes.addressof(jobs))
        job.cell.steps, job.cell.batch, job.cell.end = self.steps, self.batch, self.steps
        job.cell.point(lengths=self.plan.lengths)
        return job, jobs, kept

    def _spaces(self, jobs: Any) -> None:
        """Room that a step uses and leaves."""
        reals, lists = Space(), Space()
        for layer, job in zip(self.layers, jobs, strict=True):
            shape = layer.shape
            reals.add(job, "space", self.batch * self.library.space_row(ctypes.byref(job)))
            reals.add(job, "q", self.batch * shape.modules * shape.heads * shape.key)
            reals.add(job, "qkv", self.batch * shape.modules * shape.talk)
            lists.add(job, "list", self.batch)
        self.alive.append(reals.point(self.like.new_empty(reals.total)))
        self.alive.append(lists.point(self.like.new_empty(lists.total, dtype=torch.int32)))

    def _packed(self, weight: Tensor, *, back: bool = False) -> Tensor:
        """Matrices of the modules as C multiplies rows with them; `back`, with their transposes."""
        weight = weight.contiguous()
        k, columns = weight.shape[-2:]
        modules = weight.numel() // max(1, k * columns)
        row, column = (1, columns) if back else (columns, 1)
        if back:
            k, columns = columns, k
        packed = weight.new_empty(modules * k * -(-columns // self.lanes) * self.lanes)
        pointer = weight.data_ptr()
        self.library.pack_modules(pointer, modules, k, columns, k * columns, row, column, packed.data_ptr())
        self.alive.append(packed)
        return packed

    def pack_forward(self, layer: RunLayer, job: LayerJob) -> None:
        """The matrices of the forward pass; some serve in the backward pass too."""
        if layer.own.query is not None:
            job.point(query=self._packed(layer.own.query))
        job.point(gates=self._packed(layer.gates), bias=layer.bias)
        if job.comm:
            talk, delta = _talk(layer.own), _delta(layer.own)
            bias = torch.cat(_there(layer.own.told_bias, layer.own.gate_bias))
            # The linear layers act as y = x W^T, so that the transposed is what is multiplied with.
            job.point(talk=self._packed(talk), delta=self._packed(delta, back=True), delta_bias=bias)
            self.alive.append(bias)
        for place, (_, matrix) in enumerate(layer.slots):
            job.slot[place].point(weight=self._packed(matrix, back=True))

    def pack_backward(self, layer: RunLayer, job: LayerJob) -> None:
        """Their transposes."""
        if layer.own.query is not None:
            job.point(query_back=self._packed(layer.own.query, back=True))
        job.point(gates_back=self._packed(layer.gates, back=True))
        if job.comm:
            job.point(talk_back=self._packed(_talk(layer.own), back=True), delta_back=self._packed(_delta(layer.own)))
        for place, (_, matrix) in enumerate(layer.slots):
            job.slot[place].point(back=self._packed(matrix))

    # --- backward -----------------------------------------------------------------------------------------------------

    def backward(
        self, needed: Sequence[bool], output: Tensor, kept: list[Tensor], grads: Sequence[Any]
    ) -> Iterator[Tensor | None]:
        """Gradients of all that was given, where they are needed."""
        steps, batch = self.steps, self.batch
        job, jobs, _ = self._jobs(output, keep=True, kept=kept)
        self._spaces(jobs)
        threads = threads_for(steps, batch, self.work)
        grad_out = None if grads[0] is None else grads[0].contiguous()
        job.cell.point(grad_out=grad_out)
        row = sum(
            shape.modules * (shape.read + 5 * shape.size + shape.heads * shape.key + shape.talk)
            + len(shape.sources) * shape.kv
            for shape in self.plan.shapes
        )
        span = max(1, min(steps, GATHERED // max(1, batch * row * self.like.element_size())))
        passes = [
            LayerGradients(self, layer, own, needed, span, grads[2 + 2 * place : 4 + 2 * place], threads)
            for place, (layer, own) in enumerate(zip(self.layers, jobs, strict=True))
        ]
        for end in range(steps, 0, -span):
            job.cell.begin, job.cell.end = max(0, end - span), end
            over_rows(self.library.stack_backward, job, threads, lambda own, part: setattr(own, "part", part))
        found: list[Tensor | None] = [None] * len(self.flat)
        for one in passes:
            one.finish(found)
        self.alive.clear()
        return iter(found)


def _joined_gates(shape: LayerShape, own: LayerTensors) -> tuple[Tensor, Tensor]:
    """One matrix for what is read beside h, four gates wide.

    A GRU's n adds what is read and r times what h gives, so that these have columns of their own: r, z, n, and h's n.
    """
    n, d = shape.modules, shape.size
    like = own.ih
    if not shape.gru:
        bias = own.bias_ih if own.bias_ih is not None else like.new_zeros(n, 4 * d)
        return torch.cat([own.ih, own.hh], 1), bias.contiguous()
    gates = like.new_zeros(n, shape.read + d, 4 * d)
    gates[:, : shape.read, : 3 * d] = own.ih
    gates[:, shape.read :, : 2 * d] = own.hh[:, :, : 2 * d]
    gates[:, shape.read :, 3 * d :] = own.hh[:, :, 2 * d :]
    bias = like.new_zeros(n, 4 * d)
    if own.bias_ih is not None:
        bias[:, : 3 * d] += own.bias_ih
    if own.bias_hh is not None:
        bias[:, : 2 * d] += own.bias_hh[:, : 2 * d]
        bias[:, 3 * d :] += own.bias_hh[:, 2 * d :]
    return gates, bias


def _talk(own: LayerTensors) -> Tensor:
    """What a module asks and tells, as one matrix (n, d, ...)."""
    return torch.cat(_there(own.talk_query, own.talk_key, own.talk_value), 2)


def _delta(own: LayerTensors) -> Tensor:
    """What modules make of what they hear, beside its gate: (2 d, Hc cv)."""
    return torch.cat(_there(own.told, own.gate))


def _there(*parts: Tensor | None) -> list[Tensor]:
    return [part for part in parts if part is not None]
