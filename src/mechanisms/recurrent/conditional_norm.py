"""An LSTM whose layer norms take gains and biases from a second input, for instance a latent of the same step.

    [γ; δ] = clamp(MLP(z), -3, 3)
    gates  = LN(e W_ih; γ_0, δ_0) + LN(h W_hh; 1 + γ, δ)

γ_0, δ_0 are the input part's own gains and biases; the LSTM has no biases. The norms use ε = 1e-5 and the unbiased
variance, as the released code of Z-Forcing does (its `cond_ln` variant).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mechanisms._base.validation import check_number
from mechanisms.recurrent._perceptron import Perceptron, in_type
from mechanisms.recurrent.cells import LSTMState
from mechanisms.recurrent.protocol import Cell, Device

EPSILON, LIMIT = 1e-5, 3.0


class Conditioned(NamedTuple):
    """What `ConditionalNormLSTMCell.project` makes of its inputs: the gates' input part, and the condition as it is.

    >>> Conditioned(gates=torch.zeros(2, 16), condition=None).condition
    """

    gates: Tensor
    condition: Tensor | None


class ConditionalNormLSTMCell(Cell):
    """An LSTM cell with inputs (e, z); z sets gains and biases of the recurrent pre-activation's layer norm.

    Args:
        input_size: sizes (E, Z) of the two inputs.
        hidden_size: size H of `h` and `c`.
        mlp_size: width of the network that makes gains and biases; H by default.

    Raises:
        ValueError: sizes below 1.

    Source: the `cond_ln` variant in the released code of Goyal et al., 2017.

    >>> cell = ConditionalNormLSTMCell((3, 2), 4)
    >>> output, state = cell((torch.ones(5, 3), torch.ones(5, 2)))
    >>> output.shape
    torch.Size([5, 4])
    """

    zoneable = ("h", "c")

    def __init__(self, input_size: tuple[int, int], hidden_size: int, *, mlp_size: int | None = None) -> None:
        super().__init__()
        for name, size in (("input_size", input_size[0]), ("input_size", input_size[1]), ("hidden_size", hidden_size)):
            check_number(size, name, at_least=1)
        self.input_size, self.hidden_size, self.output_size = tuple(input_size), hidden_size, hidden_size
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden_size, input_size[0]))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden_size, hidden_size))
        self.gain, self.bias = (nn.Parameter(torch.empty(4 * hidden_size)) for _ in range(2))
        width = hidden_size if mlp_size is None else int(check_number(mlp_size, "mlp_size", at_least=1))
        self.condition = Perceptron(input_size[1], width, 8 * hidden_size, limit=LIMIT)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Input weights uniform within 1/sqrt(H), recurrent ones orthogonal, gains 1, biases 0."""
        bound = self.hidden_size**-0.5
        nn.init.uniform_(self.weight_ih, -bound, bound)
        nn.init.orthogonal_(self.weight_hh)
        nn.init.ones_(self.gain)
        nn.init.zeros_(self.bias)

    def initial_state(self, batch_size: int, *, device: Device = None, dtype: torch.dtype | None = None) -> LSTMState:
        """Zeros."""
        zeros = self.weight_hh.new_zeros(batch_size, self.hidden_size, device=device, dtype=dtype)
        return LSTMState(zeros, zeros)

    def project(self, inputs: tuple[Tensor, ...], noise: None = None) -> Conditioned:
        """The normalised input part; the condition may be missing, and be put in before the step."""
        projected = F.linear(inputs[0], self.weight_ih)
        gates = torch.addcmul(self.bias, self.gain, _normalised(in_type(projected, self.gain)))
        return Conditioned(gates, inputs[1] if len(inputs) > 1 else None)

    def step(
        self, projected: Conditioned, state: LSTMState, noise: None = None, *, need_info: bool = False
    ) -> tuple[Tensor, LSTMState]:
        """One step."""
        if projected.condition is None:
            raise ValueError("the condition is missing: the cell takes the inputs (e, z)")
        gain, bias = in_type(self.condition(projected.condition), state.c).chunk(2, -1)
        own = _normalised(in_type(F.linear(state.h, self.weight_hh), state.c))
        i, f, g, o = (in_type(projected.gates, state.c) + torch.addcmul(bias, 1 + gain, own)).chunk(4, -1)
        c = torch.addcmul(torch.sigmoid(i) * torch.tanh(g), torch.sigmoid(f), state.c)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, LSTMState(h, c)


def _normalised(values: Tensor) -> Tensor:
    values = values - values.mean(-1, keepdim=True)
    # Not torch.var, which warns of a batch without rows.
    var = values.square().sum(-1, keepdim=True) / (values.shape[-1] - 1)
    return values * torch.rsqrt(var + EPSILON)
