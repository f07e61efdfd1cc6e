"""BRIMs: the method as written down, what is above and below, one layer."""

from typing import Any

import pytest
import torch

from mechanisms.recurrent import RelevancyScreening, SparseAttentiveBacktracking, Zoneout, check_cell
from mechanisms.recurrent._trees import tree_map
from mechanisms.recurrent.bidirectional_rims import BRIMCell, RIMCell, RIMState
from mechanisms.recurrent.checks import RULES
from mechanisms.recurrent.scan import scan
from tests.recurrent.modular import SMALL, draw, slow_run, small_brim

VARIANTS: list[dict[str, Any]] = [
    {},
    {"layers": 3},
    {"layers": 3, "top_down": "top", "cell": "gru"},
    {"layers": 3, "top_down": None},
    {"layers": 2, "input_heads": 2, "block_inactive_grad": False},
    {"layers": 2, "comm_source": "held"},
    {"layers": 1},
    {"layers": 2, "top_down": None, "input_heads": 2, "communicate": False},
]


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("options", VARIANTS)
def test_outputs_and_gradients_are_those_of_the_method_as_written_down(options: dict[str, Any], noisy: bool) -> None:
    cell = small_brim(**options)
    layers = [cell.layer(place) for place in range(len(cell.layers))]
    x = draw(3, 2, 3)
    noise = cell.noise(3, 2, generator=torch.Generator().manual_seed(1)) if noisy else None
    output, state, info = scan(cell.train(noisy), x, noise=noise, need_info=True)
    rows = []
    for b in range(2):
        own = None if noise is None else tree_map(lambda leaf, b=b: leaf[:, b], noise)
        found = slow_run(layers, cell.above, (x[:, b],), own)
        rows.append(torch.stack([step[-1].h.flatten() for step in found]))
        for place, layer in enumerate(state):
            torch.testing.assert_close(layer.h[b], found[-1][place].h, rtol=0, atol=1e-12)
            for t, step in enumerate(found):
                assert info[place].mask[t, b].nonzero().flatten().tolist() == step[place].active
                torch.testing.assert_close(info[place].alpha[t, b], step[place].alpha, rtol=0, atol=1e-12)
    want = torch.stack(rows, 1)
    torch.testing.assert_close(output, want, rtol=0, atol=1e-12)
    mine, theirs = (
        torch.autograd.grad(one.cos().sum(), list(cell.parameters()), allow_unused=True, materialize_grads=True)
        for one in (output, want)
    )
    for one, two in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-11)


def test_it_keeps_the_contract() -> None:
    def make() -> BRIMCell:
        torch.manual_seed(0)
        return BRIMCell(3, [3, 2], [3, 2], [2, 1], **SMALL)

    check_cell(make, compile=False, gradcheck=False)  # gradients are compared with the slow form's above


@pytest.mark.unhooked
def test_a_step_compiles_as_one_graph() -> None:
    check_cell(lambda: small_brim(), skip=set(RULES) - {"compile"})


def test_one_layer_is_a_layer_of_rims() -> None:
    brim = small_brim(1)
    x = draw(6, 2, 3)
    for training in (True, False):
        noise = brim.train(training).noise(6, 2, generator=torch.Generator().manual_seed(0))
        one = scan(brim, x, noise=noise, backend="eager")
        two = scan(brim.layer(0), x, noise=None if noise is None else noise[0], backend="eager")
        assert torch.equal(one.output, two.output)
        assert torch.equal(one.state[0].h, two.state.h)


def test_without_top_down_it_is_a_stack_of_rims() -> None:
    brim = small_brim(3, top_down=None).eval()
    x = draw(6, 2, 3)
    output = x
    for place in range(3):
        output = scan(brim.layer(place), output, backend="eager").output
    torch.testing.assert_close(scan(brim, x, backend="eager").output, output, rtol=0, atol=1e-13)


def test_a_slot_without_weights_still_takes_attention() -> None:
    brim = small_brim(2).eval()
    bottom = brim.layer(0).input_attention
    assert bottom.key is not None
    assert bottom.query is not None
    with torch.no_grad():
        bottom.key[1].weight.zero_()
        bottom.value[1].weight.zero_()
    state = tree_map(lambda leaf: draw(*leaf.shape), brim.initial_state(2))
    x = draw(2, 3)
    info = brim.step(brim.project(x), state, need_info=True)[2][0]
    key = bottom.slot(0, x)[0]
    assert key is not None
    e = bottom.scores(bottom.query(state[0].h), key.unsqueeze(1))[..., 0]
    torch.testing.assert_close(info.alpha[..., 1], e.exp() / (2 + e.exp()), rtol=0, atol=1e-14)
    torch.testing.assert_close(info.alpha[..., 2], 1 / (2 + e.exp()), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("top_down", "reach"), [("next", (1, 2)), ("top", (2, 2)), (None, (None, None))])
def test_a_layer_reads_the_layer_above_at_the_step_before(top_down: str | None, reach: tuple[Any, Any]) -> None:
    brim = small_brim(3, top_down=top_down).eval()
    assert brim.above == (*reach, None)
    state = tree_map(lambda leaf: draw(*leaf.shape).requires_grad_(), brim.initial_state(1))
    _, new = brim(draw(1, 3), state)
    for place, above in enumerate(brim.above[:1]):
        found = torch.autograd.grad(new[place].h.sum(), [one.h for one in state], allow_unused=True, retain_graph=True)
        felt = {layer for layer, gradient in enumerate(found) if gradient is not None and bool(gradient.any())}
        assert felt == {place} | ({above} if above is not None else set())


def test_each_layer_holds_all_but_its_own_number_of_modules() -> None:
    brim = small_brim(3)
    info = scan(brim, draw(7, 4, 3), need_info=True).info
    assert [int(one.mask.sum(-1).unique()) for one in info] == [2, 2, 3]


def test_one_module_per_layer_is_attention_and_hierarchy_without_modules() -> None:
    cell = BRIMCell(3, [4, 5], [1, 1], [1, 1], communicate=False, **SMALL)
    output, _, info = scan(cell, torch.randn(4, 2, 3), need_info=True)
    assert output.shape == (4, 2, 5)
    assert info[0].alpha.shape == (4, 2, 1, 1, 3)
    assert bool(info[0].mask.all())


@pytest.mark.user_input
def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="one entry for each layer"):
        BRIMCell(3, [4, 5], [6], [2, 2])
    with pytest.raises(ValueError, match="one entry for each layer"):
        BRIMCell(3, 4, 6, 2)
    with pytest.raises(ValueError, match="one entry for each layer"):
        BRIMCell(3, [], [], [])
    with pytest.raises(ValueError, match="num_active=7 of num_modules=6"):
        BRIMCell(3, [4, 5], [6, 3], [7, 2])
    with pytest.raises(ValueError, match="'next', 'top'"):
        BRIMCell(3, [4, 5], [6, 3], [2, 2], top_down="all")
    with pytest.raises(ValueError, match="whole state"):
        BRIMCell(3, [4, 5], [6, 3], [2, 2], readout="active")


@pytest.mark.user_input
def test_wrong_states_say_what_to_do() -> None:
    cell = BRIMCell(3, [4, 5], [6, 3], [2, 2])
    good = cell.initial_state(2)
    with pytest.raises(ValueError, match=r"call .reshape\(2, 6, 4\)"):
        cell(torch.ones(2, 3), (RIMState(torch.zeros(2, 24), torch.zeros(2, 24)), good[1]))
    with pytest.raises(TypeError, match="does not belong to BRIMCell"):
        cell(torch.ones(2, 3), good[0])


def test_wrappers_around_it_are_refused() -> None:
    with pytest.raises(TypeError, match="BRIMCell has no leaves that Zoneout may hold"):
        Zoneout(small_brim(), 0.1)
    for wrapper in (SparseAttentiveBacktracking, RelevancyScreening):
        with pytest.raises(TypeError, match="BRIMCell"):
            wrapper(small_brim())


def test_layers_are_cells_of_their_own() -> None:
    assert all(isinstance(layer, RIMCell) for layer in small_brim(3).layers)
