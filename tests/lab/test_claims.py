"""Verdicts on small sets of records: what holds, what fails, what is left open, and what is said about it."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from mechanisms.lab.claims import (
    Claim,
    Outcome,
    all_of,
    at_least,
    at_most,
    better_than,
    close_to,
    describe,
    exactly,
    predicate,
    share_at_least,
    verdict_label,
)
from mechanisms.lab.records import Cell, Record, read_record, write_record
from mechanisms.lab.statistics import clopper_pearson, satisfies, student_interval


def cell(first_seed=10, **variants):
    """A cell with the metrics `{"accuracy": [one value a seed]}` of each variant; a bare list is the accuracy."""
    records = []
    for variant, metrics in variants.items():
        metrics = metrics if isinstance(metrics, dict) else {"accuracy": metrics}
        for position in range(max(map(len, metrics.values()))):
            row = {name: values[position] for name, values in metrics.items() if position < len(values)}
            records.append(Record("p", "e", "laptop", variant, first_seed + position, {}, row))
    return Cell("p", "e", "laptop", {}, records)


EVEN = np.linspace(-0.01, 0.01, 10)


def around(mean, spread=1.0):
    return [float(mean + spread * step) for step in EVEN]


@pytest.mark.parametrize(
    ("check", "mean", "verdict"),
    [
        (at_least("accuracy", "xrm", 0.6), 0.7, "holds"),
        (at_least("accuracy", "xrm", 0.6), 0.601, "undecided"),
        (at_least("accuracy", "xrm", 0.6), 0.5, "fails"),
        (at_least("accuracy", "xrm", 1, margin=-0.4), 0.7, "holds"),
        (at_most("accuracy", "xrm", 0.6), 0.5, "holds"),
        (at_most("accuracy", "xrm", 0.6), 0.599, "undecided"),
        (at_most("accuracy", "xrm", 0.6), 0.7, "fails"),
        (at_most("accuracy", "xrm", 0.5, margin=0.1), 0.55, "holds"),
        (better_than("accuracy", "xrm", 0.6), 0.7, "holds"),
        (better_than("accuracy", "xrm", 0.6, higher=False), 0.7, "fails"),
        (close_to("accuracy", "xrm", 0.6, within=0.05), 0.61, "holds"),
        (close_to("accuracy", "xrm", 0.6, within=0.05), 0.65, "undecided"),
        (close_to("accuracy", "xrm", 0.6, within=0.05), 0.7, "fails"),
        (close_to("accuracy", "xrm", 0.6, within=0.05), 0.5, "fails"),
    ],
)
def test_means_against_a_number(check, mean, verdict):
    outcome = check.evaluate(cell(xrm=around(mean)))
    assert outcome.verdict == verdict
    assert outcome.estimate == pytest.approx(mean)
    assert outcome.interval == pytest.approx(tuple(map(float, student_interval(around(mean)))))
    assert (outcome.seeds, outcome.provisional, outcome.confidence, outcome.marks) == (10, False, 0.95, ())


@pytest.mark.parametrize(
    ("check", "difference", "verdict"),
    [
        (at_least("accuracy", "xrm", "oracle", margin=-0.03), -0.01, "holds"),
        (at_least("accuracy", "xrm", "oracle", margin=-0.03), -0.03, "undecided"),
        (at_least("accuracy", "xrm", "oracle", margin=-0.03), -0.05, "fails"),
        (at_most("accuracy", "xrm", "oracle", margin=0.03), 0.01, "holds"),
        (at_most("accuracy", "xrm", "oracle"), 0.02, "fails"),
        (better_than("accuracy", "xrm", "oracle"), 0.02, "holds"),
        (better_than("accuracy", "xrm", "oracle"), -0.02, "fails"),
        (better_than("accuracy", "xrm", "oracle", higher=False), -0.02, "holds"),
        (close_to("accuracy", "xrm", "oracle", within=0.03), 0.01, "holds"),
        (close_to("accuracy", "xrm", "oracle", within=0.03), -0.05, "fails"),
    ],
)
def test_differences_are_paired_by_seed(check, difference, verdict):
    # The seeds differ far more than the variants do: only pairing can decide.
    oracle = [0.3 + 0.05 * seed for seed in range(10)]
    noise = around(difference, 0.5)
    xrm = [base + change for base, change in zip(oracle, noise, strict=True)]
    records = cell(xrm=xrm, oracle=oracle)
    shuffled = Cell("p", "e", "laptop", {}, records.records[::-1])
    outcome = check.evaluate(records)
    assert outcome.verdict == verdict
    assert outcome.estimate == pytest.approx(difference)
    assert check.evaluate(shuffled) == outcome


def test_the_prototypes_claim_1a_is_undecided_skewed_and_bounded():
    differences = [-0.009, -0.019, 0.006, -0.014, -0.097]
    check = at_least("accuracy", "xrm", "oracle", margin=-0.03, bounds=(0, 1))
    outcome = check.evaluate(cell(xrm=[0.88 + change for change in differences], oracle=[0.88] * 5))
    assert (outcome.verdict, outcome.bounded, outcome.provisional) == ("undecided", "undecided", True)
    assert outcome.marks == ("skewed",)
    assert verdict_label(outcome) == "undecided (provisional)"
    assert describe(outcome) == "−0.027 [−0.077, 0.024], 5 seeds"


def test_equality_satisfies_at_least_and_refutes_better_than():
    same = cell(xrm=[0.5] * 10, oracle=[0.5] * 10)
    outcome = at_least("accuracy", "xrm", "oracle").evaluate(same)
    assert (outcome.verdict, outcome.interval, outcome.marks) == ("holds", (0.0, 0.0), ("zero variance",))
    assert better_than("accuracy", "xrm", "oracle").evaluate(same).verdict == "fails"
    assert better_than("accuracy", "xrm", "oracle", higher=False).evaluate(same).verdict == "fails"
    borderline = cell(xrm=[0.87, 0.77], oracle=[0.90, 0.80])
    assert at_least("accuracy", "xrm", "oracle", margin=-0.03).evaluate(borderline).verdict == "holds"


def test_bounds_of_a_difference_are_those_of_both_metrics():
    # A difference of -0.9 lies outside (0, 1) and inside (-1, 1).
    outcome = at_most("accuracy", "xrm", "oracle", bounds=(0, 1)).evaluate(cell(xrm=[0.05] * 40, oracle=[0.95] * 40))
    assert (outcome.verdict, outcome.bounded, outcome.marks) == ("holds", "holds", ("zero variance",))


def test_the_bounded_verdict_is_given_only_for_marked_samples_within_the_bounds():
    assert at_least("accuracy", "xrm", 0.6, bounds=(0, 1)).evaluate(cell(xrm=around(0.7))).bounded is None
    assert at_least("accuracy", "xrm", 0.6).evaluate(cell(xrm=[0.7] * 10)).bounded is None
    assert at_least("accuracy", "xrm", 0.3, bounds=(0, 1)).evaluate(cell(xrm=[0.9] * 10)).bounded == "holds"
    outcome = at_least("accuracy", "xrm", 0.6, bounds=(0, 1)).evaluate(cell(xrm=[70.0] * 10))
    assert outcome.bounded is None
    assert "values outside the bounds (0, 1)" in outcome.marks


@pytest.mark.parametrize("seeds", [2, 9, 10])
def test_fewer_than_ten_seeds_are_provisional(seeds):
    outcome = at_least("accuracy", "xrm", 0.1).evaluate(cell(xrm=around(0.7)[:seeds]))
    assert outcome.provisional == (seeds < 10)
    assert (outcome.verdict, outcome.seeds) == ("holds", seeds)
    assert verdict_label(outcome) == ("holds (provisional)" if seeds < 10 else "holds")


@pytest.mark.parametrize(
    "check", [at_least("accuracy", "xrm", 0.1), better_than("accuracy", "xrm", 0.1), close_to("accuracy", "xrm", 0, 1)]
)
def test_one_seed_decides_nothing(check):
    outcome = check.evaluate(cell(xrm=[0.7]))
    assert (outcome.verdict, outcome.provisional, outcome.interval) == ("undecided", True, None)
    assert outcome.marks == ("one seed: no interval",)
    assert describe(outcome) == "0.7, 1 seed"


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
@pytest.mark.parametrize("check", [at_least("accuracy", "xrm", 0.1), at_most("accuracy", "xrm", 0.1)])
def test_a_diverged_run_leaves_a_mean_undecided(check, bad):
    values = around(0.7)
    values[3] = bad
    outcome = check.evaluate(cell(xrm=values))
    assert (outcome.verdict, outcome.seeds, outcome.marks) == ("undecided", 9, ("diverged: seed 13",))
    assert outcome.interval is not None


def test_a_diverged_run_of_either_variant_is_marked_and_nothing_crashes_when_all_diverged():
    check = at_least("accuracy", "xrm", "oracle", bounds=(0, 1))
    outcome = check.evaluate(cell(xrm=[math.nan, 0.5, 0.5, 0.5], oracle=[0.1, math.nan, 0.1, 0.1]))
    assert (outcome.verdict, outcome.bounded, outcome.seeds) == ("undecided", "undecided", 2)
    assert outcome.marks == ("diverged: seeds 10, 11", "zero variance")
    outcome = check.evaluate(cell(xrm=[math.nan] * 3, oracle=[0.1] * 3))
    assert (outcome.verdict, outcome.estimate, outcome.seeds) == ("undecided", None, 0)
    assert describe(outcome) == "—"


def test_a_diverged_run_reads_the_same_from_disk(tmp_path):
    record = Record("p", "e", "laptop", "xrm", 10, {}, {"accuracy": math.nan, "solved": [1.0, math.nan]})
    read = read_record(write_record(record, tmp_path))
    for records in ([record], [read]):
        one = Cell("p", "e", "laptop", {}, records)
        assert at_least("accuracy", "xrm", 0.1).evaluate(one).marks == ("diverged: seed 10",)
        assert share_at_least("solved", "xrm", 0.1).evaluate(one).marks == ("diverged: seed 10",)
        assert exactly("accuracy", "xrm", 0, 1).evaluate(one).verdict == "undecided"
        positive = predicate(lambda seed: not seed["xrm"]["accuracy"] < 0, ("xrm",), "positive")
        assert positive.evaluate(one).marks == ("diverged: seed 10",)


def test_unpaired_seeds_are_left_out_and_counted():
    check = at_least("accuracy", "xrm", "oracle", margin=-1)
    outcome = check.evaluate(cell(xrm=around(0.7), oracle=around(0.7)[:7]))
    assert (outcome.verdict, outcome.seeds) == ("holds", 7)
    assert outcome.marks == ("3 unpaired seeds left out", "zero variance")
    nothing = Cell("p", "e", "laptop", {}, [*cell(xrm=[0.5]).records, *cell(first_seed=20, oracle=[0.5]).records])
    outcome = check.evaluate(nothing)
    assert (outcome.verdict, outcome.marks) == ("not run", ("no seed has 'accuracy' of all of xrm, oracle",))


CHECKS = [
    at_least("accuracy", "xrm", 0.6),
    at_least("accuracy", "xrm", "oracle"),
    share_at_least("accuracy", "xrm", 0.5),
    exactly("accuracy", "xrm", 1.0, 0.1),
    predicate(lambda seed: seed["xrm"]["accuracy"] > 0, ("xrm",), "positive"),
]


@pytest.mark.parametrize("check", CHECKS)
def test_what_is_missing_is_named(check):
    outcome = check.evaluate(cell(erm=[0.5]))
    assert (outcome.verdict, outcome.marks, outcome.provisional) == ("not run", ("no records of xrm",), False)
    outcome = check.evaluate(cell(xrm={"loss": [0.5]}, oracle=[0.5]))
    assert outcome.verdict == "not run"
    assert "metric 'accuracy' is missing" in outcome.marks[0]
    assert describe(outcome) == "—"
    assert verdict_label(outcome) == "not run"


@pytest.mark.parametrize("check", CHECKS[:4])
def test_text_is_no_number(check):
    outcome = check.evaluate(cell(xrm=["good"], oracle=[0.5]))
    assert (outcome.verdict, outcome.marks) == ("not run", ("metric 'accuracy' of xrm is text, a number is needed",))


def test_seeds_without_the_metric_are_left_out_and_named():
    outcome = at_least("accuracy", "xrm", 0.1).evaluate(cell(xrm={"accuracy": around(0.7)[:9], "loss": [1.0] * 10}))
    assert (outcome.seeds, outcome.provisional) == (9, True)
    assert outcome.marks == ("metric 'accuracy' of xrm is missing: seed 19",)


def test_lists_count_as_one_value_a_seed_in_means():
    outcome = at_least("accuracy", "xrm", 0.4).evaluate(cell(xrm=[[0.0, 1.0, 0.5], [0.5], [True, False]]))
    assert (outcome.estimate, outcome.seeds, outcome.units) == (0.5, 3, None)


def test_shares_count_all_units_of_all_seeds():
    units = [[1, 1, True, 0]] * 9 + [[1, 1, 1, 1]]
    outcome = share_at_least("accuracy", "xrm", 0.6).evaluate(cell(xrm=units))
    assert (outcome.verdict, outcome.units, outcome.seeds, outcome.provisional) == ("holds", 40, 10, False)
    assert outcome.estimate == pytest.approx(31 / 40)
    assert outcome.interval == pytest.approx(tuple(map(float, clopper_pearson(31, 40))))
    assert describe(outcome) == "0.78 [0.62, 0.89], 40 units of 10 seeds"
    outcome = share_at_least("accuracy", "xrm", 0.6).evaluate(cell(xrm=[1, True, 0, 1]))
    assert (outcome.verdict, outcome.units, outcome.provisional) == ("undecided", 4, True)
    assert share_at_least("accuracy", "xrm", 0.9).evaluate(cell(xrm=[[0, 1] * 20])).verdict == "fails"


def test_diverged_units_never_let_a_share_hold_and_fail_it_only_regardless():
    check = share_at_least("accuracy", "xrm", 0.5)
    outcome = check.evaluate(cell(xrm=[[1] * 99 + [None]]))
    assert (outcome.verdict, outcome.units, outcome.marks) == ("undecided", 99, ("diverged: seed 10",))
    assert check.evaluate(cell(xrm=[[0] * 99 + [None]])).verdict == "fails"
    assert check.evaluate(cell(xrm=[[0] * 20 + [math.nan] * 80])).verdict == "undecided"
    assert check.evaluate(cell(xrm=[math.nan])).verdict == "undecided"


def test_a_share_needs_zeros_and_ones():
    outcome = share_at_least("accuracy", "xrm", 0.5).evaluate(cell(xrm=[1, 0.7]))
    assert outcome.verdict == "not run"
    assert outcome.marks == ("metric 'accuracy' of seed 11 has the value 0.7, expected 0 or 1",)


def test_predicates_count_seeds():
    better = predicate(lambda seed: seed["xrm"]["accuracy"] > seed["erm"]["accuracy"], ("xrm", "erm"), "xrm is better")
    outcome = better.evaluate(cell(xrm=[0.9] * 10, erm=[0.1] * 9 + [0.95]))
    assert (outcome.verdict, outcome.estimate, outcome.units, outcome.seeds) == ("holds", 0.9, 10, 10)
    assert outcome.statement == "xrm is better, in a share of seeds >= 0.5"
    assert better.evaluate(cell(xrm=[0.9] * 10, erm=[0.1] * 8 + [0.95] * 2)).verdict == "undecided"
    assert better.evaluate(cell(xrm=[0.1] * 10, erm=[0.9] * 10)).verdict == "fails"
    outcome = better.evaluate(cell(xrm=[0.9] * 3, erm=[0.1]))
    assert (outcome.verdict, outcome.provisional) == ("undecided", True)
    assert outcome.marks == ("2 unpaired seeds left out",)


def test_a_predicate_counts_as_diverged_only_what_it_reads():
    check = predicate(lambda seed: seed["xrm"].get("accuracy", 0) > 0, ("xrm",), "positive", share=0.6)
    outcome = check.evaluate(cell(xrm={"accuracy": [0.9] * 10, "other": [math.nan] * 10}))
    assert (outcome.verdict, outcome.marks) == ("holds", ())
    outcome = check.evaluate(cell(xrm={"accuracy": [0.9] * 9 + [math.inf], "other": [math.nan] * 10}))
    assert (outcome.verdict, outcome.marks) == ("undecided", ("diverged: seed 19",))


def test_a_predicate_must_answer_yes_or_no():
    check = predicate(lambda seed: seed["xrm"]["accuracy"], ("xrm",), "accuracy")
    with pytest.raises(TypeError, match=r"returned 0\.5, expected True or False"):
        check.evaluate(cell(xrm=[0.5]))
    assert predicate(lambda seed: np.bool_(True), ("xrm",), "yes").evaluate(cell(xrm=[0.5])).estimate == 1.0


def test_exact_facts_need_one_run_and_every_run():
    check = exactly("accuracy", "xrm", 1.0, tolerance=1e-6)
    outcome = check.evaluate(cell(xrm=[1.0 + 1e-7]))
    assert (outcome.verdict, outcome.provisional, outcome.interval, outcome.seeds) == ("holds", False, None, 1)
    assert describe(outcome) == "1, 1 seed"
    outcome = check.evaluate(cell(xrm=[1.0, [1.0, 1.1], 1.0]))
    assert (outcome.verdict, outcome.estimate) == ("fails", 1.1)
    assert check.evaluate(cell(xrm=[1.0, math.nan])).verdict == "undecided"
    assert check.evaluate(cell(xrm=[2.0, math.nan])).verdict == "fails"
    assert check.evaluate(cell(xrm=[math.nan])).verdict == "undecided"
    assert check.evaluate(cell(xrm=[1.0]), looks=4, share=3) == check.evaluate(cell(xrm=[1.0]))


HOLDS, FAILS = at_least("accuracy", "xrm", 0.6), at_least("accuracy", "xrm", 0.9)
OPEN, MISSING = at_least("accuracy", "xrm", 0.7), at_least("accuracy", "oracle", 0.7)


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ((HOLDS, HOLDS), "holds"),
        ((HOLDS, FAILS, OPEN), "fails"),
        ((HOLDS, OPEN), "undecided"),
        ((OPEN, MISSING), "not run"),
        ((FAILS, MISSING), "fails"),
        ((HOLDS, all_of(HOLDS, all_of(HOLDS, FAILS))), "fails"),
        ((HOLDS,), "holds"),
    ],
)
def test_conjunctions(checks, verdict):
    outcome = all_of(*checks).evaluate(cell(xrm=around(0.7)))
    assert outcome.verdict == verdict
    assert len(outcome.parts) == len(checks)


def test_conjunctions_split_the_error_over_looks_and_parts():
    joined = all_of(HOLDS, all_of(HOLDS, FAILS, OPEN))
    outcome = joined.evaluate(cell(xrm=around(0.7)), looks=4)
    assert outcome.confidence == pytest.approx(1 - 0.05 / 4)
    assert outcome.parts[0].confidence == pytest.approx(1 - 0.05 / 8)
    assert [part.confidence for part in outcome.parts[1].parts] == pytest.approx([1 - 0.05 / 24] * 3)
    wanted = student_interval(around(0.7), 1 - 0.05 / 24)
    assert outcome.parts[1].parts[2].interval == pytest.approx(tuple(map(float, wanted)))
    assert describe(outcome.parts[0]) == "0.7000 [0.6925, 0.7075] at 99.38 %, 10 seeds"
    assert describe(outcome).count(";") == 3


def test_conjunctions_gather_what_their_parts_say():
    joined = all_of(
        at_least("accuracy", "xrm", 0.3, bounds=(0, 1)), exactly("one", "erm", 1, 0), share_at_least("one", "erm", 0.05)
    )
    outcome = joined.evaluate(cell(xrm=[0.9] * 10, erm={"one": [1.0, 1.0]}))
    assert (outcome.verdict, outcome.bounded, outcome.seeds, outcome.provisional) == ("holds", "holds", 2, True)
    assert outcome.marks == ("zero variance",)
    assert joined.variants == ("xrm", "erm")
    assert joined.statement == "accuracy: xrm >= 0.3; and one: erm = 1 ± 0; and one: share of erm >= 0.05"
    only_exact = all_of(exactly("one", "erm", 1, 0), exactly("one", "erm", 1, 0.5))
    assert not only_exact.evaluate(cell(erm={"one": [1.0]})).provisional


def test_looks_widen_the_interval():
    check = at_least("accuracy", "xrm", 0.6)
    once, often = (check.evaluate(cell(xrm=around(0.7)), looks=looks) for looks in (1, 4))
    assert often.confidence == 1 - 0.05 / 4
    assert often.interval[0] < once.interval[0] < once.interval[1] < often.interval[1]
    with pytest.raises(ValueError, match="1 or more"):
        check.evaluate(cell(xrm=around(0.7)), looks=0)


def test_statements_read_well():
    assert at_most("loss", "a", "b", margin=0.5).statement == "loss: a - b <= 0.5"
    assert better_than("loss", "a", "b").statement == "loss: a - b > 0"
    assert close_to("loss", "a", 0.5, within=0.01).statement == "loss: |a - 0.5| <= 0.01"
    assert close_to("loss", "a", -0.5, within=1).statement == "loss: |a + 0.5| <= 1"
    assert Claim("text", at_least("loss", "a", "b")).variants == ("a", "b")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: close_to("m", "a", "b", within=-0.1), "within is -0.1"),
        (lambda: close_to("m", "a", "b", within=math.nan), "within is nan"),
        (lambda: at_least("m", "a", "b", margin=math.nan), "expected finite numbers"),
        (lambda: at_least("m", "a", math.inf), "expected finite numbers"),
        (lambda: at_most("m", "a", math.nan), "expected finite numbers"),
        (lambda: close_to("m", "a", math.nan, within=1.0), "expected finite numbers"),
        (lambda: at_least("m", "a", "a"), "compared with itself"),
        (lambda: at_least("m", "a", "b", bounds=(1, 0)), "the smaller first"),
        (lambda: share_at_least("m", "a", 1.1), "the share is 1.1"),
        (lambda: predicate(lambda seed: True, ("a",), "t", share=-0.1), "the share is -0.1"),
        (lambda: predicate(lambda seed: True, (), "t"), "name the variants"),
        (lambda: exactly("m", "a", 1.0, tolerance=-1.0), "tolerance is -1.0"),
        (lambda: exactly("m", "a", math.nan, tolerance=1.0), "value is nan"),
        (lambda: all_of(), "none was given"),
    ],
)
def test_mistakes_are_named_when_the_claim_is_written(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.user_input
def test_one_name_is_no_tuple_of_names():
    with pytest.raises(ValueError, match=r"write \('xrm',\)"):
        predicate(lambda seed: True, "xrm", "always")


@pytest.mark.parametrize(
    ("estimate", "interval", "text"),
    [
        (1234.4, (1200.2, 1300.9), "1234 [1200, 1301], 10 seeds"),
        (-1e-5, (-2e-4, 1e-4), "−0.00001 [−0.00020, 0.00010], 10 seeds"),
        (-1e-9, (-0.3, 0.3), "0.00 [−0.30, 0.30], 10 seeds"),
        (2e-11, (1e-11, 3e-11), "2e−11 [1e−11, 3e−11], 10 seeds"),
        (0.25, (0.25, 0.25), "0.25 [0.25, 0.25], 10 seeds"),
    ],
)
def test_figures_show_two_digits_of_the_half_width(estimate, interval, text):
    assert describe(Outcome("holds", "", estimate=estimate, interval=interval, seeds=10)) == text


def test_the_simulation_decides_as_the_claims_do():
    spec = importlib.util.spec_from_file_location("v", Path(__file__).parents[2] / "benchmarks" / "verify_claims.py")
    verify = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(verify)
    for metric in verify.METRICS:
        for seeds in (3, 10):
            samples = verify.draw(metric, seeds, 60)
            low, high = student_interval(samples)
            holds = satisfies(low, high, smallest=metric.mean)
            check = at_least("accuracy", "xrm", metric.mean, bounds=metric.bounds)
            outcomes = [check.evaluate(cell(xrm=[float(value) for value in row])) for row in samples]
            assert [outcome.verdict == "holds" for outcome in outcomes] == holds.tolist()
            assert [outcome.marks != () for outcome in outcomes] == verify.skewed(samples).tolist()
            if metric.bounds is not None:
                above, _ = verify.bounded_refutations(samples, metric.bounds, metric.mean, 0.95)
                marked = [(o.bounded == "holds", bool(a)) for o, a in zip(outcomes, above, strict=True) if o.marks]
                assert all(bounded == refuted for bounded, refuted in marked)


def test_a_variant_is_compared_with_a_weighted_mean_of_others_seed_by_seed() -> None:
    drift = np.linspace(0.0, 0.3, 10)  # common to all variants of a seed: pairing takes it out
    none, whole = [float(0.5 + d) for d in drift], [float(0.7 + d) for d in drift]
    third = [float(0.56 + d + step) for d, step in zip(drift, EVEN, strict=True)]
    check = better_than("accuracy", "third", {"none": 0.5, "whole": 0.5}, higher=False, bounds=(0, 2))
    outcome = check.evaluate(cell(none=none, whole=whole, third=third))
    assert check.variants == ("third", "none", "whole")
    assert check.statement == "accuracy: third - 0.5 none - 0.5 whole < 0"
    assert outcome.verdict == "holds"
    assert outcome.estimate == pytest.approx(-0.04)
    with pytest.raises(ValueError, match="compared with itself"):
        at_least("accuracy", "none", {"none": 1})
