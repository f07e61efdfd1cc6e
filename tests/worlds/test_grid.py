"""VectorGoTo: its rooms, views and rewards are those of a plain environment and of minigrid, step for step."""

import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from mechanisms.worlds import VectorGoTo

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TRANSFER: dict[str, Any] = {"size": 7, "num_balls": 4, "missions": (0, 1, 2)}


@pytest.fixture(scope="module")
def peers() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    import _grid_peers

    yield _grid_peers
    sys.path.remove(str(BENCHMARKS))


def actions_for(env: VectorGoTo, steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(3, (steps, env.num_envs), p=(0.25, 0.25, 0.5))


# --- against references ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, TRANSFER, {"size": 3, "num_balls": 8, "max_steps": 9}])
def test_every_step_is_that_of_a_plain_environment(peers: ModuleType, settings: dict[str, Any]) -> None:
    env = VectorGoTo(num_envs=8, **settings)
    names = ("size", "num_balls", "missions", "max_steps")
    plain = [peers.PlainGoTo(**{name: getattr(env, name) for name in names}) for _ in range(8)]
    observation, _ = env.reset(seed=0)
    for slow, layout, row in zip(plain, peers.layouts(env.state_dict()), observation, strict=True):
        assert np.array_equal(slow.reset(options={"layout": layout})[0], row)
    ended = 0
    for actions in actions_for(env, 200):
        observation, reward, terminated, truncated, info = env.step(actions)
        rooms = peers.layouts(env.state_dict())
        for index, slow in enumerate(plain):
            seen, gain, success, late, _ = slow.step(int(actions[index]))
            assert (gain, success, late) == (reward[index], terminated[index], truncated[index])
            if success or late:
                ended += 1
                assert np.array_equal(info["final_obs"][index], seen)
                assert info["_final_obs"][index]
                assert info["final_info"]["is_success"][index] == success
                seen, _ = slow.reset(options={"layout": rooms[index]})
            assert np.array_equal(seen, observation[index])
    assert ended > 20


@pytest.mark.parametrize("settings", [{}, TRANSFER])
def test_views_movements_and_rewards_are_those_of_minigrid(peers: ModuleType, settings: dict[str, Any]) -> None:
    env = VectorGoTo(num_envs=6, **settings)
    others = [peers.MiniGridGoTo(env.size) for _ in range(6)]
    observation, _ = env.reset(seed=1)
    for other, layout, row in zip(others, peers.layouts(env.state_dict()), observation, strict=True):
        image = other.reset(options={"layout": layout})[0]["image"]
        assert np.array_equal(peers.minigrid_view(image).ravel(), row[:100])
    headings = set()
    for actions in actions_for(env, 150, seed=1):
        observation, reward, terminated, truncated, info = env.step(actions)
        rooms = peers.layouts(env.state_dict())
        headings |= set(env.state_dict()["headings"].tolist())
        for index, other in enumerate(others):
            seen, gain, success, late, _ = other.step(int(actions[index]))
            assert gain == pytest.approx(reward[index], abs=1e-12)
            assert success == terminated[index]
            assert (late and not success) == truncated[index]  # minigrid also calls a success in the last step late
            row = observation[index]
            if success or late:
                last = info["final_obs"][index]
                assert np.array_equal(peers.minigrid_view(seen["image"]).ravel(), last[:100])
                seen, _ = other.reset(options={"layout": rooms[index]})
            assert np.array_equal(peers.minigrid_view(seen["image"]).ravel(), row[:100])
    assert headings == {0, 1, 2, 3}


def by_hand(**changes: Any) -> VectorGoTo:
    """One room with a red ball in the north-west corner; the agent two cells to the east of it, looking west."""
    env = VectorGoTo(num_envs=1, size=5, num_balls=1, missions=(0,))
    env.reset(seed=0)
    rooms = np.zeros((1, 5, 5), np.int64)
    rooms[0, 0, 0] = 1
    state = {**env.state_dict(), "rooms": rooms, "positions": np.array([[0, 2]]), "headings": np.array([2])}
    env.load_state_dict({**state, **changes})
    return env


def test_a_step_towards_the_ball_succeeds_in_front_of_it() -> None:
    observation, reward, terminated, truncated, info = by_hand().step([2])
    assert reward.tolist() == [1 - 0.9 / 64]
    assert terminated.tolist() == [True]
    assert truncated.tolist() == [False]
    view = info["final_obs"][0][:100].reshape(4, 5, 5)
    assert view[1, 3, 2] == 1  # the ball is one cell ahead of the agent, which stands at (4, 2)
    assert view[0, :3].all()  # behind it the wall
    assert view[0, :, 3:].all()  # and to the north, its right
    assert view[:, 4, 2].sum() == 0
    assert observation.shape == (1, 103)


def test_the_last_step_may_still_succeed_and_else_is_a_truncation_without_reward() -> None:
    late = np.array([63])
    _, reward, terminated, truncated, _ = by_hand(steps=late).step([2])
    assert (reward[0], terminated[0], truncated[0]) == (pytest.approx(0.1), True, False)
    _, reward, terminated, truncated, info = by_hand(steps=late).step([0])
    assert (reward[0], terminated[0], truncated[0]) == (0.0, False, True)
    assert info["final_info"]["is_success"].tolist() == [False]


# --- rooms ----------------------------------------------------------------------------------------------------------


def test_rooms_hold_one_ball_of_the_missions_colour_and_others_of_other_colours() -> None:
    env = VectorGoTo(num_envs=4000, **TRANSFER)
    env.reset(seed=0)
    state = env.state_dict()
    rooms, targets = state["rooms"], state["targets"]
    assert ((rooms > 0).sum((1, 2)) == 4).all()
    assert ((rooms == targets[:, None, None] + 1).sum((1, 2)) == 1).all()
    row, column = state["positions"].T
    assert (rooms[np.arange(4000), row, column] == 0).all()


def test_places_headings_missions_and_colours_are_uniform() -> None:
    # Six standard deviations of a share of 30,000: a false alarm in any of 60 counts is rarer than one in a million.
    env = VectorGoTo(num_envs=3000, **TRANSFER)
    counts = {"agent": np.zeros(49), "ball": np.zeros(49), "headings": np.zeros(4), "targets": np.zeros(3)}
    others = np.zeros(3)
    for episode in range(10):
        env.reset(seed=5 if episode == 0 else None)
        state = env.state_dict()
        place = state["positions"] @ (7, 1)
        counts["agent"] += np.bincount(place, minlength=49)
        ball = (state["rooms"] == state["targets"][:, None, None] + 1).reshape(3000, -1).argmax(1)
        counts["ball"] += np.bincount(ball, minlength=49)
        for name, size in (("headings", 4), ("targets", 3)):
            counts[name] += np.bincount(state[name], minlength=size)
        others += np.bincount(state["rooms"][state["targets"] == 0].ravel(), minlength=4)[1:]
    for name, found in counts.items():
        share, expected = found / found.sum(), 1 / len(found)
        assert np.abs(share - expected).max() < 6 * np.sqrt(expected * (1 - expected) / 30_000), name
    share = others[1] / others[1:].sum()
    assert abs(share - 0.5) < 6 * 0.5 / np.sqrt(others[1:].sum())


def test_a_random_agent_succeeds_about_half_of_the_time() -> None:
    env = VectorGoTo(num_envs=400)
    env.reset(seed=0)
    first = np.zeros(400, int)  # 1 success, 2 time limit, of each first episode
    for actions in np.random.default_rng(0).integers(0, 3, (64, 400)):
        _, _, terminated, truncated, _ = env.step(actions)
        first = np.where(first == 0, terminated + 2 * truncated, first)
    assert 0.35 < (first == 1).mean() < 0.75
    assert (first > 0).all()


# --- seeds ----------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_rooms_whatever_is_done_in_them() -> None:
    still, moving = VectorGoTo(num_envs=4, max_steps=3), VectorGoTo(num_envs=4, max_steps=3)
    still.reset(seed=3)
    moving.reset(seed=3)
    rooms: list[list[np.ndarray]] = [[], []]
    for step in range(60):
        for place, (env, actions) in enumerate([(still, [0, 0, 0, 0]), (moving, [step % 3, 0, 2, 1])]):
            env.step(actions)
            state = env.state_dict()
            rooms[place].append(state["rooms"][0][None] if state["episodes"][0] == 5 else np.zeros((0, 5, 5)))
    assert np.array_equal(np.concatenate(rooms[0])[0], np.concatenate(rooms[1])[0])


def test_the_first_environment_alone_meets_what_it_meets_among_others() -> None:
    alone, among = VectorGoTo(num_envs=1), VectorGoTo(num_envs=16)
    assert np.array_equal(alone.reset(seed=2)[0][0], among.reset(seed=2)[0][0])
    for actions in actions_for(among, 100):
        first, second = alone.step(actions[:1]), among.step(actions)
        assert all(np.array_equal(one[0], other[0]) for one, other in zip(first[:4], second[:4], strict=True))


def test_the_same_seed_gives_the_same_and_another_seed_something_else() -> None:
    env, other = VectorGoTo(num_envs=32, seed=7), VectorGoTo(num_envs=32)
    first = env.reset()[0]  # takes the constructor's seed
    assert np.array_equal(first, other.reset(seed=7)[0])
    assert not np.array_equal(first, env.reset()[0])  # goes on
    assert np.array_equal(first, env.reset(seed=np.int64(7))[0])
    assert not np.array_equal(first, env.reset(seed=8)[0])
    assert env.np_random_seed == 8
    fresh, second = VectorGoTo(num_envs=32), VectorGoTo(num_envs=32)
    assert not np.array_equal(fresh.reset()[0], second.reset()[0])


def test_a_state_goes_on_with_the_same_bits() -> None:
    env, other = VectorGoTo(num_envs=8, **TRANSFER), VectorGoTo(num_envs=8, **TRANSFER)
    env.reset(seed=0)
    other.reset(seed=1)
    for actions in actions_for(env, 40):
        env.step(actions)
    other.load_state_dict(env.state_dict())
    twin = copy.deepcopy(env)
    for actions in actions_for(env, 80, seed=3):
        steps = [each.step(actions) for each in (env, other, twin)]
        for step in steps[1:]:
            assert all(np.array_equal(one, two) for one, two in zip(steps[0][:4], step[:4], strict=True))


# --- gymnasium's contract -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("observation", ["flat", "dict"])
@pytest.mark.parametrize("num_envs", [1, 5])
def test_spaces_types_and_the_same_step_reset_are_gymnasiums(observation: str, num_envs: int) -> None:
    env = VectorGoTo(num_envs=num_envs, observation=observation, max_steps=4)
    assert isinstance(env, VectorEnv)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert env.observation_space == batch_space(env.single_observation_space, num_envs)
    assert env.action_space == batch_space(env.single_action_space, num_envs)
    env.action_space.seed(0)
    seen, info = env.reset(seed=0)
    assert info == {}
    assert seen in env.observation_space
    finals = 0
    for _ in range(30):
        seen, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert seen in env.observation_space
        assert (reward.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
        assert reward.shape == terminated.shape == truncated.shape == (num_envs,)
        over = terminated | truncated
        assert not (terminated & truncated).any()
        assert ("final_obs" in info) == over.any()
        if over.any():
            assert np.array_equal(info["_final_obs"], over)
            assert np.array_equal(info["_final_info"], over)
            for index in range(num_envs):
                last = info["final_obs"][index]
                assert last in env.single_observation_space if over[index] else last is None
                finals += over[index]
    assert finals >= num_envs
    env.close()
    assert env.closed


def test_a_dictionary_holds_what_the_flat_vector_holds() -> None:
    flat, rich = VectorGoTo(num_envs=3), VectorGoTo(num_envs=3, observation="dict")
    row, entry = flat.reset(seed=0)[0], rich.reset(seed=0)[0]
    assert np.array_equal(row[:, :100].reshape(3, 4, 5, 5), entry["image"])
    assert np.array_equal(row[:, 100:].argmax(1), entry["mission"])


def test_an_observation_is_not_changed_by_later_steps() -> None:
    env = VectorGoTo(num_envs=4, observation="dict", max_steps=2)
    seen, _ = env.reset(seed=0)
    kept = copy.deepcopy(seen)
    for actions in actions_for(env, 10):
        env.step(actions)
    assert all(np.array_equal(seen[name], kept[name]) for name in seen)


def test_gymnasiums_wrappers_count_the_episodes() -> None:
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(VectorGoTo(num_envs=4, max_steps=5, seed=0))
    env.reset()
    returns = np.zeros(4)
    compared = 0
    for actions in actions_for(VectorGoTo(num_envs=4), 50):
        _, reward, terminated, truncated, info = env.step(actions)
        returns += reward
        over = terminated | truncated
        if over.any():
            found = info.get("episode", info.get("final_info", {}).get("episode"))
            assert np.allclose(found["r"][over], returns[over])
            compared += 1
        returns[over] = 0
    assert compared > 5


def test_a_mask_resets_only_its_environments() -> None:
    env = VectorGoTo(num_envs=3)
    before, _ = env.reset(seed=0)
    env.step([0, 0, 0])
    left = env.state_dict()
    env.reset(options={"reset_mask": np.array([False, True, False])})
    now = env.state_dict()
    assert now["episodes"].tolist() == [1, 2, 1]
    assert now["steps"].tolist() == [1, 0, 1]
    assert np.array_equal(now["rooms"][[0, 2]], left["rooms"][[0, 2]])
    assert before.shape == (3, 103)


# --- pictures -------------------------------------------------------------------------------------------------------


def test_texts_and_pictures_show_the_room() -> None:
    env = by_hand()
    assert env.render() is None
    env.render_mode = "ansi"
    assert env.render() == ("go to the red ball\n#######\n#r.<..#\n#.....#\n#.....#\n#.....#\n#.....#\n#######",)
    env.render_mode = "rgb_array"
    (picture,) = env.render() or ()
    assert picture.shape == (7 * 24, 7 * 24, 3)
    assert picture.dtype == np.uint8
    ball, corner = picture[24 + 12, 24 + 12], picture[12, 12]
    assert ball[0] > ball[1:].max() + 50  # red, lightened as the agent sees it
    assert corner[0] > corner[1:].max() + 100  # the mission
    assert picture[5 * 24 + 12, 3 * 24 + 12].max() < picture[24 + 12, 2 * 24 + 12].max()  # unseen is darker


# --- users' mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_envs": 0}, "num_envs=0: it must be >= 1"),
        ({"size": 1}, "size=1"),
        ({"num_balls": 25}, "num_balls=25: it must be from 1 to 24"),
        ({"missions": ()}, "name one colour or more"),
        ({"missions": (0, 0)}, "each once"),
        ({"missions": (0, 3)}, "a mission=3: it must be from 0 to 2"),
        ({"num_colors": 1, "missions": (0,)}, "the other balls need another colour"),
        ({"num_colors": 7}, "num_colors=7"),
        ({"view_size": 4}, "it must be odd"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"observation": "image"}, "'flat', 'dict'"),
        ({"render_mode": "human"}, "'rgb_array', 'ansi'"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VectorGoTo(**settings)


@pytest.mark.user_input
def test_numbers_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match=r"size must be a whole number, got 5\.0"):
        VectorGoTo(size=5.0)
    with pytest.raises(TypeError, match="seed must be a whole number"):
        VectorGoTo().reset(seed=[1, 2])


@pytest.mark.user_input
def test_steps_and_resets_that_cannot_be_are_refused() -> None:
    env = VectorGoTo(num_envs=3, render_mode="ansi")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step([0, 0, 0])
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.render()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(2,\).*one for each environment"):
        env.step([0, 0])
    with pytest.raises(ValueError, match="whole numbers"):
        env.step([0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="actions are from 0 to 3; known are 0"):
        env.step([0, 3, 1])
    with pytest.raises(ValueError, match="reset_mask has shape"):
        env.reset(options={"reset_mask": [True]})
    with pytest.raises(ValueError, match=r"'speed'.* unknown"):
        env.reset(options={"speed": 2})


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rooms": np.zeros((1, 3, 3), int)}, "rooms has shape"),
        ({"headings": np.array([4])}, "headings has values from 4 to 4; they must be from 0 to 3"),
        ({"steps": np.array([-1])}, "steps has values from -1 to -1; they must be 0 or more"),
        ({"positions": np.array([[0, 0]])}, "stands where a ball is"),
        ({"speed": 1}, "the state has"),
    ],
)
def test_states_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        by_hand(**changes)


def test_the_package_loads_no_simulator_before_it_is_used() -> None:
    code = "import sys, mechanisms.worlds; assert not {'torch', 'gymnasium', 'minigrid'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['gymnasium'] = None\n"
        "try: import mechanisms.worlds.levels\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'mechanisms[worlds]'" in done.stdout
