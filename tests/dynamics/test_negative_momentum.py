"""SGD and Adam with a momentum of either sign: torch's own steps where it has them, the recursion elsewhere."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mechanisms.dynamics.negative_momentum import NegativeMomentumAdam, NegativeMomentumSGD

KERNELS = [{"foreach": False}, {"foreach": True}, {"fused": True}, {}]
Optimizer = torch.optim.Optimizer


def follow(
    make: Callable[[list[nn.Parameter]], Optimizer], steps: int = 12, dtype: torch.dtype = torch.float64
) -> list:
    """Parameters along the way, under gradients that are the same for every optimiser."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((3, 2), (5,), ())]
    optimizer = make(parameters)
    path = []
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
        optimizer.step()
        path.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    return path


def far(first: list[Tensor], second: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kernel", KERNELS[:3])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_torch_has_a_step_it_is_torchs_to_the_bit(kernel: dict, momentum: float, dtype: torch.dtype) -> None:
    ours = follow(lambda p: NegativeMomentumSGD(p, lr=0.1, momentum=momentum, weight_decay=0.01, **kernel), dtype=dtype)
    torchs = follow(lambda p: torch.optim.SGD(p, lr=0.1, momentum=momentum, weight_decay=0.01, **kernel), dtype=dtype)
    assert far(ours, torchs) == 0
    ours = follow(lambda p: NegativeMomentumAdam(p, lr=0.1, betas=(momentum, 0.9), **kernel), dtype=dtype)
    torchs = follow(lambda p: torch.optim.Adam(p, lr=0.1, betas=(momentum, 0.9), **kernel), dtype=dtype)
    assert far(ours, torchs) == 0


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("momentum", [-0.5, -0.9, 0.3])
def test_sgd_is_the_explicit_recursion(kernel: dict, maximize: bool, momentum: float) -> None:
    class Explicit(Optimizer):
        def __init__(self, params: list) -> None:
            super().__init__(params, {})

        @torch.no_grad()
        def step(self, closure: None = None) -> None:
            for parameter in self.param_groups[0]["params"]:
                gradient = (-1 if maximize else 1) * parameter.grad
                buffer = self.state[parameter].get("buffer")
                self.state[parameter]["buffer"] = gradient if buffer is None else momentum * buffer + gradient
                parameter -= 0.1 * self.state[parameter]["buffer"]

    ours = follow(lambda p: NegativeMomentumSGD(p, lr=0.1, momentum=momentum, maximize=maximize, **kernel))
    assert far(ours, follow(Explicit)) < 1e-14


def test_constant_steps_are_the_heavy_ball() -> None:
    x = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = NegativeMomentumSGD([x], lr=0.3, momentum=-0.5)
    here = before = x.detach().clone()
    curvature = torch.tensor([1.0, 3.0], dtype=torch.float64)
    for _ in range(50):
        x.grad = curvature * x.detach()
        optimizer.step()
        here, before = here - 0.3 * curvature * here - 0.5 * (here - before), here
        assert float((x - here).abs().max()) < 1e-14


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dampened", [False, True])
def test_adam_is_the_explicit_recursion(kernel: dict, dampened: bool) -> None:
    class Explicit(Optimizer):
        def __init__(self, params: list) -> None:
            super().__init__(params, {})
            self.t, self.m, self.v = 0, [0.0] * 3, [0.0] * 3

        @torch.no_grad()
        def step(self, closure: None = None) -> None:
            self.t += 1
            for i, parameter in enumerate(self.param_groups[0]["params"]):
                self.m[i] = -0.5 * self.m[i] + (1.5 if dampened else 1.0) * parameter.grad
                self.v[i] = 0.9 * self.v[i] + 0.1 * parameter.grad**2
                mean = self.m[i] / (1 - (-0.5) ** self.t)
                parameter -= 0.1 * mean / ((self.v[i] / (1 - 0.9**self.t)).sqrt() + 1e-8)

    ours = follow(lambda p: NegativeMomentumAdam(p, lr=0.1, dampened=dampened, **kernel))
    assert far(ours, follow(Explicit)) < 1e-13


@pytest.mark.parametrize("first", [-0.5, 0.5])
def test_the_undampened_average_is_a_dampened_one_with_another_step(first: float) -> None:
    undampened = follow(lambda p: NegativeMomentumAdam(p, lr=0.1, betas=(first, 0.9), dampened=False))
    dampened = follow(lambda p: NegativeMomentumAdam(p, lr=0.1 / (1 - first), betas=(first, 0.9)))
    assert far(undampened, dampened) < 1e-15


def test_the_learning_rate_of_an_undampened_group_stays_what_it_was_given() -> None:
    x = nn.Parameter(torch.ones(2))
    optimizer = NegativeMomentumAdam([x], lr=0.1, dampened=False)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for expected in (0.05, 0.025):
        x.grad = torch.ones(2)
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == expected


def test_hooks_run_once_a_step() -> None:
    torch.optim.Adam([nn.Parameter(torch.ones(1))])  # torch wraps a class's step when it is first built
    calls: list[str] = []
    x = nn.Parameter(torch.ones(1))
    for optimizer in (NegativeMomentumAdam([x]), NegativeMomentumSGD([x])):
        optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
        optimizer.register_step_post_hook(lambda *_: calls.append("after"))
        x.grad = torch.ones(1)
        optimizer.step()
    assert calls == ["before", "after"] * 2


def make_sgd(params: list) -> Optimizer:
    return NegativeMomentumSGD(params, lr=0.1, momentum=-0.5)


def make_adam(params: list) -> Optimizer:
    return NegativeMomentumAdam(params, lr=0.1, dampened=False)


@pytest.mark.parametrize("make", [make_sgd, make_adam])
@pytest.mark.parametrize("how", ["state_dict", "file", "pickle", "deepcopy"])
def test_a_copy_continues_identically(make: Callable, how: str) -> None:
    model = nn.Linear(3, 2)
    optimizer = make(model.parameters())
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def step(model: nn.Module, optimizer: Optimizer) -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    step(model, optimizer)
    if how in ("state_dict", "file"):
        twin = copy.deepcopy(model)
        other = make(twin.parameters())
        state = copy.deepcopy(optimizer.state_dict())  # torch loads tensors without copying them
        if how == "file":
            buffer = io.BytesIO()
            torch.save(state, buffer)
            buffer.seek(0)
            state = torch.load(buffer, weights_only=True)
        other.load_state_dict(state)
    else:
        twin, other = (
            copy.deepcopy((model, optimizer)) if how == "deepcopy" else pickle.loads(pickle.dumps((model, optimizer)))
        )
    for _ in range(3):
        step(model, optimizer)
        step(twin, other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert other.param_groups[0].get("momentum", other.param_groups[0].get("betas")) in (-0.5, (-0.5, 0.9))


def test_states_of_torchs_own_optimisers_can_be_loaded() -> None:
    x = nn.Parameter(torch.ones(2))
    for theirs, ours in (
        (torch.optim.SGD([x], lr=0.1, momentum=0.5), NegativeMomentumSGD([x])),
        (torch.optim.Adam([x], lr=0.1), NegativeMomentumAdam([x], dampened=False)),
    ):
        x.grad = torch.ones(2)
        theirs.step()
        ours.load_state_dict(theirs.state_dict())
        ours.step()
        assert ours.param_groups[0].get("dampened", True)


def test_added_groups_keep_the_sign() -> None:
    first, second, third = (nn.Parameter(torch.ones(1)) for _ in range(3))
    sgd = NegativeMomentumSGD([first], lr=0.1, momentum=-0.5)
    sgd.add_param_group({"params": [second]})
    sgd.add_param_group({"params": [third], "momentum": -0.1})
    assert [group["momentum"] for group in sgd.param_groups] == [-0.5, -0.5, -0.1]
    adam = NegativeMomentumAdam([first], lr=0.1, betas=(-0.3, 0.99))
    adam.add_param_group({"params": [second]})
    adam.add_param_group({"params": [third], "betas": (-0.1, 0.9), "dampened": False})
    assert [group["betas"] for group in adam.param_groups] == [(-0.3, 0.99), (-0.3, 0.99), (-0.1, 0.9)]
    assert [group["dampened"] for group in adam.param_groups] == [True, True, False]


def test_groups_and_named_parameters_are_taken_as_torch_takes_them() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    named = NegativeMomentumSGD(model.named_parameters(), lr=0.1)
    assert named.param_groups[0]["param_names"][0] == "0.weight"
    groups = NegativeMomentumSGD(
        [{"params": model[0].parameters(), "momentum": 0.5}, {"params": model[1].parameters()}], lr=0.1
    )
    assert [group["momentum"] for group in groups.param_groups] == [0.5, -0.5]


def test_the_defaults_rebuild_the_optimiser() -> None:
    x = nn.Parameter(torch.ones(1))
    optimizer = NegativeMomentumSGD([x], lr=0.2, momentum=-0.25)
    assert NegativeMomentumSGD([x], **optimizer.defaults).defaults == optimizer.defaults


def test_fused_kernels_are_the_default_where_there_are_some() -> None:
    real, complex_ = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = NegativeMomentumSGD([real], lr=0.1)
    assert optimizer.param_groups[0]["fused"] is True
    optimizer.add_param_group({"params": [complex_]})
    assert optimizer.param_groups[1]["fused"] is None
    for parameter in (real, complex_):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert float(complex_.real[0]) == pytest.approx(0.9)
    assert NegativeMomentumSGD([real], foreach=True).param_groups[0]["fused"] is None
    assert NegativeMomentumAdam([real], differentiable=True).param_groups[0]["fused"] is None


def test_sparse_gradients_work_without_fused_kernels() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = NegativeMomentumSGD(table.parameters(), lr=0.1, momentum=0.0, fused=False)
    before = table.weight.detach().clone()
    table(torch.tensor([1])).sum().backward()
    optimizer.step()
    assert torch.equal(before[0], table.weight[0])
    assert not torch.equal(before[1], table.weight[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [make_sgd, make_adam])
def test_half_precision_stays_close_to_double(make: Callable, dtype: torch.dtype) -> None:
    assert far([p.double() for p in follow(make, 5, dtype)], follow(make, 5)) < 0.1


@pytest.mark.parametrize("make", [make_sgd, make_adam])
def test_a_grad_scaler_changes_nothing_and_skips_overflow(make: Callable) -> None:
    plain, scaled = (nn.Parameter(torch.tensor([2.0])) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    first, second = make([plain]), make([scaled])
    for _ in range(3):
        plain.grad = plain.detach().clone()
        first.step()
        scaled.grad = None
        scaler.scale(scaled.square().sum() / 2).backward()
        scaler.step(second)
        scaler.update()
    assert torch.equal(plain, scaled)
    scaled.grad = torch.tensor([float("inf")])
    scaler.scale(torch.ones(1))
    scaler.step(second)
    scaler.update()
    assert torch.equal(plain, scaled)
    assert scaler.get_scale() == 512


@pytest.mark.parametrize("optimizer", [NegativeMomentumSGD, NegativeMomentumAdam])
def test_steps_can_be_differentiated(optimizer: type) -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    scale = torch.tensor(3.0, requires_grad=True)
    moved = x.clone()
    step = optimizer([moved], lr=0.1, differentiable=True)
    for _ in range(2):  # torch's SGD detaches the first buffer
        moved.grad = scale * x
        step.step()
    moved.sum().backward()
    assert scale.grad is not None
    assert bool(torch.isfinite(scale.grad))


def test_cyclic_schedules_can_leave_the_momentum_alone() -> None:
    x = nn.Parameter(torch.ones(1))
    optimizer = NegativeMomentumSGD([x], lr=0.1)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10, cycle_momentum=False)
    assert optimizer.param_groups[0]["momentum"] == -0.5


@pytest.mark.user_input
def test_wrong_settings_say_what_is_expected() -> None:
    x = nn.Parameter(torch.ones(1))
    for momentum in (-1.0, 1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"momentum=.*> -1 and < 1"):
            NegativeMomentumSGD([x], momentum=momentum)
    with pytest.raises(ValueError, match=r"momentum=-2"):
        NegativeMomentumSGD([{"params": [x], "momentum": -2.0}])
    for lr in (0.0, -0.1):
        with pytest.raises(ValueError, match=r"lr=.*> 0"):
            NegativeMomentumSGD([x], lr=lr)
        with pytest.raises(ValueError, match=r"lr=.*> 0"):
            NegativeMomentumAdam([x], lr=lr)
    with pytest.raises(ValueError, match="Nesterov's step is defined for a momentum above 0"):
        NegativeMomentumSGD([x], momentum=-0.5, nesterov=True)
    with pytest.raises(ValueError, match="Nesterov's step is defined"):
        NegativeMomentumSGD([x], momentum=0.5, nesterov=True).add_param_group(
            {"params": [nn.Parameter(torch.ones(1))], "momentum": -0.5}
        )
    with pytest.raises(ValueError, match=r"betas\[0\]=-1"):
        NegativeMomentumAdam([x], betas=(-1.0, 0.9))
    with pytest.raises(ValueError, match=r"betas\[1\]=-0.5"):
        NegativeMomentumAdam([x], betas=(0.5, -0.5))
    with pytest.raises(ValueError, match="expected two numbers"):
        NegativeMomentumAdam([x], betas=0.5)
    with pytest.raises(ValueError, match="empty parameter list"):
        NegativeMomentumSGD([])
    with pytest.raises(TypeError, match="params argument"):
        NegativeMomentumSGD(torch.ones(2))
    with pytest.raises(RuntimeError, match="cannot be `True` together"):
        NegativeMomentumSGD([x], fused=True, foreach=True)
    with pytest.raises(RuntimeError, match="does not support `differentiable`"):
        NegativeMomentumAdam([x], fused=True, differentiable=True)


def test_importing_the_part_brings_no_laboratory() -> None:
    script = "import sys, mechanisms.dynamics.games; print(any(m.startswith('mechanisms.lab') for m in sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
