"""The recipe of RIMs and BRIMs: what its runs measure, its networks, its paper-scale settings on tiny files."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mechanisms.lab import Bench
from mechanisms.lab.configuration import as_dict
from mechanisms.lab.records import Cell, Curve, Record
from mechanisms.papers._rims import coder, films, frame, held, networks, pictures, recall, resolutions, texts, video
from mechanisms.papers._rims.original import CIFAR, MNIST, ORIGINAL, WIKITEXT_2, WIKITEXT_103
from mechanisms.papers.bidirectional_rims import ADDING, BALLS, COPYING, DIGITS, paper
from mechanisms.recurrent import BRIMCell, LSTMCell, RIMCell
from tests.lab.corpora import write_mnist, write_wikitext

SMALL = {"hidden_size": 8, "module_size": 4}

# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", networks.ALL)
def test_variants_are_the_networks_of_their_names(variant: str) -> None:
    sizes = networks.Sizes(layer_sizes=(3, 5), layer_modules=(4, 2), layer_active=(2, 1))
    network = networks.make_network(variant, sizes)(7)
    cell = network.cells[0]
    if variant.startswith("lstm"):
        assert [type(one) for one in network.cells] == [LSTMCell] * (2 if variant == "lstm-two-layers" else 1)
        assert network.output_size == 96
    elif variant in networks.RIMS:
        assert isinstance(cell, RIMCell)
        assert (cell.num_modules, cell.hidden_size, network.output_size) == (6, 16, 96)
        assert cell.num_active == (6 if variant in ("rims-dense", "rims-alike") else 3)
        assert (cell.input_attention.query is None) == (variant == "rims-alike")
        assert (cell.communication is None) == (variant == "rims-mute")
        assert cell.kind == ("gru" if variant == "gru-rims" else "lstm")
    else:
        assert isinstance(cell, BRIMCell)
        modules = [layer.num_modules for layer in cell.layers]
        active = [layer.num_active for layer in cell.layers]
        assert modules == ([1, 1] if variant == "attention" else [4, 2])
        assert active == ([2, 1] if variant in ("brims", "hierarchical") else modules)
        assert [layer.num_modules * layer.hidden_size for layer in cell.layers] == [12, 10]
        assert cell.top_down == (None if variant == "hierarchical" else "next")
    assert network(torch.randn(5, 2, 7))[0].shape == (5, 2, network.output_size)


def test_variants_have_sizes_of_their_own_where_the_papers_do() -> None:
    sizes = networks.Sizes(input_heads=1, comm_key_size=8, layer_input_heads=2, layer_comm_key_size=5)
    brims, rims = (networks.make_network(name, sizes)(7).cells[0] for name in ("brims", "rims"))
    assert (brims.layers[0].input_attention.num_heads, brims.layers[0].communication.key_size) == (2, 5)
    assert (rims.input_attention.num_heads, rims.communication.key_size) == (1, 8)


def test_a_frame_encodes_and_drops_out_in_training_alone() -> None:
    framed = networks.in_frame(
        lambda size: networks.make_network("lstm", networks.Sizes())(size), encoding=3, dropout=0.5
    )
    network = framed(2)
    assert network.encode.weight.shape == (3, 2)
    x = torch.randn(4, 2, 2)
    one, other = (network(x, generator=torch.Generator().manual_seed(seed))[0] for seed in (0, 0))
    assert torch.equal(one, other)
    assert not torch.equal(one, network(x, generator=torch.Generator().manual_seed(1))[0])
    assert 0.3 < float((network(torch.randn(40, 8, 2))[0] == 0).float().mean()) < 0.7
    network.eval()
    torch.testing.assert_close(network(x)[0], network.network(network.encode(x))[0])
    assert network.initial_state(3)[0].h.shape == (3, 96)


# --- copying ----------------------------------------------------------------------------------------------------------


def test_a_run_says_which_modules_work_when() -> None:
    found = recall.run_memory(recall.TINY, "rims", Bench(0))
    for phase in ("reading", "waiting", "recalling"):
        assert sum(found[phase]) == pytest.approx(3, abs=1e-3)
    assert found["specialisation"] == pytest.approx(
        sum(abs(a - b) for a, b in zip(found["reading"], found["waiting"], strict=True)) / 6, abs=1e-3
    )
    assert len(found["activation"]) == 6 * 50
    assert "activation" not in recall.run_memory(recall.TINY, "brims", Bench(0))


def test_what_an_untrained_network_does_stands_beside_what_a_trained_one_does() -> None:
    found = recall.run_memory(replace(recall.TINY, updates=1, lr=0.0), "rims", Bench(4))
    for name in ("specialisation", "blank_or_recall", "frozen"):
        assert found[f"{name}_at_start"] == found[name]
    assert found["specialisation"] > 0
    moved = recall.run_memory(replace(recall.TINY, updates=30, lr=0.05), "rims", Bench(4))
    assert moved["specialisation_at_start"] == found["specialisation"] != moved["specialisation"]


def test_retention_is_what_is_kept_of_what_was_learned_above_chance() -> None:
    assert recall.retention({"accuracy": 0.625, "accuracy_at_80": 0.25, "chance": 0.125}, 80) == 0.25
    assert recall.retention({"accuracy": 0.625, "accuracy_at_80": 0.0, "chance": 0.125}, 80) == -0.25
    assert math.isnan(recall.retention({"accuracy": 0.17, "accuracy_at_80": 0.12, "chance": 0.125}, 80))


def test_dense_modules_neither_specialise_nor_freeze() -> None:
    found = recall.run_memory(recall.TINY, "rims-dense", Bench(0))
    assert (found["specialisation"], found["frozen"]) == (0, 0)


def test_frozen_modules_hold_their_state_to_the_bit_through_the_delay() -> None:
    settings = replace(recall.TINY, delay=6, n=2)
    model = recall.train_recall_network(settings, networks.in_frame(networks.make_network("rims", settings)), Bench(0))[
        1
    ]
    inputs, _ = recall.draw(settings, 16, 6, torch.Generator().manual_seed(0), "cpu")
    mask = recall.activity(model, inputs)
    assert mask.shape == (10, 16, 6)
    assert (mask.sum(-1) == 3).all()
    outputs = model.network(model.embed(inputs))[0].unflatten(-1, (6, 4))
    frozen = ~mask[2:7].any(0)
    assert frozen.any()
    assert torch.equal(outputs[6][frozen], outputs[1][frozen])


def test_runs_repeat_and_variants_see_the_same_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (recall.run_memory(replace(recall.TINY, dropout=0.3), "rims", Bench(3)) for _ in range(2))
    assert str(one) == str(other)
    seen: dict[str, list[torch.Tensor]] = {}

    def spy(settings, make, bench):
        batch = next(sequences.batches(settings, bench.generator("data"), "cpu"))
        seen.setdefault("inputs", []).append(batch.inputs)
        seen.setdefault("updates", []).append(settings.updates)
        return {"accuracy": 1.0, "accuracy_at_80": 1.0, "chance": 0.5}, None

    from mechanisms.papers._sequences import recall as sequences

    monkeypatch.setattr(recall, "train_recall_network", spy)
    for variant in ("lstm", "brims"):
        assert recall.run_memory(COPYING.scales["laptop"], variant, Bench(3))["retention"] == 1
    assert torch.equal(*seen["inputs"])
    assert seen["updates"] == [6000, 3000]


def test_adding_has_an_encoding_in_front() -> None:
    found = recall.run_memory(ADDING.scales["smoke"], "rims", Bench(0))
    assert {"loss", "loss_at_24", "baseline"} <= set(found)


# --- held state -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", list(held.KINDS))
def test_what_is_held_is_exactly_the_share_of_modules_that_lost(variant: str) -> None:
    modules, active, _ = held.KINDS[variant]
    found = held.run_held(held.Held(steps=12, batch_size=5), variant, Bench(0))
    assert found["held"] == pytest.approx([1 - k / n for n, k in zip(modules, active, strict=True)], abs=1e-12)
    assert found["error"] == pytest.approx([0] * len(modules), abs=1e-12)


# --- images -----------------------------------------------------------------------------------------------------------


def test_grey_images_are_binarised_before_they_are_resized() -> None:
    images = torch.rand(3, 28, 28)
    tokens = resolutions.as_tokens(images, 19)
    rows = [i * 28 // 19 for i in range(19)]
    expected = (images >= 0.5)[:, rows][:, :, rows].long()
    assert torch.equal(tokens[:, :, 0].T.view(3, 19, 19), expected)
    as_bytes = (images * 255).round().to(torch.uint8)
    assert torch.equal(resolutions.as_tokens(as_bytes, 28)[:, :, 0].T.view(3, 28, 28), (as_bytes >= 128).long())


def test_colours_are_tokens_of_three_channels_with_noise_where_asked() -> None:
    images = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(resolutions.as_tokens(images, 32).permute(1, 0, 2), images.long().flatten(1, 2))
    first, second = (
        resolutions.as_tokens(images, 16, noise=1 / 32, generator=torch.Generator().manual_seed(0)) for _ in range(2)
    )
    assert torch.equal(first, second)
    apart = (first - resolutions.as_tokens(images, 16)).float()
    assert first.min() >= 0
    assert first.max() <= 255
    # 1,536 draws: noise of 8 levels, somewhat less where it is clamped at the ends.
    assert 6.5 < float(apart.std()) < 8.5


def test_both_selections_are_told() -> None:
    curves = {
        "validation_8": ([1, 2, 3], [0.5, 0.7, 0.6]),
        "test_8": ([1, 2, 3], [0.4, 0.8, 0.6]),
        "validation_9": ([1, 2, 3], [0.1, 0.2, 0.3]),
        "test_9": ([1, 2, 3], [0.1, 0.2, 0.5]),
    }
    found = resolutions.selected(curves, (8, 9))
    assert found == {"accuracy_8": 0.8, "accuracy_9": 0.2, "ratio_9": pytest.approx(0.25), "tuned_9": 0.5}


def test_channels_have_embeddings_of_their_own() -> None:
    made = networks.make_network("lstm", networks.Sizes())
    model = frame.TokenClassifier(made, tokens=256, channels=3, embedding=12, classes=10, dropout=0)
    assert model.embed.weight.shape == (768, 4)
    tokens = torch.full((2, 1, 3), 7)
    parts = model.embed(tokens + model.first_row).flatten(2).view(2, 1, 3, 4)
    assert not torch.equal(parts[..., 0, :], parts[..., 1, :])
    assert model(tokens)[0].shape == (1, 10)
    with pytest.raises(ValueError, match="not divided evenly"):
        frame.TokenClassifier(made, tokens=2, channels=3, embedding=10, classes=10, dropout=0)


# --- bouncing balls ---------------------------------------------------------------------------------------------------


def test_pixels_are_turned_over_at_their_rate() -> None:
    frames = torch.zeros(10, 20, 16, 16, dtype=torch.uint8)
    turned = video.flipped(frames, 0.05, torch.Generator().manual_seed(0))
    # 51,200 pixels: six standard deviations are 0.006.
    assert float(turned.mean()) == pytest.approx(0.05, abs=0.006)
    assert torch.equal(video.flipped(frames + 1, 0, None), torch.ones_like(turned))


def test_a_roll_out_reads_what_it_predicted() -> None:
    class Blur(torch.nn.Module):
        """Predicts the logit of a pixel to be one more than that of the last frame; its state counts frames."""

        def forward(self, frames, state=None):
            return frames.clamp(0.01, 0.99).logit() + 1, (state or 0) + len(frames)

    shown = torch.full((4, 1, 2, 2), 0.5)
    found = video.roll_out(Blur(), shown, 3)
    torch.testing.assert_close(found[:, 0, 0, 0].logit(), torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("kind", ["linear", "convolutional"])
def test_a_predictor_gives_a_frame_for_each_frame(kind: str) -> None:
    model = coder.Predictor(networks.make_network("rims", networks.Sizes(module_size=4)), 64, 12, kind)
    logits, state = model(torch.zeros(3, 2, 64, 64))
    assert logits.shape == (3, 2, 64, 64)
    torch.testing.assert_close(model.eval()(torch.zeros(1, 2, 64, 64), state)[0].shape, logits[:1].shape)
    if kind == "convolutional":
        with pytest.raises(ValueError, match="multiple of 8"):
            coder.Predictor(networks.make_network("rims", networks.Sizes()), 20, 12, kind)


def test_a_killed_run_of_films_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(BALLS.scales["smoke"], updates=5, every=2, films=9)

    def bench(kill: int = 0) -> Bench:
        made = Bench(3, owner="toy/films", code="a", cache=tmp_path)
        make, tell = made.checkpoint, made.progress

        def progress(step: int, *rest: object, **values: object) -> None:
            if step == kill:
                raise KeyboardInterrupt
            tell(step, *rest, **values)

        monkeypatch.setattr(made, "checkpoint", lambda key: make(key, seconds=0))
        monkeypatch.setattr(made, "progress", progress)
        return made

    whole = Bench(3)
    expected = video.run_video(settings, "rims", whole)
    with pytest.raises(KeyboardInterrupt):
        video.run_video(settings, "rims", bench(kill=4))
    assert list(tmp_path.glob("video-rims*"))
    again = bench()
    assert video.run_video(settings, "rims", again) == expected
    assert again.curves == whole.curves
    assert whole.curves["training_loss"][0] == [2, 4, 5]


def test_a_film_in_a_record_is_what_it_was() -> None:
    true = (torch.rand(15, 16, 16) > 0.5).float()
    text = video.as_text(true, true)
    assert len(text) < 3000
    shown = [films._frame(line) for line in text.split("\n")]
    torch.testing.assert_close(torch.tensor(shown[2]), true[2])
    assert shown[0] == shown[1]


# --- figures ----------------------------------------------------------------------------------------------------------


def run(experiment, variant: str, seed: int, settings) -> Record:
    bench = Bench(seed)
    metrics = dict(experiment.run(settings, variant, bench))
    curves = {name: Curve(step=steps, value=values) for name, (steps, values) in bench.curves.items()}
    return Record(paper.slug, experiment.name, "laptop", variant, seed, as_dict(settings), metrics, curves=curves)


@pytest.mark.parametrize("experiment", [COPYING, DIGITS, BALLS], ids=lambda experiment: experiment.name)
def test_every_figure_draws_records(experiment) -> None:
    settings = experiment.scales["smoke"]
    records = [run(experiment, variant, seed, settings) for variant in ("lstm", "rims") for seed in (0, 1)]
    for record in records:
        if record.metrics.get("retention") is not None:
            record.metrics["retention"] = 0.5  # two updates teach nothing
    cell = Cell(paper.slug, experiment.name, "laptop", as_dict(settings), records)
    for figure in experiment.figures:
        drawn = figure.draw(cell)
        assert drawn.data, figure.name
        assert len(drawn.to_json()) < 200_000


def test_figures_without_records_say_so() -> None:
    for experiment in paper.experiments:
        settings = as_dict(experiment.scales["smoke"])
        for figure in experiment.figures:
            drawn = figure.draw(Cell(paper.slug, experiment.name, "laptop", settings, []))
            assert any("no records" in str(note.text) for note in drawn.layout.annotations), figure.name


def test_activation_shows_modules_by_steps() -> None:
    record = run(COPYING, "rims", 0, COPYING.scales["smoke"])
    cell = Cell(paper.slug, "copying", "laptop", record.config, [record])
    drawn = pictures.draw_activation("rims")(cell)
    rows = torch.tensor(drawn.data[0].z)
    assert rows.shape == (6, 50)
    torch.testing.assert_close(rows.sum(0), torch.full((50,), 3.0), atol=0.04, rtol=0)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_laptop_settings_are_those_the_thresholds_were_set_for() -> None:
    copying = COPYING.scales["laptop"]
    assert (copying.n, copying.symbols, copying.delay, copying.test_delays) == (5, 8, 10, (20, 40, 80))
    assert (copying.modules, copying.module_size, copying.active, copying.embedding) == (6, 16, 3, 32)
    assert (copying.key_size, copying.comm_key_size, copying.qkv_std) == (32, 16, 0.05)
    assert (copying.lr, copying.clip, copying.batch_size) == (2e-3, 1, 64)
    assert (copying.updates, copying.lstm_updates, copying.hidden_size) == (3000, 6000, 96)
    assert (COPYING.first_seed, COPYING.seeds, copying.test_size >= 256) == (100, 10, True)
    thresholds = [claim.check.smallest for claim in COPYING.claims]
    assert thresholds == [0.2, 0.15, 0.2]
    digits = DIGITS.scales["laptop"]
    assert (digits.size, digits.test_sizes, digits.hidden_size) == (8, (9, 10, 12), 96)
    assert (digits.modules, digits.module_size, digits.active) == (6, 16, 4)
    assert (digits.layer_modules, digits.layer_sizes, digits.layer_active) == ((4, 3), (12, 16), (3, 2))


def test_paper_settings_are_the_papers() -> None:
    copying, mnist, cifar = (experiment.scales["paper"] for experiment in (ORIGINAL, MNIST, CIFAR))
    for settings in (copying, mnist):
        assert (settings.modules, settings.module_size, settings.active, settings.hidden_size) == (6, 100, 4, 600)
        assert (settings.key_size, settings.embedding, settings.dropout, settings.qkv_std) == (64, 600, 0.5, 0.01)
        assert (settings.lr, settings.batch_size, settings.clip) == (1e-3, 64, 1)
    assert (copying.delay, copying.n, copying.symbols, copying.test_delays[-1]) == (50, 10, 8, 200)
    assert (mnist.size, mnist.test_sizes, mnist.epochs) == (14, (16, 19, 24), 100)
    assert (mnist.layer_embedding, mnist.layer_modules, mnist.layer_sizes) == (300, (6, 3), (50, 100))
    assert (mnist.layer_active, mnist.layer_input_heads, mnist.layer_comm_key_size) == ((4, 2), 4, 32)
    assert (cifar.size, cifar.test_sizes, cifar.noise) == (16, (19, 24, 32), 1 / 32)
    assert (cifar.layer_sizes, cifar.layer_active, cifar.layer_input_heads, cifar.key_size) == ((50, 50), (4, 4), 1, 32)
    assert [claim.check.smallest for claim in MNIST.claims] == [0.1, 0.03]
    words = WIKITEXT_2.scales["paper"]
    assert (words.embedding, words.modules, words.module_size, words.active) == (510, 5, 102, 5)
    assert (words.value_size, words.comm_key_size, words.lr, words.dropout) == (510, 32, 7e-4, 0.5)


# --- the papers' scale, through the real loaders ----------------------------------------------------------------------


def test_the_paper_s_copying_runs_through_when_cut_short() -> None:
    short = {"updates": 2, "lstm_updates": 2, "every": 2, "delay": 8, "shown_delay": 8, "test_size": 4, "probe": 4}
    settings = replace(ORIGINAL.scales["paper"], **short, **SMALL, embedding=12, test_delays=(16,))
    for variant in ORIGINAL.variants:
        assert 0 <= recall.run_memory(settings, variant, Bench(0))["accuracy_at_16"] <= 1


IMAGES = {"epochs": 1, "batch_size": 4, "num_train": 8, "num_evaluated": 4, "test_sizes": (5,), "size": 4}
LAYERS = {"layer_sizes": (4, 4), "embedding": 12, "layer_embedding": 6}


@pytest.mark.parametrize("variant", MNIST.variants)
def test_sequential_mnist_end_to_end(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "mnist")
    monkeypatch.setenv("MECHANISMS_DATA", str(tmp_path))
    settings = replace(MNIST.scales["paper"], **IMAGES, **LAYERS, **SMALL, num_validation=20)
    found = resolutions.run_resolutions(settings, variant, Bench(0))
    assert {"accuracy_4", "accuracy_5", "ratio_5", "tuned_5"} <= set(found)


@pytest.mark.parametrize("variant", ["lstm", "attention", "brims"])
def test_sequential_cifar10_end_to_end(variant: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        rows = generator.integers(0, 256, (4, 3073), dtype=np.uint8)
        rows[:, 0] = generator.integers(0, 10, 4)
        (tmp_path / name).write_bytes(rows.tobytes())
    changes = {"num_validation": 4, "path": str(tmp_path)}
    settings = replace(CIFAR.scales["paper"], **IMAGES, **LAYERS, **SMALL, **changes)
    found = resolutions.run_resolutions(settings, variant, Bench(0))
    assert {"accuracy_5", "noisy_accuracy_4", "noisy_accuracy_5"} <= set(found)


@pytest.mark.parametrize(("experiment", "size"), [(WIKITEXT_2, "2"), (WIKITEXT_103, "103")])
def test_wikitext_end_to_end(experiment, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wikitext(tmp_path / f"wikitext-{size}")
    monkeypatch.setenv("MECHANISMS_DATA", str(tmp_path))
    short = {"batch_size": 2, "window": 5, "updates": 2, "every": 2, "embedding": 8, "value_size": 8}
    settings = replace(experiment.scales["paper"], **short, **SMALL, layer_sizes=(4, 4))
    for variant in experiment.variants:
        bench = Bench(0)
        found = texts.run_texts(settings, variant, bench)
        assert 1 < found["test_perplexity"] < 1000
        assert f"wikitext-{size}: sha256" in bench.notes[0]


def test_the_paper_s_films_run_through_when_cut_short() -> None:
    short = {"films": 4, "test_films": 2, "batch_size": 2, "updates": 2, "every": 2, "observed": 3, "rolled": 3}
    settings = replace(BALLS.scales["paper"], **short, **SMALL, features=8, curtain=(64, 20))
    found = video.run_video(settings, "rims", Bench(0))
    assert {"bce_4", "bce_6", "bce_8", "constant_bce_8"} <= set(found)
    assert len(found["frames"].split("\n")) == 4  # frames 1 and 3, true and predicted
    assert len(found["frames"].split("\n")[0]) == 256


def test_what_is_missing_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mechanisms.lab import NotHere

    monkeypatch.setenv("MECHANISMS_DATA", str(tmp_path))
    with pytest.raises(NotHere, match="WikiText-2"):
        texts.run_texts(WIKITEXT_2.scales["paper"], "lstm", Bench(0))
    with pytest.raises(NotHere, match="MNIST"):
        resolutions.run_resolutions(MNIST.scales["paper"], "lstm", Bench(0))
