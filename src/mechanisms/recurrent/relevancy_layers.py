"""Networks with relevancy screening that stand in for `torch.nn.LSTM` and `torch.nn.RNN`.

They have torch's arguments, parameter names, shapes and initial values. The top layer screens; the layers below are
plain. What attention adds comes by name, and its parameters are called by their places, `key_weight_l0` and so on, so
that a `state_dict` of torch's module loads with `strict=False`: what is missing then is the attention alone.

States are those of the protocol, batch first: a tuple over layers, forward before backward, with a `RelevancyState` for
the top layer. They have a fixed size whatever the number of steps.
"""

from typing import Any

import torch

from mechanisms._base.validation import check_choice
from mechanisms.recurrent.attentive_layers import AttentiveNetwork
from mechanisms.recurrent.cells import LSTMCell, ModReLU, RNNCell
from mechanisms.recurrent.protocol import Cell, Device
from mechanisms.recurrent.relevancy import RelevancyScreening


class _RelevancyNetwork(AttentiveNetwork):
    """Plain layers below one that screens."""

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
        proj_size = attention.pop("proj_size", 0)

        def make_top(size: int) -> Cell:
            return RelevancyScreening(make_plain(size), **attention)

        super().__init__(
            make_plain,
            make_top,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            backend,
            proj_size,
        )


class RelLSTM(_RelevancyNetwork):
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
    >>> loaded = lstm.load_state_dict(torch.nn.LSTM(3, 4, num_layers=2).state_dict(), strict=False)
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


class RelRNN(_RelevancyNetwork):
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
