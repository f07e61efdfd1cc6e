"""How far gradients reach: closed forms, leaves, modes."""

import pytest
import torch
from torch import nn

from mechanisms.recurrent import LSTMCell, RNNCell, gradient_flow
from tests.recurrent.own_cells import Noisy, Pair

T, B = 6, 3


def test_a_linear_recurrence_decays_by_its_factor() -> None:
    cell = RNNCell(2, 4, nonlinearity=nn.Identity())
    with torch.no_grad():
        cell.weight_hh.copy_(0.5 * torch.eye(4))
    flow = gradient_flow(cell, torch.randn(T, B, 2), lambda outputs: outputs[-1].sum())
    torch.testing.assert_close(flow, 2 * 0.5 ** torch.arange(T - 1, -1, -1, dtype=torch.float64))


def test_it_is_what_autograd_says_of_a_loop() -> None:
    cell = LSTMCell(2, 4).double()
    x = torch.randn(T, B, 2).double()
    state, cells = cell.initial_state(B), []
    for t in range(T):
        output, state = cell(x[t], state)
        cells.append(state.c)
    gradients = torch.autograd.grad(output.square().sum(), cells)
    want = torch.stack([gradient.norm(dim=1).mean() for gradient in gradients])
    flow = gradient_flow(cell.float(), x.float(), lambda outputs: outputs[-1].square().sum(), leaf="c")
    torch.testing.assert_close(flow, want, rtol=1e-5, atol=1e-7)


def test_frozen_weights_inputs_without_gradient_and_no_grad_do_not_matter() -> None:
    cell = Noisy(2, 4).requires_grad_(False)
    noise = cell.noise(T, B)
    with torch.no_grad():
        flow = gradient_flow(cell, torch.randn(T, B, 2), lambda outputs: outputs[2].sum(), noise=noise)
    assert bool((flow[:3] > 0).all())
    assert flow[3:].tolist() == [0.0] * 3
    assert not any(parameter.requires_grad for parameter in cell.parameters())


def test_leaves_inside_are_named_by_their_place() -> None:
    inputs = (torch.randn(T, B, 3), torch.randn(T, B, 2))
    flow = gradient_flow(Pair(), inputs, lambda outputs: outputs.s[-1].sum(), leaf="inner.0")
    torch.testing.assert_close(flow, 2 * 0.5 ** torch.arange(T - 1, -1, -1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"no leaf 'c'; it has h, inner\.0, inner\.1"):
        gradient_flow(Pair(), inputs, lambda outputs: outputs.s[-1].sum(), leaf="c")
    with pytest.raises(ValueError, match="a scalar is expected"):
        gradient_flow(Pair(), inputs, lambda outputs: outputs.s[-1])
