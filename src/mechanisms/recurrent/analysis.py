"""How far back gradients reach."""

import copy
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mechanisms.recurrent._trees import Tree, named_leaves, tree_map
from mechanisms.recurrent.protocol import Cell
from mechanisms.recurrent.scan import scan


def gradient_flow(
    cell: Cell,
    inputs: Tree,
    loss_of_outputs: Callable[[Tree], Tensor],
    *,
    leaf: str = "h",
    noise: Tree = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " time"]:
    """Norms of the loss's gradient with respect to the state after each step, in double precision.

    Args:
        cell: any cell; a copy in double precision is run, in the cell's mode.
        inputs: (time, batch, size).
        loss_of_outputs: a scalar from the outputs (time, batch, ...). To see how far gradients reach, let it depend on
            the last steps only.
        leaf: the leaf of the state, as in "h", "c" or "inner.h".
        noise: the cell's noise, in place of a fresh draw.
        generator: where a fresh draw comes from.

    Returns:
        For each step the norm over the units, averaged over the rows; 0 where the loss does not depend on the state.

    Raises:
        ValueError: the state has no such leaf, or the loss is no scalar.

    >>> from mechanisms.recurrent.cells import RNNCell
    >>> flow = gradient_flow(RNNCell(3, 4), torch.ones(5, 2, 3), lambda outputs: outputs[-1].sum())
    >>> flow.shape, float(flow[-1])
    (torch.Size([5]), 2.0)
    """
    exact = copy.deepcopy(cell).double()
    for parameter in exact.parameters():
        parameter.requires_grad_(True)
    doubled = tree_map(lambda one: one.detach().double().requires_grad_(), inputs)
    with torch.enable_grad():
        noise = noise if noise is None else tree_map(_doubled, noise)
        result = scan(exact, doubled, noise=noise, generator=generator, backend="eager", keep_states=True)
        loss = loss_of_outputs(result.output)
    if loss.dim() != 0:
        raise ValueError(f"loss_of_outputs gave shape {tuple(loss.shape)}; a scalar is expected")
    leaves: list[Tensor] = []
    for state in result.states or []:
        found = dict(named_leaves(state))
        one = found.get(leaf)
        if not isinstance(one, Tensor):
            raise ValueError(f"the state has no leaf {leaf!r}; it has {', '.join(found)}")
        leaves.append(one)
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return torch.stack(
        [
            torch.zeros((), dtype=torch.float64, device=loss.device)
            if gradient is None
            else gradient.flatten(1).norm(dim=1).mean()
            for gradient in gradients
        ]
    )


def _doubled(one: Tensor) -> Tensor:
    return one.double() if one.is_floating_point() else one
