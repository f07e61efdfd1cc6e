"""Zoneout: exact limits, masks and their statistics, the paper's formulas, cells of the protocol."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mechanisms.recurrent.cells import GRUCell, GRUState, LSTMCell, LSTMState, ModReLU, RNNCell, RNNState
from mechanisms.recurrent.checks import check_cell
from mechanisms.recurrent.protocol import Cell, Noise
from mechanisms.recurrent.scan import scan
from mechanisms.recurrent.zoneout import MASKS, Zoneout, draw_masks, zoneout

CELLS = {
    "lstm": lambda: LSTMCell(3, 4),
    "gru": lambda: GRUCell(3, 4),
    "rnn": lambda: RNNCell(3, 4),
    "relu": lambda: RNNCell(3, 4, nonlinearity="relu"),
}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class Linear(Cell):
    """h' = x W + h U: the network whose expectation is exact."""

    zoneable = ("h",)

    def __init__(self, size: int) -> None:
        super().__init__()
        self.input_size, self.output_size = size, size
        generator = torch.Generator().manual_seed(0)
        self.w, self.u = (nn.Parameter(torch.randn(size, size, dtype=torch.float64, generator=generator)) for _ in "wu")

    def initial_state(self, batch_size, *, device=None, dtype=None):
        return RNNState(self.w.new_zeros(batch_size, self.output_size, device=device, dtype=dtype))

    def project(self, inputs):
        return inputs @ self.w

    def step(self, projected, state, noise=None, *, need_info=False):
        h = projected + state.h @ self.u
        return h, RNNState(h)


# --- the formula ------------------------------------------------------------------------------------------------------


def test_a_kept_unit_is_the_old_one_to_the_bit_and_passes_its_gradient() -> None:
    new, old = (torch.randn(1000, requires_grad=True) for _ in range(2))
    mask = torch.rand(1000) < 0.3
    held = zoneout(new, old, 0.3, training=True, mask=mask)
    assert torch.equal(held, torch.where(mask, old, new))
    held.sum().backward()
    assert torch.equal(old.grad, mask.float())
    assert torch.equal(new.grad, (~mask).float())


def test_it_is_inverted_dropout_of_the_difference() -> None:
    new, old = (torch.randn(50, dtype=torch.float64) for _ in range(2))
    mask, rate = torch.rand(50) < 0.3, 0.3
    dropped = (new - old) * ~mask / (1 - rate)
    held = zoneout(new, old, rate, training=True, mask=mask)
    torch.testing.assert_close(held, old + (1 - rate) * dropped, rtol=0, atol=1e-15)


def test_rates_per_unit() -> None:
    rates = torch.tensor([0.0, 1.0, 0.25])
    new, old = torch.ones(3), torch.zeros(3)
    assert zoneout(new, old, rates, training=False).tolist() == [1.0, 0.0, 0.75]
    held = zoneout(new.expand(500, 3), old.expand(500, 3), rates, training=True)
    assert held[:, 0].eq(1).all()
    assert held[:, 1].eq(0).all()
    assert 0 < held[:, 2].mean() < 1


@pytest.mark.parametrize("training", [True, False])
def test_rates_zero_and_one_draw_nothing(training: bool) -> None:
    new, old, generator = torch.randn(9), torch.randn(9), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert torch.equal(zoneout(new, old, 0, training=training, generator=generator), new)
    assert torch.equal(zoneout(new, old, 1, training=training, generator=generator), old)
    zoneout(new, old, 0.5, training=False, generator=generator)
    assert torch.equal(before, generator.get_state())


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.5, 0.95])
def test_masks_keep_the_right_share_at_each_place_of_a_word(rate: float) -> None:
    """Six standard errors: two in a thousand million by chance."""
    masks = draw_masks((1_000_000,), rate, torch.Generator().manual_seed(0))
    assert abs(masks.double().mean() - rate) < 6 * math.sqrt(rate * (1 - rate) / 1e6)
    for place in range(4):
        share = masks[place::4].double().mean()
        assert abs(share - rate) < 6 * math.sqrt(rate * (1 - rate) / 250_000)


def test_masks_are_independent_over_steps_rows_units_and_leaves() -> None:
    cell = Zoneout(LSTMCell(1, 50), {"h": 0.5, "c": 0.5})
    noise = cell.noise(100, 200, generator=torch.Generator().manual_seed(0))
    signs = {leaf: 2.0 * mask - 1 for leaf, mask in noise.own.items()}
    h = signs["h"]
    pairs = {
        "steps": h[1:] * h[:-1],
        "rows": h[:, 1:] * h[:, :-1],
        "units": h[..., 1:] * h[..., :-1],
        "next but three": h[..., 4:] * h[..., :-4],
        "leaves": h * signs["c"],
    }
    for name, products in pairs.items():
        assert abs(products.mean()) < 6 / math.sqrt(products.numel()), name


def test_layer_masks_are_one_draw_for_all_units() -> None:
    cell = Zoneout(LSTMCell(3, 4), 0.5, mask="layer")
    own = cell.noise(50, 6).own
    assert own["h"].shape == (50, 6, 4)
    assert torch.equal(own["h"], own["h"][..., :1].expand(-1, -1, 4))
    assert not torch.equal(own["h"], own["c"])
    assert own["h"][..., 0].float().std() > 0


def test_shared_masks_are_the_same_for_memory_and_hidden_state() -> None:
    own = Zoneout(LSTMCell(3, 4), 0.5, share_mask=True).noise(50, 6).own
    assert torch.equal(own["h"], own["c"])
    nested = Zoneout(LSTMCell(3, 4), {"h": 0.2, "c": 0.5}, share_mask=True).noise(50, 6).own
    assert (nested["c"] | ~nested["h"]).all()


def test_static_masks_are_fixed_counted_per_row_and_saved() -> None:
    cell = Zoneout(RNNCell(3, 4), 0.5, mask="static", max_length=3).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    trained, evaluated = scan(cell.train(), x), scan(cell.eval(), x)
    assert torch.equal(trained.output, evaluated.output)
    assert evaluated.state.step.tolist() == [5, 5]
    h = torch.zeros(2, 4, dtype=torch.float64)
    for t in range(5):
        fresh, _ = cell.cell(x[t], RNNState(h))
        h = torch.where(cell.static_h[t % 3], h, fresh)
        torch.testing.assert_close(evaluated.output[t], h, rtol=0, atol=1e-12)
    again = Zoneout(RNNCell(3, 4), 0.5, mask="static", max_length=3).double()
    again.load_state_dict(cell.state_dict())
    assert torch.equal(scan(again, x).output, evaluated.output)
    cut = scan(cell, x, lengths=[5, 2])
    assert cut.state.step.tolist() == [5, 2]
    assert cell.reset(cut.state, torch.tensor([True, False])).step.tolist() == [0, 2]


def test_the_generator_decides_and_evaluation_and_rate_zero_leave_it_alone() -> None:
    x = torch.randn(6, 2, 3)
    cell = Zoneout(LSTMCell(3, 4), 0.5)
    first, second, other = (scan(cell, x, generator=torch.Generator().manual_seed(s)).output for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    for quiet in (cell.eval(), Zoneout(LSTMCell(3, 4), 0.0).train(), Zoneout(LSTMCell(3, 4), 1.0).train()):
        generator = torch.Generator().manual_seed(0)
        before = generator.get_state()
        scan(quiet, x, generator=generator)
        assert torch.equal(before, generator.get_state())
        assert quiet.noise(6, 2) is None


# --- sequences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "kernel"])
def test_training_is_the_paper_s_formula(backend: str) -> None:
    cell = Zoneout(LSTMCell(3, 4), {"h": 0.3, "c": 0.6}).double()
    x, (h, c) = torch.randn(7, 2, 3, dtype=torch.float64), torch.randn(2, 2, 4, dtype=torch.float64)
    noise = cell.noise(7, 2)
    found = scan(cell, x, LSTMState(h, c), noise=noise, backend=backend)
    w, u, b1, b2 = (
        getattr(cell.cell, name).detach().numpy() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    h, c = h.numpy(), c.numpy()
    for t in range(7):
        i, f, g, o = np.split(x[t].numpy() @ w.T + b1 + h @ u.T + b2, 4, 1)
        fresh_c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        fresh_h = sigmoid(o) * np.tanh(fresh_c)  # of the memory before it is held
        d_c, d_h = (noise.own[leaf][t].numpy() for leaf in ("c", "h"))
        c, h = d_c * c + (1 - d_c) * fresh_c, d_h * h + (1 - d_h) * fresh_h
        np.testing.assert_allclose(found.output[t].detach().numpy(), h, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.state.c.detach().numpy(), c, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["eager", "kernel"])
@pytest.mark.parametrize("name", CELLS)
def test_evaluation_is_training_with_the_constant_mask(name: str, backend: str) -> None:
    cell = Zoneout(CELLS[name](), 0.3).double()
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    constant = {leaf: torch.full((6, 2, 4), 0.3, dtype=torch.float64) for leaf in cell.rates}
    expected = scan(cell.train(), x, noise=Noise(constant, None), backend="eager")
    found = scan(cell.eval(), x, backend=backend)
    torch.testing.assert_close(found.output, expected.output, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", CELLS)
def test_the_kernel_equals_single_steps(name: str, mask: str) -> None:
    cell = Zoneout(CELLS[name](), 0.4, mask=mask, max_length=3).double()
    x = torch.randn(9, 4, 3, dtype=torch.float64, requires_grad=True)
    noise, tensors = cell.noise(9, 4), [x, *cell.parameters()]
    for lengths in (None, [9, 3, 1, 5]):
        results = []
        for backend in ("eager", "kernel"):
            found = scan(cell, x, noise=noise, lengths=lengths, backend=backend)
            results.append([found.output, *torch.autograd.grad(found.output.cos().sum(), tensors)])
        for one, two in zip(*results, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["eager", "kernel"])
@pytest.mark.parametrize("name", CELLS)
def test_rate_one_never_changes_the_state(name: str, backend: str) -> None:
    cell = Zoneout(CELLS[name](), 1.0).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    start = cell.initial_state(2)
    start = type(start)(*[torch.randn(2, 4, dtype=torch.float64, requires_grad=True) for _ in start])
    output, state = scan(cell, x, start, backend=backend)
    assert torch.equal(output, start.h.expand(5, 2, 4))
    assert all(torch.equal(one, two) for one, two in zip(state, start, strict=True))
    upstream = torch.randn(5, 2, 4, dtype=torch.float64)
    output.backward(upstream)
    torch.testing.assert_close(start.h.grad, upstream.sum(0), rtol=0, atol=1e-12)
    assert all(not parameter.grad.any() for parameter in cell.parameters())


def test_the_expectation_is_exact_for_a_linear_network() -> None:
    """All 2^6 masks of three steps and two units, each with its probability."""
    cell, rate = Zoneout(Linear(2), 0.3), 0.3
    x = torch.randn(3, 1, 2, dtype=torch.float64)
    mean = torch.zeros(1, 2, dtype=torch.float64)
    for bits in itertools.product([False, True], repeat=6):
        mask = torch.tensor(bits).view(3, 1, 2)
        weight = rate ** sum(bits) * (1 - rate) ** (6 - sum(bits))
        mean += weight * scan(cell.train(), x, noise=Noise({"h": mask}, None)).state.h
    torch.testing.assert_close(mean, scan(cell.eval(), x).state.h, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("w", "rate", "expected"), [(-1.0, 0.1, 1.785252), (1.0, 0.1, 0.0), (-1.0, 0.0, 0.0)])
def test_the_toy_of_the_released_code_tells_the_flipping_solution_apart(w: float, rate: float, expected: float) -> None:
    """h <- d h + (1 - d) w h for ten steps, the mean of (h_L - h_0)^2 over all masks."""
    formula = (rate + (1 - rate) * w**2) ** 10 - 2 * (rate + (1 - rate) * w) ** 10 + 1
    assert formula == pytest.approx(expected, abs=1e-6)
    loss = 0.0
    for kept in range(11):  # only the number of steps that keep matters
        h = torch.ones(1, dtype=torch.float64)
        for t in range(10):
            h = zoneout(w * h, h, rate, training=True, mask=torch.tensor([t < kept]))
        loss += math.comb(10, kept) * rate**kept * (1 - rate) ** (10 - kept) * (h.item() - 1) ** 2
    assert loss == pytest.approx(formula, abs=1e-12)


def test_an_open_path_carries_the_gradient_further_back() -> None:
    """The memory's direct path has the factor d + (1 - d) f, which is never below f."""
    torch.manual_seed(0)
    inner = LSTMCell(4, 16).double()
    nn.init.zeros_(inner.bias_ih)
    nn.init.zeros_(inner.bias_hh)
    x = torch.randn(100, 2, 4, dtype=torch.float64)
    far = {}
    for rate in (0.0, 0.5):
        cell = Zoneout(inner, {"c": rate})
        start = LSTMState(*(torch.zeros(2, 16, dtype=torch.float64, requires_grad=True) for _ in "hc"))
        scan(cell, x, start, generator=torch.Generator().manual_seed(0)).output[-1].sum().backward()
        far[rate] = start.c.grad.norm().item()
    assert far[0.5] > 10 * far[0.0]


# --- cells of the protocol --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: Zoneout(LSTMCell(3, 4), {"h": 0.2, "c": 0.5}),
        lambda: Zoneout(LSTMCell(3, 4, learn_initial_state=True), 0.3, mask="layer", share_mask=True),
        lambda: Zoneout(LSTMCell(3, 4), 0.3, mask="static", max_length=4),
        lambda: Zoneout(GRUCell(3, 4), 0.3),
        lambda: Zoneout(RNNCell(3, 4), 0.3),
        lambda: Zoneout(RNNCell(3, 4, nonlinearity=ModReLU(4)), 0.3),
        lambda: Zoneout(LSTMCell(3, 4), 0.0),
        lambda: Zoneout(GRUCell(3, 4), 1.0),
    ],
)
def test_the_contract_of_cells_is_kept(make) -> None:
    check_cell(make, compile=False)


@pytest.mark.unhooked
@pytest.mark.parametrize("mask", MASKS)
def test_a_step_is_one_graph(mask: str) -> None:
    cell = Zoneout(LSTMCell(3, 4), 0.3, mask=mask)
    state, projected = cell.initial_state(2), cell.project(torch.randn(2, 3))
    noise = cell.noise(1, 2)
    noise = None if noise is None else Noise({leaf: one[0] for leaf, one in noise.own.items()}, None)
    expected = cell.step(projected, state, noise)
    compiled = torch.compile(cell.step, fullgraph=True, backend="eager")(projected, state, noise)
    assert torch.equal(expected[0], compiled[0])


def test_a_cell_within_autocast_keeps_float32_and_comes_close() -> None:
    cell = Zoneout(LSTMCell(3, 4), 0.3)
    x, noise = torch.randn(6, 2, 3), cell.noise(6, 2)
    expected = scan(cell, x, noise=noise).output
    for backend in ("eager", "kernel"):
        with torch.autocast("cpu", torch.bfloat16):
            found = scan(cell, x, noise=noise, backend=backend)
            found.output.sum().backward()
        assert found.output.dtype is torch.float32
        assert found.state.c.dtype is torch.float32
        assert (found.output - expected).abs().max() < 0.05


def test_gradients_of_gradients_take_single_steps() -> None:
    cell = Zoneout(GRUCell(3, 4), 0.3).double()
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    output = scan(cell, x, twice_differentiable=True).output
    (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert x.grad.abs().sum() > 0


def test_without_a_compiler_the_numbers_are_the_same(monkeypatch) -> None:
    from mechanisms._base import compiled

    cell, x = Zoneout(LSTMCell(3, 4), 0.3), torch.randn(6, 2, 3)
    noise = cell.noise(6, 2)
    fused = scan(cell, x, noise=noise).output
    monkeypatch.setattr(compiled, "_loaded", {})
    monkeypatch.setenv("CC", "no-such-compiler")
    torch.testing.assert_close(scan(cell, x, noise=noise).output, fused, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="no fused path"):
        scan(cell, x, noise=noise, backend="kernel")


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.user_input
def test_bad_rates_and_cells_are_refused() -> None:
    cell = LSTMCell(3, 4)
    for rate in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\], got"):
            Zoneout(cell, rate)
        with pytest.raises(ValueError, match=r"must be in \[0, 1\], got"):
            zoneout(torch.zeros(2), torch.zeros(2), rate, training=True)
    with pytest.raises(TypeError, match="several rates go by name"):
        Zoneout(cell, (0.5, 0.05))
    with pytest.raises(ValueError, match="'z'; LSTMCell has h, c"):
        Zoneout(cell, {"z": 0.5})
    with pytest.raises(ValueError, match="mask='row'"):
        Zoneout(cell, 0.5, mask="row")
    with pytest.raises(TypeError, match="zone the inner"):
        Zoneout(Zoneout(cell, 0.5), 0.5)
    with pytest.raises(ValueError, match="max_length"):
        Zoneout(cell, 0.5, mask="static", max_length=0)


def test_a_rate_that_looks_like_one_of_updating_warns() -> None:
    with pytest.warns(UserWarning, match="probability of keeping the old value"):
        Zoneout(LSTMCell(3, 4), {"h": 0.95, "c": 0.5})


def test_states_stay_what_they_were() -> None:
    state = Zoneout(GRUCell(3, 4), 0.5)(torch.zeros(2, 3))[1]
    assert isinstance(state, GRUState)
    assert isinstance(state.h, Tensor)


def test_given_masks_between_keep_and_update_are_weights_in_every_backend() -> None:
    cell, x = Zoneout(LSTMCell(3, 4), {"h": 0.05, "c": 0.5}), torch.randn(5, 2, 3)
    noise = Noise({"h": torch.full((5, 2, 4), 0.25), "c": torch.full((5, 2, 4), 0.75)}, None)
    outputs = [scan(cell, x, noise=noise, backend=backend).output for backend in ("auto", "eager")]
    torch.testing.assert_close(*outputs)
