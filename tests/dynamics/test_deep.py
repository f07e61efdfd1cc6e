"""Conditions, initialisation, simulation, a user's own network, and the two features."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.special import lambertw
from torch import Tensor, nn

from mechanisms.dynamics import (
    OUTCOMES,
    GradientFlow,
    Mode,
    chain_flow,
    check_initialisation,
    check_separability,
    forecast,
    margin_curve,
    mode_initialisation,
    mode_state,
    separable_classes,
    starvation_curve,
    starved_response,
    success_probability,
    unit_activity,
    unit_outcome,
    will_learn,
)
from mechanisms.dynamics.modes import LOSSES


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_direction_each(balanced: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    X, y = separable_classes(10, 6, generator=generator(), frequency=0.3, norms=(1.7, 1.0), single_direction=True)
    W, z = mode_initialisation(X, y, 20, generator=generator(1), balanced=balanced)
    return W, z, X, y


# --- regions of failure -----------------------------------------------------------------------------------------------


def test_the_rows_of_the_table() -> None:
    a = [0.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    z = [1.0, -1.0, 0.0, 2.0, -0.4, -0.6, -0.5]
    expected = ["inactive", "inactive", "learns", "learns", "learns, z crossing zero", "dies", "saddle"]
    assert [OUTCOMES[k] for k in unit_outcome(a, z, 2.0).tolist()] == expected
    assert will_learn(a, z, 2.0).tolist() == [name.startswith("learns") for name in expected]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("label", [1, -1])
def test_regions_are_what_simulation_finds_for_both_classes(loss: str, label: int) -> None:
    norm, draws = 1.6, torch.randn(2, 300, generator=generator(), dtype=torch.float64)
    a, z = draws[0] * norm, draws[1]
    inside = ((a + norm * z).abs() / math.hypot(1, norm) > 1e-2) & (a.abs() > 1e-2)
    end = GradientFlow(step=0.2).simulate(
        (a / norm).reshape(-1, 1, 1), label * z[:, None], [[norm]], [label], [25.0], loss=loss, weights=[0.7]
    )
    learned = label * end.outputs[:, 0, 0] > 0
    assert torch.equal(learned[inside], will_learn(a, z, norm)[inside])


def test_success_probability_at_its_limits_and_by_counting() -> None:
    assert float(success_probability(1.0, 1.0)) == pytest.approx(3 / 8, abs=1e-15)
    assert float(success_probability(1.0, 0.0)) == 0.5
    assert float(success_probability(0.0, 1.0)) == 0.25
    assert float(success_probability(2.0, 2.0, 5)) == pytest.approx(1 - (5 / 8) ** 5, abs=1e-15)
    # 10^6 draws: six standard errors are 0.003.
    a, z = torch.randn(2, 1_000_000, generator=generator(), dtype=torch.float64)
    assert float(will_learn(3 * 2.0 * a, z, 2.0).double().mean()) == pytest.approx(
        float(success_probability(3.0, 1.0)), abs=0.003
    )


# --- H1, H2 -----------------------------------------------------------------------------------------------------------


def test_generated_data_and_weights_satisfy_both_conditions() -> None:
    for seed in range(5):
        X, y = separable_classes(40, 10, generator=generator(seed), frequency=0.25)
        assert check_separability(X, y).holds
        assert int((y == 1).sum()) == 10
        W, z = mode_initialisation(X, y, 7, generator=generator(seed))
        report = check_initialisation(W, z, X, y)
        assert report.holds
        assert report.classes.tolist() == [1] * 4 + [-1] * 3


def test_both_conditions_persist_and_the_modes_are_independent_to_the_bit() -> None:
    X, y = separable_classes(20, 8, generator=generator())
    W, z = mode_initialisation(X, y, 6, generator=generator())
    flow = GradientFlow(step=0.1, method="descent")
    end = flow.simulate(W, z, X, y, [50.0, 200.0])
    assert check_initialisation(end.W, end.z, X, y).holds
    scaled = torch.where((y < 0)[:, None], 3 * X, X)
    other = flow.simulate(W, z, scaled, y, [50.0, 200.0])
    assert torch.equal(end.outputs[:, y > 0], other.outputs[:, y > 0])
    assert not torch.allclose(end.outputs[:, y < 0], other.outputs[:, y < 0])


def test_a_unit_without_activity_never_moves() -> None:
    end = GradientFlow(step=0.1).simulate([[-1.0], [1.0]], [0.7, 0.1], [[1.0]], [1], [10.0])
    assert end.W[0].item() == -1.0
    assert end.z[0].item() == 0.7


def test_reports_name_the_worst_pair_and_the_units() -> None:
    X, y = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, 2.0]]), torch.tensor([1, 1, -1])
    report = check_separability(X, y)
    assert (report.worst_within, report.min_within) == ((0, 1), -1.0)
    assert (report.worst_between, report.max_between) == ((1, 2), 2.0)
    with pytest.raises(ValueError, match=r"samples 0 and 1 of one class have the inner product -1"):
        report.require()
    with pytest.raises(ValueError, match=r"samples 0 and 1 of different classes have the inner product 2"):
        check_separability(X[1:], y[1:]).require()
    W = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, -1.0]]
    report = check_initialisation(W, [1.0, 1.0, 1.0, 5.0], [[1.0, 0.0], [0.0, 1.0]], [1, -1])
    assert report.classes.tolist() == [1, 0, 0, 0]
    assert set(report.broken) == {1, 2}
    with pytest.raises(
        ValueError, match="2 of 4 units break it, first unit 1: it is active on class -1 and its output"
    ):
        report.require()


def test_large_data_are_checked_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = torch.randn(50, 3, generator=generator(), dtype=torch.float64), torch.ones(50)
    y[::3] = -1
    whole = check_separability(X, y)
    monkeypatch.setattr("mechanisms.dynamics.conditions.ROWS", 7)
    assert check_separability(X, y) == whole


def test_activity_is_batched() -> None:
    W = torch.randn(4, 5, 3, generator=generator())
    X, y = torch.randn(6, 3, generator=generator(1)), torch.tensor([1, 1, -1, -1, -1, -1])
    shares = unit_activity(W, X, y)
    assert shares.shape == (4, 5, 2)
    assert torch.allclose(shares[2], unit_activity(W[2], X, y))


# --- simulation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_the_simulator_is_the_flow_of_an_adaptive_reference(loss: str) -> None:
    X = torch.randn(7, 3, generator=generator(), dtype=torch.float64)
    y = torch.tensor([1.0, 1, 1, -1, -1, -1, -1], dtype=torch.float64)
    # Small weights: margins that reach 1 would slide along it under hinge, which no adaptive method can follow.
    W = 0.3 * torch.randn(4, 3, generator=generator(1), dtype=torch.float64)
    z = 0.3 * torch.randn(4, generator=generator(2), dtype=torch.float64)

    def rates(_: float, state: np.ndarray) -> np.ndarray:
        w, v = (
            torch.from_numpy(state[:12].reshape(4, 3)).requires_grad_(),
            torch.from_numpy(state[12:]).requires_grad_(),
        )
        margins = y * (v @ (w @ X.T).relu())
        losses = nn.functional.softplus(-margins) if loss == "cross_entropy" else (1 - margins).relu()
        by_w, by_v = torch.autograd.grad(losses.mean(), (w, v))
        return -np.concatenate([by_w.numpy().ravel(), by_v.numpy()])

    start = np.concatenate([W.numpy().ravel(), z.numpy()])
    found = solve_ivp(rates, (0, 1), start, t_eval=[0, 0.5, 1], rtol=1e-6, atol=1e-8)
    w, v = torch.from_numpy(found.y[:12].T.reshape(3, 4, 3)), torch.from_numpy(found.y[12:].T.copy())
    expected = torch.einsum("tu,tun->tn", v, (w @ X.T).relu())
    ours = GradientFlow(step=0.01).simulate(W, z, X, y, [0.0, 0.5, 1.0], loss=loss)
    # Where a unit switches, any step is of first order only: some multiple of 0.01.
    assert (ours.outputs - expected).abs().max() < 0.01
    assert (ours.outputs[0] - expected[0]).abs().max() < 1e-12


def test_descent_is_torch_s_sgd() -> None:
    X, y = torch.randn(7, 3, generator=generator()).double(), torch.tensor([1.0, 1, 1, -1, -1, -1, -1]).double()
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 1, bias=False)).double()
    W, z = model[0].weight.detach().clone(), model[2].weight.detach()[0].clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.softplus(-y * model(X)[:, 0]).mean().backward()
        optimizer.step()
    end = GradientFlow(step=0.1, method="descent").simulate(W, z, X, y, [5.0])
    assert torch.allclose(end.W, model[0].weight, atol=1e-12)
    assert torch.allclose(end.outputs[0], model(X)[:, 0], atol=1e-12)


def test_a_batch_is_its_networks_one_by_one_and_weights_are_copies() -> None:
    W, z = torch.randn(3, 4, 2, generator=generator()), torch.randn(3, 4, generator=generator(1))
    X, y = torch.tensor([[1.0, 0.2], [0.1, 1.0], [0.1, 1.0]]), torch.tensor([1, -1, -1])
    flow = GradientFlow(step=0.05)
    whole = flow.simulate(W, z, X, y, [1.0, 3.0])
    for place in range(3):
        one = flow.simulate(W[place], z[place], X, y, [1.0, 3.0])
        assert torch.allclose(whole.outputs[place], one.outputs, atol=1e-12)
    light = flow.simulate(W, z, X[:2], y[:2], [1.0, 3.0], weights=[1 / 3, 2 / 3])
    assert torch.allclose(whole.outputs[..., :2], light.outputs, atol=1e-12)
    own = flow.simulate(W, z, X.expand(3, 3, 2), y.expand(3, 3), [1.0, 3.0])
    assert torch.allclose(whole.outputs, own.outputs, atol=1e-12)


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    GradientFlow(step=0.5).simulate(
        [[1.0]], [1.0], [[1.0]], [1], [1.0, 2.0], progress=lambda step, total: told.append((step, total))
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_balanced_chain_follows_its_mode(depth: int) -> None:
    r, p, f0 = 1.4, 0.6, 0.05
    times = torch.linspace(0, 30, 7, dtype=torch.float64)
    found = chain_flow([(f0 / r) ** (1 / depth)] * depth, times, norm=r, frequency=p, step=0.1)
    assert torch.allclose(found, margin_curve(Mode(p, r, f0, depth=depth), times), atol=1e-7)


# --- a network of the user's ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("balanced", [True, False])
def test_modes_read_off_a_network_predict_its_training(loss: str, balanced: bool) -> None:
    W, z, X, y = one_direction_each(balanced)
    model = nn.Sequential(nn.Linear(6, 20, bias=False), nn.ReLU(), nn.Linear(20, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(W)
        model[2].weight.copy_(z[None])
    modes = mode_state(model, X, y)
    times = torch.linspace(0, 20, 5, dtype=torch.float64)
    found = GradientFlow(step=0.05).simulate(W, z, X, y, times, loss=loss).outputs
    for label, mode in zip((1, -1), modes, strict=True):
        simulated = label * found[:, y == label][:, 0]
        assert torch.allclose(simulated, margin_curve(mode, times, loss=loss), atol=1e-6 if loss != "hinge" else 0.05)
        if balanced:
            assert float(mode.imbalance) < 1e-8


def test_a_forecast_is_when_training_arrives() -> None:
    W, z, X, y = one_direction_each()
    found = forecast((W, z), X, y, confidence=0.8)
    marks = sorted(found.times.values())
    outputs = GradientFlow(step=0.05).simulate(W, z, X, y, marks).outputs
    for label, time in found.times.items():
        reached = label * outputs[marks.index(time), y == label][0]
        assert float(torch.sigmoid(reached)) == pytest.approx(0.8, abs=1e-6)
    assert found.steps(0.1)[1] == pytest.approx(10 * found.times[1])
    assert float(found.errors([found.times[-1]])[-1]) == pytest.approx(0.2)
    assert forecast((W, z), X, y, confidence=0.8, loss="hinge").times[1] == math.inf


def test_classes_of_several_directions_are_approximated_only_when_asked() -> None:
    X, y = separable_classes(20, 6, generator=generator())
    W, z = mode_initialisation(X, y, 8, generator=generator())
    with pytest.raises(ValueError, match=r"class \+1 has several directions.*approximate=True"):
        mode_state((W, z), X, y)
    assert len(mode_state((W, z), X, y, approximate=True)) == 2


def test_a_network_of_one_class_has_one_mode() -> None:
    modes = mode_state((torch.tensor([[0.5], [-0.5]]), torch.tensor([0.5, 0.1])), [[1.0], [1.0]], [1, 1])
    assert len(modes) == 1
    assert float(modes[0].frequency) == 1.0


def test_networks_that_the_theory_does_not_cover_are_refused() -> None:
    X, y = [[1.0, 0.0], [0.0, 1.0]], [1, -1]
    with pytest.raises(ValueError, match="H2 does not hold"):
        mode_state((torch.ones(1, 2), torch.ones(1)), X, y)
    with pytest.raises(ValueError, match="no unit is active on class -1"):
        mode_state((torch.tensor([[1.0, -1.0]]), torch.ones(1)), X, y)
    with pytest.raises(ValueError, match="H1 does not hold"):
        mode_state((torch.ones(1, 2), torch.ones(1)), [[1.0, 0.1], [0.1, 1.0]], y)
    with pytest.raises(ValueError, match="biases"):
        mode_state(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), X, y)
    with pytest.raises(TypeError, match="another form"):
        mode_state(nn.Sequential(nn.Linear(2, 3, bias=False), nn.Tanh(), nn.Linear(3, 1, bias=False)), X, y)
    with pytest.raises(ValueError, match="one output"):
        mode_state(nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False)), X, y)


# --- two features -----------------------------------------------------------------------------------------------------


def test_the_table_of_cross_entropy_at_a_million() -> None:
    s1, s2 = starvation_curve([0.1, 0.5, 0.9], 1e6)
    assert s1 == pytest.approx([13.757, 13.210, 11.653], abs=5e-4)
    assert s2 == pytest.approx([0.8907, 2.4765, 4.2312], abs=5e-5)


@pytest.mark.parametrize("loss", ["cross_entropy", "exponential"])
def test_both_responses_are_those_of_an_adaptive_reference(loss: str) -> None:
    q, times = 0.2, np.array([0.0, 0.3, 5.0, 1000.0])
    g = (lambda m: np.exp(-m)) if loss == "exponential" else (lambda m: 1 / (1 + np.exp(m)))
    found = solve_ivp(
        lambda _, s: [q * g(s[0] + s[1]) + (1 - q) * g(s[0]), q * g(s[0] + s[1])],
        (0, 1000), [0, 0], t_eval=times, rtol=1e-12, atol=1e-13, method="DOP853",
    )  # fmt: skip
    ours = torch.stack(starvation_curve(q, times, loss=loss)).numpy()
    assert np.abs(ours - found.y).max() < 1e-8


def test_an_exponential_tail_obeys_the_relation() -> None:
    for q in (0.05, 0.3, 0.8):
        s1, s2 = starvation_curve(q, np.logspace(-2, 6, 50), loss="exponential")
        assert (s1 - s2 - (1 - q) / q * s2.expm1()).abs().max() / s1.max() < 1e-9
        assert torch.allclose(starved_response(s1, q), s2, atol=1e-9)


def test_hinge_gives_the_rare_feature_its_share_and_stops() -> None:
    q = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    end = 1 / (1 + q) + q / (1 + q) / (1 - q)
    s1, s2 = starvation_curve(q, [float(end.max()), 1e9], loss="hinge")
    assert torch.allclose(s2, (q / (1 + q))[:, None].expand(3, 2), atol=1e-15)
    assert torch.allclose(s1, torch.ones(3, 2, dtype=torch.float64), atol=1e-12)
    before, _ = starvation_curve(0.5, [0.99 * float(end[1])], loss="hinge")
    assert float(before) < 1


def test_features_of_equal_frequency_are_learned_alike_and_absent_ones_not_at_all() -> None:
    times = [0.0, 1.0, 100.0]
    for loss in ("cross_entropy", "hinge", "exponential"):
        s1, s2 = starvation_curve(1.0, times, loss=loss)
        assert torch.allclose(s1, s2, atol=1e-12)
        assert starvation_curve(1e-9, times, loss=loss)[1].max() < 1e-6
    assert torch.equal(starved_response([0.0, 3.0], 1.0), torch.tensor([0.0, 3.0], dtype=torch.float64))
    assert float(starved_response(10.0, 1e-9)) == pytest.approx(1e-8, rel=1e-6)


def test_the_inverse_is_lambert_s_function_and_does_not_overflow() -> None:
    s1, q = 5.0, 0.3
    k = (1 - q) / q
    assert float(starved_response(s1, q)) == pytest.approx(s1 + k - lambertw(k * math.exp(s1 + k)).real, abs=1e-12)
    s2 = starved_response(1e8, 0.3)
    assert float(s2 + k * s2.expm1()) == pytest.approx(1e8, rel=1e-12)
    s = torch.tensor([0.5, 20.0], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.3, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(starved_response, (s, q))
    assert torch.autograd.gradgradcheck(starved_response, (s, q))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.user_input
def test_bad_input_is_refused() -> None:
    X, y = torch.eye(2), torch.tensor([1, -1])
    with pytest.raises(ValueError, match=r"y=0 at \(1,\): labels are \+1 and -1; for 0 and 1 pass 2 \* y - 1"):
        check_separability(X, [1, 0])
    with pytest.raises(ValueError, match="one label for each of 2 samples"):
        check_separability(X, [1])
    with pytest.raises(ValueError, match=r"X has shape \(2,\)"):
        check_separability([1.0, 2.0], [1, -1])
    with pytest.raises(ValueError, match="infinite or not a number"):
        check_separability([[1.0, float("nan")]], [1])
    with pytest.raises(ValueError, match=r"W has shape \(1, 3\)"):
        unit_activity(torch.ones(1, 3), X, y)
    with pytest.raises(ValueError, match="one z per unit"):
        check_initialisation(torch.ones(1, 2), torch.ones(3), X, y)
    with pytest.raises(TypeError, match="model is a str"):
        mode_state("network", X, y)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="norm=0"):
        will_learn(1.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="broadcast together"):
        unit_outcome([1.0, 2.0], [1.0, 2.0, 3.0], 1.0)
    with pytest.raises(ValueError, match="weight_std=-1"):
        success_probability(-1.0, 1.0)
    with pytest.raises(ValueError, match="saddle"):
        success_probability(0.0, 0.0)
    with pytest.raises(ValueError, match="width=0"):
        success_probability(1.0, 1.0, 0)
    with pytest.raises(ValueError, match="frequency=0"):
        starvation_curve(0.0, [1.0])
    with pytest.raises(ValueError, match="times=-1"):
        starvation_curve(0.5, [-1.0])
    with pytest.raises(ValueError, match="s1=-1"):
        starved_response(-1.0, 0.5)


@pytest.mark.user_input
def test_bad_simulations_are_refused() -> None:
    W, z, X, y = torch.ones(2, 1), torch.ones(2), torch.ones(1, 1), [1]
    flow = GradientFlow()
    for arguments, message in (
        ((W, torch.ones(3), X, y, [1.0]), r"W has shape \(2, 1\) and z \(3,\)"),
        ((W, z, torch.ones(1, 2), y, [1.0]), r"X has shape \(1, 2\)"),
        ((W, z, X, [1, 1], [1.0]), r"y has shape \(2,\)"),
        ((W, z, X, [2], [1.0]), "labels are"),
        ((W, z, X, y, [2.0, 1.0]), "times must rise"),
        ((W, z, X, y, []), "one or more"),
        ((W, z, X, y, [-1.0]), "times=-1"),
        ((W, z, torch.ones(3, 1, 1), y, [1.0]), "does not fit W"),
    ):
        with pytest.raises(ValueError, match=message):
            flow.simulate(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weights=-1"):
        flow.simulate(W, z, X, y, [1.0], weights=[-1.0])
    with pytest.raises(ValueError, match="step=0"):
        GradientFlow(step=0.0)
    with pytest.raises(ValueError, match="method='adam'"):
        GradientFlow(method="adam")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiples of the step"):
        GradientFlow(step=0.1, method="descent").simulate(W, z, X, y, [0.25])
    with pytest.raises(ValueError, match="layers has shape"):
        chain_flow(1.0, [1.0])


@pytest.mark.user_input
def test_bad_data_recipes_are_refused() -> None:
    for arguments, message in (
        ((1, 4), "num_samples=1"),
        ((4, 5), "dim=5"),
        ((4, 0), "dim=0"),
    ):
        with pytest.raises(ValueError, match=message):
            separable_classes(*arguments, generator=generator())
    with pytest.raises(ValueError, match="frequency=1"):
        separable_classes(4, 4, generator=generator(), frequency=1)
    with pytest.raises(ValueError, match=r"norms\[1\]=0"):
        separable_classes(4, 4, generator=generator(), norms=(1.0, 0.0))
    with pytest.raises(ValueError, match="width=1"):
        mode_initialisation([[1.0, 0.0], [0.0, 1.0]], [1, -1], 1, generator=generator())
    with pytest.raises(ValueError, match="samples 0 and 1 of different classes"):
        mode_initialisation([[1.0, 0.1], [0.1, 1.0]], [1, -1], 2, generator=generator())
    with pytest.raises(ValueError, match="one class only"):
        mode_initialisation([[1.0, 0.1]], [1], 2, generator=generator())
    with pytest.raises(ValueError, match="weight_scale=0"):
        mode_initialisation([[1.0, 0.0], [0.0, 1.0]], [1, -1], 2, generator=generator(), weight_scale=0)
