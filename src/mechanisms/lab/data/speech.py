"""Speech as frames of raw samples: TIMIT, Blizzard, and any recordings of yours."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mechanisms._base.seeds import numpy_generator
from mechanisms.lab.data._places import find_folder, fingerprint, follow
from mechanisms.lab.data.audio import PACKED, SUFFIXES, Recording, open_recording
from mechanisms.lab.folders import cache_folder, whole_file

FRAME = 200  # samples
RATE = 16_000  # of both corpora
HALF_SECOND = RATE // 2 // FRAME  # frames
BLIZZARD_ENDS = (2_040_064, 2_152_704, 2_266_880)  # sequences of half a second: ends of training, validation, test
GET_TIMIT = (
    "get TIMIT from the Linguistic Data Consortium (LDC93S1), put its folders TRAIN and TEST into a folder timit and "
    "set MECHANISMS_DATA to its parent"
)
GET_BLIZZARD = (
    "get the English recordings of the Blizzard Challenge 2013 (https://www.cstr.ed.ac.uk/projects/blizzard/), make "
    "them .wav files of one channel, 16 bits and 16,000 samples a second, put them into a folder blizzard and set "
    "MECHANISMS_DATA to its parent"
)


class FrameBatch(NamedTuple):
    """Some sequences, padded to the longest, time first as recurrent networks want them.

    Args:
        x: (steps, sequences, size) float32, normalised; zeros beyond a length.
        lengths: (sequences,) int64, frames of each.
        mask: (steps, sequences) bool, True where a frame is real.
    """

    x: np.ndarray
    lengths: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class Frames:
    """Sequences of frames that are read from recordings when they are asked for.

    Args:
        signals: recordings in files, or arrays of samples.
        signal: (sequences,) which of them a sequence is from.
        first: (sequences,) its first sample there.
        lengths: (sequences,) how many frames it has.
        size: samples in a frame.
        mean, std: of the samples; a batch is normalised by them.

    >>> sequences = frames([np.arange(7), np.arange(4)], size=2)
    >>> sequences.lengths
    array([3, 2])
    >>> sequences.batch([1]).x[:, 0]
    array([[0., 1.],
           [2., 3.]], dtype=float32)
    """

    signals: Sequence[Recording | np.ndarray]
    signal: np.ndarray
    first: np.ndarray
    lengths: np.ndarray
    size: int
    mean: float = 0.0
    std: float = 1.0

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: Sequence[int] | np.ndarray | slice) -> FrameBatch:
        """Some sequences, padded to the longest of them, normalised.

        Args:
            rows: which; their order is kept.

        Raises:
            IndexError: there is no such sequence.
            ValueError: a file has become shorter.
        """
        rows = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows, np.int64)
        lengths = self.lengths[rows]
        steps = int(lengths.max(initial=0))
        x = np.zeros((steps, len(rows), self.size), np.float32)
        for place, (row, length) in enumerate(zip(rows.tolist(), lengths.tolist(), strict=True)):
            samples = self._read(row).astype(np.float32)
            x[:length, place] = ((samples - self.mean) / self.std).reshape(length, self.size)
        return FrameBatch(x, lengths, np.arange(steps)[:, None] < lengths)

    def take(self, rows: np.ndarray | slice) -> Frames:
        """The same of some sequences only, in their order."""
        return replace(self, signal=self.signal[rows], first=self.first[rows], lengths=self.lengths[rows])

    def _read(self, row: int) -> np.ndarray:
        signal, first = self.signals[self.signal[row]], int(self.first[row])
        count = int(self.lengths[row]) * self.size
        return signal.read(first, count) if isinstance(signal, Recording) else signal[first : first + count]


@dataclass(frozen=True, eq=False)
class FrameSplits:
    """What is trained on, what is selected on, and what is reported on, in frames.

    >>> part = frames([np.arange(6)], size=2)
    >>> len(FrameSplits(part, part, part).test)
    1
    """

    train: Frames
    validation: Frames
    test: Frames


def frames(
    signals: Sequence[Recording | np.ndarray],
    size: int = FRAME,
    *,
    steps: int | None = None,
    whole: bool = False,
    mean: float | int = 0.0,
    std: float | int = 1.0,
) -> Frames:
    """Cut signals into frames of so many samples, and into sequences of so many frames.

    Samples at the end that fill no frame are left out, so that every number of a frame is a real sample.

    Args:
        signals: recordings, or arrays (samples,).
        size: samples in a frame.
        steps: frames in a sequence, one after the other without overlap; None makes each signal one sequence.
        whole: leave out sequences of fewer than `steps` frames at the end of a signal, instead of padding them.
        mean, std: by which a batch is normalised; see `moments`.

    Raises:
        ValueError: a size below 1, a `std` that is not positive, or signals that are no vectors.

    >>> frames([np.arange(11)], size=2, steps=2).lengths, frames([np.arange(11)], size=2, steps=2, whole=True).lengths
    (array([2, 2, 1]), array([2, 2]))
    """
    for name, value in (("size", size), ("steps", steps)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: it must be at least 1")
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise ValueError(f"mean={mean}, std={std}: both must be finite, and std above 0")
    for place, signal in enumerate(signals):
        if not isinstance(signal, Recording) and signal.ndim != 1:
            raise ValueError(f"signal {place} must be a vector of samples, got shape {signal.shape}")
    sizes = [signal.samples if isinstance(signal, Recording) else len(signal) for signal in signals]
    available = np.array(sizes, np.int64) // size
    longest = steps if steps is not None else max(int(available.max(initial=0)), 1)
    counts = available // longest if whole else -(-available // longest)
    signal = np.repeat(np.arange(len(signals)), counts)
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    lengths = np.minimum(available[signal] - within * longest, longest)
    return Frames(signals, signal, within * longest * size, lengths, size, float(mean), float(std))


def moments(sequences: Frames, title: str = "mean and deviation") -> tuple[float, float]:
    """Mean and standard deviation of all samples of the sequences, as they are in the recordings.

    >>> moments(frames([np.array([1, 3, 1, 3])], size=2))
    (2.0, 1.0)
    """
    total = squares = 0.0
    for row in follow(range(len(sequences)), title):
        samples = sequences._read(row).astype(np.float64)
        total += samples.sum()
        squares += samples @ samples
    count = int(sequences.lengths.sum()) * sequences.size
    if count == 0:
        raise ValueError("there is no frame to take the mean of")
    mean = total / count
    return float(mean), float(math.sqrt(max(squares / count - mean * mean, 0.0)))


def timit(
    path: str | Path | None = None,
    *,
    size: int = FRAME,
    steps: int = 40,
    validation: float = 0.05,
    seed: int = 0,
) -> FrameSplits:
    """TIMIT: read sentences of 630 speakers, raw samples in frames.

    Args:
        path: folder with `TRAIN` and `TEST` (or the `TIMIT` above them, in any case of letters), below which utterances
            lie in a folder for each speaker: NIST SPHERE files, as they are distributed, or RIFF files; otherwise
            `$MECHANISMS_DATA/timit` and `/usr/share/datasets/timit` are looked through.
        size: samples in a frame.
        steps: frames in a training or validation sequence.
        validation: share of the training speakers whose utterances are the validation split.
        seed: decides which speakers these are.

    Returns:
        Training and validation sequences of 40 frames (half a second; the rest of an utterance is a shorter one), test
        sequences of whole utterances, 1,680 in TIMIT. All are normalised by the mean and deviation of the training
        samples. Samples stay in the files until a batch is made.

    Raises:
        NotHere: it is in none of these places.
        ValueError: a file is damaged or packed, or a part has no utterances.

    >>> from mechanisms.lab import NotHere
    >>> try:
    ...     timit("nowhere")
    ... except NotHere as missing:
    ...     print(str(missing).split(";")[0])
    TIMIT is not here: looked for nowhere
    """
    if not 0 < validation < 1:
        raise ValueError(f"validation={validation}: it must be a share between 0 and 1")
    folder = find_folder("TIMIT", "timit", path, GET_TIMIT)
    inner = _inside(folder, "TIMIT") or folder
    parts = {name: _inside(inner, name) for name in ("TRAIN", "TEST")}
    if missing := [name for name, place in parts.items() if place is None]:
        raise ValueError(f"{inner} has no folder {missing[0]}; {GET_TIMIT}")
    train, test = (_recordings(place, f"TIMIT, {name}") for name, place in parts.items() if place is not None)
    speakers = sorted({str(Path(one.path).parent) for one in train})
    if len(speakers) < 2:
        raise ValueError(f"{parts['TRAIN']} has one speaker (folder) only; two are needed, one to validate on")
    kept = min(max(round(validation * len(speakers)), 1), len(speakers) - 1)
    held = {speakers[place] for place in numpy_generator(seed, "data").permutation(len(speakers))[:kept]}
    learnt = [one for one in train if str(Path(one.path).parent) not in held]
    selected = [one for one in train if str(Path(one.path).parent) in held]
    splits = FrameSplits(frames(learnt, size, steps=steps), frames(selected, size, steps=steps), frames(test, size))
    return _normalised(splits, "TIMIT")


def blizzard(path: str | Path | None = None, *, size: int = FRAME, steps: int = HALF_SECOND) -> FrameSplits:
    """Blizzard 2013: one speaker reading books for 300 hours, raw samples in sequences of half a second.

    Args:
        path: folder of `.wav` files, in folders or not, of one channel, 16 bits and 16,000 samples a second; otherwise
            `$MECHANISMS_DATA/blizzard` and `/usr/share/datasets/blizzard` are looked through.
        size: samples in a frame.
        steps: frames in a sequence; what is left of a file is not used.

    Returns:
        Sequences in the order of the files' names: up to number 2,040,064 for training, up to 2,152,704 for
        validation, up to 2,266,880 for testing. Where there are fewer, the same shares of what there is. All are
        normalised by the mean and deviation of the training samples, which are kept in the cache. Samples (36 GB) stay
        in the files until a batch is made.

    Raises:
        NotHere: it is in none of these places.
        ValueError: a file is damaged, packed or of another rate, or there are too few sequences.

    >>> from mechanisms.lab import NotHere
    >>> try:
    ...     blizzard("nowhere")
    ... except NotHere as missing:
    ...     print(str(missing).split(";")[0])
    Blizzard is not here: looked for nowhere
    """
    folder = find_folder("Blizzard", "blizzard", path, GET_BLIZZARD)
    sequences = frames(_recordings(folder, "Blizzard"), size, steps=steps, whole=True)
    ends = BLIZZARD_ENDS
    if len(sequences) < ends[-1]:
        ends = tuple(round(end / ends[-1] * len(sequences)) for end in ends)
    if not 0 < ends[0] < ends[1] < ends[2]:
        raise ValueError(f"{folder} has {len(sequences)} sequences of {steps} frames; too few for three parts")
    parts = (slice(0, ends[0]), slice(ends[0], ends[1]), slice(ends[1], ends[2]))
    return _normalised(FrameSplits(*(sequences.take(part) for part in parts)), "Blizzard")


def _inside(folder: Path, name: str) -> Path | None:
    return next((one for one in sorted(folder.iterdir()) if one.is_dir() and one.name.upper() == name), None)


def _recordings(folder: Path, title: str) -> list[Recording]:
    """Every utterance below a folder once, in the order of names, all of one rate."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    # Some copies hold each utterance twice, SA1.WAV as it was and SA1.WAV.wav converted: the first name is kept.
    once = {str(file.parent / file.name.lower().split(".wav")[0].removesuffix(".sph")): file for file in files[::-1]}
    if not once:
        packed = next((file for file in folder.rglob("*") if file.suffix.lower() in PACKED), None)
        other = f"; {packed.name} is packed: make .wav files of them, for example with sox or ffmpeg" if packed else ""
        raise ValueError(f"{folder} holds no recordings ({', '.join(SUFFIXES)}){other}")
    found = [open_recording(file) for file in follow(sorted(once.values()), f"{title}: reading headers")]
    if strange := next((one for one in found if one.rate != RATE), None):
        raise ValueError(
            f"{strange.path} has {strange.rate:,} samples a second, expected {RATE:,}; change it, for example with: "
            f"sox {Path(strange.path).name} -r {RATE} changed.wav"
        )
    return found


def _normalised(splits: FrameSplits, title: str) -> FrameSplits:
    """The same, by the training part's moments, which are computed once for the same files."""
    if empty := [name for name, part in vars(splits).items() if len(part) == 0]:
        raise ValueError(f"{title}: the {empty[0]} part has no frame; its recordings are too short")
    mean, std = _kept_moments(splits.train, title)
    if std == 0:
        raise ValueError(f"{title}: every training sample is {mean:g}; there is nothing to learn from silence")
    return FrameSplits(*(replace(part, mean=mean, std=std) for part in vars(splits).values()))


def _kept_moments(train: Frames, title: str) -> tuple[float, float]:
    said = [str(train.size).encode(), train.signal.tobytes(), train.first.tobytes(), train.lengths.tobytes()]
    for one in train.signals:
        if isinstance(one, Recording):
            state = Path(one.path).stat()
            said.append(f"{one} {state.st_size} {state.st_mtime_ns}".encode())
    folder = cache_folder() / "data"
    path = folder / f"moments-{fingerprint(said)[:32]}.json"
    try:
        kept = json.loads(path.read_text())
        return float(kept["mean"]), float(kept["std"])
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged: computed anew
        pass
    mean, std = moments(train, f"{title}: mean and deviation")
    folder.mkdir(exist_ok=True, mode=0o700)
    with whole_file(path, private=True) as file:
        file.write(json.dumps({"mean": mean, "std": std}).encode())
    return mean, std
