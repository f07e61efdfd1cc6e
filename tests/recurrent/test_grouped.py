"""Grouped maps and cells: each group is a map or a cell of its own."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mechanisms.recurrent.bidirectional_rims import GroupGRUCell, GroupLinear, GroupLSTMCell
from mechanisms.recurrent.grouped import grouped, to_groups

sizes = st.integers(1, 4)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 3), max_size=3), sizes, sizes, sizes, st.booleans())
def test_each_group_has_a_product_of_its_own(leading: list[int], n: int, size: int, out: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = GroupLinear(n, size, out, bias, std=1.0).double()
    x = torch.randn(*leading, n, size).double()
    if linear.bias is not None:
        nn.init.normal_(linear.bias)
    y = linear(x)
    assert y.shape == (*leading, n, out)
    for k in range(n):
        want = x[..., k, :] @ linear.weight[k] + (0 if linear.bias is None else linear.bias[k])
        torch.testing.assert_close(y[..., k, :], want)
    shared = torch.randn(*leading, size).double()
    torch.testing.assert_close(
        to_groups(shared, linear.weight), grouped(shared.unsqueeze(-2).expand(*leading, n, size), linear.weight)
    )


@pytest.mark.parametrize("init", ["reference", "module"])
def test_cells_are_cells_of_torch_side_by_side(init: str) -> None:
    torch.manual_seed(0)
    n, size, d = 3, 5, 4
    x, h, c = torch.randn(2, n, size), torch.randn(2, n, d), torch.randn(2, n, d)
    lstm, gru = GroupLSTMCell(n, size, d, init=init), GroupGRUCell(n, size, d, init=init)
    (new_h, new_c), only_h = lstm(x, (h, c)), gru(x, h)
    for k in range(n):
        one: Any = nn.LSTMCell(size, d)
        two: Any = nn.GRUCell(size, d)
        with torch.no_grad():
            for theirs, ours in ((one, lstm), (two, gru)):
                theirs.weight_ih.copy_(ours.weight_ih[k].T)
                theirs.weight_hh.copy_(ours.weight_hh[k].T)
            one.bias_ih.copy_(lstm.bias[k])
            one.bias_hh.zero_()
            two.bias_ih.copy_(gru.bias_ih[k])
            two.bias_hh.copy_(gru.bias_hh[k])
        want_h, want_c = one(x[:, k], (h[:, k], c[:, k]))
        torch.testing.assert_close(new_h[:, k], want_h)
        torch.testing.assert_close(new_c[:, k], want_c)
        torch.testing.assert_close(only_h[:, k], two(x[:, k], h[:, k]))
    zeros = torch.zeros(2, n, d)
    torch.testing.assert_close(lstm(x), lstm(x, (zeros, zeros)))
    torch.testing.assert_close(gru(x), gru(x, zeros))
    assert lstm.bound == (1 / math.sqrt(n * d) if init == "reference" else 1 / math.sqrt(d))


@pytest.mark.user_input
def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="num_groups=0"):
        GroupLinear(0, 3, 4)
    with pytest.raises(ValueError, match="std"):
        GroupLinear(2, 3, 4, std=-1)
    with pytest.raises(ValueError, match="'reference', 'module'"):
        GroupLSTMCell(2, 3, 4, init="torch")
