"""WikiText-2 and WikiText-103: good articles of Wikipedia by words, as language models read them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mechanisms._base.extras import require
from mechanisms._base.validation import check_choice
from mechanisms.lab.data._places import find_files, fingerprint, follow, one_of
from mechanisms.lab.data.language import END, UNKNOWN, Tokens
from mechanisms.lab.paper import NotHere

SIZES = ("2", "103")
PARTS = ("train", "valid", "test")
HUB_WIKITEXT = "Salesforce/wikitext"
BLOCK, ROWS = 2**22, 10_000  # characters and rows that are read at once


def wikitext(path: str | Path | None = None, *, size: str = "2", hub: str = "") -> Tokens:
    """WikiText by words: case, punctuation and numbers kept, rare words as <unk>.

    Args:
        path: folder with `wiki.train.tokens`, `wiki.valid.tokens` and `wiki.test.tokens`, or the folder above
            `wikitext-2` or `wikitext-103`; otherwise `$MECHANISMS_DATA/wikitext-2` (or -103) and the same under
            `/usr/share/datasets` are looked through.
        size: "2" or "103", for the millions of words.
        hub: a name on the Hugging Face hub, "Salesforce/wikitext", or a local copy of that in a folder, in place of a
            path; its configuration is `wikitext-2-v1` or `wikitext-103-v1`.

    Returns:
        Words, the most frequent first, among them "<eos>" at each end of a line, also of an empty one: 33,278 words and
        2,088,628, 217,646 and 245,569 tokens for "2", uint16; 267,735 and 103,227,021 for "103", int32. Words of the
        other parts that training lacks are "<unk>".

    Raises:
        NotHere: it is in none of these places.
        ValueError: an unknown size; an empty file, or one that is no text in UTF-8.

    >>> from mechanisms.lab import NotHere
    >>> try:
    ...     wikitext("nowhere")
    ... except NotHere as missing:
    ...     print(str(missing).split(";")[0])
    WikiText-2 is not here: looked for wiki.train.tokens in nowhere, nowhere/wikitext-2
    """
    check_choice(size, "size", SIZES)
    one_of(path, hub)
    places: dict[str, int] = {}
    coded: list[np.ndarray] = []
    sources = [f"{hub}, {part}" for part in PARTS] if hub else [str(file) for file in find_wikitext(path, size)]
    for part, source in zip(PARTS, sources, strict=True):
        # The vocabulary is that of training; what another part adds is unknown.
        coded.append(_coded(_hub_lines(hub, size, part) if hub else _file_lines(source), places, part == "train"))
        if len(coded[-1]) == 0:
            raise ValueError(f"{source} is empty")
    # Numbers were given by first occurrence; the most frequent word is to be 0, equal ones in order of the alphabet.
    counts = np.bincount(coded[0], minlength=len(places))
    words = list(places)
    order = sorted(range(len(words)), key=lambda place: (-counts[place], words[place]))
    kind = np.uint16 if len(words) <= 2**16 else np.int32
    moved = np.empty(len(words), kind)
    moved[order] = np.arange(len(words), dtype=kind)
    train, validation, test = (moved[part] for part in coded)
    vocabulary = tuple(words[place] for place in order)
    parts = (np.ascontiguousarray(part).tobytes() for part in (train, validation, test))
    digest = fingerprint([*(word.encode() for word in vocabulary), *parts])
    return Tokens(train, validation, test, vocabulary, digest)


def find_wikitext(path: str | Path | None = None, size: str = "2") -> list[Path]:
    """The three files; see `wikitext`.

    Raises:
        NotHere: they are in none of the places.
    """
    name = f"wikitext-{size}"
    get = (
        f"read it from the Hugging Face hub, {HUB_WIKITEXT}, or put its three files into a folder {name} and set "
        "MECHANISMS_DATA to its parent"
    )
    return find_files(f"WikiText-{size}", name, path, [[f"wiki.{part}.tokens"] for part in PARTS], get, [name])


def _coded(lines: Iterable[str], places: dict[str, int], grow: bool) -> np.ndarray:
    """Tokens (count,) int32 of some lines; new words are added to `places`, or are unknown. One line at a time: the
    100 million words of the large set would not fit into memory as text."""
    codes = array("i")
    if grow:
        # Always there, whether or not the text has them.
        places.setdefault(UNKNOWN, len(places))
        places.setdefault(END, len(places))
        for line in lines:
            codes.extend(places.setdefault(word, len(places)) for word in (*line.split(), END))
    else:
        unknown = places[UNKNOWN]
        for line in lines:
            codes.extend(places.get(word, unknown) for word in (*line.split(), END))
    return np.frombuffer(codes, np.int32) if codes else np.empty(0, np.int32)


def _file_lines(source: str) -> Iterable[str]:
    path = Path(source)
    with path.open(encoding="utf-8", newline="\n") as file:
        try:
            for _ in follow(range(path.stat().st_size // BLOCK + 1), path.name):
                yield from file.readlines(BLOCK)
        except UnicodeDecodeError as error:
            raise ValueError(f"{source} is no text in UTF-8 ({error.reason} at byte {error.start})") from None


def _hub_lines(hub: str, size: str, part: str) -> Iterable[str]:
    datasets = require("datasets", "hub")
    split = "validation" if part == "valid" else part
    try:
        table = datasets.load_dataset(hub, f"wikitext-{size}-v1", split=split)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotHere(
            f"{hub} could not be fetched from the Hugging Face hub ({reason}); fetch it once on a machine with a "
            "network and set HF_HOME to that cache, or give the path of a local folder"
        ) from None
    if "text" not in table.column_names:
        raise ValueError(f"{hub} has no column 'text'; it has {', '.join(table.column_names)}")
    for start in follow(range(0, len(table), ROWS), f"WikiText-{size}, {part}"):
        yield from table[start : start + ROWS]["text"]
