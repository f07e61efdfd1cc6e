"""A run that was killed goes on from its checkpoint and ends with the bits of one that was not."""

import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mechanisms._base.seeds import seeded
from mechanisms.lab.batches import Batches
from mechanisms.lab.bench import Bench
from mechanisms.lab.checkpoints import Checkpoint
from mechanisms.lab.training import train

STEPS = 23


class Killed(Exception):
    """Stands for Ctrl-C, a lost node, a time limit."""


def run(cache: Path | None, *, kill: int | None = None, code: str = "a") -> tuple[dict, Bench, list[int]]:
    """Train a small network with everything that has a state; the seed decides all, `kill` the step it dies at."""
    bench = Bench(3, owner="toy/line", code=code, cache=cache)
    bench.checkpoint = partial(bench.checkpoint, seconds=0)  # pyrefly: ignore
    steps: list[int] = []
    with seeded(0):
        x = torch.randn(50, 6)
        y = x.sum(1, keepdim=True)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

        def finish(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            return x[rows] + 0.1 * torch.randn(len(rows), 6, generator=generator), y[rows]

        def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            steps.append(len(steps))
            if kill is not None and len(steps) > kill:
                raise Killed
            return (network(batch[0]) - batch[1]).square().mean()

        batches = Batches(50, 8, bench.seed, lambda rows: rows, finish=finish)
        train(
            bench,
            model,
            optimizer,
            batches,
            loss,
            steps=STEPS,
            every=4,
            evaluate=lambda network: {"error": float((network(x) - y).square().mean())},
            scheduler=scheduler,
            checkpoint="line",
        )
    return model.state_dict() | {"moments": optimizer.state_dict()["state"][0]["exp_avg"]}, bench, steps


def same(first: dict, second: dict) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kill", [5, 11, 20])
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(tmp_path: Path, kill: int) -> None:
    whole, bench, _ = run(None)
    with pytest.raises(Killed):
        run(tmp_path, kill=kill)
    resumed, again, steps = run(tmp_path)
    assert len(steps) == STEPS - kill // 4 * 4
    assert same(whole, resumed)
    assert again.curves == bench.curves


def test_the_checkpoint_is_gone_when_the_run_is_over_and_there_when_it_is_only_trained(tmp_path: Path) -> None:
    _, bench, _ = run(tmp_path)
    assert len(list(tmp_path.glob("line.*.checkpoint"))) == 1
    _, again, steps = run(tmp_path)  # killed after training: nothing is trained twice
    assert steps == []
    assert again.curves == bench.curves
    again.close()
    assert list(tmp_path.iterdir()) == []


def test_other_code_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, kill=9)
    assert len(run(tmp_path, code="b")[2]) == STEPS


def test_a_damaged_checkpoint_begins_anew_and_is_noted(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, kill=9)
    (file,) = tmp_path.glob("*.checkpoint")
    file.write_bytes(file.read_bytes()[:200])
    state, bench, steps = run(tmp_path)
    assert len(steps) == STEPS
    assert same(state, run(None)[0])
    assert "could not be read" in bench.notes[0]


def test_no_damage_goes_unnoticed(tmp_path: Path) -> None:
    path, parts = tmp_path / "own.pt", {"model": nn.Linear(40, 40)}
    Checkpoint(Bench(0), path, seconds=0).keep(1, parts)
    whole = path.read_bytes()
    damaged = [whole[:place] + bytes(64) + whole[place + 64 :] for place in range(0, len(whole), 997)]
    damaged += [whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :] for place in range(0, len(whole), 499)]
    damaged += [b"", b"]", b"PK", whole[: len(whole) // 2], whole[100:]]
    for content in damaged:
        path.write_bytes(content)
        bench, model = Bench(0), nn.Linear(40, 40)
        if Checkpoint(bench, path).restore({"model": model}):  # padding was hit
            assert torch.equal(model.weight, parts["model"].weight)
        else:
            assert "could not be read" in bench.notes[0]


def test_a_checkpoint_that_cannot_be_stored_does_not_end_the_run(tmp_path: Path) -> None:
    path, bench, before = tmp_path / "own.pt", Bench(0), resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoint = Checkpoint(bench, path, seconds=0)
    assert checkpoint.keep(1, {"model": nn.Linear(9, 9)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, before[1]))
    try:
        with pytest.warns(UserWarning, match="could not be stored"):
            assert not checkpoint.keep(2, {"model": nn.Linear(99, 99)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "could not be stored" in bench.notes[0]
    assert [file.name for file in tmp_path.iterdir()] == ["own.pt"]
    assert checkpoint.restore({"model": nn.Linear(9, 9)}) == 1


def test_a_checkpoint_is_readable_by_its_owner_alone_and_read_without_unpickling(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "cache", kill=9)
    (file,) = (tmp_path / "cache").glob("*.checkpoint")
    assert file.stat().st_mode & 0o077 == 0
    assert torch.load(file, weights_only=True)["step"] == 8


def test_generators_of_a_loop_of_one_s_own_are_kept(tmp_path: Path) -> None:
    bench, generator = Bench(0), torch.Generator().manual_seed(5)
    torch.rand(3, generator=generator)
    checkpoint = Checkpoint(bench, tmp_path / "own.pt", seconds=0)
    assert checkpoint.keep(1, {"noise": generator})
    expected = torch.rand(3, generator=generator)
    fresh = torch.Generator()
    assert checkpoint.restore({"noise": fresh}) == 1
    assert torch.equal(torch.rand(3, generator=fresh), expected)


def test_savings_keep_their_distance(tmp_path: Path) -> None:
    checkpoint = Checkpoint(Bench(0), tmp_path / "own.pt", seconds=1000)
    assert not checkpoint.keep(1, {})
    assert checkpoint.keep(2, {}, now=True)


@pytest.mark.user_input
def test_other_parts_and_batches_without_a_place_are_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(Bench(0), tmp_path / "own.pt", seconds=0)
    checkpoint.keep(1, {"model": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match="holds model, the run has network; delete the file"):
        checkpoint.restore({"network": nn.Linear(1, 1)})
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="list does not know where it stands"):
        train(Bench(0), model, optimizer, [torch.ones(1, 1)], lambda m, x: m(x).sum(), steps=1, checkpoint="own")
    with pytest.raises(ValueError, match="make no batch of 8"):
        Batches(5, 8, 0, lambda rows: rows, drop_last=True)
    with pytest.raises(ValueError, match="count=0"):
        Batches(0, 8, 0, lambda rows: rows)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_go_on_in_the_middle_of_an_epoch(workers: int) -> None:
    def fresh() -> Batches:
        return Batches(10, 3, 7, rows_of, workers=workers)

    reference = fresh()
    expected = [rows.tolist() for _ in range(2) for rows in reference]
    for epoch in (expected[:4], expected[4:]):
        assert sorted(row for rows in epoch for row in rows) == list(range(10))
    assert expected[:4] != expected[4:]
    first, second = fresh(), fresh()
    seen = []
    for rows in first:
        seen.append(rows.tolist())
        if len(seen) == 2:
            break
    second.load_state_dict(first.state_dict())
    seen += [rows.tolist() for _ in range(2) for rows in second]
    assert seen == expected


def test_workers_leave_the_global_generator_alone() -> None:
    with seeded(0):
        before = torch.get_rng_state()
        assert len(list(Batches(4, 2, 7, rows_of, workers=1))) == 2
        assert torch.equal(torch.get_rng_state(), before)


def rows_of(rows: Tensor) -> Tensor:
    return rows


def test_processes_share_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for rank in range(2):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(rank))
        shares.append([rows.tolist() for rows in Batches(9, 4, 1, rows_of)])
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    whole = [rows.tolist() for rows in Batches(9, 4, 1, rows_of)][:2]  # the ninth would leave one process idle
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == [sorted(rows) for rows in whole]


SCRIPT = """
import sys, torch
from pathlib import Path
from torch import nn
from mechanisms._base.seeds import seeded
from mechanisms.lab.batches import Batches
from mechanisms.lab.bench import Bench
from mechanisms.lab.together import rank
from mechanisms.lab.training import train

cache, kill, out = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
bench = Bench(1, owner="toy/two", cache=cache)
make = bench.checkpoint
bench.checkpoint = lambda key: make(key, seconds=0)
with seeded(0):
    x = torch.randn(40, 5)
    y = x.sum(1, keepdim=True)
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 1))
torch.manual_seed(rank())
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
seen = []

def loss(network, rows):
    seen.append(rows)
    if len(seen) == kill:
        sys.exit(3)
    return (network(x[rows]) - y[rows]).square().mean()

train(bench, model, optimizer, Batches(40, 8, 1, lambda rows: rows), loss, steps=12, every=3, checkpoint="two")
if rank() == 0:
    torch.save({"weights": torch.cat([p.flatten() for p in model.parameters()]), "steps": len(seen)}, out)
bench.close()
"""


@pytest.mark.slow
def test_processes_that_train_together_go_on_together(tmp_path: Path) -> None:
    """Each with its own random state; two processes under torchrun, killed and started again."""
    (tmp_path / "two.py").write_text(SCRIPT)

    def torchrun(cache: str, kill: int) -> dict | None:
        words = ["--standalone", "--nproc-per-node=2", str(tmp_path / "two.py"), str(tmp_path / cache), str(kill)]
        command = [sys.executable, "-m", "torch.distributed.run", *words, str(tmp_path / "out.pt")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
        assert (done.returncode == 0) == (kill == 0), done.stderr[-2000:]
        return torch.load(tmp_path / "out.pt", weights_only=True) if kill == 0 else None

    whole = torchrun("first", 0)
    assert torchrun("second", 8) is None
    assert len(list((tmp_path / "second").glob("*.checkpoint"))) == 1
    again = torchrun("second", 0)
    assert whole is not None
    assert again is not None
    assert (whole["steps"], again["steps"]) == (12, 6)
    assert torch.equal(whole["weights"], again["weights"])
    assert list((tmp_path / "second").iterdir()) == []
