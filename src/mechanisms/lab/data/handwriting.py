"""MNIST: its IDX files, and the fixed binarised copy of density models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mechanisms.lab.data._places import check_file, find_files, one_of
from mechanisms.lab.data.files import hub_dataset
from mechanisms.lab.data.images import read_idx
from mechanisms.lab.data.splits import Split, Splits

SIDE = 28
PIXELS = SIDE * SIDE
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
AMAT = ("binarized_mnist_train.amat", "binarized_mnist_valid.amat", "binarized_mnist_test.amat")
HUB = "ylecun/mnist"
BLOCK = 2**23  # bytes of a text file that are looked at together
GET = (
    "put the four files of MNIST (train-images-idx3-ubyte.gz and so on, as torchvision's MNIST(download=True) fetches "
    f"them) into a folder mnist and set MECHANISMS_DATA to its parent; or read it from the Hugging Face hub, {HUB}"
)
GET_BINARISED = (
    "get binarized_mnist_train.amat, binarized_mnist_valid.amat and binarized_mnist_test.amat from "
    "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/, put them into a folder binarised-mnist and "
    "set MECHANISMS_DATA to its parent"
)


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """Examples without labels, for density models.

    Args:
        train, validation, test: (examples, ...) arrays.

    >>> Unlabelled(np.zeros((5, 2)), np.zeros((2, 2)), np.zeros((1, 2))).validation.shape
    (2, 2)
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def mnist(path: str | Path | None = None, *, hub: str = "", num_validation: int = 10_000) -> Splits:
    """MNIST: handwritten digits, 28 by 28 pixels, in the order of its files.

    Args:
        path: folder of the four IDX files, gzipped or not, or the folder above torchvision's `raw` or `MNIST/raw`;
            otherwise `$MECHANISMS_DATA/mnist` and `/usr/share/datasets/mnist` are looked through.
        hub: a name on the Hugging Face hub, "ylecun/mnist" for example, in place of a path.
        num_validation: so many training images, the last ones, become the validation split.

    Returns:
        `x` (examples, 28, 28) uint8 in [0, 255], `y` in {0, ..., 9}: 50,000, 10,000 and 10,000 examples.

    Raises:
        NotHere: it is in none of these places.
        ValueError: a file is damaged, or there are not that many training images.

    >>> from mechanisms.lab import NotHere
    >>> try:
    ...     mnist("nowhere")
    ... except NotHere as missing:
    ...     print(str(missing).split(";")[0])
    MNIST is not here: looked for train-images-idx3-ubyte.gz in nowhere, nowhere/raw, nowhere/MNIST/raw
    """
    one_of(path, hub)
    if hub:
        parts = [hub_dataset(hub, x="image", y="label", split=split) for split in ("train", "test")]
        arrays = [array for part in parts for array in (part.x, part.y)]
        source = hub
    else:
        files = find_mnist(path)
        for file in files:
            check_file(file)
        # Copies: what is read from a file cannot be written to, of which torch warns.
        arrays, source = [read_idx(file).copy() for file in files], str(files[0].parent)
    train, test = (
        _checked(f"{source}, {part}", arrays[place], arrays[place + 1]) for part, place in (("train", 0), ("test", 2))
    )
    middle = len(train) - num_validation
    if not 0 < middle <= len(train):
        raise ValueError(f"num_validation={num_validation}: it must be at least 0 and below {len(train)}")
    return Splits(train.take(slice(0, middle)), train.take(slice(middle, None)), test)


def find_mnist(path: str | Path | None = None) -> list[Path]:
    """The four files; see `mnist`.

    Raises:
        NotHere: they are in none of the places.
    """
    # The last form of the name is how the archive of its authors unpacks on some systems.
    names = [[f"{name}.gz", name, name.replace("-idx", ".idx")] for name in IDX]
    return find_files("MNIST", "mnist", path, names, GET, ["raw", "MNIST/raw"])


def binarised_mnist(path: str | Path | None = None) -> Unlabelled:
    """MNIST with pixels 0 and 1, in Larochelle's fixed copy, on which likelihoods of density models are compared.

    Args:
        path: folder of the three `.amat` files; otherwise `$MECHANISMS_DATA/binarised-mnist` and
            `/usr/share/datasets/binarised-mnist` are looked through.

    Returns:
        (examples, 28, 28) uint8 of 0 and 1: 50,000, 10,000 and 10,000 examples, without labels.

    Raises:
        NotHere: the files are in none of these places.
        ValueError: a file is damaged.

    >>> from mechanisms.lab import NotHere
    >>> try:
    ...     binarised_mnist("nowhere")
    ... except NotHere as missing:
    ...     print(str(missing).split(";")[0])
    binarised MNIST is not here: looked for binarized_mnist_train.amat in nowhere
    """
    files = find_files("binarised MNIST", "binarised-mnist", path, [[name] for name in AMAT], GET_BINARISED)
    return Unlabelled(*(_read_amat(file) for file in files))


def _checked(source: str, x: np.ndarray, y: np.ndarray) -> Split:
    if x.dtype != np.uint8 or x.shape[1:] != (SIDE, SIDE) or len(x) == 0:
        raise ValueError(f"{source}: images must be uint8 (examples, 28, 28), got {x.dtype} {x.shape}")
    if y.shape != (len(x),) or y.dtype.kind not in "iu" or y.min() < 0 or y.max() > 9:
        raise ValueError(f"{source}: labels must be {len(x)} integers from 0 to 9, got {y.dtype} {y.shape}")
    return Split(x, y.astype(np.int64))


def _read_amat(path: Path) -> np.ndarray:
    """Lines of 784 digits 0 or 1 with blanks between them, without making a Python object of any."""
    kinds = np.full(256, 3, np.uint8)
    for kind, symbols in enumerate((b" \t\r", b"01", b"\n")):
        kinds[np.frombuffer(symbols, np.uint8)] = kind
    images: list[np.ndarray] = []
    bytes_before = lines_before = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            content = np.frombuffer(block + file.readline(), np.uint8)  # whole lines
            kind = kinds[content]
            if kind.max(initial=0) == 3:
                place = int((kind == 3).argmax())
                shown = bytes([content[place]])
                raise ValueError(f"{path}: byte {bytes_before + place:,} is {shown!r}, expected 0, 1 and blanks only")
            digits, ends = kind == 1, np.flatnonzero(kind == 2)
            counted = np.cumsum(digits, dtype=np.int32)
            per_line = np.diff(np.concatenate([[0], counted[ends], counted[-1:]]))
            wrong = np.flatnonzero((per_line != PIXELS) & (per_line != 0))
            if len(wrong) or (digits[1:] & digits[:-1]).any():
                found = f"line {lines_before + wrong[0] + 1} has {per_line[wrong[0]]}" if len(wrong) else "digits touch"
                raise ValueError(f"{path}: every line must be {PIXELS} pixels with blanks between them, {found}")
            images.append((content[digits] - ord("0")).reshape(-1, SIDE, SIDE))
            bytes_before, lines_before = bytes_before + len(content), lines_before + len(ends)
    if not any(map(len, images)):
        raise ValueError(f"{path}: every line must be {PIXELS} pixels with blanks between them, it has none")
    return np.concatenate(images)
