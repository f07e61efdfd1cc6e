"""A text corpus that needs no download: the Python manual that ships in the standard library."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Corpus:
    """A text in three parts.

    Args:
        train, validation, test: consecutive parts of the text.
        sha256: checksum of the whole text; it belongs into the record of a run.

    >>> Corpus("a", "b", "c", "...").validation
    'b'
    """

    train: str
    validation: str
    test: str
    sha256: str


def manual_text(validation: float = 0.1, test: float = 0.1) -> Corpus:
    """The reference pages of the Python manual (`pydoc_data.topics`), without repetitions.

    The pages quote each other, so that a plain split would test on what was trained on: every paragraph is kept once,
    where it first occurs (topics in alphabetical order). Then the text is cut by position, at ends of paragraphs. The
    text differs between Python versions; the checksum says which one it was.

    Args:
        validation, test: shares of the characters.

    Returns:
        About 370,000 characters in all.

    Raises:
        ValueError: the shares leave nothing to train on.

    >>> corpus = manual_text()
    >>> round(len(corpus.test) / len(corpus.train + corpus.validation + corpus.test), 1), len(corpus.sha256)
    (0.1, 64)
    """
    from pydoc_data.topics import topics

    if validation <= 0 or test <= 0 or validation + test >= 1:
        raise ValueError(f"validation={validation} and test={test} must be positive shares that leave some to train on")
    kept: dict[str, str] = {}
    for _, page in sorted(topics.items()):
        for paragraph in re.split(r"\n\s*\n", page):
            if words := " ".join(paragraph.split()):  # what differs in white space only is the same paragraph
                kept.setdefault(words, paragraph.rstrip().lstrip("\n"))
    paragraphs = list(kept.values())
    total = sum(len(paragraph) for paragraph in paragraphs)
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    position = 0
    for paragraph in paragraphs:
        share = position / total
        parts[(share >= 1 - validation - test) + (share >= 1 - test)].append(paragraph)
        position += len(paragraph)
    train, middle, end = ("\n\n".join(part) for part in parts)
    return Corpus(train, middle, end, hashlib.sha256("\n\n".join(paragraphs).encode()).hexdigest())
