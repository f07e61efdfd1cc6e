"""Projected gradient descent without its doors: settings, steps, and who is left standing; tensors are checked already.

The gradient of the cross-entropy at the logits is (1 - p_y) (q - onehot_y), where q is the softmax over the other
classes. A step depends on its direction alone, so that the factor is left out: it is what vanishes when a network is
sure of itself, or was made to look so by scaling its logits.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechanisms._base.validation import check_choice, check_number
from mechanisms.robust.denoising import mixes_rows

NORMS = ("linf", "l2")
LOSSES = ("cross_entropy", "margin")
ROWS = 1024  # of one pass, by default: starts of fewer rows go together, larger sets are cut

Step = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Attack:
    """Settings of projected gradient descent, checked; see `pgd`."""

    eps: float
    steps: int
    step_size: float
    norm: str = "linf"
    random_start: bool = True
    loss: str = "cross_entropy"
    keep: str = "best"
    classes: int = 0  # how many the labels name, so that a model with fewer logits gets a message

    @classmethod
    def checked(
        cls,
        eps: float | int,
        steps: int,
        step_size: float | int | None,
        norm: str,
        random_start: bool,
        loss: str,
        keep: str,
    ) -> "Attack":
        """The settings, or an error that says what is wrong with them."""
        eps = check_number(eps, "eps", at_least=0)
        steps = int(check_number(steps, "steps", at_least=1))
        size = 2.5 * eps / steps if step_size is None else check_number(step_size, "step_size", at_least=0)
        check_choice(norm, "norm", NORMS)
        check_choice(loss, "loss", LOSSES)
        check_choice(keep, "keep", ("best", "last"))
        return cls(eps, steps, size, norm, random_start, loss, keep)


@contextmanager
def frozen(model: nn.Module) -> Generator[None]:
    """No parameter of the model asks for a gradient inside the block, and gradients can be taken; then as before."""
    # What is computed from other parameters cannot be told, and needs no telling: nothing is added to its gradient.
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.is_leaf]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def random_points(
    x: Float[Tensor, "rows ..."], attack: Attack, generator: torch.Generator | None
) -> Float[Tensor, "rows ..."]:
    """A uniform point of the ball around each row, clipped to [0, 1]."""
    place = x.device if generator is None else generator.device
    how = {"generator": generator, "device": place, "dtype": x.dtype}
    if attack.norm == "linf":
        noise = torch.rand(x.shape, **how).to(x.device)
        return noise.mul_(2 * attack.eps).sub_(attack.eps).add_(x).clamp_(0, 1)
    directions = torch.randn(x.shape, **how).to(x.device)
    radius = attack.eps * torch.rand(len(x), **how).to(x.device) ** (len(x) / x.numel())
    return directions.mul_(_per_row(radius / _norms(directions), x)).add_(x).clamp_(0, 1)


def climb(
    model: nn.Module,
    x: Float[Tensor, "rows ..."],
    y: Int[Tensor, " rows"],
    attack: Attack,
    start: Float[Tensor, "rows ..."],
    *,
    watch: bool = False,
) -> tuple[Float[Tensor, "rows ..."], Float[Tensor, " rows"] | None]:
    """All steps from `start`, inside `frozen`: the last iterate, or with keep="best" the best one and its margin.

    With `watch` a first gradient that is not finite is an error; asking waits for the device.
    """
    step, classes = _step(x, attack), _Classes(y, attack)
    best: Tensor | None = None
    margin: Tensor | None = None
    points = start.clone()
    current = points.detach().requires_grad_()  # the same numbers, and autograd's eyes on them
    for count in range(attack.steps):
        logits = _logits(model, current, attack.classes)
        found = logits.detach()
        if attack.keep == "best":
            best, margin = _better(best, margin, points, classes.margin(found))
        (gradient,) = torch.autograd.grad(logits, current, classes.gradient(found))
        if watch and count == 0:
            _check_gradient(gradient)
        step(points, gradient)
    if attack.keep == "last":
        return points, None
    with torch.no_grad():
        return _better(best, margin, points, classes.margin(model(points)))


def strongest(
    model: nn.Module,
    x: Float[Tensor, "rows ..."],
    y: Int[Tensor, " rows"],
    attack: Attack,
    generators: Sequence[torch.Generator | None],
    most: int = ROWS,
) -> Float[Tensor, "rows ..."]:
    """The strongest of one start for each generator, inside `frozen`; starts go together up to `most` rows."""
    starts = [random_points(x, attack, one) if attack.random_start else x for one in generators]
    if len(starts) == 1:
        return climb(model, x, y, attack, starts[0], watch=True)[0]
    together = 1 if mixes_rows(model) else max(1, most // len(x))
    found, margins = [], []
    for first in range(0, len(starts), together):
        some = starts[first : first + together]
        count = len(some)
        labels = y.repeat(count)
        repeated = x.repeat(count, *[1] * (x.dim() - 1))
        iterates, margin = climb(model, repeated, labels, attack, torch.cat(some), watch=True)
        if margin is None:
            with torch.no_grad():
                margin = _Classes(labels, attack).margin(model(iterates))
        found.append(iterates.view(count, *x.shape))
        margins.append(margin.view(count, len(x)))
    chosen = torch.cat(margins).argmax(0)
    return torch.cat(found)[chosen, torch.arange(len(x), device=x.device)]


def survivors(
    model: nn.Module,
    x: Float[Tensor, "rows ..."],
    y: Int[Tensor, " rows"],
    attack: Attack,
    generators: Sequence[torch.Generator | None],
) -> Bool[Tensor, " rows"]:
    """Which rows no iterate of any start fools, inside `frozen`; rows that are fooled leave the batch."""
    with torch.no_grad():
        logits = model(x)
        _check_logits(logits, x, attack.classes)
        right = logits.argmax(1) == y
    if attack.eps == 0:
        return right
    for one in generators:
        begin = random_points(x, attack, one) if attack.random_start else x
        left = right.nonzero().squeeze(1)
        if len(left) == 0:
            continue  # later starts are drawn all the same, so that the next block of rows keeps its own
        rows, current, labels = x[left], begin[left].requires_grad_(), y[left]
        standing = torch.ones_like(left, dtype=torch.bool)
        step, classes = _step(rows, attack), _Classes(labels, attack)
        for count in range(attack.steps + 1):
            logits = _logits(model, current, attack.classes)
            with torch.no_grad():
                standing &= logits.argmax(1) == labels
                if count == attack.steps:
                    break
                (gradient,) = torch.autograd.grad(logits, current, classes.gradient(logits))
                if count == 0:
                    _check_gradient(gradient)
                step(current, gradient)
            # Asking waits for the device, and cutting costs a copy: now and then, when a good part has fallen.
            if count % 4 == 0 and (stay := standing.nonzero().squeeze(1)).numel() < 0.75 * len(left):
                right[left] &= standing
                left, rows, labels = left[stay], rows[stay], labels[stay]
                current, standing = current.detach()[stay].requires_grad_(), standing[stay]
                step, classes = _step(rows, attack), _Classes(labels, attack)
                if len(left) == 0:
                    break
        right[left] &= standing
    return right


def _logits(model: nn.Module, rows: Tensor, classes: int) -> Tensor:
    logits = model(rows)
    if not logits.requires_grad:
        raise ValueError("the model's logits have no gradient by the input; this attack needs one (try one without)")
    _check_logits(logits, rows, classes)
    return logits


def _check_logits(logits: Tensor, rows: Tensor, classes: int) -> None:
    if logits.dim() != 2 or len(logits) != len(rows) or logits.shape[1] < 2:
        raise ValueError(
            f"the model returns shape {tuple(logits.shape)} for {len(rows)} rows; expected logits (n, K), K from 2"
        )
    if logits.shape[1] < classes:
        raise ValueError(f"y holds the label {classes - 1} and the model returns {logits.shape[1]} logits")


def _check_gradient(gradient: Tensor) -> None:
    # The sign of what is not a number is 0: the attack would stand still, and the model would look robust.
    if not bool(gradient.isfinite().all()):
        raise ValueError(
            "the model's gradient by its input is not a finite number for some rows; this attack needs one"
        )


def _step(x: Tensor, attack: Attack) -> Step:
    """What moves rows along their gradient, in place, and back into the ball around `x` and into [0, 1]."""
    if attack.norm == "l2":
        return lambda current, gradient: _l2_step(x, attack, current, gradient)
    low, high = (x - attack.eps).clamp_(min=0), (x + attack.eps).clamp_(max=1)
    sign = torch.empty_like(low)  # in memory of its own: to ask for some at every step costs as much as the signs

    def step(current: Tensor, gradient: Tensor) -> None:
        torch.sign(gradient, out=sign)
        current.add_(sign, alpha=attack.step_size)
        torch.clamp(current, low, high, out=current)

    return step


def _l2_step(x: Tensor, attack: Attack, current: Tensor, gradient: Tensor) -> None:
    # By its largest number first: squares of tiny numbers are 0, and a step over a norm of 0 is infinite.
    largest = gradient.flatten(1).abs().amax(1).clamp_(min=torch.finfo(x.dtype).tiny)
    unit = gradient / _per_row(largest, x)
    current.addcmul_(unit, _per_row(attack.step_size / _norms(unit).clamp_(min=1), x))
    away = current.sub_(x)
    away.mul_(_per_row((attack.eps / _norms(away)).clamp_(max=1), x))
    # Clipping comes nearer to x in every coordinate, so that it does not leave the ball.
    away.add_(x).clamp_(0, 1)


class _Classes:
    """What the loss needs of the labels, laid out once for all steps of rows (n,)."""

    def __init__(self, y: Tensor, attack: Attack) -> None:
        self.labels, self.cross_entropy = y.unsqueeze(1), attack.loss == "cross_entropy"
        self.onehot = self.hidden = y.new_zeros(0)  # until the number of classes is known

    def others(self, logits: Tensor) -> Tensor:
        """The logits with the true class at -inf."""
        if self.hidden.shape != logits.shape:
            self.onehot = torch.zeros_like(logits).scatter_(1, self.labels, 1.0)
            self.hidden = torch.zeros_like(logits).scatter_(1, self.labels, -torch.inf)
        return logits + self.hidden

    def gradient(self, logits: Tensor) -> Tensor:
        """Of the loss by the logits, up to a positive factor for each row."""
        others = self.others(logits)
        if self.cross_entropy:
            return others.softmax(1).sub_(self.onehot)
        return torch.zeros_like(logits).scatter_(1, others.argmax(1, keepdim=True), 1.0).sub_(self.onehot)

    def margin(self, logits: Tensor) -> Tensor:
        """The largest other logit minus the true one: above 0 where an example is misclassified, whatever its loss."""
        return self.others(logits).amax(1) - logits.gather(1, self.labels).squeeze(1)


def _better(best: Tensor | None, margin: Tensor | None, current: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """The better iterate of each row, by margin, and that margin."""
    if best is None or margin is None:
        return current.detach().clone(), found
    torch.where(_per_row(found > margin, current), current, best, out=best)
    return best, torch.maximum(found, margin)


def _norms(rows: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    return norms.clamp_(min=torch.finfo(rows.dtype).tiny)


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
