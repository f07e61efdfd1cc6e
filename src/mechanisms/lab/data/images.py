"""Small images: handwritten digits, Fashion-MNIST, and both with a colour that betrays the label."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mechanisms._base.seeds import numpy_generator
from mechanisms.lab.data.splits import Split, Splits
from mechanisms.lab.folders import data_folders
from mechanisms.lab.paper import NotHere

FASHION_FILES = {
    "train images": "train-images-idx3-ubyte.gz",
    "train labels": "train-labels-idx1-ubyte.gz",
    "test images": "t10k-images-idx3-ubyte.gz",
    "test labels": "t10k-labels-idx1-ubyte.gz",
}
GET_FASHION = (
    "on Debian: apt install dataset-fashion-mnist; or put the four .gz files of "
    "https://github.com/zalandoresearch/fashion-mnist into a folder fashion-mnist and set MECHANISMS_DATA to its parent"
)
Rate = float | int | tuple[float | int, ...]  # one for all environments, or one for each
LARGEST_IDX = 2**31  # bytes; an IDX file that claims more is refused before anything is allocated


@dataclass(frozen=True)
class ColourRecipe:
    """How labels and colours are drawn; a tuple holds one rate per environment, a number is the same in all.

    The binary label of class k of K is `y0 = [k < K / 2]`; `y = y0 xor Bernoulli(label_noise)`; the colour is
    `c = y xor Bernoulli(colour_noise)`. The defaults are those of ColorMNIST: the colour agrees with the label in 80
    and 90 % of the training examples and in 10 % of the test examples, the shape in 75 % of both.

    >>> RECIPES["inverse"].colour_noise
    (0.2, 0.3)
    """

    label_noise: Rate = 0.25
    colour_noise: Rate = (0.2, 0.1)
    test_label_noise: float | int = 0.25
    test_colour_noise: float | int = 0.9


RECIPES: Mapping[str, ColourRecipe] = {
    "colour-mnist": ColourRecipe(),
    "inverse": ColourRecipe(0.15, (0.2, 0.3), 0.15, 0.9),
    "mcolor": ColourRecipe((0.2, 0.3), 0.15, 0.9, 0.15),
    "v3": ColourRecipe((0.2, 0.1), 0.25, 0.9, 0.25),
}


def digits(seed: int = 0) -> Splits:
    """Handwritten digits, scikit-learn's: 8 by 8 pixels, ten classes, embedded.

    Args:
        seed: decides which of the 1,797 images fall into which split.

    Returns:
        `x` (examples, 8, 8) float32 in [0, 1], `y` in {0, ..., 9}; 1,100, 300 and 397 examples.

    >>> splits = digits()
    >>> len(splits.train), len(splits.validation), len(splits.test)
    (1100, 300, 397)
    """
    images, labels = _digits()
    order = numpy_generator(seed, "data").permutation(len(labels))
    whole = Split(images[order], labels[order])
    return Splits(whole.take(slice(0, 1100)), whole.take(slice(1100, 1400)), whole.take(slice(1400, None)))


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    images, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    return (images.reshape(-1, 8, 8) / 16).astype(np.float32), labels.astype(np.int64)


def fashion_mnist(path: str | Path | None = None) -> Splits:
    """Fashion-MNIST: 28 by 28 pixels, ten classes, in the order of its files.

    Args:
        path: folder of the four gzipped IDX files; otherwise `$MECHANISMS_DATA/fashion-mnist` and
            `/usr/share/datasets/fashion-mnist` are looked through.

    Returns:
        `x` (examples, 28, 28) uint8 in [0, 255], `y` in {0, ..., 9}: 50,000 training examples, the last 10,000 of the
        training file as validation, and 10,000 test examples.

    Raises:
        NotHere: the files are in none of these places.
        ValueError: a file is damaged.

    >>> from mechanisms.lab import NotHere
    >>> try:
    ...     fashion_mnist("nowhere")
    ... except NotHere as missing:
    ...     print(str(missing).split(";")[0])
    Fashion-MNIST is not here: looked for train-images-idx3-ubyte.gz in nowhere
    """
    (images, labels), test = _fashion_mnist(path)
    train = Split(images, labels)
    return Splits(train.take(slice(0, 50_000)), train.take(slice(50_000, None)), Split(*test))


def _fashion_mnist(path: str | Path | None) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    folders = [Path(path).expanduser()] if path is not None else data_folders("fashion-mnist")
    for folder in folders:
        if all((folder / name).is_file() for name in FASHION_FILES.values()):
            break
    else:
        looked = ", ".join(str(folder) for folder in folders)
        raise NotHere(
            f"Fashion-MNIST is not here: looked for {FASHION_FILES['train images']} in {looked}; {GET_FASHION}"
        )
    parts = {}
    for part in ("train", "test"):
        images = read_idx(folder / FASHION_FILES[f"{part} images"])
        labels = read_idx(folder / FASHION_FILES[f"{part} labels"])
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ValueError(f"{folder}: {part} images {images.shape} and labels {labels.shape} do not belong together")
        parts[part] = images, labels.astype(np.int64)
    return parts["train"], parts["test"]


def read_idx(path: str | Path) -> np.ndarray:
    """Read a gzipped or plain IDX file of bytes, the format of MNIST and its kin.

    The format: two zero bytes, a type byte (8: unsigned bytes), the number of dimensions, each size as a big-endian
    32-bit integer, then the values, last dimension fastest.

    Returns:
        uint8 array of the shape in the header.

    Raises:
        ValueError: not an IDX file of bytes, or shorter or longer than its header says.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
    ...     file.flush()
    ...     read_idx(file.name)
    array([7, 8, 9], dtype=uint8)
    """
    path = Path(path)
    with path.open("rb") as raw:
        gzipped = raw.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path, "rb") if gzipped else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08" or not 1 <= head[3] <= 8:
                raise ValueError(f"{path} is no IDX file of bytes: it begins with {head!r}")
            sizes = file.read(4 * head[3])
            if len(sizes) < 4 * head[3]:
                raise ValueError(f"{path} ends inside its header")
            shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4))
            expected = math.prod(shape)
            if expected > LARGEST_IDX:
                raise ValueError(f"{path}: its header claims {expected} bytes (shape {shape}); it is damaged")
            # One byte more than expected shows a file that is too long, without reading an endless one.
            values = file.read(expected + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error})") from None
    if len(values) != expected:
        found = len(values) if len(values) < expected else f"more than {expected}"
        raise ValueError(f"{path}: its header says {expected} bytes (shape {shape}), it holds {found}")
    return np.frombuffer(values, np.uint8).reshape(shape)


def colour(
    images: np.ndarray,
    labels: np.ndarray,
    generator: np.random.Generator,
    *,
    label_noise: Rate = 0.25,
    colour_noise: Rate = (0.2, 0.1),
    num_classes: int = 10,
) -> Split:
    """Make labels binary and noisy, and give each image one of two colours that mostly follows the label.

    Images are dealt in turn to as many environments as the longer of the two tuples of rates has entries.

    Args:
        images: (examples, height, width) in [0, 1].
        labels: (examples,) in {0, ..., num_classes - 1}.
        generator: draws the noise.
        label_noise: probability of a wrong label, one number or one per environment.
        colour_noise: probability that the colour disagrees with the (noisy) label, likewise.
        num_classes: classes below half of it become 1, the others 0.

    Returns:
        `x` (examples, 2 * height * width) float32 in [0, 1]: the two colour channels, one of them zero, flattened;
        `y` in {0, 1}; `attribute` the colour in {0, 1} (the channel that is not zero); `environment` from 0.

    >>> split = colour(np.ones((4, 2, 2)), np.arange(4), np.random.default_rng(0), label_noise=0, num_classes=4)
    >>> split.x.shape, split.y.tolist(), split.environment.tolist()
    ((4, 8), [1, 1, 0, 0], [0, 1, 0, 1])
    """
    label_rates, colour_rates = np.atleast_1d(label_noise), np.atleast_1d(colour_noise)
    for name, rates in (("label_noise", label_rates), ("colour_noise", colour_rates)):
        if not np.all((rates >= 0) & (rates <= 1)):
            raise ValueError(f"{name} must be probabilities, got {rates.tolist()}")
    num_envs = max(len(label_rates), len(colour_rates))
    if {len(label_rates), len(colour_rates)} - {1, num_envs}:
        raise ValueError(
            f"label_noise has {len(label_rates)} rates and colour_noise {len(colour_rates)}; "
            "give one number, or one rate per environment in both"
        )
    n = len(labels)
    environment = np.arange(n) % num_envs
    label_rates, colour_rates = (np.broadcast_to(r, num_envs)[environment] for r in (label_rates, colour_rates))
    y = (labels < num_classes / 2) ^ (generator.random(n) < label_rates)
    c = y ^ (generator.random(n) < colour_rates)
    channels = np.zeros((n, 2, *images.shape[1:]), np.float32)
    channels[np.arange(n), c.astype(np.int64)] = images
    return Split(channels.reshape(n, -1), y.astype(np.int64), c.astype(np.int64), environment.astype(np.int64))


def coloured_digits(seed: int, recipe: ColourRecipe = RECIPES["colour-mnist"]) -> Splits:
    """scikit-learn's digits with a colour that betrays the label: ColorMNIST in small, embedded.

    Args:
        seed: decides the splits and the noise.
        recipe: rates of noise, see `ColourRecipe`.

    Returns:
        `x` (examples, 128) float32 in [0, 1], `y`, `attribute` (colour) and `environment` in {0, 1}; 1,100, 300 and
        397 examples. The test examples form one environment, 0.

    >>> test = coloured_digits(seed=0).test
    >>> test.x.shape, float((test.attribute == test.y).mean()) < 0.2
    ((397, 128), True)
    """
    images, labels = _digits()
    generator = numpy_generator(seed, "data")
    order = generator.permutation(len(labels))
    images, labels = images[order], labels[order]
    return _coloured_splits((images[:1400], labels[:1400]), (images[1400:], labels[1400:]), 1100, recipe, generator)


def coloured_fashion_mnist(
    seed: int,
    recipe: ColourRecipe = RECIPES["colour-mnist"],
    *,
    num_train: int = 10_000,
    num_validation: int = 2_000,
    path: str | Path | None = None,
) -> Splits:
    """Fashion-MNIST with a colour that betrays the label: the ColorMNIST recipe on its first images.

    Args:
        seed: decides the splits and the noise.
        recipe: rates of noise, see `ColourRecipe`.
        num_train, num_validation: the first `num_train + num_validation` training images are shuffled and split.
        path: see `fashion_mnist`.

    Returns:
        `x` (examples, 392) float32 in [0, 1]: every second pixel of every second row in two colour channels; `y`,
        `attribute` (colour) and `environment` in {0, 1}. The 10,000 test examples form one environment, 0.

    Raises:
        NotHere: Fashion-MNIST is not on this machine.

    >>> from mechanisms.lab import NotHere
    >>> try:
    ...     coloured_fashion_mnist(seed=0, path="nowhere")
    ... except NotHere:
    ...     print("on Debian: apt install dataset-fashion-mnist")
    on Debian: apt install dataset-fashion-mnist
    """
    (images, labels), (test_images, test_labels) = _fashion_mnist(path)
    used = num_train + num_validation
    if num_train < 1 or num_validation < 1 or used > len(labels):
        raise ValueError(
            f"num_train={num_train} and num_validation={num_validation} must be positive and together at most "
            f"{len(labels)}"
        )
    generator = numpy_generator(seed, "data")
    order = generator.permutation(used)
    train = _half(images[order]), labels[order]
    return _coloured_splits(train, (_half(test_images), test_labels), num_train, recipe, generator)


def _half(images: np.ndarray) -> np.ndarray:
    return images[:, ::2, ::2].astype(np.float32) / 255


def _coloured_splits(
    seen: tuple[np.ndarray, np.ndarray],
    unseen: tuple[np.ndarray, np.ndarray],
    num_train: int,
    recipe: ColourRecipe,
    generator: np.random.Generator,
) -> Splits:
    rates = {"label_noise": recipe.label_noise, "colour_noise": recipe.colour_noise}
    images, labels = seen
    return Splits(
        colour(images[:num_train], labels[:num_train], generator, **rates),
        colour(images[num_train:], labels[num_train:], generator, **rates),
        colour(*unseen, generator, label_noise=recipe.test_label_noise, colour_noise=recipe.test_colour_noise),
    )
