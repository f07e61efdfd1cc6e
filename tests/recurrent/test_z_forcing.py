"""Z-Forcing: exact limits and invariants of the model, its bound, its costs, and what it refuses."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from mechanisms.recurrent._stochastic_kernel import _tanh
from mechanisms.recurrent.cells import GRUCell, LSTMCell, RNNState
from mechanisms.recurrent.densities import LIKELIHOODS, gaussian_nll
from mechanisms.recurrent.protocol import Cell
from mechanisms.recurrent.scan import scan
from mechanisms.recurrent.schedules import LinearSchedule
from mechanisms.recurrent.stochastic import StochasticCell
from mechanisms.recurrent.z_forcing import ZForcing
from mechanisms.recurrent.zoneout import Zoneout
from tests.recurrent.latents import KINDS, ROWS, SIZE, STEPS, draw, make, sequence

# --- the bound (checks 2 and 3) ---------------------------------------------------------------------------------------


class Linear(Cell):
    """h' = x W: what comes in goes out, so that a Gaussian latent gives a Gaussian element."""

    def __init__(self, input_size: int, size: int) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, size
        self.w = nn.Parameter(torch.randn(input_size, size) / 2)

    def initial_state(self, batch_size, *, device=None, dtype=None):
        return RNNState(self.w.new_zeros(batch_size, self.output_size, device=device, dtype=dtype))

    def project(self, inputs):
        return inputs @ self.w

    def step(self, projected, state, noise=None, *, need_info=False):
        return projected, RNNState(projected)


def linear_gaussian() -> tuple[ZForcing, Tensor, Tensor, Tensor]:
    """A model of one step in which everything is linear, data, and their exact log-likelihood."""
    model = make(size=1, hidden=3, latent=1, make_cell=lambda size: Linear(size, 3))
    with torch.no_grad():
        model.output.weight[1] = 0  # the output's variance does not depend on the latent
        model.output.bias[1] = -1.0
    x, y = (sequence(steps=1, rows=5, size=1) * factor for factor in (1.0, 0.8))
    with torch.no_grad():
        cell = model.cell
        mu, logvar = cell.prior(torch.zeros(1, 3, dtype=torch.float64)).chunk(2, -1)
        cell.posterior.second.weight[1] = 0
        cell.posterior.second.bias[1] = logvar + 1.0  # wider than the prior, so that no weight is large
        embedded = model.embedding(x)[0]

        def element(z: Tensor) -> Tensor:
            h = cell.cell.project(torch.cat([cell.latent(z), embedded], -1))
            return model.output(h)[:, :1]

        base, slope = element(torch.zeros(5, 1).double()), element(torch.ones(5, 1).double())
        slope = slope - base
        variance = slope.square() * logvar.exp() + math.exp(-1.0)
        exact = -gaussian_nll(y[0], base + slope * mu, variance.log())
    return model, x, y, exact


def test_the_importance_weighted_bound_rises_to_the_exact_likelihood() -> None:
    model, x, y, exact = linear_gaussian()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        means = []
        for count, repeats in ((1, 4000), (3, 4000), (30, 400), (20_000, 1)):
            bound = model.elbo(x.repeat(1, repeats, 1), y.repeat(1, repeats, 1), num_samples=count, generator=generator)
            means.append(bound.view(repeats, 5).mean(0))
    for lower, higher in itertools.pairwise(means):
        assert (lower < higher + 0.02).all()
    assert (means[0] < exact - 0.01).any()
    torch.testing.assert_close(means[-1], exact, rtol=0, atol=0.03)


def test_one_step_with_equal_posterior_and_prior_has_no_kl_and_the_expected_likelihood() -> None:
    model, x, y, _ = linear_gaussian()
    cell = model.cell
    with torch.no_grad():
        cell.posterior.first.weight[:, : cell.hidden_size] = cell.prior.first.weight
        cell.posterior.first.weight[:, cell.hidden_size :] = 0
        cell.posterior.first.bias.copy_(cell.prior.first.bias)
        cell.posterior.second.load_state_dict(cell.prior.second.state_dict())
        noise = torch.randn(1, 2000 * 5, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        many = x.repeat(1, 2000, 1), y.repeat(1, 2000, 1)
        output = model(*many, noise=noise)
        bound = model.elbo(*many, noise=noise)
    assert output.kl.abs().max() == 0
    torch.testing.assert_close(bound, -output.nll)
    # The likelihood is quadratic in z, so its expectation is known.
    with torch.no_grad():
        mu, logvar = cell.prior(torch.zeros(1, 3).double()).chunk(2, -1)
        h = [cell.cell.project(torch.cat([cell.latent(z), model.embedding(x)[0]], -1)) for z in (mu.expand(5, 1),)]
        center = model.output(h[0])[:, :1]
        slope = (model.output.weight[0] @ cell.cell.w[: cell.mlp_size].T @ cell.latent.weight[:, 0]).square()
        expected = -gaussian_nll(y[0], center, torch.full_like(center, -1.0)) - 0.5 * slope * logvar.exp()[0] * math.e
    found, spread = bound.view(2000, 5).mean(0), bound.view(2000, 5).std(0)
    assert ((found - expected).abs() < 6 * spread / math.sqrt(2000)).all()


def test_more_samples_do_not_change_the_mean_row_by_row_and_are_one_batch() -> None:
    model, y = make(), sequence()
    noise = draw(rows=5 * ROWS)
    bound = model.elbo(y[:-1], y[1:], num_samples=5, noise=noise)
    one_by_one = []
    for k in range(5):
        own = noise[:, k * ROWS : (k + 1) * ROWS]
        mean, logvar, z = model.infer(y[:-1], y[1:], noise=own)
        output = model(y[:-1], y[1:], noise=own)
        found, _, _ = model._infer(y[:-1], y[1:], None, model._noise(y[:-1], own, None))
        prior = found.prior.chunk(2, -1)
        one_by_one.append(-output.nll - (gaussian_nll(z, *prior) - gaussian_nll(z, mean, logvar)).sum(0))
    torch.testing.assert_close(bound, torch.logsumexp(torch.stack(one_by_one), 0) - math.log(5))


def test_chunks_are_sequences_of_their_own() -> None:
    model, y = make(), sequence(steps=8)
    x, y = y[:-1], y[1:]
    lengths = [7, 5, 3, 2]
    whole = model.elbo(x, y, lengths=lengths, chunk=100, generator=torch.Generator().manual_seed(0))
    same = model.elbo(x, y, lengths=lengths, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(whole, same)
    with torch.no_grad():
        for network in (model.cell.prior, model.cell.posterior):  # nothing random is left
            network.second.weight[2:] = 0
            network.second.bias[2:] = -100.0
        cut = model.elbo(x, y, lengths=lengths, chunk=3)
        parts = [model.elbo(x[a : a + 3, :1], y[a : a + 3, :1]) for a in (0, 3, 6)]
        tight = model.elbo(x, y, lengths=lengths, chunk=3, num_samples=4)
    torch.testing.assert_close(cut[:1], sum(parts), rtol=0.05, atol=0.05)  # the deviation left is e^-4
    assert tight.shape == cut.shape


# --- what depends on what (checks 4, 5, 6, 8) -------------------------------------------------------------------------


@pytest.mark.parametrize("auxiliary", ["gaussian", "l2"])
@pytest.mark.parametrize("sees_hidden", [False, True])
def test_the_auxiliary_cost_does_not_reach_the_backward_network_through_its_target(
    auxiliary: str, sees_hidden: bool
) -> None:
    model, y = make(auxiliary=auxiliary, auxiliary_sees_hidden=sees_hidden), sequence()
    original = StochasticCell.project

    def detached(self, inputs, noise=None):
        return original(self, (inputs[0], *(part.detach() for part in inputs[1:])), noise)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StochasticCell, "project", detached)
        model(y[:-1], y[1:], noise=draw()).auxiliary_nll.sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.backward_cell.parameters())
    assert model.reconstruction.second.weight.grad.any()
    assert model.cell.posterior.first.weight.grad.any()
    model.zero_grad()
    model(y[:-1], y[1:], noise=draw()).auxiliary_nll.sum().backward()
    assert model.backward_cell.weight_ih.grad.any()  # through the posterior it does


def test_the_backward_state_reads_the_future_and_the_forward_one_the_past_and_all_latents() -> None:
    model, whole = make(), sequence(rows=1)
    x, y = whole[:-1].clone().requires_grad_(), whole[1:].clone().requires_grad_()
    found, b, _ = model._infer(x, y, None, model._noise(x, draw(rows=1), None))
    for t in range(STEPS):
        reach = torch.autograd.grad(b[t].sum(), y, retain_graph=True)[0].abs().sum((1, 2))
        assert not reach[:t].any()
        assert reach[t:].all()
        by_x, by_y = torch.autograd.grad(found.h[t].sum(), (x, y), retain_graph=True)
        assert not by_x.abs().sum((1, 2))[t + 1 :].any()
        assert by_x.abs().sum((1, 2))[: t + 1].all()
        assert by_y.abs().sum((1, 2)).all()


def test_without_a_way_in_for_the_latent_it_is_a_plain_lstm() -> None:
    model, y = make(), sequence()
    with torch.no_grad():
        model.cell.latent.weight.zero_()
        model.cell.latent.bias.zero_()
    plain = nn.LSTM(model.cell.input_size[0], 8).double()
    cell = model.cell.cell
    plain.load_state_dict(
        {
            "weight_ih_l0": cell.weight_ih[:, model.cell.mlp_size :],
            "weight_hh_l0": cell.weight_hh,
            "bias_ih_l0": cell.bias_ih,
            "bias_hh_l0": cell.bias_hh,
        }
    )
    expected = model.output(plain(model.embedding(y[:-1]))[0])
    torch.testing.assert_close(model(y[:-1], y[1:]).prediction, expected, rtol=0, atol=1e-12)


def test_costs_without_weight_send_no_gradient() -> None:
    model, y = make(), sequence()
    model.loss(model(y[:-1], y[1:])).backward()
    heads = (*model.reconstruction.parameters(), *model.backward_output.parameters())
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in heads)
    others = [parameter for name, parameter in model.named_parameters() if not name.startswith(("recon", "backward_o"))]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in others)


def test_the_loss_is_the_weighted_sum_per_sequence() -> None:
    model, y = make(), sequence()
    output = model(y[:-1], y[1:], noise=draw(), lengths=[6, 3, 1, 0])
    found = model.loss(output, kl_weight=0.3, auxiliary_weight=0.02, backward_weight=0.5)
    costs = output.nll + 0.3 * output.kl + 0.02 * output.auxiliary_nll + 0.5 * output.backward_nll
    torch.testing.assert_close(found, costs[:3].mean())
    assert output.steps.tolist() == [6, 3, 1, 0]


# --- lengths, rows, combinations (check 7) ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LIKELIHOODS)
@pytest.mark.parametrize("cell", ["lstm", "zoneout", "norm"])
def test_a_padded_batch_is_its_sequences_alone(kind: str, cell: str) -> None:
    options = {
        "lstm": {},
        "zoneout": {"make_cell": lambda size: Zoneout(GRUCell(size, 8), 0.2)},
        "norm": {"condition": "layer_norm"},
    }[cell]
    model = make(likelihood=kind, **KINDS[kind], **options).eval()
    y, noise, lengths = sequence(kind), draw(), [6, 4, 1, 0]
    x, y = y[:-1].clone(), y[1:].clone()
    for row, length in enumerate(lengths):
        for part in (x, y):
            part[length:, row] = 99 if kind == "categorical" else math.nan
    output = model(x, y, lengths=lengths, noise=noise)
    bounds = model.elbo(x, y, lengths=lengths, noise=noise)
    for row, length in enumerate(lengths):
        costs = [part[row] for part in output[:4]]
        if not length:
            assert not any(costs)
            continue
        own = slice(row, row + 1)
        alone = model(x[:length, own], y[:length, own], noise=noise[:length, own])
        for mine, theirs in zip(costs, alone[:4], strict=True):
            torch.testing.assert_close(mine, theirs[0])
        torch.testing.assert_close(output.z[:length, row], alone.z[:, 0])
        torch.testing.assert_close(bounds[row], -alone.nll[0] - alone.kl[0])
        assert not output.z[length:, row].any()
    model.loss(output, auxiliary_weight=0.1, backward_weight=0.1).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)
    order = torch.tensor([2, 0, 3, 1])
    turned = model(x[:, order], y[:, order], lengths=[lengths[row] for row in order], noise=noise[:, order])
    for mine, theirs in zip(turned[:4], output[:4], strict=True):
        torch.testing.assert_close(mine, theirs[order])


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_batch_first_is_a_transpose(kind: str) -> None:
    models = [make(likelihood=kind, batch_first=first, **KINDS[kind]) for first in (False, True)]
    y, noise = sequence(kind), draw()
    one = models[0](y[:-1], y[1:], noise=noise)
    two = models[1](y[:-1].transpose(0, 1), y[1:].transpose(0, 1), noise=noise.transpose(0, 1))
    for mine, theirs in zip(two[:4], one[:4], strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(two.prediction.transpose(0, 1), one.prediction)
    generators = [torch.Generator().manual_seed(0) for _ in models]
    one, two = (model.sample(3, 2, generator=own) for model, own in zip(models, generators, strict=True))
    torch.testing.assert_close(two.transpose(0, 1), one)


def test_one_row_and_one_step() -> None:
    model, y = make(), sequence(steps=2, rows=1)
    output = model(y[:-1], y[1:])
    model.loss(output, auxiliary_weight=0.1, backward_weight=0.1).backward()
    assert output.nll.shape == (1,)
    assert model.elbo(y[:-1], y[1:], num_samples=7).shape == (1,)
    assert model.sample(1).shape == (1, 1, SIZE)


def test_a_batch_without_rows_has_a_bound_and_costs_nothing() -> None:
    model, frames = ZForcing(3, 8, 2), torch.zeros(5, 0, 3)
    assert float(model.loss(model(frames[:-1], frames[1:]))) == 0
    for options in ({}, {"num_samples": 3}, {"chunk": 2}):
        assert model.elbo(frames[:-1], frames[1:], **options).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_kernel_s_tanh_is_torch_s(dtype: torch.dtype) -> None:
    values = torch.tensor([-math.inf, -90.0, -3.0, -1e-3, 0.0, 1e-9, 0.7, 30.0, math.inf, math.nan], dtype=dtype)
    found = _tanh(values, torch.empty_like(values))
    torch.testing.assert_close(found, torch.tanh(values), rtol=0, atol=2 * torch.finfo(dtype).eps, equal_nan=True)


def test_the_fused_sequence_is_the_loop_in_costs_and_gradients() -> None:
    model, y, noise = make(), sequence(), draw()
    results = []
    for fused in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not fused:
                patch.setattr(StochasticCell, "sequence", Cell.sequence)
            loss = model.loss(model(y[:-1], y[1:], noise=noise), auxiliary_weight=0.1, backward_weight=0.2)
        results.append((loss, torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


def test_gradients_are_derivatives() -> None:
    """The auxiliary cost apart from what its target depends on, where the gradient is stopped."""
    model, y, noise = make(hidden=3, size=2), sequence(steps=4, rows=2, size=2), draw(3, 2)
    for costs, without in ((("nll", "kl", "backward_nll"), ()), (("auxiliary_nll",), ("backward_cell", "embedding"))):
        names = [name for name, _ in model.named_parameters() if not name.startswith(without)]
        values = [model.get_parameter(name).detach().clone().requires_grad_() for name in names]

        def run(*given: Tensor, names: list[str] = names, costs: tuple[str, ...] = costs) -> tuple[Tensor, ...]:
            weights = dict(zip(names, given, strict=True))
            output = torch.func.functional_call(model, weights, (y[:-1], y[1:]), {"noise": noise})
            return tuple(getattr(output, cost) for cost in costs)

        assert torch.autograd.gradcheck(run, values, fast_mode=True)


def test_models_of_several_seeds_run_in_one_batch() -> None:
    models = [make(seed) for seed in range(3)]
    stacked, _ = torch.func.stack_module_state(models)
    y = torch.stack([sequence() * (1 + seed) for seed in range(3)])
    noise = torch.stack([draw() for _ in range(3)])

    def run(weights: dict[str, Tensor], y: Tensor, noise: Tensor) -> Tensor:
        output = torch.func.functional_call(models[0], weights, (y[:-1], y[1:]), {"noise": noise})
        return models[0].loss(output, auxiliary_weight=0.1, backward_weight=0.1)

    found = torch.func.vmap(run)(stacked, y, noise)
    gradients = torch.autograd.grad(found.sum(), list(stacked.values()))
    for place, model in enumerate(models):
        own = y[place]
        loss = model.loss(model(own[:-1], own[1:], noise=noise[place]), auxiliary_weight=0.1, backward_weight=0.1)
        torch.testing.assert_close(found[place], loss)
        for mine, theirs in zip(gradients, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            torch.testing.assert_close(mine[place], theirs)


# --- torch ------------------------------------------------------------------------------------------------------------


def test_weights_on_disk_are_the_model() -> None:
    from safetensors.torch import load, save

    model, other, y = make(), make(seed=1), sequence()
    other.load_state_dict(load(save(model.state_dict())))
    torch.testing.assert_close(other(y[:-1], y[1:], noise=draw())[:6], model(y[:-1], y[1:], noise=draw())[:6])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_stay_near(dtype: torch.dtype) -> None:
    model, y, noise = make().float(), sequence().float(), draw().float()
    expected = model(y[:-1], y[1:], noise=noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = model(y[:-1], y[1:], noise=noise)
        model.loss(lowered, auxiliary_weight=0.1).backward()
    half = model.to(dtype)(y[:-1].to(dtype), y[1:].to(dtype), noise=noise.to(dtype))
    for found in (lowered, half):
        for mine, theirs in zip(found[:4], expected[:4], strict=True):
            assert mine.dtype is torch.float32
            torch.testing.assert_close(mine, theirs, rtol=0.1, atol=0.3)


@pytest.mark.unhooked
def test_it_compiles_as_one_graph() -> None:
    model, y, noise = make(hidden=4), sequence(steps=4), draw(3)

    def run(x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        return model.loss(model(x, y, noise=noise), auxiliary_weight=0.1)

    found = torch.compile(run, fullgraph=True, backend="eager")(y[:-1], y[1:], noise)
    torch.testing.assert_close(found, run(y[:-1], y[1:], noise))


def test_the_forward_cell_may_be_any_and_brings_its_own_noise() -> None:
    model, y = make(make_cell=lambda size: Zoneout(LSTMCell(size, 8), {"h": 0.1, "c": 0.5})), sequence()
    model.loss(model(y[:-1], y[1:])).backward()
    one, two = (model(y[:-1], y[1:], noise=draw(), generator=torch.Generator().manual_seed(k)).nll for k in (0, 1))
    assert not torch.equal(one, two)
    model.eval()
    one, two = (model(y[:-1], y[1:], noise=draw()).nll for _ in range(2))
    assert torch.equal(one, two)


def test_layer_norm_condition_is_scanned_like_its_formula() -> None:
    model, y = make(condition="layer_norm"), sequence()
    cell = model.cell.cell
    result = scan(model.cell, (model.embedding(y[:-1]), torch.zeros(STEPS, ROWS, 8).double()), noise=None)
    h = c = torch.zeros(ROWS, 8, dtype=torch.float64)
    norm = lambda u: (u - u.mean(-1, keepdim=True)) / (u.var(-1, keepdim=True) + 1e-5).sqrt()  # noqa: E731
    for t in range(STEPS):
        gain, bias = cell.condition(result.output.z[t]).chunk(2, -1)
        own = norm(model.embedding(y[t]) @ cell.weight_ih.T) * cell.gain + cell.bias
        i, f, g, o = (own + norm(h @ cell.weight_hh.T) * (1 + gain) + bias).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        torch.testing.assert_close(result.output.h[t], h)


def test_an_embedding_of_one_s_own() -> None:
    embedding = nn.Sequential(nn.Linear(SIZE, 10), nn.Dropout(0.5))
    model, y = make(embedding=embedding), sequence()
    assert model.cell.input_size[0] == 10
    assert embedding.training
    model.loss(model(y[:-1], y[1:])).backward()
    model = make(size=12, likelihood="categorical", num_classes=11, embedding=nn.Embedding(12, 5))
    tokens = torch.randint(11, (7, 4))
    starts = torch.cat([torch.full((1, 4), 11), tokens[:-1]])
    assert torch.isfinite(model.loss(model(starts, tokens), backward_weight=0.1))
    assert model.sample(20, 5).max() < 11


def test_a_schedule_is_linear_and_stays() -> None:
    schedule = LinearSchedule(0.2, 1.0, 16_000)
    assert [schedule(step) for step in (0, 8_000, 16_000, 99_999)] == pytest.approx([0.2, 0.6, 1.0, 1.0])
    assert LinearSchedule(1, 0.5, 0)(0) == 0.5


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.user_input
def test_what_is_refused() -> None:
    model, y = make(), sequence()
    x, y = y[:-1], y[1:]
    with pytest.warns(UserWarning, match="one tensor"):
        model(x, x)
    for bad, error, message in (
        (lambda: model(x[:-1], y), ValueError, "inputs have shape"),
        (lambda: model(x[..., :2], y[..., :2]), ValueError, "expected frames"),
        (lambda: model(x.long(), y.long()), TypeError, "floating-point"),
        (lambda: model(x[:0], y[:0]), ValueError, "no steps"),
        (lambda: model(x, y, lengths=[0, 0, 0, 0]), ValueError, "all lengths are 0"),
        (lambda: model(x, y, lengths=[7, 1, 1, 1]), ValueError, r"lengths\[0\] is 7"),
        (lambda: model(x, y, lengths=[-1, 1, 1, 1]), ValueError, r"lengths\[0\] is -1"),
        (lambda: model(x, y, noise=draw(rows=3)), ValueError, "noise has shape"),
        (lambda: model.elbo(x, y, num_samples=0), ValueError, "num_samples=0"),
        (lambda: model.elbo(x, y, chunk=0), ValueError, "chunk=0"),
        (lambda: model.elbo(x, y, chunk=2, noise=draw()), ValueError, "leave chunk out"),
        (lambda: model.loss(model(x, y), kl_weight=-1), ValueError, "weight of kl"),
        (lambda: model.loss(model(x, y), auxiliary_weight=-0.1), ValueError, "auxiliary"),
        (lambda: make(auxiliary=None).loss(model(x, y), auxiliary_weight=1), ValueError, "has none"),
        (lambda: make(latent=0), ValueError, "latent_size=0"),
        (lambda: make(likelihood="poisson"), ValueError, "likelihood='poisson'"),
        (lambda: make(auxiliary="l1"), ValueError, "auxiliary='l1'"),
        (lambda: make(num_classes=3), ValueError, "num_classes=3"),
        (lambda: make(likelihood="categorical", num_classes=9), ValueError, "also read"),
        (lambda: make(logvar_range=(1.0, -1.0)), ValueError, "logvar_range"),
        (lambda: make(condition="layer_norm", make_cell=lambda n: LSTMCell(n, 8)), ValueError, "cell of its own"),
        (lambda: make(embedding=nn.Linear(5, 4)), ValueError, "does not take"),
        (lambda: model.sample(0), ValueError, "num_steps=0"),
        (lambda: model.sample(3, temperature=-1), ValueError, "temperature"),
        (lambda: model.interpolate(x[:, 0], x[:3, 1], 4), ValueError, "of one shape"),
        (lambda: model.interpolate(x[:, 0], x[:, 1], 1), ValueError, "steps=1"),
        (lambda: LinearSchedule(0.0, 1.0, -1), ValueError, "steps=-1"),
        (lambda: StochasticCell(LSTMCell(4, 4), 2, mlp_size=4), ValueError, "nothing is left"),
        (lambda: StochasticCell(StochasticCell(LSTMCell(8, 4), 2), 2), TypeError, "several inputs"),
    ):
        with pytest.raises(error, match=message):
            bad()
    tokens = make(likelihood="categorical", size=5)
    with pytest.raises(ValueError, match="tokens from 0 to 5"):
        tokens(torch.tensor([[0], [5]]), torch.tensor([[1], [1]]))
    with pytest.raises(ValueError, match="tokens from -1"):
        tokens(torch.tensor([[0], [1]]), torch.tensor([[1], [-1]]))
    with pytest.raises(TypeError, match="tokens are integers"):
        tokens(torch.rand(2, 1), torch.rand(2, 1))
    with pytest.raises(ValueError, match="takes \\[0, 1\\]"):
        make(likelihood="bernoulli")(x, y)


def test_a_loss_that_is_not_finite_says_which_cost() -> None:
    model, y = make(), sequence()
    output = model(y[:-1], y[1:])
    with pytest.raises(FloatingPointError, match="not finite in kl"):
        model.loss(output._replace(kl=output.kl * math.inf))
    with pytest.raises(FloatingPointError, match="auxiliary_nll"):
        model.loss(output._replace(auxiliary_nll=output.kl * math.nan), auxiliary_weight=0.1)
    assert torch.isfinite(model.loss(output._replace(auxiliary_nll=output.kl * math.nan)))


def test_a_network_around_it_is_found_by_its_parts() -> None:
    """Parameters are registered once, and the inner cell is called `cell`."""
    model = make()
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == len(set(names)) == len({id(parameter) for parameter in model.parameters()})
    assert "cell.cell.weight_hh" in names
