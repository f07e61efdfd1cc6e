"""The recipe of ladder networks: who chooses and who judges, the reference's weights, figures, and tiny files."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mechanisms.lab import Bench, Experiment, NotHere
from mechanisms.lab.configuration import as_dict
from mechanisms.lab.records import Cell, Curve, Record
from mechanisms.papers._ladder import peers, runs, splits
from mechanisms.papers._ladder.settings import ALL, TUNED_NOISE, Ladders, make_network, reference, tried
from mechanisms.papers.ladder_networks import (
    ABLATION,
    CLAIMS,
    FASHION,
    FASHION_ABLATION,
    ORIGINAL,
    SMOKE,
    VARIANTS,
    paper,
)
from mechanisms.robust.ladder_variants import VARIANTS as KINDS
from tests.lab.corpora import write_mnist

# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_that_choose_are_the_same_for_all_seeds_and_never_trained_or_tested_on() -> None:
    source = splits.Source(Ladders())
    x, _ = source.validation
    assert len(x) == 200
    kept = {row.tobytes() for row in x}
    first, second = source.rows(0), source.rows(1)
    assert (len(first.y), len(first.y_test)) == (1097, 500)
    assert not np.array_equal(first.y, second.y)
    for rows in (first, second):
        seen = {row.tobytes() for row in rows.x}
        tested = {row.tobytes() for row in rows.x_test}
        assert not kept & seen
        assert not kept & tested
        assert not seen & tested


def test_labels_are_balanced_and_fewer_are_a_part_of_more() -> None:
    y = splits.Source(Ladders()).rows(3).y
    few, some = splits.labelled(y, 20, 3), splits.labelled(y, 50, 3)
    assert np.bincount(y[few]).tolist() == [2] * 10
    assert np.bincount(y[some]).tolist() == [5] * 10
    assert set(few) < set(some)
    assert splits.labelled(y, ALL, 3).tolist() == list(range(len(y)))
    assert not np.array_equal(few, splits.labelled(y, 20, 4))


def test_numbers_of_labels_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of the 10 classes"):
        splits.labelled(np.arange(30) % 10, 25, 0)
    with pytest.raises(ValueError, match="class 0 has fewer than 4 training rows"):
        splits.labelled(np.arange(30) % 10, 40, 0)
    with pytest.raises(ValueError, match="there are 1797 digits"):
        splits.Source(Ladders(num_train=1200))


def test_a_block_stacks_what_differs() -> None:
    block = splits.Source(SMOKE).block([0, 0, 1], 20, deciding=True)
    assert block.x.shape == (3, 100, 64)
    assert block.x_labelled.shape == (3, 20, 64)
    assert torch.equal(block.x_labelled[0], block.x_labelled[1])
    assert not torch.equal(block.x_labelled[0], block.x_labelled[2])
    assert block.x_validation.shape == (50, 64)


# --- networks ---------------------------------------------------------------------------------------------------------


def test_weights_and_noise_are_the_reference_s() -> None:
    settings = ORIGINAL.scales["paper"]

    def weights(variant: str, labels: int, value: float = 1.0) -> list[float]:
        network = make_network(settings, variant, labels, value, 0, 784, 10)
        return [round(weight, 6) for weight in network.reconstruction_weights.tolist()]

    def noise(variant: str, labels: int, value: float = 1.0) -> list[float]:
        network = make_network(settings, variant, labels, value, 0, 784, 10)
        return [round(std, 6) for std in network.noise_std.tolist()]

    assert weights("vanilla", 100) == [1000, 10, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert weights("vanilla", 1000, 0.1) == [200, 2, 0.01, 0.01, 0.01, 0.01, 0.01]
    assert weights("amlp-2-2-2", ALL) == [1000, 1, 0.01, 0.01, 0.01, 0.01, 0.01]
    assert weights("gamma", 1000) == [0, 0, 0, 0, 0, 0, 10]
    assert weights("first-reconstruction", 100) == [5000, 0, 0, 0, 0, 0, 0]
    assert weights("baseline-noise", 100) == [0] * 7
    assert noise("vanilla", 100) == [0.3] * 7
    assert noise("vanilla", 1000) == [0.3] + [0.2] * 6
    assert noise("baseline-noise", 1000) == [0.3] + [0.5] * 6
    assert noise(TUNED_NOISE, 1000, 0.8) == [0.3] + [0.8] * 6
    assert noise("first-noise", 100) == [0.3] + [0] * 6
    assert noise("no-noise", 100) == noise("baseline", 100) == [0] * 7
    assert reference(20) == reference(100) != reference(ALL)


def test_every_variant_has_as_many_trials_as_it_has_something_to_try() -> None:
    laptop = CLAIMS.scales["laptop"]
    assert (len(laptop.multiples), laptop.tuning_seeds) == (4, 3)
    for variant in VARIANTS:
        trials = len(peers.PEERS[variant].values) if variant in peers.PEERS else len(tried(laptop, variant))
        assert trials == (1 if variant in ("baseline", "baseline-noise") else 4)
    assert set(KINDS) == set(ABLATION.variants)


def test_variants_of_a_seed_begin_with_the_same_encoder() -> None:
    networks = [make_network(SMOKE, variant, 20, 1.0, 5, 64, 10) for variant in ABLATION.variants]
    for network in networks[1:]:
        for mine, other in zip(network.up.parameters(), networks[0].up.parameters(), strict=True):
            assert torch.equal(mine, other)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_of_equal_errors_the_first_value_is_taken() -> None:
    assert runs.choose((1.0, 0.1, 0.01), [[0.4, 0.2], [0.1, 0.3], [0.2, 0.2]]) == 0.1


def test_what_was_tried_and_taken_is_in_the_record() -> None:
    settings = replace(SMOKE, labels=(20, ALL), untuned=True, tuning_seeds=2, epochs=2, points=2)
    benches = [Bench(seed) for seed in (3, 4)]
    found = runs.run_together(settings, "vanilla", benches)
    assert set(found[0]) == {
        *(f"{name}_20" for name in ("error", "value", "validation", "unrecovered", "untuned")),
        *(f"{name}_all" for name in ("error", "value", "validation", "unrecovered")),
    }
    for labels in ("20", "all"):
        errors = np.reshape(found[0][f"validation_{labels}"], (2, 2)).mean(1)
        assert found[0][f"value_{labels}"] == settings.multiples[int(errors.argmin())]
        assert found[1][f"validation_{labels}"] == found[0][f"validation_{labels}"]
        for bench, metrics in zip(benches, found, strict=True):
            steps, values = bench.curves[f"error_{labels}"]
            assert steps == [1, 2]
            assert values[-1] == pytest.approx(metrics[f"error_{labels}"], abs=1e-5)
            assert len(metrics[f"unrecovered_{labels}"]) == 4


def test_deciding_labels_have_no_say_in_what_is_taken() -> None:
    settings = replace(SMOKE, tuning_seeds=2)
    first, second = (runs.run_together(settings, "gamma", [Bench(seed)])[0] for seed in (5, 6))
    assert first["validation_20"] == second["validation_20"]
    assert first["value_20"] == second["value_20"]


def test_what_diverges_is_never_taken_and_has_no_error() -> None:
    settings = replace(SMOKE, lr=1e30)
    benches = [Bench(seed) for seed in (0, 1)]
    found = runs.run_together(settings, "linear", benches)
    assert found[0]["validation_20"] == [1.0, 1.0]
    assert all(np.isnan(metrics["error_20"]) and "unrecovered_20" not in metrics for metrics in found)
    records = [
        Record(paper.slug, "ablation", "smoke", "linear", bench.seed, as_dict(settings), metrics)
        for bench, metrics in zip(benches, found, strict=True)
    ]
    cell = Cell(paper.slug, "ablation", "smoke", as_dict(settings), records)
    for figure in (*ABLATION.figures, *CLAIMS.figures):
        assert figure.draw(cell).layout


def test_the_last_epoch_is_a_point_of_the_curve_whatever_their_number() -> None:
    bench = Bench(0)
    (metrics,) = runs.run_together(replace(SMOKE, epochs=5, points=2), "baseline", [bench])
    steps, values = bench.curves["error_20"]
    assert steps == [2, 4, 5]
    assert values[-1] == pytest.approx(metrics["error_20"], abs=1e-5)


@pytest.mark.parametrize("variant", ["gamma", "label-spreading"])
def test_progress_goes_forward_to_the_end(variant: str) -> None:
    told: list[tuple[int, int | None]] = []
    settings = replace(SMOKE, labels=(20, 50), num_train=200)

    class Listening(Bench):
        def progress(self, step: int, total: int | None = None, **numbers: object) -> None:
            told.append((step, total))

    runs.run_together(settings, variant, [Listening(0), Listening(1)])
    assert len({total for _, total in told}) == 1
    steps = [step for step, _ in told]
    assert steps == sorted(steps)
    assert told[-1][0] == told[-1][1]


def test_untuned_is_the_same_where_the_reference_s_weights_were_taken() -> None:
    settings = replace(SMOKE, multiples=(1.0, 1.0), untuned=True)
    (metrics,) = runs.run_together(settings, "vanilla", [Bench(0)])
    assert metrics["untuned_20"] == metrics["error_20"]


def test_a_run_without_anything_to_choose_says_the_error_alone() -> None:
    (metrics,) = runs.run_together(SMOKE, "baseline", [Bench(0)])
    assert set(metrics) == {"error_20"}
    assert metrics == runs.run(SMOKE, "baseline", Bench(0))


def test_a_constant_misses_all_of_the_variance() -> None:
    network = make_network(SMOKE, "vanilla", 20, 1.0, 0, 64, 10)
    x = torch.rand(50, 64)
    combinator = network.combinators["0"]
    with torch.no_grad():
        combinator.weight.zero_()
        combinator.weight[combinator.names.index("b0")] = x.mean(0)
    left = runs.unrecovered(network, x, 0)
    assert left[0] == pytest.approx(1, abs=1e-4)
    assert len(left) == 4
    gamma = runs.unrecovered(make_network(SMOKE, "gamma", 20, 1.0, 0, 64, 10), x, 0)
    assert gamma[:3] == [None] * 3
    assert gamma[3] is not None


@pytest.mark.parametrize("variant", sorted(peers.PEERS))
def test_peers_see_the_same_rows_and_have_as_many_trials(variant: str) -> None:
    settings = replace(SMOKE, labels=(50, ALL), num_train=200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = runs.run_together(settings, variant, [Bench(0), Bench(1)])
    assert [set(metrics) for metrics in found] == [
        {f"{name}_{labels}" for name in ("error", "value", "validation") for labels in ("50", "all")}
    ] * 2
    assert len(found[0]["validation_50"]) == len(settings.multiples) * settings.tuning_seeds
    assert found[0]["error_all"] < 0.2


# --- claims -----------------------------------------------------------------------------------------------------------


def _verdicts(experiment: Experiment, scale: str, errors: dict[str, dict[str, float]]) -> list[str]:
    """Verdicts where every seed of a variant has about the same error, by the number of labels."""
    records = [
        Record(
            paper.slug,
            experiment.name,
            scale,
            variant,
            seed,
            {},
            {f"error_{labels}": error + 1e-4 * ((seed + place) % 3) for labels, error in by_labels.items()},
        )
        for place, (variant, by_labels) in enumerate(errors.items())
        for seed in range(10, 20)
    ]
    cell = Cell(paper.slug, experiment.name, scale, {}, records)
    return [claim.check.evaluate(cell).verdict for claim in experiment.claims]


def test_claims_hold_and_fail_as_their_words_say() -> None:
    published = {
        "baseline": {"20": 0.4, "50": 0.3, "all": 0.05},
        "baseline-noise": {"20": 0.2, "50": 0.15, "all": 0.03},
        "vanilla": {"20": 0.1, "50": 0.1, "all": 0.02},
        "no-lateral": {"20": 0.15},
        "amlp-2-2-2": {"20": 0.105},
    }
    assert _verdicts(CLAIMS, "laptop", published) == ["holds"] * 5
    against = {
        "baseline": {"20": 0.4, "50": 0.2, "all": 0.05},
        "baseline-noise": {"20": 0.2, "50": 0.15, "all": 0.04},
        "vanilla": {"20": 0.25, "50": 0.2, "all": 0.02},
        "no-lateral": {"20": 0.15},
        "amlp-2-2-2": {"20": 0.3},
    }
    assert _verdicts(CLAIMS, "laptop", against) == ["fails"] * 5
    mnist = {
        "baseline": {"100": 0.258, "1000": 0.0873, "all": 0.0118},
        "baseline-noise": {"100": 0.2303, "1000": 0.0611, "all": 0.0082},
        "vanilla": {"100": 0.0108, "1000": 0.01, "all": 0.006},
        "no-lateral": {"100": 0.05},
        "amlp-2-2-2": {"100": 0.01},
    }
    assert _verdicts(ORIGINAL, "paper", mnist) == ["holds"] * 5


# --- figures ----------------------------------------------------------------------------------------------------------


def _records() -> list[Record]:
    settings = replace(SMOKE, untuned=True)
    records = []
    for variant in ("baseline", "vanilla", "gamma", "self-training"):
        benches = [Bench(0), Bench(1)]
        for bench, metrics in zip(benches, runs.run_together(settings, variant, benches), strict=True):
            curves = {name: Curve(steps, values) for name, (steps, values) in bench.curves.items()}
            records.append(
                Record(paper.slug, "claims", "smoke", variant, bench.seed, as_dict(settings), metrics, curves=curves)
            )
    return records


def test_every_figure_draws_records_and_says_when_there_are_none() -> None:
    records = _records()
    shown = Cell(paper.slug, "claims", "smoke", records[0].config, records)
    drawn = {figure.name: figure.draw(shown) for figure in CLAIMS.figures}
    tuning = drawn["Which weight: validation error with 20 labels"]
    assert [trace.name for trace in tuning.data] == ["gamma", "vanilla"]
    assert all(len(trace.x) == 2 for trace in tuning.data)
    assert [trace.name for trace in drawn["What an untuned weight would have shown"].data] == [
        "the reference's weights",
        "weights of its own",
    ]
    assert len(drawn["Error with 20 labels"].data) == 8
    costs = drawn["What the decoder misses at each level, 20 labels"]
    assert list(costs.data[0].x) == ["inputs", "layer 1", "layer 2", "top"]
    assert list(costs.data[0].y) == ["gamma", "vanilla"]
    assert list(costs.data[0].text[0][:3]) == ["", "", ""]
    assert "" not in costs.data[0].text[1]
    assert drawn["Error with 50 labels"].layout.annotations[0].text.startswith("these settings do not ask")
    for experiment in paper.experiments:
        empty = Cell(paper.slug, experiment.name, "smoke", as_dict(experiment.scales["smoke"]), [])
        for figure in experiment.figures:
            nothing = figure.draw(empty)
            assert nothing.layout.annotations or nothing.data


# --- the paper's scale ------------------------------------------------------------------------------------------------


def test_settings_are_the_paper_s() -> None:
    for experiment in (ORIGINAL, ABLATION, FASHION, FASHION_ABLATION):
        settings = experiment.scales["paper"]
        assert settings.hidden == (1000, 500, 250, 250, 250)
        assert (settings.epochs, settings.batch_size, settings.lr, settings.noise) == (150, 100, 0.002, 0.3)
        assert (settings.num_train, settings.num_validation, settings.num_test) == (50_000, 10_000, 10_000)
    assert ORIGINAL.scales["paper"].labels == (100, 1000, ALL)
    assert FASHION_ABLATION.variants == ABLATION.variants
    small = FASHION_ABLATION.scales["laptop"]
    assert (small.labels, small.num_train // small.batch_size * small.epochs) == ((100,), 1200)
    laptop = CLAIMS.scales["laptop"]
    assert (laptop.hidden, laptop.epochs, laptop.labels) == ((128, 64, 32, 32), 120, (20, 50, ALL))
    assert (CLAIMS.first_seed, CLAIMS.seeds, ABLATION.seeds, ABLATION.scales["laptop"].tuning_seeds) == (10, 10, 5, 2)


SHORT = {"hidden": (6,), "epochs": 1, "batch_size": 20, "points": 1, "num_train": 100, "num_validation": 20}


@pytest.mark.parametrize("variant", ["vanilla", "baseline-noise", "label-spreading"])
def test_the_road_to_mnist_goes_end_to_end(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "mnist", train=120, test=40)
    monkeypatch.setenv("MECHANISMS_DATA", str(tmp_path))
    settings = replace(ORIGINAL.scales["paper"], **SHORT, num_test=40, labels=(20, ALL), multiples=(1.0, 0.1))
    found = runs.run_together(settings, variant, [Bench(0), Bench(1)])
    assert all(0 <= metrics[f"error_{labels}"] <= 1 for metrics in found for labels in ("20", "all"))


def test_rows_that_have_chosen_train_too_at_the_paper_s_scale(tmp_path: Path) -> None:
    write_mnist(tmp_path, train=120, test=40)
    source = splits.Source(replace(ORIGINAL.scales["paper"], **SHORT, num_test=40, path=str(tmp_path)))
    assert source.block([0, 1], 20, deciding=False).x.shape == (100, 784)
    whole = source.block([0, 1], ALL, deciding=True)
    assert whole.x.shape == whole.x_labelled.shape == (120, 784)
    assert float(whole.x.max()) <= 1
    with pytest.raises(ValueError, match="num_test=50: there are 40 test images"):
        splits.Source(replace(ORIGINAL.scales["paper"], **SHORT, num_test=50, path=str(tmp_path)))


def test_fashion_mnist_runs_cut_short() -> None:
    settings = replace(FASHION.scales["laptop"], **SHORT | {"num_train": 200}, num_test=50, multiples=(1.0, 0.1))
    try:
        (metrics,) = runs.run_together(settings, "vanilla", [Bench(0)])
    except NotHere as missing:
        pytest.skip(str(missing))
    assert 0 <= metrics["error_100"] <= 1


def test_missing_files_are_told(tmp_path: Path) -> None:
    for experiment in (ORIGINAL, FASHION):
        settings = replace(experiment.scales["paper"], path=str(tmp_path))
        with pytest.raises(NotHere, match="is not here"):
            runs.run_together(settings, "vanilla", [Bench(0)])
