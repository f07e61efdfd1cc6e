"""Parameters under torch's flat names (`weight_ih_l0`), and a `Recurrent` that computes with them."""

import copy
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mechanisms.recurrent._driver import transformed
from mechanisms.recurrent._layers import in_torch_layout
from mechanisms.recurrent.module import Recurrent
from mechanisms.recurrent.states import from_torch_state


class FlatNetwork(nn.Module):
    """A module whose parameters are those of a `Recurrent`, named as torch names them.

    A cell's parameter `cell.weight_ih` (`cell.cell.weight_ih` under two wrappers) becomes `weight_ih_l0`, a wrapper's
    own `key.weight` becomes `key_weight_l0`; `_reverse` follows for the backward direction.

    Attributes:
        _network: the network; not registered, as its parameters are this module's.
    """

    _network: Recurrent

    def _adopt(self, network: Recurrent) -> None:
        """Take over a network; called once by subclasses."""
        self.__dict__["_network"] = network
        for module, name, flat in self._places():
            if name in module._parameters:
                self.register_parameter(flat, module._parameters[name])
            else:
                self.register_buffer(flat, module._buffers[name])

    def _places(self) -> Iterator[tuple[nn.Module, str, str]]:
        """Each tensor's owner within the network, its name there, and its flat name."""
        directions = ("", "_reverse")[: 1 + self._network.bidirectional]
        for place, cell in enumerate(self._network.cells):
            suffix = f"_l{place // len(directions)}{directions[place % len(directions)]}"
            for path, module in cell.named_modules():
                inside = path.removeprefix("cell").removeprefix(".cell").removeprefix(".").replace(".", "_")
                for name in (*module._parameters, *module._buffers):
                    yield module, name, (f"{inside}_" if inside else "") + name + suffix

    @contextmanager
    def _lent(self) -> Generator[Recurrent]:
        """The network with whatever has become of this module's tensors: replaced, computed, given by functional_call.

        Nothing is written when nothing has changed, so that threads may share a network.
        """
        if self._network.training != self.training:
            self._network.train(self.training)
        lent: list[tuple[dict[str, Any], str]] = []
        for module, name, flat in self._places():
            place: Any = module._parameters if name in module._parameters else module._buffers
            tensor = getattr(self, flat, None)  # a replica has no names for what is None
            if tensor is place[name]:
                continue
            place[name] = tensor
            # What was computed belongs to a graph, or to a transform of torch.func, and must not stay.
            if tensor is not None and (transformed() or not tensor.is_leaf):
                lent.append((place, name))
        try:
            yield self._network
        finally:
            for place, name in lent:
                place[name] = None

    def _begun(self, hx: Any, input: Any) -> Any:
        """States of all cells: as given, or, from torch's layout, those in which nothing is remembered but that."""
        cells: list[Any] = list(self._network.cells)
        if hx is None or not in_torch_layout(hx, cells[0].initial_state(1)):
            return hx
        unbatched = isinstance(input, Tensor) and input.dim() == 2
        given = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        given = tuple(leaf.unsqueeze(1) if unbatched and leaf.dim() == 2 else leaf for leaf in given)
        attends = [getattr(cell, "attends", False) for cell in cells]
        plain = [cell.cell if wraps else cell for cell, wraps in zip(cells, attends, strict=True)]
        inner = from_torch_state(tuple(cell.initial_state(1) for cell in plain), given)
        return tuple(cell.begin(one) if wraps else one for cell, wraps, one in zip(cells, attends, inner, strict=True))

    def _replicate_for_data_parallel(self) -> "FlatNetwork":
        replica = super()._replicate_for_data_parallel()
        shared = {id(tensor): tensor for tensor in [*self._network.parameters(), *self._network.buffers()]}
        replica.__dict__["_network"] = copy.deepcopy(self._network, shared)
        return replica

    def flatten_parameters(self) -> None:
        """Does nothing: it is here for code that calls it on torch's modules."""
