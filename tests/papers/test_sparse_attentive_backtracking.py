"""The recipe of sparse attentive backtracking: networks, what they are asked, and the roads of the paper's scale."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mechanisms.lab import Bench
from mechanisms.lab.paper import NotHere
from mechanisms.lab.records import Cell, Record
from mechanisms.papers._backtracking import corpora, gradients, images, recall
from mechanisms.papers._backtracking.networks import REMINDED, make_network
from mechanisms.papers.sparse_attentive_backtracking import paper
from mechanisms.recurrent import LSTMCell, SparseAttentiveBacktracking
from tests.lab.corpora import write_mnist, write_penn_treebank, write_text8
from tests.lab.photographs import write_cifar10

COPYING = paper.experiment("copying")
SMOKE = COPYING.scales["smoke"]


def test_a_variant_s_name_says_what_it_is() -> None:
    settings = recall.Memory(hidden_size=8)
    made = {variant: make_network(variant, settings)(3) for variant in COPYING.variants}
    cells = {variant: network.cells[0] for variant, network in made.items()}
    assert isinstance(cells["lstm"], LSTMCell)
    assert made["lstm"].truncate is None
    assert made["tbptt"].truncate == (5, 4)
    assert {"full-attention", "sab-additive", "sab-released", "sab-released-trunc-1"} == set(cells) - {"lstm", "tbptt"}
    for variant in set(cells) - {"lstm", "tbptt"}:
        cell, options = cells[variant], REMINDED[variant]
        assert isinstance(cell, SparseAttentiveBacktracking)
        dense = variant == "full-attention"  # the same but for what is compared: all entries, and no cut
        trunc = 1 if variant.endswith("trunc-1") else 5
        assert (cell.k_trunc, cell.k_top, cell.k_att) == ((None, None, 2) if dense else (trunc, 5, 2))
        assert cell.score_kind == options["score"]


def test_truncation_by_the_kernel_is_that_of_single_steps() -> None:
    torch.manual_seed(0)
    network = make_network("tbptt", recall.Memory(hidden_size=8))(3).double()
    inputs = torch.randn(13, 2, 3, dtype=torch.float64, requires_grad=True)
    output, _ = network(inputs)
    network.backend = "eager"
    again, _ = network(inputs)
    torch.testing.assert_close(output, again, rtol=0, atol=1e-12)
    mine, theirs = (torch.autograd.grad(one.cos().sum(), inputs)[0] for one in (output, again))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_settings_are_those_of_the_page() -> None:
    laptop, scale = COPYING.scales["laptop"], COPYING.scales["paper"]
    assert (laptop.delay, laptop.n, laptop.symbols, laptop.k_trunc, laptop.updates) == (20, 5, 4, 5, 6000)
    assert max(laptop.test_delays) == 8 * laptop.delay
    assert (scale.delay, scale.n, scale.symbols, scale.hidden_size, scale.encoding) == (100, 10, 8, 128, "scalar")
    assert COPYING.first_seed == 100
    assert COPYING.seeds == 10
    assert all(e.first_seed == 10 for e in paper.experiments if e is not COPYING)


def test_a_run_records_what_the_network_looked_at() -> None:
    found = recall.run_memory(SMOKE, "sab-additive", Bench(seed=0))
    steps = SMOKE.delay + 2 * SMOKE.n
    weights = np.array(found["attention"]).reshape(found["attention_steps"], -1)
    assert weights.shape == (steps, 1 + (steps - 1) // 2)
    assert weights.sum(1) == pytest.approx(1, abs=0.05)
    assert ((weights > 0).sum(1) <= SMOKE.k_top).all()
    long = recall.run_memory(dataclasses.replace(SMOKE, delay=100, test_delays=()), "full-attention", Bench(seed=0))
    assert len(long["attention"]) == long["attention_steps"] * 52 <= recall.SHOWN  # of 104 steps the last
    assert "attention" not in recall.run_memory(SMOKE, "lstm", Bench(seed=0))
    if found["accuracy"]:
        assert found["kept"] == found["accuracy_at_160"] / found["accuracy"]


def test_reach_of_the_baselines_is_known_and_reminders_lie_between() -> None:
    settings = gradients.Reach(lengths=(23, 43), batch_size=2, hidden_size=8, map_every=10)
    whole = gradients.run_reach(settings, "lstm", Bench(seed=0))
    assert whole["zero_share_23"] == whole["zero_share_43"] == whole["growth"] == 0
    assert whole["map"].split("\n")[1] == "1" * 20 + "0" * 23
    cut = gradients.run_reach(settings, "tbptt", Bench(seed=0))
    assert cut["zero_share_43"] == pytest.approx(1 - 4 / 43)  # steps 39 to 42: cut before step 39
    assert cut["map"].split("\n")[1] == "0" * 19 + "1" + "0" * 23
    sparse = gradients.run_reach(settings, "sab-additive", Bench(seed=0))
    assert 0 < sparse["zero_share_43"] < cut["zero_share_43"]


@pytest.mark.parametrize("name", [experiment.name for experiment in paper.experiments])
def test_figures_are_drawn_with_records_and_without(name: str) -> None:
    experiment = paper.experiment(name)
    settings = experiment.scales["smoke"]
    if name in ("copying", "gradients"):
        records = []
        for variant in ("lstm", "sab-additive", "sab-released"):
            for seed in (0, 1):
                bench = Bench(seed=seed)
                metrics = experiment.run(settings, variant, bench)
                config = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
                records.append(Record(paper.slug, name, "smoke", variant, seed, config, dict(metrics)))
        cell = Cell(paper.slug, name, "smoke", {}, records)
        for figure in experiment.figures:
            drawn = figure.draw(cell)
            if not figure.name.startswith(
                ("Accuracy while", "Training", "Share")
            ):  # curves are not among these records
                assert drawn.data
    for figure in experiment.figures:
        assert figure.draw(Cell(paper.slug, name, "smoke", {}, [])) is not None


# --- the roads of the paper's scale, on tiny files of the real formats ------------------------------------------------


@pytest.mark.parametrize("variant", ["sab-additive", "tbptt"])
@pytest.mark.parametrize("corpus", ["penn-treebank", "text8"])
def test_characters_go_end_to_end(tmp_path: Path, corpus: str, variant: str) -> None:
    write = write_penn_treebank if corpus == "penn-treebank" else write_text8
    path = write(tmp_path / corpus)
    small: dict[str, Any] = {"batch_size": 4, "updates": 3, "every": 2, "hidden_size": 8, "most": 300, "window": 31}
    scale = paper.experiment(corpus).scales["paper"]
    settings = dataclasses.replace(scale, path=str(path), **small)
    metrics = corpora.run_characters(settings, variant, Bench(0, settings=settings))
    assert 0 < metrics["test_bpc"] < 8
    assert scale.window == (101 if corpus == "penn-treebank" else 181)


@pytest.mark.parametrize(("name", "variant"), [("permuted-mnist", "sab-released"), ("pixel-cifar10", "sab-additive")])
def test_images_go_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, variant: str) -> None:
    monkeypatch.setenv("MECHANISMS_DATA", str(tmp_path))
    write_mnist(tmp_path / "mnist", train=30, test=4)
    write_cifar10(tmp_path / "cifar-10")
    scale = paper.experiment(name).scales["paper"]
    small: dict[str, Any] = {"num_train": 4, "num_validation": 4, "batch_size": 4, "epochs": 1, "hidden_size": 4}
    settings = dataclasses.replace(scale, **small)
    metrics = images.run_images(settings, variant, Bench(0, settings=settings))
    assert 0 <= metrics["accuracy"] <= 1


def test_copying_and_adding_go_end_to_end_in_the_paper_s_settings() -> None:
    small: dict[str, Any] = {"updates": 1, "every": 1, "test_size": 2, "batch_size": 2, "hidden_size": 8}
    scale = dataclasses.replace(COPYING.scales["paper"], test_delays=(200,), **small)
    found = recall.run_memory(scale, "sab-additive", Bench(0))
    assert {"accuracy", "accuracy_at_200"} <= set(found)
    adding = dataclasses.replace(paper.experiment("adding").scales["paper"], test_delays=(), **small)
    assert recall.run_memory(adding, "sab-released", Bench(0))["loss"] > 0


def test_data_that_are_not_here_are_said_to_be_missing(tmp_path: Path) -> None:
    settings = dataclasses.replace(paper.experiment("text8").scales["paper"], path=str(tmp_path))
    with pytest.raises(NotHere, match="text8 is not here"):
        corpora.run_characters(settings, "lstm", Bench(0, settings=settings))
