"""Relevancy screening and full self-attention keep the contract of cells, around any cell."""

from typing import Any

import pytest
import torch

from mechanisms.recurrent import (
    GRUCell,
    LSTMCell,
    Recurrent,
    RelevancyScreening,
    RNNCell,
    SelfAttentiveCell,
    check_cell,
)
from mechanisms.recurrent.batch_norm import BatchNormLSTMCell
from mechanisms.recurrent.zoneout import Zoneout
from tests.recurrent.own_cells import Leaky, Noisy, Pair

BASES = {"lstm": LSTMCell, "gru": GRUCell, "rnn": RNNCell, "own": Leaky}
FORMS = [{}, {"combine": "sum"}, {"readout": "hidden"}, {"relevance": "normalised"}, {"attention_size": 3}]


@pytest.mark.parametrize(
    ("base", "zoned"), [*((base, zoned) for base in ("lstm", "gru", "rnn") for zoned in (False, True)), ("own", False)]
)
def test_screening_of_any_cell_keeps_the_contract(base: str, zoned: bool) -> None:
    def make() -> RelevancyScreening:
        cell = BASES[base](3, 4)
        return RelevancyScreening(Zoneout(cell, 0.3) if zoned else cell, short_term=2, relevant=2)

    # What attention differentiates is the same around all.
    check_cell(make, compile=base == "lstm" and not zoned, gradcheck=base == "lstm" or zoned)


@pytest.mark.parametrize(
    ("base", "max_memory"), [("lstm", None), ("gru", None), ("own", None), ("lstm", 3), ("rnn", 3)]
)
def test_full_attention_over_any_cell_keeps_the_contract(base: str, max_memory: int | None) -> None:
    def make() -> SelfAttentiveCell:
        cell = BASES[base](3, 4)
        return SelfAttentiveCell(Zoneout(cell, 0.3) if base == "gru" else cell, max_memory=max_memory)

    check_cell(make, compile=base == "lstm" and max_memory is not None, gradcheck=base != "own")


@pytest.mark.parametrize(
    "options",
    [
        {"combine": "sum", "readout": "hidden", "relevance": "normalised", "attention_size": 3},
        {"short_term": 1, "relevant": 0},
    ],
)
def test_every_form_keeps_the_contract(options: dict[str, Any]) -> None:
    check_cell(
        lambda: RelevancyScreening(LSTMCell(3, 4), **{"short_term": 2, "relevant": 2} | options),
        compile=False,
        gradcheck=False,
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pair(),
        lambda: Noisy(3, 4),
        lambda: Zoneout(LSTMCell(3, 4), 0.5, mask="static", max_length=4),
        lambda: LSTMCell(3, 4, learn_initial_state=True),
    ],
    ids=["inputs", "noise", "static-masks", "learned-state"],
)
def test_cells_of_other_kinds_keep_it_too(make: Any) -> None:
    check_cell(lambda: RelevancyScreening(make(), short_term=2, relevant=2), compile=False, gradcheck=False)


def test_batch_statistics_of_the_cell_inside_are_taken_over() -> None:
    cell = RelevancyScreening(BatchNormLSTMCell(3, 4, max_length=9), short_term=2, relevant=2)
    before = {name: buffer.clone() for name, buffer in cell.named_buffers()}
    Recurrent(cell, 3)(torch.randn(6, 5, 3))
    assert any(not torch.equal(buffer, before[name]) for name, buffer in cell.named_buffers())
