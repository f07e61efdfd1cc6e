"""The laboratory under stress: kills at random moments, two drivers at once, no space, no permission."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mechanisms.lab.records import read_records
from tests.lab.conftest import mech

WORDS = ("run", "toy", "line", "--scale", "laptop", "--device", "cpu", "steps=10")


def start(results: Path, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mechanisms.cli", *WORDS, "--results", str(results), *map(str, words)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A suite in the background of a shell ignores Ctrl-C, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def found(results: Path) -> dict:
    """Metrics and curves by run; every file that is there must parse and be complete."""
    records, problems = read_records([results])
    assert problems == []
    return {(r.variant, r.seed): (r.metrics, r.curves) for r in records}


def kill_again_and_again(results: Path, kills: int, jobs: int, seeds: int, longest: float) -> None:
    chance = random.Random(kills)
    for _ in range(kills):
        process = start(results, "--jobs", jobs, "--seeds", seeds, "pause=0.05")
        time.sleep(chance.uniform(0.3, longest))
        process.kill()
        process.wait()
        found(results)
    process = start(results, "--jobs", jobs, "--seeds", seeds, "pause=0.05")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def uninterrupted(tmp_path: Path, seeds: int) -> dict:
    done = mech(*WORDS, "--results", tmp_path / "whole", "--seeds", seeds, "pause=0.05")
    assert done.returncode == 0, done.stderr
    return found(tmp_path / "whole")


def test_after_three_kills_the_rest_is_finished_and_equal_to_the_bit(toy: Path, tmp_path: Path) -> None:
    kill_again_and_again(toy, kills=3, jobs=2, seeds=2, longest=5)
    assert found(toy) == uninterrupted(tmp_path, seeds=2)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("jobs", [1, 2])
def test_after_twenty_five_kills_the_rest_is_finished_and_equal_to_the_bit(
    toy: Path, tmp_path: Path, jobs: int
) -> None:
    kill_again_and_again(toy, kills=25, jobs=jobs, seeds=40, longest=8)
    assert found(toy) == uninterrupted(tmp_path, seeds=40)


def test_two_drivers_in_one_folder_do_each_run_once(toy: Path, tmp_path: Path) -> None:
    drivers = [start(toy, "--seeds", 4, "pause=0.05") for _ in range(2)]
    printed = [driver.communicate(timeout=200)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0]
    done = [int(text.split(" runs done, ")[0].split()[-1]) for text in printed]
    assert sum(done) == 8
    assert found(toy) == uninterrupted(tmp_path, seeds=4)


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_keeps_finished_runs_and_says_so(toy: Path, jobs: int) -> None:
    process = start(toy, "--jobs", jobs, "--seeds", 30, "pause=0.05")
    end = time.monotonic() + 60
    while len(list(toy.rglob("*.json"))) < 2:
        assert time.monotonic() < end
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "finished runs are kept" in errors
    assert "Traceback" not in errors
    assert 2 <= len(found(toy)) < 60


def test_ctrl_c_while_workers_start_prints_no_traceback(toy: Path) -> None:
    process = start(toy, "--jobs", 2, "--seeds", 30, "pause=0.05")
    end = time.monotonic() + 60
    while not starting(process.pid):
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


def starting(group: int) -> bool:
    """Whether a worker process of the group is there."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"spawn_main" in (folder / "cmdline").read_bytes() and os.getpgid(int(folder.name)) == group:
                return True
        except OSError:
            continue
    return False


def test_a_full_disk_is_one_clear_line_and_earlier_records_are_intact(toy: Path) -> None:
    assert mech(*WORDS, "--results", toy, "--seeds", 1).returncode == 0
    before = found(toy)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))"
    command = [
        sys.executable,
        "-c",
        f"{limit}; from mechanisms.cli import main; main()",
        *WORDS,
        "--results",
        str(toy),
        "--seeds",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    assert found(toy) == before
    assert list(toy.rglob("*.part")) == []


DROPPED = """
import importlib.metadata, os, sys
from mechanisms.cli import main

# The interpreter may lie where only root may read: everything is loaded before the rights are given up.
points = importlib.metadata.entry_points(group="mechanisms.papers")
importlib.metadata.entry_points = lambda group: points.select(group=group)
command, locked = sys.argv[1:-1], sys.argv[-1]
sys.argv[1:] = [*command, os.environ["HOME"] + "/open"]
try:
    main()
except SystemExit:
    pass
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
sys.argv[1:] = [*command, locked]
main()
"""


def test_a_folder_without_write_permission_is_one_clear_line(toy: Path) -> None:
    """A child that has dropped to an unprivileged user where the suite runs as root."""
    assert mech(*WORDS, "--results", toy, "--seeds", 1).returncode == 0
    before = found(toy)
    home = toy.parent / "nobody"
    home.mkdir()
    reachable(home)
    home.chmod(0o777)
    for path in [toy, *toy.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    environment = os.environ | {"MECHANISMS_CACHE": str(home / "cache"), "HOME": str(home)}
    command = [sys.executable, "-c", DROPPED, *WORDS, "--seeds", "2", "--variant", "fast", "--results", str(toy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    for path in [toy, *toy.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert done.returncode == 2, done.stderr
    assert "cannot be written (Permission denied)" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(found(home / "open")) == 2
    assert found(toy) == before


def reachable(folder: Path) -> None:
    """Let other users pass through the private folders that pytest makes."""
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.getuid() and str(parent).startswith(str(Path("/tmp"))):
            parent.chmod(parent.stat().st_mode | 0o055)


def test_records_of_an_older_layout_are_told_and_made_anew(toy: Path) -> None:
    assert mech(*WORDS, "--results", toy, "--seeds", 1).returncode == 0
    path = next(toy.rglob("fast.10.json"))
    path.write_text(path.read_text().replace('"layout":1', '"layout":0'))
    told = mech("ledger", "toy", "--results", toy)
    assert "layout 0 where 1 is expected" in told.stderr.replace("\n", " ")
    assert told.returncode == 0
    again = mech(*WORDS, "--results", toy, "--seeds", 1)
    assert "1 runs done, 1 were there" in again.stdout
    shutil.rmtree(toy)
