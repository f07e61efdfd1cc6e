"""Recurrent matrices that begin as rotations."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mechanisms.recurrent import cayley_init_, henaff_init_

INITS: dict[str, Callable[..., Tensor]] = {
    "henaff": henaff_init_,
    "cayley": cayley_init_,
    "released": lambda weight, **options: cayley_init_(weight, released=True, **options),
}


@pytest.mark.parametrize("size", [1, 2, 7, 64])
@pytest.mark.parametrize("name", INITS)
def test_they_are_orthogonal_with_determinant_one(name: str, size: int) -> None:
    weight = INITS[name](torch.empty(size, size))
    torch.testing.assert_close(weight @ weight.T, torch.eye(size), rtol=0, atol=1e-5)
    assert float(torch.linalg.det(weight.double())) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("henaff", -math.pi, 0), ("cayley", 0, math.pi / 2), ("released", -math.tan(math.pi / 4), 0)],
)
def test_angles_lie_where_the_papers_draw_them(name: str, low: float, high: float) -> None:
    weight = INITS[name](torch.empty(2000, 2000, dtype=torch.float64), generator=torch.Generator().manual_seed(0))
    first = torch.arange(0, 2000, 2)
    angles = torch.atan2(weight[first, first + 1], weight[first, first])
    assert low <= float(angles.min()) < low + 0.05
    assert high - 0.05 < float(angles.max()) <= high
    torch.testing.assert_close(weight[first, first + 1], -weight[first + 1, first])


def test_they_are_what_the_skew_symmetric_matrix_gives() -> None:
    for name in ("henaff", "released"):
        weight = INITS[name](torch.empty(4, 4, dtype=torch.float64), generator=torch.Generator().manual_seed(1))
        angles = torch.atan2(weight[[0, 2], [1, 3]], weight[[0, 2], [0, 2]])
        skew = torch.zeros(4, 4, dtype=torch.float64)
        skew[[0, 2], [1, 3]] = angles
        torch.testing.assert_close(torch.matrix_exp(skew - skew.T), weight)
    u = torch.atan2(
        *(cayley_init_(torch.empty(2, 2, dtype=torch.float64), generator=torch.Generator().manual_seed(1))[0].flip(0))
    )
    a = torch.tensor([[0.0, -math.tan(float(u) / 2)], [math.tan(float(u) / 2), 0.0]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    expected = torch.linalg.solve(eye + a, eye - a)
    again = cayley_init_(torch.empty(2, 2, dtype=torch.float64), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(again, expected)


def test_they_fill_parameters_in_place_and_follow_their_generator() -> None:
    weight = torch.nn.Parameter(torch.empty(6, 6))
    assert henaff_init_(weight, generator=torch.Generator().manual_seed(0)) is weight
    again = henaff_init_(torch.empty(6, 6), generator=torch.Generator().manual_seed(0))
    assert torch.equal(weight, again)
    assert weight.requires_grad


@pytest.mark.user_input
def test_a_matrix_that_is_not_square_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 3\).*square"):
        henaff_init_(torch.empty(4, 3))
