"""The networks that are compared, by the name of the variant.

They read from a configuration: `hidden_size`; `short_term` and `relevant`, the sizes of buffer and set; `few`, the size
of the set of the variant "few"; `initialisation`, torch's or that of the released code; and of plain networks the
`nonlinearity` ("tanh", "modrelu") and the `rotation` they begin with there ("henaff", "cayley").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

Initialisation = Literal["torch", "released"]


# What each variant changes in a network with screening.
SCREENED: dict[str, dict[str, Any]] = {
    "relevant": {},
    "few": {},
    "normalised": {"relevance": "normalised"},
    "released": {"released": True},
    "relevant-rnn": {"released": True},
}
FULL: dict[str, dict[str, Any]] = {"full": {}, "full-released": {"released": True}, "full-rnn": {"released": True}}
PLAIN = ("lstm", "rnn")


def network_maker(settings: Any, variant: str) -> Callable[[int], nn.Module]:
    """The function that makes a variant's network from the size of its input.

    "lstm", "rnn": without attention; "full...": full attention; all else: relevancy screening. "...-rnn": on a plain
    network. "sab": sparse attentive backtracking.
    """

    def make(size: int) -> nn.Module:
        from mechanisms.recurrent import (
            LSTMCell,
            Recurrent,
            RelLSTM,
            RelRNN,
            SelfAttentiveCell,
            SparseAttentiveBacktracking,
        )

        units, plain = settings.hidden_size, variant.endswith("rnn")
        if variant in SCREENED:
            relevant = settings.few if variant == "few" else settings.relevant
            options = SCREENED[variant] | {"short_term": settings.short_term, "relevant": relevant}
            if plain:
                network: nn.Module = RelRNN(size, units, nonlinearity=settings.nonlinearity, **options)
            else:
                network = RelLSTM(size, units, **options)
        else:
            cell = _plain_cell(settings, size) if plain else LSTMCell(size, units)
            if variant == "sab":
                network = Recurrent(SparseAttentiveBacktracking(cell, k_top=10, readout="hidden"), size)
            else:
                network = Recurrent(cell if variant in PLAIN else SelfAttentiveCell(cell, **FULL[variant]), size)
        if settings.initialisation == "released":
            released_(network, settings.rotation)
        return network

    return make


def _plain_cell(settings: Any, size: int) -> Any:
    from mechanisms.recurrent import ModReLU, RNNCell

    nonlinearity = "tanh" if settings.nonlinearity == "tanh" else ModReLU(settings.hidden_size)
    return RNNCell(size, settings.hidden_size, nonlinearity=nonlinearity)


def released_(network: nn.Module, rotation: str) -> None:
    """Weights as the released code begins: gates Xavier normal over (h, x) together, or rotations; x Xavier normal."""
    from torch import nn

    from mechanisms.recurrent import LSTMCell, RNNCell, cayley_init_, henaff_init_

    holder: Any = network
    for cell in getattr(holder, "cells", ()):
        inner = getattr(cell, "cell", cell)
        if isinstance(inner, LSTMCell):
            # One matrix for both inputs there: fan in H + I, fan out H.
            spread = (2 / (2 * inner.hidden_size + inner.weight_ih.shape[1])) ** 0.5
            nn.init.normal_(inner.weight_ih, std=spread)
            nn.init.normal_(inner.weight_hh, std=spread)
        elif isinstance(inner, RNNCell):
            nn.init.xavier_normal_(inner.weight_ih)
            if rotation == "henaff":
                henaff_init_(inner.weight_hh)
            else:
                cayley_init_(inner.weight_hh, released=True)
