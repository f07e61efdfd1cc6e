"""RIMs: the method as written down, what is held, which gradients are zero, limits, bad input."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mechanisms.recurrent import Recurrent, RelevancyScreening, SparseAttentiveBacktracking, Zoneout, check_cell
from mechanisms.recurrent._trees import tree_map
from mechanisms.recurrent.bidirectional_rims import RIMCell, RIMInfo, RIMState
from mechanisms.recurrent.checks import RULES
from mechanisms.recurrent.rim_states import RIMNoise
from mechanisms.recurrent.scan import scan
from tests.recurrent.modular import SMALL, draw, gradients, inputs_of, slots_of, slow_run, small

VARIANTS: list[dict[str, Any]] = [
    {},
    {"cell": "gru"},
    {"input_heads": 2},
    {"input_heads": 3, "cell": "gru", "comm_source": "held"},
    {"input_size": (3, 2)},
    {"input_size": (3, 2), "input_heads": 2, "block_inactive_grad": False},
    {"comm_source": "held"},
    {"block_inactive_grad": False},
    {"communicate": False},
    {"active": 4},
    {"active": 4, "input_attention": False},
    {"active": 4, "input_attention": False, "input_heads": 2, "communicate": False},
    {"active": 4, "input_attention": False, "input_size": (3, 2), "input_heads": 2},
    {"competition": "modules"},
    {"competition": "modules", "input_heads": 2, "cell": "gru", "active": 3},
    {"competition": "modules", "active": 4},
    {"modules": 1, "active": 1},
    {"comm_value_size": 2, "value_size": 3},
]


# --- the method -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("options", VARIANTS)
def test_outputs_and_gradients_are_those_of_the_method_as_written_down(options: dict[str, Any], noisy: bool) -> None:
    cell = small(**options)
    x = inputs_of(cell, 4, 2)
    if noisy:
        cell.input_dropout, cell.comm_dropout = 0.3, 0.4
    noise = cell.noise(4, 2, generator=torch.Generator().manual_seed(1)) if noisy else None
    output, state, info = scan(cell.train(noisy), x, noise=noise, need_info=True)
    rows = []
    for b in range(2):
        own = None if noise is None else [tree_map(lambda leaf, b=b: leaf[:, b], noise)]
        found = slow_run([cell], (None,), tuple(slot[:, b] for slot in slots_of(x)), own)
        rows.append(torch.stack([step[0].h.flatten() for step in found]))
        for t, (step,) in enumerate(found):
            assert info.mask[t, b].nonzero().flatten().tolist() == step.active
            torch.testing.assert_close(info.alpha[t, b], step.alpha, rtol=0, atol=1e-12)
        torch.testing.assert_close(state.h[b], found[-1][0].h, rtol=0, atol=1e-12)
        if state.c is not None:
            torch.testing.assert_close(state.c[b], found[-1][0].c, rtol=0, atol=1e-12)
    want = torch.stack(rows, 1)
    torch.testing.assert_close(output, want, rtol=0, atol=1e-12)
    for mine, theirs in zip(gradients(cell, output), gradients(cell, want), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-11)


# Of three modules two are active, so that no two have the same score for ever, as modules have that were never active:
# at a tie there is no derivative, and under autocast the choice may be another.
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cell": "gru", "input_size": (3, 2), "input_heads": 2, "comm_source": "held"},
        {"competition": "modules", "communicate": False},
    ],
)
def test_it_keeps_the_contract(options: dict[str, Any]) -> None:
    check_cell(lambda: small(**{"hidden": 3, "modules": 3, "active": 2, **options}), compile=False, gradcheck=False)


def test_zoneout_goes_around_it_and_leaves_held_units_as_they_are() -> None:
    def make() -> Zoneout:
        return Zoneout(small(hidden=2, modules=3, active=2), {"h": 0.3, "c": 0.2})

    check_cell(make, compile=False, gradcheck=False)
    cell = make()
    output, _, info = scan(cell, draw(6, 2, 3), need_info=True)
    h = output.unflatten(-1, (3, 2))
    for t in range(1, 6):
        assert torch.equal(h[t][~info.mask[t]], h[t - 1][~info.mask[t]])


@pytest.mark.unhooked
@pytest.mark.parametrize("options", [{}, {"input_heads": 2, "cell": "gru"}, {"competition": "modules"}])
def test_a_step_compiles_as_one_graph(options: dict[str, Any]) -> None:
    check_cell(lambda: small(**options), skip=set(RULES) - {"compile"})


# --- what is held, and ties -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"cell": "gru"}, {"comm_source": "held"}, {"competition": "modules"}])
def test_k_modules_are_active_and_the_others_keep_their_state_to_the_bit(options: dict[str, Any]) -> None:
    cell = small(modules=6, active=3, **options)
    result = scan(cell, draw(9, 5, 3), need_info=True, keep_states=True)
    assert bool((result.info.mask.sum(-1) == 3).all())
    assert result.info.mask.dtype is torch.bool
    before = cell.initial_state(5)
    for mask, state in zip(result.info.mask, result.states or [], strict=True):
        for new, old in zip(state, before, strict=True):
            if new is not None:
                assert torch.equal(new[~mask], old[~mask])
                assert bool((new[mask] != old[mask]).any(-1).all())
        before = state


def test_with_all_modules_active_none_is_held() -> None:
    cell = small(active=4)
    result = scan(cell, draw(5, 3, 3), keep_states=True, need_info=True)
    assert bool(result.info.mask.all())
    before = cell.initial_state(3).h
    for state in result.states or []:
        assert bool((state.h != before).any(-1).all())
        before = state.h


@pytest.mark.parametrize("competition", ["null", "modules"])
def test_from_a_zero_state_the_modules_with_the_lowest_index_win(competition: str) -> None:
    cell = small(modules=6, active=2, competition=competition)
    info = scan(cell, draw(1, 50, 3), need_info=True).info
    assert bool(info.mask[0, :, :2].all())
    assert not bool(info.mask[0, :, 2:].any())


def test_active_modules_attend_least_to_the_null_slot() -> None:
    cell = small((3, 2), modules=6, active=2, input_heads=3)
    info = scan(cell, (draw(5, 4, 3), draw(5, 4, 2)), need_info=True).info
    worst = info.null.masked_fill(~info.mask, -1.0).amax(-1)
    best = info.null.masked_fill(info.mask, 2.0).amin(-1)
    assert bool((worst <= best).all())
    torch.testing.assert_close(info.null, info.alpha[..., 0].mean(-1), rtol=0, atol=1e-15)
    torch.testing.assert_close(info.alpha.sum(-1), torch.ones_like(info.alpha[..., 0]), rtol=0, atol=1e-14)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_one_module_is_an_lstm_fed_with_a_share_of_the_value() -> None:
    cell = small(modules=1, active=1, communicate=False)
    theirs = nn.LSTMCell(4, 4).double()
    with torch.no_grad():
        theirs.weight_ih.copy_(cell.dynamics.weight_ih[0].T)
        theirs.weight_hh.copy_(cell.dynamics.weight_hh[0].T)
        theirs.bias_ih.copy_(cell.dynamics.bias[0])
        theirs.bias_hh.zero_()
    x, attention = draw(6, 2, 3), cell.input_attention
    assert attention.key is not None
    assert attention.query is not None
    h, c = torch.zeros(2, 4).double(), torch.zeros(2, 4).double()
    output = scan(cell.eval(), x).output
    for t in range(6):
        e = ((h @ attention.query.weight[0]) * attention.key[0](x[t])).sum(1, keepdim=True) / math.sqrt(5)
        h, c = theirs(torch.sigmoid(e) * attention.value[0](x[t]), (h, c))
        torch.testing.assert_close(output[t], h, rtol=0, atol=1e-12)


def test_without_communication_modules_know_nothing_of_each_other() -> None:
    cell = small(active=4, communicate=False)
    x, state = draw(2, 3), RIMState(draw(2, 4, 4, seed=1), draw(2, 4, 4, seed=2))
    jacobian = torch.autograd.functional.jacobian(lambda h: cell(x, RIMState(h, state.c))[1].h.sum(0), state.h)
    for k in range(4):
        others = [j for j in range(4) if j != k]
        assert not bool(jacobian[k][:, :, others].any())
        assert bool(jacobian[k][:, :, k].any())


def test_the_null_slot_takes_what_its_score_of_zero_gives() -> None:
    cell = small((3, 2))
    state = RIMState(draw(2, 4, 4, seed=1), draw(2, 4, 4, seed=2))
    x = draw(2, 3), draw(2, 2)
    projected = cell.project(x)
    info = cell.step(projected, state, need_info=True)[2]
    assert cell.input_attention.query is not None
    e = cell.input_attention.scores(cell.input_attention.query(state.h), projected.keys)
    torch.testing.assert_close(info.alpha[..., 0], 1 / (1 + e.exp().sum(-1)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("slots", [1, 2])
def test_an_input_of_zeros_cannot_be_told_from_the_null_slot(slots: int) -> None:
    cell = small((3, 2)[:slots])
    state = RIMState(draw(2, 4, 4, seed=1), draw(2, 4, 4, seed=2))
    zeros = torch.zeros(2, 3).double(), torch.zeros(2, 2).double()
    info = cell.step(cell.project(zeros[:slots]), state, need_info=True)[2]
    torch.testing.assert_close(info.alpha, torch.full_like(info.alpha, 1 / (1 + slots)), rtol=0, atol=1e-15)
    read, _, _ = cell.input_attention(zeros[:slots], state.h)
    assert not bool(read.any())


def test_communication_adds_less_than_one_so_that_states_stay_below_two() -> None:
    cell = small(modules=5, active=3, qkv_std=5.0)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(5)
    h = scan(cell, 10 * draw(40, 20, 3)).output
    assert float(h.abs().max()) < 2
    assert float(h.abs().max()) > 1  # more than an LSTM alone could


def test_a_dense_lstm_with_blocks_on_its_diagonal_is_the_same_forward_and_backward() -> None:
    cell = small(modules=3, active=3, communicate=False, input_attention=False)
    n, d, size = 3, 4, 4
    dense = nn.LSTMCell(n * size, n * d).double()
    with torch.no_grad():
        for part in (dense.weight_ih, dense.weight_hh, dense.bias_ih, dense.bias_hh):
            part.zero_()
        for gate in range(4):
            for k in range(n):
                rows = slice(gate * n * d + k * d, gate * n * d + (k + 1) * d)
                at = slice(gate * d, (gate + 1) * d)
                dense.weight_ih[rows, k * size : (k + 1) * size] = cell.dynamics.weight_ih[k][:, at].T
                dense.weight_hh[rows, k * d : (k + 1) * d] = cell.dynamics.weight_hh[k][:, at].T
                dense.bias_ih[rows] = cell.dynamics.bias[k][at]
    x = draw(5, 2, 3)
    output = scan(cell.eval(), x).output
    h = c = torch.zeros(2, n * d).double()
    outputs = []
    for row in x:
        h, c = dense(cell.input_attention.value[0](row).repeat(1, n), (h, c))
        outputs.append(h)
    torch.testing.assert_close(output, torch.stack(outputs), rtol=0, atol=1e-12)
    mine = torch.autograd.grad(output.cos().sum(), [cell.dynamics.weight_ih, cell.dynamics.weight_hh])
    theirs = torch.autograd.grad(torch.stack(outputs).cos().sum(), [dense.weight_ih, dense.weight_hh])
    for one, two, width in zip(mine, theirs, (size, d), strict=True):
        blocks = two.view(4, n, d, n, width).diagonal(dim1=1, dim2=3).permute(3, 2, 0, 1).flatten(2)
        torch.testing.assert_close(one, blocks, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"cell": "gru", "input_heads": 2}])
def test_permuting_modules_permutes_states(options: dict[str, Any]) -> None:
    cell, other = small(**options), small(**options)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for name, mine in cell.named_parameters():
            shared = any(part in name for part in ("attention.key", "attention.value", "output", "gate"))
            other.get_parameter(name).copy_(mine if shared else mine[order])
    state = cell.initial_state(2)
    state = tree_map(lambda leaf: draw(*leaf.shape, seed=int(leaf is state.h)), state)  # no ties
    turned = tree_map(lambda leaf: leaf[:, order], state)
    x = draw(6, 2, 3)
    one, two = scan(cell.eval(), x, state).state, scan(other.eval(), x, turned).state
    torch.testing.assert_close(one.h[:, order], two.h, rtol=0, atol=1e-12)


def test_under_autocast_leaves_keep_their_type_and_outputs_are_close_while_the_choice_is_the_same() -> None:
    cell, x = RIMCell(3, 4, 6, 6, **SMALL).eval(), torch.randn(9, 4, 3)
    plain = scan(cell, x).output
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, state, info = scan(cell, x, need_info=True)
    assert output.dtype == state.h.dtype == state.c.dtype == info.null.dtype == info.comm.dtype == torch.float32
    torch.testing.assert_close(output, plain, rtol=0, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"cell": "gru", "input_heads": 2}, {"competition": "modules"}])
def test_in_half_precision_all_but_the_scores_follow(dtype: torch.dtype, options: dict[str, Any]) -> None:
    cell = RIMCell(3, 4, 6, 2, **SMALL, **options, dtype=dtype)
    output, state, info = scan(cell, torch.randn(5, 2, 3).to(dtype), need_info=True)
    output.float().sum().backward()
    assert output.dtype == state.h.dtype == dtype
    assert info.null.dtype == torch.float32
    assert cell.dynamics.weight_hh.grad is not None


def test_candidates_and_held_states_agree_when_all_are_active() -> None:
    x = draw(6, 2, 3)
    one, two = small(active=4, comm_source="candidate"), small(active=4, comm_source="held")
    assert torch.equal(scan(one.eval(), x).output, scan(two.eval(), x).output)


# --- sequences, noise, types ------------------------------------------------------------------------------------------


def test_dropout_is_drawn_before_the_loop_for_each_module_and_unit() -> None:
    cell = RIMCell(3, 50, 6, 3, input_dropout=0.25, comm_dropout=0.5)
    noise = cell.noise(20, 10, generator=torch.Generator().manual_seed(0))
    assert isinstance(noise, RIMNoise)
    assert noise.read is not None
    assert noise.comm is not None
    assert noise.read.shape == (20, 10, 6, 200)
    assert noise.comm.shape == (20, 10, 6, 50)
    # Standard errors are 0.0009 and 0.002: six of each.
    assert float(noise.read.float().mean()) == pytest.approx(0.75, abs=0.006)
    assert float(noise.comm.float().mean()) == pytest.approx(0.5, abs=0.013)
    assert cell.eval().noise(20, 10) is None
    assert RIMCell(3, 4, 6, 3, input_dropout=0, comm_dropout=0).noise(2, 2) is None
    only = RIMCell(3, 4, 6, 3, input_dropout=0.1, communicate=False).noise(2, 2)
    assert isinstance(only, RIMNoise)
    assert only.comm is None


def test_reads_below_a_network_are_those_of_recurrent() -> None:
    torch.manual_seed(0)
    network = Recurrent(lambda size: RIMCell(size, 4, 3, 2, **SMALL), 5, num_layers=2, batch_first=True)
    output, state, infos = network(torch.randn(2, 7, 5), need_info=True)
    assert output.shape == (2, 7, 12)
    assert [one.h.shape for one in state] == [(2, 3, 4), (2, 3, 4)]
    assert all(isinstance(info, RIMInfo) and info.mask.shape == (2, 7, 3) for info in infos)
    assert infos[0].comm is not None
    assert infos[0].comm.shape == (2, 7, 2, 3, 3)


def test_models_run_side_by_side_with_modules_of_their_own() -> None:
    cells = [small(seed=seed) for seed in range(3)]
    x = draw(2, 3)
    state = tree_map(lambda leaf: draw(*leaf.shape), cells[0].initial_state(2))
    weights = {
        name: torch.stack([dict(cell.named_parameters())[name].detach() for cell in cells])
        for name, _ in cells[0].named_parameters()
    }

    def run(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(cells[0].eval(), parameters, (x, state))[0]

    together = torch.func.vmap(run)(weights)
    for cell, output in zip(cells, together, strict=True):
        torch.testing.assert_close(output, cell.eval()(x, state)[0], rtol=0, atol=1e-12)


def test_inactive_modules_can_be_left_out_of_the_output() -> None:
    cell = small(readout="active")
    output, state, info = scan(cell, draw(5, 2, 3), need_info=True)
    parts = output.unflatten(-1, (4, 4))
    assert not bool(parts[~info.mask].any())
    assert torch.equal(parts[-1][info.mask[-1]], state.h[info.mask[-1]])


# --- initial values ---------------------------------------------------------------------------------------------------


def test_initial_values_are_those_of_the_dense_code_or_of_single_modules() -> None:
    torch.manual_seed(0)
    for init, bound in (("reference", 1 / math.sqrt(6 * 50)), ("module", 1 / math.sqrt(50))):
        cell = RIMCell(30, 50, 6, 4, init=init)
        for weight in (cell.dynamics.weight_ih, cell.dynamics.weight_hh):
            assert 0.99 * bound < float(weight.abs().max()) <= bound
        # The sum of two uniform numbers has variance 2/3 of the bound's square.
        assert float(cell.dynamics.bias.std()) == pytest.approx(bound * math.sqrt(2 / 3), rel=0.1)
        assert cell.input_attention.query is not None
        assert float(cell.input_attention.query.weight.std()) == pytest.approx(0.01, rel=0.05)


def test_the_default_sizes_are_those_of_the_authors_code() -> None:
    cell = RIMCell(600, 100, 6, 4, comm_key_size=16)
    assert cell.dynamics.weight_ih.shape == (6, 400, 400)
    assert cell.input_attention.value[0].weight.shape == (400, 600)
    assert cell.output_size == 600
    assert sum(parameter.numel() for parameter in cell.parameters()) == 1_647_400  # of 8.09 million that are reported
    assert "6 modules x 100 = 600" in repr(cell)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.user_input
@pytest.mark.parametrize("active", [0, 7, -1, 2.0, "2", True])
def test_the_number_of_active_modules_is_checked(active: Any) -> None:
    with pytest.raises(ValueError, match=r"num_active=.* of num_modules=6"):
        RIMCell(3, 4, 6, active)


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "rnn"}, "'lstm', 'gru'"),
        ({"comm_source": "old"}, "'candidate', 'held'"),
        ({"competition": "all"}, "'null', 'modules'"),
        ({"competition": "modules", "input_size": (3, 2)}, "one input slot"),
        ({"input_attention": False}, "num_active=2 must be num_modules=6"),
        ({"input_dropout": 1.0}, "input_dropout"),
        ({"input_size": ()}, "at least one input slot"),
        ({"init": "xavier"}, "'reference', 'module'"),
        ({"hidden_size": 0}, "hidden_size=0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    given = {"input_size": 3, "hidden_size": 4, "num_modules": 6, "num_active": 2, **options}
    with pytest.raises(ValueError, match=message):
        RIMCell(**given)


@pytest.mark.user_input
def test_wrong_states_and_inputs_say_what_to_do() -> None:
    cell = RIMCell(3, 4, 6, 2)
    flat = torch.zeros(2, 24)
    with pytest.raises(ValueError, match=r"h of the state .* \(2, 24\).*\(2, 6, 4\): call .reshape\(2, 6, 4\)"):
        cell(torch.ones(2, 3), RIMState(flat, flat))
    with pytest.raises(TypeError, match="does not belong to RIMCell"):
        cell(torch.ones(2, 3), (flat, flat))
    with pytest.raises(TypeError, match="does not belong to RIMCell"):
        cell(torch.ones(2, 3), RIMState(torch.zeros(2, 6, 4)))
    with pytest.raises(TypeError, match="does not belong to RIMCell"):
        RIMCell(3, 4, 6, 2, cell="gru")(torch.ones(2, 3), cell.initial_state(2))
    with pytest.raises(ValueError, match="input_size=3"):
        cell(torch.ones(2, 5))
    with pytest.raises(TypeError, match="embed tokens first"):
        cell(torch.ones(2, 3, dtype=torch.int64))
    slots = RIMCell((3, 2), 4, 6, 2)
    with pytest.raises(ValueError, match=r"2 input slots are expected, of sizes \(3, 2\); got 1"):
        slots((torch.ones(2, 3),))
    with pytest.raises(ValueError, match="input_size=2"):
        slots((torch.ones(2, 3), torch.ones(2, 3)))


def test_attention_around_it_is_refused() -> None:
    with pytest.raises(TypeError, match="RIMCell attends already"):
        SparseAttentiveBacktracking(small())
    with pytest.raises(TypeError, match="around RIMCell"):
        RelevancyScreening(small())


def test_what_is_not_a_number_stays_so_and_raises_when_anomalies_are_looked_for() -> None:
    cell, x = small().eval(), draw(3, 2, 3)
    x[1, 0] = math.nan
    output, _, info = scan(cell, x, need_info=True)
    assert bool(output[1:, 0].isnan().any())
    assert not bool(output[:, 1].isnan().any())
    assert bool((info.mask.sum(-1) == 2).all())
    with (
        pytest.warns(UserWarning, match="Anomaly"),
        torch.autograd.detect_anomaly(check_nan=False),
        pytest.raises(ValueError, match="no module can be chosen"),
    ):
        scan(cell, x)
