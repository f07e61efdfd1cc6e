"""When to stop: the test error of training a linear layer over time, predicted from data of your own.

Training a last layer (a linear or kernel model) by gradient descent is solved in closed form by `paths`, so its test
error over time needs no training run. With held-out rows the error is measured on them. Without, it is estimated by
leaving each training row out in turn, exactly and from a single decomposition: for ridge regression at penalty p the
left-out residual is (y_i - yhat_i) / (1 - S_ii(p)) (Allen 1974), and gradient flow is an integral of ridge solutions
over complex penalties (`_contour`), under which this stays exact. Why not cheaper or simpler:

- generalised cross-validation is inconsistent for early-stopped gradient descent, leaving one out is consistent
  (Patil, Wu, Tibshirani, "Failures and Successes of Cross-Validation for Early-Stopped Gradient Descent", 2024);
- the ridge short cut applied to the smoother of gradient flow itself leaves out no row exactly;
- ten folds train on a tenth fewer rows, which near n = d is another regime of double descent.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float, Int
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mechanisms._base.validation import check_choice, check_number
from mechanisms.dynamics._contour import ANGLE, flow_filter, nodes, weights
from mechanisms.dynamics._filters import METHODS, as_rates, check_rate, check_steps, decompose, filter_values
from mechanisms.dynamics.epochwise import as_times
from mechanisms.dynamics.paths import as_examples

LARGEST_BLOCK = 2**22  # predictions (times x rows x outputs) that are held at once


class ErrorForecast(NamedTuple):
    """Predicted test error over training time.

    Attributes:
        times: as given, (times,).
        error: mean over the rows tested, (times,).
        standard_error: of that mean, from its spread over rows, (times,).
        train_error: the same measure on the training rows, (times,).
        best_time: where the error is lowest; the first such time.
        best_error: the error there.
        tested_on: "held-out" or "leave-one-out".

    >>> x = torch.randn(60, 40, generator=torch.Generator().manual_seed(0))
    >>> predict_test_error(x, x[:, 0], [0.0, 1.0, 10.0]).tested_on
    'leave-one-out'
    """

    times: Float[Tensor, " times"]
    error: Float[Tensor, " times"]
    standard_error: Float[Tensor, " times"]
    train_error: Float[Tensor, " times"]
    best_time: float
    best_error: float
    tested_on: str


def predict_test_error(
    features: Tensor | ArrayLike,
    targets: Tensor | ArrayLike,
    times: Tensor | ArrayLike,
    *,
    validation_features: Tensor | ArrayLike | None = None,
    validation_targets: Tensor | ArrayLike | None = None,
    lr: float | int | str = "stable",
    l2: float | int = 0.0,
    method: str = "flow",
    metric: str = "squared",
    bias: bool = False,
) -> ErrorForecast:
    """The test error of training a linear layer on these features, over time, and the best time to stop.

    The layer is trained from zero on the summed loss 1/2 |X W - Y|^2 + l2/2 |W|^2. For a network take its last-layer
    features with `layer_features`; `descents` says whether the curve descends twice.

    Args:
        features: training features, (samples, features).
        targets: (samples,) or (samples, outputs); integer classes 0 .. K-1, (samples,), for metric "zero_one", which
            are learned as one-hot columns.
        times: steps t, 0 or more, in increasing order, (times,).
        validation_features, validation_targets: held-out rows of the same kind. Without them rows are left out of the
            training data one by one, exactly.
        lr: learning rate on the summed loss (for a mean over n samples give lr / n); "stable" is
            1 / (largest eigenvalue of X^T X + l2).
        l2: strength of weight decay on the same scale.
        method: "flow", "ridge", or with held-out rows also "gd"; see `training_path`.
        metric: "squared" is 1/2 |y - yhat|^2 for each row, as the paper's error; "zero_one" the share of wrong classes.
        bias: whether the layer has a bias, trained (and decayed) with the rest from zero.

    Returns:
        `ErrorForecast`, float64.

    Raises:
        TypeError, ValueError: what `training_path` refuses, one of the two validation arguments without the other, a
            batch of data sets, fewer than two rows to test on, "gd" without held-out rows, or "zero_one" with other
            targets than classes.

    Source: section 4.1 of the paper for the path; leaving rows out along gradient flow is derived here.

    >>> generator = torch.Generator().manual_seed(0)
    >>> x = torch.randn(60, 40, generator=generator)
    >>> y = x @ torch.randn(40, generator=generator) + 5 * torch.randn(60, generator=generator)
    >>> forecast = predict_test_error(x, y, torch.logspace(-1, 4, 50))
    >>> 0.1 < forecast.best_time < 1e4 and bool(forecast.best_error < forecast.error[-1])
    True
    """
    check_choice(method, "method", METHODS)
    check_choice(metric, "metric", ("squared", "zero_one"))
    if (validation_features is None) != (validation_targets is None):
        raise ValueError("give validation_features and validation_targets together, or neither")
    labels, targets = _labels(targets, metric, "targets")
    x, y, _ = as_examples(features, targets)
    if x.dim() != 2:
        raise ValueError(f"features have shape {tuple(x.shape)}; expected one data set, (samples, features)")
    steps, l2 = as_times(times).to(x.device), check_number(l2, "l2", at_least=0)
    if bias:
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)

    spectrum = decompose(x)
    left, sigma, right = spectrum
    eigenvalues = sigma.square()
    rate = as_rates(lr, eigenvalues[0], l2)
    if rate.dim():
        raise ValueError(f"lr has shape {tuple(rate.shape)}; expected one number")
    if method == "gd":
        check_steps(steps)
        check_rate(rate, eigenvalues[0], l2)
    f = filter_values(method, eigenvalues, steps, rate, l2) * sigma
    known = left.mT @ y
    train_error = _measure(left * sigma, f, known, y, labels).mean(1)

    if validation_features is not None and validation_targets is not None:
        held_labels, held_targets = _labels(validation_targets, metric, "validation_targets", classes=y.shape[1])
        held_x, held_y, _ = as_examples(
            validation_features, held_targets, ("validation_features", "validation_targets")
        )
        held_x, held_y = held_x.to(x.device), held_y.to(x.device)
        if bias:
            held_x = torch.cat([held_x, torch.ones_like(held_x[..., :1])], -1)
        if held_x.dim() != 2 or held_x.shape[1] != x.shape[1] or held_y.shape[1] != y.shape[1]:
            raise ValueError(
                f"validation_features have shape {tuple(held_x.shape)} and validation_targets {tuple(held_y.shape)}; "
                f"expected as many columns as in training, {x.shape[1]} and {y.shape[1]}{' (with the bias)' * bias}"
            )
        rows = _measure(held_x @ right, f, known, held_y, held_labels)
    elif method == "gd":
        raise ValueError(
            "method='gd' needs held-out rows: leaving rows out is exact for 'flow' (gd with small steps) and 'ridge'"
        )
    else:
        if len(x) < 2:
            raise ValueError("one row cannot be left out of one; give more rows, or held-out ones")
        left_out = _left_out_flow if method == "flow" else _left_out_ridge
        predictions = left_out(left, eigenvalues, y, steps * rate, l2)
        rows = _row_errors(predictions, y, labels)
    error = rows.mean(1)
    best = int(error.detach().argmin())
    spread = rows.std(1) / rows.shape[1] ** 0.5 if rows.shape[1] > 1 else torch.full_like(error, math.nan)
    return ErrorForecast(
        times=steps,
        error=error,
        standard_error=spread,
        train_error=train_error,
        best_time=float(steps[best]),
        best_error=float(error[best]),
        tested_on="leave-one-out" if validation_features is None else "held-out",
    )


def layer_features(
    model: nn.Module, layer: str | nn.Module, inputs: Tensor, *, batch_size: int | None = None
) -> Float[Tensor, "samples features"]:
    """What enters a layer of a network: the features that its last layer is a linear function of.

    Args:
        model: any module, called with `inputs`; it is put in evaluation mode for the call and back.
        layer: the layer, or its name in `model.named_modules()`, for example "fc" of a ResNet.
        inputs: what the model takes, (samples, ...).
        batch_size: rows at once; all by default.

    Returns:
        Detached features, (samples, features); dimensions behind the first are flattened.

    Raises:
        TypeError, ValueError: no such layer, a layer that the model does not call exactly once for each batch, or
            whose input is no tensor with one row for each sample.

    >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    >>> layer_features(model, "2", torch.ones(4, 3)).shape
    torch.Size([4, 5])
    """
    modules = dict(model.named_modules())
    if isinstance(layer, str):
        if layer not in modules:
            raise ValueError(f"the model has no layer {layer!r}; it has {', '.join(name for name in modules if name)}")
        layer = modules[layer]
    if not any(module is layer for module in modules.values()):
        raise ValueError(f"{type(layer).__name__} is no layer of this model; name one of model.named_modules()")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: it must be 1 or more, or None for all rows at once")
    seen: list[object] = []
    hook = layer.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0] if arguments else None))
    training = {module: module.training for module in modules.values()}
    try:
        model.eval()
        with torch.no_grad():
            batches = [inputs] if batch_size is None else inputs.split(batch_size)
            for batch in batches:
                model(batch)
    finally:
        hook.remove()
        for module, mode in training.items():
            module.training = mode
    if len(seen) != len(batches):
        raise ValueError(
            f"the layer was called {len(seen)} times for {len(batches)} batches; it must be called once for each"
        )
    features = [entry.detach().flatten(1) for entry in seen if isinstance(entry, Tensor) and entry.dim() > 1]
    if sum(map(len, features)) != len(inputs):
        raise ValueError(f"what enters the layer has no row for each of the {len(inputs)} inputs")
    return torch.cat(features)


def _labels(
    targets: Tensor | ArrayLike, metric: str, name: str, classes: int | None = None
) -> tuple[Int[Tensor, " rows"] | None, Tensor | ArrayLike]:
    """Class labels and their one-hot columns for "zero_one"; nothing and the targets for "squared"."""
    if metric == "squared":
        return None, targets
    labels = torch.as_tensor(targets)
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex() or len(labels) == 0:
        raise ValueError(
            f"{name} are {labels.dtype} of shape {tuple(labels.shape)}; metric='zero_one' takes integers, (rows,)"
        )
    labels = labels.long()
    highest = int(labels.max()) + 1
    if bool((labels < 0).any()) or (classes is not None and highest > classes):
        raise ValueError(f"{name} must be classes 0 .. {(classes or highest) - 1}, those of the training targets")
    return labels, nn.functional.one_hot(labels, classes or max(2, highest)).double()


def _row_errors(
    predictions: Float[Tensor, "times rows outputs"],
    y: Float[Tensor, "rows outputs"],
    labels: Int[Tensor, " rows"] | None,
) -> Float[Tensor, "times rows"]:
    if labels is None:
        return (predictions - y).square().sum(-1) / 2
    return (predictions.argmax(-1) != labels.to(y.device)).double()


def _measure(
    rows: Float[Tensor, "rows rank"],
    f: Float[Tensor, "times rank"],
    known: Float[Tensor, "rank outputs"],
    y: Float[Tensor, "rows outputs"],
    labels: Int[Tensor, " rows"] | None,
) -> Float[Tensor, "times rows"]:
    """Errors of the rows X V over time, in blocks of times."""
    block = max(1, LARGEST_BLOCK // max(1, rows.shape[0] * known.shape[1] + known.numel()))
    return torch.cat([_row_errors(rows @ (part[..., None] * known), y, labels) for part in f.split(block)])


class _LeftOut(NamedTuple):
    """What leaving rows out needs of the decomposition: y = U U^T y + rest, 1 = sum_j U_ij^2 + free_i."""

    left: Float[Tensor, "rows rank"]
    known: Float[Tensor, "rank outputs"]
    y: Float[Tensor, "rows outputs"]
    rest: Float[Tensor, "rows outputs"]
    free: Float[Tensor, " rows"]

    def predictions(
        self, unlearned: Float[Tensor, "penalties rank"] | Complex[Tensor, "penalties rank"]
    ) -> Float[Tensor, "penalties rows outputs"] | Complex[Tensor, "penalties rows outputs"]:
        """y_i - (y_i - yhat_i) / (1 - S_ii) of ridge regression at each penalty p, from unlearned = p / (L + p)."""
        left = self.left.to(unlearned.dtype)
        residual = self.rest + left @ (unlearned[..., None] * self.known)
        return self.y - residual / (self.free + unlearned @ left.square().mT)[..., None]

    def split(self, largest: int) -> "list[_LeftOut]":
        """The same for blocks of rows, each with at most so many of them."""
        rows = [part.split(largest) for part in (self.left, self.y, self.rest, self.free)]
        return [_LeftOut(left, self.known, y, rest, free) for left, y, rest, free in zip(*rows, strict=True)]


def _leave_out(left: Float[Tensor, "rows rank"], y: Float[Tensor, "rows outputs"]) -> _LeftOut:
    known = left.mT @ y
    if left.shape[0] == left.shape[1]:
        # As many directions as rows: both rests are 0, and their rounding would stand where p / (L + p) is small.
        return _LeftOut(left, known, y, torch.zeros_like(y), torch.zeros_like(y[:, 0]))
    return _LeftOut(left, known, y, y - left @ known, (1 - left.square().sum(1)).clamp(min=0))


def _left_out_ridge(
    left: Float[Tensor, "rows rank"],
    eigenvalues: Float[Tensor, " rank"],
    y: Float[Tensor, "rows outputs"],
    tau: Float[Tensor, " times"],
    l2: float,
) -> Float[Tensor, "times rows outputs"]:
    """Predictions for each row by ridge regression at l2 + 1/tau on all others."""
    inverse = (tau / (1 + l2 * tau))[:, None]
    return _leave_out(left, y).predictions(1 / (1 + inverse * eigenvalues))


def _left_out_flow(
    left: Float[Tensor, "rows rank"],
    eigenvalues: Float[Tensor, " rank"],
    y: Float[Tensor, "rows outputs"],
    tau: Float[Tensor, " times"],
    l2: float,
) -> Float[Tensor, "times rows outputs"]:
    """Predictions for each row by gradient flow on all others: ridge ones integrated over complex penalties -z.

    Without a row the spectrum interlaces the whole one, so the same contour runs around it.
    """
    largest = eigenvalues[0].detach().clamp(min=torch.finfo(y.dtype).tiny)
    size = nodes(float(tau.detach().max() * largest), 1.0).to(y.device).exp() * largest
    z = size * complex(math.cos(ANGLE), math.sin(ANGLE))
    w = weights(flow_filter(z, tau[:, None], torch.as_tensor(l2, dtype=y.dtype, device=y.device)))
    unlearned = -z[:, None] / (eigenvalues - z[:, None])
    block = max(1, LARGEST_BLOCK // (len(z) * max(y.shape[1], left.shape[1])))
    parts = [
        2 * torch.einsum("tz,zno->tno", w, rows.predictions(unlearned)).real
        for rows in _leave_out(left, y).split(block)
    ]
    return torch.cat(parts, 1)
