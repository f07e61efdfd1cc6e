"""Corpora of language models as integer tokens: Penn Treebank by characters or words, text8, and any text."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mechanisms.lab.data._places import check_file, check_known, find_files, fingerprint, hub_texts, one_of
from mechanisms.lab.data.text import Corpus

PARTS = ("train", "valid", "test")
UNKNOWN, END = "<unk>", "<eos>"
HUB_PTB, HUB_TEXT8 = "ptb-text-only/ptb_text_only", "afmck/text8"
GET_PTB = (
    "get simple-examples.tgz of Mikolov's recurrent language models (http://www.fit.vutbr.cz/~imikolov/rnnlm/), put "
    "its folder data (ptb.train.txt, ptb.char.train.txt and so on) under the name penn-treebank and set "
    "MECHANISMS_DATA to its parent"
)
GET_TEXT8 = (
    "get text8.zip (http://mattmahoney.net/dc/text8.zip), put it, or text8 from inside it, into a folder text8 and set "
    f"MECHANISMS_DATA to its parent; or read it from the Hugging Face hub, {HUB_TEXT8}"
)
LETTERS = " abcdefghijklmnopqrstuvwxyz"
BLANK, NEWLINE, RETURN = b" "[0], b"\n"[0], b"\r"[0]


@dataclass(frozen=True, eq=False)
class Tokens:
    """A corpus as numbers: each token is the place of its symbol in `vocabulary`.

    Args:
        train, validation, test: (tokens,) uint8 where the vocabulary has at most 256 symbols, else uint16 or int32.
            Make a batch int64 (`torch.from_numpy(part[a:b].astype("int64"))`), not the corpus.
        vocabulary: the symbols.
        sha256: checksum of tokens and vocabulary; it belongs into the record of a run.

    >>> tokens = Tokens(np.array([1, 0]), np.array([0]), np.array([1]), ("a", "b"), "...")
    >>> tokens.text(tokens.train)
    'ba'
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    vocabulary: tuple[str, ...]
    sha256: str

    def text(self, tokens: Sequence[int] | np.ndarray) -> str:
        """What some tokens say: characters joined, words with blanks between them.

        >>> Tokens(np.zeros(1), np.zeros(1), np.zeros(1), ("to", "be"), "...").text([0, 1])
        'to be'
        """
        between = "" if all(len(symbol) == 1 for symbol in self.vocabulary) else " "
        return between.join(self.vocabulary[int(token)] for token in tokens)


def penn_treebank(path: str | Path | None = None, *, level: str = "characters", hub: str = "") -> Tokens:
    """The Penn Treebank as Mikolov prepared it: lower case, 10,000 words, numbers as N.

    Args:
        path: folder with `ptb.char.train.txt`, `ptb.char.valid.txt` and `ptb.char.test.txt` (characters) or
            `ptb.train.txt` and so on (words), or the folder above its `data`; otherwise
            `$MECHANISMS_DATA/penn-treebank` and `/usr/share/datasets/penn-treebank` are looked through.
        level: "characters" or "words".
        hub: a name on the Hugging Face hub, "ptb-text-only/ptb_text_only" for example, in place of a path. It holds the
            words; characters are made of them.

    Returns:
        Characters: 50 symbols in the order of their codes, the newline at each end of a sentence, "_" between words,
        uint8; about 5 million for training, and 0.4 million each for validation and testing. Words: 10,000 symbols,
        the most frequent first, among them "<eos>" at each end of a sentence and "<unk>" for rare words, uint16;
        929,589, 73,760 and 82,430.

    Raises:
        NotHere: it is in none of these places.
        ValueError: a file is damaged, in another format, or of the other level; an unknown level.

    >>> from mechanisms.lab import NotHere
    >>> try:
    ...     penn_treebank("nowhere")
    ... except NotHere as missing:
    ...     print(str(missing).split(";")[0])
    Penn Treebank is not here: looked for ptb.char.train.txt in nowhere, nowhere/data
    """
    if level not in ("characters", "words"):
        raise ValueError(f'level={level!r}: give "characters" or "words"')
    one_of(path, hub)
    if hub:
        parts = [
            "".join(f" {line.strip()} \n" for line in hub_texts(hub, "sentence", part)).encode()
            for part in ("train", "validation", "test")
        ]
        if level == "characters":
            parts = [_spelled(part) for part in parts]
        sources = [f"{hub}, {part}" for part in PARTS]
    else:
        files = find_penn_treebank(path, level)
        for file in files:
            check_file(file)
        parts, sources = [file.read_bytes() for file in files], [str(file) for file in files]
    for part, source in zip(parts, sources, strict=True):
        if not part.strip():
            raise ValueError(f"{source} is empty")
    return _characters(parts, sources) if level == "characters" else _words(parts, sources)


def find_penn_treebank(path: str | Path | None = None, level: str = "characters") -> list[Path]:
    """The three files of a level; see `penn_treebank`.

    Raises:
        NotHere: they are in none of the places.
    """
    names = [f"ptb.char.{part}.txt" if level == "characters" else f"ptb.{part}.txt" for part in PARTS]
    return find_files("Penn Treebank", "penn-treebank", path, [[name] for name in names], GET_PTB, ["data"])


def find_text8(path: str | Path | None = None) -> Path:
    """The file, packed or not; see `text8`.

    Raises:
        NotHere: it is in none of the places.
    """
    return find_files("text8", "text8", path, [["text8", "text8.zip"]], GET_TEXT8)[0]


def text8(path: str | Path | None = None, *, hub: str = "") -> Tokens:
    """Text8: the first 100 million characters of a cleaned Wikipedia, letters and blanks.

    Args:
        path: the file `text8` or `text8.zip`, or a folder with one of them; otherwise `$MECHANISMS_DATA/text8` and
            `/usr/share/datasets/text8` are looked through.
        hub: a name on the Hugging Face hub, "afmck/text8" for example, in place of a path.

    Returns:
        27 symbols, the blank first, uint8: the first 90 %, the next 5 % and the last 5 % (90, 5 and 5 million), which
        are views of one array.

    Raises:
        NotHere: it is in none of these places.
        ValueError: a file is damaged or holds other symbols.

    >>> from mechanisms.lab import NotHere
    >>> try:
    ...     text8("nowhere")
    ... except NotHere as missing:
    ...     print(str(missing).split(";")[0])
    text8 is not here: looked for text8 in nowhere
    """
    one_of(path, hub)
    if hub:
        content, source = np.frombuffer("".join(_whole_text8(hub)).encode(), np.uint8), Path("text8")
    elif path is not None and Path(path).expanduser().is_file():
        content, source = _bytes(Path(path).expanduser())
    else:
        content, source = _bytes(find_text8(path))
    check_known(source, len(content), hashlib.md5(content.data).hexdigest())
    places = np.full(256, 255, np.uint8)
    places[np.frombuffer(LETTERS.encode(), np.uint8)] = np.arange(len(LETTERS), dtype=np.uint8)
    tokens = places[content]
    if len(tokens) < 20:
        raise ValueError(f"{source} holds {len(tokens)} characters; at least 20 are needed for three parts")
    if tokens.max() == 255:
        place = int(tokens.argmax())
        raise ValueError(
            f"{source}: byte {place:,} is {bytes([content[place]])!r}; text8 holds the letters a to z and blanks only"
        )
    middle, last = len(tokens) * 90 // 100, len(tokens) * 95 // 100
    return _tokens([tokens[:middle], tokens[middle:last], tokens[last:]], tuple(LETTERS))


def character_tokens(corpus: Corpus) -> Tokens:
    """Any text by its characters, the Python manual for example.

    Args:
        corpus: in three parts, of at most 65,536 different characters.

    Returns:
        The symbols are the characters that occur anywhere in it, in the order of their codes.

    >>> from mechanisms.lab.data.text import manual_text
    >>> tokens = character_tokens(manual_text())
    >>> tokens.text(tokens.test[-40:]) == manual_text().test[-40:]
    True
    """
    parts = [
        np.frombuffer(part.encode("utf-32-le"), np.uint32) for part in (corpus.train, corpus.validation, corpus.test)
    ]
    codes = np.unique(np.concatenate(parts))
    kind = _smallest(len(codes))
    return _tokens([np.searchsorted(codes, part).astype(kind) for part in parts], tuple(map(chr, codes.tolist())))


def _smallest(symbols: int) -> type[np.generic]:
    return np.uint8 if symbols <= 2**8 else np.uint16 if symbols <= 2**16 else np.int32


def _tokens(parts: list[np.ndarray], vocabulary: tuple[str, ...]) -> Tokens:
    # Arrays are hashed as they are: copies of 100 MB would double what text8 needs.
    digest = hashlib.sha256(fingerprint(symbol.encode() for symbol in vocabulary).encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part).data)
        digest.update(b"|")
    train, validation, test = parts
    return Tokens(train, validation, test, vocabulary, digest.hexdigest())


def _spelled(words: bytes) -> bytes:
    """The character files' form of lines of words: every character between blanks, "_" between words."""
    lines = [b"_".join(line.split()) for line in words.splitlines() if line.strip()]
    return b"".join(b" " + b" ".join(line[i : i + 1] for i in range(len(line))) + b" \n" for line in lines)


def _characters(parts: list[bytes], sources: list[str]) -> Tokens:
    symbols = []
    for part, source in zip(parts, sources, strict=True):
        codes = np.frombuffer(part, np.uint8)
        codes = codes[codes != RETURN]
        if codes[-1] != NEWLINE:  # the last sentence has an end, too
            codes = np.append(codes, np.uint8(NEWLINE))
        solid = (codes != BLANK) & (codes != NEWLINE)
        if (solid[1:] & solid[:-1]).any():
            place = int((solid[1:] & solid[:-1]).argmax())
            shown = codes[place : place + 20].tobytes().decode(errors="replace").split()[0]
            raise ValueError(f"{source}: every character must stand between blanks, found {shown!r}: a file of words?")
        symbols.append(codes[codes != BLANK])
    present = np.unique(np.concatenate([np.unique(part) for part in symbols]))
    places = np.zeros(256, np.uint8)
    places[present] = np.arange(len(present), dtype=np.uint8)
    vocabulary = tuple(bytes([code]).decode("latin-1") for code in present)
    return _tokens([places[part] for part in symbols], vocabulary)


def _words(parts: list[bytes], sources: list[str]) -> Tokens:
    texts = []
    for part, source in zip(parts, sources, strict=True):
        try:
            lines = part.decode("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{source} is no text in UTF-8 ({error.reason} at byte {error.start})") from None
        texts.append([word for line in lines if line.strip() for word in (*line.split(), END)])
    vocabulary = by_frequency(texts[0])
    place = {word: number for number, word in enumerate(vocabulary)}
    kind = _smallest(len(vocabulary))
    arrays = []
    for text, source in zip(texts, sources, strict=True):
        if UNKNOWN not in place and (strange := next((word for word in text if word not in place), None)) is not None:
            raise ValueError(f"{source}: {strange!r} does not occur in {sources[0]}, which has no {UNKNOWN} for it")
        unknown = place.get(UNKNOWN, 0)
        arrays.append(np.fromiter((place.get(word, unknown) for word in text), kind, len(text)))
    return _tokens(arrays, vocabulary)


def by_frequency(words: Iterable[str]) -> tuple[str, ...]:
    """The different words, the most frequent first, equally frequent ones in the order of the alphabet.

    >>> by_frequency(["b", "a", "c", "c"])
    ('c', 'a', 'b')
    """
    return tuple(word for word, _ in sorted(Counter(words).items(), key=lambda pair: (-pair[1], pair[0])))


def _whole_text8(hub: str) -> list[str]:
    """The hub's copy is cut into the same three parts, or is whole; either way the text comes back in its order."""
    texts = hub_texts(hub, "text", "train")
    for part in ("validation", "test"):
        try:
            texts += hub_texts(hub, "text", part)
        except ValueError:  # no such split: all of it is in "train"
            break
    return texts


def _bytes(path: Path) -> tuple[np.ndarray, Path]:
    if not zipfile.is_zipfile(path):
        return np.fromfile(path, np.uint8), path
    with zipfile.ZipFile(path) as archive:
        if "text8" not in archive.namelist():
            raise ValueError(f"{path} holds no text8; it holds {', '.join(archive.namelist()[:5])}")
        size = archive.getinfo("text8").file_size
        if size > 10**9:
            raise ValueError(f"{path}: text8 in it claims {size:,} bytes, expected 100,000,000; it is damaged")
        try:
            return np.frombuffer(archive.read("text8"), np.uint8), path.with_name("text8")
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{path} is damaged ({error})") from None
