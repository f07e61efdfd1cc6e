"""What XRM is compared with: JTT, EIIL and LfF, which also find or avoid shortcuts without group annotations.

All of them are selected by validation worst-group accuracy over whatever validation groups one has; to use none, pass
the labels as groups. Methods that only retrain the last layer (AFR, DFR) are in `mechanisms.robust.last_layer`.

    JTT    E = errors of an ERM after T steps;  ERM on the training set with E repeated lambda_up times
           (Liu et al., ICML 2021)
    EIIL   q_i = sigmoid(theta_i);  max over theta of G(q)^2 + G(1 - q)^2,  G(q) = d/dw mean_i q_i CE(w z_i, y_i) at
           w = 1;  environment = q > 1/2                                    (Creager et al., ICML 2021)
    LfF    biased network: (1 - p_y^0.7) / 0.7;  debiased network: CE weighted by CE_b / (CE_b + CE_d)
           (Nam et al., NeurIPS 2020)

>>> x, y = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 2
>>> fit = jtt(x, y, x, y, y, make_model=lambda: nn.Linear(3, 2), first_steps=20, lambda_up=5, steps=20)
>>> fit.model(x).shape
torch.Size([60, 2])
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mechanisms._base.device import resolve_device
from mechanisms._base.seeds import seeded, stream_seed, torch_generator
from mechanisms.robust._loop import (
    Progress,
    Rows,
    Selection,
    batches,
    build_stack,
    check_examples,
    train_stack,
    weighted_cross_entropy,
)
from mechanisms.robust._stack import OptimizerName, StackedOptimizer
from mechanisms.robust.groups import check_groups
from mechanisms.robust.mistakes import ERM_SETTINGS, erm_errors
from mechanisms.robust.training import Draws, GroupFit, draw_hyperparameters, fit_groups

__all__ = [
    "eiil_environments",
    "generalized_cross_entropy",
    "jtt",
    "jtt_repeats",
    "lff",
    "lff_weights",
]


def jtt_repeats(errors: ArrayLike | Tensor, lambda_up: int) -> Tensor:
    """How often JTT's second training set holds each example: `lambda_up` times when the first model erred, else once.

    Args:
        errors: 0/1, (n,), for example from `erm_errors`.
        lambda_up: at least 1; 1 is plain ERM.

    Returns:
        (n,), int64, for `fit_groups(..., repeats=...)`.

    Raises:
        ValueError: errors other than 0 and 1, or lambda_up below 1.

    Source: Liu et al., "Just Train Twice", ICML 2021, algorithm 1.

    >>> jtt_repeats([0, 1, 0], 20)
    tensor([ 1, 20,  1])
    """
    wrong = check_groups(errors, "errors")
    if wrong.max() > 1 or lambda_up < 1:
        raise ValueError(f"errors go up to {wrong.max()} and lambda_up is {lambda_up}; expected 0/1, and at least 1")
    return torch.from_numpy(1 + (lambda_up - 1) * wrong)


def jtt(
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    x_val: ArrayLike | Tensor,
    y_val: ArrayLike | Tensor,
    groups_val: ArrayLike | Tensor,
    *,
    make_model: Callable[[], nn.Module],
    first_steps: int = 500,
    lambda_up: int = 20,
    settings: Draws = ERM_SETTINGS,
    draws: Draws | None = None,
    steps: int = 1500,
    evaluate_every: int = 50,
    optimizer: OptimizerName = "sgd",
    momentum: float = 0.9,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> GroupFit:
    """Just Train Twice: ERM, then ERM on a training set in which its errors are repeated.

    `first_steps` and `lambda_up` decide much; search over them with the validation worst-group accuracy of the
    result. With `lambda_up=1`, or no errors, this is `fit_groups` with the learner "erm".

    Args:
        x, x_val: inputs, (n, ...), finite.
        y, y_val: labels, (n,), integers from 0.
        groups_val: group of each validation example, (n,), integers from 0; used for selection only.
        make_model: returns a fresh model; torch's CPU generator is seeded from `seed`.
        first_steps: updates of the first model, T.
        lambda_up: how often the second training set holds each of its errors.
        settings: the one draw of hyper-parameters of the first model.
        draws, steps, evaluate_every, optimizer, momentum, seed, device, progress: of the second training, as in
            `fit_groups`.

    Raises:
        ValueError: as `fit_groups`, and for lambda_up below 1.

    Source: Liu et al., "Just Train Twice", ICML 2021.

    >>> x, y = torch.eye(2).repeat(10, 1), torch.arange(20) % 2
    >>> jtt(x, y, x, y, y, make_model=lambda: nn.Linear(2, 2), first_steps=5, steps=50).steps
    array([50])
    """
    errors = erm_errors(
        x, y, make_model=make_model, steps=first_steps, settings=settings, optimizer=optimizer, momentum=momentum,
        seed=seed, device=device,
    )  # fmt: skip
    return fit_groups(
        x, y, y, x_val, y_val, groups_val, make_model=make_model, learner="erm", draws=draws, steps=steps,
        evaluate_every=evaluate_every, optimizer=optimizer, momentum=momentum, repeats=jtt_repeats(errors, lambda_up),
        seed=seed, device=device, progress=progress,
    )  # fmt: skip


def eiil_environments(
    logits: Tensor, y: ArrayLike | Tensor, *, steps: int = 1000, lr: float = 1e-2, seed: int = 0
) -> Tensor:
    """Two environments that make a reference model violate IRM's invariance the most; then train IRM or GroupDRO.

    The gradient at the dummy multiplier is `mean_i q_i s_i` with `s_i = sum_k p_ik z_ik - z_iy`, so the ascent runs on
    n numbers and never touches the model. Which of the two is called 1 is arbitrary and follows from the seed.

    Args:
        logits: of a fixed reference model, usually an ERM, on the training set, (n, classes).
        y: labels, (n,), integers from 0.
        steps: Adam updates of theta, which starts standard normal. Default 1000.
        lr: Adam's rate. Default 1e-2: as long a path as the authors' 10,000 steps of 1e-3.
        seed: of theta's start.

    Returns:
        (n,), int64, 0 or 1, on the device of `logits`.

    Raises:
        ValueError: logits are not (n, classes) and finite, or labels do not fit them.

    Source: Creager et al., "Environment Inference for Invariant Learning", ICML 2021, section 4.

    >>> z = torch.tensor([[2.0, 0.0]]).repeat(6, 1)
    >>> e = eiil_environments(z, [0, 0, 0, 0, 1, 1])
    >>> e[0] == e[3], e[4] == e[5], e[0] == e[5]
    (tensor(True), tensor(True), tensor(False))
    """
    if logits.dim() != 2 or not bool(logits.isfinite().all()):
        raise ValueError(f"logits have shape {tuple(logits.shape)}; expected (n, classes), all of them finite")
    labels = torch.from_numpy(check_groups(y, "y", len(logits))).to(logits.device)
    if int(labels.max()) >= logits.shape[1]:
        raise ValueError(f"y holds labels up to {int(labels.max())} for logits of {logits.shape[1]} classes")
    z = logits.detach()
    slopes = (z.softmax(1) * z).sum(1) - z.gather(1, labels.unsqueeze(1)).squeeze(1)
    theta = torch.randn(len(z), generator=torch_generator(seed, "eiil")).to(z).requires_grad_()
    ascent = torch.optim.Adam([theta], lr=lr, maximize=True)
    total = slopes.mean()
    for _ in range(steps):
        q = theta.detach().sigmoid()
        part = (q * slopes).mean()
        # d/dq_i of part^2 + (total - part)^2, through the sigmoid.
        theta.grad = (2 / len(z)) * (2 * part - total) * slopes * q * (1 - q)
        ascent.step()
    return (theta.detach() > 0).long()


def generalized_cross_entropy(logits: Tensor, labels: Tensor, q: float = 0.7) -> Tensor:
    """The loss `(1 - p_y^q) / q` of each example; it follows easy examples, as q -> 0 it becomes cross-entropy.

    Args:
        logits: (batch, classes).
        labels: (batch,), integers from 0.
        q: in (0, 1]; LfF uses 0.7.

    Returns:
        (batch,).

    Raises:
        ValueError: q outside (0, 1].

    Source: Zhang and Sabuncu, "Generalized Cross Entropy Loss", NeurIPS 2018, equation 6.

    >>> generalized_cross_entropy(torch.zeros(1, 2), torch.tensor([1]), q=1.0)
    tensor([0.5000])
    """
    if not 0 < q <= 1:
        raise ValueError(f"q is {q}; expected a number above 0, up to 1 (use cross_entropy for the limit 0)")
    log_p = logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return -torch.expm1(q * log_p) / q


def lff_weights(biased: Tensor, debiased: Tensor, labels: Tensor) -> Tensor:
    """LfF's relative difficulty `b_i / (b_i + d_i)`, each loss divided by the largest of its class.

    Args:
        biased: losses of the biased network, usually moving averages, (n,), at least 0.
        debiased: losses of the debiased network, (n,), at least 0.
        labels: (n,), integers from 0.

    Returns:
        (n,), in [0, 1]: near 1 where only the biased network finds the example hard.

    Raises:
        ValueError: the three do not have the same shape.

    Source: Nam et al., "Learning from Failure", NeurIPS 2020, equation 4 and its implementation.

    >>> lff_weights(torch.tensor([0.1, 2.0]), torch.tensor([1.0, 1.0]), torch.tensor([0, 0]))
    tensor([0.0476, 0.5000])
    """
    if not biased.shape == debiased.shape == labels.shape or labels.dim() != 1:
        raise ValueError(f"shapes are {biased.shape}, {debiased.shape}, {labels.shape}; expected (n,) three times")
    both = torch.stack([biased, debiased])
    return _relative(both / _class_peaks(both, labels, int(labels.max()) + 1)[:, labels])


def lff(
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    x_val: ArrayLike | Tensor,
    y_val: ArrayLike | Tensor,
    groups_val: ArrayLike | Tensor,
    *,
    make_model: Callable[[], nn.Module],
    draws: Draws | None = None,
    q: float = 0.7,
    decay: float = 0.7,
    steps: int = 1500,
    evaluate_every: int = 50,
    optimizer: OptimizerName = "sgd",
    momentum: float = 0.9,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> GroupFit:
    """Learning from Failure: a network that follows the shortcut shows another which examples to learn from.

    Both networks of all draws train in one stack. The loss of every example is averaged over the steps that see it
    (starting with the first one), divided by the largest average of its class, and compared between the networks.

    Args:
        x, x_val: inputs, (n, ...), finite.
        y, y_val: labels, (n,), integers from 0.
        groups_val: group of each validation example, (n,), integers from 0; used for selection only.
        make_model: returns a fresh model; called twice per draw, torch's CPU generator seeded from `seed`.
        draws: hyper-parameters, shared by the two networks; default `draw_hyperparameters(3, generator=seed)`.
        q: of the biased network's loss; default 0.7.
        decay: weight of the past in the moving averages; default 0.7.
        steps, evaluate_every, optimizer, momentum, seed, device, progress: as in `fit_groups`.

    Returns:
        The debiased network of the best draw.

    Raises:
        ValueError: as `fit_groups`; q outside (0, 1], decay outside [0, 1).

    Source: Nam et al., "Learning from Failure", NeurIPS 2020, algorithm 1.

    >>> x, y = torch.eye(2).repeat(10, 1), torch.arange(20) % 2
    >>> lff(x, y, x, y, y, make_model=lambda: nn.Linear(2, 2), steps=50).model(x).shape
    torch.Size([20, 2])
    """
    if not (0 < q <= 1 and 0 <= decay < 1):
        raise ValueError(f"q is {q} and decay {decay}; expected q above 0, up to 1, and decay from 0 to below 1")
    draws = draw_hyperparameters(generator=seed) if draws is None else draws
    place, count = resolve_device(device), len(draws)
    # The first half of the stack are the debiased networks: their initial weights are those of every other learner.
    stack = build_stack(make_model, 2 * count, seed, place)
    inputs, labels = check_examples(x, y, stack)
    selection = Selection(stack, *check_examples(x_val, y_val, stack, ("x_val", "y_val")), groups_val, candidates=count)
    draw, counted = batches(np.ones(len(labels), np.int64), draws.batch_size * 2, seed, stack)
    share = counted / counted.sum(1, keepdim=True)
    averages = inputs.new_full((2 * count, len(labels)), -1.0, dtype=stack.dtype)
    classes = int(labels.max()) + 1

    def weigh(losses: Float[Tensor, "models batch"], rows: Rows) -> Tensor:
        past = averages[:, rows]
        average = torch.where(past < 0, losses, past.lerp(losses, 1 - decay))
        averages[:, rows] = torch.where(counted > 0, average, past)
        scaled = average / _class_peaks(averages, labels, classes)[:, labels[rows]]
        # The gradient of (1 - p^q) / q is p^q times that of cross-entropy.
        return share * torch.cat([_relative(scaled.view(2, count, -1).flip(0)), torch.exp(-q * losses[count:])])

    updates = StackedOptimizer(
        stack, optimizer, lr=draws.lr * 2, weight_decay=draws.weight_decay * 2, momentum=momentum
    )
    with seeded(stream_seed(seed, "noise"), place):
        train_stack(
            stack,
            updates,
            inputs,
            draw,
            weighted_cross_entropy(labels, weigh),
            steps,
            evaluate_every,
            selection,
            progress,
        )
    return GroupFit.best_of(selection, draws)


def _class_peaks(
    losses: Float[Tensor, "models n"], labels: Int[Tensor, " n"], classes: int
) -> Float[Tensor, "models classes"]:
    """The largest loss of each class; never 0, so that one may divide by it."""
    peaks = losses.new_zeros(len(losses), classes)
    return peaks.scatter_reduce_(1, labels.expand(losses.shape), losses, "amax").clamp_(min=1e-8)


def _relative(losses: Float[Tensor, "2 *rest"]) -> Float[Tensor, "*rest"]:
    """b / (b + d) of the biased and the debiased network's losses."""
    return losses[0] / (losses.sum(0) + 1e-8)
