"""A progress bar that shows only when something takes more than two seconds, and only on a terminal."""

import io
import sys
import time
from typing import Any

PATIENCE = 2.0


class LateBar:
    """Called with (done, in all); writes one line that it keeps replacing, and wipes it at the end.

    Args:
        what: what is being done.
        show: whether to write; None is "where standard error is a terminal".

    >>> LateBar("fitting", show=False)(1, 10)
    """

    def __init__(self, what: str, *, show: bool | None = None, stream: io.TextIOBase | None = None) -> None:
        self._what = what
        self._stream: Any = sys.stderr if stream is None else stream
        self._shows = self._stream.isatty() if show is None else show
        self._begin = time.monotonic()
        self._last = self._begin
        self._width = 0

    def __call__(self, done: int, total: int) -> None:
        """So many of so many are done."""
        now = time.monotonic()
        passed = now - self._begin
        if not self._shows or passed < PATIENCE or (now - self._last < 0.2 and done < total):
            return
        self._last = now
        left = passed * (total - done) / max(1, done)
        line = f"{self._what}: {done} of {total}, {left:.0f} s left" if done < total else ""
        self._stream.write("\r" + line.ljust(self._width) + ("\r" if not line else ""))
        self._stream.flush()
        self._width = len(line)
