"""The recipe of epoch-wise double descent: its runs, its figures, and that its claims read what the runs return."""

from pathlib import Path

import pytest
import torch

from mechanisms.dynamics import TeacherStudent, descents, learning_curve
from mechanisms.lab.bench import Bench
from mechanisms.lab.progress import Silent
from mechanisms.lab.records import cells, read_records
from mechanisms.lab.registry import load_paper
from mechanisms.lab.session import Request, execute
from mechanisms.papers._epochwise import finite, students, theory
from mechanisms.papers._epochwise.settings import figure_1, figure_2, figure_3, log_times, published_clock

SLUG = "epochwise-double-descent"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    paper = load_paper(SLUG)
    work = [(paper, [e for e in paper.experiments if "laptop" in e.scales])]
    assert execute(Request(work=work, scale="smoke", results=results, device="cpu"), Silent()).failed == []
    return results


def test_every_claim_of_laptop_scale_names_metrics_that_the_runs_return(smoke: Path) -> None:
    for cell in cells(read_records([smoke])[0]):
        for claim in load_paper(SLUG).experiment(cell.experiment).claims:
            assert claim.check.evaluate(cell).verdict != "not run", claim.text


def test_every_figure_draws_with_records_and_without(smoke: Path) -> None:
    for cell in cells(read_records([smoke])[0]):
        for figure in load_paper(SLUG).experiment(cell.experiment).figures:
            assert figure.draw(cell).data


def test_records_stay_small(smoke: Path) -> None:
    settings = finite.Finite(draws=3)
    bench = Bench(0)
    finite.run_agreement(settings, "kappa-100", bench)
    assert sum(len(steps) for steps, _ in bench.curves.values()) < 500
    assert max(path.stat().st_size for path in smoke.rglob("*.json")) < 20_000


def test_the_problems_are_the_paper_s() -> None:
    assert figure_1() == TeacherStudent.two_scales(150, 100, 70, 100)
    assert figure_3(30) == TeacherStudent.two_scales(110, 100, 70, 30)
    two = figure_2(2)
    assert (two.num_samples, two.noise, two.l2) == (120, 0.2, pytest.approx(0.01))
    assert two.groups == ((80, 0.5), (20, 0.0125))
    assert published_clock(figure_1()).groups == ((70, 0.5), (30, pytest.approx(0.005)))
    assert torch.allclose(log_times(0, 2, 3), torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("x", "method", "end", "double"),
    [
        (0.898, "decoupled", 0.2434, False),
        (0.898, "ridge", 0.2436, False),
        (2.494, "decoupled", 0.2953, False),
        (2.494, "ridge", 0.3127, False),
        (8, "decoupled", 0.12, True),
        (8, "ridge", 0.12, True),
    ],
)
def test_the_slices_of_figure_2_end_where_they_were_published(x: float, method: str, end: float, double: bool) -> None:
    t = log_times(-3, 9, 400)
    error = learning_curve(figure_2(x), t, lr=1.0, method=method).error
    assert error[-1].item() == pytest.approx(end, abs=2e-4)
    assert descents(error, t, min_drop=1e-3).is_double == double


def test_attribution_and_ridge_reading_measure_what_the_formulas_say() -> None:
    fast = theory.run_attribution(theory.Closed(), "fast-only", Bench(0))
    assert fast["decoupled_minimum"] == pytest.approx(0.2329, abs=1e-4)
    assert fast["flow_end"] == pytest.approx(0.28125, abs=1e-5)
    for variant, expected in (("figure-1", 0.0265), ("figure-2-small", 0.0494), ("figure-3-kappa-30", 0.0550)):
        measured = theory.run_ridge_reading(theory.Closed(), variant, Bench(0))
        assert measured["sup_difference"] == pytest.approx(expected, abs=2e-4)


def test_turns_are_read_off_a_known_curve() -> None:
    t = torch.tensor([1.0, 10.0, 100.0, 1000.0, 10_000.0], dtype=torch.float64)
    turns = finite._turns(torch.tensor([0.5, 0.2, 0.3, 0.1, 0.11], dtype=torch.float64), t)
    assert turns["first_minimum"] == pytest.approx(0.2)
    assert turns["first_minimum_log_time"] == pytest.approx(1)
    assert turns["peak_log_time"] == pytest.approx(2)
    assert turns["rise"] == pytest.approx(0.1)
    assert turns["fall"] == pytest.approx(0.2)
    assert turns["maxima"] == 1


def test_the_two_layer_student_takes_the_steps_of_torch() -> None:
    settings = students.Students(dim=10, hidden=7, draws=2)
    data = figure_3(5, 10).sample(2, generator=torch.Generator().manual_seed(0))
    first, last = students.initial(settings, 10, 2, torch.Generator().manual_seed(1))
    assert first.std().item() == pytest.approx((2 / 10) ** 0.5, rel=0.3)
    ours = students.linear_path(data.features, data.targets, first, last, [0, 1, 5, 30], 0.01, 0.9)
    weights = [first.clone().requires_grad_(), last.clone().requires_grad_()]
    optimizer = torch.optim.SGD(weights, lr=0.01, momentum=0.9)
    kept = []
    for step in range(31):
        product = (weights[0] @ weights[1][..., None])[..., 0]
        if step in (0, 1, 5, 30):
            kept.append(product.detach())
        loss = ((data.features @ product[..., None])[..., 0] - data.targets).square().sum() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(ours, torch.stack(kept, 1), atol=1e-12, rtol=1e-12)


def test_students_that_diverge_leave_their_end_open() -> None:
    settings = students.Students(dim=20, hidden=8, draws=2, steps=60, lr=1.0)
    bench = Bench(0)
    metrics = students.run_linear(settings, "kappa-1", bench)
    assert metrics["diverged"] == 2
    assert metrics["end"] != metrics["end"]
    assert "2 of 2 students diverged" in bench.notes[0]


def test_kept_steps_hold_those_that_claims_read() -> None:
    kept = students.kept_steps(5000)
    assert {0, 1, 5, 20, 5000} <= set(kept)
    assert kept == sorted(set(kept))
    assert len(kept) < 90
