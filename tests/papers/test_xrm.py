"""The recipe of XRM: its road at every scale, on files of the published format that the tests make."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mechanisms.lab.bench import Bench
from mechanisms.lab.data import waterbirds_like
from mechanisms.lab.progress import Silent
from mechanisms.lab.records import cells, read_records
from mechanisms.lab.registry import load_paper
from mechanisms.lab.session import Request, execute
from mechanisms.papers._xrm.groups import Groups, run_groups
from mechanisms.papers._xrm.shared import agreement, load, model_factory

SIZES = {"train": (350, 18, 6, 106), "validation": (47, 47, 13, 13), "test": (226, 226, 64, 64)}


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """A small file of features in the published layout: train, valid, test; x, y, group."""
    splits = waterbirds_like(0, spurious=3.0, dim=32, sizes=SIZES)
    named = {"train": splits.train, "valid": splits.validation, "test": splits.test}
    whole = {
        name: {"x": torch.tensor(part.x), "y": torch.tensor(part.y), "group": torch.tensor(2 * part.y + part.attribute)}
        for name, part in named.items()
    }
    torch.save(whole, tmp_path / "features.pt")
    flat = {f"{name}_{key}": value.numpy() for name, part in whole.items() for key, value in part.items()}
    np.savez(tmp_path / "features.npz", **flat)
    return tmp_path


def carry_out(folder: Path, *names: str, **options: object) -> dict:
    paper = load_paper("xrm")
    work = [(paper, [paper.experiment(name) for name in names])]
    request = Request(work=work, results=folder / "results", device="cpu", **options)  # pyrefly: ignore
    summary = execute(request, Silent())
    assert summary.failed == []
    return {(r.variant, r.seed): r.metrics for r in read_records([folder / "results"])[0]}


@pytest.mark.parametrize("name", ["features.pt", "features.npz"])
def test_the_published_one_minute_run_goes_end_to_end_on_a_file_of_features(features: Path, name: str) -> None:
    found = carry_out(
        features, "one-minute", scale="paper", seeds=1, overrides=[f"path={features / name}", "steps=300"]
    )
    worst = {variant: metrics["worst_group_accuracy"] for (variant, _), metrics in found.items()}
    assert worst["human"] > worst["none"]
    assert found["xrm", 10]["recall"] > 0.5
    assert found["xrm", 10]["false_positive_rate"] < 0.1


def test_the_search_at_paper_scale_goes_end_to_end_on_a_file_of_features(features: Path) -> None:
    path = features / "features.npz"
    overrides = [f"path={path}", "twin_steps=100", "steps=60", "draws=2", "search=3", "lr=[1e-3,1e-2]"]
    found = carry_out(features, "waterbirds-like", scale="paper", seeds=1, overrides=overrides)
    assert {variant for variant, _ in found} == set(load_paper("xrm").experiment("waterbirds-like").variants)
    assert all(0 <= metrics["worst_group_accuracy"] <= metrics["average_accuracy"] for metrics in found.values())


def test_without_the_paper_s_data_its_scale_is_not_run_and_says_what_to_give(tmp_path: Path) -> None:
    paper = load_paper("xrm")
    work = [(paper, [paper.experiment("one-minute"), paper.experiment("coloured-images")])]
    request = Request(work=work, scale="paper", seeds=1, results=tmp_path, device="cpu")
    summary = execute(request, Silent())
    assert summary.done == 0
    assert {text.split(";")[1].strip() for text in summary.missing} == {
        "give features: path=FILE.npz or FILE.pt",
        "give MNIST's IDX files: path=FOLDER",
    }


def test_variants_share_data_draws_and_initial_weights() -> None:
    """With one draw and one step the learners differ only in their weights on the examples."""
    settings = Groups(draws=1, twin_steps=10, search=1, steps=1, every=1)
    same = [run_groups(settings, "erm", Bench(3))["average_accuracy"] for _ in range(2)]
    assert same[0] == same[1]
    one, other = (load("coloured-digits", "", Bench(3)) for _ in range(2))
    assert np.array_equal(one.train.x, other.train.x)


def test_agreement_counts_as_its_definitions_say() -> None:
    environments = torch.tensor([1, 1, 0, 0, 0])
    minority = torch.tensor([1, 0, 1, 0, 0])
    assert agreement(environments, minority) == {
        "recall": 0.5,
        "false_positive_rate": pytest.approx(1 / 3),
        "f1": 0.5,
        "balanced_accuracy": pytest.approx((0.5 + 2 / 3) / 2),
    }
    nothing = agreement(torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.bool))
    assert nothing["f1"] == 0


def test_linear_heads_start_at_zero_and_perceptrons_do_not() -> None:
    head = model_factory(5, (), 3)()
    assert all(float(parameter.abs().sum()) == 0 for parameter in head.parameters())
    network = model_factory(5, (4, 4), 3)()
    assert network(torch.randn(2, 5)).shape == (2, 3)
    assert float(network[0].weight.abs().sum()) > 0
    assert float(network[0].bias.abs().sum()) == 0


def test_every_figure_draws_from_smoke_records(tmp_path: Path) -> None:
    carry_out(tmp_path, "waterbirds-like", "flips-over-time", scale="smoke")
    paper = load_paper("xrm")
    for cell in cells(read_records([tmp_path / "results"])[0]):
        for figure in paper.experiment(cell.experiment).figures:
            assert figure.draw(cell).data


def test_the_deciding_claims_name_metrics_that_the_runs_return(tmp_path: Path) -> None:
    carry_out(tmp_path, "waterbirds-like", scale="smoke")
    (cell,) = cells(read_records([tmp_path / "results"])[0])
    for claim in load_paper("xrm").experiment("waterbirds-like").claims:
        assert claim.check.evaluate(cell).verdict != "not run"
