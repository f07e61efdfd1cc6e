"""What is learned along the singular vectors of the Jacobian: the projections are exact, runs and figures are whole."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mechanisms.dynamics.features import jacobian_features
from mechanisms.lab.bench import Bench
from mechanisms.lab.records import Cell, Curve, Record
from mechanisms.papers._epochwise.jacobian import (
    EXPERIMENT,
    GROUPS,
    VARIANT,
    JacobianModes,
    frozen,
    modes,
    projections,
    response,
    run,
    shares,
)
from tests.lab.photographs import write_cifar10


def test_projections_are_those_on_the_right_singular_vectors_of_the_explicit_jacobian() -> None:
    torch.manual_seed(0)
    trained = nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)
    )
    x = torch.randn(7, 1, 5, 5, dtype=torch.float64)
    first = frozen(trained, x)
    trained(torch.randn(4, 1, 5, 5))  # moves the running statistics of the trained network alone
    change = {name: torch.randn(value.shape, dtype=torch.float64) for name, value in first.named_parameters()}

    spectrum = modes(first, x, output=1, chunk=3)
    found = projections(spectrum, response(first, x, change, output=1, chunk=3))

    phi = jacobian_features(first, x, output=1)
    _, strengths, directions = torch.linalg.svd(phi, full_matrices=False)
    expected = directions @ torch.cat([part.flatten() for part in change.values()])
    torch.testing.assert_close(spectrum.strengths, strengths)
    torch.testing.assert_close(found.abs(), expected.abs())  # signs of singular vectors are arbitrary
    assert torch.equal(first[1].running_var, torch.ones(2, dtype=torch.float64))


def test_directions_that_are_rounding_are_left_out() -> None:
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network = nn.Linear(2, 3, bias=False).double()
    assert modes(network, x, output=0, chunk=4).strengths.shape == (2,)


def test_half_is_where_the_share_of_the_final_projection_crosses_it() -> None:
    bench = Bench(0)
    for epoch, large, small in ((1, 2.0, 0.0), (2, 3.0, 1.0), (10, 4.0, 10.0)):
        bench.log(epoch, large=large, small=small)
    metrics = shares(bench, {"first_minimum_epoch": 2.0})
    assert metrics["half_epoch_large"] == 1
    assert metrics["half_epoch_small"] == pytest.approx(2 + 8 * 4 / 9)
    assert metrics["large_at_first_minimum"] == 0.75
    assert metrics["lead"] == pytest.approx(math.log10(2 + 32 / 9))
    assert bench.curves["learned_small"] == ([1, 2, 10], [0, 0.1, 1])


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_a_run_keeps_the_spectrum_and_both_shares(scale: str) -> None:
    settings = EXPERIMENT.scales[scale]
    if scale == "laptop":
        settings = JacobianModes(network="digits-mlp", epochs=3, lr=1e-3, examples=20, num_large=5, hidden=8, last=1)
    bench = Bench(0, settings=settings)
    metrics = run(settings, VARIANT, bench)
    for group in GROUPS:
        epochs, share = bench.curves[f"learned_{group}"]
        assert epochs == list(range(1, settings.epochs + 1))
        assert share[-1] == 1
        assert min(share) > 0
    assert np.all(np.diff(bench.curves["singular_value"][1]) <= 0)
    assert metrics["modes"] <= settings.examples
    assert all(math.isfinite(value) for value in metrics.values())


def test_the_paper_s_road_goes_end_to_end_on_the_binary_version(tmp_path: Path) -> None:
    settings = JacobianModes(
        path=str(write_cifar10(tmp_path)), width=2, epochs=1, batch_size=64, examples=4, num_large=2
    )
    assert 0 <= run(settings, VARIANT, Bench(0, settings=settings))["final"] <= 1


def test_a_run_that_is_killed_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = JacobianModes(network="digits-mlp", epochs=4, examples=20, num_large=5, hidden=8, last=1)
    whole = Bench(0, settings=settings)
    expected = run(settings, VARIANT, whole)

    def bench() -> Bench:
        made = Bench(0, settings=settings, owner="paper/jacobian", cache=tmp_path)
        make = made.checkpoint
        monkeypatch.setattr(made, "checkpoint", lambda key: make(key, seconds=0))
        return made

    first = bench()
    log = first.log

    def stop(step: float | int, **values: float) -> None:
        if "large" in values and step == 3:
            raise KeyboardInterrupt
        log(step, **values)

    monkeypatch.setattr(first, "log", stop)
    with pytest.raises(KeyboardInterrupt):
        run(settings, VARIANT, first)
    again = bench()
    assert run(settings, VARIANT, again) == expected
    assert again.curves == whole.curves


@pytest.mark.parametrize("num_large", [0, 20])
def test_a_split_that_leaves_a_group_empty_is_refused(num_large: int) -> None:
    settings = JacobianModes(network="digits-mlp", examples=20, num_large=num_large)
    with pytest.raises(ValueError, match="expected 1 to 19"):
        run(settings, VARIANT, Bench(0, settings=settings))


def test_the_figures_show_records_and_none() -> None:
    share = Curve([1, 10, 100], [0.1, 0.6, 1.0])
    names = ("learned_large", "learned_small", "test_error", "singular_value")
    record = Record("paper", EXPERIMENT.name, "laptop", VARIANT, 10, {}, {}, curves=dict.fromkeys(names, share))
    spectrum, learning = (
        figure.draw(Cell("paper", EXPERIMENT.name, "laptop", {"num_large": 20}, [record]))
        for figure in EXPERIMENT.figures
    )
    assert (len(spectrum.data), len(learning.data)) == (1, 3)
    for figure in EXPERIMENT.figures:
        assert not figure.draw(Cell("paper", EXPERIMENT.name, "laptop", {}, [])).data
