"""The same networks under the whole ensemble of attacks, with the checks on gradient masking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechanisms.lab import Bench
    from mechanisms.papers._fortified.settings import Ensemble
    from mechanisms.robust.robustness_report import RobustnessReport

# The five that decide the claim; the report's others are counted beside them.
CHECKS = ("many-steps-beat-one", "more-steps", "unbounded", "black-box", "transfer")
VARIANTS = ("at", "at-dae", "fortified")


def run(settings: Ensemble, variant: str, bench: Bench) -> dict[str, Any]:
    """Attack the network of a variant; inputs are transferred from the plain one of the same seed.

    Raises:
        NotHere: the attacks' libraries, or the data, are not on this machine.
        ValueError: the budget of training is not among those of the ensemble, or no image is attacked.
    """
    from mechanisms._base.extras import MissingExtra
    from mechanisms.lab import NotHere
    from mechanisms.papers._fortified.examples import load
    from mechanisms.papers._fortified.training import trained
    from mechanisms.robust.attack_ensemble import robust_accuracy

    if settings.eps not in settings.attacked:
        raise ValueError(f"attacked={settings.attacked} lacks the budget of training, eps={settings.eps}; add it")
    if settings.images < 1:
        raise ValueError(f"images={settings.images}: at least 1 test image must be attacked")
    examples = load(settings, bench)
    model, _ = trained(settings, variant, bench, examples)
    surrogate, _ = trained(settings, "plain", bench, examples)
    x, y = examples.test_x[: settings.images], examples.test_y[: settings.images]
    try:
        report = robust_accuracy(
            model,
            x.to(bench.device),
            y.to(bench.device),
            settings.attacked,
            restarts=settings.restarts,
            steps=settings.steps,
            queries=settings.queries,
            surrogate=surrogate,
            seed=bench.seed,
            progress=lambda done, total, stage: bench.progress(done, total),
        )
    except MissingExtra as missing:
        raise NotHere(str(missing)) from None
    return summary(report, settings.eps, bench)


def summary(report: RobustnessReport, eps: float, bench: Bench) -> dict[str, Any]:
    """The report in numbers, and its curves by budget."""
    first = next(iter(report.after))
    bench.log(0.0, ensemble_accuracy=report.clean_accuracy, pgd_accuracy=report.clean_accuracy)
    for budget in report.robust_accuracy:
        bench.log(budget, ensemble_accuracy=report.at(budget), pgd_accuracy=report.after[first][budget])
    verdicts = {check.name: check.verdict for check in report.checks}
    for note in report.notes:
        bench.note(note)
    return {
        "accuracy": report.clean_accuracy,
        "ensemble_accuracy": report.at(eps),
        **{f"after_{name.replace('-', '_')}": left[eps] for name, left in report.after.items()},
        # A check that could not be made counts as one that did not pass.
        "checks_not_passed": sum(verdicts.get(name) != "passes" for name in CHECKS),
        "other_checks_failed": sum(verdict == "fails" for name, verdict in verdicts.items() if name not in CHECKS),
        "checked_eps": float(report.checked_eps or 0.0),
        "checks": "; ".join(f"{check.name} {check.verdict}: {check.found}" for check in report.checks),
    }
