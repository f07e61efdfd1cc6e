"""Input attention and communication: who wins, what is read, what is told."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mechanisms.recurrent.bidirectional_rims import CommunicationAttention, InputAttention
from mechanisms.recurrent.module_attention import active_modules, compete, masked_gradient


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 7).flatmap(
        lambda n: st.tuples(st.lists(st.integers(0, 3), min_size=n, max_size=n), st.integers(1, n))
    )
)
def test_the_smallest_win_and_of_equal_ones_the_first(case: tuple[list[int], int]) -> None:
    values, k = case
    mask = active_modules(torch.tensor([values], dtype=torch.float32), k)
    want = sorted(range(len(values)), key=lambda place: (values[place], place))[:k]
    assert mask[0].nonzero().flatten().tolist() == sorted(want)


def test_exactly_so_many_win_whatever_the_numbers_are() -> None:
    null = torch.tensor([[math.nan, 0.1, math.nan, math.inf, -math.inf], [math.nan] * 5])
    assert active_modules(null, 2).tolist() == [[False, True, False, False, True], [True, True, False, False, False]]
    many = torch.rand(1000, 33, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # full of ties
    assert bool((active_modules(many, 7).sum(1) == 7).all())


def test_one_slot_is_a_sigmoid_and_several_a_softmax_with_a_zero() -> None:
    scores = torch.randn(4, 5, 3, 1, generator=torch.Generator().manual_seed(0)).double()
    found = compete(scores, 2)
    whole = torch.softmax(F.pad(scores, (1, 0)), 3)
    torch.testing.assert_close(found.real, whole[..., 1:])
    torch.testing.assert_close(found.empty, whole[..., 0])
    assert not found.mask.requires_grad


def test_competition_among_modules_leaves_nothing_to_losers() -> None:
    scores = torch.randn(9, 6, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    found = compete(scores, 4, "modules")
    weights = found.real[:, :, 0, 0]
    assert torch.equal(weights > 0, found.mask)
    torch.testing.assert_close(weights.sum(1), torch.ones(9).double(), rtol=0, atol=1e-5)
    assert not bool(found.null.any())
    dense = compete(scores, 6, "modules")
    torch.testing.assert_close(dense.real, scores.softmax(1))


def test_the_gradient_is_masked_and_can_be_differentiated_again() -> None:
    u = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    mask = torch.tensor([[True, False, True], [False, True, True]])
    assert torch.equal(masked_gradient(u, mask), u)
    (first,) = torch.autograd.grad(masked_gradient(u, mask).pow(3).sum(), u, create_graph=True)
    torch.testing.assert_close(first, 3 * u.square() * mask.unsqueeze(2))
    (second,) = torch.autograd.grad(first.sum(), u)
    torch.testing.assert_close(second, 6 * u.detach() * mask.unsqueeze(2))


def test_reads_are_shares_of_the_values() -> None:
    torch.manual_seed(0)
    attention = InputAttention([3, 5], 4, num_modules=6, num_heads=2, key_size=7, value_size=8, std=1.0).double()
    slots, h = (torch.randn(2, 3).double(), torch.randn(2, 5).double()), torch.randn(2, 6, 4).double()
    read, null, alpha = attention(slots, h)
    values = torch.stack([attention.value[s](x).unflatten(1, (2, 8)) for s, x in enumerate(slots)])
    want = torch.einsum("bkis,sbiv->bkiv", alpha[..., 1:], values).flatten(2)
    torch.testing.assert_close(read, want)
    torch.testing.assert_close(null, alpha[..., 0].mean(2))


def test_communication_is_scaled_dot_product_attention_with_a_gate() -> None:
    torch.manual_seed(0)
    between = CommunicationAttention(5, 6, num_heads=3, key_size=4, value_size=2, std=1.0).double()
    u = torch.randn(2, 6, 5).double()

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(2, (3, -1)).transpose(1, 2)

    parts = [heads(part(u)) for part in (between.query, between.key, between.value)]
    y = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
    delta, weights = between(u)
    torch.testing.assert_close(delta, torch.sigmoid(between.gate(y)) * torch.tanh(between.output(y)))
    torch.testing.assert_close(weights.sum(3), torch.ones(2, 3, 6).double())
    assert float(delta.abs().max()) < 1


@pytest.mark.user_input
def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="input_heads=0"):
        InputAttention([3], 4, 6, num_heads=0)
    with pytest.raises(ValueError, match="comm_key_size=0"):
        CommunicationAttention(4, 6, key_size=0)
