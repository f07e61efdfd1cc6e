"""Checks on gradient masking: what holds of gradients that can be believed, and whether it holds here.

After Athalye, Carlini and Wagner (2018, arXiv 1802.00420, section 3.1) and Carlini et al. (2019, arXiv 1902.06705).
Allowances are for noise of the examples alone, and are the same everywhere: a check fails when what was found has a
probability below `ALPHA` if what is expected were true. Attacks are compared on the same examples, by the ones that
only one of two attacks broke (exact binomial test of McNemar's table).
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechanisms.robust._attacked import MANY, Attacked, Worst
from mechanisms.robust._attacks import ATTACKS, GRADIENT, Effort, Seen, fast_gradient, projected_gradient
from mechanisms.robust._running import Progress, carry_out
from mechanisms.robust.robustness_report import MaskingCheck, Verdict

ALPHA = 0.001
NORMAL = 3.0902  # of which a standard normal number exceeds so much with probability ALPHA
FEW, MORE = 40, 100  # steps
LEFT = 0.01  # share that an attack without a budget may leave
ALONE = 0.05  # share that an attack without gradients may break alone
FLAT = 0.05  # share of examples without a gradient
BUDGETS = (0.25, 0.5, 1.0, 2.0)  # in units of the checked budget; the whole box comes last


@dataclass(frozen=True)
class Question:
    """What is checked.

    Args:
        attacked: the classifier and the examples.
        seen: the same as the attacks see it.
        surrogate: another classifier, whose adversarial inputs are tried too.
        worst: the ensemble's outcome at the budget of the checks; what the checks find is proposed to it.
        clean: share of draws in which each clean example is classified rightly.
        attacks: names of the ensemble's attacks.
        effort: of the ensemble.
        restarts: starts of the attack without a budget.
    """

    attacked: Attacked
    seen: Seen
    surrogate: Seen | None
    worst: Worst
    clean: Float[Tensor, " n"]
    attacks: tuple[str, ...]
    effort: Effort
    restarts: int


def masking_checks(question: Question, progress: Progress) -> Iterator[MaskingCheck]:
    """The checks, each as soon as it is made."""
    rows = (question.clean >= 0.5).nonzero().flatten()
    yield _randomness(question.attacked)
    if not len(rows):
        return
    found = _Found(question, rows, progress)
    yield found.vanishing_gradients()
    yield found.fast_gradient()
    yield found.more_steps()
    yield found.growing_loss()
    yield found.unbounded()
    yield found.black_box()
    yield found.transfer()


def cost(effort: Effort, restarts: int, surrogate: bool) -> int:
    """Passes for each example, for the progress."""
    return 2 + FEW + MORE + len(BUDGETS) * FEW + restarts * FEW + effort.queries + surrogate * MORE


class _Found:
    """The checks on one classifier; attacks that several of them need are run once."""

    def __init__(self, question: Question, rows: Int[Tensor, " m"], progress: Progress) -> None:
        self.question, self.rows, self.progress = question, rows, progress
        self.attacked, self.eps = question.attacked, question.worst.eps
        self.x, self.y = self.attacked.x[rows], self.attacked.y[rows]
        # Kept from check to check: PGD's inputs at the checked budget, and what gradients broke in all.
        self.few = self._climb(self.eps, FEW)
        self.more = self._climb(self.eps, MORE)
        self.by_few, self.by_more = self._broken(self.few), self._broken(self.more)
        self.by_gradients = self._all_gradients()

    def fast_gradient(self) -> MaskingCheck:
        one = self._run(fast_gradient, self.question.seen, self.eps, 1)
        broken = self._broken(one)
        self._propose(one)
        only, other = _only(broken, self.by_few)
        return MaskingCheck(
            "many-steps-beat-one",
            f"PGD breaks what FGSM does; {_allowance()}",
            f"accuracy {self._left(broken):.3f} under FGSM, {self._left(self.by_few):.3f} under PGD with {FEW} steps; "
            f"{only} broken by FGSM alone, {other} by PGD alone",
            _verdict(_more(only, other)),
            {"fgsm": self._left(broken), "pgd": self._left(self.by_few), "fgsm_alone": only, "pgd_alone": other},
        )

    def more_steps(self) -> MaskingCheck:
        only, other = _only(self.by_few, self.by_more)
        return MaskingCheck(
            "more-steps",
            f"{MORE} steps break what {FEW} do; {_allowance()}",
            f"accuracy {self._left(self.by_few):.3f} after {FEW} steps, {self._left(self.by_more):.3f} after {MORE}; "
            f"{only} broken by {FEW} alone, {other} by {MORE} alone",
            _verdict(_more(only, other)),
            {"few": self._left(self.by_few), "many": self._left(self.by_more), "few_alone": only, "many_alone": other},
        )

    def growing_loss(self) -> MaskingCheck:
        budgets = [0.0, *sorted({min(1.0, self.eps * factor) for factor in BUDGETS} | {1.0})]
        losses = [self._losses(self.x)]
        losses += [self._losses(self.few if eps == self.eps else self._climb(eps, FEW)) for eps in budgets[1:]]
        steps = [later - earlier for earlier, later in itertools.pairwise(losses)]
        # At the checked budget too: with the whole box, a random start alone is another image.
        grows = all(_above_zero(losses[place] - losses[0]) for place in (budgets.index(self.eps), -1))
        falls = any(_above_zero(-step) for step in steps)
        means = [float(loss.mean()) for loss in losses]
        shown = ", ".join(f"{mean:.3g} at {eps:.3g}" for eps, mean in zip(budgets, means, strict=True))
        return MaskingCheck(
            "growing-loss",
            "the loss that PGD reaches is larger at the checked budget and in the whole box than without an attack, "
            f"and never falls; allowance {NORMAL:.2f} standard errors of the mean difference on these examples",
            f"mean cross-entropy {shown}",
            "not run" if len(self.rows) < 2 else _verdict(falls or not grows),
            {f"loss_at_{eps:.4g}": mean for eps, mean in zip(budgets, means, strict=True)},
        )

    def unbounded(self) -> MaskingCheck:
        # Another image of the data is within reach of a budget of 1: where it is classified otherwise, the truth is 0.
        predictions = self.attacked.logits(self.attacked.x).argmax(1).unique()
        reachable = (predictions != self.y[:, None]).any(1)
        broken = torch.zeros_like(reachable)
        for restart in range(self.question.restarts):
            found = self._climb(1.0, FEW, stream=f"unbounded/{restart}")
            broken |= self._broken(found)
        left, of = int((reachable & ~broken).sum()), int(reachable.sum())
        verdict = _verdict(_chance(left, of, LEFT) < ALPHA) if of else "not run"
        return MaskingCheck(
            "unbounded",
            "with a budget of 1, the whole box, PGD breaks every example that can be broken; up to "
            f"{LEFT:.0%} may be left, beyond that by noise (exact binomial test, {ALPHA:g})",
            f"{left} of {of} left" if of else "every example of the data is classified alike: nothing can be broken",
            verdict,
            {"left": left, "examples": of},
        )

    def black_box(self) -> MaskingCheck:
        name = "black-box"
        expected = f"Square, which sees no gradient, is not stronger than the gradient attacks, {_alone('breaks')}"
        if "square" not in self.question.attacks:
            return MaskingCheck(name, expected, "the attack 'square' was left out", "not run")
        effort = self.question.effort
        found = self._run(ATTACKS["square"], self.question.seen, self.eps, effort.queries, effort)
        return self._beside(name, expected, "Square", found)

    def transfer(self) -> MaskingCheck:
        name = "transfer"
        expected = f"inputs made for another network are not stronger than those made for this one, {_alone('break')}"
        if self.question.surrogate is None:
            return MaskingCheck(name, expected, "no surrogate was given", "not run")
        found = self._run(projected_gradient, self.question.surrogate, self.eps, MORE)
        return self._beside(name, expected, "transfer", found)

    def vanishing_gradients(self) -> MaskingCheck:
        flat = 0
        for x, y in zip(self.x.split(self.attacked.batch_size), self.y.split(self.attacked.batch_size), strict=True):
            x = x.clone().requires_grad_()
            loss = nn.functional.cross_entropy(self.question.seen(x), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x)
            size = gradient.flatten(1).abs().amax(1)
            flat += int(((size == 0) | ~torch.isfinite(size)).sum())
        return MaskingCheck(
            "vanishing-gradients",
            "the cross-entropy of an example has a gradient; in up to "
            f"{FLAT:.0%} it may be zero or no number, beyond that by noise (exact binomial test, {ALPHA:g})",
            f"{flat} of {len(self.rows)} examples have none",
            _verdict(_chance(flat, len(self.rows), FLAT) < ALPHA),
            {"without": flat, "examples": len(self.rows)},
        )

    def _beside(self, name: str, expected: str, what: str, found: Tensor) -> MaskingCheck:
        broken = self._broken(found)
        self._propose(found)
        only, other = _only(broken, self.by_gradients)
        stronger = _more(only, other) or _chance(only, len(self.rows), ALONE) < ALPHA
        return MaskingCheck(
            name,
            expected,
            f"accuracy {self._left(broken):.3f} under {what}, {self._left(self.by_gradients):.3f} under gradients; "
            f"{only} of {len(self.rows)} broken by {what} alone",
            _verdict(stronger),
            {
                name.replace("-", "_"): self._left(broken),
                "gradients": self._left(self.by_gradients),
                "alone": only,
                "other": other,
            },
        )

    def _all_gradients(self) -> Bool[Tensor, " m"]:
        """What PGD with many steps and the ensemble's gradient attacks break together."""
        state = Worst(self.attacked, self.eps, self.question.clean, self.attacked.x)
        state.propose(self.rows, self.more)
        self._propose(self.more)
        names = [name for name in GRADIENT if name in self.question.attacks]
        for name in names:
            # What withstood the ensemble withstood these attacks; only what something else broke is in question.
            open_ = (state.share > 0) & (self.question.worst.share < self.question.clean) & (self.question.clean >= 0.5)
            carry_out(
                ATTACKS[name],
                state,
                self.question.seen,
                open_.nonzero().flatten(),
                self.question.effort,
                f"again/{name}",
            )
        return state.share[self.rows] < 0.5

    def _climb(self, eps: float, steps: int, stream: str = "climb") -> Tensor:
        return self._run(projected_gradient, self.question.seen, eps, steps, stream=stream)

    def _run(
        self, attack: Any, seen: Seen, eps: float, passes: int, effort: Effort | None = None, stream: str = "check"
    ) -> Tensor:
        """One candidate for each row, within the ball; the same start for the same stream."""
        effort = effort or replace(self.question.effort, steps=passes)
        parts = []
        for place, rows in enumerate(self.rows.split(self.attacked.batch_size)):
            candidates = attack(self.attacked, seen, rows, eps, effort, f"checks/{stream}/{place}")
            parts.append(self.attacked.within(rows, candidates[0], eps))
            self.progress.advance(passes * len(rows), "checks")
        return torch.cat(parts)

    def _broken(self, candidate: Tensor) -> Bool[Tensor, " m"]:
        return self.attacked.share_correct(candidate, self.y) < 0.5

    def _left(self, broken: Bool[Tensor, " m"]) -> float:
        """Accuracy on all examples, as the table has it."""
        return int((~broken).sum()) / len(self.attacked.x)

    def _propose(self, candidate: Tensor) -> None:
        self.question.worst.propose(self.rows, candidate)

    @torch.no_grad()
    def _losses(self, x: Tensor) -> Float[Tensor, " m"]:
        parts = [self.question.seen(part) for part in x.split(self.attacked.batch_size)]
        # On the CPU: not every accelerator knows double precision.
        return nn.functional.cross_entropy(torch.cat(parts).cpu().double(), self.y.cpu(), reduction="none")


def _randomness(attacked: Attacked) -> MaskingCheck:
    return MaskingCheck(
        "randomness",
        f"two passes agree, or the attacks and the judgement average at least {MANY} draws",
        (f"two passes differ; {attacked.draws} averaged" if attacked.randomised else "two passes agree"),
        _verdict(attacked.randomised and attacked.draws < MANY),
        {"draws": attacked.draws},
    )


def _only(first: Bool[Tensor, " m"], second: Bool[Tensor, " m"]) -> tuple[int, int]:
    """How many the first alone broke, and the second alone."""
    return int((first & ~second).sum()), int((second & ~first).sum())


def _more(only: int, other: int) -> bool:
    """Whether `only` is larger than `other` beyond noise."""
    return only > other and _chance(only, only + other, 0.5) < ALPHA


def _chance(count: int, of: int, share: float) -> float:
    """Probability of at least `count` among `of` where each comes with probability `share`."""
    from scipy.stats import binom

    return float(binom.sf(count - 1, of, share))


def _above_zero(differences: Float[Tensor, " m"]) -> bool:
    """Whether the mean is above zero beyond noise."""
    mean = float(differences.mean())
    error = float(differences.std()) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
    return mean > 0 and mean > NORMAL * error


def _verdict(failed: bool) -> Verdict:
    return "fails" if failed else "passes"


def _allowance() -> str:
    return f"allowance: exact binomial test of the examples that one of them broke alone, {ALPHA:g}"


def _alone(breaks: str) -> str:
    return (
        f"and {breaks} no more than {ALONE:.0%} that those do not; allowance: exact binomial tests of the examples "
        f"broken by one alone, {ALPHA:g}"
    )
