"""The ladder network does what its equations say, with kernels and without."""

import copy

import pytest
import torch
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn
from torch.nn import functional as F

from mechanisms._base.compiled import CannotCompile
from mechanisms.robust import _ladder_kernels as kernels
from mechanisms.robust._ladder_levels import normalise
from mechanisms.robust.ladder import LadderNetwork
from mechanisms.robust.ladder_variants import VARIANTS
from tests.robust.plain_ladder import WIDTHS, batch, normal, plain_losses, shaken


def gradients(network: nn.Module, total: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(total, list(network.parameters()), allow_unused=False))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_costs_and_gradients_are_those_of_the_equations(name: str, fused: bool) -> None:
    network = shaken(VARIANTS[name].network(WIDTHS, generator=0, dtype=torch.float64, fused=fused))
    x_l, y, x_u = batch()
    noise = normal(network, 23)
    ours = network.losses(x_l, y, x_u, noise=noise)
    with kernels.plain_operations():
        theirs = plain_losses(network, x_l, y, x_u, noise)
        expected = gradients(network, theirs.total)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    for one, other in zip(gradients(network, ours.total), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8 * float(other.abs().max()))


def test_small_networks_on_the_cpu_use_kernels() -> None:
    assert kernels.usable(torch.ones(2, 3)), "no C compiler here: the kernels were not tested"
    network = LadderNetwork([7, 4], generator=0)
    x_l, y, x_u = batch(dtype=torch.float32)
    loss = network.losses(x_l, y, x_u)
    with pytest.raises(RuntimeError, match="fused=False"):
        torch.autograd.grad(loss.total, network.up[0].weight, create_graph=True)
    network.fused = False
    total = network.losses(x_l, y, x_u).total
    (first,) = torch.autograd.grad(total, network.up[0].weight, create_graph=True)
    torch.autograd.grad(first.square().sum(), network.up[0].weight)


def test_without_a_compiler_it_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network = shaken(LadderNetwork(WIDTHS, combinator="amlp", generator=0, dtype=torch.float64))
    noise = normal(network, 23)
    before = network.losses(*batch(), noise=noise)

    def none(dtype: torch.dtype) -> None:
        raise CannotCompile("no C compiler is found")

    monkeypatch.setattr(kernels, "_library", none)
    assert not kernels.usable(torch.ones(2, 3))
    torch.testing.assert_close(network.losses(*batch(), noise=noise), before)


def test_kernels_in_single_precision_agree_with_plain_operations() -> None:
    x_l, y, x_u = batch(dtype=torch.float32)
    losses = []
    for fused in (True, False):
        network = LadderNetwork(WIDTHS, combinator="amlp", generator=0, fused=fused)
        noise = [one.float() for one in normal(network, 23)]
        losses.append(network.losses(x_l, y, x_u, noise=noise).total)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["vanilla", "amlp"])
def test_gradients_of_the_whole_network(name: str, fused: bool) -> None:
    network = shaken(
        LadderNetwork(
            [2, 3, 2], combinator=name, combinator_hidden=(2,), generator=0, dtype=torch.float64, fused=fused,
            reconstruction_weights=(1.0, 0.5, 0.2),
        )
    )  # fmt: skip
    numbers = torch.Generator().manual_seed(5)
    x = torch.randn(11, 2, generator=numbers, dtype=torch.float64)
    noise = normal(network, 11)
    parameters = dict(network.named_parameters())

    def total(*values: Tensor) -> Tensor:
        state = dict(zip(parameters, values, strict=True))
        for key, value in state.items():
            owner, leaf = network.get_submodule(key.rpartition(".")[0]), key.rpartition(".")[2]
            owner._parameters[leaf] = value
        return network.losses(x[:4], torch.tensor([0, 1, 0, 1]), x[4:], noise=noise).total

    assert torch.autograd.gradcheck(total, tuple(p.detach().requires_grad_() for p in parameters.values()))


def test_noise_has_a_gradient_with_and_without_kernels() -> None:
    x_l, y, x_u = batch()
    grads = []
    for fused in (True, False):
        network = LadderNetwork(WIDTHS, generator=0, dtype=torch.float64, fused=fused)
        noise = [one.requires_grad_() for one in normal(network, 23)]
        grads.append(torch.autograd.grad(network.losses(x_l, y, x_u, noise=noise).total, noise))
    for one, other in zip(*grads, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_so_many_rows_that_one_sum_would_lose_digits() -> None:
    x = torch.randn(1_000_000, 2, generator=torch.Generator().manual_seed(0)) + 3
    torch.testing.assert_close(normalise(x).double(), normalise(x.double()), rtol=1e-5, atol=1e-5)


def test_without_noise_the_noisy_run_is_the_clean_one_bit_for_bit() -> None:
    network = LadderNetwork(WIDTHS, noise_std=0.0, generator=0)
    seen: list[Tensor] = []
    for up in network.up:
        up.register_forward_hook(lambda module, given, output: seen.append(output))
    x_l, y, x_u = batch(dtype=torch.float32)
    network.losses(x_l, y, x_u)
    assert len(seen) == 3
    for pre in seen:
        assert torch.equal(pre[9:23], pre[23:])


def test_without_weights_it_is_a_plain_network_with_batch_normalisation() -> None:
    network = shaken(LadderNetwork(WIDTHS, reconstruction_weights=[0] * 4, generator=0, dtype=torch.float64))
    assert not network.down
    assert not network.combinators
    x_l, y, x_u = batch()
    noise = normal(network, 23)
    loss = network.losses(x_l, y, x_u, noise=noise)
    h = x_l + 0.3 * noise[0][:9]
    for level, (up, beta) in enumerate(zip(network.up, network.beta, strict=True), start=1):
        z = F.batch_norm(h @ up.weight.T, None, None, training=True, eps=1e-10) + 0.3 * noise[level][:9]
        h = (z + beta).relu() if level < 3 else network.gamma * (z + beta)
    plain = F.cross_entropy(h, y)
    torch.testing.assert_close(loss.total, plain, rtol=1e-12, atol=1e-12)
    for one, other in zip(gradients(network, loss.total), gradients(network, plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_perfect_decoder_costs_nothing() -> None:
    seen: list[Tensor] = []

    class Perfect(nn.Module):
        needs_vertical = True

        def forward(self, z: Tensor, u: Tensor) -> Tensor:
            if not seen:
                return batch()[2]
            pre = seen.pop()[23:]
            mean, std = pre.mean(0), (pre.var(0, correction=0) + 1e-10).sqrt()
            return std * ((pre - mean) / std) + mean

    network = LadderNetwork(WIDTHS, combinator=lambda size, settings: Perfect(), generator=0, dtype=torch.float64)
    for up in network.up:
        up.register_forward_hook(lambda module, given, output: seen.append(output))
    loss = network.losses(*batch())
    assert float(loss.reconstruction.detach().max()) < 1e-10


@pytest.mark.parametrize("layer", [0, 1])
def test_the_scale_of_weights_below_the_top_does_not_matter(layer: int) -> None:
    network = LadderNetwork(WIDTHS, generator=0, dtype=torch.float64)
    x = batch()[2]
    before = network(x)
    with torch.no_grad():
        network.up[layer].weight.mul_(7.0)
    torch.testing.assert_close(network(x), before, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("fused", [True, False])
def test_the_order_of_unlabelled_rows_does_not_matter(fused: bool) -> None:
    network = shaken(LadderNetwork(WIDTHS, generator=0, dtype=torch.float64, fused=fused))
    x_l, y, x_u = batch()
    noise = normal(network, 23)
    order = torch.randperm(14, generator=torch.Generator().manual_seed(6))
    turned = [torch.cat([one[:9], one[9:][order]]) for one in noise]
    before, after = network.losses(x_l, y, x_u, noise=noise), network.losses(x_l, y, x_u[order], noise=turned)
    torch.testing.assert_close(before.reconstruction, after.reconstruction, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("fused", [True, False])
def test_labelled_inputs_do_not_enter_the_reconstruction_costs(fused: bool) -> None:
    network = shaken(LadderNetwork(WIDTHS, generator=0, dtype=torch.float64, fused=fused))
    x_l, y, x_u = batch()
    noise = normal(network, 23)
    before, after = network.losses(x_l, y, x_u, noise=noise), network.losses(5 * x_l - 1, y, x_u, noise=noise)
    torch.testing.assert_close(before.reconstruction, after.reconstruction, rtol=1e-12, atol=1e-12)
    assert before.classification != after.classification


@pytest.mark.parametrize("fused", [True, False])
def test_a_detached_target_lets_no_gradient_through_the_clean_run(fused: bool) -> None:
    grads = []
    x_l, y, x_u = batch()
    for detach in (False, True):
        network = LadderNetwork(WIDTHS, generator=0, dtype=torch.float64, detach_clean=detach, fused=fused)
        noise = normal(network, 23)
        loss = network.losses(x_l, y, x_u, noise=noise)
        grads.append(torch.autograd.grad(loss.total, network.up[0].weight)[0])
        assert float(loss.total) == pytest.approx(float(network.losses(x_l, y, x_u, noise=noise).total))
    assert not torch.allclose(*grads)


# --- prediction -----------------------------------------------------------------------------------------------------


def test_statistics_of_all_rows_are_those_of_one_batch() -> None:
    network = shaken(LadderNetwork(WIDTHS, generator=0, dtype=torch.float64))
    x = batch(unlabelled=300)[2]
    expected = network(x)  # training mode: statistics of the batch itself
    network.update_statistics([(part, "label") for part in x.split(77)])
    torch.testing.assert_close(network.eval()(x), expected, rtol=1e-9, atol=1e-9)
    assert int(network.statistics_rows) == 300
    torch.testing.assert_close(network(x[:1]), expected[:1], rtol=1e-9, atol=1e-9)


def test_statistics_of_labelled_batches_are_averages_of_unbiased_ones() -> None:
    network = shaken(LadderNetwork(WIDTHS, generator=0, dtype=torch.float64))
    parts = batch(unlabelled=30)[2].split(10)
    network.update_statistics(list(parts), statistics="labelled")
    first = torch.stack([part @ network.up[0].weight.T for part in parts])
    torch.testing.assert_close(network.mean_1, first.mean(1).mean(0))
    torch.testing.assert_close(network.variance_1, first.var(1).mean(0))
    h = [(F.batch_norm(one, None, None, training=True, eps=1e-10) + network.beta[0]).relu() for one in first]
    second = torch.stack(h) @ network.up[1].weight.T
    torch.testing.assert_close(network.mean_2, second.mean(1).mean(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(network.variance_2, second.var(1).mean(0), rtol=1e-9, atol=1e-9)


def test_an_interrupted_update_leaves_no_statistics() -> None:
    network, x = LadderNetwork(WIDTHS, generator=0), batch(dtype=torch.float32)[2]
    network.update_statistics(x)

    class Interrupted:
        begun = 0

        def __iter__(self):
            self.begun += 1
            if self.begun == 2:
                raise KeyboardInterrupt
            yield x + 1

    with pytest.raises(KeyboardInterrupt):
        network.update_statistics(Interrupted())
    for one in (network, copy.deepcopy(network)):
        with pytest.raises(NotFittedError):
            one.eval()(x)
    network.load_state_dict(network.state_dict())
    with pytest.raises(NotFittedError):
        network(x)


def test_a_state_dict_keeps_predictions_and_that_there_are_statistics() -> None:
    network, other = (LadderNetwork(WIDTHS, generator=seed) for seed in (0, 1))
    x = batch(dtype=torch.float32)[2]
    network.update_statistics(x)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.eval()(x), network.eval()(x))
    assert torch.equal(copy.deepcopy(network)(x), network(x))


def test_the_same_seed_gives_the_same_network_and_noise() -> None:
    x_l, y, x_u = batch(dtype=torch.float32)
    totals = [LadderNetwork(WIDTHS, generator=seed).losses(x_l, y, x_u, generator=noise).total
              for seed, noise in ((0, 1), (0, 1), (1, 1), (0, 2))]  # fmt: skip
    assert totals[0] == totals[1]
    assert len({float(one) for one in totals}) == 3
    first, second = (VARIANTS[name].network(WIDTHS, generator=0) for name in ("vanilla", "baseline"))
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(first.up, second.up, strict=True))


@pytest.mark.parametrize("name", ["vanilla", "amlp", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_take_statistics_in_single(name: str, dtype: torch.dtype) -> None:
    x_l, y, x_u = batch(40, 60, dtype=torch.float32)
    exact = LadderNetwork(WIDTHS, combinator=name, generator=0)
    expected = exact.losses(x_l, y, x_u, generator=0).total
    half = LadderNetwork(WIDTHS, combinator=name, generator=0, dtype=dtype)
    loss = half.losses(x_l.to(dtype), y, x_u.to(dtype), generator=0)
    with torch.autocast("cpu", dtype=dtype):
        cast = exact.losses(x_l, y, x_u, generator=0)
    for one, network in ((loss, half), (cast, exact)):
        assert one.total.dtype == torch.float32
        assert abs(float(one.total / expected) - 1) < 0.1
        one.total.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    half.update_statistics(x_u.to(dtype))
    assert half.eval()(x_u.to(dtype)).isfinite().all()


@pytest.mark.parametrize("fused", [True, False])
def test_constant_features_stay_finite(fused: bool) -> None:
    network = LadderNetwork(WIDTHS, generator=0, fused=fused)
    x = torch.full((6, 7), 3.0)
    loss = network.losses(x, torch.arange(6) % 4, x)
    loss.total.backward()
    assert loss.total.isfinite()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    network.update_statistics(x)
    assert network.eval()(x).isfinite().all()


@pytest.mark.unhooked
def test_it_compiles_as_one_graph() -> None:
    network = LadderNetwork([7, 5, 4], generator=0)
    x_l, y, x_u = batch(dtype=torch.float32)
    noise = [one.float() for one in normal(network, 23)]
    compiled = torch.compile(network.losses, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x_l, y, x_u, noise=noise), network.losses(x_l, y, x_u, noise=noise))
    network.update_statistics(x_u)
    predict = torch.compile(network.eval(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(predict(x_u), network(x_u))


@pytest.mark.gpu
def test_on_an_accelerator_it_gives_what_it_gives_on_the_cpu() -> None:
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        pytest.skip("no accelerator")
    x_l, y, x_u = batch(dtype=torch.float32)
    network = LadderNetwork(WIDTHS, combinator="amlp", generator=0)
    noise = [one.float() for one in normal(network, 23)]
    here = network.losses(x_l, y, x_u, noise=noise).total
    there = network.to(device).losses(
        x_l.to(device), y.to(device), x_u.to(device), noise=[one.to(device) for one in noise]
    )
    torch.testing.assert_close(there.total.cpu(), here, rtol=1e-4, atol=1e-3)
