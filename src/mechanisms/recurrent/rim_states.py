"""What modular cells carry, record and draw, what the parts of a step hand to each other, and the doors for these."""

import math
import operator
from typing import Any, NamedTuple

from torch import Tensor


class RIMState(NamedTuple):
    """State of modules, each leaf (batch, modules, hidden); GRU modules have no `c`.

    >>> import torch
    >>> RIMState(torch.zeros(2, 6, 4)).c is None
    True
    """

    h: Tensor
    c: Tensor | None = None


class RIMInfo(NamedTuple):
    """What a step records; `scan(..., need_info=True)` puts time in front.

    Attributes:
        mask: which modules are active (batch, modules), booleans.
        null: null attention (batch, modules); zeros where there is no null slot.
        alpha: input attention (batch, modules, heads, 1 + slots), the null slot first.
        comm: communication attention (batch, heads, modules, modules), or `None` without communication.

    >>> import torch
    >>> from mechanisms.recurrent.rim_cell import RIMCell
    >>> from mechanisms.recurrent.scan import scan
    >>> output, state, info = scan(RIMCell(3, 4, num_modules=6, num_active=2), torch.ones(5, 1, 3), need_info=True)
    >>> info.mask[0]  # at the first step all are alike, and the lower index wins
    tensor([[ True,  True, False, False, False, False]])
    """

    mask: Tensor
    null: Tensor
    alpha: Tensor
    comm: Tensor | None = None


class RIMNoise(NamedTuple):
    """Masks of the two dropouts, true where a number is kept.

    Attributes:
        read: of what modules read (batch, modules, heads * value), or `None`.
        comm: of what modules tell each other (batch, modules, hidden), or `None`.

    >>> RIMNoise(None, None).read is None
    True
    """

    read: Tensor | None
    comm: Tensor | None


class Folded(NamedTuple):
    """A single slot read by a single head, as far as the input alone decides: the read is a number times a vector.

    Attributes:
        ask: W_q[k] κ / √d_k (..., modules, hidden), so that a score is h[k] · ask[k]; `None` without scores.
        drive: W_ih[k] v (..., modules, gates), without bias, dropout applied.

    >>> import torch
    >>> Folded(None, torch.ones(2, 6, 16)).ask is None
    True
    """

    ask: Tensor | None
    drive: Tensor


class Slots(NamedTuple):
    """Keys (..., slots, heads, key) and values (..., slots, heads, value) of several slots or heads.

    >>> import torch
    >>> Slots(None, torch.ones(2, 1, 4, 8)).values.shape
    torch.Size([2, 1, 4, 8])
    """

    keys: Tensor | None
    values: Tensor


class StepWeights(NamedTuple):
    """Parameters as a step multiplies by them; put together once for many steps.

    Attributes:
        recurrent: what multiplies h_{t-1}: W_hh, then the queries where they are needed (modules, hidden, ...).
        bias: what is added to that.
        communication: see `CommunicationAttention.joined`; `None` without communication.

    >>> from mechanisms.recurrent.rim_cell import RIMCell
    >>> RIMCell(3, 4, 6, 2, input_heads=2, key_size=5).step_weights().recurrent.shape
    torch.Size([6, 4, 26])
    """

    recurrent: Tensor
    bias: Tensor
    communication: tuple[Tensor, Tensor, Tensor] | None


def check_active(num_active: Any, num_modules: int) -> int:
    """How many modules are active: a whole number between 1 and all.

    Raises:
        ValueError: it is none.

    >>> check_active(7, 6)
    Traceback (most recent call last):
        ...
    ValueError: num_active=7 of num_modules=6: it must be a whole number between 1 and 6
    """
    try:
        whole = operator.index(num_active)
    except TypeError:
        whole = 0
    if isinstance(num_active, bool) or not 1 <= whole <= num_modules:
        raise ValueError(
            f"num_active={num_active} of num_modules={num_modules}: it must be a whole number between 1 and "
            f"{num_modules}"
        )
    return whole


def check_leaves(state: RIMState, num_modules: int, hidden_size: int) -> None:
    """Whether the leaves of a state have the modules apart.

    Raises:
        ValueError: they have not; the message says how to put them apart.

    >>> import torch
    >>> check_leaves(RIMState(torch.zeros(2, 24)), 6, 4)
    Traceback (most recent call last):
        ...
    ValueError: h of the state has shape (2, 24); expected (B, n, d) = (2, 6, 4): call .reshape(2, 6, 4)
    """
    for name, leaf in zip(state._fields, state, strict=True):
        if leaf is None or (leaf.dim() == 3 and leaf.shape[1:] == (num_modules, hidden_size)):
            continue
        wanted = leaf.shape[0] if leaf.dim() else 1, num_modules, hidden_size
        fix = f": call .reshape{wanted}" if leaf.numel() == math.prod(wanted) else ""
        raise ValueError(f"{name} of the state has shape {tuple(leaf.shape)}; expected (B, n, d) = {wanted}{fix}")
