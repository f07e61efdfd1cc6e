"""Recurrent batch normalisation: the formula, statistics per step, Zoneout around it."""

import pytest
import torch
from torch import Tensor

from mechanisms.recurrent import batch_norm
from mechanisms.recurrent.batch_norm import BatchNormLSTMCell, BatchNormLSTMState
from mechanisms.recurrent.checks import check_cell
from mechanisms.recurrent.module import Recurrent
from mechanisms.recurrent.scan import scan
from mechanisms.recurrent.zoneout import Zoneout


def normal(u: Tensor, gamma: Tensor, beta: Tensor | float = 0.0) -> Tensor:
    centred = u - u.mean(0)
    return beta + gamma * centred / (centred.square().mean(0) + 1e-5).sqrt()


def test_training_is_the_formula_of_the_paper() -> None:
    torch.manual_seed(0)
    cell = BatchNormLSTMCell(3, 4).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    found, state, _ = scan(cell, x, need_info=True)
    h = c = torch.zeros(5, 4, dtype=torch.float64)
    for t in range(6):
        a = normal(h @ cell.weight_hh.T, cell.gamma_h) + normal(x[t] @ cell.weight_ih.T, cell.gamma_x) + cell.bias
        i, f, g, o = a.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * normal(c, cell.gamma_c, cell.beta_c).tanh()
        torch.testing.assert_close(found[t], h, rtol=0, atol=1e-12)
    torch.testing.assert_close(state.c, c, rtol=0, atol=1e-12)
    assert state.step.tolist() == [6] * 5


def test_running_statistics_belong_to_their_step_and_evaluation_uses_them(monkeypatch) -> None:
    cell = BatchNormLSTMCell(3, 4, max_length=5).double()
    network = Recurrent(cell, 3)
    x = torch.randn(7, 50, 3, dtype=torch.float64)
    network(x[:3])
    assert cell.steps_seen == 3
    projected = x[:3] @ cell.weight_ih.T
    torch.testing.assert_close(cell.running_mean_x[:3], 0.01 * projected.mean(1))
    torch.testing.assert_close(cell.running_var_x[:3], 0.99 + 0.01 * projected.var(1, correction=0))
    assert not cell.running_mean_x[3:].any()
    monkeypatch.setattr(batch_norm, "MOMENTUM", 1.0)  # the running statistics are the last batch's
    network(x)
    assert cell.steps_seen == 5
    trained = network(x)[0][:5]
    before = {name: one.clone() for name, one in cell.state_dict().items()}
    evaluated = network.eval()(x)[0]
    torch.testing.assert_close(evaluated[:5], trained, rtol=0, atol=1e-12)
    assert all(torch.equal(one, before[name]) for name, one in cell.state_dict().items())
    # Steps beyond the last: its statistics.
    late = BatchNormLSTMState(*network(x[:5])[1][0][:2], torch.full((50,), 4))
    same, _ = cell.step(cell.project(x[5]), late)
    torch.testing.assert_close(evaluated[5], same, rtol=0, atol=1e-12)


def test_constant_inputs_have_no_variance_and_give_zero() -> None:
    cell = BatchNormLSTMCell(3, 4)
    _, _, statistics = cell.step(cell.project(torch.ones(6, 3)), cell.initial_state(6), need_info=True)
    assert not statistics.var_x.any()
    output, _ = cell(torch.ones(6, 3))
    assert not output.any()


def test_gradients_flow_through_the_statistics() -> None:
    cell = BatchNormLSTMCell(2, 3).double()
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: scan(cell, x).output, (x,))


def test_zoneout_around_it_moves_its_statistics_too() -> None:
    network = Recurrent(lambda size: Zoneout(BatchNormLSTMCell(size, 4), 0.15), 3)
    network(torch.randn(5, 6, 3))
    assert network.cells[0].cell.steps_seen == 5


@pytest.mark.parametrize("wrap", [lambda cell: cell, lambda cell: Zoneout(cell, 0.3)])
def test_the_contract_of_cells_is_kept(wrap) -> None:
    check_cell(lambda: wrap(BatchNormLSTMCell(3, 4, max_length=8)), compile=False)


@pytest.mark.user_input
def test_a_batch_of_one_is_refused_in_training_only() -> None:
    cell = BatchNormLSTMCell(3, 4)
    with pytest.raises(ValueError, match="at least two rows"):
        scan(cell, torch.randn(5, 1, 3))
    assert scan(cell.eval(), torch.randn(5, 1, 3)).output.shape == (5, 1, 4)
    with pytest.raises(ValueError, match="max_length"):
        BatchNormLSTMCell(3, 4, max_length=0)


def test_a_training_scan_unpacks_as_any_other() -> None:
    output, state = scan(BatchNormLSTMCell(3, 4), torch.randn(5, 6, 3))
    assert torch.equal(output[-1], state.h)
