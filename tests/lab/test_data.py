"""Data sets have the shapes, ranges, sizes and correlations they promise."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from mechanisms.lab import data
from mechanisms.lab.folders import SYSTEM_DATA
from mechanisms.lab.paper import NotHere

needs_fashion = pytest.mark.skipif(
    not (SYSTEM_DATA / "fashion-mnist").is_dir(), reason="Fashion-MNIST: apt install dataset-fashion-mnist"
)


def equal(a: data.Splits, b: data.Splits) -> bool:
    return all(
        np.array_equal(getattr(a, split).x, getattr(b, split).x)
        and np.array_equal(getattr(a, split).y, getattr(b, split).y)
        for split in ("train", "validation", "test")
    )


@pytest.mark.parametrize("make", [data.digits, data.coloured_digits, data.waterbirds_like])
def test_the_seed_decides_everything(make) -> None:
    assert equal(make(seed=3), make(seed=3))
    assert not equal(make(seed=3), make(seed=4))


def test_digits_are_split_without_overlap() -> None:
    splits = data.digits(seed=1)
    parts = [splits.train, splits.validation, splits.test]
    assert [len(part) for part in parts] == [1100, 300, 397]
    x = np.concatenate([part.x for part in parts])
    assert x.dtype == np.float32
    assert x.min() == 0
    assert x.max() == 1
    other = data.digits(seed=2)
    everything = np.concatenate([part.x for part in (other.train, other.validation, other.test)])
    assert np.array_equal(np.sort(x.reshape(1797, -1), axis=0), np.sort(everything.reshape(1797, -1), axis=0))


def test_waterbirds_like_groups_have_the_sizes_of_the_photographs() -> None:
    splits = data.waterbirds_like(seed=0)
    for name, sizes in data.WATERBIRDS_SIZES.items():
        split = getattr(splits, name)
        assert np.bincount(2 * split.y + split.attribute).tolist() == list(sizes)
        assert split.x.dtype == np.float32
        assert split.environment is None


def test_waterbirds_like_rotation_is_shared_and_only_hides() -> None:
    plain, hidden = data.waterbirds_like(seed=5, rotate=False), data.waterbirds_like(seed=5)
    rotation, *_ = np.linalg.lstsq(plain.train.x.astype(float), hidden.train.x.astype(float), rcond=None)
    assert np.allclose(rotation @ rotation.T, np.eye(64), atol=1e-5)
    assert np.allclose(plain.test.x @ rotation, hidden.test.x, atol=1e-4)
    assert np.array_equal(plain.train.y, hidden.train.y)


def test_waterbirds_like_core_predicts_as_well_as_its_formula() -> None:
    test = data.waterbirds_like(seed=0, rotate=False, core=1.5, spurious=2.0).test
    right = int(((test.x[:, :8].sum(1) > 0) == test.y).sum())
    assert binomtest(right, len(test), norm.cdf(1.5)).pvalue > 1e-6
    right = int(((test.x[:, 8:16].sum(1) > 0) == test.attribute).sum())
    assert binomtest(right, len(test), norm.cdf(2.0)).pvalue > 1e-6


@pytest.mark.user_input
def test_waterbirds_like_needs_sixteen_features() -> None:
    with pytest.raises(ValueError, match="at least 16"):
        data.waterbirds_like(seed=0, dim=15)


def test_colour_keeps_the_image_in_the_channel_of_its_colour() -> None:
    generator = np.random.default_rng(0)
    images = generator.random((50, 4, 4)).astype(np.float32)
    split = data.colour(images, generator.integers(0, 10, 50), generator)
    channels = split.x.reshape(50, 2, 4, 4)
    rows = np.arange(50)
    assert np.array_equal(channels[rows, split.attribute], images)
    assert not channels[rows, 1 - split.attribute].any()


@pytest.mark.parametrize("name", list(data.RECIPES))
def test_colour_noise_has_the_rates_of_the_recipe(name: str) -> None:
    recipe = data.RECIPES[name]
    n = 20_000
    labels = np.arange(n) // 2 % 10
    split = data.colour(
        np.ones((n, 1, 1), np.float32),
        labels,
        np.random.default_rng(0),
        label_noise=recipe.label_noise,
        colour_noise=recipe.colour_noise,
    )
    assert split.environment.tolist() == [0, 1] * (n // 2)
    for environment in (0, 1):
        rows = split.environment == environment
        wrong = int((split.y != (labels < 5))[rows].sum())
        disagree = int((split.y != split.attribute)[rows].sum())
        label_rate = np.broadcast_to(recipe.label_noise, 2)[environment]
        colour_rate = np.broadcast_to(recipe.colour_noise, 2)[environment]
        assert binomtest(wrong, int(rows.sum()), label_rate).pvalue > 1e-7
        assert binomtest(disagree, int(rows.sum()), colour_rate).pvalue > 1e-7


def test_coloured_digits_turn_the_colour_around_in_the_test() -> None:
    splits = data.coloured_digits(seed=0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [1100, 300, 397]
    assert splits.train.x.shape[1] == 128
    assert binomtest(int((splits.train.y == splits.train.attribute).sum()), 1100, 0.85).pvalue > 1e-6
    assert binomtest(int((splits.test.y == splits.test.attribute).sum()), 397, 0.1).pvalue > 1e-6
    assert not splits.test.environment.any()


@pytest.mark.user_input
def test_colour_refuses_rates_that_are_none() -> None:
    images, labels, generator = np.ones((4, 2, 2)), np.arange(4), np.random.default_rng(0)
    with pytest.raises(ValueError, match="probabilities"):
        data.colour(images, labels, generator, label_noise=1.5)
    with pytest.raises(ValueError, match="one rate per environment"):
        data.colour(images, labels, generator, label_noise=(0.1, 0.2, 0.3), colour_noise=(0.1, 0.2))


@needs_fashion
def test_fashion_mnist_is_whole() -> None:
    splits = data.fashion_mnist()
    assert splits.train.x.shape == (50_000, 28, 28)
    assert splits.test.x.dtype == np.uint8
    labels = np.concatenate([splits.train.y, splits.validation.y])
    assert np.bincount(labels).tolist() == [6000] * 10
    assert np.bincount(splits.test.y).tolist() == [1000] * 10


@needs_fashion
def test_coloured_fashion_mnist_uses_the_first_images() -> None:
    splits = data.coloured_fashion_mnist(seed=0)
    assert splits.train.x.shape == (10_000, 392)
    assert len(splits.validation) == 2_000
    assert len(splits.test) == 10_000
    seen = np.concatenate([splits.train.x, splits.validation.x]).reshape(-1, 2, 14, 14).sum(1)
    first = data.fashion_mnist().train.x[:12_000, ::2, ::2].astype(np.float32) / 255
    assert np.array_equal(np.sort(seen.sum((1, 2))), np.sort(first.sum((1, 2))))
    assert binomtest(int((splits.train.y != splits.train.attribute).sum()), 10_000, 0.15).pvalue > 1e-6


def test_missing_fashion_mnist_says_where_it_was_looked_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MECHANISMS_DATA", str(tmp_path))
    monkeypatch.setattr("mechanisms.lab.folders.SYSTEM_DATA", tmp_path / "system")
    with pytest.raises(NotHere, match="apt install dataset-fashion-mnist") as error:
        data.fashion_mnist()
    assert str(tmp_path / "fashion-mnist") in str(error.value)
    assert str(tmp_path / "system" / "fashion-mnist") in str(error.value)
    here = {data_set.name: data_set for data_set in data.data_sets()}["Fashion-MNIST"]
    assert not here.here
    assert str(tmp_path / "fashion-mnist") in here.looked


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def test_fashion_mnist_is_read_from_a_given_folder(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for part, n in (("train", 60), ("t10k", 10)):
        images = generator.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        with gzip.open(tmp_path / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(idx(images))
        with gzip.open(tmp_path / f"{part}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(idx(np.arange(n, dtype=np.uint8) % 10))
    assert np.array_equal(data.fashion_mnist(tmp_path).test.x, images)
    coloured = data.coloured_fashion_mnist(seed=0, num_train=40, num_validation=20, path=tmp_path)
    assert coloured.train.x.shape == (40, 392)


GOOD = idx(np.arange(12, dtype=np.uint8).reshape(3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file"),
        (b"PK\x03\x04", "no IDX file"),
        (GOOD[:2] + b"\x0d" + GOOD[3:], "no IDX file"),
        (GOOD[:3] + b"\x00" + GOOD[4:], "no IDX file"),
        (GOOD[:9], "ends inside its header"),
        (GOOD[:-1], "it holds 11"),
        (GOOD + b"x", "more than 12"),
        (GOOD[:4] + b"\xff" * 8 + GOOD[12:], "damaged"),
        (gzip.compress(GOOD, mtime=0)[:-9], "damaged"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.read_idx(tmp_path / "file")


def test_idx_files_are_read_gzipped_or_not(tmp_path: Path) -> None:
    for content in (GOOD, gzip.compress(GOOD, mtime=0)):
        (tmp_path / "file").write_bytes(content)
        assert np.array_equal(data.read_idx(tmp_path / "file"), np.arange(12).reshape(3, 4))


def test_manual_text_has_no_paragraph_twice() -> None:
    corpus = data.manual_text()
    paragraphs = [p for part in (corpus.train, corpus.validation, corpus.test) for p in part.split("\n\n")]
    assert len(paragraphs) == len({" ".join(p.split()) for p in paragraphs})
    total = sum(map(len, paragraphs))
    assert total > 100_000
    assert abs(len(corpus.train) / total - 0.8) < 0.05
    assert corpus == data.manual_text()


@pytest.mark.user_input
def test_manual_text_leaves_something_to_train_on() -> None:
    with pytest.raises(ValueError, match="leave some"):
        data.manual_text(validation=0.5, test=0.5)


def test_two_moons_and_blobs_have_their_shapes() -> None:
    moons, blobs = data.two_moons(seed=0, n=101), data.gaussian_blobs(seed=0, n=90, classes=3, dim=5)
    assert moons.x.shape == (101, 2)
    assert set(moons.y.tolist()) == {0, 1}
    assert blobs.x.shape == (90, 5)
    assert np.array_equal(moons.x, data.two_moons(seed=0, n=101).x)


@pytest.mark.user_input
def test_a_split_has_arrays_of_one_length() -> None:
    with pytest.raises(ValueError, match="equally long"):
        data.Split(np.zeros((3, 2)), np.zeros(4))
