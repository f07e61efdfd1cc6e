"""Which inputs get a gradient at all: of a loss at one step, in networks as they are initialised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mechanisms.lab import Bench, config
from mechanisms.papers._backtracking.networks import make_network

if TYPE_CHECKING:
    from torch import Tensor


@config
class Reach:
    """Copying with ever longer delays; the map is drawn of the longest."""

    lengths: tuple[int, ...] = (50, 100, 200)
    n: int = 5
    symbols: int = 4
    batch_size: int = 8
    hidden_size: int = 64
    k_trunc: int = 5
    k_top: int = 5
    k_att: int = 2
    map_every: int = 8


def run_reach(settings: Reach, variant: str, bench: Bench) -> dict[str, Any]:
    """The share of steps whose input gets exactly no gradient of the last step's loss, by length, in double precision.

    `growth` is what the share gains from the shortest length to the longest. `map` has a line for the loss at every
    `map_every`-th step, of one sequence: "1" where the input of a step gets a gradient.
    """
    import torch

    from mechanisms._base.seeds import seeded, stream_seed
    from mechanisms.recurrent import copying_task

    with seeded(stream_seed(bench.seed, "weights")):
        cell: Any = make_network(variant, settings)(settings.symbols + 2).cells[0].double()
    found: dict[str, Any] = {}
    shares = []
    for length in settings.lengths:
        delay = length - 2 * settings.n
        generator = bench.generator(f"data {length}")
        inputs, targets = copying_task(settings.batch_size, delay, settings.n, settings.symbols, generator=generator)
        with seeded(stream_seed(bench.seed, "readout")):
            readout = torch.nn.Linear(cell.output_size, settings.symbols + 2).double()
        cut = (settings.k_trunc, settings.k_trunc - 1) if variant == "tbptt" else None
        reached = reaches(cell, readout, inputs.double(), targets, [length - 1], cut)[0]
        shares.append(1 - float(reached.double().mean()))
        found[f"zero_share_{length}"] = shares[-1]
        bench.progress(settings.lengths.index(length) + 1, len(settings.lengths) + 1)
        if length == max(settings.lengths):
            steps = list(range(settings.map_every - 1, length, settings.map_every))
            rows = reaches(cell, readout, inputs[:, :1].double(), targets[:, :1], steps, cut)
            found["map"] = "\n".join("".join("1" if one else "0" for one in row[:, 0].tolist()) for row in rows)
    return found | {"growth": shares[-1] - shares[0]}


def reaches(cell: Any, readout: Any, inputs: Tensor, targets: Tensor, steps: list[int], cut: Any) -> list[Tensor]:
    """For the loss at each of some steps, whether each input (time, batch) gets any gradient."""
    import torch
    from torch.nn import functional as F

    from mechanisms.recurrent.scan import scan

    inputs = inputs.requires_grad_()
    logits = readout(scan(cell, inputs, truncate=cut, backend="eager").output)
    found = []
    for step in steps:
        loss = F.cross_entropy(logits[step], targets[step], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, inputs, retain_graph=True)
        found.append((gradient != 0).any(-1))
    return found
