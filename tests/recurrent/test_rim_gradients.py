"""Gradients of RIMs: which are zero, which are derivatives, and those of second order."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms.recurrent import check_cell
from mechanisms.recurrent._trees import tree_map
from mechanisms.recurrent.checks import RULES
from mechanisms.recurrent.scan import scan
from tests.recurrent.modular import draw, gradients, inputs_of, slow_run, small


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_an_inactive_module_gets_no_gradient_but_what_is_told_of_it(kind: str) -> None:
    cell = small(cell=kind).eval()
    like = cell.initial_state(1)
    state = tree_map(lambda leaf: draw(*leaf.shape), like)
    _, new, info = cell.step(cell.project(draw(1, 3)), state, need_info=True)
    new.h.sum().backward()
    between = cell.communication
    assert between is not None
    assert cell.input_attention.query is not None
    own = [cell.input_attention.query.weight, *cell.dynamics.parameters(), between.query.weight]
    for k in range(4):
        active = bool(info.mask[0, k])
        for parameter in own:
            assert parameter.grad is not None
            assert bool(parameter.grad[k].any()) == active
        for told in (between.key.weight, between.value.weight):
            assert told.grad is not None
            assert bool(told.grad[k].any())


def test_without_the_block_gradients_are_derivatives() -> None:
    assert small(block_inactive_grad=False).exact_gradient
    assert small(active=4).exact_gradient
    assert small(comm_source="held").exact_gradient
    assert small(communicate=False).exact_gradient
    assert not small().exact_gradient


@pytest.mark.parametrize(
    "options", [{"block_inactive_grad": False}, {"active": 3}, {"active": 3, "comm_source": "held"}]
)
def test_gradients_pass_gradcheck_away_from_ties(options: dict[str, Any]) -> None:
    check_cell(lambda: small(**{"hidden": 2, "modules": 3, "active": 2, **options}), skip=set(RULES) - {"gradient"})


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.tuples(*[st.integers(1, 4)] * 6),
    st.sampled_from(["lstm", "gru"]),
    st.sampled_from(["candidate", "held"]),
    st.booleans(),
)
def test_any_sizes_give_the_method_as_written_down(
    slots: list[int], numbers: tuple[int, ...], kind: str, source: str, block: bool
) -> None:
    hidden, modules, active, heads, comm_heads, size = numbers
    options = {"cell": kind, "comm_source": source, "block_inactive_grad": block, "input_heads": heads}
    options |= {"comm_heads": comm_heads, "key_size": size, "value_size": hidden, "comm_value_size": active}
    cell = small(tuple(slots), hidden, modules, min(active, modules), **options).eval()
    x = inputs_of(cell, 3, 1)
    output = scan(cell, x).output
    found = slow_run([cell], (None,), tuple(slot[:, 0] for slot in x))
    want = torch.stack([step[0].h.flatten() for step in found]).unsqueeze(1)
    torch.testing.assert_close(output, want, rtol=0, atol=1e-12)
    for mine, theirs in zip(gradients(cell, output), gradients(cell, want), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", [{}, {"cell": "gru", "input_heads": 2}, {"competition": "modules"}])
def test_gradients_of_gradients_are_those_of_the_method_as_written_down(options: dict[str, Any]) -> None:
    cell, x = small(**options).eval(), draw(3, 1, 3).requires_grad_()
    mine = scan(cell, x, backend="eager").output
    theirs = torch.stack([step[0].h.flatten() for step in slow_run([cell], (None,), (x[:, 0],))]).unsqueeze(1)
    seconds = []
    for output in (mine, theirs):
        (first,) = torch.autograd.grad(output.sin().sum(), x, create_graph=True)
        found = torch.autograd.grad(first.square().sum(), list(cell.parameters()), allow_unused=True)
        seconds.append([torch.zeros_like(p) if g is None else g for p, g in zip(cell.parameters(), found, strict=True)])
    for one, two in zip(*seconds, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)
    assert any(bool(one.any()) for one in seconds[0])


def test_all_parameters_and_the_first_state_get_gradients_in_time() -> None:
    cell = small()
    start = tree_map(lambda leaf: draw(*leaf.shape).requires_grad_(), cell.initial_state(16))
    scan(cell, draw(8, 16, 3), start).output.sum().backward()
    assert bool(start.h.grad.any())
    assert bool(start.c.grad.any())
    for name, parameter in cell.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name
