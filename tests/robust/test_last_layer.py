"""AFR and DFR: closed forms, limits, and layers that fit where they came from."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from mechanisms._base.seeds import torch_generator
from mechanisms.robust.groups import worst_group_accuracy
from mechanisms.robust.last_layer import afr, afr_weights, dfr, last_layer_features
from mechanisms.robust.training import Draws


def shortcut(n: int = 240, d: int = 6, seed: int = 0, balanced: bool = False):
    """Inputs, labels and attributes: one coordinate says the class, another the attribute, which mostly agrees."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    a = (np.arange(n) // 2) % 2 if balanced else np.where(rng.random(n) < 0.9, y, 1 - y)
    x = rng.normal(size=(n, d))
    x[:, 0] += 1.0 * (2 * y - 1)
    x[:, 1] += 2.0 * (2 * a - 1)
    return x, y, a


def mlp() -> nn.Module:
    double = {"dtype": torch.float64}
    return nn.Sequential(nn.Linear(6, 8, **double), nn.ReLU(), nn.Linear(8, 2, **double))


COMMON = {"make_model": mlp, "settings": Draws(lr=(0.05,), batch_size=(32,)), "steps": 40, "evaluate_every": 10}


def test_gamma_zero_balances_the_classes_alone():
    weights = afr_weights(torch.rand(10, generator=torch.Generator().manual_seed(0)), [0] * 8 + [1] * 2, gamma=0.0)
    assert torch.allclose(weights[:8], torch.full((8,), 1 / 16))
    assert torch.allclose(weights[8:], torch.full((2,), 1 / 4))


def test_afr_weights_are_the_published_formula():
    p, y = np.random.default_rng(0).random(50), np.arange(50) % 3
    expected = np.exp(-4.0 * p) / np.bincount(y)[y]
    weights = afr_weights(p, y, gamma=4.0).numpy()
    assert weights == pytest.approx(expected / expected.sum(), rel=1e-12)


def test_enormous_gamma_puts_all_weight_on_the_worst_example():
    assert afr_weights([0.9, 0.2, 0.5], [0, 0, 1], gamma=1e6).tolist() == [0.0, 1.0, 0.0]


def test_afr_trains_the_last_layer_and_nothing_else():
    x, y, a = shortcut()
    fit = afr(x, y, x, y, 2 * y + a, retrain_steps=30, **COMMON)
    assert torch.equal(fit.model[0].weight, fit.erm[0].weight)
    assert not torch.equal(fit.model[2].weight, fit.erm[2].weight)
    prediction = fit.model(torch.from_numpy(x)).argmax(1)
    assert worst_group_accuracy(y, prediction, 2 * y + a) == pytest.approx(fit.worst_group_accuracy.max())
    assert (fit.gamma, fit.penalty) in fit.settings
    assert fit.worst_group_accuracy.shape == (3, len(fit.settings))


def test_afr_equals_a_plain_loop_over_the_held_out_part():
    x, y, a = (torch.from_numpy(part) for part in shortcut())
    fit = afr(
        x, y, x, y, 2 * y + a, gammas=[3.0], penalties=[0.2], retrain_steps=25, retrain_lr=0.05,
        **{**COMMON, "evaluate_every": 25},
    )  # fmt: skip
    rows = torch.randperm(240, generator=torch_generator(0, "afr"))[:48]
    features, start = last_layer_features(fit.erm, x[rows])
    p = start(features).softmax(1).gather(1, y[rows, None]).squeeze(1).detach()
    weights = torch.exp(-3.0 * p) / torch.bincount(y[rows])[y[rows]]
    weights = weights / weights.sum()
    head = nn.Linear(8, 2, dtype=torch.float64)
    head.load_state_dict(start.state_dict())
    optimizer = torch.optim.SGD(head.parameters(), lr=0.05, momentum=0.9)
    for _ in range(25):
        optimizer.zero_grad()
        away = sum(((h - s.detach()) ** 2).sum() for h, s in zip(head.parameters(), start.parameters(), strict=True))
        ((weights * F.cross_entropy(head(features), y[rows], reduction="none")).sum() + 0.2 * away).backward()
        optimizer.step()
    assert torch.allclose(fit.model[2].weight, head.weight, atol=1e-10)
    assert torch.allclose(fit.model[2].bias, head.bias, atol=1e-10)


def test_a_strong_penalty_keeps_the_plain_last_layer():
    x, y, a = shortcut()
    settings = {"gammas": [8.0], "retrain_steps": 100, **COMMON}
    free = afr(x, y, x, y, 2 * y + a, penalties=[0.0], **settings)
    held = afr(x, y, x, y, 2 * y + a, penalties=[20.0], **settings)
    moved = [(fit.model[2].weight - fit.erm[2].weight).norm().item() for fit in (free, held)]
    assert moved[1] < 0.1 * moved[0]


def test_a_linear_model_is_its_own_last_layer():
    model, x = nn.Linear(6, 2), torch.randn(5, 6)
    features, layer = last_layer_features(model, x)
    assert torch.equal(features, x)
    assert layer is model
    assert not layer._forward_pre_hooks


def test_dfr_on_balanced_groups_is_scikit_learns_l1_regression_on_raw_inputs():
    x, y, a = shortcut(balanced=True)
    x = 3 + 5 * x
    head = dfr(x, y, 2 * y + a, C=[0.3], draws=2)
    scaled = StandardScaler().fit_transform(x)
    reference = LogisticRegression(C=0.3, l1_ratio=1.0, solver="liblinear", max_iter=1000).fit(scaled, y)
    logits = head(torch.from_numpy(x).float()).detach().numpy()
    assert logits[:, 1] - logits[:, 0] == pytest.approx(reference.decision_function(scaled), abs=1e-2)


def test_dfr_repairs_the_worst_group():
    x, y, a = shortcut(n=1000, seed=1)
    x_test, y_test, a_test = shortcut(n=4000, seed=2)
    plain = LogisticRegression().fit(x, y).predict(x_test)
    head = dfr(x, y, 2 * y + a)
    prediction = head(torch.from_numpy(x_test).float()).argmax(1)
    groups = 2 * y_test + a_test
    assert worst_group_accuracy(y_test, prediction, groups) > worst_group_accuracy(y_test, plain, groups) + 0.1


def test_dfr_takes_many_classes_constant_columns_and_groups_of_any_name():
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = np.concatenate([rng.normal(size=(300, 4)) + 4 * np.eye(3, 4)[y], np.ones((300, 1))], 1)
    head = dfr(x, y, 10 * y + 5, C=[1.0], draws=2)
    assert head.weight.shape == (3, 5)
    assert (head(torch.from_numpy(x).float()).argmax(1).numpy() == y).mean() > 0.9


def test_same_seed_same_layers():
    x, y, a = shortcut()
    heads = [dfr(x, y, 2 * y + a, seed=4, draws=3) for _ in range(2)]
    assert torch.equal(heads[0].weight, heads[1].weight)
    fits = [afr(x, y, x, y, y, retrain_steps=10, seed=4, **COMMON) for _ in range(2)]
    assert torch.equal(fits[0].model[2].weight, fits[1].model[2].weight)


@pytest.mark.user_input
class TestMistakes:
    """Wrong input to the public doors."""

    def test_afr_weights_need_probabilities(self):
        with pytest.raises(ValueError, match="from 0 to 1"):
            afr_weights([0.5, 1.2], [0, 1], 1.0)
        with pytest.raises(ValueError, match="gamma is -1"):
            afr_weights([0.5], [0], -1.0)
        with pytest.raises(ValueError, match="y has 3"):
            afr_weights([0.5], [0, 1, 1], 1.0)

    def test_a_model_without_a_last_linear_layer_is_refused(self):
        with pytest.raises(ValueError, match=r"no nn\.Linear"):
            last_layer_features(nn.ReLU(), torch.ones(2, 3))
        with pytest.raises(ValueError, match="no last layer to retrain"):
            last_layer_features(nn.Sequential(nn.Linear(3, 2), nn.Softmax(1)), torch.ones(2, 3))

    @pytest.mark.parametrize("bad", [{"gammas": []}, {"penalties": [-1.0]}, {"held_out": 1.0}, {"retrain_steps": 0}])
    def test_afr_checks_its_settings(self, bad):
        x, y, _ = shortcut(n=40)
        with pytest.raises(ValueError, match=r"expected|at least"):
            afr(x, y, x, y, y, **bad, **COMMON)

    def test_dfr_checks_its_examples(self):
        x, y, a = shortcut(n=40)
        with pytest.raises(ValueError, match="finite"):
            dfr(np.full((40, 2), np.nan), y, a)
        with pytest.raises(ValueError, match="classes"):
            dfr(x, np.zeros(40, int), a)
        with pytest.raises(ValueError, match="at least one draw"):
            dfr(x, y, a, draws=0)
        with pytest.raises(ValueError, match=r"groups \[7\] have one example"):
            dfr(x, y, np.where(np.arange(40) == 0, 7, y))
        with pytest.raises(ValueError, match="let groups contain the label"):
            dfr(x, np.where(np.arange(40) == 0, 1, 0), (np.arange(40) > 30).astype(int), C=[1.0])
