"""torch.compile: networks, steps and scans; graphs are not made anew for each pattern of gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mechanisms.recurrent import GRUCell, LSTMCell, Recurrent, RNNCell
from mechanisms.recurrent.scan import scan
from tests.recurrent.own_cells import Leaky, Noisy, Pair

pytestmark = pytest.mark.unhooked
T, B, D, H = 5, 3, 2, 4


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """torch.compile with a backend that counts and changes nothing."""
    made: list[Any] = []
    real = torch.compile

    def count(module: Any, examples: Any) -> Any:
        made.append(module)
        return module.forward

    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, backend=count, **options))
    return made


@pytest.mark.parametrize("kind", [LSTMCell, GRUCell, RNNCell, Leaky, Noisy])
@pytest.mark.parametrize("mode", ["step", "scan"])
def test_compiled_scans_are_the_same_to_the_bit(kind: Any, mode: str, graphs: list[Any]) -> None:
    cell = kind(D, H)
    x = torch.randn(T, B, D)
    noise = cell.noise(T, B)
    flags = torch.zeros(T, B, dtype=torch.bool)
    flags[2, 1] = True
    for options in ({}, {"lengths": [5, 3, 1]}, {"reset": flags}, {"truncate": 2}):
        results = []
        for compile in (False, mode):
            result = scan(cell, x, noise=noise, backend="eager", compile=compile, **options)
            results.append((result.output, *torch.autograd.grad(result.output.sum(), list(cell.parameters()))))
        assert torch.equal(results[0][0], results[1][0])
        for mine, theirs in zip(results[0][1:], results[1][1:], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    assert graphs


def test_all_steps_of_all_calls_share_one_graph(graphs: list[Any]) -> None:
    cell = LSTMCell(D, H)
    for steps in (T, 2 * T):
        scan(cell, torch.randn(steps, B, D), backend="eager", compile="step").output.sum().backward()
    assert len(graphs) == 1
    scan(cell, torch.randn(T, B + 1, D), backend="eager", compile="step")
    assert len(graphs) <= 2


def test_a_given_state_keeps_its_gradient(graphs: list[Any]) -> None:
    cell = Leaky(D, H)
    start = cell.initial_state(B)._replace(h=torch.randn(B, H, requires_grad=True))
    output = scan(cell, torch.randn(T, B, D), start, compile="step").output
    assert bool((torch.autograd.grad(output.sum(), start.h)[0] != 0).all())


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_a_whole_network_compiles_as_one_graph(backend: str) -> None:
    network = Recurrent(lambda size: LSTMCell(size, H), D, num_layers=2, batch_first=True, backend=backend)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    x = torch.randn(B, T, D)
    torch.testing.assert_close(compiled(x)[0], network(x)[0])


def test_a_network_exports() -> None:
    class Output(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core = Recurrent(lambda size: GRUCell(size, H), D, backend="eager")

        def forward(self, x: Tensor, h: Tensor) -> Any:
            return self.core(x, h)

    module = Output()
    x, h = torch.randn(T, B, D), torch.randn(1, B, H)
    exported = torch.export.export(module, (x, h)).module()
    torch.testing.assert_close(exported(x, h)[0], module(x, h)[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LSTMCell, Noisy, Pair])
def test_inductor_agrees(kind: Any) -> None:
    cell = Pair() if kind is Pair else kind(D, H)
    x: Any = (torch.randn(T, B, 3), torch.randn(T, B, 2)) if kind is Pair else torch.randn(T, B, D)
    noise = cell.noise(T, B)
    plain, compiled = (scan(cell, x, noise=noise, backend="eager", compile=compile) for compile in (False, "step"))
    pairs = zip(plain.output, compiled.output, strict=True) if kind is Pair else [(plain.output, compiled.output)]
    for mine, theirs in pairs:
        torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-5)
