"""XRM: the exact facts of its specification, from the loss to whole discoveries."""

import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from mechanisms._base.seeds import torch_generator
from mechanisms.robust._rows import check_finite
from mechanisms.robust._stack import SharedBatches
from mechanisms.robust._twin_stack import TwinStack
from mechanisms.robust.xrm import (
    Environments,
    Search,
    Setting,
    TwinTrainer,
    balanced_cross_entropy,
    cross_mistakes,
    discover_environments,
    flip_probability,
)

# A test of a warning-free run would otherwise pass or fail by the small sets used here.
quiet = pytest.mark.filterwarnings("ignore::UserWarning")


def shortcut(n: int = 600, seed: int = 0, classes: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, labels and backgrounds; the background agrees with the label in nine of ten and is easy to see."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    background = torch.where(torch.arange(n) // classes % 10 == 9, (y + 1) % classes, y)
    x = torch.randn(n, 6 + classes, generator=generator)
    x[torch.arange(n), background] += 8.0
    x[:, classes] += 0.5 * y
    return x, y, background


def trainer_on(x, y, make=None, classes=2, lr=0.1, **options) -> TwinTrainer:
    options = {"generator": 0, "device": "cpu"} | options
    make = make or (lambda: nn.Linear(x.shape[1], classes).to(x.dtype))
    return TwinTrainer(make, y, classes, make_optimizer=lambda ps: torch.optim.SGD(ps, lr=lr, momentum=0.9), **options)


def zero_head(features: int, classes: int = 2, dtype=torch.float64) -> nn.Linear:
    head = nn.Linear(features, classes, dtype=dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


# --- The pieces -----------------------------------------------------------------------------------------------------


def test_flip_probability_is_0_at_chance_and_1_at_certainty() -> None:
    assert flip_probability(torch.tensor([0.5, 0.75, 1.0]), num_classes=2).tolist() == [0.0, 0.5, 1.0]
    assert flip_probability(torch.tensor([0.25, 0.625]), num_classes=4).tolist() == [0.0, 0.5]
    assert flip_probability(torch.tensor([[0.2, 0.05, 0.75, 0.0]])).tolist() == [pytest.approx(2 / 3)]


def test_flip_probability_never_leaves_0_to_1() -> None:
    for classes in range(2, 101):
        for logits in (torch.zeros(3, classes), 1e3 * torch.eye(classes)):
            probability = flip_probability(logits.softmax(1))
            assert probability.min() >= 0
            assert probability.max() <= 1


@settings(max_examples=50, deadline=None)
@given(classes=st.integers(2, 6), labels=st.lists(st.integers(0, 5), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_the_balanced_loss_is_the_sum_of_class_means(classes: int, labels: list[int], seed: int) -> None:
    targets = torch.tensor(labels) % classes
    logits = torch.randn(len(labels), classes, generator=torch.Generator().manual_seed(seed)).double()
    expected = sum(F.cross_entropy(logits[targets == c], targets[targets == c]) for c in targets.unique())
    torch.testing.assert_close(balanced_cross_entropy(logits, targets, classes), expected)


def test_constant_logits_cost_the_logarithm_of_K_for_each_class_present() -> None:
    loss = balanced_cross_entropy(torch.ones(5, 4), torch.tensor([0, 0, 0, 2, 2]), 4)
    assert float(loss) == pytest.approx(2 * np.log(4))


def test_duplicating_a_class_leaves_the_balanced_loss_unchanged() -> None:
    logits, labels = torch.randn(7, 3).double(), torch.tensor([0, 1, 1, 2, 2, 2, 0])
    again = labels == 1
    twice = balanced_cross_entropy(torch.cat([logits, logits[again]]), torch.cat([labels, labels[again]]), 3)
    torch.testing.assert_close(twice, balanced_cross_entropy(logits, labels, 3))


def test_cross_mistakes_follow_their_truth_table_and_do_not_know_which_twin_is_which() -> None:
    right, wrong = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    a, b = torch.stack([right, right, wrong, wrong]), torch.stack([right, wrong, right, wrong])
    labels = torch.ones(4, dtype=torch.int64)
    assert cross_mistakes(a, b, labels).tolist() == cross_mistakes(b, a, labels).tolist() == [0, 1, 1, 1]


# --- The trainer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("twin", [0, 1])
def test_a_twin_without_rows_in_the_batch_has_a_gradient_of_zero(twin: int) -> None:
    x, y, _ = shortcut(100)
    for make in (None, lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 2))):
        trainer = trainer_on(x, y, make)
        rows = (trainer.assignment == bool(twin)).nonzero().flatten()
        trainer.step(rows, x[rows])
        idle, busy = trainer.twins[twin], trainer.twins[1 - twin]
        assert all(float(p.grad.abs().max()) == 0 for p in idle.parameters())
        assert all(float(p.grad.abs().max()) > 0 for p in busy.parameters())


def test_flips_stay_inside_the_batch() -> None:
    x, y, _ = shortcut(200)
    trainer, rows = trainer_on(x, y, lr=1.0), torch.arange(0, 200, 2)
    for _ in range(100):
        trainer.step(rows, x[rows])
    assert torch.equal(trainer.working_labels[1::2], y[1::2])
    assert not torch.equal(trainer.working_labels[rows], y[rows])


def test_first_gradients_of_zero_heads_are_those_computed_by_hand_and_nothing_flips_yet() -> None:
    x, y, _ = shortcut(90, classes=3)
    x = x.double()
    trainer = trainer_on(x, y, lambda: zero_head(9, 3), classes=3)
    trainer.step(torch.arange(90), x)
    hot = np.eye(3)[y]
    residual = (1 / 3 - hot) / hot.sum(0)[y][:, None]
    for twin, mask in ((0, trainer.assignment.numpy()), (1, ~trainer.assignment.numpy())):
        expected = (residual * mask[:, None]).T @ x.numpy()
        np.testing.assert_allclose(trainer.twins[twin].weight.grad, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(trainer.working_labels, y)


def test_without_flips_the_twins_are_two_separate_models_on_the_same_batches() -> None:
    x, y, _ = shortcut(300)
    x = x.double()
    trainer = trainer_on(x, y, lambda: zero_head(8), flips=False)
    models = [zero_head(8), zero_head(8)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in models]
    generator = torch.Generator().manual_seed(5)
    for _ in range(60):
        rows = torch.randperm(300, generator=generator)[:32]
        trainer.step(rows, x[rows])
        share = 1 / y[rows].bincount(minlength=2)[y[rows]]
        for model, optimizer, mask in zip(models, optimizers, (trainer.assignment, ~trainer.assignment), strict=True):
            losses = F.cross_entropy(model(x[rows]), y[rows], reduction="none")
            optimizer.zero_grad()
            (losses * share * mask[rows]).sum().backward()
            optimizer.step()
    for twin, model in zip(trainer.twins, models, strict=True):
        torch.testing.assert_close(twin.weight, model.weight, rtol=0, atol=1e-6)


class Counting(nn.Module):
    """Counts the rows passed forward and backward."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4) if norm else nn.LayerNorm(4), nn.Linear(4, 2))
        self.forward_rows = self.backward_rows = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.forward_rows += len(inputs)
        outputs = self.body(inputs)
        if outputs.requires_grad:
            self.backward_rows += len(inputs)
        return outputs


def test_each_row_goes_forward_twice_and_backward_once_unless_layers_mix_rows() -> None:
    x, y, _ = shortcut(100)
    for norm, backward in ((False, 1), (True, 2)):
        trainer = trainer_on(x, y, lambda norm=norm: Counting(norm))
        for _ in range(3):
            trainer.step(torch.arange(100), x)
        assert sum(twin.forward_rows for twin in trainer.twins) == 3 * 2 * 100
        assert sum(twin.backward_rows for twin in trainer.twins) == 3 * backward * 100


def test_half_and_full_passes_give_the_same_twins() -> None:
    x, y, _ = shortcut(200)
    x = x.double()
    half, full = (trainer_on(x, y, lambda: nn.Linear(8, 2).double()) for _ in range(2))
    # A batch normalisation that nothing passes through: the trainer has to assume that it mixes rows.
    full.twins.append(nn.BatchNorm1d(1))
    for _ in range(40):
        half.step(torch.arange(200), x)
        full.step(torch.arange(200), x)
    torch.testing.assert_close(half.twins[0].weight, full.twins[0].weight, rtol=1e-10, atol=1e-10)
    assert torch.equal(half.working_labels, full.working_labels)


def test_saving_mid_run_and_continuing_gives_the_same_environments_bit_for_bit(tmp_path) -> None:
    x, y, _ = shortcut(300)
    order = SharedBatches(300, [32], torch.Generator().manual_seed(4))
    batches = [order.draw() for _ in range(60)]

    def fresh() -> TwinTrainer:
        make = lambda: nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 2))  # noqa: E731
        return TwinTrainer(
            make, y, 2, make_optimizer=lambda ps: torch.optim.Adam(ps, lr=0.01), generator=3, device="cpu",
            make_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.9),
        )  # fmt: skip

    def run(trainer: TwinTrainer, some: list[torch.Tensor]) -> None:
        for rows in some:
            trainer.step(rows, x[rows])

    through, first, resumed = fresh(), fresh(), fresh()
    run(through, batches)
    run(first, batches[:25])
    torch.save(first.state_dict(), tmp_path / "trainer")
    torch.rand(100)
    resumed.load_state_dict(torch.load(tmp_path / "trainer", weights_only=True))
    run(resumed, batches[25:])
    assert torch.equal(through.annotate(x, y), resumed.annotate(x, y))
    assert torch.equal(through.working_labels, resumed.working_labels)
    for one, other in zip(through.twins.parameters(), resumed.twins.parameters(), strict=True):
        assert torch.equal(one, other)


def test_training_leaves_the_global_generator_alone() -> None:
    x, y, _ = shortcut(50)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    trainer_on(x, y, lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 2))).step(torch.arange(50), x)
    assert torch.equal(torch.rand(3), expected)


def test_batches_of_one_row_train() -> None:
    x, y, _ = shortcut(40)
    trainer = trainer_on(x, y, lr=0.01)
    for row in range(40):
        trainer.step(torch.tensor([row]), x[row : row + 1])
    assert all(bool(p.isfinite().all()) for p in trainer.twins.parameters())


@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_bfloat16_finds_the_shortcut(how: str) -> None:
    x, y, background = shortcut(400)
    dtype = torch.bfloat16 if how == "weights" else torch.float32
    trainer = trainer_on(x, y, lambda: nn.Linear(8, 2).to(dtype), lr=0.05)
    for _ in range(150):
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            state = trainer.step(torch.arange(400), x.to(dtype))
    assert state["loss"].dtype == torch.float32
    assert torch.equal(trainer.annotate(x.to(dtype), y), (y != background).long())


def test_double_precision_inputs_train_a_single_precision_network() -> None:
    x, y, _ = shortcut(60)
    images = x[:, :, None, None].expand(-1, -1, 3, 3)
    make = lambda: nn.Sequential(nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4, 2))  # noqa: E731
    one, other = trainer_on(x, y, make), trainer_on(x, y, make)
    one.step(torch.arange(60), images)
    other.step(torch.arange(60), images.double())
    assert torch.equal(one.annotate(images, y), other.annotate(images.double(), y))
    options = {"model": make, "steps": 20, "search": [Setting(0.01)], "random_state": 0, "device": "cpu"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [discover_environments(data, y, **options) for data in (images, images.double())]
    assert torch.equal(found[0].held_out_probabilities, found[1].held_out_probabilities)
    assert torch.equal(found[0].annotate(images.double(), y, device="cpu"), found[0].train)


def test_inputs_may_be_dictionaries_of_tensors() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 2)

        def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.head(inputs["one"] + inputs["two"])

    x, y, background = shortcut(400)
    trainer = trainer_on(x, y, Sum, lr=0.05)
    for _ in range(150):
        trainer.step(torch.arange(400), {"one": x - 1, "two": torch.ones_like(x)})
    batches = [{"one": part - 1, "two": torch.ones_like(part)} for part in x.split(150)]
    assert torch.equal(trainer.annotate(batches, y), (y != background).long())


def test_annotation_uses_evaluation_mode_and_restores_training_mode() -> None:
    x, y, _ = shortcut(100)
    trainer = trainer_on(x, y, lambda: nn.Sequential(nn.Dropout(0.9), nn.Linear(8, 2)))
    assert torch.equal(trainer.annotate(x, y), trainer.annotate(DataLoader(TensorDataset(x, y), 30), y))
    assert trainer.twins.training


# --- All combinations in one pass -----------------------------------------------------------------------------------


def plain_run(make, x, y, classes, setting, seed, steps, batch_sizes):
    """Phase 1 as the paper writes it, one combination, with a Python loop over classes."""
    stack = TwinStack(make, x, y, classes, [setting], seed=seed)
    (a, b), in_a = stack.twins(0), stack.assignment
    optimizer = torch.optim.SGD(
        [*a.parameters(), *b.parameters()], lr=setting.lr, momentum=0.9, weight_decay=setting.weight_decay
    )
    working, chances = y.clone(), torch_generator(seed, "flips")
    batches = SharedBatches(len(y), batch_sizes, torch_generator(seed, "batches"))
    for _ in range(steps):
        rows = batches.draw()
        chance = torch.rand(len(rows), generator=chances, dtype=x.dtype)[: setting.batch_size]
        rows = rows[: setting.batch_size]
        one, other, mine = a(x[rows]), b(x[rows]), in_a[rows].unsqueeze(1)
        inner, outer = torch.where(mine, one, other), torch.where(mine, other, one).detach()
        targets = working[rows]
        loss = sum(F.cross_entropy(inner[targets == c], targets[targets == c]) for c in targets.unique())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        confidence, predicted = outer.softmax(1).max(1)
        flip = chance < flip_probability(confidence, classes)
        working[rows] = torch.where(flip, predicted, targets)
    return (a, b), working


@pytest.mark.parametrize("architecture", ["linear", "mlp"])
def test_a_stacked_search_equals_sequential_runs(architecture: str) -> None:
    x, y, _ = shortcut(400, classes=3)
    x = x.double()

    def make() -> nn.Module:
        if architecture == "linear":
            return zero_head(9, 3)
        return nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 3)).double()

    combinations = [Setting(0.01, 1e-3, 64), Setting(0.03, 0.0, 40), Setting(0.002, 1e-2, 64)]
    together = TwinStack(make, x, y, 3, combinations, seed=7)
    for _ in range(200):
        together.step()
    assert (together.flip_rates() > 0).all()
    for pair, setting in enumerate(combinations):
        alone, working = plain_run(make, x, y, 3, setting, 7, 200, [64])
        assert torch.equal(together.working_labels[pair], working)
        for model, expected in zip(together.twins(pair), alone, strict=True):
            for one, other in zip(model.parameters(), expected.parameters(), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"flips": False}, {"balanced": False}, {"held_out": False}])
def test_one_pass_equals_the_trainer_in_every_ablation(options: dict[str, bool]) -> None:
    x, y, _ = shortcut(300)
    x = x.double()
    stack = TwinStack(lambda: zero_head(8), x, y, 2, [Setting(0.02, 0.0, 64)], seed=1, **options)
    trainer = trainer_on(x, y, lambda: zero_head(8), lr=0.02, generator=1, **options)
    batches = SharedBatches(300, [64], torch_generator(1, "batches"))
    for _ in range(200):
        stack.step()
        rows = batches.draw()
        trainer.step(rows, x[rows])
    assert torch.equal(stack.working_labels[0], trainer.working_labels)
    torch.testing.assert_close(stack.twins(0)[1].weight, trainer.twins[1].weight, rtol=1e-10, atol=1e-10)


# --- Whole discoveries ----------------------------------------------------------------------------------------------


def test_a_deterministic_shortcut_is_found_example_by_example() -> None:
    x, y, background = shortcut(800)
    new_x, new_y, new_background = shortcut(200, seed=1)
    found = discover_environments(x, y, validation=(new_x, new_y), random_state=0, device="cpu")
    assert torch.equal(found.train, (y != background).long())
    assert torch.equal(found.validation, (new_y != new_background).long())
    assert torch.equal(found.annotate(new_x, new_y), found.validation)
    assert not found.degenerate
    assert found.flip_rate == pytest.approx(0.1, abs=0.02)


def test_imbalanced_classes_do_not_make_the_small_one_grow() -> None:
    """Sizes of Waterbirds' groups, d = 64: a wrong centre of the features makes a tenth of the large class flip."""
    sizes = torch.tensor([3498, 184, 56, 1057])
    y, place = torch.tensor([0, 0, 1, 1]).repeat_interleave(sizes), torch.tensor([0, 1, 0, 1]).repeat_interleave(sizes)
    x = torch.randn(len(y), 64, generator=torch.Generator().manual_seed(0))
    x[:, :8] += ((2 * y - 1) * 1.5 / 8**0.5).unsqueeze(1)
    x[:, 8:16] += ((2 * place - 1) * 2.0 / 8**0.5).unsqueeze(1)
    found = discover_environments(x + 5, y, search=[Setting(1e-3)], steps=2000, random_state=0, device="cpu")
    minority = y != place
    assert float(found.train[minority].float().mean()) > 0.7
    assert float(found.train[~minority].float().mean()) < 0.03


def test_permuting_the_classes_leaves_the_environments_unchanged() -> None:
    x, y, _ = shortcut(600, classes=3)
    noisy = x.double() + torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    permutation = torch.tensor([2, 0, 1])
    options = {"random_state": 0, "steps": 200, "search": [Setting(0.01, 0.0, 64)], "device": "cpu"}
    one = discover_environments(noisy, y, **options)
    other = discover_environments(noisy, permutation[y], **options)
    assert torch.equal(one.train, other.train)
    torch.testing.assert_close(one.held_out_probabilities, other.held_out_probabilities[:, permutation])


@quiet
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_given_data_are_left_as_they_were(dtype: torch.dtype) -> None:
    x, y, _ = shortcut(100)
    x = x.to(dtype)
    before, labels = x.clone(), y.clone()
    discover_environments(x, y, validation=(x, y), steps=20, search=2, random_state=0, device="cpu")
    assert torch.equal(x, before)
    assert torch.equal(y, labels)


@quiet
def test_labels_of_any_dtype_and_inputs_of_any_kind_give_the_same_environments() -> None:
    pandas = pytest.importorskip("pandas")
    x, y, _ = shortcut(200)
    names = np.array(["cow", "horse"], dtype=object)[y]
    options = {"random_state": 0, "steps": 100, "search": 2, "device": "cpu"}
    expected = discover_environments(x, y, **options)
    for data, labels in [
        (x.numpy(), names),
        (pandas.DataFrame(x.numpy()), pandas.Series(names)),
        (x.tolist(), names.tolist()),
        (TensorDataset(x, y), None),
        (x, y.bool()),
    ]:
        assert torch.equal(discover_environments(data, labels, **options).train, expected.train)


class Pairs(Dataset):
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.x[index], int(self.y[index])


@quiet
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_features_of_other_dtypes_become_single_precision(dtype: torch.dtype) -> None:
    x, y, _ = shortcut(200)
    options = {"random_state": 0, "steps": 60, "search": 2, "device": "cpu"}
    found = discover_environments(x.to(dtype), y, **options)
    assert torch.equal(found.train, discover_environments(x.to(dtype).float(), y, **options).train)


class Bad(Pairs):
    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        x, y = super().__getitem__(index)
        return (x * torch.inf if index == 37 else x), y


@quiet
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_row_of_a_data_set_that_is_not_finite_is_named(num_workers: int) -> None:
    x, y, _ = shortcut(60)
    options = {"model": lambda: nn.Linear(8, 2), "steps": 10, "search": [Setting(0.05, 0.0, 32)], "device": "cpu"}
    options |= {"num_workers": num_workers, "random_state": 0}
    with pytest.raises(ValueError, match="row 37 of the data set contains NaN"):
        discover_environments(Bad(x, y), **options)
    with pytest.raises(ValueError, match="row 37 of the data set contains NaN"):
        discover_environments(Pairs(x, y), validation=Bad(x, y), **options)
    with pytest.raises(ValueError, match="row 37 of the data set contains NaN"):
        discover_environments(Pairs(x, y), **options).annotate(Bad(x, y), device="cpu")


def test_large_finite_values_whose_sum_overflows_are_no_error() -> None:
    check_finite(torch.full((4, 2), 3e38), torch.arange(4))


@quiet
@pytest.mark.parametrize("num_workers", [0, 1])
def test_discovery_from_a_data_set_leaves_the_global_generator_alone(num_workers: int) -> None:
    x, y, _ = shortcut(60)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    discover_environments(
        Pairs(x, y), validation=Pairs(x, y), model=lambda: nn.Linear(8, 2), steps=3, search=[Setting(0.05, 0.0, 32)],
        num_workers=num_workers, random_state=0, device="cpu",
    ).annotate(Pairs(x, y), device="cpu")  # fmt: skip
    assert torch.equal(torch.rand(3), expected)


@quiet
@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy])
def test_an_offset_that_single_precision_would_not_survive_changes_nothing(form) -> None:
    x, y, background = shortcut(400)
    x = x.double().numpy()
    options = {"steps": 200, "search": [Setting(0.01)], "random_state": 0, "device": "cpu"}
    far = discover_environments(form(x + 1e8), y, validation=(form(x[:100] + 1e8), y[:100]), **options)
    assert torch.equal(far.train, (y != background).long())
    assert torch.equal(far.validation, far.train[:100])
    assert torch.equal(far.annotate(form(x + 1e8), y, device="cpu"), far.train)
    seconds = torch.from_numpy((x * 1000 + 2e9).round()).long()
    assert torch.equal(discover_environments(seconds, y, **options).train, far.train)


@quiet
def test_features_that_never_change_stay_unscaled_in_every_precision() -> None:
    x, y, _ = shortcut(100)
    x[:, 3] = 0.1
    for data in (x, x.double().numpy(), x.numpy()):
        twins = discover_environments(data, y, steps=5, search=1, random_state=0, device="cpu").twins
        assert float(twins.scale[3]) == 1


@quiet
def test_environments_do_not_depend_on_the_number_of_workers() -> None:
    x, y, _ = shortcut(200)
    options = {
        "model": lambda: nn.Linear(8, 2), "random_state": 0, "steps": 60, "search": [Setting(0.05, 0.0, 32)],
        "validation": Pairs(x[:50], y[:50]), "device": "cpu",
    }  # fmt: skip
    alone = discover_environments(Pairs(x, y), num_workers=0, **options)
    helped = discover_environments(Pairs(x, y), num_workers=2, **options)
    assert torch.equal(alone.train, helped.train)
    assert torch.equal(alone.validation, helped.validation)
    assert alone.flip_history == helped.flip_history
    assert torch.equal(alone.annotate(Pairs(x[:50], y[:50]), device="cpu"), alone.validation)


@quiet
def test_networks_that_mix_rows_and_image_tensors_are_trained_one_after_the_other() -> None:
    x, y, background = shortcut(300)
    images = x[:, :, None, None].expand(-1, -1, 2, 2).contiguous()

    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))

    found = discover_environments(
        images, y, model=make, search=[Setting(0.05), Setting(0.02)], steps=120, random_state=0, device="cpu"
    )
    assert float((found.train == (y != background)).float().mean()) > 0.9
    assert len(found.trials) == 2


@quiet
def test_the_same_seed_gives_the_same_environments_and_another_seed_other_ones() -> None:
    x, y, _ = shortcut(300)
    x = x + 2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    options = {"steps": 100, "search": 3, "device": "cpu"}
    one, same, other = (discover_environments(x, y, random_state=seed, **options) for seed in (0, 0, 1))
    assert torch.equal(one.held_out_probabilities, same.held_out_probabilities)
    assert not torch.equal(one.twin_of, other.twin_of)


@quiet
def test_the_combination_with_most_flips_is_kept_and_trained_again_for_another_seed() -> None:
    x, y, _ = shortcut(300)
    options = {"steps": 150, "search": Search(trials=4), "device": "cpu"}
    searched = discover_environments(x, y, random_state=0, **options)
    again = discover_environments(x, y, random_state=5, search_seed=0, **options)
    best = max(searched.trials, key=lambda trial: trial.score)
    assert searched.flip_rate == best.flip_rate
    assert searched.best_setting == again.best_setting == best.setting
    assert again.trials == searched.trials
    direct = discover_environments(x, y, random_state=5, **(options | {"search": [best.setting]}))
    assert torch.equal(again.train, direct.train)


@quiet
@pytest.mark.parametrize("model", [None, lambda: nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))])
def test_a_snapshot_is_the_run_stopped_there(model) -> None:
    x, y, _ = shortcut(300)
    options = {"model": model, "random_state": 0, "search": [Setting(0.02)], "validation": (x[:90], y[:90])}
    long = discover_environments(x, y, steps=90, snapshots=(30, 60), device="cpu", **options)
    assert [shot.step for shot in long.snapshots] == [30, 60]
    for shot in long.snapshots:
        short = discover_environments(x, y, steps=shot.step, device="cpu", **options)
        assert torch.equal(shot.train, short.train)
        assert torch.equal(shot.validation, short.validation)
        assert shot.flip_rate == short.flip_rate


@quiet
@pytest.mark.parametrize("own_model", [False, True])
def test_a_saved_discovery_annotates_like_the_original(tmp_path, own_model: bool) -> None:
    x, y, _ = shortcut(300)
    names = np.array(["cow", "horse"])[y]
    make = (lambda: nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))) if own_model else None
    found = discover_environments(
        x, names, validation=(x[:60], names[:60]), model=make, steps=80, search=2, snapshots=[40], random_state=0,
        device="cpu",
    )  # fmt: skip
    found.save(tmp_path / "found.safetensors")
    loaded = Environments.load(tmp_path / "found.safetensors", make)
    assert [path.name for path in tmp_path.iterdir()] == ["found.safetensors"]
    new = torch.randn(100, 8), np.array(["cow", "horse"])[torch.randint(2, (100,))]
    assert torch.equal(loaded.annotate(*new, device="cpu"), found.annotate(*new, device="cpu"))
    for name in ("train", "validation", "held_out_probabilities", "twin_of", "labels"):
        assert torch.equal(getattr(loaded, name), getattr(found, name))
    assert loaded.trials == found.trials
    assert loaded.flip_history == found.flip_history
    assert loaded.summary() == found.summary()
    assert torch.equal(loaded.snapshots[0].validation, found.snapshots[0].validation)
    if own_model:
        with pytest.raises(ValueError, match="pass the factory"):
            Environments.load(tmp_path / "found.safetensors")


def test_groups_and_counts_combine_label_and_environment() -> None:
    x, y, background = shortcut(400)
    found = discover_environments(x, y, random_state=0, search=2, steps=300, device="cpu")
    assert torch.equal(found.groups(), 2 * y + (y != background).long())
    assert torch.equal(found.groups(y.numpy()), found.groups())
    assert int(found.counts().sum()) == 400


@quiet
def test_progress_counts_to_the_end() -> None:
    x, y, _ = shortcut(100)
    seen: list[tuple[int, int]] = []
    discover_environments(
        x, y, steps=50, search=2, random_state=0, search_seed=1, device="cpu", progress=lambda *at: seen.append(at)
    )
    assert seen[-1] == (100, 100)
    assert seen == sorted(seen)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_a_shortcut_is_found_on_an_accelerator() -> None:
    x, y, background = shortcut(800)
    for model in (None, lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))):
        found = discover_environments(
            x, y, validation=(x, y), model=model, search=[Setting(0.01)], steps=300, random_state=0, device="cuda"
        )
        assert torch.equal(found.train, (y != background).long())
        assert found.train.device.type == "cpu"


# --- Warnings and errors --------------------------------------------------------------------------------------------


def test_a_class_without_mistakes_is_called_degenerate() -> None:
    x, y, _ = shortcut(200)
    x[:, 0], x[:, 1] = 8.0 * (y == 0), 8.0 * (y == 1)
    with pytest.warns(UserWarning, match="predictable without a shortcut"):
        found = discover_environments(x, y, steps=200, search=2, random_state=0, device="cpu")
    assert found.degenerate
    assert all(trial.score == 0 for trial in found.trials)


def warnings_of(*args, **options) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        discover_environments(*args, **({"device": "cpu", "random_state": 0} | options))
    return [str(one.message) for one in caught]


def test_the_degenerate_warning_says_which_environment_is_missing_where() -> None:
    x, y, _ = shortcut(400)
    easy = x[:40] + 8.0 * torch.eye(8)[y[:40]] * torch.tensor([3.0] * 2 + [0.0] * 6)
    easy[:, :2] = 8.0 * torch.eye(2)[y[:40]]
    hard = easy.clone()
    hard[:, :2] = 8.0 * torch.eye(2)[1 - y[:40]]
    options = {"steps": 200, "search": [Setting(0.01)]}
    (text,) = warnings_of(x, y, validation=(easy, y[:40]), **options)
    assert "no environment 1 in class 0 (validation), class 1 (validation): the twins made no held-out mistakes" in text
    assert "no environment 0" not in text
    assert "(train)" not in text
    (text,) = warnings_of(x, y, validation=(hard, y[:40]), **options)
    assert "no environment 0 in class 0 (validation), class 1 (validation): the twins err on all of it" in text
    assert "no environment 1" not in text
    (text,) = warnings_of(
        x, y, validation=(torch.cat([x[20:400:2], easy[1:2]]), torch.cat([y[20:400:2], y[1:2]])), **options
    )
    assert "a single example in class 1 (validation)" in text


@quiet
@pytest.mark.parametrize("one_pass", [True, False])
def test_twins_that_diverge_are_degenerate_and_the_others_are_kept(one_pass: bool) -> None:
    x, y, _ = shortcut(300)
    make = lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU() if one_pass else nn.LayerNorm(8), nn.Linear(8, 2))  # noqa: E731
    options = {"model": make, "steps": 60, "random_state": 0, "device": "cpu"}
    wild, tame = Setting(1e30), Setting(1e-5)
    with pytest.warns(UserWarning, match=r"diverged \(logits are not finite\); lower lr"):
        found = discover_environments(x, y, search=[wild], **options)
    assert found.degenerate
    assert found.trials[0].score == 0
    both = discover_environments(x, y, search=[wild, tame], **options)
    assert both.best_setting == tame
    with pytest.raises(ValueError, match="logits of row 0 are not finite"):
        found.annotate(x, y)


def test_flips_that_run_away_in_an_overparametrised_network_are_warned_about() -> None:
    """The setting in which environments decay after some steps: a wide network and Adam on Waterbirds-like data."""
    sizes = torch.tensor([3498, 184, 56, 1057])
    y, place = torch.tensor([0, 0, 1, 1]).repeat_interleave(sizes), torch.tensor([0, 1, 0, 1]).repeat_interleave(sizes)
    x = torch.randn(len(y), 64, generator=torch.Generator().manual_seed(0))
    x[:, :8] += ((2 * y - 1) * 1.5 / 8**0.5).unsqueeze(1)
    x[:, 8:16] += ((2 * place - 1) * 2.0 / 8**0.5).unsqueeze(1)
    make = lambda: nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 2))  # noqa: E731
    (text,) = warnings_of(x, y, model=make, search=[Setting(2e-3, 1e-4, 128, "adam")], standardize=True, steps=1000)
    assert "still rising" in text
    found = r"step: rate = .*, 1000: (0\.\d+)\)"
    assert re.search(found, text)[1] == re.search(r"flip rate is (0\.\d+)", text)[1]


def test_more_flipped_than_kept_labels_are_warned_about() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 200, generator=generator), torch.arange(60) % 4
    with pytest.warns(UserWarning, match="above 1/2"):
        discover_environments(x, y, steps=400, search=[Setting(0.1)], random_state=0, device="cpu")


def test_very_small_classes_are_split_evenly_with_a_warning() -> None:
    x, y = torch.randn(23, 3), torch.tensor([0] * 10 + [1] * 10 + [2] * 3)
    with pytest.warns(UserWarning, match="class 2 has fewer than four examples"):
        found = discover_environments(x, y, steps=5, search=1, random_state=0, device="cpu")
    assert found.twin_of[20:].unique().tolist() == [0, 1]


def test_an_uneventful_discovery_warns_of_nothing() -> None:
    x, y, _ = shortcut(800)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        discover_environments(x, y, random_state=0, device="cpu")


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(3), 0


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("data", "y", "options", "error", "message"),
    [
        (torch.randn(9, 3), [1] * 9, {}, ValueError, "at least two classes are needed, got 1"),
        (torch.randn(9, 3), torch.rand(9), {}, ValueError, "Unknown label type"),
        (torch.randn(9, 3), [0, 1] * 4, {}, ValueError, "inconsistent numbers of samples"),
        (np.full((9, 3), np.nan), [0, 1, 0, 1, 0, 1, 0, 1, 0], {}, ValueError, "contains NaN"),
        (torch.full((8, 3), torch.nan), [0, 1] * 4, {}, ValueError, "contain NaN"),
        (torch.randn(9, 3), ["cow"] * 8 + ["elk"], {}, ValueError, "class elk has a single example"),
        (torch.randn(8, 3), None, {}, ValueError, "labels are needed"),
        (torch.randn(8), [0, 1] * 4, {}, ValueError, r"shape \(n, ...\)"),
        (torch.randn(8, 3, 2, 2), [0, 1] * 4, {}, ValueError, "pass a model"),
        (torch.randn(8, 3), [0, 1] * 4, {"validation": (torch.randn(1, 3), [7])}, ValueError, r"labels \[7\]"),
        (torch.randn(8, 3), [0, 1] * 4, {"validation": (torch.randn(1, 4), [1])}, ValueError, "expect 3 features"),
        (torch.randn(8, 3), [0, 1] * 4, {"validation": Pairs(torch.zeros(1, 3), [0])}, ValueError, "needs to be"),
        (torch.randn(8, 3), [0, 1] * 4, {"steps": 0}, ValueError, "at least 1"),
        (torch.randn(8, 3), [0, 1] * 4, {"steps": 3, "snapshots": [4]}, ValueError, "snapshots within"),
        (torch.randn(8, 3), [0, 1] * 4, {"search": []}, ValueError, "no combination"),
        (torch.randn(8, 3), [0, 1] * 4, {"search": 0}, ValueError, "at least one trial"),
        (
            torch.randn(8, 3),
            [0, 1] * 4,
            {"model": lambda: nn.Linear(3, 5)},
            ValueError,
            r"\(2, 5\), expected .*\(2, 2\)",
        ),
        (torch.randn(8, 3), [0, 1] * 4, {"model": lambda: nn.Linear(4, 2)}, ValueError, "cannot take inputs"),
        (torch.randn(8, 3), [0, 1] * 4, {"random_state": "x"}, TypeError, "random_state is a str"),
        (torch.randn(4, 3), ["cow", None, "elk", "cow"], {}, ValueError, r"label 1 is missing \(None\)"),
        (torch.randn(4, 3), [0, None, 1, 0], {}, ValueError, r"label 1 is missing"),
        (torch.randn(4, 3), np.array(["cow", np.nan, "elk", "cow"], object), {}, ValueError, r"label 1 is missing"),
        (torch.randn(4, 3), ["cow", 1, "cow", 1], {}, ValueError, "labels mix int, text"),
        ((torch.randn(4, 3), torch.arange(4) % 2), None, {}, TypeError, "X and y as two arguments"),
        (
            torch.randn(8, 3),
            [0, 1] * 4,
            {"model": nn.Linear(3, 2)},
            TypeError,
            "Linear, not a function; give a callable",
        ),
        (
            torch.randn(8, 3),
            [0, 1] * 4,
            {"model": lambda: nn.Linear(3, 2).requires_grad_(False)},
            ValueError,
            "unfreeze",
        ),
        (
            torch.randint(256, (8, 3, 4, 4), dtype=torch.uint8),
            [0, 1] * 4,
            {"model": lambda: nn.Sequential(nn.Conv2d(3, 2, 4), nn.Flatten())},
            ValueError,
            r"cannot take inputs of torch.uint8 .* x.float\(\) / 255",
        ),
        (Endless(), None, {}, TypeError, "map-style Dataset with __len__"),
        (Pairs(torch.randn(8, 3), torch.arange(8) % 2), None, {}, ValueError, "pass a model"),
    ],
)
def test_mistakes_are_named(data, y, options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        discover_environments(data, y, **({"device": "cpu", "random_state": 0} | options))


@pytest.mark.user_input
def test_mistakes_at_the_trainer_are_named(tmp_path) -> None:
    x, y = torch.randn(10, 3), torch.arange(10) % 2
    with pytest.raises(ValueError, match="at least two classes"):
        trainer_on(x, y, classes=1)
    with pytest.raises(ValueError, match=r"lie in 0\.\.1, got 0\.\.2"):
        trainer_on(x, torch.arange(10) % 3)
    with pytest.raises(ValueError, match="integer dtype"):
        trainer_on(x, torch.rand(10))
    with pytest.raises(ValueError, match=r"returned \(., 5\), expected logits of shape \(., 2\)"):
        trainer_on(x, y, lambda: nn.Linear(3, 5)).step(torch.arange(10), x)
    trainer = trainer_on(x, y)
    with pytest.raises(TypeError, match="Linear, not a function"):
        trainer_on(x, y, nn.Linear(3, 2))
    with pytest.raises(ValueError, match="unfreeze a layer"):
        trainer_on(x, y, lambda: nn.Linear(3, 2).requires_grad_(False))
    with pytest.raises(ValueError, match=r"9 indices for inputs of \[10\] rows"):
        trainer.step(torch.arange(9), x)
    with pytest.raises(ValueError, match=r"cannot take inputs of torch.int64"):
        trainer.step(torch.arange(10), x.long())
    with pytest.raises(ValueError, match="logits of row 4 are not finite"):
        trainer.annotate(torch.where(torch.arange(10)[:, None] == 4, torch.nan, x), y)
    with pytest.raises(ValueError, match="shuffles"):
        trainer.annotate(DataLoader(TensorDataset(x, y), shuffle=True), y)
    with pytest.raises(ValueError, match="10 rows of inputs but 9 labels"):
        trainer.annotate(x, y[:9])
    with pytest.raises(ValueError, match="state is of 10 training examples"):
        trainer_on(x[:8], y[:8]).load_state_dict(trainer.state_dict())
    with pytest.raises(ValueError, match="num_classes"):
        flip_probability(torch.rand(3))
    with pytest.raises(ValueError, match="batch_size"):
        Setting(batch_size=0)
    with pytest.raises(ValueError, match="choose 'sgd'"):
        Setting(optimizer="lion")
    with pytest.raises(ValueError, match="range"):
        Search(lr=(1.0, 0.1))
    (tmp_path / "other").write_bytes(b"no")
    with pytest.raises(ValueError, match="not a saved discovery"):
        Environments.load(tmp_path / "other")


@quiet
@pytest.mark.parametrize("lost", ["train", "twin.a.weight", "trials", "about"])
def test_a_file_that_lacks_something_is_not_a_saved_discovery(tmp_path, lost: str) -> None:
    x, y, _ = shortcut(60)
    discover_environments(x, y, steps=3, search=1, random_state=0, device="cpu").save(tmp_path / "whole")
    with safe_open(tmp_path / "whole", "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys() if name != lost}  # noqa: SIM118
    save_file(tensors, tmp_path / "part", {name: text for name, text in metadata.items() if name != lost})
    with pytest.raises(ValueError, match="is not a whole saved discovery"):
        Environments.load(tmp_path / "part")
