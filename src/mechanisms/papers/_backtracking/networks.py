"""The networks that are compared: an LSTM with all of its gradient or cut, with dense attention, and reminded.

One table for all experiments: a variant's name says everything but the sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from mechanisms.recurrent import Cell, Recurrent

# What is not said is the settings': "trunc" overrides their k_trunc.
REMINDED: dict[str, dict[str, Any]] = {
    "full-attention": {"score": "additive", "k_trunc": None, "k_top": None},
    "sab-additive": {"score": "additive"},
    "sab-released": {"score": "released"},
    "sab-additive-trunc-1": {"score": "additive", "k_trunc": 1},
    "sab-released-trunc-1": {"score": "released", "k_trunc": 1},
}


@runtime_checkable
class Sizes(Protocol):
    """What an experiment's settings say about its networks."""

    @property
    def hidden_size(self) -> int: ...

    @property
    def k_trunc(self) -> int: ...

    @property
    def k_top(self) -> int: ...

    @property
    def k_att(self) -> int: ...


def make_network(variant: str, settings: Sizes) -> Callable[[int], Recurrent]:
    """A function from the input size to the network of a variant.

    - "lstm": the whole gradient; "tbptt": cut every k_trunc steps, the first time after k_trunc - 1, as SAB cuts;
      "tbptt-20": every 20 whatever k_trunc is;
    - "full-attention": as "sab-additive", but with the softmax over all stored states, and the whole gradient;
    - "sab-...": see `REMINDED`.
    """
    from mechanisms.recurrent import LSTMCell, Recurrent, SparseAttentiveBacktracking

    def make_cell(size: int) -> Cell:
        cell = LSTMCell(size, settings.hidden_size)
        if variant in REMINDED:
            options: dict[str, Any] = {"k_trunc": settings.k_trunc, "k_top": settings.k_top, "k_att": settings.k_att}
            return SparseAttentiveBacktracking(cell, **(options | REMINDED[variant]))
        return cell

    steps = {"tbptt": settings.k_trunc, "tbptt-20": 20}.get(variant)
    cut = None if steps is None else (steps, steps - 1)
    # Between cuts torch's own kernel runs, which pays for segments of five steps already.
    return lambda size: Recurrent(make_cell, size, truncate=cut, backend="kernel" if cut else "auto")
