"""Starvation in the dual: fixed points, duality, sensitivities, the flow, and the index of a network."""

import math
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mechanisms.dynamics.decoupling import SpectralDecouplingLoss
from mechanisms.dynamics.dual import decoupled_margin, dual_flow, fixed_point
from mechanisms.dynamics.features import FeatureDecomposition, decompose, decompose_kernel
from mechanisms.dynamics.starvation import starvation_index, starvation_matrix

# l: z_1 and z_2 under CE + L2 with lambda = 0.01, and d z_2 / d s_1^2
TABLE = {
    2: (6.12044, 1.63997, 0.0),
    3: (7.06815, 1.58311, -0.016074),
    4: (7.81205, 1.46681, -0.016327),
    5: (8.46519, 1.32902, -0.014259),
    6: (9.07102, 1.18534, -0.011938),
}


def toy(first: float | int, delta: float | int = 0.5, second: float | int = 2) -> FeatureDecomposition:
    rest = math.sqrt(1 - delta**2)
    weights = torch.tensor([[rest, -delta], [delta, rest]], dtype=torch.float64)
    return FeatureDecomposition(weights, torch.tensor([first, second], dtype=torch.float64))


def random(n: int = 6, m: int = 9, seed: int = 0) -> FeatureDecomposition:
    generator = torch.Generator().manual_seed(seed)
    labels = 2 * torch.randint(2, (n,), generator=generator) - 1
    return decompose(torch.randn(n, m, dtype=torch.float64, generator=generator), labels)


def kernel_of(features: FeatureDecomposition) -> Tensor:
    return features.weights * features.strengths**2 @ features.weights.T


@pytest.mark.parametrize("first", TABLE)
def test_the_toy_rests_where_the_table_says(first: int) -> None:
    z_1, z_2, slope = TABLE[first]
    assert fixed_point(toy(first), 0.01).responses.tolist() == pytest.approx([z_1, z_2], abs=6e-6)
    assert float(starvation_matrix(toy(first), 0.01)[0, 1]) == pytest.approx(slope, abs=6e-7)
    decoupled = fixed_point(toy(first), 0.002, penalty="logits")
    assert decoupled.closed_form
    assert decoupled.responses.tolist() == pytest.approx([6.37267, 1.70755], abs=6e-6)


@pytest.mark.parametrize(("delta", "slope"), [(-0.1, 0.00205), (0.0, 0.0), (0.1, -0.00395), (0.5, -0.01633)])
def test_the_sign_of_starvation_depends_on_the_coupling(delta: float, slope: float) -> None:
    assert float(starvation_matrix(toy(4, delta), 0.01)[0, 1]) == pytest.approx(slope, abs=6e-6)


def test_equal_strengths_do_not_starve() -> None:
    assert float(starvation_matrix(toy(2), 0.01)[0, 1].abs()) < 1e-12


@pytest.mark.parametrize("l2", [1e-6, 0.01, 1.0, 100.0])
@pytest.mark.parametrize("shape", [(6, 9), (12, 4), (1, 1)])
def test_primal_and_dual_agree_at_the_fixed_point(l2: float, shape: tuple[int, int]) -> None:
    features = random(*shape)
    found, kernel = fixed_point(features, l2), kernel_of(features)
    alpha, margins = found.alpha, found.margins
    torch.testing.assert_close(alpha, torch.sigmoid(-margins))
    torch.testing.assert_close(kernel @ alpha, l2 * margins, rtol=1e-7, atol=1e-9)
    theta = features.weights.T @ alpha * features.strengths / l2
    primal = F.softplus(-margins).sum() + l2 / 2 * theta.square().sum()
    entropy = -torch.xlogy(alpha, alpha) - torch.xlogy(1 - alpha, 1 - alpha)
    dual = entropy.sum() - alpha @ kernel @ alpha / (2 * l2)
    assert float((primal - dual).abs()) < 1e-10 * max(1.0, float(primal))
    torch.testing.assert_close(features.weights @ found.responses, margins)


def test_a_kernel_and_its_decomposition_rest_at_the_same_place() -> None:
    features = random()
    one, other = fixed_point(features, 0.1), fixed_point(kernel_of(features), 0.1)
    torch.testing.assert_close(one.alpha, other.alpha)
    torch.testing.assert_close(one.responses, other.responses)


@pytest.mark.parametrize(("strength", "margin"), [(1, 3.359275), (2, 4.480472), (5, 6.025614)])
def test_uncoupled_features_solve_the_scalar_equation(strength: int, margin: float) -> None:
    found = fixed_point(torch.eye(2, dtype=torch.float64) * strength**2, 0.01).margins
    assert found.tolist() == pytest.approx([margin] * 2, abs=6e-7)
    w = float(found[0])
    assert w * (1 + math.exp(w)) == pytest.approx(strength**2 / 0.01)


def test_spectral_decoupling_gives_every_example_one_margin_whatever_the_strengths() -> None:
    features = random()
    found = fixed_point(features, 0.002, penalty="logits")
    assert found.margins.tolist() == pytest.approx([4.665120] * 6, abs=6e-7)
    torch.testing.assert_close(found.responses, found.margins[0] * features.weights.sum(0))
    other = features._replace(strengths=torch.linspace(9, 0.01, 6, dtype=torch.float64))
    assert torch.equal(fixed_point(other, 0.002, penalty="logits").responses, found.responses)


@pytest.mark.parametrize(("c", "margin"), [(0.003, 3.767), (0.01, 2.818), (0.1, 1.178)])
def test_decoupled_margins_of_the_moons(c: float, margin: float) -> None:
    assert float(decoupled_margin(2 * c)) == pytest.approx(margin, abs=6e-4)


def test_decoupled_margins_with_targets_solve_their_equation_over_sixteen_decades() -> None:
    target = torch.tensor([-40.0, -0.44, 0.0, 2.5, 1e4], dtype=torch.float64)
    for l2 in (1e-8, 1e-3, 0.2, 1.0, 1e8):
        w = decoupled_margin(l2, target=target)
        torch.testing.assert_close(torch.sigmoid(-w), l2 * (w - target), rtol=1e-6, atol=1e-9 * max(1.0, l2))
    pulled = fixed_point(torch.eye(2), 0.2, penalty="logits", target=torch.tensor([2.5, -0.44]))
    assert pulled.margins.tolist() == pytest.approx([2.78948, 0.95221], abs=6e-6)


def test_fewer_features_than_examples_are_solved_numerically_and_it_says_so() -> None:
    features, target = random(12, 4), torch.linspace(-1, 1, 12, dtype=torch.float64)
    with pytest.warns(UserWarning, match="4 features for 12 examples"):
        found = fixed_point(features, 0.1, penalty="logits", target=target)
    assert not found.closed_form
    # Stationary within the span of the features.
    gradient = features.weights.T @ (0.1 * (found.margins - target) - found.alpha)
    assert float(gradient.abs().max()) < 1e-12
    with pytest.warns(UserWarning, match="4 features for 12 examples"):
        same = fixed_point(kernel_of(features), 0.1, penalty="logits", target=target)
    torch.testing.assert_close(same.margins, found.margins, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 9), (12, 4)])
def test_sensitivities_are_those_of_finite_differences(shape: tuple[int, int]) -> None:
    features, l2, step = random(*shape), 0.05, 1e-5
    matrix = starvation_matrix(features, l2)
    for i in range(len(features.strengths)):
        ends = []
        for sign in (1, -1):
            squares = features.strengths.square()
            squares[i] += sign * step
            ends.append(fixed_point(features._replace(strengths=squares.sqrt()), l2).responses)
        torch.testing.assert_close(matrix[i], (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-6)


def test_sensitivities_at_strength_zero_are_finite() -> None:
    features = random()
    strengths = features.strengths.clone()
    strengths[-1] = 0
    matrix = starvation_matrix(features._replace(strengths=strengths), 0.05)
    assert torch.isfinite(matrix).all()
    assert (matrix[:-1, -1] == 0).all()


def test_without_coupling_nothing_starves() -> None:
    """U a signed permutation."""
    weights = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    matrix = starvation_matrix(FeatureDecomposition(weights, torch.tensor([3.0, 2.0, 1.0]).double()), 0.1)
    assert (matrix - torch.diag(matrix.diagonal()) == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_stronger_feature_is_always_responded_to_more(seed: int) -> None:
    features = random(seed=seed)
    assert torch.equal(
        starvation_matrix(features, 0.05).diagonal().sign(), fixed_point(features, 0.05).responses.sign()
    )


def test_the_flow_ends_at_the_fixed_point_and_stays_inside() -> None:
    for first in TABLE:
        alpha = dual_flow(toy(first), 0.01, torch.tensor([0.0, 0.1, 1.0, 100.0, 2000.0]))
        assert alpha.shape == (5, 2)
        assert ((alpha > 0) & (alpha < 1)).all()
        assert float(alpha[0].max()) == pytest.approx(1e-8)
        torch.testing.assert_close(alpha[-1], fixed_point(toy(first), 0.01).alpha, rtol=1e-5, atol=1e-9)


def test_the_flow_follows_its_equation_and_its_rate() -> None:
    features, step = random(4, 6), 1e-5
    alpha = dual_flow(features, 0.5, torch.tensor([0.3, 0.3 + step]), start=0.2)
    force = -alpha[0].log() + (1 - alpha[0]).log() - kernel_of(features) @ alpha[0] / 0.5
    torch.testing.assert_close((alpha[1] - alpha[0]) / step, force, rtol=1e-2, atol=1e-3)
    faster = dual_flow(features, 0.5, torch.tensor([0.1]), start=0.2, rate=3)
    torch.testing.assert_close(faster[0], alpha[0], rtol=1e-5, atol=1e-8)
    assert dual_flow(features, 0.5, torch.tensor([0.0])).shape == (1, 4)


def test_gradient_descent_rests_there_too() -> None:
    features = toy(4)
    phi = features.weights * features.strengths
    for penalty, z in (("weights", (7.81205, 1.46681)), ("logits", (6.37267, 1.70755))):
        theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        for _ in range(5000):
            f = phi @ theta
            extra = 0.005 * theta.square().sum() if penalty == "weights" else 0.001 * f.square().sum()
            (slope,) = torch.autograd.grad(F.softplus(-f).sum() + extra, theta)
            theta.data -= 0.05 * slope
        found = features.weights.T @ phi @ theta.detach()
        assert found.tolist() == pytest.approx(z, abs=2e-3)


def test_a_linear_model_with_spectral_decoupling_is_the_least_interpolant_of_one_margin() -> None:
    generator = torch.Generator().manual_seed(0)
    phi = torch.randn(5, 9, dtype=torch.float64, generator=generator)
    y = torch.tensor([1.0, -1, 1, 1, -1], dtype=torch.float64)
    theta = torch.zeros(9, dtype=torch.float64, requires_grad=True)
    objective = SpectralDecouplingLoss(0.01)
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=1000, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(phi @ theta, (y + 1) / 2)
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = torch.linalg.lstsq(phi, decoupled_margin(0.02) * y, driver="gelsd").solution
    torch.testing.assert_close(theta.detach(), expected, rtol=0, atol=1e-6)


def test_permuted_examples_and_flipped_labels_change_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    phi = torch.randn(6, 9, dtype=torch.float64, generator=generator)
    y = torch.tensor([1, -1, 1, 1, -1, -1])
    order = torch.randperm(6, generator=generator)
    alpha = fixed_point(decompose(phi, y), 0.1).alpha
    torch.testing.assert_close(fixed_point(decompose(phi[order], y[order]), 0.1).alpha, alpha[order])
    signs = torch.tensor([1, 1, -1, 1, -1, 1])
    torch.testing.assert_close(fixed_point(decompose(signs[:, None] * phi, signs * y), 0.1).alpha, alpha)


def test_the_index_of_a_network_is_that_of_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.where(torch.arange(12) % 2 == 0, 1, -1)
    by_jacobian = starvation_index(model, x, y, l2=0.1, output=(1, 0), num_features=4)
    monkeypatch.setattr("mechanisms.dynamics.starvation.JACOBIAN_NUMBERS", 0)
    by_kernel = starvation_index(model, x, y, l2=0.1, output=(1, 0), num_features=4)
    for one, other in zip(by_jacobian[:-1], by_kernel[:-1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    logits = model(x).detach()
    torch.testing.assert_close(by_jacobian.margins, y * (logits[:, 1] - logits[:, 0]))
    assert by_jacobian.matrix.shape == (4, 4)
    assert by_jacobian.index.shape == by_jacobian.strengths.shape == by_jacobian.predicted.shape == (4,)


def test_the_index_takes_single_precision_and_fewer_parameters_than_examples() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), torch.randn(12, 3)
    y = torch.where(torch.arange(12) % 2 == 0, 1, -1)
    found = starvation_index(model, x, y, l2=0.1, output=0)
    exact = decompose(torch.cat([x, torch.ones(12, 1)], 1).double(), y)
    torch.testing.assert_close(found.strengths, exact.strengths, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.matrix, starvation_matrix(exact, 0.1), rtol=1e-9, atol=1e-9)
    assert not torch.isnan(found.index).any()


def test_the_index_is_the_elasticity_of_the_starving_entries() -> None:
    rotation = torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64)
    model = nn.Linear(2, 1, bias=False).double()
    features = toy(4)
    inputs = features.weights * features.strengths @ rotation
    found = starvation_index(model, inputs, torch.ones(2, dtype=torch.long), l2=0.01)
    assert found.predicted.tolist() == pytest.approx([7.81205, 1.46681], abs=6e-6)
    assert float(found.index[1]) == pytest.approx(0.016327 * 16 / 1.46681, rel=1e-4)
    assert float(found.index[0]) == pytest.approx(max(0.0, -float(found.matrix[1, 0])) * 4 / 7.81205, rel=1e-4)
    assert len(found.summary().splitlines()) == 3


def test_a_feature_without_response_has_no_index() -> None:
    """The second feature sums to zero over the examples: it is of no use, so there is nothing to starve."""
    weights = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / math.sqrt(2)
    model = nn.Linear(2, 1, bias=False).double()
    inputs = weights * torch.tensor([2.0, 1.0], dtype=torch.float64)
    found = starvation_index(model, inputs, torch.ones(2, dtype=torch.long), l2=0.1)
    assert float(found.index[0]) == pytest.approx(0, abs=1e-12)
    assert torch.isnan(found.index[1])


@pytest.mark.user_input
def test_what_is_refused() -> None:
    for l2 in (0, -1.0):
        with pytest.raises(ValueError, match="the margins diverge"):
            fixed_point(toy(3), l2)
        with pytest.raises(ValueError, match="the margins diverge"):
            starvation_matrix(toy(3), l2)
    with pytest.raises(ValueError, match="not symmetric"):
        fixed_point(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), 0.1)
    with pytest.raises(ValueError, match="orthonormal"):
        fixed_point(FeatureDecomposition(torch.ones(2, 2), torch.ones(2)), 0.1)
    with pytest.raises(ValueError, match=r"weights have shape \(2, 2\) and strengths \(3,\)"):
        fixed_point(FeatureDecomposition(torch.eye(2), torch.ones(3)), 0.1)
    with pytest.raises(ValueError, match="strengths must be 0 or more"):
        fixed_point(FeatureDecomposition(torch.eye(2), -torch.ones(2)), 0.1)
    with pytest.raises(ValueError, match="penalty='weight'"):
        fixed_point(toy(3), 0.1, penalty="weight")
    with pytest.raises(ValueError, match="needs penalty='logits'"):
        fixed_point(toy(3), 0.1, target=1.0)
    for times in ([1.0, 0.5], [-1.0, 1.0], []):
        with pytest.raises(ValueError, match="increasing numbers"):
            dual_flow(toy(3), 0.1, torch.tensor(times))
    with pytest.raises(ValueError, match=r"start=1\.0"):
        dual_flow(toy(3), 0.1, torch.tensor([1.0]), start=1.0)
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match=r"\{-1, \+1\}"):
        starvation_index(model, torch.ones(2, 2), torch.tensor([0, 1]), l2=0.1)
    ones, signs = torch.ones(2, 2), torch.tensor([-1, 1])
    with pytest.raises(ValueError, match="num_features=0"):
        starvation_index(model, ones, signs, l2=0.1, num_features=0)
    with pytest.raises(ValueError, match="the margins diverge"):
        starvation_index(model, ones, signs, l2=0)
    with pytest.raises(TypeError, match="inputs must be a tensor"):
        starvation_index(model, 3, signs, l2=0.1)  # pyrefly: ignore
    for output in ((0, 0), (0,), (0, 2), 2, [0, 1]):
        with pytest.raises(ValueError, match="give one of them or a pair"):
            starvation_index(nn.Linear(2, 2), ones, signs, l2=0.1, output=output)  # pyrefly: ignore
    with pytest.raises(ValueError, match=r"target has shape \(3,\), expected a number or \(2,\)"):
        fixed_point(toy(3), 0.1, penalty="logits", target=torch.ones(3))
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        starvation_index(nn.Sequential(nn.Dropout(), model), torch.ones(2, 2), torch.tensor([-1, 1]), l2=0.1)


def test_a_closed_form_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fixed_point(decompose_kernel(torch.eye(3)), 0.1, penalty="logits")
