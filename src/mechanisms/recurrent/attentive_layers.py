"""What networks share whose top layer attends to its past and whose layers below are plain."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mechanisms._base.validation import check_choice, check_number
from mechanisms.recurrent._flat_network import FlatNetwork
from mechanisms.recurrent.module import Recurrent
from mechanisms.recurrent.protocol import Cell, Device, State

ATTENTION = ("key_weight", "query_weight", "score_weight")


class AttentiveNetwork(FlatNetwork):
    """Plain layers below one that attends, with parameters under torch's names; states are those of the protocol.

    What `RelLSTM`, `RelRNN` and `SABLSTM` have in common; they say what the top layer is.

    >>> from mechanisms.recurrent.backtracking_layers import SABLSTM
    >>> isinstance(SABLSTM(3, 4), AttentiveNetwork)
    True
    """

    def __init__(
        self,
        make_plain: Callable[[int], Cell],
        make_top: Callable[[int], Cell],
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float | int,
        bidirectional: bool,
        backend: str,
        proj_size: int,
    ) -> None:
        super().__init__()
        check_choice(backend, "backend", ("auto", "eager", "kernel"))
        if proj_size:
            raise ValueError(
                f"proj_size={proj_size} is not offered by {type(self).__name__}; put an nn.Linear behind it"
            )
        check_number(num_layers, "num_layers", at_least=1)
        self.input_size, self.hidden_size, self.num_layers, self.bias = input_size, hidden_size, num_layers, bias
        self.batch_first, self.dropout, self.bidirectional = batch_first, float(dropout), bidirectional
        network = Recurrent(
            [*[make_plain] * (num_layers - 1), make_top],
            input_size,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            backend=backend,
        )
        self.output_size = network.output_size
        self._adopt(network)

    def forward(
        self,
        input: Any,
        hx: Any = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        generator: torch.Generator | None = None,
        need_info: bool = False,
    ) -> Any:
        """Run over whole sequences.

        Args:
            input: (time, batch, size), (batch, time, size) with `batch_first`, (time, size), or a PackedSequence (not
                for a store that grows).
            hx: a state as returned before, with all that is remembered; or `(h_0, c_0)` (a plain network's h_0) as
                torch takes it, with which nothing is remembered but that.
            lengths: valid steps of each row of a padded input; outputs beyond are zero.
            reset: booleans in the layout of the input: where true, that row begins a new episode at that step (all rows
                at once, for a store that grows).
            generator: where dropout comes from; torch's own by default.
            need_info: whether to return, as a third value, a tuple over layers and directions: what the top layer
                records in the layout of the input, `None` for the layers below. A backward direction's is in the order
                in which it ran.

        Returns:
            `(output, state)`: outputs of the top layer, directions side by side; and the state after the last step, a
            tuple over layers and directions, batch first.

        Raises:
            TypeError: integers as input, another network's state, a packed sequence for a store that grows.
            ValueError: shapes do not fit.
        """
        with self._lent() as network:
            return network(
                input, self._begun(hx, input), lengths=lengths, reset=reset, generator=generator, need_info=need_info
            )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As for any module; `strict=False` takes the `state_dict` of torch's module.

        Raises:
            RuntimeError: names are missing or unknown; it says so when the attention alone is missing.
        """
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            # With strict=False it is shapes that do not fit, whatever else is missing.
            missing = set(self.state_dict()) - set(state_dict)
            if strict and missing and all(name.startswith(ATTENTION) for name in missing):
                raise RuntimeError(
                    f"{error}\nThe attention alone is missing: with strict=False it keeps the values it has, and the "
                    "rest is loaded"
                ) from None
            raise

    def step(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """One step (batch, size) through all layers, for streams and agents.

        Raises:
            ValueError: the network is bidirectional.
        """
        with self._lent() as network:
            return network.step(input, self._begun(hx, None))

    def initial_state(
        self, batch_size: int, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> tuple[State, ...]:
        """The state before the first step, one entry per layer and direction."""
        with self._lent() as network:
            return network.initial_state(batch_size, device=device, dtype=dtype)

    def reset(self, state: tuple[State, ...], done: Any) -> tuple[State, ...]:
        """The state with the rows where `done` (batch,) is true started anew.

        Raises:
            ValueError: the network is bidirectional, `done` has another shape, or a store grows and only some are done.
        """
        with self._lent() as network:
            return network.reset(state, done)

    @property
    def cells(self) -> nn.ModuleList:
        """The cells, forward before backward; `pack_state` and `unpack_state` read them."""
        with self._lent() as network:
            return network.cells

    def extra_repr(self) -> str:
        """Sizes, what is not the default, and the settings of the attention."""
        top = self._network.cells[-1]
        return f"{self.input_size}, {self.hidden_size}, {self._network.extra_repr()}, {top.extra_repr()}"
