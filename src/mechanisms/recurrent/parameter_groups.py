"""The parameters of a network by what they do: dynamics, input attention, communication, and the rest."""

from collections.abc import Iterator

from torch import nn

from mechanisms.recurrent._flat_network import FlatNetwork
from mechanisms.recurrent.grouped import GroupGRUCell, GroupLSTMCell
from mechanisms.recurrent.module_attention import CommunicationAttention, InputAttention
from mechanisms.recurrent.protocol import Cell

GROUPS = ("dynamics", "input_attention", "communication", "other")

# The innermost of these that holds a parameter says what it is.
ROLES: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], str], ...] = (
    (InputAttention, "input_attention"),
    (CommunicationAttention, "communication"),
    ((GroupLSTMCell, GroupGRUCell), "dynamics"),
    ((Cell, FlatNetwork, nn.RNNBase, nn.RNNCellBase), "dynamics"),
)


def parameter_groups(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """All parameters of a module, each in one of four groups; frozen ones too.

    Args:
        module: anything with a recurrent cell in it: a `RIMCell`, a `BRIM`, an agent with encoders and heads around
            one.

    Returns:
        "dynamics": weights of the modules, or all of a recurrent cell that has no modules, torch's among them;
        "input_attention" and "communication": of the two attentions; "other": what is in no recurrent cell, such as
        embeddings and decoders. Shared parameters are in the first group that has them.

    Raises:
        TypeError: there is no recurrent cell in it, so that nothing says which parameters are dynamics.

    >>> from mechanisms.recurrent.rim_cell import RIMCell
    >>> model = nn.ModuleDict({"core": RIMCell(3, 4, num_modules=6, num_active=2), "head": nn.Linear(24, 2)})
    >>> {name: len(group) for name, group in parameter_groups(model).items()}
    {'dynamics': 3, 'input_attention': 3, 'communication': 7, 'other': 2}
    """
    found: dict[str, list[nn.Parameter]] = {group: [] for group in GROUPS}
    seen: set[int] = set()
    for parameter, group in _assigned(module, "other"):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            found[group].append(parameter)
    if not found["dynamics"]:
        raise TypeError(
            f"{type(module).__name__} holds no recurrent cell with parameters, so its parameters have no groups; pass "
            "a module with a RIMCell, BRIM, or another recurrent cell in it, or divide the parameters yourself"
        )
    return found


def _assigned(module: nn.Module, group: str) -> Iterator[tuple[nn.Parameter, str]]:
    group = next((role for kinds, role in ROLES if isinstance(module, kinds)), group)
    for parameter in module.parameters(recurse=False):
        yield parameter, group
    for child in module.children():
        yield from _assigned(child, group)
