"""The driver: order of events, lengths, resets, truncation, checkpoints, hoisting, options, memory."""

import gc
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mechanisms.recurrent import GRUCell, LSTMCell, LSTMState, Recurrent, RNNCell, ScanResult, scan_chunks
from mechanisms.recurrent.scan import scan
from mechanisms.recurrent.states import detach
from tests.recurrent.own_cells import Growing, Leaky, Noisy, Pair

T, B, D, H = 7, 3, 2, 4


def inputs(steps: int = T, rows: int = B, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(steps, rows, D, generator=torch.Generator().manual_seed(steps * 31 + rows)).to(dtype)


def cell(kind: Any = LSTMCell, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(D, H, **options).double()


def close(got: Any, want: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


def test_the_result_unpacks_with_and_without_info() -> None:
    output, state = scan(cell(), inputs())
    assert output.shape == (T, B, H)
    assert isinstance(state, LSTMState)
    result = scan(cell(Noisy), inputs(), need_info=True)
    _, _, info = result
    assert info["kept"].shape == (T, B, H)
    assert isinstance(result, ScanResult)


@pytest.mark.parametrize("backend", ["eager", "kernel"])
@pytest.mark.parametrize("kind", [LSTMCell, GRUCell, RNNCell])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_lengths_resets_and_cuts_are_the_plain_loop(kind: Any, backend: str, data: st.DataObject) -> None:
    steps, rows = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    lengths = data.draw(st.lists(st.integers(0, steps), min_size=rows, max_size=rows))
    flags = torch.tensor(data.draw(st.lists(st.booleans(), min_size=steps * rows, max_size=steps * rows)))
    flags = flags.view(steps, rows)
    truncate = data.draw(st.none() | st.tuples(st.integers(1, 3), st.integers(0, 3)))
    one, x = cell(kind, learn_initial_state=True), inputs(steps, rows).requires_grad_()
    result = scan(one, x, lengths=lengths, reset=flags, truncate=truncate, backend=backend)
    state, outputs = one.initial_state(rows), []
    for t in range(steps):
        if truncate and t >= truncate[1] and (t - truncate[1]) % truncate[0] == 0:
            state = one.freeze(t < torch.tensor(lengths), detach(state), state)
        active = t < torch.tensor(lengths)
        state = one.reset(state, flags[t] & active)
        output, new = one(x[t], state)
        outputs.append(output * active.unsqueeze(1))
        state = one.freeze(active, new, state)
    close(result.output, torch.stack(outputs))
    close(tuple(result.state), tuple(state))
    weights = torch.cos(torch.arange(float(steps * rows * H))).view(steps, rows, H).double()
    found = []
    for output, last in ((result.output, result.state), (torch.stack(outputs), state)):
        total = (output * weights).sum() + last.h.sum() + 0 * x.sum()
        wanted = [x, *one.parameters()]
        gradients = torch.autograd.grad(total, wanted, allow_unused=True)
        found.append([torch.zeros_like(leaf) if g is None else g for leaf, g in zip(wanted, gradients, strict=True)])
    for mine, theirs in zip(*found, strict=True):
        close(mine, theirs)


@pytest.mark.parametrize("kind", [Pair, Leaky, Noisy])
@pytest.mark.parametrize("lengths", [None, [7, 4, 1]])
def test_reverse_runs_from_each_rows_own_end(kind: Any, lengths: list[int] | None) -> None:
    one = Pair().double() if kind is Pair else cell(kind)
    x: Any = (torch.randn(T, B, 3).double(), torch.randn(T, B, 2).double()) if kind is Pair else inputs()
    noise = one.noise(T, B)
    result = scan(one, x, lengths=lengths, reverse=True, noise=noise)
    for row in range(B):
        length = T if lengths is None else lengths[row]

        def turn(leaf: Tensor, row: int = row, length: int = length) -> Tensor:
            return leaf[:length, row : row + 1].flip(0)

        part = tuple(turn(leaf) for leaf in x) if kind is Pair else turn(x)
        own = None if noise is None else noise[:length, row : row + 1]
        alone = scan(one, part, noise=own)
        got = result.output.h if kind is Pair else result.output
        want = alone.output.h if kind is Pair else alone.output
        close(turn(got), want)
        assert bool((got[length:, row] == 0).all())


def test_a_length_of_zero_leaves_the_state_and_gives_zeros() -> None:
    for backend in ("eager", "kernel"):
        start = LSTMState(torch.ones(B, H).double(), torch.ones(B, H).double())
        result = scan(cell(), inputs(), start, lengths=[0, 7, 0], backend=backend)
        close(result.state.h[[0, 2]], start.h[[0, 2]])
        assert bool((result.output[:, [0, 2]] == 0).all())
    everything = scan(cell(), inputs(), start, lengths=[0, 0, 0])
    assert bool((everything.output == 0).all())
    close(everything.state.c, start.c)


def test_detach_comes_before_reset_before_step_before_freeze() -> None:
    seen: list[str] = []

    class Watched(Leaky):
        def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
            seen.append("step, after a history" if state.h.grad_fn is not None else "step")
            return super().step(projected, state)

        def reset(self, state: Any, done: Tensor) -> Any:
            seen.append("reset" if state.h.grad_fn is None else "reset with a history")
            return super().reset(state, done)

        def freeze(self, active: Tensor, new: Any, old: Any) -> Any:
            seen.append("freeze")
            return super().freeze(active, new, old)

    flags = torch.zeros(3, B, dtype=torch.bool)
    flags[1, 0] = True
    scan(cell(Watched), inputs(3), reset=flags, truncate=1, lengths=[3, 2, 2])
    # At the last step the cut spares the rows that have ended: their last state keeps its history.
    assert seen == ["step", "reset", "step", "step, after a history", "freeze"]


def test_truncation_bounds_how_far_gradients_reach() -> None:
    one, x = cell(RNNCell), inputs().requires_grad_()
    for truncate, reached in ((3, 6), ((4, 3), 3), ((3, 2), 5), (100, 0)):
        for backend in ("eager", "kernel"):
            output, _ = scan(one, x, truncate=truncate, backend=backend)
            gradient = torch.autograd.grad(output[-1].sum(), x)[0]
            assert bool((gradient[:reached] == 0).all())
            assert bool((gradient[reached:] != 0).all())


def test_chunks_hand_over_a_detached_state_and_lengths() -> None:
    one, x = cell(Noisy), inputs().requires_grad_()
    noise = one.noise(T, B)
    flags = torch.zeros(T, B, dtype=torch.bool)
    flags[4, 1] = True
    whole = scan(one, x, lengths=[7, 6, 2], reset=flags, noise=noise)
    pieces = list(scan_chunks(one, x, size=3, lengths=[7, 6, 2], reset=flags, noise=noise))
    close(torch.cat([piece.output for piece in pieces]), whole.output)
    close(pieces[-1].state.h, whole.state.h)
    gradient = torch.autograd.grad(pieces[-1].output.sum(), x)[0]
    assert bool((gradient[:6] == 0).all())
    truncated = scan(one, x, lengths=[7, 6, 2], reset=flags, noise=noise, truncate=3)
    close(gradient, torch.autograd.grad(truncated.output[6:].sum(), x)[0])


@pytest.mark.parametrize("checkpoint", [1, 3, 7, 100, True])
def test_checkpoints_change_no_bit(checkpoint: Any) -> None:
    one, x = cell(Noisy), inputs().requires_grad_()
    noise = one.noise(T, B)
    weights = torch.cos(torch.arange(float(T * B * H))).view(T, B, H).double()
    results = []
    for option in (None, checkpoint):
        every = 3 if checkpoint is True else checkpoint
        result = scan(one, x, noise=noise, checkpoint=option, hoist=every, lengths=[7, 4, 1], need_info=True)
        gradients = torch.autograd.grad((result.output * weights).sum(), [x, *one.parameters()])
        results.append((result.output, result.state.h, result.info["kept"], gradients))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(results[0][:3], results[1][:3], strict=True))
    for mine, theirs in zip(results[0][3], results[1][3], strict=True):
        close(mine, theirs, 1e-13)


def test_checkpoints_save_little() -> None:
    one = LSTMCell(32, 32)
    x = torch.randn(400, 8, 32)
    kept = []
    for steps, checkpoint in ((400, None), (400, True), (20, None)):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            output = scan(one, x[:steps], checkpoint=checkpoint, backend="eager").output
        # What is allocated and not freed, beside the output: what waits for the backward pass.
        kept.append(sum(event.self_cpu_memory_usage for event in record.key_averages()) - 4 * output.numel())
        del output  # else it would be freed, and counted, in the next round
    # Between the passes, and with the one segment that is computed again.
    assert 0 < kept[1] <= kept[0] / 20
    assert kept[1] + kept[2] <= kept[0] / 8


@pytest.mark.parametrize("hoist", [1, 2, 100])
def test_hoisting_bounds_what_is_projected_at_once(hoist: int) -> None:
    sizes: list[int] = []

    class Counting(Leaky):
        def project(self, inputs: Tensor) -> Tensor:
            sizes.append(inputs.shape[0])
            return super().project(inputs)

    one = cell(Counting)
    want = scan(one, inputs()).output
    sizes.clear()
    close(scan(one, inputs(), hoist=hoist).output, want)
    assert sizes == {1: [1] * 7, 2: [2, 2, 2, 1], 100: [7]}[hoist]


def test_large_projections_are_made_64_steps_at_a_time() -> None:
    sizes: list[int] = []

    class Wide(Leaky):
        def project(self, inputs: Tensor) -> Tensor:
            sizes.append(inputs.shape[0])
            return super().project(inputs)

        def step(self, projected: Tensor, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
            return state.h[:, :1], state

    for width, expected in ((4, [1, 130]), (140_000, [1, 64, 64, 2])):
        sizes.clear()
        one = Wide(1, 1)
        one.w = torch.nn.Linear(1, width)
        with torch.no_grad():
            scan(one, torch.zeros(130, 1, 1))
        assert sizes == expected


def test_states_are_kept_on_request_and_on_the_path_of_gradients() -> None:
    one = cell()
    result = scan(one, inputs(), keep_states=True)
    assert result.states is not None
    assert len(result.states) == T
    close(torch.stack([state.h for state in result.states]), result.output)
    gradient = torch.autograd.grad(result.output[-1].sum(), result.states[0].c)[0]
    assert bool((gradient != 0).all())
    assert scan(one, inputs()).states is None


def test_equal_seeds_give_equal_noise_and_eval_draws_none() -> None:
    one = cell(Noisy)
    first, second = (scan(one, inputs(), generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first.output, second.output)
    assert not torch.equal(first.output, scan(one, inputs(), generator=torch.Generator().manual_seed(2)).output)
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    scan(one.eval(), inputs(), generator=generator)
    assert torch.equal(before, generator.get_state())


def test_sparse_resets_take_the_fused_path_and_dense_ones_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    one, calls = cell(), []
    kernel = LSTMCell.sequence

    def counted(self: Any, inputs: Any, state: Any, noise: Any) -> Any:
        calls.append(inputs.shape[0])
        return kernel(self, inputs, state, noise)

    monkeypatch.setattr(LSTMCell, "sequence", counted)
    x = inputs(32)
    flags = torch.zeros(32, B, dtype=torch.bool)
    flags[[0, 10]] = True
    scan(one, x, reset=flags)
    assert calls == [10, 22]
    calls.clear()
    flags[::2] = True
    scan(one, x, reset=flags)
    assert calls == []
    scan(one, x, lengths=[32, 5, 5])
    assert calls == [5, 27]


def test_torch_func_and_second_derivatives_go_through_the_loop() -> None:
    one, x = cell(), inputs()
    parameters = {name: parameter.detach() for name, parameter in one.named_parameters()}
    stacked = {name: torch.stack([parameter, 2 * parameter]) for name, parameter in parameters.items()}

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = one

        def forward(self, x: Tensor) -> Tensor:
            return scan(self.cell, x).output

    def run(weights: dict[str, Tensor]) -> Tensor:
        named = {f"cell.{name}": weight for name, weight in weights.items()}
        return torch.func.functional_call(Whole(), named, (x,))

    together = torch.func.vmap(run)(stacked)
    close(together[0], scan(one, x).output)
    close(together[1], run({name: 2 * parameter for name, parameter in parameters.items()}))
    x = x.float().requires_grad_()
    output = scan(cell().float(), x, twice_differentiable=True).output
    first = torch.autograd.grad(output.square().sum(), x, create_graph=True)[0]
    assert bool((torch.autograd.grad(first.square().sum(), x)[0] != 0).any())


def test_memory_does_not_grow_and_nothing_is_kept() -> None:
    result = scan(cell(), inputs().requires_grad_(), keep_states=True)
    assert result.states is not None
    references = [weakref.ref(state.c) for state in result.states]
    del result
    gc.collect()
    assert all(reference() is None for reference in references)


def test_growing_memories_respect_lengths_and_whole_batch_resets() -> None:
    one = cell(Growing)
    padded = scan(one, inputs(), lengths=[7, 4, 2])
    for row, length in enumerate([7, 4, 2]):
        alone = scan(one, inputs()[:length, row : row + 1])
        close(padded.output[:length, row : row + 1], alone.output)
        close(padded.state.h[row : row + 1], alone.state.h)
    assert padded.state.count.tolist() == [7, 4, 2]
    flags = torch.zeros(T, B, dtype=torch.bool)
    flags[3] = True
    close(scan(one, inputs(), reset=flags).output[3:], scan(one, inputs()[3:]).output)
    flags[5, 1] = True
    with pytest.raises(ValueError, match="set max_memory="):
        scan(one, inputs(), reset=flags)


def test_an_error_inside_a_step_is_not_taken_for_missing_info() -> None:
    class Fails(Leaky):
        def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
            raise ValueError("too many values to unpack")

    with pytest.raises(ValueError, match="too many values to unpack"):
        scan(Fails(D, H), torch.randn(T, B, D), need_info=True)


@pytest.mark.parametrize("kind", [LSTMCell, GRUCell, RNNCell])
def test_a_subclass_with_its_own_step_is_run_by_it_everywhere(kind: Any) -> None:
    class Twice(kind):
        def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
            return super().step(2 * projected, state, noise)

    one = Twice(D, H)
    x = torch.randn(T, B, D)
    output = one.step(one.project(x[0]), one.initial_state(B))[0]
    for found in (scan(one, x[:1], backend="eager").output[0], scan(one, x[:1]).output[0], one(x[0])[0]):
        torch.testing.assert_close(found, output, rtol=0, atol=1e-6)
    torch.testing.assert_close(Recurrent(one, D)(x[:1])[0][0], output, rtol=0, atol=1e-6)
    assert float((output - kind.step(one, one.project(x[0]), one.initial_state(B))[0]).detach().abs().max()) > 1e-3


@pytest.mark.user_input
def test_bad_inputs_are_named() -> None:
    one, x = cell(), inputs()
    noisy = cell(Noisy)
    cases: list[tuple[type[Exception], str, Any]] = [
        (ValueError, r"expected an input of shape \(T, B, 2\), got \(7, 3\)", lambda: scan(one, x[..., 0])),
        (TypeError, "one tensor", lambda: scan(one, (x, x))),
        (TypeError, "a tuple of up to 2", lambda: scan(Pair(), x)),
        (ValueError, "leading sizes differ", lambda: scan(Pair(), (torch.zeros(7, 3, 3), torch.zeros(7, 2, 2)))),
        (ValueError, r"noise .* must lead with \(7, 3\)", lambda: scan(noisy, x, noise=noisy.noise(T, 1))),
        (ValueError, "truncate=0", lambda: scan(one, x, truncate=0)),
        (ValueError, "checkpoint=0", lambda: scan(one, x, checkpoint=0)),
        (ValueError, "hoist=0", lambda: scan(one, x, hoist=0)),
        (ValueError, "size=0", lambda: list(scan_chunks(one, x, size=0))),
        (ValueError, "use scan", lambda: list(scan_chunks(one, x, size=2, reverse=True))),
        (ValueError, "backend='fast'", lambda: scan(one, x, backend="fast")),
        (ValueError, "compile='all'", lambda: scan(one, x, compile="all")),
        (ValueError, "reverse=True", lambda: scan(one, x, reset=torch.zeros(T, B), reverse=True)),
        (ValueError, "Leaky has no fused path", lambda: scan(cell(Leaky), x, backend="kernel")),
        (ValueError, "checkpoints go through", lambda: scan(one, x, backend="kernel", checkpoint=2)),
        (ValueError, "plain loop", lambda: scan(one, x, keep_states=True, checkpoint=2)),
        (ValueError, r"lengths\[1\] is -1; it must be between 0", lambda: scan(one, x, lengths=[1, -1, 1])),
        (TypeError, r"expected LSTMState\(h: float64 \(3, 4\), c: .*\), got GRUState", lambda: scan(one, x, gru())),
        (ValueError, "float32", lambda: scan(one, x, LSTMState(torch.zeros(B, H), torch.zeros(B, H)))),
        (TypeError, "Leaky records nothing", lambda: scan(cell(Leaky), x, need_info=True)),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()


def gru() -> Any:
    return GRUCell(D, H).initial_state(B)


def test_unrolled_compilation_of_many_steps_warns_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    with pytest.warns(UserWarning, match="unrolls all 65 steps"):
        scan(cell(), inputs(65), compile="scan", backend="eager")


def test_errors_of_the_cell_itself_come_through() -> None:
    class Failing(Leaky):
        def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
            raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        scan(cell(Failing), inputs())
