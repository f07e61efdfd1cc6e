"""Learning curves of the linear teacher-student in closed form: why test error can descend twice over training time.

For people who want the whole curve of training without training: the generalisation error of gradient descent on
features of several scales, at any time, with label noise and weight decay, for one problem or a map of thousands.

Reference: Pezeshki, Mitra, Bengio, Lajoie, "Multi-scale Feature Learning Dynamics: Insights for Double Descent",
ICML 2022, arXiv 2112.03215.

A teacher w ~ N(0, I_d) labels latent inputs z ~ N(0, I_d / d) with y = z.w + eps, eps ~ N(0, sigma^2). The student
sees x = F^T z, where F has a few singular values s_i (fast features 1, slow ones 1/kappa), and descends
1/2 |X what - y|^2 + lambda/2 |what|^2 (a sum over samples) from what = 0. Two scalars say how well it does,

    R = (1/d) w^T F what,    Q = (1/d) |F what|^2,    E = 1/2 (1 + sigma^2 - 2 R + Q),

and for n, d -> infinity at fixed n/d they are deterministic functions of tau = lr * t. Three of them are here:

- "flow": gradient flow itself (a contour integral, derived here; see `_contour`);
- "ridge": the exact ridge solution at penalty lambda + 1/tau, which is how the paper reads early stopping;
- "decoupled": the paper's own formula, in which each group of features learns as if the other were not there.

`mechanisms.dynamics.simulation` has the same at finite size, `mechanisms.dynamics.paths` the paths of users' data.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from mechanisms._base.validation import as_finite, check_choice, check_number
from mechanisms.dynamics._contour import flow_order
from mechanisms.dynamics._replica import decoupled_order, ridge_order
from mechanisms.dynamics.limits import Limit, largest_eigenvalue

ORDERS = {"flow": flow_order, "ridge": ridge_order, "decoupled": decoupled_order}
LARGEST_BLOCK = 2**18  # points (problems x times) that are solved at once: their temporaries fit a cache


class Batch(NamedTuple):
    """Data sets drawn from a `TeacherStudent`, all with a leading dimension of draws.

    Attributes:
        features: X, (draws, samples, dim).
        targets: y, (draws, samples).
        teacher: w, (draws, dim).
        test_features: (draws, tests, dim).
        test_targets: with the noise of training targets, (draws, tests).

    >>> TeacherStudent.two_scales(30, 20, 14).sample(2).targets.shape
    torch.Size([2, 30])
    """

    features: Float[Tensor, "draws samples dim"]
    targets: Float[Tensor, "draws samples"]
    teacher: Float[Tensor, "draws dim"]
    test_features: Float[Tensor, "draws tests dim"]
    test_targets: Float[Tensor, "draws tests"]


class LearningCurve(NamedTuple):
    """Order parameters and error over training time.

    Attributes:
        times: as given, (times,).
        alignment: R, 1 for a perfect student; its last dimension is time, before it stand problems or draws.
        norm: Q, the student's squared norm as seen on latent inputs, likewise.
        error: E, half the expected squared error, likewise.

    >>> curve = learning_curve(TeacherStudent.two_scales(), [0.0, 1e9])
    >>> [round(value, 3) + 0.0 for value in curve.error.tolist()]
    [0.5, 0.0]
    """

    times: Float[Tensor, " times"]
    alignment: Float[Tensor, "... times"]
    norm: Float[Tensor, "... times"]
    error: Float[Tensor, "... times"]


@dataclass(frozen=True)
class TeacherStudent:
    """A linear teacher and a student that sees its inputs at several scales.

    Args:
        num_samples: n, training samples, at least 1.
        dim: d, input dimension, at least 1.
        groups: for each group of features (number of directions, singular value of F); numbers sum to `dim`. A
            singular value of 0 is what the student cannot see.
        noise: standard deviation sigma of the label noise.
        l2: strength lambda of weight decay, on the scale of the summed loss.

    Raises:
        TypeError, ValueError: sizes that are no positive integers, groups that do not sum to `dim`, singular values,
            noise or weight decay below 0.

    >>> problem = TeacherStudent(150, 100, ((70, 1.0), (20, 0.1), (10, 0.01)), noise=0.1)
    >>> problem.ratio
    1.5
    """

    num_samples: int
    dim: int
    groups: tuple[tuple[int, float | int], ...]
    noise: float | int = 0.0
    l2: float | int = 0.0

    def __post_init__(self) -> None:
        for name in ("num_samples", "dim"):
            object.__setattr__(self, name, _count(getattr(self, name), name))
        try:
            groups = tuple((count, scale) for count, scale in self.groups)
        except (TypeError, ValueError):
            raise ValueError(
                f"groups={self.groups!r}: expected pairs (number of directions, singular value), for example "
                "((70, 1.0), (30, 0.01))"
            ) from None
        groups = tuple(
            (_count(count, "a group's number of directions"), check_number(scale, "a singular value", at_least=0))
            for count, scale in groups
        )
        if sum(count for count, _ in groups) != self.dim:
            raise ValueError(
                f"the groups have {' + '.join(str(count) for count, _ in groups) or 0} directions, dim is {self.dim}; "
                "their numbers must sum to dim"
            )
        if not any(scale > 0 for _, scale in groups):
            raise ValueError("all singular values are 0: the student sees nothing; give one above 0")
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "noise", check_number(self.noise, "noise", at_least=0))
        object.__setattr__(self, "l2", check_number(self.l2, "l2", at_least=0))

    @classmethod
    def two_scales(
        cls,
        num_samples: int = 150,
        dim: int = 100,
        num_fast: int = 70,
        condition_number: float | int = 100.0,
        noise: float | int = 0.0,
        l2: float | int = 0.0,
    ) -> "TeacherStudent":
        """The paper's problem: `num_fast` directions of singular value 1, the others 1 / `condition_number`.

        The defaults are those of its figure 1.

        Raises:
            ValueError: no fast or no slow direction, or a condition number below 1.

        >>> TeacherStudent.two_scales(condition_number=10).groups
        ((70, 1.0), (30, 0.1))
        """
        dim, num_fast = _count(dim, "dim"), _count(num_fast, "num_fast")
        if not num_fast < dim:
            raise ValueError(
                f"num_fast={num_fast} of dim={dim} directions: at least one must be slow; for a single scale use "
                f"condition_number=1, or TeacherStudent(..., groups=(({dim}, 1.0),))"
            )
        kappa = check_number(condition_number, "condition_number")
        if kappa < 1:
            raise ValueError(
                f"condition_number={condition_number}: it is the ratio of fast to slow scale, 1 or more; give its "
                "inverse, or num_fast the other number of directions"
            )
        return cls(num_samples, dim, ((num_fast, 1.0), (dim - num_fast, 1 / kappa)), noise, l2)

    @property
    def ratio(self) -> float:
        """Samples for each dimension, nu = n/d."""
        return self.num_samples / self.dim

    @property
    def singular_values(self) -> Float[Tensor, " dim"]:
        """Singular values of F, one for each direction, float64."""
        return torch.cat([torch.full((count,), float(scale), dtype=torch.float64) for count, scale in self.groups])

    def sample(
        self,
        num_draws: int = 1,
        num_test: int = 0,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Batch:
        """Draw data sets, each with a teacher of its own.

        F is taken diagonal: inputs and teacher are isotropic and gradient descent is rotation equivariant, so random
        rotations would change nothing but the seconds.

        Args:
            num_draws: how many.
            num_test: test samples for each.
            generator: torch's default by default; its device is where the data lie.
            dtype: single precision loses condition numbers from 1000 on, since eigenvalues span their square.

        >>> TeacherStudent.two_scales().sample(3, 5).test_features.shape
        torch.Size([3, 5, 100])
        """
        draws, tests = _count(num_draws, "num_draws"), _count(num_test, "num_test", least=0)
        device = "cpu" if generator is None else generator.device
        teacher, latent, noise, test_latent, test_noise = (
            torch.randn(draws, *shape, generator=generator, dtype=dtype, device=device)
            for shape in ((self.dim,), (self.num_samples, self.dim), (self.num_samples,), (tests, self.dim), (tests,))
        )
        scales = self.singular_values.to(device, dtype)
        latent, test_latent = latent / self.dim**0.5, test_latent / self.dim**0.5
        targets, test_targets = (
            (z @ teacher[..., None]).squeeze(-1) + self.noise * eps
            for z, eps in ((latent, noise), (test_latent, test_noise))
        )
        return Batch(latent * scales, targets, teacher, test_latent * scales, test_targets)


def learning_curve(
    problem: TeacherStudent,
    times: Tensor | ArrayLike,
    *,
    method: str = "flow",
    lr: float | int | str = "stable",
    noisy_test: bool = True,
    features: str = "both",
) -> LearningCurve:
    """Order parameters and generalisation error over training time, in the limit of many dimensions.

    Args:
        problem: sizes, scales, noise and weight decay.
        times: steps t of gradient descent, 0 or more, in increasing order, (times,). Fractions are fine.
        method: "flow" (gradient flow, exact), "ridge" (ridge at penalty l2 + 1/(lr t), exact for that), or
            "decoupled" (the paper's approximation of "ridge", equations 12 and 14, for two groups and n > d).
        lr: learning rate, so that tau = lr * t; "stable" is 1 / `largest_eigenvalue`.
        noisy_test: whether test targets carry the noise of training targets; adds sigma^2 / 2.
        features: "both" is all of them. "fast" never learns any but the features of the largest scale (the others'
            scale is 0), "slow" has learned those before the first of the times (their scale is huge).

    Returns:
        `LearningCurve` of (times,), float64, differentiable in the times.

    Raises:
        TypeError, ValueError: times that are negative, unsorted or not finite; unknown names; lr not above 0;
            "decoupled" with n <= d or other than two groups; "fast" or "slow" of a problem with one scale.

    Near n = d without weight decay label noise makes the late error diverge; that is the truth, not an error.

    Source: section 4 and equations 12 and 14 of the paper; "flow" is derived here.

    >>> problem = TeacherStudent.two_scales()
    >>> error = learning_curve(problem, torch.logspace(-1, 7, 200)).error
    >>> bool(error[100] > error[:100].min() + 0.03), round(error[-1].item(), 3)
    (True, 0.0)
    """
    curve = learning_curves([problem], times, method=method, lr=lr, noisy_test=noisy_test, features=features)
    return LearningCurve(curve.times, *(column[0] for column in curve[1:]))


def learning_curves(
    problems: Sequence[TeacherStudent] | Limit,
    times: Tensor | ArrayLike,
    *,
    method: str = "flow",
    lr: float | int | str = "stable",
    noisy_test: bool = True,
    features: str = "both",
) -> LearningCurve:
    """The curves of many problems at once, for maps over weight decay, noise or scales; see `learning_curve`.

    Args:
        problems: a sequence, or their `Limit` as tensors; the curves are differentiable in these.
        times, method, lr, noisy_test, features: see `learning_curve`. With "stable" each problem has its own rate.

    Returns:
        `LearningCurve` whose alignment, norm and error are (problems, times).

    >>> problems = [TeacherStudent.two_scales(120, 100, 80, 40, 0.2, 10.0**-x) for x in range(8)]
    >>> learning_curves(problems, [1.0, 1e3, 1e6], lr=1.0).error.shape
    torch.Size([8, 3])
    """
    check_choice(method, "method", tuple(ORDERS))
    steps = as_times(times)
    limit = as_limit(problems).checked()
    limit = Limit(*(field.to(steps.device) for field in limit))
    tau = learning_rates(limit, lr)[:, None] * steps
    if method == "decoupled":
        _check_decoupled(limit)
    limit = _attribute(limit, tau, check_choice(features, "features", ("both", "fast", "slow")))
    rows = max(1, LARGEST_BLOCK // max(1, len(steps))) if method != "flow" else max(1, len(limit.ratio))
    parts = [
        ORDERS[method](Limit(*(field[first : first + rows] for field in limit)), tau[first : first + rows])
        for first in range(0, len(limit.ratio), rows)
    ]
    alignment, norm, twice_error = (torch.cat(column) for column in zip(*parts, strict=True))
    shift = 0.0 if noisy_test else limit.noise.square()[:, None]
    return LearningCurve(steps, alignment, norm, (twice_error - shift) / 2)


def as_limit(problems: Sequence[TeacherStudent] | Limit) -> Limit:
    """Problems as tensors, one row each; groups are padded with empty ones where their numbers differ.

    Raises:
        TypeError, ValueError: neither a `Limit` nor a sequence of at least one `TeacherStudent`.

    >>> as_limit([TeacherStudent.two_scales(), TeacherStudent(30, 20, ((20, 1.0),))]).shares
    tensor([[0.7000, 0.3000],
            [1.0000, 0.0000]], dtype=torch.float64)
    """
    if isinstance(problems, Limit):
        return problems
    if not isinstance(problems, Sequence) or not all(isinstance(p, TeacherStudent) for p in problems):
        raise TypeError(
            f"problems is a {type(problems).__name__}; expected a sequence of TeacherStudent, or a Limit; for one "
            "problem call learning_curve"
        )
    if not problems:
        raise ValueError("problems is empty; give at least one TeacherStudent")
    most = max(len(problem.groups) for problem in problems)
    padded = [problem.groups + ((0, 0.0),) * (most - len(problem.groups)) for problem in problems]
    counts, scales = torch.tensor(padded, dtype=torch.float64).unbind(-1)
    sizes = torch.tensor([(p.num_samples, p.dim, p.noise, p.l2) for p in problems], dtype=torch.float64)
    samples, dim, noise, l2 = sizes.unbind(-1)
    return Limit(samples / dim, counts / dim[:, None], scales, noise, l2)


def as_times(times: Tensor | ArrayLike) -> Float[Tensor, " times"]:
    """Training times as a float64 tensor, checked.

    Raises:
        TypeError, ValueError: no finite numbers, not one dimension of at least one, negative or decreasing.

    >>> as_times([0, 1, 10])
    tensor([ 0.,  1., 10.], dtype=torch.float64)
    """
    steps = as_finite(times, "times", dtype=torch.float64)
    if steps.dim() != 1 or len(steps) == 0:
        raise ValueError(f"times has shape {tuple(steps.shape)}; expected one dimension of at least one time")
    with torch.no_grad():
        if bool(steps[0] < 0) or bool((steps.diff() < 0).any()):
            raise ValueError("times must be 0 or more, in increasing order; sort them, and count from the start at 0")
    return steps


def learning_rates(limit: Limit, lr: float | int | str) -> Float[Tensor, " problems"]:
    """One learning rate for each problem: the number given, or 1 / `largest_eigenvalue` for "stable".

    Raises:
        ValueError: another name, or a number that is not above 0.

    >>> learning_rates(as_limit([TeacherStudent.two_scales()]), 0.1)
    tensor([0.1000], dtype=torch.float64)
    """
    if isinstance(lr, str):
        check_choice(lr, "lr", ("stable",))
        return 1 / largest_eigenvalue(limit)
    return torch.full_like(limit.ratio, check_number(lr, "lr", above=0), requires_grad=False)


def _count(value: object, name: str, *, least: int = 1) -> int:
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)  # pyrefly: ignore[bad-argument-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name}={value!r}: it must be an integer >= {least}")
    return number


def _check_decoupled(limit: Limit) -> None:
    groups = limit.shares.shape[1]
    if groups != 2 or not bool((limit.shares > 0).all()):
        raise ValueError(f"method='decoupled' is for two groups of features, got {groups}; 'ridge' takes any number")
    if not bool((limit.ratio > 1).all()):
        raise ValueError(
            f"method='decoupled' needs more samples than dimensions, got n/d={float(limit.ratio.min()):.4g}: it lets "
            "each group learn from all samples, and then gives negative errors; use method='ridge' or 'flow'"
        )


def _attribute(limit: Limit, tau: Float[Tensor, "problems times"], features: str) -> Limit:
    """The problem in which only some features are learned: scale 0 is never learned, a huge one at once."""
    if features == "both":
        return limit
    there = limit.shares > 0
    top = torch.where(there, limit.scales, 0.0).max(1, keepdim=True).values
    fast = limit.scales == top
    if not bool(((~fast & there).any(1)).all()):
        raise ValueError(f"features={features!r} of a problem with a single scale; it has no fast and slow features")
    if features == "fast":
        return limit._replace(scales=torch.where(fast, limit.scales, 0.0))
    # At the first time above 0 an eigendirection of this scale has learned all but e^-1000 of itself.
    first = torch.where(tau > 0, tau, torch.inf).min(1, keepdim=True).values.clamp(max=1e300)
    huge = top * torch.maximum(torch.ones_like(first), (1e3 / (first * top.square())).sqrt()) * 1e3
    return limit._replace(scales=torch.where(fast, huge, limit.scales))
