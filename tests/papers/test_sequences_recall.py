"""Training and testing networks on tasks of memory: pairs, determinism, blocks of seeds, longer delays."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from mechanisms.lab import Bench
from mechanisms.papers._sequences.recall import (
    Recall,
    Scorer,
    batches,
    draw,
    train_recall,
    train_recall_network,
    train_recall_together,
    with_readout,
)
from mechanisms.recurrent import LSTMCell, Recurrent, SparseAttentiveBacktracking

TINY = Recall(
    delay=4, n=2, symbols=3, batch_size=8, hidden_size=8, updates=20, every=10, lr=1e-2, test_delays=(8,), test_size=50
)


def lstm(size: int) -> Recurrent:
    return Recurrent(lambda n: LSTMCell(n, 8), size)


def reminded(size: int) -> Recurrent:
    return Recurrent(lambda n: SparseAttentiveBacktracking(LSTMCell(n, 8), k_trunc=3, k_top=2), size)


@pytest.mark.parametrize("encoding", ["one_hot", "tokens", "scalar"])
@pytest.mark.parametrize("task", ["copying", "denoise", "adding"])
def test_every_task_runs_and_says_what_it_should(task: str, encoding: str) -> None:
    settings = dataclasses.replace(TINY, task=task, encoding=encoding, updates=2, every=1)
    bench = Bench(seed=0)
    found = train_recall(settings, lstm, bench)
    if task == "adding":
        assert {"loss", "loss_at_8", "baseline"} == set(found)
        assert bench.curves["test_loss"][0] == [1, 2]
    else:
        assert {"accuracy", "accuracy_at_8", "recall_loss_at_8", "chance", "updates_to_50"} <= set(found)
        assert found["chance"] == pytest.approx(1 / 3)
        assert bench.curves["accuracy"][0] == [1, 2]
    assert len(bench.curves["training_loss"][1]) == 2


def test_the_same_seed_gives_the_same_and_another_seed_another() -> None:
    first, second, other = (train_recall(TINY, lstm, Bench(seed=seed)) for seed in (3, 3, 4))
    assert first == second
    assert first != other


def test_weights_and_data_do_not_depend_on_the_variant() -> None:
    settings = dataclasses.replace(TINY, updates=1, lr=0.0)
    _, one = train_recall_network(settings, lstm, Bench(seed=0))
    _, two = train_recall_network(settings, reminded, Bench(seed=0))
    assert torch.equal(one.network.cells[0].weight_hh, two.network.cells[0].cell.weight_hh)


@pytest.mark.parametrize("task", ["copying", "denoise", "adding"])
def test_batches_are_drawn_together_and_each_is_whole(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mechanisms.papers._sequences import recall

    monkeypatch.setattr(recall, "DRAWN", 3 * 8 * 8)
    settings = dataclasses.replace(TINY, task=task, delay=8 if task == "adding" else 4)
    stream = batches(settings, Bench(seed=0).generator("data"), torch.device("cpu"))
    got = [next(stream) for _ in range(5)]
    assert got[0].inputs.is_contiguous()
    for inputs, targets in got:
        if task == "adding":
            assert torch.allclose((inputs[..., 0] * inputs[..., 1]).sum(0), targets)
        else:
            tokens = inputs.argmax(-1)
            assert (tokens[-3] == settings.symbols + 1).all()
            for row in range(8):
                read = tokens[:5, row]
                assert torch.equal(read[read > 0], targets[-2:, row])
    assert not torch.equal(got[0].inputs, got[1].inputs)  # within a draw
    assert not torch.equal(got[0].inputs, got[3].inputs)  # and between draws


def test_a_longer_run_begins_as_a_shorter_one() -> None:
    short, long = Bench(seed=0), Bench(seed=0)
    train_recall(dataclasses.replace(TINY, updates=10), lstm, short)
    train_recall(TINY, lstm, long)
    assert short.curves["training_loss"][1] == long.curves["training_loss"][1][:1]


def test_a_small_network_learns_a_small_task() -> None:
    settings = dataclasses.replace(TINY, delay=1, n=1, updates=200, every=100, test_delays=(2,))
    found = train_recall(settings, lstm, Bench(seed=0))
    assert found["accuracy"] > 0.9
    assert found["updates_to_50"] <= 200


def test_what_is_never_reached_is_one_update_more_than_there_are() -> None:
    found = train_recall(dataclasses.replace(TINY, updates=2, lr=0.0, symbols=8, n=5), lstm, Bench(seed=0))
    assert found["updates_to_90"] == 3


@pytest.mark.parametrize("make", [lstm, reminded])
def test_a_block_of_seeds_is_trained_as_each_alone(make: Any) -> None:
    """To rounding, which a few updates do not amplify yet."""
    settings = dataclasses.replace(TINY, updates=3, every=3, clip=0.1, lr=1e-3)
    benches = [Bench(seed=seed) for seed in (0, 1)]
    together = train_recall_together(settings, make, benches)
    for bench, found in zip(benches, together, strict=True):
        single = Bench(seed=bench.seed)
        want = train_recall(settings, make, single)
        assert found["recall_loss"] == pytest.approx(want["recall_loss"], abs=1e-3)
        assert found["recall_loss_at_8"] == pytest.approx(want["recall_loss_at_8"], abs=1e-3)
        assert bench.curves["training_loss"][1] == pytest.approx(single.curves["training_loss"][1], abs=1e-3)


def test_scores_are_those_of_all_sequences_and_leave_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long sequences are tested in parts, in evaluation mode."""
    from mechanisms.papers._sequences import recall

    model = with_readout(TINY, lambda size: Recurrent(lambda n: LSTMCell(n, 8), size, num_layers=2, dropout=0.5))
    whole = Scorer(TINY, Bench(seed=0))(model, 8)
    assert whole == Scorer(TINY, Bench(seed=0))(model, 8)
    assert model.training
    inputs, targets = draw(TINY, 50, 8, Bench(seed=0).generator("test 8"), "cpu")
    with torch.no_grad():
        right = (model.eval()(inputs)[-2:].argmax(-1) == targets[-2:]).float().mean()
    assert whole["accuracy"] == pytest.approx(float(right))
    monkeypatch.setattr(recall, "DRAWS", 3)
    parts = Scorer(TINY, Bench(seed=0))(model, 8)
    assert 0 <= parts["accuracy"] <= 1


def test_rmsprop_no_clipping_and_a_device() -> None:
    settings = dataclasses.replace(TINY, optimizer="rmsprop", clip=0.0, updates=2, every=1)
    assert train_recall(settings, lstm, Bench(seed=0, device="cpu"))["loss"] > 0
    assert isinstance(with_readout(settings, lstm), nn.Module)
