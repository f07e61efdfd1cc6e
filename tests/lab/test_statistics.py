"""Intervals against scipy, exact enumerations and simulations; a false alarm is rarer than one in a million."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mechanisms.lab.claims import STAGES
from mechanisms.lab.statistics import (
    bounded_interval,
    clopper_pearson,
    log_wealth,
    satisfies,
    skewed,
    student_interval,
    violates,
    zero_variance,
)

ALARM = 1e-6
REPLICATES = 100_000

_spec = importlib.util.spec_from_file_location(
    "verify_claims", Path(__file__).parents[2] / "benchmarks" / "verify_claims.py"
)
verify_claims = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(verify_claims)


def at_most_so_many(rate: float, replicates: int) -> float:
    """The count that events of this rate exceed less than once in a million times."""
    return stats.binom.isf(ALARM, replicates, rate)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.9875])
@pytest.mark.parametrize("n", [2, 3, 10, 80])
def test_student_interval_is_scipys(n, confidence):
    samples = np.random.default_rng(n).normal(2.0, 3.0, (5, n))
    low, high = student_interval(samples, confidence)
    theirs = stats.ttest_1samp(samples, 0.0, axis=-1).confidence_interval(confidence)
    np.testing.assert_allclose([low, high], [theirs.low, theirs.high], rtol=1e-10)


@pytest.mark.parametrize("confidence", [0.95, 0.9875])
@pytest.mark.parametrize("n", [1, 2, 10, 37])
def test_clopper_pearson_is_scipys_exact_interval(n, confidence):
    low, high = clopper_pearson(np.arange(n + 1), n, confidence)
    for k in range(n + 1):
        theirs = stats.binomtest(k, n).proportion_ci(confidence, method="exact")
        assert (low[k], high[k]) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize("n", [3, 10, 16, 100])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.95])
def test_a_borderline_share_is_said_to_hold_in_at_most_a_fortieth_of_cases(n, share):
    successes = np.arange(n + 1)
    low, high = clopper_pearson(successes, n)
    probability = stats.binom.pmf(successes, n, share)
    assert probability[satisfies(low, high, share)].sum() <= 0.025
    assert probability[violates(low, high, share)].sum() <= 0.025


@pytest.mark.parametrize("n", [3, 5, 10, 20])
def test_student_interval_keeps_its_promise_on_normal_data(n):
    samples = np.random.default_rng(n).normal(size=(REPLICATES, n))
    low, high = student_interval(samples)
    assert satisfies(low, high, smallest=0.0).sum() <= at_most_so_many(0.05, REPLICATES)
    misses = ((low > 0) | (high < 0)).sum()
    assert stats.binom.ppf(ALARM, REPLICATES, 0.05) <= misses <= at_most_so_many(0.05, REPLICATES)


def test_adding_seeds_until_decided_keeps_the_error_on_normal_data():
    replicates = verify_claims.REPLICATES
    holds, fails, undecided, used = verify_claims.until_decided(verify_claims.METRICS[0])
    assert holds * replicates <= at_most_so_many(0.05, replicates)
    assert (holds + fails) * replicates <= at_most_so_many(0.05, replicates)
    assert holds + fails + undecided == pytest.approx(1)
    assert STAGES[0] <= used <= STAGES[-1]


def test_looking_as_often_without_splitting_the_error_would_break_it():
    # Guards the test above: the simulation can see an inflated error.
    samples = verify_claims.draw(verify_claims.METRICS[0], STAGES[-1])
    wrong = np.zeros(len(samples), bool)
    for stage in STAGES:
        low, high = student_interval(samples[:, :stage])
        wrong |= (low > 0) | (high < 0)
    assert wrong.sum() > at_most_so_many(0.05, len(samples))


@pytest.mark.parametrize("n", [1, 2, 5, 10, 20])
@pytest.mark.parametrize("confidence", [0.95, 0.9875])
def test_bounded_interval_covers_every_bernoulli_mean(n, confidence):
    # Samples of zeros and ones are the worst case and can be enumerated: no simulation error.
    samples = (np.arange(n)[None] < np.arange(n + 1)[:, None]).astype(float)
    low, high = bounded_interval(samples, (0.0, 1.0), confidence)
    for mean in np.linspace(0.005, 0.995, 199):
        probability = stats.binom.pmf(np.arange(n + 1), n, mean)
        assert probability[low > mean].sum() <= (1 - confidence) / 2
        assert probability[high < mean].sum() <= (1 - confidence) / 2


@pytest.mark.parametrize("n", [3, 5, 10, 20])
@pytest.mark.parametrize("index", [2, 3])
def test_bounded_interval_covers_where_students_does_not(index, n):
    metric = verify_claims.METRICS[index]
    samples = verify_claims.draw(metric, n, 4000)
    low, high = bounded_interval(samples, metric.bounds)
    assert (low > metric.mean).sum() <= at_most_so_many(0.025, 4000)
    assert (high < metric.mean).sum() <= at_most_so_many(0.025, 4000)
    student = satisfies(*student_interval(samples), smallest=metric.mean).sum()
    assert student > at_most_so_many(0.025, 4000)
    # The benchmark decides without searching for the ends; it must come to the same.
    above, below = verify_claims.bounded_refutations(samples, metric.bounds, metric.mean, 0.95)
    np.testing.assert_array_equal(above, low > metric.mean)
    np.testing.assert_array_equal(below, high < metric.mean)


@pytest.mark.parametrize("mean", [0.1, 0.5, 0.95])
def test_wealth_averages_one_at_the_true_mean(mean):
    n = 12
    samples = (np.arange(n)[None] < np.arange(n + 1)[:, None]).astype(float)
    wealth = np.exp(log_wealth(samples, np.full(n + 1, mean)))
    assert (wealth * stats.binom.pmf(np.arange(n + 1), n, mean)).sum() == pytest.approx(1, rel=1e-9)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_bounded_interval_is_symmetric_and_needs_no_order(values, random):
    low, high = bounded_interval(values, (-1, 1))
    assert -1 <= low <= np.mean(values) + 1e-9
    assert np.mean(values) - 1e-9 <= high <= 1
    mirrored = bounded_interval([-value for value in values], (-1, 1))
    assert (-mirrored[1], -mirrored[0]) == pytest.approx((low, high), abs=1e-9)
    random.shuffle(values)
    assert bounded_interval(values, (-1, 1)) == pytest.approx((low, high), abs=1e-9)


def test_bounded_interval_is_narrower_than_hoeffdings_at_small_variance():
    for n in (5, 10, 20, 80):
        low, high = bounded_interval([0.95] * n, (0.0, 1.0))
        assert high - low < 0.7 * 2 * np.sqrt(np.log(2 / 0.05) / (2 * n))


def test_bounded_interval_of_extreme_samples():
    assert bounded_interval([0.0] * 10, (0, 1))[0] == 0.0
    assert bounded_interval([1.0] * 10, (0, 1))[1] == 1.0
    low, _ = bounded_interval([1.0] * 10, (0, 1))
    assert 0.6 < low < 0.025 ** (1 / 10)  # no interval can do better than that on ten ones


def test_rounding_neither_refutes_nor_grants_a_borderline_claim():
    point = 0.87 - 0.90  # a hair below -0.03
    assert satisfies(point, point, smallest=-0.03)
    assert not violates(point, point, smallest=-0.03)
    assert not satisfies(point, point, smallest=-0.03, strict=True)
    assert violates(point, point, smallest=-0.03, strict=True)
    assert satisfies(-0.1, 0.1, -0.2, 0.2)
    assert violates(0.3, 0.4, -0.2, 0.2)
    assert not satisfies(0.1, 0.3, -0.2, 0.2)
    assert not violates(0.1, 0.3, -0.2, 0.2)


def test_skewed_marks_a_bad_seed_and_spares_even_samples():
    assert not skewed([[0.1, 0.2, 0.3, 0.4, 0.5]])[0]
    for n in (3, 5, 10, 20):
        one_bad = np.r_[np.linspace(-0.001, 0.001, n - 1), -0.1]
        assert skewed(one_bad)
        assert skewed(-one_bad)
    assert not skewed([0.0, 1.0])
    assert not skewed([0.87 - 0.90, 0.77 - 0.80, 0.67 - 0.70])  # rounding has no shape
    assert zero_variance([0.87 - 0.90, 0.77 - 0.80])
    assert not zero_variance([0.5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: student_interval([1.0]), "needs 2 or more"),
        (lambda: student_interval([1.0, 2.0], 1.0), "confidence"),
        (lambda: clopper_pearson(3, 2), "3 successes of 2 units"),
        (lambda: clopper_pearson(0, 0), "a unit or more"),
        (lambda: bounded_interval([0.5, 1.5], (0, 1)), "leave the bounds"),
        (lambda: bounded_interval([0.5, np.nan], (0, 1)), "leave the bounds"),
        (lambda: bounded_interval([0.5], (1, 0)), "the smaller first"),
        (lambda: bounded_interval([], (0, 1)), "needs 1 or more"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_tables_in_the_docs_are_what_the_simulation_gives():
    page = verify_claims.PAGE.read_text(encoding="utf-8")
    assert verify_claims.with_tables(page, verify_claims.tables()) == page


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="once each"):
        verify_claims.with_tables("no markers", {"rates": "| |"})
