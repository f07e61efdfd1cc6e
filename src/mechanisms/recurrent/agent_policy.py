"""A policy for sb3-contrib's `RecurrentPPO` whose memory is any cell, and whose optimiser may be `FastSlow`."""

from collections.abc import Callable, Mapping
from typing import Any

from mechanisms._base.extras import require
from mechanisms._base.validation import check_choice

require("sb3_contrib", "rl")  # first, for its clear message

import torch  # noqa: E402
from gymnasium import spaces  # noqa: E402
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy  # noqa: E402
from sb3_contrib.common.recurrent.type_aliases import RNNStates  # noqa: E402
from stable_baselines3.common.torch_layers import (  # noqa: E402
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
)
from torch import Tensor, nn  # noqa: E402

from mechanisms.recurrent.agent_core import CellSettings, SB3Core, make_cell  # noqa: E402
from mechanisms.recurrent.meta_rims import FastSlow, split_fast_slow  # noqa: E402


class RecurrentPolicy(RecurrentActorCriticPolicy):
    """An actor and a critic with a cell of this package as their memory.

    `RecurrentPPO(RecurrentPolicy, env, policy_kwargs={"cell": {"name": "LSTMCell", "hidden_size": 64}})`: the features
    of an observation go through the cell, and its output to the heads.

    Args:
        observation_space, action_space, lr_schedule: from the algorithm.
        cell: settings of the cell, or a callable from the input size to one (see `make_cell`).
        critic: "shared", one cell that learns from both losses; "separate", a second cell for the critic;
            "feedforward", a critic without memory.
        noise_in_update: whether the cell draws noise while it learns (see `SB3Core`).
        fast_slow: settings of `FastSlow` as the optimiser: "mode", of `split_fast_slow`, or a callable from this
            policy to (fast, slow); "fast_extra"; "fast_rate" and "slow_rate", multiples of the algorithm's learning
            rate (1); "max_grad_norm" (0.5); "together". Then set `max_grad_norm=inf` in the algorithm, and let
            `FastSlowCallback` switch the phases.
        linear_init: how linear layers outside the cell start: "orthogonal", as in sb3; "unit_rows", rows of norm 1 and
            no bias, as in BabyAI; "torch", as torch leaves them.
        net_arch: sizes of the hidden layers of the heads; by default one of 64 each.
        features_extractor_class, features_extractor_kwargs: what comes before the cell; by default the observation as
            it is. `MlpEncoder` and `BabyAIEncoder` are others.
        options: the other arguments of sb3's `ActorCriticPolicy`.

    Raises:
        TypeError: no such cell, or one that cannot serve an agent.
        ValueError: an unknown choice.

    >>> import numpy as np
    >>> box, actions = spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)
    >>> policy = RecurrentPolicy(box, actions, lambda _: 1e-3, cell={"name": "GRUCell", "hidden_size": 4})
    >>> action, state = policy.predict(np.zeros((5, 3), np.float32))
    >>> action.shape
    (5,)
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Callable[[float], float],
        *,
        cell: CellSettings,
        critic: str = "shared",
        noise_in_update: bool = False,
        fast_slow: Mapping[str, Any] | None = None,
        linear_init: str = "orthogonal",
        net_arch: list[int] | dict[str, list[int]] | None = None,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        check_choice(critic, "critic", ("shared", "separate", "feedforward"))
        check_choice(linear_init, "linear_init", ("orthogonal", "unit_rows", "torch"))
        if critic == "shared" and not options.get("share_features_extractor", True):
            raise ValueError("share_features_extractor=False needs critic='separate': one cell has one input")
        self._given = {
            "cell": cell,
            "critic": critic,
            "noise_in_update": noise_in_update,
            "fast_slow": fast_slow,
            "linear_init": linear_init,
        }
        if features_extractor_class is None:
            combined = isinstance(observation_space, spaces.Dict)
            features_extractor_class = CombinedExtractor if combined else FlattenExtractor
        # An encoder that scales its input itself is not to get it divided by 255.
        options.setdefault("normalize_images", not getattr(features_extractor_class, "scales_images", False))
        options.setdefault("ortho_init", linear_init == "orthogonal")
        # Past the constructor of the parent, which would make LSTMs and an optimiser for them.
        super(RecurrentActorCriticPolicy, self).__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch={"pi": [64], "vf": [64]} if net_arch is None else net_arch,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            **options,
        )

    # --- making the networks: called by the constructor of sb3's policy -----------------------------------------------

    def _build_mlp_extractor(self) -> None:
        given = self._given

        def core() -> Any:  # which sb3 takes for the nn.LSTM that it knows
            return SB3Core(make_cell(given["cell"], self.features_dim), given["noise_in_update"]).to(self.device)

        self.lstm_actor = core()
        self.lstm_critic = core() if given["critic"] == "separate" else None
        self.lstm_output_dim = self.lstm_actor.output_size
        self.critic = (
            nn.Linear(self.features_dim, self.lstm_output_dim, device=self.device)
            if given["critic"] == "feedforward"
            else None
        )
        self.shared_lstm, self.enable_critic_lstm = given["critic"] == "shared", given["critic"] == "separate"
        self.lstm_kwargs: dict[str, Any] = {}
        self.lstm_hidden_state_shape = (1, 1, self.lstm_actor.hidden_size)
        super()._build_mlp_extractor()

    def _build(self, lr_schedule: Callable[[float], float]) -> None:
        super()._build(lr_schedule)
        if self._given["linear_init"] == "unit_rows":
            for name, module in self.named_modules():
                if isinstance(module, nn.Linear) and not name.startswith("lstm_"):
                    unit_rows_(module)
        if self._given["fast_slow"] is not None:
            self.optimizer = self._fast_slow(lr_schedule(1), **self._given["fast_slow"])

    def _fast_slow(
        self,
        lr: float,
        *,
        mode: str | Callable[[nn.Module], tuple[Any, Any]] = "meta",
        fast_extra: bool = True,
        fast_rate: float | int = 1.0,
        slow_rate: float | int = 1.0,
        max_grad_norm: Any = 0.5,
        together: bool = False,
    ) -> FastSlow:
        fast, slow = mode(self) if callable(mode) else split_fast_slow(self, mode, fast_extra)

        def make(rate: float | int) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
            return lambda own: self.optimizer_class(own, lr=rate, **self.optimizer_kwargs)  # pyrefly: ignore

        optimizer = FastSlow(
            fast,
            slow,
            fast_opt=make(fast_rate),
            slow_opt=make(slow_rate),
            inner_steps=None,
            max_grad_norm=tuple(max_grad_norm) if isinstance(max_grad_norm, list) else max_grad_norm,
            together=together,
            lr=1.0,
            module=self,
        )
        for group in optimizer.param_groups:
            group["lr"] = lr
        return optimizer

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        return {**data, **self._given}

    # --- running them -------------------------------------------------------------------------------------------------

    @staticmethod
    def _process_sequence(  # pyrefly: ignore
        features: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: Any
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The core over (sequences * steps, features), sequence by sequence; the outputs in the same order."""
        rows = lstm_states[0].shape[1]
        sequence = features.reshape(rows, -1, lstm.input_size).swapaxes(0, 1)
        starts = episode_starts.reshape(rows, -1).swapaxes(0, 1)
        output, states = lstm(sequence, lstm_states, starts)
        return output.swapaxes(0, 1).flatten(0, 1), states

    def _latents(self, obs: Any, lstm_states: Any, episode_starts: Tensor) -> tuple[Tensor, Tensor, RNNStates]:
        """What goes into the heads of the actor and of the critic, and the states after."""
        features: Any = self.extract_features(obs)
        own, other = (features, features) if self.share_features_extractor else features
        actor, after = self._process_sequence(own, lstm_states.pi, episode_starts, self.lstm_actor)
        if self.lstm_critic is not None:
            critic, after_critic = self._process_sequence(other, lstm_states.vf, episode_starts, self.lstm_critic)
            return actor, critic, RNNStates(after, after_critic)
        return actor, actor if self.critic is None else self.critic(other), RNNStates(after, after)

    def forward(  # pyrefly: ignore
        self, obs: Any, lstm_states: RNNStates, episode_starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, RNNStates]:
        """Actions, values and log-probabilities of one step, and the states after it."""
        actor, critic, states = self._latents(obs, lstm_states, episode_starts)
        values = self.value_net(self.mlp_extractor.forward_critic(critic))
        distribution = self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(actor))
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        return actions.reshape((-1, *self.action_space.shape)), values, log_prob, states  # pyrefly: ignore

    def evaluate_actions(  # pyrefly: ignore
        self, obs: Any, actions: Tensor, lstm_states: RNNStates, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, log-probabilities and entropies of given actions, over whole sequences."""
        actor, critic, _ = self._latents(obs, lstm_states, episode_starts)
        values = self.value_net(self.mlp_extractor.forward_critic(critic))
        distribution = self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(actor))
        return values, distribution.log_prob(actions), distribution.entropy()


def unit_rows_(layer: nn.Linear) -> None:
    """Set the rows of a linear layer to random directions of norm 1 and its bias to zero (as BabyAI's agents start).

    >>> layer = nn.Linear(3, 2)
    >>> unit_rows_(layer)
    >>> torch.allclose(layer.weight.norm(dim=1), torch.ones(2))
    True
    """
    with torch.no_grad():
        layer.weight.normal_()
        layer.weight.div_(layer.weight.norm(dim=1, keepdim=True))
        if layer.bias is not None:
            layer.bias.zero_()
