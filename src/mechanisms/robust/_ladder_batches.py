"""Batches of rows and noise for ladder networks that train side by side: what a network gets depends on its seed alone.

Networks with equal seeds get the same; those of one stack get theirs in one gathering of rows.
"""

import torch
from torch import Tensor

from mechanisms._base.seeds import torch_generator
from mechanisms.robust.ladder import LadderNetwork


class Rows:
    """Batches of rows, an order for each distinct seed, gathered for each network."""

    def __init__(self, x: Tensor, y: Tensor | None, size: int, seeds: list[int], name: str, models: int | None) -> None:
        self._own = models is not None and x.dim() == 3
        self._x, self._y, self.count = x, y, x.shape[1] if self._own else len(x)
        self.size = min(size, self.count)
        self._distinct = sorted(set(seeds))
        self._which = torch.tensor([self._distinct.index(seed) for seed in seeds])
        self._generators = [torch_generator(seed, name) for seed in self._distinct]
        self._models = models
        self._device = x.device
        self._queue = torch.empty(len(self._distinct), 0, dtype=torch.int64)
        self._waiting: list[Tensor] = []

    def epoch(self, steps: int, *, fresh: bool) -> None:
        """Draw the orders of the next steps; `fresh` begins a new pass even if the last one has rows left."""
        needed = steps * self.size
        queue = self._queue[:, :0] if fresh else self._queue
        while queue.shape[1] < needed:
            orders = [torch.randperm(self.count, generator=generator) for generator in self._generators]
            queue = torch.cat([queue, torch.stack(orders)], 1)
        rows = queue[self._which, :needed]
        self._queue = queue[:, needed:]
        if self._own:
            rows = rows + torch.arange(len(rows)).unsqueeze(1) * self.count
        # One copy to the device for the whole epoch.
        self._waiting = list(rows.to(self._device).split(self.size, 1))[::-1]

    def next(self) -> tuple[Tensor, Tensor | None]:
        """Inputs and labels of the next step."""
        rows = self._waiting.pop()
        if self._models is None:
            return self._x[rows[0]], None if self._y is None else self._y[rows[0]]
        flat = self._x.flatten(0, 1) if self._own else self._x
        x = flat.index_select(0, rows.flatten()).view(*rows.shape, -1)
        if self._y is None:
            return x, None
        if self._y.dim() == 1:
            labels = self._y[rows % self.count]
        else:
            labels = self._y.gather(1, rows % self.count)
        return x, labels


class Noise:
    """Standard normal numbers of each level, from a stream for each distinct seed."""

    def __init__(self, network: LadderNetwork, seeds: list[int], rows: int, device: torch.device) -> None:
        distinct = sorted(set(seeds))
        self._generators = [torch_generator(seed, "noise", device) for seed in distinct]
        self._which = None
        if network.num_models is not None and seeds != distinct:
            self._which = torch.tensor([distinct.index(seed) for seed in seeds], device=device)
        self._alone = network.num_models is None
        self._shapes = [(rows * shape.positions, shape.channels) for shape in network.shapes]
        dtype = torch.float64 if network.gamma.dtype == torch.float64 else torch.float32
        self._flat = torch.empty(len(distinct), sum(n * d for n, d in self._shapes), device=device, dtype=dtype)

    def draw(self) -> list[Tensor]:
        """Numbers of all levels, models in front; the memory is used again by the next call."""
        for row, generator in zip(self._flat, self._generators, strict=True):
            row.normal_(generator=generator)
        flat = self._flat if self._which is None else self._flat.index_select(0, self._which)
        parts = flat.split([n * d for n, d in self._shapes], 1)
        drawn = [part.unflatten(1, shape) for part, shape in zip(parts, self._shapes, strict=True)]
        return [one[0] for one in drawn] if self._alone else drawn
