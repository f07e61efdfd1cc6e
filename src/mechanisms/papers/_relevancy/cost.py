"""What a step costs: seconds of a training step and bytes of a state, as sequences grow."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from mechanisms.lab import Bench, config

if TYPE_CHECKING:
    from mechanisms.recurrent import Cell

VARIANTS = ("lstm", "relevant", "full")


@config
class Cost:
    """Sizes, and how often the time is taken; claims compare the first and the last of `lengths`, and of `stream`."""

    input_size: int = 10
    hidden_size: int = 64
    batch_size: int = 32
    short_term: int = 10
    relevant: int = 15
    lengths: tuple[int, ...] = (100, 200, 400)
    repeats: int = 3
    stream: tuple[int, ...] = (1000, 2000)


def run_cost(settings: Cost, variant: str, bench: Bench) -> dict[str, Any]:
    """Processor time of forward and backward pass, for each step; bytes of the state after a long sequence.

    Processor time of this process, the median of several runs, so that other work on the machine counts little.
    """
    from mechanisms._base.seeds import seeded, stream_seed

    with seeded(stream_seed(bench.seed, "weights")):
        cell = _cell(settings, variant)
    times = {steps: _milliseconds(settings, cell, steps, bench) for steps in settings.lengths}
    for steps, spent in times.items():
        bench.log(steps, milliseconds=round(spent, 5))
    sizes = [_bytes(settings, cell, steps) for steps in settings.stream]
    for steps, size in zip(settings.stream, sizes, strict=True):
        bench.log(steps, state_bytes=size)
    return {
        "milliseconds": times[settings.lengths[-1]],
        "time_ratio": times[settings.lengths[-1]] / times[settings.lengths[0]],
        "state_bytes": sizes[-1],
        "state_ratio": sizes[-1] / sizes[0],
    }


def _cell(settings: Cost, variant: str) -> Cell:
    from mechanisms.recurrent import LSTMCell, RelevancyScreening, SelfAttentiveCell

    cell = LSTMCell(settings.input_size, settings.hidden_size)
    if variant == "relevant":
        return RelevancyScreening(cell, short_term=settings.short_term, relevant=settings.relevant)
    return SelfAttentiveCell(cell) if variant == "full" else cell


def _milliseconds(settings: Cost, cell: Cell, steps: int, bench: Bench) -> float:
    """Of a training step, divided by the number of time steps."""
    import torch

    from mechanisms.recurrent.scan import scan

    generator = bench.generator("inputs")
    inputs = torch.randn(steps, settings.batch_size, settings.input_size, generator=generator).to(bench.device)
    cell = cell.to(bench.device)
    spent = []
    for _ in range(1 + settings.repeats):
        begun = _now(bench)
        output = scan(cell, inputs).output
        output.sum().backward()
        spent.append(_now(bench) - begun)
    cell.zero_grad()
    return 1e3 * statistics.median(spent[1:]) / steps


def _now(bench: Bench) -> float:
    import torch

    if bench.device.type == "cuda":
        torch.cuda.synchronize(bench.device)
        return time.perf_counter()
    return time.process_time()


def _bytes(settings: Cost, cell: Cell, steps: int) -> int:
    """Of the state after so many steps of one sequence, without gradients."""
    import torch

    from mechanisms.recurrent import state_to_dict
    from mechanisms.recurrent.scan import scan

    place = next(cell.parameters()).device
    with torch.no_grad():
        state = scan(cell, torch.zeros(steps, 1, settings.input_size, device=place)).state
    return sum(leaf.numel() * leaf.element_size() for leaf in state_to_dict(state).values())
