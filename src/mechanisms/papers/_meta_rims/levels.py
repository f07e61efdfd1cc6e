"""Levels of BabyAI and MiniGrid in pairs: an agent learns the easier one, then the harder one."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from mechanisms.lab import Bench, config
from mechanisms.papers._meta_rims.settings import Agents, extras

WINDOWS = 20
# MultiRoom-N4-S5-v0 has six rooms, not four.
PAIRS = (
    ("BabyAI-GoToObj-v0", "BabyAI-GoToLocal-v0"),
    ("BabyAI-GoToRedBallGrey-v0", "BabyAI-GoToRedBall-v0"),
    ("BabyAI-GoToLocalS5N2-v0", "BabyAI-GoToLocalS8N7-v0"),
    ("BabyAI-PickupLoc-v0", "BabyAI-PutNextLocal-v0"),
    ("BabyAI-PutNextLocalS5N3-v0", "BabyAI-PutNextLocalS6N4-v0"),
    ("BabyAI-GoToObjMazeS4R2-v0", "BabyAI-GoToObjMazeS7-v0"),
    ("BabyAI-KeyCorridorS3R1-v0", "BabyAI-KeyCorridorS3R3-v0"),
    ("MiniGrid-DoorKey-5x5-v0", "MiniGrid-DoorKey-8x8-v0"),
    ("MiniGrid-MultiRoom-N2-S4-v0", "MiniGrid-MultiRoom-N4-S5-v1"),
    ("MiniGrid-Fetch-5x5-N2-v0", "MiniGrid-Fetch-8x8-N3-v0"),
)


@config
class Levels(Agents):
    """Settings of the agents, of PPO (those of BabyAI), and the pairs of levels.

    `workers` processes step the environments (as many as there are processors by default; results do not depend on
    it), `max_steps` is a time limit other than the level's own. Rewards are multiplied by `reward_scale` for learning.
    """

    pairs: tuple[tuple[str, str], ...] = PAIRS
    steps: int = 40
    epochs: int = 4
    lr: float = 1e-4
    reward_scale: float = 20.0
    word_size: int = 128
    modules: int = 5
    module_size: int = 50
    active: int = 3
    key_size: int = 64
    communication_key_size: int = 32
    init_std: float = 0.05
    lstm_size: int = 250
    training_updates: int = 2000
    transfer_updates: int = 2000
    segment: int = 200
    workers: int | None = None
    max_steps: int | None = None


def tiny() -> Levels:
    """One pair of small rooms, a few updates, no processes."""
    return Levels(
        pairs=(("MiniGrid-DoorKey-5x5-v0", "MiniGrid-DoorKey-6x6-v0"),),
        num_envs=2,
        steps=8,
        epochs=1,
        batch_size=16,
        head_size=8,
        word_size=4,
        modules=3,
        module_size=4,
        active=2,
        key_size=4,
        communication_heads=1,
        communication_key_size=4,
        lstm_size=8,
        inner_updates=1,
        training_updates=2,
        transfer_updates=2,
        segment=2,
        evaluation=2,
        workers=0,
        max_steps=12,
    )


@extras()
def run_levels(settings: Levels, variant: str, bench: Bench) -> dict[str, Any]:
    """Each pair with an agent of its own.

    Metrics are lists with one number for each pair; `transfer_windows` has twenty for each, one pair after the other.
    """
    from mechanisms.papers._meta_rims import training

    found: dict[str, list[float]] = {}
    for place in range(len(settings.pairs)):
        first, second, zero_shot = run_pair(settings, variant, place, bench)
        for which, one in (("training", first), ("transfer", second)):
            frames = getattr(settings, f"{which}_updates") * settings.num_envs * settings.steps / WINDOWS
            for end, success in enumerate(one["windows"], 1):
                bench.log(end * frames, **{f"{which}_success_{place}": round(success, 4)})
        numbers = {
            "training_auc": training.mean_of(first["windows"]),
            "transfer_auc": training.mean_of(second["windows"]),
            "zero_shot": zero_shot,
            "final_training": first["greedy"],
            "final_transfer": second["greedy"],
        }
        for name, number in numbers.items():
            found.setdefault(name, []).append(number)
        found.setdefault("transfer_windows", []).extend(round(one, 4) for one in second["windows"])
    return found


def run_pair(settings: Levels, variant: str, place: int, bench: Bench) -> tuple[dict[str, Any], dict[str, Any], float]:
    """Both phases of a pair, and the greedy success on the harder level before the first update there."""
    from mechanisms._base.seeds import stream_seed
    from mechanisms.papers._meta_rims import agents, training
    from mechanisms.recurrent import BabyAIEncoder
    from mechanisms.worlds.missions import mission_vocabulary

    pair = settings.pairs[place]
    vocabulary = mission_vocabulary(pair)
    each = -(-settings.evaluation // settings.num_envs)  # episodes of each environment, rounded up
    total = len(settings.pairs) * (settings.training_updates + settings.transfer_updates)
    done = place * (settings.training_updates + settings.transfer_updates)
    model, phases, zero_shot = None, [], math.nan
    for which, level in zip(("training", "transfer"), pair, strict=True):
        with environments(settings, level, vocabulary) as envs:
            if model is None:
                model = agents.make_agent(
                    settings,
                    variant,
                    envs,
                    bench,
                    features_extractor_class=BabyAIEncoder,
                    features_extractor_kwargs={"word_size": settings.word_size, "mission_size": settings.word_size},
                )
            else:
                zero_shot = training.greedy_success(model, envs, each, stream_seed(bench.seed, f"zero-shot {place}"))
            tally = training.learn(
                model,
                envs,
                task=f"{which}-{place}",
                variant=variant,
                updates=getattr(settings, f"{which}_updates"),
                segment=settings.segment,
                bench=bench,
                callbacks=[agents.phases(settings.inner_updates)],
                report=lambda update, success, before=done: bench.progress(before + update, total, success=success),
            )
            done += len(tally.finished)
            greedy = training.greedy_success(model, envs, each, stream_seed(bench.seed, f"evaluation {which} {place}"))
            phases.append({"windows": tally.windows(WINDOWS), "greedy": greedy})
    return phases[0], phases[1], zero_shot


@contextlib.contextmanager
def environments(settings: Levels, level: str, vocabulary: Any) -> Generator[Any]:
    """A level as many times as the settings say, with stable-baselines3's interface; closed behind the block."""
    from gymnasium.wrappers.vector import TransformReward

    from mechanisms.recurrent import SB3VecEnv
    from mechanisms.worlds.levels import make_minigrid

    options: dict[str, Any] = {} if settings.max_steps is None else {"max_steps": settings.max_steps}
    levels, _ = make_minigrid(level, settings.num_envs, workers=settings.workers, vocabulary=vocabulary, **options)
    envs = SB3VecEnv(TransformReward(levels, lambda reward: reward * settings.reward_scale), bootstrap=False)
    try:
        yield envs
    finally:
        envs.close()


def adapts_faster(seed: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether `meta` reaches 90 % of joint's final success in at most 0.8 of the frames, in the median over pairs.

    Of the frames in which `joint` itself reaches it; who never does has an infinite number.
    """
    ratios = []
    meta, joint = (seed[name]["transfer_windows"] for name in ("meta", "joint"))
    for start in range(0, len(joint), WINDOWS):
        own, other = meta[start : start + WINDOWS], joint[start : start + WINDOWS]
        goal = 0.9 * other[-1]
        ratios.append(_reached(own, goal) / _reached(other, goal))
    return statistics.median(ratios) <= 0.8


def _reached(windows: Sequence[float], goal: float) -> float:
    """The number of windows until success is at the goal."""
    return next((float(count) for count, success in enumerate(windows, 1) if success >= goal), math.inf)
