"""Robustness by retraining the last layer alone: AFR without annotations, DFR on a set with groups.

A network trained plainly usually knows the core features too; only its last layer leans on the shortcut. So both keep
the body, and cost seconds.

    AFR    w_i proportional to exp(-gamma p_i) / n_{y_i}, p_i the ERM's probability of the true class on examples it
           was not trained on;  min over W of sum_i w_i CE_i(W) + lambda ||W - W_erm||^2     (Qiu et al., ICML 2023)
    DFR    logistic regression with an l1 penalty on standardised embeddings of group-balanced subsets, averaged over
           subsets                                                                  (Kirichenko et al., ICLR 2023)

>>> x, y = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 2
>>> dfr(x, y, y, C=(1.0,))
Linear(in_features=3, out_features=2, bias=True)
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from mechanisms._base.device import resolve_device
from mechanisms._base.seeds import seeded, stream_seed, torch_generator
from mechanisms.robust._loop import (
    Selection,
    batches,
    build_stack,
    check_examples,
    predict,
    train_stack,
    weighted_cross_entropy,
)
from mechanisms.robust._stack import ModelStack, OptimizerName, StackedOptimizer
from mechanisms.robust.groups import check_groups, group_counts, subsample_groups, worst_group_accuracy
from mechanisms.robust.mistakes import ERM_SETTINGS
from mechanisms.robust.training import Draws

__all__ = ["AFRFit", "afr", "afr_weights", "dfr", "last_layer_features"]


def afr_weights(probabilities: ArrayLike | Tensor, y: ArrayLike | Tensor, gamma: float) -> Tensor:
    """AFR's example weights: balanced over classes, larger where the ERM gives the true class little probability.

    Args:
        probabilities: of the true class under the ERM, (n,), in [0, 1].
        y: labels, (n,), integers from 0.
        gamma: how sharply; 0 leaves the class balance alone.

    Returns:
        (n,), summing to one, `w_i` proportional to `exp(-gamma p_i) / n_{y_i}`.

    Raises:
        ValueError: probabilities outside [0, 1], lengths that differ, a negative or infinite gamma.

    Source: Qiu et al., "Simple and Fast Group Robustness by Automatic Feature Reweighting", ICML 2023, equation 2.

    >>> afr_weights([0.9, 0.1, 0.5], [0, 0, 1], gamma=0.0)
    tensor([0.2500, 0.2500, 0.5000], dtype=torch.float64)
    """
    p = torch.as_tensor(probabilities if isinstance(probabilities, Tensor) else np.asarray(probabilities, np.float64))
    if p.dim() != 1 or not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError(f"probabilities have shape {tuple(p.shape)}; expected (n,) numbers from 0 to 1")
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"gamma is {gamma}; expected a finite number from 0")
    labels = torch.from_numpy(check_groups(y, "y", len(p))).to(p.device)
    return (-gamma * p - labels.bincount()[labels].to(p.dtype).log()).softmax(0)


@dataclass(frozen=True)
class AFRFit:
    """What `afr` returns.

    Attributes:
        model: the ERM with the chosen last layer, in evaluation mode.
        erm: the ERM itself.
        gamma, penalty: the chosen settings.
        step: the chosen checkpoint's step.
        settings: (gamma, penalty) of each column of the curves.
        worst_group_accuracy: on validation, (checkpoints, settings).

    >>> x, y = torch.eye(2).repeat(20, 1), torch.arange(40) % 2
    >>> fit = afr(x, y, x, y, y, make_model=lambda: nn.Linear(2, 2), steps=9, gammas=[4.0], penalties=[0.0, 0.1])
    >>> fit.settings
    ((4.0, 0.0), (4.0, 0.1))
    """

    model: nn.Module
    erm: nn.Module
    gamma: float
    penalty: float
    step: int
    settings: tuple[tuple[float, float], ...]
    worst_group_accuracy: np.ndarray


def afr(
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    x_val: ArrayLike | Tensor,
    y_val: ArrayLike | Tensor,
    groups_val: ArrayLike | Tensor,
    *,
    make_model: Callable[[], nn.Module],
    settings: Draws = ERM_SETTINGS,
    steps: int = 1500,
    optimizer: OptimizerName = "sgd",
    momentum: float = 0.9,
    gammas: Sequence[float] = (0.0, 2.0, 4.0, 8.0, 16.0),
    penalties: Sequence[float] = (0.0, 0.01, 0.1, 1.0),
    retrain_steps: int = 500,
    retrain_lr: float = 1e-2,
    evaluate_every: int = 25,
    held_out: float = 0.2,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> AFRFit:
    """Automatic Feature Reweighting: ERM on most of the training set, its last layer re-trained on the rest.

    All pairs of gamma and penalty train side by side, full batch, SGD with momentum 0.9; the pair and the checkpoint
    with the best validation worst-group accuracy win (last checkpoint, then average accuracy, then order).

    Args:
        x, x_val: inputs, (n, ...), finite.
        y, y_val: labels, (n,), integers from 0.
        groups_val: group of each validation example, (n,), integers from 0; used for selection only.
        make_model: returns a fresh model whose output is that of its last `nn.Linear`.
        settings, steps, optimizer, momentum: of the ERM; settings is one draw of hyper-parameters.
        gammas: how sharply wrong examples are up-weighted.
        penalties: lambda, how strongly the last layer (bias included) is held to the ERM's.
        retrain_steps, retrain_lr: updates of the last layer and their rate.
        evaluate_every: updates between checkpoints.
        held_out: share of the training set for the last layer; default 0.2 as in the paper.
        seed, device: as in `fit_groups`.

    Raises:
        ValueError: examples that do not fit each other or the model, settings out of range, a model that does not end
            in a linear layer.

    Source: Qiu et al., "Simple and Fast Group Robustness by Automatic Feature Reweighting", ICML 2023.

    >>> x, y = torch.eye(2).repeat(20, 1), torch.arange(40) % 2
    >>> afr(x, y, x, y, y, make_model=lambda: nn.Linear(2, 2), steps=50, retrain_steps=10).model
    Linear(in_features=2, out_features=2, bias=True)
    """
    pairs = tuple((float(g), float(p)) for g, p in itertools.product(gammas, penalties))
    if not pairs or min(map(min, pairs)) < 0:
        raise ValueError(
            f"gammas are {gammas} and penalties {penalties}; expected numbers from 0, at least one of each"
        )
    if not 0 < held_out < 1 or len(settings) != 1:
        raise ValueError(
            f"held_out is {held_out} and settings hold {len(settings)} draws; expected 0 to 1, and one draw"
        )
    place = resolve_device(device)
    stack = build_stack(make_model, 1, seed, place)
    inputs, labels = check_examples(x, y, stack)
    val_inputs, val_labels = check_examples(x_val, y_val, stack, ("x_val", "y_val"))
    rest = round(held_out * len(labels))
    if not 0 < rest < len(labels):
        raise ValueError(f"held_out {held_out} of {len(labels)} examples leaves one part empty; give more examples")
    order = torch.randperm(len(labels), generator=torch_generator(seed, "afr")).to(place)
    first, second = order[rest:], order[:rest]

    draw, counted = batches(np.ones(len(first), np.int64), settings.batch_size, seed, stack)
    share = counted / counted.sum(1, keepdim=True)
    objective = weighted_cross_entropy(labels[first], lambda losses, rows: share)
    updates = StackedOptimizer(stack, optimizer, lr=settings.lr, weight_decay=settings.weight_decay, momentum=momentum)
    with seeded(stream_seed(seed, "noise"), place):
        train_stack(stack, updates, inputs[first], draw, objective, steps, steps)
    erm = stack.extract(0).eval()

    features, head = last_layer_features(erm, inputs[second])
    with torch.no_grad():
        p = head(features).softmax(1).gather(1, labels[second, None]).squeeze(1)
    weights = torch.stack([afr_weights(p, labels[second], gamma) for gamma, _ in pairs])
    heads = ModelStack([head] * len(pairs))
    selection = Selection(heads, last_layer_features(erm, val_inputs)[0], val_labels, groups_val)
    _retrain(heads, features, labels[second], weights, pairs, retrain_steps, retrain_lr, evaluate_every, selection)
    chosen, checkpoint, best = selection.choose()
    model = copy.deepcopy(erm)
    _last_linear(model).load_state_dict(best.state_dict())
    return AFRFit(model, erm, *pairs[chosen], selection.steps[checkpoint], pairs, selection.curves()[0])


def last_layer_features(model: nn.Module, inputs: Tensor) -> tuple[Tensor, nn.Linear]:
    """What a model's last linear layer sees, and that layer.

    Args:
        model: any module whose output is that of its last `nn.Linear`.
        inputs: (n, ...).

    Returns:
        Features (n, d), detached, in evaluation mode, and the layer.

    Raises:
        ValueError: there is no such layer, or the model's output is not its output.

    >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    >>> last_layer_features(model, torch.ones(4, 3))[0].shape
    torch.Size([4, 5])
    """
    layer, seen = _last_linear(model), []
    hook = layer.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].detach()))
    try:
        logits = predict(model, inputs)
    finally:
        hook.remove()
    features = torch.cat(seen) if seen else inputs.new_zeros(0)
    with torch.no_grad():
        if (
            features.dim() != 2
            or len(features) != len(inputs)
            or not torch.allclose(layer(features), logits, atol=1e-5)
        ):
            raise ValueError("the model's output is not that of its last nn.Linear: there is no last layer to retrain")
    return features, layer


def dfr(
    embeddings: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    groups: ArrayLike | Tensor,
    *,
    C: Sequence[float] = (1.0, 0.3, 0.1, 0.03, 0.01),
    draws: int = 10,
    seed: int = 0,
) -> nn.Linear:
    """Deep Feature Reweighting: a new last layer from a held-out set with groups, as a layer on raw embeddings.

    Several values of C are compared on one half of the set by worst-group accuracy, after training on a balanced
    subset of the other (the first best wins); the layer is then trained on balanced subsets of the whole set.

    Args:
        embeddings: inputs of the last layer on examples the network was not trained on, (n, d), finite.
        y: labels, (n,), 0 .. K - 1, all of them there.
        groups: group of each example, (n,), integers from 0; true or discovered ones, usually `E * y + e`.
        C: inverse strengths of the l1 penalty, in scikit-learn's sense; the standardisation is part of the fit.
        draws: balanced subsets to average over; the paper takes 10 to 20.
        seed: of subsets, halves and the solver.

    Returns:
        A linear layer (d, K), float32: `network.fc = dfr(...)`.

    Raises:
        ValueError: lengths that differ, values that are not finite, a class without examples, no draws, a C that is
            not positive, a group too small to be halved when there are several C.

    Source: Kirichenko et al., "Last Layer Re-Training is Sufficient for Robustness to Spurious Correlations",
        ICLR 2023, section 5 and appendix C.

    >>> x, y = np.random.default_rng(0).normal(size=(80, 4)), np.arange(80) % 2
    >>> x[:, 0] += 4 * y
    >>> head = dfr(x, y, 2 * y + np.arange(80) // 40, draws=2)
    >>> worst_group_accuracy(y, head(torch.tensor(x, dtype=torch.float32)).argmax(1), y) > 0.9
    True
    """
    data = np.asarray(embeddings.detach().cpu() if isinstance(embeddings, Tensor) else embeddings, dtype=np.float64)
    if data.ndim != 2 or len(data) == 0 or not np.isfinite(data).all():
        raise ValueError(f"embeddings have shape {data.shape}; expected (n, d) finite numbers, at least one row")
    labels, codes = check_groups(y, "y", len(data)), check_groups(groups, "groups", len(data))
    classes = int(labels.max()) + 1
    if classes < 2 or len(np.unique(labels)) < classes:
        raise ValueError(
            f"y has the classes {np.unique(labels)}; expected 0 .. K - 1, at least two, each with examples"
        )
    if draws < 1 or len(C) == 0 or not min(C) > 0:
        raise ValueError(f"draws is {draws} and C {C}; expected at least one draw and positive values of C")
    generator = torch_generator(seed, "dfr")
    mean, scale = data.mean(0), data.std(0)
    scale[scale == 0] = 1  # a constant column tells nothing and must not become NaN
    scaled = (data - mean) / scale

    strength = C[0]
    if len(C) > 1:
        small = [group for group, size in group_counts(codes).items() if size < 2]
        if small:
            raise ValueError(f"groups {small} have one example: comparing values of C takes two of each; give one C")
        halves = _halves(codes, generator)
        subset = halves[0][subsample_groups(codes[halves[0]], generator=generator).numpy()]
        scores = []
        for candidate in C:
            weight, bias = _l1_logistic(scaled[subset], labels[subset], classes, candidate, seed)
            prediction = (scaled[halves[1]] @ weight.T + bias).argmax(1)
            scores.append(worst_group_accuracy(labels[halves[1]], prediction, codes[halves[1]]))
        strength = C[int(np.argmax(scores))]

    weight, bias = np.zeros((classes, data.shape[1])), np.zeros(classes)
    for _ in range(draws):
        subset = subsample_groups(codes, generator=generator).numpy()
        part = _l1_logistic(scaled[subset], labels[subset], classes, strength, seed)
        weight, bias = weight + part[0] / draws, bias + part[1] / draws
    # The layer takes raw embeddings: w (x - mean) / scale + b.
    weight = weight / scale
    head = nn.Linear(data.shape[1], classes)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias - weight @ mean))
    return head


def _retrain(
    heads: ModelStack,
    features: Tensor,
    labels: Tensor,
    weights: Tensor,
    pairs: tuple[tuple[float, float], ...],
    steps: int,
    lr: float,
    evaluate_every: int,
    selection: Selection,
) -> None:
    """Full-batch updates of sum_i w_i CE_i + penalty ||W - W_start||^2, one column of settings per head."""
    if steps < 1 or evaluate_every < 1:
        raise ValueError(f"retrain_steps is {steps} and evaluate_every {evaluate_every}; each needs at least 1")
    objective = weighted_cross_entropy(labels, lambda losses, rows: weights)
    updates = StackedOptimizer(heads, "sgd", lr=lr, momentum=0.9)
    start = heads.flat.clone()
    pulls = start.new_tensor([2 * penalty for _, penalty in pairs])
    back = torch.cat([pulls.repeat_interleave(p.numel() // len(pairs)) for p in heads.parameters.values()])
    for step in range(1, steps + 1):
        logits, pull = heads.vjp(features)
        with torch.no_grad():
            pull(objective(logits, slice(None), step)[0])
            heads.flat_grad.addcmul_(heads.flat - start, back)
            updates.step()
        if step % evaluate_every == 0 or step == steps:
            selection(step)


def _last_linear(model: nn.Module) -> nn.Linear:
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no nn.Linear: there is no last layer to retrain")
    return layers[-1]


def _halves(codes: np.ndarray, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two random halves of every group."""
    shuffled = torch.randperm(len(codes), generator=generator).numpy()
    by_group = shuffled[np.argsort(codes[shuffled], kind="stable")]
    return by_group[::2], by_group[1::2]


def _l1_logistic(
    data: np.ndarray, labels: np.ndarray, classes: int, C: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (K, d) and biases (K,) of an l1-penalised logistic regression."""
    if len(np.unique(labels)) < classes:
        raise ValueError(
            f"a group-balanced subset holds the classes {np.unique(labels)} of {classes}: let groups contain the label "
            "(num_environments * y + e)"
        )
    # scikit-learn 1.8 renamed penalty="l1" to l1_ratio=1.
    l1: dict[str, Any] = (
        {"l1_ratio": 1.0}
        if getattr(LogisticRegression(), "penalty", "deprecated") == "deprecated"
        else {"penalty": "l1"}
    )
    solver = "liblinear" if classes == 2 else "saga"
    fit: Any = LogisticRegression(
        C=C, solver=solver, max_iter=1000, random_state=stream_seed(seed, "dfr") % 2**31, **l1
    )
    fit.fit(data, labels)
    if classes == 2:
        # One logit as two of opposite sign: the same probabilities.
        return np.concatenate([-fit.coef_, fit.coef_]) / 2, np.concatenate([-fit.intercept_, fit.intercept_]) / 2
    return fit.coef_, fit.intercept_
