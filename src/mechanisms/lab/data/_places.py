"""Shared by the loaders: finding a folder of files, knowing damaged ones, showing progress, texts of the hub."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mechanisms._base.extras import require
from mechanisms.lab.folders import data_folders
from mechanisms.lab.paper import NotHere

# Size in bytes and MD5, as those who distribute the files or well-known loaders state them. A file of the same name and
# size with another sum is damaged; one of another size is somebody's own file in the same format.
KNOWN = {
    "ptb.train.txt": (5_101_618, "f26c4b92c5fdc7b3f8c7cdcb991d8420"),
    "ptb.valid.txt": (399_782, "aa0affc06ff7c36e977d7cd49e3839bf"),
    "ptb.test.txt": (449_945, "8b80168b89c18661a38ef683c0dc3721"),
    "text8": (100_000_000, "3bea1919949baf155f99411df5fada7e"),
    "train-images-idx3-ubyte.gz": (9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    "train-labels-idx1-ubyte.gz": (28_881, "d53e105ee54ea40749a09fcbcd1e9432"),
    "t10k-images-idx3-ubyte.gz": (1_648_877, "9fb629c4189551a2d022fa330f9573f3"),
    "t10k-labels-idx1-ubyte.gz": (4_542, "ec29112dd5afa0611ce80d1b7f02629c"),
}
CONVERTED = "refs/convert/parquet"  # the revision of a set of the hub in which its tables lie
PATIENCE = 1.0  # seconds before a bar appears


def find_files(
    title: str, name: str, path: str | Path | None, files: Sequence[Sequence[str]], get: str, inner: Sequence[str] = ()
) -> list[Path]:
    """The files of a data set, all from one folder, each under one of its names.

    Args:
        title: of the data set, for people.
        name: of its folder under `$MECHANISMS_DATA`.
        path: a folder that the user gives instead, or None.
        files: for each file the names it may have.
        get: how to get it, for the message.
        inner: folders inside the folder that are looked through as well.

    Raises:
        NotHere: no folder has all of them.
    """
    given = [Path(path).expanduser()] if path is not None else data_folders(name)
    folders = [place for folder in given for place in (folder, *(folder / deeper for deeper in inner))]
    for folder in folders:
        found = [next((folder / one for one in names if (folder / one).is_file()), None) for names in files]
        there = [place for place in found if place is not None]
        if len(there) == len(files):
            return there
    raise NotHere(f"{title} is not here: looked for {files[0][0]} in {', '.join(map(str, folders))}; {get}")


def find_folder(title: str, name: str, path: str | Path | None, get: str) -> Path:
    """The folder of a data set that is a tree of files.

    Raises:
        NotHere: there is none.
    """
    folders = [Path(path).expanduser()] if path is not None else data_folders(name)
    if found := next((folder for folder in folders if folder.is_dir()), None):
        return found
    raise NotHere(f"{title} is not here: looked for {', '.join(map(str, folders))}; {get}")


def check_known(path: Path, size: int, md5: str) -> None:
    """Complain when content that has the name and the size of a known file has another checksum.

    Args:
        path: of the file; its name counts.
        size: of the content in bytes.
        md5: of the content.

    Raises:
        ValueError: it is damaged.
    """
    expected = KNOWN.get(path.name)
    if expected is not None and size == expected[0] and md5 != expected[1]:
        raise ValueError(f"{path} has the MD5 {md5} where {expected[1]} is expected: it is damaged, get it again")


def check_file(path: Path) -> None:
    """As `check_known`, for a file on disk that is only read when its name and size are those of a known one."""
    expected = KNOWN.get(path.name)
    if expected is not None and path.stat().st_size == expected[0]:
        with path.open("rb") as file:
            check_known(path, expected[0], hashlib.file_digest(file, "md5").hexdigest())


def follow(items: Sequence[Any], title: str) -> Iterator[Any]:
    """Go through the items; on a terminal, with a bar as soon as it takes longer than a second."""
    began, bar, task = time.monotonic(), None, None
    try:
        for done, item in enumerate(items):
            if bar is None and sys.stderr.isatty() and time.monotonic() - began > PATIENCE:
                progress, console = require("rich.progress", "lab"), require("rich.console", "lab")
                bar = progress.Progress(console=console.Console(stderr=True), transient=True)
                bar.start()
                task = bar.add_task(title, total=len(items))
            if bar is not None:
                bar.update(task, completed=done)
            yield item
    finally:
        if bar is not None:
            bar.stop()


def hub_texts(name: str, column: str, split: str) -> list[str]:
    """One column of texts of a data set of the Hugging Face hub.

    Raises:
        NotHere: the hub cannot be reached or has no such data set.
        ValueError: no such column, or it is no text.
    """
    datasets = require("datasets", "hub")
    try:
        try:
            table = datasets.load_dataset(name, split=split)
        except RuntimeError as error:
            if "script" not in str(error):
                raise
            # Older sets come with a program that the library no longer runs; the hub keeps their tables beside it.
            table = datasets.load_dataset(name, split=split, revision=CONVERTED)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotHere(
            f"{name} could not be fetched from the Hugging Face hub ({reason}); fetch it once on a machine with a "
            "network and set HF_HOME to that cache, or give the path of a local folder"
        ) from None
    if column not in table.column_names:
        raise ValueError(f"{name} has no column {column!r}; it has {', '.join(table.column_names)}")
    texts = list(table[column])
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name}: column {column!r} of {split} must hold texts, and at least one")
    return texts


def one_of(path: str | Path | None, hub: str) -> None:
    """Complain when both a path and a name of the hub are given."""
    if path is not None and hub:
        raise ValueError(f"path={str(path)!r} and hub={hub!r}: give one of them")


def fingerprint(parts: Iterable[bytes]) -> str:
    """SHA-256 of pieces whose borders count."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
