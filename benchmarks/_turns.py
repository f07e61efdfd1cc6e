"""What the benches of attention wrappers share: runs in turns, ratios, training steps, memory that autograd keeps."""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

INPUTS = 64


def options(text: str | None) -> argparse.Namespace:
    """--quick, --threads, --device; sets the threads."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and sizes: a check, not a measurement")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and of the kernels")
    parser.add_argument("--device", default="cpu", help="where to run; the fused kernels run on the CPU alone")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print(
        f"{chosen.threads} thread(s), {chosen.device}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} processors"
    )
    return chosen


def training(run: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward and backward, with a gradient for the input too."""

    def step() -> None:
        module.zero_grad()
        x.grad = None
        output = run(x)
        output.backward(output.detach())

    return step


def in_turns(steps: dict[str, Callable[[], None]], rounds: int, *, alone: bool, device: str) -> dict[str, list[float]]:
    """Seconds of each, run in turns, so that a busy machine slows all alike; the first turn warms up.

    With one thread on the CPU they are those of this process's thread, else those of the clock.
    """
    clock = time.thread_time if alone and device == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = clock()
            step()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def ratio(one: list[float], other: list[float]) -> float:
    """The median of the ratios of neighbouring runs."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def milliseconds(seconds: list[float]) -> float:
    """The median."""
    return statistics.median(seconds) * 1e3


def verdict(met: bool) -> str:
    """Whether a target was met."""
    return "met" if met else "missed"


def saved_bytes(run: Callable[[], Any]) -> int:
    """Memory that autograd keeps for the backward pass, each storage counted once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()  # held, so that no memory is used twice
    del result
    return sum(kept.values())


def gradients_of(output: Tensor, x: Tensor, module: nn.Module) -> list[Tensor]:
    """Of a fixed function of the output, by the input and the parameters that there are."""
    loss = (output * torch.cos(torch.arange(output.numel(), dtype=output.dtype)).view(output.shape)).sum()
    found = torch.autograd.grad(loss, [x, *module.parameters()], allow_unused=True, materialize_grads=True)
    return list(found)
