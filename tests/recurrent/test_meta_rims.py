"""Two sets of parameters on two time scales: partition, alternation, clips, rates, resuming."""

import copy
import io
import math

import pytest
import torch
from torch import nn

from mechanisms.recurrent import FastSlow, LSTMCell, RIMCell, check_split, split_fast_slow
from mechanisms.recurrent.scan import scan

X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def adam(own: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(own, lr=0.01, eps=1e-5)


def loss_of(model: nn.Module, shift: float = 0.0) -> torch.Tensor:
    return (model(X) - 1 - shift).square().mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[str]:
    phases = []
    for step in range(steps):
        phases.append(getattr(optimizer, "phase", ""))
        optimizer.zero_grad()
        loss_of(model, step / 10).backward()
        optimizer.step()
    return phases


def values(parameters) -> list[torch.Tensor]:
    return [one.detach().clone() for one in parameters]


def same(first, second) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def fast_slow(model: nn.Sequential, **options) -> FastSlow:
    return FastSlow(model[2].parameters(), model[0].parameters(), fast_opt=adam, **options)


def test_the_slow_set_learns_once_after_each_inner_loop() -> None:
    model = network()
    assert train(model, fast_slow(model, inner_steps=2), 7) == ["fast", "fast", "slow"] * 2 + ["fast"]
    model = network()
    assert train(model, fast_slow(model, inner_steps=1, outer_steps=2), 5) == ["fast", "slow", "slow", "fast", "slow"]


@pytest.mark.parametrize("phase", ["fast", "slow"])
def test_a_phase_leaves_the_other_set_and_its_averages_as_they_are(phase: str) -> None:
    model = network()
    optimizer = fast_slow(model, inner_steps=None)
    for one in ("fast", "slow"):
        optimizer.phase = one
        train(model, optimizer, 2)
    optimizer.phase = phase
    still, inner = (model[0], optimizer.slow) if phase == "fast" else (model[2], optimizer.fast)
    before, averages = values(still.parameters()), copy.deepcopy(inner.state_dict())
    moving = values((model[2] if phase == "fast" else model[0]).parameters())
    train(model, optimizer, 3)
    assert same(before, values(still.parameters()))
    for key, state in averages["state"].items():
        assert all(torch.equal(state[name], inner.state_dict()["state"][key][name]) for name in state)
    assert all(one.grad is None and not one.requires_grad for one in still.parameters())
    assert not same(moving, values((model[2] if phase == "fast" else model[0]).parameters()))


def test_infinitely_many_inner_steps_leave_the_slow_set_and_none_the_fast_one() -> None:
    for inner_steps, still in ((math.inf, 0), (0, 2)):
        model = network()
        before = values(model[still].parameters())
        train(model, fast_slow(model, inner_steps=inner_steps), 9)
        assert same(before, values(model[still].parameters()))


def test_together_at_one_rate_is_joint_training_to_the_bit() -> None:
    two, one = network(), network()
    slow_first = FastSlow(two[2].parameters(), two[0].parameters(), fast_opt=adam, together=True, max_grad_norm=0.1)
    joint = FastSlow(one.parameters(), [], fast_opt=adam, max_grad_norm=0.1)
    assert train(two, slow_first, 20)[-1] == "both"
    train(one, joint, 20)
    assert same(values(two.parameters()), values(one.parameters()))


def test_together_at_two_rates_moves_the_slow_set_by_the_ratio() -> None:
    model, slow_opt = network(), lambda own: torch.optim.SGD(own, lr=0.02)
    optimizer = FastSlow(
        model[2].parameters(),
        model[0].parameters(),
        fast_opt=lambda own: torch.optim.SGD(own, lr=0.1),
        slow_opt=slow_opt,
        together=True,
        max_grad_norm=None,
    )
    before = values(model.parameters())
    loss_of(model).backward()
    optimizer.step()
    for place, (parameter, old) in enumerate(zip(model.parameters(), before, strict=True)):
        rate = 0.02 if place < 2 else 0.1
        assert torch.allclose(parameter, old - rate * parameter.grad, atol=1e-15)


def test_each_set_is_clipped_by_its_own_norm() -> None:
    model = network()
    optimizer = FastSlow(
        model[2].parameters(),
        model[0].parameters(),
        fast_opt=lambda own: torch.optim.SGD(own, lr=1.0),
        inner_steps=1,
        max_grad_norm=(0.01, 0.02),
    )
    for layer, limit in ((model[2], 0.01), (model[0], 0.02)):
        before = values(layer.parameters())
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        moved = torch.cat([(new - old).flatten() for new, old in zip(layer.parameters(), before, strict=True)])
        assert moved.norm().item() == pytest.approx(limit, rel=1e-3)


def test_a_rate_set_for_all_groups_keeps_the_ratio() -> None:
    model = network()
    optimizer = fast_slow(model, slow_opt=lambda own: torch.optim.Adam(own, lr=0.001), inner_steps=1)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    train(model, optimizer, 2)
    assert optimizer.fast.param_groups[0]["lr"] == pytest.approx(0.5)
    assert optimizer.slow.param_groups[0]["lr"] == pytest.approx(0.05)


def test_a_scheduler_of_torch_drives_both_rates() -> None:
    model = network()
    optimizer = fast_slow(model, inner_steps=1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    train(model, optimizer, 1)
    scheduler.step()
    train(model, optimizer, 1)
    assert (optimizer.fast.param_groups[0]["lr"], optimizer.slow.param_groups[0]["lr"]) == (0.01, 0.005)


@pytest.mark.parametrize("stop", range(1, 7))
def test_resuming_in_a_phase_equals_not_stopping(stop: int) -> None:
    whole, part = network(), network()
    train(whole, fast_slow(whole, inner_steps=3, outer_steps=2), 8)
    first = fast_slow(part, inner_steps=3, outer_steps=2)
    first.keep_fast()
    train(part, first, stop)
    file = io.BytesIO()
    torch.save({"model": part.state_dict(), "optimizer": first.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = network()
    again.load_state_dict(saved["model"])
    second = fast_slow(again, inner_steps=3, outer_steps=2)
    second.load_state_dict(saved["optimizer"])
    for step in range(stop, 8):
        second.zero_grad()
        loss_of(again, step / 10).backward()
        second.step()
    assert same(values(whole.parameters()), values(again.parameters()))
    second.restore_fast()
    assert same(values(again[2].parameters()), values(network()[2].parameters()))


def test_a_copy_goes_on_by_itself() -> None:
    model = network()
    optimizer = fast_slow(model, inner_steps=2)
    train(model, optimizer, 2)
    other_model, other = copy.deepcopy((model, optimizer))
    train(other_model, other, 3)
    assert optimizer.phase == "slow"
    assert optimizer.updates == 2
    assert other.updates == 5
    assert not same(values(model.parameters()), values(other_model.parameters()))


def test_advance_counts_many_steps_as_one_update() -> None:
    model = network()
    optimizer = fast_slow(model, inner_steps=None)
    phases = []
    for _ in range(6):
        optimizer.advance(2)
        phases.append(optimizer.phase)
        train(model, optimizer, 3)
    assert phases == ["fast", "fast", "slow"] * 2
    for _ in range(3):
        optimizer.advance(0)
        assert optimizer.phase == "slow"


def test_restoring_the_fast_set_forgets_its_averages() -> None:
    model = network()
    optimizer = fast_slow(model, inner_steps=2)
    optimizer.keep_fast()
    start = values(model[2].parameters())
    train(model, optimizer, 4)
    optimizer.restore_fast()
    assert same(start, values(model[2].parameters()))
    assert not optimizer.fast.state
    assert optimizer.slow.state


def test_what_was_frozen_before_stays_frozen() -> None:
    model = network()
    model[0].bias.requires_grad_(False)
    optimizer = fast_slow(model, inner_steps=1)
    train(model, optimizer, 4)
    assert not model[0].bias.requires_grad
    optimizer.release()
    assert model[0].weight.requires_grad
    assert not model[0].bias.requires_grad


def test_a_closure_computes_the_loss() -> None:
    model = network()
    optimizer = fast_slow(model)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    assert optimizer.step(closure) > optimizer.step(closure)


def test_a_gradient_that_is_no_number_stops_with_the_update() -> None:
    model = network()
    optimizer = fast_slow(model)
    train(model, optimizer, 2)
    before = values(model.parameters())
    model[2].weight.grad[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="update 2"):
        optimizer.step()
    assert same(before, values(model.parameters()))


# --- the sets of networks ---------------------------------------------------------------------------------------------


def agent() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"core": RIMCell(3, 4, num_modules=3, num_active=2, qkv_std=0.1), "head": nn.Linear(12, 2)})


@pytest.mark.parametrize("fast_extra", [True, False])
def test_sets_are_disjoint_and_complete_and_reversed_swaps_them(fast_extra: bool) -> None:
    module = agent()
    everything = {id(one) for one in module.parameters()}
    sets = {mode: split_fast_slow(module, mode, fast_extra) for mode in ("meta", "reversed", "joint")}
    for fast, slow in sets.values():
        assert len(fast) + len(slow) == len(everything)
        assert {id(one) for one in [*fast, *slow]} == everything
    extra = {id(one) for one in module["head"].parameters()}
    ids = {mode: [{id(one) for one in own} - extra for own in pair] for mode, pair in sets.items()}
    assert ids["meta"] == ids["reversed"][::-1]
    assert ids["meta"][0] == {id(one) for one in module["core"].dynamics.parameters()}
    assert extra <= {id(one) for one in sets["meta"][0 if fast_extra else 1]}
    assert not sets["joint"][1]


def test_a_phase_moves_only_its_part_of_the_modules() -> None:
    module = agent()
    fast, slow = split_fast_slow(module)
    optimizer = FastSlow(fast, slow, fast_opt=adam, inner_steps=1, module=module)
    for moving, still in ((fast, slow), (slow, fast)):
        before, others = values(moving), values(still)
        optimizer.zero_grad()
        output, _ = scan(module["core"], torch.ones(4, 5, 3))
        module["head"](output).square().mean().backward()
        optimizer.step()
        assert not same(before, values(moving))
        assert same(others, values(still))


@pytest.mark.parametrize("make", [LSTMCell, nn.LSTMCell])
def test_gates_of_an_lstm_are_two_sets_and_compute_the_same(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = nn.ModuleDict({"core": make(3, 4), "head": nn.Linear(4, 2)})
    reference = copy.deepcopy(module["core"])
    fast, slow = split_fast_slow(module, "meta_lstm")
    assert [tuple(one.shape) for one in slow] == [(8, 3), (8, 4), (8,), (8,)]
    assert len(fast) == 6
    x = torch.randn(5, 3)
    for got, wanted in zip(module["core"](x), reference(x), strict=True):
        leaves = (got, wanted) if isinstance(got, torch.Tensor) else (got.c, wanted.c)
        assert torch.equal(*leaves)
    again_fast, again_slow = split_fast_slow(module, "meta_lstm")
    assert [id(one) for one in again_fast] == [id(one) for one in fast]
    assert len(again_slow) == len(slow)
    optimizer = FastSlow(fast, slow, fast_opt=adam, module=module)
    found = module["core"](x)[0]
    found.square().sum().backward()
    optimizer.step()
    assert torch.equal(module["core"].weight_ih[:8], reference.weight_ih[:8])
    assert not torch.equal(module["core"].weight_ih[8:], reference.weight_ih[8:])


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.user_input
def test_mistakes_are_named() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"in both sets: 0\.weight, 0\.bias"):
        check_split(model, model.parameters(), model[0].parameters())
    with pytest.raises(ValueError, match=r"in neither set: 2\.weight"):
        FastSlow(model[0].parameters(), [model[2].bias], fast_opt=adam, module=model)
    with pytest.raises(ValueError, match="not Sequential's"):
        check_split(model, model.parameters(), network().parameters())
    with pytest.raises(ValueError, match="both sets"):
        FastSlow(model.parameters(), model[0].parameters(), fast_opt=adam)
    with pytest.raises(ValueError, match="twice"):
        FastSlow([model[0].bias] * 2, [], fast_opt=adam)
    with pytest.raises(TypeError, match="fast_opt"):
        FastSlow(model.parameters(), [], fast_opt=lambda own: None)
    with pytest.raises(TypeError, match=r"fast\[0\] is a str"):
        FastSlow(["weight"], [], fast_opt=adam)
    with pytest.raises(ValueError, match="max_grad_norm"):
        fast_slow(network(), max_grad_norm=0)
    with pytest.raises(ValueError, match="inner_steps"):
        fast_slow(network(), inner_steps=-1)
    fast_slow(model)
    with pytest.raises(ValueError, match="release"):
        FastSlow(model[0].parameters(), model[2].parameters(), fast_opt=adam)
    optimizer = fast_slow(network())
    with pytest.raises(ValueError, match="phase"):
        optimizer.phase = "both"
    with pytest.raises(ValueError, match="keep_fast"):
        optimizer.restore_fast()
    with pytest.raises(TypeError, match="two sets"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(ValueError, match="empty slow set"):
        optimizer.load_state_dict(FastSlow(network().parameters(), [], fast_opt=adam).state_dict())
    with pytest.raises(TypeError, match="no recurrent cell"):
        split_fast_slow(model)
    with pytest.raises(TypeError, match="no attention"):
        split_fast_slow(LSTMCell(2, 2))
    with pytest.raises(TypeError, match="no LSTM cell"):
        split_fast_slow(model, "meta_lstm")
    with pytest.raises(ValueError, match="mode"):
        split_fast_slow(model, "maml")
