"""Files of sound: where the samples lie in NIST SPHERE and RIFF files, and reading any stretch of them.

Corpora of speech are larger than memory (Blizzard has 36 GB), and their samples lie in the files as they are. So only
the headers are read when a corpus is opened; a batch then reads the stretches it needs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SUFFIXES = (".wav", ".sph")
PACKED = (".flac", ".mp3", ".ogg", ".m4a")
PCM, EXTENSIBLE = 1, 0xFFFE  # the formats of a RIFF file in which samples are plain integers


@dataclass(frozen=True)
class Recording:
    """Where the samples of one file lie.

    Args:
        path: of the file.
        start: bytes before the first sample.
        samples: how many there are, of 16 bits.
        rate: samples in a second.
        big_endian: the order of the two bytes.

    >>> Recording("speech.wav", 44, 16_000, 16_000).seconds
    1.0
    """

    path: str
    start: int
    samples: int
    rate: int
    big_endian: bool = False

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.samples / self.rate

    def read(self, first: int = 0, count: int | None = None) -> np.ndarray:
        """A stretch of it.

        Args:
            first: the sample with which to begin.
            count: how many; None for all that follow.

        Returns:
            (count,) int16.

        Raises:
            ValueError: it does not have as many, or the file has become shorter.
        """
        count = self.samples - first if count is None else count
        if first < 0 or count < 0 or first + count > self.samples:
            raise ValueError(f"{self.path} has {self.samples} samples; {count} from {first} on were asked for")
        kind = np.dtype(">i2" if self.big_endian else "<i2")
        found = np.fromfile(self.path, kind, count, offset=self.start + 2 * first)
        if len(found) < count:
            raise ValueError(f"{self.path} has become shorter since it was opened")
        return found.astype(np.int16, copy=False)


def open_recording(path: str | Path) -> Recording:
    """Read the header of a sound file: NIST SPHERE, as TIMIT has, or RIFF (`.wav`); the content decides which.

    Args:
        path: of a file of one channel with samples of 16 bits.

    Raises:
        ValueError: another format, more channels, packed samples, or damage; the message says what to do.

    >>> import tempfile, wave
    >>> with tempfile.NamedTemporaryFile(suffix=".wav") as file:
    ...     with wave.open(file.name, "wb") as sound:
    ...         sound.setnchannels(1), sound.setsampwidth(2), sound.setframerate(8000)
    ...         sound.writeframes(bytes([1, 0, 255, 255]))
    ...     recording = open_recording(file.name)
    ...     recording.rate, recording.read()
    (None, None, None)
    (8000, array([ 1, -1], dtype=int16))
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:7] == b"NIST_1A":
            file.seek(0)
            return _sphere(path, file.read(16_384), size)
        if head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE":
            chunks = _chunks(path, file, size)
            return _riff(path, chunks, size)
    raise ValueError(f"{path} begins with {head!r}: no sound file that can be read; {_convert(path)}")


def _convert(path: Path) -> str:
    return f"make it a plain one, for example with: sox {path.name} -b 16 -c 1 plain.wav"


def _recording(
    path: Path, start: int, size: int, samples: int | None, rate: int, channels: int, bits: int, big: bool
) -> Recording:
    """Check what both formats say alike."""
    if channels != 1 or bits != 16:
        raise ValueError(f"{path} has {channels} channels of {bits} bits, expected one of 16; {_convert(path)}")
    there = (size - start) // 2
    samples = there if samples is None else samples
    if rate <= 0 or not 0 < samples <= there:
        raise ValueError(
            f"{path}: its header says {samples:,} samples at {rate:,} a second, and {there:,} are there: it is cut "
            "short or damaged"
        )
    return Recording(str(path), start, samples, rate, big)


def _sphere(path: Path, head: bytes, size: int) -> Recording:
    """A header of text: "NIST_1A", its length, then `name -type value` in each line up to `end_head`."""
    try:
        length = int(head[8:16])
        if length < 16:
            raise ValueError(f"it says that it is {length} bytes long")
        lines = head[16:length].decode("ascii").split("end_head")[0].splitlines()
        fields = {parts[0]: parts[2] for line in lines if len(parts := line.split(None, 2)) == 3}
        rate, samples = int(fields["sample_rate"]), int(fields["sample_count"])
        channels, width = int(fields.get("channel_count", 1)), int(fields.get("sample_n_bytes", 2))
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} has a damaged NIST header ({error})") from None
    coding = fields.get("sample_coding", "pcm")
    if coding != "pcm":
        raise ValueError(
            f"{path}: its samples are packed ({coding}); unpack them with: sph2pipe -f wav {path.name} plain.wav"
        )
    big = fields.get("sample_byte_format", "01") == "10"
    return _recording(path, length, size, samples, rate, channels, 8 * width, big)


def _chunks(path: Path, file, size: int) -> dict[bytes, tuple[int, int, bytes]]:
    """Start, length and first bytes of the chunks of a RIFF file, up to and with the samples."""
    found: dict[bytes, tuple[int, int, bytes]] = {}
    place = 12
    while place + 8 <= size and b"data" not in found:
        file.seek(place)
        name, length = struct.unpack("<4sI", file.read(8))
        found[name] = (place + 8, length, file.read(min(length, 40)))
        place += 8 + length + length % 2
    if b"fmt " not in found or b"data" not in found:
        raise ValueError(f"{path} has no samples: it is cut short or damaged")
    return found


def _riff(path: Path, chunks: dict[bytes, tuple[int, int, bytes]], size: int) -> Recording:
    content = chunks[b"fmt "][2]
    if len(content) < 16:
        raise ValueError(f"{path} has a damaged header")
    coding, channels, rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
    if coding == EXTENSIBLE and len(content) >= 26:
        coding = int.from_bytes(content[24:26], "little")  # the coding proper
    if coding != PCM:
        raise ValueError(f"{path}: its samples are no plain integers (coding {coding}); {_convert(path)}")
    start, length, _ = chunks[b"data"]
    # A program that wrote to a pipe could not go back to fill in the length: what is there counts.
    samples = None if length in (0, 0xFFFFFFFF, 0x7FFFFFFF) else length // 2
    return _recording(path, start, size, samples, rate, channels, bits, False)
