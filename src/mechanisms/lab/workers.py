"""Where tasks are computed: in this process, in local worker processes, on a Ray cluster, or under SLURM."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Generator, Mapping
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mechanisms._base.extras import require
from mechanisms.lab.running import Backend, Display, Result, Task, compute


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
    """Tasks run in local worker processes that are kept between tasks; they end with this process, however it ends."""

    def __init__(self, jobs: int, display: Display) -> None:
        context = get_context("spawn")
        self.width = jobs
        self._display = display
        self._names: dict[str, Task] = {}
        self._news = context.SimpleQueue()
        # Workers hold the reading end: it closes when this process closes the writing end or dies.
        reader, self._alive = context.Pipe(duplex=False)
        self._reader = reader
        self._context = context
        self._pool = self._make_pool()

    def _make_pool(self) -> ProcessPoolExecutor:
        arguments = (self._reader, self._news)
        return ProcessPoolExecutor(self.width, self._context, initializer=_start_worker, initargs=arguments)

    def submit(self, task: Task) -> Future[Result]:
        """Queue the task for the next free worker; a pool that lost one (out of memory, say) is replaced."""
        self._names[task.name] = task
        try:
            return self._pool.submit(_work, task)
        except BrokenExecutor:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = self._make_pool()
            return self._pool.submit(_work, task)

    def poll(self) -> None:
        """Hand the workers' progress to the display."""
        while not self._news.empty():
            name, step, total, numbers = self._news.get()
            self._display.progress(self._names[name], step, total, numbers)

    def close(self) -> None:
        """End the workers at once."""
        self._alive.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._reader.close()


_news_queue: Any = None


def _start_worker(reader: Connection, news: Any) -> None:
    """Set up a worker: Ctrl-C is the driver's business, and the worker ends when the driver does."""
    global _news_queue
    _news_queue = news
    signal.signal(signal.SIGINT, signal.SIG_IGN)

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
    """Tasks run on a Ray cluster; each asks for its threads, and for a GPU when its device is one."""

    def __init__(self, address: str) -> None:
        ray = require("ray", "cluster")
        self._ray = ray
        self._started = not ray.is_initialized()
        if self._started:
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            where = {} if address == "local" else {"address": address}
            ray.init(**where, include_dashboard=False, log_to_driver=False, logging_level="error")
        self.width = 4 * max(1, int(ray.cluster_resources().get("CPU", 1)))

    def submit(self, task: Task) -> Future[Result]:
        """Hand the task to the cluster."""
        gpus = 1 if task.device not in ("cpu", "auto") else 0
        remote = self._ray.remote(num_cpus=task.threads, num_gpus=gpus)(compute)
        return remote.remote(task).future()

    def poll(self) -> None:
        """Progress inside a run does not travel."""

    def close(self) -> None:
        """Leave the cluster, or stop the embedded one."""
        if self._started:
            self._ray.shutdown()


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


@contextlib.contextmanager
def on_slurm(parameters: Mapping[str, str], folder: Path) -> Generator[Backend]:
    """SLURM through submitit, with its own `parameters` (`slurm_partition=gpu`); `cluster=local` needs no SLURM.

    Raises:
        ValueError: submitit does not know a parameter.
    """
    submitit = require("submitit", "cluster")
    options: dict[str, Any] = {key: int(text) if text.isdigit() else text for key, text in parameters.items()}
    cluster = options.pop("cluster", None)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**{"name": "mech", "timeout_min": 60, **options})
    except (NameError, ValueError, RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"--slurm: {str(error).splitlines()[0]}") from None
    with contextlib.closing(Futures(executor)) as backend:
        yield backend
