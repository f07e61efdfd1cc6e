"""The recipe of Zoneout: its networks and their pairs, the roads to the real corpora, gradients, claims and figures."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mechanisms._base.seeds import seeded, stream_seed
from mechanisms.lab.bench import Bench
from mechanisms.lab.paper import NotHere
from mechanisms.lab.progress import Silent
from mechanisms.lab.records import Cell, Curve, Record, cells, read_records
from mechanisms.lab.registry import load_paper
from mechanisms.lab.session import Request, execute
from mechanisms.papers._zoneout import flow, images, pictures, texts
from mechanisms.papers._zoneout.flow import Flow, Reach
from mechanisms.papers._zoneout.images import Images
from mechanisms.papers._zoneout.networks import VARIANTS, make_cell, network_maker, penalty_of
from mechanisms.papers._zoneout.stack import Stack
from mechanisms.papers._zoneout.texts import Text
from mechanisms.recurrent import BatchNormLSTMCell, LSTMCell, RecurrentDropoutLSTMCell, Zoneout
from tests.lab.corpora import write_mnist, write_penn_treebank, write_text8

TINY: dict[str, Any] = {
    "window": 8,
    "batch_size": 4,
    "updates": 4,
    "least": 2,
    "most_updates": 8,
    "every": 2,
    "train": 300,
    "validation": 100,
    "test": 100,
    "hidden_size": 6,
}
DIGITS: dict[str, Any] = {"hidden_size": 5, "batch_size": 20, "num_train": 40, "epochs": 1, "lr": 1e-3}


def paper_scale(name: str) -> Any:
    return load_paper("zoneout").experiment(name).scales["paper"]


@pytest.mark.parametrize("variant", [name for name in VARIANTS if VARIANTS[name].kind != "batch-norm"])
def test_all_networks_of_a_seed_start_from_the_same_weights(variant: str) -> None:
    for initialisation in ("torch", "paper"):
        settings = Text(hidden_size=6, initialisation=initialisation)
        weights = []
        for name in ("plain", variant):
            torch.manual_seed(0)
            cell = make_cell(name, settings, 3, 10)
            weights.append({key.removeprefix("cell."): one for key, one in cell.named_parameters()})
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(one, weights[1][key]) for key, one in weights[0].items())


def test_variants_are_what_they_are_called() -> None:
    settings = Text(hidden_size=6)
    rates = {name: getattr(make_cell(name, settings, 3, 10), "rates", {}) for name in VARIANTS}
    assert rates["plain"] == rates["recurrent-dropout"] == rates["batch-norm"] == {}
    assert rates["zoneout"] == rates["static"] == rates["per-layer"] == {"h": 0.05, "c": 0.5}
    assert rates["swapped"] == {"h": 0.5, "c": 0.05}
    assert rates["both-half"] == {"h": 0.5, "c": 0.5}
    assert rates["cell-half"] == {"c": 0.5}
    static, layer = make_cell("static", settings, 3, 10), make_cell("per-layer", settings, 3, 10)
    assert isinstance(static, Zoneout)
    assert isinstance(layer, Zoneout)
    assert static.get_buffer("static_c").shape == (10, 1, 6)
    assert layer.mask == "layer"
    assert isinstance(make_cell("recurrent-dropout", settings, 3, 10), RecurrentDropoutLSTMCell)
    normalised = make_cell("batch-norm-zoneout", Images(hidden_size=6), 1, 10)
    assert isinstance(normalised.cell, BatchNormLSTMCell)
    assert normalised.rates == {"h": 0.15, "c": 0.15}
    assert penalty_of("plain", 50.0) is None
    penalty = penalty_of("norm-stabiliser", 2.0)
    assert penalty is not None
    assert penalty(torch.tensor([[[3.0, 4.0]], [[0.0, 4.0]]])) == pytest.approx(2.0)


def test_the_papers_initial_weights_are_orthogonal_blocks_with_forget_bias_1() -> None:
    cell = make_cell("plain", Text(hidden_size=6, initialisation="paper"), 6, 10)
    assert isinstance(cell, LSTMCell)
    for block in (*cell.weight_hh.split(6), *cell.weight_ih.split(6)):
        torch.testing.assert_close(block @ block.T, torch.eye(6), rtol=0, atol=1e-5)
    assert cell.bias_ih is not None
    assert cell.bias_hh is not None
    assert (cell.bias_ih + cell.bias_hh).tolist() == [0.0] * 6 + [1.0] * 6 + [0.0] * 12
    assert cell.initial_c is not None
    assert not cell.initial_c.any()


@pytest.mark.parametrize("variant", ["zoneout", "static", "recurrent-dropout"])
def test_initial_states_are_learned(variant: str) -> None:
    network = network_maker(variant, Text(hidden_size=6), 10)(3)
    output, _ = network(torch.randn(4, 2, 3))
    output.square().sum().backward()
    found = {name: one.grad for name, one in network.named_parameters() if "initial_" in name}
    assert len(found) == 2
    assert all(grad is not None and grad.any() for grad in found.values())


def test_plain_and_zoneout_train_to_the_end_and_the_others_until_validation_turns() -> None:
    ends = {name: texts.run_text(Text(**TINY), name, Bench(0))["lasted"] for name in ("plain", "swapped")}
    assert ends["plain"] >= 4
    assert 2 <= ends["swapped"] <= 8
    short = dataclasses.replace(Text(**TINY), patience=0)
    assert texts.run_text(short, "swapped", Bench(0))["lasted"] == 2
    assert texts.run_text(short, "zoneout", Bench(0))["lasted"] == 4


def test_the_manual_is_cut_as_it_should_be() -> None:
    tokens = texts.read_corpus(Text())
    assert [len(part) for part in (tokens.train, tokens.validation, tokens.test)] == [12_000, 20_000, 20_000]
    assert len(tokens.vocabulary) > 90


# --- the roads of paper scale, on tiny files of the same formats ------------------------------------------------------


@pytest.mark.parametrize("name", ["characters", "rates", "text8", "words"])
def test_the_road_to_each_corpus_goes_end_to_end(name: str, tmp_path: Path) -> None:
    write_penn_treebank(tmp_path, lines=(60, 30, 30))
    write_text8(tmp_path / "text8", characters=4000)
    settings = paper_scale(name)
    small = {"hidden_size": 6, "updates": 2, "least": 2, "most_updates": 2, "every": 1, "patience": 1, "window": 7}
    settings = dataclasses.replace(settings, path=str(tmp_path), batch_size=4, **small)
    experiment = load_paper("zoneout").experiment(name)
    for variant in (experiment.variants[0], "zoneout"):
        bench = Bench(0, settings=settings)
        metrics = experiment.run(settings, variant, bench)
        assert bench.curves[f"validation_{settings.measure}"][0] == [1, 2]
        assert np.isfinite(metrics[f"test_{settings.measure}"])
    # Characters of the tiny Penn Treebank, letters and the blank of text8, words.
    assert metrics["vocabulary"] == {"text8": 27, "words": 12}.get(name, metrics["vocabulary"])


@pytest.mark.parametrize("name", ["permuted-pixels", "batch-norm", "gradient-after-an-epoch"])
def test_the_road_to_mnist_goes_end_to_end(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "mnist", train=30, test=10)
    monkeypatch.setenv("MECHANISMS_DATA", str(tmp_path))
    small = {"hidden_size": 4, "epochs": 1, "num_validation": 10, "batch_size": 10}
    settings = dataclasses.replace(paper_scale(name), **small)
    experiment = load_paper("zoneout").experiment(name)
    variant = experiment.variants[-1]
    run = experiment.run
    if experiment.run_seeds is not None:
        together = experiment.run_seeds

        def run(settings: Any, variant: str, bench: Bench) -> Any:
            return together(settings, variant, [bench])[0]

    bench = Bench(0, settings=settings)
    metrics = run(settings, variant, bench)
    if name == "gradient-after-an-epoch":
        assert len(bench.curves["gradient"][0]) == 783
    else:
        assert 0 <= metrics["accuracy"] <= 1


def test_missing_corpora_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHANISMS_DATA", str(tmp_path))
    for name in ("characters", "text8", "words"):
        settings = dataclasses.replace(paper_scale(name), path=str(tmp_path))
        with pytest.raises(NotHere, match="is not here"):
            load_paper("zoneout").experiment(name).run(settings, "zoneout", Bench(0))


# --- gradients --------------------------------------------------------------------------------------------------------


def test_claim_6_holds_for_every_network() -> None:
    bench = Bench(0)
    metrics = flow.run_reach(Reach(networks=3), "zoneout", bench)
    assert all(metrics["gain_over_10"])
    assert min(metrics["gain"]) > 1e6
    assert len(bench.curves["gradient"][0]) == 100
    plain = flow.run_reach(Reach(networks=3), "plain", Bench(0))
    assert plain["gain"] == [1.0] * 3


def test_the_gradient_of_claim_6_is_the_one_of_autograd() -> None:
    """One network by hand: the memory after the first and the last step, and a loss one step later."""
    settings = Reach(steps=5, networks=1, hidden_size=4, input_size=3, batch_size=2)
    found = flow.run_reach(settings, "zoneout", Bench(3))["ratio"][0]
    with seeded(stream_seed(3, "weights 0")):
        cell = LSTMCell(3, 4)
    for bias in (cell.bias_ih, cell.bias_hh):
        torch.nn.init.zeros_(bias)
    cell = cell.double()
    held = Zoneout(cell, {"c": 0.5})
    inputs = torch.randn(6, 2, 3, generator=Bench(3).generator("inputs 0")).double()
    noise = held.noise(6, 2, generator=Bench(3).generator("masks 0"))
    state, memories = cell.initial_state(2), []
    for t in range(6):
        _, new = cell(inputs[t], state)
        state = new._replace(c=torch.where(noise.own["c"][t], state.c, new.c))
        state.c.requires_grad_()
        memories.append(state.c)
    first, last = torch.autograd.grad(state.h.sum(), [memories[0], memories[4]])
    assert found == pytest.approx(float(first.norm(dim=1).mean() / last.norm(dim=1).mean()), rel=1e-4)


def test_the_gradient_after_an_epoch_is_measured_at_all_steps_but_the_last() -> None:
    for variant in ("plain", "recurrent-dropout", "zoneout"):
        bench = Bench(0)
        metrics = flow.run_flow(Flow(**DIGITS, shown=5), variant, bench)
        assert len(bench.curves["gradient"][0]) == 63
        assert metrics["first"] > 0
        assert metrics["reach"] == pytest.approx(metrics["first"] / metrics["last"])


# --- networks in a stack ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["batch-norm", "batch-norm-zoneout"])
def test_a_network_in_a_stack_trains_as_one_alone(variant: str) -> None:
    settings = Images(**DIGITS)
    stack, alone = (Stack(settings, variant, [Bench(seed) for seed in seeds]) for seeds in ((0, 1), (1,)))
    for one in (stack, alone):
        one.train_epoch(1)
    for name, parameter in alone.parameters.items():
        if name.endswith("weight_ih"):
            continue  # of one input only its sign matters behind a normalisation: the gradient is rounding
        torch.testing.assert_close(stack.parameters[name][1], parameter[0], rtol=1e-3, atol=1e-5)
    for name, buffer in alone.buffers.items():
        torch.testing.assert_close(stack.buffers[name][1], buffer[0], rtol=1e-3, atol=1e-5)
    assert stack.buffers["cell.steps_seen" if variant == "batch-norm" else "cell.cell.steps_seen"].tolist() == [64, 64]


def test_a_stack_s_step_is_the_step_of_a_network_by_itself() -> None:
    """One update by the ordinary way: the same loss, clipping, optimiser and running statistics."""
    settings = dataclasses.replace(Images(**DIGITS), batch_size=40, clip=0.05)
    stack = Stack(settings, "batch-norm", [Bench(0), Bench(1)])
    network = Stack(settings, "batch-norm", [Bench(1)]).networks[0]
    optimizer = torch.optim.RMSprop(network.parameters(), lr=settings.lr, alpha=settings.decay)
    x, y = stack.x["train"][1], stack.y["train"][1]
    scores, info = network(x, None)
    F.cross_entropy(scores, y).backward()  # one batch holds all images, so that their order plays no part
    torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
    optimizer.step()
    network.cell.update_statistics(info)
    stack.train_epoch(1)
    for name, parameter in network.named_parameters():
        if name.endswith("weight_ih"):
            continue
        torch.testing.assert_close(stack.parameters[name][1], parameter, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(stack.buffers["cell.running_var_h"][1], network.cell.running_var_h)


def test_before_an_evaluation_statistics_are_those_of_all_training_images() -> None:
    """Without masks, evaluation is then training with all images in one batch."""
    stack = Stack(Images(**DIGITS), "batch-norm", [Bench(0), Bench(1)])
    stack.train_epoch(1)
    stack.refresh_statistics()
    with torch.no_grad():
        expected, _ = stack.scores(stack.x["train"])
        for place, network in enumerate(stack.networks):
            network.load_state_dict({name: one[place] for name, one in stack.parameters.items()}, strict=False)
            torch.testing.assert_close(network.eval()(stack.x["train"][place], None)[0], expected[place])


def test_statistics_under_zoneout_are_those_of_masked_runs() -> None:
    stack = Stack(Images(**DIGITS), "batch-norm-zoneout", [Bench(0)])
    before = {name: one.clone() for name, one in stack.buffers.items()}
    stack.train_epoch(1)
    stack.refresh_statistics()
    moved = {name for name, one in stack.buffers.items() if not torch.equal(one, before[name])}
    assert moved == set(before)


def test_pixels_are_read_in_the_order_of_the_settings() -> None:
    fixed = Images(permutation_seed=3)
    assert torch.equal(images.pixel_order(fixed, Bench(0)), images.pixel_order(fixed, Bench(1)))
    assert not torch.equal(images.pixel_order(Images(), Bench(0)), images.pixel_order(Images(), Bench(1)))
    assert images.pixel_order(Images(permutation="none"), Bench(0)).tolist() == list(range(64))
    assert len(images.pixel_order(Images(permutation="with-replacement"), Bench(0)).unique()) < 64


def test_a_block_keeps_the_best_validation_of_each_seed() -> None:
    benches = [Bench(0), Bench(1)]
    settings = dataclasses.replace(Images(**DIGITS), epochs=3)
    found = images.run_normalised_together(settings, "batch-norm-zoneout", benches)
    for bench, metrics in zip(benches, found, strict=True):
        steps, validation = bench.curves["validation_accuracy"]
        assert steps == [1, 2, 3]
        assert metrics["validation_accuracy"] == max(validation)
        assert metrics["accuracy"] == bench.curves["test_accuracy"][1][int(metrics["best_epoch"]) - 1]
        assert metrics["final_accuracy"] == bench.curves["test_accuracy"][1][-1]


# --- the paper --------------------------------------------------------------------------------------------------------


def test_deciding_settings_are_those_fixed_beforehand() -> None:
    paper = load_paper("zoneout")
    laptop, big = (paper.experiment("characters").scales[scale] for scale in ("laptop", "paper"))
    assert (laptop.window, laptop.batch_size, laptop.lr, laptop.updates, laptop.every) == (50, 16, 5e-3, 2000, 100)
    assert (laptop.hidden_size, laptop.clip, laptop.clipped, laptop.carry) == (128, 1.0, "gradient", False)
    assert (laptop.zoneout_cell, laptop.zoneout_hidden) == (0.5, 0.05)
    assert (big.window, big.batch_size, big.lr, big.hidden_size, big.clip) == (100, 32, 2e-3, 1000, 1.0)
    text8, words = paper_scale("text8"), paper_scale("words")
    assert (text8.window, text8.batch_size, text8.lr, text8.hidden_size) == (180, 128, 1e-3, 2000)
    assert (text8.zoneout_cell, text8.zoneout_hidden) == (0.2, 0.2)
    assert (words.window, words.batch_size, words.hidden_size, words.clip, words.carry) == (35, 20, 256, 10.0, True)
    assert words.embedding == 0
    pixels = paper_scale("permuted-pixels")
    assert (pixels.batch_size, pixels.lr, pixels.decay, pixels.clip, pixels.epochs) == (100, 1e-4, 0.5, 1.0, 100)
    assert (pixels.hidden_size, pixels.zoneout_cell, pixels.zoneout_hidden) == (100, 0.15, 0.15)
    assert all(experiment.first_seed == 10 for experiment in paper.experiments)


def record(variant: str, seed: int, metrics: dict[str, float], bpc: list[float]) -> Record:
    curves = {
        f"{part}_bpc": Curve([100.0 * k for k in range(1, len(bpc) + 1)], bpc) for part in ("train", "validation")
    }
    return Record("zoneout", "characters", "laptop", variant, seed, {}, metrics, curves=curves)


def test_the_claims_read_what_they_say() -> None:
    best = {"plain": 3.4, "zoneout": 3.3, "swapped": 3.5, "static": 3.25, "per-layer": 3.3 + 1e-3}
    gap = {"plain": 4.0, "zoneout": 2.5}
    records = [
        record(name, seed, {"best_validation_bpc": value + 0.001 * seed, "gap": gap.get(name, 1.0)}, [3.5])
        for name, value in best.items()
        for seed in range(10, 20)
    ]
    claims = load_paper("zoneout").experiment("characters").claims
    cell = Cell("zoneout", "characters", "laptop", {}, records)
    assert [claim.check.evaluate(cell).verdict for claim in claims] == ["holds", "holds", "fails", "holds", "holds"]
    assert "-0.02" in claims[0].check.statement
    assert "0.7 plain" in claims[4].check.statement


def test_learning_curves_end_where_the_first_seed_ends() -> None:
    records = [record("plain", 10, {}, [4.0, 3.0, 5.0]), record("plain", 11, {}, [5.0, 4.0])]
    cell = Cell("zoneout", "characters", "laptop", {}, records)
    assert pictures.mean_curve(cell, "train_bpc", "plain") == ([100.0, 200.0], [4.5, 3.5])
    assert pictures.mean_curve(cell, "train_bpc", "zoneout") == ([], [])


def test_the_recipe_runs_at_smoke_and_draws_its_figures_with_and_without_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MECHANISMS_CACHE", str(tmp_path / "cache"))
    paper = load_paper("zoneout")
    chosen = [paper.experiment(name) for name in ("gradient-reach", "characters", "batch-norm")]
    request = Request(work=[(paper, chosen)], scale="smoke", results=tmp_path, device="cpu")
    assert execute(request, Silent()).failed == []
    records, _ = read_records([tmp_path])
    found = {cell.experiment: cell for cell in cells(records)}
    for experiment in paper.experiments:
        for figure in experiment.figures:
            figure.draw(Cell("zoneout", experiment.name, "smoke", {}, []))
            if experiment.name in found:
                assert figure.draw(found[experiment.name]).data
    assert chosen[0].claims[0].check.evaluate(found["gradient-reach"]).verdict == "holds"
