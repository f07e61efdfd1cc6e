"""Files of arrays, and downloads: whole and checked, or one clear line."""

import hashlib
import http.server
import os
import pickle
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mechanisms.lab import data
from mechanisms.lab.folders import cache_folder, whole_file
from mechanisms.lab.paper import NotHere

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT at /whole, half of it at /cut, and nothing at /gone; counts what it was asked."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/gone":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.path == "/cut" else CONTENT)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    monkeypatch.setenv("MECHANISMS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    asked: list[str] = []
    handler = type("Handler", (Server,), {"asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}", asked
        served.shutdown()
        thread.join()


def kept() -> list[str]:
    folder = cache_folder() / "downloads"
    return [path.name for path in folder.iterdir() if not path.name.endswith(".lock")] if folder.exists() else []


def test_a_download_is_kept_and_private(server) -> None:
    address, asked = server
    path = data.download(f"{address}/whole", SHA256)
    assert path.read_bytes() == CONTENT
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o700
    assert data.download(f"{address}/whole", SHA256) == path
    assert asked == ["/whole"]


def test_a_damaged_cache_heals_itself(server) -> None:
    address, asked = server
    path = data.download(f"{address}/whole", SHA256)
    path.write_bytes(CONTENT[:-1])
    assert data.download(f"{address}/whole", SHA256).read_bytes() == CONTENT
    assert len(asked) == 2


def test_an_interrupted_download_leaves_nothing(server) -> None:
    address, _ = server
    with pytest.raises(NotHere, match=f"broke off after {len(CONTENT) // 2} bytes"):
        data.download(f"{address}/cut", SHA256)
    assert kept() == []


def test_a_wrong_checksum_is_refused(server) -> None:
    address, _ = server
    with pytest.raises(data.ChecksumError, match="nothing was kept"):
        data.download(f"{address}/whole", "0" * 64)
    assert kept() == []


def test_an_unreachable_server_is_named(server) -> None:
    address, _ = server
    with pytest.raises(NotHere, match="404"):
        data.download(f"{address}/gone", SHA256)
    with pytest.raises(NotHere, match="could not be downloaded"):
        data.download("http://127.0.0.1:1/whole", SHA256)
    assert kept() == []


@pytest.mark.user_input
def test_only_addresses_and_checksums_are_taken() -> None:
    with pytest.raises(ValueError, match="only http and https"):
        data.download("file:///etc/passwd", SHA256)
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        data.download("http://127.0.0.1/", "abc")


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MECHANISMS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert cache_folder() == tmp_path / ".cache" / "mechanisms"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_folder() == tmp_path / "shared" / "mechanisms"
    (tmp_path / "file").touch()
    monkeypatch.setenv("MECHANISMS_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="MECHANISMS_CACHE chooses another"):
        cache_folder()


def test_a_file_is_there_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def broken() -> None:
        with whole_file(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def parts(group: bool = True) -> dict[str, dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    made = {}
    for split, n in (("train", 20), ("valid", 8), ("test", 12)):
        y, a = np.arange(n) % 2, np.arange(n) // 2 % 2
        made[split] = {"x": generator.standard_normal((n, 5)).astype(np.float32), "y": y}
        if group:
            made[split]["group"] = 2 * y + a
    return made


def flat(nested: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {f"{split}_{key}": array for split, part in nested.items() for key, array in part.items()}


def test_features_read_the_same_from_both_formats(tmp_path: Path) -> None:
    nested = parts()
    torch.save({s: {k: torch.from_numpy(v) for k, v in p.items()} for s, p in nested.items()}, tmp_path / "a.pt")
    np.savez(tmp_path / "b.npz", **flat(nested))
    one, two = data.features_file(tmp_path / "a.pt"), data.features_file(tmp_path / "b.npz")
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        for read in (getattr(one, split), getattr(two, split)):
            assert np.array_equal(read.x, nested[name]["x"])
            assert np.array_equal(read.y, nested[name]["y"])
            assert np.array_equal(read.attribute, nested[name]["group"] % 2)


def test_features_may_have_no_groups_or_bare_attributes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **flat(parts(group=False)))
    assert data.features_file(tmp_path / "a.npz").train.attribute is None
    nested = parts()
    for part in nested.values():
        part["group"] = part["group"] % 2
    np.savez(tmp_path / "b.npz", **flat(nested))
    assert np.array_equal(data.features_file(tmp_path / "b.npz").test.attribute, nested["test"]["group"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("test_x"), "has no 'x'"),
        (lambda f: [f.pop(key) for key in list(f) if key.startswith("valid")], "no validation split"),
        (lambda f: f.update(train_y=f["train_y"][:-1]), "equally long"),
        (lambda f: f.update(train_y=f["train_y"] + 0.5), "whole numbers"),
        (lambda f: f.update(train_y=np.array(["a"] * 20)), "must be numbers"),
        (lambda f: f.update(train_x=np.full((20, 5), np.nan)), "NaN"),
        (lambda f: f.pop("test_group"), "all of them or none"),
    ],
)
def test_features_of_another_layout_are_refused(tmp_path: Path, change, message: str) -> None:
    arrays = flat(parts())
    change(arrays)
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        data.features_file(tmp_path / "f.npz")


class Trap:
    """Pickled, it would make a file when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    torch.save({"train": Trap(sprung)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Trap(sprung)))
    np.savez(tmp_path / "c.npz", train_x=np.array([Trap(sprung)], dtype=object))
    (tmp_path / "d.npz").write_bytes(pickle.dumps(Trap(sprung)))
    for name in ("a.pt", "b.pt", "c.npz", "d.npz"):
        with pytest.raises(ValueError, match=r"read safely|Python objects"):
            data.features_file(tmp_path / name)
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["f.npz", "f.pt"])
@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_damaged_features_are_one_clear_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        data.features_file(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_features_are_not_here(tmp_path: Path) -> None:
    with pytest.raises(NotHere, match="there is no file of features"):
        data.features_file(tmp_path / "none.pt")


def test_hub_data_sets_read_local_folders(tmp_path: Path, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.csv").write_text("text,label\nhello,1\nworld,0\n")
    split = data.hub_dataset(str(tmp_path / "set"), x="text", y="label")
    assert split.x.tolist() == ["hello", "world"]
    assert split.y.tolist() == [1, 0]
    with pytest.raises(ValueError, match="no column 'image'"):
        data.hub_dataset(str(tmp_path / "set"), x="image", y="label")


def test_a_hub_that_cannot_be_reached_is_one_clear_line(monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub (OfflineModeIsEnabled)\nmore")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(NotHere, match="set HF_HOME") as error:
        data.hub_dataset("owner/name", x="image", y="label")
    assert "\n" not in str(error.value)
