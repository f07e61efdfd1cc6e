"""Runs: the driver, from tasks to records on disk.

Locks and files belong to the driver alone, so a run is done once whoever asks for it, and nothing that is killed leaves
a half-written record.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from filelock import FileLock, Timeout

from mechanisms.lab.records import Record, RecordError, read_record, record_path, write_atomic, write_record
from mechanisms.lab.registry import code_hash
from mechanisms.lab.tasks import Result, Task
from mechanisms.lab.together import first_decides, rank, world_size


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
