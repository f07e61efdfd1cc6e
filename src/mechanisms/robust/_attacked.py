"""What is attacked: a classifier and examples that passed the checks at the door, and who judges the outcome.

Attack libraries are not asked whether they succeeded. Every input they propose is brought back into the ball and the
box, and judged here, in the classifier's own precision.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechanisms._base.validation import as_finite
from mechanisms.robust.denoising import mixes_rows

BOX = 1e-6  # how far x may lie outside of [0, 1] by rounding
MANY = 20  # draws of a randomised model that are averaged by default


@dataclass(frozen=True)
class Attacked:
    """A classifier and examples, on its device.

    Args:
        model: from inputs to logits; one draw where it is randomised.
        x: (n, ...) float32 in [0, 1].
        y: (n,) class indices.
        classes: number of classes.
        dtype: precision of the classifier.
        draws: draws that are averaged.
        randomised: whether two passes differ.
        batch_size: examples in a pass.
    """

    model: nn.Module
    x: Float[Tensor, "n *shape"]
    y: Int[Tensor, " n"]
    classes: int
    dtype: torch.dtype
    draws: int
    randomised: bool
    batch_size: int

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """(n, classes) of one draw, in at least single precision."""
        # A copy: a model may work on its input in place, and the examples are to stay as they are.
        parts = [self.model(part.to(self.dtype, copy=True)) for part in x.split(self.batch_size)]
        return torch.cat(parts).to(torch.promote_types(parts[0].dtype, torch.float32))

    def share_correct(self, x: Tensor, y: Tensor) -> Float[Tensor, " n"]:
        """For each input the share of draws in which it is classified rightly; logits that are no numbers are wrong."""
        share = torch.zeros(len(x), device=x.device)
        for _ in range(self.draws):
            logits = self.logits(x)
            share += (logits.argmax(1) == y) & torch.isfinite(logits).all(1)
        return share / self.draws

    def within(self, rows: Int[Tensor, " m"], candidate: Tensor, eps: float) -> Tensor:
        """A candidate for some examples, brought into the ball and the box; where it is no number, the example."""
        clean = self.x[rows]
        candidate = candidate.to(clean).reshape(clean.shape)
        whole = torch.isfinite(candidate).flatten(1).all(1).reshape(-1, *[1] * (clean.dim() - 1))
        return torch.where(whole, clean + (candidate - clean).clamp(-eps, eps), clean).clamp(0, 1)


class Worst:
    """For each example the worst input found within one budget, and how often it is still classified rightly."""

    def __init__(self, attacked: Attacked, eps: float, share: Tensor, examples: Tensor) -> None:
        self.attacked, self.eps = attacked, eps
        self.share, self.examples = share.clone(), examples.clone()

    def standing(self) -> Int[Tensor, " m"]:
        """The examples that are still classified rightly at least now and then."""
        return self.share.nonzero().flatten()

    def propose(self, rows: Int[Tensor, " m"], candidate: Tensor) -> Float[Tensor, " m"]:
        """Take over what is worse than before; returns the share of draws in which each candidate is right."""
        candidate = self.attacked.within(rows, candidate, self.eps)
        share = self.attacked.share_correct(candidate, self.attacked.y[rows])
        worse = share < self.share[rows]
        self.share[rows[worse]] = share[worse]
        self.examples[rows[worse]] = candidate[worse]
        return share

    def judged_again(self) -> Tensor:
        """The shares from fresh draws: the least of many noisy shares is too low."""
        return self.attacked.share_correct(self.examples, self.attacked.y) if self.attacked.draws > 1 else self.share


def check_attacked(model: Any, x: Any, y: Any, draws: int | None, batch_size: int) -> Attacked:
    """What `robust_accuracy` was given, checked.

    Raises:
        TypeError: no module, no numbers.
        ValueError: a model in training mode, inputs outside of [0, 1], shapes or labels that do not fit, outputs that
            are no logits.
    """
    check_model(model)
    device, dtype = home(model, x)
    inputs = check_inputs(x).to(device)
    labels = _check_labels(y, len(inputs)).to(device)
    once = Attacked(model, inputs, labels, 0, dtype, 1, False, batch_size)
    logits = _first_pass(once)
    classes = logits.shape[1]
    if int(labels.max()) >= classes:
        raise ValueError(
            f"y holds the label {int(labels.max())}, but the model has {classes} classes, 0 to {classes - 1}"
        )
    part = inputs[:batch_size]
    again = once.logits(part)
    # Some kernels of accelerators differ in the last digits from pass to pass; that is no noise.
    near = 1e-5 * float(again.abs().max())
    randomised = not torch.allclose(logits[: len(part)], again, rtol=1e-3, atol=near)
    averaged = (MANY if draws is None else draws) if randomised else 1
    return Attacked(model, inputs, labels, classes, dtype, averaged, randomised, batch_size)


def home(model: nn.Module, x: Any) -> tuple[torch.device, torch.dtype]:
    """Where a classifier is and its precision, by its first floating-point tensor; one without follows the inputs."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return (x.device if isinstance(x, Tensor) else torch.device("cpu")), torch.float32


def check_model(model: Any, name: str = "the model") -> None:
    """Refuse what is no module, is in training mode, or looks at the whole batch."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module from inputs to logits, got {type(model).__name__}")
    training = [place or "itself" for place, module in model.named_modules() if module.training]
    if training:
        shown = ", ".join(training[:3]) + (", ..." if len(training) > 3 else "")
        raise ValueError(
            f"{name} is in training mode ({shown}): dropout and batch statistics would be on; call model.eval() first"
        )
    if mixes_rows(model):
        raise ValueError(
            f"{name} has batch normalisation without running statistics: what it says of an example depends on the "
            "others in the batch, so that no example has a robustness of its own; use track_running_stats=True"
        )


def check_inputs(x: Any) -> Tensor:
    """(n, ...) float32 within [0, 1]."""
    whole = x if isinstance(x, Tensor) else _as_tensor(x)
    if not whole.is_floating_point() and not whole.is_complex():
        raise ValueError(
            f"x holds {str(whole.dtype).removeprefix('torch.')}, expected floating-point numbers in [0, 1]; for bytes "
            "divide by 255 (where the model was trained on that)"
        )
    inputs = as_finite(whole, "x").detach().float()
    if inputs.dim() < 2 or not inputs.numel():
        raise ValueError(
            f"x has shape {tuple(inputs.shape)}, expected (n, ...) with at least one example and one feature"
        )
    low, high = float(inputs.min()), float(inputs.max())
    if low < -BOX or high > 1 + BOX:
        raise ValueError(
            f"x lies in [{low:g}, {high:g}], expected [0, 1], where budgets have a meaning; put the normalisation into "
            "the model, as its first layer, and give x as it was before"
        )
    return inputs.clamp(0, 1)


def _as_tensor(values: Any, name: str = "x") -> Tensor:
    try:
        # Arrays that are turned round have strides that torch does not know.
        return torch.as_tensor(values.copy() if isinstance(values, np.ndarray) else values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be a tensor or an array of numbers, got {type(values).__name__}: {error}"
        ) from None


def _check_labels(y: Any, n: int) -> Tensor:
    # On the CPU: not every accelerator knows double precision.
    labels = as_finite(y.cpu() if isinstance(y, Tensor) else _as_tensor(y, "y"), "y", dtype=torch.float64)
    if labels.dim() == 2 and labels.shape[0] == n and labels.shape[1] > 1:
        raise ValueError(f"y has shape {tuple(labels.shape)}; give class indices (n,): y.argmax(1) for one-hot rows")
    if labels.shape != (n,):
        raise ValueError(f"y has shape {tuple(labels.shape)}, expected ({n},): one class index for each row of x")
    if bool((labels != labels.round()).any()) or bool((labels < 0).any()):
        raise ValueError("y must hold class indices: whole numbers from 0 on")
    return labels.long()


def _first_pass(attacked: Attacked) -> Tensor:
    """Logits of all clean inputs, checked."""
    shape = tuple(attacked.x.shape[1:])
    try:
        # The first batch alone, so that outputs of another kind are named and not only fail to join.
        with torch.no_grad():
            output = attacked.model(attacked.x[:1].to(attacked.dtype, copy=True))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"the model does not take inputs of shape (n, {', '.join(map(str, shape))}): {lines[0]}"
        ) from error
    if not isinstance(output, Tensor):
        raise ValueError(
            f"the model returned a {type(output).__name__}, expected logits (n, classes); wrap it in a module that "
            "returns them alone"
        )
    if output.dim() != 2 or len(output) != 1 or output.shape[1] < 2 or not output.is_floating_point():
        raise ValueError(
            f"the model returned {tuple(output.shape)} ({output.dtype}) for one example, expected logits (1, classes); "
            "a single output z for two classes becomes torch.stack([-z / 2, z / 2], 1)"
        )
    try:
        logits = attacked.logits(attacked.x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"the model takes one example, and no batch of {min(len(attacked.x), attacked.batch_size)}: {lines[0]}"
        ) from error
    if len(logits) != len(attacked.x):
        raise ValueError(
            f"the model returned {len(logits)} rows of logits for {len(attacked.x)} examples in batches of up to "
            f"{attacked.batch_size}, expected one for each; keep the first dimension as it is: x.flatten(1)"
        )
    bad = ~torch.isfinite(logits).all(1)
    if bool(bad.any()):
        raise ValueError(
            f"the model returned logits that are infinite or not a number for {int(bad.sum())} of {len(logits)} clean "
            f"examples, the first in row {int(bad.nonzero()[0])}"
        )
    if bool((logits >= 0).all()) and torch.allclose(
        logits.sum(1), torch.ones(len(logits), device=logits.device), rtol=1e-3
    ):
        raise ValueError(
            "the model returned probabilities, expected logits: leave out the last softmax, in which gradients get lost"
        )
    return logits


def check_eps(eps: Any) -> tuple[float, ...]:
    """Distinct budgets in increasing order."""
    given = as_finite(eps, "eps", dtype=torch.float64).flatten().tolist()
    if not given:
        raise ValueError("eps is empty; give at least one budget, for example 0.1")
    if min(given) < 0 or max(given) > 1:
        wrong = min(given) if min(given) < 0 else max(given)
        raise ValueError(f"eps={wrong:g}: a budget must be >= 0 and <= 1, the size of the box" + _hint(wrong))
    return tuple(sorted(set(given)))


def _hint(eps: float) -> str:
    return f"; eps of 255 levels is {eps:g}/255" if eps > 1 and math.isclose(eps, round(eps)) else ""
