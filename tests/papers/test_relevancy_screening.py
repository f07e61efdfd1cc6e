"""The recipe of relevancy screening: what its runs measure, its networks, its paper-scale settings on tiny files."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mechanisms.lab import Bench
from mechanisms.lab.records import Cell, Record
from mechanisms.papers._relevancy import cost, networks, pictures, reach, remember, sequences
from mechanisms.papers.relevancy_screening import CHARACTERS, DENOISE, ORIGINAL, PIXELS, TINY, TRANSFER, paper
from mechanisms.recurrent import LSTMCell, RelLSTM, RelRNN, SelfAttentiveCell
from mechanisms.recurrent.scan import scan

# --- gradients --------------------------------------------------------------------------------------------------------


def test_members_of_the_set_are_reached_and_an_lstm_s_states_are_not() -> None:
    runs = {name: reach.run_reach(reach.Reach(), name, Bench(0)) for name in ("lstm", "relevant", "full")}
    assert runs["relevant"]["log10_gain"] > 30
    assert runs["relevant"]["latest_member"] == 14
    assert runs["lstm"]["log10_first"] < -35
    assert -3 < runs["full"]["log10_first"] < -1
    assert runs["relevant"]["log10_others"] < -8


def test_one_way_back_cut_leaves_the_other() -> None:
    small = reach.Reach(hidden_size=16, steps=60, points=10)
    kept, cut = (reach.run_reach(small, name, Bench(0))["log10_first"] for name in reach.CUTS)
    assert kept > -2
    assert cut < -8
    x = torch.randn(6, 2, 10)
    whole = SelfAttentiveCell(LSTMCell(10, 4))
    for variant in reach.CUTS:
        other = reach._cell(variant, whole.cell, 3)
        other.load_state_dict(whole.state_dict())
        torch.testing.assert_close(scan(other, x).output, scan(whole, x).output)


def test_the_toy_s_exponents_are_those_of_the_closed_form() -> None:
    bench = Bench(0)
    found = reach.run_toy(reach.Toy(), "attention", bench)
    assert found["exponent"] == pytest.approx([-0.75, -4 / 7, -1 / 3], abs=1e-3)
    assert bench.curves["log10_derivative_0.2"][1][1] == pytest.approx(math.log10(0.4), abs=1e-4)
    plain = reach.run_toy(reach.Toy(), "recurrence", Bench(0))
    assert all(error < -1000 for error in plain["exponent_error"])


def test_the_toy_is_the_derivative_of_the_network_it_stands_for() -> None:
    h = [torch.ones((), dtype=torch.float64, requires_grad=True)]
    for t in range(1, 30):
        h.append(0.3 * (h[-1] + torch.stack(h).sum() / t))
    logs = reach._toy(0.3, 30, attention=True)
    for t in (1, 5, 29):
        (derivative,) = torch.autograd.grad(h[t], h[0], retain_graph=True)
        assert math.log10(float(derivative)) == pytest.approx(logs[t], abs=1e-12)


# --- cost -------------------------------------------------------------------------------------------------------------


def test_the_state_is_of_one_size_or_grows_with_the_steps() -> None:
    small = cost.Cost(hidden_size=8, batch_size=2, lengths=(4, 8), repeats=1)
    assert cost.run_cost(small, "relevant", Bench(0))["state_ratio"] == 1
    full = cost.run_cost(small, "full", Bench(0))
    assert full["state_ratio"] == pytest.approx(2, abs=0.01)
    assert full["milliseconds"] > 0


# --- recall -----------------------------------------------------------------------------------------------------------


def test_a_run_says_what_the_set_holds_before_and_after_training() -> None:
    bench = Bench(0)
    found = remember.run_remember(replace(TINY, probe=64), "relevant", bench)
    assert found["cues_gain"] == found["cues"] - found["cues_untrained"]
    shares = bench.curves["held_symbols_untrained"][1] + bench.curves["held_blanks_untrained"][1]
    assert all(0 <= share <= 1 for share in shares)
    assert "cues" not in remember.run_remember(TINY, "lstm", Bench(0))


def test_an_untrained_set_holds_the_first_steps_of_copying_and_hence_all_symbols() -> None:
    settings = replace(TINY, task="copying", hidden_size=32)
    found = remember.run_remember(settings, "relevant", Bench(0))
    assert found["cues_untrained"] > 0.9


def test_cues_are_the_steps_that_show_symbols() -> None:
    settings = replace(TINY, delay=4, n=2)
    inputs = torch.nn.functional.one_hot(torch.tensor([[0, 3, 0, 1, 0, 5, 0, 0]]).T, 6).float()
    assert remember._cues(settings, inputs).tolist() == [[False, True, False, True, False, False]]


def test_what_is_held_is_read_after_the_marker() -> None:
    settings = replace(TINY, delay=8, n=2, short_term=2, relevant=3)
    model = remember.with_readout(settings, networks.network_maker(settings, "relevant"))
    inputs = torch.zeros(12, 5, 6)
    member = remember.held(settings, model, inputs)
    assert member.shape == (5, 10)
    assert member.sum(1).tolist() == [3] * 5
    assert not member[:, 8:].any()


@pytest.mark.parametrize("variant", remember.ORIGINAL)
def test_variants_are_the_networks_of_their_names(variant: str) -> None:
    network = networks.network_maker(replace(TINY, initialisation="released"), variant)(6)
    assert isinstance(network, RelLSTM) == (variant == "released")
    assert isinstance(network, RelRNN) == (variant == "relevant-rnn")
    cell = network.cells[0]
    inner = getattr(cell, "cell", cell)
    if variant.endswith("rnn"):
        torch.testing.assert_close(inner.weight_hh @ inner.weight_hh.T, torch.eye(8), rtol=0, atol=1e-5)
    assert network(torch.randn(5, 2, 6))[0].shape == (5, 2, 8)


def test_released_weights_have_xavier_s_spread() -> None:
    cell = LSTMCell(100, 200)
    networks.released_(torch.nn.ModuleDict(), "henaff")
    holder = torch.nn.Module()
    holder.cells = torch.nn.ModuleList([cell])
    networks.released_(holder, "henaff")
    for weight in (cell.weight_ih, cell.weight_hh):
        assert float(weight.detach().std()) == pytest.approx((2 / 500) ** 0.5, rel=0.02)


# --- figures ----------------------------------------------------------------------------------------------------------


def _cell(experiment: str, settings: dict, records: list[Record]) -> Cell:
    return Cell("relevancy-screening", experiment, "laptop", settings, records)


def test_every_figure_draws_records_and_says_when_there_are_none() -> None:
    from mechanisms.lab.configuration import as_dict

    records = []
    for variant in ("lstm", "relevant"):
        bench = Bench(0)
        metrics = remember.run_remember(TINY, variant, bench)
        curves = {name: {"step": steps, "value": values} for name, (steps, values) in bench.curves.items()}
        from mechanisms.lab.records import Curve

        records.append(
            Record(
                "relevancy-screening",
                "denoise",
                "laptop",
                variant,
                10,
                as_dict(TINY),
                metrics,
                curves={name: Curve(**curve) for name, curve in curves.items()},
            )
        )
    cell = _cell("denoise", as_dict(TINY), records)
    delays = pictures.draw_delays(("lstm", "relevant"))(cell)
    assert [trace.name for trace in delays.data] == ["lstm", "relevant", "chance"]
    held = pictures.draw_held(("relevant",))(cell)
    assert len(held.data[0].z) == 4
    for experiment in paper.experiments:
        settings = as_dict(experiment.scales["smoke"])
        for figure in experiment.figures:
            drawn = figure.draw(_cell(experiment.name, settings, []))
            assert drawn.layout.annotations or drawn.data


# --- the paper's scale ------------------------------------------------------------------------------------------------


def test_settings_are_the_paper_s() -> None:
    copying, denoise = TRANSFER.scales["paper"], ORIGINAL.scales["paper"]
    for settings in (copying, denoise):
        assert (settings.n, settings.symbols, settings.hidden_size, settings.batch_size) == (10, 8, 128, 10)
        assert (settings.optimizer, settings.rmsprop_alpha, settings.clip, settings.relevant) == (
            "rmsprop",
            0.99,
            1,
            15,
        )
    assert (copying.short_term, copying.lr, copying.delay, copying.test_delays[-1]) == (10, 2e-4, 100, 5000)
    assert (denoise.short_term, denoise.lr, denoise.delay) == (15, 1e-3, 1000)
    pixels, characters = PIXELS.scales["paper"], CHARACTERS.scales["paper"]
    assert (pixels.hidden_size, pixels.batch_size, pixels.epochs, pixels.permutation_seed) == (100, 100, 200, 100)
    assert (characters.window, characters.batch_size, characters.hidden_size) == (150, 128, 1024)
    laptop = DENOISE.scales["laptop"]
    assert (laptop.delay, laptop.n, laptop.symbols, laptop.short_term, laptop.relevant) == (20, 3, 4, 5, 10)


def test_the_paper_s_recall_runs_through_when_cut_short() -> None:
    short = {"updates": 2, "every": 2, "delay": 12, "test_size": 4, "hidden_size": 8, "probe": 8}
    for experiment in (TRANSFER, ORIGINAL):
        settings = replace(experiment.scales["paper"], **short, test_delays=(24,))
        found = remember.run_remember(settings, "released", Bench(0))
        assert 0 <= found["accuracy_at_24"] <= 1


@pytest.fixture
def mnist_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in the format of MNIST, with 12 training and 10 test images."""
    folder, generator = tmp_path / "mnist", np.random.default_rng(0)
    folder.mkdir()
    for name, count in (("train", 12), ("t10k", 10)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{name}-{kind}-ubyte").write_bytes(head + array.tobytes())
    monkeypatch.setenv("MECHANISMS_DATA", str(tmp_path))


def test_permuted_mnist_end_to_end(mnist_files: None) -> None:
    settings = replace(
        PIXELS.scales["paper"],
        hidden_size=4,
        epochs=1,
        batch_size=4,
        num_train=4,
        num_validation=2,
        evaluation_batch=12,
    )
    for variant in ("released", "relevant-rnn"):
        found = sequences.run_pixels(settings, variant, Bench(0))
        assert 0 <= found["accuracy"] <= 1


def test_plain_networks_have_their_own_optimiser_and_are_not_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    monkeypatch.setattr(
        sequences,
        "classify_pixels",
        lambda maker, settings, bench, name: seen.setdefault(name, settings) and {"accuracy": 0.0},
    )
    for variant in ("released", "relevant-rnn"):
        sequences.run_pixels(PIXELS.scales["paper"], variant, Bench(0))
    assert (seen["released"].optimizer, seen["released"].lr, seen["released"].clip) == ("rmsprop", 1e-3, 1.0)
    assert (seen["relevant-rnn"].optimizer, seen["relevant-rnn"].lr, seen["relevant-rnn"].clip) == ("adam", 1e-4, None)


@pytest.mark.parametrize("variant", ["released", "full-rnn"])
def test_penn_treebank_end_to_end(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "penn-treebank"
    folder.mkdir()
    for part, lines in (("train", 60), ("valid", 20), ("test", 20)):
        words = [" ".join("the_cat_sat"[k % 5 :]) for k in range(lines)]
        (folder / f"ptb.char.{part}.txt").write_text("".join(f" {line} \n" for line in words))
    monkeypatch.setenv("MECHANISMS_DATA", str(tmp_path))
    settings = replace(
        CHARACTERS.scales["paper"], hidden_size=6, embedding=4, batch_size=4, window=20, updates=2, every=2
    )
    found = sequences.run_characters(settings, variant, Bench(0))
    assert 0 < found["test_bpc"] < 10
