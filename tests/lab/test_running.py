import os
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from mechanisms._base.extras import MissingExtra
from mechanisms.lab import running, session, tasks
from mechanisms.lab.progress import Silent
from mechanisms.lab.records import Record, read_records, write_record
from mechanisms.lab.registry import load_paper
from mechanisms.lab.session import Request, execute
from mechanisms.lab.workers import Here


def request(results: Path, *names: str, **options: Any) -> Request:
    paper = load_paper("toy")
    work = [(paper, [paper.experiment(name) for name in names or ("line",)])]
    return Request(work=work, **({"scale": "smoke", "results": results, "device": "cpu"} | options))


def test_a_run_leaves_one_complete_record_each(toy: Path) -> None:
    summary = execute(request(toy, seeds=3), Silent())
    records, problems = read_records([toy])
    assert (summary.done, len(records), problems) == (6, 6, [])
    record = next(r for r in records if (r.variant, r.seed) == ("fast", 10))
    assert record.config == {"steps": 3, "lr": 0.05, "noise": 0.1, "pause": 0.0, "sizes": [8, 8]}
    assert record.curves["loss"].step == [0, 1, 2]
    assert record.notes == ["a line"]
    assert record.metrics["near"] == [record.metrics["near"][0]] * 2
    assert record.peak_memory > 0
    assert record.versions["torch"] == torch.__version__
    assert record.device == "cpu"
    assert list(toy.rglob("*.part")) == []


def test_finished_runs_are_skipped_and_older_code_is_rerun_when_asked(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(request(toy), Silent())
    assert execute(request(toy), Silent()).there == 2
    for module in (running, tasks):
        monkeypatch.setattr(module, "code_hash", lambda slug: "newer")
    assert execute(request(toy), Silent()).there == 2
    assert execute(request(toy, rerun=True), Silent()).done == 2
    assert {record.code for record in read_records([toy])[0]} == {"newer"}


def test_the_shared_stage_is_computed_once_per_seed(toy: Path) -> None:
    execute(request(toy, seeds=2), Silent())
    computed = [record.variant for record in read_records([toy])[0] if "data" in record.stages]
    assert computed == ["fast", "fast"]


def test_worker_processes_and_this_process_give_the_same_bits(toy: Path, tmp_path: Path) -> None:
    execute(request(toy, seeds=4), Silent())
    execute(request(tmp_path / "other", seeds=4, jobs=2), Silent())
    one, two = (
        {(r.variant, r.seed): (r.metrics, r.curves) for r in read_records([f])[0]} for f in (toy, tmp_path / "other")
    )
    assert one == two


def test_a_block_of_seeds_is_one_task_and_gives_all_its_records(toy: Path) -> None:
    planned = tasks.plan("toy", load_paper("toy").experiment("blocks"), "smoke", seeds=6)
    assert [task.seeds for task in planned] == [(10, 11, 12, 13, 14), (15, 16, 17, 18, 19)]
    execute(request(toy, "blocks", seeds=6), Silent())
    values = {record.seed: record.metrics["value"] for record in read_records([toy])[0]}
    assert values == {seed: seed + 500.0 for seed in range(10, 20)}


def test_missing_data_are_not_run_and_failures_do_not_stop_the_others(toy: Path) -> None:
    summary = execute(request(toy, "missing", "broken"), Silent())
    assert list(summary.missing) == ["the toy data are not in /nowhere; get them with: toy-get"]
    ((name, reason),) = summary.failed
    assert name == "broken bad seed 10"
    assert "RuntimeError: it broke" in reason
    assert len(read_records([toy])[0]) == 1
    (trace,) = (toy / "toy" / ".errors").glob("*.txt")
    assert "Traceback" in trace.read_text()


def test_a_corrupt_record_is_made_anew(toy: Path) -> None:
    execute(request(toy), Silent())
    path = next(toy.glob("toy/*/fast.10.json"))
    before = path.read_text()
    path.write_text(before[: len(before) // 2])
    assert execute(request(toy), Silent()).done == 1
    assert read_records([toy])[1] == []


def test_the_threads_of_a_run_are_a_setting_and_are_put_back(toy: Path) -> None:
    before = torch.get_num_threads()
    execute(request(toy, threads=2), Silent())
    assert {record.threads for record in read_records([toy])[0]} == {2}
    assert torch.get_num_threads() == before


def test_seeds_are_added_until_the_claims_are_decided(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "STAGES", (3, 5))
    execute(request(toy, until_decided=True, scale="laptop"), Silent())
    records = read_records([toy])[0]
    assert {record.looks for record in records} == {2}
    assert len(records) in (6, 10)


def test_claims_of_other_scales_do_not_ask_for_more_seeds(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "STAGES", (1, 3))
    execute(request(toy, until_decided=True, scale="smoke"), Silent())
    assert len(read_records([toy])[0]) == 2


def test_the_threads_of_a_run_bind_blas_and_openmp_too(toy: Path) -> None:
    execute(request(toy, "threads", threads=2), Silent())
    (record,) = read_records([toy])[0]
    assert len(record.metrics["threads"]) >= 3
    assert set(record.metrics["threads"]) == {2}


def test_finished_runs_are_skipped_without_loading_their_paper(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(request(toy, seeds=3), Silent())
    planned = tasks.plan("toy", load_paper("toy").experiment("line"), "smoke", seeds=3)
    monkeypatch.setattr(tasks, "load_paper", lambda slug: pytest.fail("it was loaded"))
    assert running.carry_out(planned, toy, Here(Silent()), Silent()).there == 6


def test_a_block_that_cannot_be_written_whole_leaves_nothing(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(record: Record, results: Path) -> Path:
        if record.seed == 13:
            raise OSError(28, "No space left on device")
        return write_record(record, results)

    monkeypatch.setattr(running, "write_record", full)
    with pytest.raises(OSError, match="No space left"):
        execute(request(toy, "blocks", seeds=5), Silent())
    assert not list(toy.rglob("*.json"))
    assert not list(toy.rglob(".*.part"))


def test_an_experiment_without_the_scale_is_told_and_left_out_when_others_have_it(toy: Path) -> None:
    summary = execute(request(toy, "line", "threads", scale="laptop", seeds=1, overrides=["steps=2"]), Silent())
    assert (summary.done, summary.missing) == (2, {"no scale 'laptop': toy threads": ["toy threads"]})
    with pytest.raises(ValueError, match="threads has no scale 'laptop'"):
        execute(request(toy, "threads", scale="laptop"), Silent())


def test_half_written_files_are_taken_away_after_a_day(toy: Path) -> None:
    folder = toy / "toy" / "line.smoke.0" / ".block.a.part"
    folder.mkdir(parents=True)
    old, new = folder.parent / ".fast.1.json.b.part", folder.parent / ".fast.1.json.c.part"
    theirs = folder.parent / "theirs.part"
    for path in (old, new, theirs):
        path.write_text("{")
    for path in (folder, old, theirs):
        os.utime(path, (0, 0))
    execute(request(toy, variants=["fast"]), Silent())
    assert [path.exists() for path in (folder, old, new, theirs)] == [False, False, True, True]


def test_the_reason_of_a_lost_worker_is_one_line(toy: Path) -> None:
    class Lost(Here):
        def submit(self, task: tasks.Task) -> Future[tasks.Result]:
            future: Future[tasks.Result] = Future()
            future.set_exception(RuntimeError("node gone\n  at line 1\n  at line 2"))
            return future

    planned = tasks.plan("toy", load_paper("toy").experiment("blocks"), "smoke")
    ((_, reason),) = running.carry_out(planned, toy, Lost(Silent()), Silent()).failed
    assert reason == "the worker was lost (RuntimeError: node gone)"


@pytest.mark.parametrize("logger", ["csv", "tensorboard"])
def test_log_files_that_cannot_be_written_cost_no_run(toy: Path, logger: str) -> None:
    toy.mkdir()
    (toy / ".logs").write_text("a file where a folder should be")
    assert execute(request(toy, logger=logger, variants=["fast"]), Silent()).done == 1
    (record,) = read_records([toy])[0]
    assert sum("the logger failed" in note for note in record.notes) == 1
    assert len(record.curves["loss"].step) == 3


@pytest.mark.parametrize(("logger", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow")])
def test_a_logger_whose_package_is_missing_is_refused_at_once(
    toy: Path, logger: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match="pip install"):
        request(toy, logger=logger)


def test_paths_of_a_task_are_absolute(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy.parent)
    monkeypatch.setenv("MECHANISMS_CACHE", "cache")
    asked = request(Path("results"))
    (task, *_) = session._tasks(asked, load_paper("toy"), load_paper("toy").experiment("line"), 1)
    assert task.logs == str(toy / ".logs")
    assert task.cache == str(toy.parent / "cache")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "huge"}, "has no scale 'huge'"),
        ({"variants": ["medium"]}, "has no variant 'medium'"),
        ({"seeds": 0}, "at least one is needed"),
        ({"jobs": 0}, "at least one is needed"),
        ({"threads": 0}, "at least one is needed"),
        ({"overrides": ["stepz=3"]}, "did you mean steps"),
        ({"jobs": 2, "ray": "local"}, "exclude each other"),
        ({"logger": "paper"}, "there is no logger 'paper'"),
        ({"until_decided": True, "seeds": 3}, "leave --seeds out"),
        ({"slurm": {"nonsense": "1"}}, "--slurm"),
    ],
)
def test_a_bad_request_is_refused_before_anything_runs(toy: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        execute(request(toy, **options), Silent())
    assert not list(toy.rglob("*.json"))


@pytest.mark.parametrize(("logger", "pattern"), [("csv", "metrics.csv"), ("tensorboard", "events.*")])
def test_the_chosen_logger_gets_what_the_record_gets(toy: Path, logger: str, pattern: str) -> None:
    execute(request(toy, logger=logger, variants=["fast"]), Silent())
    (file,) = (toy / ".logs").rglob(pattern)
    if logger == "csv":
        assert set(file.read_text().splitlines()[0].split(",")) == {"step", "loss"}
        assert len(file.read_text().splitlines()) == 4
    assert file.stat().st_size > 0


def test_without_a_logger_there_are_only_records(toy: Path) -> None:
    execute(request(toy, logger="none", variants=["fast"]), Silent())
    assert not (toy / ".logs").exists()
