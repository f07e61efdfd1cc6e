"""Spectral decoupling: an L2 penalty on the logits in place of one on the weights.

For people whose classifier latches onto a shortcut: one more term in the loss, no change of model, data or optimiser.
With logits f, labels y and a coefficient c,

    loss = mean CE(f, y) + c mean (f - gamma_y)^2                                      (plain form: gamma = 0)

where the second mean goes over the batch and, for several classes, over the classes too. The gradient flows through the
logits; nothing is detached. Use it in training only, and leave weight decay out: it couples the features again.

    the paper      sum_b CE + (lambda / 2) sum_b f_b^2       lambda = 2 c
    K classes      mean over the classes                     lambda = 2 c / K for each logit

Source: Pezeshki et al., "Gradient Starvation: A Learning Proclivity in Neural Networks", NeurIPS 2021.

>>> model = torch.nn.Linear(5, 3)
>>> objective = SpectralDecouplingLoss(coefficient=0.01)
>>> objective(model(torch.randn(8, 5)), torch.arange(8) % 3).backward()
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mechanisms._base.validation import as_finite, check_choice, check_number

__all__ = ["SpectralDecouplingLoss", "spectral_decoupling"]

REDUCTIONS = ("none", "mean", "sum")
Target = float | int | Tensor | Sequence[float | int]


def spectral_decoupling(
    logits: Tensor,
    labels: Tensor | None = None,
    *,
    target: Target = 0.0,
    reduction: str = "mean",
    per_class: bool = False,
) -> Tensor:
    """The penalty alone: squared distance of the logits to a target.

    Half-precision logits are squared in float32 (a square overflows float16 from 256 on), so the result is float32.

    Args:
        logits: any shape. With class indices as labels the classes are in dimension 1, as in `cross_entropy`.
        labels: needed for a target by class and for `per_class`: of the logits' shape and in {0, 1} for binary logits,
            or class indices of their shape without the class dimension.
        target: gamma: a number, or one for each class (binary: two), chosen by the label of the example.
        reduction: "none" (the logits' shape), "mean" or "sum", over everything.
        per_class: the mean is taken within each class and the means are added, so that rare classes weigh as much as
            frequent ones; a class that the batch has none of adds 0. Needs `reduction="mean"`.

    Raises:
        TypeError: logits or labels that are no tensor or of the wrong type.
        ValueError: labels are missing, of another shape or convention ({-1, +1} instead of {0, 1}); a target of the
            wrong length. On an accelerator wrong label values are found by a device-side assertion, as torch's own
            losses do, so that no step waits for the device; compiled code does not look at them.

    Source: the paper's section on spectral decoupling; target and means by class: its experiment on CelebA.

    >>> spectral_decoupling(torch.tensor([1.0, -3.0]))
    tensor(5.)
    >>> spectral_decoupling(torch.tensor([1.0, -3.0]), torch.tensor([1, 0]), target=(-2.0, 1.0), reduction="none")
    tensor([0., 1.])
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(f"logits must be a floating-point tensor, got {_kind(logits)}")
    _check_reduction(reduction, per_class)
    values = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    by_class = isinstance(target, Sequence) or (isinstance(target, Tensor) and target.dim() > 0)
    if not (by_class or per_class):
        plain = isinstance(target, float | int) and target == 0
        return _reduce(values.square() if plain else (values - target).square(), reduction)
    if labels is None:
        raise ValueError(
            "a target by class and per_class=True need labels: give class indices, or {0, 1} for binary logits"
        )
    class_dim, classes = _layout(logits, labels)
    _check_labels(labels, classes, whole=True)
    index = labels.long()
    if by_class:
        levels = torch.as_tensor(target, dtype=values.dtype, device=values.device)
        if levels.shape != (classes,):
            raise ValueError(
                f"target has shape {tuple(levels.shape)}, expected one number for each of {classes} classes"
            )
        chosen = levels[index]
        squares = (values - (chosen if class_dim is None else chosen.unsqueeze(class_dim))).square()
    else:
        squares = (values - target).square()
    if not per_class:
        return _reduce(squares, reduction)
    one_each = squares if class_dim is None else squares.mean(class_dim)
    members = index.reshape(-1, 1) == torch.arange(classes, device=index.device)
    sizes = members.sum(0).clamp(min=1)
    return (one_each.flatten() / sizes[index.flatten()]).sum()


class SpectralDecouplingLoss(nn.Module):
    """Cross-entropy with spectral decoupling, as one loss.

    Args:
        coefficient: c, 0 or more. The paper uses 0.003 (two moons), 0.01 (CIFAR), 0.1 (CelebA) and 2e-5 (ColorMNIST).
        target: gamma, a number or one for each class; see `spectral_decoupling`. By class it is a buffer: move the
            loss to the logits' device.
        per_class: average the penalty within each class; see `spectral_decoupling`.
        base_loss: called with logits and labels, instead of torch's own. By default binary cross-entropy for logits
            (batch,) or (batch, 1), and cross-entropy otherwise.
        reduction: "mean", "sum", or "none" for one loss per example: cross-entropy plus c times the mean of the
            squares over the classes. A `base_loss` does its own, which has to agree.

    Shapes of `forward(logits, labels)`: logits (batch,) and labels (batch,) in {0, 1}; logits (batch, classes, ...) and
    class indices (batch, ...), or class probabilities of the logits' shape. Positions without a label (padding, -100)
    are refused: leave them out of both, as in the second example. A `base_loss` with an `ignore_index` would ignore
    them, but the penalty would not.

    Raises:
        ValueError: a negative coefficient, per_class with another reduction than "mean"; in a call: labels in
            {-1, +1}, or shapes that do not belong together.

    >>> objective = SpectralDecouplingLoss(0.1, target=(0.44, 2.5), per_class=True)  # the paper's on CelebA
    >>> objective(torch.tensor([2.5, 0.44]), torch.tensor([1, 0]))
    tensor(0.5080)
    >>> logits, labels = torch.randn(2, 5, 3), torch.tensor([[0, 4, 2], [3, -100, -100]])
    >>> there = labels != -100
    >>> loss = SpectralDecouplingLoss()(logits.movedim(1, -1)[there], labels[there])
    """

    def __init__(
        self,
        coefficient: float | int = 0.01,
        *,
        target: Target = 0.0,
        per_class: bool = False,
        base_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.coefficient = check_number(coefficient, "coefficient", at_least=0)
        _check_reduction(reduction, per_class)
        levels = as_finite(
            torch.as_tensor(target, dtype=None if isinstance(target, Tensor) else torch.float64), "target"
        )
        if levels.dim() > 1:
            raise ValueError(f"target has shape {tuple(levels.shape)}, expected a number or one for each class")
        self.target: float | Tensor
        if levels.dim() == 0:
            self.target = float(levels)
        else:
            self.register_buffer(
                "target", levels if isinstance(target, Tensor) else levels.to(torch.get_default_dtype())
            )
        self.per_class, self.base_loss, self.reduction = per_class, base_loss, reduction

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss; see the class."""
        base = self.base_loss(logits, labels) if self.base_loss is not None else self._base(logits, labels)
        if self.coefficient == 0:
            return base
        needs_labels = self.per_class or isinstance(self.target, Tensor)
        if needs_labels and labels.shape == logits.shape and not _binary(logits) and self.base_loss is None:
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} are class probabilities, but a target by class and "
                f"per_class=True need class indices of shape {tuple(logits.shape[:1] + logits.shape[2:])}"
            )
        reduction = "none" if self.reduction == "none" else "mean"
        penalty = spectral_decoupling(
            logits,
            labels if needs_labels else None,
            target=self.target,
            reduction=reduction,
            per_class=self.per_class,
        )
        classes = _class_dim(logits, labels, self.base_loss is not None)
        if self.reduction == "none" and classes is not None:
            penalty = penalty.mean(classes)
        elif self.reduction == "sum":
            examples = logits.numel() // (1 if classes is None else logits.shape[classes])
            penalty = examples * penalty
        return base + self.coefficient * penalty

    def _base(self, logits: Tensor, labels: Tensor) -> Tensor:
        _check_tensors(logits, labels)
        if logits.dim() > 0 and labels.shape == logits.shape and _binary(logits):
            _check_labels(labels, 2)
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction=self.reduction)
        if labels.shape != logits.shape:
            _, classes = _layout(logits, labels)
            _check_labels(labels, classes, whole=True)
            labels = labels.long()
        return F.cross_entropy(logits, labels, reduction=self.reduction)

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        target = self.target.tolist() if isinstance(self.target, Tensor) else self.target
        return (
            f"coefficient={self.coefficient}, target={target}, per_class={self.per_class}, reduction={self.reduction!r}"
        )


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _binary(logits: Tensor) -> bool:
    return logits.dim() == 1 or logits.shape[1] == 1


def _reduce(values: Tensor, reduction: str) -> Tensor:
    return values.mean() if reduction == "mean" else values.sum() if reduction == "sum" else values


def _check_reduction(reduction: str, per_class: bool) -> None:
    check_choice(reduction, "reduction", REDUCTIONS)
    if per_class and reduction != "mean":
        raise ValueError(f"per_class=True averages within each class: reduction must be 'mean', got {reduction!r}")


def _check_tensors(logits: Tensor, labels: Tensor) -> None:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(f"logits must be a floating-point tensor, got {_kind(logits)}")
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor, got {type(labels).__name__}; torch.as_tensor makes one")


def _class_dim(logits: Tensor, labels: Tensor, own_loss: bool) -> int | None:
    """The dimension of the classes, or None where each logit stands for itself."""
    if logits.dim() == 1:
        return 0 if labels.dim() == 0 else None
    if labels.shape == logits.shape and (own_loss or logits.shape[1] == 1):
        return None
    return 1


def _layout(logits: Tensor, labels: Tensor) -> tuple[int | None, int]:
    """The dimension of the classes (None where each logit is a binary one) and their number."""
    _check_tensors(logits, labels)
    if labels.shape == logits.shape:
        return None, 2
    unbatched = logits.dim() == 1 and labels.dim() == 0
    if not unbatched and (logits.dim() < 2 or labels.shape != logits.shape[:1] + logits.shape[2:]):
        wanted = f" or {tuple(logits.shape[:1] + logits.shape[2:])}" if logits.dim() > 1 else ""
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} for logits {tuple(logits.shape)}; expected "
            f"{tuple(logits.shape)}{wanted}"
        )
    class_dim = 0 if unbatched else 1
    if logits.shape[class_dim] == 1:
        raise ValueError(
            f"logits {tuple(logits.shape)} hold one logit for each example, labels have shape {tuple(labels.shape)}; "
            "give logits.squeeze(1), or labels of the logits' shape"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"class indices must be integers, got {labels.dtype}")
    return class_dim, logits.shape[class_dim]


def _check_labels(labels: Tensor, classes: int, *, whole: bool = False) -> None:
    """Labels lie between 0 and the last class, and are whole numbers where they index."""
    if torch.compiler.is_compiling() or labels.numel() == 0 or labels.dtype == torch.bool:
        return
    message = (
        "labels must be in {0, 1} (not {-1, +1}), as for torch's binary losses; (labels + 1) / 2 converts {-1, +1}"
        if classes == 2
        else f"labels must be class indices in {{0, ..., {classes - 1}}}"
    )
    if labels.device.type == "cpu":
        low, high = (float(end) for end in torch.aminmax(labels))
        fractions = whole and labels.is_floating_point() and not bool((labels == labels.round()).all())
        if low < 0 or high > classes - 1 or fractions:
            padding = "; leave positions without a label (padding) out" if low == -100 else ""
            raise ValueError(
                f"{message}; got values from {low:g} to {high:g}{', some fractional' * fractions}{padding}"
            )
    else:
        inside = (labels >= 0) & (labels <= classes - 1)
        torch._assert_async((inside & (labels == labels.round()) if whole else inside).all(), message)
