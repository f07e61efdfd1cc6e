"""Zoneout beside its peers, in one run, as ratios: `python benchmarks/bench_zoneout.py [--quick] [--device cuda]`.

Training steps (masks drawn, forward and backward, the input needs a gradient; I = 64, rates 0.5 and 0.05):

(a) `ZoneoutLSTM` against `torch.nn.LSTM`, which has no Zoneout. Target: at most 1.3 times its time at H >= 256 or
    T * B >= 12,800, 1.6 times at H = 128 below that, 1.8 times at (T, B, H) = (100, 8, 64).
(b) against the loop over single steps that is common in public code (espnet's ZoneOutCell around nn.LSTMCell). Target:
    at least 5 times faster at the smallest size, twice where T * B * H < 1,000,000, 1.4 times elsewhere.
(c) `ZoneoutGRU` and `ZoneoutRNN` against torch's, and all three in evaluation; reported, without a target.
(d) The masks alone, beside `torch.rand(...) < rate` and `bernoulli_`; reported.
(e) Two threads, `ZoneoutLSTM` against `torch.nn.LSTM`: the ratio may be at most 1.25 times that of one thread.

All runs of one size are measured in turns, so that a busy machine slows them alike; the ratio is the median of the
ratios of neighbouring runs. Seconds are those of this process's thread where one thread computes, which do not count
the time when the machine did something else; with two threads, and on a GPU, they are those of the clock. On a GPU,
torch's network is cuDNN's (without TF32), ours steps in a loop, and the targets, which are the CPU's, are not judged.
Before timing, the loop and ours are given the same masks and must agree, in outputs and gradients.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mechanisms.recurrent.protocol import Noise
from mechanisms.recurrent.scan import scan
from mechanisms.recurrent.zoneout import draw_masks
from mechanisms.recurrent.zoneout_layers import ZoneoutGRU, ZoneoutLSTM, ZoneoutRNN

SIZES = [
    (100, 8, 64),
    (50, 32, 128),
    (100, 32, 128),
    (200, 32, 128),
    (100, 128, 128),
    (784, 32, 128),
    (100, 64, 256),
    (100, 32, 512),
]
INPUTS, CELL, HIDDEN = 64, 0.5, 0.05
DEVICE = torch.device("cpu")


class HeldCell(nn.Module):
    """The common way: a cell of torch, and per step and state a fresh Bernoulli mask and a blend."""

    def __init__(self, cell: nn.LSTMCell) -> None:
        super().__init__()
        self.cell = cell

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor], masks: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        new = self.cell(x, state)
        held = []
        for place, (fresh, old, rate) in enumerate(zip(new, state, (HIDDEN, CELL), strict=True)):
            if not self.training:
                held.append(rate * old + (1 - rate) * fresh)
                continue
            mask = old.new_empty(old.shape).bernoulli_(rate) if masks is None else masks[place]
            held.append(mask * old + (1 - mask) * fresh)
        return tuple(held)

    def run(self, x: Tensor, masks: tuple[Tensor, Tensor] | None = None) -> Tensor:
        state = x.new_zeros(x.shape[1], self.cell.hidden_size), x.new_zeros(x.shape[1], self.cell.hidden_size)
        outputs = []
        for t, step in enumerate(x):
            state = self(step, state, None if masks is None else (masks[0][t], masks[1][t]))
            outputs.append(state[0])
        return torch.stack(outputs)


def held_cell_like(network: ZoneoutLSTM) -> HeldCell:
    """The peer with the same weights."""
    cell = nn.LSTMCell(network.input_size, network.hidden_size, dtype=network.weight_hh_l0.dtype)
    cell.load_state_dict({name.removesuffix("_l0"): one for name, one in network.state_dict().items()})
    return HeldCell(cell)


def check_agreement() -> None:
    """The loop and ours under the same masks, and torch's network at rate 0, in double precision."""
    torch.manual_seed(0)
    ours = ZoneoutLSTM(INPUTS, 32, zoneout_cell=CELL, zoneout_hidden=HIDDEN, dtype=torch.float64)
    peer = held_cell_like(ours)
    x = torch.randn(20, 5, INPUTS, dtype=torch.float64, requires_grad=True)
    cell = ours._network._cell(0)
    noise = cell.noise(20, 5)
    masks = noise.own["h"].double(), noise.own["c"].double()
    for backend in ("kernel", "eager") if DEVICE.type == "cpu" else ("eager",):
        found = scan(cell, x, noise=Noise(noise.own, None), backend=backend).output
        expected = peer.run(x, masks)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        one, two = (torch.autograd.grad(output.square().sum(), x)[0] for output in (found, expected))
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.eval()(x)[0], peer.eval().run(x), rtol=0, atol=1e-12)
    plain = nn.LSTM(INPUTS, 32, dtype=torch.float64)
    zero = ZoneoutLSTM(INPUTS, 32, zoneout_cell=0, zoneout_hidden=0, dtype=torch.float64)
    zero.load_state_dict(plain.state_dict())
    torch.testing.assert_close(zero(x)[0], plain(x)[0], rtol=0, atol=1e-12)


def training(run: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> Callable[[], None]:
    def step() -> None:
        module.zero_grad()
        x.grad = None
        output = run(x)
        output.backward(output.detach())

    return step


def evaluation(run: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> Callable[[], None]:
    module.eval()

    def step() -> None:
        with torch.no_grad():
            run(x)

    return step


def finished() -> float:
    """The clock when the GPU has done what it was given."""
    torch.cuda.synchronize(DEVICE)
    return time.perf_counter()


def in_turns(
    steps: dict[str, Callable[[], None]], rounds: int, clock: Callable[[], float] | None = None
) -> dict[str, list[float]]:
    clock = clock or (time.thread_time if DEVICE.type == "cpu" else finished)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 2):
        for name, step in steps.items():
            start = clock()
            step()
            if turn > 1:  # the first turns warm up
                seconds[name].append(clock() - start)
    return seconds


def ratio(one: list[float], other: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def first(module: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: module(x)[0]


def lstm_steps(steps: int, rows: int, size: int, *, loop: bool) -> dict[str, Callable[[], None]]:
    torch.manual_seed(0)
    plain, ours = nn.LSTM(INPUTS, size), ZoneoutLSTM(INPUTS, size, zoneout_cell=CELL, zoneout_hidden=HIDDEN)
    x = torch.randn(steps, rows, INPUTS, requires_grad=True)
    found = {"plain": training(first(plain), plain, x), "ours": training(first(ours), ours, x)}
    if loop:
        peer = held_cell_like(ours)
        found["loop"] = training(peer.run, peer, x)
    return found


def mask_draws(shape: tuple[int, ...]) -> dict[str, Callable[[], None]]:
    def ours() -> None:
        draw_masks(shape, CELL)

    def compared() -> None:
        torch.less(torch.rand(shape), CELL)

    def bernoulli() -> None:
        torch.empty(shape).bernoulli_(CELL)

    return {"ours": ours, "rand < rate": compared, "bernoulli_": bernoulli}


def most(steps: int, rows: int, size: int) -> float:
    if size >= 256 or steps * rows >= 12_800:
        return 1.3
    return 1.6 if size >= 128 else 1.8


def least(steps: int, rows: int, size: int) -> float:
    if (steps, rows, size) == (100, 8, 64):
        return 5.0
    return 2.0 if steps * rows * size < 1_000_000 else 1.4


def verdict(met: bool) -> str:
    if DEVICE.type != "cpu":
        return ""
    return "met" if met else "missed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and sizes: a check, not a measurement")
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU such as cuda or cuda:1")
    given = parser.parse_args()
    quick = given.quick
    global DEVICE
    DEVICE = torch.device(given.device)
    torch.set_default_device(DEVICE)
    torch.backends.cudnn.allow_tf32 = False  # both sides in full precision, so that they can be compared
    torch.set_num_threads(1)
    check_agreement()
    sizes = SIZES[:3] if quick else SIZES
    where = torch.cuda.get_device_name(DEVICE) if DEVICE.type == "cuda" else "one thread"
    print(f"{where}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    print(f"{'T, B, H':<16} {'rounds':>6} {'plain':>8} {'ours':>8} {'loop':>8}   ours/plain        loop/ours")
    alone = {}
    for steps, rows, size in sizes:
        work = steps * rows * size
        rounds = (6 if quick else 24) if work < 1_000_000 else 12 if work < 3_000_000 else 7
        seconds = in_turns(lstm_steps(steps, rows, size, loop=True), rounds)
        slower, faster = ratio(seconds["ours"], seconds["plain"]), ratio(seconds["loop"], seconds["ours"])
        alone[steps, rows, size] = slower
        high, low = most(steps, rows, size), least(steps, rows, size)
        times = " ".join(f"{statistics.median(seconds[name]) * 1e3:>8.2f}" for name in ("plain", "ours", "loop"))
        print(
            f"{f'{steps}, {rows}, {size}':<16} {rounds:>6} {times}   "
            f"{slower:4.2f} <= {high}: {verdict(slower <= high):<6} {faster:5.1f} >= {low:g}: {verdict(faster >= low)}",
            flush=True,
        )

    print("\nreported: ours / torch's, training and evaluation")
    for name, theirs, ours in (
        ("LSTM", nn.LSTM, ZoneoutLSTM),
        ("GRU", nn.GRU, ZoneoutGRU),
        ("RNN", nn.RNN, ZoneoutRNN),
    ):
        for steps, rows, size in sizes[:1] if quick else [(100, 8, 64), (100, 32, 128), (100, 64, 256)]:
            plain, own = theirs(INPUTS, size), ours(INPUTS, size)
            x = torch.randn(steps, rows, INPUTS, requires_grad=True)
            seconds = in_turns({"plain": training(first(plain), plain, x), "ours": training(first(own), own, x)}, 7)
            trained = ratio(seconds["ours"], seconds["plain"])
            seconds = in_turns({"plain": evaluation(first(plain), plain, x), "ours": evaluation(first(own), own, x)}, 9)
            evaluated = ratio(seconds["ours"], seconds["plain"])
            print(f"{name:<5} {f'{steps}, {rows}, {size}':<16} training {trained:5.2f}   evaluation {evaluated:5.2f}")

    print("\nreported: masks of both states alone, milliseconds")
    for steps, rows, size in sizes[:1] if quick else [(100, 8, 64), (100, 32, 128), (100, 32, 512)]:
        seconds = in_turns(mask_draws((2, steps, rows, size)), 9)
        times = "   ".join(f"{name} {statistics.median(one) * 1e3:6.2f}" for name, one in seconds.items())
        print(f"{f'{steps}, {rows}, {size}':<16} {times}")

    if DEVICE.type != "cpu":
        return
    torch.set_num_threads(2)
    print("\ntwo threads: ours / plain, and the same of one thread")
    for steps, rows, size in sizes[2:3] if quick else [(100, 32, 128), (100, 128, 128), (100, 64, 256)]:
        seconds = in_turns(lstm_steps(steps, rows, size, loop=False), 9, time.perf_counter)
        both = ratio(seconds["ours"], seconds["plain"])
        limit = 1.25 * alone[steps, rows, size]
        print(f"{f'{steps}, {rows}, {size}':<16} {both:5.2f} <= {limit:4.2f}: {verdict(both <= limit)}")


if __name__ == "__main__":
    main()
