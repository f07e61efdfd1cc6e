"""The training loop of recipes: one loop for the CPU, one GPU, or many nodes, through Lightning Fabric."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mechanisms._base.extras import require
from mechanisms.lab.checkpoints import Stateful
from mechanisms.lab.together import world_size

if TYPE_CHECKING:
    import lightning_fabric

    from mechanisms.lab.bench import Bench


def make_fabric(device: torch.device, logger: Any = None, precision: Any = "32-true") -> lightning_fabric.Fabric:
    """Fabric on one device; under torchrun on all processes' devices, with DDP.

    Raises:
        ValueError: SLURM itself started several tasks; `torchrun` inside a job of one task a node is the way.
    """
    fabric_class = require("lightning_fabric", "lab").Fabric
    accelerator = "cpu" if device.type == "cpu" else device.type
    options: dict[str, Any] = {"accelerator": accelerator, "precision": precision, "loggers": logger}
    if (size := world_size()) > 1:
        nodes = max(1, size // int(os.environ.get("LOCAL_WORLD_SIZE", size)))
        fabric = fabric_class(devices=size // nodes, num_nodes=nodes, strategy="ddp", **options)
    else:
        try:
            fabric = fabric_class(devices=[device.index] if device.index is not None else 1, **options)
        except (RuntimeError, ValueError) as error:
            if int(os.environ.get("SLURM_NTASKS", "1")) == 1:
                raise
            raise ValueError(
                f"SLURM started {os.environ['SLURM_NTASKS']} tasks for one run; ask for one task a node and start "
                "`torchrun` in it to train with several processes"
            ) from error
    fabric.launch()
    return fabric


def train(
    bench: Bench,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    steps: int,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    every: int = 100,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    clip: float | None = None,
    checkpoint: str | None = None,
) -> nn.Module:
    """Train for a number of steps, logging loss and evaluations to the bench, and return the trained model.

    Args:
        bench: gives the device, Fabric, progress and logging.
        model: trained in place.
        optimizer: over the model's parameters.
        batches: a DataLoader (sharded over the processes) or any iterable of batches, repeated as often as needed.
        loss: `loss(model, batch)`, a scalar; the model must be called in it (DDP synchronises there).
        steps: number of optimiser steps.
        evaluate: called every `every` steps and after the last, in evaluation mode without gradients; its numbers are
            logged.
        every: see `evaluate`.
        scheduler: stepped after each optimiser step.
        clip: largest gradient norm.
        checkpoint: name of the run's checkpoint (see `Bench.checkpoint`; say the variant in it). The run is then kept
            every few minutes, at steps where it is evaluated, and goes on from there when it was killed. `batches` must
            know where they stand, as `mechanisms.lab.batches.Batches` do; whatever `loss` and `evaluate` add up
            themselves must start anew with each evaluation.

    Raises:
        ValueError: there are no batches, `steps` or `every` is below 1, or a checkpoint is asked for and `batches` have
            no `state_dict`.
    """
    if steps < 1 or every < 1:
        raise ValueError(f"steps={steps}, every={every}: both must be at least 1")
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "batches": batches}
    if scheduler is not None:
        parts["scheduler"] = scheduler
    if checkpoint is not None and not isinstance(batches, Stateful):
        raise ValueError(
            f"a {type(batches).__name__} does not know where it stands, so a run cannot go on with it; use "
            "mechanisms.lab.batches.Batches, or leave checkpoint out"
        )
    fabric = bench.fabric
    parts["precision"] = fabric.strategy.precision  # half precision has a scale of its own
    wrapped, optimizer = fabric.setup(model, optimizer)
    if isinstance(batches, torch.utils.data.DataLoader):
        batches = fabric.setup_dataloaders(batches)
    kept = None if checkpoint is None else bench.checkpoint(checkpoint)
    done = 0 if kept is None else kept.restore(parts)
    wrapped.train()
    for step, batch in zip(range(done + 1, steps + 1), _repeat(batches), strict=False):
        optimizer.zero_grad()
        value = loss(wrapped, batch)
        fabric.backward(value)
        if clip is not None:
            fabric.clip_gradients(wrapped, optimizer, max_norm=clip)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        bench.progress(step, steps, loss=value.detach())
        if step % every == 0 or step == steps:
            bench.log(step, loss=float(value.detach()))
            if evaluate is not None:
                wrapped.eval()
                with torch.no_grad():
                    bench.log(step, **evaluate(wrapped))
                wrapped.train()
            if kept is not None:
                kept.keep(step, parts, now=step == steps)
    return model.eval()


def _repeat(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches again and again."""
    epoch = 0
    while True:
        sampler = getattr(batches, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)  # a distributed sampler shuffles by its epoch
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("there are no batches to train on; a generator can be read only once, give a DataLoader")
        epoch += 1
