"""Training of a modular agent beside sb3-contrib's own: `python benchmarks/bench_meta_rims.py [--quick]`.

PPO (sb3-contrib's RecurrentPPO for all) in `VectorGoTo`: 64 rooms, 20 steps of each and 3 epochs make an update of
1,280 frames. Medians of runs in turns, each of five updates (four of the fast set, one of the slow):

(a) RIMs of 4 x 16 units with `FastSlow` against `MlpLstmPolicy` with an LSTM of 64 units. The peer does equal work when
    its one LSTM serves actor and critic (shared_lstm=True, enable_critic_lstm=False), as ours does; its default, an
    LSTM for each, is shown too. Target: at least 0.6 times the frames per second of the shared one, at least 5,000.
(b) Our `LSTMCell` in the same place; reported.
(c) An epoch of an inner and of an outer update against one of all parameters; reported. Sets that rest have no
    gradients computed.
(d) The environment alone. Target: at least 200,000 steps per second.

Before timing, our policy with an LSTM, given the weights of the peer's, must give the peer's log-probabilities, values
and entropies, over sequences with episodes that begin within them.
"""

import math
import os
import sys
import time
from typing import Any

import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.logger import Logger

from _turns import in_turns, milliseconds, options, ratio, verdict
from mechanisms.recurrent import FastSlowCallback, RecurrentPolicy, SB3VecEnv
from mechanisms.worlds import VectorGoTo

ROOMS, STEPS, EPOCHS, UPDATES = 64, 20, 3, 5
FRAMES = ROOMS * STEPS * UPDATES
RIMS = {
    "name": "RIMCell",
    "hidden_size": 16,
    "num_modules": 4,
    "num_active": 2,
    "key_size": 16,
    "comm_key_size": 8,
    "qkv_std": 0.1,
}
LSTM = {"name": "LSTMCell", "hidden_size": 64}
HEADS = {"pi": [64], "vf": [64]}


def ours(cell: dict[str, Any], mode: str = "meta") -> RecurrentPPO:
    """An agent with a cell of this package."""
    kwargs = {"cell": cell, "net_arch": HEADS, "fast_slow": {"mode": mode}}
    return agent(RecurrentPolicy, kwargs, max_grad_norm=math.inf)


def peer(shared: bool) -> RecurrentPPO:
    """An agent with the LSTM that sb3-contrib brings: one for actor and critic, or one for each."""
    kwargs = {"lstm_hidden_size": 64, "shared_lstm": shared, "enable_critic_lstm": not shared, "net_arch": HEADS}
    return agent("MlpLstmPolicy", kwargs)


def agent(policy: Any, kwargs: dict[str, Any], **arguments: Any) -> RecurrentPPO:
    """PPO in the grid world."""
    model = RecurrentPPO(
        policy,
        SB3VecEnv(VectorGoTo(ROOMS)),
        learning_rate=1e-3,
        n_steps=STEPS,
        batch_size=ROOMS * STEPS,
        n_epochs=EPOCHS,
        policy_kwargs=kwargs,
        seed=0,
        device="cpu",
        **arguments,
    )
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def check_agreement() -> None:
    """Our policy with an LSTM says what the peer's says, with the same weights."""
    torch.manual_seed(0)
    other, own = peer(shared=True).policy, ours(LSTM, "joint").policy
    theirs = other.state_dict()
    names = {f"lstm_actor.cell.{name}": f"lstm_actor.{name}_l0" for name, _ in own.lstm_actor.cell.named_parameters()}
    own.load_state_dict({name: theirs[names.get(name, name)] for name in own.state_dict()})
    rows, steps = 6, 9
    seen = torch.as_tensor(VectorGoTo(rows * steps).reset(seed=0)[0])
    actions = torch.randint(3, (rows * steps,))
    starts = (torch.rand(rows * steps) < 0.2).float()
    h, c = torch.randn(2, 1, rows, 64)
    states = RNNStates((h, c), (h, c))
    found = [policy.evaluate_actions(seen, actions, states, starts) for policy in (own, other)]
    for mine, wanted in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-4)


def training(model: RecurrentPPO) -> Any:
    """Five updates; the phases of our agents go on from call to call."""
    callback = FastSlowCallback(4) if isinstance(model.policy, RecurrentPolicy) else None

    def step() -> None:
        model.learn(FRAMES, callback, log_interval=None)

    return step


def epoch(model: RecurrentPPO, phase: str) -> Any:
    """One epoch over a rollout that was collected before."""
    model.n_epochs = 1

    def step() -> None:
        model.policy.optimizer.phase = phase
        model.train()

    return step


def main() -> None:
    chosen = options(__doc__)
    alone = chosen.threads == 1
    check_agreement()
    rounds = 2 if chosen.quick else 12
    agents = {
        "RIMs 4 x 16, 2 active": ours(RIMS),
        "LSTMCell 64": ours(LSTM, "joint"),
        "MlpLstmPolicy 64, shared": peer(shared=True),
        "MlpLstmPolicy 64, one each": peer(shared=False),
    }
    seconds = in_turns({name: training(one) for name, one in agents.items()}, rounds, alone=alone, device="cpu")
    own, shared = seconds["RIMs 4 x 16, 2 active"], seconds["MlpLstmPolicy 64, shared"]
    print(f"\n{'agent':<28}{'frames/s':>10}{'of the shared peer':>20}")
    for name, taken in seconds.items():
        print(f"{name:<28}{FRAMES * 1e3 / milliseconds(taken):>10.0f}{ratio(shared, taken):>20.2f}")
    share, speed = ratio(shared, own), FRAMES * 1e3 / milliseconds(own)
    print(f"(a) {share:.2f} of the shared peer; at least 0.6: {verdict(share >= 0.6)}")
    print(f"    {speed:.0f} frames/s; at least 5,000: {verdict(speed >= 5000)}")

    models = {phase: ours(RIMS) for phase in ("fast", "slow")}
    models["all"] = ours(RIMS, "joint")
    for model in models.values():
        model.learn(ROOMS * STEPS, log_interval=None)
    epochs = {name: epoch(model, "fast" if name == "all" else name) for name, model in models.items()}
    taken = in_turns(epochs, 5 * rounds, alone=alone, device="cpu")
    print("(c) an epoch of the fast set, the slow set, all:", end=" ")
    print(", ".join(f"{milliseconds(taken[name]):.0f} ms" for name in ("fast", "slow", "all")))

    envs, actions = VectorGoTo(ROOMS), np.random.default_rng(0).integers(3, size=(500, ROOMS))
    envs.reset(seed=0)
    speeds = []
    for _ in range(rounds):
        start = time.process_time()
        for one in actions:
            envs.step(one)
        speeds.append(actions.size / (time.process_time() - start))
    print(
        f"(d) {np.median(speeds):.0f} steps/s of the environment; at least 200,000: {verdict(np.median(speeds) >= 2e5)}"
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
