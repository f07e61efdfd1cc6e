"""Gradients through an inner loop of learning (MAML), and the step that goes without them (Reptile).

The fast parameters theta are adapted to a task by gradient steps on a support loss,
theta' = theta - alpha * dL_s/dtheta; what is learnt slowly is judged by a query loss after that. For one inner step

    dL_q/dphi = @L_q/@phi(theta', phi) - alpha * (@^2 L_s / @phi @theta)^T @L_q/@theta'

of which the first-order form keeps the first term (C. Finn, P. Abbeel, S. Levine, ICML 2017, arXiv 1703.03400;
A. Nichol, J. Achiam, J. Schulman 2018, arXiv 1803.02999).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from mechanisms._base.validation import check_number
from mechanisms.recurrent._doors import check_whole

Named = Mapping[str, Tensor]
Loss = Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]


def maml_gradient(
    support_loss_fn: Loss,
    query_loss_fn: Loss,
    fast: Named,
    slow: Named,
    *,
    inner_lr: float | int,
    inner_steps: int = 1,
    first_order: bool = False,
    module: nn.Module | None = None,
) -> dict[str, Tensor]:
    """The gradient of the query loss after `inner_steps` gradient steps of the fast parameters on the support loss.

    The losses are functions of two dictionaries of tensors; `torch.func.functional_call(module, {**fast, **slow}, ...)`
    makes them of a module. Cells take their plain steps in them, which can be differentiated twice.

    Args:
        support_loss_fn: `(fast, slow) -> loss` of the data that is adapted to.
        query_loss_fn: `(fast, slow) -> loss` of the data that is judged by.
        fast, slow: parameters by name; no name may be in both. They are not changed.
        inner_lr: alpha, the rate of the inner steps.
        inner_steps: how many of them.
        first_order: whether to leave out second derivatives.
        module: when given, its cells are asked first whether they can be differentiated twice.

    Returns:
        The gradients by name, for the slow parameters and for the fast ones (there: with respect to the values that
        adaptation starts from).

    Raises:
        RuntimeError: the support loss cannot be differentiated twice.
        ValueError: a name is in both sets.

    >>> def distance(fast, slow):
    ...     return (fast["theta"] - slow["phi"]) ** 2 / 2
    >>> def error(fast, slow):
    ...     return (fast["theta"] - 3) ** 2 / 2
    >>> theta, phi = torch.tensor(1.0), torch.tensor(2.0)
    >>> maml_gradient(distance, error, {"theta": theta}, {"phi": phi}, inner_lr=0.5)  # theta' = 1.5
    {'phi': tensor(-0.7500), 'theta': tensor(-0.7500)}
    """
    both = sorted(fast.keys() & slow.keys())
    if both:
        raise ValueError(f"{', '.join(both)}: in both sets; each parameter is fast or slow")
    alpha = check_number(inner_lr, "inner_lr", at_least=0)
    check_whole(inner_steps, "inner_steps", at_least=0)
    if module is not None and not first_order:
        check_twice_differentiable(module)
    start = {name: value.detach().requires_grad_() for name, value in fast.items()}
    shared = {name: value.detach().requires_grad_() for name, value in slow.items()}
    try:
        # Inside a level of forward derivatives cells take their plain steps, where fused paths know first ones only.
        with torch.enable_grad(), forward_ad.dual_level():
            adapted = start
            for step in range(inner_steps):
                gradient = _gradient(support_loss_fn(adapted, shared), adapted, create_graph=not first_order)
                if step == 0 and not first_order:
                    _refuse_ends(gradient)
                adapted = {name: value - alpha * gradient[name] for name, value in adapted.items()}
            return _gradient(query_loss_fn(adapted, shared), {**shared, **start})
    except RuntimeError as error:
        if first_order or not inner_steps:
            raise
        raise RuntimeError(
            f"the gradient through the inner steps failed ({str(error).splitlines()[0]}); if the support loss cannot "
            "be differentiated twice, use first_order=True, or a network that can"
        ) from error


def _gradient(loss: Tensor, of: dict[str, Tensor], create_graph: bool = False) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(of.values()), create_graph=create_graph, materialize_grads=True)
    return dict(zip(of, found, strict=True))


def _refuse_ends(gradient: dict[str, Tensor]) -> None:
    """A function that can be differentiated only once leaves a mark in the graph of its gradient.

    torch raises when it comes upon the mark, but on the way to given inputs it never does: it would take the second
    derivative for zero.
    """
    found = [value.grad_fn for value in gradient.values() if value.grad_fn is not None]
    seen = set(found)
    while found:
        node = found.pop()
        if node.name().rpartition("::")[2] in ("Error", "DelayedError", "NotImplemented"):
            raise RuntimeError("a function in it says that its gradient cannot be differentiated")
        fresh = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= fresh
        found.extend(fresh)


def check_twice_differentiable(module: nn.Module) -> None:
    """Whether all cells in a network allow gradients of gradients.

    Raises:
        RuntimeError: some declare that they do not; the message names them.

    >>> from mechanisms.recurrent.cells import LSTMCell
    >>> check_twice_differentiable(LSTMCell(3, 4))
    """
    found = [
        f"{name or 'the module itself'} ({type(one).__name__})"
        for name, one in module.named_modules()
        if not getattr(one, "twice_differentiable", True)
    ]
    if found:
        raise RuntimeError(f"{', '.join(found)} cannot be differentiated twice; use first_order=True, or another cell")


def reptile_step(fast: Named, fast_after: Named, rate: float | int) -> dict[str, Tensor]:
    """Reptile: move the values that adaptation starts from towards those it ended at.

    Args:
        fast: the fast parameters before adaptation, by name.
        fast_after: the same after it.
        rate: how far to go: 0 stays, 1 arrives.

    Returns:
        `fast + rate * (fast_after - fast)`, new tensors.

    Raises:
        ValueError: the names differ.

    >>> reptile_step({"w": torch.tensor(0.0)}, {"w": torch.tensor(1.0)}, 0.25)
    {'w': tensor(0.2500)}
    """
    if fast.keys() != fast_after.keys():
        raise ValueError(
            f"{', '.join(sorted(fast.keys() ^ fast_after.keys()))}: in one of the two only; give the same parameters "
            "before and after adaptation"
        )
    step = check_number(rate, "rate")
    with torch.no_grad():
        return {name: torch.lerp(value, fast_after[name].to(value.dtype), step) for name, value in fast.items()}
