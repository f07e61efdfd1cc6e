"""The sparsifier: weights by hand, invariances, gradients, empty slots, half precision."""

import pytest
import torch

from mechanisms.recurrent import (
    sparse_attention,
)


def test_weights_by_hand() -> None:
    w = sparse_attention(torch.tensor([[1.0, 2, 3, 4, 5]], dtype=torch.float64), 2)
    torch.testing.assert_close(w, torch.tensor([[0, 0, 0, 1 / 3, 2 / 3]], dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_weights_are_a_sparse_distribution_that_a_constant_does_not_change(k: int) -> None:
    e = torch.rand(200, 9).argsort(1) + 0.5 * torch.rand(200, 9, dtype=torch.float64)  # no two are near
    w = sparse_attention(e, k)
    assert (w >= 0).all()
    assert ((w > 0).sum(1) == k).all()
    torch.testing.assert_close(w.sum(1), torch.ones(200, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(sparse_attention(e + 3, k), w, rtol=0, atol=1e-9)
    torch.testing.assert_close(sparse_attention(7 * e, k), w, rtol=0, atol=1e-4)
    order = torch.randperm(9)
    torch.testing.assert_close(sparse_attention(e[:, order], k), w[:, order], rtol=0, atol=1e-12)


def test_few_entries_take_the_softmax_equal_ones_nothing_and_ties_fewer() -> None:
    e = torch.randn(2, 3)
    assert torch.equal(sparse_attention(e, 3), e.softmax(1))
    assert not sparse_attention(torch.ones(2, 5), 2).any()
    assert sparse_attention(torch.tensor([3.0, 2, 2, 1]), 2).tolist() == pytest.approx([1, 0, 0, 0], abs=1e-6)


def test_the_gradient_reaches_the_entry_that_sets_the_threshold_and_no_further() -> None:
    e = torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.float64, requires_grad=True)
    sparse_attention(e, 2)[4].backward()
    assert (e.grad != 0).tolist() == [False, False, True, True, True]
    assert abs(e.grad.sum()) < 1e-12


def test_empty_slots_are_as_if_they_were_not_there() -> None:
    e = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    for released in (False, True):
        for count in range(1, 7):
            valid = torch.arange(6).expand(4, 6) < count
            w = sparse_attention(e, 2, valid=valid, released=released)
            alone = sparse_attention(e[:, :count], 2, released=released)
            assert torch.equal(w[:, :count], alone)
            assert not w[:, count:].any()
            for mine, theirs in ((w[:, :count], alone),):
                want = torch.autograd.grad(theirs.cos().sum(), e, retain_graph=True)[0]
                assert torch.equal(torch.autograd.grad(mine.cos().sum(), e)[0], want)
    extreme = torch.full((1, 4), -1e30, requires_grad=True)
    sparse_attention(extreme, 2, valid=torch.tensor([[True, False, False, False]])).sum().backward()
    assert extreme.grad.isfinite().all()


def test_the_released_sparsifier_keeps_one_less_and_does_not_normalise_few() -> None:
    w = sparse_attention(torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.float64), 3, released=True)
    torch.testing.assert_close(w, torch.tensor([0, 0, 0, 1 / 3, 2 / 3], dtype=torch.float64), rtol=0, atol=1e-6)
    assert sparse_attention(torch.tensor([-1.0, 3.0]), 2, released=True).tolist() == [-1, 3]
    assert not sparse_attention(torch.tensor([1.0, 3.0]), 1, released=True).any()


def test_half_precision_is_computed_in_single() -> None:
    e = torch.tensor([1.0, 2, 3], dtype=torch.float16)
    assert sparse_attention(e, 1).dtype is torch.float32
    assert sparse_attention(torch.ones(3, dtype=torch.float16), 1).tolist() == [0, 0, 0]
