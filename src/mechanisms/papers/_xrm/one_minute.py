"""The authors' short run: full batches, bias-free linear heads from zero, plain SGD."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mechanisms.lab import Bench, config
from mechanisms.lab.configuration import as_dict
from mechanisms.papers._xrm.shared import DataName, agreement, classes_of, fingerprint, load, true_groups

if TYPE_CHECKING:
    from torch import nn


@config
class OneMinute:
    """Settings of the authors' short run: full batches, bias-free linear heads from zero, plain SGD."""

    data: DataName = "features"
    path: str = ""
    lr: float = 1e-2
    eta: float = 0.1
    steps: int = 3000
    every: int = 10


def run_one_minute(settings: OneMinute, variant: str, bench: Bench) -> dict[str, Any]:
    """Full-batch GroupDRO on no, human or discovered groups."""
    import torch
    from torch import nn

    from mechanisms.robust.groups import worst_group_accuracy
    from mechanisms.robust.training import Draws, fit_groups
    from mechanisms.robust.xrm import Setting, discover_environments

    splits = load(settings.data, settings.path, bench)
    train, held, test = splits.train, splits.validation, splits.test

    def make_model() -> nn.Module:
        head = nn.Linear(train.x.shape[1], classes_of(splits), bias=False)
        nn.init.zeros_(head.weight)
        return head

    def twins() -> dict[str, Any]:
        found = discover_environments(
            train.x,
            train.y,
            validation=(held.x, held.y),
            model=make_model,
            search=[Setting(settings.lr, weight_decay=0.0, batch_size=len(train), momentum=0.0)],
            steps=settings.steps,
            device=bench.device,
            random_state=bench.seed,
            progress=lambda step, total: bench.progress(step, total),
        )
        return {"train": found.train, "validation": found.validation, "flip_rate": found.flip_rate}

    metrics: dict[str, Any] = {}
    if variant == "none":
        groups, held_groups = train.y, held.y
    elif variant == "human":
        groups, held_groups = true_groups(train), true_groups(held)
    else:
        found = bench.cached("one-minute-twins", twins, as_dict(settings) | {"file": fingerprint(settings.path)})
        groups, held_groups = 2 * train.y + found["train"].numpy(), 2 * held.y + found["validation"].numpy()
        metrics = agreement(found["train"], torch.as_tensor(train.attribute != train.y))
        metrics["flip_rate"] = found["flip_rate"]
    fit = fit_groups(
        train.x,
        train.y,
        groups,
        held.x,
        held.y,
        held_groups,
        make_model=make_model,
        learner="groupdro",
        draws=Draws((settings.lr,), weight_decay=(0.0,), batch_size=(None,), eta=(settings.eta,)),
        steps=settings.steps,
        evaluate_every=settings.every,
        momentum=0.0,
        seed=bench.seed,
        device=bench.device,
        progress=lambda step, total, loss: bench.progress(step, total, loss=loss),
    )
    with torch.no_grad():
        prediction = fit.model(torch.as_tensor(test.x, device=bench.device)).argmax(1).cpu()
    return {
        "worst_group_accuracy": worst_group_accuracy(test.y, prediction, true_groups(test)),
        "average_accuracy": float((prediction == torch.as_tensor(test.y)).float().mean()),
        **metrics,
    }
