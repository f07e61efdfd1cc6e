"""The fused sequences equal single steps: outputs, states, gradients, masks, lengths, threads; NaN comes through."""

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechanisms._base import compiled
from mechanisms.recurrent import _native, kernels
from mechanisms.recurrent.kernels import NEVER, Hold, Weights

GATES = {"lstm": 4, "gru": 3, "rnn": 1, "relu": 1}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def one_step_at_a_time(
    kind: str, x: Tensor, h: Tensor, c: Tensor | None, weights: Weights, hold_h: Hold, hold_c: Hold, lengths: Tensor
) -> list[Tensor]:
    """The plain form, in torch's operations."""
    outputs, size = [], h.shape[1]
    for t in range(len(x)):
        own = torch.nn.functional.linear(x[t], weights.ih, weights.bias_ih)
        back = torch.nn.functional.linear(h, weights.hh, weights.bias_hh)
        fresh_c = None
        if kind == "lstm" and c is not None:
            i, f, g, o = (own + back).chunk(4, 1)
            fresh_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            fresh = o.sigmoid() * fresh_c.tanh()
        elif kind == "gru":
            r, z = (own + back)[:, : 2 * size].sigmoid().chunk(2, 1)
            n = (own[:, 2 * size :] + r * back[:, 2 * size :]).tanh()
            fresh = (1 - z) * n + z * h
        else:
            fresh = (own + back).relu() if kind == "relu" else (own + back).tanh()
        active = (t < lengths).unsqueeze(1)
        new = held(fresh, h, hold_h, t)
        outputs.append(torch.where(active, new, 0))
        h = torch.where(active, new, h)
        if c is not None and fresh_c is not None:
            c = torch.where(active, held(fresh_c, c, hold_c, t), c)
    return [torch.stack(outputs), h, *([c] if c is not None else [])]


def held(fresh: Tensor, old: Tensor, hold: Hold, t: int) -> Tensor:
    return torch.lerp(fresh, old, hold.rate if hold.mask is None else hold.mask[t].to(fresh.dtype))


def problem(kind: str, steps: int, rows: int, inputs: int, size: int, dtype: torch.dtype, bias: bool, seed: int):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, dtype=dtype, generator=generator) / shape[-1] ** 0.5).requires_grad_()

    gates = GATES[kind] * size
    biases = (draw(1, gates).detach()[0], draw(1, gates).detach()[0]) if bias else (None, None)
    weights = Weights(draw(gates, inputs), draw(gates, size), *[b if b is None else b.requires_grad_() for b in biases])
    x, h = draw(steps, rows, inputs), draw(rows, size)
    return x, h, draw(rows, size) if kind == "lstm" else None, weights


def fused(kind: str, x, h, c, weights: Weights, hold_h: Hold, hold_c: Hold, lengths) -> list[Tensor]:
    if kind == "lstm":
        return list(kernels.lstm(x, h, c, weights, hold_h=hold_h, hold_c=hold_c, lengths=lengths))
    if kind == "gru":
        return list(kernels.gru(x, h, weights, hold_h=hold_h, lengths=lengths))
    name = "relu" if kind == "relu" else "tanh"
    return list(kernels.rnn(x, h, weights, name, hold_h=hold_h, lengths=lengths))


@pytest.mark.parametrize("kind", GATES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    steps=st.integers(1, 9),
    rows=st.integers(0, 15),
    inputs=st.integers(1, 40),
    size=st.integers(1, 140),
    dtype=st.sampled_from(list(TOLERANCE)),
    bias=st.booleans(),
    holds=st.sampled_from(["none", "masks", "rates", "mixed"]),
    cut=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_outputs_and_gradients_equal_single_steps(
    kind, steps, rows, inputs, size, dtype, bias, holds, cut, seed
) -> None:
    x, h, c, weights = problem(kind, steps, rows, inputs, size, dtype, bias, seed)
    generator = torch.Generator().manual_seed(seed)
    mask_h, mask_c = (torch.rand(steps, rows, size, generator=generator) < rate for rate in (0.3, 0.5))
    hold_h, hold_c = {
        "none": (NEVER, NEVER),
        "masks": (Hold(mask_h), Hold(mask_c)),
        "rates": (Hold(rate=0.2), Hold(rate=0.7)),
        "mixed": (NEVER, Hold(mask_c)),
    }[holds]
    lengths = torch.randint(0, steps + 1, (rows,), generator=generator)
    whole = torch.full((rows,), steps)
    given_tensors = [tensor for tensor in (x, h, c, *weights) if tensor is not None]
    results = []
    for run, ends in ((one_step_at_a_time, lengths if cut else whole), (fused, lengths if cut else None)):
        outputs = run(kind, x, h, c, weights, hold_h, hold_c, ends)
        upstream = [torch.cos(torch.arange(o.numel(), dtype=dtype)).view(o.shape) for o in outputs]
        results.append([*outputs, *torch.autograd.grad(outputs, given_tensors, upstream, materialize_grads=True)])
    for expected, found in zip(*results, strict=True):
        scale = 1 + expected.abs().max().item() if expected.numel() else 1
        # Float32: sums of up to 135 products of gradients, so a few units in the last place of the largest.
        torch.testing.assert_close(found, expected, rtol=0, atol=3 * TOLERANCE[dtype] * scale)
    with torch.no_grad():
        plain_run = fused(kind, x, h, c, weights, hold_h, hold_c, lengths if cut else None)
        for trained, plain in zip(results[1], plain_run, strict=False):
            assert torch.equal(trained, plain)


@pytest.mark.parametrize("kind", GATES)
def test_gradcheck(kind: str) -> None:
    x, h, c, weights = problem(kind, 4, 3, 2, 5, torch.float64, True, 0)
    mask = torch.rand(4, 3, 5, generator=torch.Generator().manual_seed(0)) < 0.4

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        x, h, *rest = tensors
        memory = rest.pop(0) if kind == "lstm" else None
        return tuple(fused(kind, x, h, memory, Weights(*rest), Hold(mask), Hold(mask), torch.tensor([4, 2, 3])))

    tensors = [tensor for tensor in (x, h, c, *weights) if tensor is not None]
    assert torch.autograd.gradcheck(run, tensors, fast_mode=False)


def test_gradients_of_gradients_are_refused() -> None:
    x, h, c, weights = problem("lstm", 3, 2, 2, 3, torch.float64, True, 0)
    out, *_ = kernels.lstm(x, h, c, weights)
    for loss in (out.sum(), out.square().sum()):
        with pytest.raises(RuntimeError, match="backend='eager'"):
            torch.autograd.grad(loss, x, create_graph=True)


def test_backward_twice_gives_the_same_gradient() -> None:
    x, h, c, weights = problem("lstm", 3, 2, 2, 3, torch.float64, True, 0)
    out, *_ = kernels.lstm(x, h, c, weights)
    first, second = (torch.autograd.grad(out.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_chunks_of_the_backward_pass_change_nothing(monkeypatch) -> None:
    for kind in GATES:
        x, h, c, weights = problem(kind, 11, 3, 4, 20, torch.float64, True, 1)
        grads = []
        for size in (1 << 30, 1, 4000):
            monkeypatch.setattr(_native, "CHUNK", size)
            out, *last = fused(kind, x, h, c, weights, Hold(rate=0.3), Hold(rate=0.3), torch.tensor([11, 4, 7]))
            loss = out.square().sum() + sum(one.sum() for one in last)
            grads.append(torch.autograd.grad(loss, [t for t in (x, h, c, *weights) if t is not None]))
        for other in grads[1:]:
            for one, two in zip(grads[0], other, strict=True):
                torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", GATES)
def test_nan_comes_through_and_stays_in_its_row(kind: str, bad: float) -> None:
    x, h, c, weights = problem(kind, 6, 3, 4, 20, torch.float32, True, 0)
    spoiled = x.detach().clone()
    spoiled[2, 1, 0] = bad
    mask = torch.rand(6, 3, 20, generator=torch.Generator().manual_seed(0)) < 0.5
    expected = one_step_at_a_time(kind, spoiled, h, c, weights, Hold(mask), Hold(mask), torch.full((3,), 6))
    found = fused(kind, spoiled, h, c, weights, Hold(mask), Hold(mask), None)
    for one, two in zip(expected, found, strict=True):
        assert torch.equal(one.isnan(), two.isnan())
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5, equal_nan=True)
    if bad != bad:
        assert found[0][2:, 1].isnan().any()
        assert torch.autograd.grad(found[0].sum(), weights.hh)[0].isnan().any()
    assert found[0][:, [0, 2]].isfinite().all()


def test_the_functions_are_accurate_to_the_last_places() -> None:
    for dtype, limit in ((torch.float32, 3e-7), (torch.float64, 6e-16)):
        x = torch.cat([torch.linspace(-100, 100, 20001), torch.logspace(-30, 2, 2000), -torch.logspace(-30, 2, 2000)])
        x = x.to(dtype).view(1, -1, 1)
        one, zero = torch.ones(1, 1, dtype=dtype), torch.zeros(x.shape[1], 1, dtype=dtype)
        tanh, _ = kernels.rnn(x, zero, Weights(one, one, None, None))
        exact = torch.tanh(x.double())
        assert ((tanh.double() - exact) / exact).abs().nan_to_num().max() < limit
        # An LSTM whose gates but o are shut open: h = sigmoid(x) tanh(1).
        ih = torch.zeros(4, 1, dtype=dtype)
        ih[3] = 1
        shut = torch.tensor([-1e30, 1e30, 0, 0], dtype=dtype)
        weights = Weights(ih, torch.zeros(4, 1, dtype=dtype), shut, torch.zeros(4, dtype=dtype))
        gate, _, _ = kernels.lstm(x, zero, zero + 1, weights)
        exact = torch.sigmoid(x.double()) * torch.tanh(torch.ones((), dtype=torch.float64))
        assert (gate.double() - exact).abs().max() < limit


@pytest.mark.parametrize("kind", GATES)
def test_threads_change_nothing_but_the_order_of_sums(kind: str, monkeypatch) -> None:
    monkeypatch.setattr(_native, "WORK_PER_THREAD", 1)
    x, h, c, weights = problem(kind, 5, 7, 4, 20, torch.float64, True, 0)
    tensors = [tensor for tensor in (x, h, c, *weights) if tensor is not None]
    results = []
    for threads in (1, 2, 3, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        out, *_ = fused(kind, x, h, c, weights, Hold(rate=0.2), Hold(rate=0.2), None)
        results.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_reasons_why_the_kernel_does_not_apply(monkeypatch) -> None:
    one = torch.zeros(2)
    assert kernels.unavailable(one) is None
    assert "float16" in (kernels.unavailable(one.half()) or "")
    assert "meta" in (kernels.unavailable(one.to("meta")) or "")
    assert "different types" in (kernels.unavailable(one, one.double()) or "")
    told: list[str | None] = []
    torch.func.vmap(lambda x: (told.append(kernels.unavailable(x)), x)[1])(one)
    assert "torch.func" in (told[0] or "")
    monkeypatch.setattr(compiled, "_loaded", {})
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "no-such-compiler" in (kernels.unavailable(one) or "")


def test_the_structure_is_the_one_of_the_source() -> None:
    text = (_native.HERE / "gates.h").read_text().split("struct Sequence {")[1].split("};")[0]
    code = " ".join(line.split("//")[0] for line in text.splitlines())
    names = [
        name.strip().lstrip("*").strip().split(" ")[-1].lstrip("*")
        for declaration in code.split(";")
        if declaration.strip()
        for name in declaration.split(",")
    ]
    assert names == [name for name, _ in _native.SequenceJob._fields_]
    assert ctypes.sizeof(_native.SequenceJob) == 8 * len(names)


@pytest.mark.skipif(kernels.unavailable(torch.zeros(1)) is not None, reason="no compiler")
@pytest.mark.user_input
def test_what_would_be_read_out_of_bounds_is_refused() -> None:
    x, h, weights = torch.zeros(5, 2, 3), torch.zeros(2, 4), Weights(torch.zeros(16, 3), torch.zeros(16, 4), None, None)
    with pytest.raises(ValueError, match=r"weights.ih has shape \(16, 3\); .* must be \(16, 30\)"):
        kernels.lstm(torch.zeros(5, 2, 30), h, h, weights)
    with pytest.raises(ValueError, match=r"h0 has shape \(1, 4\)"):
        kernels.lstm(x, h[:1], h, weights)
    with pytest.raises(ValueError, match="c0 has shape"):
        kernels.lstm(x, h, h[:1], weights)
    with pytest.raises(ValueError, match="of different types"):
        kernels.lstm(x.double(), h, h, weights)
    with pytest.raises(ValueError, match=r"weights.hh has shape \(16, 4\)"):
        kernels.gru(x, h, weights._replace(ih=torch.zeros(12, 3)))
    with pytest.raises(ValueError, match="both biases"):
        kernels.lstm(x, h, h, weights._replace(bias_ih=torch.zeros(16)))
    with pytest.raises(ValueError, match="lengths has shape"):
        kernels.lstm(x, h, h, weights, lengths=torch.tensor([5]))
    with pytest.raises(ValueError, match="between 0 and the 5 steps"):
        kernels.lstm(x, h, h, weights, lengths=torch.tensor([5, 6]))


@pytest.mark.skipif(kernels.unavailable(torch.zeros(1)) is not None, reason="no compiler")
def test_weights_need_not_be_contiguous() -> None:
    x, h = torch.randn(5, 2, 3, requires_grad=True), torch.zeros(2, 16)
    turned = Weights(torch.randn(3, 64).t(), torch.randn(16, 64).t() / 4, None, None)
    found = []
    for weights in (turned, Weights(turned.ih.contiguous(), turned.hh.contiguous(), None, None)):
        (gradient,) = torch.autograd.grad(kernels.lstm(x, h, h, weights)[0].sum(), x)
        found.append(gradient)
    torch.testing.assert_close(*found)
