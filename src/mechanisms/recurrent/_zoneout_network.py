"""What the Zoneout networks that stand in for torch's share: torch's states, and its ways to begin."""

from typing import Any

import torch
from torch import Tensor, nn

from mechanisms._base.validation import check_choice
from mechanisms.recurrent._flat_network import FlatNetwork
from mechanisms.recurrent._orthogonal import fill_with_orthogonal_blocks
from mechanisms.recurrent._trees import tree_map
from mechanisms.recurrent.module import Recurrent
from mechanisms.recurrent.states import from_torch_state, to_torch_state
from mechanisms.recurrent.zoneout import StaticState, Zoneout


class ZoneoutNetwork(FlatNetwork):
    """A `Recurrent` of Zoneout cells behind parameters and states as torch's modules have them."""

    def __init__(
        self,
        make_cell: Any,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float | int,
        bidirectional: bool,
        backend: str,
        unexpected: dict[str, Any],
    ) -> None:
        super().__init__()
        _refuse(type(self).__name__, unexpected)
        check_choice(backend, "backend", ("auto", "eager", "kernel"))
        self.input_size, self.hidden_size, self.num_layers, self.bias = input_size, hidden_size, num_layers, bias
        self.batch_first, self.dropout, self.bidirectional = batch_first, float(dropout), bidirectional
        network = Recurrent(
            make_cell,
            input_size,
            num_layers=num_layers,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            backend=backend,
        )
        network.torch_state = not any(isinstance(cell, Zoneout) and cell.mask == "static" for cell in network.cells)
        self._adopt(network)

    def _cells(self) -> list[Zoneout]:
        return [cell for cell in self._network.cells if isinstance(cell, Zoneout)]

    def forward(
        self,
        input: Any,
        hx: Any = None,
        *,
        lengths: Any = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Run over whole sequences.

        Args:
            input: (time, batch, size), (batch, time, size) with `batch_first`, (time, size), or a PackedSequence.
            hx: the initial state as torch takes it; zeros by default.
            lengths: valid steps of each row of a padded input; outputs beyond are zero.
            generator: where masks and dropout come from; torch's own by default.

        Returns:
            `(output, state)`, as torch's module returns them.

        Raises:
            TypeError: integers as input, or a state of another kind of network.
            ValueError: shapes do not fit.
        """
        with self._lent():
            return self._run(input, hx, lengths, generator)

    def _run(self, input: Any, hx: Any, lengths: Any, generator: torch.Generator | None) -> Any:
        if self._network.torch_state:
            return self._network(input, hx, lengths=lengths, generator=generator)
        # Static masks count steps in the state, which torch's layout has no place for: a sequence starts at the first.
        unbatched = isinstance(input, Tensor) and input.dim() == 2
        if hx is not None:
            leaves = tuple(
                leaf.unsqueeze(1) if unbatched else leaf for leaf in ([hx] if isinstance(hx, Tensor) else hx)
            )
            inner = from_torch_state(tuple(cell.cell.initial_state(1) for cell in self._cells()), leaves)
            steps = torch.zeros(leaves[0].shape[1], dtype=torch.int64, device=leaves[0].device)
            hx = tuple(StaticState(state, steps) for state in inner)
        output, states = self._network(input, hx, lengths=lengths, generator=generator)
        last = to_torch_state(tuple(state.inner for state in states))
        return output, tree_map(lambda leaf: leaf.squeeze(1), last) if unbatched else last

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        """As usual; but where no static mask is given, as by torch's modules, those that were drawn stay."""
        missing: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs)
        masks = {prefix + name for name, _ in self.named_buffers(recurse=False)}
        missing_keys += missing if masks & state_dict.keys() else [name for name in missing if name not in masks]

    def reset_parameters(self, scheme: str = "torch") -> None:
        """Draw the parameters anew.

        Args:
            scheme: "torch" is uniform within 1/sqrt(hidden_size); "paper" makes every square block of every weight
                orthogonal, forget gates' biases 1 (in `bias_ih`; an LSTM's only) and all others 0.

        Raises:
            ValueError: another name is given.
        """
        check_choice(scheme, "scheme", ("torch", "paper"))
        bound = self.hidden_size**-0.5
        for name, parameter in self.named_parameters():
            if scheme == "torch":
                nn.init.uniform_(parameter, -bound, bound)
            elif name.startswith("weight"):
                fill_with_orthogonal_blocks(parameter, self.hidden_size)
            else:
                nn.init.zeros_(parameter)
                if name.startswith("bias_ih") and parameter.numel() == 4 * self.hidden_size:
                    with torch.no_grad():
                        parameter[self.hidden_size : 2 * self.hidden_size] = 1

    def extra_repr(self) -> str:
        """Sizes, what is not the default, and Zoneout's settings."""
        return (
            f"{self.input_size}, {self.hidden_size}, {self._network.extra_repr()}, "
            f"{self._network.cells[0].extra_repr()}"
        )


def _refuse(name: str, unexpected: dict[str, Any]) -> None:
    """Say what to do about arguments that do not exist here."""
    for argument in unexpected:
        if argument == "proj_size":
            if unexpected[argument] == 0:
                continue
            raise ValueError(f"proj_size is not offered by {name}; put an nn.Linear behind it")
        if argument in ("zoneout_cell", "zoneout_hidden"):
            raise TypeError(f"{name} has one state, so one rate: zoneout=..., not {argument}")
        if argument == "zoneout":
            raise TypeError(f"{name} has two states: zoneout_cell=... and zoneout_hidden=..., not zoneout")
        raise TypeError(f"{name} has no argument {argument!r}")
