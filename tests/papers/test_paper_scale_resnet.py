"""ResNet-18 on noisy CIFAR-10: its noise, its description of a curve, and its road on files of the real format."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from mechanisms.lab.bench import Bench
from mechanisms.lab.paper import NotHere
from mechanisms.lab.records import Cell, Curve, Record
from mechanisms.papers._epochwise.resnet import DECAYS, EXPERIMENT, NoisyCifar, describe, permute_some, run
from tests.lab.photographs import write_cifar10

TINY = {"width": 2, "epochs": 2, "batch_size": 64, "last": 1, "window": 1}


def test_a_share_of_the_labels_is_permuted_so_that_a_tenth_of_them_stays() -> None:
    labels = np.arange(20_000) % 10
    noisy = permute_some(labels, 0.15, np.random.default_rng(0))
    assert np.array_equal(np.bincount(noisy), np.bincount(labels))
    assert binomtest(int((noisy != labels).sum()), 3000, 0.9).pvalue > 1e-6
    assert np.array_equal(permute_some(labels, 0.0, np.random.default_rng(0)), labels)


def test_a_curve_that_descends_twice_is_described_by_its_first_minimum_and_peak() -> None:
    epochs = np.arange(1.0, 201)
    error = np.interp(epochs, [1, 25, 69, 200], [0.8, 0.195, 0.264, 0.189])
    found = describe(error.tolist(), window=1, last=1)
    assert (found["first_minimum_epoch"], found["peak_epoch"]) == (25, 69)
    assert found["rise"] == pytest.approx(0.069)
    assert found["final_excess"] == pytest.approx(-0.006)
    smooth = describe(error.tolist(), window=5, last=50)
    assert smooth["first_minimum_epoch"] == 27  # it falls steeply and climbs slowly: the lowest five are 25 to 29
    assert smooth["first_minimum"] == pytest.approx(0.195, abs=0.02)
    falling = describe(np.linspace(1, 0.2, 100).tolist(), window=5, last=5)
    assert falling["rise"] == 0
    assert describe([0.5], window=5, last=50)["final"] == 0.5


def test_it_runs_at_smoke_and_variants_share_data_noise_and_first_weights() -> None:
    settings = EXPERIMENT.scales["smoke"]
    found = {}
    for variant in ("l2-1e-8", "l2-3e-2"):
        bench = Bench(0, settings=settings)
        found[variant] = EXPERIMENT.run(settings, variant, bench)
        assert bench.curves["test_error"][0] == [1, 2, 3]
    assert found["l2-1e-8"]["wrong_labels"] == found["l2-3e-2"]["wrong_labels"] > 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_paper_s_road_goes_end_to_end_on_the_binary_version(tmp_path: Path, precision: str) -> None:
    settings = NoisyCifar(path=str(write_cifar10(tmp_path)), precision=precision, **TINY)
    metrics = run(settings, "l2-1e-3", Bench(0, settings=settings))
    assert 0 <= metrics["final"] <= 1
    assert metrics["wrong_labels"] == pytest.approx(0.135, abs=0.05)


def test_a_run_that_is_killed_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EXPERIMENT.scales["smoke"]
    whole = Bench(0, settings=settings)
    expected = run(settings, "l2-1e-3", whole)

    def bench() -> Bench:
        made = Bench(0, settings=settings, owner="paper/resnet", cache=tmp_path)
        make = made.checkpoint
        monkeypatch.setattr(made, "checkpoint", lambda key: make(key, seconds=0))
        return made

    first = bench()
    log = first.log

    def stop(step: float | int, **values: float) -> None:
        if "test_error" in values and step == 3:
            raise KeyboardInterrupt
        log(step, **values)

    monkeypatch.setattr(first, "log", stop)
    with pytest.raises(KeyboardInterrupt):
        run(settings, "l2-1e-3", first)
    again = bench()
    assert run(settings, "l2-1e-3", again) == expected
    assert again.curves == whole.curves
    again.close()
    assert list(tmp_path.iterdir()) == []


def test_without_cifar_it_is_not_run(tmp_path: Path) -> None:
    settings = NoisyCifar(path=str(tmp_path), **TINY)
    with pytest.raises(NotHere, match="MECHANISMS_DATA"):
        run(settings, "l2-1e-3", Bench(0, settings=settings))


def test_the_figures_show_records_and_none() -> None:
    curve = Curve([1, 10, 100, 1000], [0.9, 0.3, 0.26, 0.19])
    records = [
        Record(
            "paper", EXPERIMENT.name, "paper", variant, 10, {}, {}, curves={"test_error": curve, "train_error": curve}
        )
        for variant in list(DECAYS)[:3]
    ]
    for cell in (Cell("paper", EXPERIMENT.name, "paper", {}, records), Cell("paper", EXPERIMENT.name, "paper", {}, [])):
        drawn = [figure.draw(cell) for figure in EXPERIMENT.figures]
    full = EXPERIMENT.figures[0].draw(Cell("paper", EXPERIMENT.name, "paper", {}, records))
    assert np.array(full.data[0].z).shape == (3, 80)
    assert len(drawn) == 3
