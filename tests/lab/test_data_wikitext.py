"""WikiText: words and ends of lines as numbers, from a folder of files or by a name of the hub's library."""

from pathlib import Path

import numpy as np
import pytest

from mechanisms.lab import NotHere
from mechanisms.lab.data.wikipedia import wikitext
from tests.lab.corpora import write_wikitext


def words_of(file: Path) -> list[str]:
    """What torch's example reads: every line has an end, an empty one too."""
    return [word for line in file.read_text().splitlines() for word in (*line.split(), "<eos>")]


@pytest.mark.parametrize("inner", ["", "wikitext-2"])
def test_tokens_say_what_the_files_say(tmp_path: Path, inner: str) -> None:
    folder = write_wikitext(tmp_path / inner)
    read = wikitext(tmp_path)
    for ours, part in ((read.train, "train"), (read.validation, "valid"), (read.test, "test")):
        words = words_of(folder / f"wiki.{part}.tokens")
        known = [word if word in read.vocabulary else "<unk>" for word in words]
        assert read.text(ours) == " ".join(known)
    assert set(read.vocabulary) == {*words_of(folder / "wiki.train.tokens"), "<unk>"}
    assert "unseen" in words_of(folder / "wiki.test.tokens")
    assert "unseen" not in read.vocabulary


def test_the_most_frequent_word_is_first(tmp_path: Path) -> None:
    read = wikitext(write_wikitext(tmp_path))
    counts = np.bincount(read.train, minlength=len(read.vocabulary))
    keys = [(-count, word) for count, word in zip(counts.tolist(), read.vocabulary, strict=True)]
    assert keys == sorted(keys)
    assert read.train.dtype == np.uint16


def test_the_large_one_lies_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHANISMS_DATA", str(tmp_path))
    write_wikitext(tmp_path / "wikitext-103", seed=1)
    assert len(wikitext(size="103").train) > 0
    with pytest.raises(NotHere, match=r"WikiText-2 is not here.*Salesforce/wikitext"):
        wikitext()


def test_it_is_read_by_a_name_of_the_hub_s_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    files, copy = write_wikitext(tmp_path / "files"), tmp_path / "copy"
    (copy / "wikitext-2-v1").mkdir(parents=True)
    for split, part in (("train", "train"), ("validation", "valid"), ("test", "test")):
        lines = (files / f"wiki.{part}.tokens").read_text().splitlines()
        table = datasets.Dataset.from_dict({"text": [line + "\n" if line.strip() else "" for line in lines]})
        table.to_parquet(copy / "wikitext-2-v1" / f"{split}-00000-of-00001.parquet")
    # As in the hub's repository: one configuration for each size.
    splits = "".join(f"  - split: {s}\n    path: wikitext-2-v1/{s}-*\n" for s in ("train", "validation", "test"))
    (copy / "README.md").write_text(f"---\nconfigs:\n- config_name: wikitext-2-v1\n  data_files:\n{splits}---\n")
    assert wikitext(hub=str(copy)).sha256 == wikitext(files).sha256
    with pytest.raises(ValueError, match="give one of them"):
        wikitext(files, hub=str(copy))
    with pytest.raises(NotHere, match="could not be fetched"):
        wikitext(hub=str(tmp_path / "nowhere"))


def test_bad_files_are_one_clear_line(tmp_path: Path) -> None:
    folder = write_wikitext(tmp_path)
    with pytest.raises(ValueError, match="size"):
        wikitext(folder, size="3")
    (folder / "wiki.valid.tokens").write_text("")
    with pytest.raises(ValueError, match=r"wiki\.valid\.tokens is empty"):
        wikitext(folder)
    (folder / "wiki.valid.tokens").write_bytes(b" = caf\xe9 = \n")
    with pytest.raises(ValueError, match="no text in UTF-8"):
        wikitext(folder)
