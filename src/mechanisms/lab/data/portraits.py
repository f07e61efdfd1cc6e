"""CelebA: aligned portraits with forty yes-no attributes, from the folder their authors distribute."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mechanisms.lab.data.splits import Split, Splits
from mechanisms.lab.folders import data_folders
from mechanisms.lab.paper import NotHere

IMAGES, ATTRIBUTES, PARTITION = "img_align_celeba", "list_attr_celeba", "list_eval_partition"
PARTS = ("train", "validation", "test")  # 0, 1, 2 in the list of the partition
GET = (
    f"get {IMAGES}, {ATTRIBUTES}.txt and {PARTITION}.txt from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, put "
    "them into a folder celeba and set MECHANISMS_DATA to its parent"
)


def celeba(path: str | Path | None = None, *, target: str = "Blond_Hair", attribute: str = "Male") -> Splits:
    """CelebA as a question about one attribute while another one is spuriously related to it.

    Args:
        path: folder with `img_align_celeba/*.jpg`, `list_attr_celeba.txt` and `list_eval_partition.txt` (the lists may
            lie in `Anno` and `Eval`, as they are distributed, or be Kaggle's `.csv`); otherwise
            `$MECHANISMS_DATA/celeba` and `/usr/share/datasets/celeba` are looked through.
        target: the attribute that is the label.
        attribute: the attribute that misleads.

    Returns:
        `x` (examples,) paths as text (decode a batch with `mechanisms.lab.data.folders.read_images`; whole images are
        218 pixels high and 178 wide), `y` and `attribute` in {0, 1}: 162,770, 19,867 and 19,962 examples.

    Raises:
        NotHere: it is in none of these places.
        ValueError: an unknown attribute, lists that do not belong together, or images that are missing.

    >>> try:
    ...     celeba("nowhere")
    ... except NotHere as missing:
    ...     print(str(missing).split(";")[0])
    CelebA is not here: looked for list_attr_celeba.txt in nowhere
    """
    attributes, partition, images = find_celeba(path)
    names, columns = _attributes(attributes, (target, attribute))
    parts = _partition(partition)
    if missing := [name for name in names if name not in parts]:
        raise ValueError(f"{partition} lacks {len(missing)} images of {attributes}, {missing[0]} for example")
    with os.scandir(images) as entries:
        there = {entry.name for entry in entries}
    if missing := [name for name in names if name not in there]:
        raise ValueError(f"{images} lacks {len(missing)} of {len(names)} images, {missing[0]} for example")
    part = np.array([parts[name] for name in names])
    whole = Split(np.array([str(images / name) for name in names]), columns[0], attribute=columns[1])
    return Splits(*(whole.take(part == number) for number in range(len(PARTS))))


def find_celeba(path: str | Path | None = None) -> tuple[Path, Path, Path]:
    """The two lists and the folder of images; see `celeba`.

    Raises:
        NotHere: they are in none of the places.
    """
    folders = [Path(path).expanduser()] if path is not None else data_folders("celeba")
    for folder in folders:
        attributes, partition = _find(folder, ATTRIBUTES, "Anno"), _find(folder, PARTITION, "Eval")
        images = next((p for p in (folder / IMAGES / IMAGES, folder / IMAGES) if p.is_dir()), None)
        if attributes and partition and images:
            return attributes, partition, images
    looked = ", ".join(map(str, folders))
    raise NotHere(f"CelebA is not here: looked for {ATTRIBUTES}.txt in {looked}; {GET}")


def _find(folder: Path, name: str, inner: str) -> Path | None:
    places = [folder / f"{name}.txt", folder / inner / f"{name}.txt", folder / f"{name}.csv"]
    return next((place for place in places if place.is_file()), None)


def _rows(path: Path) -> list[list[str]]:
    """The words of each line, of a list that is separated by blanks or by commas."""
    with path.open(encoding="utf-8") as file:
        return [line.replace(",", " ").split() for line in file if line.strip()]


def _attributes(path: Path, wanted: tuple[str, str]) -> tuple[list[str], list[np.ndarray]]:
    """File names, and the wanted attributes as 0 or 1."""
    rows = _rows(path)
    expected = (
        int(rows.pop(0)[0]) if rows and rows[0][0].isdigit() else None
    )  # the .txt begins with the number of images
    head = rows.pop(0) if rows else []
    labels = head[1:] if head[:1] == ["image_id"] else head
    if expected is not None and expected != len(rows):
        raise ValueError(f"{path} says that it lists {expected} images, it lists {len(rows)}: it is cut short")
    for name in wanted:
        if name not in labels:
            raise ValueError(f"{path} has no attribute {name!r}; it has: {', '.join(labels)}")
    columns = []
    for name in wanted:
        place = labels.index(name) + 1
        try:
            values = np.array([int(row[place]) for row in rows], np.int64)
        except (IndexError, ValueError):
            values = np.zeros(1, np.int64)
        if not np.isin(values, (-1, 1)).all():
            raise ValueError(f"{path}: every value of {name!r} must be 1 or -1; the file is damaged")
        columns.append((values + 1) // 2)
    return [row[0] for row in rows], columns


def _partition(path: Path) -> dict[str, int]:
    parts = {row[0]: row[1] if len(row) == 2 else "" for row in _rows(path) if row[0] != "image_id"}
    if set(parts.values()) != {"0", "1", "2"}:
        raise ValueError(
            f"{path}: every line must be a file name and 0 (train), 1 (validation) or 2 (test), each at least once"
        )
    return {name: int(part) for name, part in parts.items()}
