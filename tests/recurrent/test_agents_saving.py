"""Agents in files: going on equals not stopping, and nothing of ours is pickled."""

import json
import math
import zipfile

import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import VecMonitor

from mechanisms.recurrent import LSTMCell
from mechanisms.recurrent.agents import (
    FastSlowCallback,
    MlpEncoder,
    RecurrentPolicy,
    load_agent,
    save_agent,
)
from tests.recurrent.agent_worlds import LSTM, RIM, agent, same, values, world


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resuming_equals_not_stopping(tmp_path, stop: int) -> None:
    def fresh() -> RecurrentPPO:
        return agent(RIM, VecMonitor(world()), fast_slow={"mode": "meta"}, seed=stop)

    def callback() -> FastSlowCallback:
        return FastSlowCallback(2, reset_fast="task")

    model = fresh()
    model.learn(40 * stop, callback=callback())
    save_agent(model, tmp_path / "agent.zip")
    env = VecMonitor(world())
    env.venv.env.load_state_dict(model.env.venv.env.state_dict())
    env.episode_returns, env.episode_lengths = model.env.episode_returns.copy(), model.env.episode_lengths.copy()
    model.learn(80, callback=callback(), reset_num_timesteps=False)
    again = load_agent(tmp_path / "agent.zip", env, device="cpu")
    again.learn(80, callback=callback(), reset_num_timesteps=False)
    assert same(values(model.policy), values(again.policy))
    assert again.policy.optimizer.phase == model.policy.optimizer.phase
    assert (again.num_timesteps, again._n_updates) == (model.num_timesteps, model._n_updates)
    assert list(again.ep_success_buffer) == list(model.ep_success_buffer)
    assert [one["l"] for one in again.ep_info_buffer] == [one["l"] for one in model.ep_info_buffer]


def test_a_file_holds_no_pickle_of_ours(tmp_path) -> None:
    model = agent(RIM, fast_slow={"mode": "meta"}, policy={"features_extractor_class": MlpEncoder})
    model.learn(40, callback=FastSlowCallback())
    save_agent(model, tmp_path / "agent.zip")
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        assert sorted(archive.namelist()) == ["agent.json", "optimizer.pt", "policy.safetensors", "run.safetensors"]
        head = json.loads(archive.read("agent.json"))
        with archive.open("optimizer.pt") as file:
            torch.load(file, weights_only=True)
    assert head["policy_kwargs"]["cell"] == RIM
    assert not head["missing"]
    again = load_agent(tmp_path / "agent.zip", world(), continues=False, device="cpu")
    assert again._last_obs is None
    assert isinstance(again.policy.features_extractor, MlpEncoder)
    assert again.max_grad_norm == math.inf
    observation = np.zeros((4, 103), np.float32)
    assert (
        model.predict(observation, deterministic=True)[0] == again.predict(observation, deterministic=True)[0]
    ).all()


def test_a_factory_is_given_again(tmp_path) -> None:
    model = agent(lambda size: LSTMCell(size, 8), clip_range=lambda left: 0.2 * left)
    save_agent(model, tmp_path / "agent.zip")
    with pytest.raises(ValueError, match="clip_range, cell could not be written"):
        load_agent(tmp_path / "agent.zip", world())
    again = load_agent(
        tmp_path / "agent.zip", world(), policy_kwargs={"cell": lambda size: LSTMCell(size, 8)}, clip_range=0.2
    )
    assert same(values(model.policy), values(again.policy))
    again.learn(40)


def test_sb3s_own_files_keep_the_phase(tmp_path) -> None:
    model = agent(RIM, fast_slow={"mode": "meta"})
    model.learn(80, callback=FastSlowCallback(1))
    model.save(tmp_path / "theirs.zip")
    again = RecurrentPPO.load(tmp_path / "theirs.zip", world(), device="cpu")
    assert again.policy.optimizer.phase == model.policy.optimizer.phase == "slow"
    assert same(values(model.policy), values(again.policy))
    model.policy.save(tmp_path / "policy.pt")
    assert same(values(model.policy), values(RecurrentPolicy.load(tmp_path / "policy.pt", device="cpu")))


@pytest.mark.user_input
def test_mistakes_are_named(tmp_path) -> None:
    with pytest.raises(TypeError, match="no agent"):
        save_agent(RecurrentPPO("MlpLstmPolicy", world()), tmp_path / "agent.zip")
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match="was not written by save_agent"):
        load_agent(tmp_path / "text", world())
    save_agent(agent(LSTM), tmp_path / "agent.zip")
    with pytest.raises(ValueError, match="saved states are those of 4"):
        load_agent(tmp_path / "agent.zip", world(3))
