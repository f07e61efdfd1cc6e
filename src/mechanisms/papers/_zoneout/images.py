"""Digits read pixel by pixel in a fixed random order, with and without recurrent batch normalisation and Zoneout.

On the embedded digits all seeds of a block are trained as one stack: a step of a normalised LSTM is some thirty small
operations, which take a quarter of the time so. MNIST is trained one network at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from mechanisms.lab import Bench, config
from mechanisms.papers._sequences.pixels import Pixels, classify_pixels
from mechanisms.papers._zoneout.networks import network_maker

if TYPE_CHECKING:
    from torch import Tensor


@config
class Images(Pixels):
    """Settings of a network on pixels; the rates are the paper's.

    Args:
        hidden_size: of the one layer.
        zoneout_cell, zoneout_hidden: rates of the memory and the hidden state.
        dropout: rate of recurrent dropout.
        share_mask: whether memory and hidden state use the same draws, as in the released code.
        initialisation: as for `Text`.
    """

    hidden_size: int = 100
    zoneout_cell: float = 0.15
    zoneout_hidden: float = 0.15
    dropout: float = 0.25
    share_mask: bool = False
    initialisation: Literal["torch", "paper"] = "paper"
    lr: float = 1e-4
    decay: float = 0.5


STEPS = {"digits": 64, "mnist": 784, "cifar10": 1024}


def pixel_order(settings: Images, bench: Bench) -> Tensor:
    """The order in which pixels are read, as `classify_pixels` draws it."""
    import torch

    from mechanisms.recurrent import pixel_permutation

    steps = STEPS[settings.data]
    if settings.permutation == "none":
        return torch.arange(steps)
    generator = bench.generator("permutation")
    if settings.permutation_seed is not None:
        generator = torch.Generator().manual_seed(settings.permutation_seed)
    return pixel_permutation(steps, replacement=settings.permutation == "with-replacement", generator=generator)


def run_images(settings: Images, variant: str, bench: Bench) -> dict[str, Any]:
    """One network."""
    make = network_maker(variant, settings, STEPS[settings.data])
    return dict(classify_pixels(make, settings, bench, name=variant))


def run_normalised(settings: Images, variant: str, bench: Bench) -> dict[str, Any]:
    """One network with recurrent batch normalisation."""
    return run_normalised_together(settings, variant, [bench])[0]


def run_normalised_together(settings: Images, variant: str, benches: Sequence[Bench]) -> list[dict[str, Any]]:
    """All seeds of a block; as a stack where the images are small."""
    if settings.data != "digits":
        return [run_images(settings, variant, bench) for bench in benches]
    from mechanisms.papers._zoneout.stack import Stack

    stack = Stack(settings, variant, benches)
    best: list[dict[str, Any]] = [{} for _ in benches]
    for epoch in range(1, settings.epochs + 1):
        stack.train_epoch(epoch)
        if epoch % settings.evaluate_every and epoch < settings.epochs:
            continue
        stack.refresh_statistics()
        validation, test = stack.accuracies("validation"), stack.accuracies("test")
        for bench, metrics, held_out, final in zip(benches, best, validation, test, strict=True):
            bench.log(epoch, validation_accuracy=held_out, test_accuracy=final)
            metrics["final_accuracy"] = final
            if held_out > metrics.get("validation_accuracy", -1.0):
                metrics |= {"validation_accuracy": held_out, "accuracy": final, "best_epoch": epoch}
    return best
