"""The trainer on groups: side by side is one by one, limits are ERM, the worst validation group selects."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn
from torch.nn import functional as F

from mechanisms._base.seeds import torch_generator
from mechanisms.robust._loop import Selection, _balanced_rows, batches, build_stack
from mechanisms.robust._stack import ModelStack, SharedBatches
from mechanisms.robust.groups import GroupDROLoss, group_accuracies, worst_group_accuracy
from mechanisms.robust.training import RANGES, Draws, GroupFit, draw_hyperparameters, fit_groups

LEARNERS = ("erm", "groupdro", "rwg", "subg", "irm")


def shortcut(n: int = 240, d: int = 6, classes: int = 2, seed: int = 0, gap: float = 2.0, core: float = 1.0):
    """Inputs, labels and attributes: one coordinate says the class weakly, another the attribute strongly."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    a = np.where(rng.random(n) < 0.9, y % 2, 1 - y % 2)
    x = rng.normal(size=(n, d))
    x[:, 0] += core * (2 * y - classes + 1)
    x[:, 1] += gap * (2 * a - 1)
    return x, y, a


def zeros(d: int = 6, classes: int = 2, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(d, classes, bias=bias, dtype=torch.float64)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def mlp(d: int = 6, classes: int = 2) -> nn.Module:
    double = {"dtype": torch.float64}
    return nn.Sequential(nn.Linear(d, 8, **double), nn.ReLU(), nn.Linear(8, classes, **double))


def train(learner: str = "groupdro", make_model=zeros, **settings) -> GroupFit:
    x, y, a = shortcut()
    x_val, y_val, a_val = shortcut(n=120, seed=1)
    settings = {"steps": 40, "evaluate_every": 10, "draws": Draws(lr=(0.05,), batch_size=(32,)), **settings}
    if learner == "irm":
        settings["environments"] = a
    return fit_groups(
        x, y, 2 * y + a, x_val, y_val, 2 * y_val + a_val, make_model=make_model, learner=learner, **settings
    )


def weights_of(fit: GroupFit) -> torch.Tensor:
    return nn.utils.parameters_to_vector(fit.model.parameters()).detach()


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize(("make_model", "optimizer"), [(zeros, "sgd"), (mlp, "adam")])
def test_draws_side_by_side_equal_draws_one_by_one(learner, make_model, optimizer):
    lr, decay, eta, weight = (0.1, 0.01, 0.03), (0.0, 1e-3, 1e-2), (0.5, 0.1, 0.9), (1.0, 10.0, 3.0)

    def draws(chosen: slice) -> Draws:
        return Draws(lr[chosen], decay[chosen], (32,), eta[chosen], weight[chosen], (5,))

    def seeded_model() -> nn.Module:
        torch.manual_seed(1)  # the same start for every draw, wherever it stands
        return make_model()

    together = train(learner, seeded_model, draws=draws(slice(None)), optimizer=optimizer)
    alone = [train(learner, seeded_model, draws=draws(slice(i, i + 1)), optimizer=optimizer) for i in range(3)]
    for i, fit in enumerate(alone):
        assert np.array_equal(together.worst_group_accuracy[:, i], fit.worst_group_accuracy[:, 0])
        assert np.array_equal(together.average_accuracy[:, i], fit.average_accuracy[:, 0])
    assert together.step == alone[together.chosen].step
    assert torch.allclose(weights_of(together), weights_of(alone[together.chosen]), atol=1e-10)


def test_full_batch_groupdro_equals_a_plain_loop():
    x, y, a = (torch.from_numpy(part) for part in shortcut())
    model, objective = zeros(bias=False), GroupDROLoss(4, eta=0.1, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        objective(F.cross_entropy(model(x), y, reduction="none"), 2 * y + a).backward()
        optimizer.step()
    settings = Draws(lr=(1e-2,), weight_decay=(0.0,), batch_size=(None,), eta=(0.1,))
    fit = train("groupdro", lambda: zeros(bias=False), draws=settings, momentum=0.0, steps=60, evaluate_every=60)
    assert torch.allclose(weights_of(fit), model.weight.detach().flatten(), atol=1e-12)


def test_irm_equals_a_plain_loop_over_environments():
    x, y, a = (torch.from_numpy(part) for part in shortcut())
    model = zeros()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    for step in range(30):
        terms, penalties = [], []
        for e in (0, 1):
            z, t = model(x[a == e]), y[a == e]
            terms.append(F.cross_entropy(z, t))
            s = torch.ones((), dtype=torch.float64, requires_grad=True)
            first, second = (
                torch.autograd.grad(F.cross_entropy(s * z[i::2], t[i::2]), s, create_graph=True)[0] for i in (0, 1)
            )
            penalties.append(first * second)
        optimizer.zero_grad()
        (sum(terms) / 2 + (7.0 if step >= 10 else 1.0) * sum(penalties) / 2).backward()
        optimizer.step()
    settings = Draws((1e-2,), (0.0,), (None,), irm_weight=(7.0,), irm_anneal=(10,))
    fit = train("irm", draws=settings, steps=30, evaluate_every=30)
    expected = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert torch.allclose(weights_of(fit), expected, atol=1e-10)


def test_minibatch_erm_equals_torch_optim_on_the_same_batches():
    x, y, _ = (torch.from_numpy(part) for part in shortcut())
    rows = SharedBatches(len(y), [32], torch_generator(4, "batches"))
    model = zeros()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-3)
    for _ in range(40):
        index = rows.draw()
        optimizer.zero_grad()
        F.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()
    settings = Draws((1e-2,), (1e-3,), (32,))
    fit = train("erm", draws=settings, optimizer="adam", seed=4, evaluate_every=40)
    expected = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert torch.allclose(weights_of(fit), expected, atol=1e-10)


def test_groupdro_with_one_group_is_erm():
    x, y, _ = shortcut()
    one = np.full(len(y), 7)
    common = {"make_model": mlp, "draws": Draws(lr=(0.05,), batch_size=(32,), eta=(0.9,)), "steps": 40}
    dro = fit_groups(x, y, one, x, y, y, learner="groupdro", **common)
    erm = fit_groups(x, y, one, x, y, y, learner="erm", **common)
    assert torch.allclose(weights_of(dro), weights_of(erm), atol=1e-12)


@pytest.mark.parametrize("learner", ["rwg", "subg"])
def test_balanced_groups_make_balancing_learners_erm(learner):
    x, y, _ = shortcut()
    common = {"make_model": mlp, "draws": Draws(lr=(0.05,), batch_size=(None,)), "steps": 40}
    balanced = fit_groups(x, y, y, x, y, y, learner=learner, **common)
    erm = fit_groups(x, y, y, x, y, y, learner="erm", **common)
    assert torch.allclose(weights_of(balanced), weights_of(erm), atol=1e-12)


def test_a_step_of_zero_leaves_the_same_initial_weights_for_every_learner():
    still = {"draws": Draws(lr=(0.0,), batch_size=(32,)), "steps": 3, "make_model": mlp}
    starts = [weights_of(train(learner, **still)) for learner in LEARNERS]
    assert all(torch.equal(starts[0], start) for start in starts)
    assert not torch.equal(starts[0], weights_of(train("erm", seed=1, **still)))


def test_initial_weights_of_a_draw_do_not_depend_on_how_many_there_are():
    two, three = (build_stack(mlp, count, 5, torch.device("cpu")) for count in (2, 3))
    for name, value in two.parameters.items():
        assert torch.equal(value, three.parameters[name][:2])
        assert not torch.equal(value[0], value[1]) or "bias" in name


@pytest.mark.parametrize("learner", LEARNERS)
def test_same_seed_same_model_and_the_callers_random_numbers_untouched(learner):
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = train(learner, mlp, seed=3, draws=None)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    second = train(learner, mlp, seed=3, draws=None)
    assert torch.equal(weights_of(first), weights_of(second))
    assert np.array_equal(first.worst_group_accuracy, second.worst_group_accuracy)


def test_dropout_follows_the_seed():
    def noisy() -> nn.Module:
        return nn.Sequential(nn.Dropout(0.5), zeros())

    fits = [train("erm", noisy, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(weights_of(fits[0]), weights_of(fits[1]))
    assert not torch.equal(weights_of(fits[0]), weights_of(fits[2]))


def test_names_of_groups_do_not_matter():
    x, y, a = shortcut()
    names = np.array([90, 3, 17, 4])
    plain, renamed = (
        fit_groups(x, y, g, x, y, g, make_model=mlp, draws=Draws(lr=(0.05,), batch_size=(32,)), steps=30)
        for g in (2 * y + a, names[2 * y + a])
    )
    assert torch.allclose(weights_of(plain), weights_of(renamed), atol=1e-12)


@pytest.mark.parametrize("learner", LEARNERS)
def test_many_classes_and_groups_train(learner):
    x, y, a = shortcut(n=400, classes=5, core=3.0)
    groups = 2 * y + a
    keep = np.isin(groups, [g for g, size in zip(*np.unique(groups, return_counts=True), strict=True) if size > 1])
    x, y, a, groups = x[keep], y[keep], a[keep], groups[keep]
    fit = fit_groups(
        x, y, groups, x, y, groups, make_model=lambda: zeros(classes=5), learner=learner, steps=300,
        draws=Draws(lr=(0.1,), batch_size=(64,), irm_weight=(1.0,)), environments=a if learner == "irm" else None,
    )  # fmt: skip
    prediction = fit.model(torch.from_numpy(x)).argmax(1)
    assert worst_group_accuracy(y, prediction, groups) == pytest.approx(fit.validation_curve.max())
    assert (prediction.numpy() == y).mean() > 0.8


@pytest.mark.parametrize("learner", LEARNERS)
def test_batches_of_one_train(learner):
    assert torch.isfinite(weights_of(train(learner, draws=Draws(lr=(0.01,), batch_size=(1,))))).all()


def test_groups_repair_what_plain_training_loses():
    x, y, a = shortcut(n=4000, d=10, seed=2, gap=3.0, core=1.5)
    x_val, y_val, a_val = shortcut(n=1000, d=10, seed=3, gap=3.0, core=1.5)
    x_test, y_test, a_test = shortcut(n=4000, d=10, seed=4, gap=3.0, core=1.5)
    worst = {}
    for learner in ("erm", "groupdro", "rwg", "subg"):
        fit = fit_groups(
            x, y, 2 * y + a, x_val, y_val, 2 * y_val + a_val, make_model=lambda: zeros(10), learner=learner,
            draws=Draws(lr=(0.01, 0.03), batch_size=(64, 128)), steps=500,
        )  # fmt: skip
        prediction = fit.model(torch.from_numpy(x_test)).argmax(1)
        worst[learner] = worst_group_accuracy(y_test, prediction, 2 * y_test + a_test)
    assert min(worst["groupdro"], worst["rwg"], worst["subg"]) > worst["erm"] + 0.05


def test_the_chosen_model_is_the_one_of_the_curve():
    x_val, y_val, a_val = shortcut(n=120, seed=1)
    fit = train("groupdro", draws=Draws(lr=(0.1, 0.01), batch_size=(16,)), evaluate_every=7)
    assert fit.steps.tolist() == [7, 14, 21, 28, 35, 40]
    prediction = fit.model(torch.from_numpy(x_val)).argmax(1)
    at = fit.steps.tolist().index(fit.step)
    assert fit.worst_group_accuracy[at, fit.chosen] == fit.validation_curve.max() == fit.worst_group_accuracy.max()
    assert worst_group_accuracy(y_val, prediction, 2 * y_val + a_val) == fit.validation_curve.max()
    assert fit.average_accuracy[at, fit.chosen] == pytest.approx((prediction.numpy() == y_val).mean())
    assert fit.hyperparameters == fit.draws[fit.chosen]
    assert not fit.model.training


def checkpoints(*weights: list[float]) -> Selection:
    """Selection among one-dimensional classifiers sign(w x) with the given weights, one list per checkpoint."""
    stack = ModelStack([nn.Linear(1, 2, bias=False) for _ in weights[0]])
    x, y = torch.tensor([[1.0], [1.0], [-1.0], [1.0]]), torch.tensor([1, 1, 0, 0])
    selection = Selection(stack, x, y, [0, 0, 1, 1])
    for step, row in enumerate(weights):
        with torch.no_grad():
            stack.parameters["weight"].copy_(torch.tensor([[[0.0], [w]] for w in row]))
        selection(step)
    return selection


def test_the_last_of_equally_good_checkpoints_is_kept():
    # w > 0 is right on group 0 and on half of group 1; w < 0 on half of group 1 alone.
    chosen, checkpoint, model = checkpoints([1.0], [2.0], [-1.0]).choose()
    assert (chosen, checkpoint, model.weight[1].item()) == (0, 1, 2.0)


def test_draws_with_equal_worst_groups_are_told_apart_by_average_accuracy_then_order():
    stack = ModelStack([nn.Linear(1, 2, bias=False) for _ in range(3)])
    x, y = torch.tensor([[1.0], [1.0], [-1.0]]), torch.tensor([1, 1, 1])
    selection = Selection(stack, x, y, [0, 0, 1])
    with torch.no_grad():
        # Each fails one group entirely: the first the larger one, the others the smaller one.
        stack.parameters["weight"].copy_(torch.tensor([[[0.0], [w]] for w in (-1.0, 1.0, 2.0)]))
    selection(1)
    assert selection.choose()[0] == 1


def test_labels_as_groups_select_by_the_worst_class():
    x, y, _ = shortcut()
    fit = fit_groups(x, y, y, x, y, y, make_model=zeros, learner="erm", steps=20)
    accuracies = group_accuracies(y, fit.model(torch.from_numpy(x)).argmax(1), y)
    assert min(accuracies.values()) == fit.validation_curve.max()


def test_repeating_every_example_once_changes_nothing_and_never_drops_an_example():
    x, y, a = shortcut()
    keep = (np.arange(len(y)) % 3 > 0).astype(int)
    full = Draws(lr=(0.05,), batch_size=(None,))
    assert torch.equal(weights_of(train("erm", mlp)), weights_of(train("erm", mlp, repeats=np.ones_like(y))))
    for learner in ("erm", "groupdro"):
        dropped = train(learner, mlp, repeats=keep, draws=full)
        x_val, y_val, a_val = shortcut(n=120, seed=1)
        kept = keep == 1
        subset = fit_groups(
            x[kept], y[kept], (2 * y + a)[kept], x_val, y_val, 2 * y_val + a_val, make_model=mlp, learner=learner,
            draws=full, steps=40, evaluate_every=10,
        )  # fmt: skip
        assert torch.allclose(weights_of(dropped), weights_of(subset), atol=1e-12)


def test_repeated_examples_are_drawn_as_often_as_they_are_repeated():
    stack = build_stack(zeros, 1, 0, torch.device("cpu"))
    draw, _ = batches(np.array([1, 3, 0, 2]), (2,), 0, stack)
    drawn = torch.cat([draw() for _ in range(3 * 10)])
    assert torch.bincount(drawn, minlength=4).tolist() == [10, 30, 0, 20]


def test_reweighted_batches_draw_every_group_and_member_equally_often():
    codes = np.repeat([4, 0, 9], [2, 30, 8])
    draw = _balanced_rows(codes, 50, torch.Generator().manual_seed(0))
    drawn = torch.cat([draw() for _ in range(800)])
    for group in (4, 0, 9):
        count = int((codes[drawn] == group).sum())
        assert binomtest(count, len(drawn), 1 / 3).pvalue > 1e-7
    assert binomtest(int((drawn == 0).sum()), len(drawn), 1 / 6).pvalue > 1e-7


def test_a_small_batch_beside_one_larger_than_the_data_still_sees_every_example():
    stack = build_stack(zeros, 2, 0, torch.device("cpu"))
    draw, counted = batches(np.ones(20, np.int64), (64, 4), 0, stack)
    assert counted.sum(1).tolist() == [20, 4]
    assert len({int(row) for _ in range(60) for row in draw()[:4]}) == 20


def test_draws_depend_on_the_seed_alone_and_stay_in_their_ranges():
    first, second = draw_hyperparameters(50, generator=3), draw_hyperparameters(50, generator=3)
    assert first == second
    assert first != draw_hyperparameters(50, generator=4)
    for name, (low, high) in RANGES.items():
        values = getattr(first, name)
        assert len(values) == 50
        assert low <= min(values) <= max(values) <= high
    assert all(isinstance(size, int) for size in first.batch_size + first.irm_anneal)


def test_narrowing_one_range_leaves_the_other_settings_as_they_were():
    wide, narrow = draw_hyperparameters(4), draw_hyperparameters(4, {"lr": (0.1, 0.1)})
    assert narrow.lr == (0.1,) * 4
    assert narrow.eta == wide.eta
    assert narrow.batch_size == wide.batch_size


def test_progress_hears_of_every_checkpoint():
    heard = []
    train("groupdro", steps=25, progress=lambda step, total, loss: heard.append((step, total, loss)))
    assert [(step, total) for step, total, _ in heard] == [(10, 25), (20, 25), (25, 25)]
    assert all(np.isfinite(loss) for *_, loss in heard)


def test_divergence_is_said():
    with pytest.warns(UserWarning, match="diverged"):
        train("erm", draws=Draws(lr=(1e200,), batch_size=(32,)))


def test_token_ids_reach_an_embedding_as_they_are():
    tokens, y = torch.arange(40).view(20, 2) % 7, torch.arange(20) % 2

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(7, 4), nn.Linear(4, 2)

        def forward(self, ids):
            return self.head(self.words(ids).mean(1))

    fit = fit_groups(tokens, y, y, tokens, y, y, make_model=Bag, steps=5)
    assert fit.model(tokens).shape == (20, 2)


@pytest.mark.user_input
class TestMistakes:
    """Wrong input to the public doors."""

    def fit(self, **changes):
        x, y, _ = shortcut(n=20)
        given = {"x": x, "y": y, "groups": y, "x_val": x, "y_val": y, "groups_val": y, "make_model": zeros, **changes}
        return fit_groups(**given)

    @pytest.mark.parametrize("name", ["x", "x_val"])
    def test_inputs_that_are_not_finite_or_not_rows_are_refused(self, name):
        bad = shortcut(n=20)[0]
        bad[3, 2] = np.nan
        with pytest.raises(ValueError, match=f"{name} holds NaN"):
            self.fit(**{name: bad})
        with pytest.raises(ValueError, match=f"{name} has shape"):
            self.fit(**{name: bad[:, 0]})
        with pytest.raises(ValueError, match=f"{name} has shape"):
            self.fit(**{name: bad[:0]})

    @pytest.mark.parametrize("name", ["y", "y_val", "groups", "groups_val"])
    @pytest.mark.parametrize("bad", [np.arange(19), np.arange(20) - 1, np.arange(20) + 0.5, np.full(20, "cow")])
    def test_labels_and_groups_that_do_not_fit_are_refused(self, name, bad):
        with pytest.raises(ValueError, match=name):
            self.fit(**{name: bad})

    @pytest.mark.parametrize("name", ["y", "y_val"])
    def test_labels_beyond_the_models_outputs_show_both_shapes(self, name):
        with pytest.raises(ValueError, match=rf"returns shape \(1, 2\).*{name} holds labels up to 4"):
            self.fit(**{name: np.arange(20) % 5})

    def test_an_unknown_learner_is_refused(self):
        with pytest.raises(ValueError, match="learner is 'dro'"):
            self.fit(learner="dro")

    def test_environments_belong_to_irm(self):
        with pytest.raises(ValueError, match="environments"):
            self.fit(learner="irm")
        with pytest.raises(ValueError, match="environments"):
            self.fit(learner="erm", environments=np.zeros(20, int))
        with pytest.raises(ValueError, match="environments has 3"):
            self.fit(learner="irm", environments=[0, 1, 1])

    def test_repeats_belong_to_learners_that_do_not_balance(self):
        with pytest.raises(ValueError, match="balances groups by itself"):
            self.fit(learner="rwg", repeats=np.ones(20, int))
        with pytest.raises(ValueError, match="all 0"):
            self.fit(learner="erm", repeats=np.zeros(20, int))

    @pytest.mark.parametrize("bad", [{"steps": 0}, {"evaluate_every": 0}])
    def test_lengths_of_training_are_checked(self, bad):
        with pytest.raises(ValueError, match="at least 1"):
            self.fit(**bad)

    @pytest.mark.parametrize(
        "bad",
        [
            {"lr": (-0.1,)},
            {"lr": (float("nan"),)},
            {"batch_size": (0,)},
            {"eta": (-1.0,)},
            {"lr": (1.0,) * 3, "eta": (0.1,) * 2},
        ],
    )
    def test_draws_out_of_range_are_refused(self, bad):
        with pytest.raises(ValueError, match=list(bad)[-1]):
            Draws(**{"lr": (0.1,), **bad})

    def test_ranges_are_checked(self):
        with pytest.raises(ValueError, match="learning_rate"):
            draw_hyperparameters(2, {"learning_rate": (1.0, 2.0)})
        with pytest.raises(ValueError, match="range of lr"):
            draw_hyperparameters(2, {"lr": (1.0, 0.5)})
        with pytest.raises(ValueError, match="count is 0"):
            draw_hyperparameters(0)
