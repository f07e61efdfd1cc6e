"""Writing files whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Generator
from io import BufferedWriter
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path, *, private: bool = False) -> Generator[BufferedWriter]:
    """A file to write to that takes its place at `path` when the block ends without an error, and vanishes otherwise.

    Args:
        path: its folder must be there.
        private: readable by its owner alone (caches); otherwise as the user's mask says.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with whole_file(Path(folder) / "text") as file:
    ...         _ = file.write(b"all of it")
    ...     [entry.name for entry in Path(folder).iterdir()]
    ['text']
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not private:
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
