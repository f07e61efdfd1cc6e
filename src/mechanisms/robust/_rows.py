"""What users bring as data, made into rows that can be taken by index and walked through in order."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_array, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from mechanisms._base.seeds import torch_generator

_ORDERED_ROWS = 1024


class TensorRows:
    """Rows of a tensor that stays on the device; `dtype` is the one that networks are to see."""

    def __init__(self, inputs: Tensor, dtype: torch.dtype | None = None) -> None:
        self.inputs, self.dtype = inputs, dtype or inputs.dtype

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, draws: Iterable[Tensor]) -> Iterator[tuple[Tensor, Any]]:
        """(indices, inputs) of each draw."""
        for indices in draws:
            yield indices, self.inputs.index_select(0, indices.to(self.inputs.device))

    def in_order(self) -> Iterable[Any]:
        """Batches of inputs in data-set order."""
        return self.inputs.split(_ORDERED_ROWS)


class DatasetRows:
    """Rows of a map-style data set, loaded by worker processes; the order does not depend on their number.

    Random augmentation in the data set is the user's: its draws do depend on the number of workers. Loaders draw the
    workers' seeds from a stream of their own, so that the caller's generators stay as they were.
    """

    def __init__(self, dataset: Dataset, num_workers: int, seed: int = 0) -> None:
        self.dataset, self.num_workers, self.seed = dataset, num_workers, seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def batches(self, draws: Iterable[Tensor]) -> Iterator[tuple[Tensor, Any]]:
        """(indices, inputs) of each draw."""
        sampler = (indices.tolist() for indices in draws)
        yield from self._checked(batch_sampler=_Once(sampler))

    def in_order(self) -> Iterable[Any]:
        """Batches of inputs in data-set order."""
        for _, inputs in self._checked(batch_size=_ORDERED_ROWS // 8):
            yield inputs

    def _checked(self, **how: Any) -> Iterator[tuple[Tensor, Any]]:
        loader = _loader(_Indexed(self.dataset), self.num_workers, self.seed, **how)
        for indices, inputs in loader:
            for values in tensors_of(inputs):
                check_finite(values, indices)
            yield indices, inputs


Rows = TensorRows | DatasetRows


def as_rows(
    data: Any, y: Any, *, to_float: bool, exact: bool = False, num_workers: int = 0, seed: int = 0
) -> tuple[Rows, np.ndarray]:
    """The rows of what the user gave, and their labels as a NumPy array, checked.

    Args:
        data: array, DataFrame, tensor, or map-style data set yielding (x, y).
        y: labels, or None when `data` is a data set that yields them.
        to_float: whether integer tensors become floats (token indices must not).
        exact: whether arrays and integers are kept in double precision, because they are centred before they become
            float32.
        num_workers: worker processes for a data set.
        seed: seed of the loaders of a data set.

    Raises:
        TypeError: a data set that cannot be indexed, or (X, y) as one argument.
        ValueError: missing labels, different lengths, NaN, continuous labels, labels that cannot be sorted.
    """
    if isinstance(data, tuple) and y is None:
        raise TypeError(f"the data are a tuple of {len(data)}; give X and y as two arguments, not as one")
    if isinstance(data, Dataset) and not isinstance(data, TensorDataset):
        if isinstance(data, IterableDataset) or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            raise TypeError(
                f"{type(data).__name__} is iterable-style; a map-style Dataset with __len__ is needed, because labels "
                "are rewritten per example"
            )
        if len(data) == 0:  # type: ignore[arg-type]
            raise ValueError("the data set is empty")
        rows: Rows = DatasetRows(data, num_workers, seed)
        labels = _labels_of(data, num_workers, seed) if y is None else y
    else:
        if isinstance(data, TensorDataset):
            if len(data.tensors) < 2 and y is None:
                raise ValueError("this TensorDataset holds inputs without labels; add them, or pass y")
            data, y = data.tensors[0], data.tensors[1] if y is None else y
        if y is None:
            raise ValueError("y is None: labels are needed with arrays and tensors; they are what environments divide")
        single = exact and not (isinstance(data, Tensor) and data.is_floating_point())
        inputs = as_inputs(data, to_float=to_float, exact=exact)
        rows = TensorRows(inputs, torch.float32 if single else None)
        labels = y
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    labels = check_labels(labels)
    check_consistent_length(rows, labels)
    check_classification_targets(labels)
    return rows, labels


def check_labels(y: Any) -> np.ndarray:
    """Labels (n,) that can be told apart and sorted.

    Raises:
        ValueError: not one-dimensional, missing ones, or numbers beside text.

    >>> check_labels(["cow", "horse"]).tolist()
    ['cow', 'horse']
    """
    mixed = isinstance(y, list | tuple) and len({isinstance(label, str) for label in y}) == 2
    # NumPy would turn the numbers of a mixed list, and None, into text.
    labels = column_or_1d(np.array(y, dtype=object) if mixed else y, warn=True)
    if labels.dtype != object:
        return labels
    for row, label in enumerate(labels.tolist()):
        # NaN and pandas' NaT differ from themselves; whether its NA does is unknown even to itself.
        if label is None or type(label).__name__ == "NAType" or label != label:
            raise ValueError(f"label {row} is missing ({label}); drop these examples or name their class")
    kinds = sorted({"text" if isinstance(label, str) else type(label).__name__ for label in labels.tolist()})
    if "text" in kinds and len(kinds) > 1:
        raise ValueError(f"labels mix {', '.join(kinds)}; make them all text or all numbers")
    return labels


def tensors_of(inputs: Any) -> Iterator[Tensor]:
    """All tensors in a tensor, dictionary, list or tuple.

    >>> [len(one) for one in tensors_of({"a": torch.ones(1), "b": [torch.ones(2)]})]
    [1, 2]
    """
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, Mapping | list | tuple):
        for value in inputs.values() if isinstance(inputs, Mapping) else inputs:
            yield from tensors_of(value)


def check_finite(values: Tensor, indices: Tensor) -> None:
    """An error that names the row with NaN or infinity, in values (B, ...) of the data-set rows `indices` (B,).

    Values on an accelerator are not looked at: it would have to wait.

    Raises:
        ValueError: NaN or infinity.

    >>> check_finite(torch.tensor([[1.0], [torch.nan]]), torch.tensor([4, 7]))
    Traceback (most recent call last):
        ...
    ValueError: row 7 of the data set contains NaN or infinity; fill or drop these values first
    """
    # The sum is finite whenever all values are, unless it overflows, and is cheaper than asking every value.
    if not values.is_floating_point() or values.device.type != "cpu" or values.sum().isfinite():
        return
    wrong = ~values.flatten(1).isfinite().all(1) if values.dim() > 1 else ~values.isfinite()
    if wrong.any():
        row = int(indices[int(wrong.nonzero()[0])])
        raise ValueError(f"row {row} of the data set contains NaN or infinity; fill or drop these values first")


def as_inputs(data: Any, *, to_float: bool, exact: bool = False) -> Tensor:
    """A tensor of checked inputs: arrays become float32 (`exact`: keep doubles), tensors keep floating dtypes."""
    if not isinstance(data, Tensor):
        dtype = [np.float64, np.float32] if exact else np.float32
        return torch.from_numpy(np.array(check_array(data, dtype=dtype, allow_nd=True)))
    if data.dim() < 2 or len(data) == 0:
        raise ValueError(f"inputs need shape (n, ...) with at least one row, got {tuple(data.shape)}")
    data = data.detach()
    if data.is_floating_point():
        if not torch.isfinite(data).all():
            raise ValueError("inputs contain NaN or infinity; fill or drop these values first")
        return data.float() if to_float and data.dtype in (torch.float16, torch.bfloat16) else data
    return (data.double() if exact else data.float()) if to_float else data


class _Indexed(Dataset):
    """Adds the index to each example and drops its label."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[int, Any]:
        item = self._dataset[index]
        return index, item[0] if isinstance(item, list | tuple) else item


class _Labels(Dataset):
    """The labels alone, so that worker processes do not send the inputs."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        item = self._dataset[index]
        if not isinstance(item, list | tuple) or len(item) < 2:
            raise ValueError(f"the data set yields {type(item).__name__} without a label; it needs (x, y), or pass y")
        return item[1]


class _Once:
    """A batch sampler over batches that are drawn once."""

    def __init__(self, batches: Iterator[list[int]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return self._batches


def _loader(dataset: Dataset, num_workers: int, seed: int, **how: Any) -> DataLoader:
    return DataLoader(dataset, num_workers=num_workers, generator=torch_generator(seed, "loader"), **how)


def _labels_of(dataset: Dataset, num_workers: int, seed: int) -> np.ndarray:
    """One pass over the data set for its labels."""
    loader = _loader(_Labels(dataset), num_workers, seed, batch_size=_ORDERED_ROWS)
    return np.concatenate([np.asarray(batch) for batch in loader])
