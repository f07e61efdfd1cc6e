"""Shuffled batches that know where they stand, so that an interrupted run goes on with the batch it would have seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mechanisms._base.seeds import torch_generator
from mechanisms.lab.together import rank, world_size


class Batches:
    """One epoch of batches each time it is iterated; the order of every epoch follows from the seed alone.

    Processes that train together (torchrun) each get their share of every batch.

    Args:
        count: number of examples.
        batch_size: examples of a batch, over all processes.
        seed: decides the order, and what `finish` draws.
        read: `read(rows)` with `rows` (batch,) int64 gives the examples; in worker processes if there are any.
        finish: `finish(examples, generator)` gives the batch, in this process: move to a device, augment. The generator
            is this batch's own, so that what is drawn does not depend on what was drawn before.
        device: of the generator that `finish` gets.
        drop_last: leave out a last batch that is smaller.
        workers: processes that read ahead.

    Raises:
        ValueError: no examples, or a batch size below the number of processes.

    >>> x = torch.arange(5)
    >>> batches = Batches(5, 2, seed=0, read=lambda rows: x[rows])
    >>> sorted(torch.cat(list(batches)).tolist()), len(batches)
    ([0, 1, 2, 3, 4], 3)
    >>> batches.state_dict()
    {'epoch': 1, 'batch': 0}
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        read: Callable[[Tensor], Any],
        *,
        finish: Callable[[Any, torch.Generator], Any] | None = None,
        device: torch.device | str = "cpu",
        drop_last: bool = False,
        workers: int = 0,
    ) -> None:
        if count < 1 or batch_size < world_size():
            raise ValueError(
                f"count={count}, batch_size={batch_size}: there must be an example, and one of a batch for each of the "
                f"{world_size()} processes"
            )
        self.count, self.batch_size, self.seed, self.workers = count, batch_size, seed, workers
        self._read, self._finish, self._device = read, finish, torch.device(device)
        # A last batch with less than one example for each process would leave one of them without a gradient.
        smallest = batch_size if drop_last else world_size()
        self._length = count // batch_size + (count % batch_size >= smallest)
        if self._length == 0:
            raise ValueError(f"{count} examples make no batch of {batch_size}: lower batch_size, or keep the last one")
        self._epoch = self._batch = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        epoch, first = self._epoch, self._batch
        order = torch.randperm(self.count, generator=torch_generator(self.seed, f"order {epoch}"))
        rows = [share[rank() :: world_size()] for share in order.split(self.batch_size)[first : self._length]]
        read = map(self._read, rows) if self.workers == 0 else iter(self._loader(rows, epoch))
        for number, examples in enumerate(read, start=first):
            # Before the batch is handed out: a state that is taken while it is used has it behind it.
            self._epoch, self._batch = (epoch, number + 1) if number + 1 < self._length else (epoch + 1, 0)
            if self._finish is None:
                yield examples
            else:
                name = f"batch {epoch} {number} {rank()}"
                yield self._finish(examples, torch_generator(self.seed, name, self._device))

    def state_dict(self) -> dict[str, int]:
        """Where it stands: the epoch, and the number of batches of it that were handed out."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from there: the next iteration gives the rest of that epoch."""
        self._epoch, self._batch = state_dict["epoch"], state_dict["batch"]

    def _loader(self, rows: list[Tensor], epoch: int) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(
            _Reader(self._read),
            sampler=rows,  # pyrefly: ignore[bad-argument-type]
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self._device.type == "cuda",
            # Otherwise it draws from torch's global generator, and a resumed epoch would do so once more.
            generator=torch_generator(self.seed, f"workers {epoch}"),
        )


class _Reader(torch.utils.data.Dataset):
    """`read` as the data set that a DataLoader's workers ask for whole batches."""

    def __init__(self, read: Callable[[Tensor], Any]) -> None:
        self._read = read

    def __getitem__(self, index: Tensor) -> Any:
        return self._read(index)
