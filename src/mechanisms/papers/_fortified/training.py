"""Training of one variant, once for all experiments that ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mechanisms.papers._fortified.settings import VARIANTS, training_settings

if TYPE_CHECKING:
    from torch import nn

    from mechanisms.lab import Bench
    from mechanisms.papers._fortified.examples import Examples
    from mechanisms.papers._fortified.settings import Fortified

POINTS = 12  # of a learning curve
CURVES = {
    "accuracy": "training_accuracy",
    "adversarial_accuracy": "training_adversarial_accuracy",
    "reconstruction": "reconstruction",
    "adversarial_reconstruction": "adversarial_reconstruction",
    "norm_before": "norm",
    "relative_error": "relative_error",
}


def trained(
    settings: Fortified, name: str, bench: Bench, examples: Examples
) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """The network of a variant in evaluation mode on the bench's device, and the means of each epoch by name."""
    from mechanisms.papers._fortified.networks import build

    model = build(settings, VARIANTS[name], examples.shape, bench.seed)

    def train() -> dict[str, Any]:
        history = _fit(settings, name, bench, model, examples)
        return {"weights": dict(model.state_dict()), "history": history}

    found = bench.cached(f"network-{name}", train, training_settings(settings, name))
    model.load_state_dict(found["weights"])
    return model.to(bench.device).eval(), found["history"]


def _fit(settings: Fortified, name: str, bench: Bench, model: nn.Module, examples: Examples) -> dict[str, np.ndarray]:
    from mechanisms.robust.classifier_training import adversarial_training, train_classifier

    variant = VARIANTS[name]
    options: dict[str, Any] = {
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "lr": settings.lr,
        "label_smoothing": settings.label_smoothing,
        "lambda_rec": variant.rec * settings.lambda_rec,
        "detach_target": variant.blocked,
        "seed": bench.seed,
        "device": bench.device,
        "progress": lambda done, total, loss: bench.progress(done, total, loss=loss),
        "checkpoint": bench.checkpoint(f"training-{name}").path,
    }
    if not variant.attacked:
        return train_classifier(model, examples.x, examples.y, **options).history
    size = settings.attack_step_size or (settings.eps if settings.attack_steps == 1 else None)
    return adversarial_training(
        model,
        examples.x,
        examples.y,
        settings.eps,
        steps=settings.attack_steps,
        step_size=size,
        random_start=settings.attack_random_start,
        lambda_adv=variant.adv * settings.lambda_adv,
        **options,
    ).history


def log_history(bench: Bench, history: dict[str, np.ndarray]) -> None:
    """Some epochs of the learning curves.

    Of several layers the last, which is the only one of most variants; "norm_first" is that of the first.
    """
    epochs = len(history["loss"])
    for epoch in sorted({round(place) for place in np.linspace(1, epochs, min(POINTS, epochs))}):
        found = {}
        for name, shown in CURVES.items():
            row = np.atleast_1d(history[name][epoch - 1]) if name in history else np.zeros(0)
            if row.size:
                found[shown] = float(f"{row[-1]:.5g}")
            if shown == "norm" and row.size > 1:
                found["norm_first"] = float(f"{row[0]:.5g}")
        bench.log(epoch, **found)
