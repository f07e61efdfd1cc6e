"""Arrays from files that users bring, and data sets of the Hugging Face hub."""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mechanisms._base.extras import require
from mechanisms.lab.data.splits import Split, Splits
from mechanisms.lab.paper import NotHere

SPLIT_NAMES = {"train": ("train", "tr"), "validation": ("validation", "valid", "val", "va"), "test": ("test", "te")}
LAYOUT = (
    "a .pt file holds {'train': {'x': ..., 'y': ..., 'group': ...}, 'valid': ..., 'test': ...}, a .npz file the arrays "
    "train_x, train_y, train_group, valid_x, ..., test_group; group may be left out"
)


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file; nothing in it is executed (no pickled objects).

    Raises:
        ValueError: missing, damaged, or with arrays of Python objects.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".npz") as file:
    ...     np.savez(file, x=np.arange(3))
    ...     file.flush()
    ...     read_arrays(file.name)
    {'x': array([0, 1, 2])}
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is a folder; give a .npz file" if path.is_dir() else f"there is no file {path}")
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError(f"{path} is a single array (.npy); give a .npz file of named arrays")
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is damaged or no .npz file ({str(error).splitlines()[0]})") from None
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{path} holds Python objects (or is no .npz file); they are not loaded, because loading them can run "
                "any code: store numbers or text"
            ) from None
        raise


def features_file(path: str | Path) -> Splits:
    """Pre-computed features in one file, `.pt` or `.npz`, as a body's embeddings are passed around.

    A `.pt` file (read with `weights_only=True`) holds `{"train": {"x": ..., "y": ..., "group": ...}, "valid": {...},
    "test": {...}}`; a `.npz` file holds `train_x`, `train_y`, `train_group`, `valid_x` and so on. Either may be written
    the other way; `validation` and `val` are understood, too. `group` may be missing.

    A group that is made of label and attribute (`group = E y + attribute`, E groups for each class, as for the four
    groups of Waterbirds) is taken apart again; any other group is taken as the attribute itself.

    Returns:
        `x` (examples, ...) float32, `y` (examples,) int64, `attribute` (examples,) int64 or None.

    Raises:
        NotHere: there is no such file.
        ValueError: another layout, lengths that differ, labels that are not integers; the message shows the layout.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".npz") as file:
    ...     parts = {f"{split}_{key}": np.arange(4) for split in ("train", "valid", "test") for key in ("x", "y")}
    ...     np.savez(file, **parts)
    ...     file.flush()
    ...     features_file(file.name).validation.y
    array([0, 1, 2, 3])
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise NotHere(f"there is no file of features at {path}; {LAYOUT}")
    if path.suffix.lower() == ".npz":
        content: Any = read_arrays(path)
    elif path.suffix.lower() in (".pt", ".pth"):
        content = _read_torch(path)
    else:
        raise ValueError(f"{path}: a file of features is a .pt or a .npz file")
    found = {}
    for split, names in SPLIT_NAMES.items():
        part = _part(content, names)
        if part is None:
            raise ValueError(f"{path} has no {split} split; it has {_keys(content)}; {LAYOUT}")
        found[split] = _arrays(path, split, part)
    groups = [part["group"] for part in found.values() if "group" in part]
    if groups and len(groups) < len(found):
        raise ValueError(f"{path}: some splits have groups and others have none; give all of them or none")
    per_class = _groups_per_class([(part["y"], part["group"]) for part in found.values()]) if groups else 0
    splits = {
        split: Split(part["x"], part["y"], attribute=part["group"] % per_class if per_class else part.get("group"))
        for split, part in found.items()
    }
    return Splits(**splits)


def _read_torch(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} cannot be read safely ({reason}); it must hold nothing but dictionaries of tensors: {LAYOUT}"
        ) from None


def _keys(content: Any) -> str:
    return ", ".join(map(str, list(content)[:12])) if isinstance(content, Mapping) else f"a {type(content).__name__}"


def _part(content: Any, names: tuple[str, ...]) -> Mapping[str, Any] | None:
    if not isinstance(content, Mapping):
        return None
    for name in names:
        if isinstance(content.get(name), Mapping):
            return content[name]
        flat = {key: content[f"{name}_{key}"] for key in ("x", "y", "group") if f"{name}_{key}" in content}
        if flat:
            return flat
    return None


def _arrays(path: Path, split: str, part: Mapping[str, Any]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for key in ("x", "y", "group"):
        if key not in part:
            if key == "group":
                continue
            raise ValueError(f"{path}: the {split} split has no {key!r}; it has {_keys(part)}; {LAYOUT}")
        try:
            array = np.asarray(part[key])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {key!r} of the {split} split is no array ({error})") from None
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{path}: {key!r} of the {split} split must be numbers, got {array.dtype}")
        if key != "x":
            integers = array.astype(np.int64) if np.isfinite(array).all() else array
            if array.ndim != 1 or not np.array_equal(integers, array):
                raise ValueError(
                    f"{path}: {key!r} of the {split} split must be whole numbers of shape (examples,), "
                    f"got {array.dtype} {array.shape}"
                )
            array = integers
        arrays[key] = array.astype(np.float32) if key == "x" else array
    lengths = {key: array.shape[0] if array.ndim else 0 for key, array in arrays.items()}
    if len(set(lengths.values())) > 1 or not all(lengths.values()):
        raise ValueError(f"{path}: the arrays of the {split} split must be equally long and not empty, got {lengths}")
    if not np.isfinite(arrays["x"]).all():
        raise ValueError(f"{path}: 'x' of the {split} split holds NaN or infinite values")
    return arrays


def _groups_per_class(pairs: list[tuple[np.ndarray, np.ndarray]]) -> int:
    """E when all groups are `E y + attribute` with at least two attributes, else 0."""
    y = np.concatenate([labels for labels, _ in pairs])
    group = np.concatenate([groups for _, groups in pairs])
    if y.min() < 0 or group.min() < 0:
        return 0
    per_class, rest = divmod(int(group.max()) + 1, int(y.max()) + 1)
    return per_class if not rest and per_class > 1 and np.array_equal(group // per_class, y) else 0


def hub_dataset(
    name: str,
    *,
    x: str,
    y: str,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
) -> Split:
    """One split of a data set of the Hugging Face hub, by name; needs the extra `hub` and, the first time, a network.

    Args:
        name: as on the hub, "owner/name", or a local folder in one of the library's formats.
        x, y: the columns of inputs and labels.
        split: "train", "test", or a slice as in "train[:1000]".
        config: which configuration, for data sets that have several.
        revision: commit or tag; give a commit to get the same data next year.

    Returns:
        `x` (examples, ...) numbers (images as uint8, height by width by channels) or text; `y` (examples,).

    Raises:
        NotHere: the hub cannot be reached or has no such data set.
        ValueError: a name that cannot be one, no such column, split or configuration, or inputs of different shapes.

    >>> try:
    ...     hub_dataset("/nowhere/at/all", x="image", y="label")
    ... except NotHere as missing:
    ...     print(str(missing).split(" (")[0])
    /nowhere/at/all could not be fetched from the Hugging Face hub
    """
    datasets = require("datasets", "hub")
    try:
        table = datasets.load_dataset(name, config, split=split, revision=revision)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotHere(
            f"{name} could not be fetched from the Hugging Face hub ({reason}); fetch it once on a machine with a "
            "network and set HF_HOME to that cache, or give the path of a local folder"
        ) from None
    missing = [column for column in (x, y) if column not in table.column_names]
    if missing:
        raise ValueError(f"{name} has no column {missing[0]!r}; it has {', '.join(table.column_names)}")
    inputs = [np.asarray(item) for item in table[x]]
    shapes = {item.shape for item in inputs}
    if len(shapes) > 1:
        shown = ", ".join(map(str, sorted(shapes)[:3]))
        raise ValueError(f"{name}: the inputs in {x!r} have different shapes ({shown}, ...); resize them first")
    return Split(np.stack(inputs) if inputs else np.empty(0), np.asarray(table[y]))
