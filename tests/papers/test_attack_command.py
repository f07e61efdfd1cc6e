"""`mech attack`: tables and a page, or one clear line and nothing written."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from click.testing import Result
from safetensors.torch import save_file
from typer.testing import CliRunner

from mechanisms.papers._fortified import own_classifier
from mechanisms.papers._fortified.attack_command import attack
from mechanisms.robust import attack_ensemble
from tests.robust.masked import digits, trained

app = typer.Typer()
app.command()(attack)
FILES = ["robustness.csv", "robustness.html", "robustness.json", "robustness.md"]
NETWORKS = """
import torch
from torch import nn


def small():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def masked():
    return nn.Sequential(*small(), Scale())


class Scale(nn.Module):
    def forward(self, logits):
        return 1e4 * logits


class Broken(nn.Module):
    def forward(self, x):
        return x[:, :10] * torch.nan


def failing():
    return nn.Sequential(small(), Failing())


class Failing(nn.Module):
    def forward(self, logits):
        if logits.requires_grad:
            raise RuntimeError("no way back")
        return logits


def absent():
    raise FileNotFoundError("settings.json")


def needs(width):
    return nn.Linear(width, 10)


def text():
    return "network"


number = 3
"""


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return trained().state_dict()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: dict[str, torch.Tensor]) -> Iterator[Path]:
    """A folder with a package, weights and images, as a user's would be; it is where the command runs."""
    package = tmp_path / "own_networks"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "dense.py").write_text(NETWORKS)
    (package / "faulty.py").write_text("import nowhere_to_be_found\n")
    (package / "crashing.py").write_text("1 / 0\n")
    torch.save(weights, tmp_path / "weights.pt")
    save_file(weights, tmp_path / "weights.safetensors")
    x, y = digits(24)
    np.savez(tmp_path / "images.npz", x=x.numpy(), y=y.numpy())
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "own_networks"]:
        del sys.modules[name]
    sys.path[:] = [place for place in sys.path if place != str(tmp_path)]


QUICK = ("--steps", "10", "--queries", "10", "--restarts", "1", "--device", "cpu")
SMALL, SETS = "own_networks.dense:small", ("--weights", "weights.pt", "--data", "images.npz")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(folder: Path, *arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert not [name for name in os.listdir(folder) if name == "robustness" and os.listdir(folder / name)]
    return lines[0]


def test_a_network_is_attacked_and_tables_and_page_are_written(folder: Path) -> None:
    result = run(SMALL, *SETS, "--eps", "0,0.05,25.5/255", "--images", 20, *QUICK)
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(folder / "robustness")) == FILES
    table = pd.read_csv(folder / "robustness" / "robustness.csv")
    assert table["eps"].tolist() == [0, 0.05, 0.1]
    assert table["robust"].is_monotonic_decreasing
    assert table["robust"][0] == table["clean"][0] > 0.8
    content = json.loads((folder / "robustness" / "robustness.json").read_text())
    assert content["images"] == 20
    assert content["table"][2]["robust"] == table["robust"][2]
    assert content["request"]["factory"] == SMALL
    text = (folder / "robustness" / "robustness.md").read_text()
    assert text.startswith(f"# Robustness of {SMALL}")
    page = (folder / "robustness" / "robustness.html").read_text()
    assert "Accuracy against budget" in page
    assert "after all attacks" in page
    assert "Can the gradients be believed?" in page
    assert "Accuracy under attack, 20 images" in result.stdout
    assert "no sign of gradient masking" in result.stdout
    assert "robustness.html" in result.stdout


def test_both_kinds_of_weights_and_the_same_seed_give_the_same_table(folder: Path) -> None:
    for place, weights in (("a", "weights.pt"), ("b", "weights.safetensors")):
        options = ("--eps", "0.1", "--attacks", "pgd,apgd-ce", "--no-checks", "--images", 10, "--to", place)
        assert run(SMALL, "--weights", weights, "--data", "images.npz", *options, *QUICK).exit_code == 0
    assert (folder / "a" / "robustness.csv").read_bytes() == (folder / "b" / "robustness.csv").read_bytes()


def test_a_network_that_hides_its_gradients_is_called_so(folder: Path) -> None:
    result = run("own_networks.dense:masked", *SETS, "--eps", "0.1", "--to", "found", *QUICK)
    assert result.exit_code == 0, result.output
    assert "gradient masking suspected: vanishing-gradients" in result.stdout
    assert "do not quote" in (folder / "found" / "robustness.md").read_text()
    assert "Gradient masking suspected" in (folder / "found" / "robustness.html").read_text()


def test_a_surrogate_is_transferred_from(folder: Path) -> None:
    other = ("--surrogate", SMALL, "--surrogate-weights", "weights.safetensors")
    result = run(SMALL, *SETS, "--eps", "0.1", "--attacks", "pgd", *other, *QUICK)
    assert result.exit_code == 0, result.output
    assert "transfer" in pd.read_csv(folder / "robustness" / "robustness.csv").columns[-4]
    assert "--surrogate-weights belong together" in refused(folder.parent, SMALL, *SETS, "--surrogate", SMALL)


def test_an_interruption_keeps_what_was_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attack_ensemble._Run._attack

    def once(self: object, name: str, *arguments: object) -> None:
        if name == "apgd-ce":
            raise KeyboardInterrupt
        whole(self, name, *arguments)  # pyrefly: ignore

    monkeypatch.setattr(attack_ensemble._Run, "_attack", once)
    result = run(SMALL, *SETS, "--eps", "0.1,0.2", *QUICK)
    assert result.exit_code == 130, result.output
    assert "interrupted: these are the figures so far" in result.stderr
    assert sorted(os.listdir(folder / "robustness")) == FILES
    content = json.loads((folder / "robustness" / "robustness.json").read_text())
    assert not content["complete"]
    assert [row["eps"] for row in content["table"]] == [0.1]
    monkeypatch.setattr(attack_ensemble._Run, "_attack", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    result = run(SMALL, *SETS, "--to", "nothing", *QUICK)
    assert result.exit_code == 130
    assert os.listdir(folder / "nothing") == []


def test_what_fails_on_the_way_keeps_what_was_done_and_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {f"0.{name}": value for name, value in trained(epochs=0).state_dict().items()}
    torch.save(weights, folder / "inner.pt")
    line = refused(folder, "own_networks.dense:failing", "--weights", "inner.pt", "--data", "images.npz", *QUICK)
    assert line == "error: own_networks.dense:failing fails under attack: no way back"
    whole = attack_ensemble._Run._attack

    def once(self: object, name: str, *arguments: object) -> None:
        if name == "apgd-ce":
            raise torch.OutOfMemoryError("all is used")
        whole(self, name, *arguments)  # pyrefly: ignore

    monkeypatch.setattr(attack_ensemble._Run, "_attack", once)
    result = run(SMALL, *SETS, "--eps", "0.1,0.2", *QUICK)
    assert result.exit_code == 2, result.output
    assert "error: the cpu ran out of memory with --batch-size 256; give a smaller one" in result.stderr
    assert not json.loads((folder / "robustness" / "robustness.json").read_text())["complete"]


def test_a_pickled_module_is_refused_with_the_way_to_convert_it(folder: Path) -> None:
    weights = trained(epochs=0).state_dict()
    torch.save(trained(epochs=0), folder / "whole.pt")
    torch.save({"state_dict": weights, "best": np.float64(0.9)}, folder / "best.ckpt")
    lines = []
    for name in ("whole.pt", "best.ckpt"):
        line = refused(folder, SMALL, "--weights", name, "--data", "images.npz")
        assert f"{name} holds a pickled module or other Python objects" in line
        assert "can run any code" in line
        lines.append(line.partition("convert it once: ")[2].replace("'weights.pt'", f"'{name}.pt'"))
        assert lines[-1].startswith("import torch; ")
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, cwd=folder)
    for name in ("whole.pt", "best.ckpt"):
        assert own_classifier.read_weights(folder / f"{name}.pt").keys() == weights.keys()


def test_a_pickle_is_not_executed(folder: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple:
            return os.mkdir, ("harm",)

    torch.save({"weight": Harmful()}, folder / "harmful.pt")
    np.savez(folder / "harmful.npz", x=np.array([Harmful()], dtype=object), y=np.zeros(1))
    refused(folder, SMALL, "--weights", "harmful.pt", "--data", "images.npz")
    assert "Python objects" in refused(folder, SMALL, "--weights", "weights.pt", "--data", "harmful.npz")
    assert not (folder / "harm").exists()


def test_checkpoints_as_people_keep_them_are_read(folder: Path) -> None:
    weights = trained(epochs=0).state_dict()
    torch.save({"state_dict": weights, "epoch": 3}, folder / "lightning.ckpt")
    torch.save({f"module.{name}": value for name, value in weights.items()}, folder / "parallel.pth")
    for name in ("lightning.ckpt", "parallel.pth"):
        model = own_classifier.build_classifier(SMALL, folder / name)
        assert not model.training
        assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("own_networks.dense", "write package.module:factory"),
        ("own_networks/dense.py:small", "write package.module:factory"),
        ("nowhere:net", "there is no module 'nowhere' (looked in the current folder"),
        ("own_networks.sparse:net", "there is no module 'own_networks.sparse'"),
        ("own_networks.dense:large", "has no 'large'; it has 'small', 'masked', 'Scale', 'Broken' and"),
        ("own_networks.dense:number", "is a int, expected a function or class"),
        ("own_networks.dense:needs", "cannot be called without arguments"),
        ("own_networks.dense:absent", "dense:absent fails: FileNotFoundError: settings.json"),
        ("own_networks.dense:text", "returned a str, expected a torch.nn.Module"),
        ("own_networks.faulty:net", "importing own_networks.faulty fails: No module named 'nowhere_to_be_found'"),
        ("own_networks.crashing:net", "ZeroDivisionError: division by zero"),
    ],
)
def test_factories_that_make_no_network_are_refused(folder: Path, factory: str, message: str) -> None:
    assert message in refused(folder, factory, *SETS)


def test_weights_that_do_not_fit_or_cannot_be_read_are_refused(folder: Path) -> None:
    whole = (folder / "weights.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:200])
    (folder / "empty.pt").touch()
    (folder / "text.pt").write_text("hello, these are no weights\n")
    (folder / "bytes.pt").write_bytes(bytes(range(256)))
    torch.save({"0.weight": torch.zeros(64, 64)}, folder / "less.pt")
    torch.save(trained(epochs=0).state_dict() | {"9.bias": torch.zeros(1)}, folder / "more.pt")
    torch.save(torch.nn.Linear(64, 10).state_dict(), folder / "other.pt")
    save_file({**trained(epochs=0).state_dict(), "0.weight": torch.zeros(3, 64)}, folder / "shape.safetensors")
    torch.save({"epoch": 3}, folder / "number.pt")
    torch.save(torch.zeros(3), folder / "tensor.pt")
    (folder / "weights.h5").touch()
    for name, message in {
        "nothing.pt": "there is no file nothing.pt",
        "own_networks": "is a folder",
        "weights.h5": "unknown suffix '.h5'",
        "cut.pt": "is damaged or was not written by torch.save",
        "empty.pt": "is damaged or was not written by torch.save",
        "text.pt": "is damaged or was not written by torch.save",
        "bytes.pt": "is damaged or was not written by torch.save",
        "cut.safetensors": "is damaged or no safetensors file",
        "less.pt": "it lacks '0.bias', '2.weight', '2.bias'",
        "more.pt": "it has '9.bias' in excess",
        "other.pt": "it lacks '0.weight', '0.bias', '2.weight', '2.bias' and has 'weight', 'bias' in excess",
        "shape.safetensors": "size mismatch for 0.weight",
        "number.pt": "holds no state_dict but 'epoch'",
        "tensor.pt": "holds a Tensor",
    }.items():
        assert message in refused(folder, SMALL, "--weights", name, "--data", "images.npz"), name


def test_images_that_cannot_be_attacked_are_refused(folder: Path) -> None:
    x, y = (array.numpy() for array in digits(24))
    for name, arrays in {
        "bytes": {"x": (x * 255).astype(np.uint8), "y": y},
        "large": {"x": x * 255, "y": y},
        "nan": {"x": x * np.nan, "y": y},
        "wide": {"x": np.tile(x, 2), "y": y},
        "short": {"x": x, "y": y[:5]},
        "names": {"images": x, "labels": y},
    }.items():
        np.savez(folder / f"{name}.npz", **arrays)
    (folder / "damaged.npz").write_bytes(b"PK\x03\x04 nothing")
    for name, message in {
        "bytes.npz": "x holds uint8",
        "large.npz": "put the normalisation into the model",
        "nan.npz": "infinite or not a number",
        "wide.npz": "does not take inputs of shape (n, 128)",
        "short.npz": "x has shape (24, 64) and y (5,)",
        "names.npz": "no array 'x' and no array 'y'; it has 'images', 'labels'",
        "damaged.npz": "damaged.npz is damaged",
        "nothing.npz": "there is no file nothing.npz",
        "weights.pt": "data are a .npz file",
    }.items():
        assert message in refused(folder, SMALL, "--weights", "weights.pt", "--data", name, *QUICK), name


def test_settings_that_mean_nothing_are_refused(folder: Path) -> None:
    torch.save({}, folder / "none.pt")
    (folder / "file").touch()
    for options, message in (
        (("--eps", "eight"), "--eps 'eight' is no budget"),
        (("--eps", "8/0"), "--eps '8/0' is no budget"),
        (("--eps", "8"), "eps of 255 levels is 8/255"),
        (("--eps", ""), "eps is empty"),
        (("--attacks", "autoattack"), "it must be one of 'pgd'"),
        (("--restarts", "0"), "restarts=0"),
        (("--images", "-1"), "--images must be at least 1"),
        (("--device", "abacus"), "device 'abacus' cannot be used here"),
        (("--to", "file"), "--to file cannot be written"),
    ):
        assert message in refused(folder, SMALL, *SETS, *options), options


def test_logits_that_are_no_numbers_are_refused(folder: Path) -> None:
    torch.save({}, folder / "none.pt")
    line = refused(folder, "own_networks.dense:Broken", "--weights", "none.pt", "--data", "images.npz")
    assert "not a number for 24 of 24 clean examples" in line
