"""check_cell accepts what keeps the contract, and names the rule that is broken."""

import pytest
import torch
from torch import nn

from mechanisms.recurrent import Cell, CellContractError, GRUCell, LSTMCell, ModReLU, RNNCell, check_cell
from mechanisms.recurrent.checks import RULES
from tests.recurrent.broken_cells import BROKEN, BranchesOnValues, NeverFreezes, make
from tests.recurrent.own_cells import Growing, Leaky, Noisy, Normalised, Pair

SOUND = {
    "LSTM": lambda: LSTMCell(3, 4),
    "LSTM without bias": lambda: LSTMCell(3, 4, bias=False),
    "LSTM with learned initial states": lambda: _moved(LSTMCell(3, 4, learn_initial_state=True)),
    "GRU": lambda: GRUCell(3, 4),
    "GRU with learned initial states": lambda: _moved(GRUCell(3, 4, learn_initial_state=True)),
    "RNN": lambda: RNNCell(3, 4),
    "RNN with ReLU": lambda: RNNCell(3, 4, nonlinearity="relu"),
    "RNN with ModReLU": lambda: RNNCell(3, 4, nonlinearity=ModReLU(4)),
    "Leaky": lambda: Leaky(3, 4),
    "Noisy": lambda: Noisy(3, 4),
    "Pair": lambda: Pair(),
    "Normalised": lambda: Normalised(3, 4),
    "Growing": lambda: Growing(3, 4),
}


def _moved(cell: Cell) -> Cell:
    """Learned initial states that are not zero."""
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            if name.startswith("initial"):
                parameter.normal_()
    return cell


@pytest.mark.unhooked
@pytest.mark.parametrize("name", SOUND)
def test_sound_cells_pass(name: str) -> None:
    check_cell(SOUND[name])


@pytest.mark.parametrize("name", SOUND)
def test_sound_cells_pass_with_shapes_checked(name: str) -> None:
    check_cell(SOUND[name], compile=False)


def test_a_single_row_can_be_checked() -> None:
    check_cell(lambda: Leaky(3, 4), batch_size=1, steps=5, compile=False)


@pytest.mark.unhooked
@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_broken_cells_are_refused_by_the_rule_they_break(kind: type[nn.Module]) -> None:
    with pytest.raises(CellContractError) as found:
        check_cell(lambda: make(kind))
    assert found.value.rule == BROKEN[kind], str(found.value)


@pytest.mark.unhooked
def test_the_error_names_the_leaf_and_the_largest_difference() -> None:
    with pytest.raises(CellContractError, match=r"^lengths: .*'h'") as found:
        check_cell(lambda: NeverFreezes(3, 4))
    assert found.value.leaf == "h"
    assert found.value.difference is not None
    assert found.value.difference > 1e-3


@pytest.mark.unhooked
def test_without_the_compiler_a_branch_on_values_is_found_on_the_meta_device() -> None:
    with pytest.raises(CellContractError, match=r"^device"):
        check_cell(lambda: BranchesOnValues(3, 4), compile=False)


def test_rules_can_be_skipped_by_name() -> None:
    check_cell(lambda: NeverFreezes(3, 4), skip=["lengths"], compile=False)
    with pytest.raises(ValueError, match="skip names length; the rules are contract, purity"):
        check_cell(lambda: Leaky(3, 4), skip=["length"])
    with pytest.raises(ValueError, match="steps=2"):
        check_cell(lambda: Leaky(3, 4), steps=2)
    assert len(RULES) == 22
