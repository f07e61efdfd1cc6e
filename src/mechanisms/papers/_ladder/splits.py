"""Rows to learn from, to choose by and to judge by, for each seed, and stacked for the networks of a block.

The rows whose labels choose a weight are the same for all seeds, and no seed trains on them before the choice or tests
on them. Which rows are trained on, which of them are labelled, and on the digits which are tested on, is drawn by the
seed: a digit that one seed tests on, another, a tuning seed among them, may train on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mechanisms.papers._ladder.settings import ALL, Ladders

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from mechanisms.lab.data import Split


class Rows(NamedTuple):
    """One seed's: inputs (n, d) in [0, 1], and labels."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


@dataclass(frozen=True)
class Block:
    """What M networks train on, with their axis in front; inputs that all of them share have none.

    Args:
        x: all training rows, (M, n, d) or (n, d).
        x_labelled, y: those with a label, (M, n_l, d) and (M, n_l).
        x_validation, y_validation: (n_v, d) and (n_v,), the same for all.
        x_test, y_test: (M, n_t, d) and (M, n_t), or without M.
    """

    x: Tensor
    x_labelled: Tensor
    y: Tensor
    x_validation: Tensor
    y_validation: Tensor
    x_test: Tensor
    y_test: Tensor


class Source:
    """A data set, read once.

    Raises:
        NotHere: its files are not on this machine.
        ValueError: it has fewer rows than the settings ask for.
    """

    def __init__(self, settings: Ladders) -> None:
        import numpy as np

        self.settings = settings
        # Digits have no split of their own; the one that leads to a seed's is drawn once and for all.
        self._fixed = settings.data != "digits"
        if self._fixed:
            train, validation, test = _files(settings)
        else:
            train, validation, test = _digits(settings)
        self._train, self._validation, self._test = (_flat(part) for part in (train, validation, test))
        self._deciding = self._train
        if settings.train_on_validation:
            x, y = (np.concatenate(pair) for pair in zip(self._train, self._validation, strict=True))
            self._deciding = x, y
        self.classes = int(self._train[1].max()) + 1

    @property
    def inputs(self) -> int:
        """Numbers of a row."""
        return self._train[0].shape[1]

    @property
    def validation(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (n_v, d) and labels (n_v,) to choose by."""
        return self._validation

    def rows(self, seed: int, *, deciding: bool = False) -> Rows:
        """Training and test rows of a seed; where the settings say so, validation rows train once they have chosen."""
        from mechanisms._base.seeds import numpy_generator

        if self._fixed:
            return Rows(*(self._deciding if deciding else self._train), *self._test)
        x, y = self._train
        order = numpy_generator(seed, "data").permutation(len(y))
        count = self.settings.num_train
        train, test = order[:count], order[count : count + self.settings.num_test]
        return Rows(x[train], y[train], x[test], y[test])

    def block(self, seeds: Sequence[int], labels: int, *, deciding: bool) -> Block:
        """The rows of each seed, stacked."""
        import numpy as np
        import torch

        parts = [self.rows(seed, deciding=deciding) for seed in seeds]
        places = [labelled(part.y, labels, seed) for part, seed in zip(parts, seeds, strict=True)]

        def stacked(arrays: list[np.ndarray], shared: bool) -> Tensor:
            return torch.from_numpy(arrays[0] if shared or len(arrays) == 1 else np.stack(arrays))

        chosen = [(part.x[place], part.y[place]) for part, place in zip(parts, places, strict=True)]
        alike = self._fixed and labels == ALL
        return Block(
            stacked([part.x for part in parts], self._fixed),
            stacked([x for x, _ in chosen], alike),
            stacked([y for _, y in chosen], alike),
            torch.from_numpy(self._validation[0]),
            torch.from_numpy(self._validation[1]),
            stacked([part.x_test for part in parts], self._fixed),
            stacked([part.y_test for part in parts], self._fixed),
        )


def labelled(y: np.ndarray, labels: int, seed: int) -> np.ndarray:
    """Places of the labelled rows: as many of each class, drawn by the seed; fewer are a part of more.

    Raises:
        ValueError: the number is no multiple of the number of classes, or a class has too few rows.
    """
    import numpy as np

    from mechanisms._base.seeds import numpy_generator

    if labels == ALL:
        return np.arange(len(y))
    classes = np.unique(y)
    each, rest = divmod(labels, len(classes))
    if rest or not each:
        raise ValueError(f"labels={labels}: it must be a multiple of the {len(classes)} classes, or {ALL} for all")
    order = numpy_generator(seed, "labels").permutation(len(y))
    places = [order[y[order] == label][:each] for label in classes]
    if short := [int(label) for label, place in zip(classes, places, strict=True) if len(place) < each]:
        raise ValueError(f"labels={labels}: class {short[0]} has fewer than {each} training rows; ask for fewer")
    # Label by label in turn, so that any first rows are balanced.
    return np.stack(places, 1).reshape(-1)


def _digits(settings: Ladders) -> tuple[Split, Split, Split]:
    import numpy as np

    from mechanisms.lab.data import Split, digits

    parts = digits(0)
    whole = Split(
        np.concatenate([parts.train.x, parts.validation.x, parts.test.x]),
        np.concatenate([parts.train.y, parts.validation.y, parts.test.y]),
    )
    asked = settings.num_train + settings.num_validation + settings.num_test
    if asked > len(whole):
        raise ValueError(f"num_train, num_validation and num_test sum to {asked}; there are {len(whole)} digits")
    rest = whole.take(slice(settings.num_validation, None))
    return rest, whole.take(slice(0, settings.num_validation)), rest.take(slice(0, 0))


def _files(settings: Ladders) -> tuple[Split, Split, Split]:
    from mechanisms.lab.data import fashion_mnist, mnist

    path = settings.path or None
    if settings.data == "fashion-mnist":
        found = fashion_mnist(path)
    else:
        found = mnist(path, hub=settings.hub, num_validation=settings.num_validation)
    parts = []
    for name, part in (("train", found.train), ("validation", found.validation), ("test", found.test)):
        asked = getattr(settings, f"num_{name}")
        if asked > len(part):
            raise ValueError(f"num_{name}={asked}: there are {len(part)} {name} images")
        parts.append(part.take(slice(0, asked)))
    return parts[0], parts[1], parts[2]


def _flat(part: Split) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    x = part.x.reshape(len(part), math.prod(part.x.shape[1:]))
    return (x if x.dtype == np.float32 else x.astype(np.float32) / 255), part.y
