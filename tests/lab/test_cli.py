import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.conftest import mech


def test_help_and_import_are_instant_and_load_nothing_heavy() -> None:
    code = "import sys, mechanisms, mechanisms.lab; print('torch' in sys.modules, 'plotly' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]
    code = """
import sys
sys.argv = ["mech", "--help"]
from mechanisms.cli import main
try:
    main()
except SystemExit:
    pass
heavy = {"torch", "numpy", "plotly", "pandas", "duckdb", "sklearn"} & set(sys.modules)
print("heavy:", sorted(heavy))
"""
    begun = time.perf_counter()
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "heavy: []" in printed
    assert "discover" in printed
    assert time.perf_counter() - begun < 5  # about half a second when nothing else runs


def test_list_show_ledger_and_doctor_print_what_they_say(toy: Path) -> None:
    mech("run", "toy", "line", "--scale", "laptop", "--seeds", 3, "--results", toy, "--device", "cpu")
    listed = mech("list", "--results", toy)
    assert "toys" in listed.stdout
    shown = mech("show", "toy")
    assert "larger steps go further" in shown.stdout
    assert "<i>fitted</i>" in shown.stdout
    doctor = mech("doctor")
    assert "digits" in doctor.stdout
    assert [listed.returncode, shown.returncode, doctor.returncode] == [0, 0, 0]
    (first, *_) = json.loads(mech("ledger", "toy", "--json", "--results", toy).stdout)
    assert first["verdict"] in ("holds", "fails", "undecided")
    assert first["provisional"]
    assert first["seeds"] == 3
    markdown = mech("ledger", "toy", "--markdown", "--results", toy).stdout
    assert "1 &lt; 2" in markdown
    assert "| toy | line (laptop) |" in markdown


def test_queries_answer_and_bad_ones_are_one_line(toy: Path) -> None:
    mech("run", "toy", "line", "--scale", "smoke", "--results", toy, "--device", "cpu")
    assert "2" in mech("query", "select count(*) as n from runs", "--results", toy).stdout
    for question in ("select nothing", ""):
        wrong = mech("query", question, "--results", toy)
        assert wrong.returncode == 2
        assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run",), "name a paper"),
        (("run", "nothing"), "no paper 'nothing'"),
        (("run", "toy", "nothing"), "no experiment 'nothing'"),
        (("run", "toy", "--all"), "name a paper"),
        (("run", "toy", "line", "steps=x"), "steps=x"),
        (("run", "toy", "line", "--scale", "huge"), "no scale 'huge'"),
        (("run", "toy", "line", "--slurm", "partition"), "key=value"),
        (("run", "toy", "line", "--seeds", "0"), "at least one"),
        (("run", "toy", "line", "--device", "warp"), "warp"),
        (("show", "nothing"), "no paper 'nothing'"),
        (("ledger", "nothing"), "no paper 'nothing'"),
    ],
)
def test_mistakes_are_one_clear_line_and_exit_code_2(toy: Path, words: tuple, message: str) -> None:
    done = mech(*words, *(("--results", toy) if words[0] == "run" else ()))
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(toy.rglob("*.json"))


def test_a_folder_that_cannot_be_written_is_one_clear_line(toy: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = mech("run", "toy", "line", "--scale", "smoke", "--results", blocked)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def broken_site(site: Path) -> None:
    """A package whose paper does not load, and one whose commands do not."""
    for name, points in (("broken", "bad = no_such_module:paper"), ("greedy", "greedy = greedy_paper:paper")):
        info = site / f"{name}-1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[mechanisms.papers]\n{points}\n")
    (site / "greedy_paper.py").write_text(
        "from mechanisms.lab import Paper\n"
        "def run(): ...\n"
        "paper = Paper('greedy', 'T', 'A', 2026, 'toys', 'S', [],\n"
        "              commands={'run': 'greedy_paper:run', 'gone': 'greedy_paper:gone'})\n"
    )


def test_a_broken_third_party_paper_does_not_take_the_others_down(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_site(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=":")
    for words in (
        ("show", "xrm"),
        ("list",),
        ("ledger",),
        ("run", "toy", "line", "--scale", "smoke", "--results", toy),
    ):
        done = mech(*words)
        assert done.returncode == 0, done.stderr
        assert "no_such_module" in done.stderr
        assert "there is one of that name already" in done.stderr
        assert "'gone' of greedy" in done.stderr
        assert "Traceback" not in done.stderr
    assert mech("show", "bad").returncode == 2


def test_several_folders_of_results_are_merged(toy: Path, tmp_path: Path) -> None:
    words = ("run", "toy", "line", "--scale", "laptop", "--device", "cpu")
    mech(*words, "--seeds", 2, "--results", toy)
    mech(*words, "--seeds", 3, "--results", tmp_path / "other")
    (first, *_) = json.loads(mech("ledger", "toy", "--json", "--results", toy, tmp_path / "other").stdout)
    assert first["seeds"] == 3
    missing = mech("ledger", "toy", "--results", tmp_path / "typo")
    assert missing.returncode == 2
    assert "no such folder" in missing.stderr


def test_options_of_several_words_are_read_as_such() -> None:
    from mechanisms.cli import _spread

    assert _spread(["ledger", "toy", "--results", "a", "b", "--json"]) == [
        "ledger", "toy", "--results", "a", "--results", "b", "--json"
    ]  # fmt: skip
    assert _spread(["run", "toy", "--slurm", "partition=gpu", "time=5", "--seeds", "3"]) == [
        "run", "toy", "--slurm", "partition=gpu time=5", "--seeds", "3"
    ]  # fmt: skip
    assert _spread(["run", "toy", "steps=3", "--results", "a"]) == ["run", "toy", "steps=3", "--results", "a"]
