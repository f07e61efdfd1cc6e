"""GANs on eight Gaussians: how many modes stay, with momenta of either sign.

The networks of all seeds of a block are one stack: a layer is one batched product. Data, noise and initial weights
follow from each seed alone, so every variant meets the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from mechanisms.lab import Bench, config

if TYPE_CHECKING:
    from torch import Tensor

Loss = Literal["saturating", "non-saturating", "gradient-penalty"]
LATENT = 8
SCALE = 2**0.5  # the original divides everything by 1.414
NEAR, SHARE = 0.2, 0.01  # a mode is a centre with more than 1 % of the samples within 0.2
AHEAD = 100  # steps whose data and noise are drawn at once

# Momenta of discriminator and generator, and the step size in units of the settings' own.
VARIANTS: dict[str, tuple[float, float, float]] = {
    "discriminator-negative": (-0.5, 0.0, 1.0),
    "none": (0.0, 0.0, 1.0),
    "none-effective": (0.0, 0.0, 2 / 3),  # as far a step as -1/2 takes in a steady direction
    "discriminator-positive": (0.5, 0.0, 1.0),
    "both-negative": (-0.5, -0.5, 10 / 3),
    "both-positive": (0.5, 0.5, 10 / 3),
}
PAIRS = ("sgd", "sgd-plain-generator", "adam", "adam-plain-generator")
MODES: tuple[Loss, ...] = ("saturating", "non-saturating", "gradient-penalty")
GRID_VARIANTS = tuple(f"{pair}-{mode}" for pair in PAIRS for mode in MODES)


@config
class Gaussians:
    """A small GAN: what claims are decided on."""

    width: int = 64
    batch_size: int = 64
    steps: int = 10_000
    every: int = 500
    samples: int = 2000
    lr: float = 0.03
    d_steps: int = 1
    init: Literal["torch", "normal"] = "torch"
    loss: Loss = "saturating"
    penalty: float = 0.05
    eigenvalues: int = 24


@config
class Grid:
    """The original's setting: width 256, weights from N(0, 0.02), and a grid of step sizes and momenta."""

    width: int = 256
    batch_size: int = 128
    steps: int = 10_000
    samples: int = 2000
    d_steps: int = 1
    init: Literal["torch", "normal"] = "normal"
    penalty: float = 0.05
    lrs: tuple[float, ...] = (0.1, 0.01, 0.001, 0.0001)
    momenta: tuple[float, ...] = (-0.5, -0.1, 0.0, 0.5)


def run_gaussians(settings: Gaussians, variant: str, bench: Bench) -> dict[str, Any]:
    """One seed; a block of one."""
    return run_gaussians_together(settings, variant, [bench])[0]


def run_gaussians_together(settings: Gaussians, variant: str, benches: Sequence[Bench]) -> list[dict[str, Any]]:
    """All seeds of a block; the modes over time, the last samples, and what the game looks like at the end."""
    from mechanisms.dynamics.negative_momentum import NegativeMomentumSGD

    first, second, factor = VARIANTS[variant]
    gan = Stack(benches, settings.width, settings.init, settings.batch_size)
    optimizers = [
        NegativeMomentumSGD(player, lr=factor * settings.lr, momentum=beta)
        for player, beta in ((gan.critic, first), (gan.generator, second))
    ]
    found: list[dict[str, Any]] = [{} for _ in benches]

    def look(step: int) -> None:
        samples = gan.sample(settings.samples)
        for bench, metrics, counts, own in zip(benches, found, near_centres(samples), samples, strict=True):
            modes = int((counts > SHARE).sum())
            bench.log(step, modes=modes, quality=float(counts.sum()))
            if step * 2 == settings.steps:
                metrics["modes_halfway"] = modes
            metrics |= {"modes": modes, "quality": float(counts.sum()), "samples": _rounded(own[:150])}

    gan.train(optimizers, settings.loss, settings.penalty, settings.d_steps, settings.steps, settings.every, look)
    if settings.eigenvalues:
        # One game of the block is enough to look at.
        values = gan.eigenvalues(0, settings.loss, settings.penalty, settings.eigenvalues)
        found[0] |= {
            "eigenvalues_real": [_digits(value.real) for value in values],
            "eigenvalues_imaginary": [_digits(value.imag) for value in values],
        }
    return found


def run_grid(settings: Grid, variant: str, bench: Bench) -> dict[str, Any]:
    """One seed; a block of one."""
    return run_grid_together(settings, variant, [bench])[0]


def run_grid_together(settings: Grid, variant: str, benches: Sequence[Bench]) -> list[dict[str, Any]]:
    """The modes at the end for each step size (rows) and momentum, of one pair of optimisers and one loss."""
    pair = next(name for name in sorted(PAIRS, key=len, reverse=True) if variant.startswith(f"{name}-"))
    loss: Any = variant.removeprefix(f"{pair}-")
    found: list[dict[str, Any]] = [{"modes": [], "quality": []} for _ in benches]
    cells = [(lr, momentum) for lr in settings.lrs for momentum in settings.momenta]
    for done, (lr, momentum) in enumerate(cells):
        gan = Stack(benches, settings.width, settings.init, settings.batch_size)
        gan.train(
            make_pair(pair, gan, lr, momentum),
            loss,
            settings.penalty,
            settings.d_steps,
            settings.steps,
            0,
            lambda step: None,
            (done, len(cells)),
        )
        for metrics, counts in zip(found, near_centres(gan.sample(settings.samples)), strict=True):
            metrics["modes"].append(int((counts > SHARE).sum()))
            metrics["quality"].append(round(float(counts.sum()), 4))
    for metrics in found:
        for place, momentum in enumerate(settings.momenta):
            metrics[f"best_modes_at_{momentum:g}"] = max(metrics["modes"][place :: len(settings.momenta)])
    return found


def make_pair(pair: str, gan: Stack, lr: float, momentum: float) -> list[Any]:
    """The optimisers of discriminator and generator; the authors' Adam is the undampened one."""
    import torch

    from mechanisms.dynamics.negative_momentum import NegativeMomentumAdam, NegativeMomentumSGD

    if pair.startswith("sgd"):
        second = 0.0 if pair.endswith("generator") else momentum
        return [
            NegativeMomentumSGD(gan.critic, lr=lr, momentum=momentum),
            NegativeMomentumSGD(gan.generator, lr=lr, momentum=second),
        ]
    critic = NegativeMomentumAdam(gan.critic, lr=lr, betas=(momentum, 0.9), dampened=False)
    if pair.endswith("generator"):
        return [critic, torch.optim.Adam(gan.generator, lr=lr, betas=(0.5, 0.9))]
    return [critic, NegativeMomentumAdam(gan.generator, lr=lr, betas=(momentum, 0.9), dampened=False)]


class Stack:
    """A GAN for each bench, all of one shape, their weights stacked."""

    def __init__(self, benches: Sequence[Bench], width: int, init: str, batch_size: int) -> None:
        self.benches, self.batch_size, self.device = benches, batch_size, benches[0].device
        weights = [bench.generator("weights") for bench in benches]
        self.generator = stacked(weights, (LATENT, width, width, width, 2), init, self.device)
        self.critic = stacked(weights, (2, width, width, width, 1), init, self.device)
        self.streams = [(bench.generator("data"), bench.generator("noise")) for bench in benches]
        self.left: list[tuple[Tensor, Tensor]] = []

    def batch(self) -> tuple[Tensor, Tensor]:
        """Real points and noise (for both players in turn) for one step of every GAN; many steps are drawn at once."""
        import torch

        if not self.left:
            drawn = [
                (
                    gaussians(AHEAD * self.batch_size, data),
                    torch.randn(AHEAD * self.batch_size, 2 * LATENT, generator=noise),
                )
                for data, noise in self.streams
            ]
            real, latent = (torch.stack(parts).to(self.device) for parts in zip(*drawn, strict=True))
            self.left = list(zip(real.split(self.batch_size, 1), latent.split(self.batch_size, 1), strict=True))
            self.left.reverse()
        return self.left.pop()

    def train(
        self,
        optimizers: list[Any],
        loss: str,
        penalty: float,
        d_steps: int,
        steps: int,
        every: int,
        look: Any,
        cell: tuple[int, int] = (0, 1),
    ) -> None:
        """Play in turn, discriminator first; `look(step)` every so many steps and at the end."""
        import torch

        from mechanisms.dynamics.games import play

        shared: dict[str, Tensor] = {}

        def critic_loss() -> Tensor:
            with torch.no_grad():
                fake = forward(self.generator, shared["noise"][..., :LATENT])
            return critic_of(self.critic, shared["real"], fake, loss, penalty)

        def generator_loss() -> Tensor:
            return generator_of(self.critic, forward(self.generator, shared["noise"][..., LATENT:]), loss)

        for step in range(steps):
            for _ in range(d_steps - 1):
                shared["real"], shared["noise"] = self.batch()
                play([critic_loss], optimizers[:1])
            shared["real"], shared["noise"] = self.batch()
            play([critic_loss, generator_loss], optimizers)
            for bench in self.benches[:1]:
                bench.progress(cell[0] * steps + step + 1, cell[1] * steps)
            if (every and (step + 1) % every == 0) or step + 1 == steps:
                look(step + 1)

    def sample(self, count: int) -> Tensor:
        """Samples (GANs, count, 2), always from the same noise."""
        import torch

        noise = torch.stack([torch.randn(count, LATENT, generator=b.generator("evaluation")) for b in self.benches])
        with torch.no_grad():
            return forward(self.generator, noise.to(self.device))

    def eigenvalues(self, place: int, loss: str, penalty: float, count: int) -> list[complex]:
        """Leading eigenvalues of one GAN's game Jacobian, on a batch of its own."""
        import torch

        from mechanisms.dynamics.games import game_eigenvalues

        critic, generator = (
            [weight.detach()[place : place + 1].double().requires_grad_() for weight in player]
            for player in (self.critic, self.generator)
        )
        real = gaussians(256, self.benches[place].generator("game")).to(self.device).double()[None]
        noise = torch.randn(1, 256, LATENT, generator=self.benches[place].generator("game noise"))
        latent = noise.to(self.device).double()
        if not all(bool(torch.isfinite(weight).all()) for weight in (*critic, *generator)):
            return []
        losses = [
            lambda: critic_of(critic, real, forward(generator, latent), loss, penalty),
            lambda: generator_of(critic, forward(generator, latent), loss),
        ]
        return game_eigenvalues(losses, [critic, generator], k=count).tolist()


def stacked(streams: Sequence[Any], sizes: tuple[int, ...], init: str, device: Any) -> list[Tensor]:
    """Weights (GANs, in, out) and biases (GANs, 1, out) of perceptrons, drawn from a stream each."""
    import torch

    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        drawn = []
        for stream in streams:
            if init == "normal":
                drawn.append((0.02 * torch.randn(inputs, outputs, generator=stream), torch.zeros(1, outputs)))
            else:  # torch's own for linear layers
                edge = inputs**-0.5
                drawn.append(
                    tuple((2 * torch.rand(n, outputs, generator=stream) - 1) * edge for n in (inputs, 1)),
                )
        layers += [torch.stack(parts).to(device).requires_grad_() for parts in zip(*drawn, strict=True)]
    return layers


def forward(layers: list[Tensor], inputs: Tensor) -> Tensor:
    """Perceptrons with ReLU, one for each entry of the first axis."""
    import torch

    for place in range(0, len(layers), 2):
        inputs = torch.baddbmm(layers[place + 1], inputs, layers[place])
        if place < len(layers) - 2:
            inputs = inputs.relu()
    return inputs


def critic_of(critic: list[Tensor], real: Tensor, fake: Tensor, loss: str, penalty: float) -> Tensor:
    """The discriminators' losses, a mean over each batch and a sum over GANs, so that each has its own gradient."""
    import torch
    from torch.nn.functional import softplus

    count = real.shape[1]
    logits = forward(critic, torch.cat([real, fake], dim=1))[..., 0]
    value = softplus(-logits[:, :count]).mean(1) + softplus(logits[:, count:]).mean(1)
    if loss == "gradient-penalty":
        inputs = ((real + fake) / 2).detach().requires_grad_()
        slopes = torch.autograd.grad(forward(critic, inputs).sum(), inputs, create_graph=True)[0]
        value = value + penalty * (slopes.norm(dim=-1) - 1).square().mean(1)
    return value.sum()


def generator_of(critic: list[Tensor], fake: Tensor, loss: str) -> Tensor:
    """The generators' losses; saturating unless they are the non-saturating ones."""
    from torch.nn.functional import softplus

    logits = forward(critic, fake)[..., 0]
    value = softplus(-logits) if loss == "non-saturating" else -softplus(logits)
    return value.mean(1).sum()


def centres() -> Tensor:
    """Eight points on a circle."""
    import torch

    angles = torch.arange(8) * math.pi / 4
    return 2 * torch.stack([angles.cos(), angles.sin()], dim=1) / SCALE


def gaussians(count: int, generator: Any) -> Tensor:
    """Points around a centre drawn evenly, with a standard deviation of 0.05 / 1.414."""
    import torch

    chosen = torch.randint(8, (count,), generator=generator)
    return centres()[chosen] + 0.05 / SCALE * torch.randn(count, 2, generator=generator)


def near_centres(samples: Tensor) -> Tensor:
    """The share of samples (GANs, count, 2) near each centre, (GANs, 8); none where they are no numbers."""
    import torch

    distances = torch.cdist(samples.double(), centres().to(samples.device).double().expand(len(samples), -1, -1))
    return (distances < NEAR).double().mean(1).cpu()


def _rounded(points: Tensor) -> list[float]:
    """Coordinates x, y, x, y, ... with two decimals, within the picture."""
    return [round(value, 2) for value in points.nan_to_num(99.0).clamp(-9, 9).flatten().tolist()]


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
