"""Learning curves in the limit: exact limits, invariances, the contour's self-test, published figures, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechanisms.dynamics import Limit, TeacherStudent, descents, largest_eigenvalue, learning_curve, learning_curves
from mechanisms.dynamics._contour import order_by_contour
from mechanisms.dynamics._replica import mismatch, ridge_order, solve_mu
from mechanisms.dynamics.epochwise import as_limit

METHODS = ("flow", "ridge", "decoupled")
EXACT = ("flow", "ridge")
FIGURE_1 = TeacherStudent.two_scales()
FIGURE_2 = TeacherStudent.two_scales(120, 100, 80, 40, 0.2)
FIGURE_3 = TeacherStudent.two_scales(110, 100, 70, 30)
DECADES = 10.0 ** torch.arange(-2, 9, dtype=torch.float64)


def published_clock(problem: TeacherStudent) -> TeacherStudent:
    """The original's analytic curves halve the scales and take a learning rate of 1."""
    groups = tuple((count, scale / 2) for count, scale in problem.groups)
    return TeacherStudent(problem.num_samples, problem.dim, groups, problem.noise, problem.l2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("noisy", [True, False])
def test_nothing_is_learned_at_time_zero(method: str, noisy: bool) -> None:
    curve = learning_curve(FIGURE_2, [0.0], method=method, noisy_test=noisy)
    assert curve.alignment.item() == pytest.approx(0, abs=1e-12)
    assert curve.norm.item() == pytest.approx(0, abs=1e-12)
    assert curve.error.item() == pytest.approx((1 + 0.04 * noisy) / 2, abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "plateau"), [(150, 0.28125), (110, 0.4125)])
def test_between_the_scales_lies_the_plateau_of_fast_features_alone(method: str, n: int, plateau: float) -> None:
    problem = TeacherStudent.two_scales(n, 100, 70, 1e7)
    assert learning_curve(problem, [1e7], method=method).error.item() == pytest.approx(plateau, abs=2e-5)


@pytest.mark.parametrize("method", EXACT)
def test_without_weight_decay_the_end_is_least_squares(method: str) -> None:
    curve = learning_curve(FIGURE_2, [1e13], method=method)
    assert curve.error.item() == pytest.approx(0.12, abs=1e-6)
    assert curve.alignment.item() == pytest.approx(1, abs=1e-6)
    assert curve.norm.item() == pytest.approx(1 + 0.04 / 0.2, abs=1e-6)


@pytest.mark.parametrize("method", EXACT)
def test_with_fewer_samples_than_dimensions_the_student_learns_their_ratio(method: str) -> None:
    curve = learning_curve(TeacherStudent.two_scales(60, 100, 70, 10), [1e13], method=method)
    assert curve.alignment.item() < 0.6  # fast features take more than their share
    one_scale = learning_curve(TeacherStudent(60, 100, ((100, 1.0),)), [1e13], method=method)
    assert one_scale.alignment.item() == pytest.approx(0.6, abs=1e-6)
    assert one_scale.norm.item() == pytest.approx(0.6, abs=1e-6)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ((300, 200, 140, 100, 0), (0.4897, 0.4158, 0.2450, 0.2722, 0.2768, 0.2408, 0.0828, 0.0010)),
        ((180, 200, 140, 10, 0.3), (0.5388, 0.4917, 0.3562, 0.4422, 0.6143, 0.5481, 0.7411, 0.7923)),
        ((150, 200, 100, 5, 0.5), (0.6212, 0.5916, 0.5092, 0.6341, 0.7361, 0.9366, 0.9572, 0.9572)),
        (
            (110, 100, 70, 1000, 0),
            (0.4924, 0.4360, 0.2805, 0.3303, 0.4122, 0.4122, 0.4092, 0.3817, 0.2249, 0.0472, 0.0015),
        ),
    ],
)
def test_gradient_flow_takes_values_computed_independently(setting: tuple, expected: tuple[float, ...]) -> None:
    error = learning_curve(TeacherStudent.two_scales(*setting), DECADES[: len(expected)], lr=1.0).error
    torch.testing.assert_close(error, torch.tensor(expected, dtype=torch.float64), atol=6e-5, rtol=0)


@pytest.mark.parametrize(
    ("problem", "method", "minimum", "peak", "end"),
    [
        (FIGURE_1, "decoupled", (0.2327, 13.2), (0.2677, 330), 0),
        (FIGURE_1, "ridge", (0.2328, 13.2), (0.2712, 463), 0),
        (TeacherStudent.two_scales(110, 100, 70, 12), "decoupled", (0.2504, 22), (0.2517, 43), 0),
        (TeacherStudent.two_scales(110, 100, 70, 12), "ridge", (0.2569, 16), (0.2848, 119), 0),
        (FIGURE_3, "decoupled", (0.2616, 14), (0.3210, 198), 0),
        (FIGURE_3, "ridge", (0.2624, 13), (0.3498, 359), 0),
        (TeacherStudent.two_scales(110, 100, 70, 1000), "decoupled", (0.2633, 13), (0.4089, 8250), 0.0028),
        (TeacherStudent.two_scales(110, 100, 70, 1000), "ridge", (0.2633, 13), (0.4103, 13700), 0.0317),
        (TeacherStudent.two_scales(120, 100, 80, 40, 0.2, 1e-8), "decoupled", (0.2303, 17), (0.2953, 330), 0.12),
        (TeacherStudent.two_scales(120, 100, 80, 40, 0.2, 1e-8), "ridge", (0.2308, 17), (0.3185, 597), 0.12),
    ],
)
def test_turns_are_those_of_the_published_curves(
    problem: TeacherStudent, method: str, minimum: tuple[float, float], peak: tuple[float, float], end: float
) -> None:
    t = 10 ** torch.linspace(-3, 8, 1200, dtype=torch.float64)
    error = learning_curve(published_clock(problem), t, lr=1.0, method=method).error
    found = descents(error, t, min_drop=1e-4)
    assert found.peak is not None
    for (time, height), (expected, expected_time) in ((found.first_minimum, minimum), (found.peak, peak)):
        assert height == pytest.approx(expected, abs=1e-4)
        assert time == pytest.approx(expected_time, rel=0.06)
    assert error[-1].item() == pytest.approx(end, abs=2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_equal_scales_descend_once(method: str) -> None:
    t = 10 ** torch.linspace(-3, 8, 400, dtype=torch.float64)
    curve = learning_curve(TeacherStudent.two_scales(110, 100, 70, 1), t, lr=0.25, method=method)
    assert not descents(curve.error, t, min_drop=1e-6).maxima


def test_at_a_condition_number_of_seven_flow_descends_twice_and_its_ridge_reading_once() -> None:
    t = 10 ** torch.linspace(-3, 8, 400, dtype=torch.float64)
    for method in METHODS:
        curve = learning_curve(TeacherStudent.two_scales(110, 100, 70, 7), t, lr=0.25, method=method)
        found = descents(curve.error, t, min_drop=1e-6)
        assert found.is_double == (method == "flow")
        if found.peak is not None:
            assert found.peak[1] - found.first_minimum[1] == pytest.approx(0.0197, abs=5e-4)


def test_fast_features_alone_overfit_and_slow_ones_alone_do_not() -> None:
    t = 10 ** torch.linspace(-3, 9, 400, dtype=torch.float64)
    for method in METHODS:
        fast = learning_curve(FIGURE_1, t, lr=1.0, method=method, features="fast").error
        assert 0.23 < fast.min() < 0.24
        assert fast[-1].item() == pytest.approx(0.28125, abs=1e-6)
        slow = learning_curve(FIGURE_1, t, lr=1.0, method=method, features="slow").error
        assert slow[0].item() == pytest.approx(0.28125, abs=1e-6)
        assert slow.diff().max() < 1e-9
        assert slow[-1] < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_parts_meet_the_whole_where_the_other_part_is_over(method: str) -> None:
    problem = TeacherStudent.two_scales(condition_number=1e4)
    for features, t in (("fast", [0.1, 1.0, 10.0]), ("slow", [1e8, 1e9])):
        whole, part = (learning_curve(problem, t, method=method, features=f).error for f in ("both", features))
        torch.testing.assert_close(part, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", EXACT)
def test_splitting_a_group_changes_nothing(method: str) -> None:
    whole = TeacherStudent(120, 100, ((80, 1.0), (20, 0.025)), 0.2, 1e-3)
    split = TeacherStudent(120, 100, ((50, 1.0), (8, 0.025), (30, 1.0), (12, 0.025)), 0.2, 1e-3)
    for a, b in zip(learning_curve(whole, DECADES), learning_curve(split, DECADES), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_equal_scales_merge_except_in_the_decoupled_formula() -> None:
    """Weight decay 1 as the only penalty: time has run out."""
    end = [1e14]
    two = TeacherStudent.two_scales(150, 100, 70, 1, l2=1.0)
    exact = learning_curve(two, end, lr=1.0, method="ridge", noisy_test=False)
    one = learning_curve(TeacherStudent(150, 100, ((100, 1.0),), l2=1.0), end, lr=1.0, method="ridge")
    assert exact.alignment.item() == pytest.approx(one.alignment.item(), abs=1e-12)
    assert exact.alignment.item() == pytest.approx(0.5, abs=1e-10)
    assert exact.norm.item() == pytest.approx(0.3, abs=1e-10)
    assert exact.error.item() == pytest.approx(0.15, abs=1e-10)
    decoupled = learning_curve(two, end, lr=1.0, method="decoupled")
    assert decoupled.alignment.item() == pytest.approx(0.5424, abs=5e-5)
    assert decoupled.norm.item() == pytest.approx(0.3457, abs=5e-5)


def test_decoupled_is_the_paper_s_equations_12_and_14() -> None:
    n, d, p, kappa, sigma = 120, 100, 80, 40.0, 0.2
    for lam in (1e-6, 1e-3, 0.1, 3.0):
        sizes, scales = (p, d - p), (1.0, 1 / kappa)
        a, b, aligned = [], [], []
        for size, s in zip(sizes, scales, strict=True):
            alpha, strength = n / size, lam / (size / d * s**2)
            rest = 1 - alpha - strength
            a.append(1 + 2 * strength / (rest + math.sqrt(rest**2 + 4 * strength)))
            b.append(alpha / (a[-1] ** 2 - alpha))
            aligned.append(n / d / a[-1])
        c = [1 + sigma**2 - 2 * aligned[1 - i] - n / d * (2 - a[i]) / a[i] for i in range(2)]
        norms = [b[i] * (c[i] + b[1 - i] * c[1 - i]) / (1 - b[0] * b[1]) for i in range(2)]
        ours = learning_curve(TeacherStudent.two_scales(n, d, p, kappa, sigma), [1 / lam], lr=1.0, method="decoupled")
        assert ours.alignment.item() == pytest.approx(sum(aligned), abs=1e-8)
        assert ours.norm.item() == pytest.approx(sum(norms), abs=1e-8)


def test_the_decoupled_formula_is_far_off_in_the_slow_phase() -> None:
    problem = TeacherStudent.two_scales(300, 200, 140, 100)
    assert learning_curve(problem, [1e4], lr=1.0, method="ridge").error.item() == pytest.approx(0.106, abs=5e-4)
    assert learning_curve(problem, [1e4], lr=1.0, method="decoupled").error.item() == pytest.approx(0.059, abs=5e-4)


@pytest.mark.parametrize("method", METHODS)
def test_scaling_features_only_rescales_time(method: str) -> None:
    c = 3.7
    problem = TeacherStudent(120, 100, ((80, 1.0), (20, 0.025)), 0.2, 1e-3)
    scaled = TeacherStudent(120, 100, ((80, c), (20, 0.025 * c)), 0.2, 1e-3 * c**2)
    one = learning_curve(problem, DECADES, lr=1.0, method=method)
    other = learning_curve(scaled, DECADES / c**2, lr=1.0, method=method)
    for a, b in zip(one[1:], other[1:], strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)
    # ... and the stable rate makes the clock independent of the scale.
    for a, b in zip(*(learning_curve(p, DECADES, method=method)[1:] for p in (problem, scaled)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


@pytest.mark.parametrize("l2", [0.0, 1e-2])
@pytest.mark.parametrize("sizes", [(150, 100, 70, 30), (60, 100, 70, 5), (100, 100, 50, 10)])
def test_the_contour_reproduces_ridge_from_its_own_filter(sizes: tuple, l2: float) -> None:
    """With h = L/(L + p) the contour must give the closed form at penalty p."""
    limit = as_limit([TeacherStudent.two_scales(*sizes, noise=0.3)])
    tau = 10.0 ** torch.arange(-3, 9, dtype=torch.float64)[None]
    p = l2 + 1 / tau[..., None]
    found = order_by_contour(limit, float(tau.max()) * 1e3, 12, lambda first, last: lambda z: z / (z + p))
    expected = ridge_order(limit._replace(l2=torch.full((1,), l2, dtype=torch.float64)), tau)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_flow_and_ridge_agree_to_first_order() -> None:
    for tau in (1e-3, 1e-4):
        flow, ridge = (learning_curve(FIGURE_2, [tau], lr=1.0, method=method).error.item() for method in EXACT)
        assert abs(flow - ridge) < 5 * tau**2


@settings(max_examples=30, deadline=None)
@given(
    ratio=st.floats(0.05, 5), share=st.floats(0.05, 0.95), kappa=st.floats(1, 1e4), noise=st.floats(0, 1),
    l2=st.sampled_from([0.0, 1e-6, 1e-2, 1.0]),
)  # fmt: skip
def test_order_parameters_stay_in_their_ranges(
    ratio: float, share: float, kappa: float, noise: float, l2: float
) -> None:
    def row(*values: float) -> Tensor:
        return torch.tensor([values], dtype=torch.float64)

    limit = Limit(row(ratio)[0], row(share, 1 - share), row(1, 1 / kappa), row(noise)[0], row(l2)[0])
    for method in EXACT:
        curve = learning_curves(limit, DECADES, lr=1.0, method=method)
        assert (curve.norm >= curve.alignment.square() - 1e-6).all()
        assert ((curve.alignment > -1e-6) & (curve.alignment < 1 + 1e-6)).all()
        identity = (1 + noise**2 - 2 * curve.alignment + curve.norm) / 2
        torch.testing.assert_close(curve.error, identity, atol=1e-9, rtol=1e-9)
        assert (curve.error > noise**2 / 2 - 1e-6).all()


def test_mu_solves_its_equation_to_rounding_for_any_ratio_and_scale() -> None:
    shares = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    for ratio in (0.05, 0.5, 0.999, 1.0, 1.001, 1.5, 20.0):
        g = torch.logspace(-8, 16, 200, dtype=torch.float64)[:, None] * torch.tensor([1.0, 1e-3, 1e-9])
        mu = solve_mu(shares, g, torch.tensor(ratio, dtype=torch.float64))
        value, _ = mismatch(mu, shares, g, torch.tensor(ratio, dtype=torch.float64))
        assert (mu > 0).all()
        assert value.abs().max() < 1e-14 * max(1, ratio)


def test_the_largest_eigenvalue_is_that_of_large_matrices() -> None:
    assert largest_eigenvalue(as_limit([FIGURE_1])).item() == pytest.approx(4.249, abs=1e-3)
    one = TeacherStudent(60, 100, ((100, 2.0),))
    assert largest_eigenvalue(as_limit([one])).item() == pytest.approx(4 * 0.6 * (1 + 0.6**-0.5) ** 2)
    close = TeacherStudent(1500, 1000, ((700, 1.0), (300, 0.9)))
    data = close.sample(generator=torch.Generator().manual_seed(0)).features[0]
    measured = torch.linalg.matrix_norm(data, 2).square().item()
    assert largest_eigenvalue(as_limit([close])).item() == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_a_map_is_its_curves(method: str) -> None:
    problems = [TeacherStudent.two_scales(120, 100, 80, k, 0.2, l2) for k in (1, 30, 1e4) for l2 in (0, 1e-4, 0.1)]
    together = learning_curves(problems, DECADES, method=method)
    for place, problem in enumerate(problems):
        alone = learning_curve(problem, DECADES, method=method)
        for a, b in zip(together[1:], alone[1:], strict=True):
            torch.testing.assert_close(a[place], b, atol=1e-8, rtol=1e-8)


def test_problems_of_different_numbers_of_groups_share_a_map() -> None:
    problems = [FIGURE_1, TeacherStudent(30, 20, ((10, 1.0), (5, 0.1), (5, 0.01))), TeacherStudent(5, 9, ((9, 2.0),))]
    for method in EXACT:
        together = learning_curves(problems, DECADES, method=method).error
        alone = torch.stack([learning_curve(problem, DECADES, method=method).error for problem in problems])
        torch.testing.assert_close(together, alone, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_large_maps_are_solved_in_blocks(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [TeacherStudent.two_scales(condition_number=k) for k in (1, 3, 10, 30, 100)]
    whole = learning_curves(problems, DECADES, method=method).error
    monkeypatch.setattr("mechanisms.dynamics.epochwise.LARGEST_BLOCK", 2 * len(DECADES))
    monkeypatch.setattr("mechanisms.dynamics._contour.LARGEST_BLOCK", 100_000)
    torch.testing.assert_close(learning_curves(problems, DECADES, method=method).error, whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("features", ["both", "fast", "slow"])
def test_curves_are_differentiable_in_problem_and_times(method: str, features: str) -> None:
    def number(*values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, requires_grad=True)

    ratio, share, slow, noise, l2, t = number(1.3), number(0.7), number(0.1), number(0.3), number(0.01), number(3, 50)

    def error(*inputs: Tensor) -> Tensor:
        ratio, share, slow, noise, l2, t = inputs
        scales = torch.stack([torch.ones_like(slow), slow], 1)
        limit = Limit(ratio, torch.stack([share, 1 - share], 1), scales, noise, l2)
        return learning_curves(limit, t, lr=0.3, method=method, features=features).error

    assert torch.autograd.gradcheck(error, (ratio, share, slow, noise, l2, t), atol=1e-5, rtol=1e-3, eps=1e-5)


def test_any_dtype_of_times_gives_double_precision() -> None:
    for times in (
        [0, 1, 10],
        torch.tensor([0.0, 1.0, 10.0]),
        torch.tensor([0, 1, 10]),
        torch.tensor([0.0, 1, 10]).half(),
    ):
        curve = learning_curve(FIGURE_1, times)
        assert all(column.dtype == torch.float64 and column.shape == (3,) for column in curve)
    assert learning_curve(FIGURE_1, [5.0]).error.shape == (1,)


def test_noise_at_equal_numbers_of_samples_and_dimensions_diverges_slowly_and_finitely() -> None:
    error = learning_curve(TeacherStudent.two_scales(100, 100, 70, 1, 0.5), 10.0 ** torch.arange(0, 13)).error
    assert error.isfinite().all()
    assert error[-1] > 1e4 * error[0]


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": ((70, 1.0), (20, 0.1))}, "70 \\+ 20 directions, dim is 100"),
        ({"groups": ()}, "sum to dim"),
        ({"groups": ((100, 0.0),)}, "sees nothing"),
        ({"groups": ((100, -1.0),)}, "singular value"),
        ({"groups": ((100, math.nan),)}, "singular value"),
        ({"groups": (100,)}, "expected pairs"),
        ({"groups": ((0, 1.0), (100, 1.0))}, "number of directions"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"dim": -3}, "dim=-3"),
        ({"noise": -0.1}, "noise=-0.1"),
        ({"l2": -1}, "l2=-1"),
        ({"noise": math.inf}, "noise=inf"),
    ],
)
def test_impossible_problems_are_refused(arguments: dict, message: str) -> None:
    whole = {"num_samples": 150, "dim": 100, "groups": ((70, 1.0), (30, 0.1))} | arguments
    with pytest.raises(ValueError, match=message):
        TeacherStudent(**whole)


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_fast": 0}, "num_fast=0"),
        ({"num_fast": 100}, "at least one must be slow"),
        ({"num_fast": 101}, "at least one must be slow"),
        ({"condition_number": 0.5}, "give its inverse"),
        ({"condition_number": math.inf}, "condition_number"),
    ],
)
def test_impossible_scales_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeacherStudent.two_scales(**arguments)


@pytest.mark.user_input
def test_sizes_that_are_no_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="num_samples must be an integer"):
        TeacherStudent(1.5, 100, ((100, 1.0),))
    with pytest.raises(TypeError, match="noise must be a number"):
        TeacherStudent(150, 100, ((100, 1.0),), noise="much")


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"times": [1.0, 0.5]}, "increasing order"),
        ({"times": [-1.0, 0.5]}, "0 or more"),
        ({"times": []}, "at least one time"),
        ({"times": [[1.0]]}, "one dimension"),
        ({"times": [math.nan]}, "not a number"),
        ({"times": [1.0, math.inf]}, "infinite"),
        ({"method": "gd"}, "'flow', 'ridge', 'decoupled'"),
        ({"features": "medium"}, "'both', 'fast', 'slow'"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": "fast"}, "'stable'"),
        ({"problem": TeacherStudent.two_scales(90), "method": "decoupled"}, "n/d=0.9.*'ridge' or 'flow'"),
        ({"problem": TeacherStudent.two_scales(100), "method": "decoupled"}, "more samples than dimensions"),
        ({"problem": TeacherStudent(30, 20, ((20, 1.0),)), "method": "decoupled"}, "two groups"),
        ({"problem": TeacherStudent(30, 20, ((20, 1.0),)), "features": "fast"}, "single scale"),
        ({"problem": TeacherStudent.two_scales(condition_number=1), "features": "slow"}, "single scale"),
    ],
)
def test_impossible_curves_are_refused(arguments: dict, message: str) -> None:
    whole = {"problem": FIGURE_1, "times": [0.0, 1.0]} | arguments
    with pytest.raises(ValueError, match=message):
        learning_curve(**whole)


@pytest.mark.user_input
def test_maps_take_sequences_of_problems_and_checked_limits() -> None:
    with pytest.raises(TypeError, match="call learning_curve"):
        learning_curves(FIGURE_1, [1.0])
    with pytest.raises(ValueError, match="empty"):
        learning_curves([], [1.0])
    one = torch.ones(1)
    good = Limit(one, torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.1]]), 0 * one, 0 * one)
    assert learning_curves(good, [1.0]).error.shape == (1, 1)
    for change, message in (
        ({"ratio": 0 * one}, "ratio must be above 0"),
        ({"shares": torch.tensor([[0.5, 0.4]])}, "sum to 1"),
        ({"shares": torch.tensor([0.5, 0.5])}, "shares does not fit"),
        ({"scales": torch.tensor([[1.0]])}, "scales does not fit"),
        ({"scales": torch.tensor([[-1.0, 1.0]])}, "scales must be 0 or more"),
        ({"scales": torch.tensor([[0.0, 0.0]])}, "above 0"),
        ({"noise": -one}, "noise must be"),
        ({"l2": torch.ones(2)}, "l2 does not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            learning_curves(good._replace(**change), [1.0])
    with pytest.raises(TypeError, match="ratio"):
        learning_curves(good._replace(ratio="many"), [1.0])


@pytest.mark.gpu
def test_the_curves_are_the_same_on_an_accelerator() -> None:
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        pytest.skip("no accelerator")
    for method in METHODS:
        there = learning_curve(FIGURE_2, DECADES.to(device), method=method).error
        assert there.device.type == device.type
        torch.testing.assert_close(there.cpu(), learning_curve(FIGURE_2, DECADES, method=method).error)
