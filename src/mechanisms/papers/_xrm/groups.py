"""Which environments make a robust learner robust: none, human, true or discovered ones, beside the baselines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from mechanisms.lab import Bench, config
from mechanisms.papers._xrm.shared import DataName, agreement, classes_of, fingerprint, load, model_factory, true_groups

if TYPE_CHECKING:
    from torch import nn

    from mechanisms.lab.data import Splits


@config
class Groups:
    """Settings of the experiments that compare environments."""

    data: DataName = "waterbirds-like"
    path: str = ""  # of a data set that is not embedded
    spurious: float = 2.0  # strength of the shortcut of the waterbirds-like set
    hidden: tuple[int, ...] = ()  # of the multi-layer perceptron; none is a linear head
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: tuple[float, float] = (1e-4, 1e-2)
    weight_decay: tuple[float, float] = (1e-6, 1e-3)
    batch_size: tuple[int, int] = (32, 128)
    search: int = 10  # combinations of phase 1, of which the largest flip rate wins
    search_seed: int | None = None  # one search for all seeds, whose winner is trained again; none: a search each
    draws: int = 3  # combinations of phase 2
    twin_steps: int = 1500
    steps: int = 1500
    every: int = 50  # steps between validations
    worst_class: bool = False  # test groups are the classes: the test set is one environment


LEARNERS = ("groupdro", "rwg", "subg")
ORACLE = tuple(f"oracle-{learner}" for learner in LEARNERS)
DISCOVERED = (*(f"xrm-{learner}" for learner in LEARNERS), "xrm-irm", "xrm-dfr")
BASELINES = ("jtt", "eiil-groupdro", "lff", "afr")


def run_groups(settings: Groups, variant: str, bench: Bench) -> dict[str, Any]:
    """Train one learner on one kind of environments and report its worst test group."""
    import torch

    from mechanisms.robust.groups import worst_group_accuracy

    splits = load(settings.data, settings.path, bench, settings.spurious)
    test = splits.test
    model, metrics = train(settings, variant, bench, splits)
    with torch.no_grad():
        prediction = model(torch.as_tensor(test.x, device=bench.device)).argmax(1).cpu().numpy()
    groups = test.y if settings.worst_class else true_groups(test)
    return {
        "worst_group_accuracy": worst_group_accuracy(test.y, prediction, groups),
        "average_accuracy": float((prediction == test.y).mean()),
        **metrics,
    }


def train(settings: Groups, variant: str, bench: Bench, splits: Splits) -> tuple[nn.Module, dict[str, Any]]:
    """The chosen model of a variant, and what there is to say of its environments."""
    from mechanisms.robust import baselines, last_layer
    from mechanisms.robust.training import draw_hyperparameters, fit_groups

    kind, _, learner = variant.partition("-")
    train, held = splits.train, splits.validation
    ranges = {"lr": settings.lr, "weight_decay": settings.weight_decay, "batch_size": settings.batch_size}
    draws = draw_hyperparameters(settings.draws, ranges, generator=bench.numpy("phase 2"))
    make_model = model_factory(train.x.shape[1], settings.hidden, classes_of(splits))
    shared: dict[str, Any] = {
        "make_model": make_model,
        "steps": settings.steps,
        "optimizer": settings.optimizer,
        "seed": bench.seed,
        "device": bench.device,
    }
    # A method without environments is selected by its worst class, as the paper's column "None" is.
    blind = (train.x, train.y, held.x, held.y, held.y)
    if variant == "jtt":
        return baselines.jtt(
            *blind, draws=draws, first_steps=settings.steps // 3, evaluate_every=settings.every, **shared
        ).model, {}
    if variant == "lff":
        return baselines.lff(*blind, draws=draws, evaluate_every=settings.every, **shared).model, {}
    if variant == "afr":
        return last_layer.afr(*blind, **shared).model, {}

    metrics: dict[str, Any] = {}
    environments = None
    if kind == "erm":
        groups, held_groups, learner = train.y, held.y, "erm"
    elif kind == "human":
        groups, held_groups = (2 * part.y + part.environment for part in (train, held))
    elif kind == "oracle":
        groups, held_groups = (2 * part.y + (part.attribute != part.y) for part in (train, held))
    elif kind == "eiil":
        environments, held_environments = inferred(settings, bench, splits, make_model)
        groups, held_groups = 2 * train.y + environments, 2 * held.y + held_environments
    else:
        environments, held_environments, metrics = discovered(settings, bench, splits)
        groups, held_groups = 2 * train.y + environments, 2 * held.y + held_environments
    if learner == "dfr":
        return retrained(settings, bench, splits, held_groups, {**shared, "draws": draws}), metrics
    fit = fit_groups(
        train.x,
        train.y,
        groups,
        held.x,
        held.y,
        held_groups,
        learner=learner,  # pyrefly: ignore[bad-argument-type]
        draws=draws,
        evaluate_every=settings.every,
        environments=environments if learner == "irm" else None,
        progress=lambda step, total, loss: bench.progress(step, total, loss=loss),
        **shared,
    )
    for step, value in zip(fit.steps, fit.validation_curve, strict=True):
        bench.log(int(step), validation_worst_group_accuracy=float(value))
    return fit.model, {**metrics, "validation_worst_group_accuracy": float(max(fit.validation_curve))}


def retrained(settings: Groups, bench: Bench, splits: Splits, held_groups: Any, shared: dict[str, Any]) -> nn.Module:
    """DFR: a last layer from the validation examples and their groups, on the features of an ERM if it has a body."""
    import torch
    from torch import nn

    from mechanisms.robust.last_layer import dfr, last_layer_features
    from mechanisms.robust.training import fit_groups

    train, held = splits.train, splits.validation
    if not settings.hidden:
        return dfr(held.x, held.y, held_groups, seed=bench.seed)
    body = fit_groups(
        train.x, train.y, train.y, held.x, held.y, held.y, learner="erm", evaluate_every=settings.every, **shared
    ).model
    assert isinstance(body, nn.Sequential)
    features, _ = last_layer_features(body, torch.as_tensor(held.x, device=bench.device))
    body[-1] = dfr(features.cpu(), held.y, held_groups, seed=bench.seed).to(bench.device)
    return body


def discovered(settings: Groups, bench: Bench, splits: Splits) -> tuple[Any, Any, dict[str, Any]]:
    """XRM's environments for train and validation, shared by all variants that use them, and how good they are."""
    phase_one = ("data", "path", "spurious", "hidden", "optimizer", "lr", "weight_decay", "batch_size")
    phase_one += ("search", "search_seed", "twin_steps")
    relevant = {name: getattr(settings, name) for name in phase_one} | {"file": fingerprint(settings.path)}
    found = bench.cached("twins", lambda: search_twins(settings, bench, splits), relevant)
    metrics = {key: value for key, value in found.items() if isinstance(value, float)}
    for step, rate in found["history"]:
        bench.log(step, flip_rate=rate)
    if found["degenerate"]:
        bench.note("the discovered environments are degenerate: some class has only one")
    return found["train"].numpy(), found["validation"].numpy(), metrics


def search_twins(settings: Groups, bench: Bench, splits: Splits) -> dict[str, Any]:
    """Phase 1: ten pairs of twins in one pass; the largest flip rate wins."""
    import torch

    from mechanisms.robust.xrm import Search, discover_environments

    train, held = splits.train, splits.validation
    found = discover_environments(
        train.x,
        train.y,
        validation=(held.x, held.y),
        model=model_factory(train.x.shape[1], settings.hidden, classes_of(splits)),
        search=Search(
            settings.lr, settings.weight_decay, settings.batch_size, settings.optimizer, trials=settings.search
        ),
        steps=settings.twin_steps,
        device=bench.device,
        random_state=bench.seed,
        search_seed=settings.search_seed,
        progress=lambda step, total: bench.progress(step, total),
    )
    minority = torch.as_tensor(train.attribute != train.y)
    scores = [agreement(trial.train, minority)["balanced_accuracy"] for trial in found.trials]
    quality = agreement(found.train, minority)
    return {
        "train": found.train,
        "validation": found.validation,
        "history": [[step, rate] for step, rate in found.flip_history],
        "degenerate": found.degenerate,
        "flip_rate": found.flip_rate,
        "shortfall": max(scores) - quality["balanced_accuracy"],
        **quality,
    }


def inferred(settings: Groups, bench: Bench, splits: Splits, make_model: Callable[[], nn.Module]) -> tuple[Any, Any]:
    """EIIL's environments of an ERM reference, for train and validation."""
    import torch

    from mechanisms.robust.baselines import eiil_environments
    from mechanisms.robust.training import Draws, fit_groups

    train, held = splits.train, splits.validation
    # The reference stops early, as EIIL asks: a long one fits the minority and hides it.
    reference = fit_groups(
        train.x,
        train.y,
        train.y,
        held.x,
        held.y,
        held.y,
        make_model=make_model,
        learner="erm",
        draws=Draws(lr=(1e-3,)),
        steps=settings.steps // 3,
        optimizer=settings.optimizer,
        seed=bench.seed,
        device=bench.device,
    ).model
    found = []
    for part in (train, held):
        with torch.no_grad():
            logits = reference(torch.as_tensor(part.x, device=bench.device)).cpu()
        found.append(eiil_environments(logits, part.y, seed=bench.seed).numpy())
    return found[0], found[1]
