"""A cell in the place of the LSTM of a recurrent agent, its state packed into the (h, c) of the agent's buffers."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mechanisms.recurrent._trees import first_tensor, tensors
from mechanisms.recurrent.agents import pack_state, unpack_state
from mechanisms.recurrent.protocol import Cell
from mechanisms.recurrent.scan import scan

CellSettings = Mapping[str, Any] | Callable[[int], Cell]


class SB3Core(nn.Module):
    """Any cell with the face of the `nn.LSTM` inside a recurrent policy of sb3-contrib.

    The cell's state is packed (`pack_state`), so that zeros are its initial state, and cut into two halves, for `h` and
    `c` of the policy's buffers.

    Args:
        cell: a cell whose state has a fixed size.
        noise_in_update: whether the cell draws noise (dropout, zoneout) while the policy learns. By default it does
            not: rollouts are collected without noise, so that with it the ratio of the new to the old policy would not
            be 1 before the first update.

    Attributes:
        input_size, output_size: the cell's.
        hidden_size: numbers in each half of the packed state.
        num_layers: 1, whatever the cell is made of.

    Raises:
        TypeError: the cell's memory grows, it takes several inputs, or it normalises over the batch.

    >>> from mechanisms.recurrent.cells import LSTMCell
    >>> core = SB3Core(LSTMCell(3, 4))
    >>> state = torch.zeros(1, 2, core.hidden_size), torch.zeros(1, 2, core.hidden_size)
    >>> output, state = core(torch.ones(5, 2, 3), state, torch.zeros(5, 2))
    >>> output.shape, state[0].shape
    (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """

    num_layers = 1

    def __init__(self, cell: Cell, noise_in_update: bool = False) -> None:
        super().__init__()
        if not isinstance(cell, Cell):
            raise TypeError(f"{type(cell).__name__} is no cell; use from_torch(...) for torch's cells")
        if not isinstance(cell.input_size, int):
            raise TypeError(f"{type(cell).__name__} takes several inputs; an agent has one, its features")
        if not cell.rows_independent:
            raise TypeError(
                f"{type(cell).__name__} normalises over the batch, which needs all rows at one step; the episodes of "
                "an agent end at different ones"
            )
        self.cell, self.noise_in_update = cell, noise_in_update
        self.input_size, self.output_size = cell.input_size, cell.output_size
        self.state_size = pack_state(cell, cell.initial_state(1)).shape[1]
        self.hidden_size = (self.state_size + 1) // 2
        self._plain = _starts_at_zero(cell)
        self.train(self.training)

    def train(self, mode: bool = True) -> "SB3Core":
        """Training mode reaches the cell with `noise_in_update` only."""
        return super().train(mode and self.noise_in_update)

    def forward(
        self, features: Tensor, states: tuple[Tensor, Tensor], starts: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run the cell over a sequence.

        Args:
            features: (time, batch, input_size).
            states: (h, c), each (1, batch, hidden_size), before the first step.
            starts: (time, batch), other than 0 where the features begin a new episode.

        Returns:
            outputs (time, batch, output_size), and (h, c) after the last step.
        """
        packed = torch.cat([states[0][0], states[1][0]], 1)[:, : self.state_size]
        state = unpack_state(self.cell, packed)
        flags = starts != 0
        if features.shape[0] == 1:
            # One step of a rollout: without the driver, whose checks would cost more than some cells.
            if flags.device.type != "cpu" or bool(flags.any()):
                state = self.cell.reset(state, flags[0])
            output, state = self.cell(features[0], state)
            output = first_tensor(output).unsqueeze(0)
        else:
            output, state = scan(self.cell, features, state, reset=flags)
            output = first_tensor(output)
        return output, self._halves(state)

    def _halves(self, state: Any) -> tuple[Tensor, Tensor]:
        leaves = tensors(state)
        if self._plain and len(leaves) == 2 and leaves[0].shape == leaves[1].shape:
            # Such as an LSTM's (h, c): nothing to cut.
            return leaves[0].flatten(1).float().unsqueeze(0), leaves[1].flatten(1).float().unsqueeze(0)
        packed = pack_state(self.cell, state)
        packed = F.pad(packed, (0, 2 * self.hidden_size - self.state_size)).unsqueeze(0)
        return packed[..., : self.hidden_size], packed[..., self.hidden_size :]


def _starts_at_zero(cell: Cell) -> bool:
    """Whether the initial state is zeros that nobody learns, in floating point."""
    leaves = tensors(cell.initial_state(1))
    return all(
        leaf.is_floating_point() and leaf.grad_fn is None and not leaf.requires_grad and not bool(leaf.any())
        for leaf in leaves
    )


def make_cell(settings: CellSettings, input_size: int) -> Cell:
    """A cell from settings that can be written down, or from a factory.

    Args:
        settings: the name of one of this package's cells with its arguments, as in
            `{"name": "LSTMCell", "hidden_size": 64}`; a wrapper has the inner cell's settings under "cell", as in
            `{"name": "Zoneout", "rate": 0.1, "cell": {...}}`. Or a callable from the input size to a cell.
        input_size: size of the input.

    Raises:
        TypeError: no cell comes out, or the arguments do not fit.
        ValueError: there is no such cell.

    >>> make_cell({"name": "GRUCell", "hidden_size": 4}, 3)
    GRUCell(3, 4)
    """
    if not isinstance(settings, Mapping):
        if not callable(settings):
            raise TypeError(
                f"cell={settings!r}: give settings, as in {{'name': 'LSTMCell', 'hidden_size': 64}}, or a callable "
                "from the input size to a cell"
            )
        cell = settings(input_size)
        if not isinstance(cell, Cell):
            raise TypeError(f"the callable gave {type(cell).__name__}; it must give a cell (from_torch wraps torch's)")
        return cell
    options = dict(settings)
    package = importlib.import_module("mechanisms.recurrent")
    name = options.pop("name", None)
    found = getattr(package, name) if name in package._HOMES else None
    if not (isinstance(found, type) and issubclass(found, Cell)):
        raise ValueError(f"name={name!r}: it must name a cell of mechanisms.recurrent, such as 'LSTMCell' or 'RIMCell'")
    first = make_cell(options.pop("cell"), input_size) if "cell" in options else input_size
    return found(first, **options)
