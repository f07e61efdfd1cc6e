"""Language models of the recipes: encoded texts, windows, rows that hand their state on, evaluation, going on."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mechanisms.lab.bench import Bench
from mechanisms.lab.data import Tokens
from mechanisms.papers._sequences.language import Language, train_language
from mechanisms.papers._sequences.language_model import (
    Best,
    LanguageModel,
    Rows,
    Windows,
    clipped_step,
    cut,
    endless,
    read,
)
from mechanisms.recurrent import LSTMCell, Recurrent, Zoneout, ZoneoutLSTM

SMALL = Language(window=6, batch_size=4, updates=6, every=2, evaluated=3)


def make_network(size: int) -> Recurrent:
    return Recurrent(Zoneout(LSTMCell(size, 5, learn_initial_state=True), 0.3), size)


def corpus(length: int = 60, kind: str = "uint8") -> Tokens:
    drawn = np.random.default_rng(0).integers(4, size=(3, length)).astype(kind)
    return Tokens(*drawn, tuple("abcd"), "")


def test_a_cut_keeps_the_vocabulary() -> None:
    found = cut(corpus(), 2, 1, 0)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [2, 1, 60]
    assert found.vocabulary == corpus().vocabulary


def test_windows_of_an_epoch_do_not_overlap_and_their_offset_changes() -> None:
    text, offsets = torch.arange(60), set()
    windows = Windows(text, 7, 3, seed=0)
    for _ in range(10):
        seen = torch.cat(list(windows), 1)
        assert seen.shape == (7, 7)
        assert len(seen.unique()) == seen.numel()
        assert torch.equal(seen - seen[0], torch.arange(7).unsqueeze(1).expand(7, 7))
        starts = (seen[0] % 7).unique()
        assert len(starts) == 1
        offsets.add(int(starts))
    assert len(offsets) > 2


def test_rows_go_on_with_the_text_that_follows_also_from_epoch_to_epoch() -> None:
    rows = Rows(torch.arange(60), 4, 3, make_network(2))
    first, second, third, fourth, fifth = (piece for piece, _ in zip(endless(rows), range(5), strict=False))
    assert first.tolist() == [[k + step for k in (0, 16, 32)] for step in range(5)]
    assert torch.equal(second[0], first[-1])
    assert torch.equal(fourth[0], third[-1])
    # The first two rows read on in what was their neighbour's text; the last one begins the text anew.
    assert fifth[0].tolist() == [16, 32, 0]
    assert torch.equal(fifth[0, :2], fourth[-1, :2])


def test_reading_in_windows_is_the_mean_over_each_of_them_alone() -> None:
    torch.manual_seed(0)
    text, model = torch.from_numpy(corpus().test), LanguageModel(make_network(4), 4).double().eval()
    single = []
    for start in range(0, 60, 6):
        piece = text[start : start + 6].long().unsqueeze(1)
        logits = model(piece[:-1])[0].float()
        single.append(nn.functional.cross_entropy(logits.flatten(0, 1), piece[1:].flatten()).item())
    for together in (1, 3, 100):
        assert read(model, text, 6, 0, together) == pytest.approx(sum(single) / 10 / math.log(2), abs=1e-6)


def test_reading_in_rows_does_not_depend_on_the_window() -> None:
    torch.manual_seed(0)
    text, model = torch.from_numpy(corpus(61).test), LanguageModel(make_network(3), 4, embedding=3).eval()
    whole = read(model, text, 60, 1, 1)
    assert read(model, text, 7, 1, 1) == pytest.approx(whole, abs=1e-5)
    logits = model(text[:-1].long().unsqueeze(1))[0]
    by_hand = nn.functional.cross_entropy(logits.flatten(0, 1), text[1:].long()).item() / math.log(2)
    assert whole == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.parametrize("largest", [1e-3, 1e3])
def test_a_clipped_step_is_the_optimisers_step_or_shorter(largest: float) -> None:
    def after(shorten: bool) -> list[Tensor]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        start = [one.detach().clone() for one in layer.parameters()]
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
        layer(torch.ones(1, 3)).sum().backward()
        if shorten:
            clipped_step(optimizer, list(layer.parameters()), largest)
        else:
            optimizer.step()
        return [one.detach() - old for one, old in zip(layer.parameters(), start, strict=True)]

    moves, shortened = (torch.cat([move.flatten() for move in after(shorten)]) for shorten in (False, True))
    expected = moves * min(1.0, largest / float(moves.norm()))
    torch.testing.assert_close(shortened, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"carry": True, "embedding": 3, "optimizer": "sgd", "measure": "perplexity"},
        {"weight_noise": 0.1, "clipped": "update"},
        {"clip": 0.0, "precision": "bf16-mixed"},
    ],
)
def test_training_measures_and_keeps_the_best(changes: dict[str, Any]) -> None:
    settings = Language(**{"window": 6, "batch_size": 4, "updates": 6, "every": 2, "evaluated": 3} | changes)
    bench = Bench(0)
    kind = "uint16" if settings.carry else "uint8"
    result = train_language(
        make_network, corpus(kind=kind), settings, bench, penalty=lambda outputs: outputs.square().mean()
    )
    steps, values = bench.curves[f"validation_{settings.measure}"]
    assert steps == [2, 4, 6]
    metrics = result.metrics
    assert metrics[f"best_validation_{settings.measure}"] == pytest.approx(min(values), abs=1e-4)
    assert metrics["best_update"] == steps[values.index(min(values))]
    assert metrics["gap"] == pytest.approx(values[-1] - bench.curves[f"train_{settings.measure}"][1][-1], abs=1e-4)
    assert not result.model.training
    again = train_language(make_network, corpus(), settings, Bench(0), penalty=lambda outputs: outputs.square().mean())
    assert again.metrics == metrics


def test_networks_in_place_of_torch_s_will_do() -> None:
    result = train_language(lambda size: ZoneoutLSTM(size, 5), corpus(), SMALL, Bench(0))
    assert np.isfinite(result.metrics["test_bpc"])


def test_weights_depend_on_the_seed_and_not_on_what_else_the_network_draws() -> None:
    def wasteful(size: int) -> Recurrent:
        network = make_network(size)
        torch.rand(100)
        return network

    settings = Language(window=6, batch_size=4, updates=1, every=1)
    one, two = (train_language(make, corpus(), settings, Bench(0)).metrics for make in (make_network, wasteful))
    assert one == two


def test_training_goes_on_until_the_validation_turns_and_no_further() -> None:
    """Random text: the best validation comes early, so patience ends it; the gap is that after `updates`."""
    settings = Language(window=6, batch_size=4, lr=0.05, updates=4, every=2, patience=3, most_updates=400)
    bench = Bench(0)
    metrics = train_language(make_network, corpus(), settings, bench).metrics
    assert 4 < metrics["lasted"] < 400
    assert metrics["lasted"] == metrics["best_update"] + 6
    assert metrics["gap"] == pytest.approx(
        bench.curves["validation_bpc"][1][1] - bench.curves["train_bpc"][1][1], abs=1e-4
    )


class Killed(BaseException):
    """What stops a run from outside."""


@pytest.mark.parametrize("carry", [False, True])
def test_a_run_that_was_killed_ends_with_the_same_bits(
    carry: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Language(window=6, batch_size=2, carry=carry, updates=8, every=2, weight_noise=0.05)
    expected = train_language(make_network, corpus(), settings, Bench(0))

    def bench() -> Bench:
        fresh = Bench(0, settings=settings, cache=tmp_path)
        make = fresh.checkpoint
        monkeypatch.setattr(fresh, "checkpoint", lambda name: make(name, seconds=0))
        return fresh

    first = bench()

    def stop(step: int, total: int | None = None, **numbers: Any) -> None:
        if step == 7:
            raise Killed

    monkeypatch.setattr(first, "progress", stop)
    with pytest.raises(Killed):
        train_language(make_network, corpus(), settings, first)
    second = bench()
    found = train_language(make_network, corpus(), settings, second)
    assert found.metrics == expected.metrics
    assert second.curves["train_bpc"][0] == [2, 4, 6, 8]
    for one, two in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_best_is_a_copy() -> None:
    layer, best = nn.Linear(2, 2), Best()
    best.see(1, math.nan, layer)
    assert best.weights
    best.see(2, 1.0, layer)
    with torch.no_grad():
        layer.weight.zero_()
    assert best.weights["weight"].any()
    best.see(3, 2.0, layer)
    assert best.update == 2


@pytest.mark.user_input
def test_texts_that_are_too_short_are_refused() -> None:
    with pytest.raises(ValueError, match="no windows of 6 at every offset"):
        train_language(make_network, corpus(8), SMALL, Bench(0))
    with pytest.raises(ValueError, match="no 4 rows of a window of 6"):
        train_language(make_network, corpus(20), Language(window=6, batch_size=4, carry=True), Bench(0))
