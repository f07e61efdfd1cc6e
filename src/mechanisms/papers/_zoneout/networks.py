"""The networks that are compared: an LSTM with Zoneout, its controls, and the paper's baselines.

Weights are drawn before anything else, so that all networks of a seed start from the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from mechanisms.recurrent import Cell, LSTMCell, Recurrent


@runtime_checkable
class Rates(Protocol):
    """The settings that a network is made by."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def zoneout_cell(self) -> float: ...
    @property
    def zoneout_hidden(self) -> float: ...
    @property
    def dropout(self) -> float: ...
    @property
    def share_mask(self) -> bool: ...
    @property
    def initialisation(self) -> Literal["torch", "paper"]: ...


@dataclass(frozen=True)
class Variant:
    """One network.

    Args:
        cell: rate of the memory, or the name of the setting it is.
        hidden: the same for the hidden state.
        mask: of Zoneout.
        kind: of the cell inside.
        stabilised: the loss has the norm stabiliser's penalty.
        shaken: the weights are noisy in training.
    """

    cell: float | str = 0.0
    hidden: float | str = 0.0
    mask: str = "unit"
    kind: Literal["lstm", "recurrent-dropout", "batch-norm"] = "lstm"
    stabilised: bool = False
    shaken: bool = False


VARIANTS = {
    "plain": Variant(),
    "zoneout": Variant("zoneout_cell", "zoneout_hidden"),
    "swapped": Variant("zoneout_hidden", "zoneout_cell"),
    "static": Variant("zoneout_cell", "zoneout_hidden", "static"),
    "per-layer": Variant("zoneout_cell", "zoneout_hidden", "layer"),
    "recurrent-dropout": Variant(kind="recurrent-dropout"),
    "norm-stabiliser": Variant(stabilised=True),
    "weight-noise": Variant(shaken=True),
    "both-half": Variant(0.5, 0.5),
    "both-small": Variant(0.05, 0.05),
    "cell-half": Variant(0.5, 0.0),
    "cell-small": Variant(0.05, 0.0),
    "hidden-half": Variant(0.0, 0.5),
    "hidden-small": Variant(0.0, 0.05),
    "batch-norm": Variant(kind="batch-norm"),
    "batch-norm-zoneout": Variant("zoneout_cell", "zoneout_hidden", kind="batch-norm"),
}


def network_maker(variant: str, settings: Rates, max_length: int) -> Callable[[int], Recurrent]:
    """A function from the size of the input to the network of a variant.

    Args:
        variant: a name of `VARIANTS`.
        settings: sizes and rates.
        max_length: steps of static masks and of statistics over batches.
    """

    def make(size: int) -> Recurrent:
        from mechanisms.recurrent import Recurrent

        return Recurrent(make_cell(variant, settings, size, max_length), size)

    return make


def make_cell(variant: str, settings: Rates, size: int, max_length: int) -> Cell:
    """The cell of a variant, with Zoneout around it where there is any."""
    from mechanisms.recurrent import BatchNormLSTMCell, LSTMCell, RecurrentDropoutLSTMCell, Zoneout

    chosen = VARIANTS[variant]
    hidden = settings.hidden_size
    if chosen.kind == "batch-norm":
        inner: Cell = BatchNormLSTMCell(size, hidden, max_length=max_length)
    elif chosen.kind == "recurrent-dropout":
        dropping = RecurrentDropoutLSTMCell(size, hidden, rate=settings.dropout, learn_initial_state=True)
        inner = begin(dropping, settings.initialisation)
    else:
        inner = begin(LSTMCell(size, hidden, learn_initial_state=True), settings.initialisation)
    rates = {
        leaf: getattr(settings, rate) if isinstance(rate, str) else rate
        for leaf, rate in (("h", chosen.hidden), ("c", chosen.cell))
    }
    if not any(rates.values()):
        return inner
    return Zoneout(inner, rates, mask=chosen.mask, share_mask=settings.share_mask, max_length=max_length)


def begin(cell: LSTMCell, initialisation: Literal["torch", "paper"]) -> LSTMCell:
    """Add 1 to the forget gate's bias; with "paper", weights are orthogonal by blocks and all other biases 0."""
    import torch

    from mechanisms.recurrent._orthogonal import fill_with_orthogonal_blocks

    size = cell.hidden_size
    assert cell.bias_ih is not None
    assert cell.bias_hh is not None
    with torch.no_grad():
        if initialisation == "paper":
            for weight in (cell.weight_ih, cell.weight_hh):
                fill_with_orthogonal_blocks(weight, size)
            cell.bias_ih.zero_()
            cell.bias_hh.zero_()
        cell.bias_ih[size : 2 * size] += 1
    return cell


def penalty_of(variant: str, weight: float) -> Callable[[Tensor], Tensor] | None:
    """The norm stabiliser, for the variant that has it."""
    if not VARIANTS[variant].stabilised:
        return None

    def penalty(outputs: Tensor) -> Tensor:
        from mechanisms.recurrent import norm_stabilizer

        return norm_stabilizer(outputs, weight)

    return penalty
