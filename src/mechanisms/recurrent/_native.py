"""How Python talks to the C kernels: their structs, packed weights, ranges of rows for threads, sums of gradients.

Shapes: T steps, B rows, I inputs, H hidden units, G gates in the order of torch.
"""

import ctypes
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mechanisms._base.compiled import load_kernel

HERE = Path(__file__).parent
DEFINES = {torch.float32: ("-DREAL=float",), torch.float64: ("-DREAL=double", "-DDOUBLE")}
CHUNK = 1 << 21  # bytes of the gates' gradients that are held at once, so that they are still in the cache when used
WORK_PER_THREAD = 1 << 23  # multiplications below which a second thread costs more than it brings


class Struct(ctypes.Structure):
    """A struct of C whose pointers are set from tensors."""

    def point(self, **tensors: Tensor | None) -> None:
        """Set pointers; the caller keeps the tensors alive, and has made sure that they are contiguous."""
        for name, tensor in tensors.items():
            setattr(self, name, tensor.data_ptr() if tensor is not None else None)


def fields(kind: Any, *names: str) -> tuple[tuple[str, Any], ...]:
    """Fields of one type."""
    return tuple((name, kind) for name in names)


class SequenceJob(Struct):
    """`struct Sequence` of gates.h."""

    _fields_ = (
        *fields(ctypes.c_int64, "steps", "batch", "inputs", "hidden", "relu", "first_row", "end_row", "begin", "end"),
        *fields(ctypes.c_int64, "keeps_memory"),
        *fields(ctypes.c_double, "rate_h", "rate_c"),
        *fields(ctypes.c_void_p, "lengths", "keep_h", "keep_c", "x", "h0", "c0", "wx", "wh", "bias", "saved", "out"),
        *fields(ctypes.c_void_p, "c", "hn", "cn", "fed"),
        *fields(ctypes.c_int64, "out_step", "fed_row"),
        *fields(ctypes.c_void_p, "grad_out", "back", "grad_gates", "dh", "dc", "db"),
    )


def load_library(source: str, dtype: torch.dtype) -> ctypes.CDLL:
    """The kernels of a C file of this folder for one type of numbers.

    Raises:
        CannotCompile: there is no compiler here.
    """
    library = load_kernel(HERE / source, DEFINES[dtype])
    if library.pack.argtypes is None:
        integer, pointer = ctypes.c_int64, ctypes.c_void_p
        library.pack.argtypes = (pointer, integer, integer, integer, integer, pointer)
        library.pack_back.argtypes = (pointer, integer, integer, pointer)
    return library


class Packed(NamedTuple):
    """Weights of the gates as the forward kernels read them, and what goes with that."""

    wx: Tensor
    wh: Tensor
    bias: Tensor
    gates: int
    slots: int  # vectors of H that the backward pass gives for each step
    panels: int


def pack_gates(library: ctypes.CDLL, ih: Tensor, hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None) -> Packed:
    """Pack parameters of torch's layout."""
    ih, hh = ih.contiguous(), hh.contiguous()
    hidden, inputs = hh.shape[1], ih.shape[1]
    gates = hh.shape[0] // hidden
    width = library.lanes() * (4 if gates == 1 else 1)
    panels = -(-hidden // width)
    wx, wh = (hh.new_empty(panels * width * gates * size) for size in (inputs, hidden))
    library.pack(ih.data_ptr(), gates, hidden, inputs, width, wx.data_ptr())
    library.pack(hh.data_ptr(), gates, hidden, hidden, width, wh.data_ptr())
    slots = 4 if gates == 3 else gates
    bias = hh.new_zeros(panels * width * slots)
    if bias_ih is not None and bias_hh is not None:
        both = bias_ih + bias_hh
        if gates == 3:  # r and z add both biases; n has one inside and one outside of r's product
            both = torch.cat([both[: 2 * hidden], bias_ih[2 * hidden :], bias_hh[2 * hidden :]])
        library.pack(both.data_ptr(), slots, hidden, 1, width, bias.data_ptr())
    return Packed(wx, wh, bias, gates, slots, panels)


def pack_rows(library: ctypes.CDLL, weight: Tensor) -> Tensor:
    """A matrix (k, n) such that C multiplies rows of k numbers with it."""
    weight = weight.contiguous()
    k, n = weight.shape
    packed = weight.new_empty(k * -(-n // library.lanes()) * library.lanes())
    library.pack_back(weight.data_ptr(), k, n, packed.data_ptr())
    return packed


def activations(x: Tensor, packed: Packed, hidden: int, lanes: int) -> Tensor:
    """Room for what the backward pass needs of the gates."""
    steps, batch = x.shape[:2]
    if packed.gates == 1:
        return x.new_empty(steps, batch, hidden)
    return x.new_empty(steps, packed.panels, batch, 4, lanes)


class GateGradients:
    """Gradients of inputs and weights, added up from chunks of the gates' gradients by one product each.

    Args:
        needed: whether those of x, of `weight_ih` and of `weight_hh` are wanted.
        x: the inputs (T, B, I).
        ih, hh: the weights.
    """

    def __init__(self, needed: Sequence[bool], x: Tensor, ih: Tensor, hh: Tensor) -> None:
        self.x, self.ih, self.hidden = x, ih, hh.shape[1]
        self.gates = hh.shape[0] // self.hidden
        self.slots = 4 if self.gates == 3 else self.gates
        self.dx = torch.empty_like(x) if needed[0] else None
        self.ih_sum = torch.zeros_like(ih, memory_format=torch.contiguous_format) if needed[1] else None
        self.hh_sum = torch.zeros_like(hh, memory_format=torch.contiguous_format) if needed[2] else None

    def chunk(self) -> int:
        """How many steps to take at once."""
        size = self.x.shape[1] * self.slots * self.hidden * self.x.element_size()
        return max(1, min(self.x.shape[0], CHUNK // max(1, size)))

    def add(self, begin: int, end: int, d_gates: Tensor, first: Tensor, rest: Tensor) -> None:
        """Take in the steps from `begin` to `end`: the gates' gradients (end - begin or more, B, slots * H).

        Args:
            begin, end, d_gates: see above.
            first: what the cell was fed at `begin` (B, H).
            rest: the same at the later steps (end - begin - 1, B, H).
        """
        batch, inputs = self.x.shape[1:]
        rows = d_gates[: end - begin].view(-1, self.slots * self.hidden)
        to_input = rows[:, : self.gates * self.hidden]  # of a GRU: r, z and n; the rest, q, belongs to h
        if self.dx is not None:
            torch.mm(to_input, self.ih, out=self.dx[begin:end].view(-1, inputs))
        if self.ih_sum is not None:
            self.ih_sum.addmm_(to_input.t(), self.x[begin:end].reshape(-1, inputs))
        if self.hh_sum is not None:
            self._add_recurrent(rows[:batch], first)
            self._add_recurrent(rows[batch:], rest.reshape(-1, self.hidden))

    def _add_recurrent(self, rows: Tensor, h: Tensor) -> None:
        hidden, into = self.hidden, self.hh_sum
        if into is None:
            return
        if rows.shape[1] == into.shape[0]:
            into.addmm_(rows.t(), h)
            return
        into[: 2 * hidden].addmm_(rows[:, : 2 * hidden].t(), h)
        into[2 * hidden :].addmm_(rows[:, 3 * hidden :].t(), h)

    def biases(self, sums: Tensor, *, wanted: bool) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of the two biases from what the threads summed up (threads, slots, H)."""
        if not wanted:
            return None, None
        flat = sums.sum(0).view(-1)
        d_ih = flat[: self.gates * self.hidden]
        d_hh = d_ih.clone()
        if self.gates == 3:
            d_hh[2 * self.hidden :] = flat[3 * self.hidden :]
        return d_ih, d_hh


def refuse_second_derivatives() -> None:
    """To be called first in a backward pass by hand.

    Raises:
        RuntimeError: gradients of gradients are being recorded.
    """
    # Not once_differentiable: where the loss is linear in the output, that lets create_graph=True pass unnoticed.
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the fused kernel has no gradients of gradients (create_graph=True): step singly, with backend='eager' "
            "or scan(..., twice_differentiable=True)"
        )


def threads_for(steps: int, batch: int, work_per_row: int) -> int:
    """How many threads are worth it."""
    work = steps * batch * work_per_row
    return max(1, min(torch.get_num_threads(), batch, work // WORK_PER_THREAD))


def over_rows(run: Any, job: Struct, threads: int, point: Callable[[Any, int], None] | None = None) -> None:
    """Run a kernel on all rows, split between threads: C is called without Python's lock, and rows never meet.

    Args:
        run: the function of the library.
        job: its argument; every such struct begins with a `SequenceJob`.
        threads: how many.
        point: sets what each thread has to itself, sums that rows add up to.
    """
    parts = []
    for part in range(threads):
        own = type(job).from_buffer_copy(job)
        cell = SequenceJob.from_address(ctypes.addressof(own))
        cell.first_row, cell.end_row = cell.batch * part // threads, cell.batch * (part + 1) // threads
        if point is not None:
            point(own, part)
        parts.append(own)
    workers: list[threading.Thread] = []
    try:
        for own in parts[1:]:
            worker = threading.Thread(target=run, args=(ctypes.byref(own),))
            worker.start()
            workers.append(worker)
        run(ctypes.byref(parts[0]))
    finally:
        _wait_for(workers)


def _wait_for(workers: list[threading.Thread]) -> None:
    """Whatever has happened, Control-C included: they write to memory that is the caller's to free."""
    interrupt = None
    for worker in workers:
        while worker.is_alive():
            try:
                worker.join()
            except KeyboardInterrupt as error:
                interrupt = error
    if interrupt is not None:
        raise interrupt
