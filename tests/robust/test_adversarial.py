"""Attacks: in the ball and in the box, exact where the answer is known, and without a trace on the model."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from mechanisms.robust import _ascent
from mechanisms.robust.adversarial import fgsm, pgd, withstands_pgd
from mechanisms.robust.denoising import DenoisingLayer, ExpectationOverNoise
from mechanisms.robust.fortified import fortify


def problem(rows: int = 40, features: int = 12, classes: int = 4) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, classes)).eval()
    x = torch.rand(rows, features)
    return model, x, model(x).argmax(1)


def trained_linear(classes: int) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    """A linear model with some confidence, and points away from the box."""
    torch.manual_seed(0)
    x, y = torch.rand(400, 20) * 0.4 + 0.3, torch.arange(400) % classes
    x = (x + 0.12 * torch.randn(classes, 20)[y]).clamp(0.2, 0.8)
    model = nn.Linear(20, classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), x, y


def exactly_robust(model: nn.Linear, x: torch.Tensor, y: torch.Tensor, eps: float, dual: float) -> torch.Tensor:
    """Rows whose margin survives the worst change: min_k (w_y - w_k) x + b_y - b_k - eps ||w_y - w_k||_* > 0."""
    with torch.no_grad():
        differences = model.weight[y].unsqueeze(1) - model.weight
        margins = (differences * x.unsqueeze(1)).sum(2) + (model.bias[y].unsqueeze(1) - model.bias)
        margins -= eps * torch.linalg.vector_norm(differences, dual, dim=2)
        return margins.scatter(1, y.unsqueeze(1), torch.inf).amin(1) > 0


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=25, deadline=None)
@given(
    eps=st.floats(0.0, 1.5),
    norm=st.sampled_from(["linf", "l2"]),
    loss=st.sampled_from(["cross_entropy", "margin"]),
    keep=st.sampled_from(["best", "last"]),
    restarts=st.integers(1, 3),
    step_size=st.sampled_from([None, 0.01, 3.0]),
    shape=st.sampled_from([(12,), (3, 2, 2)]),
)
def test_attacks_stay_in_the_ball_and_in_the_box(
    eps: float, norm: str, loss: str, keep: str, restarts: int, step_size: float | None, shape: tuple[int, ...]
) -> None:
    model, x, y = problem(rows=7)
    model, x = nn.Sequential(nn.Flatten(), model), x.view(7, *shape)
    x_adv = pgd(model, x, y, eps, steps=3, step_size=step_size, norm=norm, loss=loss, keep=keep, restarts=restarts)
    away = (x_adv - x).flatten(1)
    assert x_adv.shape == x.shape
    assert x_adv.amin() >= 0
    assert x_adv.amax() <= 1
    assert torch.linalg.vector_norm(away, torch.inf if norm == "linf" else 2, dim=1).amax() <= eps + 1e-6
    for start in (False, True):
        away = (fgsm(model, x, y, eps, norm=norm, random_start=start) - x).flatten(1)
        assert torch.linalg.vector_norm(away, torch.inf if norm == "linf" else 2, dim=1).amax() <= eps + 1e-6


def test_no_budget_gives_the_inputs_and_the_clean_accuracy() -> None:
    model, x, y = problem()
    wrong = (y + torch.arange(40) % 2) % 4
    assert torch.equal(pgd(model, x, wrong, eps=0), x)
    assert torch.equal(withstands_pgd(model, x, wrong, eps=0), model(x).argmax(1) == wrong)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1.0), ("l2", 2.0)])
@pytest.mark.parametrize("eps", [0.02, 0.05, 0.1])
def test_of_two_classes_a_linear_model_falls_exactly_where_it_must(norm: str, dual: float, eps: float) -> None:
    model, x, y = trained_linear(2)
    budget = eps if norm == "linf" else 4 * eps
    expected = exactly_robust(model, x, y, budget, dual)
    assert 0.05 < expected.float().mean() < 1
    found = withstands_pgd(model, x, y, budget, norm=norm, random_start=False, restarts=1)
    # Its gradient has one direction everywhere, so that the steps end at the worst point itself.
    assert torch.equal(found, expected)
    assert torch.equal(model(pgd(model, x, y, budget, norm=norm, random_start=False)).argmax(1) == y, found)
    started = withstands_pgd(model, x, y, budget, norm=norm, steps=200)
    assert (started == expected).float().mean() >= 0.99
    assert not (expected & ~started).any()


def test_of_four_classes_the_margin_finds_what_there_is_and_no_loss_finds_more() -> None:
    model, x, y = trained_linear(4)
    expected = exactly_robust(model, x, y, 0.05, 1.0)
    found = {loss: withstands_pgd(model, x, y, 0.05, steps=50, loss=loss) for loss in ("margin", "cross_entropy")}
    assert 0.2 < expected.float().mean() < 0.8
    assert not (expected & ~found["margin"]).any()
    assert not (expected & ~found["cross_entropy"]).any()  # it climbs towards a mixture of classes, and may miss
    assert found["margin"].float().mean() - expected.float().mean() <= 0.01


def test_accuracy_does_not_grow_with_restarts_or_with_the_budget() -> None:
    model, x, y = problem(rows=300)
    found = [withstands_pgd(model, x, y, 0.08, steps=5, restarts=r, generator=generator()) for r in (1, 2, 5)]
    assert not (found[1] & ~found[0]).any()
    assert not (found[2] & ~found[1]).any()
    linear, points, labels = trained_linear(2)
    accuracies = [withstands_pgd(linear, points, labels, eps).float().mean() for eps in (0, 0.02, 0.05, 0.1, 0.2, 1)]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[-1] == 0


def test_what_is_given_back_is_the_strongest_of_all_starts() -> None:
    model, x, y = problem(rows=60)

    def margin(x_adv: torch.Tensor) -> torch.Tensor:
        return _ascent._Classes(y, _ascent.Attack(0.1, 1, 0.1)).margin(model(x_adv))

    best = [margin(pgd(model, x, y, 0.08, steps=4, restarts=r, generator=generator())) for r in (1, 3)]
    last = margin(pgd(model, x, y, 0.08, steps=4, keep="last", generator=generator()))
    assert (best[1] >= best[0] - 1e-6).all()
    assert (best[0] >= last - 1e-6).all()
    assert (best[0] >= margin(x) - 1e-6).sum() > 50


def test_starts_in_one_pass_and_one_by_one_give_the_same() -> None:
    model, x, y = problem()
    together = pgd(model, x, y, 0.1, steps=3, restarts=3, generator=generator())
    apart = pgd(model, x, y, 0.1, steps=3, restarts=3, generator=generator(), rows=40)
    torch.testing.assert_close(together, apart)


def test_large_sets_are_cut() -> None:
    model, x, y = problem()
    seen: list[tuple[int, int]] = []
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    found = pgd(model, x, y, 0.1, steps=2, random_start=False, rows=16, progress=lambda *now: seen.append(now))
    assert seen == [(16, 40), (32, 40), (40, 40)]
    standing = withstands_pgd(model, x, y, 0.1, steps=2, random_start=False, restarts=1, rows=16)
    pgd(model, x, y, 0.1, steps=2, restarts=3, rows=16)  # starts go together within the same limit
    assert max(sizes) == 16
    handle.remove()
    torch.testing.assert_close(found, pgd(model, x, y, 0.1, steps=2, random_start=False))
    assert torch.equal(standing, withstands_pgd(model, x, y, 0.1, steps=2, random_start=False, restarts=1))


def test_the_same_seed_gives_the_same_attack() -> None:
    model, x, y = problem()
    one = [pgd(model, x, y, 0.1, steps=2, generator=generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(one[0], one[1])
    assert not torch.equal(one[0], one[2])
    torch.manual_seed(4)
    first = pgd(model, x, y, 0.1, steps=2)
    torch.manual_seed(4)
    assert torch.equal(first, pgd(model, x, y, 0.1, steps=2))


def test_a_step_goes_along_the_gradient_of_the_cross_entropy() -> None:
    model, x, y = problem()
    x = 0.3 + 0.4 * x
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(model(leaf), y), leaf)
    torch.testing.assert_close(fgsm(model, x, y, 0.05), x + 0.05 * gradient.sign())
    unit = gradient / gradient.norm(dim=1, keepdim=True)
    torch.testing.assert_close(fgsm(model, x, y, 0.05, norm="l2"), x + 0.05 * unit)


def test_large_logits_hide_nothing() -> None:
    model, x, y = problem()
    scaled = nn.Sequential(model, Scale(1e4)).eval()
    leaf = x.clone().requires_grad_()
    # The plain gradient is lost: the softmax is rounded to 0 and 1.
    (gradient,) = torch.autograd.grad(functional.cross_entropy(scaled(leaf), y), leaf)
    assert (gradient == 0).all(1).float().mean() > 0.5
    for loss in ("cross_entropy", "margin"):
        plain = withstands_pgd(model, x, y, 0.2, steps=20, loss=loss, random_start=False, restarts=1)
        found = withstands_pgd(scaled, x, y, 0.2, steps=20, loss=loss, random_start=False, restarts=1)
        assert found.float().mean() <= plain.float().mean() + 0.05


@pytest.mark.parametrize("factor", [0.0, 1e-30])
def test_small_gradients_are_followed_and_none_leaves_the_inputs(factor: float) -> None:
    model, x, y = problem()
    scaled = nn.Sequential(model, Scale(factor))
    found = fgsm(scaled, x, y, 10.0, norm="l2")
    assert (found - x).flatten(1).norm(dim=1).amin() > 0.5 if factor else torch.equal(found, x)


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def test_the_model_is_left_as_it_was() -> None:
    model, x, y = problem()
    first = next(model.parameters())
    first.requires_grad_(False)
    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    seen: list[bool] = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(model[2].weight.requires_grad))
    pgd(model, x, y, 0.1, steps=2)
    withstands_pgd(model, x, y, 0.1, steps=2)
    assert not any(seen)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]
        assert parameter.grad is None
    with pytest.raises(RuntimeError, match="halt"):
        pgd(nn.Sequential(model, Halt()), x, y, 0.1)
    assert model[2].weight.requires_grad


class Halt(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("halt")


def test_attacks_run_where_gradients_are_switched_off() -> None:
    model, x, y = problem()
    expected = pgd(model, x, y, 0.1, steps=2, random_start=False)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert torch.equal(pgd(model, x.clone(), y, 0.1, steps=2, random_start=False), expected)
    assert not expected.requires_grad
    assert pgd(model, x.clone().requires_grad_(), y, 0.1, steps=1).grad_fn is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_single_rows_and_none(dtype: torch.dtype) -> None:
    model, x, y = problem()
    model, x = model.to(dtype), x.to(dtype)
    for rows in (0, 1):
        x_adv = pgd(model, x[:rows], y[:rows].int(), 0.125, steps=2, restarts=2)
        assert x_adv.dtype == dtype
        assert x_adv.shape == (rows, 12)
        assert ((x_adv - x[:rows]).abs() <= 0.125 + 2 * torch.finfo(dtype).eps).all()
        assert withstands_pgd(model, x[:rows], y[:rows], 0.1, steps=2).shape == (rows,)


def test_under_autocast() -> None:
    model, x, y = problem()
    with torch.autocast("cpu", torch.bfloat16):
        assert pgd(model, x, y, 0.1, steps=2).dtype == torch.float32


@pytest.mark.unhooked
def test_compiled_models_are_attacked() -> None:
    model, x, y = problem()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = pgd(compiled, x, y, 0.1, steps=3, random_start=False)
    torch.testing.assert_close(found, pgd(model, x, y, 0.1, steps=3, random_start=False))


def test_batch_normalisation_is_not_fed_with_copies() -> None:
    model, x, y = problem()
    net = nn.Sequential(nn.BatchNorm1d(12), model)
    seen: list[int] = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    pgd(net, x, y, 0.1, steps=2, restarts=2)
    assert set(seen) == {40}


def test_noise_at_evaluation_warns_unless_it_is_averaged() -> None:
    torch.manual_seed(0)
    noisy = nn.Sequential(DenoisingLayer(12, 6, noise="always"), nn.Linear(12, 3)).eval()
    x, y = torch.rand(5, 12), torch.arange(5) % 3
    with pytest.warns(UserWarning, match="robustness is overstated; wrap it in ExpectationOverNoise"):
        withstands_pgd(noisy, x, y, 0.1, steps=2)
    assert withstands_pgd(ExpectationOverNoise(noisy), x, y, 0.1, steps=2).shape == (5,)


def of(**changes: object) -> Callable[[], object]:
    def call() -> object:
        model, x, y = problem()
        given = {"model": model, "x": x, "y": y, "eps": 0.1, "steps": 1} | changes
        return pgd(**given)  # type: ignore[arg-type]

    return call


def half_asleep() -> nn.Module:
    """A network whose own eval() does not reach the layers that it goes through."""
    network = nn.Sequential(nn.Linear(3, 4))
    fortify(network, {"0": DenoisingLayer(4, 2)})
    return network.eval()


class Cut(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x > 0.5).float()


class Broken(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.nan


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (of(x=torch.full((40, 12), 1.2)), ValueError, r"x goes from 1.2 to 1.2; expected \[0, 1\]"),
        (of(x=torch.full((40, 12), torch.nan)), ValueError, "x goes from nan to nan"),
        (of(x=torch.ones(40, 12, dtype=torch.uint8)), TypeError, "x is torch.uint8; expected a floating-point tensor"),
        (of(x=[[0.5]]), TypeError, "x is list"),
        (of(y=torch.zeros(40)), TypeError, "y is torch.float32; expected a tensor .n,. of integer labels"),
        (of(y=torch.zeros(39, dtype=torch.int64)), ValueError, r"x has shape \(40, 12\) and y \(39,\)"),
        (of(y=torch.full((40,), -1)), ValueError, "y holds -1; labels are integers from 0"),
        (of(y=torch.full((40,), 4)), ValueError, "y holds the label 4 and the model returns 4 logits"),
        (of(eps=-0.1), ValueError, "eps=-0.1: it must be >= 0"),
        (of(steps=0), ValueError, "steps=0: it must be >= 1"),
        (of(step_size=-1), ValueError, "step_size=-1: it must be >= 0"),
        (of(restarts=0), ValueError, "restarts=0: it must be >= 1"),
        (of(restarts=2, random_start=False), ValueError, "would start 2 times at the same point"),
        (of(norm="l1"), ValueError, "norm='l1': it must be one of 'linf', 'l2'"),
        (of(loss="dlr"), ValueError, "loss='dlr': it must be one of"),
        (of(keep="all"), ValueError, "keep='all': it must be one of"),
        (of(model=Cut()), ValueError, "no gradient by the input"),
        (of(model=nn.Linear(12, 1), y=torch.zeros(40, dtype=torch.int64)), ValueError, "K from 2"),
        (of(model=nn.Flatten(0)), ValueError, "expected logits"),
        (of(model=Broken()), ValueError, "gradient by its input is not a finite number"),
        (
            lambda: withstands_pgd(nn.Linear(3, 2), torch.rand(4, 3), torch.arange(4) % 2, 0.1),
            ValueError,
            "the model is in training mode; call its eval",
        ),
        (lambda: withstands_pgd(half_asleep(), torch.rand(4, 3), torch.arange(4), 0.1), ValueError, "denoising layers"),
        (
            lambda: withstands_pgd(nn.Flatten(0).eval(), torch.rand(4, 3), torch.arange(4), 0.0),
            ValueError,
            r"returns shape \(12,\) for 4 rows",
        ),
        (of(rows=0), ValueError, "rows=0: it must be >= 1"),
    ],
)
def test_mistakes_say_what_to_do(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
