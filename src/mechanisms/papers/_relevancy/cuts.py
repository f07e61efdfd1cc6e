"""Full attention with one of its two ways back for gradients cut: what carries them?"""

from __future__ import annotations

from torch import Tensor

from mechanisms.recurrent import Cell
from mechanisms.recurrent.self_attentive import SelfAttentiveCell


class AttentionOnly(SelfAttentiveCell):
    """Gradients pass through what is attended, not through the last state.

    >>> from mechanisms.recurrent import LSTMCell
    >>> AttentionOnly(LSTMCell(3, 4)).output_size
    4
    """

    exact_gradient = False
    sequence = Cell.sequence  # the kernel cuts nothing

    def _combined(self, h: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        return super()._combined(h.detach(), weights, values)


class RecurrenceOnly(SelfAttentiveCell):
    """Gradients pass through the last state, not through what is attended.

    >>> from mechanisms.recurrent import LSTMCell
    >>> RecurrenceOnly(LSTMCell(3, 4)).output_size
    4
    """

    exact_gradient = False
    sequence = Cell.sequence  # the kernel cuts nothing

    def _combined(self, h: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        return super()._combined(h, weights.detach(), values.detach())
