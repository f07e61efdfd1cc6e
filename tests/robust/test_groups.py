"""Groups: the metric, the losses and the two ways to balance, against closed forms and loops."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from mechanisms.robust.groups import (
    GroupDROLoss,
    group_accuracies,
    group_counts,
    group_means,
    group_weights,
    irm_penalty,
    reweighting_sampler,
    subsample_groups,
    subsampling_sampler,
    worst_group_accuracy,
)

# The level of exact tests of sampling: a false alarm is rarer than one in a million per test.
LEVEL = 1e-7


def batch(seed: int = 0, models: int = 0, rows: int = 40, classes: int = 3, groups: int = 5):
    generator = torch.Generator().manual_seed(seed)
    shape = (models, rows, classes) if models else (rows, classes)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (rows,), generator=generator)
    return logits, labels, torch.randint(groups, (rows,), generator=generator)


def test_worst_group_accuracy_is_the_smallest_of_the_group_accuracies():
    rng = np.random.default_rng(0)
    y, prediction, groups = rng.integers(3, size=(3, 200))
    groups = groups * 7
    loop = {int(g): float((y == prediction)[groups == g].mean()) for g in np.unique(groups)}
    assert group_accuracies(y, prediction, groups) == pytest.approx(loop)
    assert worst_group_accuracy(y, prediction, groups) == pytest.approx(min(loop.values()))
    assert group_counts(groups) == {int(g): int((groups == g).sum()) for g in np.unique(groups)}


def test_metrics_take_tensors_lists_and_labels_of_any_type():
    assert worst_group_accuracy(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([4, 9])) == 0
    assert group_accuracies(["a", "b"], ["a", "a"], [0, 0]) == {0: 0.5}


def test_one_group_is_erm():
    logits, labels, _ = batch()
    losses = F.cross_entropy(logits, labels, reduction="none")
    loss = GroupDROLoss(1, eta=0.5, dtype=torch.float64)(losses, torch.zeros_like(labels))
    assert loss == pytest.approx(losses.mean().item(), rel=1e-12)


def test_equal_losses_leave_the_weights_uniform():
    objective = GroupDROLoss(4, eta=0.3)
    objective(torch.full((8,), 2.5), torch.arange(8) % 4)
    assert torch.allclose(objective.q, torch.full((4,), 0.25), atol=1e-7)


def test_eta_zero_is_the_mean_of_the_group_losses_with_absent_groups_zero():
    losses, groups = torch.tensor([1.0, 3.0, 7.0]), torch.tensor([0, 0, 2])
    assert GroupDROLoss(4, eta=0.0)(losses, groups).item() == pytest.approx((2 + 0 + 7 + 0) / 4)


def test_one_step_from_uniform_is_a_softmax_of_the_group_losses():
    objective = GroupDROLoss(3, eta=0.7, dtype=torch.float64)
    losses, groups = torch.tensor([1.0, 2.0, 5.0, 1.0], dtype=torch.float64), torch.tensor([0, 1, 2, 2])
    objective(losses, groups)
    expected = torch.softmax(0.7 * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), 0)
    assert torch.allclose(objective.q, expected, rtol=1e-12)


def test_weights_follow_the_published_recursion_with_groups_absent_at_times():
    objective = GroupDROLoss(5, eta=0.2, dtype=torch.float64)
    q = np.ones(5)
    for seed in range(20):
        logits, labels, groups = batch(seed, rows=4)
        losses = F.cross_entropy(logits, labels, reduction="none")
        loss = objective(losses, groups)
        means = np.array([losses[groups == g].mean().item() if (groups == g).any() else 0.0 for g in range(5)])
        q = q * np.exp(0.2 * means)
        q = q / q.sum()
        assert loss.item() == pytest.approx(float(q @ means), rel=1e-12)
    assert objective.q.numpy() == pytest.approx(q, rel=1e-12)


def test_gradient_flows_through_the_losses_and_not_through_the_weights():
    logits, labels, groups = batch()
    logits.requires_grad_()
    objective = GroupDROLoss(5, eta=1.0, dtype=torch.float64)
    losses = F.cross_entropy(logits, labels, reduction="none")
    (gradient,) = torch.autograd.grad(objective(losses, groups), logits)
    means = group_means(F.cross_entropy(logits, labels, reduction="none"), groups, 5)
    (expected,) = torch.autograd.grad((objective.q.detach() * means).sum(), logits)
    assert torch.allclose(gradient, expected, rtol=1e-12)


def test_group_losses_pass_gradcheck():
    _, _, groups = batch(rows=6)
    objective = GroupDROLoss(5, eta=0.1, dtype=torch.float64).eval()
    values = torch.rand(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: objective(v, groups), values)


def test_evaluation_mode_keeps_the_weights():
    objective = GroupDROLoss(2, eta=1.0).eval()
    assert objective(torch.tensor([0.0, 4.0]), torch.tensor([0, 1])).item() == pytest.approx(2.0)
    assert objective.q.tolist() == [1.0, 1.0]


def test_models_side_by_side_equal_models_alone_even_with_different_batch_sizes():
    logits, labels, groups = batch(models=3)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(3), reduction="none").view(3, -1)
    sizes, eta = (40, 25, 1), (0.1, 0.5, 1.0)
    rows = (torch.arange(40) < torch.tensor(sizes)[:, None]).double()
    together = GroupDROLoss(5, torch.tensor(eta), num_models=3, dtype=torch.float64)
    first, second = together(losses, groups, rows), together(losses, groups, rows)
    for model, (size, rate) in enumerate(zip(sizes, eta, strict=True)):
        alone = GroupDROLoss(5, rate, dtype=torch.float64)
        assert first[model].item() == pytest.approx(alone(losses[model, :size], groups[:size]).item(), rel=1e-6)
        assert second[model].item() == pytest.approx(alone(losses[model, :size], groups[:size]).item(), rel=1e-6)
        assert torch.allclose(together.q[model], alone.q, rtol=1e-6)


def test_renaming_groups_renames_the_weights():
    logits, labels, groups = batch()
    losses = F.cross_entropy(logits, labels, reduction="none")
    names = torch.tensor([3, 0, 4, 1, 2])
    plain, renamed = GroupDROLoss(5, 0.5, dtype=torch.float64), GroupDROLoss(5, 0.5, dtype=torch.float64)
    assert plain(losses, groups).item() == pytest.approx(renamed(losses, names[groups]).item(), rel=1e-12)
    assert torch.allclose(plain.q, renamed.q[names])


def test_enormous_losses_do_not_overflow():
    objective = GroupDROLoss(2, eta=10.0)
    for _ in range(3):
        loss = objective(torch.tensor([1e6, 1.0]), torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(1e6)
    assert objective.q.tolist() == [1.0, 0.0]


def test_a_group_whose_weight_underflowed_can_come_back():
    objective, groups = GroupDROLoss(2, eta=1.0), torch.tensor([0, 1])
    objective(torch.tensor([500.0, 0.0]), groups)
    assert objective.q.tolist() == [1.0, 0.0]
    objective(torch.tensor([0.0, 600.0]), groups)
    assert objective.q.tolist() == pytest.approx([0.0, 1.0])
    assert list(objective.state_dict()) == ["log_q"]


def test_half_precision_losses_are_counted_exactly():
    groups = torch.tensor([0] * 1001 + [1])
    objective = GroupDROLoss(2, eta=0.0)
    assert objective(torch.ones(1002, dtype=torch.bfloat16), groups).item() == pytest.approx(1.0, abs=1e-6)


def test_two_calls_before_one_backward_accumulate():
    x = torch.ones(4, requires_grad=True)
    objective, groups = GroupDROLoss(2, eta=0.1), torch.tensor([0, 0, 1, 1])
    (objective(x, groups) + objective(2 * x, groups)).backward()
    assert torch.allclose(x.grad, torch.full((4,), 0.75))


def test_weights_are_saved_copied_and_moved_with_the_module():
    objective = GroupDROLoss(3, eta=0.5)
    objective(torch.tensor([1.0, 2.0, 3.0]), torch.arange(3))
    other = GroupDROLoss(3, eta=0.1)
    other.load_state_dict(objective.state_dict())
    assert torch.equal(other.q, objective.q)
    assert other.eta.item() == pytest.approx(0.1)
    assert torch.equal(copy.deepcopy(objective).q, objective.q)
    assert objective.double().q.dtype == torch.float64
    assert "num_groups=3" in repr(objective)


@settings(deadline=None, max_examples=50)
@given(rows=st.integers(1, 30), groups=st.integers(1, 8), models=st.integers(0, 3), seed=st.integers(0, 10**6))
def test_group_means_equal_a_loop_over_groups(rows, groups, models, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (models, rows) if models else (rows,)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    member = torch.randint(groups, (rows,), generator=generator)
    means = group_means(values, member, groups)
    for group in range(groups):
        chosen = values[..., member == group]
        expected = chosen.mean(-1) if chosen.shape[-1] else torch.zeros(shape[:-1], dtype=torch.float64)
        assert torch.allclose(means[..., group], expected)


def test_irm_penalty_equals_differentiation_by_the_multiplier():
    logits, labels, environments = batch(groups=3)
    expected = 0.0
    for e in range(3):
        z, y = logits[environments == e], labels[environments == e]
        s = torch.ones((), dtype=torch.float64, requires_grad=True)
        slopes = [torch.autograd.grad(F.cross_entropy(s * z[i::2], y[i::2]), s)[0].item() for i in (0, 1)]
        expected += slopes[0] * slopes[1] / 3
    assert irm_penalty(logits, labels, environments, 3).item() == pytest.approx(expected, rel=1e-10)


def test_irm_penalty_counts_only_the_environments_present():
    logits, labels, environments = batch(groups=2)
    few, many = irm_penalty(logits, labels, environments, 2), irm_penalty(logits, labels, environments * 3, 9)
    assert few.item() == pytest.approx(many.item(), rel=1e-12)


def test_irm_penalty_of_single_examples_is_zero():
    logits, labels, _ = batch(rows=3)
    assert irm_penalty(logits, labels, torch.arange(3), 3).item() == 0


def test_irm_penalty_of_models_side_by_side_equals_models_alone():
    logits, labels, environments = batch(models=2, groups=2)
    rows = (torch.arange(40) < torch.tensor([[40], [13]])).double()
    together = irm_penalty(logits, labels, environments, 2, rows)
    for model, size in enumerate((40, 13)):
        alone = irm_penalty(logits[model, :size], labels[:size], environments[:size], 2)
        assert together[model].item() == pytest.approx(alone.item(), rel=1e-10)


def test_irm_penalty_passes_gradcheck():
    logits, labels, environments = batch(rows=8, groups=2)
    assert torch.autograd.gradcheck(lambda z: irm_penalty(z, labels, environments, 2), logits.requires_grad_())


def test_reweighting_gives_every_group_the_same_weight():
    groups = np.repeat([0, 2, 3], [90, 9, 1])
    weights = group_weights(groups)
    for group in (0, 2, 3):
        assert weights[groups == group].sum().item() == pytest.approx(1 / 3)


def test_reweighting_sampler_draws_groups_equally_often():
    groups = torch.tensor([0] * 700 + [1] * 250 + [2] * 45 + [3] * 5)
    sampler = reweighting_sampler(groups, 40_000, torch.Generator().manual_seed(0))
    drawn = torch.bincount(groups[list(sampler)])
    for count in drawn.tolist():
        assert binomtest(count, 40_000, 0.25).pvalue > LEVEL


def test_subset_has_the_smallest_size_of_every_group_and_no_example_twice():
    groups = np.repeat([0, 1, 2, 5], [50, 7, 20, 9])
    chosen = subsample_groups(groups, generator=torch.Generator().manual_seed(0))
    assert group_counts(groups[chosen]) == {0: 7, 1: 7, 2: 7, 5: 7}
    assert len(set(chosen.tolist())) == len(chosen)


def test_subset_takes_every_example_of_a_group_equally_often():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.zeros(13)
    for _ in range(1000):
        drawn[subsample_groups([0] * 10 + [1] * 3, generator=generator)] += 1
    assert drawn[10:].tolist() == [1000] * 3
    # Ten tests at a tenth of the level.
    for count in drawn[:10].tolist():
        assert binomtest(int(count), 1000, 0.3).pvalue > LEVEL / 10


def test_samplers_follow_their_generator_and_feed_a_loader():
    groups = [0] * 6 + [1] * 2
    data = TensorDataset(torch.arange(8.0), torch.tensor(groups))
    for make in (reweighting_sampler, subsampling_sampler):
        epochs = []
        for _ in range(2):
            loader = DataLoader(data, batch_size=4, sampler=make(groups, generator=torch.Generator().manual_seed(3)))
            epochs.append(torch.cat([x for x, _ in loader]).tolist())
        assert epochs[0] == epochs[1]
    assert sorted(subsampling_sampler(groups))[-2:] == [6, 7]


@pytest.mark.unhooked
def test_losses_compile_into_one_graph():
    logits, labels, groups = batch()
    plain, compiled = GroupDROLoss(5, 0.3, dtype=torch.float64), GroupDROLoss(5, 0.3, dtype=torch.float64)
    step = torch.compile(compiled, fullgraph=True, backend="eager")
    losses = F.cross_entropy(logits, labels, reduction="none")
    assert step(losses, groups).item() == plain(losses, groups).item()
    assert torch.equal(compiled.q, plain.q)
    penalty = torch.compile(irm_penalty, fullgraph=True, backend="eager")
    assert penalty(logits, labels, groups, 5).item() == irm_penalty(logits, labels, groups, 5).item()


@pytest.mark.user_input
class TestMistakes:
    """Wrong input to the public doors."""

    def test_lengths_that_differ_are_named(self):
        with pytest.raises(ValueError, match="y has 2 examples and prediction 1"):
            worst_group_accuracy([0, 1], [0], [0, 0])
        with pytest.raises(ValueError, match="groups has 3 entries for 2 examples"):
            worst_group_accuracy([0, 1], [0, 1], [0, 0, 1])

    @pytest.mark.parametrize("bad", [[-1, 0], [0.5, 1], [float("nan"), 1], [float("inf"), 0], ["a", "b"], [], [[0, 1]]])
    def test_groups_that_are_not_integers_from_zero_are_refused(self, bad):
        for door in (group_counts, group_weights, subsample_groups):
            with pytest.raises(ValueError, match="groups"):
                door(bad)

    def test_subsampling_names_an_empty_group(self):
        with pytest.raises(ValueError, match=r"groups \[1, 3\] have no examples"):
            subsample_groups([0, 2, 2], num_groups=4)
        with pytest.raises(ValueError, match="groups hold 4"):
            subsampling_sampler([0, 4], num_groups=3)

    def test_reweighting_gives_an_empty_group_no_weight(self):
        assert group_weights([0, 2]).tolist() == [0.5, 0.5]

    @pytest.mark.parametrize("bad", [{"num_groups": 0}, {"eta": -0.1}, {"eta": float("nan")}, {"num_models": 0}])
    def test_settings_out_of_range_are_refused(self, bad):
        with pytest.raises(ValueError, match=r"expected|at least"):
            GroupDROLoss(**{"num_groups": 2, **bad})

    def test_one_eta_per_model_is_checked(self):
        with pytest.raises(ValueError, match="eta has shape"):
            GroupDROLoss(2, torch.tensor([0.1, 0.2]), num_models=3)

    def test_a_reduced_loss_is_refused(self):
        with pytest.raises(ValueError, match="reduction='none'"):
            GroupDROLoss(2)(torch.tensor(1.0), torch.tensor([0, 1]))

    def test_environments_of_another_length_are_refused(self):
        with pytest.raises(ValueError, match="environments"):
            irm_penalty(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long), torch.zeros(2, dtype=torch.long), 2)
