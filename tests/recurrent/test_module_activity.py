"""Activation vectors, specialisation and held states."""

import math

import pytest
import torch

from mechanisms.recurrent.bidirectional_rims import RIMCell, activation_vector, held_fraction, specialisation
from mechanisms.recurrent.scan import scan
from tests.recurrent.modular import draw, small


def test_activation_vectors_sum_to_the_number_of_active_modules() -> None:
    mask = scan(small(modules=6, active=3), draw(9, 4, 3), need_info=True).info.mask
    assert float(activation_vector(mask).sum()) == pytest.approx(3, abs=1e-5)
    by_slice, by_list = activation_vector(mask, slice(2, 5)), activation_vector(mask, [2, 3, 4])
    flags = torch.zeros(9, dtype=torch.bool)
    flags[2:5] = True
    assert torch.equal(by_slice, by_list)
    assert torch.equal(by_slice, activation_vector(mask, flags))
    assert torch.equal(by_slice, activation_vector(mask, range(2, 5)))
    each = flags.unsqueeze(1).expand(9, 4)
    assert torch.equal(by_slice, activation_vector(mask, each))


def test_specialisation_is_nothing_for_equal_phases_and_one_for_disjoint_ones() -> None:
    mask = torch.zeros(4, 5, 6, dtype=torch.bool)
    mask[:2, :, :3] = True
    mask[2:, :, 3:] = True
    assert specialisation(mask, slice(0, 2), slice(2, 4)) == 1.0
    assert specialisation(mask, slice(0, 1), slice(1, 2)) == 0.0
    mask[3, :, :] = mask[0, :, :]
    assert specialisation(mask, slice(0, 2), slice(2, 4)) == 0.5  # sum of six halves over six


@pytest.mark.parametrize(("modules", "active"), [(6, 3), (5, 4), (4, 4)])
def test_one_minus_k_of_n_of_the_states_are_held(modules: int, active: int) -> None:
    cell = RIMCell(3, 4, modules, active, qkv_std=0.5)
    output = scan(cell, torch.randn(20, 8, 3)).output
    share = held_fraction(output.unflatten(-1, (modules, 4)), cell.initial_state(8).h)
    assert share == pytest.approx(1 - active / modules, abs=1e-12)
    assert held_fraction(output.unflatten(-1, (modules, 4))) == pytest.approx(1 - active / modules, abs=1e-12)


@pytest.mark.user_input
def test_wrong_shapes_are_refused() -> None:
    mask = torch.ones(4, 5, 6, dtype=torch.bool)
    with pytest.raises(TypeError, match="booleans"):
        activation_vector(mask.float())
    with pytest.raises(ValueError, match="time, batch, modules"):
        activation_vector(mask[0])
    with pytest.raises(ValueError, match="no steps in a run of 4"):
        specialisation(mask, slice(0, 2), slice(7, 9))
    with pytest.raises(ValueError, match="unflatten"):
        held_fraction(torch.zeros(4, 5, 6))
    with pytest.raises(ValueError, match="start has shape"):
        held_fraction(torch.zeros(4, 5, 6, 2), torch.zeros(5, 12))
    with pytest.raises(ValueError, match="one step alone"):
        held_fraction(torch.zeros(1, 5, 6, 2))
    assert not math.isnan(held_fraction(torch.zeros(1, 5, 6, 2), torch.zeros(5, 6, 2)))
