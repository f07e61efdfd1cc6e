"""Images whose colour misleads (table 1): Fashion-MNIST in small, MNIST with the published settings."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from mechanisms.lab import Bench, NotHere, config

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from mechanisms.lab.data import Split, Splits

VARIANTS = ("erm", "sd", "sd-unscaled", "irm", "grey")


@config
class Coloured:
    """Settings of the coloured images; full batches of both environments pooled, Adam, Xavier weights, zero biases."""

    data: Literal["coloured-fashion", "colour-mnist"] = "coloured-fashion"
    path: str = ""
    num_train: int = 5500
    num_validation: int = 500
    hidden: int = 100
    lr: float = 1e-3
    steps: int = 401
    sd_steps: int = 401
    coefficient: float = 2e-5
    anneal: int = 100
    irm_hidden: int = 100
    irm_lr: float = 1e-3
    irm_steps: int = 401
    irm_anneal: int = 100
    irm_penalty: float = 91257.2
    irm_l2: float = 0.0011079
    measured_at: int = 400
    every: int = 20


def load(settings: Coloured, bench: Bench) -> Splits:
    """The images; they follow from the seed alone."""
    from mechanisms.lab import data

    if settings.data == "colour-mnist" and not settings.path:
        raise NotHere("colour-mnist is read from where you have it; give MNIST's IDX files: path=FOLDER")
    return data.coloured_fashion_mnist(
        bench.seed,
        num_train=settings.num_train,
        num_validation=settings.num_validation,
        path=settings.path or None,
    )


def make_network(inputs: int, hidden: int, bench: Bench) -> nn.Sequential:
    """A perceptron with two hidden layers and one logit."""
    from torch import nn

    from mechanisms._base.seeds import seeded, stream_seed

    layers: list[nn.Module] = []
    with seeded(stream_seed(bench.seed, "weights")):
        for width, following in pairwise((inputs, hidden, hidden, 1)):
            layer = nn.Linear(width, following)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class Images:
    """Images without their zero channel, those of the first colour before those of the second.

    Half of every coloured image is zero; leaving that half out saves a third of a training step.

    Attributes:
        grey: (n, pixels).
        first: how many of them have the first colour; None where the network sees no colour.
        y: labels in {0.0, 1.0}.
        environment: from 0.
    """

    grey: Tensor
    first: int | None
    y: Tensor
    environment: Tensor

    @classmethod
    def of(cls, split: Split, coloured: bool, device: torch.device) -> Images:
        """Sort the images of a split by their colour."""
        import torch

        assert split.attribute is not None
        assert split.environment is not None
        order = torch.from_numpy(split.attribute).argsort(stable=True)
        grey = torch.from_numpy(split.x)[order].reshape(len(order), 2, -1).sum(1)
        labels, environment = (torch.from_numpy(part)[order].to(device) for part in (split.y, split.environment))
        first = int((split.attribute == 0).sum()) if coloured else None
        return cls(grey.to(device), first, labels.to(grey.dtype), environment)

    def logits(self, network: nn.Sequential) -> Tensor:
        """What the network says of the coloured images: (n,)."""
        import torch
        from torch import nn
        from torch.nn import functional as F

        if self.first is None:
            return network(self.grey)[:, 0]
        into = network[0]
        assert isinstance(into, nn.Linear)
        parts = zip(self.grey.tensor_split([self.first]), into.weight.chunk(2, 1), strict=True)
        inner = torch.cat([F.linear(pixels, weight, into.bias) for pixels, weight in parts])
        return network[1:](inner)[:, 0]


def objective(settings: Coloured, variant: str, step: int, logits: Tensor, images: Images) -> Tensor:
    """The loss of a variant at a step; `sd` multiplies all of it by c after annealing, as the authors' code does."""
    from torch.nn import functional as F

    from mechanisms.dynamics.decoupling import spectral_decoupling

    if variant == "irm":
        return irm(settings, step, logits, images.y, images.environment)
    nll = F.binary_cross_entropy_with_logits(logits, images.y)
    if not variant.startswith("sd"):
        return nll
    penalty = spectral_decoupling(logits)
    if step < settings.anneal:
        return nll + settings.coefficient * penalty
    return (settings.coefficient if variant == "sd" else 1.0) * (penalty + nll)


def irm(settings: Coloured, step: int, logits: Tensor, y: Tensor, environment: Tensor) -> Tensor:
    """IRMv1: the squared slope of each environment's loss in a scale of the logits, in closed form."""
    import torch
    from torch.nn import functional as F

    losses = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
    slopes = (torch.sigmoid(logits) - y) * logits
    one = environment.to(logits)
    shares = torch.stack([1 - one, one]) / torch.stack([(1 - one).sum(), one.sum()])[:, None]
    weight = settings.irm_penalty if step >= settings.irm_anneal else 1.0
    loss = (shares @ losses).mean() + weight * (shares @ slopes).square().mean()
    return loss / max(weight, 1.0)


def run_coloured(settings: Coloured, variant: str, bench: Bench) -> dict[str, Any]:
    """Train one variant on both environments; accuracy where the colour misleads, along the whole run."""
    import torch

    splits = load(settings, bench)
    seen, test = (Images.of(split, variant != "grey", bench.device) for split in (splits.train, splits.test))
    hidden, lr, steps = settings.hidden, settings.lr, settings.steps
    decay = 0.0
    if variant == "irm":
        hidden, lr, steps, decay = settings.irm_hidden, settings.irm_lr, settings.irm_steps, settings.irm_l2
    elif variant.startswith("sd"):
        steps = settings.sd_steps
    network = make_network(seen.grey.shape[1] * (1 if variant == "grey" else 2), hidden, bench).to(bench.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    measured = min(settings.measured_at, steps - 1)
    metrics: dict[str, Any] = {}
    for step in range(steps):
        logits = seen.logits(network)
        if step % settings.every == 0 or step in (measured, steps - 1):
            with torch.no_grad():
                found = {
                    "train_accuracy": float(((logits > 0) == (seen.y > 0)).float().mean()),
                    "test_accuracy": float(((test.logits(network) > 0) == (test.y > 0)).float().mean()),
                }
            bench.log(step, **{name: round(value, 5) for name, value in found.items()})
            if step == measured:
                metrics |= found
            metrics |= {"final_test_accuracy": found["test_accuracy"]}
        if step == steps - 1:
            break
        loss = objective(settings, variant, step, logits, seen)
        if decay:
            loss = loss + decay * sum(value.square().sum() for value in network.parameters()) / (
                settings.irm_penalty if step >= settings.irm_anneal else 1.0
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bench.progress(step + 1, steps, loss=loss.detach())
    return metrics
