"""Claims, decided from records: *holds*, *fails*, *undecided* or *not run*, never eyeballed.

Random claims rest on a two-sided 95 % interval: Student's for means and paired differences, Clopper and Pearson's for
shares. *Holds* when the whole interval satisfies the claim, *fails* when the whole interval violates it, *undecided*
otherwise. Exact claims rest on a tolerance. `docs/guides/verdicts.md` shows how often this errs.

>>> from mechanisms.lab.records import Cell, Record
>>> accuracy = {"xrm": [0.87, 0.88, 0.86, 0.88], "oracle": [0.88, 0.88, 0.87, 0.88]}
>>> records = [Record("xrm", "digits", "laptop", variant, 10 + seed, {}, {"accuracy": value})
...            for variant, values in accuracy.items() for seed, value in enumerate(values)]
>>> outcome = at_least("accuracy", "xrm", "oracle", margin=-0.03).evaluate(Cell("xrm", "digits", "laptop", {}, records))
>>> print(verdict_label(outcome), "|", outcome.statement, "|", describe(outcome))
holds (provisional) | accuracy: xrm - oracle >= -0.03 | −0.0050 [−0.0142, 0.0042], 4 seeds
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mechanisms.lab.checks import STAGES as STAGES
from mechanisms.lab.checks import AllOf, ExactCheck, MeanCheck, ShareCheck, Than
from mechanisms.lab.checks import Check as Check
from mechanisms.lab.outcomes import Number
from mechanisms.lab.outcomes import Outcome as Outcome
from mechanisms.lab.outcomes import Verdict as Verdict
from mechanisms.lab.outcomes import describe as describe
from mechanisms.lab.outcomes import verdict_label as verdict_label


@dataclass(frozen=True)
class Claim:
    """A statement of the paper and the check that decides it here.

    Args:
        text: the claim in words.
        check: what decides it.
        published: the paper's figure, with its source.
        scales: the scales whose records decide it; "smoke" only shows that the road is open.
        note: what a reader should know: an expected verdict, a finding against the paper.

    >>> Claim("XRM needs no human environments", at_least("accuracy", "xrm", "oracle", margin=-0.03)).variants
    ('xrm', 'oracle')
    """

    text: str
    check: Check
    published: str = ""
    scales: tuple[str, ...] = ("laptop", "paper")
    note: str = ""

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants the check reads."""
        return self.check.variants


def at_least(
    metric: str, variant: str, than: Than, margin: Number = 0.0, bounds: tuple[Number, Number] | None = None
) -> MeanCheck:
    """The mean of a metric is at least that of another variant, or a number, plus a margin.

    Args:
        metric: its name in the records; a list counts as the mean of its units.
        variant: whose metric.
        than: another variant, a number, or several variants with the weight of each, `{"erm": 0.5, "oracle": 0.5}`;
            variants are compared seed by seed.
        margin: added to what it is compared with; -0.03 allows three points less.
        bounds: smallest and largest possible value of the metric, for example (0, 1). Marked samples are then also
            judged by an interval that is exact for bounded means.

    Raises:
        ValueError: a margin or number that is not finite, bounds in the wrong order, or a variant compared with itself.

    >>> at_least("worst_group_accuracy", "xrm", "oracle", margin=-0.03).statement
    'worst_group_accuracy: xrm - oracle >= -0.03'
    >>> at_least("worst_group_accuracy", "xrm", 0.6).statement
    'worst_group_accuracy: xrm >= 0.6'
    """
    threshold = than + margin if isinstance(than, int | float) else margin
    return MeanCheck(metric, variant, than, threshold, math.inf, bounds=bounds)


def at_most(
    metric: str, variant: str, than: Than, margin: Number = 0.0, bounds: tuple[Number, Number] | None = None
) -> MeanCheck:
    """The mean of a metric is at most that of another variant, or a number, plus a margin; see `at_least`.

    >>> at_most("false_positive_rate", "xrm", 0.03).statement
    'false_positive_rate: xrm <= 0.03'
    """
    threshold = than + margin if isinstance(than, int | float) else margin
    return MeanCheck(metric, variant, than, -math.inf, threshold, bounds=bounds)


def better_than(
    metric: str, variant: str, than: Than, higher: bool = True, bounds: tuple[Number, Number] | None = None
) -> MeanCheck:
    """The mean of a metric is strictly above that of another variant or a number; below it if `higher` is False.

    >>> better_than("loss", "xrm", "erm", higher=False).statement
    'loss: xrm - erm < 0'
    >>> better_than("accuracy", "jtt", {"erm": 0.5, "oracle": 0.5}).statement  # closes more than half of the gap
    'accuracy: jtt - 0.5 erm - 0.5 oracle > 0'
    """
    threshold = than if isinstance(than, int | float) else 0.0
    low, high = (threshold, math.inf) if higher else (-math.inf, threshold)
    return MeanCheck(metric, variant, than, low, high, strict=True, bounds=bounds)


def close_to(
    metric: str, variant: str, than: Than, within: Number, bounds: tuple[Number, Number] | None = None
) -> MeanCheck:
    """The mean of a metric lies within a distance of another variant's, or of a number.

    Raises:
        ValueError: `within` is negative or not finite, beside what `at_least` raises.

    >>> close_to("accuracy", "xrm", "oracle", within=0.03).statement
    'accuracy: |xrm - oracle| <= 0.03'
    """
    if not (math.isfinite(within) and within >= 0):
        raise ValueError(f"close_to({metric!r}): within is {within}, expected a distance of 0 or more")
    centre = than if isinstance(than, int | float) else 0.0
    return MeanCheck(metric, variant, than, centre - within, centre + within, bounds=bounds)


def share_at_least(metric: str, variant: str, share: Number) -> ShareCheck:
    """At least a share of independent units succeed, by an exact interval over all units of all deciding seeds.

    Args:
        metric: 0 or 1 (or a truth value) for a seed, or a list of them, one for each unit (world, graph, spline).
        variant: whose metric.
        share: the share that is claimed, between 0 and 1.

    Raises:
        ValueError: a share outside [0, 1].

    >>> share_at_least("recovered", "meta", 0.95).statement
    'recovered: share of meta >= 0.95'
    """
    return ShareCheck(f"{metric}: share of {variant} >= {share:g}", (variant,), share, metric=metric)


def predicate(
    function: Callable[[Mapping[str, Mapping[str, Any]]], bool],
    variants: tuple[str, ...],
    text: str,
    share: Number = 0.5,
) -> ShareCheck:
    """Something that is true or false of one seed is true of at least a share of seeds, by an exact interval.

    Args:
        function: takes one seed's metrics, `{variant: {metric: value}}`, and returns a truth value. Values that are not
            finite count as diverged where they are read by name (`metrics["xrm"]["accuracy"]` or `.get`).
        variants: whose metrics it reads; seeds that lack one of them are left out.
        text: the fact in words.
        share: the share of seeds that is claimed, between 0 and 1.

    Raises:
        ValueError: a share outside [0, 1], or variants that are not a tuple of at least one name.

    >>> predicate(lambda seed: seed["xrm"]["f1"] > seed["erm"]["f1"], ("xrm", "erm"), "flips help").statement
    'flips help, in a share of seeds >= 0.5'
    """
    if isinstance(variants, str):
        raise ValueError(f"{text}: variants is {variants!r}, expected a tuple of names; write ({variants!r},)")
    return ShareCheck(f"{text}, in a share of seeds >= {share:g}", tuple(variants), share, function=function)


def exactly(metric: str, variant: str, value: Number, tolerance: Number) -> ExactCheck:
    """A fact without randomness: every run measures the value, within a tolerance; one run suffices.

    Args:
        metric: a number, or a list of which every number must satisfy it.
        variant: whose metric.
        value: what it must be.
        tolerance: the largest difference that is allowed, 0 or more.

    Raises:
        ValueError: a tolerance that is negative or not finite, or a value that is not finite.

    >>> exactly("gradient_error", "eqprop", 0.0, tolerance=1e-6).statement
    'gradient_error: eqprop = 0 ± 1e-06'
    """
    return ExactCheck(metric, variant, value, tolerance)


def all_of(*checks: Check) -> AllOf:
    """Several checks at once: *holds* if all hold, *fails* if one fails, else *not run* if one was not run.

    The error is split evenly over the parts (Bonferroni); a part that is joined itself splits its own again.

    Raises:
        ValueError: no checks.

    >>> all_of(at_least("accuracy", "xrm", 0.6), at_most("accuracy", "erm", 0.2)).statement
    'accuracy: xrm >= 0.6; and accuracy: erm <= 0.2'
    """
    return AllOf(tuple(checks))
