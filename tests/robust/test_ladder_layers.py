"""Ladder networks of images, and the layers that networks are built of."""

import pytest
import torch
from torch import Tensor

from mechanisms.robust.ladder import LadderNetwork
from mechanisms.robust.ladder_layers import ConvLayer, DenseLayer, LevelShape, PoolLayer
from mechanisms.robust.ladder_variants import VARIANTS
from tests.robust.plain_ladder import normal, shaken

IMAGES = [(2, 8, 8), ConvLayer(5, 3, stride=2), PoolLayer(2), ConvLayer(6, 2, padding=0), 8, 3]


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


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
