"""How robust is a classifier? An ensemble of attacks by others than its authors, and checks that it can be believed.

    robust accuracy(eps) = share of examples that no attack of the ensemble turns within |x' - x| <= eps, x' in [0, 1]

The per-example minimum over APGD on the cross-entropy and on the difference-of-logits ratio (adversarial robustness
toolbox), DeepFool (foolbox), PGD with random restarts, Square, which sees no gradients (toolbox), and, where another
network is given, inputs made for that one. This is an upper bound of the true robust accuracy, as every attack gives.

Croce and Hein: "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
ICML 2020, arXiv 2003.01690. Athalye, Carlini, Wagner: "Obfuscated Gradients Give a False Sense of Security", ICML 2018,
arXiv 1802.00420.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mechanisms._base.seeds import seeded, stream_seed
from mechanisms._base.validation import check_choice, check_number
from mechanisms.robust._attacked import Attacked, Worst, check_attacked, check_eps, check_model, home
from mechanisms.robust._attacks import (
    ATTACKS,
    FEWEST_CLASSES,
    ONCE,
    Effort,
    Seen,
    check_library,
    projected_gradient,
)
from mechanisms.robust._masking import Question, cost, masking_checks
from mechanisms.robust._running import Progress, carry_out
from mechanisms.robust.adversarial import frozen
from mechanisms.robust.denoising import ExpectationOverNoise
from mechanisms.robust.robustness_report import MaskingCheck, RobustnessReport

__all__ = ["ENSEMBLE", "robust_accuracy"]

ENSEMBLE = ("pgd", "apgd-ce", "apgd-dlr", "deepfool", "square")


def robust_accuracy(
    model: nn.Module,
    x: Any,
    y: Any,
    eps: float | int | Sequence[float | int],
    *,
    attacks: Sequence[str] = ENSEMBLE,
    restarts: int = 2,
    steps: int = 100,
    queries: int = 500,
    surrogate: nn.Module | None = None,
    checks: bool = True,
    draws: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    keep_examples: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
    partial: Callable[[RobustnessReport], None] | None = None,
) -> RobustnessReport:
    """Accuracy of a classifier under an ensemble of attacks (L-infinity), and checks on gradient masking.

    Attacks run one after the other, each on the examples that still stand, and an input found within one budget counts
    for every larger one. So accuracy never increases with `eps`, with `restarts`, or (with one restart) with attacks
    appended. Every input that a library proposes is brought back into the ball and the box and judged anew.

    A classifier whose passes differ is randomised: attacks see the mean of `draws` draws, and an example counts with
    the share of fresh draws in which its worst input is classified rightly. (The least of many noisy shares is too low;
    `after` in the report still holds it.) Its accuracy is ordered as above up to the noise of its draws.

    Args:
        model: from (n, ...) to logits (n, classes), in evaluation mode, on the device where it is to run, in any
            precision. It normalises its inputs itself. `ExpectationOverNoise` is taken apart: its draws are `draws`.
        x: (n, ...) numbers in [0, 1].
        y: (n,) class indices.
        eps: budget or budgets in the units of x: 8 / 255 for images is usual. 0 gives the clean accuracy.
        attacks: any of "pgd", "apgd-ce", "apgd-dlr", "deepfool", "square", in the order in which they are run; all but
            the first need the extra `attacks`. "apgd-dlr" needs three classes and is left out with fewer.
        restarts: rounds of those with a random start; DeepFool has none, and Square, whose measure is queries, runs
            once.
        steps: of "pgd" and the two "apgd"; DeepFool's are 50.
        queries: of Square for each example.
        surrogate: another classifier of the same inputs, best undefended: what PGD finds for it is tried on `model`
            too.
        checks: whether to look for gradient masking, at the budget where accuracy is nearest to half the clean one.
        draws: of a randomised model; 20 by default. With 1 its robustness is overstated.
        batch_size: examples in a pass. The draws of random starts depend on it.
        seed: everything random follows from it; torch's and NumPy's own generators are left as they were.
        keep_examples: whether the report keeps the worst inputs.
        progress: called with passes done, passes in all at most, and the stage.
        partial: called with the report so far after every attack and check, and with what an attack that was
            interrupted had found.

    Raises:
        TypeError: a model that is no module; inputs or labels that are no numbers.
        ValueError: a model in training mode or with batch statistics, inputs outside of [0, 1], shapes, labels or
            outputs that do not fit, clean logits that are no numbers, settings out of range; the message says
            what to do.
        MissingExtra: an attack needs the extra `attacks`.

    Warns:
        UserWarning: a randomised model is attacked with `draws=1`.

    Source: Croce and Hein, section 4; the checks, Athalye et al., section 3.1.

    >>> from mechanisms._base.seeds import seeded
    >>> with seeded(0):
    ...     model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    ...     x = torch.rand(20, 3, 4)
    >>> y = model(x).argmax(1)
    >>> report = robust_accuracy(model, x, y, [0, 0.05], attacks=["pgd"], steps=10, checks=False)
    >>> report.at(0), report.at(0.05) < 1
    (1.0, True)
    """
    names = _check_attacks(attacks)
    effort = Effort(
        int(check_number(steps, "steps", at_least=1)), int(check_number(queries, "queries", at_least=1)), seed
    )
    rounds = int(check_number(restarts, "restarts", at_least=1))
    size = int(check_number(batch_size, "batch_size", at_least=1))
    averaged = None if draws is None else int(check_number(draws, "draws", at_least=1))
    budgets = check_eps(eps)
    check_model(model)
    if isinstance(model, ExpectationOverNoise):
        # Its draws are taken one by one, so that the judgement is of the classifier and not of its mean.
        model, averaged = model.model, averaged or model.draws
    if surrogate is not None:
        check_model(surrogate, "the surrogate")
    check_library(names)
    with seeded(stream_seed(seed, "noise of the model"), home(model, x)[0]), torch.inference_mode(False):
        attacked = check_attacked(model, x, y, averaged, size)
        if attacked.randomised and attacked.draws == 1:
            warnings.warn(
                "the model is randomised and draws=1: attacks follow the gradient of a single draw, and robustness is "
                "overstated; average at least 20 draws",
                stacklevel=2,
            )
        run = _Run(attacked, surrogate, names, rounds, effort, keep_examples, progress, partial)
        with frozen(model), frozen(surrogate if surrogate is not None else model):
            try:
                return run.all(budgets, checks)
            except KeyboardInterrupt:
                run.tell_partial()
                raise


class _Run:
    """One evaluation, and the report of what it has so far."""

    def __init__(
        self,
        attacked: Attacked,
        surrogate: nn.Module | None,
        names: tuple[str, ...],
        rounds: int,
        effort: Effort,
        keep_examples: bool,
        progress: Callable[[int, int, str], None] | None,
        partial: Callable[[RobustnessReport], None] | None,
    ) -> None:
        self.attacked, self.rounds, self.effort, self.keep = attacked, rounds, effort, keep_examples
        self.tell, self.partial = progress, partial
        self.notes: list[str] = []
        self.names = self._fitting(names)
        self.seen = Seen(attacked)
        self.surrogate = None if surrogate is None else _surrogate(surrogate, attacked)
        self.attacks = dict(ATTACKS)
        if self.surrogate is not None:
            other = self.surrogate
            self.attacks["transfer"] = lambda a, _, rows, eps, effort, stream: projected_gradient(
                a, other, rows, eps, effort, stream
            )
            self.names = (*self.names, "transfer")
        self.clean = attacked.share_correct(attacked.x, attacked.y)
        if float(self.clean.mean()) < 1 / attacked.classes:
            self.notes.append(
                f"clean accuracy {float(self.clean.mean()):.3f} is below chance: are x and y in one order, and x as in "
                "training?"
            )
        if attacked.dtype == torch.float16:
            self.notes.append(
                "the model computes in float16, where small gradients become zero: attack model.float() too"
            )
        self.states: list[Worst] = []
        self.after: dict[str, dict[float, float]] = {name: {} for name in self.names}
        self.checks: list[MaskingCheck] = []
        self.checked_eps: float | None = None
        # DeepFool knows no budget: what it found for an example serves all.
        self.nearest = attacked.x.clone()
        self.searched = torch.zeros(len(attacked.x), dtype=torch.bool, device=attacked.x.device)

    def all(self, budgets: tuple[float, ...], checks: bool) -> RobustnessReport:
        """Every budget, then the checks."""
        positive = [eps for eps in budgets if eps > 0]
        n = len(self.attacked.x)
        passes = {name: self._passes(name) for name in self.names}
        rounds = {name: 1 if name in ONCE else self.rounds for name in self.names}
        total = len(positive) * sum(passes[name] * rounds[name] for name in self.names)
        checking = cost(self.effort, self.rounds, self.surrogate is not None) if checks and positive else 0
        progress = Progress(self.tell, n * (total + checking))
        for eps in budgets:
            before = self.states[-1] if self.states else None
            share, examples = (before.share, before.examples) if before else (self.clean, self.attacked.x)
            self.states.append(Worst(self.attacked, eps, share, examples))
            if eps == 0:
                for name in self.names:
                    self.after[name][eps] = float(share.mean())
                continue
            for round_ in range(self.rounds):
                for name in self.names:
                    if round_ and name in ONCE:
                        continue
                    progress.plan(n * passes[name])
                    self._attack(name, round_, progress)
        if checking:
            progress.plan(n * checking)
            self._check(progress)
        progress.finish()
        return self._report(complete=True)

    def _attack(self, name: str, round_: int, progress: Progress) -> None:
        worst = self.states[-1]
        rows = worst.standing()
        stage, passes = f"{name} at eps {worst.eps:g}", self._passes(name)

        def advance(count: int) -> None:
            progress.advance(count * passes, stage)

        stream = f"{name}/{worst.eps!r}/{round_}"
        if name == "deepfool":
            self._search(rows[~self.searched[rows]], stream, advance)
            if len(rows):
                worst.propose(rows, self.nearest[rows])
        else:
            carry_out(self.attacks[name], worst, self.seen, rows, self.effort, stream, advance)
        if not round_:
            self.after[name][worst.eps] = float(worst.share.mean())
        self.tell_partial()

    def _search(self, rows: Tensor, stream: str, advance: Callable[[int], None]) -> None:
        for place, part in enumerate(rows.split(self.attacked.batch_size)):
            if len(part):
                (found,) = ATTACKS["deepfool"](self.attacked, self.seen, part, 1.0, self.effort, f"{stream}/{place}")
                self.nearest[part] = found.to(self.nearest)
                self.searched[part] = True
                advance(len(part))

    def _check(self, progress: Progress) -> None:
        half = float(self.clean.mean()) / 2
        positive = [state for state in self.states if state.eps > 0]
        worst = min(positive, key=lambda state: abs(float(state.share.mean()) - half))
        self.checked_eps = worst.eps
        question = Question(
            self.attacked, self.seen, self.surrogate, worst, self.clean, self.names, self.effort, self.rounds
        )
        for check in masking_checks(question, progress):
            self.checks.append(check)
            for larger in self.states[self.states.index(worst) + 1 :]:
                weaker = (worst.share < larger.share).nonzero().flatten()
                if len(weaker):
                    larger.propose(weaker, worst.examples[weaker])
            self.tell_partial()

    def tell_partial(self) -> None:
        """Hand over the report of what has been found, once an attack has ended."""
        if self.partial is not None and any(eps > 0 for left in self.after.values() for eps in left):
            self.partial(self._report(complete=False))

    def _report(self, complete: bool) -> RobustnessReport:
        shares = [state.judged_again() if complete else state.share for state in self.states]
        accuracy = {state.eps: float(share.mean()) for state, share in zip(self.states, shares, strict=True)}
        return RobustnessReport(
            clean_accuracy=float(self.clean.mean()),
            robust_accuracy=accuracy,
            after={name: dict(left) for name, left in self.after.items()},
            correct=torch.stack(shares).cpu(),
            checks=tuple(self.checks),
            checked_eps=self.checked_eps,
            restarts=self.rounds,
            steps=self.effort.steps,
            queries=self.effort.queries,
            draws=self.attacked.draws,
            randomised=self.attacked.randomised,
            seed=self.effort.seed,
            complete=complete,
            notes=tuple(self.notes),
            examples=torch.stack([state.examples for state in self.states]).cpu() if self.keep else None,
        )

    def _fitting(self, names: tuple[str, ...]) -> tuple[str, ...]:
        fitting = tuple(name for name in names if self.attacked.classes >= FEWEST_CLASSES.get(name, 2))
        self.notes += [
            f"{name} was left out: it needs {FEWEST_CLASSES[name]} classes, the model has {self.attacked.classes}"
            for name in names
            if name not in fitting
        ]
        if not fitting:
            raise ValueError(
                f"none of the attacks {', '.join(names)} works with {self.attacked.classes} classes; add 'pgd'"
            )
        return fitting

    def _passes(self, name: str) -> int:
        """Passes for each example, roughly, so that the progress tells the time."""
        if name == "deepfool":
            return 50 * (min(10, self.attacked.classes) - 1)
        return self.effort.queries if name == "square" else 2 * self.effort.steps


def _surrogate(model: nn.Module, attacked: Attacked) -> Seen:
    """Another network on the same examples, as the attack sees it."""
    try:
        return Seen(check_attacked(model, attacked.x, attacked.y, None, attacked.batch_size))
    except ValueError as error:
        raise ValueError(f"the surrogate does not fit: {error}") from None


def _check_attacks(attacks: Any) -> tuple[str, ...]:
    names = (attacks,) if isinstance(attacks, str) else tuple(attacks)
    if not names:
        raise ValueError(f"attacks is empty; give some of {', '.join(ATTACKS)}")
    for name in names:
        check_choice(name, "attacks", tuple(ATTACKS))
    return tuple(dict.fromkeys(names))
