"""What a ladder network is made from and is given: the table of variants, and what is refused."""

import pytest
import torch
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from mechanisms.robust.ladder import LadderNetwork
from mechanisms.robust.ladder_combinators import COMBINATORS
from mechanisms.robust.ladder_layers import ConvLayer, DenseLayer, LevelShape
from mechanisms.robust.ladder_variants import VARIANTS, LadderVariant
from tests.robust.plain_ladder import WIDTHS, batch


def test_variants_are_the_studys_table() -> None:
    assert len(VARIANTS) == 22
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
