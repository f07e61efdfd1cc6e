"""A recurrent agent of sb3-contrib with cells of ours: rollouts reproduced, episodes kept apart, phases."""

import copy
import math

import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from torch import nn

from mechanisms.recurrent import FastSlow, LSTMCell, RelevancyScreening, Zoneout
from mechanisms.recurrent.agents import (
    FastSlowCallback,
    MlpEncoder,
    SB3Core,
    make_cell,
)
from tests.recurrent.agent_worlds import ATTENTIVE, CELLS, LSTM, RIM, agent, same, values, world


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


@pytest.mark.parametrize(
    ("name", "critic"), [*((name, "shared") for name in CELLS), ("rim", "separate"), ("learned", "feedforward")]
)
def test_log_probabilities_of_a_rollout_are_reproduced(name: str, critic: str) -> None:
    model = agent(CELLS[name], policy={"critic": critic, "linear_init": "torch"})
    for one in model.policy.parameters():
        if one.dim() == 1:
            nn.init.normal_(one, std=0.3)  # learned initial states are zero at first
    check = Ratios()
    model.learn(80, callback=check)
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


@pytest.mark.user_input
def test_mistakes_are_named() -> None:
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


def make_cell_core(settings) -> SB3Core:
    return SB3Core(make_cell(settings, 3))


def test_the_optimiser_is_fast_slow_only_when_asked_for() -> None:
    assert isinstance(agent(RIM, fast_slow={}).policy.optimizer, FastSlow)
    assert isinstance(agent(RIM).policy.optimizer, torch.optim.Adam)
