r"""Extragradient and optimistic gradient steps: the usual remedies for games that rotate, to lay beside momentum.

With the vector field v of the game (each player's gradient of its own loss) and the state omega of all players:

    extragradient:  omega' = omega_t - eta v(omega_t),  omega_{t+1} = omega_t - eta v(omega')    two gradients a step
    optimistic:     omega_{t+1} = omega_t - eta (2 v_t - v_{t-1}),  v_{-1} = v_0                  one gradient a step

On the bilinear game min_theta max_phi theta^T M phi, with x = eta sigma for a singular value sigma of M and all players
moving together, the squared rates are

    extragradient:  rho² = 1 - x² + x⁴, below 1 for x < 1
    optimistic:     rho² = (1 + sqrt(1 - 4 x²)) / 2 for x <= 1/2, (1 + (2 x + sqrt(4 x² - 1))²) / 4 beyond,
                    below 1 for x < 1 / sqrt(3)

References: Korpelevich, "The Extragradient Method for Finding Saddle Points and Other Problems", 1976; Popov, "A
Modification of the Arrow-Hurwicz Method for Search of Saddle Points", 1980; Daskalakis, Ilyas, Syrgkanis, Zeng,
"Training GANs with Optimism", ICLR 2018, arXiv 1711.00141.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mechanisms._base.validation import check_number


class ExtraGradient(torch.optim.Optimizer):
    """Extragradient: a look ahead, then a step from where it began with the gradient found there.

    All players must look ahead before any of them computes its second gradient. `mechanisms.dynamics.games.play` does
    that; where one optimiser holds the parameters of everyone, `step(closure)` does. Stepping without a look ahead, or
    looking ahead twice, is an error.

    Args:
        params: parameters or parameter groups, as for any optimiser.
        lr: step size eta of the look ahead and of the step, above 0.
        weight_decay: adds this multiple of the parameters to the gradient, in both halves.
        maximize: climb in place of descending.

    Raises:
        ValueError: a step size of 0 or less, or a negative weight decay.

    >>> x = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = ExtraGradient([x], lr=0.5)
    >>> def closure():
    ...     x.grad = x.detach().clone()  # of x² / 2
    ...     return x.detach() ** 2 / 2
    >>> _ = optimizer.step(closure)
    >>> x.data  # 1 - 0.5 (1 - 0.5)
    tensor([0.7500])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | int = 1e-3,
        *,
        weight_decay: float | int = 0.0,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, _options(lr, weight_decay, maximize))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its step size and weight decay are checked as those of the class."""
        _check_group(self.defaults | param_group)
        super().add_param_group(param_group)

    @property
    def looks_ahead(self) -> bool:
        """Whether the parameters stand at the point looked at, and `step` is due."""
        return any("anchor" in state for state in self.state.values())

    @torch.no_grad()
    def extrapolate(self) -> None:
        """Move to omega - eta g and keep where it began.

        Raises:
            RuntimeError: the parameters stand at such a point already.
        """
        if self.looks_ahead:
            raise RuntimeError("extrapolate() was called twice; step() returns to where it began and must come between")
        for group in self.param_groups:
            # Parameters without a gradient have an anchor too: they may have one after the look ahead.
            for parameter in group["params"]:
                self.state[parameter]["anchor"] = parameter.detach().clone()
            parameters, gradients = _with_gradients(group)
            if parameters:
                torch._foreach_add_(parameters, gradients, alpha=-group["lr"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Return to where the look ahead began, and step from there with the gradients of now.

        Args:
            closure: for one optimiser that holds every player's parameters: sets all gradients, each of its player's
                own loss, and returns a loss. It is called twice, with the look ahead between.

        Returns:
            What the closure returned the first time.

        Raises:
            RuntimeError: no look ahead came before and there is no closure.
        """
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
            self.extrapolate()
            with torch.enable_grad():
                closure()
        elif not self.looks_ahead:
            raise RuntimeError(
                "step() without a look ahead; use mechanisms.dynamics.games.play, give a closure, or call "
                "extrapolate() and compute the gradients anew before step()"
            )
        for group in self.param_groups:
            # Weight decay acts at the point looked at, so the gradients come before the return.
            parameters, gradients = _with_gradients(group)
            for parameter in group["params"]:
                parameter.copy_(self.state.pop(parameter)["anchor"])
            if parameters:
                torch._foreach_add_(parameters, gradients, alpha=-group["lr"])
        return value


class OptimisticGradient(torch.optim.Optimizer):
    """Optimistic gradient steps: omega <- omega - eta (2 g_t - g_{t-1}); the first is a plain one.

    An optimiser like any other, for players that move in turn or together.

    Args:
        params: parameters or parameter groups, as for any optimiser.
        lr: step size eta, above 0.
        weight_decay: adds this multiple of the parameters to the gradient.
        maximize: climb in place of descending.

    Raises:
        ValueError: a step size of 0 or less, or a negative weight decay.

    >>> x = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = OptimisticGradient([x], lr=0.1)
    >>> for gradient in (1.0, 3.0):
    ...     x.grad = torch.tensor([gradient])
    ...     optimizer.step()
    >>> x.data  # 1 - 0.1 - 0.1 (6 - 1)
    tensor([0.4000])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | int = 1e-3,
        *,
        weight_decay: float | int = 0.0,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, _options(lr, weight_decay, maximize))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its step size and weight decay are checked as those of the class."""
        _check_group(self.defaults | param_group)
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient.

        Args:
            closure: evaluates the loss anew, as in torch.
        """
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            parameters, gradients = _with_gradients(group)
            if not parameters:
                continue
            previous = [
                self.state[parameter].get("previous_gradient", gradient)
                for parameter, gradient in zip(parameters, gradients, strict=True)
            ]
            # g + (g - previous): no change of the gradients themselves, which users may read afterwards.
            ahead = torch._foreach_sub(gradients, previous)
            torch._foreach_add_(ahead, gradients)
            torch._foreach_add_(parameters, ahead, alpha=-group["lr"])
            for parameter, gradient in zip(parameters, gradients, strict=True):
                self.state[parameter]["previous_gradient"] = gradient.clone()
        return value


def _options(lr: float | int, weight_decay: float | int, maximize: bool) -> dict[str, Any]:
    return {"lr": lr, "weight_decay": weight_decay, "maximize": maximize}


def _check_group(group: dict[str, Any]) -> None:
    check_number(group["lr"], "lr", above=0)
    check_number(group["weight_decay"], "weight_decay", at_least=0)


def _with_gradients(group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters that have a gradient, and what to descend: with the group's sign and weight decay."""
    parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters]
    if parameters and group["maximize"]:
        gradients = torch._foreach_neg(gradients)
    if parameters and group["weight_decay"]:
        gradients = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
    return parameters, list(gradients)
