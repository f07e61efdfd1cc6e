"""The problems of the paper's figures, and times that cover them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from mechanisms.dynamics.epochwise import TeacherStudent

# Of figure 2: weight decay 10^-x at these x.
SLICES = {"large": 0.898, "intermediate": 2.494, "small": 8.0}
CONDITION_NUMBERS = (1, 7, 12, 30, 100, 1000, 100_000)  # of figure 3
VARIANTS_OF_1 = ((150, 100, 70), (120, 100, 70), (150, 100, 80), (300, 280, 50))


def figure_1(num_samples: int = 150, dim: int = 100, num_fast: int = 70) -> TeacherStudent:
    """The problem of figure 1, or one of its variants."""
    from mechanisms.dynamics.epochwise import TeacherStudent

    return TeacherStudent.two_scales(num_samples, dim, num_fast, 100.0)


def figure_2(x: float | int, dim: int = 100) -> TeacherStudent:
    """The problem of figure 2 at weight decay 10^-x, with the scales 1/2 and 1/80 of the published figure."""
    from mechanisms.dynamics.epochwise import TeacherStudent

    fast = dim * 4 // 5
    return TeacherStudent(dim * 6 // 5, dim, ((fast, 0.5), (dim - fast, 0.0125)), noise=0.2, l2=10.0**-x)


def figure_3(condition_number: float | int, dim: int = 100) -> TeacherStudent:
    """The problem of figure 3 at a condition number."""
    from mechanisms.dynamics.epochwise import TeacherStudent

    return TeacherStudent.two_scales(dim * 11 // 10, dim, dim * 7 // 10, condition_number)


def published_clock(problem: TeacherStudent) -> TeacherStudent:
    """The same with scales halved and without weight decay: at learning rate 1 the clock of the paper's figures."""
    from mechanisms.dynamics.epochwise import TeacherStudent

    groups = tuple((count, scale / 2) for count, scale in problem.groups)
    return TeacherStudent(problem.num_samples, problem.dim, groups, problem.noise)


def log_times(first: float | int, last: float | int, number: int) -> Tensor:
    """Times 10^first to 10^last."""
    import torch

    return 10 ** torch.linspace(first, last, number, dtype=torch.float64)
