"""Speech: both formats are read exactly, frames are real samples, and damage is told in one line."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest

from mechanisms.lab import data
from mechanisms.lab.data import speech
from mechanisms.lab.data.audio import open_recording
from mechanisms.lab.paper import NotHere
from tests.lab.corpora import write_blizzard, write_sphere, write_timit, write_wave

SAMPLES = np.random.default_rng(0).integers(-32768, 32768, 1000)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MECHANISMS_CACHE", str(tmp_path / "cache"))


def test_both_formats_give_the_samples_and_any_stretch_of_them(tmp_path: Path) -> None:
    paths = [
        write_sphere(tmp_path / "little.wav", SAMPLES),
        write_sphere(tmp_path / "big.sph", SAMPLES, big_endian=True),
        write_wave(tmp_path / "riff.WAV", SAMPLES),
    ]
    for path in paths:
        recording = open_recording(path)
        assert recording.rate == 16_000
        assert recording.read().dtype == np.int16
        assert np.array_equal(recording.read(), SAMPLES)
        assert np.array_equal(recording.read(17, 5), SAMPLES[17:22])
        with pytest.raises(ValueError, match="has 1000 samples; 5 from 998"):
            recording.read(998, 5)


def test_other_chunks_and_unfilled_lengths_of_riff_files_are_understood(tmp_path: Path) -> None:
    plain = write_wave(tmp_path / "plain.wav", SAMPLES).read_bytes()
    listed = plain[:36] + b"LIST" + struct.pack("<I", 3) + b"abc\0" + plain[36:]
    (tmp_path / "listed.wav").write_bytes(listed)
    piped = plain[:40] + b"\xff\xff\xff\xff" + plain[44:]
    (tmp_path / "piped.wav").write_bytes(piped)
    extensible = plain[:16] + struct.pack("<IHHIIHHHHIH", 40, 0xFFFE, 1, 16000, 32000, 2, 16, 22, 16, 4, 1)
    (tmp_path / "long.wav").write_bytes(extensible + bytes(14) + plain[36:])
    for name in ("listed", "piped", "long"):
        assert np.array_equal(open_recording(tmp_path / f"{name}.wav").read(), SAMPLES), name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no sound file"),
        (b"fLaC" + bytes(20), "sox bad.wav"),
        (b"NIST_1A\n   1024\nsample_rate -i many\n", "damaged NIST header"),
        (b"NIST_1A\n", "damaged NIST header"),
        (b"NIST_1A\n   -900\nsample_rate -i 16000\nsample_count -i 1\nend_head\n  ", "damaged NIST header"),
        (b"RIFF\0\0\0\0WAVEfmt ", "cut short or damaged"),
    ],
)
def test_what_is_no_sound_is_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.wav").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_recording(tmp_path / "bad.wav")


def test_sound_that_is_not_plain_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pcm,embedded-shorten-v2\.00.*sph2pipe"):
        open_recording(write_sphere(tmp_path / "a.wav", SAMPLES, sample_coding="-s26 pcm,embedded-shorten-v2.00"))
    with pytest.raises(ValueError, match="2 channels of 16 bits"):
        open_recording(write_wave(tmp_path / "b.wav", SAMPLES, channels=2))
    with pytest.raises(ValueError, match="1 channels of 8 bits"):
        open_recording(write_wave(tmp_path / "c.wav", SAMPLES, width=1))
    whole = write_sphere(tmp_path / "d.wav", SAMPLES).read_bytes()
    (tmp_path / "d.wav").write_bytes(whole[:-2])
    with pytest.raises(ValueError, match=r"says 1,000 samples at 16,000 a second, and 999 are there"):
        open_recording(tmp_path / "d.wav")


def test_a_batch_is_padded_masked_and_normalised(tmp_path: Path) -> None:
    signals = [open_recording(write_wave(tmp_path / "a.wav", SAMPLES)), SAMPLES[:450].astype(np.int16)]
    sequences = data.frames(signals, 100, steps=4, mean=3.0, std=7.0)
    assert sequences.lengths.tolist() == [4, 4, 2, 4]  # 50 samples of the second fill no frame
    x, lengths, mask = sequences.batch([2, 1])
    assert x.shape == (4, 2, 100)
    assert x.dtype == np.float32
    assert lengths.tolist() == [2, 4]
    assert mask.T.tolist() == [[True, True, False, False], [True] * 4]
    assert np.allclose(x[:2, 0].ravel(), (SAMPLES[800:1000] - 3) / 7)
    assert np.allclose(x[:, 1].ravel(), (SAMPLES[400:800] - 3) / 7)
    assert not x[2:, 0].any()
    assert np.array_equal(sequences.take(slice(2, 3)).batch(slice(None)).x[:, 0], x[:2, 0])
    assert data.frames(signals, 100, steps=4, whole=True).lengths.tolist() == [4, 4, 4]
    assert data.frames(signals, 100).lengths.tolist() == [10, 4]
    assert len(data.frames([], 100)) == len(data.frames([SAMPLES[:50]], 100)) == 0
    assert data.frames([], 100).batch([]).x.shape == (0, 0, 100)


@pytest.mark.parametrize("layout", ["as distributed", "above, lower case", "converted twice"])
def test_timit_is_split_by_folder_and_by_speaker(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "timit"
    if layout == "above, lower case":
        write_timit(folder / "TIMIT")
        (folder / "TIMIT" / "TRAIN").rename(folder / "TIMIT" / "train")
    else:
        write_timit(folder)
    if layout == "converted twice":
        for path in list(folder.rglob("*.WAV")):
            write_wave(path.with_name(path.name + ".wav"), open_recording(path).read())
    splits = data.timit(folder, validation=0.25)
    speakers = [{Path(one.path).parent.name for one in part.signals} for part in vars(splits).values()]
    assert [len(names) for names in speakers] == [3, 1, 2]
    assert not speakers[0] & speakers[1]
    assert [len(part.signals) for part in vars(splits).values()] == [9, 3, 6]
    assert len(splits.test) == 6  # whole utterances
    assert splits.train.lengths.max() == 40
    x, _, mask = splits.train.batch(slice(None))
    assert abs(float(x[mask].mean())) < 1e-4
    assert abs(float(x[mask].std()) - 1) < 1e-4
    assert splits.test.mean == splits.train.mean
    held = {str(data.timit(folder, validation=0.25, seed=seed).validation.signals[0]) for seed in range(8)}
    assert len(held) > 1  # the seed decides


def test_blizzard_is_split_by_position_and_its_moments_are_kept(tmp_path: Path, monkeypatch) -> None:
    folder = write_blizzard(tmp_path / "blizzard")
    splits = data.blizzard(folder)
    assert [len(part) for part in vars(splits).values()] == [43, 3, 2]  # 8 half seconds in each of 6 files
    assert (splits.train.lengths == 40).all()
    monkeypatch.setattr(speech, "moments", None)  # not asked again
    assert data.blizzard(folder).train.std == splits.train.std
    monkeypatch.setattr(speech, "moments", lambda *_: (1.0, 2.0))
    for path in (tmp_path / "cache" / "data").iterdir():
        path.write_text("damaged")
    assert data.blizzard(folder).train.std == 2.0
    monkeypatch.setattr(speech, "BLIZZARD_ENDS", (10, 14, 20))
    assert [len(part) for part in vars(data.blizzard(folder)).values()] == [10, 4, 6]


@pytest.mark.user_input
def test_bad_speech_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(NotHere, match="Linguistic Data Consortium"):
        data.timit(tmp_path / "none")
    with pytest.raises(NotHere, match=r"Blizzard Challenge 2013"):
        data.blizzard(tmp_path / "none")
    (tmp_path / "TRAIN").mkdir()
    with pytest.raises(ValueError, match="has no folder TEST"):
        data.timit(tmp_path)
    (tmp_path / "TEST").mkdir()
    (tmp_path / "TRAIN" / "a.flac").touch()
    with pytest.raises(ValueError, match=r"holds no recordings.*a\.flac is packed"):
        data.timit(tmp_path)
    write_timit(tmp_path, speakers=(1, 1))
    with pytest.raises(ValueError, match="one speaker"):
        data.timit(tmp_path)
    with pytest.raises(ValueError, match=r"validation=1\.5"):
        data.timit(tmp_path, validation=1.5)
    folder = write_blizzard(tmp_path / "blizzard", files=1, seconds=0.6)
    with pytest.raises(ValueError, match="1 sequences of 40 frames; too few"):
        data.blizzard(folder)
    write_wave(folder / "other.wav", SAMPLES, rate=44_100)
    with pytest.raises(ValueError, match=re.escape("44,100 samples a second, expected 16,000")):
        data.blizzard(folder)
    write_wave(folder / "other.wav", np.zeros(300_000))
    (folder / "book0" / "chapter0.wav").unlink()
    with pytest.raises(ValueError, match="silence"):
        data.blizzard(folder)
    for bad in ({"size": 0}, {"steps": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            data.frames([SAMPLES], **bad)
    with pytest.raises(ValueError, match="std above 0"):
        data.frames([SAMPLES], std=0)
    with pytest.raises(ValueError, match=r"got shape \(10, 100\)"):
        data.frames([SAMPLES.reshape(10, 100)])
