"""Whole sequences of RIM and BRIM cells in the kernel equal single steps: outputs, states, gradients."""

import ctypes
import mmap
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechanisms._base import compiled
from mechanisms.recurrent import _native as native
from mechanisms.recurrent import _rim_jobs as rim_jobs
from mechanisms.recurrent import _rim_kernel as rim_kernel
from mechanisms.recurrent import kernels
from mechanisms.recurrent._trees import tensors, tree_map
from mechanisms.recurrent.brim_cell import BRIMCell
from mechanisms.recurrent.protocol import Cell
from mechanisms.recurrent.rim_cell import RIMCell
from mechanisms.recurrent.rim_layers import BRIM, RIM
from mechanisms.recurrent.scan import scan

needs_compiler = pytest.mark.skipif(kernels.unavailable(torch.zeros(1)) is not None, reason="no compiler")
pytestmark = needs_compiler
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
SMALL = {"key_size": 9, "comm_key_size": 3, "comm_value_size": 5, "qkv_std": 0.6}
CELLS: dict[str, Callable[..., Cell]] = {
    "one layer": lambda **options: RIMCell(7, 5, 6, 3, **{**SMALL, **options}),
    "two slots": lambda **options: RIMCell((7, 7), 5, 6, 3, **{**SMALL, **options}),
    "two layers": lambda **options: BRIMCell(7, [5, 17], [4, 3], [2, 2], **{**SMALL, **options}),
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"cell": "gru"},
    {"comm_source": "held"},
    {"cell": "gru", "comm_source": "held", "input_heads": 3},
    {"block_inactive_grad": False},
    {"cell": "gru", "block_inactive_grad": False, "input_heads": 2},
    {"input_heads": 4, "value_size": 3},
    {"communicate": False},
    {"cell": "gru", "communicate": False, "comm_source": "held"},
    {"input_dropout": 0.0, "comm_dropout": 0.5},
]


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Case:
    """A cell with an input, a state that is not zero, and noise."""

    def __init__(self, cell: Cell, steps: int = 6, rows: int = 7, dtype: torch.dtype = torch.float64) -> None:
        self.cell = cell.to(dtype)
        torch.manual_seed(0)
        sizes = (cell.input_size,) if isinstance(cell.input_size, int) else cell.input_size
        leaves = [
            randn(steps, rows, size, seed=place, dtype=dtype).requires_grad_() for place, size in enumerate(sizes)
        ]
        self.x = leaves[0] if isinstance(cell.input_size, int) else tuple(leaves)
        zeros = cell.initial_state(rows)
        self.state = tree_map(lambda leaf: randn(*leaf.shape, seed=leaf.numel(), dtype=dtype).requires_grad_(), zeros)
        self.noise = cell.noise(steps, rows, generator=torch.Generator().manual_seed(3))

    def run(
        self, backend: str, x: Any = None, noise: Any = None, **options: Any
    ) -> tuple[list[Tensor], dict[str, Any]]:
        """Outputs and states; gradients by name, `None` where none is wanted."""
        x = self.x if x is None else x
        noise = self.noise if noise is None else noise
        output, state = scan(self.cell, x, self.state, noise=noise, backend=backend, **options)
        leaves = [output, *tensors(state)]
        loss = sum(((leaf * randn(*leaf.shape, seed=place).to(leaf)).sum() for place, leaf in enumerate(leaves)))
        own = {f"x{place}": leaf for place, leaf in enumerate(tensors(self.x))}
        own |= {f"state{place}": leaf for place, leaf in enumerate(tensors(self.state))}
        own |= dict(self.cell.named_parameters())
        wanted = {name: leaf for name, leaf in own.items() if leaf.requires_grad}
        assert isinstance(loss, Tensor)
        found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, materialize_grads=True)
        return leaves, dict(zip(wanted, found, strict=True))


def check_same(one: Any, other: Any, tolerance: float) -> None:
    for a, b in zip(one[0], other[0], strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    assert one[1].keys() == other[1].keys()
    for name, a in one[1].items():
        scale = max(1.0, float(a.abs().max())) if a.numel() else 1.0
        torch.testing.assert_close(
            other[1][name], a, rtol=0, atol=10 * tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(f"{k}={v}" for k, v in options.items()))
@pytest.mark.parametrize("kind", CELLS)
def test_outputs_states_and_gradients_equal_single_steps(kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    case = Case(CELLS[kind](**options))
    expected = case.run("eager")
    check_same(expected, case.run("kernel"), TOLERANCE[torch.float64])
    with torch.no_grad():
        output, _ = scan(case.cell, case.x, case.state, noise=case.noise, backend="kernel")
    torch.testing.assert_close(output, expected[0][0], rtol=0, atol=TOLERANCE[torch.float64])


@pytest.mark.parametrize("kind", CELLS)
def test_float32_differs_by_rounding(kind: str) -> None:
    torch.manual_seed(0)
    case = Case(CELLS[kind](), dtype=torch.float32)
    check_same(case.run("eager"), case.run("kernel"), TOLERANCE[torch.float32])


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 19), st.integers(1, 7), st.integers(1, 18), st.integers(1, 3), st.integers(1, 18)),
    steps=st.integers(1, 3),
    rows=st.integers(1, 8),
    data=st.data(),
)
def test_any_size(sizes: tuple[int, ...], steps: int, rows: int, data: Any) -> None:
    hidden, modules, key, heads, talk = sizes
    active = data.draw(st.integers(1, modules))
    torch.manual_seed(0)
    options = {"key_size": key, "input_heads": heads, "value_size": hidden, "comm_key_size": talk, "comm_heads": heads}
    case = Case(RIMCell(3, hidden, modules, active, qkv_std=0.5, **options), steps, rows)
    check_same(case.run("eager"), case.run("kernel"), TOLERANCE[torch.float64])


@pytest.mark.parametrize("top_down", ["next", "top", None])
def test_three_layers(top_down: str | None) -> None:
    torch.manual_seed(0)
    case = Case(BRIMCell(3, [5, 4, 3], [4, 3, 2], [2, 2, 1], top_down=top_down, **SMALL))
    check_same(case.run("eager"), case.run("kernel"), TOLERANCE[torch.float64])


def test_without_input_attention_or_with_inactive_modules_left_out_of_the_output() -> None:
    torch.manual_seed(0)
    for cell in (RIMCell(7, 5, 4, 4, input_attention=False), RIMCell(7, 5, 4, 2, readout="active", **SMALL)):
        case = Case(cell)
        check_same(case.run("eager"), case.run("kernel"), TOLERANCE[torch.float64])


@pytest.mark.parametrize("kind", CELLS)
def test_lengths_resets_and_cuts_equal_single_steps(kind: str) -> None:
    torch.manual_seed(0)
    case = Case(CELLS[kind]())
    reset = torch.zeros(6, 7, dtype=torch.bool)
    reset[3, ::2] = True
    for options in ({"lengths": [3, 6, 0, 1, 5, 4, 2]}, {"reset": reset}, {"truncate": 4}):
        check_same(case.run("eager", **options), case.run("kernel", **options), TOLERANCE[torch.float64])


def test_under_autocast_it_computes_in_the_parameters_type() -> None:
    torch.manual_seed(0)
    cell, x = CELLS["two layers"]().eval(), randn(3, 2, 7, seed=0, dtype=torch.float32)
    expected = scan(cell, x, backend="kernel").output
    with torch.autocast("cpu", torch.bfloat16):
        found = scan(cell, x, backend="kernel").output
        found.sum().backward()
    assert torch.equal(found, expected)


def test_memory_between_steps_may_have_any_layout() -> None:
    torch.manual_seed(0)
    case = Case(CELLS["one layer"]())
    turned = case.x.transpose(0, 1).contiguous().transpose(0, 1)
    noise = tree_map(lambda leaf: leaf.transpose(1, 2).contiguous().transpose(1, 2), case.noise)
    check_same(case.run("kernel"), case.run("kernel", turned, noise), TOLERANCE[torch.float64])


@pytest.mark.parametrize("kind", CELLS)
def test_chunks_and_threads_change_no_more_than_rounding(kind: str, monkeypatch) -> None:
    torch.manual_seed(0)
    case = Case(CELLS[kind](block_inactive_grad=False))
    expected = case.run("kernel")
    monkeypatch.setattr(rim_kernel, "GATHERED", 1 << 15)
    monkeypatch.setattr(rim_kernel, "threads_for", lambda *sizes: 3)
    check_same(expected, case.run("kernel"), TOLERANCE[torch.float64])
    with torch.no_grad():
        output, state = scan(case.cell, case.x, case.state, noise=case.noise, backend="kernel")
    for a, b in zip([output, *tensors(state)], expected[0], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE[torch.float64])


@pytest.mark.parametrize("threads", [1, 2])
def test_sequences_longer_than_what_is_made_ahead(threads: int, monkeypatch) -> None:
    assert f"#define AHEAD {rim_kernel.AHEAD} " in (native.HERE / "rims.h").read_text()
    torch.manual_seed(0)
    monkeypatch.setattr(rim_kernel, "threads_for", lambda *sizes: threads)
    case = Case(RIMCell(7, 3, 3, 2, **SMALL), steps=rim_kernel.AHEAD + 6, rows=3)
    expected = case.run("eager")
    check_same(expected, case.run("kernel"), 10 * TOLERANCE[torch.float64])
    with torch.no_grad():
        output, _ = scan(case.cell, case.x, case.state, noise=case.noise, backend="kernel")
    torch.testing.assert_close(output, expected[0][0], rtol=0, atol=TOLERANCE[torch.float64])


@pytest.mark.parametrize("kind", CELLS)
def test_frozen_parameters_get_no_gradient_and_change_none_of_the_others(kind: str) -> None:
    torch.manual_seed(0)
    case = Case(CELLS[kind]())
    _, everything = case.run("kernel")
    for part in ("dynamics", "input_attention", "communication"):
        for name, parameter in case.cell.named_parameters():
            parameter.requires_grad_(part not in name)
        _, found = case.run("kernel")
        assert not any(part in name for name in found)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, everything[name], rtol=0, atol=1e-13)


def test_nothing_is_gathered_for_weights_that_are_frozen(monkeypatch) -> None:
    torch.manual_seed(0)
    case = Case(CELLS["one layer"]())
    for name, parameter in case.cell.named_parameters():
        parameter.requires_grad_("communication" in name)
    made: list[Any] = []
    finish = rim_kernel.LayerGradients.finish

    def seen(self: Any, *rest: Any) -> None:
        made.append((self.job.rows, set(self.sums)))
        finish(self, *rest)

    monkeypatch.setattr(rim_kernel.LayerGradients, "finish", seen)
    case.run("kernel")
    assert made == [(None, {"talk", "delta", "delta_bias"})]


@pytest.mark.parametrize("kind", ["one layer", "two layers"])
def test_a_step_without_gradients_is_the_step(kind: str) -> None:
    torch.manual_seed(0)
    case = Case(CELLS[kind]().eval())
    expected = case.cell(case.x[0], case.state)
    with torch.no_grad():
        found = case.cell(case.x[0], case.state)
    for a, b in zip([found[0], *tensors(found[1])], [expected[0], *tensors(expected[1])], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE[torch.float64])
    assert type(found[1]) is type(expected[1])


def test_modules_that_lose_keep_their_state_to_the_bit_and_ties_go_to_the_first() -> None:
    torch.manual_seed(0)
    case = Case(CELLS["one layer"](), steps=1)
    with torch.no_grad():
        _, _, info = scan(case.cell, case.x, case.state, noise=case.noise, need_info=True)
        _, fast = scan(case.cell, case.x, case.state, noise=case.noise, backend="kernel")
        assert torch.equal(fast.h[~info.mask[0]], case.state.h[~info.mask[0]])
        assert torch.equal(fast.c[~info.mask[0]], case.state.c[~info.mask[0]])
        _, first = scan(case.cell, case.x, noise=case.noise, backend="kernel")
    moved = (first.h != 0).any(2)
    assert bool(moved[:, :3].all())
    assert not bool(moved[:, 3:].any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("least", [-9.0, 5.0, 18.0, 30.0, 85.0])
def test_of_modules_that_all_attend_strongly_the_strongest_win(
    least: float, heads: int, slots: int, dtype: torch.dtype
) -> None:
    cell = RIMCell((1,) * slots, 1, 4, 2, key_size=1, value_size=1, input_heads=heads, communicate=False, dtype=dtype)
    x = tuple(torch.ones(1, 1, 1, dtype=dtype) for _ in range(slots))
    state = tree_map(torch.ones_like, cell.initial_state(1))
    with torch.no_grad():
        for key in cell.input_attention.key:
            key.weight.fill_(1)
        cell.input_attention.query.weight[:] = least + 0.01 * torch.arange(4).view(4, 1, 1)
        for backend in ("eager", "kernel"):
            found = scan(cell.eval(), x, state, backend=backend).state
            assert (found.h != state.h).flatten().tolist() == [False, False, True, True]


def test_nan_stays_in_its_row() -> None:
    torch.manual_seed(0)
    cell = CELLS["one layer"]().eval()
    x = randn(3, 2, 7, seed=0, dtype=torch.float32)
    x[1, 0] = torch.nan
    output = scan(cell, x, backend="kernel").output
    assert bool(output[1:, 0].isnan().any())
    assert not bool(output[:, 1].isnan().any())


@pytest.mark.parametrize("kind", ["one layer", "two layers"])
def test_gradients_of_gradients_are_refused_or_taken_through_single_steps(kind: str) -> None:
    torch.manual_seed(0)
    cell, x = CELLS[kind](), randn(3, 2, 7, seed=0, dtype=torch.float32).requires_grad_()
    with pytest.raises(RuntimeError, match="no gradients of gradients"):
        torch.autograd.grad(scan(cell, x).output.sum(), x, create_graph=True)
    output = scan(cell, x, twice_differentiable=True).output
    (first,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    first.square().sum().backward()


def test_backward_twice_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    case = Case(CELLS["two layers"]())
    output = scan(case.cell, case.x, case.state, noise=case.noise, backend="kernel").output
    found = [torch.autograd.grad(output.sum(), case.x, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", CELLS)
def test_without_a_compiler_the_numbers_are_the_same(kind: str, monkeypatch) -> None:
    torch.manual_seed(0)
    case = Case(CELLS[kind]())
    before = case.run("auto")
    monkeypatch.setattr(compiled, "_loaded", {})
    monkeypatch.setenv("CC", "/nonexistent")
    check_same(before, case.run("auto"), TOLERANCE[torch.float64])
    with pytest.raises(ValueError, match="no fused path"):
        case.run("kernel")


def test_what_the_kernel_does_not_compute_goes_through_single_steps() -> None:
    torch.manual_seed(0)
    x = randn(3, 2, 7, seed=0, dtype=torch.float32)

    class Own(RIMCell):
        pass

    hooked = CELLS["one layer"]()
    hooked.input_attention.value[0].register_forward_hook(lambda *call: 2 * call[-1])
    heard = CELLS["one layer"]()
    heard.communication.register_forward_hook(lambda module, given, found: (2 * found[0], found[1]))
    stack = CELLS["two layers"]()
    stack.layers[1] = Own(20, 17, 3, 2)
    three = RIMCell((7, 7, 7), 5, 4, 2)
    for cell, inputs in (
        (heard, x),
        (stack, x),
        (Own(7, 5, 4, 2), x),
        (RIMCell(7, 5, 4, 2, competition="modules"), x),
        (hooked, x),
        (three, (x, x, x)),
        (CELLS["one layer"]().to(torch.bfloat16), x.bfloat16()),
    ):
        with pytest.raises(ValueError, match="no fused path"):
            scan(cell, inputs, backend="kernel")
        torch.testing.assert_close(
            *(scan(cell.eval(), inputs, backend=backend).output for backend in ("auto", "eager")), rtol=0, atol=0
        )


def test_masks_are_flags() -> None:
    cell, x = CELLS["one layer"](), randn(3, 2, 7, seed=0, dtype=torch.float32)
    noise = tree_map(lambda leaf: 2 * leaf.byte(), cell.noise(3, 2))
    with pytest.raises(ValueError, match="no fused path"):
        scan(cell, x, noise=noise, backend="kernel")


@pytest.mark.unhooked
@pytest.mark.parametrize("network", [RIM(7, 5, 4, 2), BRIM(7, [5, 4], [3, 2], [2, 1])], ids=["RIM", "BRIM"])
def test_a_compiled_loop_has_no_breaks(network: Any) -> None:
    x = randn(2, 2, 7, seed=0, dtype=torch.float32)
    found = torch.compile(network.eval(), fullgraph=True, backend="eager")(x)[0]
    torch.testing.assert_close(found, network(x)[0])


def test_what_would_be_read_out_of_bounds_is_refused() -> None:
    cell = CELLS["one layer"]()
    x = randn(3, 2, 7, seed=0, dtype=torch.float32)
    for name, weight in (("weight_hh", cell.dynamics.weight_ih), ("bias", cell.dynamics.weight_ih)):
        broken = CELLS["one layer"]()
        setattr(broken.dynamics, name, weight)
        with pytest.raises(ValueError, match="it must be"):
            scan(broken, x, backend="kernel")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="guards memory as Linux does")
@pytest.mark.parametrize("inputs", [1, 3])
def test_nothing_is_read_behind_the_input(inputs: int) -> None:
    torch.manual_seed(0)
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + page), page, 0) == 0  # touching it ends the process
    steps, rows = 3, 5
    count = steps * rows * inputs
    x = torch.frombuffer(memory, dtype=torch.float64, count=count, offset=page - 8 * count).view(steps, rows, inputs)
    x.copy_(randn(steps, rows, inputs, seed=0))
    case = Case(RIMCell(inputs, 5, 4, 2, **SMALL), steps, rows)
    check_same(case.run("eager", x), case.run("kernel", x), TOLERANCE[torch.float64])


@pytest.mark.parametrize(
    ("job", "name"),
    [(rim_jobs.SlotJob, "Slot"), (rim_jobs.LayerJob, "Layer"), (rim_jobs.StackJob, "Stack")],
)
def test_the_structs_are_those_of_the_source(job: Any, name: str) -> None:
    text = (native.HERE / "rims.h").read_text().split(f"struct {name} {{")[1].split("};")[0]
    code = " ".join(line.split("//")[0] for line in text.splitlines())
    declarations = [declaration for declaration in code.split(";") if declaration.strip()]
    names = [part.split()[-1].lstrip("*").split("[")[0] for one in declarations for part in one.split(",")]
    assert names == [field for field, *_ in job._fields_]
    assert ctypes.sizeof(job) == sum(ctypes.sizeof(kind) for _, kind in job._fields_)
