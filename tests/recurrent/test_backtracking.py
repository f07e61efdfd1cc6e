"""Sparse attentive backtracking: the sparsifier, exact limits, what is detached and what is not, cells' contract."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mechanisms.recurrent import (
    GRUCell,
    LSTMCell,
    LSTMState,
    RNNCell,
    SABInfo,
    SparseAttentiveBacktracking,
    Zoneout,
    check_cell,
    scan_chunks,
    sparse_attention,
    state_from_dict,
    state_to_dict,
)
from mechanisms.recurrent.scan import scan

INNER = {"lstm": LSTMCell, "gru": GRUCell, "rnn": RNNCell}


def make(inner: Any = LSTMCell, size: int = 4, zoneout: float = 0.0, **options: Any) -> SparseAttentiveBacktracking:
    """A cell in double precision whose scores are far from ties."""
    options = {"k_trunc": 3, "k_top": 2, "k_att": 2} | options
    cell = inner(3, size)
    cell = SparseAttentiveBacktracking(Zoneout(cell, zoneout) if zoneout else cell, **options).double()
    for parameter in (p for name, p in cell.named_parameters() if not name.startswith("cell")):
        nn.init.normal_(parameter)
    return cell


def draw(steps: int, batch: int = 2) -> Tensor:
    return torch.randn(steps, batch, 3, dtype=torch.float64)


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


# --- the sparsifier ---------------------------------------------------------------------------------------------------


def test_weights_by_hand() -> None:
    w = sparse_attention(torch.tensor([[1.0, 2, 3, 4, 5]], dtype=torch.float64), 2)
    torch.testing.assert_close(w, torch.tensor([[0, 0, 0, 1 / 3, 2 / 3]], dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_weights_are_a_sparse_distribution_that_a_constant_does_not_change(k: int) -> None:
    e = torch.rand(200, 9).argsort(1) + 0.5 * torch.rand(200, 9, dtype=torch.float64)  # no two are near
    w = sparse_attention(e, k)
    assert (w >= 0).all()
    assert ((w > 0).sum(1) == k).all()
    torch.testing.assert_close(w.sum(1), torch.ones(200, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(sparse_attention(e + 3, k), w, rtol=0, atol=1e-9)
    torch.testing.assert_close(sparse_attention(7 * e, k), w, rtol=0, atol=1e-4)
    order = torch.randperm(9)
    torch.testing.assert_close(sparse_attention(e[:, order], k), w[:, order], rtol=0, atol=1e-12)


def test_few_entries_take_the_softmax_equal_ones_nothing_and_ties_fewer() -> None:
    e = torch.randn(2, 3)
    assert torch.equal(sparse_attention(e, 3), e.softmax(1))
    assert not sparse_attention(torch.ones(2, 5), 2).any()
    assert sparse_attention(torch.tensor([3.0, 2, 2, 1]), 2).tolist() == pytest.approx([1, 0, 0, 0], abs=1e-6)


def test_the_gradient_reaches_the_entry_that_sets_the_threshold_and_no_further() -> None:
    e = torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.float64, requires_grad=True)
    sparse_attention(e, 2)[4].backward()
    assert (e.grad != 0).tolist() == [False, False, True, True, True]
    assert abs(e.grad.sum()) < 1e-12


def test_empty_slots_are_as_if_they_were_not_there() -> None:
    e = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    for released in (False, True):
        for count in range(1, 7):
            valid = torch.arange(6).expand(4, 6) < count
            w = sparse_attention(e, 2, valid=valid, released=released)
            alone = sparse_attention(e[:, :count], 2, released=released)
            assert torch.equal(w[:, :count], alone)
            assert not w[:, count:].any()
            for mine, theirs in ((w[:, :count], alone),):
                want = torch.autograd.grad(theirs.cos().sum(), e, retain_graph=True)[0]
                assert torch.equal(torch.autograd.grad(mine.cos().sum(), e)[0], want)
    extreme = torch.full((1, 4), -1e30, requires_grad=True)
    sparse_attention(extreme, 2, valid=torch.tensor([[True, False, False, False]])).sum().backward()
    assert extreme.grad.isfinite().all()


def test_the_released_sparsifier_keeps_one_less_and_does_not_normalise_few() -> None:
    w = sparse_attention(torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.float64), 3, released=True)
    torch.testing.assert_close(w, torch.tensor([0, 0, 0, 1 / 3, 2 / 3], dtype=torch.float64), rtol=0, atol=1e-6)
    assert sparse_attention(torch.tensor([-1.0, 3.0]), 2, released=True).tolist() == [-1, 3]
    assert not sparse_attention(torch.tensor([1.0, 3.0]), 1, released=True).any()


def test_half_precision_is_computed_in_single() -> None:
    e = torch.tensor([1.0, 2, 3], dtype=torch.float16)
    assert sparse_attention(e, 1).dtype is torch.float32
    assert sparse_attention(torch.ones(3, dtype=torch.float16), 1).tolist() == [0, 0, 0]


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
    from mechanisms.recurrent import BatchNormLSTMCell, Recurrent

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


# --- the contract of cells --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_memory", [None, 3])
@pytest.mark.parametrize("zoneout", [0.0, 0.3])
@pytest.mark.parametrize("inner", INNER)
def test_the_contract_of_cells_is_kept(inner: str, zoneout: float, max_memory: int | None) -> None:
    check_cell(lambda: make(INNER[inner], zoneout=zoneout, k_trunc=2, max_memory=max_memory), compile=False)


@pytest.mark.parametrize(
    "options",
    [
        {"score": "released"},
        {"score": "released", "max_memory": 3},
        {"k_trunc": None, "k_top": None},
        {"k_trunc": None, "k_top": None, "max_memory": 3},
        {"sparsifier": "released", "max_memory": 4, "block_attention_gradient": True, "readout": "hidden"},
        {"attention_size": 2, "k_att": 1, "max_memory": 1},
    ],
)
def test_the_contract_is_kept_by_variants(options: dict[str, Any]) -> None:
    check_cell(lambda: make(**options), compile=False)


@pytest.mark.unhooked
@pytest.mark.parametrize("max_memory", [None, 3])
def test_a_step_is_one_graph(max_memory: int | None) -> None:
    rules = ("purity", "noise", "modes", "hoisting", "rows", "dtype", "device", "scan", "lengths", "chunks", "reset")
    rules += ("detach", "gradient", "checkpoint", "sequence", "save", "copies", "vmap", "packing", "memory")
    check_cell(lambda: make(k_trunc=2, k_top=1, k_att=2, max_memory=max_memory), skip=rules)


def test_zoneout_inside_holds_the_old_state_with_what_was_attended_in_it() -> None:
    cell, x = make(RNNCell, zoneout=0.4, k_trunc=None), draw(6)
    noise = cell.noise(6, 2, generator=torch.Generator().manual_seed(0))
    result = scan(cell, x, noise=noise, backend="eager")
    h = result.output[..., :4]
    inner = cell.cell.cell
    for t in range(1, 6):
        fresh = inner(x[t], type(inner.initial_state(2))(h[t - 1]))[0]
        zoned = torch.where(noise.own["h"][t], h[t - 1], fresh)
        torch.testing.assert_close(h[t], zoned + result.output[t, :, 4:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("score", ["additive", "released"])
def test_half_precision(score: str) -> None:
    """Scores and weights in float32, everything else as the module; and within autocast all leaves stay float32."""
    cell, x = make(score=score).float(), torch.randn(9, 2, 3)
    expected = scan(cell, x).output
    with torch.autocast("cpu", torch.bfloat16):
        output, state, info = scan(cell, x, need_info=True)
        output.sum().backward()
    assert output.dtype is state.keys.dtype is info.weights.dtype is torch.float32
    half = make(score=score).to(torch.bfloat16)
    output, state, info = scan(half, x.to(torch.bfloat16), need_info=True)
    assert output.dtype is state.values.dtype is torch.bfloat16
    assert state.keys.dtype is info.weights.dtype is torch.float32
    assert output.isfinite().all()
    assert expected.dtype is torch.float32


def test_a_batch_of_one_and_of_none() -> None:
    cell, x = make(), draw(9, 3)
    whole = scan(cell, x, backend="eager").output
    torch.testing.assert_close(scan(cell, x[:, :1], backend="eager").output, whole[:, :1], rtol=0, atol=1e-12)
    assert scan(cell, x[:, :0], backend="eager").output.shape == (9, 0, 8)


@pytest.mark.parametrize("max_memory", [None, 3])
def test_weights_and_state_come_back_from_disk(max_memory: int | None, tmp_path: Any) -> None:
    from safetensors.torch import load_file, save_file

    cell, other, x = make(max_memory=max_memory), make(max_memory=max_memory), draw(13)
    state = scan(cell, x[:6]).state
    save_file(cell.state_dict(), tmp_path / "cell.safetensors")
    save_file(state_to_dict(state), tmp_path / "state.safetensors")
    other.load_state_dict(load_file(tmp_path / "cell.safetensors"))
    back = state_from_dict(other, load_file(tmp_path / "state.safetensors"))
    torch.testing.assert_close(scan(other, x[6:], back).output, scan(cell, x).output[6:], rtol=0, atol=1e-12)


def test_the_same_seed_gives_the_same() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        cell, x = make(zoneout=0.3), draw(11)
        results.append(scan(cell, x, generator=torch.Generator().manual_seed(1)).output)
    assert torch.equal(*results)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"k_trunc": 0}, ValueError, r"k_trunc=0: it must be at least 1"),
        ({"k_top": -1}, ValueError, r"k_top=-1: it must be at least 1"),
        ({"k_att": 0}, ValueError, r"k_att=0: it must be at least 1"),
        ({"max_memory": 0}, ValueError, r"max_memory=0: it must be at least 1"),
        ({"k_att": 2.0}, TypeError, r"k_att must be a whole number, got 2.0"),
        ({"k_top": True}, TypeError, r"k_top must be a whole number, got True"),
        ({"score": "dot"}, ValueError, r"score='dot': it must be one of 'additive', 'released'"),
        ({"sparsifier": "entmax"}, ValueError, r"sparsifier='entmax'"),
        ({"readout": "h"}, ValueError, r"readout='h'"),
        (
            {"score": "released", "attention_size": 3},
            ValueError,
            r"the released score has no inner layer; leave it out",
        ),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        SparseAttentiveBacktracking(LSTMCell(3, 4), **options)


@pytest.mark.user_input
def test_cells_that_cannot_be_reminded_are_refused() -> None:
    class Without(LSTMCell):
        def hidden(self, state: Any) -> Tensor:
            raise TypeError("the state has no leaf 'h'")

    class Matrix(LSTMCell):
        def hidden(self, state: Any) -> Tensor:
            return state.h.unsqueeze(1)

    with pytest.raises(TypeError, match="attends already"):
        SparseAttentiveBacktracking(SparseAttentiveBacktracking(LSTMCell(3, 4)))
    with pytest.raises(TypeError, match=r"SparseAttentiveBacktracking\(Zoneout\(cell\)\)"):
        Zoneout(SparseAttentiveBacktracking(LSTMCell(3, 4)), 0.1)
    with pytest.raises(TypeError, match="no hidden vector"):
        SparseAttentiveBacktracking(Without(3, 4))
    with pytest.raises(TypeError, match="one vector for each row"):
        SparseAttentiveBacktracking(Matrix(3, 4))


@pytest.mark.user_input
def test_messages_say_what_to_do() -> None:
    cell, x = make(), draw(4)
    with pytest.raises(ValueError, match=r"pass readout='hidden' for 4"):
        cell.with_hidden(cell.initial_state(2), scan(cell, x).output[-1])
    flags = torch.zeros(4, 2, dtype=torch.bool)
    flags[2, 1] = True
    with pytest.raises(ValueError, match="set max_memory"):
        scan(cell, x, reset=flags)
    with pytest.raises(ValueError, match="leaf 'values'"):
        scan(make(max_memory=3), x, make(max_memory=4).initial_state(2))
    with pytest.raises(TypeError, match="does not belong"):
        scan(cell, x, make(max_memory=4).initial_state(2))
    with pytest.raises(ValueError, match=r"k=0"):
        sparse_attention(torch.ones(2, 3), 0)
    with pytest.warns(UserWarning, match="take sparsifier='topk', or k_top=2"):
        SparseAttentiveBacktracking(LSTMCell(3, 4), k_top=1, sparsifier="released")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SparseAttentiveBacktracking(LSTMCell(3, 4), k_top=100)  # dense, and allowed
