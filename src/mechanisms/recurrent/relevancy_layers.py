"""Networks with relevancy screening that stand in for `torch.nn.LSTM` and `torch.nn.RNN`.

They have torch's arguments, parameter names, shapes and initial values. The top layer screens; the layers below are
plain. What attention adds comes by name, and its parameters are called by their places, `key_weight_l0` and so on, so
that a `state_dict` of torch's module loads with `strict=False`: what is missing then is the attention alone.

States are those of the protocol, batch first: a tuple over layers, forward before backward, with a `RelevancyState` for
the top layer. They have a fixed size whatever the number of steps.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mechanisms._base.validation import check_choice, check_number
from mechanisms.recurrent._flat_network import FlatNetwork
from mechanisms.recurrent.cells import LSTMCell, ModReLU, RNNCell
from mechanisms.recurrent.module import Recurrent
from mechanisms.recurrent.protocol import Cell, Device, State
from mechanisms.recurrent.relevancy import RelevancyScreening

ATTENTION = ("key_weight", "query_weight", "score_weight")


class RelevancyNetwork(FlatNetwork):
    """Plain layers below one that screens, with parameters under torch's names.

    >>> isinstance(RelLSTM(3, 4), RelevancyNetwork)
    True
    """

    def __init__(
        self,
        make_plain: Any,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float | int,
        bidirectional: bool,
        backend: str,
        attention: dict[str, Any],
    ) -> None:
        super().__init__()
        check_choice(backend, "backend", ("auto", "eager", "kernel"))
        if attention.pop("proj_size", 0):
            raise ValueError(f"proj_size is not offered by {type(self).__name__}; put an nn.Linear behind it")
        check_number(num_layers, "num_layers", at_least=1)
        self.input_size, self.hidden_size, self.num_layers, self.bias = input_size, hidden_size, num_layers, bias
        self.batch_first, self.dropout, self.bidirectional = batch_first, float(dropout), bidirectional

        def make_top(size: int) -> Cell:
            return RelevancyScreening(make_plain(size), **attention)

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
            input: (time, batch, size), (batch, time, size) with `batch_first`, (time, size), or a PackedSequence.
            hx: a state as returned before; or `(h_0, c_0)` (a plain network's h_0) as torch takes it, with which
                buffer and set are empty.
            lengths: valid steps of each row of a padded input; outputs beyond are zero.
            reset: booleans in the layout of the input: where true, that row begins a new episode at that step.
            generator: where dropout comes from; torch's own by default.
            need_info: whether to return, as a third value, a tuple over layers and directions: `RelevancyInfo` (the
                attention weights and their source steps) for the top layer, `None` for the layers below.

        Returns:
            `(output, state)`: outputs of the top layer, directions side by side; and the state after the last step, as
            the protocol has it.

        Raises:
            TypeError: integers as input, or a state of another kind of network.
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

    def step(self, input: torch.Tensor, hx: Any = None) -> tuple[torch.Tensor, Any]:
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
            ValueError: the network is bidirectional, or `done` has another shape.
        """
        with self._lent() as network:
            return network.reset(state, done)

    @property
    def cells(self) -> nn.ModuleList:
        """The cells, forward before backward; `pack_state` and `unpack_state` read them."""
        with self._lent() as network:
            return network.cells

    def extra_repr(self) -> str:
        """Sizes, what is not the default, and the settings of screening."""
        top = self._network.cells[-1]
        return f"{self.input_size}, {self.hidden_size}, {self._network.extra_repr()}, {top.extra_repr()}"


class RelLSTM(RelevancyNetwork):
    """`torch.nn.LSTM` whose top layer attends to its last states and to a few relevant ones.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as for `torch.nn.LSTM`.
        short_term: ν, how many of the last states are attended.
        relevant: ρ, places for relevant states.
        backend: "auto" takes a fused path where there is one, "eager" single steps, "kernel" insists.
        device, dtype: of the parameters.
        attention: `attention_size`, `combine`, `readout`, `relevance`, `released`, as for `RelevancyScreening`.

    Gates read the attended state in the place of h; the memory c is carried as usual and never attended.

    Raises:
        ValueError: sizes or names that `RelevancyScreening` refuses, or `proj_size`.

    Source: section 5 of the paper (RelLSTM).

    >>> lstm = RelLSTM(3, 4, num_layers=2, short_term=2, relevant=3)
    >>> loaded = lstm.load_state_dict(nn.LSTM(3, 4, num_layers=2).state_dict(), strict=False)
    >>> loaded.missing_keys
    ['key_weight_l1', 'query_weight_l1', 'score_weight_l1']
    >>> output, state = lstm(torch.randn(20, 2, 3))
    >>> output.shape, state[1].set_index.shape
    (torch.Size([20, 2, 4]), torch.Size([2, 3]))
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
        short_term: int = 10,
        relevant: int = 15,
        backend: str = "auto",
        device: Device = None,
        dtype: torch.dtype | None = None,
        **attention: Any,
    ) -> None:
        def make(size: int) -> Cell:
            return LSTMCell(size, hidden_size, bias, device=device, dtype=dtype)

        attention |= {"short_term": short_term, "relevant": relevant}
        super().__init__(
            make, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, backend, attention
        )


class RelRNN(RelevancyNetwork):
    """`torch.nn.RNN` whose top layer attends to its last states and to a few relevant ones.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as for `torch.nn.RNN`.
        nonlinearity: "tanh", "relu", or "modrelu", a `ModReLU` with biases of its own in each layer and direction.
        short_term: ν, how many of the last states are attended.
        relevant: ρ, places for relevant states.
        backend: "auto" takes a fused path where there is one, "eager" single steps, "kernel" insists.
        device, dtype: of the parameters.
        attention: `attention_size`, `combine`, `readout`, `relevance`, `released`, as for `RelevancyScreening`.

    The paper's networks start from rotations: `henaff_init_` and `cayley_init_` fill `weight_hh_l0`.

    Raises:
        ValueError: sizes or names that `RelevancyScreening` refuses, or another nonlinearity.

    Source: section 5 of the paper (RelRNN).

    >>> from mechanisms.recurrent.rotations import henaff_init_
    >>> rnn = RelRNN(3, 4, nonlinearity="modrelu", short_term=2, relevant=3)
    >>> weight = henaff_init_(rnn.weight_hh_l0)
    >>> output, state = rnn(torch.randn(20, 2, 3))
    >>> output.shape
    torch.Size([20, 2, 4])
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
        short_term: int = 10,
        relevant: int = 15,
        backend: str = "auto",
        device: Device = None,
        dtype: torch.dtype | None = None,
        **attention: Any,
    ) -> None:
        check_choice(nonlinearity, "nonlinearity", ("tanh", "relu", "modrelu"))

        def make(size: int) -> Cell:
            own = ModReLU(hidden_size).to(device=device, dtype=dtype) if nonlinearity == "modrelu" else nonlinearity
            return RNNCell(size, hidden_size, bias, own, device=device, dtype=dtype)

        attention |= {"short_term": short_term, "relevant": relevant}
        super().__init__(
            make, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, backend, attention
        )
        self.nonlinearity = nonlinearity
