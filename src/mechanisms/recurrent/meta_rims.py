"""Fast modules, slow attention: one optimiser with two sets of parameters on two time scales (Meta-RIMs).

K. Madan, N. R. Ke, A. Goyal, B. Schoelkopf, Y. Bengio, "Fast and Slow Learning of Recurrent Independent Mechanisms",
ICLR 2021, arXiv 2105.08710. The fast parameters theta (there: the dynamics of the modules) fit the present task in an
inner loop; the slow ones phi (there: the attention that decides which module acts and who talks to whom) are learnt
rarely, in an outer loop, and are what the tasks share:

    N_in times:  theta <- theta - lr_in  * clip(grad_theta L)        phi frozen
    once:        phi   <- phi   - lr_out * clip(grad_phi   L)        theta frozen

`FastSlow` is that alternation for any model whose parameters fall in two sets; nothing of it knows of recurrent
networks or of reinforcement learning. `split_fast_slow` makes the two sets of a network with RIMs (or, for comparison,
with LSTM cells). `maml_gradient` and `reptile_step` differentiate through the inner loop, or around it.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mechanisms._base.validation import check_choice
from mechanisms.recurrent._doors import check_whole
from mechanisms.recurrent.fast_slow_sets import check_split as check_split
from mechanisms.recurrent.fast_slow_sets import split_fast_slow as split_fast_slow
from mechanisms.recurrent.meta_gradients import maml_gradient as maml_gradient
from mechanisms.recurrent.meta_gradients import reptile_step as reptile_step

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]


class FastSlow(Optimizer):
    """An optimiser that updates the fast set `inner_steps` times, then the slow set `outer_steps` times, and so on.

    The set whose turn it is not has `requires_grad=False`: its gradients are never computed, its values and the state
    of its optimiser stay as they are to the bit. What did not require gradients when it was given never will.

    `param_groups` holds one group for each set. Both have the same `lr`; each set's own rate is `lr` times a factor,
    so that a schedule (or a library that overwrites `lr` in all groups) keeps the ratio of the two.

    Args:
        fast, slow: the two sets, disjoint; `slow` may be empty, then `fast` is updated in every step.
        fast_opt: makes the optimiser of the fast set: a callable from a list of parameters.
        slow_opt: makes that of the slow set; by default as `fast_opt`.
        inner_steps: N_in, updates of the fast set before each turn of the slow one. 0 never updates the fast set,
            infinity never the slow one. With `None` nothing switches by itself: set `phase`, or call `advance`.
        outer_steps: updates of the slow set in its turn.
        max_grad_norm: the gradient is clipped to this norm, over the set that is updated alone; a pair for (fast,
            slow); infinity or `None` leaves gradients as they are.
        together: updates both sets in every step, with one joint clip (two time scales by two rates).
        lr: what `lr` in the groups is at first; by default the fast optimiser's. A set's factor is its optimiser's rate
            divided by it.
        module: when given, the two sets must be its parameters, all of them.

    Attributes:
        fast, slow: the two optimisers; `slow` is `None` for an empty set.
        updates: steps taken so far.

    Raises:
        TypeError: something else than parameters is given, or no optimiser comes back.
        ValueError: the sets overlap, are not the module's, or have nothing to train.
        FloatingPointError: (by `step`) the gradient is infinite or not a number.

    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch._C.Generator ...>
    >>> body, head = nn.Linear(3, 8), nn.Linear(8, 1)
    >>> optimizer = FastSlow(
    ...     head.parameters(), body.parameters(), fast_opt=lambda own: torch.optim.SGD(own, lr=0.1), inner_steps=2
    ... )
    >>> for _ in range(4):
    ...     print(optimizer.phase)
    ...     optimizer.zero_grad()
    ...     head(torch.tanh(body(torch.ones(4, 3)))).square().mean().backward()
    ...     optimizer.step()
    fast
    fast
    slow
    fast
    """

    def __init__(
        self,
        fast: Iterable[nn.Parameter],
        slow: Iterable[nn.Parameter],
        *,
        fast_opt: MakeOptimizer,
        slow_opt: MakeOptimizer | None = None,
        inner_steps: int | float | None = 4,
        outer_steps: int = 1,
        max_grad_norm: float | int | tuple[float | int, float | int] | None = 0.5,
        together: bool = False,
        lr: float | int | None = None,
        module: nn.Module | None = None,
    ) -> None:
        self._sets = {"fast": _as_parameters(fast, "fast"), "slow": _as_parameters(slow, "slow")}
        if module is not None:
            check_split(module, *self._sets.values())
        shared = {id(one) for one in self._sets["fast"]} & {id(one) for one in self._sets["slow"]}
        if shared:
            places = [place for place, one in enumerate(self._sets["slow"]) if id(one) in shared]
            raise ValueError(
                f"{len(shared)} parameters are in both sets (places {places} of the slow one); each parameter belongs "
                "to one"
            )
        # Also what an earlier phase of ours froze has to come back, so the flags are read once.
        self._trained = {name: [one for one in own if one.requires_grad] for name, own in self._sets.items()}
        for name, own in self._sets.items():
            if not self._trained[name] and (own or name == "fast"):
                raise ValueError(
                    f"the {name} set has {len(own)} parameters and none of them requires a gradient; if another "
                    "FastSlow holds them, call its release() first"
                )
        self.inner_steps = None if inner_steps is None else check_inner(inner_steps, "inner_steps")
        self.outer_steps = check_whole(outer_steps, "outer_steps")
        self.together = together
        self._limits = _as_limits(max_grad_norm)
        self.fast = _made(fast_opt, self._sets["fast"], "fast_opt")
        self.slow = _made(slow_opt or fast_opt, self._sets["slow"], "slow_opt") if self._sets["slow"] else None
        base = float(self.fast.param_groups[0]["lr"]) if lr is None else float(lr)
        if not base > 0:
            raise ValueError(f"lr={base}: it must be above 0, as the rates of both sets are multiples of it")
        self._factors = {
            name: [float(group["lr"]) / base for group in own.param_groups] for name, own in self._optimizers().items()
        }
        self.updates = self._done = self._pending = 0
        self._kept: list[Tensor] | None = None
        super().__init__([{"params": own, "name": name} for name, own in self._sets.items()], {"lr": base})
        self._turn("both" if together else "slow" if self.inner_steps == 0 and self.slow else "fast")

    # --- whose turn it is ---------------------------------------------------------------------------------------------

    @property
    def phase(self) -> str:
        """Which set is updated: "fast", "slow", or "both" with `together`. Setting it starts that phase anew.

        Raises:
            ValueError: (when set) there is no such phase here.
        """
        return self._phase

    @phase.setter
    def phase(self, phase: str) -> None:
        self._turn(phase)
        self._done = self._pending = 0

    def _turn(self, phase: str) -> None:
        check_choice(phase, "phase", ("both",) if self.together else ("fast", "slow") if self.slow else ("fast",))
        self._phase = phase
        for name, own in self._trained.items():
            at_work = phase in (name, "both")
            for parameter in own:
                parameter.requires_grad_(at_work)
                if not at_work:
                    parameter.grad = None

    def advance(self, inner_steps: int | float, outer_steps: int = 1) -> None:
        """Count everything since the last call as one update, and switch the phase when it has had enough of them.

        For loops in which one update is many steps, such as the epochs on one rollout; make the optimiser with
        `inner_steps=None` for these. Without a step since the last call nothing is counted, so that a first call
        starts the loop.

        Args:
            inner_steps: updates of the fast set before each turn of the slow one, from 0 to infinity.
            outer_steps: updates of the slow set in its turn.
        """
        if self._pending:
            self._pending, self._done = 0, self._done + 1
        if self.together or self.slow is None:
            return
        if inner_steps == 0:
            if self._phase == "fast":
                self.phase = "slow"
        elif self._done >= (inner_steps if self._phase == "fast" else outer_steps):
            self.phase = "slow" if self._phase == "fast" else "fast"

    def release(self) -> None:
        """Give all parameters back as they were given: both sets require gradients again."""
        for own in self._trained.values():
            for parameter in own:
                parameter.requires_grad_(True)

    # --- a step -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyrefly: ignore
        """Clip the gradient of the set whose turn it is and update it.

        Args:
            closure: computes the loss with its gradients, and returns it; as in other optimisers it may be left out.

        Returns:
            The closure's loss, or `None`.

        Raises:
            FloatingPointError: the gradient is infinite or not a number; nothing was updated.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._phase == "both":
            self._clip(self._trained["fast"] + self._trained["slow"], self._limits[0])
        else:
            self._clip(self._trained[self._phase], self._limits[self._phase == "slow"])
        for own, (name, optimizer) in zip(self.param_groups, self._optimizers().items(), strict=False):
            if self._phase in (name, "both"):
                for group, factor in zip(optimizer.param_groups, self._factors[name], strict=True):
                    group["lr"] = own["lr"] * factor
                optimizer.step()
        self.updates += 1
        self._pending = 1
        if self.inner_steps is not None:
            self.advance(self.inner_steps, self.outer_steps)
        return loss

    def _clip(self, parameters: list[nn.Parameter], limit: float) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients:
            return
        norms = [norm.to(gradients[0].device) for norm in torch._foreach_norm(gradients)]
        # Sorted, so that the norm does not depend on the order of the sets, to the last bit.
        norm = float(torch.stack(norms).sort().values.norm())
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"the gradient of the {self._phase} parameters has norm {norm} at update {self.updates}; nothing was "
                "updated: look at the loss, or lower the learning rate"
            )
        if norm > limit:
            torch._foreach_mul_(gradients, limit / (norm + 1e-6))

    def _optimizers(self) -> dict[str, Optimizer]:
        return {"fast": self.fast} if self.slow is None else {"fast": self.fast, "slow": self.slow}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused once the optimiser is made: the two sets are fixed.

        Raises:
            TypeError: always, after construction.
        """
        if hasattr(self, "_phase"):
            raise TypeError("FastSlow has two sets, fixed when it is made; make a new one with the larger set")
        super().add_param_group(param_group)

    # --- the start of a task ------------------------------------------------------------------------------------------

    @property
    def keeps_fast(self) -> bool:
        """Whether `keep_fast` has been called."""
        return self._kept is not None

    def keep_fast(self) -> None:
        """Remember the fast parameters as they are now, for `restore_fast`."""
        self._kept = [parameter.detach().clone() for parameter in self._sets["fast"]]

    @torch.no_grad()
    def restore_fast(self) -> None:
        """Put the fast parameters back to where `keep_fast` saw them, and forget their optimiser's averages.

        Raises:
            ValueError: `keep_fast` has not been called.
        """
        if self._kept is None:
            raise ValueError("there is nothing to restore; call keep_fast() at the start of the first task")
        for parameter, kept in zip(self._sets["fast"], self._kept, strict=True):
            parameter.copy_(kept)
        self.fast.state.clear()

    # --- saving -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Both optimisers' states, the phase and how far it is: tensors, numbers and names only.

        It loads with `torch.load(..., weights_only=True)`, and training goes on as if it had not stopped, also in the
        middle of a phase.
        """
        return {
            "fast": self.fast.state_dict(),
            "slow": None if self.slow is None else self.slow.state_dict(),
            "lr": [float(group["lr"]) for group in self.param_groups],
            "phase": self._phase,
            "done": self._done,
            "pending": self._pending,
            "updates": self.updates,
            "kept": None if self._kept is None else [kept.clone() for kept in self._kept],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, on the same two sets.

        Raises:
            ValueError: it is of another kind, or the sets do not fit.
        """
        wanted = set(self.state_dict())
        if set(state_dict) != wanted or (state_dict["slow"] is None) != (self.slow is None):
            raise ValueError(
                f"the state holds {sorted(state_dict)}{' with an empty slow set' if not state_dict.get('slow') else ''}"
                f"; this FastSlow needs {sorted(wanted)}{' with an empty slow set' if self.slow is None else ''}"
            )
        kept = state_dict["kept"]
        if kept is not None and [one.shape for one in kept] != [one.shape for one in self._sets["fast"]]:
            raise ValueError("the kept values of the fast set have other shapes than the fast set here")
        for name, optimizer in self._optimizers().items():
            optimizer.load_state_dict(state_dict[name])
        for group, lr in zip(self.param_groups, state_dict["lr"], strict=True):
            group["lr"] = lr
        self._turn(state_dict["phase"])
        self._done, self._pending, self.updates = state_dict["done"], state_dict["pending"], state_dict["updates"]
        places = self._sets["fast"]
        self._kept = None if kept is None else [one.to(at.device).clone() for one, at in zip(kept, places, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        """For `copy.deepcopy`; torch's own keeps nothing but its groups."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_optimizer_")}


def check_inner(inner_steps: float | int, name: str) -> int | float:
    """How often the fast set is updated in its turn: a whole number from 0, or infinity.

    >>> check_inner(math.inf, "inner_steps")
    inf
    """
    return math.inf if inner_steps == math.inf else check_whole(inner_steps, name, at_least=0)


def _as_parameters(given: Iterable[nn.Parameter], name: str) -> list[nn.Parameter]:
    found = list(given)
    for place, one in enumerate(found):
        if not isinstance(one, Tensor):
            raise TypeError(
                f"{name}[{place}] is a {type(one).__name__}; a set is an iterable of parameters, such as "
                "module.parameters()"
            )
    if len({id(one) for one in found}) != len(found):
        raise ValueError(f"the {name} set holds a parameter twice")
    return found


def _as_limits(given: float | int | tuple[float | int, float | int] | None) -> tuple[float, float]:
    pair = given if isinstance(given, tuple) else (given, given)
    limits = tuple(math.inf if one is None else float(one) for one in pair)
    if len(limits) != 2 or not all(limit > 0 for limit in limits):
        raise ValueError(f"max_grad_norm={given}: it must be above 0, one number or a pair for (fast, slow)")
    return limits[0], limits[1]


def _made(make: MakeOptimizer, parameters: list[nn.Parameter], name: str) -> Optimizer:
    made = make(parameters)
    if not isinstance(made, Optimizer):
        raise TypeError(
            f"{name} gave {type(made).__name__}; it must make an optimiser of a list of parameters, as in "
            f"{name}=lambda own: torch.optim.Adam(own, lr=1e-3)"
        )
    held = {id(one) for group in made.param_groups for one in group["params"]}
    if held != {id(one) for one in parameters}:
        raise ValueError(f"{name} made an optimiser of other parameters than it was given")
    return made
