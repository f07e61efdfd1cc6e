"""What a person sees while runs go on: a bar for all runs, and one for each run with its step, loss and time left."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from mechanisms.lab.tasks import Task


class Bars:
    """Progress bars on a terminal; use it as a context."""

    def __init__(self, console: Console, title: str) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            transient=True,
        )
        self._title = title
        self._all = self._progress.add_task(title, total=0, numbers="")
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, tasks: int) -> None:
        """More tasks are about to be carried out."""
        self._progress.update(self._all, total=(self._progress.tasks[0].total or 0) + tasks)

    def progress(self, task: Task, step: int, total: int | None, numbers: dict[str, float]) -> None:
        """Move a run's bar."""
        if task.name not in self._bars:
            self._bars[task.name] = self._progress.add_task(f"  {task.name}", total=total, numbers="")
        text = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self._progress.update(self._bars[task.name], completed=step, total=total, numbers=text)

    def end(self, task: Task, status: str, seconds: float) -> None:
        """Take a run's bar away and move the bar of all."""
        if (bar := self._bars.pop(task.name, None)) is not None:
            self._progress.remove_task(bar)
        self._progress.advance(self._all)
        if status in ("failed", "not here"):
            self._progress.console.print(f"[yellow]{status}[/] {task.name}")


class Lines:
    """A line now and then, where there is no terminal (logs, CI)."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._over = self._total = 0
        self._last = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def begin(self, tasks: int) -> None:
        """More tasks are about to be carried out."""
        self._total += tasks

    def progress(self, task: Task, step: int, total: int | None, numbers: dict[str, float]) -> None:
        """Runs are not followed inside."""

    def end(self, task: Task, status: str, seconds: float) -> None:
        """Count, and say so every few seconds, at every failure and at the end."""
        self._over += 1
        now = time.monotonic()
        if status in ("failed", "not here") or now - self._last > 5 or self._over == self._total:
            self._last = now
            self._console.print(f"{self._title}: {self._over}/{self._total}, {task.name} {status}", markup=False)


class Silent:
    """No progress at all."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def begin(self, tasks: int) -> None:
        """Nothing is shown."""

    def progress(self, task: Task, step: int, total: int | None, numbers: dict[str, float]) -> None:
        """Nothing is shown."""

    def end(self, task: Task, status: str, seconds: float) -> None:
        """Nothing is shown."""


def show(console: Console, title: str) -> Bars | Lines:
    """Bars on a terminal, lines elsewhere."""
    return Bars(console, title) if console.is_terminal else Lines(console, title)
