"""Claims, decided from records: *holds*, *fails*, *undecided* or *not run*, never eyeballed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from mechanisms.lab.records import Cell

Verdict = Literal["holds", "fails", "undecided", "not run"]


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
        marks: what to know before believing it, for example "zero variance", "skewed", "unpaired seeds left out".
        bounded: the verdict by an exact interval for bounded means, where the sample is marked and the metric bounded.
        parts: the outcomes joined by `all_of`.
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


class Check(Protocol):
    """What can decide a claim."""

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants whose records it reads."""
        ...

    def evaluate(self, cell: Cell, *, looks: int = 1, share: int = 1) -> Outcome:
        """Decide on the records of a cell; the error of 5 % is split over `looks` stages and `share` joined checks."""
        ...


@dataclass(frozen=True)
class Claim:
    """A statement of the paper and the check that decides it here.

    Args:
        text: the claim in words.
        check: what decides it.
        published: the paper's figure, with its source.
        scales: the scales whose records decide it; "smoke" only shows that the road is open.
        note: what a reader should know: an expected verdict, a finding against the paper.
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
