"""Tiny corpora, digits, recordings and reviews in the formats in which the real ones are distributed."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

WORDS = ["the", "market", "<unk>", "rose", "N", "n't", "'s", "shares", "of", "a", "company"]


def write_penn_treebank(folder: Path, *, lines: tuple[int, int, int] = (60, 12, 12), seed: int = 0) -> Path:
    """Mikolov's six files: a blank before and after each sentence; in the character files between characters."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in zip(("train", "valid", "test"), lines, strict=True):
        sentences = [[str(w) for w in generator.choice(WORDS, generator.integers(3, 9))] for _ in range(count)]
        if part == "train":
            sentences[0] = list(WORDS)  # every word occurs in training
        (folder / f"ptb.{part}.txt").write_text("".join(f" {' '.join(words)} \n" for words in sentences))
        spelled = (" ".join("_".join(words)) for words in sentences)
        (folder / f"ptb.char.{part}.txt").write_text("".join(f" {sentence} \n" for sentence in spelled))
    return folder


def write_text8(path: Path, *, characters: int = 4000, seed: int = 0) -> Path:
    """Letters and blanks, no end of line."""
    generator = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(generator.choice(np.frombuffer(b" abcdefghijklmnopqrstuvwxyz", np.uint8), characters)))
    return path


def write_mnist(folder: Path, *, train: int = 120, test: int = 40, packed: bool = True, seed: int = 0) -> Path:
    """The four IDX files; a digit is a bright row."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % 10
        images = generator.integers(0, 60, (count, 28, 28))
        images[np.arange(count), 4 + 2 * labels] += 180
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            content = head + array.astype(np.uint8).tobytes()
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return folder


def write_binarised_mnist(folder: Path, *, counts: tuple[int, int, int] = (60, 20, 20), seed: int = 0) -> Path:
    """Larochelle's text files: 784 digits in a line."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in zip(("train", "valid", "test"), counts, strict=True):
        lines = (" ".join(map(str, row)) for row in generator.integers(0, 2, (count, 784)))
        (folder / f"binarized_mnist_{part}.amat").write_text("".join(f"{line} \n" for line in lines))
    return folder
