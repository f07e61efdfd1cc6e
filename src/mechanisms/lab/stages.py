"""Storage of cached stages: nested values in one safetensors file, written atomically, locked across processes."""

import contextlib
import json
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TypeVar

from mechanisms.lab.records import write_atomic
from mechanisms.lab.together import first_decides

T = TypeVar("T")


@contextlib.contextmanager
def private_lock(path: Path, timeout: float = -1) -> Generator[None]:
    """Hold the lock file `path`; its folder is made readable by its owner alone if it is missing.

    Raises:
        filelock.Timeout: another process holds it for longer than `timeout` seconds (-1 waits for ever).
    """
    from filelock import FileLock

    private_folder(path.parent)
    with FileLock(path, timeout=timeout, mode=0o600):
        yield


def private_folder(folder: Path) -> None:
    """Make a folder and those above it, readable by their owner alone as far as they are missing."""
    for missing in reversed([place for place in (folder, *folder.parents) if not place.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)  # mkdir(parents=True) gives the mode to the last one only


def load_or_compute(path: Path, function: Callable[[], T]) -> tuple[T, float | None]:
    """The stored value at `path`, or that of `function`, stored there.

    Processes that train together compute it together; rank 0 alone locks, reads and stores.

    Returns:
        The value, and the seconds it took (`None` when it was there). What is returned after computing is what a
        reader will load, so the run that computes a stage and those that load it see the same bits.
    """
    if (stored := first_decides(lambda: load(path))) is not None:
        return stored[0], None
    with contextlib.ExitStack() as held:
        first_decides(lambda: held.enter_context(private_lock(path.with_suffix(".lock"))))
        if (stored := first_decides(lambda: load(path))) is not None:
            return stored[0], None
        started = time.perf_counter()
        value = function()
        seconds = time.perf_counter() - started
        return first_decides(lambda: _stored(path, value)), seconds


def _stored(path: Path, value: T) -> T:
    save(path, value)
    stored = load(path)
    return stored[0] if stored is not None else value


def save(path: Path, value: Any) -> None:
    """Store a nested value.

    Raises:
        TypeError: a leaf is not a tensor, array, number, text or None.
    """
    import safetensors.torch

    tensors: dict[str, Any] = {}
    structure = _pack(value, tensors)
    content = safetensors.torch.save(tensors, metadata={"structure": json.dumps(structure)})
    private_folder(path.parent)
    write_atomic(path, content, private=True)


def load(path: Path) -> tuple[Any] | None:
    """The stored value in a tuple of one, or None when it is missing or unreadable (it is then computed anew)."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            structure = json.loads(file.metadata()["structure"])
            return (_unpack(structure, {name: file.get_tensor(name) for name in file.keys()}),)  # noqa: SIM118
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError):
        return None


def _pack(value: Any, tensors: dict[str, Any]) -> list:
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor | np.ndarray):
        name = str(len(tensors))
        array = isinstance(value, np.ndarray)
        if array and value.dtype.kind not in "biuf":
            raise TypeError(f"a stage returned an array of {value.dtype}; only numbers and booleans can be stored")
        tensors[name] = (torch.from_numpy(np.array(value)) if array else value.detach().cpu()).contiguous().clone()
        return ["array" if array else "tensor", name]
    if value is None or isinstance(value, bool | int | float | str):
        return ["plain", value]
    if isinstance(value, np.generic):
        return ["plain", value.item()]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a stage returned a dictionary with keys that are not text")
        return ["dict", {key: _pack(item, tensors) for key, item in value.items()}]
    if isinstance(value, list | tuple):
        return ["tuple" if isinstance(value, tuple) else "list", [_pack(item, tensors) for item in value]]
    raise TypeError(
        f"a stage returned a {type(value).__name__}; return tensors, arrays, numbers, text and None in dictionaries, "
        "lists and tuples"
    )


def _unpack(structure: list, tensors: dict[str, Any]) -> Any:
    kind, content = structure
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content.items()}
    if kind in ("list", "tuple"):
        items = [_unpack(item, tensors) for item in content]
        return tuple(items) if kind == "tuple" else items
    return content
