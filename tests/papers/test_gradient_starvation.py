"""The recipe of gradient starvation: its data, its road at every scale, and what its runs return."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mechanisms.lab.bench import Bench
from mechanisms.lab.progress import Silent
from mechanisms.lab.records import LARGEST, cells, read_records
from mechanisms.lab.registry import load_paper
from mechanisms.lab.session import Request, execute
from mechanisms.papers._starvation import attack, coloured, minority, moons
from mechanisms.papers._starvation.coloured import Coloured, Images, make_network, objective, run_coloured
from mechanisms.papers._starvation.moons import Way


def carry_out(folder: Path, *names: str, **options: object) -> dict:
    paper = load_paper("gradient-starvation")
    work = [(paper, [paper.experiment(name) for name in names])]
    request = Request(work=work, results=folder / "results", device="cpu", **options)  # pyrefly: ignore
    summary = execute(request, Silent())
    assert summary.failed == []
    return {(r.experiment, r.variant, r.seed): r for r in read_records([folder / "results"])[0]}


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """Four small IDX files in the published format."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name, n in (("train", 600), ("t10k", 200)):
        images = generator.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, n).astype(np.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
            head = bytes([0, 0, 8, values.ndim]) + sizes
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes()))
    return folder


def test_moons_lie_on_the_side_of_their_class_with_twice_the_margin_between() -> None:
    for margin in (0.1, -0.1):
        x, y = moons.moons(300, 0.1, margin, 0)
        assert x.shape == (300, 2)
        assert set(y.tolist()) == {-1, 1}
        side = -x[:, 0] * y
        assert side.min() >= margin - 1e-6
        assert side.min() < margin + 0.05
    apart, _ = moons.moons(300, 0.1, 0.1, 0)
    touching, signs = moons.moons(300, 0.1, -0.1, 0)
    np.testing.assert_allclose(apart[:, 0] - touching[:, 0], -0.2 * signs, atol=1e-6)
    np.testing.assert_array_equal(apart[:, 1], touching[:, 1])


def test_a_turned_set_has_the_same_distances() -> None:
    x, _ = moons.moons(20, 0.1, 0.1, 0)
    turned = moons.turn(x)
    for one, other in ((x, turned),):
        np.testing.assert_allclose(
            np.linalg.norm(one[1:] - one[0], axis=1), np.linalg.norm(other[1:] - other[0], axis=1), rtol=1e-5
        )


def test_the_smallest_distance_is_that_to_the_straight_boundary_of_a_linear_network() -> None:
    network = torch.nn.Linear(2, 1)
    network.weight.data, network.bias.data = torch.tensor([[3.0, 4.0]]), torch.tensor([-1.0])
    points = torch.tensor([[0.5, 0.5], [-0.3, -0.4]])
    with torch.no_grad():
        found = moons.smallest_distance(network, points, moons.FINE)
    assert found == pytest.approx(0.5 / 1, abs=2e-3)
    network.bias.data = torch.tensor([100.0])
    with torch.no_grad():
        assert moons.smallest_distance(network, points, moons.FINE) == 0


def test_networks_of_one_shape_start_alike_whatever_the_variant() -> None:
    plain, dropped = (moons.make_network(way, 10, Bench(3)) for way in (Way(), Way(dropout=0.7)))
    assert torch.equal(plain[0].weight, dropped[0].weight)
    deep = moons.make_network(Way(layers=5, batch_norm=True), 10, Bench(3))
    assert sum(isinstance(layer, torch.nn.Linear) for layer in deep) == 6
    norms = [layer for layer in deep if isinstance(layer, torch.nn.BatchNorm1d)]
    assert len({id(layer) for layer in norms}) == 5
    assert moons.make_network(Way(width=0.1), 500, Bench(3))[0].weight.shape == (50, 2)


def test_images_sorted_by_colour_give_the_logits_of_the_coloured_images() -> None:
    split = coloured.load(Coloured(num_train=60, num_validation=10), Bench(0)).train
    images = Images.of(split, True, torch.device("cpu"))
    network = make_network(392, 12, Bench(0))
    order = torch.from_numpy(split.attribute).argsort(stable=True)
    expected = network(torch.from_numpy(split.x))[order, 0]
    torch.testing.assert_close(images.logits(network), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(images.y, torch.from_numpy(split.y)[order].float())
    grey = Images.of(split, False, torch.device("cpu"))
    assert grey.logits(make_network(196, 12, Bench(0))).shape == (60,)


def test_the_objectives_of_the_coloured_images_are_the_published_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, generator=generator)
    y = torch.randint(2, (20,), generator=generator).float()
    images = Images(torch.zeros(20, 1), None, y, torch.arange(20) % 2)
    settings = Coloured()
    nll, square = F.binary_cross_entropy_with_logits(logits, y), logits.square().mean()
    for variant, step, expected in (
        ("erm", 300, nll),
        ("grey", 300, nll),
        ("sd", 99, nll + 2e-5 * square),
        ("sd", 100, 2e-5 * (nll + square)),
        ("sd-unscaled", 99, nll + 2e-5 * square),
        ("sd-unscaled", 100, nll + square),
    ):
        torch.testing.assert_close(objective(settings, variant, step, logits, images), expected)


@pytest.mark.parametrize("step", [0, 100])
def test_irm_is_the_squared_slope_in_a_scale_of_the_logits(step: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(21, generator=generator)
    y = torch.randint(2, (21,), generator=generator).float()
    environment = torch.arange(21) % 2
    expected, penalty = torch.zeros(()), torch.zeros(())
    for e in (0, 1):
        rows, scale = environment == e, torch.ones((), requires_grad=True)
        nll = F.binary_cross_entropy_with_logits(scale * logits[rows], y[rows])
        expected = expected + nll.detach() / 2
        penalty = penalty + torch.autograd.grad(nll, scale)[0].square() / 2
    weight = 91257.2 if step else 1.0
    found = coloured.irm(Coloured(), step, logits, y, environment)
    torch.testing.assert_close(found, (expected + weight * penalty) / weight)


def test_the_paper_s_scale_goes_end_to_end_on_files_of_its_format(mnist: Path, tmp_path: Path) -> None:
    small = ["num_train=500", "num_validation=100", "hidden=8", "irm_hidden=8", "anneal=3", "irm_anneal=3"]
    short = ["steps=6", "sd_steps=6", "irm_steps=6", "every=2", f"path={mnist}"]
    found = carry_out(
        tmp_path, "coloured-images", "coloured-references", scale="paper", seeds=1, overrides=small + short
    )
    assert {variant for _, variant, _ in found} == set(coloured.VARIANTS)
    for record in found.values():
        assert 0 <= record.metrics["test_accuracy"] <= 1
        assert record.metrics["test_accuracy"] == record.metrics["final_test_accuracy"]


def test_without_mnist_the_paper_s_scale_is_not_run_and_says_what_to_give(tmp_path: Path) -> None:
    paper = load_paper("gradient-starvation")
    request = Request(
        work=[(paper, [paper.experiment("coloured-images")])], scale="paper", seeds=1, results=tmp_path, device="cpu"
    )
    summary = execute(request, Silent())
    assert summary.done == 0
    assert any("MNIST's IDX files: path=FOLDER" in text for text in summary.missing)


def test_the_large_moons_go_end_to_end_at_paper_scale(tmp_path: Path) -> None:
    overrides = ["hidden=4", "steps=3", "test=20", "every=1"]
    found = carry_out(tmp_path, "moons-large", scale="paper", seeds=1, overrides=overrides)
    assert {variant for _, variant, _ in found} == set(moons.LARGE)


def test_accuracy_is_measured_at_the_step_fixed_beforehand() -> None:
    settings = Coloured(num_train=200, hidden=8, steps=31, every=10, measured_at=20)
    bench = Bench(0)
    metrics = run_coloured(settings, "erm", bench)
    steps, values = bench.curves["test_accuracy"]
    assert metrics["test_accuracy"] == pytest.approx(values[steps.index(20)], abs=1e-5)
    assert metrics["final_test_accuracy"] == pytest.approx(values[steps.index(30)], abs=1e-5)


def test_the_minority_breaks_the_shortcut_and_the_core_feature_holds() -> None:
    settings = minority.Minority(noise_dims=3)
    x, y, attribute = minority.draw(settings, 20_000, 0.05, Bench(0), "train")
    assert x.shape == (20_000, 5)
    # Standard errors are 0.0015, 0.004 and 0.007.
    assert float((attribute != y).float().mean()) == pytest.approx(0.05, abs=0.01)
    assert float((x[:, 0] * y).mean()) == pytest.approx(1, abs=0.03)
    assert float((x[:, 1] * attribute).mean()) == pytest.approx(3, abs=0.05)


def test_attacked_images_stay_in_the_box_and_fool_more() -> None:
    generator = torch.Generator().manual_seed(0)
    network = make_network(64, 16, Bench(0))
    x = torch.rand(30, 64, generator=generator)
    y = network(x)[:, 0].detach().sign()
    settings = attack.Attack()
    moved = attack.ascend(network, x, y, settings, Bench(0))
    assert float((moved - x).abs().max()) <= settings.radius + 1e-6
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    with torch.no_grad():
        assert float((network(moved)[:, 0] * y).mean()) < float((network(x)[:, 0] * y).mean())


def test_claims_name_metrics_that_the_runs_return_figures_draw_and_records_stay_small(tmp_path: Path) -> None:
    paper = load_paper("gradient-starvation")
    carry_out(tmp_path, *(experiment.name for experiment in paper.experiments), scale="smoke", seeds=1)
    assert max(path.stat().st_size for path in (tmp_path / "results").rglob("*.json")) < LARGEST
    found = list(cells(read_records([tmp_path / "results"])[0]))
    assert {cell.experiment for cell in found} == {experiment.name for experiment in paper.experiments}
    for cell in found:
        experiment = paper.experiment(cell.experiment)
        for claim in experiment.claims:
            assert claim.check.evaluate(cell).verdict != "not run", claim.text
        for figure in experiment.figures:
            assert figure.draw(cell).data


def test_the_exact_claims_hold_at_laptop_scale(tmp_path: Path) -> None:
    carry_out(tmp_path, "toy", scale="laptop", overrides=["steps=100"])
    (cell,) = cells(read_records([tmp_path / "results"])[0])
    for claim in load_paper("gradient-starvation").experiment("toy").claims:
        assert claim.check.evaluate(cell).verdict == "holds", claim.text
