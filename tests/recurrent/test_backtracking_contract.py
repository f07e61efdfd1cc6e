"""Reminded cells keep the contract of cells, come back from disk, run in half precision, and refuse bad input."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from mechanisms.recurrent import (
    GRUCell,
    LSTMCell,
    RNNCell,
    SparseAttentiveBacktracking,
    Zoneout,
    check_cell,
    sparse_attention,
    state_from_dict,
    state_to_dict,
)
from mechanisms.recurrent.scan import scan
from tests.recurrent.reminded import draw, make

INNER = {"lstm": LSTMCell, "gru": GRUCell, "rnn": RNNCell}


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
