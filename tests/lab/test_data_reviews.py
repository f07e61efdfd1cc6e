"""Reviews: sentences as the folder has them, numbered, kept in the cache, and bad input told in one line."""

from pathlib import Path

import numpy as np
import pytest

from mechanisms.lab import data
from mechanisms.lab.data import reviews
from mechanisms.lab.data.reviews import split_sentences
from mechanisms.lab.paper import NotHere
from tests.lab.corpora import write_imdb


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MECHANISMS_CACHE", str(tmp_path / "cache"))


def said(folder: Path, parts: tuple[str, ...], words: int) -> list[str]:
    files = [file for part in parts for file in sorted((folder / part).glob("*.txt"))]
    found = [sentence for file in files for sentence in split_sentences(file.read_text())]
    return [" ".join(sentence) for sentence in found if len(sentence) <= words]


def test_sentences_are_what_the_reviews_say(tmp_path: Path) -> None:
    folder = write_imdb(tmp_path)
    made = data.imdb(folder)
    assert made.train.dtype == np.uint16
    assert [made.text(row) for row in made.test] == said(folder, ("test/pos", "test/neg"), 16)
    learnt = said(folder, ("train/pos", "train/neg", "train/unsup"), 16)
    assert sorted(made.text(row) for part in (made.train, made.validation) for row in part) == sorted(learnt)
    assert made.lengths(made.train).max() <= 16
    assert made.lengths(made.train).min() >= 1
    assert not made.train[:, 16].any()  # room for the end
    assert made.vocabulary[:2] == ("<eos>", "<unk>")
    assert (np.diff(np.bincount(made.train.ravel())[2:]) <= 0).all()


def test_rare_words_are_unknown_and_the_seed_decides_what_is_held_out(tmp_path: Path) -> None:
    folder = write_imdb(tmp_path)
    made = data.imdb(folder, vocabulary=5, words=8, validation=0.25)
    assert len(made.vocabulary) == 5
    assert made.train.max() == 4
    assert (made.train == 1).any()
    assert made.train.shape[1] == 9
    other = data.imdb(folder, vocabulary=5, words=8, validation=0.25, seed=1)
    assert other.validation.shape != made.validation.shape or (other.validation != made.validation).any()
    assert other.sha256 == made.sha256


def test_the_result_is_kept_and_a_damaged_copy_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_imdb(tmp_path / "files")
    made = data.imdb(folder)
    with monkeypatch.context() as without:
        without.setattr(reviews, "_sentences", None)  # not asked again
        again = data.imdb(folder)
    assert again.vocabulary == made.vocabulary
    assert np.array_equal(again.test, made.test)
    for path in (tmp_path / "cache" / "data").iterdir():
        path.write_bytes(b"damaged")
    assert np.array_equal(data.imdb(folder).train, made.train)


def test_imdb_is_read_by_a_name_of_the_hub_s_library(tmp_path: Path, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub cache"))
    folder = write_imdb(tmp_path / "aclImdb")
    (tmp_path / "hub").mkdir()
    parts = {"train": ("train/pos", "train/neg"), "unsupervised": ("train/unsup",), "test": ("test/pos", "test/neg")}
    for split, inner in parts.items():
        texts = [file.read_text() for part in inner for file in sorted((folder / part).glob("*.txt"))]
        datasets.Dataset.from_dict({"text": texts}).to_parquet(tmp_path / "hub" / f"{split}.parquet")
    files = {split: str(tmp_path / "hub" / f"{split}.parquet") for split in parts}
    whole = datasets.load_dataset("parquet", data_files=files)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: whole[split])
    assert data.imdb(hub="stanfordnlp/imdb").sha256 == data.imdb(tmp_path).sha256


@pytest.mark.user_input
def test_bad_reviews_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(NotHere, match=r"aclImdb_v1\.tar\.gz"):
        data.imdb(tmp_path / "none")
    with pytest.raises(ValueError, match="has no reviews in train/pos"):
        data.imdb(tmp_path)
    folder = write_imdb(tmp_path / "aclImdb", reviews=1)
    with pytest.raises(ValueError, match="3 training and 2 test reviews; too few"):
        data.imdb(folder)
    for settings, message in (
        ({"words": 0}, "words=0"),
        ({"vocabulary": 2}, "vocabulary=2"),
        ({"validation": 0}, "share"),
    ):
        with pytest.raises(ValueError, match=message):
            data.imdb(folder, **settings)
    with pytest.raises(ValueError, match="no sentence of at most 1 words"):
        data.imdb(write_imdb(tmp_path / "aclImdb"), words=1)
