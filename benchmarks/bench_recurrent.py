"""Recurrent networks beside torch's own, as ratios: `python benchmarks/bench_recurrent.py [--quick] [--device cuda]`.

(a) `Recurrent` of the plain cells against `nn.LSTM`, `nn.GRU`, `nn.RNN`: plain, in layers and directions, packed.
    Target: at most 1.05 times the time of a training step.
(b) The driver against the same loop written by hand, projections hoisted in both. Target: at most 1.05.
(c) That loop against `nn.LSTM`, which runs fused. Targets: at most 3 where B H >= 4096, at most 7 at (100, 8, 64).
(d) Checkpoints every sqrt(T) steps against none. Targets: at most 2.1 times the time, at most 1/8 of the memory.
(e) One step, as agents take it, against `nn.LSTMCell`, `nn.GRUCell`, `nn.RNNCell`. Target: at most 1.5.

Peer and ours have equal weights and have to agree in outputs and gradients before they are timed. Times are those of
forward and backward; the two alternate, and the ratio is the median over the pairs. On the CPU one thread computes, and
its seconds count; on a GPU the peer is cuDNN (without TF32), and the clock counts until the GPU is done.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence
from torch.profiler import ProfilerActivity, profile

from mechanisms.recurrent import Recurrent, from_torch
from mechanisms.recurrent.scan import scan

INPUT = 64
DEVICE = torch.device("cpu")
Run = Callable[[], Tensor]


def now() -> float:
    """Seconds: of this process on the CPU; of the clock on a GPU, when it has done what it was given."""
    if DEVICE.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(DEVICE)
    return time.perf_counter()


def pairs(ours: Callable[[], Any], peer: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median ratio of seconds over alternating runs, and the peer's median in milliseconds."""
    ours(), peer()
    ratios, seconds = [], []
    for _ in range(repeats):
        times = []
        for run in (ours, peer):
            start = now()
            run()
            times.append(now() - start)
        ratios.append(times[0] / times[1])
        seconds.append(times[1])
    return statistics.median(ratios), 1e3 * statistics.median(seconds)


def agree(ours: Run, peer: Run, weights: list[nn.Parameter]) -> None:
    """Outputs to 1e-5; gradients to 1e-4 of their largest."""
    results = []
    for run in (ours, peer):
        output = run()
        results.append((output.detach(), torch.autograd.grad(output.square().sum(), weights)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-5)
    for mine, theirs in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


def training(run: Run, weights: list[nn.Parameter]) -> Callable[[], None]:
    """Forward and backward."""

    def step() -> None:
        torch.autograd.grad(run().sum(), weights)

    return step


def show(name: str, ratio: float, peer: float | None, target: float) -> None:
    verdict = "" if ratio <= target else "   <- missed"
    milliseconds = "" if peer is None else f"   peer {peer:8.2f} ms"
    print(f"  {name:<58} {ratio:6.2f}   target <= {target:<5}{milliseconds}{verdict}")


def compare(name: str, ours: Run, peer: Run, weights: list[nn.Parameter], target: float, repeats: int) -> None:
    agree(ours, peer, weights)
    ratio, milliseconds = pairs(training(ours, weights), training(peer, weights), repeats)
    show(name, ratio, milliseconds, target)


def by_hand(cell: Any, x: Tensor) -> Tensor:
    """The loop of an LSTM with hoisted projections, as one would write it for itself."""
    projected = F.linear(x, cell.weight_ih, cell.bias_ih + cell.bias_hh)
    h = c = x.new_zeros(x.shape[1], cell.hidden_size)
    weight, outputs = cell.weight_hh.t(), []
    for one in projected.unbind(0):
        i, f, g, o = torch.addmm(one, h, weight).chunk(4, 1)
        c = torch.addcmul(torch.sigmoid(i) * torch.tanh(g), torch.sigmoid(f), c)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs)


def plain(sizes: list[tuple[int, int, int]], repeats: int) -> None:
    print("(a) Recurrent against torch's modules (T, B, H)")
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        for steps, rows, hidden in sizes:
            x = torch.randn(steps, rows, INPUT)
            theirs = kind(INPUT, hidden)
            ours = Recurrent.from_torch(theirs)
            compare(
                f"{kind.__name__} {steps, rows, hidden}",
                lambda ours=ours, x=x: ours(x)[0],
                lambda theirs=theirs, x=x: theirs(x)[0],
                list(theirs.parameters()),
                1.05,
                repeats,
            )
    steps, rows, hidden = sizes[-1]
    x = torch.randn(steps, rows, INPUT)
    theirs = nn.LSTM(INPUT, hidden, 2, bidirectional=True)
    ours = Recurrent.from_torch(theirs)
    weights = list(theirs.parameters())
    name = f"LSTM, 2 layers, 2 directions {steps, rows, hidden}"
    compare(name, lambda: ours(x)[0], lambda: theirs(x)[0], weights, 1.05, repeats)
    lengths = torch.randint(steps // 2, steps + 1, (rows,), generator=torch.Generator().manual_seed(0), device="cpu")
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    one = nn.LSTM(INPUT, hidden)
    mine = Recurrent.from_torch(one)
    name = f"LSTM, packed, lengths T/2 to T {steps, rows, hidden}"
    compare(name, lambda: mine(packed)[0].data, lambda: one(packed)[0].data, list(one.parameters()), 1.05, repeats)


def loops(sizes: list[tuple[int, int, int]], repeats: int) -> None:
    print("(b) the driver against the loop by hand, (c) the loop against nn.LSTM")
    for steps, rows, hidden in sizes:
        x = torch.randn(steps, rows, INPUT)
        theirs = nn.LSTM(INPUT, hidden)
        cell = Recurrent.from_torch(theirs).cells[0]
        weights = list(theirs.parameters())

        def driver(cell: Any = cell, x: Tensor = x) -> Tensor:
            return scan(cell, x, backend="eager").output

        size = steps, rows, hidden
        compare(f"driver / by hand {size}", driver, lambda cell=cell, x=x: by_hand(cell, x), weights, 1.05, repeats)
        target = 3.0 if rows * hidden >= 4096 else 7.0
        compare(f"driver / nn.LSTM {size}", driver, lambda t=theirs, x=x: t(x)[0], weights, target, repeats)


def kept_bytes(run: Run) -> int:
    """What a forward pass allocates and leaves for the backward pass, beside its output."""
    if DEVICE.type != "cpu":
        before = torch.cuda.memory_allocated(DEVICE)
        output = run()
        return torch.cuda.memory_allocated(DEVICE) - before - 4 * output.numel()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        output = run()
    return sum(event.self_cpu_memory_usage for event in record.key_averages()) - 4 * output.numel()


def checkpoints(steps: int, rows: int, hidden: int, repeats: int) -> None:
    print("(d) checkpoints every sqrt(T) steps against none")
    x = torch.randn(steps, rows, INPUT)
    cell = Recurrent.from_torch(nn.LSTM(INPUT, hidden)).cells[0]
    weights = list(cell.parameters())

    def run(checkpoint: bool | None = None) -> Tensor:
        return scan(cell, x, checkpoint=checkpoint, backend="eager").output  # type: ignore[arg-type]

    compare(f"time {steps, rows, hidden}", lambda: run(True), run, weights, 2.1, repeats)
    plain = kept_bytes(run)
    segment = math.ceil(math.sqrt(steps))
    # Between the passes, and one segment while it is computed again.
    least = kept_bytes(lambda: run(True)) + kept_bytes(lambda: scan(cell, x[:segment], backend="eager").output)
    show(f"memory, with one segment computed again ({plain / 1e6:.1f} MB)", least / plain, None, 0.125)


def single_steps(repeats: int) -> None:
    print("(e) one step against torch's cells (B, H); 100 steps a run")
    for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell):
        for rows, hidden in ((16, 64), (64, 128)):
            theirs = kind(INPUT, hidden)
            cell = from_torch(theirs)
            core = Recurrent(cell, INPUT)
            x = torch.randn(rows, INPUT)
            state = core.initial_state(rows)
            start = tuple(state[0]) if kind is nn.LSTMCell else state[0].h

            def peer(theirs: Any = theirs, x: Tensor = x, start: Any = start) -> Tensor:
                found = theirs(x, start)
                return found if isinstance(found, Tensor) else found[0]

            agree(lambda core=core, x=x, state=state: core.step(x, state)[0], peer, list(theirs.parameters()))

            def many(run: Run) -> Callable[[], None]:
                def steps() -> None:
                    with torch.no_grad():
                        for _ in range(100):
                            run()

                return steps

            for name, ours in (
                ("cell(x, state)", lambda cell=cell, x=x, state=state: cell(x, state[0])[0]),
                ("Recurrent.step", lambda core=core, x=x, state=state: core.step(x, state)[0]),
            ):
                ratio, milliseconds = pairs(many(ours), many(peer), repeats)
                show(f"{name} / {kind.__name__} {rows, hidden}", ratio, milliseconds, 1.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats: whether it runs")
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU such as cuda or cuda:1")
    given = parser.parse_args()
    quick = given.quick
    global DEVICE
    DEVICE = torch.device(given.device)
    torch.set_default_device(DEVICE)
    torch.backends.cudnn.allow_tf32 = False  # both sides in full precision, so that they can be compared
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__} on {torch.cuda.get_device_name(DEVICE) if DEVICE.type == 'cuda' else 'one thread'}"
    )
    repeats = 5 if quick else 21
    sizes = [(100, 8, 64), (20, 32, 128)] if quick else [(100, 8, 64), (100, 32, 128), (200, 32, 128)]
    plain(sizes, repeats)
    loops([*sizes, *([] if quick else [(100, 64, 256)])], repeats)
    checkpoints(*((100, 8, 64) if quick else (400, 32, 128)), repeats)
    single_steps(repeats)


if __name__ == "__main__":
    main()
