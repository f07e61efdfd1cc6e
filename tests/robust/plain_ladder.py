"""The ladder network as the paper writes it, one pass after the other, for tests to compare with; their data."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mechanisms.robust.ladder import LadderLoss, LadderNetwork

WIDTHS = [7, 21, 18, 4]


def batch(labelled: int = 9, unlabelled: int = 14, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(1)
    x = torch.randn(labelled + unlabelled, 7, generator=numbers, dtype=dtype)
    return x[:labelled], torch.arange(labelled) % 4, x[labelled:]


def normal(network: LadderNetwork, rows: int, seed: int = 3) -> list[Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    return [torch.randn(rows * s.positions, s.channels, generator=numbers).double() for s in network.shapes]


def shaken(network: LadderNetwork, seed: int = 4) -> LadderNetwork:
    """No parameter at a value where terms vanish."""
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=numbers, dtype=torch.float64).to(p.dtype))
    return network


def normalised(values: Tensor, labelled: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each part by its own statistics; mean and standard deviation of the unlabelled part."""
    parts, mean, std = [], values, values
    for part in (values[:labelled], values[labelled:]):
        mean = part.mean(0)
        std = ((part - mean).square().mean(0) + 1e-10).sqrt()
        parts.append((part - mean) / std)
    return torch.cat(parts), mean, std


def encode(network: LadderNetwork, x: Tensor, labelled: int, noise: list[Tensor] | None) -> list[tuple[Tensor, ...]]:
    """(z, mean, std) of each level, and at last (logits,)."""
    scaled = [torch.zeros(()) for _ in network.shapes]
    if noise is not None:
        scaled = [std * one for std, one in zip(network.noise_std, noise, strict=True)]
    h = x + scaled[0]
    levels: list[tuple[Tensor, ...]] = [(h, torch.zeros(()), torch.ones(()))]
    for up, beta, more in zip(network.up, network.beta, scaled[1:], strict=True):
        z, mean, std = normalised(h @ up.weight.T, labelled)
        z = z + more
        levels.append((z, mean, std))
        h = F.relu(z + beta)
    levels.append((network.gamma * (levels[-1][0] + network.beta[-1]),))
    return levels


def plain_losses(network: LadderNetwork, x_l: Tensor, y: Tensor, x_u: Tensor, noise: list[Tensor]) -> LadderLoss:
    """What `LadderNetwork.losses` should return, for dense layers."""
    labelled, x = len(x_l), torch.cat([x_l, x_u])
    noisy, clean = encode(network, x, labelled, noise), encode(network, x, labelled, None)
    logits, top = noisy[-1][0], len(network.up)
    classification = F.cross_entropy(logits[:labelled], y)
    costs = [torch.zeros((), dtype=x.dtype)] * (top + 1)
    above = logits[labelled:].softmax(1)
    for level in range(top, -1, -1):
        if str(level) not in network.combinators:
            break
        u = normalised(above, 0)[0]
        guess = network.combinators[str(level)](noisy[level][0][labelled:], u)
        target, mean, std = clean[level]
        miss = (guess - mean) / std - target[labelled:]
        costs[level] = network.reconstruction_weights[level] * miss.square().mean()
        if str(level - 1) in network.down:
            above = guess @ network.down[str(level - 1)].weight.T
    reconstruction = torch.stack(costs)
    return LadderLoss(classification, reconstruction, classification + reconstruction.sum())
