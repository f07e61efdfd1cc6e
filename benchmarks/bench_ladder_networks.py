"""Ladder networks beside the eager way, in one run: `python benchmarks/bench_ladder_networks.py [--quick]`.

Peer: the ladder network as the PyTorch re-implementations run it (rinuboney/ladder, abhiskk/ladder), in our own words:
the clean pass, then the noisy pass, then the decoder, one operation after the other, all rows through the clean pass
too; `torch.optim.Adam` as it comes. Before timing, costs and gradients of peer and ours agree in double precision.

(a) One training step of the digits network (64-128-64-32-32-10, 100 labelled and 100 unlabelled rows): forward,
    backward, Adam. Target: at least 2 times faster than the peer, for the vanilla combinator and for AMLP [2, 2, 2].
    The peer with torch's fused Adam, which we use, shows how much of the difference is the optimizer's.
(b) The same without kernels in C, as on machines without a compiler. No target.
(c) Ten networks side by side against ten alone, and against ten peers, per network.
(d) The limit: the matrix products of a step alone (three for each layer and pass).

Seconds of this process's thread, medians of neighbouring runs in turn, so that a busy machine slows all alike.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _turns import in_turns, milliseconds, options, ratio, verdict
from mechanisms.robust.ladder import LadderNetwork
from mechanisms.robust.ladder_stack import stack_ladders
from mechanisms.robust.ladder_variants import VARIANTS

WIDTHS = [64, 128, 64, 32, 32, 10]
ROWS = 100
TWICE = 2.0


class EagerLadder(nn.Module):
    """One pass at a time, with the first weights of one of our networks."""

    def __init__(self, network: LadderNetwork) -> None:
        super().__init__()
        self.W = nn.ParameterList(up.weight.detach().clone() for up in network.up)
        self.V = nn.ParameterList(network.down[str(i)].weight.detach().clone() for i in range(len(network.up)))
        self.beta = nn.ParameterList(beta.detach().clone() for beta in network.beta)
        self.gamma = nn.Parameter(network.gamma.detach().clone())
        kinds = [network.combinators[str(level)] for level in range(len(network.shapes))]
        self.g = nn.ModuleList(EagerVanilla(k) if hasattr(k, "names") else EagerPerceptron(k) for k in kinds)
        self.std = network.noise_std.tolist()
        self.weights = network.reconstruction_weights.tolist()

    def normalise(self, z: Tensor, labelled: int) -> tuple[Tensor, Tensor, Tensor]:
        parts = []
        mean, std = z, z
        for part in (z[:labelled], z[labelled:]):
            mean = part.mean(0)
            std = (part.var(0, unbiased=False) + 1e-10).sqrt()
            parts.append((part - mean) / std)
        return torch.cat(parts), mean, std

    def encode(self, x: Tensor, labelled: int, noise: list[Tensor] | None) -> tuple[list[Tensor], list, Tensor]:
        h = x if noise is None else x + self.std[0] * noise[0]
        zs, moments = [h], [None]
        for level, (weight, beta) in enumerate(zip(self.W, self.beta, strict=True), start=1):
            z, mean, std = self.normalise(F.linear(h, weight), labelled)
            if noise is not None:
                z = z + self.std[level] * noise[level]
            zs.append(z)
            moments.append((mean, std))
            h = F.relu(z + beta) if level < len(self.W) else self.gamma * (z + beta)
        return zs, moments, h

    def losses(self, x_labelled: Tensor, y: Tensor, x_unlabelled: Tensor, noise: list[Tensor] | None = None) -> Tensor:
        labelled, x = len(x_labelled), torch.cat([x_labelled, x_unlabelled])
        if noise is None:
            noise = [torch.randn(len(x), len(beta), dtype=x.dtype) for beta in (x[0], *self.beta)]
        clean, moments, _ = self.encode(x, labelled, None)
        noisy, _, logits = self.encode(x, labelled, noise)
        cost = F.cross_entropy(logits[:labelled], y)
        upper = F.softmax(logits, 1)[labelled:]
        for level in range(len(self.W), -1, -1):
            u = (upper - upper.mean(0)) / (upper.var(0, unbiased=False) + 1e-10).sqrt()
            guess = self.g[level](noisy[level][labelled:], u)
            scaled = guess if level == 0 else (guess - moments[level][0]) / moments[level][1]
            cost = cost + self.weights[level] * F.mse_loss(scaled, clean[level][labelled:])
            if level:
                upper = F.linear(guess, self.V[level - 1])
        return cost


class EagerVanilla(nn.Module):
    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.a = nn.ParameterList(row.detach().clone() for row in ours.weight)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        b0, wz, wu, wzu, ws, b1, vz, vu, vzu = self.a
        return b0 + wz * z + wu * u + wzu * z * u + ws * torch.sigmoid(b1 + vz * z + vu * u + vzu * z * u)


class EagerPerceptron(nn.Module):
    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.w = nn.ParameterList(weight.detach().clone() for weight in ours.weights)
        self.b = nn.ParameterList(bias.detach().squeeze(1).clone() for bias in ours.biases)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        h = torch.stack([u, z, u * z], 2)
        for place, (w, b) in enumerate(zip(self.w, self.b, strict=True)):
            h = torch.einsum("ndi,dio->ndo", h, w) + b
            h = F.leaky_relu(h, 0.1) if place + 1 < len(self.w) else h
        return h.squeeze(2)


def batch(dtype: torch.dtype = torch.float32, models: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(0)
    lead = () if models is None else (models,)
    x = torch.randn(*lead, 2 * ROWS, WIDTHS[0], generator=numbers, dtype=dtype)
    return x[..., :ROWS, :], torch.arange(ROWS) % WIDTHS[-1], x[..., ROWS:, :]


def check_agreement() -> None:
    """Peer and ours: the same cost to 1e-10 and the same gradients to 1e-8, in double precision."""
    for name in ("vanilla", "amlp-2-2-2"):
        network = VARIANTS[name].network(WIDTHS, generator=0, dtype=torch.float64)
        peer = EagerLadder(network)
        rows = batch(torch.float64)
        numbers = torch.Generator().manual_seed(1)
        noise = [torch.randn(2 * ROWS, width, generator=numbers, dtype=torch.float64) for width in WIDTHS]
        ours, theirs = network.losses(*rows, noise=noise).total, peer.losses(*rows, noise=noise)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        ours.backward()
        theirs.backward()
        for one, other in pairs(network, peer):
            torch.testing.assert_close(one.grad.reshape(other.shape), other.grad, rtol=1e-8, atol=1e-8)


def pairs(network: LadderNetwork, peer: EagerLadder) -> list[tuple[Tensor, Tensor]]:
    """Every parameter of ours, its gradient beside it, and the peer's; the vanilla combinator's letters as one."""
    found = [(network.gamma, peer.gamma), *zip(network.beta, peer.beta, strict=True)]
    found += [(up.weight, weight) for up, weight in zip(network.up, peer.W, strict=True)]
    found += [(network.down[str(level)].weight, weight) for level, weight in enumerate(peer.V)]
    for level, theirs in enumerate(peer.g):
        ours = network.combinators[str(level)]
        if isinstance(theirs, EagerVanilla):
            letters = torch.stack([letter.detach() for letter in theirs.a])
            letters.grad = torch.stack([letter.grad for letter in theirs.a])
            found.append((ours.weight, letters))
        else:
            found += zip((*ours.weights, *ours.biases), (*theirs.w, *theirs.b), strict=True)
    assert sum(one.numel() for one, _ in found) == sum(one.numel() for one in peer.parameters())
    return found


class Step:
    """A training step."""

    def __init__(self, network: LadderNetwork | EagerLadder, *, fused: bool, models: int | None = None) -> None:
        self.network, self.rows, self.models = network, batch(models=models), models
        self.optimizer = torch.optim.Adam(network.parameters(), lr=0.002, fused=fused)

    def __call__(self) -> None:
        loss = self.network.losses(*self.rows)
        total = loss if isinstance(loss, Tensor) else loss.total.sum()
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()


def products() -> None:
    """The matrix products of a step: three passes of rows through the encoder, one through the decoder."""
    for below, above in itertools.pairwise(WIDTHS):
        for rows in (3 * ROWS, ROWS):
            x, w, g = torch.ones(rows, below), torch.ones(above, below), torch.ones(rows, above)
            torch.mm(x, w.T)
            torch.mm(g, w)
            torch.mm(g.T, x)


def repeated(step: Callable[[], None], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            step()

    return run


def main() -> None:
    chosen = options(__doc__)
    check_agreement()
    rounds, times = (3, 3) if chosen.quick else (15, 10)
    alone = chosen.threads == 1
    print(f"{'step of the digits network, 100 + 100 rows':<44} {'ms':>8} {'peer / it':>10}  target")
    for name in ("vanilla", "amlp-2-2-2"):
        variant = VARIANTS[name]
        networks = [variant.network(WIDTHS, generator=seed) for seed in range(10)]
        steps = {
            "the eager way": Step(EagerLadder(networks[0]), fused=False),
            "the eager way, fused Adam": Step(EagerLadder(networks[0]), fused=True),
            "ours": Step(variant.network(WIDTHS, generator=0), fused=True),
            "ours, without kernels in C": Step(variant.network(WIDTHS, generator=0, fused=False), fused=True),
        }
        runs = {key: repeated(step, times) for key, step in steps.items()}
        runs["ten side by side, each"] = Step(stack_ladders(networks), fused=True, models=10)
        runs["the matrix products alone"] = repeated(products, times)
        seconds = in_turns(runs, rounds, alone=alone, device="cpu")
        # The stack takes one step of ten networks where the others take some of one.
        seconds = {key: [one / (10 if "ten" in key else times) for one in all_] for key, all_ in seconds.items()}
        for key, values in seconds.items():
            faster = ratio(seconds["the eager way"], values)
            target = f">= {TWICE}: {verdict(faster >= TWICE)}" if key == "ours" else ""
            print(f"{name + ', ' + key:<44} {milliseconds(values):>8.2f} {faster:>10.2f}  {target}")
        gain = ratio(seconds["ours"], seconds["ten side by side, each"])
        print(f"{name + ', gain of ten side by side over one alone':<53} {gain:>9.2f}")


if __name__ == "__main__":
    main()
