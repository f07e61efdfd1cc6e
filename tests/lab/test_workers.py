import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mechanisms.lab.progress import Silent
from mechanisms.lab.records import read_records
from mechanisms.lab.registry import load_paper
from mechanisms.lab.session import Request, execute
from tests.lab.conftest import mech


def metrics(folder: Path) -> dict:
    return {(r.experiment, r.variant, r.seed): r.metrics for r in read_records([folder])[0]}


def here(toy: Path, folder: Path, *names: str) -> dict:
    paper = load_paper("toy")
    work = [(paper, [paper.experiment(name) for name in names])]
    execute(Request(work=work, scale="smoke", results=folder, device="cpu", seeds=2), Silent())
    return metrics(folder)


def test_slurm_through_its_local_executor_gives_the_same_records(toy: Path, tmp_path: Path) -> None:
    words = ("--scale", "smoke", "--seeds", 2, "--device", "cpu", "--results", toy)
    done = mech("run", "toy", "line", *words, "--slurm", "cluster=local timeout_min=5")
    assert done.returncode == 0, done.stderr
    assert metrics(toy) == here(toy, tmp_path / "here", "line")


def test_an_embedded_ray_cluster_gives_the_same_records(toy: Path, tmp_path: Path) -> None:
    words = ("--scale", "smoke", "--seeds", 2, "--device", "cpu", "--results", toy)
    done = mech("run", "toy", "line", *words, "--ray", "local")
    assert done.returncode == 0, done.stderr
    assert metrics(toy) == here(toy, tmp_path / "here", "line")


def test_failures_and_missing_data_are_told_by_every_back_end(toy: Path) -> None:
    done = mech("run", "toy", "broken", "missing", "--scale", "smoke", "--device", "cpu", "--jobs", 2, "--results", toy)
    assert done.returncode == 1
    assert "RuntimeError: it broke" in done.stderr
    assert "toy-get" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_that_dies_costs_its_own_run_only(toy: Path) -> None:
    words = ("--scale", "smoke", "--seeds", 4, "--device", "cpu", "--jobs", 2, "--results", toy)
    done = mech("run", "toy", "crash", *words)
    assert done.returncode == 1
    assert "the worker was lost" in done.stderr
    assert "Traceback" not in done.stderr
    again = mech("run", "toy", "crash", *words, "--variant", "lives")
    assert again.returncode == 0
    assert len(metrics(toy)) == 4


def test_processes_under_torchrun_train_one_run_together(toy: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    words = ["mechanisms.cli", "run", "toy", "joint", "--device", "cpu", "--results", str(toy), "--scale", "laptop"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words += ["--seeds", "1", "steps=200"]
    done = subprocess.run(command + words, capture_output=True, text=True, check=False, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    ((_, found),) = metrics(toy).items()
    assert found["processes"] == 2
    assert found["error"] < 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_on_a_gpu_says_so(toy: Path) -> None:
    paper = load_paper("toy")
    execute(Request(work=[(paper, [paper.experiment("joint")])], scale="smoke", results=toy, device="cuda"), Silent())
    assert all(record.device.startswith("cuda: ") for record in read_records([toy])[0])


def test_worker_processes_end_when_the_driver_is_killed(toy: Path) -> None:
    words = ("run", "toy", "line", "--scale", "smoke", "--jobs", "2", "--seeds", "2", "--device", "cpu", "--results")
    command = [sys.executable, "-m", "mechanisms.cli", *words, str(toy), "pause=100"]
    marker = str(shutil.which("sleep"))  # any text that marks our processes in their environment
    driver = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"TOY_MARK": f"{toy}{marker}"}
    )
    _wait(lambda: len(_with_mark(f"{toy}{marker}")) >= 3)
    driver.kill()
    driver.wait()
    _wait(lambda: not _with_mark(f"{toy}{marker}"))


def _with_mark(mark: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"TOY_MARK={mark}".encode() in (folder / "environ").read_bytes() and (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def _wait(condition, seconds: float = 60) -> None:
    import time

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
