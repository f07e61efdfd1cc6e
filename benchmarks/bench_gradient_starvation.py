"""Gradient starvation beside its peers, in one run: `python benchmarks/bench_gradient_starvation.py [--quick]`.

One thread on the CPU; processor seconds, so that other work on the machine counts less.

(a) A training step with spectral decoupling against the same step without, for networks whose step takes 10 ms or more.
    Target: at most 2 % more. Under torch.compile the kernels are counted. Target: at most 2 more.
(b) The Jacobian and the kernel of a network against the recipe with torch.func alone, as its documentation has it:
    Jacobian contraction with vmap(jacrev), and vmap(grad). Targets: no slower (ratio at most 1.05, which is noise).
(c) Ten moons networks in one batch against one by one, as the recipe trains them; and the recipe's loop against the
    authors' way of working (one network at a time, log(1 + exp), loss and accuracy read back in every step).
    The recipe does the simpler of the first two unless the other is faster; target against the last: at least 3.

Before timing, both sides are given the same weights and have to agree.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap
from torch.nn import functional as F

from mechanisms.dynamics.decoupling import SpectralDecouplingLoss, spectral_decoupling
from mechanisms.dynamics.features import jacobian_features, jacobian_kernel
from mechanisms.lab.bench import Bench
from mechanisms.papers._starvation.moons import Moons, Way, data_of, make_network


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def paired(ours: Callable[[], object], peer: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Median seconds of both, and the median ratio; measured in turns, so that a busy machine slows both alike."""
    ours(), peer()
    pairs = []
    for turn in range(repeats):  # who goes first alternates
        first, second = (ours, peer) if turn % 2 == 0 else (peer, ours)
        one, other = seconds(first), seconds(second)
        pairs.append((one, other) if turn % 2 == 0 else (other, one))
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


def report(name: str, ours: float, peer: float, ratio: float, target: str, met: bool | None) -> None:
    verdict = "" if met is None else ": met" if met else ": missed"
    print(f"{name:<52} {ours * 1e3:>9.2f} ms {peer * 1e3:>9.2f} ms {ratio:>7.3f}  {target}{verdict}")


def training_step(model: nn.Module, objective: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        loss = objective(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def overhead(repeats: int) -> None:
    """(a): seconds of loss and gradient on the logits with and without the penalty, whose difference joins the step.

    All else in the two steps is the same, and its noise is larger than the difference.
    """
    convolutional = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6272, 10)
    )
    dense = nn.Sequential(nn.Linear(392, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 1))
    cases: Sequence[tuple[str, nn.Module, Tensor, Tensor]] = [
        ("convolutional, 64 images, 10 classes", convolutional, torch.randn(64, 3, 32, 32), torch.arange(64) % 10),
        (
            "perceptron 392-300-300-1, 2,048 images",
            nn.Sequential(dense, nn.Flatten(0)),
            torch.randn(2048, 392),
            torch.arange(2048) % 2,
        ),
    ]
    for name, model, x, y in cases:
        plain: nn.Module = nn.CrossEntropyLoss() if y.max() > 1 else BinaryLoss()
        whole = training_step(model, plain, x, y)
        whole()
        step = statistics.median(seconds(whole) for _ in range(3 * repeats))
        logits = model(x).detach().requires_grad_()

        def ours(logits: Tensor = logits, y: Tensor = y) -> None:
            for _ in range(100):
                SPECTRAL(logits, y).backward()

        def peer(logits: Tensor = logits, y: Tensor = y, plain: nn.Module = plain) -> None:
            for _ in range(100):
                plain(logits, y).backward()

        with_penalty, without, _ = paired(ours, peer, 3 * repeats)
        ratio = 1 + (with_penalty - without) / 100 / step
        name = f"step with the penalty / without: {name}"
        report(name, step * ratio, step, ratio, "<= 1.02", ratio <= 1.02 if step >= 0.01 else None)


SPECTRAL = SpectralDecouplingLoss(0.01)


class BinaryLoss(nn.Module):
    """torch's own, for integer labels."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def kernels() -> None:
    """(a): generated kernels of loss and gradient, with and without the penalty."""
    from torch._inductor import metrics

    counts = []
    logits, labels = torch.randn(256, 10), torch.arange(256) % 10
    for coefficient in (0.0, 0.01):
        torch._dynamo.reset()
        metrics.reset()
        objective = torch.compile(SpectralDecouplingLoss(coefficient), fullgraph=True)
        given = logits.clone().requires_grad_()
        objective(given, labels).backward()
        counts.append(metrics.generated_kernel_count)
    more = counts[1] - counts[0]
    met = "met" if more <= 2 else "missed"
    print(f"compiled loss and gradient: {counts[0]} kernels, {counts[1]} with the penalty; target <= 2 more: {met}")


def recipe_jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """vmap(grad) with torch.func alone."""
    weights = {name: value.detach() for name, value in model.named_parameters()}

    def one(weights: dict[str, Tensor], example: Tensor) -> Tensor:
        return functional_call(model, weights, (example.unsqueeze(0),)).squeeze()

    blocks = vmap(grad(one), (None, 0))(weights, x)
    return torch.cat([block.flatten(1) for block in blocks.values()], 1)


def recipe_kernel(model: nn.Module, x: Tensor) -> Tensor:
    """Jacobian contraction, as the documentation of torch.func has it, for one output."""
    weights = {name: value.detach() for name, value in model.named_parameters()}

    def one(weights: dict[str, Tensor], example: Tensor) -> Tensor:
        return functional_call(model, weights, (example.unsqueeze(0),)).squeeze(0)

    blocks = [block.flatten(2) for block in vmap(jacrev(one), (None, 0))(weights, x).values()]
    return torch.stack([torch.einsum("Naf,Mbf->NMab", block, block) for block in blocks]).sum(0)[:, :, 0, 0]


def features(repeats: int) -> None:
    """(b)"""
    cases: Sequence[tuple[str, nn.Module, Tensor]] = [
        ("2-500-1, 300 examples", nn.Sequential(nn.Linear(2, 500), nn.ReLU(), nn.Linear(500, 1)), torch.randn(300, 2)),
        (
            "392-300-300-1, 200 examples",
            nn.Sequential(nn.Linear(392, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 1)),
            torch.randn(200, 392),
        ),
        (
            "convolutional, 100 images",
            nn.Sequential(
                nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2304, 1)
            ),
            torch.randn(100, 3, 16, 16),
        ),
    ]
    for name, model, x in cases:
        jacobian = recipe_jacobian(model, x)
        torch.testing.assert_close(jacobian_features(model, x), jacobian)
        torch.testing.assert_close(jacobian_kernel(model, x), recipe_kernel(model, x), rtol=1e-4, atol=1e-3)
        del jacobian
        ours, peer, ratio = paired(
            lambda m=model, x=x: jacobian_features(m, x), lambda m=model, x=x: recipe_jacobian(m, x), repeats
        )
        report(f"Jacobian / vmap(grad): {name}", ours, peer, ratio, "<= 1.05", ratio <= 1.05)
        ours, peer, ratio = paired(
            lambda m=model, x=x: jacobian_kernel(m, x), lambda m=model, x=x: recipe_kernel(m, x), repeats
        )
        report(f"kernel / Jacobian contraction: {name}", ours, peer, ratio, "<= 1.05", ratio <= 1.05)


def one_by_one(networks: Sequence[nn.Module], sets: Sequence[tuple[Tensor, Tensor]], steps: int) -> list[Tensor]:
    """As the recipe trains: torch's layers and optimiser, one network after the other."""
    ends = []
    for network, (x, y) in zip(networks, sets, strict=True):
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-2, momentum=0.9)
        for _ in range(steps):
            logits = network(x)[:, 0]
            loss = F.softplus(-y * logits).mean() + 0.003 * spectral_decoupling(logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ends.append(network(x)[:, 0].detach())
    return ends


def in_one_batch(networks: Sequence[nn.Module], sets: Sequence[tuple[Tensor, Tensor]], steps: int) -> list[Tensor]:
    """All seeds at once: stacked weights, one batched matrix product for each layer."""
    stacked, _ = stack_module_state(list(networks))  # pyrefly: ignore
    weights = {name: value.detach().requires_grad_() for name, value in stacked.items()}
    x, y = (torch.stack(part) for part in zip(*sets, strict=True))
    optimizer = torch.optim.SGD(weights.values(), lr=1e-2, momentum=0.9)

    def forward() -> Tensor:
        inner = torch.baddbmm(weights["0.bias"].unsqueeze(1), x, weights["0.weight"].mT).relu()
        return torch.baddbmm(weights["2.bias"].unsqueeze(1), inner, weights["2.weight"].mT)[..., 0]

    for _ in range(steps):
        logits = forward()
        # The sum over seeds of means, so that no seed's step depends on the others.
        loss = (F.softplus(-y * logits).mean(1) + 0.003 * logits.square().mean(1)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return list(forward().detach())


def the_authors_way(networks: Sequence[nn.Module], sets: Sequence[tuple[Tensor, Tensor]], steps: int) -> list[Tensor]:
    """One network at a time; log(1 + exp), loss and accuracy read back in every step."""
    ends = []
    for network, (x, y) in zip(networks, sets, strict=True):
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-2, momentum=0.9)
        history = []
        for _ in range(steps):
            logits = network(x)[:, 0]
            loss = torch.log(1 + torch.exp(-y * logits)).mean() + 0.003 * (logits**2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                again = network(x)[:, 0]
                history.append((loss.item(), (again.sign() == y).float().mean().item()))
        ends.append(network(x)[:, 0].detach())
    return ends


def moons(repeats: int, steps: int) -> None:
    """(c)"""
    benches = [Bench(seed) for seed in range(10)]
    sets = [data_of(Moons(), Way(), bench) for bench in benches]

    def fresh() -> list[nn.Module]:
        return [make_network(Way(), 500, bench) for bench in benches]

    ways = (one_by_one, in_one_batch, the_authors_way)
    ends = [way(fresh(), sets, 50) for way in ways]
    for other in ends[1:]:
        torch.testing.assert_close(torch.stack(other), torch.stack(ends[0]), rtol=1e-3, atol=1e-4)
    one, batch, ratio = paired(
        lambda: one_by_one(fresh(), sets, steps), lambda: in_one_batch(fresh(), sets, steps), repeats
    )
    faster = "one by one" if ratio < 1 else "one batch"
    report(f"10 moons, {steps} steps: one by one / in one batch", one, batch, ratio, f"faster: {faster}", None)
    ours, peer, ratio = paired(
        lambda: one_by_one(fresh(), sets, steps), lambda: the_authors_way(fresh(), sets, steps), repeats
    )
    report(f"10 moons, {steps} steps: the authors' way / one by one", ours, peer, 1 / ratio, ">= 3", 1 / ratio >= 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and steps: a check, not a measurement")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"medians, one thread, torch {torch.__version__}")
    print(f"{'':<52} {'ours':>12} {'peer':>12} {'ratio':>7}  target")
    overhead(1 if quick else 5)
    if not quick:
        kernels()
    features(3 if quick else 11)
    moons(1 if quick else 3, 20 if quick else 200)


if __name__ == "__main__":
    main()
