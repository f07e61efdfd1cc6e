"""The recipe of XRM: its road at every scale, on files of the published format that the tests make."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mechanisms.lab.bench import Bench
from mechanisms.lab.data import Splits, waterbirds_like
from mechanisms.lab.progress import Silent
from mechanisms.lab.records import Cell, Record, cells, read_records
from mechanisms.lab.registry import load_paper
from mechanisms.lab.session import Request, execute
from mechanisms.papers._xrm import groups, over_time
from mechanisms.papers._xrm.groups import Groups, run_groups
from mechanisms.papers._xrm.over_time import OverTime, run_over_time
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


def test_variants_with_equal_environments_are_equal_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data, draws, initial weights and batches follow from the seed alone, never from the variant."""
    settings = Groups(data="coloured-digits", hidden=(16,), optimizer="adam", steps=60, worst_class=True)

    def as_the_oracle(settings: Groups, bench: Bench, splits: Splits) -> dict:
        train, held = (
            torch.as_tensor((p.attribute != p.y).astype(np.int64)) for p in (splits.train, splits.validation)
        )
        return {"train": train, "validation": held, "history": [], "degenerate": False}

    monkeypatch.setattr(groups, "search_twins", as_the_oracle)
    for learner in ("groupdro", "rwg", "subg"):
        oracle, found = (run_groups(settings, f"{kind}-{learner}", Bench(3)) for kind in ("oracle", "xrm"))
        assert oracle == found
    assert run_groups(settings, "erm", Bench(3)) != run_groups(settings, "erm", Bench(4))


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
    assert all(float(parameter.detach().abs().sum()) == 0 for parameter in head.parameters())
    network = model_factory(5, (4, 4), 3)()
    assert network(torch.randn(2, 5)).shape == (2, 3)
    assert float(network[0].weight.detach().abs().sum()) > 0
    assert float(network[0].bias.detach().abs().sum()) == 0


def test_every_figure_draws_from_smoke_records(tmp_path: Path) -> None:
    carry_out(tmp_path, "waterbirds-like", "flips-over-time", scale="smoke")
    paper = load_paper("xrm")
    for cell in cells(read_records([tmp_path / "results"])[0]):
        for figure in paper.experiment(cell.experiment).figures:
            assert figure.draw(cell).data


def test_the_claims_on_groups_name_metrics_that_the_runs_return(tmp_path: Path) -> None:
    carry_out(tmp_path, "waterbirds-like", "coloured-digits", "one-minute", scale="smoke")
    found = list(cells(read_records([tmp_path / "results"])[0]))
    assert len(found) == 3
    for cell in found:
        for claim in load_paper("xrm").experiment(cell.experiment).claims:
            assert claim.check.evaluate(cell).verdict != "not run"


@pytest.mark.parametrize("name", ["flips-over-time", "flips-over-time-mlp"])
def test_the_claims_over_time_name_metrics_that_the_runs_return(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_in_one(settings: OverTime, variant: str, bench: Bench, splits: Splits) -> tuple[dict, dict]:
        return tuple({step: torch.ones(len(p)) for step in settings.steps} for p in (splits.train, splits.validation))

    monkeypatch.setattr(over_time, "annotate", all_in_one)
    experiment = load_paper("xrm").experiment(name)
    settings = experiment.scales["laptop"]
    records = [
        Record("xrm", name, "laptop", variant, 10, {}, run_over_time(settings, variant, Bench(10)))
        for variant in experiment.variants
    ]
    for claim in experiment.claims:
        assert claim.check.evaluate(Cell("xrm", name, "laptop", {}, records)).verdict != "not run"


def test_dfr_retrains_the_last_layer_of_a_trained_body() -> None:
    settings = Groups(data="coloured-digits", hidden=(16,), optimizer="adam", steps=40, twin_steps=40, search=1)
    splits = load("coloured-digits", "", Bench(3))
    network, _ = groups.train(settings, "xrm-dfr", Bench(3), splits)
    assert [tuple(p.shape) for p in network.parameters()] == [(16, 128), (16,), (2, 16), (2,)]
