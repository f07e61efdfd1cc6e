"""The parameters that learn fast and those that learn slowly: of a network with RIMs, with LSTM cells, or one's own."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mechanisms._base.validation import check_choice
from mechanisms.recurrent.cells import LSTMCell

ATTENTION = ("input_attention", "communication")


def split_fast_slow(
    module: nn.Module, mode: str = "meta", fast_extra: bool = True
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters of a network in two sets, fast and slow, disjoint and complete.

    | mode | fast | slow |
    |---|---|---|
    | "meta" | dynamics of the modules | input attention, communication |
    | "reversed" | input attention, communication | dynamics of the modules |
    | "joint" | everything | nothing |
    | "meta_lstm" | candidate and output gate of each LSTM cell | its input and forget gates |

    Args:
        module: a network with cells of RIMs in it ("meta", "reversed"), any network ("joint"), or one with LSTM cells
            ("meta_lstm"; there each weight of a cell is stored in two pieces from now on, under the names that
            `torch.nn.utils.parametrize` gives them).
        mode: which parameters learn fast.
        fast_extra: whether everything outside the cells (encoders, heads) learns fast or slowly.

    Returns:
        (fast, slow).

    Raises:
        TypeError: there is no cell of the kind that the mode speaks of.
        ValueError: another mode.

    >>> fast, slow = split_fast_slow(nn.Sequential(LSTMCell(3, 4)), "meta_lstm")
    >>> [tuple(one.shape) for one in slow]
    [(8, 3), (8, 4), (8,), (8,)]
    """
    check_choice(mode, "mode", ("meta", "reversed", "joint", "meta_lstm"))
    if mode == "joint":
        return list(module.parameters()), []
    if mode == "meta_lstm":
        fast, slow = _gates(module)
        held = {id(one) for one in [*fast, *slow]}
        extra = [one for one in module.parameters() if id(one) not in held]
    else:
        from mechanisms.recurrent.parameter_groups import parameter_groups

        groups = parameter_groups(module)
        fast = list(groups["dynamics"])
        slow = [one for name in ATTENTION for one in groups[name]]
        extra = list(groups["other"])
        if not slow:
            raise TypeError(
                f"{type(module).__name__} has recurrent cells but no attention among modules, which mode={mode!r} "
                "tells apart from their dynamics; use a RIMCell, mode='meta_lstm' for LSTM cells, or two sets of your "
                "own"
            )
        if mode == "reversed":
            fast, slow = slow, fast
    (fast if fast_extra else slow).extend(extra)
    check_split(module, fast, slow)
    return fast, slow


def check_split(module: nn.Module, fast: Iterable[nn.Parameter], slow: Iterable[nn.Parameter]) -> None:
    """Whether two sets are disjoint and hold every parameter of a module.

    Raises:
        ValueError: they overlap, or some are missing or foreign; the message names them.

    >>> layer = nn.Linear(2, 2)
    >>> check_split(layer, [layer.weight], [])
    Traceback (most recent call last):
        ...
    ValueError: 1 parameters of Linear are in neither set: bias; put each in one of them
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    sets = [{id(one) for one in own} for own in (fast, slow)]
    for found, text in (
        (sets[0] & sets[1], "are in both sets"),
        (names.keys() - sets[0] - sets[1], "are in neither set"),
    ):
        if found:
            listed = ", ".join(name for key, name in names.items() if key in found) or "(not the module's)"
            raise ValueError(
                f"{len(found)} parameters of {type(module).__name__} {text}: {listed}; put each in one of them"
            )
    foreign = (sets[0] | sets[1]) - names.keys()
    if foreign:
        raise ValueError(
            f"{len(foreign)} of the given parameters are not {type(module).__name__}'s; give parameters of the module "
            f"itself: {', '.join(names.values())}"
        )


class _Halves(nn.Module):
    """A weight whose rows are kept in two pieces: input and forget gate, and candidate and output gate."""

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        return torch.cat([slow, fast])

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        slow, fast = weight.chunk(2)
        return slow.clone(), fast.clone()


def _gates(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    cells = [one for one in module.modules() if isinstance(one, LSTMCell | nn.LSTMCell)]
    if not cells:
        raise TypeError(
            f"{type(module).__name__} has no LSTM cell, whose gates mode='meta_lstm' splits; use cells "
            "(mechanisms.recurrent.LSTMCell, torch.nn.LSTMCell), not torch.nn.LSTM"
        )
    fast: list[nn.Parameter] = []
    slow: list[nn.Parameter] = []
    for cell in cells:
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            if not parametrize.is_parametrized(cell, name):
                if getattr(cell, name, None) is None:
                    continue
                parametrize.register_parametrization(cell, name, _Halves())
            pieces: Any = cell.parametrizations[name]  # pyrefly: ignore
            slow.append(pieces.original0)
            fast.append(pieces.original1)
        # Learned initial states belong to no gate; they go with the fast ones, as the state does.
        fast.extend(one for name, one in cell.named_parameters(recurse=False) if name.startswith("initial_"))
    return fast, slow
