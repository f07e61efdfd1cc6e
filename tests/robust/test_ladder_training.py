"""Ladder networks side by side are the networks one by one, and training is what its plan says."""

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from mechanisms.robust.ladder import LadderNetwork
from mechanisms.robust.ladder_layers import ConvLayer
from mechanisms.robust.ladder_stack import can_stack_ladders, stack_ladders, unstack_ladders
from mechanisms.robust.ladder_training import train_ladders
from mechanisms.robust.ladder_variants import VARIANTS

WIDTHS = [5, 9, 6, 3]
DOUBLE = {"dtype": torch.float64}


def data(n: int = 60, models: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(0)
    lead = () if models is None else (models,)
    x = torch.randn(*lead, n, 5, generator=numbers, dtype=torch.float64)
    return x[..., :12, :], torch.arange(12) % 3, x


class Learned(nn.Module):
    """A user's combinator that knows no model axis."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 1)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        return self.inner(torch.stack((z, u), -1)).squeeze(-1)


def networks(name: str, count: int = 3) -> list[LadderNetwork]:
    if name == "own":
        return [
            LadderNetwork(WIDTHS, combinator=lambda size, _: Learned(size), generator=seed, **DOUBLE)
            for seed in range(count)
        ]
    return [
        VARIANTS[name].network(WIDTHS, scale=0.1 * (seed + 1), noise_std=0.1 + 0.1 * seed, generator=seed, **DOUBLE)
        for seed in range(count)
    ]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", [*VARIANTS, "own"])
def test_a_stack_gives_each_networks_costs_and_gradients(name: str, fused: bool) -> None:
    alone = networks(name)
    for one in alone:
        one.fused = fused
    stack = stack_ladders(alone)
    x_l, y, x_u = data(models=3)
    noise = [torch.randn(3, 72, s.channels, generator=torch.Generator().manual_seed(1)).double() for s in stack.shapes]
    together = stack.losses(x_l, y, x_u, noise=noise)
    together.total.sum().backward()
    back = unstack_ladders(stack)
    for index, one in enumerate(alone):
        loss = one.losses(x_l[index], y, x_u[index], noise=[part[index] for part in noise])
        loss.total.backward()
        torch.testing.assert_close(together.reconstruction[index], loss.reconstruction, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(together.total[index], loss.total, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(stack.up[0].weight.grad[index], one.up[0].weight.grad, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(stack.beta[1].grad[index], one.beta[1].grad, rtol=1e-8, atol=1e-9)
        assert repr(back[index]) == repr(one)
        for key, value in one.state_dict().items():
            assert torch.equal(back[index].state_dict()[key], value), key


def test_a_stack_predicts_as_its_networks_do() -> None:
    alone = networks("vanilla")
    stack = stack_ladders(alone)
    x = data()[2]
    stack.update_statistics(x)
    logits = stack.eval()(x[:7])
    for index, (one, back) in enumerate(zip(alone, unstack_ladders(stack), strict=True)):
        one.update_statistics(x)
        torch.testing.assert_close(logits[index], one.eval()(x[:7]), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(back(x[:7]), one(x[:7]), rtol=1e-9, atol=1e-9)


def test_a_stack_has_statistics_where_all_its_networks_have() -> None:
    alone, x = networks("vanilla"), data()[2]
    alone[0].update_statistics(x)
    with pytest.raises(NotFittedError):
        stack_ladders(alone).eval()(x)
    for one in alone:
        one.update_statistics(x)
    torch.testing.assert_close(stack_ladders(alone).eval()(x)[2], alone[2].eval()(x))


def test_a_users_combinator_keeps_its_buffers_type_and_mode_in_a_stack() -> None:
    class Masked(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.scale, self.drop = nn.Linear(size, size), nn.Dropout(1.0)
            self.register_buffer("mask", torch.arange(size) * 1.0, persistent=False)

        def forward(self, z: Tensor, u: Tensor) -> Tensor:
            return self.drop(self.scale(z) * self.mask + u)

    alone = [LadderNetwork(WIDTHS, combinator=lambda size, _: Masked(size), generator=seed).eval() for seed in (0, 1)]
    stack = stack_ladders(alone).train().double()
    x = data()[2]
    values = stack.combinators["0"](x.expand(2, -1, -1), x.expand(2, -1, -1))
    assert not values.any()  # with this dropout nothing is left while training
    for one, back in zip(alone, unstack_ladders(stack), strict=True):
        assert torch.equal(back.combinators["0"].mask, one.combinators["0"].mask.double())
        assert torch.equal(back.combinators["0"].scale.weight, one.combinators["0"].scale.weight.double())
        assert back.combinators["0"].training


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("name", ["vanilla", "amlp-2-2-2", "baseline-noise"])
def test_training_does_not_depend_on_what_trains_beside(name: str, own: bool) -> None:
    x_l, y, x_u = data(models=3 if own else None)
    alone, settings = networks(name), {"epochs": 3, "batch_size": 20, "lr": 0.01, "labelled_batch_size": 8}
    together = train_ladders(alone, x_l, y, x_u, seeds=[4, 5, 4], **settings)
    for index, network in enumerate(alone):
        rows = (x_l[index], y, x_u[index]) if own else (x_l, y, x_u)
        one = train_ladders([network], *rows, seeds=[[4, 5, 4][index]], **settings)
        torch.testing.assert_close(together.loss_curve[:, index], one.loss_curve[:, 0], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(
            together.networks[index](x_u[0, :5] if own else x_u[:5]),
            one.networks[0](x_u[0, :5] if own else x_u[:5]),
            rtol=1e-6,
            atol=1e-6,
        )


def test_equal_seeds_have_equal_batches_and_noise() -> None:
    x_l, y, x_u = data()
    one = LadderNetwork(WIDTHS, generator=0, **DOUBLE)
    fit = train_ladders([one, one, one], x_l, y, x_u, seeds=[1, 1, 2], epochs=2, batch_size=20)
    assert torch.equal(fit.loss_curve[:, 0], fit.loss_curve[:, 1])
    assert not torch.equal(fit.loss_curve[:, 0], fit.loss_curve[:, 2])


def test_the_given_networks_stay_as_they_are() -> None:
    x_l, y, x_u = data()
    given = networks("vanilla")
    before = [one.gamma.detach().clone() for one in given]
    train_ladders(given, x_l, y, x_u, epochs=1)
    assert all(torch.equal(one.gamma, old) and one.training for one, old in zip(given, before, strict=True))


def test_the_rate_is_constant_and_then_falls_to_zero() -> None:
    from mechanisms.robust.ladder_training import _plan

    plan = _plan(100, 100, None, 0.002, 0.67, "all")
    assert plan.rate(0) == plan.rate(67) == pytest.approx(0.002)
    assert plan.rate(83) == pytest.approx(0.002 * 17 / 33)
    assert 0 < plan.rate(99) < 1e-4


@pytest.mark.parametrize("statistics", ["all", "labelled"])
def test_statistics_are_taken_from_the_rows_asked_for(statistics: str) -> None:
    x_l, y, x_u = data()
    fit = train_ladders(networks("vanilla", 1), x_l, y, x_u + 1, epochs=1, statistics=statistics)
    network = fit.networks[0]
    rows = x_u + 1 if statistics == "all" else x_l
    pre = rows @ network.up[0].weight.T
    torch.testing.assert_close(network.mean_1, pre.mean(0))
    correction = 0 if statistics == "all" else 1
    torch.testing.assert_close(network.variance_1, pre.var(0, correction=correction))


@pytest.mark.parametrize("count", [1, 3])
def test_validation_rows_choose_the_last_best_epoch(count: int) -> None:
    x_l, y, x_u = data()
    fit = train_ladders(networks("vanilla", count), x_l, y, x_u, epochs=6, lr=0.02, x_val=x_l[:9], y_val=y[:9])
    assert fit.validation_accuracy.shape == (6, count)
    for index in range(count):
        curve = fit.validation_accuracy[:, index]
        assert int(fit.best_epoch[index]) == 6 - int(curve.flip(0).argmax())
        right = (fit.networks[index](x_l[:9]).argmax(1) == y[:9]).double().mean()
        assert float(right) == pytest.approx(float(curve.max()))


def test_networks_that_differ_and_images_train_one_by_one() -> None:
    mixed = [VARIANTS[name].network(WIDTHS, generator=0, **DOUBLE) for name in ("vanilla", "gaussian")]
    assert not can_stack_ladders(mixed)
    x_l, y, x_u = data()
    seen = []
    fit = train_ladders(mixed, x_l, y, x_u, epochs=2, progress=lambda done, total: seen.append((done, total)))
    assert fit.loss_curve.shape == (2, 2)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    images = torch.randn(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    conv = [LadderNetwork([(1, 4, 4), ConvLayer(2), 3], generator=seed) for seed in range(2)]
    fit = train_ladders(conv, images[:9], torch.arange(9) % 3, images, epochs=1, batch_size=10, seeds=[0, 1])
    assert fit.networks[1](images).shape == (30, 3)


def test_digits_with_two_labels_a_class_are_learned() -> None:
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:900], order[900:]
    chosen = torch.cat([train[y[train] == digit][:2] for digit in range(10)])
    network = VARIANTS["vanilla"].network([64, 64, 32, 10], generator=0)
    fit = train_ladders([network], x[chosen], y[chosen], x[train], epochs=25, lr=0.01)
    assert float((fit.networks[0](x[test]).argmax(1) != y[test]).float().mean()) < 0.45  # chance is 0.9
    assert fit.loss_curve[-1] < 0.5 * fit.loss_curve[0]


@pytest.mark.user_input
def test_what_cannot_be_trained_or_stacked() -> None:
    x_l, y, x_u = data()
    given = networks("vanilla", 2)
    with pytest.warns(UserWarning, match="class 2 has no labelled row"):
        train_ladders(given, x_l, y % 2, x_u, epochs=1)
    for change, text in (
        ({"seeds": [1]}, "1 numbers for 2 networks"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 1}, "batch_size=1"),
        ({"labelled_batch_size": 1}, "labelled_batch_size=1"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"x_val": x_l}, "go together"),
        ({"device": "nowhere"}, "cannot be used"),
        ({"statistics": "some"}, "one of 'all', 'labelled'"),
        ({"epochs": 1.5}, "epochs=1.5: it must be a whole number"),
        ({"batch_size": 20.5}, "must be a whole number"),
        ({"x_val": x_l, "y_val": y[:, None]}, r"y_val has shape \(12, 1\); expected \(12,\)"),
        ({"x_val": x_l[:, :2], "y_val": y}, r"x_val has shape \(12, 2\)"),
    ):
        with pytest.raises(ValueError, match=text):
            train_ladders(given, x_l, y, x_u, **({"epochs": 1} | change))
    with pytest.raises(ValueError, match="empty"):
        train_ladders([], x_l, y, x_u)
    with pytest.raises(ValueError, match="1 row"):
        train_ladders(given, x_l[:1], y[:1], x_u, epochs=1, warn=False)
    with pytest.raises(ValueError, match=r"x_unlabelled has 0 row\(s\)"):
        train_ladders(given, x_l, y, x_u[:0], epochs=1)
    with pytest.raises(ValueError, match=r"y has shape \(13,\); expected \(12,\)"):
        train_ladders(given, x_l, torch.cat([y, y[:1]]), x_u, epochs=1)
    with pytest.raises(ValueError, match="x_unlabelled has 1 of 300 values"):
        train_ladders(given, x_l, y, torch.where(torch.arange(300).view(60, 5) == 7, torch.nan, x_u), epochs=1)
    with pytest.raises(ValueError, match=r"x_labelled has shape \(3, 12, 5\)"):
        train_ladders(given, x_l.expand(3, 12, 5), y, x_u, epochs=1)
    with pytest.raises(ValueError, match="network 1 differs from network 0"):
        stack_ladders([given[0], LadderNetwork([5, 3])])
    with pytest.raises(ValueError, match="at least one"):
        stack_ladders([])
    with pytest.raises(ValueError, match="no stack"):
        unstack_ladders(given[0])
    with pytest.raises(ValueError, match="one of these is a stack"):
        stack_ladders([stack_ladders(given)])
    with pytest.raises(ValueError, match="for all networks, or"):
        stack_ladders(given)(torch.zeros(3, 4, 5))
