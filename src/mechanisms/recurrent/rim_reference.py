"""Weights of the authors' dense RIMs code for the grouped cell."""

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mechanisms.recurrent.grouped import GroupLSTMCell
from mechanisms.recurrent.rim_cell import RIMCell


def load_reference_state_dict(
    cell: RIMCell, state_dict: Mapping[str, Tensor], *, prefix: str | None = None
) -> list[str]:
    """Take the weights of a `BlocksCore` of the authors' code (anirudh9119/RIMs).

    That code has one dense LSTM for all modules, whose blocks off the diagonal are zeroed before each sequence, not
    after the optimiser's step: what a checkpoint has there is left over, and is not read. Its two biases are added up.
    The null slot's matrices multiply zeros, and are not read either, nor are `gate_fc` and `ln` of its input attention,
    and `ln` of its communication, which nothing uses (although its count of parameters has them).

    Args:
        cell: a cell of the same sizes. There, communication has keys and values of 16 (32 in the Atari code), which is
            `comm_key_size=16`; slots are as many as the input is repeated.
        state_dict: names as that code has them, such as `inp_att.GLN_qs.w`, `mha.fc.weight` and
            `block_lstm.lstm.weight_ih` (`block_lstm.gru.weight_ih` for GRU modules).
        prefix: what stands before these names (`"bc_lst.0."`); found by itself when only one set of them is there.

    Returns:
        The names behind the prefix that were not read.

    Raises:
        ValueError: names are missing, shapes differ, or there are several sets and no prefix.

    Source: `event_based/blocks_core.py` of the authors' code, for the names.

    >>> cell = RIMCell(3, 4, num_modules=2, num_active=1, key_size=5, comm_key_size=16)
    >>> maps = {"inp_att.GLN_qs.w": (2, 4, 5), "inp_att.GLN_ks.w": (2, 3, 5), "inp_att.GLN_vs.w": (2, 3, 16)}
    >>> maps |= {f"mha.GLN_{name}s.w": (2, 4, 64) for name in "qkv"}
    >>> theirs = {name: torch.zeros(shape) for name, shape in maps.items()}
    >>> theirs |= {f"mha.fc.{name}": value for name, value in nn.Linear(64, 4).state_dict().items()}
    >>> theirs |= {f"mha.gate_fc.{name}": value for name, value in nn.Linear(64, 4).state_dict().items()}
    >>> theirs |= {f"block_lstm.lstm.{name}": value for name, value in nn.LSTMCell(32, 8).state_dict().items()}
    >>> load_reference_state_dict(cell, theirs | {"inp_att.ln.weight": torch.ones(16)})
    ['inp_att.ln.weight']
    """
    core = f"block_lstm.{cell.kind}."
    if prefix is None:
        prefix = _prefix(state_dict, f"{core}weight_ih")
    found = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    targets = _targets(cell, core)
    needed = dict.fromkeys(name for names, _, _ in targets for name in names)
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(f"the state dict lacks {', '.join(prefix + name for name in missing)}")
    with torch.no_grad():
        read = [(names, parameter, make(*[found[name] for name in names])) for names, parameter, make in targets]
        for names, parameter, value in read:
            if value.shape != parameter.shape:
                raise ValueError(
                    f"{' + '.join(prefix + name for name in names)} has shape {tuple(found[names[0]].shape)}, which "
                    f"makes {tuple(value.shape)}; the cell has {tuple(parameter.shape)}: {cell.extra_repr()}"
                )
        for _, parameter, value in read:
            parameter.copy_(value)
    return [name for name in found if name not in needed]


Target = tuple[tuple[str, ...], Tensor, Callable[..., Tensor]]


def _targets(cell: RIMCell, core: str) -> list[Target]:
    """For each parameter of the cell the names it is made of, and how."""
    attention, dynamics, between = cell.input_attention, cell.dynamics, cell.communication
    if attention.query is None or attention.key is None or between is None:
        raise ValueError("the authors' code has input attention and communication; the cell lacks one: " + repr(cell))
    gates, n = dynamics.gates, cell.num_modules
    targets: list[Target] = [
        (("inp_att.GLN_qs.w",), attention.query.weight, torch.clone),
        (("mha.GLN_qs.w",), between.query.weight, torch.clone),
        (("mha.GLN_ks.w",), between.key.weight, torch.clone),
        (("mha.GLN_vs.w",), between.value.weight, torch.clone),
        (("mha.fc.weight",), between.output.weight, torch.clone),
        (("mha.fc.bias",), between.output.bias, torch.clone),
        (("mha.gate_fc.weight",), between.gate.weight, torch.clone),
        (("mha.gate_fc.bias",), between.gate.bias, torch.clone),
        ((f"{core}weight_ih",), dynamics.weight_ih, functools.partial(_blocks, gates=gates, n=n)),
        ((f"{core}weight_hh",), dynamics.weight_hh, functools.partial(_blocks, gates=gates, n=n)),
    ]
    for name, maps in (("inp_att.GLN_ks.w", attention.key), ("inp_att.GLN_vs.w", attention.value)):
        for place, linear in enumerate(maps):
            assert isinstance(linear, nn.Linear)
            # Their slot 0 is the null slot.
            targets.append(((name,), linear.weight, functools.partial(_slot, place=1 + place)))
    rows = functools.partial(_rows, gates=gates, n=n)
    if isinstance(dynamics, GroupLSTMCell):
        both = (f"{core}bias_ih", f"{core}bias_hh")
        return [*targets, (both, dynamics.bias, lambda one, two: rows(one + two))]
    return [
        *targets,
        ((f"{core}bias_ih",), dynamics.bias_ih, rows),
        ((f"{core}bias_hh",), dynamics.bias_hh, rows),
    ]


def _blocks(dense: Tensor, gates: int, n: int) -> Tensor:
    """The diagonal blocks (n, in, gates * d) of a dense matrix (gates * n * d, n * in)."""
    if dense.dim() != 2 or dense.shape[0] % (gates * n) or dense.shape[1] % n:
        return dense  # another shape than any that fits, which is said further out
    parts = dense.view(gates, n, -1, n, dense.shape[1] // n)
    return parts.diagonal(dim1=1, dim2=3).permute(3, 2, 0, 1).flatten(2)


def _rows(dense: Tensor, gates: int, n: int) -> Tensor:
    """A bias (gates * n * d) as (n, gates * d)."""
    return dense.unflatten(0, (gates, n, -1)).transpose(0, 1).flatten(1) if dense.shape[0] % (gates * n) == 0 else dense


def _slot(maps: Tensor, place: int) -> Tensor:
    """The matrix of one slot (out, in) of (slots, in, out)."""
    if maps.dim() != 3 or maps.shape[0] <= place:
        raise ValueError(
            f"the state dict has {max(maps.shape[0] - 1, 0)} input slots, the cell has more; in that code a slot "
            "beyond the first is the same input again"
        )
    return maps[place].t()


def _prefix(state_dict: Mapping[str, Tensor], name: str) -> str:
    ends = sorted(key.removesuffix(name) for key in state_dict if key.endswith(name))
    if len(ends) != 1:
        said = "none" if not ends else f"{len(ends)}, with the prefixes {', '.join(map(repr, ends))}: pass prefix=..."
        raise ValueError(f"one {name} is expected in the state dict; there is {said}")
    return ends[0]
