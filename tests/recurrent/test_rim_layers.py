"""RIM and BRIM in place of nn.LSTM: layouts, states, lengths, dropout, errors."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from mechanisms.recurrent._trees import tree_map
from mechanisms.recurrent.bidirectional_rims import BRIM, RIM, RIMCell, RIMState
from mechanisms.recurrent.scan import scan
from tests.recurrent.modular import SMALL, draw


def rim(layers: int = 2, **options: Any) -> RIM:
    torch.manual_seed(0)
    return RIM(3, 4, 5, 2, layers, **{**SMALL, "dtype": torch.float64, **options}).eval()


def brim(**options: Any) -> BRIM:
    torch.manual_seed(0)
    return BRIM(3, [4, 3], [5, 2], [2, 1], **{**SMALL, "dtype": torch.float64, **options}).eval()


def test_outputs_and_states_have_the_layout_of_an_lstm_with_modules_apart() -> None:
    output, (h, c) = rim()(draw(7, 3, 3))
    assert output.shape == (7, 3, 20)
    assert h.shape == c.shape == (2, 3, 5, 4)
    assert torch.equal(output[-1], h[-1].flatten(1))
    output, h = rim(cell="gru")(draw(7, 3, 3))
    assert h.shape == (2, 3, 5, 4)
    output, state = brim()(draw(7, 3, 3))
    assert output.shape == (7, 3, 6)
    assert [one.h.shape for one in state] == [(3, 5, 4), (3, 2, 3)]


def test_it_is_a_loop_of_cells() -> None:
    network, x = rim(), draw(7, 3, 3)
    cells = [cell for cell in network.network.cells if isinstance(cell, RIMCell)]
    states: list[Any] = [None, None]
    output, _ = network(x)
    for t in range(7):
        read = x[t]
        for place, cell in enumerate(cells):
            read, states[place] = cell(read, states[place])
        torch.testing.assert_close(output[t], read, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [rim, brim])
def test_two_runs_with_the_state_handed_over_are_one(make: Any) -> None:
    network, x = make(), draw(7, 3, 3)
    whole, last = network(x)
    first, state = network(x[:3])
    second, after = network(x[3:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=0, atol=1e-12)
    tree_map(lambda one, two: torch.testing.assert_close(one, two, rtol=0, atol=1e-12), last, after)


@pytest.mark.parametrize("make", [rim, brim])
def test_batch_first_unbatched_and_permuted_rows_give_the_same(make: Any) -> None:
    x = draw(7, 3, 3)
    whole, state = make()(x)
    turned, _, info = make(batch_first=True)(x.transpose(0, 1), need_info=True)
    torch.testing.assert_close(turned.transpose(0, 1), whole, rtol=0, atol=1e-12)
    assert info[0].mask.shape == (3, 7, 5)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(make()(x[:, order])[0], whole[:, order], rtol=0, atol=1e-12)
    alone, one = make()(x[:, 1])
    torch.testing.assert_close(alone, whole[:, 1], rtol=0, atol=1e-12)
    rows = (lambda leaf: leaf[:, 1]) if make is rim else (lambda leaf: leaf[1])
    tree_map(lambda mine, theirs: torch.testing.assert_close(mine, theirs), one, tree_map(rows, state))
    again, _ = make()(x[:, 1], one)
    torch.testing.assert_close(again, make()(x, state)[0][:, 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [rim, brim])
def test_lengths_and_packed_sequences_are_sequences_of_their_own(make: Any) -> None:
    network, x, lengths = make(), draw(7, 3, 3), [4, 7, 1]
    output, state = network(x, lengths=lengths)
    packed, packed_state = network(pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False))
    unpacked, found = pad_packed_sequence(packed)
    assert found.tolist() == lengths
    torch.testing.assert_close(unpacked, output, rtol=0, atol=1e-12)
    tree_map(lambda one, two: torch.testing.assert_close(one, two, rtol=0, atol=1e-12), state, packed_state)
    for row, length in enumerate(lengths):
        alone, _ = network(x[:length, row : row + 1])
        torch.testing.assert_close(output[:length, row : row + 1], alone, rtol=0, atol=1e-12)
        assert not bool(output[length:, row].any())


def test_resets_begin_anew() -> None:
    x, flags = draw(6, 2, 3), torch.zeros(6, 2, dtype=torch.bool)
    flags[4, 1] = True
    for network in (rim(), brim()):
        output, _ = network(x, reset=flags)
        torch.testing.assert_close(output[4:, 1:], network(x[4:, 1:])[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(output[:, :1], network(x[:, :1])[0], rtol=0, atol=1e-12)


def test_inactive_modules_can_be_kept_from_the_layer_above() -> None:
    network, x = rim(pass_inactive=False), draw(6, 2, 3)
    lower, upper = (cell for cell in network.network.cells)
    assert isinstance(lower, RIMCell)
    assert isinstance(upper, RIMCell)
    result = scan(lower, x, need_info=True, keep_states=True)
    handed = torch.stack([state.h for state in result.states or []]) * result.info.mask.unsqueeze(-1)
    want = scan(upper, handed.flatten(2)).output
    output, (h, _) = network(x)
    torch.testing.assert_close(output, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(h[0], result.state.h, rtol=0, atol=1e-12)
    assert not torch.allclose(output, rim()(x)[0])


def test_dropout_acts_between_layers_in_training_alone() -> None:
    quiet = {"input_dropout": 0, "comm_dropout": 0}
    one, two, x = rim(dropout=0.5, **quiet), rim(**quiet), draw(6, 4, 3)
    assert torch.equal(one(x)[0], two(x)[0])
    first = one.train()(x, generator=torch.Generator().manual_seed(1))[0]
    assert torch.equal(first, one(x, generator=torch.Generator().manual_seed(1))[0])
    assert not torch.allclose(first, two(x)[0])
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        rim(1, dropout=0.5)


def test_several_slots_are_read_by_the_first_layer() -> None:
    network = RIM((3, 2), 4, 5, 2, 2, **SMALL)
    output, _, info = network((torch.randn(6, 2, 3), torch.randn(6, 2, 2)), need_info=True)
    assert output.shape == (6, 2, 20)
    assert [one.alpha.shape[-1] for one in info] == [3, 2]


@pytest.mark.parametrize("make", [rim, brim])
def test_checkpoints_and_truncation_are_passed_on(make: Any) -> None:
    x = draw(6, 2, 3).requires_grad_()
    for options in ({"checkpoint": 3}, {"backend": "eager"}):
        torch.testing.assert_close(make(**options)(x)[0], make()(x)[0], rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(make(truncate=4)(x)[0][-1].sum(), x)
    assert not bool(gradient[:4].any())
    assert bool(gradient[4:].any())


@pytest.mark.parametrize("make", [rim, brim])
def test_saved_weights_give_the_same_in_a_new_network(make: Any) -> None:
    network, other, x = make(), make(), draw(5, 2, 3)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(x)[0], network(x)[0])


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_it_learns_to_remember(kind: str) -> None:
    """The sign of the first input, after five steps of noise."""
    torch.manual_seed(0)
    network, head = RIM(2, 8, 3, 2, cell=kind, qkv_std=0.3, key_size=8, comm_key_size=4), nn.Linear(24, 1)
    optimiser = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=0.01)
    for _ in range(80):
        x = torch.randn(6, 32, 2)
        x[1:, :, 0] = 0
        logits = head(network(x)[0][-1]).squeeze(1)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, (x[0, :, 0] > 0).float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss) < 0.3


def test_half_precision_around_it_keeps_single_precision_states() -> None:
    network = RIM(3, 4, 5, 2, **SMALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, (h, c) = network(torch.randn(5, 2, 3))
    assert output.dtype == h.dtype == c.dtype == torch.float32


def test_print_says_how_large_the_whole_is() -> None:
    assert "5 modules x 4 = 20" in repr(rim())
    assert "5 modules x 4 = 20, 2 modules x 3 = 6" in repr(brim())


@pytest.mark.user_input
def test_wrong_states_say_what_to_do() -> None:
    network, x = rim(dtype=torch.float32), torch.randn(7, 3, 3)
    flat = torch.zeros(2, 3, 20)
    with pytest.raises(ValueError, match=r"h_0 has shape \(2, 3, 20\); expected .* = \(2, 3, 5, 4\).*reshape\(2, 3, 5"):
        network(x, (flat, flat))
    with pytest.raises(TypeError, match="h_0 and c_0"):
        network(x, torch.zeros(2, 3, 5, 4))
    with pytest.raises(TypeError, match="must be h_0, a tensor"):
        rim(cell="gru")(x, (flat, flat))
    good = torch.zeros(2, 7, 5, 4)
    with pytest.raises(ValueError, match="batch_first=True"):
        network(x, (good, good))
    with pytest.raises(ValueError, match=r"\(num_layers, n, d\) = \(2, 5, 4\)"):
        network(x[:, 0], (flat, flat))
    other = brim(dtype=torch.float32)
    with pytest.raises(TypeError, match="tuple of 2 RIMState"):
        other(x, (flat, flat))
    with pytest.raises(TypeError, match="layer 0 of the state"):
        other(x, (RIMState(torch.zeros(3, 5, 4)), RIMState(torch.zeros(3, 2, 3))))
    state = other.cell.initial_state(3)
    with pytest.raises(ValueError, match=r"h of layer 1 .*call .reshape\(3, 2, 3\)"):
        other(x, (state[0], RIMState(torch.zeros(3, 6), torch.zeros(3, 6))))


@pytest.mark.user_input
def test_wrong_inputs_and_options_are_refused() -> None:
    for network in (rim(dtype=torch.float32), brim(dtype=torch.float32)):
        with pytest.raises(TypeError, match="embed tokens first"):
            network(torch.zeros(7, 3, 3, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"\(T, B, 3\)"):
            network(torch.zeros(7, 3, 3, 1))
        with pytest.raises(ValueError, match="input_size=3"):
            network(torch.zeros(7, 3, 4))
    with pytest.raises(ValueError, match="pass_inactive"):
        rim(readout="active")
    with pytest.raises(ValueError, match="num_active=9 of num_modules=6"):
        RIM(3, 4, 6, 9)
