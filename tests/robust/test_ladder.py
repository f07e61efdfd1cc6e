"""The ladder network does what its equations say, with kernels and without."""

import copy

import pytest
import torch
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn
from torch.nn import functional as F

from mechanisms.robust import _ladder_kernels as kernels
from mechanisms.robust._ladder_levels import normalise
from mechanisms.robust.ladder import LadderNetwork
from mechanisms.robust.ladder_combinators import COMBINATORS
from mechanisms.robust.ladder_layers import ConvLayer, DenseLayer, LevelShape, PoolLayer
from mechanisms.robust.ladder_variants import VARIANTS, LadderVariant
from tests.robust.plain_ladder import plain_losses

WIDTHS = [7, 21, 18, 4]
IMAGES = [(2, 8, 8), ConvLayer(5, 3, stride=2), PoolLayer(2), ConvLayer(6, 2, padding=0), 8, 3]


def batch(labelled: int = 9, unlabelled: int = 14, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(1)
    x = torch.randn(labelled + unlabelled, 7, generator=numbers, dtype=dtype)
    return x[:labelled], torch.arange(labelled) % 4, x[labelled:]


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def normal(network: LadderNetwork, rows: int, seed: int = 3) -> list[Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    return [torch.randn(rows * s.positions, s.channels, generator=numbers).double() for s in network.shapes]


def shaken(network: LadderNetwork, seed: int = 4) -> LadderNetwork:
    """No parameter at a value where terms vanish."""
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=numbers, dtype=torch.float64).to(p.dtype))
    return network


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


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
def test_a_convolutional_ladder_is_the_dense_one_at_every_position(fused: bool) -> None:
    """A 1 x 1 convolution on one position is a dense layer."""
    dense = LadderNetwork([3, 5, 2], generator=0, dtype=torch.float64, fused=fused)
    conv = LadderNetwork([(3, 1, 1), ConvLayer(5, 1), 2], generator=0, dtype=torch.float64, fused=fused)
    # The way down is a transposed convolution: channels of the level above come first in its weights.
    state = {key: value.T if key == "down.0.weight" else value for key, value in dense.state_dict().items()}
    conv.load_state_dict({key: state[key].reshape(value.shape) for key, value in conv.state_dict().items()})
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    y, noise = torch.arange(5) % 2, normal(dense, 12)
    one = dense.losses(x[:5], y, x[5:], noise=noise)
    other = conv.losses(x[:5, :, None, None], y, x[5:, :, None, None], noise=noise)
    torch.testing.assert_close(one.reconstruction, other.reconstruction)
    torch.testing.assert_close(one.total, other.total)


@pytest.mark.parametrize("name", ["vanilla", "amlp-2-2", "gaussian", "gamma", "first-reconstruction"])
def test_images_train_with_and_without_kernels(name: str) -> None:
    totals = []
    for fused in (True, False):
        network = shaken(VARIANTS[name].network(IMAGES, generator=0, dtype=torch.float64, fused=fused))
        loss = network.losses(images()[:3], torch.arange(3), images(), noise=normal(network, 9))
        loss.total.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        totals.append(loss.total.detach())
    torch.testing.assert_close(*totals, rtol=1e-10, atol=1e-10)
    network.update_statistics(images())
    assert network.eval()(images(1)).shape == (1, 3)


def test_layers_go_up_and_come_down_to_the_same_shape() -> None:
    numbers = torch.Generator().manual_seed(0)
    below = LevelShape(3, 9, 7)
    for layer in (
        ConvLayer(4, 3, 2),
        ConvLayer(4, 2, 1, 0),
        ConvLayer(2, 5, 3),
        PoolLayer(2, "mean"),
        PoolLayer(None),
        DenseLayer(5),
    ):
        above = layer.shape(below)
        h = layer.up(below, numbers)(torch.randn(2 * below.positions, below.channels))
        assert h.shape == (2 * above.positions, above.channels)
        assert layer.down(below, numbers)(h).shape == (2 * below.positions, below.channels)


@pytest.mark.parametrize(("sides", "size"), [((7, 7), 2), ((9, 7), 3), ((6, 8), 2), ((5, 4), None)])
def test_the_way_back_from_pooling_gives_each_cell_its_squares_value(sides: tuple[int, int], size: int | None) -> None:
    below, layer, numbers = LevelShape(3, *sides), PoolLayer(size), torch.Generator().manual_seed(0)
    h = torch.randn(2 * layer.shape(below).positions, 3, generator=numbers)
    back = layer.down(below, numbers)(h)
    for kind in ("max", "mean"):
        torch.testing.assert_close(PoolLayer(size, kind).up(below, numbers)(back), h)
    # Cells at the far edge outside of all squares have the value beside them.
    image = back.view(2, *sides, 3)
    if sides[1] % (size or 1):
        assert torch.equal(image[:, :, -1], image[:, :, -2])


def test_first_weights_have_variance_one_over_fan_in() -> None:
    network = LadderNetwork([(4, 12, 12), ConvLayer(40, 5), 60], generator=0)
    for weight, fan_in in (
        (network.up[0].weight, 4 * 25), (network.up[1].weight, 40 * 144),
        (network.down["0"].weight, 40 * 25), (network.down["1"].weight, 60),
    ):  # fmt: skip
        # The variance of n normal numbers is within 6 sqrt(2/n) of 1 but for one time in 10^8.
        assert abs(float(weight.var()) * fan_in - 1) < 6 * (2 / weight.numel()) ** 0.5


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


# --- variants and bad input -----------------------------------------------------------------------------------------


def test_variants_are_the_studys_table() -> None:
    assert len(VARIANTS) == 21
    network = VARIANTS["first-noise-and-reconstruction"].network(WIDTHS, noise_std=0.2, scale=0.5)
    torch.testing.assert_close(network.noise_std, torch.tensor([0.2, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(network.reconstruction_weights, torch.tensor([500.0, 0.0, 0.0, 0.0]))
    assert list(network.combinators) == ["0", "1", "2", "3"]
    gamma = VARIANTS["gamma"].network(WIDTHS)
    assert list(gamma.combinators) == ["3"]
    assert not gamma.down
    assert set(COMBINATORS) >= {one.combinator for one in VARIANTS.values()}


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"widths": [3]}, "expected the inputs"),
        ({"widths": [3, 1]}, "at least 2"),
        ({"widths": [(3, 4), 2]}, "channels, height, width"),
        ({"widths": [3, "a"]}, "a layer is 'a'"),
        ({"widths": [(1, 4, 4), ConvLayer(2)]}, "number of classes"),
        ({"widths": [(1, 2, 2), ConvLayer(2, 5, padding=0), 2]}, "does not fit"),
        ({"widths": [3, 4, 2], "reconstruction_weights": [1, 2]}, "2 values for 3 levels"),
        ({"widths": [3, 4, 2], "noise_std": [0.1] * 4}, "4 values for 3 levels"),
        ({"widths": [3, 2], "noise_std": -1.0}, "must be >= 0"),
        ({"widths": [3, 2], "combinator": "best"}, "must be one of 'vanilla'"),
        ({"widths": [3, 2], "combinator": "mlp", "combinator_hidden": ()}, "at least one layer"),
        ({"widths": [3, 2], "combinator": lambda size, settings: 3}, "must return a torch.nn.Module"),
    ],
)
def test_networks_that_cannot_be(arguments: dict, text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=text):
        LadderNetwork(**arguments)


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x_labelled": torch.zeros(1, 7), "y": torch.zeros(1).long()}, r"x_labelled has 1 row\(s\)"),
        ({"x_unlabelled": torch.zeros(1, 7)}, r"x_unlabelled has 1 row\(s\)"),
        ({"x_unlabelled": torch.zeros(0, 7)}, r"x_unlabelled has 0 row\(s\)"),
        ({"x_labelled": torch.zeros(9, 6)}, r"shape \(9, 6\); expected \(n, 7\)"),
        ({"x_labelled": [[0.0] * 7] * 9}, "is a list"),
        ({"y": torch.zeros(8).long()}, r"y has shape \(8,\); expected \(9,\)"),
        ({"y": torch.zeros(9)}, "expected integers from 0 to 3"),
        ({"y": torch.full((9,), -1)}, "belong in x_unlabelled"),
        ({"y": torch.full((9,), 4)}, "from 4 to 4; expected 0 to 3"),
        ({"noise": [torch.zeros(23, 7)]}, "1 tensors for 4 levels"),
        ({"noise": [torch.zeros(20, 7)] * 4}, r"noise\[0\] has shape \(20, 7\)"),
        ({"noise": [torch.zeros(2, 23, 7)] * 4}, r"noise\[0\] has shape \(2, 23, 7\)"),
    ],
)
def test_batches_that_cannot_be(change: dict, text: str) -> None:
    x_l, y, x_u = batch(dtype=torch.float32)
    given = {"x_labelled": x_l, "y": y, "x_unlabelled": x_u} | change
    with pytest.raises((ValueError, TypeError), match=text):
        LadderNetwork(WIDTHS).losses(**given)


@pytest.mark.user_input
@pytest.mark.parametrize("fused", [True, False])
def test_parts_of_the_users_own_that_give_other_sizes(fused: bool) -> None:
    class Narrow(nn.Module):
        def forward(self, z: Tensor, u: Tensor) -> Tensor:
            return z[:, :1]

    class Lying(DenseLayer):
        def up(self, below: LevelShape, generator: torch.Generator) -> nn.Module:
            return nn.Linear(below.size, self.width - 1)

    rows = batch(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"combinator of level 3 returned shape \(14, 1\)"):
        LadderNetwork(WIDTHS, combinator=lambda size, settings: Narrow(), fused=fused).losses(*rows)
    with pytest.raises(ValueError, match=r"shape \(37, 5\); its `shape` promised \(37, 6\)"):
        LadderNetwork([7, Lying(6), 4], fused=fused).losses(*rows)


@pytest.mark.user_input
def test_predictions_that_cannot_be() -> None:
    network = LadderNetwork(WIDTHS).eval()
    with pytest.raises(NotFittedError, match="update_statistics"):
        network(torch.zeros(2, 7))
    with pytest.raises(ValueError, match="1 row"):
        network.train()(torch.zeros(1, 7))
    with pytest.raises(ValueError, match="gone through once"):
        network.update_statistics(iter([torch.zeros(2, 7)]))
    with pytest.raises(ValueError, match="no rows"):
        network.update_statistics([])
    with pytest.raises(ValueError, match="1 row"):
        network.update_statistics([torch.zeros(1, 7)], statistics="labelled")
    with pytest.raises(ValueError, match="one of 'all', 'labelled'"):
        network.update_statistics(torch.zeros(2, 7), statistics="some")
    with pytest.raises(ValueError, match="one of"):
        LadderVariant(noise="somewhere")
    with pytest.raises(ValueError, match="2 values for 3 levels"):
        LadderVariant().weights(3, (1, 2))
