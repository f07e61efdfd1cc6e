"""Hyper-parameters of phase 1 and where a search draws them from."""

from collections.abc import Sequence
from dataclasses import dataclass

from mechanisms._base.seeds import numpy_generator
from mechanisms.robust._stack import OptimizerName

Range = float | int | tuple[float | int, float | int]


@dataclass(frozen=True)
class Setting:
    """One combination of hyper-parameters for a pair of twins.

    Args:
        lr: learning rate.
        weight_decay: weight decay.
        batch_size: rows per step; the whole data set when that is smaller.
        optimizer: "sgd", "adam" or "adamw".
        momentum: of SGD.

    >>> Setting(lr=1e-3).batch_size
    128
    """

    lr: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 128
    optimizer: OptimizerName = "sgd"
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if self.lr < 0 or self.weight_decay < 0 or self.batch_size < 1 or self.momentum < 0:
            raise ValueError(f"lr, weight_decay and momentum need to be >= 0 and batch_size >= 1, got {self}")
        if self.optimizer not in ("sgd", "adam", "adamw"):
            raise ValueError(f"optimizer is {self.optimizer!r}; choose 'sgd', 'adam' or 'adamw'")


@dataclass(frozen=True)
class Search:
    """Ranges from which combinations are drawn, uniformly in the logarithm; a number instead of a range stays fixed.

    The defaults suit linear heads on standardised features.

    Args:
        lr: range of the learning rate.
        weight_decay: range of the weight decay.
        batch_size: range of the batch size; draws are rounded down.
        optimizer: "sgd", "adam" or "adamw".
        momentum: of SGD.
        trials: how many combinations are drawn, H; the paper takes 10.

    >>> [setting.optimizer for setting in Search(trials=2).draw(seed=0)]
    ['sgd', 'sgd']
    """

    lr: Range = (1e-4, 1e-2)
    weight_decay: Range = (1e-6, 1e-3)
    batch_size: Range = (32, 128)
    optimizer: OptimizerName = "sgd"
    momentum: float = 0.9
    trials: int = 10

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"a search needs at least one trial, got trials={self.trials}")
        for name in ("lr", "weight_decay", "batch_size"):
            given = getattr(self, name)
            if isinstance(given, Sequence) and not (len(given) == 2 and 0 < given[0] <= given[1]):
                raise ValueError(f"{name} needs a number or a range (low, high) with 0 < low <= high, got {given}")

    def draw(self, seed: int) -> list[Setting]:
        """The combinations that follow from a seed."""
        generator = numpy_generator(seed, "search")
        ranges = [
            given if isinstance(given, Sequence) else (given, given)
            for given in (self.lr, self.weight_decay, self.batch_size)
        ]
        return [
            Setting(lr, weight_decay, int(batch_size), self.optimizer, self.momentum)
            for lr, weight_decay, batch_size in (
                map(log_uniform, ranges, places) for places in generator.random((self.trials, 3)).tolist()
            )
        ]


def log_uniform(given: tuple[float | int, float | int], place: float) -> float:
    """The value at a place from 0 to 1 of a range, on a logarithmic scale; an empty range is its value.

    >>> [log_uniform((1.0, 100.0), place) for place in (0.0, 0.5, 1.0)]
    [1.0, 10.0, 100.0]
    """
    low, high = given
    # min: rounding may carry a value past the end of its range, or off a fixed one.
    return high if low == high else min(low * (high / low) ** place, high)
