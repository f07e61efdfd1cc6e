"""What is measured of a trained network: accuracy without and under attack, and what its detector sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mechanisms.papers._fortified.settings import VARIANTS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mechanisms.lab import Bench
    from mechanisms.papers._fortified.settings import Fortified

FALSE_POSITIVES = 0.05
FEWEST = 40  # images: half of them set the detector's threshold, which for this rate takes 19
LOWEST, HIGHEST, PER_DECADE = -6, 2, 10  # of the histogram of reconstruction errors, in powers of ten


def run(settings: Fortified, variant: str, bench: Bench) -> dict[str, Any]:
    """Train one variant, and attack it with PGD.

    Raises:
        NotHere: the data are not on this machine.
        ValueError: settings that do not fit the data or each other.
    """
    from mechanisms.papers._fortified.examples import load
    from mechanisms.papers._fortified.training import log_history, trained
    from mechanisms.robust.adversarial import fgsm, withstands_pgd
    from mechanisms.robust.denoising import ExpectationOverNoise

    examples = load(settings, bench)
    if min(settings.pictured, len(examples.test_y)) < FEWEST:
        raise ValueError(
            f"pictured={settings.pictured} of {len(examples.test_y)} test images; the detector takes at least {FEWEST}"
        )
    network, history = trained(settings, variant, bench, examples)
    log_history(bench, history)
    noisy = VARIANTS[variant].noise == "always"
    model = ExpectationOverNoise(network, settings.draws).eval() if noisy else network
    x, y = examples.test_x.to(bench.device), examples.test_y.to(bench.device)
    attack: dict[str, Any] = {
        "steps": settings.test_steps,
        "step_size": settings.test_step_size,
        "restarts": settings.test_restarts,
    }

    def generator(name: str) -> Any:
        return bench.generator(name, bench.device)

    with _noise(bench):
        found = {
            "accuracy": accuracy(model, x, y),
            "fgsm_accuracy": accuracy(model, fgsm(model, x, y, settings.eps), y),
            "pgd_accuracy": share(
                withstands_pgd(model, x, y, settings.eps, **attack, generator=generator("pgd"), progress=bench.progress)
            ),
        }
        if noisy:
            # What an attack that does not average sees, and what a test with one draw would print.
            found["pgd_accuracy_one_draw"] = one_draw(network, x, y, settings, generator("pgd"))
        log_budgets(settings, model, x[: settings.pictured], y[: settings.pictured], bench)
        if VARIANTS[variant].place != "none" and not noisy:
            found |= detection(settings, network, x[: settings.pictured], y[: settings.pictured], bench)
    return found


def accuracy(model: nn.Module, x: Tensor, y: Tensor, rows: int = 1024) -> float:
    """Share of inputs that are classified rightly."""
    import torch

    with torch.no_grad():
        right = [model(part).argmax(1) == labels for part, labels in zip(x.split(rows), y.split(rows), strict=True)]
    return share(torch.cat(right))


def share(right: Tensor) -> float:
    """Of truth values."""
    return float(right.double().mean())


def one_draw(network: nn.Module, x: Tensor, y: Tensor, settings: Fortified, generator: Any) -> float:
    """Accuracy of a network whose noise is on, where each gradient and the verdict see one draw."""
    from mechanisms.robust.adversarial import pgd

    attacked = pgd(
        network,
        x,
        y,
        settings.eps,
        steps=settings.test_steps,
        step_size=settings.test_step_size,
        keep="last",
        generator=generator,
    )
    return accuracy(network, attacked, y)


def log_budgets(settings: Fortified, model: nn.Module, x: Tensor, y: Tensor, bench: Bench) -> None:
    """Accuracy under PGD by budget, on the images of the picture."""
    from mechanisms.robust.adversarial import withstands_pgd

    bench.log(0.0, accuracy_under_pgd=accuracy(model, x, y))
    for eps in settings.budgets:
        right = withstands_pgd(
            model,
            x,
            y,
            eps,
            steps=settings.test_steps,
            restarts=1,
            generator=bench.generator("budgets", bench.device),
            progress=bench.progress,
        )
        bench.log(eps, accuracy_under_pgd=share(right))


def detection(settings: Fortified, network: Any, x: Tensor, y: Tensor, bench: Bench) -> dict[str, float]:
    """Reconstruction errors of clean and of adversarial inputs, and what a detector with 5 % false alarms flags."""
    from mechanisms.robust.adversarial import pgd
    from mechanisms.robust.off_manifold import off_manifold_detector, off_manifold_score

    attacked = pgd(
        network,
        x,
        y,
        settings.eps,
        steps=settings.test_steps,
        step_size=settings.test_step_size,
        generator=bench.generator("detector", bench.device),
        progress=bench.progress,
    )
    detector = off_manifold_detector(network, x, FALSE_POSITIVES, seed=bench.seed)
    clean, moved = off_manifold_score(network, x), off_manifold_score(network, attacked)
    log_histogram(bench, "clean_errors", clean)
    log_histogram(bench, "adversarial_errors", moved)
    return {
        "threshold": detector.threshold,
        "flagged_clean": detector.held_out.rate,
        "flagged_adversarial": share(moved > detector.threshold),
        "error_ratio": float(moved.mean() / clean.mean()),
    }


def log_histogram(bench: Bench, name: str, scores: Tensor) -> None:
    """Shares of scores by their logarithm, at fixed places, so that seeds can be averaged; empty ends are left out."""
    import torch

    logs = scores.double().clamp(min=10.0**LOWEST).log10().clamp(max=HIGHEST - 1e-9)
    bins = ((logs - LOWEST) * PER_DECADE).floor().long()
    shares = torch.bincount(bins, minlength=(HIGHEST - LOWEST) * PER_DECADE).double() / max(1, len(scores))
    filled = shares.nonzero().flatten()
    low, high = int(filled[0]) - 1, int(filled[-1]) + 1
    for place in range(max(0, low), min(len(shares) - 1, high) + 1):
        bench.log(round(LOWEST + (place + 0.5) / PER_DECADE, 3), **{name: round(float(shares[place]), 5)})


def _noise(bench: Bench) -> Any:
    """Torch's own generators, from which layers with noise at test time draw, as the seed says."""
    from mechanisms._base.seeds import seeded, stream_seed

    return seeded(stream_seed(bench.seed, "noise of the test"), bench.device)
