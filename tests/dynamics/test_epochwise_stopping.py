"""Forecasts of the test error: leaving rows out is exact, held-out rows are measured, and both find the truth."""

import math

import pytest
import torch
from torch import Tensor, nn

from mechanisms.dynamics import (
    TeacherStudent,
    descents,
    layer_features,
    order_parameters,
    predict_test_error,
    training_path,
)

TIMES = torch.logspace(-2, 6, 25, dtype=torch.float64)


def data(n: int, d: int, outputs: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.logspace(0, -2, d, dtype=torch.float64)
    return x, torch.randn(n, outputs, generator=generator, dtype=torch.float64)


def refitted(x: Tensor, y: Tensor, **settings) -> Tensor:
    """Predictions for each row by a path on all others: one decomposition for each row."""
    predictions = []
    for row in range(len(x)):
        rest = torch.arange(len(x)) != row
        weights = training_path(x[rest], y[rest], TIMES, **settings)
        predictions.append(torch.einsum("d,tdo->to", x[row], weights))
    return torch.stack(predictions, 1)


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (25, 25), (2, 3)])
@pytest.mark.parametrize("method", ["flow", "ridge"])
@pytest.mark.parametrize("l2", [0.0, 0.01])
def test_leaving_rows_out_is_exact(size: tuple[int, int], method: str, l2: float) -> None:
    x, y = data(*size)
    forecast = predict_test_error(x, y, TIMES, lr=0.1, l2=l2, method=method)
    rows = (refitted(x, y, lr=0.1, l2=l2, method=method) - y).square().sum(-1) / 2
    torch.testing.assert_close(forecast.error, rows.mean(1), rtol=2e-8, atol=1e-8)
    torch.testing.assert_close(forecast.standard_error, rows.std(1) / size[0] ** 0.5, rtol=1e-7, atol=1e-7)
    assert forecast.tested_on == "leave-one-out"


def test_leaving_rows_out_survives_copies_and_empty_columns() -> None:
    x, y = data(30, 10)
    x = torch.cat([x, x[:, :3], torch.zeros(30, 1)], 1)
    rows = (refitted(x, y, lr=0.1) - y).square().sum(-1) / 2
    torch.testing.assert_close(predict_test_error(x, y, TIMES, lr=0.1).error, rows.mean(1), rtol=1e-7, atol=1e-7)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data(40, 20)
    whole = predict_test_error(x, y, TIMES)
    monkeypatch.setattr("mechanisms.dynamics.stopping.LARGEST_BLOCK", 20_000)
    torch.testing.assert_close(predict_test_error(x, y, TIMES).error, whole.error, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(predict_test_error(x, y, TIMES).train_error, whole.train_error, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("method", ["flow", "gd", "ridge"])
def test_held_out_rows_are_measured_along_the_path(method: str) -> None:
    x, y = data(40, 20)
    times, held, train = torch.tensor([0.0, 1.0, 9.0, 1000.0]), slice(30, None), slice(30)
    forecast = predict_test_error(
        x[train], y[train], times, validation_features=x[held], validation_targets=y[held], method=method, lr=0.02
    )
    weights = training_path(x[train], y[train], times, method=method, lr=0.02)
    for rows, error in ((held, forecast.error), (train, forecast.train_error)):
        torch.testing.assert_close(error, (x[rows] @ weights - y[rows]).square().sum(-1).mean(1) / 2)
    place = int(forecast.error.argmin())
    assert (forecast.best_time, forecast.best_error) == (times[place].item(), forecast.error[place].item())
    assert forecast.tested_on == "held-out"


def test_a_bias_is_a_column_of_ones() -> None:
    x, y = data(30, 5)
    ones = torch.ones(30, 1, dtype=torch.float64)
    with_bias = predict_test_error(x, y, TIMES, bias=True, validation_features=x, validation_targets=y)
    appended = torch.cat([x, ones], 1)
    torch.testing.assert_close(
        with_bias.error,
        predict_test_error(appended, y, TIMES, validation_features=appended, validation_targets=y).error,
    )


@pytest.mark.parametrize("held_out", [True, False])
def test_wrong_classes_are_counted(held_out: bool) -> None:
    x, _ = data(45, 6)
    labels = torch.arange(45) % 3
    one_hot = nn.functional.one_hot(labels, 3).double()
    rest = {"validation_features": x, "validation_targets": labels} if held_out else {}
    forecast = predict_test_error(x, labels, TIMES, lr=0.1, metric="zero_one", **rest)
    if held_out:
        predictions = x @ training_path(x, one_hot, TIMES, lr=0.1)
        assert torch.equal(forecast.error, forecast.train_error)
    else:
        predictions = refitted(x, one_hot, lr=0.1)
    torch.testing.assert_close(forecast.error, (predictions.argmax(-1) != labels).double().mean(1))


def test_the_forecast_finds_the_truth() -> None:
    """On a problem whose exact error is known: n = 10 d, so leaving one out has a small variance."""
    problem = TeacherStudent.two_scales(1000, 100, 70, 30, 1.0)
    sample = problem.sample(1, 4000, generator=torch.Generator().manual_seed(0))
    x, y = sample.features[0], sample.targets[0]
    t = torch.logspace(-1, 6, 60, dtype=torch.float64)
    truth = order_parameters(problem, sample.teacher[0], training_path(x, y, t, lr=0.1)).error
    left_out = predict_test_error(x, y, t, lr=0.1)
    held_out = predict_test_error(
        x, y, t, lr=0.1, validation_features=sample.test_features[0], validation_targets=sample.test_targets[0]
    )
    for forecast in (left_out, held_out):
        assert ((forecast.error - truth).abs() < 5.5 * forecast.standard_error).all()
        assert truth[(t - forecast.best_time).abs().argmin()] < truth.min() + 0.01
    assert (left_out.train_error[1:] < left_out.error[1:]).all()


def test_a_forecast_can_descend_twice() -> None:
    problem = TeacherStudent.two_scales(300, 200, 140, 100)
    sample = problem.sample(1, generator=torch.Generator().manual_seed(0))
    t = torch.logspace(-1, 7, 80, dtype=torch.float64)
    forecast = predict_test_error(sample.features[0], sample.targets[0], t)
    assert descents(forecast.error, t, min_drop=0.02).is_double
    assert forecast.best_time > 1e5


def test_features_enter_the_named_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(0.5), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    x = torch.randn(7, 1, 4, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model[1].eval()
    for layer in ("4", model[4]):
        for batch_size in (None, 3):
            features = layer_features(model, layer, x, batch_size=batch_size)
            assert features.shape == (7, 8)
            assert not features.requires_grad
    assert layer_features(model, "1", x).shape == (7, 8)
    assert model.training
    assert not model[1].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    torch.testing.assert_close(model[4](layer_features(model, "4", x)), model(x))


def test_a_network_s_last_layer_is_forecast_from_its_features() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(10, 30), nn.Tanh(), nn.Linear(30, 1))
    x = torch.randn(80, 10)
    features = layer_features(body, "2", x)
    forecast = predict_test_error(features, x[:, :1].tanh(), [0.0, 1.0, 100.0], bias=True)
    assert forecast.best_time == 100.0
    assert forecast.best_error < 0.1 * forecast.error[0]


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation_features": torch.ones(2, 3)}, "together, or neither"),
        ({"method": "gd", "lr": 0.1}, "needs held-out rows"),
        ({"metric": "accuracy"}, "'squared', 'zero_one'"),
        ({"metric": "zero_one"}, "integers"),
        ({"metric": "zero_one", "targets": torch.tensor([0, 1, -1, 0])}, "classes 0"),
        ({"features": torch.ones(2, 4, 3), "targets": torch.ones(2, 4)}, "one data set"),
        ({"features": torch.ones(1, 3), "targets": torch.ones(1)}, "cannot be left out"),
        ({"validation_features": torch.ones(2, 4), "validation_targets": torch.ones(2)}, "as many columns"),
        ({"validation_features": torch.ones(2, 3), "validation_targets": torch.ones(2, 2)}, "as many columns"),
        ({"validation_features": torch.ones(2, 3), "validation_targets": torch.ones(3)}, "validation_features have"),
        ({"lr": torch.ones(2)}, "one for each"),
        ({"times": []}, "at least one time"),
        ({"targets": torch.tensor([0.0, math.nan, 1.0, 1.0])}, "targets has 1 of 4"),
    ],
)
def test_bad_forecasts_are_refused(change: dict, message: str) -> None:
    whole = {"features": torch.eye(4)[:, :3], "targets": torch.ones(4), "times": [0.0, 1.0]} | change
    with pytest.raises(ValueError, match=message):
        predict_test_error(**whole)


@pytest.mark.user_input
def test_layers_that_are_not_there_or_not_called_once_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    x = torch.ones(4, 3)
    for layer, message in (("fc", "it has 0, 1"), (nn.Linear(3, 3), "no layer of this model")):
        with pytest.raises(ValueError, match=message):
            layer_features(model, layer, x)
    with pytest.raises(ValueError, match="batch_size=0"):
        layer_features(model, "1", x, batch_size=0)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    for layer, times in (("layer", 2), ("idle", 0)):
        with pytest.raises(ValueError, match=f"called {times} times"):
            layer_features(Twice(), layer, x)
