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
from mechanisms.recurrent._orthogonal import fill_with_orthogonal_blocks
from mechanisms.recurrent.cells import GRUCell, LSTMCell, RNNCell
from mechanisms.recurrent.module import Recurrent
from mechanisms.recurrent.protocol import Cell, Device
from mechanisms.recurrent.zoneout import Zoneout, check_rate, zoneout

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class _ZoneoutNetwork(nn.Module):
    """Parameters under torch's flat names, and a `Recurrent` that computes with them."""

    _network: Recurrent

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
            torch_state=True,
        )
        # Not registered: its parameters are this module's, under torch's names.
        self.__dict__["_network"] = network
        for suffix, cell in self._cells():
            for name in NAMES:
                self.register_parameter(name + suffix, getattr(cell.cell, name))
            for name, mask in cell.named_buffers(recurse=False):
                self.register_buffer(name + suffix, mask)
        self._take_back()

    def _cells(self) -> list[tuple[str, Zoneout]]:
        """The cells and the suffixes of their parameters, in torch's order."""
        directions = ("", "_reverse")[: 1 + self.bidirectional]
        suffixes = [f"_l{layer}{direction}" for layer in range(self.num_layers) for direction in directions]
        return list(zip(suffixes, [cell for cell in self._network.cells if isinstance(cell, Zoneout)], strict=True))

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
        if self._network.training != self.training:
            self._network.train(self.training)
        # Lent for this call, so that whatever became of them (moved, replaced, given by functional_call) holds.
        self._lend()
        try:
            return self._network(input, hx, lengths=lengths, generator=generator)
        finally:
            self._take_back()

    def _lend(self) -> None:
        for suffix, cell in self._cells():
            for name in NAMES:
                cell.cell._parameters[name] = getattr(self, name + suffix)
            for name in cell._buffers:
                cell._buffers[name] = getattr(self, name + suffix)

    def _take_back(self) -> None:
        for _, cell in self._cells():
            cell.cell._parameters = dict.fromkeys(cell.cell._parameters)
            cell._buffers = dict.fromkeys(cell._buffers)

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

    def flatten_parameters(self) -> None:
        """Does nothing: it is here for code that calls it on torch's modules."""

    def extra_repr(self) -> str:
        """Sizes, what is not the default, and Zoneout's settings."""
        return (
            f"{self.input_size}, {self.hidden_size}, {self._network.extra_repr()}, "
            f"{self._network.cells[0].extra_repr()}"
        )


class ZoneoutLSTM(_ZoneoutNetwork):
    """`torch.nn.LSTM` with Zoneout of its hidden state and its memory.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as for `torch.nn.LSTM`.
        zoneout_cell: probability that a unit of the memory keeps its old value.
        zoneout_hidden: the same for the hidden state, which tolerates far less.
        mask: "unit", "layer" or "static", as for `Zoneout`.
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


class ZoneoutGRU(_ZoneoutNetwork):
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


class ZoneoutRNN(_ZoneoutNetwork):
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
