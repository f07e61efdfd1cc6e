"""The recipe of Meta-RIMs: pairs, who learns when, runs that are gone on with, and the paper's levels end to end."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mechanisms._base.extras import MissingExtra
from mechanisms.lab import Bench, NotHere
from mechanisms.lab.configuration import as_dict
from mechanisms.lab.records import Cell, Curve, Record
from mechanisms.papers._meta_rims import agents, exact, levels, roles, training
from mechanisms.papers.meta_rims import LEVELS, ROLES, paper

TINY = roles.tiny()
ATTENTION = ("input_attention", "communication")


def fresh(variant: str, seed: int = 0, settings: roles.Roles = TINY) -> Any:
    return roles.make_agent(settings, variant, "training", Bench(seed))


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_variants_of_a_seed_begin_with_the_same_weights_and_see_the_same_rooms() -> None:
    states = [fresh(variant).policy.state_dict() for variant in ("meta", "reversed", "joint", "two-timescales")]
    for other in states[1:]:
        assert other.keys() == states[0].keys()
        assert all(torch.equal(other[name], value) for name, value in states[0].items())
    assert not torch.equal(fresh("meta", 1).policy.action_net.weight, fresh("meta").policy.action_net.weight)
    seen = []
    for variant in ("meta", "lstm"):
        model = fresh(variant)
        envs = roles.rooms(TINY, "training", TINY.num_envs)
        training.learn(model, envs, task="training", variant=variant, updates=1, segment=1, bench=Bench(0))
        seen.append(model.rollout_buffer.observations[: TINY.num_envs].copy())
    # The buffer holds environment after environment; the first of each is the room's first view.
    assert np.array_equal(seen[0][0], seen[1][0])


def test_a_run_repeats_itself_and_leaves_the_global_random_streams_alone() -> None:
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    one, other = (roles.run_roles(TINY, "meta", Bench(3)) for _ in range(2))
    assert str(one) == str(other)  # NaN included
    assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


# --- who learns when --------------------------------------------------------------------------------------------------


def test_reversed_is_meta_with_the_roles_changed_but_for_encoder_and_heads() -> None:
    def slow(variant: str) -> set[str]:
        policy = fresh(variant).policy
        held = {id(one) for one in policy.optimizer.param_groups[1]["params"]}
        return {name for name, one in policy.named_parameters() if id(one) in held}

    names = {name for name, _ in fresh("meta").policy.named_parameters()}
    attention = {name for name in names if any(part in name for part in ATTENTION)}
    modules = {name for name in names if ".dynamics." in name}
    assert slow("meta") == attention
    assert slow("reversed") == modules
    assert slow("joint") == set()
    # The rest is heads: an encoder would learn for modules that rest.
    assert {name.split(".")[0] for name in names - attention - modules} == {
        "mlp_extractor",
        "action_net",
        "value_net",
    }
    assert len(attention) == 10
    assert len(modules) == 3


def test_the_agent_is_that_of_the_claim() -> None:
    settings = ROLES.scales["laptop"]
    assert (settings.num_envs, settings.steps, settings.epochs, settings.lr) == (64, 20, 3, 1e-3)
    assert (settings.training_updates, settings.transfer_updates, settings.inner_updates) == (150, 120, 4)
    assert settings.batch_size == settings.num_envs * settings.steps
    # Rooms and memories begin anew at the start of a phase and nowhere else.
    assert settings.segment >= max(settings.training_updates, settings.transfer_updates)
    model = fresh("meta", settings=settings)
    core = model.policy.lstm_actor.cell
    assert (core.num_modules, core.hidden_size, core.num_active) == (4, 16, 2)
    assert core.input_size == 5 * 5 * 4 + 3  # what it sees and the mission, as they are
    for head in (model.policy.action_net, model.policy.value_net, model.policy.mlp_extractor.policy_net[0]):
        torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(len(head.weight)))
        assert not head.bias.any()
    assert {type(model.policy.mlp_extractor.policy_net[1])} == {torch.nn.Tanh}
    assert (model.gamma, model.gae_lambda, model.ent_coef, model.vf_coef) == (0.99, 0.99, 0.01, 0.5)
    assert not model.env.bootstrap


def test_modules_need_not_communicate() -> None:
    policy = fresh("meta", settings=replace(TINY, communicate=False)).policy
    assert not any("communication" in name for name, _ in policy.named_parameters())


def test_every_fifth_update_is_the_slow_set_s() -> None:
    model = fresh("meta")
    phases = []
    training.learn(
        model,
        roles.rooms(TINY, "training", TINY.num_envs),
        task="training",
        variant="meta",
        updates=10,
        segment=3,
        bench=Bench(0),
        callbacks=[agents.phases(4)],
        report=lambda update, success: phases.append(model.policy.optimizer.phase),
    )
    # Told before the phase is switched, hence one update late.
    assert phases == ["fast", *["fast"] * 4, "slow", *["fast"] * 4]


@pytest.mark.parametrize(("variant", "still"), [("fast-only", ATTENTION), ("slow-only", (".dynamics.", "_net."))])
def test_adaptation_of_one_set_leaves_the_other_as_training_left_it(variant: str, still: tuple[str, ...]) -> None:
    first = roles.trained(TINY, "meta", Bench(0))
    inner = {"fast-only": math.inf, "slow-only": 0}[variant]
    second, _ = roles.adapted(TINY, "meta", first, Bench(0), inner, variant)
    kept = {name for name in first["policy"] if torch.equal(first["policy"][name], second["policy"][name])}
    assert {name for name in first["policy"] if any(part in name for part in still)} <= kept
    assert len(kept) < len(first["policy"])


def test_both_experiments_share_the_trained_agent(tmp_path: Path) -> None:
    def bench(experiment: str) -> Bench:
        return Bench(0, settings=TINY, owner=f"meta-rims/{experiment}", code="x", cache=tmp_path)

    one, other = bench("roles"), bench("adaptation")
    found = roles.run_roles(TINY, "meta", one)
    again = roles.run_adaptation(TINY, "full", other)
    assert "training-meta" in one.stages
    assert other.stages == {}
    assert str(again["transfer_sixths"]) == str(found["transfer_sixths"])


def test_an_optimiser_s_state_is_stored_as_text_and_comes_back() -> None:
    state = {"fast": {"state": {0: {"step": 1.0}, 11: {}}, "param_groups": [{"params": [0, 11]}]}, "phase": "slow"}
    assert roles.numbered(roles.named(state)) == state
    assert list(roles.named(state)["fast"]["state"]) == ["#0", "#11"]


@pytest.mark.parametrize("variant", exact.VARIANTS)
def test_what_must_be_so_is(variant: str) -> None:
    found = exact.run_exact(exact.Exact(updates=2), variant, Bench(0))
    wanted = {
        "inner-alone": {"slow_change": 0, "fast_moved": 1},
        "outer-alone": {"fast_change": 0, "slow_moved": 1},
        "two-timescales": {"difference": 0},
        "closed-form": {"first_order": 0},
    }[variant]
    assert {name: found[name] for name in wanted} == wanted
    assert all(error < 1e-12 for name, error in found.items() if name.endswith("_error"))


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bench(cache: Path | None) -> Bench:
        one = Bench(0, settings=TINY, owner="meta-rims/roles", code="x", cache=cache)
        checkpoint = one.checkpoint
        monkeypatch.setattr(one, "checkpoint", lambda key: checkpoint(key, seconds=0))
        return one

    whole = roles.run_roles(TINY, "meta", bench(None))
    for stopped in (5, 7):  # in the second segment of training, then, behind its two updates, in that of transfer
        seen = iter(range(1, 100))

        def stop(*_: object, seen: Iterator[int] = seen, stopped: int = stopped, **__: object) -> None:
            if next(seen) == stopped:
                raise KeyboardInterrupt

        halted = bench(tmp_path)
        monkeypatch.setattr(halted, "progress", stop)
        with pytest.raises(KeyboardInterrupt):
            roles.run_roles(TINY, "meta", halted)
        assert list(tmp_path.glob("*.checkpoint"))
    assert str(roles.run_roles(TINY, "meta", bench(tmp_path))) == str(whole)


def test_success_is_counted_by_update_and_windows_pool_their_episodes() -> None:
    said = []
    tally = training.Tally(3, lambda update, success: said.append((update, success)))
    for dones, rewards in (([1, 1, 0], [0.5, 0, 0]), ([0, 0, 0], [0, 0, 0]), ([1, 1, 1], [0.2, 0.3, 0])):
        tally.locals = {"dones": np.array(dones, bool), "rewards": np.array(rewards)}
        tally._on_step()
        tally._on_rollout_end()
    assert said[0] == (1, 0.5)
    assert math.isnan(said[1][1])
    assert tally.windows(1) == [pytest.approx(3 / 5)]
    assert training.mean_of(tally.windows(3)) == pytest.approx((1 / 2 + 2 / 3) / 2)
    other = training.Tally(3, lambda update, success: None)
    other.load_state_dict(tally.state_dict())
    assert other.windows(1) == tally.windows(1)


def test_greedy_episodes_are_as_many_from_each_environment() -> None:
    class Envs:
        """The first fails in every step, the second succeeds in every third."""

        num_envs = 2
        step_number = 0

        def seed(self, seed: int) -> None:
            pass

        def reset(self) -> np.ndarray:
            return np.zeros(2)

        def step(self, actions: np.ndarray) -> tuple:
            self.step_number += 1
            third = self.step_number % 3 == 0
            return np.zeros(2), np.array([0.0, 1.0 * third]), np.array([True, third]), [{}, {}]

    model = SimpleNamespace(predict=lambda observations, state, starts, deterministic: (np.zeros(2), state))
    assert training.greedy_success(model, Envs(), 2, 0) == 0.5


def test_active_modules_of_an_episode_are_as_many_as_may_be() -> None:
    model = fresh("meta")
    found = agents.activity(model, roles.rooms(TINY, "transfer", 4), 0, steps=10)
    active = np.array(found["activation"]).reshape(-1, TINY.modules)
    assert (active.sum(1) == TINY.active).all()
    assert len(found["activation_actions"]) == len(active) <= 10
    assert len(found["active_by_action"]) == 3 * TINY.modules


@pytest.mark.parametrize(
    ("run", "settings"), [(roles.run_roles, TINY), (levels.run_levels, levels.tiny()), (exact.run_exact, exact.Exact())]
)
def test_a_run_without_the_extras_is_not_run(run: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise MissingExtra("sb3_contrib is not installed; it comes with: pip install 'mechanisms[rl]'")

    monkeypatch.setattr(agents, "make_agent", missing)
    with pytest.raises(NotHere, match=r"mechanisms\[rl\]"):
        run(settings, "meta" if run is not exact.run_exact else "inner-alone", Bench(0))


# --- figures ----------------------------------------------------------------------------------------------------------


def test_every_figure_draws_records_and_says_when_there_are_none() -> None:
    records = []
    for variant in ("meta", "lstm"):
        bench = Bench(0)
        metrics = {
            name: [None if isinstance(one, float) and math.isnan(one) else one for one in value]
            if isinstance(value, list)
            else value
            for name, value in roles.run_roles(TINY, variant, bench).items()
        }
        curves = {
            name: Curve(steps, [None if math.isnan(one) else one for one in values])
            for name, (steps, values) in bench.curves.items()
        }
        records += [
            Record("meta-rims", "roles", "smoke", variant, seed, as_dict(TINY), metrics, curves=curves)
            for seed in (0, 1)
        ]
    drawn = {figure.name: figure.draw(Cell("meta-rims", "roles", "smoke", {}, records)) for figure in ROLES.figures}
    names = {trace.name for trace in drawn["Success in training and after the switch"].data if trace.name}
    assert names == {"meta", "lstm"}
    assert len(drawn["Modules that are active over an episode, meta"].data[0].z) == TINY.modules
    assert len(drawn["How often each module is active, by action"].data[0].z) == 3
    assert {trace.name for trace in drawn["Success in each sixth of both phases"].data} == {"meta", "lstm"}
    for experiment in paper.experiments:
        for figure in experiment.figures:
            empty = figure.draw(Cell("meta-rims", experiment.name, "laptop", {}, []))
            assert empty.layout.annotations or empty.data


# --- the paper's levels -----------------------------------------------------------------------------------------------


def test_settings_are_those_of_the_paper_s_setting() -> None:
    settings = LEVELS.scales["paper"]
    assert (settings.num_envs, settings.steps, settings.batch_size, settings.epochs) == (64, 40, 1280, 4)
    assert (settings.modules, settings.module_size, settings.active) == (5, 50, 3)
    assert settings.lstm_size == settings.modules * settings.module_size
    assert len(settings.pairs) == 10


def test_seeds_of_the_levels_can_decide() -> None:
    windows = {"meta": [0.0] * 4 + [1.0] * 16, "joint": [0.0] * 9 + [1.0] * 11}
    records = [
        Record("meta-rims", "levels", "paper", variant, 100 + seed, {}, {"transfer_windows": found})
        for variant, found in windows.items()
        for seed in range(LEVELS.seeds)
    ]
    assert LEVELS.claims[0].check.evaluate(Cell("meta-rims", "levels", "paper", {}, records)).verdict == "holds"


def test_both_levels_of_every_pair_show_and_take_the_same() -> None:
    from mechanisms.worlds.levels import make_minigrid
    from mechanisms.worlds.missions import mission_vocabulary

    for pair in levels.PAIRS:
        vocabulary = mission_vocabulary(pair)
        one, other = (make_minigrid(level, 1, vocabulary=vocabulary, workers=0)[0] for level in pair)
        assert one.single_observation_space == other.single_observation_space
        assert one.single_action_space == other.single_action_space


@pytest.mark.parametrize("variant", ["meta", "lstm"])
def test_a_pair_of_babyai_levels_end_to_end(variant: str) -> None:
    settings = replace(
        LEVELS.scales["paper"],
        pairs=(("BabyAI-GoToObj-v0", "BabyAI-GoToLocal-v0"),),
        num_envs=2,
        steps=8,
        batch_size=8,
        epochs=1,
        training_updates=3,
        transfer_updates=2,
        segment=2,
        evaluation=2,
        max_steps=8,
        workers=0,
    )
    bench = Bench(0)
    found = levels.run_levels(settings, variant, bench)
    assert 0 <= found["zero_shot"][0] <= 1
    assert len(found["transfer_windows"]) == levels.WINDOWS
    assert bench.curves["transfer_success_0"][0][-1] == 2 * 2 * 8


def test_rewards_are_scaled_for_learning_and_workers_give_the_same() -> None:
    from mechanisms.worlds.missions import mission_vocabulary

    level = "MiniGrid-DoorKey-5x5-v0"
    settings = replace(levels.tiny(), num_envs=2)
    first = []
    for workers in (0, 2):
        with levels.environments(replace(settings, workers=workers), level, mission_vocabulary(level)) as envs:
            envs.seed(5)
            first.append(envs.reset()["image"])
            assert envs.env.func(np.array([0.5])) == 10
    assert np.array_equal(*first)


def test_faster_adaptation_is_judged_by_the_median_over_pairs() -> None:
    slow, fast, never = [0.0] * 9 + [1.0] * 11, [0.0] * 4 + [1.0] * 16, [0.0] * 20

    def judged(*pairs: list[float]) -> bool:
        meta = [one for pair in pairs for one in pair]
        return levels.adapts_faster(
            {"meta": {"transfer_windows": meta}, "joint": {"transfer_windows": slow * len(pairs)}}
        )

    assert judged(fast, fast, never)
    assert not judged(fast, never, never)
    assert not judged(slow)
