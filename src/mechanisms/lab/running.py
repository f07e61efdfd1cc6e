"""Runs: from what the user asks for to records on disk.

`compute` is the one function that every back end calls, here, in a worker process, on a Ray node or in a SLURM job: a
`Task` in, records out. Locks and files belong to the driver (`carry_out`) alone, so a run is done once whoever asks for
it, and nothing that is killed leaves a half-written record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import shutil
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from filelock import FileLock, Timeout

from mechanisms.lab.bench import Bench, Report
from mechanisms.lab.configuration import as_dict, config_hash, override
from mechanisms.lab.loggers import make_logger
from mechanisms.lab.machine import device_name, peak_memory, thread_limit, versions
from mechanisms.lab.paper import Experiment, NotHere
from mechanisms.lab.records import Curve, Record, RecordError, read_record, record_path, write_atomic, write_record
from mechanisms.lab.registry import code_hash, load_paper
from mechanisms.lab.together import first_decides, rank, world_size


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


@dataclass
class Summary:
    """What became of all tasks."""

    done: int = 0
    there: int = 0
    missing: dict[str, list[str]] = field(default_factory=dict)
    failed: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False
    seconds: float = 0.0

    def __iadd__(self, other: Summary) -> Summary:
        self.done += other.done
        self.there += other.there
        self.seconds += other.seconds
        self.failed += other.failed
        self.interrupted |= other.interrupted
        for reason, names in other.missing.items():
            self.missing.setdefault(reason, []).extend(names)
        return self


@runtime_checkable
class Backend(Protocol):
    """Where tasks are computed; `width` of them at once."""

    width: int

    def submit(self, task: Task) -> Future[Result]:
        """Start a task."""
        ...

    def poll(self) -> None:
        """Called several times a second: pass on what running tasks have to say."""
        ...


@runtime_checkable
class Display(Protocol):
    """What shows progress; see `lab.progress`."""

    def begin(self, tasks: int) -> None:
        """A number of tasks is about to be carried out."""
        ...

    def progress(self, task: Task, step: int, total: int | None, numbers: dict[str, float]) -> None:
        """A task got further."""
        ...

    def end(self, task: Task, status: str, seconds: float) -> None:
        """A task is over: "done", "there", "not here" or "failed"."""
        ...


# --- from a request to tasks ----------------------------------------------------------------------------------------


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


# --- one task -------------------------------------------------------------------------------------------------------


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


# --- all tasks ------------------------------------------------------------------------------------------------------


def carry_out(
    tasks: Sequence[Task], results: Path, backend: Backend, display: Display, *, rerun: bool = False
) -> Summary:
    """Compute the tasks whose records are not there yet and write their records.

    A task that another process is computing is left for last, and skipped when its records have appeared by then.
    Ctrl-C keeps every finished run.

    Args:
        tasks: from `plan`.
        results: folder of the records.
        backend: where to compute.
        display: what shows progress.
        rerun: replace records that older code made.

    Raises:
        OSError: the folder of records cannot be written.
    """
    summary = Summary()
    clock = time.monotonic()
    first_decides(lambda: _prepare(tasks, results))
    display.begin(len(tasks))
    if world_size() > 1:
        _carry_out_together(tasks, results, backend, display, summary, rerun=rerun)
        summary.seconds = time.monotonic() - clock
        return summary
    todo, busy = deque(tasks), deque()
    running: dict[Future[Result], tuple[Task, contextlib.ExitStack, float]] = {}
    try:
        while todo or busy or running:
            while len(running) < backend.width and (todo or (busy and not running)):
                # A busy task blocks the driver only when nothing else is left to do.
                task, patience = (todo.popleft(), 0.0) if todo else (busy.popleft(), 0.5)
                if is_there(task, results, rerun=rerun):
                    summary.there += 1
                    display.end(task, "there", 0.0)
                    continue
                held = contextlib.ExitStack()
                try:
                    held.enter_context(_lock(task, results, patience))
                except Timeout:
                    busy.append(task)
                    backend.poll()
                    continue
                if is_there(task, results, rerun=rerun):  # done by another process since the first look
                    held.close()
                    summary.there += 1
                    display.end(task, "there", 0.0)
                    continue
                begun = time.monotonic()
                try:
                    running[backend.submit(task)] = task, held, begun
                except BaseException:
                    held.close()
                    raise
            finished, _ = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
            for future in finished:
                task, held, begun = running.pop(future)
                with held:
                    _settle(task, future, results, summary, display, time.monotonic() - begun)
            backend.poll()
    except KeyboardInterrupt:
        summary.interrupted = True
    finally:
        for _, held, _ in running.values():
            held.close()
    summary.seconds = time.monotonic() - clock
    return summary


def _carry_out_together(
    tasks: Sequence[Task], results: Path, backend: Backend, display: Display, summary: Summary, *, rerun: bool
) -> None:
    """Several processes train each run together (torchrun): rank 0 says which, holds the locks and writes."""
    for task in tasks:
        with contextlib.ExitStack() as held:

            def claim(task: Task = task, held: contextlib.ExitStack = held) -> bool:
                if is_there(task, results, rerun=rerun):
                    return False
                held.enter_context(_lock(task, results, patience=-1))
                return not is_there(task, results, rerun=rerun)

            if not first_decides(claim):
                summary.there += 1
                display.end(task, "there", 0.0)
                continue
            begun = time.monotonic()
            future = backend.submit(task)
            if rank() == 0:
                _settle(task, future, results, summary, display, time.monotonic() - begun)
            elif error := future.result().error:
                summary.failed.append((task.name, error))


def _settle(
    task: Task, future: Future[Result], results: Path, summary: Summary, display: Display, seconds: float
) -> None:
    """Write the records of a finished task, or note why there are none."""
    try:
        result = future.result()
    except Exception as error:  # a worker died: the first line of the pool's own words says how
        words = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        result = Result(error=f"the worker was lost ({words})")
    if result.missing:
        summary.missing.setdefault(result.missing, []).append(task.name)
        display.end(task, "not here", seconds)
    elif result.error:
        note = ""
        if result.trace:
            place = results / task.slug / ".errors" / f"{_file_name(task)}.txt"
            write_atomic(place, result.trace.encode())
            note = f" (see {place})"
        summary.failed.append((task.name, result.error + note))
        display.end(task, "failed", seconds)
    else:
        _write(result.records, results)
        summary.done += 1
        display.end(task, "done", seconds)


def _write(records: Sequence[Record], results: Path) -> None:
    """All records of a task or none: those of a block lie complete beside their places before the first is moved."""
    if len(records) == 1:
        write_record(records[0], results)
        return
    folder = results / records[0].slug
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".block.", suffix=".part", dir=folder) as staged:
        moves = [(write_record(record, Path(staged)), record.path(results)) for record in records]
        for _, place in moves:
            place.parent.mkdir(parents=True, exist_ok=True)
        for source, place in moves:
            os.replace(source, place)


def record_files(task: Task, results: Path) -> list[Path]:
    """Where a task's records lie, one file per seed."""
    return [
        record_path(results, task.slug, task.experiment, task.scale, task.config_hash, task.variant, seed)
        for seed in task.seeds
    ]


def is_there(task: Task, results: Path, *, rerun: bool = False) -> bool:
    """Whether all of a task's records are there and readable (and, with `rerun`, made by the present code)."""
    for path in record_files(task, results):
        try:
            record = read_record(path)
        except RecordError:
            return False
        if rerun and record.code != code_hash(task.slug):
            return False
    return True


def check_writable(results: Path) -> None:
    """Fail before the first run rather than after it.

    Raises:
        OSError: the folder cannot be made or written.
    """
    probe = results / ".locks" / f".probe.{os.getpid()}"
    write_atomic(probe, b"")
    probe.unlink(missing_ok=True)


def _prepare(tasks: Sequence[Task], results: Path) -> None:
    """See that records can be written, and take away what killed drivers left half-written more than a day ago."""
    check_writable(results)
    yesterday = time.time() - 24 * 3600
    for slug in {task.slug for task in tasks}:
        for path in (results / slug).rglob(".*.part"):
            with contextlib.suppress(OSError):  # another driver may be tidying up, too
                if path.stat().st_mtime < yesterday:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _file_name(task: Task) -> str:
    return f"{task.experiment}.{task.scale}.{task.config_hash}.{task.variant}.{task.seeds[0]}"


def _lock(task: Task, results: Path, patience: float) -> FileLock:
    lock = FileLock(results / ".locks" / task.slug / f"{_file_name(task)}.lock", timeout=patience)
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    return lock


def with_looks(tasks: Sequence[Task], looks: int) -> list[Task]:
    """The tasks, to be recorded as part of a procedure that looks at the data several times."""
    return [dataclasses.replace(task, looks=looks) for task in tasks]
