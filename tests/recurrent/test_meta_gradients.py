"""Gradients through an inner loop: closed forms, a recurrent core, and Reptile."""

import pytest
import torch
from torch import nn

from mechanisms.recurrent import GRUCell, RIMCell, check_twice_differentiable, maml_gradient, reptile_step
from mechanisms.recurrent.scan import scan

THETA, PHI, TARGET, ALPHA = torch.tensor([1.0, -2.0]).double(), torch.tensor([2.0, 0.5]).double(), 3.0, 0.3


def support(fast: dict, slow: dict) -> torch.Tensor:
    return ((fast["theta"] - slow["phi"]) ** 2).sum() / 2


def query(fast: dict, slow: dict) -> torch.Tensor:
    return ((fast["theta"] - TARGET) ** 2).sum() / 2


@pytest.mark.parametrize("inner_steps", [0, 1, 2, 5])
def test_quadratic_losses_have_their_closed_form(inner_steps: int) -> None:
    stays = (1 - ALPHA) ** inner_steps
    adapted = stays * THETA + (1 - stays) * PHI
    options = {"inner_lr": ALPHA, "inner_steps": inner_steps}
    found = maml_gradient(support, query, {"theta": THETA}, {"phi": PHI}, **options)
    assert torch.allclose(found["phi"], (1 - stays) * (adapted - TARGET), atol=1e-14)
    assert torch.allclose(found["theta"], stays * (adapted - TARGET), atol=1e-14)
    first = maml_gradient(support, query, {"theta": THETA}, {"phi": PHI}, first_order=True, **options)
    assert torch.equal(first["phi"], torch.zeros_like(PHI))
    assert torch.allclose(first["theta"], adapted - TARGET, atol=1e-14)


CORES = {
    "gru": lambda: GRUCell(2, 3),
    "rim": lambda: RIMCell(
        2, 3, 3, 2, key_size=4, comm_heads=2, comm_key_size=3, block_inactive_grad=False, qkv_std=0.5
    ),
}


@pytest.mark.parametrize("name", list(CORES))
def test_a_recurrent_core_gives_the_gradient_that_differences_give(name: str) -> None:
    torch.manual_seed(0)
    core = CORES[name]().double().eval()
    x = torch.randn(4, 5, 2).double()
    names = dict(core.named_parameters())
    fast = {name: value for name, value in names.items() if "weight_hh" in name}
    slow = {name: value for name, value in names.items() if "weight_hh" not in name}

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core = core

        def forward(self, target: float) -> torch.Tensor:
            return (scan(self.core, x).output - target).square().mean()

    module = Loss()

    def loss(target: float):
        def of(fast: dict, slow: dict) -> torch.Tensor:
            both = {f"core.{name}": value for name, value in {**fast, **slow}.items()}
            return torch.func.functional_call(module, both, (target,))

        return of

    gradient = maml_gradient(loss(0.5), loss(-0.5), fast, slow, inner_lr=0.7, inner_steps=2, module=core)

    def after(slow: dict) -> torch.Tensor:
        adapted = fast
        for _ in range(2):
            with_grad = {name: value.detach().requires_grad_() for name, value in adapted.items()}
            grads = torch.autograd.grad(loss(0.5)(with_grad, slow), list(with_grad.values()))
            adapted = {name: value - 0.7 * grad for (name, value), grad in zip(adapted.items(), grads, strict=True)}
        return loss(-0.5)(adapted, slow)

    direction = {name: torch.randn_like(value) for name, value in slow.items()}
    ends = [
        after({name: (value + sign * 1e-5 * direction[name]).detach() for name, value in slow.items()})
        for sign in (1, -1)
    ]
    slope = sum((gradient[name] * direction[name]).sum() for name in slow)
    assert ((ends[0] - ends[1]) / 2e-5).item() == pytest.approx(slope.item(), rel=1e-6)


def test_parameters_are_left_as_they_are() -> None:
    theta, phi = nn.Parameter(THETA.clone()), nn.Parameter(PHI.clone())
    found = maml_gradient(support, query, {"theta": theta}, {"phi": phi}, inner_lr=ALPHA)
    assert torch.equal(theta, THETA)
    assert theta.grad is None
    assert phi.grad is None
    assert not any(one.requires_grad for one in found.values())


def test_reptile_after_one_step_goes_the_way_of_gradient_descent() -> None:
    gradient = torch.tensor([0.5, -1.0]).double()
    moved = reptile_step({"theta": THETA}, {"theta": THETA - 0.1 * gradient}, 0.25)["theta"]
    assert torch.allclose(moved, THETA - 0.025 * gradient, atol=1e-15)


class Once(torch.autograd.Function):
    """A square whose gradient cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


@pytest.mark.user_input
def test_mistakes_are_named() -> None:
    both = {"theta": THETA}
    with pytest.raises(ValueError, match="theta: in both sets"):
        maml_gradient(support, query, both, both, inner_lr=0.1)
    with pytest.raises(ValueError, match="inner_lr"):
        maml_gradient(support, query, both, {"phi": PHI}, inner_lr=-1)
    with pytest.raises(ValueError, match="in one of the two only"):
        reptile_step({"a": THETA}, {"b": THETA}, 0.1)
    cell = GRUCell(2, 3)
    cell.twice_differentiable = False
    with pytest.raises(RuntimeError, match="first_order"):
        check_twice_differentiable(nn.Sequential(cell))
    with pytest.raises(RuntimeError, match="first_order"):
        maml_gradient(support, query, both, {"phi": PHI}, inner_lr=0.1, module=cell)

    def once(fast: dict, slow: dict) -> torch.Tensor:
        return (Once.apply(fast["theta"]) * slow["phi"]).sum()

    with pytest.raises(RuntimeError, match="differentiated twice"):
        maml_gradient(once, query, both, {"phi": PHI}, inner_lr=0.1)
