"""CIFAR-10 and CIFAR-100: the binary version of their authors, a .npz file, or the Hugging Face hub.

The authors also distribute a "python version". It is pickled, and reading a pickle can run any code, so it is not read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mechanisms.lab.data.files import hub_dataset, read_arrays
from mechanisms.lab.data.splits import Split, Splits
from mechanisms.lab.folders import data_folders
from mechanisms.lab.paper import NotHere

SIZE = 32
PIXELS = 3 * SIZE * SIZE
FILES = {
    "cifar-10": ([f"data_batch_{number}.bin" for number in range(1, 6)], "test_batch.bin"),
    "cifar-100": (["train.bin"], "test.bin"),
}
INNER = {"cifar-10": "cifar-10-batches-bin", "cifar-100": "cifar-100-binary"}
PICKLED = {"cifar-10": "data_batch_1", "cifar-100": "train"}
HUB = {"cifar-10": "uoft-cs/cifar10", "cifar-100": "uoft-cs/cifar100"}
CLASSES = {"cifar-10": 10, "cifar-100": 100}


def cifar10(path: str | Path | None = None, *, hub: str = "", num_validation: int = 0) -> Splits:
    """CIFAR-10: photographs of 32 by 32 pixels, ten classes.

    Args:
        path: folder of the binary version's files (`data_batch_1.bin`, ..., `test_batch.bin`) or the folder above it,
            or a `.npz` file with `train_x`, `train_y`, `test_x`, `test_y`; otherwise `$MECHANISMS_DATA/cifar-10` and
            `/usr/share/datasets/cifar-10` are looked through.
        hub: a name on the Hugging Face hub, "uoft-cs/cifar10" for example, in place of a path.
        num_validation: so many training images, the last ones, become the validation split.

    Returns:
        `x` (examples, 32, 32, 3) uint8 in [0, 255], `y` in {0, ..., 9}: 50,000 training and 10,000 test images.

    Raises:
        NotHere: it is in none of these places.
        ValueError: a file is damaged.

    >>> try:
    ...     cifar10("nowhere")
    ... except NotHere as missing:
    ...     print(str(missing).split(";")[0])
    cifar-10 is not here: looked for data_batch_1.bin in nowhere, nowhere/cifar-10-batches-bin
    """
    return _cifar("cifar-10", path, hub, "label", num_validation)


def cifar100(path: str | Path | None = None, *, hub: str = "", num_validation: int = 0) -> Splits:
    """CIFAR-100: photographs of 32 by 32 pixels, a hundred classes (the fine labels).

    Args:
        path: folder of the binary version's files (`train.bin`, `test.bin`) or the folder above it, or a `.npz` file;
            see `cifar10`.
        hub: a name on the Hugging Face hub, "uoft-cs/cifar100" for example, in place of a path.
        num_validation: so many training images, the last ones, become the validation split.

    Returns:
        `x` (examples, 32, 32, 3) uint8 in [0, 255], `y` in {0, ..., 99}: 50,000 training and 10,000 test images.

    Raises:
        NotHere: it is in none of these places.
        ValueError: a file is damaged.

    >>> try:
    ...     cifar100("nowhere")
    ... except NotHere as missing:
    ...     print(str(missing).split(";")[0])
    cifar-100 is not here: looked for train.bin in nowhere, nowhere/cifar-100-binary
    """
    return _cifar("cifar-100", path, hub, "fine_label", num_validation)


def read_cifar(path: str | Path, label_bytes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Read a file of the binary version: records of label bytes and 3,072 pixels, red, green, blue, each row by row.

    Args:
        path: of the file.
        label_bytes: before the pixels of each image: 1 for CIFAR-10; 2 for CIFAR-100 (coarse, then fine label), of
            which the last counts.

    Returns:
        Images (examples, 32, 32, 3) uint8 and labels (examples,) int64.

    Raises:
        ValueError: the file is empty or no whole number of records.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".bin") as file:
    ...     _ = file.write(bytes([7]) + bytes(3072))
    ...     file.flush()
    ...     read_cifar(file.name)[1]
    array([7])
    """
    content = np.fromfile(path, np.uint8)
    record = label_bytes + PIXELS
    if content.size == 0 or content.size % record:
        raise ValueError(
            f"{path} has {content.size:,} bytes, expected a whole number of records of {record:,}: it is cut short, or "
            "no file of the binary version"
        )
    rows = content.reshape(-1, record)
    images = rows[:, label_bytes:].reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), rows[:, label_bytes - 1].astype(np.int64)


def _cifar(name: str, path: str | Path | None, hub: str, label: str, num_validation: int) -> Splits:
    if path is not None and hub:
        raise ValueError(f"path={str(path)!r} and hub={hub!r}: give one of them")
    if hub:
        parts = {split: hub_dataset(hub, x="img", y=label, split=split) for split in ("train", "test")}
        arrays = {split: (np.asarray(part.x), np.asarray(part.y)) for split, part in parts.items()}
        source = hub
    elif path is not None and Path(path).suffix.lower() == ".npz":
        arrays, source = _npz(name, Path(path).expanduser()), str(path)
    else:
        folder = find_cifar(name, path)
        label_bytes = 1 if name == "cifar-10" else 2
        train, test = FILES[name]
        images, labels = zip(*(read_cifar(folder / file, label_bytes) for file in train), strict=True)
        arrays = {
            "train": (np.concatenate(images), np.concatenate(labels)),
            "test": read_cifar(folder / test, label_bytes),
        }
        source = str(folder)
    splits = {split: _checked(name, f"{source}, {split}", *pair) for split, pair in arrays.items()}
    train_split, middle = splits["train"], len(splits["train"]) - num_validation
    if not 0 < middle <= len(train_split):
        raise ValueError(f"num_validation={num_validation}: it must be at least 0 and below {len(train_split)}")
    return Splits(train_split.take(slice(0, middle)), train_split.take(slice(middle, None)), splits["test"])


def find_cifar(name: str, path: str | Path | None = None) -> Path:
    """The folder with the binary version of "cifar-10" or "cifar-100"; see `cifar10`.

    Raises:
        NotHere: it is in none of the places.
    """
    given = [Path(path).expanduser()] if path is not None else data_folders(name)
    folders = [place for folder in given for place in (folder, folder / INNER[name])]
    train, test = FILES[name]
    for folder in folders:
        if all((folder / file).is_file() for file in (*train, test)):
            return folder
    pickled = [place for folder in given for place in folder.glob(f"*/{PICKLED[name]}")]
    pickled += [folder / PICKLED[name] for folder in given if (folder / PICKLED[name]).is_file()]
    found = f" ({pickled[0].parent} is the python version, which is pickled and therefore not read)" if pickled else ""
    looked = ", ".join(map(str, folders))
    raise NotHere(
        f"{name} is not here: looked for {train[0]} in {looked}{found}; get the binary version "
        f"({name}-binary.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html), unpack it into a folder {name} and "
        f"set MECHANISMS_DATA to its parent; or read it from the Hugging Face hub, {HUB[name]}"
    )


def _npz(name: str, path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    if not path.is_file():
        raise NotHere(f"{name} is not here: there is no file {path}; it would hold train_x, train_y, test_x, test_y")
    arrays = read_arrays(path)
    needed = [f"{split}_{key}" for split in ("train", "test") for key in ("x", "y")]
    if missing := [key for key in needed if key not in arrays]:
        raise ValueError(f"{path} has no array {missing[0]!r}; it must hold {', '.join(needed)}")
    return {split: (arrays[f"{split}_x"], arrays[f"{split}_y"]) for split in ("train", "test")}


def _checked(name: str, source: str, x: np.ndarray, y: np.ndarray) -> Split:
    if x.dtype != np.uint8 or x.shape[1:] != (SIZE, SIZE, 3) or len(x) == 0:
        raise ValueError(f"{source}: images must be uint8 (examples, 32, 32, 3), got {x.dtype} {x.shape}")
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise ValueError(f"{source}: labels must be integers of shape ({len(x)},), got {y.dtype} {y.shape}")
    if y.min() < 0 or y.max() >= CLASSES[name]:
        raise ValueError(
            f"{source}: labels of {name} lie between 0 and {CLASSES[name] - 1}, found {y.min()} to {y.max()}: "
            "another data set, or a damaged file"
        )
    return Split(x, y.astype(np.int64))
