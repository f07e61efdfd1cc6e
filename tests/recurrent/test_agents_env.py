"""What agents see: encoders, levels, and gymnasium's environments as sb3 expects them."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from mechanisms.recurrent.agents import (
    BabyAIEncoder,
    FastSlowCallback,
    RecurrentPolicy,
    SB3VecEnv,
    load_agent,
    save_agent,
)
from mechanisms.worlds.levels import make_minigrid
from tests.recurrent.agent_worlds import RIM, agent, same, values, world


@pytest.mark.parametrize("shape", [(7, 7, 3), (3, 8, 8)])
def test_babyai_encoder_reads_a_view_and_a_mission(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    space = spaces.Dict({"image": spaces.Box(0, 255, shape, np.uint8), "mission": spaces.Box(0, 9, (4,), np.int64)})
    encoder = BabyAIEncoder(space, word_size=6, mission_size=5)
    image = torch.randint(0, 10, (3, *shape)).float()
    mission = torch.tensor([[3, 4, 0, 0], [3, 4, 0, 0], [5, 6, 7, 8]])
    found = encoder({"image": image, "mission": mission.float()})
    assert found.shape == (3, encoder.features_dim)
    assert torch.equal(found[0, -5:], found[1, -5:])
    _, last = encoder.mission(encoder.words(mission[:1, :2]))
    assert torch.allclose(found[0, -5:], last[0, 0], atol=1e-6)
    moved = image if shape[0] == 3 else image.movedim(-1, 1)
    assert torch.allclose(found[:, :-5], encoder.image(moved / 10), atol=1e-6)


def test_an_agent_sees_pictures_and_missions() -> None:
    space = spaces.Dict({"image": spaces.Box(0, 255, (7, 7, 3), np.uint8), "mission": spaces.Box(0, 9, (4,), np.int64)})
    policy = RecurrentPolicy(
        space,
        spaces.Discrete(7),
        lambda _: 1e-4,
        cell=RIM,
        features_extractor_class=BabyAIEncoder,
        linear_init="unit_rows",
    )
    observation = {"image": np.full((2, 7, 7, 3), 5, np.uint8), "mission": np.ones((2, 4), np.int64)}
    tensor, _ = policy.obs_to_tensor(observation)
    features = policy.extract_features(tensor)
    plain = policy.features_extractor({name: torch.as_tensor(one) for name, one in observation.items()})
    assert torch.allclose(features, plain)  # symbols, not divided by 255
    assert policy.predict(observation)[0].shape == (2,)


class Counter(gymnasium.Env):
    """Shows the step; ends at step `ends`, is cut at step 3."""

    observation_space, action_space = spaces.Box(0, 9, (1,), np.float32), spaces.Discrete(2)

    def __init__(self, ends: int = 9) -> None:
        self.ends = ends

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_number, self.seeded = 0, seed
        return np.zeros(1, np.float32), {"seeded": -1 if seed is None else seed}

    def step(self, action):
        self.step_number += 1
        over = self.step_number >= self.ends
        observation = np.full(1, self.step_number, np.float32)
        return observation, 1.0, over, self.step_number >= 3, {"number": self.step_number}


def test_an_agent_learns_in_a_level_of_minigrid(tmp_path) -> None:
    made, vocabulary = make_minigrid("BabyAI-GoToRedBallGrey-v0", 2, seed=0, workers=0)
    env = SB3VecEnv(made)
    model = agent(
        RIM,
        env,
        n_steps=6,
        batch_size=12,
        fast_slow={"mode": "meta"},
        policy={"features_extractor_class": BabyAIEncoder, "features_extractor_kwargs": {"word_size": 8}},
    )
    model.learn(24, callback=FastSlowCallback(1))
    assert model.policy.features_extractor.words.num_embeddings == len(vocabulary)
    assert model.policy.optimizer.phase == "slow"
    save_agent(model, tmp_path / "agent.zip")
    again = load_agent(tmp_path / "agent.zip", env, device="cpu")
    assert same(values(model.policy), values(again.policy))
    assert (again._last_obs["mission"] == model._last_obs["mission"]).all()
    again.learn(12, callback=FastSlowCallback(1), reset_num_timesteps=False)
    env.close()


def counters(**options) -> SB3VecEnv:
    made = [lambda: Counter(), lambda: Counter(2)]
    return SB3VecEnv(gymnasium.vector.SyncVectorEnv(made, autoreset_mode=AutoresetMode.SAME_STEP), **options)


def test_an_episode_ends_as_sb3_expects_it() -> None:
    env = counters()
    env.seed(5)
    assert env.reset().ravel().tolist() == [0, 0]
    assert [info["seeded"] for info in env.reset_infos] == [5, 6]
    first = env.step(np.zeros(2, int))
    assert first[0].ravel().tolist() == [1, 1]
    assert first[3] == [{"number": 1}, {"number": 1}]
    observation, rewards, ends, infos = env.step(np.zeros(2, int))
    assert observation.ravel().tolist() == [2, 0]
    assert rewards.dtype == np.float32
    assert ends.tolist() == [False, True]
    assert infos[1]["terminal_observation"].tolist() == [2]
    assert (infos[1]["TimeLimit.truncated"], infos[1]["number"]) == (False, 2)
    _, _, ends, infos = env.step(np.zeros(2, int))
    assert ends.tolist() == [True, False]
    assert infos[0]["terminal_observation"].tolist() == [3]
    assert infos[0]["TimeLimit.truncated"]
    assert "terminal_observation" not in infos[1]


def test_a_cut_may_count_as_an_end() -> None:
    env = counters(bootstrap=False)
    env.reset()
    for _ in range(3):
        infos = env.step(np.zeros(2, int))[3]
    assert infos[0]["TimeLimit.truncated"] is False


def test_attributes_and_methods_reach_the_environment() -> None:
    env = world()
    assert env.get_attr("size") == [4] * 4
    assert env.get_attr("size", 0) == [4]
    env.set_attr("note", 1)
    assert env.env.note == 1
    env.reset()
    assert env.env_method("state_dict", indices=[0])[0]["steps"].tolist() == [0] * 4
    assert env.env_is_wrapped(gymnasium.vector.VectorWrapper) == [False] * 4
    with pytest.raises(AttributeError):
        env.get_attr("nothing")


@pytest.mark.user_input
def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="SAME_STEP"):
        SB3VecEnv(gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync"))
    with pytest.raises(ValueError, match="all of them"):
        world().set_attr("note", 1, [0])
    with pytest.raises(ValueError, match="image"):
        BabyAIEncoder(spaces.Box(0, 1, (7, 7, 3), np.float32))
