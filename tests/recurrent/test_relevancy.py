"""Relevancy screening and full self-attention: exact limits, a reference with lists, invariants of the set."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mechanisms.recurrent import (
    GRUCell,
    LSTMCell,
    Recurrent,
    RelevancyScreening,
    RNNCell,
    SelfAttentiveCell,
    SparseAttentiveBacktracking,
    detach,
    pack_state,
    scan_chunks,
    select,
    state_from_dict,
    state_to_dict,
    unpack_state,
)
from mechanisms.recurrent._trees import named_leaves
from mechanisms.recurrent.scan import scan
from mechanisms.recurrent.zoneout import Zoneout
from tests.recurrent.own_cells import Leaky

BASES = {"lstm": LSTMCell, "gru": GRUCell, "rnn": RNNCell, "own": Leaky}
FORMS = [{}, {"combine": "sum"}, {"readout": "hidden"}, {"relevance": "normalised"}, {"attention_size": 3}]


def screening(dtype: torch.dtype = torch.float64, seed: int = 0, hidden: int = 6, **options: Any) -> RelevancyScreening:
    torch.manual_seed(seed)
    return RelevancyScreening(LSTMCell(3, hidden), **{"short_term": 3, "relevant": 4} | options).to(dtype)


def inputs(steps: int = 20, batch: int = 3, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, batch, 3, generator=generator, dtype=torch.float64).to(dtype)


def gradients(cell: nn.Module, output: Tensor, *more: Tensor) -> list[Tensor]:
    weights = torch.cos(torch.arange(output.numel(), dtype=output.dtype)).view_as(output)
    found = torch.autograd.grad((output * weights).sum(), [*cell.parameters(), *more], allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, [*cell.parameters(), *more], strict=True)]


# --- exact limits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relevant", [0, 5])
@pytest.mark.parametrize("combine", ["sum", "mean"])
@pytest.mark.parametrize("readout", ["state", "hidden"])
def test_a_buffer_that_holds_everything_is_full_attention(relevant: int, combine: str, readout: str) -> None:
    ours = screening(short_term=20, relevant=relevant, combine=combine, readout=readout)
    full = SelfAttentiveCell(copy.deepcopy(ours.cell), combine=combine, readout=readout).double()
    full.load_state_dict(ours.state_dict())
    x, y = (inputs().requires_grad_() for _ in range(2))
    mine, theirs = scan(ours, x).output, scan(full, y).output
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    for one, two in zip(gradients(ours, mine, x), gradients(full, theirs, y), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-11)


def test_a_memory_of_so_many_steps_is_a_buffer_without_a_set() -> None:
    ours = screening(short_term=4, relevant=0)
    ring = SelfAttentiveCell(copy.deepcopy(ours.cell), max_memory=4).double()
    ring.load_state_dict(ours.state_dict())
    mine, theirs = scan(ours, inputs()), scan(ring, inputs())
    assert torch.equal(mine.output, theirs.output)
    assert torch.equal(mine.state.buffer_index, theirs.state.index)


@pytest.mark.parametrize("base", ["lstm", "gru", "rnn"])
def test_a_buffer_of_one_state_is_the_plain_network(base: str) -> None:
    cell = BASES[base](3, 6).double()
    ours = RelevancyScreening(cell, short_term=1, relevant=0)
    torch.testing.assert_close(scan(ours, inputs()).output, scan(cell, inputs()).output, rtol=0, atol=1e-14)


def test_a_sum_over_one_state_doubles_it() -> None:
    cell = screening(short_term=1, relevant=0, combine="sum")
    result = scan(cell, inputs(), keep_states=True)
    for output, state in zip(result.output, result.states, strict=True):
        torch.testing.assert_close(output, 2 * state.inner.h, rtol=0, atol=1e-15)


def test_the_first_step_gives_the_plain_one_whatever_the_attention() -> None:
    cell = screening(seed=3)
    torch.testing.assert_close(scan(cell, inputs()).output[0], scan(cell.cell, inputs()).output[0], rtol=0, atol=1e-15)


def test_reading_the_hidden_state_changes_nothing_but_the_output() -> None:
    state, hidden = (scan(screening(readout=readout), inputs(), keep_states=True) for readout in ("state", "hidden"))
    for (name, one), (_, two) in zip(named_leaves(state.state), named_leaves(hidden.state), strict=True):
        assert torch.equal(one, two), name
    assert torch.equal(hidden.output, torch.stack([one.inner.h for one in hidden.states]))
    assert torch.equal(state.output, torch.stack([one.s for one in state.states]))
    released = screening(released=True)
    assert (released.combine, released.readout, released.relevance) == ("mean", "hidden", "sum")
    assert torch.equal(scan(released, inputs(), backend="eager").output, hidden.output)


# --- the reference with lists -----------------------------------------------------------------------------------------


def by_lists(cell: RelevancyScreening, x: Tensor) -> tuple[Tensor, list[list[tuple[int, float]]], list[list[int]]]:
    """One sample, step by step, with lists: outputs, the relevant set (index, relevance) by slots, and the buffer."""
    inner, lam = cell.cell, 0.5 if cell.combine == "mean" else 1.0
    s, c = torch.zeros(1, cell.output_size, dtype=x.dtype), torch.zeros(1, cell.output_size, dtype=x.dtype)
    buffer: list[dict[str, Any]] = []
    members: list[dict[str, Any]] = []
    outputs = []
    for t in range(len(x)):
        state = inner.initial_state(1)._replace(h=s, c=c)
        h, after = inner(x[t : t + 1], state)
        c = after.c
        if len(buffer) == cell.short_term:
            old = buffer.pop(0)
            if len(members) < cell.relevant:
                members.append(old)
            elif members:
                least = min(range(len(members)), key=lambda place: members[place]["r"])
                if old["r"] > members[least]["r"]:
                    members[least] = old
        buffer.append({"i": t, "h": h, "r": 0.0})
        entries = [*buffer, *members]
        scores = torch.cat(
            [cell.score(torch.tanh(cell.query(s) + cell.key(entry["h"]))).squeeze(1) for entry in entries]
        )
        weights = torch.softmax(scores, 0)
        for entry, weight in zip(buffer, weights.tolist(), strict=False):
            entry["r"] += weight * (len(entries) if cell.relevance == "normalised" else 1)
        attended = sum(weight * entry["h"] for weight, entry in zip(weights, entries, strict=True))
        s = lam * (h + attended)
        outputs.append(s if cell.readout == "state" else h)
    return torch.cat(outputs), [[(m["i"], m["r"]) for m in members]], [[entry["i"] for entry in buffer]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", FORMS)
def test_it_is_what_lists_give_sample_by_sample(options: dict[str, Any], seed: int) -> None:
    cell, x = screening(seed=seed, **options), inputs(25, seed=seed + 10)
    result = scan(cell, x)
    for row in range(x.shape[1]):
        output, (members,), (buffer,) = by_lists(cell, x[:, row])
        torch.testing.assert_close(result.output[:, row], output, rtol=0, atol=1e-12)
        assert result.state.set_index[row].tolist() == [index for index, _ in members]
        torch.testing.assert_close(
            result.state.set_relevance[row], torch.tensor([r for _, r in members], dtype=torch.float64)
        )
        assert result.state.buffer_index[row].tolist() == buffer


def test_gradients_are_those_of_lists() -> None:
    cell, x, y = screening(), inputs(15, 1).requires_grad_(), inputs(15, 1).requires_grad_()
    mine, theirs = scan(cell, x).output[:, 0], by_lists(cell, y[:, 0])[0]
    for one, two in zip(gradients(cell, mine, x), gradients(cell, theirs, y), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def by_the_released_order(cell: RelevancyScreening, x: Tensor) -> tuple[Tensor, list[list[int]]]:
    """One sample as the released code goes: attend to what is stored, step the cell, screen, store; h is read.

    A plain network's first query is its pre-activation there, without a bias.
    """
    inner, plain = cell.cell, isinstance(cell.cell, RNNCell)
    state = inner.initial_state(1)
    s = query = state.h
    buffer: list[list[Any]] = []  # index, h, relevance
    members: list[list[Any]] = []
    outputs, sets = [], []
    for t in range(len(x)):
        if t:
            entries = [*buffer, *members]
            h = torch.cat([entry[1] for entry in entries])
            weights = torch.softmax(cell.score(torch.tanh(cell.key(h) + cell.query(query))).squeeze(1), 0)
            for entry, weight in zip(buffer, weights.tolist(), strict=False):
                entry[2] += weight
            query = s = 0.5 * (buffer[-1][1] + (weights.unsqueeze(1) * h).sum(0))
        elif plain:
            query = x[:1] @ inner.weight_ih.T
        output, state = inner(x[t : t + 1], state._replace(h=s))
        if t >= cell.short_term:
            old = buffer.pop(0)
            least = min(members, key=lambda member: member[2], default=old)
            if len(members) < cell.relevant:
                members.append(old)
            elif old[2] > least[2]:
                members[next(k for k, member in enumerate(members) if member is least)] = old
        buffer.append([t, output, 0.0])
        outputs.append(output)
        sets.append([member[0] for member in members])
    return torch.cat(outputs), sets


@pytest.mark.parametrize("base", ["lstm", "rnn"])
def test_the_released_form_is_the_released_order_of_steps(base: str) -> None:
    torch.manual_seed(4)
    cell = RelevancyScreening(BASES[base](3, 6), short_term=3, relevant=4, released=True).double()
    x = inputs(30)
    result = scan(cell, x, keep_states=True)
    for row in range(x.shape[1]):
        output, sets = by_the_released_order(cell, x[:, row])
        torch.testing.assert_close(scan(cell, x).output[:, row], output, rtol=0, atol=1e-13)
        assert [[i for i in state.set_index[row].tolist() if i >= 0] for state in result.states] == sets


# --- weights, relevance, the set --------------------------------------------------------------------------------------


@pytest.mark.parametrize("relevance", ["sum", "normalised"])
def test_weights_sum_to_one_and_empty_places_have_none(relevance: str) -> None:
    result = scan(screening(relevance=relevance), inputs(), need_info=True)
    weights, index = result.info.weights, result.info.index
    assert weights.shape == index.shape == (20, 3, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(20, 3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool((weights[index < 0] == 0).all())
    assert bool((weights[index >= 0] > 0).all())
    assert bool((index[:, :, :3].amax(-1) == torch.arange(20).unsqueeze(1)).all())


def test_empty_places_get_no_gradient() -> None:
    cell, state = screening(), screening().initial_state(2)
    state = state._replace(
        set_value=state.set_value.requires_grad_(),
        set_key=state.set_key.requires_grad_(),
        buffer_value=state.buffer_value.requires_grad_(),
    )
    output = scan(cell, inputs(3, 2), state).output
    found = torch.autograd.grad(
        output.sum(), [state.set_value, state.set_key, state.buffer_value], allow_unused=True, materialize_grads=True
    )
    assert all(bool((one == 0).all()) for one in found)
    assert bool(torch.isfinite(output).all())


@pytest.mark.parametrize("seed", range(4))
def test_the_set_holds_the_most_relevant_of_all_that_have_left(seed: int) -> None:
    cell, x = screening(seed=seed, short_term=3, relevant=4), inputs(30, 4, seed=seed)
    info, states = (result := scan(cell, x, need_info=True, keep_states=True)).info, result.states
    for row in range(4):
        received = torch.zeros(30, dtype=torch.float64)
        for t in range(30):
            for place in range(3):
                source = int(info.index[t, row, place])
                if source >= 0:
                    received[source] += info.weights[t, row, place]
            members = [i for i in states[t].set_index[row].tolist() if i >= 0]
            assert len(set(members)) == len(members) == min(4, max(0, t - 2))
            assert all(i <= t - 3 for i in members)
            gone = received[: max(0, t - 2)]
            assert set(members) == set(gone.topk(len(members)).indices.tolist())
            held = states[t].set_relevance[row][: len(members)]
            assert bool(((held >= 0) & (held <= 3)).all())


def test_relevance_is_frozen_in_the_set_and_carries_no_gradient() -> None:
    result = scan(screening(), inputs(30).requires_grad_(), keep_states=True)
    for before, after in zip(result.states, result.states[1:], strict=False):
        same = before.set_index == after.set_index
        assert torch.equal(before.set_relevance[same], after.set_relevance[same])
        assert not after.set_relevance.requires_grad
        assert not after.buffer_relevance.requires_grad
        assert after.set_value.requires_grad


def test_an_equally_relevant_state_does_not_replace_a_member() -> None:
    """Without attention's weights (v = 0) all states of the steady state are equally relevant."""
    cell = screening(short_term=2, relevant=2)
    nn.init.zeros_(cell.score.weight)
    sets = [state.set_index[0].tolist() for state in scan(cell, inputs(12, 1), keep_states=True).states]
    assert sets[3] == [0, 1]
    assert sets[-1] == [0, 1]


def test_an_untrained_network_keeps_the_first_states_unless_relevance_is_normalised() -> None:
    x = inputs(60, 8)
    early = scan(screening(hidden=32, short_term=5, relevant=10), x).state.set_index
    assert bool((early.sort(1).values == torch.arange(10)).all())
    even = scan(screening(hidden=32, short_term=5, relevant=10, relevance="normalised"), x).state.set_index
    assert bool((even > 20).any())


def test_gradients_flow_through_members_of_the_set() -> None:
    cell, x = screening(hidden=16, short_term=3, relevant=4), inputs(60, 1).requires_grad_()
    scan(cell, x).output[-1].sum().backward()
    norms = x.grad.norm(dim=(1, 2))
    assert norms[:4].min() > 1e3 * norms[20:40].max()


# --- rows, lengths, streams -------------------------------------------------------------------------------------------


def test_a_finished_row_keeps_its_relevances() -> None:
    cell, x = screening(), inputs(20)
    whole = scan(cell, x, lengths=[20, 9, 4]).state
    for row, length in enumerate((20, 9, 4)):
        alone = scan(cell, x[:length, row : row + 1]).state
        for (name, one), (_, two) in zip(named_leaves(select(whole, [row])), named_leaves(alone), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-13, msg=name)


def test_full_attention_goes_on_after_a_row_had_ended() -> None:
    """Rows that ended early have empty places; a further chunk is attended as if there were none."""
    cell = SelfAttentiveCell(LSTMCell(3, 4)).double()
    x = inputs(12)
    first = scan(cell, x[:6], lengths=[6, 2, 4])
    second = scan(cell, x[6:], first.state)
    for row, length in enumerate((6, 2, 4)):
        alone = scan(cell, torch.cat([x[:length, row : row + 1], x[6:, row : row + 1]])).output
        torch.testing.assert_close(second.output[:, row], alone[length:, 0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_long_stream_has_a_state_of_one_size(batch: int) -> None:
    cell = screening(torch.float32)
    sizes, state, count = set(), None, 0
    for chunk in scan_chunks(cell, inputs(2000, batch, torch.float32), size=500):
        sizes.add(sum(leaf.numel() * leaf.element_size() for _, leaf in named_leaves(chunk.state)))
        state, count = chunk.state, count + len(chunk.output)
    assert len(sizes) == 1
    assert count == 2000
    assert state.buffer_index[:, -1].tolist() == [1999] * batch
    assert all(bool(torch.isfinite(leaf).all()) for _, leaf in named_leaves(state) if leaf.is_floating_point())


def test_chunks_with_gradients_through_the_carried_state() -> None:
    cell, x, y = screening(), inputs().requires_grad_(), inputs().requires_grad_()
    whole = scan(cell, x).output
    first = scan(cell, y[:9])
    parts = torch.cat([first.output, scan(cell, y[9:], first.state).output])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-14)
    for one, two in zip(gradients(cell, parts, y), gradients(cell, whole, x), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-13)
    assert scan(cell, y[9:], detach(first.state)).output.requires_grad


def test_a_row_that_is_reset_has_nothing_in_buffer_and_set() -> None:
    cell = screening()
    state = cell.reset(scan(cell, inputs()).state, torch.tensor([False, True, False]))
    assert state.buffer_index[1].tolist() == [-1, -1, -1]
    assert state.set_index[1].tolist() == [-1] * 4
    assert bool((state.set_value[1] == 0).all())
    assert bool((state.set_index[0] >= 0).all())
    growing = SelfAttentiveCell(LSTMCell(3, 4))
    with pytest.raises(ValueError, match="max_memory"):
        growing.reset(growing.initial_state(2), torch.tensor([True, False]))


def test_an_agent_s_packed_state_starts_at_zero_and_loses_nothing() -> None:
    core = Recurrent(screening(torch.float32), 3)
    state = None
    for t in range(12):
        _, state = core.step(inputs(12, 4, torch.float32)[t], state)
    packed = pack_state(core, state)
    again = unpack_state(core, packed)
    assert torch.equal(core.step(torch.ones(4, 3), again)[0], core.step(torch.ones(4, 3), state)[0])
    done = torch.tensor([[1.0], [0.0], [1.0], [1.0]])
    fresh = unpack_state(core, packed * done)
    assert fresh[0].set_index[1].tolist() == [-1] * 4
    torch.testing.assert_close(core.step(torch.ones(4, 3), fresh)[0][1], core.step(torch.ones(4, 3))[0][1])
    growing = SelfAttentiveCell(LSTMCell(3, 4))
    with pytest.raises(TypeError, match="max_memory"):
        pack_state(growing, growing.initial_state(2))


def test_a_rollout_is_reproduced_by_one_call_with_resets() -> None:
    core, x = Recurrent(screening(torch.float32), 3), inputs(15, 4, torch.float32)
    starts = torch.rand(15, 4, generator=torch.Generator().manual_seed(0)) < 0.2
    state, outputs = core.initial_state(4), []
    for t in range(15):
        state = core.reset(state, starts[t])
        output, state = core.step(x[t], state)
        outputs.append(output)
    torch.testing.assert_close(core(x, reset=starts)[0], torch.stack(outputs), rtol=0, atol=1e-6)


def test_weights_and_state_are_saved_and_loaded(tmp_path: Any) -> None:
    cell, other = screening(), screening(seed=5)
    first = scan(cell, inputs())
    torch.save({"weights": cell.state_dict(), "state": state_to_dict(first.state)}, tmp_path / "cell.pt")
    read = torch.load(tmp_path / "cell.pt", weights_only=True)
    other.load_state_dict(read["weights"])
    again = scan(other, inputs(seed=2), state_from_dict(other, read["state"]))
    assert torch.equal(again.output, scan(cell, inputs(seed=2), first.state).output)


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_scores_and_relevances_in_single(dtype: torch.dtype) -> None:
    cell = screening(dtype)
    result = scan(cell, inputs(dtype=dtype), need_info=True)
    assert result.output.dtype == dtype
    assert result.state.set_value.dtype == result.state.set_key.dtype == dtype
    assert result.info.weights.dtype == torch.float32
    assert result.state.set_relevance.dtype == result.state.buffer_relevance.dtype == torch.float32
    exact = scan(screening(torch.float32), inputs(dtype=torch.float32)).output
    assert float((result.output.float() - exact).detach().abs().max()) < 0.05
    result.output.float().sum().backward()
    assert cell.key.weight.grad.dtype == dtype
    assert bool(torch.isfinite(cell.key.weight.grad).all())


def test_autocast_keeps_the_state_s_types() -> None:
    cell = screening(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        result = scan(cell, inputs(dtype=torch.float32), need_info=True)
    assert all(leaf.dtype != torch.bfloat16 for _, leaf in named_leaves(result.state))
    assert result.info.weights.dtype == torch.float32
    torch.testing.assert_close(result.info.weights.sum(-1), torch.ones(20, 3), rtol=0, atol=1e-6)


def test_very_large_scores_do_not_overflow() -> None:
    cell = screening(torch.float32)
    with torch.no_grad():
        cell.score.weight.mul_(1e4)
    output = scan(cell, inputs(dtype=torch.float32)).output
    assert bool(torch.isfinite(output).all())


# --- user input -------------------------------------------------------------------------------------------------------


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_term": 2.5}, "short_term must be a whole number, got 2.5"),
        ({"relevant": 1.0}, "relevant must be a whole number"),
        ({"attention_size": True}, "attention_size must be a whole number"),
        ({"short_term": 0}, "short_term=0"),
        ({"relevant": -1}, "relevant=-1"),
        ({"attention_size": 0}, "attention_size=0"),
        ({"combine": "max"}, "combine='max'"),
        ({"readout": "h"}, "readout='h'"),
        ({"relevance": "mean"}, "relevance='mean'"),
        ({"released": True, "combine": "sum"}, "released code has combine='mean'"),
        ({"released": True, "relevance": "normalised"}, "released code has relevance='sum'"),
    ],
)
def test_wrong_settings_say_what_is_expected(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        RelevancyScreening(LSTMCell(3, 4), **options)


@pytest.mark.user_input
def test_wrong_cells_states_and_memories_say_what_is_expected() -> None:
    with pytest.raises(ValueError, match="max_memory=0"):
        SelfAttentiveCell(LSTMCell(3, 4), max_memory=0)
    inside = RelevancyScreening(LSTMCell(3, 4))
    for outer in (RelevancyScreening, SelfAttentiveCell, SparseAttentiveBacktracking):
        with pytest.raises(TypeError, match="atten"):
            outer(inside)
    with pytest.raises(TypeError, match="atten"):
        RelevancyScreening(SparseAttentiveBacktracking(LSTMCell(3, 4)))
    with pytest.raises(TypeError, match="zone the inner cell"):
        Zoneout(inside, 0.1)
    other = RelevancyScreening(LSTMCell(3, 4), short_term=5)
    with pytest.raises(ValueError, match=r"buffer_value.*\(2, 5, 4\).*\(2, 10, 4\)"):
        scan(inside, torch.randn(4, 2, 3), other.initial_state(2))
    other = RelevancyScreening(LSTMCell(3, 4), relevant=7)
    with pytest.raises(ValueError, match=r"set_value.*\(2, 7, 4\).*\(2, 15, 4\)"):
        scan(inside, torch.randn(4, 2, 3), other.initial_state(2))
    with pytest.raises(TypeError, match="RelevancyState"):
        scan(inside, torch.randn(4, 2, 3), LSTMCell(3, 4).initial_state(2))
    with pytest.raises(TypeError, match="embed tokens"):
        scan(inside, torch.zeros(4, 2, 3, dtype=torch.int64))


@pytest.mark.user_input
def test_infinite_inputs_show_in_the_output() -> None:
    x = torch.randn(6, 2, 3)
    x[2, 0] = math.nan
    output = scan(RelevancyScreening(LSTMCell(3, 4), short_term=2, relevant=2), x).output
    assert bool(output[2:, 0].isnan().all())
    assert bool(torch.isfinite(output[:, 1]).all())
