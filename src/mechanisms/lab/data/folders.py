"""Images that lie as files in folders, one folder for each class, decoded only when they are looked at.

A split of them holds the paths in `x`; `read_images` decodes those of a batch. Needs Pillow (the extra `images`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechanisms._base.extras import require
from mechanisms.lab.data.splits import Split
from mechanisms.lab.folders import data_folders
from mechanisms.lab.paper import NotHere

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
GET_PETS = (
    "get photographs of cats and dogs (Kaggle's Dogs vs. Cats, or Microsoft's PetImages), one folder for each, and set "
    "MECHANISMS_DATA to the parent of cats-and-dogs"
)


def image_folder(
    path: str | Path | None = None,
    *,
    classes: Sequence[str] = ("cat", "dog"),
    name: str = "cats-and-dogs",
    get: str = GET_PETS,
) -> Split:
    """The images of a folder that has a folder for each class.

    Args:
        path: the folder; otherwise `$MECHANISMS_DATA/<name>` and `/usr/share/datasets/<name>` are looked through.
        classes: names of the folders, in the order of the labels; upper and lower case and a plural "s" do not matter.
        name: of the data set.
        get: what to do when it is missing, for the message.

    Returns:
        `x` (examples,) paths as text, sorted within a class; `y` (examples,) int64, the place in `classes`.

    Raises:
        NotHere: there is no such folder.
        ValueError: a class has no folder, or its folder no images.

    >>> try:
    ...     image_folder("nowhere")
    ... except NotHere as missing:
    ...     print(str(missing).split(";")[0])
    cats-and-dogs is not here: looked for nowhere
    """
    folders = [Path(path).expanduser()] if path is not None else data_folders(name)
    found = [folder for folder in folders if folder.is_dir()]
    if not found:
        raise NotHere(f"{name} is not here: looked for {', '.join(map(str, folders))}; {get}")
    inner = {_key(place.name): place for place in sorted(found[0].iterdir()) if place.is_dir()}
    paths: list[str] = []
    labels: list[int] = []
    for label, one in enumerate(classes):
        if _key(one) not in inner:
            there = ", ".join(sorted(place.name for place in inner.values())) or "none"
            raise ValueError(f"{found[0]} has no folder for the class {one!r}; its folders: {there}")
        files = sorted(
            str(file) for file in inner[_key(one)].rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
        )
        if not files:
            raise ValueError(f"{inner[_key(one)]} holds no image ({', '.join(SUFFIXES)})")
        paths += files
        labels += [label] * len(files)
    return Split(np.array(paths), np.array(labels, np.int64))


def read_image(path: str | Path, *, crop: int = 0, size: int = 0) -> np.ndarray:
    """Decode one image.

    Args:
        path: of a JPEG, PNG, BMP or WebP file.
        crop: side of the square that is cut from the middle; 0 for the largest there is if `size` is given, and for
            the whole image otherwise.
        size: side of the square that it is then resized to (bilinear); 0 leaves it.

    Returns:
        (height, width, 3) uint8, red, green, blue.

    Raises:
        ValueError: the file is damaged or no image.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
    ...     Image.new("L", (6, 4), 255).save(file.name)
    ...     read_image(file.name).shape, read_image(file.name, size=2).shape
    ((4, 6, 3), (2, 2, 3))
    """
    images = require("PIL.Image", "images")
    try:
        with images.open(path) as file:
            image = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, images.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be decoded as an image ({error})") from None
    side = crop or (min(image.size) if size else 0)
    if side:
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if size:
        image = image.resize((size, size), images.Resampling.BILINEAR)
    return np.asarray(image)


def read_images(paths: Sequence[str] | np.ndarray, *, crop: int = 0, size: int = 0) -> np.ndarray:
    """Decode a batch; see `read_image`.

    Returns:
        (examples, height, width, 3) uint8.

    Raises:
        ValueError: a file is damaged, or the images differ in shape and no `size` is given.
    """
    images = [read_image(path, crop=crop, size=size) for path in paths]
    if len(shapes := sorted({image.shape for image in images})) > 1:
        raise ValueError(f"images of different shapes ({shapes[0]}, {shapes[1]}, ...): give size=PIXELS")
    return np.stack(images) if images else np.empty((0, size, size, 3), np.uint8)


def brightness(
    paths: Sequence[str] | np.ndarray,
    *,
    size: int = 64,
    progress: Callable[[int, int], Any] | None = None,
) -> np.ndarray:
    """Mean brightness of images, for finding light and dark ones.

    Args:
        paths: of the files.
        size: JPEG files are decoded at a fraction of their resolution that is still this large, which is much faster.
        progress: called with the number done and the total.

    Returns:
        (examples,) float64 in [0, 1]: the mean of luma `0.299 R + 0.587 G + 0.114 B`; NaN where a file cannot be
        decoded.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
    ...     Image.new("RGB", (6, 4), (255, 255, 255)).save(file.name)
    ...     brightness([file.name, "nowhere.png"])
    array([ 1., nan])
    """
    images = require("PIL.Image", "images")
    found = np.full(len(paths), np.nan)
    for place, path in enumerate(paths):
        try:
            with images.open(path) as file:
                file.draft("L", (size, size))
                found[place] = np.asarray(file.convert("L")).mean() / 255
        except (OSError, ValueError, SyntaxError, images.DecompressionBombError):
            pass  # stays NaN
        if progress is not None:
            progress(place + 1, len(paths))
    return found


def _key(name: str) -> str:
    return name.casefold().removesuffix("s")
