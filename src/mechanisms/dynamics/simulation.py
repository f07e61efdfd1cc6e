"""The linear teacher-student at finite size: whole training runs as one batched decomposition, to lay beside theory.

With X = U diag(L^1/2) V^T every linear method has, at any time, weights V phi(L) V^T X^T y (`_filters`), so a run of
10^8 steps costs as much as one of ten. The mean over teachers and label noise is taken exactly (the paper's
equation 9): with A = F V phi V^T X^T Z and B = F V phi V^T X^T,

    E R = tr(A) / d,        E Q = (|A|^2 + sigma^2 |B|^2) / d.

Reference: Pezeshki, Mitra, Bengio, Lajoie, ICML 2022, arXiv 2112.03215, section 4.1.
"""

import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from mechanisms._base.validation import as_finite, check_choice, check_number
from mechanisms.dynamics._filters import METHODS, check_rate, check_steps, filter_values
from mechanisms.dynamics.epochwise import LearningCurve, TeacherStudent, as_limit, as_times
from mechanisms.dynamics.limits import largest_eigenvalue

LARGEST_BLOCK = 2**22  # numbers of one temporary that are held at once


def simulate(
    problem: TeacherStudent,
    times: Tensor | ArrayLike,
    *,
    draws: int = 50,
    method: str = "flow",
    lr: float | int | str = "stable",
    average_teacher: bool = True,
    noisy_test: bool = True,
    generator: torch.Generator | None = None,
) -> LearningCurve:
    """Order parameters and error over training time on data sets of finite size.

    Args:
        problem: sizes, scales, noise and weight decay.
        times: steps t, 0 or more, in increasing order, (times,); whole numbers for "gd".
        draws: number of data sets.
        method: "flow" (gradient flow), "gd" (gradient descent, step by step the same numbers as a loop), or "ridge"
            (ridge at penalty l2 + 1/(lr t)).
        lr: learning rate; "stable" is 1 / `largest_eigenvalue` of the limit, the clock of `learning_curve`;
            "per-draw" is 1 over the largest eigenvalue of each draw, the clock of the paper's simulations.
        average_teacher: the exact mean over teachers and noise for each draw of the inputs, in place of one teacher
            and one noise each.
        noisy_test: whether test targets carry the noise of training targets.
        generator: torch's default by default; its device is where the work is done.

    Returns:
        `LearningCurve` whose alignment, norm and error are (draws, times), float64.

    Raises:
        TypeError, ValueError: as `learning_curve`; a learning rate at which "gd" diverges, fractions of its steps or
            more than 2^53 of them.

    Source: section 4.1 and equation 9 of the paper, without its inverse of F.

    >>> problem = TeacherStudent.two_scales(30, 20, 14)
    >>> simulate(problem, [0, 10, 1000], draws=4, generator=torch.Generator().manual_seed(0)).error.shape
    torch.Size([4, 3])
    """
    check_choice(method, "method", METHODS)
    steps = as_times(times)
    if method == "gd":
        check_steps(steps)
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws={draws!r}: it must be an integer >= 1")
    if isinstance(lr, str):
        check_choice(lr, "lr", ("stable", "per-draw"))
    else:
        check_number(lr, "lr", above=0)
    rank = min(problem.num_samples, problem.dim)
    largest = max(problem.num_samples * problem.dim, rank * rank, rank * len(steps))
    block = max(1, LARGEST_BLOCK // largest)
    parts = [
        _simulate_block(problem, steps, min(block, draws - first), method, lr, average_teacher, generator)
        for first in range(0, draws, block)
    ]
    alignment, norm, size = (torch.cat(column) for column in zip(*parts, strict=True))
    test_noise = problem.noise**2 if noisy_test else 0.0
    return LearningCurve(steps.to(norm.device), alignment, norm, (size + test_noise - 2 * alignment + norm) / 2)


def _simulate_block(
    problem: TeacherStudent,
    steps: Float[Tensor, " times"],
    draws: int,
    method: str,
    lr: float | int | str,
    average_teacher: bool,
    generator: torch.Generator | None,
) -> tuple[Float[Tensor, "draws times"], Float[Tensor, "draws times"], Float[Tensor, "draws 1"]]:
    """R, Q, and the teacher's squared norm over d."""
    device = steps.device if generator is None else generator.device
    steps = steps.to(device)
    scales = problem.singular_values.to(device)
    latent = torch.randn(
        draws, problem.num_samples, problem.dim, generator=generator, dtype=torch.float64, device=device
    )
    latent = latent / problem.dim**0.5
    left, sigma, right = torch.linalg.svd(latent * scales, full_matrices=False)
    eigenvalues = sigma.square()
    if lr == "per-draw":
        rates = 1 / eigenvalues[:, 0]
    else:
        rate = 1 / largest_eigenvalue(as_limit([problem]))[0] if isinstance(lr, str) else lr
        rates = torch.full((draws,), float(rate), dtype=torch.float64, device=device)
    if method == "gd":
        check_rate(rates, eigenvalues[:, 0], problem.l2)
    # Weights are V (f * U^T y): f is phi sigma; F V is the student as seen on latent inputs.
    f = filter_values(method, eigenvalues, steps, rates, problem.l2) * sigma[:, None]
    seen = right * scales  # rows are F v_j
    if average_teacher:
        projected = left.mT @ latent
        gram = seen @ seen.mT
        pairs = gram * (projected @ projected.mT)
        pairs = pairs + torch.diag_embed(problem.noise**2 * gram.diagonal(dim1=-2, dim2=-1))
        alignment = (f @ sigma[..., None]).squeeze(-1) / problem.dim
        norm = ((f @ pairs) * f).sum(-1) / problem.dim
        return alignment, norm, torch.ones(draws, 1, dtype=torch.float64, device=device)
    teacher, noise = (
        torch.randn(draws, size, 1, generator=generator, dtype=torch.float64, device=device)
        for size in (problem.dim, problem.num_samples)
    )
    known = left.mT @ (latent @ teacher + problem.noise * noise)
    students = (f * known.mT) @ seen
    alignment = (students @ teacher).squeeze(-1) / problem.dim
    return alignment, students.square().sum(-1) / problem.dim, teacher.square().mean(1)


def order_parameters(
    problem: TeacherStudent,
    teacher: Tensor | ArrayLike,
    weights: Tensor | ArrayLike,
    *,
    times: Tensor | ArrayLike | None = None,
    noisy_test: bool = True,
) -> LearningCurve:
    """R, Q and the exact generalisation error of given students: from a loop of your own, from any optimiser.

    Args:
        problem: the problem whose `TeacherStudent.sample` the students have learned from.
        teacher: w of each draw, (..., dim), as in `Batch.teacher`.
        weights: students' weights over time, (..., times, dim).
        times: for the result; 0, 1, 2, ... by default.
        noisy_test: whether test targets carry the noise of training targets.

    Returns:
        `LearningCurve` of (..., times), with |w|^2 / d of the very teacher in place of its mean 1.

    Raises:
        TypeError, ValueError: no finite numbers, or shapes that do not fit.

    >>> from mechanisms.dynamics.paths import gradient_descent
    >>> problem = TeacherStudent.two_scales(30, 20, 14)
    >>> data = problem.sample(2, generator=torch.Generator().manual_seed(0))
    >>> students = gradient_descent(data.features, data.targets, [0, 10, 100], lr=0.1)
    >>> order_parameters(problem, data.teacher, students).alignment[:, 0]
    tensor([0., 0.], dtype=torch.float64)
    """
    students = as_finite(weights, "weights")
    w = as_finite(teacher, "teacher").to(students)
    if students.dim() < 2 or students.shape[-1] != problem.dim or w.shape != (*students.shape[:-2], problem.dim):
        raise ValueError(
            f"weights have shape {tuple(students.shape)} and teacher {tuple(w.shape)}; expected (..., times, dim) and "
            f"(..., dim) with dim={problem.dim}"
        )
    clock = torch.arange(students.shape[-2]) if times is None else times
    seen = students * problem.singular_values.to(students)
    alignment = (seen @ w[..., None]).squeeze(-1) / problem.dim
    norm = seen.square().sum(-1) / problem.dim
    test_noise = problem.noise**2 if noisy_test else 0.0
    error = (w.square().mean(-1, keepdim=True) + test_noise - 2 * alignment + norm) / 2
    return LearningCurve(as_times(clock).to(norm.device), alignment, norm, error)
