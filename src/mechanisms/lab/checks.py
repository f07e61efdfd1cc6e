"""The rules that decide: means, shares, exact facts, and their conjunctions; built by the functions in `claims`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from mechanisms.lab.outcomes import Number, Outcome, Verdict, join_verdicts
from mechanisms.lab.readings import Missing, Reads, numbers, seed_list, units_of, widen
from mechanisms.lab.records import Cell

# What a metric is compared with: another variant, a number, or several variants with the weight of each.
Than = str | Number | Mapping[str, Number]

ERROR = 0.05  # of each claim, two-sided
ENOUGH_SEEDS = 10  # with fewer, a random claim is provisional
STAGES = (10, 20, 40, 80)  # seeds at which `--until-decided` looks, with the error split over the four looks


@runtime_checkable
class Check(Protocol):
    """What can decide a claim.

    >>> isinstance(ExactCheck("gradient_error", "eqprop", 0.0, 1e-6), Check)
    True
    """

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants whose records it reads."""
        ...

    def evaluate(self, cell: Cell, *, looks: int = 1, share: int = 1) -> Outcome:
        """Decide on the records of a cell; the error of 5 % is split over `looks` stages and `share` joined checks."""
        ...


@dataclass(frozen=True)
class MeanCheck:
    """A mean, or a mean difference paired by seed, lies in a range; made by `at_least` and its kin.

    Args:
        metric, variant, than, bounds: see `at_least`.
        smallest, largest: ends of the range of the mean or difference; infinite where it is open.
        strict: the ends do not belong to the range.

    >>> MeanCheck("loss", "erm", 1.0, -math.inf, 1.0).statement
    'loss: erm <= 1'
    """

    metric: str
    variant: str
    than: Than
    smallest: Number
    largest: Number
    strict: bool = False
    bounds: tuple[Number, Number] | None = None

    def __post_init__(self) -> None:
        ends = [end for end in (self.smallest, self.largest) if not math.isinf(end)]
        if not ends or any(math.isnan(end) for end in ends):
            raise ValueError(f"{self.metric}: compared with {self.than} plus a margin, expected finite numbers")
        if self.variant in self.others:
            raise ValueError(f"{self.metric}: {self.variant!r} is compared with itself; name another variant")
        if self.bounds is not None and not (
            math.isfinite(self.bounds[0]) and math.isfinite(self.bounds[1]) and self.bounds[0] < self.bounds[1]
        ):
            raise ValueError(f"{self.metric}: bounds are {self.bounds}, expected two finite numbers, the smaller first")

    @property
    def others(self) -> Mapping[str, Number]:
        """The variants it is compared with, and the weight of each."""
        if isinstance(self.than, str):
            return {self.than: 1}
        return self.than if isinstance(self.than, Mapping) else {}

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants whose records it reads."""
        return (self.variant, *self.others)

    @property
    def statement(self) -> str:
        """The check in words."""
        weighted = (f"{name}" if weight == 1 else f"{weight:g} {name}" for name, weight in self.others.items())
        subject = " - ".join((self.variant, *weighted))
        if math.isfinite(self.smallest) and math.isfinite(self.largest):
            distance = (self.largest - self.smallest) / 2
            number = self.than if isinstance(self.than, int | float) else None
            centre = "" if number is None else f" {'-' if number >= 0 else '+'} {abs(number):g}"
            return f"{self.metric}: |{subject}{centre}| <= {distance:g}"
        sign, end = (">", self.smallest) if math.isfinite(self.smallest) else ("<", self.largest)
        return f"{self.metric}: {subject} {sign}{'' if self.strict else '='} {end:g}"

    def evaluate(self, cell: Cell, *, looks: int = 1, share: int = 1) -> Outcome:
        """Decide on the records of a cell; the error of 5 % is split over `looks` stages and `share` joined checks."""
        from mechanisms.lab import statistics  # with NumPy and SciPy: recipes that only name checks stay light

        confidence = _confidence(looks, share)
        try:
            found, marks = numbers(cell, self.metric, self.variants)
        except Missing as problem:
            return Outcome("not run", self.statement, confidence=confidence, marks=(str(problem),))
        # Columns are the variants; a difference is the first minus the weighted others.
        weights = list(self.others.values())
        by_seed = {
            seed: row[0] - sum(weight * value for weight, value in zip(weights, row[1:], strict=True))
            for seed, row in found.items()
        }
        diverged = [seed for seed, value in by_seed.items() if not math.isfinite(value)]
        sample = [value for value in by_seed.values() if math.isfinite(value)]
        if diverged:
            marks.append(f"diverged: {seed_list(diverged)}")
        interval, bounded, verdict = None, None, "undecided"
        if len(sample) >= 2:
            interval = _ends(statistics.student_interval(sample, confidence))
            verdict = self._judge(interval, bool(diverged))
            marks += [
                name
                for name, rule in (("zero variance", statistics.zero_variance), ("skewed", statistics.skewed))
                if rule(sample)
            ]
            if self.bounds is not None and {"zero variance", "skewed"} & set(marks):
                bounded = self._bounded(sample, marks, confidence, bool(diverged))
        elif len(sample) == 1:
            marks.append("one seed: no interval")
        return Outcome(
            verdict=verdict,
            statement=self.statement,
            estimate=math.fsum(sample) / len(sample) if sample else None,
            interval=interval,
            confidence=confidence,
            seeds=len(sample),
            provisional=len(sample) < ENOUGH_SEEDS,
            marks=tuple(marks),
            bounded=bounded,
        )

    def _judge(self, interval: tuple[float, float], diverged: bool) -> Verdict:
        from mechanisms.lab import statistics  # with NumPy and SciPy: recipes that only name checks stay light

        # What a diverged run would have measured is unknown, so the others decide nothing.
        if diverged:
            return "undecided"
        return _verdict(
            statistics.satisfies(*interval, self.smallest, self.largest, strict=self.strict),
            statistics.violates(*interval, self.smallest, self.largest, strict=self.strict),
        )

    def _bounded(self, sample: list[float], marks: list[str], confidence: float, diverged: bool) -> Verdict | None:
        from mechanisms.lab import statistics  # with NumPy and SciPy: recipes that only name checks stay light

        assert self.bounds is not None
        low, high = self.bounds
        smallest = low - sum(max(weight * low, weight * high) for weight in self.others.values())
        largest = high - sum(min(weight * low, weight * high) for weight in self.others.values())
        try:
            return self._judge(_ends(statistics.bounded_interval(sample, (smallest, largest), confidence)), diverged)
        except ValueError:
            marks.append(f"values outside the bounds {self.bounds}")
            return None


@dataclass(frozen=True)
class ShareCheck:
    """A share of units or seeds; made by `share_at_least` (with a metric) and `predicate` (with a function).

    >>> ShareCheck("recovered: share of meta >= 0.5", ("meta",), 0.5, metric="recovered").variants
    ('meta',)
    """

    statement: str
    variants: tuple[str, ...]
    share: Number
    metric: str | None = None
    function: Callable[[Mapping[str, Mapping[str, Any]]], bool] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"{self.statement}: the share is {self.share}, expected a number from 0 to 1")
        if not self.variants:
            raise ValueError(f"{self.statement}: name the variants whose metrics are read")

    def evaluate(self, cell: Cell, *, looks: int = 1, share: int = 1) -> Outcome:
        """Decide on the records of a cell; the error of 5 % is split over `looks` stages and `share` joined checks."""
        from mechanisms.lab import statistics  # with NumPy and SciPy: recipes that only name checks stay light

        confidence = _confidence(looks, share)
        try:
            found, marks = self._by_seed(cell)
        except Missing as problem:
            return Outcome("not run", self.statement, confidence=confidence, marks=(str(problem),))
        units = [unit for row in found.values() for unit in row]
        finite = [unit for unit in units if math.isfinite(unit)]
        diverged = [seed for seed, row in found.items() if not all(map(math.isfinite, row))]
        interval, verdict = None, "undecided"
        if finite:
            interval = _ends(statistics.clopper_pearson(sum(finite), len(finite), confidence))
            verdict = _verdict(statistics.satisfies(*interval, self.share), statistics.violates(*interval, self.share))
        if diverged:
            marks.append(f"diverged: {seed_list(diverged)}")
            # Never *holds*; *fails* only where it would fail had every diverged unit succeeded.
            best = sum(finite) + len(units) - len(finite)
            fails = statistics.violates(*statistics.clopper_pearson(best, len(units), confidence), self.share)
            verdict = "fails" if fails else "undecided"
        seeds = sum(any(map(math.isfinite, row)) for row in found.values())
        return Outcome(
            verdict=verdict,
            statement=self.statement,
            estimate=sum(finite) / len(finite) if finite else None,
            interval=interval,
            confidence=confidence,
            seeds=seeds,
            units=len(finite),
            provisional=seeds < ENOUGH_SEEDS,
            marks=tuple(marks),
        )

    def _by_seed(self, cell: Cell) -> tuple[dict[int, list[float]], list[str]]:
        """The units of every seed: 1 for a success, 0 for none, NaN for what diverged."""
        if self.function is not None:
            return self._by_function(cell, self.function)
        assert self.metric is not None
        found, marks = units_of(cell, self.metric, self.variants[0])
        for seed, row in found.items():
            odd = [unit for unit in row if math.isfinite(unit) and unit not in (0, 1)]
            if odd:
                raise Missing(f"metric {self.metric!r} of seed {seed} has the value {odd[0]:g}, expected 0 or 1")
        return found, marks

    def _by_function(self, cell: Cell, function: Callable) -> tuple[dict[int, list[float]], list[str]]:
        metrics = {name: {record.seed: record.metrics for record in cell.of(name)} for name in self.variants}
        for name, runs in metrics.items():
            if not runs:
                raise Missing(f"no records of {name}")
        seeds = sorted(set.intersection(*(set(runs) for runs in metrics.values())))
        if not seeds:
            raise Missing(f"no seed has records of all of {', '.join(self.variants)}")
        left_out = len(set.union(*(set(runs) for runs in metrics.values()))) - len(seeds)
        marks = [f"{left_out} unpaired seed{'s' * (left_out != 1)} left out"] if left_out else []
        found = {}
        for seed in seeds:
            reads = {name: Reads(widen(runs[seed])) for name, runs in metrics.items()}
            try:
                answer = function(reads)
            except KeyError as error:
                raise Missing(f"metric {error} is missing in seed {seed}") from None
            if type(answer).__name__ not in ("bool", "bool_"):  # Python's and NumPy's
                raise TypeError(f"{self.statement}: the function returned {answer!r}, expected True or False")
            found[seed] = [math.nan if any(read.diverged for read in reads.values()) else float(answer)]
        return found, marks


@dataclass(frozen=True)
class ExactCheck:
    """A fact without randomness; made by `exactly`.

    >>> ExactCheck("gradient_error", "eqprop", 0.0, 1e-6).variants
    ('eqprop',)
    """

    metric: str
    variant: str
    value: Number
    tolerance: Number

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(f"exactly({self.metric!r}): tolerance is {self.tolerance}, expected 0 or more")
        if not math.isfinite(self.value):
            raise ValueError(f"exactly({self.metric!r}): value is {self.value}, expected a finite number")

    @property
    def variants(self) -> tuple[str, ...]:
        """The variant whose records it reads."""
        return (self.variant,)

    @property
    def statement(self) -> str:
        """The check in words."""
        return f"{self.metric}: {self.variant} = {self.value:g} ± {self.tolerance:g}"

    def evaluate(self, cell: Cell, *, looks: int = 1, share: int = 1) -> Outcome:
        """Decide on the records of a cell; there is no error to split, so `looks` and `share` change nothing."""
        try:
            found, marks = units_of(cell, self.metric, self.variant)
        except Missing as problem:
            return Outcome("not run", self.statement, marks=(str(problem),))
        diverged = [seed for seed, row in found.items() if not all(map(math.isfinite, row))]
        finite = [unit for row in found.values() for unit in row if math.isfinite(unit)]
        if diverged:
            marks.append(f"diverged: {seed_list(diverged)}")
        worst = max(finite, key=lambda unit: abs(unit - self.value)) if finite else None
        if worst is not None and abs(worst - self.value) > self.tolerance:
            verdict = "fails"  # one run that violates a fact refutes it, whatever the others did
        else:
            verdict = "undecided" if diverged else "holds"
        return Outcome(verdict, self.statement, estimate=worst, seeds=len(found), marks=tuple(marks))


@dataclass(frozen=True)
class AllOf:
    """Checks that must hold together; made by `all_of`.

    >>> AllOf((ExactCheck("error", "eqprop", 0.0, 1e-6), ExactCheck("error", "bptt", 0.0, 1e-6))).variants
    ('eqprop', 'bptt')
    """

    checks: tuple[Check, ...]

    def __post_init__(self) -> None:
        if not self.checks:
            raise ValueError("all_of joins checks, but none was given")

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants the parts read, each once."""
        return tuple(dict.fromkeys(variant for check in self.checks for variant in check.variants))

    @property
    def statement(self) -> str:
        """The parts in words."""
        return "; and ".join(getattr(check, "statement", str(check)) for check in self.checks)

    def evaluate(self, cell: Cell, *, looks: int = 1, share: int = 1) -> Outcome:
        """Decide on the records of a cell; the error of 5 % is split over `looks` stages and `share` joined checks."""
        parts = tuple(check.evaluate(cell, looks=looks, share=share * len(self.checks)) for check in self.checks)
        judged = any(part.bounded is not None for part in parts)
        return Outcome(
            verdict=join_verdicts([part.verdict for part in parts]),
            statement=self.statement,
            confidence=_confidence(looks, share),
            seeds=min(part.seeds for part in parts),
            provisional=any(part.provisional for part in parts),
            marks=tuple(dict.fromkeys(mark for part in parts for mark in part.marks)),
            bounded=join_verdicts([part.bounded or part.verdict for part in parts]) if judged else None,
            parts=parts,
        )


def _confidence(looks: int, share: int) -> float:
    if looks < 1 or share < 1:
        raise ValueError(f"the error is split over {looks} looks and {share} checks; expected 1 or more of each")
    return 1 - ERROR / (looks * share)


def _ends(interval: tuple[Any, Any]) -> tuple[float, float]:
    return float(interval[0]), float(interval[1])


def _verdict(holds: Any, fails: Any) -> Verdict:
    return "holds" if holds else "fails" if fails else "undecided"
