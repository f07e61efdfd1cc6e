"""What an evaluation by attacks found: accuracy by budget, and whether the gradients can be believed.

Robust accuracy from attacks is an upper bound: an attack that fails proves nothing. A defence that hides its gradients
makes gradient attacks fail, and looks robust (Athalye, Carlini and Wagner 2018, arXiv 1802.00420). So a report carries
checks, each with what should hold of sound gradients, what was found, and a verdict; a report with a failed check says
*masking suspected*, and its figures are not to be quoted as robustness.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

__all__ = ["MaskingCheck", "RobustnessReport"]

Verdict = Literal["passes", "fails", "not run"]


@dataclass(frozen=True)
class MaskingCheck:
    """One check on the gradients that the attacks relied on.

    Args:
        name: short, words joined by dashes.
        expected: what holds of a model whose gradients can be believed, with the allowance for noise.
        found: the figures in words.
        verdict: "passes", "fails" or "not run".
        figures: the figures by name.

    >>> MaskingCheck("more-steps", "100 steps break as many as 40", "0.41 after 40, 0.41 after 100", "passes").verdict
    'passes'
    """

    name: str
    expected: str
    found: str
    verdict: Verdict
    figures: Mapping[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class RobustnessReport:
    """Accuracy of a classifier under attack, by budget, and the checks on gradient masking.

    Args:
        clean_accuracy: share of the examples that are classified rightly without an attack.
        robust_accuracy: share that no attack broke, by budget in increasing order: an upper bound of the true one.
        after: for each attack, in the order in which they were run, the share that it and those before it left.
        correct: (budgets, n) for each example 1 where it withstood everything, else 0; for randomised models the share
            of draws in which the worst input that was found is classified rightly.
        checks: on gradient masking; empty where none were asked for.
        checked_eps: the budget at which they were made.
        restarts: rounds of the attacks with random starts.
        steps: steps of the gradient attacks.
        queries: queries of the black-box attack for each example.
        draws: how many draws of a randomised model were averaged in the attacks and the judgement; 1 if it is not one.
        randomised: whether two passes over the same inputs differ.
        seed: everything random followed from it.
        complete: false while the evaluation goes on; the figures so far are upper bounds too.
        notes: what was left out, and why.
        examples: (budgets, n, ...) the worst inputs found, where they were asked for.

    >>> report = RobustnessReport(0.9, {0.1: 0.5}, {"pgd": {0.1: 0.5}}, correct=Tensor([[1.0, 0.0]]))
    >>> report.at(0.1), report.masked is None
    (0.5, True)
    """

    clean_accuracy: float
    robust_accuracy: Mapping[float, float]
    after: Mapping[str, Mapping[float, float]]
    correct: Tensor = field(repr=False)
    checks: tuple[MaskingCheck, ...] = ()
    checked_eps: float | None = None
    restarts: int = 1
    steps: int = 100
    queries: int = 0
    draws: int = 1
    randomised: bool = False
    seed: int = 0
    complete: bool = True
    notes: tuple[str, ...] = ()
    examples: Tensor | None = field(default=None, repr=False)

    @property
    def images(self) -> int:
        """How many examples were attacked."""
        return self.correct.shape[1]

    @property
    def masked(self) -> bool | None:
        """True when a check failed, false when all that were run passed, None when none were run."""
        verdicts = {check.verdict for check in self.checks} - {"not run"}
        return "fails" in verdicts if verdicts else None

    def at(self, eps: float | int) -> float:
        """Robust accuracy at one of the budgets.

        Raises:
            KeyError: none of them; the message lists those there are.
        """
        for budget, accuracy in self.robust_accuracy.items():
            if math.isclose(budget, eps, rel_tol=1e-9, abs_tol=1e-12):
                return accuracy
        raise KeyError(f"no budget {eps}; the report has {', '.join(f'{budget:g}' for budget in self.robust_accuracy)}")

    def interval(self, eps: float | int) -> tuple[float, float]:
        """95 % interval of the robust accuracy at a budget, for examples drawn at random (Wilson's).

        >>> report = RobustnessReport(1.0, {0.1: 0.5}, {}, correct=Tensor([[1.0, 0.0] * 200]))
        >>> [round(end, 3) for end in report.interval(0.1)]
        [0.451, 0.549]
        """
        share, n, z = self.at(eps), self.images, 1.959964
        centre = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def rows(self) -> list[dict[str, float]]:
        """The table: one dictionary for each budget; an attack that has not been run yet is left out of it."""
        return [
            {"eps": eps, "clean": self.clean_accuracy}
            | {f"after {attack}": left[eps] for attack, left in self.after.items() if eps in left}
            | dict(zip(("robust", "low", "high"), (accuracy, *self.interval(eps)), strict=True))
            for eps, accuracy in self.robust_accuracy.items()
        ]

    def heads(self) -> list[str]:
        """The table's columns, in order."""
        return ["eps", "clean", *(f"after {attack}" for attack in self.after), "robust", "low", "high"]

    def verdict(self) -> str:
        """The checks in one line.

        >>> RobustnessReport(1.0, {0.1: 0.5}, {}, correct=Tensor([[1.0, 0.0]])).verdict()
        'gradient masking was not checked'
        """
        failed = [check.name for check in self.checks if check.verdict == "fails"]
        if failed:
            return f"gradient masking suspected: {', '.join(failed)}; do not quote these figures as robustness"
        if self.masked is None:
            return "gradient masking was not checked"
        left = [check.name for check in self.checks if check.verdict == "not run"]
        return "no sign of gradient masking" + (f" (not run: {', '.join(left)})" if left else "")

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain numbers and texts, without what was kept for each example."""
        return {
            "images": self.images,
            "clean_accuracy": self.clean_accuracy,
            "table": self.rows(),
            "verdict": self.verdict(),
            "masked": self.masked,
            "checked_eps": self.checked_eps,
            "checks": [
                {
                    "name": check.name,
                    "verdict": check.verdict,
                    "expected": check.expected,
                    "found": check.found,
                    # JSON has no infinite numbers and no NaN.
                    "figures": {name: value if math.isfinite(value) else None for name, value in check.figures.items()},
                }
                for check in self.checks
            ],
            "settings": {
                "attacks": list(self.after),
                "restarts": self.restarts,
                "steps": self.steps,
                "queries": self.queries,
                "draws": self.draws,
                "randomised": self.randomised,
                "seed": self.seed,
            },
            "complete": self.complete,
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def to_markdown(self) -> str:
        """The table of accuracies and the table of checks."""
        rows, heads = self.rows(), self.heads()
        lines = [_line(heads), _line(["---:"] * len(heads))]
        lines += [
            _line([f"{row['eps']:g}", *(f"{row[head]:.4f}" if head in row else "" for head in heads[1:])])
            for row in rows
        ]
        if self.checks:
            lines += ["", f"Checks on gradient masking, at eps {self.checked_eps:g}: {self.verdict()}.", ""]
            lines += [_line(["check", "expected", "found", "verdict"]), _line(["---"] * 4)]
            lines += [_line([check.name, check.expected, check.found, check.verdict]) for check in self.checks]
        notes = (
            [*self.notes] if self.complete else [*self.notes, "not complete: figures so far, which are upper bounds"]
        )
        lines += [line for note in notes for line in ("", f"Note: {note}.")]
        return "\n".join(lines) + "\n"

    def summary(self) -> str:
        """A few lines to print.

        >>> print(RobustnessReport(1.0, {0.1: 0.5}, {}, correct=Tensor([[1.0, 0.0]])).summary())
        clean accuracy 1.000 on 2 images
        eps 0.1: at most 0.500 withstand every attack (95 % 0.095 to 0.905)
        gradient masking was not checked
        """
        lines = [f"clean accuracy {self.clean_accuracy:.3f} on {self.images} images"]
        for eps, accuracy in self.robust_accuracy.items():
            low, high = self.interval(eps)
            lines.append(f"eps {eps:g}: at most {accuracy:.3f} withstand every attack (95 % {low:.3f} to {high:.3f})")
        lines += [f"{check.name} {check.verdict}: {check.found}" for check in self.checks if check.verdict == "fails"]
        return "\n".join([*lines, self.verdict(), *(f"note: {note}" for note in self.notes)])


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
