"""Writing files whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Generator
from io import BufferedWriter
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path, *, private: bool = False) -> Generator[BufferedWriter]:
    """A file to write to that takes its place at `path` when the block ends without an error, and vanishes otherwise.

    Args:
        path: its folder must be there.
        private: readable by its owner alone (caches); otherwise as the user's mask says.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with whole_file(Path(folder) / "text") as file:
    ...         _ = file.write(b"all of it")
    ...     [entry.name for entry in Path(folder).iterdir()]
    ['text']
    """
    part = path.parent / f".{path.name[:40]}.{secrets.token_hex(8)}.part"
    mode = 0o600 if private else 0o666  # less what the user's mask takes away
    file = open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
