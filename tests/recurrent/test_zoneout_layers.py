"""The Zoneout networks stand in for torch's: parameters, states, packed sequences, every option."""

import copy
import io
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from mechanisms.recurrent.zoneout import zoneout
from mechanisms.recurrent.zoneout_layers import (
    ZoneoutGRU,
    ZoneoutGRUCell,
    ZoneoutLSTM,
    ZoneoutLSTMCell,
    ZoneoutRNN,
    ZoneoutRNNCell,
)

ZERO = {"zoneout": 0.0}
PAIRS = {
    "lstm": (nn.LSTM, ZoneoutLSTM, {}, {"zoneout_cell": 0.0, "zoneout_hidden": 0.0}),
    "gru": (nn.GRU, ZoneoutGRU, {}, ZERO),
    "tanh": (nn.RNN, ZoneoutRNN, {}, ZERO),
    "relu": (nn.RNN, ZoneoutRNN, {"nonlinearity": "relu"}, ZERO),
}
OPTIONS = [
    {},
    {"num_layers": 3},
    {"bidirectional": True, "num_layers": 2},
    {"batch_first": True, "bias": False},
]


def pair(name: str, dtype: torch.dtype = torch.float64, **options) -> tuple[nn.Module, nn.Module]:
    theirs, ours, extra, rates = PAIRS[name]
    torch.manual_seed(0)
    peer = theirs(3, 5, **extra, **options, dtype=dtype)
    own = ours(3, 5, **extra, **options, **rates, dtype=dtype)
    own.load_state_dict(peer.state_dict())
    return peer, own


def flat(result) -> list[torch.Tensor]:
    output, state = result
    return [output, *([state] if isinstance(state, torch.Tensor) else state)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_zero_rates_are_torch_s_network(name: str, options: dict, training: bool) -> None:
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        peer, own = pair(name, dtype, **options)
        peer.train(training), own.train(training)
        x = torch.randn(4, 6, 3, dtype=dtype)
        results = []
        for module in (peer, own):
            given = x.clone().requires_grad_()
            found = flat(module(given))
            gradients = torch.autograd.grad(sum(one.cos().sum() for one in found), [given, *module.parameters()])
            results.append([*found, *gradients])
        for one, two in zip(*results, strict=True):
            assert one.shape == two.shape
            torch.testing.assert_close(two, one, rtol=limit, atol=limit)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_names_shapes_and_order_of_parameters_are_torch_s(name: str, options: dict) -> None:
    peer, own = pair(name, **options)
    assert [(key, one.shape) for key, one in own.named_parameters()] == [
        (key, one.shape) for key, one in peer.named_parameters()
    ]
    peer.load_state_dict(own.state_dict())
    bound = 5**-0.5
    assert all(one.abs().max() <= bound for one in type(own)(3, 5).parameters())


@pytest.mark.parametrize("name", PAIRS)
def test_packed_sequences_are_the_sequences_alone(name: str) -> None:
    own = type(pair(name)[1])(3, 5, num_layers=2, bidirectional=True, dtype=torch.float64).eval()
    x, lengths = torch.randn(6, 4, 3, dtype=torch.float64), torch.tensor([2, 6, 1, 4])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    found = own(packed)
    output, _ = pad_packed_sequence(found[0])
    state = flat(found)[1:]
    padded = flat(own(x, lengths=lengths))
    torch.testing.assert_close(padded[0], output, rtol=0, atol=1e-12)
    for row, length in enumerate(lengths):
        alone = flat(own(x[:length, row : row + 1]))
        torch.testing.assert_close(output[:length, row : row + 1], alone[0], rtol=0, atol=1e-12)
        assert not padded[0][length:, row].any()
        for whole, one in zip(state, alone[1:], strict=True):
            torch.testing.assert_close(whole[:, row : row + 1], one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_initial_states_and_unbatched_inputs(name: str) -> None:
    peer, own = pair(name, num_layers=2)
    x = torch.randn(6, 3, dtype=torch.float64)
    state = torch.randn(2, 5, dtype=torch.float64)
    state = (state, state.flip(0)) if name == "lstm" else state
    for one, two in zip(flat(peer(x, state)), flat(own(x, state)), strict=True):
        torch.testing.assert_close(two, one, rtol=0, atol=1e-12)


def test_each_layer_and_direction_has_its_own_masks() -> None:
    own = ZoneoutRNN(3, 50, bidirectional=True, zoneout=0.5)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.zero_()
    start = torch.ones(2, 4, 50)
    output, _ = own(torch.zeros(1, 4, 3), start, generator=torch.Generator().manual_seed(0))
    forward, backward = output.chunk(2, -1)
    assert set(forward.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(forward, backward)


def test_train_draws_and_eval_takes_the_expectation() -> None:
    own, x = ZoneoutLSTM(3, 5, num_layers=2), torch.randn(6, 4, 3)
    first, second = (own(x, generator=torch.Generator().manual_seed(0))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(own(x)[0], own(x)[0])
    own.eval()
    assert torch.equal(own(x)[0], own(x)[0])
    plain = nn.LSTM(3, 5, num_layers=2)
    plain.load_state_dict(own.state_dict())
    assert not torch.allclose(own(x)[0], plain(x)[0], atol=1e-3)


def test_backends_agree_and_dropout_follows_the_generator() -> None:
    x = torch.randn(6, 4, 3)
    results = []
    for backend in ("eager", "kernel"):
        torch.manual_seed(0)
        own = ZoneoutLSTM(3, 5, num_layers=2, dropout=0.5, bidirectional=True, backend=backend)
        results.append(own(x, lengths=[6, 2, 5, 1], generator=torch.Generator().manual_seed(3))[0])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)


def test_moves_copies_and_functional_calls() -> None:
    own, x = ZoneoutGRU(3, 5, num_layers=2), torch.randn(6, 4, 3)
    own(x)
    moved = copy.deepcopy(own).double()
    assert moved(x.double())[0].dtype is torch.float64
    expected = own.eval()(x)[0]
    for other in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert torch.equal(other(x)[0], expected)
        with torch.no_grad():
            other.weight_hh_l0.zero_()
        assert torch.equal(own(x)[0], expected)
        assert not torch.equal(other(x)[0], expected)
    zeros = {name: torch.zeros_like(one) for name, one in own.named_parameters()}
    assert not torch.func.functional_call(own, zeros, (x,))[0].any()
    assert torch.equal(own(x)[0], expected)
    own.weight_ih_l0 = nn.Parameter(torch.zeros_like(own.weight_ih_l0))
    assert not torch.equal(own(x)[0], expected)
    assert ZoneoutGRU(3, 5, device="meta")(x.to("meta"))[0].shape == (6, 4, 5)


def test_models_in_one_batch_equal_a_loop() -> None:
    models = [ZoneoutLSTM(3, 5).eval() for _ in range(3)]
    x = torch.randn(6, 4, 3)
    parameters, buffers = torch.func.stack_module_state(models)
    skeleton = copy.deepcopy(models[0])
    found = torch.func.vmap(lambda p, b: torch.func.functional_call(skeleton, (p, b), (x,))[0])(parameters, buffers)
    for one, model in zip(found, models, strict=True):
        torch.testing.assert_close(one, model(x)[0], rtol=0, atol=1e-6)


@pytest.mark.unhooked
def test_networks_compile_as_one_graph() -> None:
    x = torch.randn(6, 4, 3)
    for own in (ZoneoutLSTM(3, 5), ZoneoutGRU(3, 5, num_layers=2, bidirectional=True)):
        torch._dynamo.reset()
        compiled = torch.compile(own, fullgraph=True, backend="eager")
        assert not torch.equal(compiled(x)[0], compiled(x)[0])
        own.eval()
        torch.testing.assert_close(compiled(x)[0], own(x)[0], rtol=0, atol=1e-6)
        assert all(parameter.requires_grad for parameter in own.parameters())


def test_static_masks_are_saved_with_the_network() -> None:
    own, x = ZoneoutLSTM(3, 5, mask="static", bidirectional=True, max_length=4), torch.randn(6, 4, 3)
    other = ZoneoutLSTM(3, 5, mask="static", bidirectional=True, max_length=4)
    other.load_state_dict(own.state_dict())
    assert torch.equal(other(x)[0], own(x)[0])
    assert "static_c_l0_reverse" in own.state_dict()


def test_the_paper_s_initial_weights_have_orthogonal_blocks() -> None:
    own = ZoneoutLSTM(3, 5, num_layers=2, dtype=torch.float64)
    own.reset_parameters("paper")
    for gate in (*own.weight_hh_l0.split(5), *own.weight_ih_l1.split(5)):
        torch.testing.assert_close(gate @ gate.T, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(own.weight_ih_l0[:3] @ own.weight_ih_l0[:3].T, torch.eye(3, dtype=torch.float64))
    assert own.bias_ih_l1.tolist() == [0.0] * 5 + [1.0] * 5 + [0.0] * 10
    assert not own.bias_hh_l0.any()


# --- cells ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours", "rates"),
    [
        (nn.LSTMCell, ZoneoutLSTMCell, {"zoneout_cell": 0.5, "zoneout_hidden": 0.3}),
        (nn.GRUCell, ZoneoutGRUCell, {"zoneout": 0.3}),
        (nn.RNNCell, ZoneoutRNNCell, {"zoneout": 0.3}),
    ],
)
def test_cells_hold_what_torch_s_cells_compute(theirs, ours, rates) -> None:
    peer, own = theirs(3, 5), ours(3, 5, **rates).eval()
    own.load_state_dict(peer.state_dict())
    for x in (torch.randn(2, 3), torch.randn(3)):
        many = theirs is nn.LSTMCell
        start = tuple(torch.randn(*x.shape[:-1], 5) for _ in range(2 if many else 1))
        start = start if many else start[0]
        new, old, found = ((one if many else (one,)) for one in (peer(x, start), start, own(x, start)))
        rate = [rates["zoneout_hidden"], rates["zoneout_cell"]] if many else [0.3]
        for n, o, f, r in zip(new, old, found, rate, strict=True):
            assert torch.equal(f, zoneout(n, o, r, training=False))
        own(x)
        own.train()
        first, second = (own(x, start, generator=torch.Generator().manual_seed(0)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        own.eval()


def test_a_cell_at_rate_one_keeps_its_state() -> None:
    h, c = torch.randn(2, 5), torch.randn(2, 5)
    kept = ZoneoutLSTMCell(3, 5, zoneout_cell=1, zoneout_hidden=1)(torch.randn(2, 3), (h, c))
    assert torch.equal(kept[0], h)
    assert torch.equal(kept[1], c)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.user_input
def test_bad_settings_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"zoneout_hidden must be in \[0, 1\], got 1.5"):
        ZoneoutLSTM(3, 5, zoneout_hidden=1.5)
    with pytest.raises(TypeError, match="one state, so one rate: zoneout"):
        ZoneoutGRU(3, 5, zoneout_cell=0.5)
    with pytest.raises(TypeError, match="two states: zoneout_cell"):
        ZoneoutLSTM(3, 5, zoneout=0.5)
    with pytest.raises(ValueError, match="proj_size is not offered"):
        ZoneoutLSTM(3, 5, proj_size=2)
    with pytest.raises(TypeError, match="no argument 'hidden'"):
        ZoneoutRNN(3, 5, hidden=2)
    with pytest.raises(ValueError, match="nonlinearity"):
        ZoneoutRNN(3, 5, nonlinearity="sigmoid")
    with pytest.raises(ValueError, match="backend"):
        ZoneoutLSTM(3, 5, backend="fast")
    with pytest.raises(ValueError, match="scheme"):
        ZoneoutLSTM(3, 5).reset_parameters("lecun")
    assert ZoneoutLSTM(3, 5, proj_size=0).hidden_size == 5


@pytest.mark.user_input
def test_bad_inputs_are_refused_as_torch_refuses_them() -> None:
    own, x = ZoneoutLSTM(3, 5), torch.randn(6, 4, 3)
    for wrong in (torch.randn(6, 4, 2), torch.randn(6), torch.randn(6, 4, 3, 1)):
        with pytest.raises(ValueError):
            own(wrong)
    with pytest.raises(TypeError, match="embed"):
        own(torch.zeros(6, 4, 3, dtype=torch.int64))
    for shape in ((2, 4, 5), (1, 3, 5)):
        with pytest.raises(ValueError):
            own(x, (torch.zeros(shape), torch.zeros(shape)))
    for lengths in ([7, 1, 1, 1], [0, 1, 1, 1], [1, 1]):
        with pytest.raises(ValueError, match="lengths"):
            own(x, lengths=lengths)


def test_warnings_are_torch_s() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ZoneoutLSTM(3, 5, num_layers=2, dropout=0.5)
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last recurrent layer"):
        ZoneoutGRU(3, 5, dropout=0.5)


def test_threads_may_share_a_network() -> None:
    own, x = ZoneoutLSTM(8, 16, num_layers=2).eval(), torch.randn(20, 4, 8)
    with torch.no_grad():
        want = own(x)[0]

    def run(_: int) -> bool:
        with torch.no_grad():
            return all(torch.equal(own(x)[0], want) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(4)))


def test_weights_lent_by_functional_call_do_not_stay() -> None:
    own, x = ZoneoutLSTM(3, 5).eval(), torch.randn(6, 4, 3)
    want = own(x)[0]
    doubled = {name: 2 * parameter for name, parameter in own.named_parameters()}
    assert not torch.equal(torch.func.functional_call(own, doubled, (x,))[0], want)
    assert torch.equal(copy.deepcopy(own)(x)[0], want)
    assert torch.equal(own(x)[0], want)


def test_a_replica_does_not_share_the_network_inside() -> None:
    own, x = ZoneoutLSTM(3, 5).eval(), torch.randn(6, 4, 3)
    replica = own._replicate_for_data_parallel()
    for name, parameter in own.named_parameters():
        setattr(replica, name, 2 * parameter)
    want = own(x)[0]
    assert not torch.equal(replica(x)[0], want)
    assert replica._network is not own._network
    assert torch.equal(own(x)[0], want)


def test_static_masks_stay_when_torchs_parameters_are_loaded() -> None:
    theirs = nn.LSTM(3, 5, 2, bidirectional=True)
    model = nn.ModuleDict({"core": ZoneoutLSTM(3, 5, 2, bidirectional=True, mask="static", max_length=4)})
    masks = {name: mask.clone() for name, mask in model.named_buffers()}
    model.load_state_dict({f"core.{name}": tensor for name, tensor in theirs.state_dict().items()})
    assert all(torch.equal(mask, masks[name]) for name, mask in model.named_buffers())
    assert torch.equal(model["core"].weight_hh_l1_reverse, theirs.weight_hh_l1_reverse)
    for missing, rest in (
        ("core.static_h_l0", model.state_dict()),  # masks that belong together
        ("core.weight_hh_l0", {f"core.{name}": tensor for name, tensor in theirs.state_dict().items()}),
    ):
        del rest[missing]
        with pytest.raises(RuntimeError, match=f'Missing key.*"{missing}"'):
            model.load_state_dict(rest)


@pytest.mark.unhooked  # sizes are tensors while torch.jit.trace is at work
@pytest.mark.parametrize("kind", [ZoneoutLSTM, ZoneoutGRU])
def test_a_trace_sees_every_operation_and_can_be_saved(kind: type[nn.Module]) -> None:
    network = kind(3, 5).eval()
    traced = torch.jit.trace(network, torch.randn(4, 2, 3), check_trace=False)
    with io.BytesIO() as file:
        torch.jit.save(traced, file)
        file.seek(0)
        loaded = torch.jit.load(file)
    x = torch.randn(4, 2, 3)
    torch.testing.assert_close(loaded(x)[0], network(x)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("unbatched", [False, True])
def test_static_masks_leave_states_as_torch_has_them(unbatched: bool) -> None:
    shape = (2, 5) if unbatched else (2, 4, 5)
    x = torch.randn(6, 3) if unbatched else torch.randn(6, 4, 3)
    lstm = ZoneoutLSTM(3, 5, mask="static", bidirectional=True, max_length=4)
    _, (h, c) = lstm(x, (torch.zeros(shape), torch.zeros(shape)))
    assert h.shape == c.shape == shape
    assert torch.equal(h, lstm(x)[1][0])
    gru = ZoneoutGRU(3, 5, mask="static", bidirectional=True, max_length=4)
    assert gru(x, gru(x)[1])[1].shape == shape


def test_forward_mode_derivatives_pass() -> None:
    own, x = ZoneoutLSTM(3, 5).double().eval().requires_grad_(False), torch.randn(6, 4, 3, dtype=torch.float64)
    tangent = torch.randn_like(x)
    with forward_ad.dual_level():
        got = forward_ad.unpack_dual(own(forward_ad.make_dual(x, tangent))[0]).tangent
    shift = 1e-6 * tangent
    want = (own(x + shift)[0] - own(x - shift)[0]) / 2e-6
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
