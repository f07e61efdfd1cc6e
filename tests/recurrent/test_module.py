"""Recurrent takes what torch.nn.LSTM, GRU and RNN take, and gives what they give."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from mechanisms.recurrent import (
    GRUCell,
    LSTMCell,
    LSTMState,
    ModReLU,
    Recurrent,
    RNNCell,
    check_cell,
    from_torch,
    state_from_dict,
    state_to_dict,
)
from tests.recurrent.own_cells import Growing, Leaky, Noisy, Normalised, Pair

T, B, D, H = 7, 5, 3, 4
LENGTHS = [7, 3, 1, 3, 6]
KINDS: dict[str, Any] = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "RNN": nn.RNN,
    "RNN with ReLU": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}


def leaves(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for part in (tree or ()) if part is not None for leaf in leaves(part)]


def agree(ours: Any, theirs: Any, tolerance: float = 1e-12) -> None:
    mine, expected = leaves(ours), leaves(theirs)
    assert len(mine) == len(expected)
    for one, other in zip(mine, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_torchs_module(kind: str, num_layers: int, bidirectional: bool, batch_first: bool, bias: bool) -> None:
    torch.manual_seed(0)
    options = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}
    theirs = KINDS[kind](D, H, num_layers, **options).double()
    ours = Recurrent.from_torch(theirs)
    x = torch.randn(B, T, D) if batch_first else torch.randn(T, B, D)
    x = x.double().requires_grad_()
    rows = num_layers * (2 if bidirectional else 1)
    start = tuple(torch.randn(rows, B, H).double().requires_grad_() for _ in range(2 if kind == "LSTM" else 1))
    for given in (None, start if kind == "LSTM" else start[0]):
        for packed in (False, True):
            lengths = torch.tensor(LENGTHS)
            results = []
            for module in (ours, theirs):
                input = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False) if packed else x
                result = module(input, given)
                total = sum(weighted(leaf) for leaf in floats(result))
                inputs = [x, *theirs.parameters(), *(start if given is not None else ())]
                results.append((result, torch.autograd.grad(total, inputs)))
            agree(results[0][0], results[1][0])
            agree(results[0][1], results[1][1], 1e-10)
    single = [leaf[:, 0] for leaf in start]
    for given in (None, tuple(single) if kind == "LSTM" else single[0]):
        agree(ours(torch.ones(T, D).double(), given), theirs(torch.ones(T, D).double(), given))


def weighted(leaf: Tensor) -> Tensor:
    return (leaf * torch.cos(torch.arange(leaf.numel())).view(leaf.shape)).sum()


def floats(result: Any) -> list[Tensor]:
    return [leaf for leaf in leaves(result) if leaf.dim() > 1]


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_are_packing(kind: str) -> None:
    torch.manual_seed(0)
    theirs = KINDS[kind](D, H, 2, bidirectional=True).double()
    x = torch.randn(T, B, D).double()
    packed, last = theirs(pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False))
    padded, _ = nn.utils.rnn.pad_packed_sequence(packed)
    for lengths in (LENGTHS, torch.tensor(LENGTHS), torch.tensor(LENGTHS).numpy()):
        agree(Recurrent.from_torch(theirs)(x, lengths=lengths), (padded, last))


def test_sorted_packs_come_back_as_they_were() -> None:
    torch.manual_seed(0)
    theirs = nn.GRU(D, H)
    packed = pack_sequence([torch.randn(length, D) for length in (5, 3, 3, 1)])
    output, _ = Recurrent.from_torch(theirs)(packed)
    assert output.sorted_indices is None
    torch.testing.assert_close(output.data, theirs(packed)[0].data)
    assert torch.equal(output.batch_sizes, packed.batch_sizes)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_go_to_torch_and_come_back(kind: str) -> None:
    theirs = KINDS[kind](D, H, 2, bidirectional=True, batch_first=True, dropout=0.25)
    ours = Recurrent.from_torch(theirs)
    again = ours.to_torch()
    assert type(again) is type(theirs)
    assert (again.batch_first, again.dropout, again.mode) == (True, 0.25, theirs.mode)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
        assert again.state_dict()[name].data_ptr() != tensor.data_ptr()
    mine = {parameter.data_ptr() for parameter in ours.parameters()}
    assert mine == {parameter.data_ptr() for parameter in theirs.parameters()}


@pytest.mark.parametrize(("theirs", "kind"), [(nn.LSTMCell, LSTMCell), (nn.GRUCell, GRUCell), (nn.RNNCell, RNNCell)])
def test_torchs_cells_come_in_with_their_parameters(theirs: Any, kind: Any) -> None:
    module = theirs(D, H)
    cell = from_torch(module)
    assert type(cell) is kind
    assert all(getattr(cell, name) is parameter for name, parameter in module.named_parameters())
    x = torch.randn(B, D)
    result = module(x)
    agree(cell(x)[1], result, 1e-6)
    fresh = kind(D, H)
    fresh.load_state_dict(module.state_dict())
    module.load_state_dict(fresh.state_dict())


def test_the_same_seed_gives_the_weights_of_torch() -> None:
    for kind, theirs in ((LSTMCell, nn.LSTMCell), (GRUCell, nn.GRUCell), (RNNCell, nn.RNNCell)):
        torch.manual_seed(3)
        ours = kind(D, H)
        torch.manual_seed(3)
        agree(list(ours.parameters()), list(theirs(D, H).parameters()), 0.0)


def test_dropout_between_layers_drops_its_share_per_step_and_only_in_training() -> None:
    cells = [lambda size: RNNCell(size, 1000, nonlinearity="relu"), lambda size: Copy(size)]
    network = Recurrent(cells, 2, dropout=0.3)
    x = torch.randn(20, 50, 2)
    network.eval()
    plain = network(x)[0]
    network.train()
    generator = torch.Generator().manual_seed(0)
    dropped = network(x, generator=generator)[0]
    alive = plain > 0
    kept = (dropped != 0)[alive]
    # Half a million units: five standard errors are 0.0033.
    assert abs(kept.double().mean() - 0.7) < 0.0035
    torch.testing.assert_close(dropped[alive][kept], plain[alive][kept] / 0.7)
    both = (dropped != 0)[1:][alive[1:] & alive[:-1]] == (dropped != 0)[:-1][alive[1:] & alive[:-1]]
    assert abs(both.double().mean() - (0.49 + 0.09)) < 0.005  # a mask per step, not one for all
    again = network(x, generator=torch.Generator().manual_seed(0))[0]
    assert torch.equal(dropped, again)
    torch.manual_seed(1)
    assert not torch.equal(network(x)[0], network(x)[0])


class Copy(Leaky):
    """Its output is its input."""

    def __init__(self, size: int) -> None:
        super().__init__(size, size)

    def project(self, inputs: Tensor) -> Tensor:
        return inputs

    def step(self, projected: Tensor, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
        return projected, state


def test_dropout_with_one_layer_warns_as_torch_does() -> None:
    with pytest.warns(UserWarning, match="dropout option") as theirs:
        nn.LSTM(D, H, dropout=0.5)
    with pytest.warns(UserWarning, match="dropout option") as ours:
        Recurrent(lambda size: LSTMCell(size, H), D, dropout=0.5)
    assert str(ours[0].message) == str(theirs[0].message)


def test_any_cells_make_layers() -> None:
    network = Recurrent([Pair(), lambda size: Leaky(size, 6), lambda size: GRUCell(size, 2)], (3, 2))
    output, state = network((torch.randn(T, B, 3), torch.randn(T, B, 2)))
    assert output.shape == (T, B, 2)
    assert [type(one).__name__ for one in state] == ["dict", "LeakyState", "GRUState"]
    both = Recurrent(lambda size: Noisy(size, H), D, num_layers=2, bidirectional=True)
    assert both(torch.randn(T, B, D))[0].shape == (T, B, 2 * H)
    assert both.output_size == 2 * H


@pytest.mark.parametrize("batch_first", [False, True])
def test_outputs_of_several_tensors_keep_their_structure(batch_first: bool) -> None:
    network = Recurrent(Pair(), (3, 2), batch_first=batch_first)
    sizes = (B, T) if batch_first else (T, B)
    output, _ = network((torch.randn(*sizes, 3), torch.randn(*sizes, 2)))
    assert output.h.shape == output.s.shape == (*sizes, 4)


def test_steps_are_the_scan_and_resets_begin_anew() -> None:
    torch.manual_seed(0)
    network = Recurrent(lambda size: LSTMCell(size, H), D, num_layers=2).double()
    x = torch.randn(T, B, D).double()
    flags = torch.rand(T, B, generator=torch.Generator().manual_seed(0)) < 0.3
    output, last = network(x, reset=flags)
    state = network.initial_state(B)
    for t in range(T):
        state = network.reset(state, flags[t])
        step, state = network.step(x[t], state)
        torch.testing.assert_close(step, output[t], rtol=0, atol=1e-12)
    agree(state, last)
    started, _ = network.step(x[0])
    torch.testing.assert_close(started, network(x[:1])[0][0], rtol=0, atol=1e-12)
    transposed = Recurrent([*network.cells], D, batch_first=True)
    agree(transposed(x.transpose(0, 1), reset=flags.T)[0].transpose(0, 1), output)


def test_states_of_the_whole_network_are_saved_without_pickle() -> None:
    network = Recurrent(lambda size: LSTMCell(size, H), D, num_layers=2)
    _, state = network(torch.randn(T, B, D))
    saved = state_to_dict(state)
    assert sorted(saved) == ["0.c", "0.h", "1.c", "1.h"]
    again = state_from_dict(network, saved)
    assert isinstance(again[1], LSTMState)
    agree(again, state, 0.0)


def test_an_unbatched_input_has_an_unbatched_output() -> None:
    network = Recurrent(lambda size: Noisy(size, H), D)
    output, state = network(torch.randn(T, D))
    assert output.shape == (T, H)
    assert state[0].h.shape == (1, H)
    flags = torch.zeros(T, dtype=torch.bool)
    assert network(torch.randn(T, D), state, reset=flags)[0].shape == (T, H)


def test_an_empty_batch_has_an_empty_output() -> None:
    network = Recurrent(lambda size: LSTMCell(size, H), D, num_layers=2)
    output, state = network(torch.randn(T, 0, D))
    assert output.shape == (T, 0, H)
    assert state[1].c.shape == (0, H)
    assert Recurrent(lambda size: Leaky(size, H), D)(torch.randn(T, 0, D))[0].shape == (T, 0, H)


def test_info_comes_per_layer_in_the_layout_of_the_input() -> None:
    network = Recurrent(lambda size: Noisy(size, H), D, num_layers=2, batch_first=True)
    output, state, info = network(torch.randn(B, T, D), need_info=True)
    assert len(state) == len(info) == 2
    assert info[1]["kept"].shape == output.shape
    with pytest.raises(TypeError, match="LSTMCell records nothing"):
        Recurrent(lambda size: LSTMCell(size, H), D)(torch.randn(T, B, D), need_info=True)


def test_running_statistics_are_updated_once_after_a_training_scan() -> None:
    network = Recurrent(Normalised(D, H), D)
    cell = network.cells[0]
    assert isinstance(cell, Normalised)
    network.eval()
    network(torch.randn(T, B, D))
    assert bool((cell.mean == 0).all())
    network.train()
    result = network(torch.randn(T, B, D))
    assert len(result) == 2
    assert bool((cell.mean != 0).all())


def test_it_is_copied_saved_and_moved_like_any_module() -> None:
    network = Recurrent(lambda size: LSTMCell(size, H), D, num_layers=2)
    x = torch.randn(T, B, D)
    want = network(x)
    agree(copy.deepcopy(network)(x), want, 0.0)
    fresh = Recurrent(lambda size: LSTMCell(size, H), D, num_layers=2)
    fresh.load_state_dict(network.state_dict())
    agree(fresh(x), want, 0.0)
    torch.testing.assert_close(network.double()(x.double())[0].float(), want[0])
    network.flatten_parameters()
    assert "num_layers=2" in repr(network)


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("kind", [LSTMCell, GRUCell, RNNCell])
def test_autocast_keeps_float32_outside(kind: Any, backend: str) -> None:
    network = Recurrent(lambda size: kind(size, H), D, backend=backend)
    x = torch.randn(T, B, D)
    want, _ = network(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, state = network(x.bfloat16() if backend == "auto" else x)
        stepped, _ = network.step(x[0])
    assert output.dtype == stepped.dtype == torch.float32
    assert {leaf.dtype for leaf in leaves(state)} == {torch.float32}
    assert float((output - want).detach().abs().max()) < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_whole(dtype: torch.dtype) -> None:
    for make in (lambda size: LSTMCell(size, H), lambda size: Leaky(size, H)):
        network = Recurrent(make, D).to(dtype)
        output, state = network(torch.randn(T, B, D, dtype=dtype))
        assert output.dtype == state[0].h.dtype == dtype


@pytest.mark.parametrize(
    "options", [{"backend": "fast"}, {"truncate": 0}, {"truncate": (2, -1)}, {"checkpoint": 0}, {"compile": "all"}]
)
def test_options_are_looked_at_when_the_network_is_made(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Recurrent(lambda size: LSTMCell(size, H), D, **options)


@pytest.mark.parametrize("bad", ["cell for layers", "cell for directions", "count", "size", "no cell", "proj_size"])
def test_what_cannot_be_built_is_refused(bad: str) -> None:
    if bad == "cell for layers":
        with pytest.raises(ValueError, match="one LSTMCell was given for 2 layers"):
            Recurrent(LSTMCell(D, H), D, num_layers=2)
    elif bad == "cell for directions":
        with pytest.raises(ValueError, match="one direction"):
            Recurrent([LSTMCell(D, H)], D, bidirectional=True)
    elif bad == "count":
        with pytest.raises(ValueError, match="3 cells were given for num_layers=2"):
            Recurrent([lambda size: LSTMCell(size, H)] * 3, D, num_layers=2)
    elif bad == "size":
        with pytest.raises(ValueError, match="layer 0 has input_size=3, but what it reads has size 8"):
            Recurrent(LSTMCell(D, H), 8)
    elif bad == "no cell":
        with pytest.raises(TypeError, match=r"got a LSTMCell, which is no Cell; .* from_torch"):
            Recurrent(lambda size: nn.LSTMCell(size, H), D)
    else:
        with pytest.raises(ValueError, match="proj_size=2: proj_size is not offered"):
            Recurrent.from_torch(nn.LSTM(D, H, proj_size=2))


@pytest.mark.user_input
def test_what_torch_has_no_module_for_is_said() -> None:
    with pytest.raises(TypeError, match="no module for Leaky"):
        Recurrent(Leaky(D, H), D).to_torch()
    with pytest.raises(TypeError, match="ModReLU"):
        Recurrent(RNNCell(D, H, nonlinearity=ModReLU(H)), D).to_torch()
    with pytest.raises(ValueError, match="learned initial states"):
        Recurrent(LSTMCell(D, H, learn_initial_state=True), D).to_torch()
    with pytest.raises(ValueError, match="these differ"):
        Recurrent([lambda size: GRUCell(size, 4), lambda size: GRUCell(size, 5)], D).to_torch()
    with pytest.raises(TypeError, match=r"nn.LSTM, nn.GRU or nn.RNN, got LSTMCell"):
        Recurrent.from_torch(nn.LSTMCell(D, H))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Recurrent.from_torch"):
        from_torch(nn.LSTM(D, H))  # type: ignore[arg-type]


@pytest.mark.user_input
def test_bad_inputs_are_named() -> None:
    network = Recurrent(lambda size: LSTMCell(size, H), D, num_layers=2)
    x = torch.randn(T, B, D)
    packed = pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False)
    cases: list[tuple[type[Exception], str, Any]] = [
        (ValueError, r"expected \(T, B, 3\) or \(T, 3\), got \(7, 5, 3, 1\)", lambda: network(x.unsqueeze(-1))),
        (ValueError, r"input_size=3: expected \(T, B, 3\), got \(7, 5, 4\)", lambda: network(torch.randn(T, B, 4))),
        (TypeError, "embed tokens first", lambda: network(torch.ones(T, B, D, dtype=torch.int64))),
        (ValueError, "the input has no steps", lambda: network(x[:0])),
        (TypeError, "lengths must be integers", lambda: network(x, lengths=torch.ones(B))),
        (ValueError, r"lengths has shape \(4,\); expected \(5,\)", lambda: network(x, lengths=LENGTHS[:4])),
        (ValueError, r"lengths\[2\] is 0; .* between 1 and the 7", lambda: network(x, lengths=[7, 3, 0, 3, 6])),
        (ValueError, r"lengths\[0\] is 8", lambda: network(x, lengths=[8, 3, 1, 3, 6])),
        (ValueError, "leave lengths out", lambda: network(packed, lengths=LENGTHS)),
        (ValueError, "cut it instead", lambda: network(x[:, 0], lengths=[3])),
        (ValueError, r"reset has shape \(5, 7\); expected \(7, 5\)", lambda: network(x, reset=torch.zeros(B, T))),
        (ValueError, "booleans, or zeros and ones", lambda: network(x, reset=torch.full((T, B), 2))),
        (TypeError, "1 tensors were given .* 2 per layer", lambda: network(x, torch.zeros(2, B, H))),
        (ValueError, r"expected \(2, batch, hidden\)", lambda: network(x, (torch.zeros(1, B, H),) * 2)),
        (ValueError, r"\(4, 4\) on cpu", lambda: network(x, (torch.zeros(2, 4, H),) * 2)),
        (ValueError, "batch_first=True", lambda: network(x, (torch.zeros(2, T, H),) * 2)),
        (TypeError, "2 layers times directions", lambda: network(x, network.initial_state(B)[:1])),
        (ValueError, "float64", lambda: network(x, (torch.zeros(2, B, H).double(),) * 2)),
        (TypeError, "tuple of states", lambda: network(x, 3)),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()
    gru = Recurrent(lambda size: GRUCell(size, H), D)
    with pytest.raises(TypeError, match=r"2 tensors were given .* 1 per layer \(h\)"):
        gru(x, (torch.zeros(1, B, H), torch.zeros(1, B, H)))
    with pytest.raises(TypeError, match=r"GRUCell: expected GRUState\(h: .*got LSTMState"):
        gru(x, (LSTMState(torch.zeros(B, H), torch.zeros(B, H)),))
    with pytest.raises(TypeError, match="grows has one length"):
        Recurrent(Growing(D, H), D)(packed)
    both = Recurrent(lambda size: GRUCell(size, H), D, bidirectional=True)
    for call in (
        lambda: both(x, reset=torch.zeros(T, B)),
        lambda: both.step(x[0]),
        lambda: both.reset(both.initial_state(B), torch.zeros(B)),
    ):
        with pytest.raises(ValueError, match="bidirectional=True: the backward direction would need the future"):
            call()


@pytest.mark.user_input
def test_a_step_of_wrong_shape_is_explained() -> None:
    network = Recurrent(lambda size: LSTMCell(size, H), D)
    with pytest.raises(ValueError, match=r"expected \(B, 3\), got \(5, 4\)"):
        network.step(torch.randn(B, 4))
    with pytest.raises(TypeError, match="LSTMState"):
        LSTMCell(D, H)(torch.randn(B, D), (torch.zeros(B, H), torch.zeros(B, H)))
    with pytest.raises(ValueError, match="with 5 rows"):
        network.step(torch.randn(B, D), network.initial_state(4))


def test_a_checked_cell_runs_in_layers() -> None:
    check_cell(lambda: Leaky(D, H), compile=False)
    assert Recurrent(lambda size: Leaky(size, 6), D, num_layers=3)(torch.randn(T, B, D))[0].shape == (T, B, 6)
