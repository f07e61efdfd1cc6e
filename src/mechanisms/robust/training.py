"""Training on groups: several hyper-parameter draws side by side, selected by validation worst-group accuracy.

For small models: heads on frozen features, multi-layer perceptrons. M draws train as one stack on shared minibatches,
so that a search costs little more than one run; the checkpoint and the draw with the best accuracy on the worst
validation group win. With environments that were discovered (`mechanisms.robust.xrm`) the groups are
`num_environments * y + e` for training and validation alike, and nobody has annotated anything.

Initial weights, hyper-parameters and batch order depend on the seed alone, never on the learner, so that learners are
compared pair by pair. Deep networks keep their own loop; see `mechanisms.robust.groups`.

>>> x, y = torch.randn(80, 3, generator=torch.Generator().manual_seed(0)), torch.arange(80) % 2
>>> fit = fit_groups(x, y, y, x, y, y, make_model=lambda: nn.Linear(3, 2), learner="groupdro", steps=20)
>>> fit.model(x).shape
torch.Size([80, 2])
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mechanisms._base.device import resolve_device
from mechanisms._base.seeds import numpy_generator, seeded, stream_seed, torch_generator
from mechanisms.robust._loop import (
    Objective,
    Progress,
    Rows,
    Selection,
    batches,
    build_stack,
    check_examples,
    train_stack,
    weighted_cross_entropy,
)
from mechanisms.robust._settings import log_uniform
from mechanisms.robust._stack import OptimizerName, StackedOptimizer
from mechanisms.robust.groups import (
    GroupDROLoss,
    check_groups,
    group_means,
    irm_penalty,
    subsample_groups,
)

__all__ = ["RANGES", "Draws", "GroupFit", "draw_hyperparameters", "fit_groups"]

Learner = Literal["erm", "groupdro", "rwg", "subg", "irm"]

# Log-uniform ranges for standardised features; eta and IRM's two are the XRM paper's.
RANGES: Mapping[str, tuple[float, float]] = {
    "lr": (1e-4, 1e-2),
    "weight_decay": (1e-6, 1e-3),
    "batch_size": (2**5, 2**7),
    "eta": (1e-3, 1e-1),
    "irm_weight": (1e-1, 1e5),
    "irm_anneal": (1e0, 1e4),
}


@dataclass(frozen=True)
class Draws:
    """Hyper-parameters of M runs, one tuple per setting; a tuple of length one holds for all runs.

    Args:
        lr: learning rates.
        weight_decay: L2 penalties (decoupled for "adamw").
        batch_size: rows per step; None, or anything from the size of the training set, is the whole set.
        eta: step sizes of GroupDRO's weights.
        irm_weight: IRM's lambda.
        irm_anneal: steps in which IRM's penalty has weight 1 before it has `irm_weight`.

    Raises:
        ValueError: tuples of different lengths above one, or a value out of range.

    >>> len(Draws(lr=(0.1, 0.01)))
    2
    >>> Draws(lr=(0.1, 0.01))[1]["batch_size"]
    128
    """

    lr: tuple[float, ...]
    weight_decay: tuple[float, ...] = (1e-4,)
    batch_size: tuple[int | None, ...] = (128,)
    eta: tuple[float, ...] = (0.1,)
    irm_weight: tuple[float, ...] = (100.0,)
    irm_anneal: tuple[int, ...] = (100,)

    def __post_init__(self) -> None:
        settings = {field.name: tuple(getattr(self, field.name)) for field in fields(self)}
        count = max(map(len, settings.values()))
        for name, values in settings.items():
            if len(values) not in (1, count):
                raise ValueError(f"{name} has {len(values)} values for {count} draws; give one, or one for each")
            least = 1 if name == "batch_size" else 0
            for value in values:
                if value is None and name == "batch_size":
                    continue
                if value is None or not least <= value < math.inf:
                    raise ValueError(f"{name} holds {value}; expected finite numbers from {least}")
            object.__setattr__(self, name, values * count if len(values) == 1 else values)

    def __len__(self) -> int:
        return len(self.lr)

    def __getitem__(self, draw: int) -> dict[str, float | int | None]:
        return {field.name: getattr(self, field.name)[draw] for field in fields(self)}


def draw_hyperparameters(
    count: int = 3, ranges: Mapping[str, tuple[float, float]] = RANGES, generator: np.random.Generator | int = 0
) -> Draws:
    """Hyper-parameters of `count` runs, each log-uniform in its range.

    All settings are drawn, whichever learner will use them: equal seeds give equal draws for every learner.

    Args:
        count: M.
        ranges: lowest and highest value by setting of `Draws`; what is not named comes from `RANGES`. Batch sizes and
            annealing steps are rounded down.
        generator: a NumPy generator, or a seed.

    Raises:
        ValueError: no draw, an unknown setting, or a range that does not satisfy 0 < low <= high.

    Source: XRM's searches, for example batch sizes floor 2^U(5, 7).

    >>> draw_hyperparameters(3, generator=0) == draw_hyperparameters(3, generator=0)
    True
    >>> draw_hyperparameters(2, {"lr": (0.1, 0.1)}).lr
    (0.1, 0.1)
    """
    if count < 1:
        raise ValueError(f"count is {count}; at least one draw is needed")
    if unknown := set(ranges) - set(RANGES):
        raise ValueError(f"ranges names {sorted(unknown)}; the settings are {list(RANGES)}")
    numbers = generator if isinstance(generator, np.random.Generator) else numpy_generator(generator, "hyperparameters")
    values = {}
    for name in RANGES:
        low, high = ranges.get(name, RANGES[name])
        if not 0 < low <= high < math.inf:
            raise ValueError(f"the range of {name} is ({low}, {high}); expected 0 < low <= high")
        values[name] = tuple(float(log_uniform((low, high), place)) for place in numbers.random(count))
    return Draws(
        lr=values["lr"],
        weight_decay=values["weight_decay"],
        batch_size=tuple(map(int, values["batch_size"])),
        eta=values["eta"],
        irm_weight=values["irm_weight"],
        irm_anneal=tuple(map(int, values["irm_anneal"])),
    )


@dataclass(frozen=True)
class GroupFit:
    """What `fit_groups` returns.

    Attributes:
        model: the chosen model at its chosen checkpoint, in evaluation mode, on the device it was trained on.
        chosen: index of the chosen draw.
        step: the chosen checkpoint's step.
        draws: all hyper-parameters; `draws[chosen]` are the model's.
        steps: step of each checkpoint, (checkpoints,).
        worst_group_accuracy: on validation, (checkpoints, draws).
        average_accuracy: on validation, (checkpoints, draws).

    >>> x, y = torch.eye(2).repeat(10, 1), torch.arange(20) % 2
    >>> fit = fit_groups(x, y, y, x, y, y, make_model=lambda: nn.Linear(2, 2), draws=Draws(lr=(0.5,)), steps=100)
    >>> fit.step, fit.hyperparameters["lr"], fit.validation_curve
    (100, 0.5, array([1., 1.]))
    """

    model: nn.Module
    chosen: int
    step: int
    draws: Draws
    steps: np.ndarray
    worst_group_accuracy: np.ndarray
    average_accuracy: np.ndarray

    @classmethod
    def best_of(cls, selection: Selection, draws: Draws) -> "GroupFit":
        """The best of the models that trained; a warning when it is no model at all."""
        chosen, checkpoint, model = selection.choose()
        if not all(bool(p.isfinite().all()) for p in model.parameters()):
            warnings.warn("every draw diverged (weights are not finite); lower lr or irm_weight", stacklevel=3)
        worst, average = selection.curves()
        taken = np.array(selection.steps)
        return cls(model, chosen, int(taken[checkpoint]), draws, taken, worst, average)

    @property
    def hyperparameters(self) -> dict[str, float | int | None]:
        """The chosen draw's settings."""
        return self.draws[self.chosen]

    @property
    def validation_curve(self) -> np.ndarray:
        """The chosen draw's validation worst-group accuracy at each checkpoint."""
        return self.worst_group_accuracy[:, self.chosen]


def fit_groups(
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    groups: ArrayLike | Tensor,
    x_val: ArrayLike | Tensor,
    y_val: ArrayLike | Tensor,
    groups_val: ArrayLike | Tensor,
    *,
    make_model: Callable[[], nn.Module],
    learner: Learner = "groupdro",
    draws: Draws | None = None,
    steps: int = 1500,
    evaluate_every: int = 50,
    optimizer: OptimizerName = "sgd",
    momentum: float = 0.9,
    environments: ArrayLike | Tensor | None = None,
    repeats: ArrayLike | Tensor | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> GroupFit:
    """Train M draws of a learner side by side and keep the checkpoint with the best validation worst-group accuracy.

    Within a draw the last best checkpoint counts; draws with equal best are told apart by validation average
    accuracy, then by order. For no environments at all pass the labels as groups: the worst class then selects.

    Args:
        x, x_val: inputs, (n, ...), finite; moved to the model's dtype and to `device` as a whole.
        y, y_val: labels, (n,), integers from 0 to K - 1, where the model returns (batch, K).
        groups, groups_val: group of each example, (n,), any integers from 0.
        make_model: returns a fresh model; called once per draw, with torch's CPU generator seeded from `seed`.
        learner: "erm", "groupdro", "rwg" (with the whole set as batch: the weights in place of the sampling), "subg",
            or "irm"; see `mechanisms.robust.groups`.
        draws: hyper-parameters; default `draw_hyperparameters(3, generator=seed)`. The authors' one-minute run is
            `Draws(lr=(1e-2,), weight_decay=(0.0,), batch_size=(None,), eta=(0.1,))`, `momentum=0`, 3000 steps.
        steps: updates of each draw.
        evaluate_every: updates between checkpoints; the last update always is one.
        optimizer: "sgd", "adam" or "adamw".
        momentum: of "sgd".
        environments: (n,), integers from 0; only for "irm", whose penalty is per environment, not per group.
        repeats: how many times each example is in the training set, (n,); default once. JTT's up-weighting; not for
            "rwg" and "subg", which set these numbers themselves.
        seed: everything random follows from it.
        device: where to compute; "auto" takes an accelerator when there is one.
        progress: called at each checkpoint with step, total and the loss averaged over draws.

    Raises:
        ValueError: lengths that differ, values that are not finite, labels the model has no output for, groups that
            are not integers from 0, an unknown learner, or a setting out of range.

    Source: Pezeshki et al., "Discovering Environments with XRM", ICML 2024, phase 2.

    >>> x, y = np.random.default_rng(0).normal(size=(90, 4)), np.arange(90) % 3
    >>> fit = fit_groups(x, y, y, x, y, y, make_model=lambda: nn.Linear(4, 3), learner="rwg", steps=100)
    >>> fit.worst_group_accuracy.shape, fit.hyperparameters["batch_size"] <= 128
    ((2, 3), True)
    """
    if learner not in ("erm", "groupdro", "rwg", "subg", "irm"):
        raise ValueError(f"learner is {learner!r}; choose 'erm', 'groupdro', 'rwg', 'subg' or 'irm'")
    if (learner == "irm") != (environments is not None):
        raise ValueError("environments go with learner 'irm' and with no other: its penalty is per environment")
    if repeats is not None and learner in ("rwg", "subg"):
        raise ValueError(f"repeats do not go with learner {learner!r}, which balances groups by itself")
    draws = draw_hyperparameters(generator=seed) if draws is None else draws
    place = resolve_device(device)
    stack = build_stack(make_model, len(draws), seed, place)
    inputs, labels = check_examples(x, y, stack)
    codes = check_groups(groups, "groups", len(labels))
    selection = Selection(stack, *check_examples(x_val, y_val, stack, ("x_val", "y_val")), groups_val)

    times = np.ones(len(labels), np.int64) if repeats is None else check_groups(repeats, "repeats", len(labels))
    if learner == "subg":
        subset = subsample_groups(codes, generator=torch_generator(seed, "subset"))
        times = np.bincount(subset.numpy(), minlength=len(labels))
    if not times.any():
        raise ValueError("repeats are all 0: no example is left to train on")
    draw, counted = batches(times, draws.batch_size, seed, stack, codes if learner == "rwg" else None)
    if learner == "groupdro":
        objective = _groupdro(labels, codes, draws, counted)
    elif environments is not None:
        objective = _irm(labels, check_groups(environments, "environments", len(labels)), draws, counted)
    else:
        share = counted / counted.sum(1, keepdim=True)
        objective = weighted_cross_entropy(labels, lambda losses, rows: share)

    updates = StackedOptimizer(stack, optimizer, lr=draws.lr, weight_decay=draws.weight_decay, momentum=momentum)
    with seeded(stream_seed(seed, "noise"), place):
        train_stack(stack, updates, inputs, draw, objective, steps, evaluate_every, selection, progress)
    return GroupFit.best_of(selection, draws)


def _groupdro(labels: Tensor, codes: np.ndarray, draws: Draws, counted: Tensor) -> Objective:
    """GroupDRO with one `eta` and one set of group weights per draw."""
    groups, count = _encode(codes, labels.device)
    eta = torch.tensor(draws.eta, dtype=counted.dtype)
    loss = GroupDROLoss(count, eta, num_models=len(draws), device=labels.device, dtype=counted.dtype)
    return weighted_cross_entropy(labels, lambda losses, rows: loss.example_weights(losses, groups[rows], counted))


def _irm(labels: Tensor, codes: np.ndarray, draws: Draws, counted: Tensor) -> Objective:
    """IRM: cross-entropy and penalty averaged over environments, the penalty at weight 1 until `irm_anneal` steps."""
    environments, count = _encode(codes, labels.device)
    final, anneal = counted.new_tensor(draws.irm_weight), counted.new_tensor(draws.irm_anneal)

    def objective(logits: Tensor, rows: Rows, step: int) -> tuple[Tensor, Tensor]:
        where, target = environments[rows], labels[rows]
        weight = torch.where(anneal < step, final, 1.0)
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            losses = leaf.log_softmax(-1).gather(-1, target.expand(leaf.shape[:-1]).unsqueeze(-1)).squeeze(-1).neg()
            present = (group_means(counted, where, count, counted) > 0).sum(-1)
            nll = group_means(losses, where, count, counted).sum(-1) / present
            total = nll + weight * irm_penalty(leaf, target, where, count, counted)
            (gradient,) = torch.autograd.grad(total.sum(), leaf)
        return gradient, total.detach()

    return objective


def _encode(codes: np.ndarray, device: torch.device) -> tuple[Tensor, int]:
    """Arbitrary integers as 0 .. G - 1 on the device, and G."""
    present, index = np.unique(codes, return_inverse=True)
    return torch.from_numpy(index).to(device), len(present)
