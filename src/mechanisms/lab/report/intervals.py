"""A confidence interval as a small inline picture: the estimate, its interval, and the side on which a claim holds."""

from __future__ import annotations

import math
import re

from markupsafe import Markup, escape

from mechanisms.lab.outcomes import Outcome, describe

WIDTH, HEIGHT, EDGE = 168, 26, 6

_NUMBER = r"([-−+]?\d+(?:\.\d+)?(?:[eE][-−+]?\d+)?)"
_BOUND = re.compile(rf"(>=|<=|≥|≤|>|<)\s*{_NUMBER}\s*$")
_WITHIN = re.compile(rf"\|[^|]*?(?: - {_NUMBER})?\|\s*(?:<=|≤|<)\s*{_NUMBER}\s*$")
_EXACT = re.compile(rf"=\s*{_NUMBER}\s*±\s*{_NUMBER}\s*$")


def region(statement: str) -> tuple[float, float] | None:
    """Where the estimate of a check has to lie, read from the statement's last comparison; None when it has none.

    >>> region("accuracy: xrm - oracle >= -0.03"), region("accuracy: |xrm - oracle| <= 0.1")
    ((-0.03, inf), (-0.1, 0.1))
    >>> region("rate: |xrm - 0.5| <= 0.25"), region("gap: free = 1 ± 0.5"), region("it looks fine")
    ((0.25, 0.75), (0.5, 1.5), None)
    """
    if found := _WITHIN.search(statement) or _EXACT.search(statement):
        centre, size = (float((text or "0").replace("−", "-")) for text in found.groups())
        return centre - size, centre + size
    if found := _BOUND.search(statement):
        value = float(found[2].replace("−", "-"))
        return (-math.inf, value) if found[1] in ("<=", "≤", "<") else (value, math.inf)
    return None


def interval_plot(outcome: Outcome) -> Markup:
    """The outcome as an inline SVG; empty when there is nothing finite to draw.

    >>> "at least -0.03" in interval_plot(Outcome("holds", "gap >= -0.03", 0.1, (0.0, 0.2), seeds=10)).replace("−", "-")
    True
    """
    if outcome.estimate is None or not math.isfinite(outcome.estimate):
        return Markup("")
    wanted = region(outcome.statement)
    interval = outcome.interval or (outcome.estimate, outcome.estimate)
    points = [outcome.estimate, *interval, *(wanted or ())]
    finite = [point for point in points if math.isfinite(point)]
    low, high = min(finite), max(finite)
    margin = 0.18 * (high - low) or abs(low) * 0.1 or 1.0
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return round(EDGE + share * (WIDTH - 2 * EDGE), 1)

    middle = HEIGHT / 2
    parts = []
    label = describe(outcome)
    if wanted is not None:
        left, right = (place(edge) for edge in wanted)
        left, right = (0 if wanted[0] == -math.inf else left), (WIDTH if wanted[1] == math.inf else right)
        parts.append(f'<rect class="wanted" x="{left}" y="0" width="{round(right - left, 1)}" height="{HEIGHT}"/>')
        parts += [
            f'<line class="threshold" x1="{place(edge)}" x2="{place(edge)}" y1="0" y2="{HEIGHT}"/>'
            for edge in wanted
            if math.isfinite(edge)
        ]
        label += "; holds where " + " and ".join(
            f"{side} {edge:g}"
            for side, edge in zip(("at least", "at most"), wanted, strict=True)
            if math.isfinite(edge)
        )
    start, end = place(interval[0]), place(interval[1])
    if outcome.interval is not None:
        parts.append(f'<line class="interval" x1="{start}" x2="{end}" y1="{middle}" y2="{middle}"/>')
        parts += [f'<line class="cap" x1="{x}" x2="{x}" y1="{middle - 5}" y2="{middle + 5}"/>' for x in (start, end)]
    parts.append(f'<circle class="estimate" cx="{place(outcome.estimate)}" cy="{middle}" r="4"/>')
    verdict = outcome.verdict.replace(" ", "-")
    # Every number above is ours; the verdict and the label are escaped like any other text.
    return Markup('<svg class="interval-plot {}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        escape(verdict), WIDTH, HEIGHT, label, Markup("".join(parts))
    )
