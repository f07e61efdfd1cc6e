"""Fused sequences of the attention wrappers equal single steps: outputs, states, gradients; and what they keep."""

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechanisms._base import compiled
from mechanisms.recurrent import (
    GRUCell,
    LSTMCell,
    RelevancyScreening,
    RNNCell,
    SelfAttentiveCell,
    SparseAttentiveBacktracking,
    Zoneout,
    kernels,
)
from mechanisms.recurrent import _native as native
from mechanisms.recurrent._attention_kernel import AttentionJob
from mechanisms.recurrent._case import Case, gradients, loss, parameters, tracked
from mechanisms.recurrent._reminding_kernel import RemindingJob
from mechanisms.recurrent._rules_steps import fused
from mechanisms.recurrent._screening_kernel import ScreeningJob
from mechanisms.recurrent._trees import tensors
from mechanisms.recurrent.protocol import Cell
from mechanisms.recurrent.scan import scan
from mechanisms.recurrent.states import detach

needs_compiler = pytest.mark.skipif(kernels.unavailable(torch.zeros(1)) is not None, reason="no compiler")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
INNER: dict[str, Callable[[int, int], Cell]] = {
    "lstm": LSTMCell,
    "gru": GRUCell,
    "rnn": RNNCell,
    "relu": lambda inputs, size: RNNCell(inputs, size, nonlinearity="relu"),
    "zoneout": lambda inputs, size: Zoneout(LSTMCell(inputs, size), {"h": 0.3, "c": 0.5}),
    "static": lambda inputs, size: Zoneout(GRUCell(inputs, size), 0.3, mask="static"),
    "learned": lambda inputs, size: LSTMCell(inputs, size, learn_initial_state=True),
}


def screening(inner: Cell, **options: Any) -> Cell:
    return RelevancyScreening(inner, **{"short_term": 2, "relevant": 3, **options})


def reminding(inner: Cell, **options: Any) -> Cell:
    return SparseAttentiveBacktracking(inner, **{"k_trunc": 4, "k_top": 2, "k_att": 1, **options})


WRAPPERS: dict[str, Callable[[Cell], Cell]] = {
    "screening": screening,
    "wide": lambda inner: screening(inner, short_term=20, relevant=1, combine="sum", attention_size=19),
    "window": lambda inner: screening(inner, short_term=1, relevant=0, readout="hidden"),
    "normalised": lambda inner: screening(inner, relevance="normalised", attention_size=3),
    "released": lambda inner: screening(inner, released=True),
    "full": SelfAttentiveCell,
    "full, bounded": lambda inner: SelfAttentiveCell(inner, max_memory=3, combine="sum", readout="hidden"),
    "sab": reminding,
    "sab, never cut": lambda inner: reminding(inner, k_trunc=None, k_att=2, attention_size=17, readout="hidden"),
    "sab, always cut": lambda inner: reminding(inner, k_trunc=1, k_top=1),
    "sab, dense": lambda inner: reminding(inner, k_top=None, k_att=2),
    "sab, many": lambda inner: reminding(inner, k_top=50),
    "sab, ring": lambda inner: reminding(inner, max_memory=3, k_att=2),
    "sab, released score": lambda inner: reminding(inner, score="released", readout="hidden"),
    "sab, released": lambda inner: reminding(inner, score="released", sparsifier="released"),
    "sab, released sparsifier": lambda inner: reminding(inner, sparsifier="released", k_top=3),
    "sab, blocked": lambda inner: reminding(inner, block_attention_gradient=True),
    "sab, blocked and released": lambda inner: reminding(inner, block_attention_gradient=True, score="released"),
    "sab, ring, released": lambda inner: reminding(inner, score="released", max_memory=4, k_top=None),
}


def spread(cell: Cell) -> Cell:
    """Larger weights, so that scores differ: near ties the weights of sparse attention are steep."""
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            parameter.mul_(4 if "score" in name else 1.5)
    return cell


def results(cell: Cell, x: Tensor, state: Any, noise: Any, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and states; gradients, those of the state before the first step included."""
    x, state = x.detach().requires_grad_(), tracked(state)
    result = scan(cell, x, state, noise=noise, **options)
    grads = gradients(loss(result.output, result.state), x, state, parameters(cell))
    return tensors((result.output, result.state)), list(grads.values())


def check_same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        scale = max(1.0, float(theirs.detach().abs().max())) if theirs.numel() else 1.0
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance * scale)


@needs_compiler
@pytest.mark.parametrize("wrapper", WRAPPERS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    inner=st.sampled_from(list(INNER)),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 8), st.integers(1, 20), st.integers(2, 70)),
    earlier=st.integers(0, 7),
    seed=st.integers(0, 1000),
)
def test_outputs_states_and_gradients_equal_single_steps(wrapper: str, inner: str, sizes: Any, earlier: int, seed: int):
    """From a fresh state or one that an earlier sequence left, whose leaves get gradients too."""
    steps, rows, inputs, size = sizes
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        cell = spread(WRAPPERS[wrapper](INNER[inner](inputs, size)).double())
        x, before = torch.randn(2, max(steps, earlier), rows, inputs, dtype=torch.float64)
        state, noise = cell.initial_state(rows), cell.noise(steps, rows)
        if earlier:
            state = scan(cell, before[:earlier], state, backend="eager").state
        found = results(cell, x[:steps], state, noise, backend="kernel")
        expected = results(cell, x[:steps], state, noise, backend="eager")
        with torch.no_grad():
            bare = scan(cell, x[:steps], detach(state), noise=noise, backend="kernel")
    check_same(found[0], expected[0], 1e-12)
    check_same(found[1], expected[1], 1e-10)  # of sparse weights near ties: 1e-13 in the weights, times their slope
    assert all(torch.equal(a, b) for a, b in zip(tensors((bare.output, bare.state)), found[0], strict=True))


@needs_compiler
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize(
    "wrapper", ["screening", "normalised", "full", "full, bounded", "sab", "sab, dense", "sab, ring"]
)
def test_lengths_resets_and_cuts_equal_single_steps(wrapper: str, inner: str) -> None:
    case = Case(lambda: spread(WRAPPERS[wrapper](INNER[inner](3, 5))), batch_size=3, steps=7, tolerance=1e-3, seed=0)
    fused(case)


@needs_compiler
@pytest.mark.parametrize("wrapper", ["screening", "full", "sab, never cut"])
def test_gradcheck(wrapper: str) -> None:
    torch.manual_seed(1)
    cell = spread(WRAPPERS[wrapper](LSTMCell(1, 3)).double())
    names = [name for name, _ in cell.named_parameters()]
    x, h, c = (torch.randn(*shape, dtype=torch.float64) for shape in ((6, 2, 1), (2, 3), (2, 3)))

    def run(x: Tensor, h: Tensor, c: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        state = cell.initial_state(2)
        state = cell.with_hidden(state._replace(inner=state.inner._replace(c=c)), h)
        with torch.nn.utils.stateless._reparametrize_module(cell, dict(zip(names, values, strict=True))):
            result = scan(cell, x, state, backend="kernel")
        return result.output, result.state.inner.c

    given_tensors = [one.detach().requires_grad_() for one in (x, h, c, *cell.parameters())]
    assert torch.autograd.gradcheck(run, given_tensors, fast_mode=True)


@needs_compiler
@pytest.mark.parametrize("wrapper", ["screening", "sab", "sab, released score"])
def test_float32_chunks_and_threads_change_no_more_than_rounding(wrapper: str, monkeypatch) -> None:
    torch.manual_seed(0)
    cell = spread(WRAPPERS[wrapper](LSTMCell(5, 33)))
    x, state = torch.randn(11, 7, 5), cell.initial_state(7)
    expected = results(cell.double(), x.double(), cell.initial_state(7), None, backend="eager")
    cell.float()
    monkeypatch.setattr(native, "WORK_PER_THREAD", 1)
    for chunk, threads in ((1 << 21, 1), (1, 1), (20_000, 3), (1 << 21, 9)):
        monkeypatch.setattr(native, "CHUNK", chunk)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found = results(cell, x, state, None, backend="kernel")
        for mine, theirs in zip(found, expected, strict=True):
            check_same([one.double() for one in mine], [one.double() for one in theirs], 2e-4)


@needs_compiler
@pytest.mark.parametrize("wrapper", [name for name in WRAPPERS if name.startswith("sab")])
@pytest.mark.parametrize("checkpoint", [1, 3, True])
def test_segments_that_are_run_again_change_nothing(wrapper: str, checkpoint: int | bool) -> None:
    torch.manual_seed(0)
    cell = spread(WRAPPERS[wrapper](Zoneout(LSTMCell(3, 18), {"h": 0.2, "c": 0.3})).double())
    x, state, noise = torch.randn(11, 4, 3, dtype=torch.float64), cell.initial_state(4), cell.noise(11, 4)
    expected = results(cell, x, state, noise, backend="kernel")
    found = results(cell, x, state, noise, backend="kernel", checkpoint=checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(found[0], expected[0], strict=True))
    check_same(found[1], expected[1], 1e-12)


@needs_compiler
def test_segments_keep_a_fifth_of_full_backpropagation() -> None:
    x = torch.randn(1000, 8, 10)
    plain = LSTMCell(10, 64)
    cell = SparseAttentiveBacktracking(LSTMCell(10, 64), k_trunc=10, k_att=10)
    full = saved_bytes(lambda: scan(plain, x, backend="eager"))
    assert saved_bytes(lambda: scan(cell, x, checkpoint=True)) <= full / 5
    assert saved_bytes(lambda: scan(cell, x)) <= 1.5 * full


def saved_bytes(run: Callable[[], Any]) -> int:
    """Memory that autograd keeps, each storage counted once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()  # held, so that no memory is used twice
    del result
    return sum(kept.values())


@needs_compiler
@pytest.mark.parametrize("wrapper", ["screening", "full, bounded", "sab, ring"])
def test_a_state_of_fixed_size_holds_nothing_of_the_trajectory(wrapper: str) -> None:
    cell = WRAPPERS[wrapper](LSTMCell(3, 8))
    sizes = []
    with torch.no_grad():
        for steps in (30, 300):
            leaves = tensors(scan(cell, torch.randn(steps, 2, 3)).state)
            storages = {leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in leaves}
            sizes.append(sum(storages.values()))
    assert sizes[0] == sizes[1]


@needs_compiler
def test_inputs_of_segments_that_no_entry_reaches_have_a_gradient_of_exactly_zero() -> None:
    torch.manual_seed(0)
    cell = SparseAttentiveBacktracking(LSTMCell(3, 16), k_trunc=5, k_top=2, k_att=2).double()
    spread(cell)
    found = []
    for backend in ("kernel", "eager"):
        x = torch.randn(60, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        scan(cell, x, backend=backend).output[-1].sum().backward()
        found.append(x.grad.abs().sum((1, 2)) == 0)
    assert torch.equal(*found)
    assert 0 < int(found[0].sum()) < 60


@needs_compiler
@pytest.mark.parametrize("wrapper", ["screening", "full", "sab", "sab, released score", "sab, dense"])
def test_nan_comes_through_in_its_own_row(wrapper: str) -> None:
    cell = WRAPPERS[wrapper](LSTMCell(3, 20))
    x = torch.randn(9, 3, 3)
    x[4, 1, 0] = float("nan")
    output = scan(cell, x, backend="kernel").output
    assert bool(output[5:, 1].isnan().all())
    assert bool(output[:4].isfinite().all())
    assert bool(output[:, [0, 2]].isfinite().all())


@needs_compiler
@pytest.mark.parametrize("wrapper", ["screening", "full", "sab"])
def test_gradients_of_gradients_are_refused_or_taken_through_single_steps(wrapper: str) -> None:
    cell, x = WRAPPERS[wrapper](LSTMCell(2, 3)).double(), torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    for power in (1, 2):
        value = scan(cell, x, backend="kernel").output.pow(power).sum()
        with pytest.raises(RuntimeError, match="backend='eager'"):
            torch.autograd.grad(value, x, create_graph=True)
    value = scan(cell, x, twice_differentiable=True).output.square().sum()
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    assert torch.autograd.grad(first.sum(), x)[0].isfinite().all()


@needs_compiler
@pytest.mark.parametrize("wrapper", ["screening", "sab"])
def test_backward_twice_gives_the_same_gradient(wrapper: str) -> None:
    cell, x = WRAPPERS[wrapper](LSTMCell(2, 3)), torch.randn(7, 2, 2, requires_grad=True)
    options = {"checkpoint": 3} if wrapper == "sab" else {}
    value = scan(cell, x, backend="kernel", **options).output.square().sum()
    first, second = (torch.autograd.grad(value, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("wrapper", ["screening", "full", "sab"])
def test_without_a_compiler_the_numbers_are_the_same(wrapper: str, monkeypatch) -> None:
    torch.manual_seed(0)
    cell = spread(WRAPPERS[wrapper](LSTMCell(3, 6)).double())
    x, state = torch.randn(8, 2, 3, dtype=torch.float64), cell.initial_state(2)
    before = results(cell, x, state, None)
    monkeypatch.setattr(compiled, "_loaded", {})
    monkeypatch.setenv("CC", "/nonexistent")
    after = results(cell, x, state, None)
    check_same(after[0], before[0], 1e-12)
    check_same(after[1], before[1], 1e-11)
    with pytest.raises(ValueError, match="no fused path"):
        scan(cell, x, backend="kernel")


@pytest.mark.parametrize("wrapper", ["screening", "full", "sab"])
def test_what_the_kernel_does_not_compute_goes_through_single_steps(wrapper: str) -> None:
    class Own(LSTMCell):
        pass

    for inner, dtype in ((Own(3, 4), torch.float32), (LSTMCell(3, 4), torch.bfloat16)):
        cell = WRAPPERS[wrapper](inner).to(dtype)
        x = torch.randn(5, 2, 3, dtype=dtype)
        assert cell.sequence(x, cell.initial_state(2), None) is NotImplemented
        assert scan(cell, x).output.shape[:2] == (5, 2)
    cell = WRAPPERS[wrapper](LSTMCell(3, 4))
    assert scan(cell, torch.randn(5, 0, 3)).output.shape[1] == 0
    assert scan(cell, torch.randn(5, 2, 3), need_info=True).info is not None


class Unattended(RelevancyScreening):
    def _combined(self, h: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        return h


class Detached(SelfAttentiveCell):
    def _combined(self, h: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        return super()._combined(h, weights, values.detach())


class Even(SparseAttentiveBacktracking):
    def _scores(self, provisional: Tensor, keys: Tensor) -> Tensor:
        return torch.zeros_like(super()._scores(provisional, keys))


@pytest.mark.parametrize("kind", [Unattended, Detached, Even])
def test_a_subclass_computes_what_it_says(kind: Any) -> None:
    torch.manual_seed(0)
    cell, x = kind(LSTMCell(3, 4)), torch.randn(9, 2, 3)
    assert cell.sequence(x, cell.initial_state(2), None) is NotImplemented
    found, expected = (results(cell, x, cell.initial_state(2), None, backend=name) for name in ("auto", "eager"))
    assert all(torch.equal(a, b) for a, b in zip(found[0] + found[1], expected[0] + expected[1], strict=True))


@pytest.mark.parametrize("wrapper", ["screening", "full", "sab"])
def test_layers_of_the_attention_that_were_replaced_are_not_ignored(wrapper: str) -> None:
    def with_bias(cell: Any) -> None:
        cell.query = torch.nn.Linear(4, 4)

    def with_norm(cell: Any) -> None:
        torch.nn.utils.parametrizations.weight_norm(cell.query)

    def with_hook(cell: Any) -> None:
        cell.query.register_forward_hook(lambda module, given, output: 2 * output)

    for change in (with_bias, with_norm, with_hook):
        torch.manual_seed(0)
        cell, x = spread(WRAPPERS[wrapper](LSTMCell(3, 4))), torch.randn(9, 2, 3)
        change(cell)
        assert torch.equal(scan(cell, x).output, scan(cell, x, backend="eager").output)


@needs_compiler
@pytest.mark.user_input
@pytest.mark.parametrize("wrapper", ["screening", "full", "sab"])
def test_what_would_be_read_out_of_bounds_is_refused(wrapper: str) -> None:
    cell = WRAPPERS[wrapper](LSTMCell(3, 4))
    state = cell.initial_state(2)
    with pytest.raises(ValueError, match="shape"):
        cell.sequence(torch.randn(5, 2, 7), state, None)
    with pytest.raises(ValueError, match="shape"):
        cell.sequence(torch.randn(5, 3, 3), state, None)
    with pytest.raises(ValueError, match="shape"):
        cell.sequence(torch.randn(5, 2, 3), state._replace(inner=state.inner._replace(c=torch.zeros(2, 3))), None)
    if wrapper == "sab":
        with pytest.raises(ValueError, match="counts"):
            cell.sequence(torch.randn(5, 2, 3), state._replace(count=state.count + 5), None)
    if wrapper == "screening":
        with pytest.raises(ValueError, match="lengths"):
            cell.sequence(torch.randn(5, 2, 3), state, None, lengths=[6, 1])


@pytest.mark.parametrize("interrupted", ["own part", "waiting"])
def test_an_interrupt_waits_for_all_threads(interrupted: str, monkeypatch) -> None:
    """Memory that they write to is freed when the call ends."""
    main, written, join = threading.current_thread(), [], threading.Thread.join
    calls = []

    def run(job: Any) -> None:
        if threading.current_thread() is main:
            if interrupted == "own part":
                raise KeyboardInterrupt
            return
        time.sleep(0.1)
        written.append(job)

    def interruptible(self: threading.Thread, timeout: float | None = None) -> None:
        calls.append(self)
        if interrupted == "waiting" and len(calls) == 1:
            raise KeyboardInterrupt
        join(self, timeout)

    monkeypatch.setattr(threading.Thread, "join", interruptible)
    with pytest.raises(KeyboardInterrupt):
        native.over_rows(run, native.SequenceJob(batch=5), 3)
    assert len(written) == 2


@pytest.mark.parametrize(
    ("job", "file", "name"),
    [
        (AttentionJob, "attention.h", "Attention"),
        (ScreeningJob, "screening.c", "Screening"),
        (RemindingJob, "reminding.c", "Reminding"),
    ],
)
def test_the_structs_are_those_of_the_source(job: Any, file: str, name: str) -> None:
    text = (native.HERE / file).read_text().split(f"struct {name} {{")[1].split("};")[0]
    code = " ".join(line.split("//")[0] for line in text.splitlines())
    declarations = [declaration for declaration in code.split(";") if declaration.strip()]
    names = [part.split()[-1].lstrip("*") for declaration in declarations for part in declaration.split(",")]
    assert names == [field for field, *_ in job._fields_]
    assert ctypes.sizeof(job) == sum(ctypes.sizeof(kind) for _, kind in job._fields_)
