"""What must be so whatever is learnt: who moves in which loop, and gradients through an inner step in closed form."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mechanisms.lab import Bench, config
from mechanisms.papers._meta_rims import roles
from mechanisms.papers._meta_rims.settings import extras

if TYPE_CHECKING:
    from torch import Tensor, nn

VARIANTS = ("inner-alone", "outer-alone", "two-timescales", "closed-form")


@config
class Exact:
    """Updates of a small agent, and the rates of the closed forms."""

    updates: int = 6
    num_envs: int = 8
    steps: int = 8
    inner_lr: float = 0.3
    rate: float = 0.5


def run_exact(settings: Exact, variant: str, bench: Bench) -> dict[str, Any]:
    """The largest change of each set over some updates of PPO, or the distance of gradients from what they must be."""
    if variant == "closed-form":
        return closed_form(settings, bench)
    if variant == "two-timescales":
        ends = [train(settings, mode, 0, bench)[1] for mode in ("joint", "two-timescales")]
        return {"difference": largest_change(*ends)}
    start, end, slow_names = train(settings, "meta", math.inf if variant == "inner-alone" else 0, bench)
    sets = {"slow": slow_names, "fast": start.keys() - slow_names}
    changes = {which: largest_change({name: start[name] for name in names}, end) for which, names in sets.items()}
    return {f"{which}_change": change for which, change in changes.items()} | {
        f"{which}_moved": int(change > 0) for which, change in changes.items()
    }


@extras()
def train(
    settings: Exact, mode: str, inner: int | float, bench: Bench
) -> tuple[dict[str, Tensor], dict[str, Tensor], set[str]]:
    """A small agent's parameters before and after some updates, and which of them are slow."""
    from mechanisms.papers._meta_rims import agents, training

    small = roles.tiny(num_envs=settings.num_envs, steps=settings.steps, epochs=2, batch_size=32)
    model = roles.make_agent(small, mode, "training", bench)
    slow = {id(one) for one in model.policy.optimizer.param_groups[1]["params"]}
    names = {name for name, one in model.policy.named_parameters() if id(one) in slow}
    start = copies(model.policy)
    training.learn(
        model,
        roles.rooms(small, "training", small.num_envs),
        task="exact",
        variant=f"{mode}-{inner}",
        updates=settings.updates,
        segment=settings.updates,
        bench=bench,
        callbacks=[agents.phases(inner)],
    )
    return start, copies(model.policy), names


def copies(module: nn.Module) -> dict[str, Tensor]:
    """All parameters as they are now."""
    return {name: one.detach().clone() for name, one in module.named_parameters()}


def largest_change(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of any number."""
    return max(float((value - other[name]).abs().max()) for name, value in one.items())


def closed_form(settings: Exact, bench: Bench) -> dict[str, Any]:
    """Quadratic losses, L_s = (θ - φ)²/2 and L_q = (θ' - t)²/2, whose gradients can be written down."""
    import torch

    from mechanisms.recurrent import maml_gradient, reptile_step

    alpha = settings.inner_lr
    theta, phi, target = torch.randn(3, 5, generator=bench.generator("numbers"), dtype=torch.float64)

    def support(fast: dict[str, Tensor], slow: dict[str, Tensor]) -> Tensor:
        return (fast["theta"] - slow["phi"]).square().sum() / 2

    def query(fast: dict[str, Tensor], slow: dict[str, Tensor]) -> Tensor:
        return (fast["theta"] - target).square().sum() / 2

    def gradient(**options: Any) -> Tensor:
        return maml_gradient(support, query, {"theta": theta}, {"phi": phi}, inner_lr=alpha, **options)["phi"]

    once = (1 - alpha) * theta + alpha * phi
    twice = (1 - alpha) * once + alpha * phi
    moved = reptile_step({"theta": theta}, {"theta": once}, settings.rate)["theta"]
    descended = theta - settings.rate * alpha * (theta - phi)
    return {
        "maml_error": float((gradient() - alpha * (once - target)).abs().max()),
        "first_order": float(gradient(first_order=True).abs().max()),
        "two_steps_error": float((gradient(inner_steps=2) - (1 - (1 - alpha) ** 2) * (twice - target)).abs().max()),
        "reptile_error": float((moved - descended).abs().max()),
    }
