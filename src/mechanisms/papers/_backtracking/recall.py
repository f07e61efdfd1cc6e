"""Copying and adding: trained at one delay, tested at others as they are."""

from __future__ import annotations

from typing import Any

from mechanisms.lab import Bench, config
from mechanisms.papers._backtracking.networks import REMINDED, make_network
from mechanisms.papers._sequences.recall import Recall, draw, train_recall_network

SHOWN = 1500  # weights that a record keeps at most


@config
class Memory(Recall):
    """A task of memory, and the sizes of the networks; by default copying in small."""

    k_trunc: int = 5
    k_top: int = 5
    k_att: int = 2


def run_memory(settings: Memory, variant: str, bench: Bench) -> dict[str, Any]:
    """Train and test; of networks that are reminded, also what one test sequence makes them look at.

    Beside what `train_recall` returns: `kept`, the accuracy at the longest delay over that at the trained one;
    `attention`, weights of each of the last `attention_steps` steps (rows) over the entries of the store (columns), one
    row after the other. These are all steps where that is no more than a record should keep.
    """
    found, model = train_recall_network(settings, make_network(variant, settings), bench)
    if settings.task != "adding" and settings.test_delays and found["accuracy"]:
        found["kept"] = found[f"accuracy_at_{max(settings.test_delays)}"] / found["accuracy"]
    if variant in REMINDED:
        weights = look(settings, model.network, bench)
        weights = weights[-max(1, SHOWN // weights.shape[1]) :]
        found["attention_steps"] = len(weights)
        found["attention"] = [round(float(weight), 2) for row in weights for weight in row]
    return found


def look(settings: Memory, network: Any, bench: Bench) -> Any:
    """Attention weights (time, entries) over one fresh sequence."""
    import torch

    inputs, _ = draw(settings, 1, settings.delay, bench.generator("look"), bench.device)
    with torch.no_grad():
        _, _, (info,) = network(inputs, need_info=True)
    return info.weights[:, 0].cpu()
