"""Features of a network: its Jacobian against autograd, decompositions, responses, and what they refuse."""

import pytest
import torch
from torch import nn

from mechanisms.dynamics.features import (
    decompose,
    decompose_kernel,
    jacobian_features,
    jacobian_kernel,
    responses,
)


def network(outputs: int = 1, *, inputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, outputs)).double()


def batch(n: int = 9, d: int = 3) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_autograd(model: nn.Module, inputs: torch.Tensor, pick: int = 0) -> torch.Tensor:
    weights = [value for value in model.parameters() if value.requires_grad]
    rows = []
    for example in inputs:
        found = torch.autograd.grad(model(example[None]).flatten()[pick], weights)
        rows.append(torch.cat([part.flatten() for part in found]))
    return torch.stack(rows)


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 9, 100])
def test_rows_are_the_gradients_of_single_examples(chunk_size: int | None) -> None:
    model, inputs = network(), batch()
    expected = by_autograd(model, inputs)
    torch.testing.assert_close(jacobian_features(model, inputs, chunk_size=chunk_size), expected)
    torch.testing.assert_close(jacobian_kernel(model, inputs, chunk_size=chunk_size), expected @ expected.T)


def test_several_outputs_are_chosen_by_index_or_as_a_difference() -> None:
    model, inputs = network(3), batch()
    one, other = by_autograd(model, inputs, 0), by_autograd(model, inputs, 2)
    torch.testing.assert_close(jacobian_features(model, inputs, output=2), other)
    torch.testing.assert_close(jacobian_features(model, inputs, output=-1), other)
    torch.testing.assert_close(jacobian_features(model, inputs, output=(0, 2)), one - other)
    torch.testing.assert_close(jacobian_kernel(model, inputs, output=(0, 2)), (one - other) @ (one - other).T)


def test_frozen_parameters_give_no_columns() -> None:
    model, inputs = network(), batch()
    model[0].requires_grad_(False)
    found = jacobian_features(model, inputs)
    assert found.shape == (9, 7)
    torch.testing.assert_close(found, by_autograd(model, inputs))


def test_one_example_and_images_and_evaluation_mode() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 1)
    ).eval()
    images = torch.randn(1, 1, 4, 4)
    torch.testing.assert_close(jacobian_features(model, images), by_autograd(model, images))
    assert all(value.grad is None for value in model.parameters())


def test_it_works_where_gradients_are_off_and_reports_progress() -> None:
    steps: list[tuple[int, int]] = []
    with torch.no_grad():
        found = jacobian_features(
            network(), batch(), chunk_size=4, progress=lambda done, total: steps.append((done, total))
        )
    assert found.shape == (9, 31)
    assert steps == [(4, 9), (8, 9), (9, 9)]


def test_the_decomposition_puts_the_features_together_again() -> None:
    features, labels = batch(5, 8), torch.tensor([1, -1, 1, 1, -1])
    found = decompose(features, labels)
    rebuilt = found.weights * found.strengths @ found.directions
    torch.testing.assert_close(rebuilt, labels[:, None] * features)
    assert (found.weights.sum(0) >= 0).all()
    assert (found.strengths[:-1] >= found.strengths[1:]).all()


def test_the_kernel_gives_the_same_features() -> None:
    features, labels = batch(5, 8), torch.tensor([1, -1, 1, 1, -1])
    found, by_kernel = decompose(features, labels), decompose_kernel(features @ features.T, labels)
    torch.testing.assert_close(by_kernel.weights, found.weights)
    torch.testing.assert_close(by_kernel.strengths, found.strengths)
    assert by_kernel.directions is None
    few = decompose_kernel(features @ features.T, labels, num_features=2)
    torch.testing.assert_close(few.weights, found.weights[:, :2])


def test_responses_turn_margins_into_features_and_back() -> None:
    features, labels = batch(5, 8), torch.tensor([1, -1, 1, 1, -1])
    found = decompose(features, labels)
    theta = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    logits = features @ theta
    answer = responses(logits, labels, found)
    torch.testing.assert_close(answer, found.strengths * (found.directions @ theta))
    torch.testing.assert_close(found.weights @ answer, labels * logits)
    torch.testing.assert_close(responses(torch.stack([logits, 2 * logits]), labels, found)[1], 2 * answer)


def test_half_precision_features_are_decomposed_in_float32() -> None:
    found = decompose(torch.diag(torch.tensor([2.0, 3.0])).half(), torch.tensor([1, -1]))
    assert found.strengths.tolist() == [3, 2]
    assert found.weights.dtype == torch.float32


class Noisy(nn.Linear):
    """Drops inputs by a function, which no module shows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.dropout(x, 0.5, self.training))


class Twice(nn.Linear):
    """Gives more than one tensor."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # pyrefly: ignore
        return super().forward(x), x


@pytest.mark.user_input
def test_models_without_a_gradient_for_each_example_are_refused() -> None:
    inputs = batch()
    with pytest.raises(ValueError, match=r"1 \(BatchNorm1d\) normalises over the batch.*call model.eval\(\)"):
        jacobian_features(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)).double(), inputs)
    with pytest.raises(ValueError, match="running statistics"):
        jacobian_features(
            nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 1)).double().eval(), inputs
        )
    with pytest.raises(ValueError, match=r"0 \(Dropout\) drops at random in training mode"):
        jacobian_kernel(nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1)).double(), inputs)
    with pytest.raises(ValueError, match="LSTM"):
        jacobian_features(nn.LSTM(3, 3, num_layers=2, dropout=0.5), inputs)
    with pytest.raises(ValueError, match=r"draws at random.*call model.eval\(\)"):
        jacobian_features(Noisy(3, 1).double(), inputs)
    with pytest.raises(TypeError, match="the model gives a tuple"):
        jacobian_features(Twice(3, 1).double(), inputs)
    with pytest.raises(ValueError, match="the model has 2 outputs; choose one"):
        jacobian_features(network(2), inputs)
    with pytest.raises(ValueError, match="outputs 0 to 1"):
        jacobian_features(network(2), inputs, output=2)
    with pytest.raises(ValueError, match="no parameters"):
        jacobian_features(nn.Tanh(), inputs[:, :1])
    with pytest.raises(ValueError, match="at least one example"):
        jacobian_features(network(), inputs[:0])
    with pytest.raises(TypeError, match="inputs must be a tensor"):
        jacobian_features(network(), [[1.0, 2.0, 3.0]])  # pyrefly: ignore
    with pytest.raises(ValueError, match="chunk_size=0"):
        jacobian_features(network(), inputs, chunk_size=0)


@pytest.mark.user_input
def test_wrong_features_labels_and_kernels_are_refused() -> None:
    features, labels = batch(4, 5), torch.tensor([1, -1, 1, -1])
    with pytest.raises(ValueError, match=r"\{-1, \+1\} \(not \{0, 1\}\).*2 \* labels - 1"):
        decompose(features, torch.tensor([1, 0, 1, 0]))
    with pytest.raises(ValueError, match=r"labels have shape \(3,\), expected \(4,\)"):
        decompose(features, labels[:3])
    with pytest.raises(ValueError, match="features has 1 of 20 values that are infinite"):
        decompose(features.masked_fill(features == features.max(), torch.nan), labels)
    with pytest.raises(ValueError, match=r"features have shape \(4,\)"):
        decompose(features[:, 0], labels)
    with pytest.raises(ValueError, match="num_features=5"):
        decompose(features, labels, num_features=5)
    with pytest.raises(ValueError, match="not symmetric"):
        decompose_kernel(features[:, :4], labels)
    with pytest.raises(ValueError, match="none below 0"):
        decompose_kernel(-features @ features.T, labels)
    with pytest.raises(ValueError, match=r"expected \(examples, examples\)"):
        decompose_kernel(features, labels)
    found = decompose(features, labels)
    with pytest.raises(ValueError, match=r"logits have shape \(3,\), expected \(..., 4\)"):
        responses(torch.zeros(3), labels, found)
    with pytest.raises(ValueError, match=r"\{-1, \+1\}"):
        responses(torch.zeros(4), torch.tensor([1, 0, 1, 0]), found)
