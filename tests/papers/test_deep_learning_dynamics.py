"""The recipe on the dynamics of deep networks: pairs, blocks, figures and claims, from records of the smoke scale."""

import pytest
import torch

from mechanisms.lab.bench import Bench
from mechanisms.lab.progress import Silent
from mechanisms.lab.records import cells, read_records
from mechanisms.lab.registry import load_paper
from mechanisms.lab.session import Request, execute
from mechanisms.papers._deep import digits, failure, modes, starvation
from mechanisms.papers._deep.digits import Digits, run_digits, run_digits_block


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> list:
    """Cells of every experiment that needs no data of the user's, at smoke."""
    folder = tmp_path_factory.mktemp("deep")
    paper = load_paper("deep-learning-dynamics")
    summary = execute(Request(work=[(paper, paper.experiments)], scale="smoke", results=folder, device="cpu"), Silent())
    assert summary.failed == []
    return list(cells(read_records([folder])[0]))


def test_every_figure_draws_and_every_claim_finds_its_metrics(smoke: list) -> None:
    paper = load_paper("deep-learning-dynamics")
    assert len(smoke) >= 8
    for cell in smoke:
        experiment = paper.experiment(cell.experiment)
        for figure in experiment.figures:
            assert figure.draw(cell).data, figure.name
        for claim in experiment.claims:
            assert claim.check.evaluate(cell).verdict != "not run", claim.text


def test_a_block_of_seeds_is_its_seeds_one_by_one() -> None:
    settings = Digits(hidden=10, steps=30)
    block = run_digits_block(settings, "hinge-90", [Bench(seed) for seed in (1, 2)])
    for seed, found in zip((1, 2), block, strict=True):
        assert found == pytest.approx(run_digits(settings, "hinge-90", Bench(seed)), abs=1e-5)


def test_the_network_on_digits_is_torch_s_own_training() -> None:
    settings = Digits(hidden=10, steps=20)
    data = digits._draw(settings, 0.5, Bench(3))
    model = torch.nn.Sequential(torch.nn.Linear(65, 10), torch.nn.ReLU(), torch.nn.Linear(10, 1))
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), data.weights, strict=True):
            parameter.copy_(value)
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr)
    for _ in range(settings.steps):
        optimizer.zero_grad()
        torch.nn.functional.softplus(-data.train_y * model(data.train_x)[:, 0]).mean().backward()
        optimizer.step()
    margin = float((data.train_y * model(data.train_x)[:, 0]).detach().mean())
    assert run_digits(settings, "cross-entropy-50", Bench(3))["train_margin"] == pytest.approx(margin, abs=1e-5)


def test_data_follow_from_the_seed_and_a_larger_fraction_marks_more_of_the_same() -> None:
    settings = Digits()
    some, more = (digits._draw(settings, q, Bench(5)) for q in (0.25, 0.75))
    assert torch.equal(some.train_x[:, :-1], more.train_x[:, :-1])
    assert torch.equal(some.train_y, more.train_y)
    assert all(torch.equal(a, b) for a, b in zip(some.weights, more.weights, strict=True))
    marked = some.train_x[:, -1] != 0
    assert int(marked.sum()) == 60
    assert torch.equal(more.train_x[marked, -1], some.train_x[marked, -1])
    assert torch.equal(some.train_x[marked, -1], 2 * some.train_y[marked])
    assert not some.test_x[:, -1].any()


def test_distance_to_the_border_of_the_region_that_learns() -> None:
    a, z = torch.tensor([0.5, -0.5, 1.0, -1.0]).double(), torch.tensor([2.0, 2.0, -1.0, -1.0]).double()
    found = failure._distance(a, z, 1.0)
    assert found == pytest.approx([0.5, 0.5, 0.0, 2**0.5])


def test_a_crossing_is_found_between_points() -> None:
    times, curve = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 0.5, 1.5])
    assert float(modes._crossing(times, curve, 1.0)) == 1.5
    assert float(modes._crossing(times, curve, -1.0)) == 0.0
    assert torch.isnan(modes._crossing(times, curve, 2.0))


def test_the_theory_s_own_claims_hold_in_short_runs() -> None:
    found = modes.run_one_mode(modes.OneMode(horizon=5.0, points=5), "cross-entropy", Bench(0))
    assert found["relative_error"][0] < 0.01
    assert found["integration_error"] < 1e-8
    assert modes.run_independent(modes.Independent(steps=100), "separable", Bench(0))["change"] == 0.0
    assert starvation.run_two_features(starvation.TwoFeatures(points=5), "cross-entropy", Bench(0))["ratio"] < 0.07
