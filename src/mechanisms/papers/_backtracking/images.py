"""Images read pixel by pixel: digits in a fixed random order, and CIFAR-10 row by row."""

from __future__ import annotations

from typing import Any

from mechanisms.lab import Bench, config
from mechanisms.papers._backtracking.networks import make_network
from mechanisms.papers._sequences.pixels import Pixels


@config
class Images(Pixels):
    """What is read, and the sizes of the networks."""

    hidden_size: int = 128
    k_trunc: int = 20
    k_top: int = 10
    k_att: int = 20


def run_images(settings: Images, variant: str, bench: Bench) -> dict[str, Any]:
    """Train; the accuracy on the test images at the best validation accuracy."""
    from mechanisms.papers._sequences.pixels import classify_pixels

    return dict(classify_pixels(make_network(variant, settings), settings, bench, name=f"images-{variant}"))
