"""What the kernel of modular layers is told: its structs, the settings and tensors of layers, and room for its work.

Shapes: T steps, B rows, n modules of d units, K active; H heads of the input attention with keys of dk and values of dv
numbers, Hc heads of the communication with keys of ck and values of cv numbers; G gates.
"""

import ctypes
import math
from typing import NamedTuple

from torch import Tensor

from mechanisms.recurrent._native import SequenceJob, Struct, fields

INPUT = -1  # what a slot reads, when it is not a layer


class SlotJob(Struct):
    """`struct Slot` of rims.h."""

    _fields_ = (
        *fields(ctypes.c_int64, "source", "size"),
        *fields(ctypes.c_void_p, "weight", "back", "x", "kv", "grad", "grad_x", "sum"),
    )


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
    masks: tuple[tuple[Tensor | None, ...], ...]
    lengths: Tensor | None


class Space:
    """Room for many small things in one tensor; pointers of structs to them."""

    def __init__(self) -> None:
        self.places: list[tuple[Struct, str, int]] = []
        self.total = 0

    def add(self, job: Struct, name: str, count: int) -> None:
        """Ask for so many numbers, to which a field will point."""
        self.places.append((job, name, self.total))
        self.total += count

    def point(self, made: Tensor) -> Tensor:
        """Set all pointers to their places in a tensor of `total` numbers."""
        base, size = made.data_ptr(), made.element_size()
        for job, name, place in self.places:
            setattr(job, name, base + place * size)
        return made


def view(room: Tensor, pointer: int, shape: tuple[int, ...]) -> Tensor:
    """A part of a `Space` by where it lies."""
    begin = (pointer - room.data_ptr()) // room.element_size()
    return room[begin : begin + math.prod(shape)].view(shape)


class RunLayer(NamedTuple):
    """A layer of a run."""

    shape: LayerShape
    own: LayerTensors
    slots: list[tuple[int, Tensor]]  # the place of its input among all, or -1; the matrix of keys and values
    at: int  # where its tensors begin among all
    gates: Tensor  # (n, H dv + d, 4 d): what meets [what is read, h]
    bias: Tensor  # (n, 4 d)
