"""Zoneout networks that stand in for `torch.nn.LSTM`, `GRU`, `RNN` and their cells.

They have torch's arguments, parameter names, shapes, initial values, states and packed sequences, so that the
`state_dict` of torch's module loads unchanged; what Zoneout needs comes by name. In `eval()` the masks are replaced by
their expectation (Zoneout does not vanish there, as dropout does); `train()` on the module alone gives masks again.

States are never batch first here, as in torch: `(h_n, c_n)` of (layers * directions, batch, hidden). Cells of the
protocol and their states are, always.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mechanisms._base.validation import check_choice
from mechanisms.recurrent._zoneout_network import ZoneoutNetwork
from mechanisms.recurrent.cells import GRUCell, LSTMCell, RNNCell
from mechanisms.recurrent.protocol import Cell, Device
from mechanisms.recurrent.zoneout import Zoneout, check_rate, zoneout


class ZoneoutLSTM(ZoneoutNetwork):
    """`torch.nn.LSTM` with Zoneout of its hidden state and its memory.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as for `torch.nn.LSTM`.
        zoneout_cell: probability that a unit of the memory keeps its old value.
        zoneout_hidden: the same for the hidden state, which tolerates far less.
        mask: "unit", "layer" or "static", as for `Zoneout`. Static masks are saved with the parameters; the
            `state_dict` of an `nn.LSTM`, which has none, leaves them as they were drawn.
        share_mask: whether memory and hidden state use the same draws.
        max_length: steps of static masks.
        backend: "auto" takes the fused kernel where there is one, "eager" single steps, "kernel" insists.
        device, dtype: of the parameters.

    The default rates are the paper's for characters of the Penn Treebank; 0.1 and 0.1 are common for words and speech.
    Rate 0 for both is `torch.nn.LSTM`, in the same kernel.

    Raises:
        ValueError: rates outside [0, 1], or `proj_size`.

    Source: sections 3.2 and 4.1 of the paper.

    >>> lstm = ZoneoutLSTM(3, 4, num_layers=2)
    >>> _ = lstm.load_state_dict(nn.LSTM(3, 4, num_layers=2).state_dict())
    >>> output, (h_n, c_n) = lstm(torch.randn(5, 2, 3), lengths=[5, 3])
    >>> output.shape, c_n.shape
    (torch.Size([5, 2, 4]), torch.Size([2, 2, 4]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float | int = 0.0,
        bidirectional: bool = False,
        *,
        zoneout_cell: float | int = 0.5,
        zoneout_hidden: float | int = 0.05,
        mask: str = "unit",
        share_mask: bool = False,
        max_length: int = 1000,
        backend: str = "auto",
        device: Device = None,
        dtype: torch.dtype | None = None,
        **unexpected: Any,
    ) -> None:
        rates = {
            "h": check_rate(zoneout_hidden, "zoneout_hidden"),
            "c": check_rate(zoneout_cell, "zoneout_cell"),
        }

        def make(size: int) -> Cell:
            cell = LSTMCell(size, hidden_size, bias, device=device, dtype=dtype)
            return Zoneout(cell, rates, mask=mask, share_mask=share_mask, max_length=max_length)

        super().__init__(
            make, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, backend, unexpected
        )


class ZoneoutGRU(ZoneoutNetwork):
    """`torch.nn.GRU` with Zoneout of its state.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as for `torch.nn.GRU`.
        zoneout: probability that a unit keeps its old value.
        mask, max_length, backend, device, dtype: as for `ZoneoutLSTM`.

    Raises:
        ValueError: a rate outside [0, 1].

    >>> output, h_n = ZoneoutGRU(3, 4, bidirectional=True)(torch.randn(5, 2, 3))
    >>> output.shape, h_n.shape
    (torch.Size([5, 2, 8]), torch.Size([2, 2, 4]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float | int = 0.0,
        bidirectional: bool = False,
        *,
        zoneout: float | int = 0.05,
        mask: str = "unit",
        max_length: int = 1000,
        backend: str = "auto",
        device: Device = None,
        dtype: torch.dtype | None = None,
        **unexpected: Any,
    ) -> None:
        def make(size: int) -> Cell:
            cell = GRUCell(size, hidden_size, bias, device=device, dtype=dtype)
            return Zoneout(cell, check_rate(zoneout), mask=mask, max_length=max_length)

        super().__init__(
            make, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, backend, unexpected
        )


class ZoneoutRNN(ZoneoutNetwork):
    """`torch.nn.RNN` with Zoneout of its state.

    Args:
        input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional: as for
            `torch.nn.RNN`.
        zoneout: probability that a unit keeps its old value.
        mask, max_length, backend, device, dtype: as for `ZoneoutLSTM`.

    Raises:
        ValueError: a rate outside [0, 1].

    >>> output, h_n = ZoneoutRNN(3, 4, nonlinearity="relu", batch_first=True)(torch.randn(2, 5, 3))
    >>> output.shape, h_n.shape
    (torch.Size([2, 5, 4]), torch.Size([1, 2, 4]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float | int = 0.0,
        bidirectional: bool = False,
        *,
        zoneout: float | int = 0.05,
        mask: str = "unit",
        max_length: int = 1000,
        backend: str = "auto",
        device: Device = None,
        dtype: torch.dtype | None = None,
        **unexpected: Any,
    ) -> None:
        chosen = check_choice(nonlinearity, "nonlinearity", ("tanh", "relu"))

        def make(size: int) -> Cell:
            cell = RNNCell(size, hidden_size, bias, chosen, device=device, dtype=dtype)
            return Zoneout(cell, check_rate(zoneout), mask=mask, max_length=max_length)

        super().__init__(
            make, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, backend, unexpected
        )
        self.nonlinearity = nonlinearity


class ZoneoutLSTMCell(nn.LSTMCell):
    """`torch.nn.LSTMCell` with Zoneout: `cell(input, (h, c)) -> (h, c)`.

    Args:
        input_size, hidden_size, bias, device, dtype: as for `torch.nn.LSTMCell`.
        zoneout_cell: probability that a unit of the memory keeps its old value.
        zoneout_hidden: the same for the hidden state.

    Raises:
        ValueError: a rate outside [0, 1].

    >>> h, c = ZoneoutLSTMCell(3, 4)(torch.randn(2, 3))
    >>> h.shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        zoneout_cell: float | int = 0.5,
        zoneout_hidden: float | int = 0.05,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.zoneout_cell = check_rate(zoneout_cell, "zoneout_cell")
        self.zoneout_hidden = check_rate(zoneout_hidden, "zoneout_hidden")

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step; `generator` is where the masks come from."""
        if hx is None:
            zeros = input.new_zeros(*input.shape[:-1], self.hidden_size)
            hx = zeros, zeros
        h, c = super().forward(input, hx)
        return (
            zoneout(h, hx[0], self.zoneout_hidden, training=self.training, generator=generator),
            zoneout(c, hx[1], self.zoneout_cell, training=self.training, generator=generator),
        )


class ZoneoutGRUCell(nn.GRUCell):
    """`torch.nn.GRUCell` with Zoneout: `cell(input, h) -> h`.

    Args:
        input_size, hidden_size, bias, device, dtype: as for `torch.nn.GRUCell`.
        zoneout: probability that a unit keeps its old value.

    Raises:
        ValueError: a rate outside [0, 1].

    >>> ZoneoutGRUCell(3, 4)(torch.randn(2, 3)).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        zoneout: float | int = 0.05,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.zoneout = check_rate(zoneout)

    def forward(self, input: Tensor, hx: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """One step; `generator` is where the mask comes from."""
        if hx is None:
            hx = input.new_zeros(*input.shape[:-1], self.hidden_size)
        return zoneout(super().forward(input, hx), hx, self.zoneout, training=self.training, generator=generator)


class ZoneoutRNNCell(nn.RNNCell):
    """`torch.nn.RNNCell` with Zoneout: `cell(input, h) -> h`.

    Args:
        input_size, hidden_size, bias, nonlinearity, device, dtype: as for `torch.nn.RNNCell`.
        zoneout: probability that a unit keeps its old value.

    Raises:
        ValueError: a rate outside [0, 1].

    >>> ZoneoutRNNCell(3, 4)(torch.randn(2, 3)).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        zoneout: float | int = 0.05,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, nonlinearity, device, dtype)
        self.zoneout = check_rate(zoneout)

    def forward(self, input: Tensor, hx: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """One step; `generator` is where the mask comes from."""
        if hx is None:
            hx = input.new_zeros(*input.shape[:-1], self.hidden_size)
        return zoneout(super().forward(input, hx), hx, self.zoneout, training=self.training, generator=generator)
