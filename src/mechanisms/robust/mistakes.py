"""The mistakes of plain training: which examples an ERM gets wrong, on what it saw or on what it did not see.

JTT takes the first for its second training; both are the simplest environments one can make without annotations, and
what XRM's flips are compared with. `num_environments * y + e` makes them groups for `fit_groups`.

>>> x, y = torch.eye(2).repeat(10, 1), torch.arange(20) % 2
>>> erm_errors(x, y, make_model=lambda: nn.Linear(2, 2), steps=[10, 100], settings=Draws(lr=(0.5,))).shape
torch.Size([2, 20])
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mechanisms._base.device import resolve_device
from mechanisms._base.seeds import seeded, stream_seed, torch_generator
from mechanisms.robust._loop import (
    Rows,
    batches,
    build_stack,
    check_examples,
    predict_stack,
    train_stack,
    weighted_cross_entropy,
)
from mechanisms.robust._stack import OptimizerName, StackedOptimizer
from mechanisms.robust.training import Draws

__all__ = ["erm_errors", "held_out_errors"]

ERM_SETTINGS = Draws(lr=(1e-3,))


def erm_errors(
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    *,
    make_model: Callable[[], nn.Module],
    steps: int | Sequence[int] = 1500,
    settings: Draws = ERM_SETTINGS,
    optimizer: OptimizerName = "sgd",
    momentum: float = 0.9,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Which training examples one ERM gets wrong: JTT's error set, or environments from errors without twins.

    Args:
        x: inputs, (n, ...), finite.
        y: labels, (n,), integers from 0.
        make_model: returns a fresh model; torch's CPU generator is seeded from `seed`.
        steps: updates; of several numbers, ascending, each gives a row of the result from one training.
        settings: one draw of hyper-parameters.
        optimizer, momentum, seed, device: as in `fit_groups`.

    Returns:
        1 where the prediction after training is wrong, else 0: (n,), int64, or (len(steps), n). On the CPU.

    Raises:
        ValueError: examples that do not fit each other or the model, more than one draw, steps that do not ascend.

    >>> x, y = torch.eye(2).repeat(10, 1), torch.arange(20) % 2
    >>> int(erm_errors(x, y, make_model=lambda: nn.Linear(2, 2), steps=100, settings=Draws(lr=(0.5,))).sum())
    0
    """
    return _errors(x, y, 1, make_model, steps, settings, optimizer, momentum, seed, device)


def held_out_errors(
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    *,
    make_model: Callable[[], nn.Module],
    steps: int | Sequence[int] = 1500,
    settings: Draws = ERM_SETTINGS,
    optimizer: OptimizerName = "sgd",
    momentum: float = 0.9,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Which examples are wrong under the one of two models, each trained on a random half, that never saw them.

    XRM's halves without its flips, balanced loss and cross-mistakes: environments from held-out errors alone.

    Arguments, result and errors are those of `erm_errors`; a batch holds as many rows for each of the two models.

    >>> x, y = torch.eye(2).repeat(10, 1), torch.arange(20) % 2
    >>> int(held_out_errors(x, y, make_model=lambda: nn.Linear(2, 2), steps=100, settings=Draws(lr=(0.5,))).sum())
    0
    """
    return _errors(x, y, 2, make_model, steps, settings, optimizer, momentum, seed, device)


def _errors(
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    count: int,
    make_model: Callable[[], nn.Module],
    steps: int | Sequence[int],
    settings: Draws,
    optimizer: OptimizerName,
    momentum: float,
    seed: int,
    device: str | torch.device,
) -> Tensor:
    """Errors of one model on its training set, or of two on the halves they were not trained on."""
    marks = [steps] if isinstance(steps, int) else list(steps)
    if not marks or marks[0] < 1 or any(b <= a for a, b in pairwise(marks)):
        raise ValueError(f"steps is {steps}; expected a number from 1, or several in ascending order")
    if len(settings) != 1:
        raise ValueError(f"settings hold {len(settings)} draws of hyper-parameters; expected exactly one")
    place = resolve_device(device)
    stack = build_stack(make_model, count, seed, place)
    inputs, labels = check_examples(x, y, stack)
    draw, counted = batches(np.ones(len(labels), np.int64), settings.batch_size * count, seed, stack)
    half = torch.rand(len(labels), generator=torch_generator(seed, "halves")) < 0.5
    trains = (torch.stack([half, ~half]) if count == 2 else torch.ones(1, len(labels))).to(counted)

    def weigh(losses: Float[Tensor, "models batch"], rows: Rows) -> Tensor:
        own = counted * trains[:, rows]
        return own / own.sum(1, keepdim=True).clamp(min=1)

    updates = StackedOptimizer(stack, optimizer, lr=settings.lr, weight_decay=settings.weight_decay, momentum=momentum)
    objective, wrong = weighted_cross_entropy(labels, weigh), []
    with seeded(stream_seed(seed, "noise"), place):
        for before, mark in zip([0, *marks], marks, strict=False):
            train_stack(stack, updates, inputs, draw, objective, mark - before, mark)
            errors = predict_stack(stack, inputs).argmax(-1) != labels
            wrong.append(errors[0] if count == 1 else torch.where(trains[0] > 0, errors[1], errors[0]))
    result = torch.stack(wrong).long().cpu()
    return result[0] if isinstance(steps, int) else result
