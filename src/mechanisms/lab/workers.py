"""Where tasks are computed: in this process, in local worker processes, on a Ray cluster, or under SLURM."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
import urllib.parse
from collections import deque
from collections.abc import Generator, Mapping
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mechanisms._base.extras import require
from mechanisms.lab.running import Backend, Display
from mechanisms.lab.tasks import Result, Task, compute


class Here:
    """Tasks run in this process, one after the other."""

    width = 1

    def __init__(self, display: Display) -> None:
        self._display = display

    def submit(self, task: Task) -> Future[Result]:
        """Run the task now."""

        def report(step: int, total: int | None, numbers: Mapping[str, float]) -> None:
            self._display.progress(task, step, total, dict(numbers))

        future: Future[Result] = Future()
        future.set_result(compute(task, report))
        return future

    def poll(self) -> None:
        """The display is told directly."""


class Processes:
    """Tasks run in local worker processes that are kept between tasks; they end with this process, however it ends.

    A worker that dies (out of memory, say) takes its pool along. The tasks that were under way are then tried once
    more, one at a time in a pool of one worker, so that only the one that breaks this pool as well is lost.
    """

    def __init__(self, jobs: int, display: Display) -> None:
        self.width = jobs
        self._display = display
        self._names: dict[str, Task] = {}
        self._context = get_context("spawn")
        # Workers hold the reading end: it closes when this process closes the writing end or dies.
        self._reader, self._alive = self._context.Pipe(duplex=False)
        self._pool = self._make_pool(jobs)
        self._lone: _Pool | None = None
        self._trial: Future[Result] | None = None
        self._suspects: deque[tuple[Task, Future[Result]]] = deque()

    def _make_pool(self, jobs: int) -> _Pool:
        # A worker killed while it wrote may have left the queue locked: each pool has its own.
        news = self._context.SimpleQueue()
        arguments = (self._reader, news)
        return _Pool(ProcessPoolExecutor(jobs, self._context, initializer=_start_worker, initargs=arguments), news)

    def submit(self, task: Task) -> Future[Result]:
        """Queue the task for the next free worker; a pool that lost one is replaced."""
        self._names[task.name] = task
        try:
            started = self._pool.submit(task)
        except BrokenExecutor:
            self._pool = self._make_pool(self.width)
            started = self._pool.submit(task)
        promised: Future[Result] = Future()

        def over(future: Future[Result]) -> None:
            if not future.cancelled() and isinstance(future.exception(), BrokenExecutor):
                self._suspects.append((task, promised))
            else:
                _pass_on(future, promised)

        started.add_done_callback(over)
        return promised

    def poll(self) -> None:
        """Hand the workers' progress to the display, and try the next task that was there when a worker died."""
        for pool in (self._pool, self._lone):
            while pool is not None and not pool.news.empty():
                name, step, total, numbers = pool.news.get()
                self._display.progress(self._names[name], step, total, numbers)
        if self._suspects and (self._trial is None or self._trial.done()):
            task, promised = self._suspects.popleft()
            self._lone = self._lone or self._make_pool(1)
            try:
                self._trial = self._lone.submit(task)
            except BrokenExecutor:  # by the task before
                self._lone = self._make_pool(1)
                self._trial = self._lone.submit(task)
            self._trial.add_done_callback(lambda future: _pass_on(future, promised))

    def close(self) -> None:
        """End the workers at once."""
        self._alive.close()
        for pool in (self._pool, self._lone):
            if pool is not None:
                pool.executor.shutdown(wait=True, cancel_futures=True)
        self._reader.close()


@dataclass(frozen=True)
class _Pool:
    """Worker processes and the queue by which they tell their progress."""

    executor: ProcessPoolExecutor
    news: Any

    def submit(self, task: Task) -> Future[Result]:
        """Queue a task. Workers start with Ctrl-C held back: before `_start_worker` they would print a traceback."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self.executor.submit(_work, task)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pass_on(future: Future[Result], promised: Future[Result]) -> None:
    if future.cancelled():
        promised.cancel()
    elif (error := future.exception()) is not None:
        promised.set_exception(error)
    else:
        promised.set_result(future.result())


_news_queue: Any = None


def _start_worker(reader: Connection, news: Any) -> None:
    """Set up a worker: Ctrl-C is the driver's business, and the worker ends when the driver does."""
    global _news_queue
    _news_queue = news
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            reader.recv()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(task: Task) -> Result:
    return compute(task, lambda step, total, numbers: _news_queue.put((task.name, step, total, dict(numbers))))


class Futures:
    """Tasks that something else runs and whose results are waited for in threads (SLURM)."""

    width = 256

    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self._threads = ThreadPoolExecutor(self.width)
        self._jobs: list[Any] = []

    def submit(self, task: Task) -> Future[Result]:
        """Hand the task to the scheduler."""
        job = self._executor.submit(compute, task)
        self._jobs.append(job)
        return self._threads.submit(job.result)

    def poll(self) -> None:
        """Progress inside a run does not travel."""

    def close(self) -> None:
        """Cancel what has not finished."""
        for job in self._jobs:
            if not job.done():
                job.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)


class Ray:
    """Tasks run on a Ray cluster; each asks for its threads, and for a GPU unless its device is the CPU.

    With the device "auto" a task asks for a GPU where the cluster has any.
    """

    def __init__(self, address: str) -> None:
        ray = require("ray", "cluster")
        self._ray = ray
        self._started = not ray.is_initialized()
        if self._started:
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            where = {} if address == "local" else {"address": address}
            _check_port(address)
            try:
                ray.init(**where, include_dashboard=False, log_to_driver=False, logging_level="error")
            except (OSError, RuntimeError, ValueError) as error:
                raise ValueError(f"--ray {address}: {str(error).strip().splitlines()[0]}") from None
        resources = ray.cluster_resources()
        self.width = 4 * max(1, int(resources.get("CPU", 1)))
        self._gpus = resources.get("GPU", 0) > 0

    def submit(self, task: Task) -> Future[Result]:
        """Hand the task to the cluster."""
        gpus = int(self._gpus if task.device == "auto" else task.device != "cpu")
        remote = self._ray.remote(num_cpus=task.threads, num_gpus=gpus)(compute)
        return remote.remote(task).future()

    def poll(self) -> None:
        """Progress inside a run does not travel."""

    def close(self) -> None:
        """Leave the cluster, or stop the embedded one."""
        if self._started:
            self._ray.shutdown()


def _check_port(address: str) -> None:
    """Ray tries a wrong `host:port` for minutes; see within seconds whether anything answers there.

    Raises:
        ValueError: nothing does.
    """
    parts = urllib.parse.urlsplit(address if "://" in address else f"//{address}")
    try:
        if parts.hostname and parts.port:
            socket.create_connection((parts.hostname, parts.port), timeout=5).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--ray {address}: nothing answers there ({reason}); 'local' starts a cluster here") from None


@contextlib.contextmanager
def local(jobs: int, display: Display) -> Generator[Backend]:
    """This process for one job at a time, else worker processes.

    Raises:
        ValueError: fewer than one job.
    """
    if jobs < 1:
        raise ValueError(f"--jobs {jobs}: at least one is needed")
    if jobs == 1:
        yield Here(display)
    else:
        with contextlib.closing(Processes(jobs, display)) as processes:
            yield processes


@contextlib.contextmanager
def on_ray(address: str) -> Generator[Backend]:
    """A Ray cluster at `address`, or an embedded one ("local")."""
    with contextlib.closing(Ray(address)) as backend:
        yield backend


# submitit's parameters that mean the same on every kind of cluster, and the prefixes of the others.
SHARED = (
    *("cluster", "name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node"),
    "stderr_to_stdout",
)
PREFIXES = ("slurm_", "local_", "debug_")


def slurm_options(parameters: Mapping[str, str]) -> dict[str, Any]:
    """submitit's parameters from words: whole numbers as such, SLURM's own names with their prefix.

    >>> slurm_options({"partition": "gpu", "timeout_min": "60", "slurm_qos": "high"})
    {'slurm_partition': 'gpu', 'timeout_min': 60, 'slurm_qos': 'high'}
    """
    return {
        key if key in SHARED or key.startswith(PREFIXES) else f"slurm_{key}": int(text) if text.isdigit() else text
        for key, text in parameters.items()
    }


@contextlib.contextmanager
def on_slurm(parameters: Mapping[str, str], folder: Path) -> Generator[Backend]:
    """SLURM through submitit; `cluster=local` or `cluster=debug` needs no SLURM.

    Args:
        parameters: submitit's own, for example `timeout_min=60 gpus_per_node=1`; SLURM's may be written without their
            prefix (`partition=gpu` is `slurm_partition=gpu`).
        folder: of submitit's files.

    Raises:
        ValueError: submitit does not know a parameter, or SLURM is not here.
    """
    submitit = require("submitit", "cluster")
    options = slurm_options(parameters)
    cluster = options.pop("cluster", "slurm")
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise ValueError("--slurm: there is no `sbatch` on this machine's PATH; cluster=local does without SLURM")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**{"name": "mech", "timeout_min": 60, **options})
    except (NameError, ValueError, RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"--slurm: {str(error).splitlines()[0]}") from None
    with contextlib.closing(Futures(executor)) as backend:
        yield backend
