"""What the records say of a check: a verdict with its figures, and the words that the ledger and the report share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "fails", "undecided", "not run"]
Number = float | int


@dataclass(frozen=True)
class Outcome:
    """What the records say of a check.

    Attributes:
        verdict: *holds* when the whole interval satisfies the check, *fails* when the whole interval violates it,
            *undecided* otherwise, *not run* when there are no records.
        statement: the check in words, for example "worst_group_accuracy: xrm - oracle >= -0.03".
        estimate: the mean (of the paired difference), the share, or the exact value; None when not run.
        interval: its confidence interval; None for exact facts.
        confidence: of that interval (0.95, or more where the error is split).
        seeds: how many seeds it rests on.
        units: how many independent units, for shares.
        provisional: the claim is random and rests on fewer than ten seeds.
        marks: what to know before believing it, for example "zero variance", "skewed", "2 unpaired seeds left out".
        bounded: the verdict by an exact interval for bounded means, where the sample is marked and the metric bounded.
        parts: the outcomes joined by `all_of`.

    >>> Outcome("holds", "accuracy: xrm >= 0.6", estimate=0.7, interval=(0.65, 0.75), seeds=10).verdict
    'holds'
    """

    verdict: Verdict
    statement: str
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    confidence: float = 0.95
    seeds: int = 0
    units: int | None = None
    provisional: bool = False
    marks: tuple[str, ...] = ()
    bounded: Verdict | None = None
    parts: tuple[Outcome, ...] = ()


def join_verdicts(verdicts: list[Verdict]) -> Verdict:
    """The verdict of a conjunction: one that fails settles it, then one that was not run.

    >>> join_verdicts(["holds", "undecided"]), join_verdicts(["not run", "fails"])
    ('undecided', 'fails')
    """
    for verdict in ("fails", "not run", "undecided"):
        if verdict in verdicts:
            return verdict
    return "holds"


def verdict_label(outcome: Outcome) -> str:
    """The verdict as it is shown, with "(provisional)" behind it where fewer than ten seeds made it.

    >>> verdict_label(Outcome("holds", "accuracy: xrm >= 0.6", seeds=5, provisional=True))
    'holds (provisional)'
    """
    return f"{outcome.verdict} (provisional)" if outcome.provisional else outcome.verdict


def describe(outcome: Outcome) -> str:
    """The measured figures in one line; joined outcomes one after the other.

    >>> describe(Outcome("undecided", "", estimate=-0.0264, interval=(-0.064, -0.003), seeds=10))
    '−0.026 [−0.064, −0.003], 10 seeds'
    >>> describe(Outcome("holds", "", estimate=0.95, interval=(0.903, 0.978), seeds=10, units=160))
    '0.950 [0.903, 0.978], 160 units of 10 seeds'
    >>> describe(Outcome("not run", ""))
    '—'
    """
    if outcome.parts:
        return "; ".join(describe(part) for part in outcome.parts)
    if outcome.estimate is None:
        return "—"
    seeds = f"{outcome.seeds} seed{'s' * (outcome.seeds != 1)}"
    if outcome.units is not None:
        seeds = f"{outcome.units} unit{'s' * (outcome.units != 1)} of {seeds}"
    if outcome.interval is None:
        return f"{_number(outcome.estimate, None)}, {seeds}"
    low, high = outcome.interval
    decimals = _decimals((high - low) / 2)
    level = "" if outcome.confidence == 0.95 else f" at {outcome.confidence * 100:.4g} %"
    low_text, high_text = _number(low, decimals), _number(high, decimals)
    return f"{_number(outcome.estimate, decimals)} [{low_text}, {high_text}]{level}, {seeds}"


def _decimals(half: float) -> int | None:
    """Decimals that show two digits of an interval's half-width; None where plain decimals would not do."""
    if not math.isfinite(half) or half <= 0:
        return None
    decimals = 1 - math.floor(math.log10(half))
    return None if decimals > 7 else max(decimals, 0)


def _number(value: float, decimals: int | None) -> str:
    text = f"{value:.4g}" if decimals is None else f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", "−")
