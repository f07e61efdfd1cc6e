"""Modular layers over whole sequences, on the CPU, in one call of C each way: RIMs, and stacks of them (BRIMs).

The same numbers as the steps of the cells. Keys and values of the input are made for all steps at once; the rest is in
the loop of `rims.c`. Its backward pass is written by hand: a module that lost a step has no gradient there (with the
defaults), so it takes no part; what entered the gates of those that won is gathered, module by module, and gradients of
weights are one product for each of many steps. Only those that are wanted are computed.

Shapes: T steps, B rows, n modules of d units, K active; H input heads with keys of dk and values of dv numbers; Hc heads
of the communication, keys of ck and values of cv numbers; S slots (the empty one not counted), G gates.
"""

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mechanisms.recurrent._native import (
    SequenceJob,
    Struct,
    fields,
    load_library,
    over_rows,
    refuse_second_derivatives,
    threads_for,
)

SOURCE = "rims.c"
INPUT = -1  # what a slot reads, when it is not a layer
GATHERED = 1 << 23  # bytes of gathered rows and gradients that are held at once in the backward pass
HOISTED = 1 << 26  # bytes of keys and values of the input that are held at once where nothing is kept
MOST = 512  # heads of all modules of a layer: C holds their scores on the stack


class SlotJob(Struct):
    """`struct Slot` of rims.h."""

    _fields_ = (*fields(ctypes.c_int64, "source", "size"), *fields(ctypes.c_void_p, "weight", "back", "kv", "grad"))


class LayerJob(Struct):
    """`struct Layer` of rims.h."""

    _fields_ = (
        *fields(ctypes.c_int64, "modules", "size", "active", "heads", "key", "value", "slots", "gru"),
        *fields(ctypes.c_int64, "comm", "comm_heads", "comm_key", "comm_value", "held", "blocked", "keep"),
        *fields(ctypes.c_double, "read_scale", "comm_scale"),
        ("slot", SlotJob * 2),
        *fields(ctypes.c_void_p, "query", "gates", "talk", "delta"),
        *fields(ctypes.c_void_p, "query_back", "gates_back", "talk_back", "delta_back", "bias", "delta_bias"),
        *fields(ctypes.c_void_p, "read_mask", "comm_mask", "h0", "c0", "h", "c", "alpha", "z", "u"),
        *fields(ctypes.c_void_p, "share", "y", "p", "chosen", "mask", "space", "q", "qkv", "list", "dh", "dc"),
        *fields(ctypes.c_int64, "span"),
        *fields(ctypes.c_void_p, "rows", "dz", "dq", "count", "dqkv", "dp", "sum_query", "sum_gates", "sum_bias"),
        *fields(ctypes.c_void_p, "sum_talk", "sum_delta", "sum_delta_bias"),
    )


class StackJob(Struct):
    """`struct Stack` of rims.h."""

    _fields_ = (("cell", SequenceJob), *fields(ctypes.c_int64, "part", "count"), ("layers", ctypes.c_void_p))


class LayerShape(NamedTuple):
    """Settings of a layer.

    Attributes:
        modules, size, active: n, d, K.
        heads, key, value: H, dk, dv; dk = 0 where all modules read all, without competition.
        gru: GRU modules, else LSTM.
        comm_heads, comm_key, comm_value: Hc, ck, cv; no heads where modules do not communicate.
        held: others see the old state of a module that lost, not its candidate.
        blocked: no gradient reaches the candidate of a module that lost.
        sources: what each slot reads, `INPUT` or a layer: below, its new state, above, that of the step before.
        read_scale, comm_scale: what dropout multiplies with where it keeps a number.
    """

    modules: int
    size: int
    active: int
    heads: int
    key: int
    value: int
    gru: bool
    comm_heads: int
    comm_key: int
    comm_value: int
    held: bool
    blocked: bool
    sources: tuple[int, ...]
    read_scale: float | int
    comm_scale: float | int

    @property
    def read(self) -> int:
        """Numbers that a module reads."""
        return self.heads * self.value

    @property
    def kv(self) -> int:
        """Numbers of all keys and values of a slot."""
        return self.heads * (self.key + self.value)

    @property
    def talk(self) -> int:
        """Numbers of a module's queries, keys and values of the communication."""
        return self.comm_heads * (2 * self.comm_key + self.comm_value)


class LayerTensors(NamedTuple):
    """Initial state and parameters of a layer; `None` where there is no such thing.

    Attributes:
        h, c: (B, n, d).
        query: (n, d, H dk).
        ih, hh: (n, H dv, G d) and (n, d, G d); gates i, f, g, o, or r, z, n.
        bias_ih, bias_hh: (n, G d); LSTM modules have the first alone.
        talk_query, talk_key, talk_value: (n, d, Hc ck) twice, (n, d, Hc cv).
        told, told_bias, gate, gate_bias: (d, Hc cv) and (d), twice, as `nn.Linear` has them.
    """

    h: Tensor
    c: Tensor | None
    query: Tensor | None
    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    talk_query: Tensor | None
    talk_key: Tensor | None
    talk_value: Tensor | None
    told: Tensor | None
    told_bias: Tensor | None
    gate: Tensor | None
    gate_bias: Tensor | None


OWN = len(LayerTensors._fields)
Slot = tuple[Tensor | None, Tensor]  # matrices of keys and of values


class Plan(NamedTuple):
    """What of a run carries no gradient.

    Attributes:
        shapes: of the layers, from the bottom.
        masks: for each layer what dropout keeps of the reads (T, B, n, H dv) and of the communication (T, B, n, d),
            bytes of 0 and 1, or `None`.
        lengths: steps of each row (B), int64, or `None`.
    """

    shapes: tuple[LayerShape, ...]
    masks: tuple[tuple[Tensor | None, Tensor | None], ...]
    lengths: Tensor | None


def run_stack(
    plan: Plan, inputs: Sequence[Tensor], layers: Sequence[LayerTensors], slots: Sequence[Sequence[Slot]]
) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor | None]]]:
    """Run a sequence.

    Returns:
        The states of the top layer (T, B, n d), which of its modules were active (T, B, n), and (h, c) of each layer
        after each row's last step.

    Args:
        plan: see `Plan`.
        inputs: (T, B, I) for each slot that reads the input, in the order of layers and slots.
        layers: see `LayerTensors`.
        slots: for each layer the keys' and values' matrices of each slot, (H dk, I) or `None`, and (H dv, I).
    """
    _check(plan, inputs, layers, slots)
    flat: list[Any] = [one.contiguous() for one in inputs]
    for layer, pairs in zip(layers, slots, strict=True):
        flat += [layer.h.contiguous(), None if layer.c is None else layer.c.contiguous(), *layer[2:]]
        flat += [matrix for pair in pairs for matrix in pair]
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in flat):
        output, mask, *states = _Stacked.apply(plan, *flat)
    else:
        output, mask, states = _Run(plan, flat).infer()
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
        run = _Run(plan, list(flat))
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
            run = _Run(ctx.plan, list(saved[: ctx.inputs]))
            output, *kept = saved[ctx.inputs :]
            return None, *run.backward(ctx.needs_input_grad[1:], output, kept, grads)


class _Space:
    """Room for many small things in one tensor."""

    def __init__(self, like: Tensor) -> None:
        self.like, self.places, self.total = like, {}, 0

    def add(self, job: Struct, name: str, count: int) -> None:
        self.places.setdefault(id(job), (job, []))[1].append((name, self.total))
        self.total += count

    def make(self, dtype: torch.dtype | None = None) -> Tensor:
        made = self.like.new_empty(self.total, dtype=dtype)
        self.point(made)
        return made

    def point(self, made: Tensor) -> None:
        base, size = made.data_ptr(), made.element_size()
        for job, names in self.places.values():
            for name, place in names:
                setattr(job, name, base + place * size)


class _Layer(NamedTuple):
    """A layer of a run."""

    shape: LayerShape
    own: LayerTensors
    slots: list[tuple[int, Tensor]]  # the place of its input among all, or -1; the matrix of keys and values
    at: int  # where its tensors begin among all
    gates: Tensor  # (n, H dv + d, 4 d): what meets [what is read, h]
    bias: Tensor  # (n, 4 d)


class _Run:
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
            pack.argtypes = (ctypes.c_void_p, *[ctypes.c_int64] * 6, ctypes.c_void_p)
            self.library.space_row.restype = ctypes.c_int64
        self.layers: list[_Layer] = []
        at, used = external, 0
        for shape in plan.shapes:
            own = LayerTensors(*flat[at : at + OWN])
            slots = []
            for place, source in enumerate(shape.sources):
                key, value = flat[at + OWN + 2 * place : at + OWN + 2 * place + 2]
                slots.append((used if source == INPUT else -1, value if key is None else torch.cat([key, value])))
                used += source == INPUT
            self.layers.append(_Layer(shape, own, slots, at, *_joined_gates(shape, own)))
            at += OWN + 2 * len(slots)
        self.flat = flat
        self.work = sum(
            2 * one.shape.modules * (one.shape.read + one.shape.size) * 4 * one.shape.size for one in self.layers
        )
        self.alive: list[Any] = []

    # --- forward ------------------------------------------------------------------------------------------------------

    def infer(self) -> tuple[Tensor, Tensor, list[Any]]:
        """Outputs, activity and last states, with keys and values of so many steps at a time as fit."""
        size = sum(layer.shape.kv for layer in self.layers for place, *_ in layer.slots if place >= 0)
        some = max(1, HOISTED // max(1, self.batch * size * self.like.element_size()))
        if some >= self.steps or self.plan.lengths is not None:
            return self.forward(keep=False)[:3]
        outputs, states = [], []
        flat = list(self.flat)
        for begin in range(0, self.steps, some):
            part = slice(begin, begin + some)
            flat[: len(self.inputs)] = [one[part] for one in self.inputs]
            masks = tuple(tuple(None if one is None else one[part] for one in pair) for pair in self.plan.masks)
            *found, states, _ = _Run(self.plan._replace(masks=masks), flat).forward(keep=False)
            outputs.append(found)
            for layer, h, c in zip(self.layers, states[::2], states[1::2], strict=True):
                flat[layer.at : layer.at + 2] = [h, c]
        output, mask = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        return output, mask, states

    def forward(self, *, keep: bool) -> tuple[Tensor, Tensor, list[Any], list[Tensor]]:
        """Outputs, the top layer's activity, last states, and what the backward pass needs."""
        shape = self.layers[-1].shape
        output = self.like.new_empty(self.steps, self.batch, shape.modules * shape.size)
        keys = [self._keys(layer, place) for layer in self.layers for place in range(len(layer.slots))]
        job, jobs, kept = self._jobs(output, keys, keep=keep)
        for layer, own in zip(self.layers, jobs, strict=True):
            self._pack_forward(layer, own)
        self._spaces(jobs)
        over_rows(self.library.stack_forward, job, threads_for(self.steps, self.batch, self.work))
        states: list[Tensor | None] = []
        for layer, own in zip(self.layers, jobs, strict=True):
            last = output if layer is self.layers[-1] else self._view(kept[0], own.h, (self.steps, *_state(layer, self)))
            states.append(last[-1].reshape(_state(layer, self)).clone())
            if layer.shape.gru:
                states.append(None)
            else:
                steps = self.steps if keep else 1
                states.append(self._view(kept[0], own.c, (steps, *_state(layer, self)))[-1].clone())
        top = self.layers[-1].shape
        mask = self._view(kept[2], jobs[-1].mask, (self.steps, self.batch, top.modules)).clone()
        self.alive.clear()
        return output, mask, states, [*kept, *(one for one in keys if one is not None)] if keep else []

    def _keys(self, layer: _Layer, place: int) -> Tensor | None:
        """Keys and values of the input at all steps; `None` where a slot reads a layer."""
        source, matrix = layer.slots[place]
        if source < 0:
            return None
        x = self.inputs[source]
        return torch.mm(x.view(-1, x.shape[-1]), matrix.t())

    def _jobs(self, output: Tensor, keys: list[Tensor | None], *, keep: bool) -> tuple[StackJob, Any, list[Tensor]]:
        """The structs of C, and room for what a step makes, of all steps or of one."""
        jobs = (LayerJob * len(self.layers))()
        reals, small, bytes_ = _Space(self.like), _Space(self.like), _Space(self.like)
        rows = self.batch * (self.steps if keep else 1)
        given = iter(keys)
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
                slot, made = job.slot[place], next(given)
                slot.source, slot.size = shape.sources[place], own[1].shape[1]
                if made is None:
                    reals.add(slot, "kv", rows * shape.kv)
                else:
                    slot.kv = made.data_ptr()
                self.alive.append(slot)  # so that no other takes its id
        kept = [reals.make(), small.make(torch.int32), bytes_.make(torch.uint8)]
        self.places = reals, small, bytes_
        self.alive += [jobs, kept, output, keys]
        job = StackJob(count=len(self.layers), layers=ctypes.addressof(jobs))
        job.cell.steps, job.cell.batch, job.cell.end = self.steps, self.batch, self.steps
        job.cell.point(lengths=self.plan.lengths)
        return job, jobs, kept

    def _spaces(self, jobs: Any) -> None:
        """Room that a step uses and leaves."""
        reals, lists = _Space(self.like), _Space(self.like)
        for layer, job in zip(self.layers, jobs, strict=True):
            shape = layer.shape
            reals.add(job, "space", self.batch * self.library.space_row(ctypes.byref(job)))
            reals.add(job, "q", self.batch * shape.modules * shape.heads * shape.key)
            reals.add(job, "qkv", self.batch * shape.modules * shape.talk)
            lists.add(job, "list", self.batch)
        self.alive += [reals.make(), lists.make(torch.int32)]

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

    def _pack_forward(self, layer: _Layer, job: LayerJob) -> None:
        if layer.own.query is not None:
            job.point(query=self._packed(layer.own.query))
        job.point(gates=self._packed(layer.gates), bias=layer.bias)
        if job.comm:
            talk, delta, bias = _talk(layer.own), _delta(layer.own), _delta_bias(layer.own)
            # The linear layers act as y = x W^T, so that the transposed is what is multiplied with.
            job.point(talk=self._packed(talk), delta=self._packed(delta, back=True), delta_bias=bias)
            self.alive.append(bias)
        for place, (source, matrix) in enumerate(layer.slots):
            if source < 0:
                job.slot[place].point(weight=self._packed(matrix, back=True))

    def _pack_backward(self, layer: _Layer, job: LayerJob) -> None:
        if layer.own.query is not None:
            job.point(query_back=self._packed(layer.own.query, back=True))
        job.point(gates_back=self._packed(layer.gates, back=True))
        if job.comm:
            job.point(talk_back=self._packed(_talk(layer.own), back=True), delta_back=self._packed(_delta(layer.own)))
        for place, (source, matrix) in enumerate(layer.slots):
            if source < 0:
                job.slot[place].point(back=self._packed(matrix))

    def _view(self, room: Tensor, pointer: int, shape: tuple[int, ...]) -> Tensor:
        """A part of a `_Space` by where it lies."""
        size = 1
        for one in shape:
            size *= one
        begin = (pointer - room.data_ptr()) // room.element_size()
        return room[begin : begin + size].view(shape)

    # --- backward -----------------------------------------------------------------------------------------------------

    def backward(
        self, needed: Sequence[bool], output: Tensor, kept: list[Tensor], grads: Sequence[Any]
    ) -> Iterator[Tensor | None]:
        """Gradients of all that was given, where they are needed."""
        steps, batch = self.steps, self.batch
        given = iter(kept[3:])
        keys = [next(given) if place >= 0 else None for layer in self.layers for place, *_ in layer.slots]
        job, jobs, room = self._jobs(output, keys, keep=True)
        for space, made in zip(self.places, kept[:3], strict=True):
            space.point(made)
        del room
        self._spaces(jobs)
        threads = threads_for(steps, batch, self.work)
        grad_out = None if grads[0] is None else grads[0].contiguous()
        job.cell.point(grad_out=grad_out)
        row = sum(
            one.shape.modules * (one.shape.read + 5 * one.shape.size + one.shape.heads * one.shape.key)
            for one in self.layers
        )
        span = max(1, min(steps, GATHERED // max(1, batch * row * self.like.element_size())))
        passes = [
            _LayerBackward(self, place, layer, own, needed, span, grads[2 + 2 * place : 4 + 2 * place], threads)
            for place, (layer, own) in enumerate(zip(self.layers, jobs, strict=True))
        ]
        for end in range(steps, 0, -span):
            job.cell.begin, job.cell.end = max(0, end - span), end
            over_rows(self.library.stack_backward, job, threads, lambda own, part: setattr(own, "part", part))
        found: list[Tensor | None] = [None] * len(self.flat)
        for one in passes:
            one.finish(found, needed, output, kept[0], passes)
        self.alive.clear()
        return iter(found)


class _LayerBackward:
    """Gradients of one layer: room for those of a chunk of steps, and their sums."""

    def __init__(
        self,
        run: _Run,
        place: int,
        layer: _Layer,
        job: LayerJob,
        needed: Sequence[bool],
        span: int,
        grads: Sequence[Any],
        parts: int,
    ) -> None:
        self.run, self.place, self.layer, self.job = run, place, layer, job
        shape, like, batch = layer.shape, run.like, run.batch
        self.wants = dict(zip(LayerTensors._fields, needed[layer.at : layer.at + OWN], strict=True))
        n, d, fed, keys = shape.modules, shape.size, shape.read + shape.size, shape.heads * shape.key
        told = shape.comm_heads * shape.comm_value
        sizes = {
            "query": (("query",), (n, d, keys)),
            "gates": (("ih", "hh"), (n, fed, 4 * d)),
            "bias": (("bias_ih", "bias_hh"), (n, 4 * d)),
            "talk": (("talk_query", "talk_key", "talk_value"), (n, d, shape.talk)),
            "delta": (("told", "gate"), (told, 2 * d)),
            "delta_bias": (("told_bias", "gate_bias"), (2 * d,)),
        }
        self.sums = {
            name: like.new_zeros(parts, *size)
            for name, (names, size) in sizes.items()
            if any(self.wants[one] for one in names)
        }
        job.point(**{f"sum_{name}": one for name, one in self.sums.items()})
        self.dh, self.dc = (
            torch.zeros_like(layer.own.h) if grad is None else grad.clone(memory_format=torch.contiguous_format)
            for grad in grads
        )
        self.count = torch.zeros(parts, n, dtype=torch.int64)
        self.slot_grads = [like.new_empty(run.steps * batch, shape.kv) for _ in layer.slots]
        job.point(dh=self.dh, dc=self.dc, count=self.count)
        for slot, grad in enumerate(self.slot_grads):
            job.slot[slot].point(grad=grad)
        room, rows = _Space(like), n * batch * span
        if "gates" in self.sums or "query" in self.sums:
            room.add(job, "rows", rows * fed)
        room.add(job, "dz", rows * 4 * d)
        room.add(job, "dq", rows * keys)
        room.add(job, "dqkv", rows * shape.talk)
        room.add(job, "dp", span * batch * shape.active * 2 * d + run.lanes)  # whole vectors are read, also at the end
        job.span, self.room = span, room.make()
        run._pack_forward(layer, job)
        run._pack_backward(layer, job)

    def finish(
        self,
        found: list[Tensor | None],
        needed: Sequence[bool],
        output: Tensor,
        kept: Tensor,
        passes: list["_LayerBackward"],
    ) -> None:
        """Put the layer's gradients in their places."""
        layer, run = self.layer, self.run
        shape, d = layer.shape, layer.shape.size
        sums = {name: one[0] if len(one) == 1 else one.sum(0) for name, one in self.sums.items()}
        gradients: dict[str, Tensor | None] = {"h": self.dh, "c": self.dc, "query": sums.get("query")}
        if "gates" in sums:
            read, own = sums["gates"].split([shape.read, d], 1)
            # A GRU's n has columns of its own for what h gives.
            gradients["ih"] = read[..., : 3 * d] if shape.gru else read
            gradients["hh"] = torch.cat([own[..., : 2 * d], own[..., 3 * d :]], 2) if shape.gru else own
        if "bias" in sums:
            bias = sums["bias"]
            gradients["bias_ih"] = bias[:, : 3 * d] if shape.gru else bias
            gradients["bias_hh"] = torch.cat([bias[:, : 2 * d], bias[:, 3 * d :]], 1) if shape.gru else None
        if "talk" in sums:
            ck, cv = shape.comm_heads * shape.comm_key, shape.comm_heads * shape.comm_value
            parts = sums["talk"].split([ck, ck, cv], 2)
            gradients |= zip(("talk_query", "talk_key", "talk_value"), parts, strict=True)
        if "delta" in sums:
            gradients["told"], gradients["gate"] = sums["delta"].t().split(d)
        if "delta_bias" in sums:
            gradients["told_bias"], gradients["gate_bias"] = sums["delta_bias"].split(d)
        for place, name in enumerate(LayerTensors._fields):
            if self.wants[name]:
                found[layer.at + place] = gradients.get(name)
        split = shape.heads * shape.key
        for place, (source, matrix) in enumerate(layer.slots):
            grad, at = self.slot_grads[place], layer.at + OWN + 2 * place
            for offset, part in ((0, grad[:, :split]), (1, grad[:, split:])):
                if needed[at + offset]:
                    found[at + offset] = self._fed(place, part, output, kept, passes)
            if source >= 0 and needed[source]:
                x = run.inputs[source]
                found[source] = torch.mm(grad, matrix).view_as(x)

    def _fed(
        self, place: int, grad: Tensor, output: Tensor, kept: Tensor, passes: list["_LayerBackward"]
    ) -> Tensor:
        """Gradients of all steps, transposed, times what a slot reads."""
        source, run = self.layer.slots[place][0], self.run
        if source >= 0:
            x = run.inputs[source]
            return torch.mm(grad.t(), x.view(-1, x.shape[-1]))
        other = self.layer.shape.sources[place]
        layer, rows = run.layers[other], run.steps * run.batch
        size = layer.shape.modules * layer.shape.size
        top = layer is run.layers[-1]
        h = output.view(rows, size) if top else run._view(kept, passes[other].job.h, (rows, size))
        if other < self.place:
            return torch.mm(grad.t(), h)
        # The layer above is read as it was a step before.
        result = torch.mm(grad[: run.batch].t(), layer.own.h.view(run.batch, size))
        return result.addmm_(grad[run.batch :].t(), h[: rows - run.batch])


def _state(layer: _Layer, run: _Run) -> tuple[int, int, int]:
    return run.batch, layer.shape.modules, layer.shape.size


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
    assert own.talk_query is not None and own.talk_key is not None and own.talk_value is not None
    return torch.cat([own.talk_query, own.talk_key, own.talk_value], 2)


def _delta(own: LayerTensors) -> Tensor:
    assert own.told is not None and own.gate is not None
    return torch.cat([own.told, own.gate])


def _delta_bias(own: LayerTensors) -> Tensor:
    assert own.told_bias is not None and own.gate_bias is not None
    return torch.cat([own.told_bias, own.gate_bias])
