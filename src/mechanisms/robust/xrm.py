"""XRM: discovering environments by cross-risk minimisation, from arrays, tensors or data sets to annotations.

A classifier that relies on a shortcut (cows stand on grass) fails on the minority that breaks it. Group-robust training
repairs this when every example carries an environment label. XRM finds such labels without any annotation: twin
networks, each trained on a random half, adopt each other's confident held-out mistakes until both rely on the shortcut
alone; what either of them then gets wrong is environment 1, the rest environment 0 (`mechanisms.robust.twins`).

    e(x, y) = 1[argmax f^a(x) != y  or  argmax f^b(x) != y],        group = 2 y + e

Hyper-parameters are chosen without annotations as well: of H combinations the one that flips most labels. For linear
heads and multi-layer perceptrons in memory all combinations are trained in one pass on shared minibatches.

Reference: Pezeshki, Bouchacourt, Ibrahim, Ballas, Vincent, Lopez-Paz, "Discovering Environments with XRM", ICML 2024,
arXiv 2309.16748.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from mechanisms._base.device import resolve_device
from mechanisms._base.seeds import RandomState, as_seed
from mechanisms.robust._networks import check_factory
from mechanisms.robust._phase1 import Outcome, Problem, Progress, can_stack, num_runs, train_pairs
from mechanisms.robust._rows import Rows, TensorRows, as_rows
from mechanisms.robust._settings import Search, Setting
from mechanisms.robust.environments import Environments, Snapshot, Trial, Twins, encode_labels
from mechanisms.robust.twins import (
    TwinTrainer,
    balanced_cross_entropy,
    cross_mistakes,
    flip_probability,
)

__all__ = [
    "Environments", "Search", "Setting", "Snapshot", "Trial", "TwinTrainer", "Twins", "balanced_cross_entropy",
    "cross_mistakes", "default_steps", "discover_environments", "flip_probability", "zero_head",
]  # fmt: skip


def discover_environments(
    data: Any,
    y: Any = None,
    *,
    validation: Any = None,
    model: Callable[[], nn.Module] | None = None,
    search: int | Search | Sequence[Setting] = 10,
    steps: int | None = None,
    standardize: bool | None = None,
    flips: bool = True,
    balanced: bool = True,
    held_out: bool = True,
    snapshots: Sequence[int] = (),
    device: str | torch.device = "auto",
    num_workers: int = 0,
    random_state: RandomState = None,
    search_seed: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Environments:
    """Two environments for labelled data, found without annotations.

    Args:
        data: array, DataFrame of numbers, tensor (n, ...), or a map-style data set yielding (x, y).
        y: labels of any dtype, at least two classes; may be left out when a data set yields them (that costs one pass
            over it).
        validation: (X, y) or a data set, annotated as well; not trained on.
        model: returns a fresh network from inputs to K logits. Default a linear head that starts at zero.
        search: how many combinations to draw from `Search()` (the paper takes 10), a `Search`, or the combinations.
        steps: updates per combination; default 40 epochs, but between 1500 and 5000 (300 for less than one batch).
        standardize: bring features to mean 0 and variance 1 with the training statistics, in which every class weighs
            the same, before arrays of doubles become single precision; default only for the linear head.
        flips, balanced, held_out: False switches off label flipping, class balancing, or flips from the network that
            has not trained on the example (ablations).
        snapshots: steps at which the environments are also kept.
        device: where to compute; data in memory move there once.
        num_workers: worker processes that load a data set; they do not change the result.
        random_state: seed or generator. The same seed gives the same environments on a CPU.
        search_seed: seed of the search when it differs: the best combination is then trained again with
            `random_state`. Default the same seed, without training again.
        progress: called with (steps done, steps in all), about a hundred times.

    Returns:
        `Environments`.

    Raises:
        ValueError: one class only, a class with a single example, missing labels, NaN, different lengths, a model that
            does not fit the inputs or classes or has nothing to train.
        TypeError: an iterable-style data set, (X, y) as one argument, or a model that is not a function.

    Warns:
        UserWarning: very small classes, degenerate environments, or flips that run away.

    >>> generator = torch.Generator().manual_seed(0)
    >>> y = torch.arange(400) % 2
    >>> background = torch.where(torch.arange(400) < 360, y, 1 - y)      # agrees with the label in nine of ten
    >>> x = torch.randn(400, 4, generator=generator)
    >>> x[:, 0] += 8.0 * background - 4.0
    >>> found = discover_environments(x, y, random_state=0, steps=300, search=4, device="cpu")
    >>> bool((found.train == (background != y)).all())
    True
    >>> print(found.summary().splitlines()[0])
    class         train e=0         train e=1
    """
    chosen, seed = resolve_device(device), as_seed(random_state)
    if model is not None:
        check_factory(model)
    standardize = model is None if standardize is None else standardize
    to_float = standardize or model is None
    take = partial(as_rows, to_float=to_float, exact=standardize, num_workers=num_workers, seed=seed)
    rows, given = take(data, y)
    classes, indices = np.unique(given, return_inverse=True)
    labels = torch.from_numpy(indices.astype(np.int64))
    _check_classes(classes, labels)
    if to_float and (not isinstance(rows, TensorRows) or rows.inputs.dim() != 2):
        raise ValueError(
            "standardize and the default linear head need features of shape (n, d) in memory; embed images or "
            "text first (mechanisms.robust.embed), or pass a model"
        )
    statistics = _statistics(rows.inputs, labels) if standardize and isinstance(rows, TensorRows) else (None, None)
    ready = partial(_ready, like=rows, scaling=Twins(nn.Identity(), nn.Identity(), *statistics), device=chosen)
    rows, held_rows, held_labels = ready(rows), None, None
    if model is None:
        assert isinstance(rows, TensorRows)
        model = zero_head(rows.inputs.shape[1], len(classes))
    if validation is not None:
        held_x, held_y = validation if isinstance(validation, tuple | list) else (validation, None)
        if isinstance(rows, TensorRows) and held_y is None and not isinstance(held_x, TensorDataset):
            raise ValueError("the training data are in memory, so validation needs to be (X, y) or a TensorDataset")
        held_rows, held_given = take(held_x, held_y)
        held_rows, held_labels = ready(held_rows), encode_labels(held_given, classes)

    if isinstance(search, int):
        search = Search(trials=search)
    search_seed = seed if search_seed is None else search_seed
    settings = search.draw(search_seed) if isinstance(search, Search) else list(search)
    if not settings:
        raise ValueError("search holds no combination; give a number, a Search, or at least one Setting")
    steps = default_steps(len(labels)) if steps is None else steps
    if steps < 1 or any(not 1 <= at <= steps for at in snapshots):
        raise ValueError(f"steps need to be at least 1 and snapshots within them, got {steps} and {list(snapshots)}")
    again, one_pass = search_seed != seed, can_stack(model, rows)
    problem = Problem(
        make_model=model,
        rows=rows,
        labels=labels,
        num_classes=len(classes),
        validation_rows=held_rows,
        validation_labels=held_labels,
        device=chosen,
        steps=steps,
        snapshots=tuple(sorted(set(snapshots))),
        one_pass=one_pass,
        flips=flips,
        balanced=balanced,
        held_out=held_out,
        progress=Progress(progress, steps * (num_runs(one_pass, settings) + again)),
    )
    outcomes = train_pairs(problem, settings, search_seed)
    trials = tuple(Trial(one.setting, one.flip_rate, one.degenerate, one.train) for one in outcomes)
    # All degenerate: the largest flip rate of twins that did not diverge is still the best guess.
    best = max(
        range(len(trials)), key=lambda index: (trials[index].score, outcomes[index].finite, trials[index].flip_rate)
    )
    outcome = outcomes[best]
    if again:
        (outcome,) = train_pairs(problem, [outcome.setting], seed)
    _warn(outcome, classes, labels, held_labels)

    a, b = outcome.networks()
    logits = Twins(a, b).predict(rows.in_order(), chosen)
    in_a = outcome.twin_of == 0
    return Environments(
        train=outcome.train,
        validation=outcome.validation,
        flip_rate=outcome.flip_rate,
        flip_history=outcome.flip_history,
        degenerate=outcome.degenerate,
        held_out_probabilities=torch.where(in_a.unsqueeze(1), logits[1], logits[0]).float().softmax(1),
        twin_of=outcome.twin_of,
        trials=trials,
        best_setting=outcome.setting,
        classes=classes,
        labels=labels,
        validation_labels=held_labels,
        snapshots=outcome.snapshots,
        twins=Twins(a, b, *statistics),
    )


def default_steps(num_examples: int) -> int:
    """Steps of phase 1 when none are given: 40 epochs of 128 rows, between 1500 and 5000; 300 below one batch.

    >>> default_steps(100), default_steps(4795), default_steps(100_000)
    (300, 1500, 5000)
    """
    return 300 if num_examples <= 128 else min(max(1500, 40 * num_examples // 128), 5000)


def zero_head(features: int, num_classes: int) -> Callable[[], nn.Module]:
    """A factory of linear heads that start at zero, as the paper's do: only their halves tell the twins apart.

    >>> zero_head(3, 2)()(torch.ones(1, 3)).tolist()
    [[0.0, 0.0]]
    """

    def make() -> nn.Module:
        head = nn.Linear(features, num_classes)
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        return head

    return make


def _ready(rows: Rows, *, like: Rows, scaling: Twins, device: torch.device) -> Rows:
    """Rows of training or validation data as the networks take them: standardised, of one dtype, on the device."""
    if not isinstance(rows, TensorRows):
        return rows
    inputs = scaling.prepare(rows.inputs)
    if inputs.is_floating_point() and isinstance(like, TensorRows):
        inputs = inputs.to(like.dtype)
    return TensorRows(inputs.to(device))


def _statistics(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature with every class weighing the same; constant features stay unscaled.

    Around the plain mean a head without bias yet favours small classes, and the first flips would go to them: with
    imbalanced classes the twins then never come back from it.
    """
    share = 1 / labels.bincount()[labels].double() / len(labels.unique())
    # Block by block and on the CPU: large features may not fit a second time, and not every device knows doubles.
    blocks = list(zip(inputs.split(8192), share.split(8192), strict=True))
    mean = torch.stack([weight @ block.cpu().double() for block, weight in blocks]).sum(0)
    square = torch.stack([weight @ (block.cpu().double() - mean).square_() for block, weight in blocks]).sum(0)
    scale = square.sqrt()
    rounding = 1e-12 if inputs.dtype == torch.float64 else 1e-7
    scale[scale <= rounding * mean.abs()] = 1
    return mean.to(inputs.dtype), scale.to(inputs.dtype)


def _check_classes(classes: np.ndarray, labels: Tensor) -> None:
    if len(classes) < 2:
        raise ValueError(f"at least two classes are needed, got {len(classes)} class: {classes.tolist()}")
    counts = labels.bincount()
    single = [str(classes[index]) for index in (counts < 2).nonzero().flatten().tolist()]
    if single:
        raise ValueError(
            f"class {', '.join(single[:5])} has a single example; each class needs two, one for each twin (four are "
            "better); drop or merge it"
        )
    small = [str(classes[index]) for index in (counts < 4).nonzero().flatten().tolist()]
    if small:
        warnings.warn(
            f"class {', '.join(small[:5])} has fewer than four examples; they are split evenly between the twins, and "
            "its environments mean little",
            UserWarning,
            stacklevel=3,
        )


def _warn(outcome: Outcome, classes: np.ndarray, labels: Tensor, held_labels: Tensor | None) -> None:
    if not outcome.finite:
        problem = "the twins diverged (logits are not finite); lower lr"
    else:
        problem = _missing_by_kind(outcome, classes, labels, held_labels)
    if problem:
        warnings.warn(
            f"degenerate environments: {problem}. Look at them before using them for group-robust training",
            UserWarning,
            stacklevel=3,
        )
    history, rate = outcome.flip_history, outcome.flip_rate
    halfway = next(earlier for step, earlier in history if step >= history[-1][0] / 2)
    flipped, more = halfway * len(labels), (rate - halfway) * len(labels)
    # Three standard errors of a count, so that a handful of late flips is no rise.
    rising = more > 0.15 * flipped and more > 3 * max(flipped, 1) ** 0.5
    if outcome.finite and (rate > 0.5 or rising):
        # From the last point backwards: it is always shown.
        shown = ", ".join(f"{step}: {value:.3f}" for step, value in history[:: -max(1, len(history) // 8)][::-1])
        warnings.warn(
            f"the flip rate is {rate:.3f} and "
            + ("above 1/2" if rate > 0.5 else f"still rising, from {halfway:.3f} halfway")
            + f" (step: rate = {shown}): the twins may be confirming each other (lower lr or steps), or a short run "
            "has not settled",
            UserWarning,
            stacklevel=3,
        )


def _missing_by_kind(outcome: Outcome, classes: np.ndarray, labels: Tensor, held_labels: Tensor | None) -> str:
    """Which classes lack which environment where, and what to do about it; empty when none does."""
    lacking: dict[str, list[str]] = {}
    for split, environments, of in (("train", outcome.train, labels), ("validation", outcome.validation, held_labels)):
        if environments is None or of is None:
            continue
        counts = (2 * of + environments).bincount(minlength=2 * len(classes)).view(-1, 2).tolist()
        for index, (zeros, ones) in enumerate(counts):
            if zeros + ones > 0 and min(zeros, ones) == 0:
                kind = (
                    "a single example" if zeros + ones == 1 else "no environment 1" if ones == 0 else "no environment 0"
                )
                lacking.setdefault(kind, []).append(f"class {classes[index]} ({split})")
    advice = {
        "no environment 1": "the twins made no held-out mistakes on it; the label may be predictable without a "
        "shortcut, or train longer / weaker model",
        "no environment 0": "the twins err on all of it; lower lr or steps",
        "a single example": "it cannot be in both environments",
    }
    return "; ".join(
        f"{kind} in {', '.join(lacking[kind][:5])}{' and others' if len(lacking[kind]) > 5 else ''}: {text}"
        for kind, text in advice.items()
        if kind in lacking
    )
