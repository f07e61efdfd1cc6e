"""`mech discover`: a result, or one clear line and nothing written."""

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from mechanisms.lab.table_files import read_table
from mechanisms.papers._xrm.discover import discover

app = typer.Typer()
app.command()(discover)
QUICK = ("--steps", "400", "--search", "2", "--device", "cpu")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def cows(n: int = 600, seed: int = 0) -> pd.DataFrame:
    """Cows stand on grass and camels on sand, in nine of ten rows; the size tells them apart only weakly."""
    generator = np.random.default_rng(seed)
    animal = np.arange(n) % 2
    ground = np.where(generator.random(n) < 0.9, animal, 1 - animal)
    return pd.DataFrame(
        {
            "code": [f"{i:03d}" for i in generator.integers(0, 90, n)],
            "size": generator.standard_normal(n) + animal,
            "green": 6.0 * ground + generator.standard_normal(n),
            "ground": np.where(ground, "grass", "sand"),
            "animal": np.where(animal, "cow", "camel"),
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cows().to_csv(tmp_path / "cows.csv", index=False)
    return tmp_path


def refused(folder: Path, *arguments: object) -> str:
    before = sorted(os.listdir(folder))
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert sorted(os.listdir(folder)) == before
    return lines[0]


def test_the_ground_is_found_and_shown(folder: Path) -> None:
    out, page = folder / "out.csv", folder / "page.html"
    result = run(folder / "cows.csv", "--label", "animal", "--out", out, "--page", page, *QUICK)
    assert result.exit_code == 0, result.output
    table = read_table(out)
    breaks = (table["ground"] == "grass") != (table["animal"] == "cow")
    assert (table["environment"] == breaks).mean() > 0.95
    assert "Columns that differ most" in result.stdout
    assert "ground = " in result.stdout
    assert result.stdout.index("ground = ") < result.stdout.index("table: ")
    text = page.read_text(encoding="utf-8")
    assert "What differs within the classes" in text
    assert "plotly" in text


def test_cells_go_out_as_they_came_in(folder: Path) -> None:
    run(folder / "cows.csv", "--label", "animal", "--out", folder / "out.csv", *QUICK)
    before, after = (folder / "cows.csv").read_text().splitlines(), (folder / "out.csv").read_text().splitlines()
    assert after[0] == before[0] + ",environment"
    assert [line.rpartition(",")[0] for line in after[1:]] == before[1:]


def test_the_same_seed_gives_the_same_environments(folder: Path) -> None:
    for name in ("a.csv", "b.csv"):
        assert run(folder / "cows.csv", "--label", "animal", "--out", folder / name, "--seed", 3, *QUICK).exit_code == 0
    assert (folder / "a.csv").read_bytes() == (folder / "b.csv").read_bytes()


def test_a_kept_discovery_annotates_a_second_table(folder: Path) -> None:
    model = folder / "model.safetensors"
    run(folder / "cows.csv", "--label", "animal", "--out", folder / "a.csv", "--save", model, *QUICK)
    again = run(folder / "cows.csv", "--apply", model, "--out", folder / "b.csv")
    assert again.exit_code == 0, again.output
    assert (folder / "a.csv").read_bytes() == (folder / "b.csv").read_bytes()
    cows(300, seed=1).to_parquet(folder / "second.parquet")
    result = run(
        folder / "second.parquet", "--apply", model, "--out", folder / "c.parquet", "--page", folder / "p.html"
    )
    assert result.exit_code == 0, result.output
    table = read_table(folder / "c.parquet")
    breaks = (table["ground"] == "grass") != (table["animal"] == "cow")
    assert (table["environment"] == breaks).mean() > 0.95


def test_what_does_not_fit_a_kept_discovery_is_refused(folder: Path) -> None:
    model, out = folder / "model.safetensors", folder / "out.csv"
    run(folder / "cows.csv", "--label", "animal", "--out", folder / "a.csv", "--save", model, *QUICK)
    cows().drop(columns="green").to_csv(folder / "less.csv", index=False)
    assert "lacks the columns 'green'" in refused(folder, folder / "less.csv", "--apply", model, "--out", out)
    cows().replace("cow", "elk").to_csv(folder / "elk.csv", index=False)
    assert "'elk' are not among" in refused(folder, folder / "elk.csv", "--apply", model, "--out", out)
    cows()[:0].to_csv(folder / "none.csv", index=False)
    assert "no rows" in refused(folder, folder / "none.csv", "--apply", model, "--out", out)
    table = folder / "cows.csv"
    assert "not 'size'" in refused(folder, table, "--apply", model, "--label", "size", "--out", out)
    for option in (("--exclude", "size"), ("--save", folder / "m"), ("--steps", 5), ("--search", 2)):
        assert f"leave out {option[0]}" in refused(folder, table, "--apply", model, "--out", out, *option)
    assert "would be overwritten" in refused(folder, table, "--apply", model, "--out", out, "--page", model)
    whole = model.read_bytes()
    for name, content in (("cut", whole[:2000]), ("empty", b""), ("text", b"hello"), ("bits", whole[:80] + whole[90:])):
        (folder / name).write_bytes(content)
        assert "no discovery saved" in refused(folder, table, "--apply", folder / name, "--out", out)
    assert "there is no file" in refused(folder, table, "--apply", folder / "gone", "--out", out)


def test_outputs_that_cannot_be_are_refused(folder: Path) -> None:
    table = folder / "cows.csv"
    label = ("--label", "animal")
    assert "would be overwritten" in refused(folder, table, *label, "--out", table)
    os.link(table, folder / "link.csv")
    assert "would be overwritten" in refused(folder, table, *label, "--out", folder / "link.csv")
    same = ("--out", folder / "o.csv", "--page", folder / "o.csv")
    assert "would be overwritten" in refused(folder, table, *label, *same)
    assert "no folder" in refused(folder, table, *label, "--out", folder / "none" / "o.csv")
    assert "unknown suffix" in refused(folder, table, *label, "--out", folder / "o.xlsx")
    assert "not written as .npz" in refused(folder, table, *label, "--out", folder / "o.npz")
    assert "is a folder" in refused(folder, table, *label, "--out", folder / "o.csv", "--save", folder)
    assert "--steps must be" in refused(folder, table, *label, "--out", folder / "o.csv", "--steps", 0)
    assert "device 'warp'" in refused(folder, table, *label, "--out", folder / "o.csv", "--device", "warp")
    assert "give --label" in refused(folder, table, "--out", folder / "o.csv")
    marked = cows().assign(environment=0)
    marked.to_csv(folder / "marked.csv", index=False)
    assert "'environment' already" in refused(folder, folder / "marked.csv", *label, "--out", folder / "o.csv")


GOOD = cows(40).to_csv(index=False)
ROWS = GOOD.splitlines()
MALFORMED = {
    "empty": b"",
    "header only": ROWS[0].encode(),
    "nine rows": "\n".join(ROWS[:10]).encode(),
    "ragged": "\n".join([*ROWS, "1,2,3,4,5,6,7"]).encode(),
    "all rows too long": "\n".join([ROWS[0], *(row + ",1" for row in ROWS[1:])]).encode(),
    "duplicate columns": GOOD.replace("size", "green", 1).encode(),
    "no label column": GOOD.replace("animal", "beast", 1).encode(),
    "one class": GOOD.replace("camel", "cow").encode(),
    "a class of one": GOOD.replace("camel", "elk", 1).encode(),
    "unlabelled rows": GOOD.replace(",camel", ",").encode(),
    "nul": GOOD.replace("sand", "sa\0nd", 1).encode(),
    "utf-16 without mark": GOOD.encode("utf-16-le"),
    "open quote": (GOOD + '"').encode(),
    "nothing but labels": ("animal\n" + "cow\ncamel\n" * 20).encode(),
    "constants": ("a,animal\n" + "1,cow\n1,camel\n" * 20).encode(),
    "measured label": ("a,animal\n" + "\n".join(f"{i % 7},{i / 7}" for i in range(60))).encode(),
    "binary": bytes(range(256)) * 20,
}


@pytest.mark.parametrize("name", list(MALFORMED))
def test_a_malformed_table_is_one_clear_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.csv").write_bytes(MALFORMED[name])
    outputs = ("--out", tmp_path / "o.csv", "--page", tmp_path / "p.html", "--save", tmp_path / "m")
    refused(tmp_path, tmp_path / "t.csv", "--label", "animal", *outputs, *QUICK)


ODD = {
    "utf-16": cows(100).rename(columns={"size": "größe"}).to_csv(index=False).encode("utf-16"),
    "latin-1": cows(100).rename(columns={"size": "größe"}).to_csv(index=False).encode("latin-1"),
    "huge integers": cows(100).assign(huge=[10 ** (i % 60 + 5) for i in range(100)]).to_csv(index=False).encode(),
    "beyond floats": cows(100).assign(huge=[str(10 ** (i * 5)) for i in range(100)]).to_csv(index=False).encode(),
    "mixed types": cows(100).assign(mix=[1, "x", 2.5, True] * 25).to_csv(index=False).encode(),
    "missing": cows(100).mask(lambda f: (f.index % 7 == 0)[:, None] & (f.columns != "animal")).to_csv().encode(),
    "markup": cows(100).rename(columns={"size": "<script>alert(1)</script>[red]"}).to_csv(index=False).encode(),
    "short rows": (cows(100).iloc[:, ::-1].to_csv(index=False) + "cow,grass\n").encode(),
    "truth values as labels": cows(100).assign(animal=lambda f: f["animal"] == "cow").to_csv(index=False).encode(),
}


@pytest.mark.parametrize("name", list(ODD))
def test_an_odd_table_gives_a_result(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.csv").write_bytes(ODD[name])
    page = tmp_path / "p.html"
    result = run(tmp_path / "t.csv", "--label", "animal", "--out", tmp_path / "o.csv", "--page", page, *QUICK)
    assert result.exit_code == 0, result.output
    table = read_table(tmp_path / "o.csv")
    assert set(table["environment"]) <= {0, 1}
    assert len(table) in (100, 101)
    assert "<script>alert" not in page.read_text(encoding="utf-8")


def test_a_label_without_a_shortcut_is_warned_about(tmp_path: Path) -> None:
    y = np.arange(200) % 2
    table = pd.DataFrame({"v": 10.0 * y + np.random.default_rng(0).standard_normal(200), "label": y})
    table.to_csv(tmp_path / "t.csv", index=False)
    result = run(tmp_path / "t.csv", "--label", "label", "--out", tmp_path / "o.csv", *QUICK)
    assert result.exit_code == 0, result.output
    assert "do not train on these environments" in result.stderr


def test_a_disk_that_is_full_leaves_what_was_there(folder: Path, monkeypatch) -> None:
    (folder / "out.csv").write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mechanisms._base.files.os.fsync", full)
    arguments = ("--label", "animal", "--out", folder / "out.csv", "--page", folder / "p.html", *QUICK)
    assert "No space left" in refused(folder, folder / "cows.csv", *arguments)
    assert (folder / "out.csv").read_text() == "old"


@pytest.mark.slow
def test_a_million_rows(tmp_path: Path) -> None:
    cows(10**6).to_csv(tmp_path / "t.csv", index=False)
    started = time.perf_counter()
    result = run(tmp_path / "t.csv", "--label", "animal", "--out", tmp_path / "o.csv", "--page", tmp_path / "p.html")
    assert result.exit_code == 0, result.output
    print(f"{time.perf_counter() - started:.1f} s")
    table = pd.read_csv(tmp_path / "o.csv", usecols=["ground", "animal", "environment"])
    breaks = (table["ground"] == "grass") != (table["animal"] == "cow")
    assert (table["environment"] == breaks).mean() > 0.95
