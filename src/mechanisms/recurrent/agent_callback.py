"""The two time scales of `FastSlow` in the loop of stable-baselines3: a phase is some rollouts with their epochs."""

import math
from typing import Any

from mechanisms._base.extras import require
from mechanisms._base.validation import check_choice
from mechanisms.recurrent._doors import check_whole
from mechanisms.recurrent.meta_rims import FastSlow, check_inner

require("stable_baselines3", "rl")  # first, for its clear message

from stable_baselines3.common.callbacks import BaseCallback  # noqa: E402


class FastSlowCallback(BaseCallback):
    """Switches the phase of the policy's `FastSlow` at the end of a rollout, before the agent learns from it.

    How far a phase is, is kept by the optimiser, so that an agent that was saved in the middle of one goes on there.

    Args:
        inner_updates: N_in, rollouts from which the fast set learns before each that the slow set learns from; 0 never
            updates the fast set, infinity never the slow one.
        outer_updates: rollouts from which the slow set learns in its turn.
        reset_fast: "task" puts the fast parameters back to where they were at the start of the first task whenever
            another task begins: when the agent is given another environment (`model.set_env`), or `new_task` is called.

    Raises:
        TypeError: (when learning starts) the policy's optimiser is no `FastSlow`.
        ValueError: (when learning starts) the algorithm clips gradients itself.

    >>> FastSlowCallback(inner_updates=4).inner_updates
    4
    """

    def __init__(
        self, inner_updates: int | float = 4, reset_fast: str | None = None, *, outer_updates: int = 1, verbose: int = 0
    ) -> None:
        super().__init__(verbose)
        self.inner_updates = check_inner(inner_updates, "inner_updates")
        self.outer_updates = check_whole(outer_updates, "outer_updates")
        if reset_fast is not None:
            check_choice(reset_fast, "reset_fast", ("task",))
        self.reset_fast = reset_fast
        self._env: Any = None

    @property
    def optimizer(self) -> FastSlow:
        """The policy's `FastSlow`."""
        return self.model.policy.optimizer  # pyrefly: ignore

    def _on_training_start(self) -> None:
        if not isinstance(self.optimizer, FastSlow):
            raise TypeError(
                f"the policy's optimiser is {type(self.optimizer).__name__}; make the policy with "
                "policy_kwargs={'fast_slow': {...}}"
            )
        limit = getattr(self.model, "max_grad_norm", math.inf)
        if limit != math.inf:
            raise ValueError(
                f"the algorithm has max_grad_norm={limit}, which clips over both sets at once; set "
                "max_grad_norm=float('inf') there and let FastSlow clip each set by itself"
            )
        if self.reset_fast and not self.optimizer.keeps_fast:
            self.optimizer.keep_fast()
        elif self._env is not None and self._env is not self.training_env:
            self.new_task()
        self._env = self.training_env

    def new_task(self) -> None:
        """Tell that another task begins."""
        if self.reset_fast:
            self.optimizer.restore_fast()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.optimizer.advance(self.inner_updates, self.outer_updates)
        self.logger.record("train/phase", self.optimizer.phase)
