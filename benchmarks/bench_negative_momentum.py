"""Negative momentum beside its peers: optimisers on 200 tensors of 64 x 64, the game Jacobian, and stacked GANs.

Run it with `python benchmarks/bench_negative_momentum.py`; `--quick` is a check, not a measurement. The peers do what
the authors' code does: one Python loop over the parameters, an update of each. Every pair is first checked to give the
same numbers, then timed in turns on one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mechanisms.dynamics.game_analysis import analyse_game
from mechanisms.dynamics.games import game_eigenvalues, game_jacobian, play
from mechanisms.dynamics.negative_momentum import NegativeMomentumAdam, NegativeMomentumSGD
from mechanisms.dynamics.spectra import spectral_radii, spectral_radius
from mechanisms.lab.bench import Bench
from mechanisms.papers._games.gaussians import Gaussians, run_gaussians_together


class LoopSGD(torch.optim.Optimizer):
    """Peer: momentum by a loop over the parameters."""

    def __init__(self, params: list[Tensor], lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if "buffer" not in state:
                    state["buffer"] = parameter.grad.clone()
                else:
                    state["buffer"].mul_(group["momentum"]).add_(parameter.grad)
                parameter.add_(state["buffer"], alpha=-group["lr"])


class LoopAdam(torch.optim.Optimizer):
    """Peer: the undampened Adam by a loop over the parameters."""

    def __init__(self, params: list[Tensor], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state |= {"t": 0, "m": torch.zeros_like(parameter), "v": torch.zeros_like(parameter)}
                state["t"] += 1
                state["m"].mul_(first).add_(parameter.grad)
                state["v"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
                root = (state["v"] / (1 - second ** state["t"])).sqrt_().add_(1e-8)
                parameter.addcdiv_(state["m"], root, value=-group["lr"] / (1 - first ** state["t"]))


def tensors() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(64, 64, generator=generator)) for _ in range(200)]
    for parameter in made:
        parameter.grad = torch.randn(64, 64, generator=generator)
    return made


def agree(first: Callable, second: Callable) -> None:
    """Both take the same steps."""
    ends = []
    for make in (first, second):
        parameters = tensors()
        optimizer = make(parameters)
        for _ in range(3):
            optimizer.step()
        ends.append(torch.stack([parameter.detach() for parameter in parameters]))
    assert torch.allclose(*ends, atol=1e-5), float((ends[0] - ends[1]).abs().max())


def paired(ours: Callable, peer: Callable, repeats: int, inner: int) -> tuple[float, float, float]:
    """Medians of seconds of both, and of their ratio peer / ours; measured in turns, whichever is first in turn."""

    def seconds(run: Callable) -> float:
        start = time.perf_counter()
        for _ in range(inner):
            run()
        return (time.perf_counter() - start) / inner

    seconds(ours), seconds(peer)
    pairs = []
    for repeat in range(repeats):
        if repeat % 2:
            late = seconds(peer)
            pairs.append((seconds(ours), late))
        else:
            pairs.append((seconds(ours), seconds(peer)))
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )


def report(name: str, found: tuple[float, float, float], target: str = "", met: bool | None = None) -> None:
    ours, peer, ratio = found
    said = "" if met is None else f"{target}: {'met' if met else 'missed'}"
    print(f"{name:<52} {ours * 1e3:>10.3f} ms {peer * 1e3:>10.3f} ms {ratio:>7.2f}  {said}")


def optimisers(repeats: int) -> None:
    cases: list[tuple[str, Callable, Callable, float]] = [
        (
            "SGD, momentum -1/2 / loop",
            lambda p: NegativeMomentumSGD(p, lr=1e-3, momentum=-0.5),
            lambda p: LoopSGD(p, lr=1e-3, momentum=-0.5),
            2.5,
        ),
        (
            "Adam, b1 -1/2, undampened / loop",
            lambda p: NegativeMomentumAdam(p, lr=1e-3, betas=(-0.5, 0.9), dampened=False),
            lambda p: LoopAdam(p, lr=1e-3, betas=(-0.5, 0.9)),
            3.5,
        ),
    ]
    for name, ours, peer, least in cases:
        agree(ours, peer)
        found = paired(ours(tensors()).step, peer(tensors()).step, repeats, 10)
        report(name, found, f">= {least}", found[2] >= least)
    for kernel in ({"fused": True}, {"foreach": True}, {"foreach": False}):
        pairs: list[tuple[str, Callable, Callable]] = [
            (
                "SGD",
                lambda p, k=kernel: NegativeMomentumSGD(p, lr=1e-3, momentum=-0.5, **k),
                lambda p, k=kernel: torch.optim.SGD(p, lr=1e-3, momentum=0.5, **k),
            ),
            (
                "Adam",
                lambda p, k=kernel: NegativeMomentumAdam(p, lr=1e-3, betas=(-0.5, 0.9), **k),
                lambda p, k=kernel: torch.optim.Adam(p, lr=1e-3, betas=(0.5, 0.9), **k),
            ),
        ]
        for name, ours, peer in pairs:
            shared = tensors()  # where memory lies must not tell them apart
            found = paired(ours(shared).step, peer(shared).step, 2 * repeats, 2)
            report(f"{name} {kernel} / torch.optim", found, ">= 0.95", found[2] >= 0.95)


def perceptron_game(width: int) -> tuple[list[Callable[[], Tensor]], list[nn.Module]]:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    generator = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 2))
    noise, real = torch.randn(64, 8), torch.randn(64, 2)

    def value() -> Tensor:
        return (
            nn.functional.logsigmoid(critic(real)).mean() + nn.functional.logsigmoid(-critic(generator(noise))).mean()
        )

    return [lambda: -value(), value], [critic, generator]


def jacobians(repeats: int) -> None:
    losses, players = perceptron_game(32)
    size = sum(p.numel() for player in players for p in player.parameters())

    def row_by_row() -> Tensor:
        return game_jacobian(losses, players, chunk_size=1)

    assert torch.allclose(game_jacobian(losses, players), row_by_row(), atol=1e-5)
    found = paired(lambda: game_jacobian(losses, players), row_by_row, max(3, repeats // 20), 1)
    report(f"Jacobian, {size} parameters / row by row", found)
    start = time.perf_counter()
    game_eigenvalues(losses, players, k=6)
    print(f"six leading eigenvalues by Arnoldi: {time.perf_counter() - start:.2f} s")
    start = time.perf_counter()
    analyse_game(losses, players)
    print(f"analyse_game, {size} parameters: {time.perf_counter() - start:.2f} s")
    game, steps, momenta = [[0.0, 1.0], [-1.0, 0.0]], torch.linspace(0.05, 2, 20), torch.linspace(-0.9, 0.9, 20)

    def batched() -> Tensor:
        return spectral_radii(game, lr=steps, momentum=momenta, order="alternating", sizes=(1, 1))

    def one_by_one() -> Tensor:
        return torch.tensor(
            [
                [spectral_radius(game, lr=a, momentum=b, order="alternating", sizes=(1, 1)) for b in momenta.tolist()]
                for a in steps.tolist()
            ]
        )

    assert torch.allclose(batched(), one_by_one().double(), atol=1e-6)
    report("map of 20 x 20 rates / point by point", paired(batched, one_by_one, max(3, repeats // 20), 1))


def gans(repeats: int, steps: int) -> None:
    settings = Gaussians(steps=steps, every=steps, samples=50, eigenvalues=0)

    def stacked() -> None:
        run_gaussians_together(settings, "discriminator-negative", [Bench(seed) for seed in range(10)])

    def one_by_one() -> None:
        for seed in range(10):
            run_gaussians_together(settings, "discriminator-negative", [Bench(seed)])

    found = paired(stacked, one_by_one, max(3, repeats // 20), 1)
    report(f"ten GANs, {steps} steps, stacked / one by one", found)


def overhead(repeats: int) -> None:
    """`play` beside the same step written by hand."""
    losses, players = perceptron_game(64)
    parameters = [list(player.parameters()) for player in players]
    optimizers = [NegativeMomentumSGD(own, lr=1e-3) for own in parameters]

    def by_hand() -> None:
        for loss, own, optimizer in zip(losses, parameters, optimizers, strict=True):
            for parameter, gradient in zip(own, torch.autograd.grad(loss(), own), strict=True):
                parameter.grad = gradient
            optimizer.step()

    report("play, a small GAN / by hand", paired(lambda: play(losses, optimizers), by_hand, repeats, 5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats: a check, not a measurement")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    repeats = 20 if quick else 200
    print(f"medians of {repeats} pairs, one thread, torch {torch.__version__}")
    print(f"{'':<52} {'ours':>13} {'peer':>13} {'ratio':>7}  target")
    optimisers(repeats)
    overhead(repeats)
    jacobians(repeats)
    gans(repeats, 20 if quick else 200)


if __name__ == "__main__":
    main()
