"""JTT, EIIL, LfF and the mistakes of plain training: their limits, and loops that do the same slowly."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mechanisms._base.seeds import torch_generator
from mechanisms.robust._stack import SharedBatches
from mechanisms.robust.baselines import (
    eiil_environments,
    generalized_cross_entropy,
    jtt,
    jtt_repeats,
    lff,
    lff_weights,
)
from mechanisms.robust.mistakes import erm_errors, held_out_errors
from mechanisms.robust.training import Draws, fit_groups


def shortcut(n: int = 240, d: int = 6, seed: int = 0):
    """Inputs, labels and attributes: one coordinate says the class weakly, another the attribute strongly."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    a = np.where(rng.random(n) < 0.9, y, 1 - y)
    x = rng.normal(size=(n, d))
    x[:, 0] += 1.0 * (2 * y - 1)
    x[:, 1] += 2.0 * (2 * a - 1)
    return x, y, a


def mlp() -> nn.Module:
    double = {"dtype": torch.float64}
    return nn.Sequential(nn.Linear(6, 8, **double), nn.ReLU(), nn.Linear(8, 2, **double))


def weights_of(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


COMMON = {"make_model": mlp, "draws": Draws(lr=(0.05, 0.01), batch_size=(32, 16)), "steps": 40, "evaluate_every": 10}


def test_jtt_without_up_weighting_is_erm():
    x, y, _ = shortcut()
    plain = fit_groups(x, y, y, x, y, y, learner="erm", **COMMON)
    twice = jtt(x, y, x, y, y, lambda_up=1, first_steps=5, **COMMON)
    assert torch.equal(weights_of(plain.model), weights_of(twice.model))
    assert np.array_equal(plain.worst_group_accuracy, twice.worst_group_accuracy)


def test_jtt_is_erm_on_the_set_with_its_errors_repeated():
    x, y, _ = shortcut()
    settings, full = Draws(lr=(0.01,)), {**COMMON, "draws": Draws(lr=(0.05,), batch_size=(None,))}
    errors = erm_errors(x, y, make_model=mlp, steps=5, settings=settings).numpy()
    assert 0 < errors.sum() < len(y)
    rows = np.repeat(np.arange(len(y)), np.where(errors == 1, 6, 1))
    repeated = fit_groups(x[rows], y[rows], y[rows], x, y, y, learner="erm", **full)
    twice = jtt(x, y, x, y, y, lambda_up=6, first_steps=5, settings=settings, **full)
    assert torch.allclose(weights_of(repeated.model), weights_of(twice.model), atol=1e-12)


def test_jtt_repeats_only_errors():
    assert jtt_repeats(torch.tensor([0, 1, 1]), 7).tolist() == [1, 7, 7]


def test_errors_are_those_of_a_plain_training_loop():
    x, y, _ = (torch.from_numpy(part) for part in shortcut())
    torch.manual_seed(3)
    model = mlp()
    rows = SharedBatches(len(y), [32], torch_generator(2, "batches"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(30):
        index = rows.draw()
        optimizer.zero_grad()
        F.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()

    def same_start() -> nn.Module:
        fresh = mlp()
        fresh.load_state_dict(start)
        return fresh

    errors = erm_errors(x, y, make_model=same_start, steps=30, settings=Draws(lr=(0.05,), batch_size=(32,)), seed=2)
    assert torch.equal(errors, (model(x).argmax(1) != y).long())


@pytest.mark.parametrize("find", [erm_errors, held_out_errors])
def test_several_steps_of_one_training_equal_trainings_of_each_length(find):
    x, y, _ = shortcut()
    common = {"make_model": mlp, "settings": Draws(lr=(0.05,), batch_size=(32,)), "seed": 1}
    together = find(x, y, steps=[4, 9, 30], **common)
    assert together.shape == (3, len(y))
    for row, steps in zip(together, (4, 9, 30), strict=True):
        assert torch.equal(row, find(x, y, steps=steps, **common))


def test_random_labels_can_be_learned_by_heart_but_not_held_out():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(100, 300, generator=generator), torch.randint(2, (100,), generator=generator)
    common = {"make_model": lambda: nn.Linear(300, 2), "steps": 200, "settings": Draws(lr=(0.05,), batch_size=(None,))}
    assert erm_errors(x, y, **common).sum() == 0
    # 100 fair coins: below 20 or above 80 has probability 1e-9.
    assert 20 <= held_out_errors(x, y, **common).sum() <= 80


def test_eiil_separates_examples_that_a_shortcut_explains_from_those_it_does_not():
    agrees = torch.arange(200) % 10 > 0
    y = torch.arange(200) // 100
    predicted = torch.where(agrees, y, 1 - y)
    environments = eiil_environments(3.0 * F.one_hot(predicted, 2).float(), y)
    assert torch.equal(environments == environments[1], agrees)


def test_eiil_raises_the_violation_of_invariance():
    generator = torch.Generator().manual_seed(0)
    logits, y = 2 * torch.randn(300, 3, generator=generator), torch.randint(3, (300,), generator=generator)
    slopes = (logits.softmax(1) * logits).sum(1) - logits.gather(1, y[:, None]).squeeze(1)

    def violation(q: torch.Tensor) -> float:
        return float((q * slopes).mean() ** 2 + ((1 - q) * slopes).mean() ** 2)

    found = eiil_environments(logits, y).double()
    random = max(violation(torch.randint(2, (300,), generator=generator)) for _ in range(200))
    # The best partition is by the sign of the slope, because the objective is convex in q.
    best = violation((slopes > 0).float())
    assert random < violation(found) <= best * (1 + 1e-6)
    assert violation(found) > 0.95 * best


def test_eiil_depends_on_its_seed_alone():
    logits, y = torch.randn(50, 2, generator=torch.Generator().manual_seed(1)), torch.arange(50) % 2
    assert torch.equal(eiil_environments(logits, y, seed=5), eiil_environments(logits, y, seed=5))


def test_generalized_cross_entropy_lies_between_cross_entropy_and_the_probability_of_error():
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(20) % 4
    small = generalized_cross_entropy(logits, labels, q=1e-9)
    assert torch.allclose(small, F.cross_entropy(logits, labels, reduction="none"), rtol=1e-6)
    p = logits.softmax(1).gather(1, labels[:, None]).squeeze(1)
    assert torch.allclose(generalized_cross_entropy(logits, labels, q=1.0), 1 - p)
    assert torch.allclose(generalized_cross_entropy(logits, labels, q=0.7), (1 - p**0.7) / 0.7)


def test_lff_weights_lie_between_zero_and_one_and_do_not_depend_on_the_scale_of_a_class():
    generator = torch.Generator().manual_seed(0)
    biased, debiased = torch.rand(2, 60, generator=generator, dtype=torch.float64)
    labels = torch.arange(60) % 3
    weights = lff_weights(biased, debiased, labels)
    assert 0 <= weights.min() <= weights.max() <= 1
    scale = torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)[labels]
    assert torch.allclose(weights, lff_weights(biased * scale, debiased, labels))
    for c in range(3):
        b, d = biased[labels == c] / biased[labels == c].max(), debiased[labels == c] / debiased[labels == c].max()
        assert torch.allclose(weights[labels == c], b / (b + d), rtol=1e-6)


def test_losses_of_zero_give_lff_finite_weights():
    zero = torch.zeros(4)
    assert lff_weights(zero, zero, torch.tensor([0, 0, 1, 1])).tolist() == [0.0] * 4


@pytest.mark.parametrize("size", [16, None])
def test_lff_equals_two_networks_in_a_plain_loop(size):
    x, y, _ = (torch.from_numpy(part) for part in shortcut(n=60))
    starts = []

    def remembered() -> nn.Module:
        starts.append(mlp())
        return starts[-1]

    draws = Draws(lr=(0.05,), weight_decay=(1e-3,), batch_size=(size,))
    common = {"draws": draws, "steps": 20, "evaluate_every": 20, "seed": 3}
    fit = lff(x, y, x, y, y, make_model=remembered, **common)

    debiased, biased = starts
    rows = SharedBatches(60, [size or 60], torch_generator(3, "batches"))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3) for m in (debiased, biased)]
    average: list[dict[int, float]] = [{}, {}]
    for _ in range(20):
        index = rows.draw()
        target = y[index]
        losses = [F.cross_entropy(m(x[index]), target, reduction="none") for m in (debiased, biased)]
        for seen, loss in zip(average, losses, strict=True):
            for i, value in zip(index.tolist(), loss.tolist(), strict=True):
                seen[i] = 0.7 * seen[i] + 0.3 * value if i in seen else value
        peak = [[max(v for i, v in seen.items() if y[i] == c) for c in (0, 1)] for seen in average]
        d, b = (
            torch.tensor([seen[i] / top[y[i]] for i in index.tolist()], dtype=torch.float64)
            for seen, top in zip(average, peak, strict=True)
        )
        objectives = (b / (b + d) * losses[0]).mean(), generalized_cross_entropy(biased(x[index]), target).mean()
        for objective, optimizer in zip(objectives, optimizers, strict=True):
            optimizer.zero_grad()
            objective.backward()
            optimizer.step()
    assert torch.allclose(weights_of(fit.model), weights_of(debiased), atol=1e-6)


def test_lff_chooses_among_debiased_networks_only():
    x, y, _ = shortcut()
    fit = lff(x, y, x, y, y, **COMMON)
    assert fit.worst_group_accuracy.shape == (4, 2)
    prediction = fit.model(torch.from_numpy(x)).argmax(1).numpy()
    assert min((prediction == y)[y == c].mean() for c in (0, 1)) == fit.validation_curve.max()


def test_same_seed_same_result():
    x, y, _ = shortcut()
    for method in (jtt, lff):
        first, second = (method(x, y, x, y, y, seed=6, **COMMON) for _ in range(2))
        assert torch.equal(weights_of(first.model), weights_of(second.model))


@pytest.mark.user_input
class TestMistakes:
    """Wrong input to the public doors."""

    def test_repeats_need_marks_and_a_whole_factor(self):
        with pytest.raises(ValueError, match="expected 0/1"):
            jtt_repeats([0, 2], 5)
        with pytest.raises(ValueError, match="at least 1"):
            jtt_repeats([0, 1], 0)

    def test_eiil_checks_logits_and_labels(self):
        with pytest.raises(ValueError, match="finite"):
            eiil_environments(torch.tensor([[float("nan"), 0.0]]), [0])
        with pytest.raises(ValueError, match="2 classes"):
            eiil_environments(torch.zeros(1, 2), [2])
        with pytest.raises(ValueError, match="3 entries for 1"):
            eiil_environments(torch.zeros(1, 2), [0, 1, 1])

    @pytest.mark.parametrize("bad", [{"q": 0.0}, {"q": 1.5}, {"decay": 1.0}])
    def test_lff_checks_its_settings(self, bad):
        x, y, _ = shortcut(n=20)
        with pytest.raises(ValueError, match="expected q above 0"):
            lff(x, y, x, y, y, **bad, **COMMON)

    def test_losses_of_different_lengths_are_refused(self):
        with pytest.raises(ValueError, match="three times"):
            lff_weights(torch.zeros(3), torch.zeros(2), torch.zeros(3, dtype=torch.long))
        with pytest.raises(ValueError, match="q is 0"):
            generalized_cross_entropy(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), q=0)

    @pytest.mark.parametrize("find", [erm_errors, held_out_errors])
    def test_errors_need_ascending_steps_and_one_draw(self, find):
        x, y, _ = shortcut(n=20)
        for steps in (0, [], [5, 5], [9, 2]):
            with pytest.raises(ValueError, match="ascending"):
                find(x, y, make_model=mlp, steps=steps)
        with pytest.raises(ValueError, match="2 draws"):
            find(x, y, make_model=mlp, steps=5, settings=Draws(lr=(0.1, 0.2)))
        with pytest.raises(ValueError, match="y has 19 entries"):
            find(x, y[:19], make_model=mlp, steps=5)
