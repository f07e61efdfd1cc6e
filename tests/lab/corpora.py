"""Tiny corpora, digits, recordings and reviews in the formats in which the real ones are distributed."""

from __future__ import annotations

import gzip
import wave
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


def write_wikitext(folder: Path, *, lines: tuple[int, int, int] = (60, 14, 14), seed: int = 0) -> Path:
    """The three files: a blank before and after each line, headings between equals signs, empty lines between."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in zip(("train", "valid", "test"), lines, strict=True):
        content = [" \n", " = The Market = \n", " \n"]
        content += [f" {' '.join(generator.choice(WORDS, generator.integers(3, 9)))} . \n" for _ in range(count)]
        if part == "test":
            content.append(" an unseen Naïve word @-@ here \n")
        (folder / f"wiki.{part}.tokens").write_text("".join(content), encoding="utf-8")
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


def write_sphere(path: Path, samples: np.ndarray, *, big_endian: bool = False, **fields: str) -> Path:
    """A NIST SPHERE file: a header of 1,024 bytes of text, then the samples."""
    said = {
        "channel_count": "-i 1",
        "sample_count": f"-i {len(samples)}",
        "sample_rate": "-i 16000",
        "sample_n_bytes": "-i 2",
        "sample_byte_format": "-s2 10" if big_endian else "-s2 01",
        **fields,
    }
    head = "NIST_1A\n   1024\n" + "".join(f"{name} {value}\n" for name, value in said.items()) + "end_head\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head.encode().ljust(1024) + samples.astype(">i2" if big_endian else "<i2").tobytes())
    return path


def write_wave(path: Path, samples: np.ndarray, *, rate: int = 16_000, channels: int = 1, width: int = 2) -> Path:
    """A RIFF file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def write_timit(folder: Path, *, speakers: tuple[int, int] = (4, 2), utterances: int = 3, seed: int = 0) -> Path:
    """Tones with noise, a folder for each speaker, in SPHERE files as TIMIT is distributed."""
    generator = np.random.default_rng(seed)
    for part, count in zip(("TRAIN", "TEST"), speakers, strict=True):
        for speaker in range(count):
            for number in range(utterances):
                time = np.arange(int(generator.integers(4_000, 12_000)))
                tone = 3_000 * np.sin(time * generator.uniform(0.05, 0.3)) + generator.normal(20, 300, len(time))
                write_sphere(folder / part / "DR1" / f"FSPK{speaker}" / f"SA{number}.WAV", np.rint(tone))
    return folder


def write_blizzard(folder: Path, *, files: int = 6, seconds: float = 4.2, seed: int = 0) -> Path:
    """Tones with noise in RIFF files."""
    generator = np.random.default_rng(seed)
    for number in range(files):
        time = np.arange(round(16_000 * seconds))
        tone = 4_000 * np.sin(time * generator.uniform(0.05, 0.3)) + generator.normal(0, 200, len(time))
        write_wave(folder / f"book{number % 2}" / f"chapter{number}.wav", np.rint(tone))
    return folder


def write_imdb(folder: Path, *, reviews: int = 12, seed: int = 0) -> Path:
    """The folder aclImdb: one file for each review, with the markup that real ones have."""
    generator = np.random.default_rng(seed)
    for part in ("train/pos", "train/neg", "train/unsup", "test/pos", "test/neg"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for number in range(reviews):
            sentences = (" ".join(generator.choice(WORDS[3:], generator.integers(2, 22))) for _ in range(6))
            text = "".join(f"{sentence.capitalize()}.<br /><br />" for sentence in sentences)
            (folder / part / f"{number}_7.txt").write_text(text)
    return folder
