"""The LSTM that is reminded, in place of torch's: parameters, layers, directions, layouts, states."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from mechanisms.recurrent import SABLSTM, LSTMCell, Recurrent, SABInfo, SparseAttentiveBacktracking


def silent(lstm: SABLSTM) -> SABLSTM:
    """Without attention: equal scores give no weights. Needs k_top=1."""
    for name, parameter in lstm.named_parameters():
        if name.startswith("score"):
            nn.init.zeros_(parameter)
    return lstm


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_the_weights_of_an_lstm_load_and_without_attention_give_its_outputs(
    num_layers: int, batch_first: bool, bidirectional: bool, bias: bool
) -> None:
    options: dict[str, Any] = {
        "num_layers": num_layers,
        "batch_first": batch_first,
        "bidirectional": bidirectional,
        "bias": bias,
    }
    plain = nn.LSTM(3, 4, **options)
    lstm = silent(SABLSTM(3, 4, **options, k_trunc=None, k_top=1, readout="hidden"))
    missing, unexpected = lstm.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert {name.split("_")[0] for name in missing} == {"key", "query", "score"}
    x = torch.randn(5, 6, 3, requires_grad=True)
    output, _ = lstm(x)
    want = plain(x)[0]
    torch.testing.assert_close(output, want, rtol=0, atol=1e-6)
    mine, theirs = (torch.autograd.grad(one.cos().sum(), x)[0] for one in (output, want))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_names_are_torch_s_and_the_attention_s() -> None:
    lstm = SABLSTM(3, 4, num_layers=2, bidirectional=True)
    names = [name for name, _ in lstm.named_parameters()]
    assert set(names) >= {name for name, _ in nn.LSTM(3, 4, num_layers=2, bidirectional=True).named_parameters()}
    assert {"key_weight_l1", "query_weight_l1_reverse", "score_weight_l1"} <= set(names)
    assert not any(name.startswith("key") and "_l0" in name for name in names)
    assert [name for name, _ in SABLSTM(3, 4, score="released").named_parameters()][-1] == "score_weight_l0"


def test_it_is_recurrent_around_the_wrapped_cell() -> None:
    torch.manual_seed(0)
    lstm = SABLSTM(3, 4, num_layers=2, k_trunc=3, k_top=2)
    torch.manual_seed(0)
    makers = [
        lambda size: LSTMCell(size, 4),
        lambda size: SparseAttentiveBacktracking(LSTMCell(size, 4), k_trunc=3, k_top=2),
    ]
    network, x = Recurrent(makers, 3), torch.randn(9, 2, 3)
    (mine, state), (theirs, last) = lstm(x), network(x)
    assert torch.equal(mine, theirs)
    assert torch.equal(state[1].values, last[1].values)


def test_states_go_on_and_torch_s_begin_a_store() -> None:
    lstm, x = SABLSTM(3, 4, num_layers=2, k_trunc=3, k_top=2).double(), torch.randn(9, 2, 3).double()
    whole, last = lstm(x)
    first, state = lstm(x[:4])
    second, state = lstm(x[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=0, atol=1e-12)
    for row in x:
        output, _ = lstm.step(row)
        assert output.shape == (2, 8)
        break
    output, state = lstm.step(x[0])
    torch.testing.assert_close(output, whole[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(lstm.step(x[1], state)[0], whole[1], rtol=0, atol=1e-12)
    h, c = torch.randn(2, 2, 2, 4).double()
    _, state = lstm(x, (h, c))
    assert torch.equal(state[1].values[:, 0], h[1])
    zeros = torch.zeros(2, 2, 4).double()
    torch.testing.assert_close(lstm(x, (zeros, zeros))[0], whole, rtol=0, atol=1e-12)
    single, _ = lstm(x[:, 0], (zeros[:, 0], zeros[:, 0]))
    torch.testing.assert_close(single, whole[:, 0], rtol=0, atol=1e-12)
    assert last[1].clock == 9


def test_lengths_and_packed_sequences() -> None:
    lstm, x = SABLSTM(3, 4, k_trunc=3, k_top=2, max_memory=3).double(), torch.randn(9, 2, 3).double()
    padded, _ = lstm(x, lengths=[9, 4])
    output, _ = lstm(pack_padded_sequence(x, torch.tensor([9, 4])))
    torch.testing.assert_close(pad_packed_sequence(output)[0], padded, rtol=0, atol=1e-12)
    torch.testing.assert_close(padded[:4, 1:], lstm(x[:4, 1:])[0], rtol=0, atol=1e-12)
    assert not padded[4:, 1].any()
    growing = SABLSTM(3, 4, k_trunc=3, k_top=2, bidirectional=True).double()
    both, _ = growing(x, lengths=[9, 4])
    torch.testing.assert_close(both[:4, 1:], growing(x[:4, 1:])[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch_first", [False, True])
def test_info_is_of_the_top_layer_in_the_layout_of_the_input(batch_first: bool) -> None:
    lstm = SABLSTM(3, 4, num_layers=2, batch_first=batch_first, k_att=2)
    x = torch.randn(7, 7, 3)[:, :5] if not batch_first else torch.randn(5, 7, 3)
    _, _, (below, info) = lstm(x, need_info=True)
    assert below is None
    assert isinstance(info, SABInfo)
    assert info.weights.shape == ((5, 7, 4) if batch_first else (7, 5, 4))
    two = SABLSTM(3, 4, bidirectional=True)(torch.randn(7, 2, 3), need_info=True)[2]
    assert len(two) == 2


def test_streams_reset_single_rows() -> None:
    lstm, x = SABLSTM(3, 4, k_trunc=3, k_top=2, max_memory=3).double(), torch.randn(9, 2, 3).double()
    _, state = lstm(x[:4])
    state = lstm.reset(state, torch.tensor([True, False]))
    torch.testing.assert_close(lstm(x[4:], state)[0][:, :1], lstm(x[4:, :1])[0], rtol=0, atol=1e-12)
    flags = torch.zeros(9, 2, dtype=torch.bool)
    flags[4, 0] = True
    torch.testing.assert_close(lstm(x, reset=flags)[0][4:], lstm(x[4:], state)[0], rtol=0, atol=1e-12)


def test_copies_types_training_and_functional_calls() -> None:
    lstm, x = SABLSTM(3, 4, num_layers=2, dropout=0.5, k_top=2), torch.randn(9, 2, 3)
    lstm.eval()
    want = lstm(x)[0]
    other = copy.deepcopy(lstm)
    nn.init.zeros_(lstm.weight_ih_l0)
    assert torch.equal(other(x)[0], want)
    assert not torch.equal(lstm(x)[0], want)
    assert other.to(torch.float64)(x.double())[0].dtype is torch.float64
    other.float().train()
    assert not torch.equal(other(x)[0], other(x)[0])
    weights = {name: torch.zeros_like(one) for name, one in other.named_parameters()}
    assert not torch.func.functional_call(other, weights, (x,))[0].any()
    assert torch.equal(other.eval()(x)[0], want)
    other.reset_parameters()
    assert not torch.equal(other(x)[0], want)
    models = [SABLSTM(3, 4, k_top=2) for _ in range(2)]
    stacked, _ = torch.func.stack_module_state(models)
    together = torch.vmap(lambda own: torch.func.functional_call(models[0], own, (x,))[0])(stacked)
    for one, model in zip(together, models, strict=True):
        torch.testing.assert_close(one, model(x)[0], rtol=0, atol=1e-5)
    optimizer = torch.optim.SGD(lstm.parameters(), lr=1.0)
    lstm(x)[0].sum().backward()
    optimizer.step()
    assert lstm.weight_ih_l0.any()


@pytest.mark.user_input
def test_messages_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="proj_size=2"):
        SABLSTM(3, 4, proj_size=2)
    with pytest.raises(ValueError, match="k_top=0"):
        SABLSTM(3, 4, k_top=0)
    with pytest.warns(UserWarning, match="nothing but the initial state is ever stored"):
        SABLSTM(3, 4, k_att=9)(torch.randn(5, 2, 3))
    lstm = SABLSTM(3, 4)
    with pytest.raises(TypeError, match="one length for all rows"):
        lstm(pack_padded_sequence(torch.randn(5, 2, 3), torch.tensor([5, 2])))
    with pytest.raises(ValueError, match="last dimension of the input is 4"):
        lstm(torch.randn(5, 2, 4))
    with pytest.raises(ValueError, match="lengths"):
        lstm(torch.randn(5, 2, 3), lengths=[6, 2])
    with pytest.raises(TypeError, match="embed tokens first"):
        lstm(torch.ones(5, 2, 3, dtype=torch.int64))
