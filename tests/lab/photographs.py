"""Tiny data sets in the formats in which the real ones are distributed."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_cifar10(folder: Path, *, per_file: int = 20, test: int = 20, classes: int = 10, seed: int = 0) -> Path:
    """The binary version of CIFAR-10: five training files and one test file; a class is a brightness."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in [*((f"data_batch_{i}", per_file) for i in range(1, 6)), ("test_batch", test)]:
        labels = generator.integers(0, classes, (count, 1))
        (folder / f"{name}.bin").write_bytes(_records(generator, labels, labels, classes))
    return folder


def write_cifar100(folder: Path, *, train: int = 100, test: int = 40, seed: int = 0) -> Path:
    """The binary version of CIFAR-100: coarse and fine label before the pixels."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("test", test)):
        fine = generator.integers(0, 100, (count, 1))
        (folder / f"{name}.bin").write_bytes(_records(generator, np.concatenate([fine // 5, fine], 1), fine, 100))
    return folder


def _records(generator: np.random.Generator, labels: np.ndarray, fine: np.ndarray, classes: int) -> bytes:
    pixels = generator.integers(0, 64, (len(labels), 3072)) + fine * (190 // classes)
    return np.concatenate([labels, pixels], 1).astype(np.uint8).tobytes()


def write_celeba(
    folder: Path, *, sizes: tuple[int, int, int] = (40, 16, 16), layout: str = "flat", seed: int = 0
) -> Path:
    """Portraits of 178 by 218 pixels with the two lists; blond is light at the top, male is red."""
    from PIL import Image

    generator = np.random.default_rng(seed)
    images = folder / "img_align_celeba"
    if layout == "kaggle":
        images = images / "img_align_celeba"
    images.mkdir(parents=True, exist_ok=True)
    count = sum(sizes)
    names = [f"{number:06d}.jpg" for number in range(1, count + 1)]
    blond, male = generator.integers(0, 2, (2, count))
    for name, light, red in zip(names, blond, male, strict=True):
        pixels = generator.integers(0, 60, (218, 178, 3))
        pixels[:110] += 150 * light
        pixels[..., 0] += 40 * red
        Image.fromarray(pixels.astype(np.uint8)).save(images / name, quality=90)
    smiling = generator.integers(0, 2, count)
    values = [[str(2 * value - 1) for value in row] for row in zip(blond, male, smiling, strict=True)]
    parts = np.repeat([0, 1, 2], sizes)
    head = ["Blond_Hair", "Male", "Smiling"]
    if layout == "kaggle":
        rows = [",".join(["image_id", *head])] + [",".join([n, *v]) for n, v in zip(names, values, strict=True)]
        (folder / "list_attr_celeba.csv").write_text("\n".join(rows) + "\n")
        partition = ["image_id,partition"] + [f"{n},{p}" for n, p in zip(names, parts, strict=True)]
        (folder / "list_eval_partition.csv").write_text("\n".join(partition) + "\n")
        return folder
    anno, evaluation = (folder / "Anno", folder / "Eval") if layout == "distributed" else (folder, folder)
    anno.mkdir(exist_ok=True)
    evaluation.mkdir(exist_ok=True)
    rows = [str(count), " ".join(head) + " "]
    rows += [f"{n}  " + " ".join(v) for n, v in zip(names, values, strict=True)]
    (anno / "list_attr_celeba.txt").write_text("\n".join(rows) + "\n")
    partition = [f"{n} {p}" for n, p in zip(names, parts, strict=True)]
    (evaluation / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")
    return folder


def write_pets(folder: Path, *, per_class: int = 60, seed: int = 0) -> Path:
    """Cats (a cross) and dogs (a square) on backgrounds of any brightness, in files of several sizes and formats."""
    from PIL import Image

    generator = np.random.default_rng(seed)
    for name in ("Cat", "Dog"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            height, width = generator.integers(40, 70, 2)
            pixels = np.full((height, width, 3), generator.integers(30, 200)) + generator.integers(
                0, 30, (height, width, 3)
            )
            middle = (slice(10, 30), slice(10, 30))
            pixels[middle] += 25 * (np.eye(20, dtype=int)[..., None] if name == "Cat" else 1)
            suffix = ("jpg", "png")[number % 2]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.{suffix}")
    return folder
