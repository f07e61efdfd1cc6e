"""RelLSTM and RelRNN in place of torch's networks."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mechanisms.recurrent import LSTMCell, Recurrent, RelevancyInfo, RelLSTM, RelRNN, pack_state, state_to_dict

SMALL: dict[str, Any] = {"short_term": 3, "relevant": 4}


def x(steps: int = 12, batch: int = 3) -> Tensor:
    return torch.randn(steps, batch, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [(RelLSTM, nn.LSTM, {}), (RelRNN, nn.RNN, {}), (RelRNN, nn.RNN, {"nonlinearity": "relu"})],
)
def test_weights_of_torch_s_network_load_and_attention_alone_is_missing(
    ours: Any, theirs: Any, options: dict[str, Any], num_layers: int, bidirectional: bool
) -> None:
    shape = {"num_layers": num_layers, "bidirectional": bidirectional} | options
    network, torchs = ours(3, 5, short_term=1, relevant=0, **shape), theirs(3, 5, **shape)
    found = network.load_state_dict(torchs.state_dict(), strict=False)
    assert found.unexpected_keys == []
    assert len(found.missing_keys) == 3 * (1 + bidirectional)
    assert all(name.split("_weight_")[0] in ("key", "query", "score") for name in found.missing_keys)
    # A buffer of one state attends to nothing else: the network is torch's.
    torch.testing.assert_close(network(x())[0], torchs(x())[0], rtol=0, atol=1e-6)
    again = theirs(3, 5, **shape)
    assert again.load_state_dict(network.state_dict(), strict=False).missing_keys == []
    assert torch.equal(again(x())[0], torchs(x())[0])


def test_only_the_top_layer_screens() -> None:
    network = RelLSTM(3, 5, num_layers=3, **SMALL)
    kinds = [type(cell).__name__ for cell in network.cells]
    assert kinds == ["LSTMCell", "LSTMCell", "RelevancyScreening"]
    output, state, info = network(x(), need_info=True)
    assert output.shape == (12, 3, 5)
    assert info[:2] == (None, None)
    assert isinstance(info[2], RelevancyInfo)
    assert info[2].weights.shape == (12, 3, 7)
    assert state[2].set_index.shape == (3, 4)
    with pytest.raises(TypeError, match="records nothing"):
        Recurrent(lambda size: LSTMCell(size, 5), 3)(x(), need_info=True)


def test_batch_first_unbatched_packed_and_lengths() -> None:
    network, rows = RelLSTM(3, 5, **SMALL), RelLSTM(3, 5, batch_first=True, **SMALL)
    rows.load_state_dict(network.state_dict())
    output, state = network(x())
    first, other = rows(x().transpose(0, 1))
    torch.testing.assert_close(first.transpose(0, 1), output)
    torch.testing.assert_close(other[0].s, state[0].s)
    torch.testing.assert_close(network(x()[:, 1])[0], output[:, 1])
    lengths = [12, 7, 3]
    packed = nn.utils.rnn.pack_padded_sequence(x(), lengths)
    (unpacked, _), (padded, last) = (
        nn.utils.rnn.pad_packed_sequence(network(packed)[0]),
        network(x(), lengths=lengths),
    )
    assert torch.equal(unpacked, padded)
    torch.testing.assert_close(last[0].s[2], output[2, 2])
    assert last[0].buffer_index[2].tolist() == [0, 1, 2]


def test_directions_have_memories_of_their_own() -> None:
    network = RelLSTM(3, 5, bidirectional=True, **SMALL)
    output, state, info = network(x(), need_info=True)
    assert network.output_size == 10
    assert output.shape == (12, 3, 10)
    assert len(state) == len(info) == 2
    alone = RelLSTM(3, 5, **SMALL)
    alone.load_state_dict({n.removesuffix("_reverse"): p for n, p in network.state_dict().items() if "reverse" in n})
    torch.testing.assert_close(alone(x().flip(0))[0].flip(0), output[..., 5:])
    with pytest.raises(ValueError, match="bidirectional"):
        network.step(x()[0])


def test_a_stream_is_one_run_and_rows_start_anew() -> None:
    network, state = RelLSTM(3, 5, num_layers=2, **SMALL), None
    outputs = []
    for step in x():
        output, state = network.step(step, state)
        outputs.append(output)
    torch.testing.assert_close(torch.stack(outputs), network(x())[0])
    fresh = network.reset(state, torch.tensor([True, False, False]))
    assert fresh[1].set_index[0].tolist() == [-1] * 4
    assert bool((pack_state(network, network.initial_state(2)) == 0).all())
    assert "1.set_index" in state_to_dict(state)
    starts = torch.zeros(12, 3, dtype=torch.bool)
    starts[5, 1] = True
    torch.testing.assert_close(network(x(), reset=starts)[0][5:, 1], network(x()[5:, 1:2])[0][:, 0])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("ours", "theirs"), [(RelLSTM, nn.LSTM), (RelRNN, nn.RNN)])
def test_torch_s_states_begin_a_run(ours: Any, theirs: Any, bidirectional: bool) -> None:
    shape = {"num_layers": 2, "bidirectional": bidirectional}
    torchs, plain = theirs(3, 5, **shape), ours(3, 5, short_term=1, relevant=0, **shape)
    plain.load_state_dict(torchs.state_dict(), strict=False)
    for size in ((4, 3, 5), (4, 5)) if bidirectional else ((2, 3, 5), (2, 5)):
        start = torch.randn(2, *size).unbind()
        hx, given = (start if theirs is nn.LSTM else start[0]), x() if len(size) == 3 else x()[:, 0]
        torch.testing.assert_close(plain(given, hx=hx)[0], torchs(given, hx=hx)[0], rtol=0, atol=1e-6)
    if not bidirectional:
        hx = (torch.randn(2, 3, 5), torch.randn(2, 3, 5)) if theirs is nn.LSTM else torch.randn(2, 3, 5)
        one, state = plain.step(x()[0], hx=hx)
        torch.testing.assert_close(one, torchs(x()[:1], hx)[0][0], rtol=0, atol=1e-6)
        assert state[1].buffer_index.tolist() == [[0]] * 3


def test_backends_agree_and_assigned_parameters_give_their_type() -> None:
    auto, single = RelLSTM(3, 5, **SMALL), RelLSTM(3, 5, backend="eager", **SMALL)
    single.load_state_dict(auto.double().state_dict(), assign=True)
    assert single.initial_state(2)[0].s.dtype == torch.float64
    assert single.cells[0].key.weight is single.key_weight_l0
    torch.testing.assert_close(auto(x().double())[0], single(x().double())[0], rtol=0, atol=1e-12)


def test_modrelu_has_biases_of_its_own_in_each_layer() -> None:
    network = RelRNN(3, 5, num_layers=2, nonlinearity="modrelu", **SMALL)
    assert {"nonlinearity_bias_l0", "nonlinearity_bias_l1"} <= set(dict(network.named_parameters()))
    network(x())[0].sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_dropout_between_layers_acts_in_training_alone() -> None:
    network = RelLSTM(3, 5, num_layers=2, dropout=0.5, **SMALL)
    assert not torch.equal(network(x())[0], network(x())[0])
    one, two = (network(x(), generator=torch.Generator().manual_seed(3))[0] for _ in range(2))
    assert torch.equal(one, two)
    network.eval()
    assert torch.equal(network(x())[0], network(x())[0])


def test_copies_saving_functional_calls_and_types() -> None:
    network = RelLSTM(3, 5, **SMALL)
    want = network(x())[0]
    for other in (copy.deepcopy(network), RelLSTM(3, 5, **SMALL)):
        file = io.BytesIO()
        torch.save(network.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(other(x())[0], want)
    doubled = {name: 2 * parameter for name, parameter in network.named_parameters()}
    assert not torch.equal(torch.func.functional_call(network, doubled, (x(),))[0], want)
    assert torch.equal(network(x())[0], want)
    assert network.double()(x().double())[0].dtype == torch.float64
    assert RelLSTM(3, 5, dtype=torch.float64, device="cpu").key_weight_l0.dtype == torch.float64
    assert RelLSTM(3, 5, bias=False).bias_ih_l0 is None
    network.flatten_parameters()
    assert "short_term=3" in repr(network)


@pytest.mark.user_input
def test_wrong_arguments_say_what_is_expected() -> None:
    with pytest.raises(ValueError, match="proj_size"):
        RelLSTM(3, 5, proj_size=2)
    with pytest.raises(ValueError, match="nonlinearity='sigmoid'"):
        RelRNN(3, 5, nonlinearity="sigmoid")
    with pytest.raises(ValueError, match="short_term=0"):
        RelLSTM(3, 5, short_term=0)
    with pytest.raises(TypeError, match="relevnt"):
        RelLSTM(3, 5, relevnt=3)
    with pytest.raises(ValueError, match="num_layers=0"):
        RelLSTM(3, 5, num_layers=0)
    with pytest.raises(RuntimeError, match=r"attention alone is missing.*strict=False"):
        RelLSTM(3, 5).load_state_dict(nn.LSTM(3, 5).state_dict())
    with pytest.raises(RuntimeError) as wrong:
        RelLSTM(3, 5).load_state_dict(nn.GRU(3, 5).state_dict(), strict=False)
    assert "attention alone" not in str(wrong.value)
    with pytest.raises(TypeError, match="state"):
        RelRNN(3, 5)(x(), (torch.zeros(1, 3, 5), torch.zeros(1, 3, 5)))
    with pytest.raises(ValueError, match="layers times directions"):
        RelLSTM(3, 5)(x(), (torch.zeros(2, 3, 5), torch.zeros(2, 3, 5)))
    with pytest.raises(ValueError, match="backend='fused'"):
        RelLSTM(3, 5, backend="fused")
    with pytest.raises(TypeError, match="embed tokens"):
        RelLSTM(3, 5)(torch.zeros(4, 2, 3, dtype=torch.int64))
