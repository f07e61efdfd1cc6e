"""Helpers for states work on any tree of tensors and say where something else stands in it."""

from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from mechanisms.recurrent import (
    GRUCell,
    LSTMCell,
    LSTMState,
    detach,
    expand,
    freeze,
    from_torch_state,
    reset,
    select,
    state_from_dict,
    state_to_dict,
    to_torch_state,
)
from mechanisms.recurrent._trees import named_leaves, shapes, split, tensors, unbind
from mechanisms.recurrent.states import get_leaf, with_leaves
from tests.recurrent.own_cells import Growing, Pair

B, H = 3, 4


class Outer(NamedTuple):
    inner: Any
    extra: Any


def nested() -> Outer:
    h = torch.arange(12.0).view(B, H)
    return Outer(LSTMState(h, -h), {"count": torch.arange(B), "pair": (h + 1, None)})


def test_leaves_have_names() -> None:
    assert [name for name, _ in named_leaves(nested())] == ["inner.h", "inner.c", "extra.count", "extra.pair.0"]
    assert [name for name, _ in named_leaves(torch.zeros(1))] == ["state"]
    assert shapes(nested()) == (
        "Outer(inner: LSTMState(h: float32 (3, 4), c: float32 (3, 4)), "
        "extra: {count: int64 (3,), pair: (float32 (3, 4), None)})"
    )


def test_every_helper_keeps_the_structure() -> None:
    state = nested()
    for made in (detach(state), select(state, [0, 2]), expand(state, 2), freeze(torch.ones(B).bool(), state, state)):
        assert [name for name, _ in named_leaves(made)] == [name for name, _ in named_leaves(state)]
        assert type(made) is Outer
    assert select(state, [0, 2]).extra["count"].tolist() == [0, 2]
    assert select(state, torch.tensor([False, True, False])).inner.h.tolist() == [[4.0, 5.0, 6.0, 7.0]]
    assert expand(state, 2).extra["count"].tolist() == [0, 0, 1, 1, 2, 2]
    frozen = freeze(torch.tensor([True, False, True]), select(state, [2, 1, 0]), state)
    assert frozen.extra["count"].tolist() == [2, 1, 0]


def test_detach_cuts_every_leaf() -> None:
    h = torch.ones(B, H, requires_grad=True) * 2
    assert not any(leaf.requires_grad for leaf in tensors(detach((h, {"x": h}))))


def test_time_is_cut_and_unbound_leaf_by_leaf() -> None:
    tree = {"a": torch.arange(6).view(3, 2), "b": (torch.arange(3), None)}
    parts = split(tree, [2, 1])
    assert parts[1]["a"].tolist() == [[4, 5]]
    assert parts[0]["b"][0].tolist() == [0, 1]
    assert split(None, [2, 1]) == [None, None]
    steps = unbind(tree, 3)
    assert steps[2]["a"].tolist() == [4, 5]
    assert steps[1]["b"][1] is None
    assert unbind(None, 2) == [None, None]


def test_what_is_no_tensor_is_named() -> None:
    with pytest.raises(TypeError, match=r"state\.inner is a list; tensors in tuples"):
        detach(Outer([torch.zeros(1)], None))
    with pytest.raises(TypeError, match=r"state\.extra\.x is a str"):
        detach(Outer(None, {"x": "text"}))
    with pytest.raises(TypeError, match="is a list"):
        list(named_leaves([torch.zeros(1)]))
    with pytest.raises(TypeError, match="has no leaf 'h'"):
        get_leaf((torch.zeros(1),), "h")


def test_leaves_are_read_and_replaced_by_name() -> None:
    state = LSTMState(torch.zeros(B, H), torch.ones(B, H))
    assert get_leaf(state, "c") is state.c
    assert with_leaves(state, {"h": state.c}).h is state.c
    assert LSTMCell(2, H).with_hidden(state, state.c).h is state.c
    assert LSTMCell(2, H).hidden(state) is state.h


def test_reset_replaces_rows_and_leaves_the_gradients_of_others() -> None:
    cell = LSTMCell(2, H, learn_initial_state=True)
    h = torch.randn(B, H, requires_grad=True)
    for done in (torch.tensor([True, False, False]), [1, 0, 0]):
        state = reset(cell, LSTMState(h, h), done)
        mine, theirs = torch.autograd.grad(state.h.sum(), [h, cell.initial_h])
        assert mine.tolist() == [[0.0] * H, [1.0] * H, [1.0] * H]
        assert theirs.tolist() == [1.0] * H


@pytest.mark.user_input
def test_reset_refuses_flags_of_another_kind() -> None:
    cell = GRUCell(2, H)
    with pytest.raises(ValueError, match=r"done has shape \(2,\); expected \(3,\)"):
        reset(cell, cell.initial_state(B), torch.zeros(2))
    with pytest.raises(ValueError, match="booleans, or zeros and ones, got"):
        reset(cell, cell.initial_state(B), torch.tensor([0.0, 0.5, 1.0]))


def test_growing_states_are_reset_all_or_not_at_all() -> None:
    cell = Growing(2, H)
    state = cell.initial_state(B)
    for _ in range(2):
        _, state = cell(torch.randn(B, 2), state)
    assert reset(cell, state, torch.ones(B).bool()).memory.shape == (B, 0, H)
    assert reset(cell, state, torch.zeros(B).bool()) is state
    with pytest.raises(ValueError, match="set max_memory="):
        reset(cell, state, torch.tensor([True, False, False]))


def test_torchs_layout_and_ours() -> None:
    cells = [LSTMCell(2, H), LSTMCell(H, H)]
    states = tuple(LSTMState(torch.randn(B, H), torch.randn(B, H)) for _ in cells)
    h, c = to_torch_state(states)
    assert h.shape == c.shape == (2, B, H)
    again = from_torch_state(tuple(cell.initial_state(1) for cell in cells), (h, c))
    assert all(torch.equal(mine.c, theirs.c) for mine, theirs in zip(again, states, strict=True))
    gru = GRUCell(2, H)
    assert isinstance(to_torch_state((gru.initial_state(B),)), Tensor)


def test_states_survive_saving() -> None:
    for cell, inputs in ((Growing(2, H), torch.randn(B, 2)), (Pair(), (torch.randn(B, 3), torch.randn(B, 2)))):
        _, state = cell(inputs)
        again = state_from_dict(cell, load(save(state_to_dict(state))))
        for (name, mine), (_, theirs) in zip(named_leaves(again), named_leaves(state), strict=True):
            same = torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine == theirs  # type: ignore[arg-type]
            assert same, name
    with pytest.raises(ValueError, match=r"has the leaves h, x; GRUCell has h"):
        state_from_dict(GRUCell(2, H), {"h": torch.zeros(1), "x": torch.zeros(1)})
