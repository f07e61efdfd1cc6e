"""Who is fast and who is slow, in a small grid world: PPO in one room, then in a larger one with a new colour."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mechanisms.lab import Bench, config
from mechanisms.lab.configuration import as_dict
from mechanisms.papers._meta_rims.settings import Agents, extras

MODULAR = ("meta", "reversed", "joint")
ADAPTED = ("full", "fast-only", "slow-only")


@config
class Roles(Agents):
    """Settings of the agents, of PPO, and of both rooms.

    Rooms have `size` cells on a side and so many balls; `missions` are the colours that are asked for. `every` updates
    give one point of a curve. By default a phase is one segment.
    """

    training_size: int = 5
    training_balls: int = 2
    training_missions: tuple[int, ...] = (0, 1)
    transfer_size: int = 7
    transfer_balls: int = 4
    transfer_missions: tuple[int, ...] = (0, 1, 2)
    max_steps: int = 64
    every: int = 5


@extras()
def run_roles(settings: Roles, variant: str, bench: Bench) -> dict[str, Any]:
    """Train, change the task, go on.

    `..._sixths` are the success rates of six windows of updates with sampled actions, `..._auc` their mean, `final_...`
    those of fresh greedy episodes at the end of a phase.
    """
    from mechanisms._base.seeds import stream_seed
    from mechanisms.papers._meta_rims import agents

    first = trained(settings, variant, bench)
    second, model = adapted(settings, variant, first, bench, settings.inner_updates, variant)
    for which, one in (("training", first), ("transfer", second)):
        log(settings, which, one, bench)
    found = numbers("training", first) | numbers("transfer", second)
    if variant in MODULAR:
        seed = stream_seed(bench.seed, "activity")
        found |= agents.activity(model, rooms(settings, "transfer", settings.num_envs), seed, settings.max_steps)
    return found


@extras()
def run_adaptation(settings: Roles, variant: str, bench: Bench) -> dict[str, Any]:
    """The trained agent of `meta`, when all goes on, or every update goes to one set and the other stays as it is."""
    inner = {"full": settings.inner_updates, "fast-only": math.inf, "slow-only": 0}[variant]
    second, _ = adapted(settings, "meta", trained(settings, "meta", bench), bench, inner, variant)
    log(settings, "transfer", second, bench)
    return numbers("transfer", second)


def trained(settings: Roles, variant: str, bench: Bench) -> dict[str, Any]:
    """The first phase, with the agent at its end; the experiments share it."""

    def compute() -> dict[str, Any]:
        model = make_agent(settings, variant, "training", bench)
        return phase(settings, "training", model, bench, settings.inner_updates, variant)

    return bench.cached(f"training-{variant}", compute, settings=as_dict(settings))


def adapted(
    settings: Roles, variant: str, first: dict[str, Any], bench: Bench, inner: int | float, name: str
) -> tuple[dict[str, Any], Any]:
    """The second phase, from the end of the first, and the agent at its end."""
    model = make_agent(settings, variant, "transfer", bench)
    model.policy.load_state_dict(first["policy"])
    model.policy.optimizer.load_state_dict(numbered(first["optimizer"]))
    return phase(settings, "transfer", model, bench, inner, name), model


def make_agent(settings: Roles, variant: str, which: str, bench: Bench) -> Any:
    """A fresh agent: what it sees and its mission go into its memory as they are, and from there to the heads.

    There is no encoder: it would be fast in "meta" and in "reversed" alike, and could learn for whichever rests.
    """
    from mechanisms.papers._meta_rims import agents

    return agents.make_agent(settings, variant, rooms(settings, which, settings.num_envs), bench)


def phase(settings: Roles, which: str, model: Any, bench: Bench, inner: int | float, name: str) -> dict[str, Any]:
    """Updates in one kind of room, then fresh greedy episodes there."""
    from mechanisms._base.seeds import stream_seed
    from mechanisms.papers._meta_rims import agents, training

    updates = getattr(settings, f"{which}_updates")
    envs = rooms(settings, which, settings.num_envs)
    tally = training.learn(
        model,
        envs,
        task=which,
        variant=name,
        updates=updates,
        segment=settings.segment,
        bench=bench,
        callbacks=[agents.phases(inner)],
        report=lambda update, success: bench.progress(update, updates, success=success),
    )
    ends = list(range(settings.every, updates + 1, settings.every))
    seed = stream_seed(bench.seed, f"evaluation {which}")
    return {
        "sixths": tally.windows(),
        "ends": ends,
        "curve": [tally.rate(end - settings.every, end) for end in ends],
        "episodes": int(tally.finished.sum()),
        "greedy": training.greedy_success(model, rooms(settings, which, settings.evaluation), 1, seed),
        "policy": dict(model.policy.state_dict()),
        "optimizer": named(model.policy.optimizer.state_dict()),
    }


def rooms(settings: Roles, which: str, num_envs: int) -> Any:
    """The rooms of a phase, with stable-baselines3's interface."""
    from mechanisms.recurrent import SB3VecEnv
    from mechanisms.worlds import VectorGoTo

    return SB3VecEnv(
        VectorGoTo(
            num_envs,
            size=getattr(settings, f"{which}_size"),
            num_balls=getattr(settings, f"{which}_balls"),
            missions=getattr(settings, f"{which}_missions"),
            max_steps=settings.max_steps,
        ),
        bootstrap=False,  # the time limit ends an episode, with a reward of 0
    )


def numbers(which: str, found: dict[str, Any]) -> dict[str, Any]:
    """What a phase puts into the record."""
    from mechanisms.papers._meta_rims.training import mean_of

    return {
        f"{which}_auc": mean_of(found["sixths"]),
        f"{which}_sixths": [round(one, 4) for one in found["sixths"]],
        f"final_{which}": found["greedy"],
        f"{which}_episodes": found["episodes"],
    }


def log(settings: Roles, which: str, found: dict[str, Any], bench: Bench) -> None:
    """The curve of a phase over frames; those of both loops count."""
    frames = settings.num_envs * settings.steps
    for end, success in zip(found["ends"], found["curve"], strict=True):
        bench.log(end * frames, **{f"{which}_success": round(success, 4)})


def named(tree: Any, mark: str = "#") -> Any:
    """A tree whose keys are all text, as a stage must be: an optimiser numbers its parameters."""
    if isinstance(tree, Mapping):
        return {f"{mark}{key}" if isinstance(key, int) else key: named(value, mark) for key, value in tree.items()}
    return [named(value, mark) for value in tree] if isinstance(tree, list) else tree


def numbered(tree: Any, mark: str = "#") -> Any:
    """What `named` was given."""
    if isinstance(tree, Mapping):
        return {
            int(key.removeprefix(mark)) if key.startswith(mark) else key: numbered(value, mark)
            for key, value in tree.items()
        }
    return [numbered(value, mark) for value in tree] if isinstance(tree, list) else tree


def tiny(**changes: Any) -> Roles:
    """Settings that show that the road is open, within a second or two."""
    small: dict[str, Any] = {
        "num_envs": 8,
        "steps": 8,
        "epochs": 1,
        "batch_size": 64,
        "head_size": 8,
        "modules": 3,
        "module_size": 4,
        "active": 2,
        "key_size": 4,
        "communication_heads": 1,
        "communication_key_size": 4,
        "lstm_size": 8,
        "inner_updates": 1,
        "training_updates": 6,
        "transfer_updates": 6,
        "max_steps": 8,
        "every": 2,
        "segment": 4,
        "evaluation": 8,
    }
    return Roles(**small | changes)
