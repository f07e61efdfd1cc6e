"""The plain cells: initial states, nonlinearities, devices and types."""

import pytest
import torch
from torch import nn

from mechanisms.recurrent import GRUCell, LSTMCell, ModReLU, RNNCell
from mechanisms.recurrent.scan import scan


@pytest.mark.parametrize("kind", [LSTMCell, GRUCell, RNNCell])
def test_learned_initial_states_start_at_zero_and_learn(kind: type[LSTMCell]) -> None:
    cell = kind(3, 4, learn_initial_state=True)
    assert bool((cell.initial_h == 0).all())
    output, _ = scan(cell, torch.randn(5, 2, 3))
    gradient = torch.autograd.grad(output.sum(), cell.initial_h)[0]
    assert bool((gradient != 0).all())
    assert "initial_h" in cell.state_dict()
    assert "initial_h" not in kind(3, 4).state_dict()


def test_modrelu_keeps_the_sign_and_shifts_the_size() -> None:
    module = ModReLU(3).double()
    assert bool((module.bias.abs() <= 0.01).all())
    with torch.no_grad():
        module.bias.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    u = torch.tensor([[2.0, 2.0, 2.0], [-2.0, -2.0, -2.0], [0.5, 0.5, 0.5]]).double()
    assert module(u).tolist() == [[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0], [0.0, 0.5, 1.5]]
    assert torch.autograd.gradcheck(module, u.requires_grad_())


@pytest.mark.parametrize("kind", [LSTMCell, GRUCell, RNNCell])
def test_cells_are_made_where_and_as_they_are_asked(kind: type[LSTMCell]) -> None:
    cell = kind(3, 4, device="meta", dtype=torch.bfloat16)
    state = cell.initial_state(2)
    assert (state.h.device.type, state.h.dtype) == ("meta", torch.bfloat16)
    assert kind(3, 4).initial_state(2, device="meta", dtype=torch.float64).h.dtype == torch.float64
    assert repr(kind(3, 4, bias=False)) == f"{kind.__name__}(3, 4, bias=False)"


@pytest.mark.user_input
def test_bad_sizes_and_names_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size=0"):
        LSTMCell(3, 0)
    with pytest.raises(ValueError, match="nonlinearity='gelu': it must be 'tanh', 'relu' or a module"):
        RNNCell(3, 4, nonlinearity="gelu")


def test_mixed_types_go_through_the_loop_and_fail_there_as_in_torch() -> None:
    cell = LSTMCell(3, 4)
    assert cell.sequence(torch.randn(5, 2, 3).double(), cell.initial_state(2), None) is NotImplemented
    with pytest.raises(RuntimeError, match="dtype"):
        scan(cell, torch.randn(5, 2, 3).double())


def test_modules_as_nonlinearity_belong_to_the_cell() -> None:
    cell = RNNCell(3, 4, nonlinearity=nn.PReLU())
    assert "nonlinearity.weight" in dict(cell.named_parameters())
    assert scan(cell, torch.randn(5, 2, 3)).output.shape == (5, 2, 4)
