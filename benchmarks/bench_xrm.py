"""XRM beside its peers, in one run, as ratios: `python benchmarks/bench_xrm.py [--quick]`. One thread on the CPU.

(a) The ten-way search at the size of Waterbirds' features (n 4795, d 2048, 2 classes) against ten runs of a plain
    per-batch loop with a DataLoader, as the authors' code works: two heads, a Python loop over classes, `.item()` for
    the loss. Same combinations, same batch sizes; far fewer steps than a whole run (5001), since costs per step are
    compared. Target: at least 5 times faster.
(b) One pair of twins against one plain training (eager torch.optim, indices drawn on the device): a linear head at
    d 2048, target at most 1.3 times its seconds; the recipes' perceptrons, at most 1.8 times.
(c) A deep network: passes are counted. Target: two forward and one backward per example.

Before timing, peer and ours are given the same batches and uniforms and have to agree in working labels and weights.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from mechanisms._base.seeds import torch_generator
from mechanisms.robust._settings import Search, Setting
from mechanisms.robust._stack import SharedBatches
from mechanisms.robust._twin_stack import TwinStack
from mechanisms.robust.twins import TwinTrainer


def peer_step(
    twins: list[nn.Module],
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    rows: Tensor,
    labels: Tensor,
    in_a: Tensor,
    uniforms: Tensor | None = None,
) -> float:
    """One step as the authors' loop does it: both networks on all rows, a loop over the classes, then flips."""
    classes = int(labels.max().item()) + 1
    mine, targets = in_a[rows].unsqueeze(1), labels[rows]
    one, other = twins[0](x), twins[1](x)
    held_in = torch.where(mine, one, other)
    held_out = torch.where(mine, other, one).detach()
    loss = torch.zeros(())
    for label in range(classes):
        members = targets == label
        if members.sum().item() > 0:
            loss = loss + F.cross_entropy(held_in[members], targets[members])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    confidence, predicted = held_out.softmax(1).max(1)
    chance = torch.rand(len(rows), dtype=confidence.dtype) if uniforms is None else uniforms
    flip = chance < ((confidence - 1 / classes) * classes / (classes - 1)).clamp(0, 1)
    labels[rows] = torch.where(flip, predicted, targets)
    return loss.item()


def zero_linear(features: int, dtype: torch.dtype = torch.float32) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        head = nn.Linear(features, 2, dtype=dtype)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return head

    return make


def perceptron(*widths: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(widths[0], widths[1]), nn.ReLU(), nn.Linear(widths[1], widths[2]))

    return make


def check_agreement() -> None:
    """Peer and stack on the same batches in double precision: the same flips, weights to 1e-10."""
    x, y = features(600, 32)
    x, setting = x.double(), Setting(0.05, 1e-4, 64)
    ours = TwinStack(zero_linear(32, torch.float64), x, y, 2, [setting], seed=0)
    twins, labels = list(ours.twins(0)), y.clone()
    optimizer = sgd(setting, [p for twin in twins for p in twin.parameters()])
    batches = SharedBatches(len(y), [64], torch_generator(0, "batches"))
    uniforms = torch_generator(0, "flips")
    for _ in range(200):
        ours.step()
        rows = batches.draw()
        chance = torch.rand(64, dtype=torch.float64, generator=uniforms)
        peer_step(twins, optimizer, x[rows], rows, labels, ours.assignment, chance)
    assert torch.equal(labels, ours.working_labels[0]), "peer and ours flip different labels"
    assert (labels != y).any(), "nothing was flipped, so nothing was compared"
    for twin, expected in zip(ours.twins(0), twins, strict=True):
        torch.testing.assert_close(twin.weight, expected.weight, rtol=1e-10, atol=1e-10)


def features(n: int, d: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (n,), generator=generator)
    x = torch.randn(n, d, generator=generator)
    x[:, 0] += 2.0 * torch.where(torch.rand(n, generator=generator) < 0.9, y, 1 - y)
    return x, y


def sgd(setting: Setting, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=setting.lr, weight_decay=setting.weight_decay, momentum=setting.momentum)


def seconds_per_step(step: Callable[[], object], steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps


def paired(ours: Callable[[], object], peer: Callable[[], object], repeats: int, steps: int) -> tuple[float, float]:
    """Median seconds per step of both, measured in turns, so that a busy machine slows both alike."""
    seconds_per_step(ours, max(1, steps // 5)), seconds_per_step(peer, max(1, steps // 5))
    pairs = [(seconds_per_step(ours, steps), seconds_per_step(peer, steps)) for _ in range(repeats)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def search_against_peer(repeats: int, steps: int) -> tuple[float, float]:
    """Seconds per step of the whole search: ours at once, the peer's ten loops one after the other."""
    x, y = features(4795, 2048)
    settings = Search().draw(seed=0)
    stack = TwinStack(zero_linear(2048), x, y, 2, settings, seed=0)
    index = torch.arange(len(y))
    runs: list[Callable[[], object]] = []
    for setting in settings:
        twins, labels = [zero_linear(2048)(), zero_linear(2048)()], y.clone()
        optimizer = sgd(setting, [p for twin in twins for p in twin.parameters()])
        loader = DataLoader(TensorDataset(index, x, y), batch_size=setting.batch_size, shuffle=True, drop_last=True)
        batches = endless(loader)

        def step(twins=twins, labels=labels, optimizer=optimizer, batches=batches) -> None:
            rows, inputs, _ = next(batches)
            peer_step(twins, optimizer, inputs, rows, labels, stack.assignment)

        runs.append(step)
    return paired(stack.step, lambda: [run() for run in runs], repeats, steps)


def endless(loader: DataLoader) -> Iterator[list[Tensor]]:
    while True:
        yield from loader


def pair_against_plain(
    make: Callable[[], nn.Module], n: int, d: int, optimizer: str, batch: int, repeats: int, steps: int
) -> tuple[float, float]:
    """Seconds per step of one pair of twins, and of one plain training of one network."""
    x, y = features(n, d)
    setting = Setting(1e-3, 1e-4, batch, optimizer)
    stack, model = TwinStack(make, x, y, 2, [setting], seed=0), make()
    if optimizer == "sgd":
        updates = sgd(setting, list(model.parameters()))
    else:
        updates = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)

    def plain() -> None:
        rows = torch.randint(n, (batch,))
        loss = F.cross_entropy(model(x[rows]), y[rows])
        updates.zero_grad()
        loss.backward()
        updates.step()

    return paired(stack.step, plain, repeats, steps)


def count_passes() -> tuple[float, float]:
    """Forward and backward passes per example of a deep network in the twin trainer."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(3, 8, 3),
                nn.GroupNorm(2, 8),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(8, 2),
            )
            self.forward_rows = self.backward_rows = 0

        def forward(self, inputs: Tensor) -> Tensor:
            outputs = self.layers(inputs)
            self.forward_rows += len(inputs)
            if outputs.requires_grad:
                outputs.register_hook(self._count)
            return outputs

        def _count(self, grad: Tensor) -> None:
            self.backward_rows += len(grad)

    x, y = torch.randn(64, 3, 8, 8), torch.arange(64) % 2
    trainer = TwinTrainer(
        Deep, y, 2, make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1), generator=0, device="cpu"
    )
    for _ in range(5):
        trainer.step(torch.arange(64), x)
    rows = 5 * len(x)
    return sum(t.forward_rows for t in trainer.twins) / rows, sum(t.backward_rows for t in trainer.twins) / rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and steps: a check, not a measurement")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    check_agreement()
    repeats, steps = (3, 20) if quick else (9, 100)

    print(f"medians of {repeats} runs of {steps} steps, one thread, torch {torch.__version__}")
    print(f"{'':<44} {'ours':>10} {'peer':>10} {'ratio':>7}  target")
    ours, peer = search_against_peer(repeats, max(10, steps // 5))
    report("search of 10, linear 2048 / ten loader loops", ours, peer, peer / ours, ">= 5", peer / ours >= 5)
    for name, make, n, d, kind, batch, most in [
        ("one pair, linear 2048, batch 128 / plain", zero_linear(2048), 4795, 2048, "sgd", 128, 1.3),
        ("one pair, linear 2048, batch 32 / plain", zero_linear(2048), 4795, 2048, "sgd", 32, 1.3),
        ("one pair, MLP 128-128-2, batch 128 / plain", perceptron(128, 128, 2), 1100, 128, "adam", 128, 1.8),
        ("one pair, MLP 128-128-2, batch 32 / plain", perceptron(128, 128, 2), 1100, 128, "adam", 32, 1.8),
        ("one pair, MLP 392-128-2, batch 128 / plain", perceptron(392, 128, 2), 10_000, 392, "adam", 128, 1.8),
        ("one pair, MLP 392-128-2, batch 32 / plain", perceptron(392, 128, 2), 10_000, 392, "adam", 32, 1.8),
    ]:
        ours, peer = pair_against_plain(make, n, d, kind, batch, repeats, steps)
        report(name, ours, peer, ours / peer, f"<= {most}", ours / peer <= most)
    forward, backward = count_passes()
    met = "met" if (forward, backward) == (2, 1) else "missed"
    print(f"deep network, passes per example: {forward:g} forward, {backward:g} backward; target 2 and 1: {met}")


def report(name: str, ours: float, peer: float, ratio: float, target: str, met: bool) -> None:
    print(
        f"{name:<44} {ours * 1e6:>7.0f} us {peer * 1e6:>7.0f} us {ratio:>7.2f}  {target}: {'met' if met else 'missed'}"
    )


if __name__ == "__main__":
    main()
