"""Grid worlds beside their peers, in one run: `python benchmarks/bench_grid.py [--quick]`.

Steps per second of random actions, resets included, on one core:

(a) `VectorGoTo` with 64 rooms, in training (5 x 5, two balls) and transfer (7 x 7, four balls).
    Target: at least 200,000 in both.
(b) against the same world in plain Python, and minigrid's own BabyAI-GoToObj, both behind gymnasium's SyncVectorEnv
    with 64 environments; reported as ratios.
(c) other numbers of rooms; `make_minigrid` in this process, in as many as there are processors, and in one for each
    environment, as gymnasium's AsyncVectorEnv has it (these by the clock, as the work is elsewhere).

All in turns, medians. Before timing, the plain world, the same rooms in minigrid and ours must agree step for step.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import minigrid  # noqa: F401 - registers the levels
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from _grid_peers import MiniGridGoTo, PlainGoTo, layouts, minigrid_view
from _turns import in_turns, options, ratio, verdict
from mechanisms.worlds import VectorGoTo, make_minigrid

TARGET = 200_000
ROOMS = 64
TRANSFER: dict[str, Any] = {"size": 7, "num_balls": 4, "missions": (0, 1, 2)}


def check_agreement(steps: int = 60) -> None:
    """Views, rewards and ends of all three are the same."""
    env = VectorGoTo(4, **TRANSFER)
    plain = [PlainGoTo(**TRANSFER) for _ in range(4)]
    grids = [MiniGridGoTo(7) for _ in range(4)]
    env.reset(seed=0)
    for index, layout in enumerate(layouts(env.state_dict())):
        for other in (plain[index], grids[index]):
            other.reset(options={"layout": layout})
    for actions in np.random.default_rng(0).integers(0, 3, (steps, 4)):
        observation, reward, terminated, truncated, info = env.step(actions)
        rooms = layouts(env.state_dict())
        for index, action in enumerate(actions):
            seen = plain[index].step(int(action))
            image, gain, success, _, _ = grids[index].step(int(action))
            over = terminated[index] or truncated[index]
            last = info["final_obs"][index] if over else observation[index]
            assert np.array_equal(seen[0], last)
            assert np.array_equal(minigrid_view(image["image"]).ravel(), last[:100])
            assert seen[1:4] == (reward[index], terminated[index], truncated[index])
            assert success == terminated[index]
            assert abs(gain - reward[index]) < 1e-12
            if over:
                for other in (plain[index], grids[index]):
                    other.reset(options={"layout": rooms[index]})


def stepping(env: VectorEnv, steps: int) -> Callable[[], None]:
    """So many steps of random actions, drawn beforehand."""
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, int(env.single_action_space.n), (steps, env.num_envs))

    def run() -> None:
        for each in actions:
            env.step(each)

    return run


def measure(quick: bool) -> None:
    peers = {
        "the same in plain Python": SyncVectorEnv([PlainGoTo] * ROOMS, autoreset_mode=AutoresetMode.SAME_STEP),
        "minigrid, BabyAI-GoToObj": SyncVectorEnv(
            [lambda: gymnasium.make("BabyAI-GoToObj-v0", disable_env_checker=True)] * ROOMS,
            autoreset_mode=AutoresetMode.SAME_STEP,
        ),
    }
    ours = {"VectorGoTo 5x5": VectorGoTo(ROOMS), "VectorGoTo 7x7": VectorGoTo(ROOMS, **TRANSFER)}
    rounds = 3 if quick else 9
    lengths = {**dict.fromkeys(ours, 500 if quick else 2000), **dict.fromkeys(peers, 20 if quick else 60)}
    runs = {name: stepping(env, lengths[name]) for name, env in {**ours, **peers}.items()}
    seconds = in_turns(runs, rounds, alone=True, device="cpu")
    each = {name: [one / lengths[name] / ROOMS for one in found] for name, found in seconds.items()}
    for name, found in each.items():
        print(f"{name:26s} {1 / np.median(found):10,.0f} steps/s", end="")
        if name in ours:
            met = 1 / np.median(found) >= TARGET
            print(f"   >= {TARGET:,}: {verdict(met)}")
        else:
            print(f"   ours (5x5) is {ratio(found, each['VectorGoTo 5x5']):.0f} times as fast")
    sizes = (1, 16, 256) if quick else (1, 16, 256, 1024)
    others = {f"{size} rooms": stepping(VectorGoTo(size), 500) for size in sizes}
    found = in_turns(others, rounds, alone=True, device="cpu")
    each = {name: 500 * size / np.median(found[name]) for name, size in zip(others, sizes, strict=True)}
    print("VectorGoTo 5x5, steps/s:", ", ".join(f"{name} {one:,.0f}" for name, one in each.items()))


def measure_processes(quick: bool) -> None:
    print("make_minigrid, BabyAI-GoToLocal, steps/s by the clock:")
    for count in (8,) if quick else (8, 64):
        for rgb in (False, True):
            envs = {
                name: make_minigrid("BabyAI-GoToLocal-v0", count, seed=0, rgb=rgb, workers=workers)[0]
                for name, workers in (("this process", 0), ("a share each", None), ("one each", count))
            }
            steps = max(4, (800 if quick else 4000) // count)
            runs = {name: stepping(env, steps) for name, env in envs.items()}
            found = in_turns(runs, 1 if quick else 3, alone=False, device="cpu")
            speeds = ", ".join(f"{name} {steps * count / np.median(found[name]):,.0f}" for name in envs)
            print(f"    {count} environments, {'pictures' if rgb else 'symbols'}: {speeds}", flush=True)
            for env in envs.values():
                env.close()


def main() -> None:
    chosen = options(__doc__)
    check_agreement()
    measure(chosen.quick)
    measure_processes(chosen.quick)


if __name__ == "__main__":
    main()
