"""Which modules of a modular network are at work, in numbers to plot and to compare."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def activation_vector(mask: Tensor, phase: Any = None) -> Float[Tensor, "modules"]:
    """How often each module is active: shares that sum to the number of active modules.

    Args:
        mask: `RIMInfo.mask` of a run (time, batch, modules), booleans. For a picture over time, `mask.float().mean(1)`
            is what there is to plot.
        phase: which steps count: anything that picks steps, such as `slice(0, 5)` or [0, 1], or booleans (time,) or
            (time, batch). All by default.

    Raises:
        TypeError: the mask does not hold booleans.
        ValueError: it has another shape, or the phase has no steps.

    >>> activation_vector(torch.tensor([[[True, False]], [[True, False]], [[False, True]], [[True, False]]]))
    tensor([0.7500, 0.2500])
    """
    if mask.dtype is not torch.bool:
        raise TypeError(f"the mask has type {mask.dtype}; booleans are expected: RIMInfo.mask")
    if mask.dim() != 3:
        raise ValueError(f"the mask has shape {tuple(mask.shape)}; expected (time, batch, modules)")
    steps = mask if phase is None else mask[torch.as_tensor(phase) if isinstance(phase, list | range) else phase]
    if steps.numel() == 0:
        raise ValueError(f"the phase {phase!r} has no steps in a run of {mask.shape[0]}")
    return steps.flatten(0, -2).float().mean(0)


def specialisation(mask: Tensor, phase_a: Any, phase_b: Any) -> float:
    """How differently two phases of a run use the modules: Σ_k |p_k - q_k| / (2 K), of their activation vectors p, q.

    0 when both use all modules alike; 1 when no module is active in both, which takes 2 K <= n.

    Args:
        mask: `RIMInfo.mask` of a run (time, batch, modules).
        phase_a, phase_b: steps, as for `activation_vector`.

    Raises:
        TypeError: the mask does not hold booleans.
        ValueError: it has another shape, or a phase has no steps.

    >>> mask = torch.tensor([[[True, False]], [[True, False]], [[False, True]]])
    >>> specialisation(mask, slice(0, 2), slice(2, 3))
    1.0
    """
    one, two = activation_vector(mask, phase_a), activation_vector(mask, phase_b)
    return float((one - two).abs().sum() / (one.sum() + two.sum()))


def held_fraction(h: Tensor, start: Tensor | None = None) -> float:
    """The share of modules and steps whose state is, to the bit, that of the step before: 1 - K/n for RIMs.

    Args:
        h: states after each step (time, batch, modules, hidden); of outputs, `output.unflatten(-1, (modules, -1))`.
        start: the state before the first step (batch, modules, hidden); without it, the first step is not counted.

    Raises:
        ValueError: the shapes do not fit, or there is nothing to compare.

    >>> held_fraction(torch.tensor([[[[1.0], [1.0]]], [[[1.0], [2.0]]]]))
    0.5
    """
    if h.dim() != 4:
        raise ValueError(
            f"h has shape {tuple(h.shape)}; expected (time, batch, modules, hidden): of outputs, "
            "output.unflatten(-1, (num_modules, hidden_size))"
        )
    if start is not None:
        if start.shape != h.shape[1:]:
            raise ValueError(f"start has shape {tuple(start.shape)}; expected {tuple(h.shape[1:])}")
        h = torch.cat([start.unsqueeze(0), h])
    if h.shape[0] < 2:
        raise ValueError("one step alone cannot be compared: pass more, or start=...")
    return float((h[1:] == h[:-1]).all(-1).double().mean())
