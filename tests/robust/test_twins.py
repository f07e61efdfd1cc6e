"""Twin training: the exact facts of its losses, flips and annotations."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from mechanisms.robust._stack import SharedBatches
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
from tests.robust.shortcuts import shortcut, trainer_on, zero_head

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
