"""Models side by side are the models one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mechanisms.robust._stack import ModelStack, SharedBatches, StackedOptimizer

torch_optimizers = {
    "sgd": lambda parameters, lr, wd: torch.optim.SGD(parameters, lr=lr, weight_decay=wd, momentum=0.9),
    "adam": lambda parameters, lr, wd: torch.optim.Adam(parameters, lr=lr, weight_decay=wd),
    "adamw": lambda parameters, lr, wd: torch.optim.AdamW(parameters, lr=lr, weight_decay=wd),
}


def linear() -> nn.Module:
    return nn.Linear(5, 3)


def unbiased() -> nn.Module:
    return nn.Linear(5, 3, bias=False)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4, bias=False), nn.Tanh(), nn.Linear(4, 3))


def flattening() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head, self.norm = nn.Linear(5, 5), nn.Linear(5, 3), nn.BatchNorm1d(5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(inputs + self.inner(self.norm(inputs)).tanh())


every_architecture = pytest.mark.parametrize("make", [linear, unbiased, mlp, flattening, Residual])


def several(make, number: int) -> list[nn.Module]:
    torch.manual_seed(3)
    return [make().double() for _ in range(number)]


@every_architecture
def test_outputs_and_gradients_equal_those_of_the_single_models(make) -> None:
    models = several(make, 3)
    stack = ModelStack(models)
    inputs = torch.randn(11, 5).double()
    outputs = stack(inputs)
    weights = torch.randn(3, 11, 3).double()
    outputs.mul(weights).sum().backward()
    for index, model in enumerate(models):
        alone = model(inputs)
        alone.mul(weights[index]).sum().backward()
        torch.testing.assert_close(outputs[index], alone, rtol=1e-12, atol=1e-12)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(stack.parameters[name].grad[index], parameter.grad, rtol=1e-12, atol=1e-12)


@every_architecture
def test_the_pulled_back_gradient_is_that_of_autograd_and_replaces_the_old_one(make) -> None:
    stack, inputs = ModelStack(several(make, 2)), torch.randn(11, 5).double()
    weights = torch.randn(2, 11, 3).double()
    stack(inputs).mul(weights).sum().backward()
    expected = stack.flat_grad.clone()
    stack.flat_grad.fill_(7.0)
    outputs, pull = stack.vjp(inputs)
    pull(weights)
    assert not outputs.requires_grad
    torch.testing.assert_close(stack.flat_grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("same", [True, False])
@every_architecture
def test_a_stacked_optimizer_equals_separate_ones(make, kind, same) -> None:
    models = several(make, 3)
    stack = ModelStack(models)
    lr, weight_decay = ([0.02] * 3, [0.1] * 3) if same else ([0.01, 0.02, 0.03], [0.0, 0.1, 0.3])
    together = StackedOptimizer(stack, kind, lr=lr, weight_decay=weight_decay, momentum=0.9)
    alone = [torch_optimizers[kind](m.parameters(), lr[i], weight_decay[i]) for i, m in enumerate(models)]
    for _ in range(25):
        inputs = torch.randn(11, 5).double()
        stack.flat_grad.zero_()
        stack(inputs).square().mean(-2).sum().backward()
        together.step()
        for model, optimizer in zip(models, alone, strict=True):
            optimizer.zero_grad()
            model(inputs).square().mean(-2).sum().backward()
            optimizer.step()
    for index, model in enumerate(models):
        extracted = dict(stack.extract(index).state_dict())
        for name, value in model.state_dict().items():
            torch.testing.assert_close(extracted[name], value, rtol=1e-12, atol=1e-12)


def test_an_extracted_model_is_independent_of_the_stack() -> None:
    stack = ModelStack(several(mlp, 2))
    model, inputs = stack.extract(1), torch.randn(4, 5).double()
    before = model(inputs)
    stack.flat.zero_()
    torch.testing.assert_close(model(inputs), before)


def test_frozen_parameters_stay() -> None:
    models = several(mlp, 2)
    for model in models:
        model[0].requires_grad_(False)
    stack, inputs = ModelStack(models), torch.randn(4, 5).double()
    torch.testing.assert_close(stack(inputs)[1], models[1](inputs))
    stack(inputs).sum().backward()
    StackedOptimizer(stack, "sgd", lr=0.1).step()
    assert torch.equal(stack.extract(0)[0].weight, models[0][0].weight)
    assert not torch.equal(stack.extract(0)[2].weight, models[0][2].weight)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), sizes=st.lists(st.integers(1, 50), min_size=1, max_size=4))
def test_an_epoch_meets_no_row_twice(rows: int, sizes: list[int]) -> None:
    batches = SharedBatches(rows, sizes, torch.Generator().manual_seed(0))
    drawn = torch.cat([batches.draw() for _ in range(rows // batches.batch_size)])
    assert len(drawn.unique()) == len(drawn)
    assert batches.weights.sum(1).tolist() == [min(size, batches.batch_size) for size in sizes]


def test_a_batch_as_large_as_the_data_is_the_data_in_order() -> None:
    batches = SharedBatches(5, [9, 5], torch.Generator())
    assert batches.draw().tolist() == batches.draw().tolist() == [0, 1, 2, 3, 4]


def test_a_small_batch_size_beside_full_batches_meets_all_rows() -> None:
    batches = SharedBatches(5, [9, 2], torch.Generator().manual_seed(0))
    assert {row for _ in range(50) for row in batches.draw()[:2].tolist()} == {0, 1, 2, 3, 4}


def test_dropout_differs_between_the_models_of_a_stack() -> None:
    model = nn.Sequential(nn.Linear(5, 50), nn.Dropout(0.5), nn.Linear(50, 3))
    stack, inputs = ModelStack([model, model]), torch.randn(4, 5)
    one, other = stack(inputs)
    assert not torch.equal(one, other)
    one, other = stack.eval()(inputs)
    torch.testing.assert_close(one, other)


@pytest.mark.user_input
def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="at least one model"):
        ModelStack([])
    with pytest.raises(ValueError, match="model 1 differs"):
        ModelStack([nn.Linear(3, 2), nn.Linear(4, 2)])
    with pytest.raises(ValueError, match="needs trained parameters"):
        ModelStack([nn.ReLU()])
    stack = ModelStack([nn.Linear(3, 2), nn.Linear(3, 2)])
    with pytest.raises(ValueError, match="one for each of 2 models"):
        StackedOptimizer(stack, "sgd", lr=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="choose 'sgd'"):
        StackedOptimizer(stack, "rmsprop", lr=0.1)
    with pytest.raises(ValueError, match="does not belong"):
        stack.load_state_dict({"weight": torch.zeros(2, 2, 3)})
    with pytest.raises(ValueError, match="at least 1"):
        SharedBatches(0, [3], torch.Generator())
