"""Levels of MiniGrid and BabyAI: missions as numbers, equal with and without processes, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from typing import Any

import gymnasium
import minigrid  # noqa: F401 - registers the levels
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from mechanisms.worlds import VectorGoTo, Vocabulary, check_tasks, make_minigrid, mission_vocabulary
from mechanisms.worlds._workers import Workers, number_of_workers
from mechanisms.worlds.levels import _Maker

GO_TO, PICK_UP = "BabyAI-GoToObj-v0", "BabyAI-PickupLoc-v0"
# The levels that wave function collapse builds need libraries of their own; their one sentence is in their space.
LEVELS = [name for name in gymnasium.registry if name.startswith(("BabyAI-", "MiniGrid-")) and "WFC" not in name]


# --- missions -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*out of date")
def test_the_grammar_holds_the_missions_of_every_level() -> None:
    assert len(LEVELS) > 170
    for name in LEVELS:
        vocabulary = mission_vocabulary(name)
        env = _Maker(name, 0, False, vocabulary, None, {})()
        for _ in range(2):
            observation, _ = env.reset()  # a word or a length that is not foreseen would raise
            assert observation in env.observation_space
        words = env.unwrapped.mission.lower().replace(",", "").split()
        assert vocabulary.decode(observation["mission"]).split() == words
        assert list(vocabulary.words) == sorted(vocabulary.words)


def test_all_levels_of_babyai_share_their_words_and_lengths_follow_the_number_of_actions() -> None:
    names = (GO_TO, PICK_UP, "BabyAI-OpenTwoDoors-v0", "BabyAI-GoToSeq-v0", "BabyAI-BossLevel-v0")
    found = [mission_vocabulary(name) for name in names]
    assert len({each.words for each in found}) == 1
    assert [each.max_length for each in found] == [16, 16, 32, 64, 64]
    both = mission_vocabulary([GO_TO, "MiniGrid-DoorKey-5x5-v0"])
    assert {"goal", "ball"} <= set(both.words)
    assert both.max_length == 16


def test_a_mission_is_read_back_as_it_was() -> None:
    vocabulary = mission_vocabulary("BabyAI-BossLevel-v0")
    mission = "put a red ball on your left next to the key, then go to the grey door after you open a box behind you"
    assert vocabulary.decode(vocabulary.encode(mission)) == mission.replace(",", "")
    assert vocabulary.encode(mission).shape == (64,)
    assert vocabulary.encode("")[0] == 0


# --- environments ---------------------------------------------------------------------------------------------------


def play(env: VectorEnv, steps: int = 40) -> list[Any]:
    """Observations, rewards and ends of a fixed sequence of actions."""
    actions = np.random.default_rng(0).integers(0, 7, (steps, env.num_envs))
    found: list[Any] = [env.reset()[0]]
    for each in actions:
        observation, reward, terminated, truncated, info = env.step(each)
        over = terminated | truncated
        assert ("final_obs" in info) == over.any()
        if over.any():
            assert np.array_equal(info["_final_obs"], over)
            assert np.array_equal(info["final_info"]["is_success"][over], reward[over] > 0)
            assert all(info["final_obs"][index] in env.single_observation_space for index in over.nonzero()[0])
        found.append((observation, reward, terminated, truncated))
    return found


def same(first: list[Any], second: list[Any]) -> bool:
    def flat(run: list[Any]) -> list[np.ndarray]:
        arrays = list(run[0].values())
        for observation, *rest in run[1:]:
            arrays += [*observation.values(), *rest]
        return arrays

    return all(np.array_equal(one, two) for one, two in zip(flat(first), flat(second), strict=True))


def test_processes_give_what_one_process_gives_and_none_stays_behind() -> None:
    here, vocabulary = make_minigrid([GO_TO, PICK_UP], 6, seed=5, workers=0, max_steps=9)
    apart, other = make_minigrid([GO_TO, PICK_UP], 6, seed=5, workers=2, max_steps=9)
    assert isinstance(here, SyncVectorEnv)
    assert isinstance(apart, Workers)
    assert apart.observation_space == here.observation_space
    assert apart.action_space == here.action_space
    assert len(apart.processes) == 2
    assert vocabulary == other
    first, second = play(here), play(apart)
    assert same(first, second)
    assert any(step[3].any() for step in first[1:])  # the time limit is a truncation
    missions = [vocabulary.decode(row) for row in first[0]["mission"]]
    assert [mission.split()[0] for mission in missions] == ["go", "pick"] * 3  # in turn
    for seed in (11, [3, 1, 4, 1, 5, 9]):
        assert all(
            np.array_equal(one, two)
            for one, two in zip(*(env.reset(seed=seed)[0].values() for env in (here, apart)), strict=True)
        )
    numpy_seed, plain = (apart.reset(seed=seed)[0]["image"] for seed in (np.int64(11), 11))
    assert np.array_equal(numpy_seed, plain)
    assert here.metadata["autoreset_mode"] == apart.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    processes = apart.processes
    here.close()
    apart.close()
    apart.close()
    assert not any(process.is_alive() for process in processes)


def test_the_same_seed_gives_the_same_levels_and_another_seed_others() -> None:
    runs = []
    for seed in (1, 1, 2):
        env, _ = make_minigrid("BabyAI-GoToLocal-v0", 2, seed=np.int64(seed), workers=0)
        runs.append(play(env, 5))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])
    assert not np.array_equal(runs[0][0]["image"][0], runs[0][0]["image"][1])


def test_one_environment_needs_no_process_and_pictures_are_of_the_view() -> None:
    env, _ = make_minigrid(GO_TO, 1, seed=0, rgb=True)
    assert isinstance(env, SyncVectorEnv)
    observation, _ = env.reset()
    assert observation["image"].shape == (1, 56, 56, 3)
    assert observation["image"].dtype == np.uint8
    assert observation["direction"].shape == (1,)
    assert observation["mission"].dtype == np.int64


def test_rejected_levels_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    env, _ = make_minigrid("BabyAI-GoToLocal-v0", 1, seed=0)
    for _ in range(20):
        env.reset()
    bare = gymnasium.make("BabyAI-GoToLocal-v0", disable_env_checker=True)
    assert capsys.readouterr().out == ""
    for seed in range(20):
        bare.reset(seed=seed)
    assert "Sampling rejected" in capsys.readouterr().out  # the test would see it


def test_a_view_of_another_size_is_a_setting() -> None:
    env, _ = make_minigrid(GO_TO, 1, seed=0, agent_view_size=5)
    assert env.reset()[0]["image"].shape == (1, 5, 5, 3)


def test_pictures_and_infos_of_processes_come_in_order() -> None:
    apart, _ = make_minigrid(GO_TO, 4, seed=0, workers=2, render_mode="rgb_array", max_steps=1)
    here, _ = make_minigrid(GO_TO, 4, seed=0, workers=0, render_mode="rgb_array", max_steps=1)
    apart.reset()
    here.reset()
    frames = apart.render(), here.render()
    assert len(frames[0]) == 4
    assert all(np.array_equal(one, two) for one, two in zip(*frames, strict=True))
    infos = [env.step(np.zeros(4, int))[4] for env in (apart, here)]
    assert infos[0].keys() == infos[1].keys()
    assert all(
        np.array_equal(one["image"], two["image"])
        for one, two in zip(*(info["final_obs"] for info in infos), strict=True)
    )
    with pytest.raises(ValueError, match="workers=0"):
        apart.reset(options={"reset_mask": np.ones(4, bool)})
    apart.close()


def test_shares_are_equal_and_no_larger_than_the_machine() -> None:
    assert number_of_workers(1, None) == 0
    assert number_of_workers(12, 0) == 0
    assert number_of_workers(12, 4) == 4
    found = number_of_workers(12, None)
    assert found == 0 or 12 % found == 0
    assert found <= (os.cpu_count() or 1)


# --- processes that are interrupted ---------------------------------------------------------------------------------

# Shells let what they run in the background ignore Ctrl-C; what is tested is a program that heeds it.
SCRIPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from mechanisms.worlds import make_minigrid
env, _ = make_minigrid("BabyAI-GoToObj-v0", 3, seed=0, workers=3)
env.reset()
print(*[process.pid for process in env.processes], flush=True)
while True:
    env.step([0, 1, 2])
"""


@pytest.mark.parametrize("kill", ["interrupt", "kill"])
def test_workers_end_with_the_process_that_started_them(kill: str) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert run.stdout is not None
    workers = [int(word) for word in run.stdout.readline().split()]
    assert len(workers) == 3
    time.sleep(0.1)
    if kill == "interrupt":
        os.killpg(run.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
    else:
        run.kill()
    _, error = run.communicate(timeout=60)
    if kill == "interrupt":
        assert error.rstrip().endswith("KeyboardInterrupt")
        assert error.count("Traceback") == 1  # the workers say nothing
    end = time.monotonic() + 30
    while any(map(is_running, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(is_running, workers))


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_closing_in_the_middle_of_a_step_or_after_a_death_ends_all() -> None:
    for harm in ("step", "death"):
        env, _ = make_minigrid(GO_TO, 4, seed=0, workers=2)
        assert isinstance(env, Workers)
        env.reset()
        if harm == "step":
            env._outer.step_async(np.zeros((2, 2), int))
        else:
            env.processes[0].kill()
            env.processes[0].join()
        env.close()
        assert not any(process.is_alive() for process in env.processes)


@pytest.mark.filterwarnings("ignore:.*ERROR")  # gymnasium warns of what it raises
def test_a_word_outside_the_vocabulary_is_named_also_from_a_process() -> None:
    small = Vocabulary(("ball", "go", "the", "to"), max_length=8)
    for workers in (0, 2):
        env, _ = make_minigrid(GO_TO, 2, seed=0, workers=workers, vocabulary=small)
        with pytest.raises(KeyError, match=r"the word '.*' of the mission 'go to the .*' is not in the"):
            env.reset()
        env.close()
    short = Vocabulary(mission_vocabulary(GO_TO).words, max_length=3)
    env, _ = make_minigrid(GO_TO, 1, vocabulary=short)
    with pytest.raises(ValueError, match="has 5 words, the vocabulary allows 3"):
        env.reset()


# --- users' mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.user_input
def test_levels_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(
        ValueError, match="MiniGrid-Dynamic-Obstacles-5x5-v0 and BabyAI-GoToObj-v0 have different spaces"
    ):
        make_minigrid([GO_TO, "MiniGrid-Dynamic-Obstacles-5x5-v0"], 2)
    with pytest.raises(ValueError, match="ids is empty"):
        make_minigrid([], 2)
    with pytest.raises(ValueError, match="num_envs=1 for 2 levels"):
        make_minigrid([GO_TO, PICK_UP], 1)
    with pytest.raises(ValueError, match=r"workers=2 for 3 environments: give 0 .* or a divisor of 3"):
        make_minigrid(GO_TO, 3, workers=2)
    with pytest.raises(ValueError, match="CartPole-v1 has no missions"):
        make_minigrid("CartPole-v1", 1)
    with pytest.raises(gymnasium.error.NameNotFound):
        make_minigrid("BabyAI-GoToMars-v0", 1)


@pytest.mark.user_input
def test_vocabularies_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="each once"):
        Vocabulary(("a", "a"), 3)
    with pytest.raises(ValueError, match="lower-case"):
        Vocabulary(("go to",), 3)
    with pytest.raises(ValueError, match="max_length=0"):
        Vocabulary(("a",), 0)


# --- task lists -----------------------------------------------------------------------------------------------------


def test_tasks_of_equal_spaces_pass_as_lists_and_as_endless_iterators() -> None:
    train, transfer = VectorGoTo(4), VectorGoTo(4, size=7, num_balls=4, missions=(0, 1, 2))
    tasks = [train, transfer]
    assert check_tasks(tasks) is tasks

    def forever() -> Any:
        while True:
            yield from tasks

    endless = iter(check_tasks(forever()))
    found = [next(endless) for _ in range(5)]
    assert all(one is not two for one, two in pairwise(found))


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"num_colors": 4}, "task 1 differs from task 0 in its observation space"),
        ({"num_envs": 3}, "number of environments: 3 after 4"),
    ],
)
def test_tasks_that_differ_are_refused(second: dict[str, Any], message: str) -> None:
    tasks = [VectorGoTo(4), VectorGoTo(**{"num_envs": 4, **second})]
    with pytest.raises(ValueError, match=message):
        check_tasks(tasks)
    with pytest.raises(ValueError, match=message):
        list(check_tasks(iter(tasks)))
    with pytest.raises(ValueError, match="there is no task"):
        check_tasks([])
    with pytest.raises(TypeError, match="task 1 is a str"):
        check_tasks([VectorGoTo(4), "GoTo"])  # pyrefly: ignore
    other = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 4)
    with pytest.raises(ValueError, match="observation space"):
        check_tasks([VectorGoTo(4), other])
