"""Ladder networks side by side: the same code with the models in front of every parameter.

A small ladder network costs more for calling operations than for computing them; M of them in one batch call as many
operations as one. All of `LadderNetwork` takes weights with a model axis in front, so a stack is a `LadderNetwork`:

>>> from mechanisms.robust.ladder import LadderNetwork
>>> networks = [LadderNetwork([4, 8, 3], generator=seed) for seed in range(5)]
>>> stack = stack_ladders(networks)
>>> x, y = torch.randn(20, 4), torch.arange(20) % 3
>>> stack.losses(x, y, x).total.shape
torch.Size([5])
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from mechanisms.robust.ladder import LadderNetwork

__all__ = ["can_stack_ladders", "stack_ladders", "unstack_ladders"]


class _Mapped(nn.Module):
    """Combinators that know no model axis, each on its own values."""

    def __init__(self, combinators: Sequence[nn.Module]) -> None:
        super().__init__()
        self.template = (copy.deepcopy(combinators[0]),)  # in a tuple: its parameters are not trained
        self.needs_vertical = getattr(combinators[0], "needs_vertical", True)
        stacked, buffers = stack_module_state(list(combinators))
        self._names = {name: name.replace(".", "|") for name in (*stacked, *buffers)}
        for name, value in stacked.items():
            self.register_parameter(self._names[name], nn.Parameter(value.detach()))
        for name, value in buffers.items():
            self.register_buffer(self._names[name], value)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        state = {name: getattr(self, own) for name, own in self._names.items()}
        if self.template[0].training != self.training:
            self.template[0].train(self.training)

        def one(state: dict[str, Tensor], z: Tensor, u: Tensor) -> Tensor:
            return functional_call(self.template[0], state, (z, u))

        return torch.vmap(one, randomness="different")(state, z, u)

    def extract(self, index: int) -> nn.Module:
        """One combinator by itself."""
        alone = copy.deepcopy(self.template[0]).train(self.training)
        for path, module in alone.named_modules():
            # Replaced, not copied into: the stack may have moved to another device or type, the template has not.
            begin = f"{path}." if path else ""
            _replace_state(
                module, lambda name, begin=begin: getattr(self, self._names[begin + name])[index].detach().clone()
            )
        return alone


def can_stack_ladders(networks: Sequence[LadderNetwork]) -> bool:
    """Whether they may train side by side: more than one, of one architecture, without images.

    >>> can_stack_ladders([LadderNetwork([4, 3]), LadderNetwork([4, 2])])
    False
    """
    return len(networks) > 1 and _obstacle(networks) is None


def stack_ladders(networks: Sequence[LadderNetwork]) -> LadderNetwork:
    """One network with the models in front of every parameter and buffer; the given ones are copied, not changed.

    They may differ in weights, in the strength of noise and in the weights of the costs, as long as the same levels
    have any. Inputs (n, d) are seen by all, inputs (M, n, d) by one each.

    Raises:
        ValueError: no network, networks that differ, networks with images.

    >>> stack_ladders([LadderNetwork([4, 3]), LadderNetwork([4, 3])]).gamma.shape
    torch.Size([2, 3])
    """
    if (obstacle := _obstacle(networks)) is not None:
        raise ValueError(obstacle)
    stack = copy.deepcopy(networks[0])
    stack._has_statistics = all(network._has_statistics for network in networks)
    for level, combinator in stack.combinators.items():
        if not getattr(combinator, "stackable", False):
            stack.combinators[level] = _Mapped([network.combinators[level] for network in networks])
    mapped = tuple(f"combinators.{name}." for name, one in stack.combinators.items() if isinstance(one, _Mapped))
    for path, module in stack.named_modules():
        if f"{path}.".startswith(mapped):
            continue
        sources = [network.get_submodule(path) for network in networks]
        _replace_state(module, lambda name, sources=sources: torch.stack([_value(one, name) for one in sources]))
    return stack


def unstack_ladders(stack: LadderNetwork) -> list[LadderNetwork]:
    """The networks of a stack, each with parameters of its own.

    Raises:
        ValueError: an ordinary network.

    >>> networks = [LadderNetwork([4, 3], generator=seed) for seed in range(2)]
    >>> torch.equal(unstack_ladders(stack_ladders(networks))[1].gamma, networks[1].gamma)
    True
    """
    if stack.num_models is None:
        raise ValueError("this LadderNetwork is no stack; it is one network already")
    alone: list[LadderNetwork] = []
    mapped = {name: one for name, one in stack.combinators.items() if isinstance(one, _Mapped)}
    for index in range(stack.num_models):
        # The first copy is one of the whole stack, the others are copies of a single network.
        one = copy.deepcopy(alone[0] if alone else stack)
        for name, combinator in mapped.items():
            one.combinators[name] = combinator.extract(index)
        for path, module in one.named_modules():
            if not f"{path}.".startswith(tuple(f"combinators.{name}." for name in mapped)):
                source = stack.get_submodule(path)
                _replace_state(module, lambda name, index=index, source=source: _value(source, name)[index].clone())
        alone.append(one)
    return alone


def _value(module: nn.Module, name: str) -> Tensor:
    value = module._parameters.get(name, module._buffers.get(name))
    assert value is not None
    return value.detach()


def _replace_state(module: nn.Module, new: Callable[[str], Tensor]) -> None:
    """Other values for a module's own parameters and buffers; the count of rows has no model axis."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(new(name), requires_grad=parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None and name != "statistics_rows":
            module._buffers[name] = new(name)


def _obstacle(networks: Sequence[LadderNetwork]) -> str | None:
    """Why they cannot be stacked, if they cannot."""
    if not networks:
        return "a stack needs at least one network, got none"
    if any(network.num_models is not None for network in networks):
        return "a stack is made of ordinary networks; one of these is a stack"
    if any(shape.positions > 1 for shape in networks[0].shapes):
        return "networks with images are trained one by one: their arithmetic outweighs the calls that a stack saves"
    kinds = [_architecture(network) for network in networks]
    different = next((place for place, kind in enumerate(kinds) if kind != kinds[0]), None)
    if different is None:
        return None
    return (
        f"networks of a stack need the same layers, combinators, levels with noise and with costs, dtype and device; "
        f"network {different} differs from network 0:\n{networks[different]}\n{networks[0]}"
    )


def _architecture(network: LadderNetwork) -> tuple[object, ...]:
    state = tuple((name, value.shape, value.dtype, value.device) for name, value in network.state_dict().items())
    return repr(network), state, network.detach_clean, network.fused, network.training
