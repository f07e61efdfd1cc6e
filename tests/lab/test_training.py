import pytest
import torch
from torch import nn

from mechanisms.lab.bench import Bench
from mechanisms.lab.training import train


def line(steps: int, batches=None, **options) -> tuple[nn.Linear, Bench]:
    bench = Bench(0)
    torch.manual_seed(0)
    x = torch.randn(40, 3)
    y = x.sum(1, keepdim=True)
    model = nn.Linear(3, 1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(
        bench,
        model,
        optimizer,
        loader if batches is None else batches,
        lambda network, batch: (network(batch[0]) - batch[1]).square().mean(),
        steps=steps,
        evaluate=lambda network: {"error": float((network(x) - y).square().mean())},
        **options,
    )
    return model, bench


def test_the_loop_learns_repeats_its_batches_and_logs_what_it_evaluates() -> None:
    model, bench = line(100, every=40)
    assert not model.training
    assert bench.curves["error"][0] == [40, 80, 100]
    assert bench.curves["error"][1][-1] < 1e-2
    assert bench.curves["loss"][0] == [40, 80, 100]


def test_a_single_batch_of_one_row_is_enough() -> None:
    model, _ = line(3, batches=[(torch.ones(1, 3), torch.ones(1, 1))])
    assert torch.isfinite(model.weight).all()


def test_gradients_are_clipped() -> None:
    start = nn.Linear(3, 1)
    torch.manual_seed(0)
    torch.randn(40, 3)
    start = nn.Linear(3, 1)
    model, _ = line(1, clip=1e-6)
    assert (model.weight - start.weight).norm() <= 0.1 * 1e-6 * 1.01


def test_several_slurm_tasks_for_one_run_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NTASKS": "4", "JOB_NAME": "mech", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(ValueError, match=r"SLURM started 4 tasks for one run; .*torchrun"):
        line(1)


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        line(steps)


def test_no_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="no batches"):
        line(1, batches=[])
