"""What users bring as data, made into rows that can be taken by index and walked through in order."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_array, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

_ORDERED_ROWS = 1024


class TensorRows:
    """Rows of a tensor that stays on the device."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs

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

    Random augmentation in the data set is the user's: its draws do depend on the number of workers.
    """

    def __init__(self, dataset: Dataset, num_workers: int) -> None:
        self.dataset, self.num_workers = dataset, num_workers

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def batches(self, draws: Iterable[Tensor]) -> Iterator[tuple[Tensor, Any]]:
        """(indices, inputs) of each draw."""
        sampler = (indices.tolist() for indices in draws)
        yield from DataLoader(_Indexed(self.dataset), batch_sampler=_Once(sampler), num_workers=self.num_workers)

    def in_order(self) -> Iterable[Any]:
        """Batches of inputs in data-set order."""
        for _, inputs in DataLoader(
            _Indexed(self.dataset), batch_size=_ORDERED_ROWS // 8, num_workers=self.num_workers
        ):
            yield inputs


Rows = TensorRows | DatasetRows


def as_rows(data: Any, y: Any, *, to_float: bool, num_workers: int, device: torch.device) -> tuple[Rows, np.ndarray]:
    """The rows of what the user gave, and their labels as a NumPy array, checked.

    Args:
        data: array, DataFrame, tensor, or map-style data set yielding (x, y).
        y: labels, or None when `data` is a data set that yields them.
        to_float: whether integer tensors become floats (token indices must not).
        num_workers: worker processes for a data set.
        device: where tensors go.

    Raises:
        TypeError: a data set that cannot be indexed.
        ValueError: missing labels, different lengths, NaN, continuous labels.
    """
    if isinstance(data, Dataset) and not isinstance(data, TensorDataset):
        if isinstance(data, IterableDataset) or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            raise TypeError(
                f"{type(data).__name__} is iterable-style; a map-style Dataset with __len__ is needed, because labels "
                "are rewritten per example"
            )
        if len(data) == 0:  # type: ignore[arg-type]
            raise ValueError("the data set is empty")
        rows: Rows = DatasetRows(data, num_workers)
        labels = _labels_of(data, num_workers) if y is None else y
    else:
        if isinstance(data, TensorDataset):
            if len(data.tensors) < 2 and y is None:
                raise ValueError("this TensorDataset holds inputs without labels; add them, or pass y")
            data, y = data.tensors[0], data.tensors[1] if y is None else y
        if y is None:
            raise ValueError("y is None: labels are needed with arrays and tensors; they are what environments divide")
        rows = TensorRows(as_inputs(data, to_float=to_float).to(device))
        labels = y
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    labels = column_or_1d(labels, warn=True)
    check_consistent_length(rows, labels)
    check_classification_targets(labels)
    return rows, labels


def as_inputs(data: Any, *, to_float: bool) -> Tensor:
    """A tensor of checked inputs: arrays become float32, tensors keep their floating dtype."""
    if not isinstance(data, Tensor):
        return torch.from_numpy(np.array(check_array(data, dtype=np.float32, allow_nd=True)))
    if data.dim() < 2 or len(data) == 0:
        raise ValueError(f"inputs need shape (n, ...) with at least one row, got {tuple(data.shape)}")
    data = data.detach()
    if data.is_floating_point():
        if not torch.isfinite(data).all():
            raise ValueError("inputs contain NaN or infinity; fill or drop these values first")
        return data.float() if to_float and data.dtype in (torch.float16, torch.bfloat16) else data
    return data.float() if to_float else data


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


def _labels_of(dataset: Dataset, num_workers: int) -> np.ndarray:
    """One pass over the data set for its labels."""
    loader = DataLoader(_Labels(dataset), batch_size=_ORDERED_ROWS, num_workers=num_workers)
    return np.concatenate([np.asarray(batch) for batch in loader])
