"""Gradient attacks for training and quick evaluation: FGSM and projected gradient descent, in few operations.

    x_0 = x + uniform noise in the ball        x_{t+1} = Π(x_t + α sign ∇_x CE(f(x_t), y))        "linf"
                                               x_{t+1} = Π(x_t + α ∇_x CE / ||∇_x CE||_2)         "l2"

Π goes back into the ball of radius eps around x and into [0, 1]. Inputs are images or features in [0, 1]: a model
that wants standardised ones standardises inside.

The gradient at the logits is written down, in a form that does not vanish where a network is sure of itself; behind
them only the input's is computed, and parameters ask for none while the attack runs.

These attacks are for training, and to compare networks trained alike. Whether a defence holds is judged by an ensemble
that also has attacks without gradients; a network that hides its gradients looks robust here.

Goodfellow, Shlens, Szegedy: "Explaining and Harnessing Adversarial Examples", ICLR 2015, arXiv 1412.6572. Madry,
Makelov, Schmidt, Tsipras, Vladu: "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, arXiv
1706.06083.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from mechanisms._base.seeds import as_seed
from mechanisms._base.validation import check_number
from mechanisms.robust._ascent import ROWS, Attack, frozen, strongest, survivors
from mechanisms.robust._classifier_checks import check_evaluating, check_inputs
from mechanisms.robust.denoising import draws_noise

__all__ = ["fgsm", "pgd", "withstands_pgd"]

Progress = Callable[[int, int], None]


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
    rows: int = ROWS,
    progress: Progress | None = None,
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
        rows: the most rows of one pass, for a memory that does not hold more; another number has other starts.
        progress: called with rows done and all rows, after every `rows` of them.

    Returns:
        Adversarial inputs of the shape, type and device of `x`, in [0, 1] and in the ball (in half precision up to its
        rounding), detached.

    Raises:
        ValueError: inputs outside [0, 1], labels that do not fit, settings out of range, logits without a gradient or
            with one that is not a number.
        TypeError: inputs that are no floating-point numbers, labels that are no integers.

    Source: Madry et al., section 2.1.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> x, y = torch.rand(10, 4), torch.arange(10) % 3
    >>> x_adv = pgd(model, x, y, eps=0.1, steps=10, restarts=2, generator=torch.Generator().manual_seed(0))
    >>> bool(((x_adv - x).abs() <= 0.1 + 1e-6).all())
    True
    """
    attack = Attack.checked(eps, steps, step_size, norm, random_start, loss, keep)
    starts, most = _check_restarts(restarts, random_start), int(check_number(rows, "rows", at_least=1))
    x, y, classes = check_inputs(x, y)
    attack = replace(attack, classes=classes)
    if attack.eps == 0 or len(x) == 0:
        return x.clone()
    generators = _generators(generator, starts, x) if random_start else [None]
    parts, done = [], 0
    with frozen(model):
        for points, labels in zip(x.split(most), y.split(most), strict=True):
            parts.append(strongest(model, points, labels, attack, generators, most))
            done += len(points)
            if progress is not None:
                progress(done, len(x))
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
    rows: int = ROWS,
    progress: Progress | None = None,
) -> Tensor:
    """Which examples are classified rightly whatever PGD tries; the mean is the accuracy under this attack.

    An example leaves the attack once it is misclassified, at whatever step, the clean input included. So the
    accuracy never grows with `restarts`, and costs less than keeping all.

    Args:
        model: as in `pgd`, in evaluation mode.
        x, y, eps, steps, step_size, norm, restarts, random_start, loss, generator, rows, progress: as in `pgd`.

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
    starts, most = _check_restarts(restarts, random_start), int(check_number(rows, "rows", at_least=1))
    x, y, classes = check_inputs(x, y)
    attack = replace(attack, classes=classes)
    check_evaluating(model)
    if draws_noise(model):
        warnings.warn(
            "the model draws noise when it is evaluated, and each gradient sees one draw: robustness is overstated; "
            "wrap it in ExpectationOverNoise",
            stacklevel=2,
        )
    if len(x) == 0:
        return torch.zeros(0, dtype=torch.bool, device=x.device)
    generators = _generators(generator, starts, x) if random_start else [None]
    right, done = [], 0
    with frozen(model):
        for points, labels in zip(x.split(most), y.split(most), strict=True):
            right.append(survivors(model, points, labels, attack, generators))
            done += len(points)
            if progress is not None:
                progress(done, len(x))
    return torch.cat(right)


def _generators(generator: torch.Generator | None, count: int, x: Tensor) -> list[torch.Generator | None]:
    """A stream of its own for each start, so that more starts leave the first ones as they are."""
    seeds = [int(torch.randint(2**62, ())) if generator is None else as_seed(generator) for _ in range(count)]
    return [torch.Generator(device=x.device).manual_seed(seed) for seed in seeds]


def _check_restarts(restarts: int, random_start: bool) -> int:
    count = int(check_number(restarts, "restarts", at_least=1))
    if count > 1 and not random_start:
        raise ValueError(f"restarts={count} with random_start=False would start {count} times at the same point")
    return count
