"""Many pairs of twins in one pass are the pairs, one by one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mechanisms._base.seeds import torch_generator
from mechanisms.robust._stack import SharedBatches
from mechanisms.robust._twin_stack import TwinStack
from mechanisms.robust.xrm import (
    Setting,
    flip_probability,
)

# A test of a warning-free run would otherwise pass or fail by the small sets used here.
from tests.robust.shortcuts import shortcut, trainer_on, zero_head


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
