"""A recurrent agent of sb3-contrib with cells of ours: rollouts reproduced, episodes kept apart, phases, files."""

import copy
import json
import math
import zipfile

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import VecMonitor
from torch import nn

from mechanisms.recurrent import FastSlow, LSTMCell, RelevancyScreening, Zoneout
from mechanisms.recurrent.agents import (
    BabyAIEncoder,
    FastSlowCallback,
    MlpEncoder,
    RecurrentPolicy,
    SB3Core,
    SB3VecEnv,
    load_agent,
    make_cell,
    save_agent,
)
from mechanisms.worlds.grid import VectorGoTo
from mechanisms.worlds.levels import make_minigrid

LSTM = {"name": "LSTMCell", "hidden_size": 8}
LEARNED = {"name": "LSTMCell", "hidden_size": 8, "learn_initial_state": True}
RIM = {
    "name": "RIMCell",
    "hidden_size": 4,
    "num_modules": 3,
    "num_active": 2,
    "key_size": 8,
    "comm_key_size": 4,
    "comm_heads": 2,
    "qkv_std": 0.1,
}
ATTENTIVE = {"name": "RelevancyScreening", "cell": LSTM, "short_term": 2, "relevant": 2}
CELLS = {"lstm": LSTM, "learned": LEARNED, "rim": RIM, "relevancy": ATTENTIVE, "gru": {**LSTM, "name": "GRUCell"}}


def world(num_envs: int = 4, **options) -> SB3VecEnv:
    # Episodes of at most 7 steps, so that rollouts of 10 hold several, cut and ended ones.
    return SB3VecEnv(VectorGoTo(num_envs, size=4, max_steps=7, seed=3, **options))


def agent(cell, env=None, *, fast_slow=None, seed: int = 0, policy=None, **options) -> RecurrentPPO:
    settings = {"n_steps": 10, "batch_size": 40, "n_epochs": 2, "device": "cpu", "seed": seed, **options}
    if fast_slow is not None:
        settings.setdefault("max_grad_norm", math.inf)
        policy = {**(policy or {}), "fast_slow": fast_slow}
    return RecurrentPPO(RecurrentPolicy, env or world(), policy_kwargs={"cell": cell, **(policy or {})}, **settings)


def values(module: nn.Module) -> list[torch.Tensor]:
    return [one.detach().clone() for one in module.parameters()]


def same(first, second) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class Ratios(FastSlowCallback):
    """Evaluates the rollout again before the agent learns from it."""

    def _on_training_start(self) -> None:
        self.differences, self.fresh = [], []

    def _on_rollout_end(self) -> None:
        model = self.model
        buffer = copy.deepcopy(model.rollout_buffer)
        model.policy.set_training_mode(True)
        for batch in buffer.get(17):  # cuts sequences, so that most start in the middle of an episode
            mask = batch.mask > 0
            values, log_prob, _ = model.policy.evaluate_actions(
                batch.observations, batch.actions.long().flatten(), batch.lstm_states, batch.episode_starts
            )
            self.differences.append((log_prob - batch.old_log_prob)[mask].abs().max().item())
            self.differences.append((values.flatten() - batch.old_values)[mask].abs().max().item())


@pytest.mark.parametrize("name", list(CELLS))
@pytest.mark.parametrize("critic", ["shared", "separate", "feedforward"])
def test_log_probabilities_of_a_rollout_are_reproduced(name: str, critic: str) -> None:
    model = agent(CELLS[name], policy={"critic": critic, "linear_init": "torch"})
    for one in model.policy.parameters():
        if one.dim() == 1:
            nn.init.normal_(one, std=0.3)  # learned initial states are zero at first
    check = Ratios()
    model.learn(120, callback=check)
    assert max(check.differences) < 2e-6


def test_noise_stays_out_of_updates_unless_asked_for() -> None:
    def make(size: int) -> Zoneout:
        return Zoneout(LSTMCell(size, 8), 0.5)

    quiet, noisy = Ratios(), Ratios()
    agent(make).learn(40, callback=quiet)
    agent(make, policy={"noise_in_update": True}).learn(40, callback=noisy)
    assert max(quiet.differences) < 2e-6
    assert max(noisy.differences) > 1e-4


@pytest.mark.parametrize("name", list(CELLS))
def test_nothing_before_the_start_of_an_episode_is_seen_after_it(name: str) -> None:
    torch.manual_seed(0)
    core = SB3Core(make_cell(CELLS[name], 3))
    starts = torch.zeros(6, 2)
    starts[3, 1] = 1
    state = torch.randn(1, 2, core.hidden_size) * 0.1, torch.randn(1, 2, core.hidden_size) * 0.1
    if name == "relevancy":
        state = torch.zeros_like(state[0]), torch.zeros_like(state[1])
    features = torch.randn(6, 2, 3, requires_grad=True)
    output, last = core(features, state, starts)
    (gradient,) = torch.autograd.grad(output[3:, 1].sum(), features, retain_graph=True)
    assert bool((gradient[:3] == 0).all())
    assert bool((gradient[3:, 1] != 0).any())
    (gradient,) = torch.autograd.grad(output[3:, 0].sum(), features)
    assert bool((gradient[:3, 0] != 0).any())
    # One step after another is the same sequence.
    after, found = state, []
    for t in range(6):
        one, after = core(features[t : t + 1], after, starts[t : t + 1])
        found.append(one)
    assert torch.allclose(torch.cat(found), output, atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(after, last, strict=True))


def test_an_agent_with_an_lstm_of_ours_learns_as_sb3s_does() -> None:
    env = world()
    theirs = RecurrentPPO(
        "MlpLstmPolicy",
        env,
        n_steps=10,
        batch_size=40,
        n_epochs=2,
        device="cpu",
        seed=0,
        policy_kwargs={"lstm_hidden_size": 8, "net_arch": {"pi": [64], "vf": [64]}},
    )
    mine = agent(LSTM, world(), policy={"critic": "separate"})
    cores = {"lstm_actor": mine.policy.lstm_actor, "lstm_critic": mine.policy.lstm_critic}
    with torch.no_grad():
        for name, core in cores.items():
            for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(core.cell, part).copy_(getattr(getattr(theirs.policy, name), f"{part}_l0"))
        for part in ("mlp_extractor", "action_net", "value_net"):
            getattr(mine.policy, part).load_state_dict(getattr(theirs.policy, part).state_dict())
    for model in (theirs, mine):
        model.set_random_seed(5)
        model.learn(120)
    head = torch.cat(
        [
            (a - b).flatten()
            for a, b in zip(values(mine.policy.action_net), values(theirs.policy.action_net), strict=True)
        ]
    )
    assert head.abs().max() < 1e-5


def test_phases_last_some_rollouts_with_all_their_epochs() -> None:
    model = agent(RIM, fast_slow={"mode": "meta"})
    phases = []

    class Watch(FastSlowCallback):
        def _on_rollout_end(self) -> None:
            super()._on_rollout_end()
            phases.append((self.optimizer.phase, self.optimizer.updates))

    model.learn(240, callback=Watch(inner_updates=2))
    assert phases == [(name, 2 * place) for place, name in enumerate(["fast", "fast", "slow"] * 2)]


@pytest.mark.parametrize(("inner_updates", "moves"), [(math.inf, "fast"), (0, "slow")])
def test_extreme_schedules_leave_one_set_alone(inner_updates: float | int, moves: str) -> None:
    model = agent(RIM, fast_slow={"mode": "meta", "fast_extra": True})
    core = model.policy.lstm_actor.cell
    attention = [*core.input_attention.parameters(), *core.communication.parameters()]
    before = values(core.dynamics), [one.detach().clone() for one in attention], values(model.policy.action_net)
    model.learn(120, callback=FastSlowCallback(inner_updates))
    still = (
        same(before[0], values(core.dynamics)),
        same(before[1], attention),
        same(before[2], values(model.policy.action_net)),
    )
    assert still == ((False, True, False) if moves == "fast" else (True, False, True))


def test_two_time_scales_at_one_rate_are_joint_training_to_the_bit() -> None:
    models = []
    for settings in ({"mode": "joint"}, {"mode": "meta", "together": True}):
        models.append(agent(RIM, fast_slow=settings))
        models[-1].learn(120, callback=FastSlowCallback())
    assert same(values(models[0].policy), values(models[1].policy))


def test_rates_of_both_sets_follow_the_schedule() -> None:
    model = agent(RIM, fast_slow={"fast_rate": 2.0, "slow_rate": 0.5}, learning_rate=lambda left: 0.1 * left)
    model.learn(80, callback=FastSlowCallback(1))
    optimizer = model.policy.optimizer
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
    model.learn(40, callback=FastSlowCallback(1), reset_num_timesteps=False)
    assert optimizer.fast.param_groups[0]["lr"] == pytest.approx(2 * optimizer.param_groups[0]["lr"])


def test_another_task_begins_with_the_first_fast_parameters() -> None:
    model = agent(RIM, fast_slow={"mode": "meta"})
    core = model.policy.lstm_actor.cell
    start, slow = values(core.dynamics), values(core.communication)
    callback = FastSlowCallback(1, reset_fast="task")
    model.learn(80, callback=callback)
    assert not same(start, values(core.dynamics))
    model.learn(40, callback=callback, reset_num_timesteps=False)
    assert not same(start, values(core.dynamics))

    seen = []

    class Look(FastSlowCallback):
        def _on_rollout_start(self) -> None:
            seen.append(same(start, values(core.dynamics)))

    look = Look(math.inf, reset_fast="task")
    look._env = callback._env
    model.set_env(world(num_balls=3))
    model.learn(80, callback=look, reset_num_timesteps=False)
    assert seen == [True, False]
    assert not same(slow, values(core.communication))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
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
    model.learn(120, callback=callback(), reset_num_timesteps=False)
    again = load_agent(tmp_path / "agent.zip", env, device="cpu")
    again.learn(120, callback=callback(), reset_num_timesteps=False)
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


# --- cells, encoders, environments ------------------------------------------------------------------------------------


def test_cells_are_made_of_settings() -> None:
    cell = make_cell(ATTENTIVE, 5)
    assert isinstance(cell, RelevancyScreening)
    assert (cell.input_size, cell.cell.hidden_size) == (5, 8)
    settings = {"name": "Zoneout", "rate": 0.1, "cell": LSTM}
    assert isinstance(make_cell(settings, 5), Zoneout)
    assert settings["cell"] == LSTM


def test_linear_layers_start_with_rows_of_norm_one() -> None:
    policy = agent(RIM, policy={"linear_init": "unit_rows", "features_extractor_class": MlpEncoder}).policy
    for layer in (policy.features_extractor.layers[1], policy.action_net, policy.value_net):
        assert torch.allclose(layer.weight.norm(dim=1), torch.ones(len(layer.weight)))
        assert not layer.bias.any()


def test_a_copied_state_is_what_predict_carries() -> None:
    model = agent(RIM)
    env = model.env
    observation, state, starts = env.reset(), None, np.ones(4, bool)
    for _ in range(9):
        action, state = model.predict(observation, state=state, episode_start=starts, deterministic=True)
        observation, _, starts, _ = env.step(action)
    assert state[0].shape == (1, 4, model.policy.lstm_actor.hidden_size)
    assert np.isfinite(state[0]).all()


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
def test_mistakes_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="SAME_STEP"):
        SB3VecEnv(gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync"))
    with pytest.raises(ValueError, match="all of them"):
        world().set_attr("note", 1, [0])
    with pytest.raises(ValueError, match="LSTMCel'"):
        agent({"name": "LSTMCel", "hidden_size": 3})
    with pytest.raises(ValueError, match="'FastSlow'"):
        make_cell({"name": "FastSlow"}, 3)
    with pytest.raises(TypeError, match="give settings"):
        make_cell(3, 3)
    with pytest.raises(TypeError, match="must give a cell"):
        make_cell(lambda size: nn.LSTMCell(size, 3), 3)
    with pytest.raises(TypeError, match="max_memory"):
        make_cell_core({"name": "SparseAttentiveBacktracking", "cell": LSTM})
    with pytest.raises(TypeError, match="normalises over the batch"):
        make_cell_core({**LSTM, "name": "BatchNormLSTMCell"})
    with pytest.raises(TypeError, match="several inputs"):
        make_cell_core(lambda size: make_cell(RIM, (size, size)))
    with pytest.raises(TypeError, match="no cell"):
        SB3Core(nn.LSTMCell(3, 3))
    with pytest.raises(ValueError, match="critic"):
        agent(LSTM, policy={"critic": "none"})
    with pytest.raises(ValueError, match="separate"):
        agent(LSTM, policy={"share_features_extractor": False})
    with pytest.raises(TypeError, match="no attention"):
        agent(LSTM, fast_slow={"mode": "meta"})
    with pytest.raises(TypeError, match="inner_steps"):
        agent(RIM, fast_slow={"inner_steps": 3})
    with pytest.raises(ValueError, match=r"max_grad_norm=0\.5"):
        agent(RIM, fast_slow={}, max_grad_norm=0.5).learn(40, callback=FastSlowCallback())
    with pytest.raises(TypeError, match="fast_slow"):
        agent(RIM).learn(40, callback=FastSlowCallback())
    with pytest.raises(ValueError, match="reset_fast"):
        FastSlowCallback(reset_fast="episode")
    with pytest.raises(TypeError, match="no agent"):
        save_agent(RecurrentPPO("MlpLstmPolicy", world()), tmp_path / "agent.zip")
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match="was not written by save_agent"):
        load_agent(tmp_path / "text", world())
    save_agent(agent(LSTM), tmp_path / "agent.zip")
    with pytest.raises(ValueError, match="saved states are those of 4"):
        load_agent(tmp_path / "agent.zip", world(3))
    with pytest.raises(ValueError, match="image"):
        BabyAIEncoder(spaces.Box(0, 1, (7, 7, 3), np.float32))


def make_cell_core(settings) -> SB3Core:
    return SB3Core(make_cell(settings, 3))


def test_the_optimiser_is_fast_slow_only_when_asked_for() -> None:
    assert isinstance(agent(RIM, fast_slow={}).policy.optimizer, FastSlow)
    assert isinstance(agent(RIM).policy.optimizer, torch.optim.Adam)
