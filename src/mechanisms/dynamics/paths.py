"""The whole path of training a linear layer on data of your own, exactly, from one decomposition.

Least squares on features X (a data matrix, a network's last-layer features, tangent features) trained from zero on
the summed loss 1/2 |X W - Y|^2 + lambda/2 |W|^2 has, at any time, weights W(t) = V phi_t(L) V^T X^T Y, where L, V are
the eigenvalues and eigenvectors of X^T X. `training_path` gives them for all times at once, `gradient_descent` runs
the plain loop, which is the same to rounding and is there to lay beside it.

Reference: Pezeshki, Mitra, Bengio, Lajoie, ICML 2022, arXiv 2112.03215, section 4.1 and lemma B.1.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from mechanisms._base.validation import as_finite, check_choice, check_number
from mechanisms.dynamics._filters import (
    METHODS,
    as_rates,
    check_rate,
    check_steps,
    decompose,
    filter_values,
)
from mechanisms.dynamics.epochwise import as_times


def training_path(
    features: Tensor | ArrayLike,
    targets: Tensor | ArrayLike,
    times: Tensor | ArrayLike,
    *,
    lr: float | int | str | Tensor = 1.0,
    l2: float | int = 0.0,
    method: str = "flow",
) -> Tensor:
    """Weights of a linear layer along its whole training, from zero, without training it.

    Args:
        features: X, (..., samples, features), with any leading batch; more features than samples are fine.
        targets: Y, (..., samples, outputs), or (..., samples) for one output.
        times: steps t, 0 or more, in increasing order, (times,); whole numbers for "gd".
        lr: learning rate on the **summed** loss (for a mean over n samples give lr / n), a number, one for each data
            set, or "stable": 1 / (largest eigenvalue of X^T X + l2).
        l2: strength of weight decay on the same scale, 0 or more.
        method: "flow" (gradient flow at tau = lr t), "gd" (gradient descent, exact), or "ridge" (ridge at penalty
            l2 + 1/(lr t)).

    Returns:
        Weights (..., times, features, outputs), or (..., times, features) for targets of one output; in the features'
        dtype and on their device, computed in float64. Differentiable in targets, times, and in features whose
        singular values are distinct.

    Raises:
        TypeError, ValueError: no finite numbers, shapes that do not fit, unsorted or negative times, lr not above 0,
            a negative l2; for "gd" an lr that diverges, or times that are no whole numbers below 2^53.

    Source: section 4.1 of the paper, for any data.

    >>> x, y = torch.eye(3), torch.tensor([1.0, 2.0, 3.0])
    >>> training_path(x, y, [0, 1, 100], lr=0.5, method="gd")
    tensor([[0.0000, 0.0000, 0.0000],
            [0.5000, 1.0000, 1.5000],
            [1.0000, 2.0000, 3.0000]])
    """
    check_choice(method, "method", METHODS)
    x, y, single = as_examples(features, targets)
    steps = as_times(times).to(x.device)
    l2 = check_number(l2, "l2", at_least=0)
    left, sigma, right = decompose(x)
    eigenvalues = sigma.square()
    rates = as_rates(lr, eigenvalues[..., 0], l2)
    if method == "gd":
        check_steps(steps)
        check_rate(rates, eigenvalues[..., 0], l2)
    f = filter_values(method, eigenvalues, steps, rates, l2) * sigma[..., None, :]
    known = left.mT @ y
    weights = right[..., None, :, :] @ (f[..., None] * known[..., None, :, :])
    return _as_given(weights, features, single)


def gradient_descent(
    features: Tensor | ArrayLike,
    targets: Tensor | ArrayLike,
    times: Tensor | ArrayLike,
    *,
    lr: float | int | str | Tensor = "stable",
    l2: float | int = 0.0,
    progress: Callable[[int, int], object] | None = None,
) -> Tensor:
    """The plain loop: full-batch gradient descent from zero, all data sets of a batch at once.

    It does what `training_path` with method="gd" predicts, at the cost of its steps; for checks and for teaching.

    Args:
        features, targets, l2: see `training_path`.
        times: the steps at which weights are kept, whole numbers in increasing order, (times,).
        lr: learning rate on the summed loss; "stable" is 1 / (largest eigenvalue of X^T X + l2).
        progress: called with (steps done, all steps) at each of the times.

    Returns:
        Weights (..., times, features, outputs), or (..., times, features) for targets of one output.

    Raises:
        TypeError, ValueError: see `training_path`.

    >>> x, y = torch.eye(2), torch.tensor([1.0, 2.0])
    >>> gradient_descent(x, y, [1, 2], lr=0.5)
    tensor([[0.5000, 1.0000],
            [0.7500, 1.5000]])
    """
    x, y, single = as_examples(features, targets)
    steps = as_times(times)
    check_steps(steps)
    l2 = check_number(l2, "l2", at_least=0)
    largest = torch.linalg.matrix_norm(x.detach(), 2).square()
    rates = as_rates(lr, largest, l2)
    check_rate(rates, largest, l2)
    rate = rates[..., None, None]
    weights = x.new_zeros(*x.shape[:-2], x.shape[-1], y.shape[-1])
    # A step costs the smaller of one product with X^T X and two with X.
    product, known = x.mT @ x if x.shape[-1] < 2 * x.shape[-2] else None, x.mT @ y
    kept, done = [], 0
    for step in steps.tolist():
        for _ in range(int(step) - done):
            gradient = x.mT @ (x @ weights - y) if product is None else product @ weights - known
            weights = weights - rate * (gradient + l2 * weights)
        done = int(step)
        kept.append(weights)
        if progress is not None:
            progress(done, int(steps[-1]))
    return _as_given(torch.stack(kept, dim=-3), features, single)


def as_examples(
    features: Tensor | ArrayLike, targets: Tensor | ArrayLike, names: tuple[str, str] = ("features", "targets")
) -> tuple[Float[Tensor, "*batch samples features"], Float[Tensor, "*batch samples outputs"], bool]:
    """Features and targets in float64 on the features' device, and whether the targets had a single output.

    Args:
        features: (..., samples, features).
        targets: (..., samples, outputs) or (..., samples).
        names: how messages call them.

    Raises:
        TypeError, ValueError: no finite numbers, or shapes that do not fit.

    >>> as_examples([[1.0], [2.0]], [1.0, 2.0])[1].shape
    torch.Size([2, 1])
    """
    x = as_finite(features, names[0], dtype=torch.float64)
    y = as_finite(targets, names[1], dtype=torch.float64).to(x.device)
    single = y.dim() == x.dim() - 1
    if x.dim() < 2 or 0 in x.shape or y.shape[: x.dim() - 1] != x.shape[:-1] or y.dim() not in (x.dim() - 1, x.dim()):
        raise ValueError(
            f"{names[0]} have shape {tuple(x.shape)} and {names[1]} {tuple(y.shape)}; expected (..., samples, "
            "features), with at least one of each, and (..., samples) or (..., samples, outputs)"
        )
    return x, y[..., None] if single else y, single


def _as_given(
    weights: Float[Tensor, "*batch times features outputs"], features: Tensor | ArrayLike, single: bool
) -> Tensor:
    given = torch.as_tensor(features).dtype
    weights = weights.to(given if given.is_floating_point else torch.get_default_dtype())
    return weights[..., 0] if single else weights
