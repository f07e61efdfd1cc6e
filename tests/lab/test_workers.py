import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mechanisms.lab import workers
from mechanisms.lab.progress import Silent
from mechanisms.lab.records import read_records
from mechanisms.lab.registry import load_paper
from mechanisms.lab.session import Request, execute
from mechanisms.lab.tasks import Result, plan
from mechanisms.lab.workers import on_ray, on_slurm
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
    words = ("--scale", "smoke", "--seeds", 2, "--device", "cpu", "--jobs", 4, "--results", toy, "pause=0.5")
    done = mech("run", "toy", "crash", *words)
    assert done.returncode == 1
    assert done.stderr.count("the worker was lost (BrokenProcessPool") == 2
    assert "Traceback" not in done.stderr
    assert sorted(metrics(toy)) == [("crash", "lives", 10), ("crash", "lives", 11)]


def torchrun(results: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `mech` on two processes that train together."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["mechanisms.cli", "run", "toy", *words, "--device", "cpu", "--results", str(results)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, env=environment)


def test_processes_under_torchrun_train_one_run_together(toy: Path) -> None:
    done = torchrun(toy, "joint", "--scale", "laptop", "--seeds", "1", "steps=200")
    assert done.returncode == 0, done.stderr
    ((_, found),) = metrics(toy).items()
    assert found["processes"] == 2
    assert found["error"] < 1


def test_processes_under_torchrun_share_a_stage_that_they_train_together(toy: Path) -> None:
    done = torchrun(toy, "shared", "missing", "--scale", "smoke", "--seeds", "2")
    assert done.returncode == 0, done.stderr
    assert "4 runs done, 0 were there" in done.stdout
    assert "toy-get" in done.stderr
    found = metrics(toy)
    assert all(values["processes"] == 2 for values in found.values())
    assert all(found["shared", "one", seed] == found["shared", "two", seed] for seed in (10, 11))
    again = torchrun(toy, "shared", "--scale", "smoke", "--seeds", "3", "--variant", "one")
    assert again.returncode == 0, again.stderr
    assert "1 runs done, 2 were there" in again.stdout


@pytest.mark.parametrize("words", [{}, {"partition": "gpu"}, {"cluster": "slurm"}])
def test_slurm_is_refused_where_there_is_none(
    toy: Path, words: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="there is no `sbatch`"), on_slurm(words, toy):
        pass


def test_a_parameter_that_slurm_does_not_know_is_refused(toy: Path) -> None:
    refused = pytest.raises(ValueError, match="--slurm: Unknown argument 'nonsense'")
    with refused, on_slurm({"cluster": "local", "nonsense": "1"}, toy):
        pass


@pytest.mark.parametrize(("gpus", "asked"), [(0, [0, 0, 1]), (2, [1, 0, 1])])
def test_a_task_asks_ray_for_a_gpu_where_there_is_one_unless_it_wants_the_cpu(
    toy: Path, gpus: int, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[int] = []

    def remote(num_cpus: int, num_gpus: int) -> Any:
        wanted.append(num_gpus)
        future: Future[Result] = Future()
        return lambda function: SimpleNamespace(remote=lambda task: SimpleNamespace(future=lambda: future))

    cluster = {"CPU": 4.0} | ({"GPU": float(gpus)} if gpus else {})
    ray = SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: cluster, remote=remote)
    monkeypatch.setattr(workers, "require", lambda module, extra: ray)
    with on_ray("local") as backend:
        for device in ("auto", "cpu", "cuda"):
            (task,) = plan("toy", load_paper("toy").experiment("joint"), "smoke", device=device)
            backend.submit(task)
    assert wanted == asked


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere.invalid:6379"])
def test_a_wrong_ray_address_is_one_clear_line_within_seconds(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=f"--ray {address}: nothing answers there"), on_ray(address):
        pass
    assert time.monotonic() - started < 20


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
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
