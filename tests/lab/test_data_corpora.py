"""Corpora and digits: the distributed formats are read exactly, and damage is told in one line."""

import hashlib
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mechanisms.lab import data
from mechanisms.lab.data import _places, handwriting
from mechanisms.lab.data.text import Corpus
from mechanisms.lab.paper import NotHere
from tests.lab.corpora import WORDS, write_binarised_mnist, write_mnist, write_penn_treebank, write_text8


@pytest.mark.parametrize("inner", ["", "data"])
def test_penn_treebank_by_characters_says_what_the_file_says(
    tmp_path: Path, inner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_penn_treebank(tmp_path / "penn-treebank" / inner)
    tokens = data.penn_treebank(tmp_path / "penn-treebank")
    assert tokens.train.dtype == np.uint8
    for part, name in ((tokens.train, "train"), (tokens.validation, "valid"), (tokens.test, "test")):
        lines = (folder / f"ptb.{name}.txt").read_text().splitlines()
        assert tokens.text(part) == "".join("_".join(line.split()) + "\n" for line in lines)
    assert list(tokens.vocabulary) == sorted({*"".join(WORDS), "_", "\n"})
    monkeypatch.setenv("MECHANISMS_DATA", str(tmp_path))
    assert data.penn_treebank().sha256 == tokens.sha256


def test_penn_treebank_by_words_puts_the_most_frequent_first(tmp_path: Path) -> None:
    folder = write_penn_treebank(tmp_path)
    tokens = data.penn_treebank(folder, level="words")
    lines = (folder / "ptb.valid.txt").read_text().splitlines()
    assert tokens.text(tokens.validation) == " ".join(" ".join([*line.split(), "<eos>"]) for line in lines)
    counts = np.bincount(tokens.train)
    assert (np.diff(counts) <= 0).all()
    assert set(tokens.vocabulary) == {*WORDS, "<eos>"}


def test_rare_words_of_the_other_parts_are_unknown(tmp_path: Path) -> None:
    folder = write_penn_treebank(tmp_path)
    (folder / "ptb.test.txt").write_text(" the zebra \n")
    tokens = data.penn_treebank(folder, level="words")
    assert tokens.text(tokens.test) == "the <unk> <eos>"
    (folder / "ptb.train.txt").write_text(" the market \n")
    with pytest.raises(ValueError, match="which has no <unk> for it"):
        data.penn_treebank(folder, level="words")


@pytest.mark.user_input
def test_bad_penn_treebanks_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(NotHere, match=r"simple-examples\.tgz.*MECHANISMS_DATA"):
        data.penn_treebank(tmp_path)
    folder = write_penn_treebank(tmp_path)
    with pytest.raises(ValueError, match="level='letters'"):
        data.penn_treebank(folder, level="letters")
    (folder / "ptb.char.test.txt").write_text(" the market \n")
    with pytest.raises(ValueError, match=r"found 'the': a file of words\?"):
        data.penn_treebank(folder)
    (folder / "ptb.char.test.txt").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        data.penn_treebank(folder)
    (folder / "ptb.valid.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="no text in UTF-8"):
        data.penn_treebank(folder, level="words")
    with pytest.raises(ValueError, match="give one of them"):
        data.penn_treebank(folder, hub="owner/name")


def test_penn_treebank_and_text8_are_read_by_a_name_of_the_hub_s_library(tmp_path: Path, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = write_penn_treebank(tmp_path / "files")
    whole = write_text8(tmp_path / "text8").read_text()
    for name in ("ptb", "text8"):
        (tmp_path / name if name == "ptb" else tmp_path / "t8").mkdir()
    for place, (part, ours) in enumerate((("train", "train"), ("validation", "valid"), ("test", "test"))):
        lines = [line.strip() for line in (folder / f"ptb.{ours}.txt").read_text().splitlines()]
        datasets.Dataset.from_dict({"sentence": lines}).to_parquet(tmp_path / "ptb" / f"{part}.parquet")
        text = whole[(0, 3600, 3800)[place] : (3600, 3800, 4000)[place]]
        datasets.Dataset.from_dict({"text": [text]}).to_parquet(tmp_path / "t8" / f"{part}.parquet")
    for level in ("characters", "words"):
        read = data.penn_treebank(hub=str(tmp_path / "ptb"), level=level)
        assert read.sha256 == data.penn_treebank(folder, level=level).sha256
    assert data.text8(hub=str(tmp_path / "t8")).sha256 == data.text8(tmp_path / "text8").sha256
    with pytest.raises(ValueError, match="no column 'sentence'"):
        data.penn_treebank(hub=str(tmp_path / "t8"))


def test_a_set_that_comes_with_a_program_is_read_from_the_hub_s_tables(monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name: str, split: str, revision: str | None = None) -> Any:
        asked.append((name, split, revision))
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found ptb_text_only.py")
        return datasets.Dataset.from_dict({"sentence": ["the market rose"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert data.penn_treebank(hub="owner/name", level="words").vocabulary == ("<eos>", "market", "rose", "the")
    assert asked[:2] == [("owner/name", "train", None), ("owner/name", "train", "refs/convert/parquet")]


def test_text8_is_cut_by_position_and_read_from_a_file_a_zip_or_a_folder(tmp_path: Path) -> None:
    path = write_text8(tmp_path / "text8")
    tokens = data.text8(path)
    assert [len(part) for part in (tokens.train, tokens.validation, tokens.test)] == [3600, 200, 200]
    whole = np.concatenate([tokens.train, tokens.validation, tokens.test])
    assert whole.dtype == np.uint8
    assert tokens.text(whole) == path.read_text()
    assert len(tokens.vocabulary) == 27
    with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "text8")
    assert data.text8(tmp_path / "packed.zip").sha256 == data.text8(tmp_path).sha256 == tokens.sha256


@pytest.mark.user_input
def test_bad_text8s_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(NotHere, match=r"text8\.zip"):
        data.text8(tmp_path)
    (tmp_path / "text8").write_bytes(b"letters and 1 digit or so")
    with pytest.raises(ValueError, match="byte 12 is b'1'"):
        data.text8(tmp_path)
    (tmp_path / "text8").write_bytes(b"short")
    with pytest.raises(ValueError, match="holds 5 characters"):
        data.text8(tmp_path)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("enwik8", "text")
    with pytest.raises(ValueError, match="holds no text8; it holds enwik8"):
        data.text8(tmp_path / "other.zip")


def test_a_known_file_that_has_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text8(tmp_path / "text8")
    whole = path.read_bytes()
    monkeypatch.setitem(_places.KNOWN, "text8", (len(whole), hashlib.md5(whole).hexdigest()))
    data.text8(path)
    path.write_bytes(whole[:-1] + (b"a" if whole[-1:] != b"a" else b"b"))
    with pytest.raises(ValueError, match="it is damaged, get it again"):
        data.text8(path)
    path.write_bytes(whole[:-1])  # another size: somebody's own text
    data.text8(path)


def test_any_text_is_read_by_its_characters() -> None:
    tokens = data.character_tokens(Corpus("naïve → 𝔸", "a", "→", "..."))
    assert tokens.text(tokens.train) == "naïve → 𝔸"
    assert tokens.text(tokens.test) == "→"
    assert data.character_tokens(data.manual_text()).train.dtype == np.uint8


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("inner", ["", "raw", "MNIST/raw"])
def test_mnist_keeps_the_order_of_its_files(tmp_path: Path, packed: bool, inner: str) -> None:
    write_mnist(tmp_path / inner, packed=packed)
    splits = data.mnist(tmp_path, num_validation=20)
    assert splits.train.x.flags.writeable  # or torch warns of it
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [100, 20, 40]
    assert splits.train.x.dtype == np.uint8
    assert np.array_equal(splits.validation.y, np.arange(100, 120) % 10)
    assert np.array_equal(splits.test.x.max(axis=2).argmax(axis=1), 4 + 2 * splits.test.y)


def test_mnist_is_read_by_a_name_of_the_hub_s_library(tmp_path: Path, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    images = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    splits = data.mnist(write_mnist(tmp_path / "files"), num_validation=0)
    (tmp_path / "hub").mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for name, part in (("train", splits.train), ("test", splits.test)):
        rows = {"image": [images.fromarray(image) for image in part.x], "label": part.y.tolist()}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "hub" / f"{name}.parquet")
    read = data.mnist(hub=str(tmp_path / "hub"), num_validation=0)
    assert np.array_equal(read.train.x, splits.train.x)
    assert np.array_equal(read.test.y, splits.test.y)


@pytest.mark.user_input
def test_bad_mnists_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(NotHere, match=r"ylecun/mnist"):
        data.mnist(tmp_path)
    write_mnist(tmp_path)
    with pytest.raises(ValueError, match="num_validation=120: it must be at least 0 and below 120"):
        data.mnist(tmp_path, num_validation=120)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 3, 10]))
    with pytest.raises(ValueError, match="labels must be 40 integers from 0 to 9"):
        data.mnist(tmp_path, num_validation=20)


@pytest.mark.parametrize("block", [100, 2**23])
def test_binarised_mnist_says_what_its_files_say(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handwriting, "BLOCK", block)
    folder = write_binarised_mnist(tmp_path)
    read = data.binarised_mnist(folder)
    assert read.train.dtype == np.uint8
    for part, name in ((read.train, "train"), (read.validation, "valid"), (read.test, "test")):
        expected = np.loadtxt(folder / f"binarized_mnist_{name}.amat", np.uint8)
        assert np.array_equal(part.reshape(-1, 784), expected)


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-10], "line 20 has 780"),
        (lambda text: text.replace("1 0", "10", 1), "digits touch"),
        (lambda text: text.replace("1", "2", 1), "is b'2', expected 0, 1 and blanks only"),
        (lambda text: "\n", "it has none"),
        (lambda text: "", "it has none"),
    ],
)
def test_bad_binarised_mnists_are_one_clear_line(tmp_path: Path, change, message: str) -> None:
    with pytest.raises(NotHere, match=r"binarized_mnist_train\.amat"):
        data.binarised_mnist(tmp_path)
    path = write_binarised_mnist(tmp_path) / "binarized_mnist_test.amat"
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=re.escape(message)):
        data.binarised_mnist(tmp_path)


def test_a_bar_appears_on_a_terminal_when_it_takes_long_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for patience, terminal, shown in ((0.0, Terminal(), True), (60.0, Terminal(), False), (0.0, io.StringIO(), False)):
        monkeypatch.setattr(_places, "PATIENCE", patience)
        monkeypatch.setattr("sys.stderr", terminal)
        assert list(_places.follow(range(3), "reading")) == [0, 1, 2]
        assert ("reading" in terminal.getvalue()) == shown
