"""What every data set comes as: arrays that belong together, and the three splits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Split:
    """Examples, row i of each array being example i.

    Args:
        x: (examples, ...) inputs.
        y: (examples,) labels, integers from 0 unless the data set says otherwise.
        attribute: (examples,) integer attribute that is spuriously related to the label, where it is known.
        environment: (examples,) integer environment given by people, where there is one.

    Raises:
        ValueError: the arrays differ in length.

    >>> len(Split(np.zeros((3, 2)), np.array([0, 1, 1])))
    3
    """

    x: np.ndarray
    y: np.ndarray
    attribute: np.ndarray | None = None
    environment: np.ndarray | None = None

    def __post_init__(self) -> None:
        parts = {"x": self.x, "y": self.y, "attribute": self.attribute, "environment": self.environment}
        lengths = {name: len(part) for name, part in parts.items() if part is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the arrays of a split must be equally long, got {lengths}")

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: np.ndarray | slice) -> Split:
        """The examples of some rows, in their order.

        >>> Split(np.zeros((3, 2)), np.array([0, 1, 2])).take(np.array([2, 0])).y.tolist()
        [2, 0]
        """
        return Split(
            self.x[rows],
            self.y[rows],
            None if self.attribute is None else self.attribute[rows],
            None if self.environment is None else self.environment[rows],
        )


@dataclass(frozen=True, eq=False)
class Splits:
    """What is trained on, what is selected on, and what is reported on.

    >>> part = Split(np.zeros((3, 2)), np.array([0, 1, 1]))
    >>> len(Splits(part, part, part).validation)
    3
    """

    train: Split
    validation: Split
    test: Split
