"""Tasks: one unit of work in plain values, and the one function that computes it, wherever it runs.

Every back end calls `compute`, here, in a worker process, on a Ray node or in a SLURM job: a `Task` in, records out.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechanisms.lab.bench import Bench, Report
from mechanisms.lab.configuration import as_dict, config_hash, override
from mechanisms.lab.loggers import make_logger
from mechanisms.lab.machine import device_name, peak_memory, thread_limit, versions
from mechanisms.lab.paper import Experiment, NotHere
from mechanisms.lab.records import Curve, Record
from mechanisms.lab.registry import code_hash, load_paper
from mechanisms.lab.together import rank


@dataclass(frozen=True)
class Task:
    """One unit of work in plain values: a variant with one seed, or with a block of seeds that train in one batch.

    `config_hash` names the settings, so that a task's records are found without loading its paper.
    """

    slug: str
    experiment: str
    scale: str
    variant: str
    seeds: tuple[int, ...]
    config_hash: str
    overrides: tuple[str, ...] = ()
    device: str = "auto"
    threads: int = 1
    cache: str | None = None
    logger: str = "none"
    logs: str = "logs"
    looks: int = 1

    @property
    def name(self) -> str:
        """For people: experiment, variant and seeds."""
        seeds = f"seed {self.seeds[0]}" if len(self.seeds) == 1 else f"seeds {self.seeds[0]}-{self.seeds[-1]}"
        return f"{self.experiment} {self.variant} {seeds}"


@dataclass(frozen=True)
class Result:
    """What became of a task: its records, or why there are none (`missing`: not here; `error`: it failed)."""

    records: tuple[Record, ...] = ()
    missing: str = ""
    error: str = ""
    trace: str = ""


def plan(
    slug: str,
    experiment: Experiment,
    scale: str,
    *,
    seeds: int | None = None,
    variants: Sequence[str] = (),
    overrides: Sequence[str] = (),
    **settings: Any,
) -> list[Task]:
    """The tasks of one experiment, variant by variant, so that parallel runs compute different seeds' shared stages.

    Args:
        slug: of the paper.
        experiment: what to run.
        scale: a scale it has.
        seeds: number of seeds from `experiment.first_seed` on; the experiment's own by default.
        variants: a selection; all by default.
        overrides: `key=value` assignments.
        **settings: further fields of `Task`.

    Raises:
        ValueError: no such scale or variant, fewer than one seed, or a bad override.
    """
    if scale not in experiment.scales:
        raise ValueError(f"{experiment.name} has no scale {scale!r}; it has: {', '.join(experiment.scales)}")
    if unknown := [variant for variant in variants if variant not in experiment.variants]:
        raise ValueError(f"{experiment.name} has no variant {unknown[0]!r}; it has: {', '.join(experiment.variants)}")
    count = experiment.default_seeds(scale) if seeds is None else seeds
    if count < 1:
        raise ValueError(f"--seeds {count}: at least one is needed")
    name = config_hash(override(experiment.scales[scale], overrides))  # refuse a bad one before anything runs
    size = 1 if experiment.run_seeds is None else experiment.block
    first = experiment.first_seed
    blocks: dict[int, list[int]] = {}
    for seed in range(first, first + count):
        blocks.setdefault(seed // size, []).append(seed)
    chosen = [variant for variant in experiment.variants if not variants or variant in variants]
    return [
        # A block is computed whole even when fewer of its seeds are asked for: its numbers depend on the block.
        Task(slug, experiment.name, scale, variant, _block(number, size, block), name, tuple(overrides), **settings)
        for variant in chosen
        for number, block in blocks.items()
    ]


def _block(number: int, size: int, asked: list[int]) -> tuple[int, ...]:
    return tuple(range(number * size, (number + 1) * size)) if size > 1 else tuple(asked)


def with_looks(tasks: Sequence[Task], looks: int) -> list[Task]:
    """The tasks, to be recorded as part of a procedure that looks at the data several times."""
    return [dataclasses.replace(task, looks=looks) for task in tasks]


def compute(task: Task, report: Report | None = None) -> Result:
    """Run one task and return its records; nothing is written but cached stages and the chosen logger's files."""
    try:
        return Result(records=tuple(_compute(task, report)))
    except NotHere as error:
        return Result(missing=str(error))
    except Exception as error:
        return Result(
            error=f"{type(error).__name__}: {str(error).strip()}".splitlines()[0], trace=traceback.format_exc()
        )


def _compute(task: Task, report: Report | None) -> list[Record]:
    experiment = load_paper(task.slug).experiment(task.experiment)
    settings = override(experiment.scales[task.scale], task.overrides)
    with thread_limit(task.threads):
        benches = [
            Bench(
                seed,
                device=task.device,
                settings=settings,
                owner=f"{task.slug}/{task.experiment}",
                code=code_hash(task.slug),
                cache=Path(task.cache) / "stages" / task.slug if task.cache else None,
                threads=task.threads,
                report=report,
                logger=(lambda seed=seed: _logger(task, seed)) if rank() == 0 else None,
            )
            for seed in task.seeds
        ]
        started = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        clock = time.perf_counter()
        with peak_memory(benches[0].device) as peak:
            if experiment.run_seeds is None:
                metrics = [experiment.run(settings, task.variant, benches[0])]
            else:
                metrics = list(experiment.run_seeds(settings, task.variant, benches))
        seconds = time.perf_counter() - clock - sum(bench.waited for bench in benches)
        for bench in benches:
            bench.close()
    return [
        Record(
            slug=task.slug,
            experiment=task.experiment,
            scale=task.scale,
            variant=task.variant,
            seed=bench.seed,
            config=as_dict(settings),
            metrics={name: _plain(value) for name, value in values.items()},
            curves={name: Curve(steps, points) for name, (steps, points) in bench.curves.items()},
            notes=bench.notes,
            seconds=round(seconds / len(benches), 4),
            stages={name: round(value, 4) for name, value in bench.stages.items()},
            peak_memory=peak(),
            device=device_name(bench.device),
            threads=task.threads,
            started=started,
            versions=versions(),
            code=code_hash(task.slug),
            looks=task.looks,
        )
        for bench, values in zip(benches, metrics, strict=True)
    ]


def _plain(value: Any) -> Any:
    """A metric as plain JSON values: scalars of NumPy and torch become numbers, arrays lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _logger(task: Task, seed: int) -> Any:
    name = f"{task.slug}/{task.experiment}.{task.scale}/{task.variant}.{seed}"
    return make_logger(task.logger, name, Path(task.logs))
