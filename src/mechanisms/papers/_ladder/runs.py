"""The runs: choose a weight for a variant on tuning seeds, then train the deciding seeds with it, all in one batch.

Tuning is a stage of the run. Every value of `tried` is trained with every tuning seed, all of them side by side; the
value with the lowest mean error on the validation rows is taken. What each of them reached goes into the records.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mechanisms.lab import Bench
from mechanisms.papers._ladder.peers import PEERS, run_peer
from mechanisms.papers._ladder.settings import TUNED_NOISE, Ladders, make_network, suffix, tried
from mechanisms.papers._ladder.splits import Block, Source

if TYPE_CHECKING:
    from torch import Tensor

    from mechanisms.robust.ladder import LadderNetwork


def run(settings: Ladders, variant: str, bench: Bench) -> dict[str, Any]:
    """One seed; a block of one."""
    return run_together(settings, variant, [bench])[0]


def run_together(settings: Ladders, variant: str, benches: Sequence[Bench]) -> list[dict[str, Any]]:
    """All seeds of a block, for each number of labels: the chosen value, the error on test rows, and what it is worth.

    Metrics, each ending with the number of labels: `error`, `value` (the chosen one), `validation` (errors on
    validation rows, all tuning seeds of the first value first), `untuned` (the error with the reference's weights) and
    `unrecovered` (see `unrecovered`). A network whose cost is no number any more is all wrong where values are chosen,
    and has no error where they are judged: the record says NaN, and claims about it stay undecided.
    """
    source = Source(settings)
    found: list[dict[str, Any]] = [{} for _ in benches]
    for place, labels in enumerate(settings.labels):
        if variant in PEERS:
            results = run_peer(settings, variant, labels, place, source, benches)
        else:
            results = _Labels(settings, variant, labels, place, source, benches).run()
        for metrics, result in zip(found, results, strict=True):
            metrics |= {f"{name}_{suffix(labels)}": value for name, value in result.items()}
    return found


class _Labels:
    """One variant with one number of labels."""

    def __init__(
        self,
        settings: Ladders,
        variant: str,
        labels: int,
        place: int,
        source: Source,
        benches: Sequence[Bench],
    ) -> None:
        self.settings, self.variant, self.labels, self.place = settings, variant, labels, place
        self.source, self.benches = source, benches
        self.values = tried(settings, variant)

    def run(self) -> list[dict[str, Any]]:
        """Metrics of each seed."""
        tuning: dict[str, Any] = {}
        value = self.values[0]
        if len(self.values) > 1:
            errors = self.benches[0].cached(f"tuning-{self.variant}-{suffix(self.labels)}", self._tune)
            value = choose(self.values, errors)
            tuning = {"value": value, "validation": [error for row in errors for error in row]}
        # Both in one batch: the chosen value, and the reference's own weights to show what choosing is worth.
        compared = self.settings.untuned and self.place == 0 and len(self.values) > 1 and self.variant != TUNED_NOISE
        also = [1.0] if compared and value != 1.0 else []
        seeds = [bench.seed for bench in self.benches]
        results = self._decide(seeds, [value, *also])
        found = [tuning | result for result in results[: len(seeds)]]
        if compared:
            untuned = results[len(seeds) :] if also else results
            for metrics, other in zip(found, untuned, strict=True):
                metrics["untuned"] = other["error"]
        return found

    def _tune(self) -> list[list[float]]:
        """Error on the validation rows for each value and tuning seed."""
        seeds = list(range(self.settings.tuning_seeds))
        networks, finite, block = self._train(seeds, self.values, deciding=False)
        errors = [
            wrong(network, block.x_validation, block.y_validation) if sound else 1.0
            for network, sound in zip(networks, finite, strict=True)
        ]
        return [errors[first : first + len(seeds)] for first in range(0, len(errors), len(seeds))]

    def _decide(self, seeds: list[int], values: Sequence[float]) -> list[dict[str, Any]]:
        """Error on test rows, and what reconstructions leave, for each value and seed."""
        networks, finite, block = self._train(seeds, values, deciding=True)
        results: list[dict[str, Any]] = []
        for place, (network, sound) in enumerate(zip(networks, finite, strict=True)):
            if not sound:
                results.append({"error": math.nan})
                continue
            x = _own(block.x, place, 3)
            rest = unrecovered(network, x[: self.settings.watched], seeds[place % len(seeds)])
            result: dict[str, Any] = {
                "error": wrong(network, _own(block.x_test, place, 3), _own(block.y_test, place, 2))
            }
            results.append(result | ({"unrecovered": rest} if any(one is not None for one in rest) else {}))
        return results

    def _train(
        self, seeds: list[int], values: Sequence[float], *, deciding: bool
    ) -> tuple[list[LadderNetwork], list[bool], Block]:
        """A trained network for each value and seed, seeds of the first value first; is its cost finite; and rows."""
        from mechanisms.robust.ladder_training import train_ladders

        settings, device = self.settings, self.benches[0].device
        pairs = [(value, seed) for value in values for seed in seeds]
        block = self.source.block([seed for _, seed in pairs], self.labels, deciding=deciding)
        block = Block(*(getattr(block, name).to(device) for name in Block.__dataclass_fields__))
        networks = [
            make_network(settings, self.variant, self.labels, value, seed, self.source.inputs, self.source.classes)
            for value, seed in pairs
        ]
        every = max(1, settings.epochs // settings.points)

        def watch(epoch: int, network: LadderNetwork, places: Sequence[int]) -> None:
            if epoch % every and epoch < settings.epochs:
                return
            statistics = block.x if settings.statistics == "all" else block.x_labelled
            network.update_statistics(statistics, statistics=settings.statistics)
            errors = _errors(network, block.x_test, block.y_test)
            for place, error in zip(places, errors.reshape(-1).tolist(), strict=True):
                if place < len(self.benches):
                    self.benches[place].log(epoch, **{f"error_{suffix(self.labels)}": round(error, 5)})

        begun = 2 * self.place + deciding
        total = 2 * len(settings.labels) * settings.epochs

        def progress(done: int, whole: int) -> None:
            self.benches[0].progress(begun * settings.epochs + done * settings.epochs // whole, total)

        fit = train_ladders(
            networks,
            block.x_labelled,
            block.y,
            block.x,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            lr=settings.lr,
            seeds=[seed for _, seed in pairs],
            statistics=settings.statistics,
            device=device,
            progress=progress,
            watch=watch if deciding else None,
        )
        return fit.networks, fit.loss_curve[-1].isfinite().tolist(), block


def choose(values: Sequence[float], errors: Sequence[Sequence[float]]) -> float:
    """The value with the lowest mean error; of equal ones the first."""
    means = [sum(row) / len(row) for row in errors]
    return values[means.index(min(means))]


def wrong(network: LadderNetwork, x: Tensor, y: Tensor) -> float:
    """The share of rows (n, d) that one network classifies wrongly."""
    return float(_errors(network, x, y))


def _errors(network: LadderNetwork, x: Tensor, y: Tensor) -> Tensor:
    import torch

    network.eval()
    with torch.no_grad():
        parts = [network(part).argmax(-1) for part in x.split(4096, -2)]
    return (torch.cat(parts, -1) != y).double().mean(-1)


def unrecovered(network: LadderNetwork, x: Tensor, seed: int) -> list[float | None]:
    """The share of the clean values' variance that the decoder misses, at each level; None where it has no cost.

    1 is what a constant misses; more is possible. Noise of strength s that is handed on as it came misses s².
    """
    import torch

    weights = network.reconstruction_weights
    generator = torch.Generator(x.device).manual_seed(seed)
    network.train()
    with torch.no_grad():
        labels = torch.zeros(2, dtype=torch.int64, device=x.device)
        costs = network.losses(x[:2], labels, x, generator=generator).reconstruction / weights.clamp(min=1e-30)
        # Above the inputs costs are in units of the clean run's standard deviation.
        costs[0] /= x.var(0, correction=0).mean()
    network.eval()
    return [
        round(cost, 5) if weight > 0 else None for cost, weight in zip(costs.tolist(), weights.tolist(), strict=True)
    ]


def _own(values: Tensor, place: int, axes: int) -> Tensor:
    """One network's part of what is stacked, or what all share."""
    return values[place] if values.dim() == axes else values
