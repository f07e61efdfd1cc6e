r"""Optimisers whose momentum may be negative: `torch.optim.SGD` and `Adam` with the range opened to (-1, 1).

In a game (a GAN, an actor and a critic, an attack and a defence) gradient steps rotate around the equilibrium. A
momentum below zero takes back a part of the step before and damps the rotation; torch refuses it
(`Invalid momentum value: -0.5`). These optimisers run on torch's own kernels, the fused ones where there are some.

Reference: Gidel, Askari Hemmat, Pezeshki, Le Priol, Huang, Lacoste-Julien, Mitliagkas, "Negative Momentum for Improved
Game Dynamics", AISTATS 2019, arXiv 1807.04740. With the gradient g_t of the player's own loss, SGD is

    buf_t = beta buf_{t-1} + g_t,    omega_{t+1} = omega_t - eta buf_t,    buf_0 = g_0,    beta in (-1, 1),

which for a constant eta is the heavy ball omega_{t+1} = omega_t - eta g_t + beta (omega_t - omega_{t-1}).

**Compare at equal effective step.** In a steady direction the step is eta / (1 - beta): beta = -1/2 moves 2/3 as far as
beta = 0. A comparison of momenta needs beta = 0 at eta / (1 - beta) beside beta = 0 at eta.

Schedulers that cycle the momentum (`OneCycleLR`, `CyclicLR`) overwrite it unless they get `cycle_momentum=False`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mechanisms._base.validation import check_number

# Where torch has fused kernels that the tests compare with the plain ones.
FUSED_DEVICES = ("cpu", "cuda")


class NegativeMomentumSGD(torch.optim.SGD):
    """SGD with a momentum between -1 and 1; everything else is `torch.optim.SGD`.

    Momentum 0 and above gives torch's own steps. State, parameter groups (each with a momentum of its own), schedulers,
    `GradScaler`, hooks, `deepcopy` and pickling are torch's.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: step size eta, above 0. A scheduler may bring it to 0 later.
        momentum: beta, between -1 and 1, both excluded. The default is the paper's.
        dampening: the gradient enters the buffer with 1 - `dampening`, which changes the effective step as well.
        weight_decay: adds this multiple of the parameters to the gradient.
        nesterov: Nesterov's step, for a momentum above 0 only.
        maximize: climb in place of descending.
        foreach, fused: torch's kernels. By default fused for dense floating-point parameters on CPU and CUDA, and
            torch's choice elsewhere. Sparse gradients need `fused=False`.
        differentiable: as in torch; never fused.

    Raises:
        ValueError: a momentum outside (-1, 1), a step size of 0 or less, or `nesterov` with a momentum of 0 or less,
            for which it is not defined.

    >>> x = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = NegativeMomentumSGD([x], lr=0.1, momentum=-0.5)
    >>> for _ in range(2):
    ...     x.grad = torch.ones(1)
    ...     optimizer.step()
    >>> x.data  # 1 - 0.1 - 0.1 (1 - 0.5)
    tensor([0.8500])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | int | Tensor = 1e-3,
        momentum: float | int = -0.5,
        *,
        dampening: float | int = 0.0,
        weight_decay: float | int = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_number(lr, "lr", above=0)
        momentum = check_number(momentum, "momentum", above=-1, below=1)
        # The parent is built with what it accepts; the groups carry the real values.
        super().__init__(
            _with_options(params, momentum=momentum, nesterov=nesterov),
            lr=lr,
            dampening=dampening,
            weight_decay=weight_decay,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        self.defaults |= {"momentum": momentum, "nesterov": nesterov}
        _agree_on_scaling(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; what it does not set has the values the optimiser was built with, a negative momentum too.

        Raises:
            ValueError: as for the class.
        """
        options = self.defaults | param_group
        momentum = check_number(options["momentum"], "momentum", above=-1, below=1)
        check_number(options["lr"], "lr", above=0)
        if options["nesterov"] and momentum <= 0:
            raise ValueError(
                f"nesterov=True with momentum={momentum}: Nesterov's step is defined for a momentum above 0; "
                "leave nesterov out"
            )
        super().add_param_group(param_group)
        _choose_kernel(self)


class NegativeMomentumAdam(torch.optim.Adam):
    """Adam whose first coefficient may be negative; everything else is `torch.optim.Adam`.

    With b1 = betas[0] the averages are m <- b1 m + (1 - b1) g and v <- b2 v + (1 - b2) g², and m is divided by
    1 - b1^t, which is positive for every b1 in (-1, 1). The authors' experiments use an *undampened* average,
    m <- b1 m + g, still divided by 1 - b1^t: the same steps with lr / (1 - b1), so 1.5 times smaller for b1 = -0.5
    and twice as large for b1 = 0.5.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: step size, above 0. A scheduler may bring it to 0 later.
        betas: b1 in (-1, 1) and b2 in [0, 1). The defaults are those of the paper's GANs.
        eps: added to the root of v after its correction, as in torch.
        weight_decay: adds this multiple of the parameters to the gradient.
        amsgrad: divide by the largest v so far.
        dampened: False for the authors' `Adamp`. Groups may differ.
        maximize: climb in place of descending.
        foreach, fused: torch's kernels. By default fused for dense floating-point parameters on CPU and CUDA, and
            torch's choice elsewhere.
        capturable: as in torch, for CUDA graphs.
        differentiable: as in torch; never fused.

    Raises:
        ValueError: betas out of range, or a step size of 0 or less.

    >>> x = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = NegativeMomentumAdam([x], lr=0.1)
    >>> x.grad = torch.ones(1)
    >>> optimizer.step()
    >>> x.data
    tensor([0.9000])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | int | Tensor = 1e-3,
        betas: tuple[float | int, float | int] = (-0.5, 0.9),
        eps: float = 1e-8,
        weight_decay: float | int = 0.0,
        amsgrad: bool = False,
        *,
        dampened: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_number(lr, "lr", above=0)
        betas = _check_betas(betas)
        super().__init__(
            _with_options(params, betas=betas, dampened=dampened),
            lr=lr,
            betas=(0.0, betas[1]),
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        self.defaults |= {"betas": betas, "dampened": dampened}
        _agree_on_scaling(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; what it does not set has the values the optimiser was built with, negative betas too.

        Raises:
            ValueError: as for the class.
        """
        options = self.defaults | param_group
        check_number(options["lr"], "lr", above=0)
        if "betas" in param_group:
            param_group = param_group | {"betas": _check_betas(options["betas"])}
        super().add_param_group(param_group)
        _choose_kernel(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, also one that `torch.optim.Adam` saved."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("dampened", True)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every group.

        Args:
            closure: evaluates the loss anew, as in torch.
        """
        full = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            if not group["dampened"]:
                group["lr"] = group["lr"] / (1 - group["betas"][0])
        try:
            return _bare(torch.optim.Adam.step)(self, closure)
        finally:
            for group, lr in zip(self.param_groups, full, strict=True):
                group["lr"] = lr


def _bare(step: Callable[..., Any]) -> Callable[..., Any]:
    """A parent's step without torch's wrapper for hooks, which our own step already has: hooks run once."""
    return getattr(step, "__wrapped__", step) if getattr(step, "hooked", False) else step


def _with_options(params: Iterable[Any], **options: Any) -> Any:
    """The parameters as groups that carry `options` where they do not set their own."""
    if isinstance(params, Tensor):
        return params  # the parent says what is wrong
    given = list(params)
    if given and isinstance(given[0], dict):
        return [options | group for group in given]
    return [{"params": given} | options] if given else given


def _check_betas(betas: Any) -> tuple[float, float]:
    try:
        first, second = betas
    except (TypeError, ValueError):
        raise ValueError(f"betas={betas!r}: expected two numbers") from None
    return check_number(first, "betas[0]", above=-1, below=1), check_number(second, "betas[1]", at_least=0, below=1)


def _choose_kernel(optimizer: torch.optim.Optimizer) -> None:
    """The group added last runs on torch's fused kernels, unless its user chose or its parameters cannot."""
    group = optimizer.param_groups[-1]
    if group["fused"] is None and group["foreach"] is None and not group["differentiable"]:
        fusible = all(
            type(parameter) in (Tensor, torch.nn.Parameter)
            and parameter.is_floating_point()
            and parameter.device.type in FUSED_DEVICES
            for parameter in group["params"]
        )
        group["fused"] = fusible or None
    _agree_on_scaling(optimizer)


def _agree_on_scaling(optimizer: torch.optim.Optimizer) -> None:
    """Fused kernels divide by the scale of a `GradScaler` themselves; with one group that cannot, the scaler does."""
    optimizer._step_supports_amp_scaling = all(group["fused"] for group in optimizer.param_groups)  # pyrefly: ignore
