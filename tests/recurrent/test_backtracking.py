"""Sparse attentive backtracking: exact limits, what is detached and what is not, the store."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mechanisms.recurrent import (
    BatchNormLSTMCell,
    LSTMCell,
    LSTMState,
    Recurrent,
    SABInfo,
    SparseAttentiveBacktracking,
    scan_chunks,
)
from mechanisms.recurrent.scan import scan
from tests.recurrent.reminded import draw, make


def reference(cell: SparseAttentiveBacktracking, x: Tensor) -> tuple[Tensor, list[list[int]]]:
    """The method as it is written down, for one row: outputs, and at which steps the entries were stored that each step
    selects (-1 is the initial state)."""
    inner = cell.cell
    assert isinstance(inner, LSTMCell)
    h, c = inner.initial_state(1)
    memory, outputs, selected = [(-1, h)], [], []
    for t, row in enumerate(x):
        if cell.k_trunc is not None and (t + 1) % cell.k_trunc == 0:
            h, c = h.detach(), c.detach()
        provisional, (_, c) = inner(row, LSTMState(h, c))
        scores = []
        for _, m in memory:
            if cell.score_kind == "additive":
                scores.append((cell.score.weight @ torch.tanh(cell.key(m) + cell.query(provisional)).T).squeeze())
            else:
                scores.append((cell.score.weight @ torch.tanh(torch.cat([provisional, m], 1)).T).squeeze())
        e, n = torch.stack(scores), len(memory)
        if cell.k_top is None or n <= cell.k_top:
            w = e if cell.sparsifier == "released" else e.softmax(0)
            selected.append([at for at, _ in memory])
        else:
            order = e.argsort(descending=True)
            bar = e[order[cell.k_top - 1]] + 1e-7 if cell.sparsifier == "released" else e[order[cell.k_top]]
            u = (e - bar).clamp(min=0)
            w = u / (u.sum() + 1e-7)
            selected.append([memory[int(i)][0] for i in order[: cell.k_top + 1]])
        a = sum(w_i * m for w_i, (_, m) in zip(w, memory, strict=True))
        h = provisional + a
        if (t + 1) % cell.k_att == 0:
            memory.append((t, h))
            if cell.max_memory is not None:
                memory = memory[-cell.max_memory :]
        outputs.append(torch.cat([h, a], 1))
    return torch.stack(outputs), selected


def gradients(cell: nn.Module, output: Tensor, x: Tensor) -> list[Tensor]:
    wanted = [x, *cell.parameters()]
    found = torch.autograd.grad(output.cos().sum(), wanted, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]


# --- the method -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k_trunc": 1, "k_att": 1},
        {"k_trunc": None, "k_top": None},
        {"k_trunc": 5, "k_top": 3, "k_att": 4, "attention_size": 7},
        {"score": "released"},
        {"score": "released", "sparsifier": "released"},
        {"sparsifier": "released", "k_top": 3},
        {"max_memory": 3, "k_top": 2},
        {"max_memory": 3, "k_top": 1, "k_att": 3, "score": "released"},
        {"max_memory": 2, "k_top": 4},
        {"max_memory": 4, "k_top": None},
    ],
)
def test_outputs_and_gradients_are_those_of_the_method_as_written_down(options: dict[str, Any]) -> None:
    cell, x = make(**options), draw(17, 1).requires_grad_()
    want = reference(cell, x)[0]
    output, state = scan(cell, x, backend="eager")
    torch.testing.assert_close(output, want, rtol=0, atol=1e-12)
    for mine, theirs in zip(gradients(cell, output, x), gradients(cell, want, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    assert torch.equal(cell.hidden(state), output[-1, :, :4])


@pytest.mark.parametrize("max_memory", [None, 3])
def test_without_attention_and_truncation_it_is_an_lstm(max_memory: int | None) -> None:
    """Equal scores give no weights, and of the first entry alone, which is zero, nothing is added."""
    cell = make(k_trunc=None, k_top=1, max_memory=max_memory)
    nn.init.zeros_(cell.score.weight)
    plain, x = nn.LSTM(3, 4).double(), draw(9).requires_grad_()
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(cell.cell, name).data = getattr(plain, name + "_l0").data
    output = scan(cell, x).output
    assert not output[..., 4:].any()
    want = plain(x)[0]
    torch.testing.assert_close(output[..., :4], want, rtol=0, atol=1e-6)
    mine = gradients(cell.cell, output[..., :4], x)
    for one, two in zip(mine, gradients(plain, want, x), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_truncation_is_that_of_the_scan_with_the_first_segment_one_shorter() -> None:
    """Boundaries before steps k - 1, 2k - 1, ...; truncated by hand on consecutive chunks, by the scan, and inside."""
    cell, x, k = make(k_trunc=4, k_top=1), draw(14).requires_grad_(), 4
    nn.init.zeros_(cell.score.weight)
    state, outputs = cell.cell.initial_state(2), []
    for begin, end in ((0, 3), (3, 7), (7, 11), (11, 14)):
        output, state = scan(cell.cell, x[begin:end], LSTMState(*(leaf.detach() for leaf in state)), backend="eager")
        outputs.append(output)
    by_hand = gradients(cell.cell, torch.cat(outputs), x)
    by_scan = gradients(cell.cell, scan(cell.cell, x, truncate=(k, k - 1), backend="eager").output, x)
    inside = gradients(cell.cell, scan(cell, x, backend="eager").output[..., :4], x)
    for one, two, three in zip(by_hand, by_scan, inside, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
        torch.testing.assert_close(one, three, rtol=0, atol=1e-12)


def test_without_attention_no_gradient_crosses_the_last_truncation() -> None:
    cell, x = make(k_trunc=5, k_top=1), draw(13).requires_grad_()
    nn.init.zeros_(cell.score.weight)
    scan(cell, x, backend="eager").output[-1].sum().backward()
    assert not x.grad[:9].any()  # cut before steps 4 and 9
    assert (x.grad[9:] != 0).all()


@pytest.mark.parametrize("score", ["additive", "released"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradients_reach_exactly_the_segments_of_selected_entries(score: str, seed: int) -> None:
    """Of the k_top + 1 best of each step that is reached, again and again; everything else is exactly zero."""
    torch.manual_seed(seed)
    cell, x = make(k_trunc=3, k_top=2, k_att=3, score=score), draw(40, 1).requires_grad_()
    selected = reference(cell, x)[1]
    reached: set[int] = set()

    def visit(step: int) -> None:
        while step >= 0 and step not in reached:
            reached.add(step)
            for entry in selected[step]:
                visit(entry)
            if (step + 1) % 3 == 0:  # cut before this step
                return
            step -= 1

    visit(39)
    scan(cell, x, backend="eager").output[-1].cos().sum().backward()
    found = {step for step in range(40) if x.grad[step].any()}
    assert found == reached
    assert len(reached) < 40


def test_blocked_gradients_flow_through_values_alone() -> None:
    cell, x = make(k_trunc=3, k_top=2, k_att=3, block_attention_gradient=True), draw(20, 1).requires_grad_()
    output = scan(cell, x, backend="eager").output
    assert torch.equal(output, scan(make_unblocked(cell), x, backend="eager").output)
    output[-1].sum().backward()
    assert cell.key.weight.grad.any()
    blocked = x.grad.clone()
    x.grad = None
    scan(make_unblocked(cell), x, backend="eager").output[-1].sum().backward()
    assert not torch.allclose(blocked, x.grad)


def make_unblocked(cell: SparseAttentiveBacktracking) -> SparseAttentiveBacktracking:
    other = copy.deepcopy(cell)
    other.block_attention_gradient = False
    return other


def test_the_released_score_does_not_see_the_present_state_and_the_additive_one_does() -> None:
    x = draw(11)
    for score, sees in (("released", False), ("additive", True)):
        cell = make(score=score, k_top=2, k_att=1)
        state = scan(cell, x).state
        weights = [cell.step(cell.project(row), state, need_info=True)[2].weights for row in draw(2)]
        assert (weights[0] != weights[1]).any() == sees
        assert torch.allclose(*weights, rtol=0, atol=1e-6) != sees


def test_the_gradient_of_a_segment_is_the_derivative() -> None:
    torch.manual_seed(3)
    for score in ("additive", "released"):
        cell = make(k_trunc=None, k_att=1, score=score)
        inputs = draw(5).requires_grad_()
        gaps = [info.topk(4, -1).values.diff().abs().min() for info in scores_of(cell, inputs) if info.shape[1] >= 4]
        assert min(gaps) > 1e-3  # piecewise linear: away from ties
        assert torch.autograd.gradcheck(lambda x, cell=cell: scan(cell, x, backend="eager").output, [inputs])


def scores_of(cell: SparseAttentiveBacktracking, x: Tensor) -> list[Tensor]:
    found, score = [], cell._scores
    cell._scores = lambda h, keys: found.append(score(h, keys)) or found[-1]  # pyrefly: ignore
    scan(cell, x.detach(), backend="eager")
    del cell._scores
    return found


# --- the store --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k_att", [1, 2, 5])
def test_the_store_holds_the_initial_state_and_every_so_many_th(k_att: int) -> None:
    cell, x = make(k_att=k_att), draw(13)
    for t in range(1, 14):
        output, state = scan(cell, x[:t], backend="eager")
        assert state.values.shape == (2, 1 + t // k_att, 4)
        assert state.count.tolist() == [1 + t // k_att] * 2
    output = scan(cell, x, backend="eager").output[..., :4]
    for entry in range(1, state.values.shape[1]):
        assert torch.equal(state.values[:, entry], output[entry * k_att - 1])
        torch.testing.assert_close(state.keys[:, entry], cell.key(output[entry * k_att - 1]), rtol=0, atol=1e-12)
    assert not state.values[:, 0].any()


def test_a_ring_is_the_growing_store_until_it_is_full() -> None:
    x = draw(12)
    growing = make(k_att=2)
    ring = make(k_att=2, max_memory=7)
    ring.load_state_dict(growing.state_dict())
    torch.testing.assert_close(scan(ring, x).output, scan(growing, x).output, rtol=0, atol=1e-12)


def test_a_stream_without_end_has_a_state_of_fixed_size() -> None:
    cell, x = make(max_memory=3), draw(50)
    whole, last = scan(cell, x, backend="eager")
    state, shapes = None, set()
    for row, want in zip(x, whole, strict=True):
        output, state = cell(row, state)
        torch.testing.assert_close(output, want, rtol=0, atol=1e-12)
        shapes.add(tuple(state.values.shape))
    assert shapes == {(2, 3, 4)}
    torch.testing.assert_close(state.values, last.values, rtol=0, atol=1e-12)
    assert state.count.tolist() == [26, 26]


@pytest.mark.parametrize("max_memory", [None, 3])
def test_a_sequence_that_had_ended_goes_on_as_if_it_were_alone(max_memory: int | None) -> None:
    """Each row keeps its own time, in a store that grows too."""
    cell, x, y = make(max_memory=max_memory), draw(7).requires_grad_(), draw(9).requires_grad_()
    first = scan(cell, x, lengths=[7, 3], backend="eager")
    second = scan(cell, y, first.state, lengths=[9, 8], backend="eager")
    for row, (a, b) in enumerate(((7, 9), (3, 8))):
        alone = scan(cell, torch.cat([x[:a, row : row + 1], y[:b, row : row + 1]]), backend="eager")
        torch.testing.assert_close(second.output[:b, row], alone.output[a:, 0], rtol=0, atol=1e-12)
        mine = gradients(cell, second.output[b - 1, row], y)[1:]
        for one, two in zip(mine, gradients(cell, alone.output[-1, 0], y)[1:], strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-10)
        count = int(alone.state.count)
        assert second.state.count[row] == count
        if max_memory is None:
            torch.testing.assert_close(second.state.values[row, :count], alone.state.values[0], rtol=0, atol=1e-12)
            assert not second.state.values[row, count:].any()


def test_chunks_hand_over_the_store() -> None:
    cell, x = make(), draw(12)
    whole = scan(cell, x, backend="eager", lengths=[12, 5])
    chunks = list(scan_chunks(cell, x, size=5, lengths=[12, 5]))
    torch.testing.assert_close(torch.cat([chunk.output for chunk in chunks]), whole.output, rtol=0, atol=1e-12)


def test_info_says_what_was_looked_at_and_when_it_was_stored() -> None:
    x = draw(11)
    info = scan(make(k_att=2), x, need_info=True).info
    assert isinstance(info, SABInfo)
    assert info.weights.shape == (11, 2, 6)
    assert info.stored[-1, 0].tolist() == [0, 2, 4, 6, 8, 10]
    assert info.valid.sum(-1)[:, 0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    assert not info.weights[~info.valid].any()
    assert ((info.weights > 0).sum(-1) <= 2).all()
    ring = scan(make(k_att=2, max_memory=3), x, need_info=True).info
    assert ring.weights.shape == (11, 2, 3)
    assert ring.stored[-1, 0].tolist() == [6, 8, 10]
    assert ring.stored[7, 0].tolist() == [6, 2, 4]
    assert ring.valid[:3, 0].tolist() == [[True, False, False]] * 2 + [[True, True, False]]


def test_a_cell_with_batch_statistics_records_them_through_the_wrapper() -> None:
    cell = SparseAttentiveBacktracking(BatchNormLSTMCell(3, 4), k_trunc=3, k_top=2)
    Recurrent(lambda size: cell, 3)(torch.randn(6, 5, 3))
    assert int(cell.cell.steps_seen) == 6


def test_begin_starts_from_a_state_of_the_inner_cell() -> None:
    cell = make()
    h = torch.randn(2, 4, dtype=torch.float64)
    state = cell.begin(LSTMState(h, torch.zeros_like(h)))
    assert torch.equal(state.values[:, 0], h)
    assert torch.equal(state.keys[:, 0], cell.key(h))
    learned = SparseAttentiveBacktracking(LSTMCell(3, 4, learn_initial_state=True), k_trunc=1, k_top=2)
    nn.init.ones_(learned.cell.initial_h)
    scan(learned, torch.randn(5, 2, 3)).output[-1].sum().backward()
    assert learned.cell.initial_h.grad.any()  # through the store, as through time it is cut
