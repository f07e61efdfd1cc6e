"""What finds the groups, and for how long: environments over training, with and without each ingredient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from mechanisms.lab import Bench, config
from mechanisms.papers._xrm.shared import agreement, classes_of, load, model_factory

if TYPE_CHECKING:
    from torch import Tensor

    from mechanisms.lab.data import Splits


@config
class OverTime:
    """Settings of the experiments that follow the environments over training."""

    spurious: float = 2.0
    hidden: tuple[int, ...] = ()
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 128
    steps: tuple[int, ...] = (200, 500, 1000, 2000, 4000, 8000)


ABLATIONS: dict[str, dict[str, bool]] = {
    "xrm": {},
    "no-flips": {"flips": False},
    "unbalanced": {"balanced": False},
    "no-held-out": {"held_out": False},
}
ERRORS = ("erm-errors", "held-out-errors")


def run_over_time(settings: OverTime, variant: str, bench: Bench) -> dict[str, Any]:
    """Follow the match of environments and minority over the steps of one run."""
    import torch

    splits = load("waterbirds-like", "", bench, settings.spurious)
    minority, held_minority = (torch.as_tensor(p.attribute != p.y) for p in (splits.train, splits.validation))
    over_time, held_over_time = annotate(settings, variant, bench, splits)
    metrics: dict[str, Any] = {}
    scores = {}
    for step, environments in over_time.items():
        quality = agreement(environments, minority)
        scores[step] = metrics[f"f1_{step}"] = quality["f1"]
        bench.log(step, f1=quality["f1"], recall=quality["recall"], false_positive_rate=quality["false_positive_rate"])
    late = [score for step, score in scores.items() if step >= 1000] or list(scores.values())
    metrics["f1_kept"] = min(late) / max(*late, 1e-9)
    metrics["f1_lost"] = 1 - late[-1] / late[0] if late[0] else 0.0  # what was never there cannot be lost
    for step, environments in held_over_time.items():
        quality = agreement(environments, held_minority)
        metrics[f"validation_recall_{step}"] = quality["recall"]
        metrics[f"validation_false_positive_rate_{step}"] = quality["false_positive_rate"]
    return metrics


def annotate(
    settings: OverTime, variant: str, bench: Bench, splits: Splits
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Environments by step, of the training and (where the method has them) the validation examples."""
    from mechanisms.robust.mistakes import erm_errors, held_out_errors
    from mechanisms.robust.training import Draws
    from mechanisms.robust.xrm import Setting, discover_environments

    train, held = splits.train, splits.validation
    make_model = model_factory(train.x.shape[1], settings.hidden, classes_of(splits))
    if variant in ERRORS:
        errors = {"erm-errors": erm_errors, "held-out-errors": held_out_errors}[variant]
        found = errors(
            train.x,
            train.y,
            make_model=make_model,
            steps=settings.steps,
            settings=Draws((settings.lr,), (settings.weight_decay,), (settings.batch_size,)),
            optimizer=settings.optimizer,
            seed=bench.seed,
            device=bench.device,
        )
        return dict(zip(settings.steps, found.reshape(len(settings.steps), -1), strict=True)), {}
    environments = discover_environments(
        train.x,
        train.y,
        validation=(held.x, held.y),
        model=make_model,
        search=[Setting(settings.lr, settings.weight_decay, settings.batch_size, settings.optimizer)],
        steps=settings.steps[-1],
        snapshots=settings.steps,
        device=bench.device,
        random_state=bench.seed,
        progress=lambda step, total: bench.progress(step, total),
        **ABLATIONS[variant],
    )
    for step, rate in environments.flip_history:
        bench.log(step, flip_rate=rate)
    shots = environments.snapshots
    return {s.step: s.train for s in shots}, {s.step: s.validation for s in shots if s.validation is not None}
