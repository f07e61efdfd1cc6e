"""Attention weights of which few are not zero: the sparsifier of sparse attentive backtracking.

With e_(k+1) the (k+1)-th largest of n > k scores,

    u_i = relu(e_i - e_(k+1)),      w_i = u_i / (Σ u_j + 1e-7)

and the softmax for n ≤ k. The weights are linear in the scores between changes of their order.

Ke, Goyal, Bilaniuk, Binas, Mozer, Pal, Bengio: "Sparse Attentive Backtracking: Temporal Credit Assignment Through
Reminding", NeurIPS 2018, arXiv 1809.03702.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mechanisms.recurrent._doors import check_whole

# Weights that sum to nothing stay nothing; in float16 this would be 0, so weights are computed in float32 at least.
EPSILON = 1e-7


def sparse_attention(scores: Tensor, k: int, *, valid: Tensor | None = None, released: bool = False) -> Tensor:
    """Weights of which at most k are not zero: the scores' excess over the (k+1)-th largest, scaled to sum to 1.

    Of k entries or fewer, the softmax. Gradients flow through the (k+1)-th largest too, though its weight is 0. The
    weights do not change when a constant is added to all scores, nor (but for a term of 1e-7) when they are scaled:
    there is no temperature. With equal scores at the boundary fewer than k are left, with all scores equal none.

    Args:
        scores: (..., n).
        k: how many entries may have a weight, at least 1.
        valid: booleans (..., n), false where there is no entry; all are valid by default.
        released: as the authors' code does it: the k-th largest is subtracted, so that only k - 1 entries keep a
            weight, and of k entries or fewer the scores themselves are the weights, whatever their sign.

    Returns:
        Weights (..., n), in float32 at least.

    Raises:
        ValueError: k is below 1.

    Source: section 3.1 of the paper.

    >>> sparse_attention(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]), 2)
    tensor([[0.0000, 0.0000, 0.0000, 0.3333, 0.6667]])
    """
    k = check_whole(k, "k")
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    n = scores.shape[-1]
    few = scores if released else masked_softmax(scores, valid)
    if n <= k:
        return few if valid is None else few * valid
    # Empty slots are never among the largest where there are more than k entries; elsewhere `few` is taken below.
    bounded = scores if valid is None else scores.masked_fill(~valid, torch.finfo(scores.dtype).min)
    bar = bounded.topk(k if released else k + 1, -1).values[..., -1:]
    if valid is None:
        return _excess(scores, bar + EPSILON if released else bar)
    many = valid.sum(-1, keepdim=True) > k
    bar = torch.where(many, bar, torch.zeros_like(bar))
    return torch.where(many, _excess(scores, bar + EPSILON if released else bar, valid), few) * valid


def _excess(scores: Tensor, bar: Tensor, valid: Tensor | None = None) -> Tensor:
    above = F.relu(scores - bar)
    if valid is not None:
        above = above * valid
    return above / (above.sum(-1, keepdim=True) + EPSILON)


def masked_softmax(scores: Tensor, valid: Tensor | None) -> Tensor:
    """The softmax over valid entries (..., n), all of them by default; the others get 0.

    >>> masked_softmax(torch.zeros(3), torch.tensor([True, True, False]))
    tensor([0.5000, 0.5000, 0.0000])
    """
    if valid is None:
        return torch.softmax(scores, -1)
    return torch.softmax(scores.masked_fill(~valid, torch.finfo(scores.dtype).min), -1) * valid
