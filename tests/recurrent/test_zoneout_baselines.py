"""Recurrent dropout, norm stabiliser and weight noise."""

import pytest
import torch
from torch import nn

from mechanisms.recurrent.cells import LSTMCell, LSTMState
from mechanisms.recurrent.checks import check_cell
from mechanisms.recurrent.scan import scan
from mechanisms.recurrent.zoneout import Zoneout
from mechanisms.recurrent.zoneout_baselines import RecurrentDropoutLSTMCell, norm_stabilizer, weight_noise


def test_recurrent_dropout_drops_what_would_be_written() -> None:
    cell = RecurrentDropoutLSTMCell(3, 4, rate=0.4).double()
    x, (h, c) = torch.randn(6, 2, 3, dtype=torch.float64), torch.randn(2, 2, 4, dtype=torch.float64)
    noise = cell.noise(6, 2)
    for dropped in (noise, None):
        found = (
            scan(cell, x, LSTMState(h, c), noise=noise)
            if dropped is not None
            else scan(cell.eval(), x, LSTMState(h, c))
        )
        h_t, c_t = h, c
        for t in range(6):
            i, f, g, o = (cell.project(x[t]) + h_t @ cell.weight_hh.T).chunk(4, 1)
            kept = ~dropped[t] if dropped is not None else 0.6
            c_t = f.sigmoid() * c_t + kept * i.sigmoid() * g.tanh()
            h_t = o.sigmoid() * c_t.tanh()
            torch.testing.assert_close(found.output[t], h_t, rtol=0, atol=1e-12)


def test_rate_zero_is_the_plain_cell_and_rate_one_writes_nothing() -> None:
    plain = LSTMCell(3, 4)
    cell = RecurrentDropoutLSTMCell(3, 4, rate=0)
    cell.load_state_dict(plain.state_dict())
    x = torch.randn(6, 2, 3)
    assert torch.equal(scan(cell, x).output, scan(plain, x).output)
    output, state = scan(RecurrentDropoutLSTMCell(3, 4, rate=1), x)
    assert not output.any()
    assert not state.c.any()


def test_the_contract_of_cells_is_kept_with_zoneout_too() -> None:
    check_cell(lambda: RecurrentDropoutLSTMCell(3, 4), compile=False)
    check_cell(lambda: Zoneout(RecurrentDropoutLSTMCell(3, 4), 0.2), compile=False)


def test_the_norm_stabiliser_is_the_mean_squared_change_of_norms() -> None:
    states = torch.randn(7, 3, 4, dtype=torch.float64, requires_grad=True)
    expected = 0.0
    for row in range(3):
        for t in range(1, 7):
            expected += (states[t, row].norm() - states[t - 1, row].norm()).item() ** 2 / 6 / 3
    assert norm_stabilizer(states, 50).item() == pytest.approx(50 * expected)
    assert torch.autograd.gradcheck(norm_stabilizer, (states,))
    zeros = torch.zeros(3, 1, 2, requires_grad=True)
    norm_stabilizer(zeros).backward()
    assert zeros.grad.isfinite().all()


def test_weight_noise_changes_weights_inside_the_block_only() -> None:
    network, x = nn.LSTM(30, 40), torch.randn(5, 2, 30)
    before = {name: one.detach().clone() for name, one in network.named_parameters()}
    with weight_noise(network, 0.075, generator=torch.Generator().manual_seed(0)):
        noise = {name: one.detach() - before[name] for name, one in network.named_parameters()}
        network(x)[0].square().sum().backward()
    assert all(torch.equal(one, before[name]) for name, one in network.named_parameters())
    assert not noise["bias_ih_l0"].any()
    # 6,400 numbers: six standard errors of their standard deviation.
    assert abs(noise["weight_hh_l0"].std() - 0.075) < 6 * 0.075 / (2 * 6400) ** 0.5
    noisy = nn.LSTM(30, 40)
    noisy.load_state_dict({name: before[name] + noise[name] for name in before})
    noisy(x)[0].square().sum().backward()
    torch.testing.assert_close(network.weight_hh_l0.grad, noisy.weight_hh_l0.grad)
    with pytest.raises(RuntimeError, match="inside"), weight_noise(network):
        raise RuntimeError("inside")
    assert all(torch.equal(one, before[name]) for name, one in network.named_parameters())


@pytest.mark.user_input
def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dropout rate must be in \[0, 1\], got 2"):
        RecurrentDropoutLSTMCell(3, 4, rate=2)
    with pytest.raises(ValueError, match="neighbouring steps"):
        norm_stabilizer(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="std"), weight_noise(nn.Linear(2, 2), -1):
        pass
