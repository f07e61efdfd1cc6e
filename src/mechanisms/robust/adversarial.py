"""Gradient attacks for training and quick evaluation: FGSM and projected gradient descent, in few operations.

    x_0 = x + uniform noise in the ball        x_{t+1} = Π(x_t + α sign ∇_x CE(f(x_t), y))        "linf"
                                               x_{t+1} = Π(x_t + α ∇_x CE / ||∇_x CE||_2)         "l2"

Π goes back into the ball of radius eps around x and into [0, 1]. Inputs are images or features in [0, 1]: a model
that wants standardised ones standardises inside.

The gradient at the logits is written down (softmax minus one-hot, without cancellation, so that a confident network
still shows one), only the input's is computed behind them, and parameters ask for none while the attack runs.

These attacks are for training, and to compare networks trained alike. Whether a defence holds is judged by an ensemble
that also has attacks without gradients; a network that hides its gradients looks robust here.

Goodfellow, Shlens, Szegedy: "Explaining and Harnessing Adversarial Examples", ICLR 2015, arXiv 1412.6572. Madry,
Makelov, Schmidt, Tsipras, Vladu: "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, arXiv
1706.06083.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechanisms._base.seeds import as_seed
from mechanisms._base.validation import check_choice, check_number
from mechanisms.robust.denoising import draws_noise

__all__ = ["fgsm", "pgd", "withstands_pgd"]

NORMS = ("linf", "l2")
LOSSES = ("cross_entropy", "margin")
ROWS = 1024  # of one pass: restarts of fewer rows go together, larger sets are cut


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


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float | int,
    *,
    steps: int = 40,
    step_size: float | int | None = None,
    norm: str = "linf",
    restarts: int = 1,
    random_start: bool = True,
    loss: str = "cross_entropy",
    keep: str = "best",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Inputs near `x` that a classifier takes for something else, by projected gradient descent.

    The model is used in the mode it is in, and is as before afterwards: no parameter gets a gradient.

    Args:
        model: any classifier, (n, ...) to logits (n, K).
        x: inputs in [0, 1], (n, ...).
        y: true labels, (n,), integers from 0.
        eps: radius of the ball, from 0 (which gives `x` back), in the inputs' units: 8 / 255 for images is usual.
        steps: of each start.
        step_size: of a step, in the inputs' units; by default 2.5 eps / steps. The paper's is 0.01, with 40 steps.
        norm: "linf" or "l2".
        restarts: starts for each example; a larger number has the smaller's starts too, with the same generator's seed.
        random_start: whether starts are uniform in the ball; else they are `x`, and more than one is an error.
        loss: what grows: "cross_entropy", or "margin", the largest other logit minus the true one.
        keep: "best" keeps for each example the iterate with the largest margin over all steps and starts, so that what
            was misclassified once is given back; "last" the last iterate (of the starts, the one with the largest
            margin), which saves a pass and is enough for training.
        generator: of the starts; torch's by default.

    Returns:
        Adversarial inputs of the shape, type and device of `x`, in [0, 1] and in the ball (in half precision up to its
        rounding), detached.

    Raises:
        ValueError: inputs outside [0, 1], labels that do not fit, settings out of range, logits without a gradient.
        TypeError: inputs that are no floating-point numbers, labels that are no integers.

    Source: Madry et al., section 2.1.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> x, y = torch.rand(10, 4), torch.arange(10) % 3
    >>> x_adv = pgd(model, x, y, eps=0.1, steps=10, restarts=2, generator=torch.Generator().manual_seed(0))
    >>> bool(((x_adv - x).abs() <= 0.1 + 1e-6).all())
    True
    """
    attack = Attack.checked(eps, steps, step_size, norm, random_start, loss, keep)
    starts = _check_restarts(restarts, random_start)
    x, y, classes = check_inputs(x, y)
    attack = replace(attack, classes=classes)
    if attack.eps == 0 or len(x) == 0:
        return x.clone()
    generators = _generators(generator, starts, x) if random_start else [None]
    parts = []
    with frozen(model):
        for rows, labels in zip(x.split(ROWS), y.split(ROWS), strict=True):
            parts.append(_strongest(model, rows, labels, attack, generators))
    return torch.cat(parts)


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float | int,
    *,
    norm: str = "linf",
    random_start: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The fast gradient sign method: one step of length eps ("l2": along the gradient).

    A network trained on it alone can learn to hide its gradients at exactly this step (catastrophic overfitting): look
    at PGD too.

    Args:
        model, x, y, eps, norm, generator: as in `pgd`.
        random_start: whether to start at a uniform point of the ball (a step of eps from there goes back into it).

    Raises:
        ValueError, TypeError: as `pgd`.

    Source: Goodfellow et al., section 4.

    >>> model = nn.Linear(4, 3)
    >>> x, y = torch.full((2, 4), 0.5), torch.tensor([0, 1])
    >>> (fgsm(model, x, y, eps=0.1) - x).abs().amax(1)
    tensor([0.1000, 0.1000])
    """
    start = {"random_start": random_start, "generator": generator}
    return pgd(model, x, y, eps, steps=1, step_size=eps, norm=norm, keep="last", **start)


def withstands_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float | int,
    *,
    steps: int = 40,
    step_size: float | int | None = None,
    norm: str = "linf",
    restarts: int = 2,
    random_start: bool = True,
    loss: str = "cross_entropy",
    generator: torch.Generator | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Which examples are classified rightly whatever PGD tries; the mean is the accuracy under this attack.

    An example leaves the attack once it is misclassified, at whatever step, the clean input included. So the
    accuracy never grows with `restarts`, and costs less than keeping all.

    Args:
        model: as in `pgd`, in evaluation mode.
        x, y, eps, steps, step_size, norm, restarts, random_start, loss, generator: as in `pgd`.
        progress: called with rows done and all rows.

    Returns:
        (n,) of truth values.

    Raises:
        ValueError: as `pgd`, and a model in training mode.

    Warns:
        UserWarning: the model draws noise when evaluated; wrap it in `ExpectationOverNoise`.

    >>> model = nn.Linear(4, 3).eval()
    >>> x = torch.rand(10, 4)
    >>> bool(withstands_pgd(model, x, model(x).argmax(1), eps=0).all())
    True
    """
    attack = Attack.checked(eps, steps, step_size, norm, random_start, loss, "best")
    starts = _check_restarts(restarts, random_start)
    x, y, classes = check_inputs(x, y)
    attack = replace(attack, classes=classes)
    check_evaluating(model)
    if draws_noise(model):
        warnings.warn(
            "the model draws noise when it is evaluated, and each gradient sees one draw: robustness is overstated; "
            "wrap it in ExpectationOverNoise",
            stacklevel=2,
        )
    generators = _generators(generator, starts, x) if random_start else [None]
    right, done = [], 0
    with frozen(model):
        for rows, labels in zip(x.split(ROWS), y.split(ROWS), strict=True):
            right.append(_survivors(model, rows, labels, attack, generators))
            done += len(rows)
            if progress is not None:
                progress(done, len(x))
    return torch.cat(right)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of the model asks for a gradient inside the block, and gradients can be taken; then as before.

    >>> model = nn.Linear(2, 1)
    >>> with frozen(model):
    ...     model.weight.requires_grad
    False
    >>> model.weight.requires_grad
    True
    """
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


def climb(
    model: nn.Module,
    x: Float[Tensor, "rows ..."],
    y: Int[Tensor, " rows"],
    attack: Attack,
    start: Float[Tensor, "rows ..."] | None = None,
) -> Float[Tensor, "rows ..."]:
    """All steps from `start` (by default `x`), without checks; inside `frozen`. With keep="best" the best iterate."""
    return _climb(model, x, y, attack, x if start is None else start)[0]


def random_points(
    x: Float[Tensor, "rows ..."], attack: Attack, generator: torch.Generator | None
) -> Float[Tensor, "rows ..."]:
    """A uniform point of the ball around each row, clipped to [0, 1]."""
    place = x.device if generator is None else generator.device
    if attack.norm == "linf":
        noise = torch.rand(x.shape, generator=generator, device=place, dtype=x.dtype).to(x.device)
        return noise.mul_(2 * attack.eps).sub_(attack.eps).add_(x).clamp_(0, 1)
    directions = torch.randn(x.shape, generator=generator, device=place, dtype=x.dtype).to(x.device)
    radius = torch.rand(len(x), generator=generator, device=place, dtype=x.dtype).to(x.device)
    radius = attack.eps * radius ** (1 / max(1, x[0].numel()))
    return directions.mul_(_per_row(radius / _norms(directions), x)).add_(x).clamp_(0, 1)


def check_evaluating(model: nn.Module) -> None:
    """An error for a model in training mode, whose answers depend on batch and noise.

    >>> check_evaluating(nn.Linear(2, 1).eval())
    """
    if model.training:
        raise ValueError("the model is in training mode; call its eval() before evaluating it")


def _climb(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, start: Tensor) -> tuple[Tensor, Tensor | None]:
    """The chosen iterate of each row, and its margin where one was asked for (keep="best")."""
    step = _step(x, attack)
    gradient_of = _cross_entropy_gradient if attack.loss == "cross_entropy" else _margin_gradient
    best: Tensor | None = None
    margin: Tensor | None = None
    labels = y.unsqueeze(1)
    current = start.clone().requires_grad_()
    for _ in range(attack.steps):
        logits = _logits(model, current, labels, attack.classes)
        with torch.no_grad():
            if attack.keep == "best":
                best, margin = _better(best, margin, current, logits, labels)
            direction = gradient_of(logits, labels)
        (gradient,) = torch.autograd.grad(logits, current, direction)
        with torch.no_grad():
            step(current, gradient)
    current = current.detach()
    if attack.keep == "best":
        with torch.no_grad():
            best, margin = _better(best, margin, current, model(current), labels)
        return best, margin
    return current, None


def _logits(model: nn.Module, rows: Tensor, labels: Tensor, classes: int) -> Tensor:
    logits = model(rows)
    if not logits.requires_grad:
        raise ValueError("the model's logits have no gradient by the input; this attack needs one (try one without)")
    if logits.dim() != 2 or len(logits) != len(labels):
        raise ValueError(
            f"the model returns shape {tuple(logits.shape)} for {len(labels)} rows; expected logits (n, K)"
        )
    if logits.shape[1] < classes:
        raise ValueError(f"y holds the label {classes - 1} and the model returns {logits.shape[1]} logits")
    return logits


def _step(x: Tensor, attack: Attack) -> Callable[[Tensor, Tensor], None]:
    """What moves rows along their gradient, in place, and back into the ball around `x` and into [0, 1]."""
    return _linf_step(x, attack) if attack.norm == "linf" else _l2_step(x, attack)


def _linf_step(x: Tensor, attack: Attack) -> Callable[[Tensor, Tensor], None]:
    low, high = (x - attack.eps).clamp_(min=0), (x + attack.eps).clamp_(max=1)

    def step(current: Tensor, gradient: Tensor) -> None:
        current.add_(gradient.sign(), alpha=attack.step_size)
        torch.clamp(current, low, high, out=current)

    return step


def _l2_step(x: Tensor, attack: Attack) -> Callable[[Tensor, Tensor], None]:
    def step(current: Tensor, gradient: Tensor) -> None:
        current.addcmul_(gradient, _per_row(attack.step_size / _norms(gradient), x))
        away = current.sub_(x)
        away.mul_(_per_row((attack.eps / _norms(away)).clamp_(max=1), x))
        # Clipping comes nearer to x in every coordinate, so that it does not leave the ball.
        away.add_(x).clamp_(0, 1)

    return step


def _cross_entropy_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """softmax - onehot; the true class's p - 1 as minus the others' sum, which is not rounded to 0 when p is near 1."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    gradient = wide.softmax(1).scatter_(1, labels, 0.0)
    gradient.scatter_(1, labels, gradient.sum(1, keepdim=True).neg_())
    return gradient.to(logits.dtype)


def _margin_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    other = logits.scatter(1, labels, -torch.inf).argmax(1, keepdim=True)
    return torch.zeros_like(logits).scatter_(1, other, 1.0).scatter_(1, labels, -1.0)


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest other logit minus the true one: above 0 where an example is misclassified, whatever its loss."""
    return logits.scatter(1, labels, -torch.inf).amax(1) - logits.gather(1, labels).squeeze(1)


def _better(
    best: Tensor | None, margin: Tensor | None, current: Tensor, logits: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    found = _margin(logits, labels)
    if best is None or margin is None:
        return current.detach().clone(), found
    better = found > margin
    torch.where(_per_row(better, current), current, best, out=best)
    return best, torch.where(better, found, margin)


def _strongest(
    model: nn.Module, x: Tensor, y: Tensor, attack: Attack, generators: list[torch.Generator | None]
) -> Tensor:
    """The strongest of all starts, several starts in one pass while they are few rows."""
    starts = [random_points(x, attack, one) if attack.random_start else x for one in generators]
    if len(starts) == 1:
        return _climb(model, x, y, attack, starts[0])[0]
    together = max(1, ROWS // len(x))
    best: Tensor | None = None
    margin: Tensor | None = None
    for first in range(0, len(starts), together):
        some = starts[first : first + together]
        count = len(some)
        repeated = x.repeat(count, *[1] * (x.dim() - 1))
        found, margins = _climb(model, repeated, y.repeat(count), attack, torch.cat(some))
        if margins is None:
            with torch.no_grad():
                margins = _margin(model(found), y.repeat(count).unsqueeze(1))
        margins, chosen = margins.view(count, -1).max(0)
        found = found.view(count, *x.shape)[chosen, torch.arange(len(x), device=x.device)]
        if best is None or margin is None:
            best, margin = found, margins
        else:
            better = margins > margin
            best, margin = torch.where(_per_row(better, x), found, best), torch.where(better, margins, margin)
    return best


def _survivors(
    model: nn.Module, x: Tensor, y: Tensor, attack: Attack, generators: list[torch.Generator | None]
) -> Tensor:
    """Which rows no iterate of any start fools; rows that are fooled leave the batch."""
    with torch.no_grad():
        right = model(x).argmax(1) == y
    if attack.eps == 0:
        return right
    gradient_of = _cross_entropy_gradient if attack.loss == "cross_entropy" else _margin_gradient
    for one in generators:
        begin = random_points(x, attack, one) if attack.random_start else x
        left = right.nonzero().squeeze(1)
        if len(left) == 0:
            continue  # later starts are still drawn, so that other blocks keep theirs
        rows, current, labels = x[left], begin[left].requires_grad_(), y[left].unsqueeze(1)
        step = _step(rows, attack)
        standing = torch.ones_like(left, dtype=torch.bool)
        for count in range(attack.steps + 1):
            logits = _logits(model, current, labels, attack.classes)
            with torch.no_grad():
                standing &= logits.argmax(1) == labels.squeeze(1)
                direction = gradient_of(logits, labels)
            if count == attack.steps:
                break
            (gradient,) = torch.autograd.grad(logits, current, direction)
            with torch.no_grad():
                step(current, gradient)
            # Asking waits for the device, and cutting costs a copy: now and then, when a good part has fallen.
            if count % 4 == 0 and (stay := standing.nonzero().squeeze(1)).numel() < 0.75 * len(left):
                right[left] &= standing
                left, rows, labels = left[stay], rows[stay], labels[stay]
                current, standing = current.detach()[stay].requires_grad_(), standing[stay]
                step = _step(rows, attack)
                if len(left) == 0:
                    break
        right[left] &= standing
    return right


def _generators(generator: torch.Generator | None, count: int, x: Tensor) -> list[torch.Generator | None]:
    """A stream of its own for each start, so that more starts leave the first ones as they are."""
    seeds = [int(torch.randint(2**62, ())) if generator is None else as_seed(generator) for _ in range(count)]
    return [torch.Generator(device=x.device).manual_seed(seed) for seed in seeds]


def _check_restarts(restarts: int, random_start: bool) -> int:
    count = int(check_number(restarts, "restarts", at_least=1))
    if count > 1 and not random_start:
        raise ValueError(f"restarts={count} with random_start=False would start {count} times at the same point")
    return count


def check_inputs(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
    """Inputs without their graph, labels that index, and how many classes they name."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x is {kind}; expected a floating-point tensor (n, ...) in [0, 1]")
    if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"y is {kind}; expected a tensor (n,) of integer labels")
    if x.dim() < 2 or y.shape != x.shape[:1]:
        raise ValueError(f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}; expected (n, ...) and (n,)")
    if x.device != y.device:
        raise ValueError(f"x is on {x.device} and y on {y.device}; move one of them")
    x, y = x.detach(), y.long()
    if x.numel() == 0:
        return x, y, 0
    low, high = x.aminmax()
    if not bool((low >= 0) & (high <= 1)):
        raise ValueError(
            f"x goes from {float(low):g} to {float(high):g}; expected [0, 1]: scale it; standardise in the model"
        )
    if int(y.min()) < 0:
        raise ValueError(f"y holds {int(y.min())}; labels are integers from 0")
    return x, y, int(y.max()) + 1


def _norms(rows: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    return norms.clamp_(min=torch.finfo(rows.dtype).tiny)


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
