"""Small models on generated sequences, all seeds of a block in one batch: `vmap` over stacked parameters.

Data, noise and initial weights follow from each seed alone, so that every variant meets the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mechanisms.lab import Bench, config
from mechanisms.papers._z_forcing import generated

if TYPE_CHECKING:
    from torch import Tensor, nn

AHEAD = 50  # updates whose data and noise are drawn at once


class Kind(NamedTuple):
    """What a variant is: whether it has latents, where the weight of its KL starts, and α."""

    latent: bool = True
    kl_start: float = 1.0
    alpha: float = 0.0


FRAMES = {
    "rnn": Kind(latent=False),
    "latent": Kind(),
    "kla": Kind(kl_start=0.2),
    "aux": Kind(alpha=0.0005),
    "aux-kla": Kind(kl_start=0.2, alpha=0.0005),
}
TOKENS = {
    "rnn": Kind(latent=False),
    "latent": Kind(),
    "aux": Kind(alpha=0.05),
    "aux-weak": Kind(alpha=0.005),
}


@config
class Small:
    """Sizes and training of the small models."""

    data: Literal["frames", "tokens"] = "frames"
    hidden_size: int = 48
    embedding_size: int = 24
    mlp_size: int = 32
    latent_size: int = 8
    steps: int = 20
    batch_size: int = 32
    updates: int = 3000
    lr: float = 1e-3
    clip: float = 5.0
    kl_updates: int = 1500
    every: int = 300
    alpha: float | None = None  # in place of that of the variants with an auxiliary cost
    watched: int = 200
    sequences: int = 2000
    num_samples: int = 20


def run(settings: Small, variant: str, bench: Bench) -> dict[str, Any]:
    """One seed; a block of one."""
    return run_together(settings, variant, [bench])[0]


def run_together(settings: Small, variant: str, benches: Sequence[Bench]) -> list[dict[str, Any]]:
    """All seeds of a block: the bound on fresh sequences, the KL in use, and what goes with the data."""
    kind = (FRAMES if settings.data == "frames" else TOKENS)[variant]
    if kind.alpha and settings.alpha is not None:
        kind = kind._replace(alpha=settings.alpha)
    block = Block(settings, kind, benches)
    block.train()
    return [
        block.measure(place) | (pictures(block, place) if place == 0 and settings.data == "frames" else {})
        for place in range(len(benches))
    ]


def make_network(settings: Small, kind: Kind, seed: int) -> nn.Module:
    """A network with the weights of a seed; the auxiliary head comes last, so that the others are alike."""
    from mechanisms._base.seeds import seeded, stream_seed
    from mechanisms.papers._z_forcing.plain import PlainModel
    from mechanisms.recurrent.z_forcing import ZForcing

    tokens = settings.data == "tokens"
    size = generated.WORDS if tokens else generated.SAMPLES
    likelihood = "categorical" if tokens else "gaussian"
    with seeded(stream_seed(seed, "weights")):
        from torch import nn

        embedding = nn.Embedding(size, settings.embedding_size) if tokens else nn.Linear(size, settings.embedding_size)
        if not kind.latent:
            return PlainModel(embedding, settings.embedding_size, settings.hidden_size, size, likelihood)
        return ZForcing(
            size,
            settings.hidden_size,
            settings.latent_size,
            embedding=embedding,
            mlp_size=settings.mlp_size,
            likelihood=likelihood,
            auxiliary="gaussian" if kind.alpha else None,
        )


class Block:
    """A network for each bench, all of one shape, their parameters stacked."""

    def __init__(self, settings: Small, kind: Kind, benches: Sequence[Bench]) -> None:
        import torch

        from mechanisms.recurrent.schedules import LinearSchedule

        self.settings, self.kind, self.benches = settings, kind, benches
        self.device = benches[0].device
        networks = [make_network(settings, kind, bench.seed) for bench in benches]
        self.network: Any = networks[0].to(self.device)
        stacked, _ = torch.func.stack_module_state([network.to(self.device) for network in networks])
        self.weights = {name: weight.detach().clone().requires_grad_() for name, weight in stacked.items()}
        self.streams = [(bench.generator("data"), bench.generator("noise")) for bench in benches]
        self.topics = [generated.permutations(bench.generator("topics")) for bench in benches]
        self.kl_weight = LinearSchedule(kind.kl_start, 1.0, settings.kl_updates)
        self.left: list[tuple[Tensor, Tensor]] = []

    def sequences(self, place: int, count: int, generator: Any) -> tuple[Tensor, Tensor | None]:
        """Fresh sequences (steps + 1, count, ...) of one seed, and the hidden topic of each where there is one."""
        if self.settings.data == "frames":
            return generated.frames(count, self.settings.steps + 1, generator), None
        return generated.tokens(count, self.settings.steps + 1, self.topics[place], generator)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Sequences and noise of every network for one update; many are drawn at once."""
        import torch

        if not self.left:
            settings, rows = self.settings, self.settings.batch_size
            drawn = [
                (
                    self.sequences(place, AHEAD * rows, data)[0],
                    torch.randn(settings.steps, AHEAD * rows, settings.latent_size, generator=noise),
                )
                for place, (data, noise) in enumerate(self.streams)
            ]
            parts = [torch.stack(part).to(self.device) for part in zip(*drawn, strict=True)]
            self.left = list(zip(*(part.split(rows, 2) for part in parts), strict=True))
            self.left.reverse()
        return self.left.pop()

    def train(self) -> None:
        """Adam on all networks at once; each has its own gradient norm."""
        import torch

        settings = self.settings
        optimizer = torch.optim.Adam(self.weights.values(), lr=settings.lr, fused=True)
        for update in range(settings.updates):
            sequences, noise = self.batch()
            kl_weight = self.kl_weight(update)

            def cost(weights: dict[str, Tensor], sequence: Tensor, own: Tensor, kl_weight: float = kl_weight) -> Tensor:
                given = (sequence[:-1], sequence[1:])
                output = torch.func.functional_call(self.network, weights, given, {"noise": own})
                return self.network.loss(output, kl_weight=kl_weight, auxiliary_weight=self.kind.alpha)

            optimizer.zero_grad()
            losses = torch.func.vmap(cost)(self.weights, sequences, noise)
            losses.sum().backward()
            self.clip()
            optimizer.step()
            self.benches[0].progress(update + 1, settings.updates, loss=losses.detach().mean())
            if (update + 1) % settings.every == 0:
                if not bool(torch.isfinite(losses).all()):
                    raise FloatingPointError(f"a loss of update {update + 1} is not finite: {losses.tolist()}")
                self.look(update + 1)

    def clip(self) -> None:
        """Gradients of each network scaled down to a norm of `clip` at most."""
        import torch

        gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0)
        factors = (self.settings.clip / squares.sqrt().clamp(min=1e-12)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))

    def own(self, place: int) -> Any:
        """The network of one seed."""
        self.network.load_state_dict({name: weight.detach()[place] for name, weight in self.weights.items()})
        return self.network

    def look(self, update: int) -> None:
        """The bound and the KL on the same few sequences, during training."""
        for place, bench in enumerate(self.benches):
            found = self.bound(place, self.settings.watched, "watched")
            bench.log(update, elbo=found["elbo"], kl=found["kl"])

    def bound(self, place: int, count: int, stream: str) -> dict[str, float]:
        """Mean bound and KL per sequence with one sample of the posterior."""
        import torch

        bench, network = self.benches[place], self.own(place)
        sequence = self.sequences(place, count, bench.generator(stream))[0].to(self.device)
        noise = torch.randn(
            self.settings.steps, count, self.settings.latent_size, generator=bench.generator(f"{stream} noise")
        ).to(self.device)
        with torch.no_grad():
            output = network(sequence[:-1], sequence[1:], noise=noise)
        kl = float(output.kl.mean())
        return {"elbo": -float(output.nll.mean()) - kl, "kl": kl}

    def measure(self, place: int) -> dict[str, Any]:
        """What is reported of one seed."""
        import torch

        settings, bench = self.settings, self.benches[place]
        found: dict[str, Any] = self.bound(place, settings.sequences, "test")
        if settings.data == "tokens":
            found["perplexity"] = math.exp(-found["elbo"] / settings.steps)
        if self.kind.latent:
            sequence = self.sequences(place, settings.watched, bench.generator("test"))[0].to(self.device)
            with torch.no_grad():
                bound = self.network.elbo(
                    sequence[:-1],
                    sequence[1:],
                    num_samples=settings.num_samples,
                    generator=bench.generator("importance", self.device),
                )
            found["importance_bound"] = float(bound.mean())
            if settings.data == "tokens":
                found["probe"] = self.probe(place)
        return found

    def probe(self, place: int) -> float:
        """Accuracy of a linear map from the time-mean of the posterior's mean to the topic, by least squares."""
        import torch

        half = self.settings.sequences // 2
        words, topic = self.sequences(place, 2 * half, self.benches[place].generator("probe"))
        assert topic is not None
        zeros = torch.zeros(self.settings.steps, 2 * half, self.settings.latent_size, device=self.device)
        words = words.to(self.device)
        with torch.no_grad():
            mean = self.network.infer(words[:-1], words[1:], noise=zeros)[0].mean(0).double().cpu()
        read = torch.cat([mean, torch.ones(2 * half, 1, dtype=torch.float64)], 1)
        wanted = torch.nn.functional.one_hot(topic, generated.TOPICS).double()
        # The driver for matrices without full rank: collapsed latents are constant.
        solution = torch.linalg.lstsq(read[:half], wanted[:half], driver="gelsd").solution
        return float(((read[half:] @ solution).argmax(1) == topic[half:]).double().mean())


def pictures(block: Block, place: int) -> dict[str, Any]:
    """Waves of the model beside those of the data, and what lies between two of them, with two decimals."""
    import torch

    network, bench = block.own(place), block.benches[place]
    data = generated.frames(3, block.settings.steps + 1, bench.generator("shown"))
    generator = bench.generator("shown draws", block.device)
    made = network.sample(block.settings.steps, 3, generator=generator, prefix=data[:1].to(block.device))
    found = {"shown_data": _rounded(data[1:].transpose(0, 1)), "shown_samples": _rounded(made.transpose(0, 1))}
    if block.kind.latent:
        with torch.no_grad():
            between = network.interpolate(*data[:, :2].to(block.device).unbind(1), 5)
        found["shown_between"] = _rounded(between[:, :8])
    return found


def _rounded(waves: Tensor) -> list[float]:
    return [round(value, 2) for value in waves.clamp(-9, 9).flatten().tolist()]
