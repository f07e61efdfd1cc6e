"""Networks of plain cells run in one call of torch, and give what one scan after the other gives."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from mechanisms.recurrent import GRUCell, LSTMCell, Recurrent, RNNCell
from mechanisms.recurrent._whole import plain_cells

T, B, D, H = 6, 4, 3, 5
MAKERS: dict[str, Any] = {
    "LSTM": lambda size, **options: LSTMCell(size, H, **options),
    "GRU": lambda size, **options: GRUCell(size, H, **options),
    "RNN": lambda size, **options: RNNCell(size, H, nonlinearity="relu", **options),
}


def twins(make: Any, **options: Any) -> tuple[Recurrent, Recurrent]:
    """The same network by the whole call and by single steps."""
    torch.manual_seed(0)
    whole = Recurrent(make, D, **options).double()
    loop = Recurrent(make, D, backend="eager", **options).double()
    loop.load_state_dict(whole.state_dict())
    return whole, loop


def flat(tree: Any) -> list[Tensor]:
    return [tree] if isinstance(tree, Tensor) else [leaf for part in tree for leaf in flat(part)]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [None, [6, 2, 1, 4], [6, 6, 6, 6], [3, 2, 3, 1]])
def test_the_whole_call_is_one_scan_after_the_other(kind: str, bidirectional: bool, lengths: Any) -> None:
    whole, loop = twins(MAKERS[kind], num_layers=2, bidirectional=bidirectional)
    assert len(plain_cells(whole.cells)) == len(whole.cells)
    x = torch.randn(T, B, D, dtype=torch.float64)
    _, state = loop(x)
    results = []
    for network in (whole, loop):
        mine, start = x.clone().requires_grad_(), [type(one)(*(leaf.detach() for leaf in one)) for one in state]
        output, last = network(mine, tuple(start), lengths=lengths)
        assert [type(one) for one in last] == [type(one) for one in state]
        total = sum((leaf * torch.arange(leaf.numel()).view(leaf.shape).cos()).sum() for leaf in flat((output, last)))
        results.append([*flat((output, last)), *torch.autograd.grad(total, [mine, *network.parameters()])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    if lengths is not None:
        assert not bool(results[0][0][5, 3].any()) or lengths[3] == 6


def test_dropout_between_layers_is_the_same_draw() -> None:
    whole, loop = twins(MAKERS["LSTM"], num_layers=3, dropout=0.4)
    x = torch.randn(T, B, D, dtype=torch.float64)
    found = []
    for network in (whole, loop):
        torch.manual_seed(1)
        found.append(network(x)[0])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)
    with torch.no_grad():  # dropout acts without gradients, too
        torch.manual_seed(1)
        torch.testing.assert_close(whole(x)[0], found[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.eval()(x)[0], loop.eval()(x)[0], rtol=0, atol=1e-12)


def test_what_is_not_plain_is_left_to_scan() -> None:
    class Doubled(LSTMCell):
        def step(self, projected: Any, state: Any, noise: Any = None, *, need_info: bool = False) -> Any:
            return super().step(2 * projected, state, noise)

    for makers in (
        [lambda size: Doubled(size, H)],
        [lambda size: LSTMCell(size, H, learn_initial_state=True)],
        [lambda size: LSTMCell(size, H), lambda size: GRUCell(size, H)],
        [lambda size: LSTMCell(size, H), lambda size: LSTMCell(size, H + 1)],
        [lambda size: LSTMCell(size, H), lambda size: LSTMCell(size, H, bias=False)],
        [lambda size: RNNCell(size, H), lambda size: RNNCell(size, H, nonlinearity="relu")],
        [lambda size: RNNCell(size, H, nonlinearity=nn.Tanh())],
    ):
        network = Recurrent(makers, D)
        assert plain_cells(network.cells) == []
        assert network(torch.randn(T, B, D))[0].shape[:2] == (T, B)


def test_a_cell_that_is_put_in_later_is_seen() -> None:
    network = Recurrent(MAKERS["LSTM"], D, num_layers=2)
    x = torch.randn(T, B, D)
    before = network(x)[0]
    nn.utils.parametrizations.weight_norm(network.cells[1], "weight_hh")
    torch.testing.assert_close(network(x)[0], before, rtol=0, atol=1e-5)
    network.cells[1].parametrizations.weight_hh.original0.data.zero_()
    assert float((network(x)[0] - before).detach().abs().max()) > 1e-3
    network.cells[1] = RNNCell(H, H)
    assert network(x)[1][1]._fields == ("h",)


def test_seeds_in_one_batch_and_other_types_go_through_scan() -> None:
    network = Recurrent(MAKERS["LSTM"], D)
    stacked, _ = torch.func.stack_module_state([Recurrent(MAKERS["LSTM"], D) for _ in range(2)])
    x = torch.randn(T, B, D)
    found = torch.func.vmap(lambda p: torch.func.functional_call(network, p, (x,))[0])(stacked)
    for place in range(2):
        one = torch.func.functional_call(network, {name: leaf[place] for name, leaf in stacked.items()}, (x,))[0]
        torch.testing.assert_close(found[place], one, rtol=0, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(x)[0].dtype is torch.float32


@pytest.mark.parametrize(
    ("kind", "steps", "asked"), [(nn.LSTM, 20, False), (nn.GRU, 20, False), (nn.RNN, 20, True), (nn.LSTM, 4, True)]
)
def test_long_uneven_batches_go_where_they_are_faster(kind: Any, steps: int, asked: bool, monkeypatch: Any) -> None:
    theirs = kind(D, H).double()
    network = Recurrent.from_torch(theirs)
    packed = pack_sequence([torch.randn(n, D).double() for n in (steps, steps - 1, 2)])
    calls: list[bool] = []
    for name in ("lstm", "gru", "rnn_tanh"):
        real = getattr(torch, name)

        def note(*given: Any, real: Any = real) -> Any:
            calls.append(isinstance(given[1], Tensor) and given[1].dim() == 1)  # sizes of batches come second
            return real(*given)

        monkeypatch.setattr(torch, name, note)
    found = network(packed)[0]
    assert any(calls) == asked
    torch.testing.assert_close(found.data, theirs(packed)[0].data, rtol=0, atol=1e-12)
