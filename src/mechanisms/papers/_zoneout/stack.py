"""Networks with recurrent batch normalisation, one for each seed, trained as one stack on the embedded digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from mechanisms._base.seeds import seeded, stream_seed, torch_generator
from mechanisms.lab import Bench
from mechanisms.papers._sequences.pixels import make_optimizer, read_splits
from mechanisms.papers._zoneout.images import STEPS, Images, pixel_order
from mechanisms.papers._zoneout.networks import make_cell
from mechanisms.recurrent import Cell, Noise, sequential_images
from mechanisms.recurrent.scan import scan


class Reader(nn.Module):
    """A cell, and a linear layer on its last output; it also returns what the cell records."""

    def __init__(self, cell: Cell, classes: int) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(cell.output_size, classes)

    def forward(self, x: Tensor, noise: Any) -> tuple[Tensor, Any]:
        """Scores (batch, classes) of sequences (time, batch, 1)."""
        output, _, info = scan(self.cell, x, noise=noise, backend="eager", need_info=True)
        return self.head(output[-1]), info


class Stack:
    """A network for each bench, all of one shape, their parameters and running statistics stacked."""

    def __init__(self, settings: Images, variant: str, benches: Sequence[Bench]) -> None:
        self.settings, self.benches, self.device = settings, benches, benches[0].device
        self.x, self.y = {}, {}
        splits = [read_splits(settings, bench.seed) for bench in benches]
        orders = [pixel_order(settings, bench) for bench in benches]
        for part in ("train", "validation", "test"):
            own = [getattr(split, part) for split in splits]
            read = [
                sequential_images(torch.from_numpy(one.x), permutation=order)
                for one, order in zip(own, orders, strict=True)
            ]
            self.x[part] = torch.stack(read).to(self.device)  # (networks, time, examples, 1)
            self.y[part] = torch.stack([torch.from_numpy(one.y) for one in own]).to(self.device)
        self.networks = []
        for bench in benches:
            with seeded(stream_seed(bench.seed, "weights")):
                cell = make_cell(variant, settings, 1, STEPS["digits"])
            with seeded(stream_seed(bench.seed, "head")):
                self.networks.append(Reader(cell, 10).to(self.device))
        stacked, self.buffers = stack_module_state(self.networks)
        self.parameters = {name: nn.Parameter(one.detach()) for name, one in stacked.items()}
        for place, network in enumerate(self.networks):
            # Each network's statistics are a view of its part of the stack: what moves the one moves the other.
            own = {name: one[place] for name, one in self.buffers.items()}
            network.load_state_dict(own, strict=False, assign=True)
        self.optimizer = make_optimizer(nn.ParameterList(self.parameters.values()), settings)
        self.noise = [bench.generator("noise", self.device) for bench in benches]

    def train_epoch(self, epoch: int) -> None:
        """One pass over the training images; the last ones are left out where they make no whole batch."""
        x, y, size = self.x["train"], self.y["train"], self.settings.batch_size
        count = len(y[0])
        orders = torch.stack(
            [torch.randperm(count, generator=torch_generator(bench.seed, f"order {epoch}")) for bench in self.benches]
        ).to(self.device)
        for place in range(count // size):
            rows = orders[:, place * size : (place + 1) * size]
            batch = torch.stack([one[:, own] for one, own in zip(x, rows, strict=True)])
            scores, info = self.scores(batch, self._draw(size))
            loss = F.cross_entropy(scores.flatten(0, 1), y.gather(1, rows).flatten(), reduction="sum") / size
            self.optimizer.zero_grad()
            loss.backward()
            self._clip()
            self.optimizer.step()
            for own, network in enumerate(self.networks):
                network.cell.update_statistics(type(info)(*[leaf[own] for leaf in info]))
            total = self.settings.epochs * (count // size)
            self.benches[0].progress((epoch - 1) * (count // size) + place + 1, total, loss=loss.detach())

    def scores(self, x: Tensor, noise: Any = None) -> tuple[Tensor, Any]:
        """Scores (networks, batch, 10) of sequences (networks, time, batch, 1), and what the cells record."""

        def one(parameters: Any, buffers: Any, x: Tensor, own: Any) -> tuple[Tensor, Any]:
            given = None if own is None else Noise(own, None)
            return functional_call(self.networks[0], (parameters, buffers), (x, given))

        return vmap(one, in_dims=(0, 0, 0, None if noise is None else 0))(self.parameters, self.buffers, x, noise)

    @torch.no_grad()
    def refresh_statistics(self) -> None:
        """Set the statistics that evaluation uses to those of all training images, in training mode.

        Running ones move by 1 % an update. MNIST has 500 updates in an epoch, the digits 44: they would be those of
        another network.
        """
        _, info = self.scores(self.x["train"], self._draw(self.x["train"].shape[2]))
        for name, running in self.buffers.items():
            leaf = name.rpartition(".")[2].removeprefix("running_")
            if leaf in info._fields:
                running.copy_(getattr(info, leaf))

    @torch.no_grad()
    def accuracies(self, part: str) -> list[float]:
        """The share of images that each network names rightly, in evaluation mode."""
        for network in self.networks:
            network.eval()
        right = self.scores(self.x[part])[0].argmax(-1) == self.y[part]
        for network in self.networks:
            network.train()
        return right.double().mean(1).tolist()

    def _draw(self, rows: int) -> dict[str, Tensor] | None:
        """Masks (networks, time, rows, hidden) by leaf, each network's from its own generator."""
        steps = STEPS["digits"]
        drawn = [
            network.cell.noise(steps, rows, generator=generator, device=self.device)
            for network, generator in zip(self.networks, self.noise, strict=True)
        ]
        if drawn[0] is None:
            return None
        return {leaf: torch.stack([noise.own[leaf] for noise in drawn]) for leaf in drawn[0].own}

    @torch.no_grad()
    def _clip(self) -> None:
        """Each network's gradient, to the norm of the settings."""
        if self.settings.clip is None:
            return
        gradients = [one.grad for one in self.parameters.values() if one.grad is not None]
        norms = torch.stack([one.flatten(1).norm(dim=1) for one in gradients]).norm(dim=0)
        shares = (self.settings.clip / (norms + 1e-6)).clamp(max=1.0)
        for one in gradients:
            one.mul_(shares.view(-1, *[1] * (one.dim() - 1)))
