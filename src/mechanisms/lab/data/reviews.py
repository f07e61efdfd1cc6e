"""Reviews of films as short sentences of numbered words."""

from __future__ import annotations

import html
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mechanisms._base.seeds import numpy_generator
from mechanisms.lab.data._places import find_folder, fingerprint, follow, hub_texts, one_of
from mechanisms.lab.data.files import read_arrays
from mechanisms.lab.folders import cache_folder, whole_file

END, UNKNOWN = "<eos>", "<unk>"
LEARNT = ("train/pos", "train/neg", "train/unsup")
TESTED = ("test/pos", "test/neg")
HUB = "stanfordnlp/imdb"
HUB_SPLITS = (("train", "unsupervised"), ("test",))
GET = (
    "get aclImdb_v1.tar.gz (https://ai.stanford.edu/~amaas/data/sentiment/), unpack it, call the folder imdb and set "
    f"MECHANISMS_DATA to its parent; or read it from the Hugging Face hub, {HUB}"
)
# A word with its apostrophes, a number, or one mark.
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+(?:[.,]\d+)*|[.!?,;:()\"$%&/-]")
ENDS = frozenset(".!?")
FORM = b"1"  # of the cache; another number makes all of it anew


@dataclass(frozen=True, eq=False)
class Sentences:
    """Short sentences, each in a row of its own.

    Args:
        train, validation, test: (sentences, words + 1) uint16 or int32; after the words of a sentence each row is
            filled with 0, the end of the sentence, at least once.
        vocabulary: the words; number 0 is "<eos>", number 1 is "<unk>", the others come by frequency in training.
        sha256: checksum of the reviews; it belongs into the record of a run.

    >>> made = Sentences(*3 * [np.array([[2, 3, 0], [3, 0, 0]])], ("<eos>", "<unk>", "good", "film"), "...")
    >>> made.lengths(made.train), made.text(made.train[0])
    (array([2, 1]), 'good film')
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    vocabulary: tuple[str, ...]
    sha256: str

    def lengths(self, part: np.ndarray) -> np.ndarray:
        """How many words each sentence has, the end not counted: (sentences,) int64."""
        return (part != 0).sum(axis=1)

    def text(self, sentence: Sequence[int] | np.ndarray) -> str:
        """What a row says."""
        return " ".join(self.vocabulary[int(word)] for word in sentence if int(word) != 0)


def imdb(
    path: str | Path | None = None,
    *,
    hub: str = "",
    words: int = 16,
    vocabulary: int = 16_000,
    validation: float = 0.05,
    seed: int = 0,
) -> Sentences:
    """Film reviews of IMDB as sentences of at most so many words, for models of sentences.

    Markup is taken out, letters are made small, and marks are words of their own. A sentence ends at ".", "!" or "?";
    longer sentences are left out. The sentences of a review are all in one part.

    Args:
        path: the folder `aclImdb` as it is distributed (`train/pos`, `train/neg`, `train/unsup`, `test/pos`,
            `test/neg`); otherwise `$MECHANISMS_DATA/imdb` and `/usr/share/datasets/imdb` are looked through. Without
            `unsup` the labelled reviews alone are used.
        hub: a name on the Hugging Face hub, "stanfordnlp/imdb" for example, in place of a path.
        words: of the longest sentence that is kept.
        vocabulary: how many different words are kept, "<eos>" and "<unk>" among them; others become "<unk>".
        validation: share of the training reviews that are the validation split.
        seed: decides which reviews these are.

    Returns:
        The sentences of 75,000 reviews in training and validation, and of 25,000 in the test. The result is kept in the
        cache; made anew it takes some ten seconds.

    Raises:
        NotHere: it is in none of these places.
        ValueError: a part has no reviews, or a number is out of range.

    >>> from mechanisms.lab import NotHere
    >>> try:
    ...     imdb("nowhere")
    ... except NotHere as missing:
    ...     print(str(missing).split(";")[0])
    IMDB is not here: looked for nowhere
    """
    one_of(path, hub)
    for name, value, least in (("words", words, 1), ("vocabulary", vocabulary, 3)):
        if value < least:
            raise ValueError(f"{name}={value}: it must be at least {least}")
    if not 0 < validation < 1:
        raise ValueError(f"validation={validation}: it must be a share between 0 and 1")
    if hub:
        learnt, tested = ([text for part in parts for text in hub_texts(hub, "text", part)] for parts in HUB_SPLITS)
        source = hub
    else:
        folder = find_folder("IMDB", "imdb", path, GET)
        folder = folder / "aclImdb" if (folder / "aclImdb").is_dir() else folder
        learnt, tested = _read(folder, LEARNT), _read(folder, TESTED)
        source = str(folder)
    kept = round(validation * len(learnt))
    if not 0 < kept < len(learnt) or not tested:
        raise ValueError(f"{source} has {len(learnt)} training and {len(tested)} test reviews; too few for three parts")
    order = numpy_generator(seed, "data").permutation(len(learnt))
    held = set(order[:kept].tolist())
    sha256 = fingerprint(text.encode() for part in (learnt, [], tested) for text in (*part, ""))
    settings = f"{words} {vocabulary} {validation} {seed}".encode()
    cached = cache_folder() / "data" / f"imdb-{fingerprint([FORM, sha256.encode(), settings])[:32]}.npz"
    if cached.is_file():
        try:
            arrays = read_arrays(cached)
            known = tuple(arrays["vocabulary"].tobytes().decode().split("\n"))
            return Sentences(arrays["train"], arrays["validation"], arrays["test"], known, sha256)
        except (ValueError, KeyError):
            pass  # damaged: made anew
    texts = [text for place, text in enumerate(learnt) if place not in held], [learnt[place] for place in sorted(held)]
    numbers: dict[str, int] = {}  # of words, in the order in which they are met
    parts = [_sentences(part, words, numbers) for part in (*texts, tested)]
    for name, (_, lengths) in zip(("training", "validation", "test"), parts, strict=True):
        if not len(lengths):
            raise ValueError(f"{source}: the {name} part has no sentence of at most {words} words")
    counts = np.bincount(parts[0][0], minlength=len(numbers)).tolist()
    frequent = sorted((-counts[number], word) for word, number in numbers.items() if counts[number])
    known = (END, UNKNOWN, *(word for _, word in frequent[: vocabulary - 2]))
    place = {word: number for number, word in enumerate(known)}
    renumber = np.array([place.get(word, 1) for word in numbers], np.uint16 if len(known) <= 2**16 else np.int32)
    train, middle, test = (_rows(renumber[flat], lengths, words) for flat, lengths in parts)
    cached.parent.mkdir(exist_ok=True, mode=0o700)
    with whole_file(cached, private=True) as file:
        text = np.frombuffer("\n".join(known).encode(), np.uint8)
        np.savez(file, train=train, validation=middle, test=test, vocabulary=text)
    return Sentences(train, middle, test, known, sha256)


def split_sentences(text: str) -> Iterator[list[str]]:
    """The sentences of a text as words; the mark at the end belongs to its sentence.

    >>> list(split_sentences("It's GOOD.<br /><br />Is it? 7.5 of 10"))
    [["it's", 'good', '.'], ['is', 'it', '?'], ['7.5', 'of', '10']]
    """
    sentence: list[str] = []
    for word in WORD.findall(html.unescape(re.sub(r"<[^<>]{0,40}>", " ", text)).lower()):
        if word in ENDS and not sentence:
            continue  # the further marks of "...", "?!" and the like
        sentence.append(word)
        if word in ENDS:
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def _read(folder: Path, parts: tuple[str, ...]) -> list[str]:
    files = [file for part in parts if (folder / part).is_dir() for file in sorted((folder / part).glob("*.txt"))]
    if not files:
        raise ValueError(f"{folder} has no reviews in {', '.join(parts)}; {GET}")
    return [file.read_text(encoding="utf-8", errors="replace") for file in follow(files, "IMDB: reading reviews")]


def _sentences(reviews: list[str], words: int, numbers: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """The words of all short sentences one after the other, as numbers, and how many each sentence has."""
    flat, lengths = array("i"), array("i")  # a list of a million lists of words would take a gigabyte
    for review in follow(reviews, "IMDB: splitting sentences"):
        for sentence in split_sentences(review):
            if len(sentence) <= words:
                flat.extend([numbers.setdefault(word, len(numbers)) for word in sentence])
                lengths.append(len(sentence))
    return np.array(flat, np.int32), np.array(lengths, np.int64)


def _rows(flat: np.ndarray, lengths: np.ndarray, words: int) -> np.ndarray:
    rows = np.zeros((len(lengths), words + 1), flat.dtype)
    rows[np.arange(words + 1) < lengths[:, None]] = flat
    return rows
