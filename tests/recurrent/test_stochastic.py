"""The cell with a latent: it keeps the contract around every cell, and its fused sequence is the loop."""

import pytest
import torch

from mechanisms.recurrent import _stochastic_kernel as kernel
from mechanisms.recurrent.cells import GRUCell, LSTMCell, RNNCell
from mechanisms.recurrent.checks import check_cell
from mechanisms.recurrent.conditional_norm import ConditionalNormLSTMCell
from mechanisms.recurrent.protocol import Cell
from mechanisms.recurrent.scan import scan
from mechanisms.recurrent.stochastic import StochasticCell
from mechanisms.recurrent.zoneout import Zoneout
from tests.recurrent.own_cells import Leaky

INNER = {
    "lstm": lambda: LSTMCell(7, 4),
    "lstm without biases": lambda: LSTMCell(7, 4, bias=False),
    "gru": lambda: GRUCell(7, 4),
    "rnn": lambda: RNNCell(7, 4),
    "zoneout lstm": lambda: Zoneout(LSTMCell(7, 4), {"h": 0.1, "c": 0.5}),
    "zoneout gru": lambda: Zoneout(GRUCell(7, 4), 0.2),
    "leaky": lambda: Leaky(7, 4),
    "layer norm": lambda: ConditionalNormLSTMCell((4, 2), 4, mlp_size=3),
    "zoneout layer norm": lambda: Zoneout(ConditionalNormLSTMCell((4, 2), 4, mlp_size=3), 0.2),
}


def make(inner: str = "lstm") -> StochasticCell:
    return StochasticCell(INNER[inner](), 2, context_size=5, mlp_size=3)


@pytest.mark.parametrize("inner", INNER)
def test_it_keeps_the_contract_around(inner: str) -> None:
    # One of each kind is compiled, which takes longer than all else.
    check_cell(lambda: make(inner), compile=inner in ("lstm", "leaky", "layer norm"))


def test_the_conditional_cell_keeps_the_contract() -> None:
    check_cell(lambda: ConditionalNormLSTMCell((4, 2), 4, mlp_size=3))


@pytest.mark.parametrize("inner", INNER)
def test_from_the_prior_it_runs_as_from_the_posterior(inner: str) -> None:
    torch.manual_seed(0)
    cell, e = make(inner).double(), torch.randn(5, 3, 4, dtype=torch.float64)
    noise = cell.noise(5, 3, generator=torch.Generator().manual_seed(0))
    result = scan(cell, (e,), noise=noise)
    looped = scan(cell, (e,), noise=noise, backend="eager")
    for mine, theirs in zip((*result.output, *result.state), (*looped.output, *looped.state), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    assert torch.equal(result.output.prior, result.output.posterior)
    mean, logvar = result.output.prior.chunk(2, -1)
    torch.testing.assert_close(result.output.z, mean + (logvar / 2).exp() * noise.own)


def test_the_projection_of_a_split_product_is_the_whole_one() -> None:
    """`advance` with a plain cell equals that cell on [G z; e]."""
    torch.manual_seed(0)
    for inner in ("lstm", "gru", "rnn", "zoneout lstm", "leaky"):
        cell = make(inner).double().eval()
        e, z = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
        state = cell.initial_state(3)
        found, _ = cell.advance(cell.project((e,)), z, state)
        expected, _ = cell.cell(torch.cat([cell.latent(z), e], -1), state)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_noise_is_drawn_in_evaluation_too_and_none_is_the_mean() -> None:
    cell = make().eval()
    e = torch.randn(5, 3, 4)
    assert not torch.equal(scan(cell, (e,)).output.z, scan(cell, (e,)).output.z)
    output, _ = cell.step(cell.project((e[0],)), cell.initial_state(3))
    assert torch.equal(output.z, output.prior[:, :2])


def test_zoning_goes_inside() -> None:
    with pytest.raises(TypeError, match="StochasticCell\\(Zoneout\\(cell\\)\\)"):
        Zoneout(make(), 0.1)


def test_gradients_of_gradients_go_through_single_steps() -> None:
    torch.manual_seed(0)
    cell = make().double()
    e = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    output = scan(cell, (e,), noise=cell.noise(3, 2), twice_differentiable=True).output
    (first,) = torch.autograd.grad(output.h.square().sum(), e, create_graph=True)
    assert torch.autograd.grad(first.square().sum(), e)[0].any()
    output = scan(cell, (e,), noise=cell.noise(3, 2)).output
    with pytest.raises(RuntimeError, match="gradients of gradients"):
        torch.autograd.grad(output.h.sum(), e, create_graph=True)


# --- the hand-written derivatives -------------------------------------------------------------------------------------


def tensors(models: int | None = None, latent: bool = True) -> list[torch.Tensor]:
    steps, rows, size, width, own = 4, 3, 5, 6, 2
    shapes = [(steps, rows, 4 * size + latent * width), (rows, size), (rows, size), (size, 4 * size + latent * width)]
    if latent:
        shapes += [(steps, rows, own), (width, 2 * own), (2 * own,), (own, 4 * size)]
    front = () if models is None else (models,)
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(*front, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.requires_grad_(place != 4) for place, tensor in enumerate(made)]


@pytest.mark.parametrize("outputs", [(0,), (1,), (2,), (3,), (0, 1, 2, 3)])
def test_derivatives_of_the_latent_sequence(outputs: tuple[int, ...]) -> None:
    given = tensors()

    def run(*free: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = kernel.stochastic_lstm(*free[:4], given[4], *free[4:])
        return tuple(found[place] for place in outputs)

    assert torch.autograd.gradcheck(run, [tensor for tensor in given if tensor.requires_grad])


def test_derivatives_of_the_plain_sequence() -> None:
    assert torch.autograd.gradcheck(kernel.lstm, tensors(latent=False))


def test_clamps_stop_gradients() -> None:
    given = tensors()
    with torch.no_grad():
        given[6][:2] = 50.0
        given[0][..., -6:] = -100.0
    found = kernel.stochastic_lstm(*given)
    assert (found[3][..., :2] == 8).all()
    gradients = torch.autograd.grad(sum(part.sum() for part in found), [given[0], given[6]])
    assert not gradients[0][..., -6:].any()
    assert not gradients[1][:2].any()


@pytest.mark.parametrize("latent", [True, False])
def test_several_models_in_one_batch(latent: bool) -> None:
    given = tensors(3, latent)
    run = kernel.stochastic_lstm if latent else kernel.lstm
    free = [tensor for tensor in given if tensor.requires_grad]
    together = torch.func.vmap(run)(*given)
    alone = [run(*(tensor[place] for tensor in given)) for place in range(3)]
    for place in range(3):
        torch.testing.assert_close([part[place] for part in together], list(alone[place]))
    mine = torch.autograd.grad(sum(part.square().sum() for part in together), free)
    theirs = torch.autograd.grad(sum(part.square().sum() for one in alone for part in one), free)
    torch.testing.assert_close(mine, theirs)
    shared = torch.func.vmap(run, in_dims=(0, *[None] * (len(given) - 1)))(given[0], *(part[0] for part in given[1:]))
    torch.testing.assert_close(shared[0][0], together[0][0])


def test_a_subclass_of_the_lstm_is_stepped() -> None:
    class Own(LSTMCell):
        def step(self, projected, state, noise=None, *, need_info=False):
            output, state = super().step(projected, state)
            return 2 * output, state

    cell = StochasticCell(Own(7, 4), 2, mlp_size=3)
    inputs = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    noise = cell.noise(5, 3)
    assert torch.equal(
        scan(cell, inputs, noise=noise).output.h, scan(cell, inputs, noise=noise, backend="eager").output.h
    )
    assert isinstance(cell, Cell)
