r"""The two conditions under which the classes are learned as independent modes, checked on your data and weights.

    H1   x.x' > 0 for inputs of one class, x.x' <= 0 for inputs of different classes;
    H2   each hidden unit is active (w.x > 0) on all of one class and on nothing of the other, with z of its sign.

Both persist under gradient flow: a unit of a class moves along that class's inputs. Reports say which pair of samples
and which units break them.

Reference: Tachet des Combes, Pezeshki, Shabanian, Courville, Bengio, "On the Learning Dynamics of Deep Neural
Networks", 2018, arXiv:1809.06848.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mechanisms._base.validation import as_finite
from mechanisms.dynamics._checks import Values, labelled

ROWS = 2048  # of the Gram matrix at a time


@dataclass(frozen=True)
class SeparabilityReport:
    """Whether H1 holds, and how narrowly.

    Attributes:
        holds: whether all inner products within a class are above 0 and all between the classes at or below 0.
        min_within: the smallest inner product within a class (of a sample with itself, too).
        max_between: the largest between the classes; minus infinity if there is one class only.
        worst_within, worst_between: the pairs of samples that have them.

    >>> check_separability([[1.0, 0.0], [0.0, 1.0]], [1, -1]).max_between
    0.0
    """

    holds: bool
    min_within: float
    max_between: float
    worst_within: tuple[int, int]
    worst_between: tuple[int, int] | None

    def require(self) -> None:
        """Raise a `ValueError` that names the worst pair unless H1 holds."""
        if self.min_within <= 0:
            i, j = self.worst_within
            raise ValueError(
                f"H1 does not hold: samples {i} and {j} of one class have the inner product {self.min_within:.4g}, "
                "expected above 0. The modes are not independent then; GradientFlow simulates such data"
            )
        if self.max_between > 0:
            i, j = self.worst_between or (0, 0)
            raise ValueError(
                f"H1 does not hold: samples {i} and {j} of different classes have the inner product "
                f"{self.max_between:.4g}, expected at most 0. The modes are not independent then; GradientFlow "
                "simulates such data"
            )


def check_separability(X: Values, y: Values) -> SeparabilityReport:
    """Whether data satisfy H1, with the pairs that come nearest to breaking it or break it worst.

    Args:
        X: inputs (samples, features).
        y: labels +1 or -1, (samples,).

    Raises:
        ValueError: shapes or labels that do not fit, non-finite values.

    >>> check_separability([[1.0, 0.1], [1.0, -0.1], [0.2, 1.0]], [1, 1, -1])
    SeparabilityReport(holds=False, min_within=0.99, max_between=0.3..., worst_within=(0, 1), worst_between=(0, 2))
    """
    inputs, labels = labelled(X, y)
    least, most = (torch.inf, (0, 0)), (-torch.inf, None)
    for first in range(0, len(inputs), ROWS):
        gram = inputs[first : first + ROWS] @ inputs.T
        same = labels[first : first + ROWS, None] == labels[None, :]
        low, high = torch.where(same, gram, torch.inf), torch.where(same, -torch.inf, gram)
        smallest, largest = float(low.min()), float(high.max())
        if smallest < least[0]:
            least = (smallest, _place(low.argmin(), len(inputs), first))
        if largest > most[0]:
            most = (largest, _place(high.argmax(), len(inputs), first))
    return SeparabilityReport(least[0] > 0 >= most[0], least[0], most[0], least[1], most[1])


def unit_activity(W: Values, X: Values, y: Values) -> Tensor:
    """On what share of each class a hidden unit is active (w.x > 0).

    Args:
        W: hidden weights (..., units, features).
        X, y: see `check_separability`.

    Returns:
        (..., units, 2): shares of class +1 and of class -1, float64; 0 for a class that has no samples.

    >>> unit_activity([[1.0, -1.0], [1.0, 1.0]], X=[[1.0, 0.0], [0.0, 1.0]], y=[1, -1])
    tensor([[1., 0.],
            [1., 1.]], dtype=torch.float64)
    """
    inputs, labels = labelled(X, y)
    weights = as_finite(W, "W", dtype=torch.float64).to(inputs.device)
    if weights.ndim < 2 or weights.shape[-1] != inputs.shape[1]:
        raise ValueError(f"W has shape {tuple(weights.shape)}; expected (..., units, {inputs.shape[1]})")
    active = (weights @ inputs.T > 0).double()
    members = torch.stack([labels == 1, labels == -1], dim=1).double()
    return active @ members / members.sum(dim=0).clamp(min=1)


@dataclass(frozen=True)
class InitialisationReport:
    """Whether H2 holds, and which units break it.

    Attributes:
        holds: every unit is active on one whole class only, with its sign, or on no sample at all.
        classes: (units,) +1 or -1 for the class a unit is active on, 0 for units without activity or that break H2.
        broken: for units that break H2, what is wrong.

    >>> check_initialisation([[1.0, 1.0]], [0.5], X=[[1.0, 0.0], [0.0, 1.0]], y=[1, -1]).broken
    {0: 'it is active on 100% of class +1 and 100% of class -1'}
    """

    holds: bool
    classes: Tensor
    broken: dict[int, str]

    def require(self) -> None:
        """Raise a `ValueError` that names the first unit that breaks H2."""
        if not self.holds:
            unit, what = next(iter(self.broken.items()))
            raise ValueError(
                f"H2 does not hold: {len(self.broken)} of {len(self.classes)} units break it, first unit {unit}: "
                f"{what}. mode_initialisation draws weights that satisfy it; GradientFlow simulates those that do not"
            )


def check_initialisation(W: Values, z: Values, X: Values, y: Values) -> InitialisationReport:
    """Whether weights satisfy H2 on data.

    Args:
        W: hidden weights (units, features).
        z: output weights (units,).
        X, y: see `check_separability`.

    Raises:
        ValueError: shapes or labels that do not fit, non-finite values.

    >>> check_initialisation([[1.0, -1.0]], [0.5], X=[[1.0, 0.0], [0.0, 1.0]], y=[1, -1]).classes
    tensor([1])
    """
    shares = unit_activity(W, X, y)
    outputs = as_finite(z, "z", dtype=torch.float64).to(shares.device)
    if shares.ndim != 2 or outputs.shape != shares.shape[:1]:
        raise ValueError(
            f"W has {tuple(shares.shape[:-1])} units and z has shape {tuple(outputs.shape)}; expected one z per unit"
        )
    up = (shares[:, 0] == 1) & (shares[:, 1] == 0)
    down = (shares[:, 1] == 1) & (shares[:, 0] == 0)
    idle = (shares == 0).all(dim=1)
    fine = idle | (up & (outputs > 0)) | (down & (outputs < 0))
    broken = {}
    for unit in (~fine).nonzero().flatten().tolist():
        if bool(up[unit] | down[unit]):
            side = "+1" if bool(up[unit]) else "-1"
            broken[unit] = f"it is active on class {side} and its output weight is {float(outputs[unit]):.4g}"
        else:
            one, two = shares[unit].tolist()
            broken[unit] = f"it is active on {one:.0%} of class +1 and {two:.0%} of class -1"
    classes = torch.where(fine & up, 1, torch.where(fine & down, -1, 0))
    return InitialisationReport(not broken, classes, broken)


def _place(flat: Tensor, columns: int, first: int) -> tuple[int, int]:
    row, column = divmod(int(flat), columns)
    return first + row, column
