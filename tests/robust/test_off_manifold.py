"""The detector: its score, its guarantee, and its check on held-out rows."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mechanisms.robust.classifier_training import train_classifier
from mechanisms.robust.denoising import DenoisingLayer
from mechanisms.robust.fortified import FortifiedModel, fortify
from mechanisms.robust.off_manifold import FalsePositives, off_manifold_detector, off_manifold_score


def model() -> FortifiedModel:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    return fortify(network, {"1": DenoisingLayer(8, 3), "3": DenoisingLayer(4, 2)}).eval()


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 5, generator=torch.Generator().manual_seed(seed))


def test_the_score_is_the_rows_part_of_the_reconstruction_loss() -> None:
    fortified, x = model(), rows(2500)
    _, before, after = fortified.trace(x)
    expected = sum((a - b).square().mean(1) for a, b in zip(after, before, strict=True))
    torch.testing.assert_close(off_manifold_score(fortified, x), expected)
    assert off_manifold_score(fortified, x[:1]).shape == (1,)
    assert not off_manifold_score(fortified, x).requires_grad


def test_the_threshold_is_the_conformal_one() -> None:
    fortified = model()
    for count, rate, allowed in ((38, 0.05, 0), (39 * 2, 0.05, 1), (19 * 2, 0.1, 1), (200, 0.1, 9)):
        x = rows(count)
        detector = off_manifold_detector(fortified, x, rate)
        order = off_manifold_score(fortified, x)
        used = count - detector.held_out.rows
        assert used == count // 2
        # The row that set the threshold may be scored one rounding higher in another batch.
        flagged = int((order > detector.threshold * (1 + 1e-5)).sum())
        assert flagged - detector.held_out.flagged == allowed


def test_clean_rows_are_flagged_at_the_rate_asked_for() -> None:
    fortified = model()
    detector = off_manifold_detector(fortified, rows(4000), 0.05)
    fresh = detector.verify(rows(20_000, seed=1))
    # Calibrated on 2,000 rows the true rate has a standard deviation of 0.005, and the count one of 0.0015: 0.03 is
    # more than five of both together.
    assert abs(fresh.rate - 0.05) < 0.03
    assert abs(detector.held_out.rate - 0.05) < 0.04
    assert detector.held_out.holds
    assert detector.held_out.rows == 2000


def test_the_rate_is_at_most_the_one_asked_for_on_average_over_calibrations() -> None:
    fortified, counts = model(), []
    scores = off_manifold_score(fortified, rows(300 * 20))
    for group in scores.view(300, 20):
        threshold = group[:19].sort(descending=True).values[0]
        counts.append(bool(group[19] > threshold))
    # With 19 calibration rows exactly 1 in 20: of 300 at most 36 but once in a million.
    assert sum(counts) <= 36
    detector = off_manifold_detector(fortified, rows(38), 0.05)
    assert detector.threshold > 0


def test_what_is_far_from_the_data_is_flagged() -> None:
    torch.manual_seed(0)
    basis = torch.rand(2, 5)
    x = 0.1 + 0.4 * (torch.rand(800, 2) @ basis)
    fortified = model()
    train_classifier(fortified, x[:400], (x[:400, 0] > x[:400, 1]).long(), epochs=40, lr=0.01)
    detector = off_manifold_detector(fortified, x[400:], 0.05)
    away = torch.rand(200, 5)
    assert detector(away).float().mean() > 5 * detector.held_out.rate
    assert detector.held_out.rate < 0.12


def test_intervals_are_those_of_clopper_and_pearson() -> None:
    none, every = FalsePositives.counted(0, 10, 0.05), FalsePositives.counted(10, 10, 0.05)
    assert none.low == 0
    assert none.high == pytest.approx(1 - 0.025**0.1)
    assert every.high == 1
    assert every.low == pytest.approx(0.025**0.1)
    assert none.holds
    assert not every.holds


def test_rows_that_hang_together_are_told() -> None:
    class Alternating(nn.Module):
        """An autoencoder whose error depends on the call, as if the held-out rows came from elsewhere."""

        def forward(self, h: torch.Tensor) -> torch.Tensor:
            far = torch.arange(len(h)) >= len(h) // 2
            return h + far.unsqueeze(1)

    fortified = fortify(nn.Sequential(nn.Linear(5, 2)), {"0": Alternating()}).eval()
    with pytest.warns(UserWarning, match="of the held-out clean rows are flagged, 0.05 were asked for"):
        off_manifold_detector(fortified, rows(100))


def test_inputs_that_are_not_finite_are_flagged() -> None:
    detector = off_manifold_detector(model(), rows(200))
    odd = rows(4)
    odd[0], odd[1, 2], odd[2, 0] = torch.inf, torch.nan, 1e30
    assert detector(odd)[:3].all()
    assert detector.verify(odd[:3]).rate == 1


def test_equal_scores_are_not_flagged() -> None:
    same = rows(1).repeat(200, 1)
    assert off_manifold_detector(model(), same).held_out.flagged == 0


@pytest.mark.unhooked
def test_compiled_models_are_scored() -> None:
    fortified = model()
    compiled = torch.compile(fortified, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(off_manifold_score(compiled, rows(9)), off_manifold_score(fortified, rows(9)))
    assert off_manifold_detector(compiled, rows(200))(rows(9)).shape == (9,)


def test_noise_at_evaluation_warns() -> None:
    fortified = fortify(nn.Sequential(nn.Linear(5, 2)), {"0": DenoisingLayer(2, 2, noise="always")}).eval()
    with pytest.warns(UserWarning, match="verdicts change from call to call"):
        off_manifold_detector(fortified, rows(100))


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: off_manifold_score(nn.Linear(5, 2).eval(), rows(3)), TypeError, "is a Linear; fortify it first"),
        (lambda: off_manifold_score(fortify(nn.Linear(5, 2), {}).eval(), rows(3)), ValueError, "no denoising layers"),
        (lambda: off_manifold_score(model().train(), rows(3)), ValueError, "in training mode; call its eval"),
        (lambda: off_manifold_detector(model(), rows(36)), ValueError, "36 clean rows leave 18 for the threshold"),
        (lambda: off_manifold_detector(model(), rows(30)), ValueError, "takes at least 19"),
        (lambda: off_manifold_detector(model(), rows(0)), ValueError, "0 clean rows leave 0"),
        (lambda: off_manifold_detector(model(), rows(100), 0), ValueError, "false_positive_rate=0"),
        (lambda: off_manifold_detector(model(), rows(100), 1.0), ValueError, "false_positive_rate=1"),
        (
            lambda: off_manifold_detector(model(), torch.cat([rows(99), rows(1) * torch.inf])),
            ValueError,
            "1 of 100 clean rows have no finite score",
        ),
        (lambda: off_manifold_detector(model(), rows(100), held_out=1), ValueError, "held_out=1"),
        (lambda: off_manifold_detector(model(), rows(100)).verify(rows(0)), ValueError, "x_clean is empty"),
    ],
)
def test_mistakes_say_what_to_do(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
