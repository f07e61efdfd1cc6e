"""The three plain cells, with the parameter names, shapes, gate order and initial values of `torch.nn`.

They are cells of the protocol: `cell(input, state) -> (output, state)`, where `nn.LSTMCell` returns the state alone.
Whole sequences run through torch's own kernels (cuDNN on a GPU).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mechanisms._base.validation import check_number
from mechanisms.recurrent.protocol import Cell, Device


class LSTMState(NamedTuple):
    """State of an LSTM: `h` is its output, `c` its memory, each (batch, hidden).

    >>> LSTMState(h=torch.zeros(2, 4), c=torch.zeros(2, 4)).c.shape
    torch.Size([2, 4])
    """

    h: Tensor
    c: Tensor


class GRUState(NamedTuple):
    """State of a GRU (batch, hidden).

    >>> GRUState(h=torch.zeros(2, 4)).h.shape
    torch.Size([2, 4])
    """

    h: Tensor


class RNNState(NamedTuple):
    """State of a plain recurrent network (batch, hidden).

    >>> RNNState(h=torch.zeros(2, 4)).h.shape
    torch.Size([2, 4])
    """

    h: Tensor


class _Plain(Cell):
    """Weights, initial states and the way to torch's kernels, which the three cells share."""

    gates = 1
    zoneable = ("h",)
    records = False
    weight_ih: nn.Parameter
    weight_hh: nn.Parameter
    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Who writes another step means it: the shorter ways, which know nothing of it, are not inherited.
        if "step" in vars(cls):
            for name in ("sequence", "_whole_step", "_stepper"):
                if name not in vars(cls):
                    setattr(cls, name, getattr(Cell, name))

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        learn_initial_state: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_number(input_size, "input_size", at_least=1)
        check_number(hidden_size, "hidden_size", at_least=1)
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, hidden_size
        self.bias = bias

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        rows = self.gates * hidden_size
        self.weight_ih = empty(rows, input_size)
        self.weight_hh = empty(rows, hidden_size)
        self.register_parameter("bias_ih", empty(rows) if bias else None)
        self.register_parameter("bias_hh", empty(rows) if bias else None)
        for leaf in self.zoneable:
            self.register_parameter(f"initial_{leaf}", empty(hidden_size) if learn_initial_state else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights and biases uniform within 1/sqrt(hidden_size), as in torch; learned initial states zero."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("initial_"):
                nn.init.zeros_(parameter)
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def _initial(self, leaf: str, batch_size: int, device: Device, dtype: torch.dtype | None) -> Tensor:
        learned = getattr(self, f"initial_{leaf}")
        if learned is None:
            like = self.weight_hh
            if device is None and dtype is None:
                return like.new_zeros(batch_size, self.hidden_size)  # half the time, which single steps notice
            return like.new_zeros(batch_size, self.hidden_size, device=device, dtype=dtype)
        place = torch.device(device) if device is not None else learned.device
        return learned.to(device=place, dtype=dtype or learned.dtype).expand(batch_size, -1)

    def _weights(self) -> list[Tensor]:
        found = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return [weight for weight in found if weight is not None]

    def _both_biases(self) -> Tensor | None:
        return None if self.bias_ih is None or self.bias_hh is None else self.bias_ih + self.bias_hh

    def _run(self, kernel: Callable[..., tuple[Tensor, ...]], inputs: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
        """Outputs and last leaves of a whole sequence through torch's kernel; () when types or devices are mixed."""
        weight = self.weight_hh
        device = weight.device
        # Float32 in, float32 out: under autocast the kernel runs in the parameters' type, where torch's own modules
        # return half precision.
        lowered = torch.is_autocast_enabled(device.type)
        if lowered:
            inputs = inputs.to(weight.dtype)
        for tensor in (inputs, *leaves):
            if tensor.dtype != weight.dtype or tensor.device != device:
                return ()
        start = [leaf.unsqueeze(0) for leaf in leaves]
        # cuDNN keeps what its backward needs only when told that it trains.
        options = (self._weights(), self.bias, 1, 0.0, torch.is_grad_enabled(), False, False)
        if lowered:
            with torch.autocast(device.type, enabled=False):
                result = kernel(inputs, start if len(start) > 1 else start[0], *options)
        else:
            result = kernel(inputs, start if len(start) > 1 else start[0], *options)
        return result[0], *[leaf.squeeze(0) for leaf in result[1:]]

    def _one(self, kernel: Callable[..., Any], input: Tensor, state: Any) -> Any:
        """One step in torch's own call, which is shorter than ours; `None` under autocast, where it would lower `h`."""
        if torch.is_autocast_enabled(input.device.type):
            return None
        return kernel(input, state, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)

    def extra_repr(self) -> str:
        """The sizes, and what is not the default."""
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")


class LSTMCell(_Plain):
    """An LSTM: i, f, o = σ(.), g = tanh(.), `c' = f c + i g`, `h' = o tanh(c')`; gates in the order i, f, g, o.

    Args:
        input_size: size I of the input.
        hidden_size: size H of `h` and `c`.
        bias: whether there are biases.
        learn_initial_state: whether `h` and `c` before the first step are parameters (`initial_h`, `initial_c`, zero
            at first) in place of zeros.

    Parameters: `weight_ih` (4H, I), `weight_hh` (4H, H), `bias_ih`, `bias_hh` (4H), as in `torch.nn.LSTMCell`.

    Source: Hochreiter and Schmidhuber, 1997; Gers, Schmidhuber and Cummins, 2000 (the forget gate).

    >>> cell = LSTMCell(3, 4)
    >>> output, state = cell(torch.ones(2, 3))
    >>> output.shape, state.c.shape
    (torch.Size([2, 4]), torch.Size([2, 4]))
    """

    gates = 4
    zoneable = ("h", "c")

    def initial_state(self, batch_size: int, *, device: Device = None, dtype: torch.dtype | None = None) -> LSTMState:
        """Zeros, or the learned initial state."""
        return LSTMState(self._initial("h", batch_size, device, dtype), self._initial("c", batch_size, device, dtype))

    def project(self, inputs: Float[Tensor, "*leading size"], noise: None = None) -> Float[Tensor, "*leading gates"]:
        """`x W_ih^T` with both biases."""
        return F.linear(inputs, self.weight_ih, self._both_biases())

    def step(
        self, projected: Tensor, state: LSTMState, noise: None = None, *, need_info: bool = False
    ) -> tuple[Tensor, LSTMState]:
        """One step; the memory keeps its type under autocast."""
        return self._advance(projected, state, weight=self.weight_hh.t())

    def _advance(
        self, projected: Tensor, state: LSTMState, noise: None = None, *, weight: Tensor, need_info: bool = False
    ) -> tuple[Tensor, LSTMState]:
        gates = _as(torch.addmm(projected, state.h, weight), state.c)
        i, f, g, o = gates.chunk(4, 1)
        c = torch.addcmul(torch.sigmoid(i) * torch.tanh(g), torch.sigmoid(f), state.c)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, LSTMState(h, c)

    def _stepper(self) -> Callable[..., tuple[Tensor, LSTMState]]:
        """The weights are turned once, which saves a tenth of the time at small sizes."""
        return functools.partial(self._advance, weight=self.weight_hh.t())

    def _whole_step(self, input: Tensor, state: LSTMState, noise: None) -> tuple[Tensor, LSTMState]:
        found = self._one(torch.lstm_cell, input, (state.h, state.c))
        return super()._whole_step(input, state, noise) if found is None else (found[0], LSTMState(*found))

    def sequence(self, inputs: Tensor, state: LSTMState, noise: None) -> Any:
        """All steps in torch's kernel."""
        found = self._run(torch.lstm, inputs, *state)
        return (found[0], LSTMState(*found[1:])) if found else NotImplemented


class GRUCell(_Plain):
    """A GRU: r, z = σ(.), `n = tanh(W_in x + b_in + r (W_hn h + b_hn))`, `h' = (1 - z) n + z h`; gates r, z, n.

    Args:
        input_size: size I of the input.
        hidden_size: size H of `h`.
        bias: whether there are biases.
        learn_initial_state: whether `h` before the first step is a parameter (`initial_h`) in place of zeros.

    Parameters: `weight_ih` (3H, I), `weight_hh` (3H, H), `bias_ih`, `bias_hh` (3H), as in `torch.nn.GRUCell`.

    Source: Cho et al., 2014.

    >>> output, state = GRUCell(3, 4)(torch.ones(2, 3))
    >>> bool((output == state.h).all())
    True
    """

    gates = 3

    def initial_state(self, batch_size: int, *, device: Device = None, dtype: torch.dtype | None = None) -> GRUState:
        """Zeros, or the learned initial state."""
        return GRUState(self._initial("h", batch_size, device, dtype))

    def project(self, inputs: Float[Tensor, "*leading size"], noise: None = None) -> Float[Tensor, "*leading gates"]:
        """`x W_ih^T + b_ih`; the other bias stays in the step, where a gate multiplies it."""
        return F.linear(inputs, self.weight_ih, self.bias_ih)

    def step(
        self, projected: Tensor, state: GRUState, noise: None = None, *, need_info: bool = False
    ) -> tuple[Tensor, GRUState]:
        """One step."""
        h, size = state.h, self.hidden_size
        own = _as(F.linear(h, self.weight_hh, self.bias_hh), h)
        projected = _as(projected, h)
        r, z = torch.sigmoid(projected[:, : 2 * size] + own[:, : 2 * size]).chunk(2, 1)
        n = torch.tanh(torch.addcmul(projected[:, 2 * size :], r, own[:, 2 * size :]))
        h = torch.lerp(n, h, z)
        return h, GRUState(h)

    def _whole_step(self, input: Tensor, state: GRUState, noise: None) -> tuple[Tensor, GRUState]:
        found = self._one(torch.gru_cell, input, state.h)
        return super()._whole_step(input, state, noise) if found is None else (found, GRUState(found))

    def sequence(self, inputs: Tensor, state: GRUState, noise: None) -> Any:
        """All steps in torch's kernel."""
        found = self._run(torch.gru, inputs, *state)
        return (found[0], GRUState(*found[1:])) if found else NotImplemented


class RNNCell(_Plain):
    """A plain recurrent network: `h' = φ(W_ih x + b_ih + W_hh h + b_hh)`.

    Args:
        input_size: size I of the input.
        hidden_size: size H of `h`.
        bias: whether there are biases.
        nonlinearity: φ: "tanh", "relu", or a module such as `ModReLU(hidden_size)`.
        learn_initial_state: whether `h` before the first step is a parameter (`initial_h`) in place of zeros.

    Parameters: `weight_ih` (H, I), `weight_hh` (H, H), `bias_ih`, `bias_hh` (H), as in `torch.nn.RNNCell`.

    Raises:
        ValueError: another name is given as `nonlinearity`.

    Source: Elman, 1990.

    >>> output, state = RNNCell(3, 4, nonlinearity=ModReLU(4))(torch.ones(2, 3))
    >>> output.shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str | nn.Module = "tanh",
        *,
        learn_initial_state: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(nonlinearity, str) and nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity={nonlinearity!r}: it must be 'tanh', 'relu' or a module")
        super().__init__(
            input_size, hidden_size, bias, learn_initial_state=learn_initial_state, device=device, dtype=dtype
        )
        self.nonlinearity = nonlinearity

    def initial_state(self, batch_size: int, *, device: Device = None, dtype: torch.dtype | None = None) -> RNNState:
        """Zeros, or the learned initial state."""
        return RNNState(self._initial("h", batch_size, device, dtype))

    def project(self, inputs: Float[Tensor, "*leading size"], noise: None = None) -> Float[Tensor, "*leading gates"]:
        """`x W_ih^T` with both biases."""
        return F.linear(inputs, self.weight_ih, self._both_biases())

    def step(
        self, projected: Tensor, state: RNNState, noise: None = None, *, need_info: bool = False
    ) -> tuple[Tensor, RNNState]:
        """One step."""
        return self._advance(projected, state, weight=self.weight_hh.t())

    def _advance(
        self, projected: Tensor, state: RNNState, noise: None = None, *, weight: Tensor, need_info: bool = False
    ) -> tuple[Tensor, RNNState]:
        u = _as(torch.addmm(projected, state.h, weight), state.h)
        if isinstance(self.nonlinearity, nn.Module):
            h = self.nonlinearity(u)
        else:
            h = torch.tanh(u) if self.nonlinearity == "tanh" else torch.relu(u)
        return h, RNNState(h)

    def _stepper(self) -> Callable[..., tuple[Tensor, RNNState]]:
        """The weights are turned once."""
        return functools.partial(self._advance, weight=self.weight_hh.t())

    def _whole_step(self, input: Tensor, state: RNNState, noise: None) -> tuple[Tensor, RNNState]:
        if isinstance(self.nonlinearity, nn.Module):
            return super()._whole_step(input, state, noise)
        kernel = torch.rnn_tanh_cell if self.nonlinearity == "tanh" else torch.rnn_relu_cell
        h = self._one(kernel, input, state.h)
        return super()._whole_step(input, state, noise) if h is None else (h, RNNState(h))

    def sequence(self, inputs: Tensor, state: RNNState, noise: None) -> Any:
        """All steps in torch's kernel; a module as nonlinearity has none."""
        if isinstance(self.nonlinearity, nn.Module):
            return NotImplemented
        found = self._run(torch.rnn_tanh if self.nonlinearity == "tanh" else torch.rnn_relu, inputs, *state)
        return (found[0], RNNState(*found[1:])) if found else NotImplemented


def _as(tensor: Tensor, like: Tensor) -> Tensor:
    """In the type of another; a comparison costs a tenth of a call of `to` that changes nothing."""
    return tensor if tensor.dtype is like.dtype else tensor.to(like.dtype)


class ModReLU(nn.Module):
    """`sign(u) relu(|u| + b)` with a bias per unit: it keeps the sign and shifts the size.

    Args:
        size: number of units.
        spread: biases start uniform within plus and minus this number.

    Source: Arjovsky, Shah and Bengio, 2016, equation 8; the real form of Helfrich, Willmott and Ye, 2018.

    >>> module = ModReLU(2, spread=0)
    >>> module(torch.tensor([[-2.0, 3.0]]))
    tensor([[-2.,  3.]], grad_fn=<MulBackward0>)
    """

    def __init__(self, size: int, spread: float | int = 0.01) -> None:
        super().__init__()
        self.spread = check_number(spread, "spread", at_least=0)
        self.bias = nn.Parameter(torch.empty(size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the biases anew."""
        nn.init.uniform_(self.bias, -self.spread, self.spread)

    def forward(self, u: Float[Tensor, "*leading size"]) -> Float[Tensor, "*leading size"]:
        """The activation, unit by unit."""
        return torch.sign(u) * torch.relu(u.abs() + self.bias)


def from_torch(module: nn.LSTMCell | nn.GRUCell | nn.RNNCell) -> LSTMCell | GRUCell | RNNCell:
    """A cell of the protocol around a cell of torch; both share their parameters.

    Raises:
        TypeError: it is none of the three cells. (For `nn.LSTM` and the like there is `Recurrent.from_torch`.)

    >>> theirs = nn.GRUCell(3, 4)
    >>> ours = from_torch(theirs)
    >>> ours.weight_ih is theirs.weight_ih
    True
    """
    sizes = (module.input_size, module.hidden_size, module.bias) if isinstance(module, nn.RNNCellBase) else None
    like = {"device": "meta"}
    if isinstance(module, nn.LSTMCell) and sizes:
        cell: LSTMCell | GRUCell | RNNCell = LSTMCell(*sizes, device=like["device"])
    elif isinstance(module, nn.GRUCell) and sizes:
        cell = GRUCell(*sizes, device=like["device"])
    elif isinstance(module, nn.RNNCell) and sizes:
        cell = RNNCell(*sizes, nonlinearity=module.nonlinearity, device=like["device"])
    else:
        raise TypeError(
            f"from_torch takes nn.LSTMCell, nn.GRUCell or nn.RNNCell, got {type(module).__name__}; for whole layers "
            "there is Recurrent.from_torch"
        )
    share(cell, module)
    return cell.train(module.training)


def share(cell: _Plain, module: nn.Module, suffix: str = "") -> None:
    """Give `cell` the parameters of a module of torch, under names such as `weight_ih` + suffix.

    >>> theirs, ours = nn.GRU(3, 4), GRUCell(3, 4)
    >>> share(ours, theirs, "_l0")
    >>> ours.weight_ih is theirs.weight_ih_l0
    True
    """
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        if getattr(cell, name) is not None:
            setattr(cell, name, getattr(module, name + suffix))
