"""Networks that stand in for torch's: parameters under its flat names, and a `Recurrent` that computes with them."""

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from mechanisms.recurrent._driver import transformed
from mechanisms.recurrent.module import Recurrent


class FlatNetwork(nn.Module):
    """Holds the parameters of a network under torch's names, such as `weight_ih_l0` or `bias_hh_l1_reverse`.

    What is deeper in a wrapper's inner cell has the names that it has there; what torch has no name for is called by
    its place (`key_weight_l0`).
    """

    _network: Recurrent

    def _hold(self, network: Recurrent) -> None:
        """Take a network over."""
        # Not registered: its parameters are this module's.
        self.__dict__["_network"] = network
        for module, name, flat in self._places():
            if name in module._parameters:
                self.register_parameter(flat, module._parameters[name])
            else:
                self.register_buffer(flat, module._buffers[name])

    def _places(self) -> Iterator[tuple[nn.Module, str, str]]:
        """Where each tensor is in the network, and its flat name, in torch's order."""
        directions = 1 + self._network.bidirectional
        for place, cell in enumerate(self._network.cells):
            suffix = f"_l{place // directions}" + ("_reverse" if place % directions else "")
            for path, module in cell.named_modules():
                # Wrappers keep the cell inside as `cell`, so a name does not depend on what is wrapped.
                inside = ".".join(part for part in path.split(".") if part != "cell")
                for name in [*module._parameters, *module._buffers]:
                    yield module, name, f"{inside}.{name}".lstrip(".").replace(".", "_") + suffix

    def _ready(self) -> list[tuple[dict[str, Any], str]]:
        """Bring the network to this module's mode and tensors, whatever became of them (replaced, computed, given by
        functional_call).

        Returned are the places of tensors that must not stay there: give them to `_take_back`. Nothing is written when
        nothing has changed, so that threads may share a network.
        """
        if self._network.training != self.training:
            self._network.train(self.training)
        lent = []
        for module, name, flat in self._places():
            places: Any = module._parameters if name in module._parameters else module._buffers
            tensor = getattr(self, flat, None)  # a place without a tensor may have no name here
            if tensor is places[name]:
                continue
            places[name] = tensor
            # What was computed belongs to a graph, or to a transform of torch.func.
            if tensor is not None and (transformed() or not tensor.is_leaf):
                lent.append((places, name))
        return lent

    @staticmethod
    def _take_back(lent: list[tuple[dict[str, Any], str]]) -> None:
        """Leave nothing in the network that belongs to one call."""
        for place, name in lent:
            place[name] = None

    def _replicate_for_data_parallel(self) -> "FlatNetwork":
        replica = super()._replicate_for_data_parallel()
        shared = {id(tensor): tensor for tensor in [*self._network.parameters(), *self._network.buffers()]}
        replica.__dict__["_network"] = copy.deepcopy(self._network, shared)
        return replica

    def flatten_parameters(self) -> None:
        """Does nothing: it is here for code that calls it on torch's modules."""
