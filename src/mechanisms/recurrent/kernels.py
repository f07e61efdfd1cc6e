"""Whole sequences of an LSTM, a GRU or a plain network with Zoneout, on the CPU, in one call of C each way.

The kernels of `kernels.c` are built when they are first used (a second or two, once per machine) and never needed:
where there is no compiler, on other devices and types, `unavailable` says why, and the loop over single steps gives the
same numbers. A kept unit is one whose mask is set (or, in part, by the rate):

    h_t = keep_h h_{t-1} + (1 - keep_h) h̃_t,    c_t = keep_c c_{t-1} + (1 - keep_c) c̃_t,    h̃_t from c̃_t

The backward pass is written by hand and goes through the steps from the last to the first; it keeps the activations of
the gates, c and h, and recomputes tanh c̃. Gradients of weights are matrix products over many steps at once. Gradients
of gradients are refused.

Shapes: T steps, B rows, I inputs, H hidden units, G gates in the order of torch (i, f, g, o; r, z, n; one).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mechanisms._base.compiled import CannotCompile
from mechanisms.recurrent._driver import transformed
from mechanisms.recurrent._native import (
    DEFINES,
    GateGradients,
    SequenceJob,
    activations,
    load_library,
    over_rows,
    pack_gates,
    pack_rows,
    refuse_second_derivatives,
    threads_for,
)

SOURCE = "kernels.c"


class Weights(NamedTuple):
    """Parameters of a cell as torch lays them out: (G * H, I), (G * H, H), (G * H) or `None` twice.

    >>> Weights(torch.zeros(16, 3), torch.zeros(16, 4), None, None).ih.shape
    torch.Size([16, 3])
    """

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None


class Hold(NamedTuple):
    """Which units keep their old value: a mask (T, B, H), true = keep, or one rate for all, the mask's expectation.

    >>> Hold(rate=0.05).mask is None
    True
    """

    mask: Tensor | None = None
    rate: float | int = 0.0


NEVER = Hold()


def unavailable(*tensors: Tensor, source: str = SOURCE) -> str | None:
    """Why the kernel does not apply to these tensors, here and now; `None` when it does.

    Args:
        tensors: all tensors that it would read.
        source: which of the C files beside this one.

    >>> unavailable(torch.zeros(2, dtype=torch.float16))
    'the kernel computes in float32 and float64, not in torch.float16'
    """
    first = tensors[0]
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"the kernel runs on the CPU, not on {tensor.device.type}"
        if tensor.dtype not in DEFINES:
            return f"the kernel computes in float32 and float64, not in {tensor.dtype}"
        if tensor.dtype != first.dtype:
            return f"the tensors are of different types, {first.dtype} and {tensor.dtype}"
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"the kernel reads plain tensors, not {type(tensor).__name__}"
    if torch.compiler.is_compiling():
        return "torch.compile cannot look into the kernel"
    if transformed():
        return "torch.func and forward-mode derivatives cannot look into the kernel"
    try:
        load_library(source, first.dtype)
    except CannotCompile as error:
        return str(error)
    return None


def lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Weights,
    *,
    hold_h: Hold = NEVER,
    hold_c: Hold = NEVER,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """An LSTM over a sequence: outputs (T, B, H), h and c after each row's last step.

    Args:
        x: inputs (T, B, I), float32 or float64, all tensors of one type on the CPU (`unavailable` says).
        h0: state before the first step (B, H).
        c0: memory before the first step (B, H).
        weights: as `torch.nn.LSTM` has them.
        hold_h: Zoneout of h.
        hold_c: Zoneout of c; h is computed from the memory before it is held.
        lengths: steps of each row (B), int64, 0 to T; outputs behind them are zero, the state stays.

    Source: Krueger et al., "Zoneout", 2017, section 3.

    >>> weights = Weights(torch.zeros(8, 3), torch.zeros(8, 2), None, None)
    >>> if unavailable(weights.ih) is None:
    ...     _, h, c = lstm(torch.zeros(5, 1, 3), torch.ones(1, 2), torch.ones(1, 2), weights, hold_c=Hold(rate=1))
    ...     assert c.tolist() == [[1.0, 1.0]]
    """
    out, h, c = _run("lstm", x, h0, c0, weights, hold_h, hold_c, lengths)
    return out, h, c


def gru(
    x: Tensor, h0: Tensor, weights: Weights, *, hold_h: Hold = NEVER, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A GRU over a sequence: outputs (T, B, H) and h after each row's last step; arguments as for `lstm`.

    >>> weights = Weights(torch.zeros(6, 3), torch.zeros(6, 2), None, None)
    >>> if unavailable(weights.ih) is None:
    ...     assert gru(torch.zeros(5, 1, 3), torch.ones(1, 2), weights)[1].tolist() == [[1 / 32, 1 / 32]]
    """
    out, h, _ = _run("gru", x, h0, None, weights, hold_h, NEVER, lengths)
    return out, h


def rnn(
    x: Tensor,
    h0: Tensor,
    weights: Weights,
    nonlinearity: str = "tanh",
    *,
    hold_h: Hold = NEVER,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A plain network, "tanh" or "relu", over a sequence: outputs and last h; arguments as for `lstm`.

    >>> weights = Weights(torch.zeros(2, 3), torch.eye(2), None, None)
    >>> if unavailable(weights.ih) is None:
    ...     assert rnn(torch.zeros(5, 1, 3), torch.ones(1, 2), weights, "relu")[1].tolist() == [[1.0, 1.0]]
    """
    out, h, _ = _run("relu" if nonlinearity == "relu" else "rnn", x, h0, None, weights, hold_h, NEVER, lengths)
    return out, h


def _run(
    kind: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Weights,
    hold_h: Hold,
    hold_c: Hold,
    lengths: Tensor | None,
) -> Any:
    _check(kind, x, h0, c0, weights, lengths)
    # Contiguous before the function, so that what it keeps is what autograd knows.
    x, h0 = x.contiguous(), h0.contiguous()
    c0 = c0.contiguous() if c0 is not None else None
    hold_h, hold_c = (_as_bytes(hold, (*x.shape[:2], h0.shape[1])) for hold in (hold_h, hold_c))
    if lengths is not None:
        lengths = lengths.to(device="cpu", dtype=torch.int64).contiguous()
    inputs = (x, h0, c0, *weights)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        return _Sequence.apply(kind, hold_h, hold_c, lengths, *inputs)
    return _forward(kind, hold_h, hold_c, lengths, x, h0, c0, weights, trains=False)[0]


def _check(kind: str, x: Tensor, h0: Tensor, c0: Tensor | None, weights: Weights, lengths: Tensor | None) -> None:
    """C reads what shapes say, so they must be true."""
    given = [tensor for tensor in (x, h0, c0, *weights) if tensor is not None]
    if (reason := unavailable(*given)) is not None:
        raise ValueError(f"the kernel does not apply: {reason}")
    if x.dim() != 3 or h0.dim() != 2:
        raise ValueError(f"expected x (T, B, I) and h0 (B, H), got {tuple(x.shape)} and {tuple(h0.shape)}")
    (steps, batch, inputs), hidden = x.shape, h0.shape[1]
    rows = {"lstm": 4, "gru": 3}.get(kind, 1) * hidden
    expected = {
        "h0": (h0, (batch, hidden)),
        "c0": (c0, (batch, hidden)),
        "weights.ih": (weights.ih, (rows, inputs)),
        "weights.hh": (weights.hh, (rows, hidden)),
        "weights.bias_ih": (weights.bias_ih, (rows,)),
        "weights.bias_hh": (weights.bias_hh, (rows,)),
        "lengths": (lengths, (batch,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; with x {tuple(x.shape)} it must be {shape}")
    if (weights.bias_ih is None) != (weights.bias_hh is None):
        raise ValueError("both biases are needed, or none")
    if lengths is not None and batch and not 0 <= int(lengths.min()) <= int(lengths.max()) <= steps:
        raise ValueError(f"lengths must be between 0 and the {steps} steps of x, got {lengths.tolist()}")


def _as_bytes(hold: Hold, shape: tuple[int, ...]) -> Hold:
    if hold.mask is None:
        return hold
    return Hold(hold.mask.to(torch.bool).expand(shape).contiguous())


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: str, hold_h: Hold, hold_c: Hold, lengths: Tensor | None, *inputs: Any) -> Any:
        x, h0, c0, *weights = inputs
        results, kept = _forward(kind, hold_h, hold_c, lengths, x, h0, c0, Weights(*weights), trains=True)
        ctx.set_materialize_grads(False)
        ctx.settings = kind, hold_h.rate, hold_c.rate, c0 is not None
        ctx.save_for_backward(*inputs, results[0], *kept, hold_h.mask, hold_c.mask, lengths)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        refuse_second_derivatives()
        # Products into given tensors know no autocast.
        with torch.autocast("cpu", enabled=False):
            return None, None, None, None, *_backward(ctx.settings, ctx.needs_input_grad[4:], ctx.saved_tensors, *grads)


def _forward(
    kind: str,
    hold_h: Hold,
    hold_c: Hold,
    lengths: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Weights,
    *,
    trains: bool,
) -> tuple[tuple[Tensor, Tensor, Tensor | None], tuple[Tensor | None, Tensor | None]]:
    """Outputs and last states; and what the backward pass needs: activations, memories of all steps."""
    library = load_library(SOURCE, x.dtype)
    steps, batch, hidden = *x.shape[:2], h0.shape[1]
    packed = pack_gates(library, *weights)
    out, c, saved = x.new_empty(steps, batch, hidden), None, None
    # Rows without a single step, or with none left, keep the state they came with.
    h_n = h0.clone() if lengths is not None or steps == 0 else torch.empty_like(h0)
    c_n = c0.clone() if c0 is not None else None
    if trains:
        saved = activations(x, packed, hidden, library.lanes())
        c = x.new_empty(steps, batch, hidden) if c0 is not None else None
    job = _job(kind, x, h0, c0, hold_h, hold_c, lengths)
    job.keeps_memory = trains
    job.point(wx=packed.wx, wh=packed.wh, bias=packed.bias, saved=saved, out=out, fed=out, hn=h_n, cn=c_n)
    job.point(c=c if trains else c_n)
    run = getattr(library, f"{'rnn' if packed.gates == 1 else kind}_forward")
    over_rows(run, job, threads_for(steps, batch, hidden * (x.shape[2] + hidden)))
    return (out, h_n, c_n), (saved, c)


def _job(
    kind: str, x: Tensor, h0: Tensor, c0: Tensor | None, hold_h: Hold, hold_c: Hold, lengths: Tensor | None
) -> SequenceJob:
    (steps, batch, inputs), hidden = x.shape, h0.shape[1]
    job = SequenceJob(steps=steps, batch=batch, inputs=inputs, hidden=hidden, relu=kind == "relu")
    job.rate_h, job.rate_c, job.keeps_memory = hold_h.rate, hold_c.rate, True
    job.out_step, job.fed_row = batch * hidden, hidden
    job.point(x=x, h0=h0, c0=c0, keep_h=hold_h.mask, keep_c=hold_c.mask, lengths=lengths)
    return job


def _backward(
    settings: tuple[str, float | int, float | int, bool],
    needed: tuple[bool, ...],
    kept: tuple[Any, ...],
    grad_out: Tensor | None,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, h0, c0 and the four parameters."""
    kind, rate_h, rate_c, has_memory = settings
    x, h0, c0, ih, hh, bias_ih, _, out, saved, c, keep_h, keep_c, lengths = kept
    library = load_library(SOURCE, x.dtype)
    steps, batch = x.shape[:2]
    hidden = h0.shape[1]
    back = pack_rows(library, hh)
    dh = grad_h.clone(memory_format=torch.contiguous_format) if grad_h is not None else torch.zeros_like(h0)
    dc = None
    if has_memory:
        dc = grad_c.clone(memory_format=torch.contiguous_format) if grad_c is not None else torch.zeros_like(c0)
    grad_out = grad_out.contiguous() if grad_out is not None else None
    sums = GateGradients((needed[0], needed[3], needed[4]), x, ih, hh)
    chunk = sums.chunk()
    d_gates = x.new_empty(chunk, batch, sums.slots * hidden)
    threads = threads_for(steps, batch, hidden * hidden)
    d_bias = x.new_zeros(threads, sums.slots, hidden)
    job = _job(kind, x, h0, c0, Hold(keep_h, rate_h), Hold(keep_c, rate_c), lengths)
    job.point(saved=saved, out=out, fed=out, c=c, grad_out=grad_out, back=back, grad_gates=d_gates, dh=dh, dc=dc)
    run = getattr(library, f"{'rnn' if sums.gates == 1 else kind}_backward")
    for end in range(steps, 0, -chunk):
        begin = max(0, end - chunk)
        job.begin, job.end = begin, end
        over_rows(run, job, threads, lambda own, part: own.point(db=d_bias[part]))
        sums.add(begin, end, d_gates, out[begin - 1] if begin else h0, out[begin : end - 1])
    return sums.dx, dh, dc, sums.ih_sum, sums.hh_sum, *sums.biases(d_bias, wanted=bias_ih is not None)
