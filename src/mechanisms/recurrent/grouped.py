"""Maps and recurrent cells in groups: n modules with weights of their own, computed as one batched product.

    y[b, k] = x[b, k] W[k],    x (..., n, in),  W (n, in, out),  y (..., n, out)

Weights act from the right, as in the equations of modular networks; `torch.nn.Linear` has them turned.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechanisms._base.validation import check_choice, check_number
from mechanisms.recurrent._doors import check_whole
from mechanisms.recurrent.protocol import Device

INITS = ("reference", "module")


def grouped(
    x: Float[Tensor, "*leading groups size"],
    weight: Float[Tensor, "groups size out"],
    bias: Float[Tensor, "groups out"] | None = None,
) -> Float[Tensor, "*leading groups out"]:
    """Each group's rows times its own matrix.

    >>> grouped(torch.ones(5, 2, 3), torch.ones(2, 3, 4)).shape
    torch.Size([5, 2, 4])
    """
    leading = x.shape[:-2]
    rows = x.unsqueeze(0) if not leading else x if len(leading) == 1 else x.flatten(0, -3)
    rows = rows.transpose(0, 1)
    y = torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight)
    y = y.transpose(0, 1)
    return y if len(leading) == 1 else y.squeeze(0) if not leading else y.unflatten(0, leading)


def to_groups(
    x: Float[Tensor, "*leading size"], weight: Float[Tensor, "groups size out"]
) -> Float[Tensor, "*leading groups out"]:
    """The same rows times the matrix of each group, in one product.

    >>> to_groups(torch.ones(5, 3), torch.ones(2, 3, 4)).shape
    torch.Size([5, 2, 4])
    """
    groups, size, out = weight.shape
    return (x @ weight.transpose(0, 1).reshape(size, groups * out)).unflatten(-1, (groups, out))


def lstm_update(
    gates: Float[Tensor, "*leading gates"], c: Float[Tensor, "*leading size"]
) -> tuple[Float[Tensor, "*leading size"], Float[Tensor, "*leading size"]]:
    """`h` and `c` after a step from the summed gates i, f, g, o.

    >>> h, c = lstm_update(torch.zeros(2, 12), torch.ones(2, 3))
    >>> c[0]
    tensor([0.5000, 0.5000, 0.5000])
    """
    i, f, g, o = gates.chunk(4, -1)
    c = torch.addcmul(torch.sigmoid(i) * torch.tanh(g), torch.sigmoid(f), c)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_update(
    driven: Float[Tensor, "*leading gates"],
    recurrent: Float[Tensor, "*leading gates"],
    h: Float[Tensor, "*leading size"],
) -> Float[Tensor, "*leading size"]:
    """`h` after a step from what the input and what the state give to r, z, n; their biases are in both.

    >>> gru_update(torch.zeros(2, 9), torch.zeros(2, 9), torch.ones(2, 3))[0]
    tensor([0.5000, 0.5000, 0.5000])
    """
    size = h.shape[-1]
    r, z = torch.sigmoid(driven[..., : 2 * size] + recurrent[..., : 2 * size]).chunk(2, -1)
    n = torch.tanh(torch.addcmul(driven[..., 2 * size :], r, recurrent[..., 2 * size :]))
    return torch.lerp(n, h, z)


class GroupLinear(nn.Module):
    """A linear map for each group: (..., groups, in_features) to (..., groups, out_features).

    Args:
        num_groups, in_features, out_features: sizes.
        bias: whether each group adds a bias, zero at first.
        std: weights start from N(0, std²).
        device, dtype: of the parameters.

    Parameters: `weight` (groups, in, out), `bias` (groups, out) or `None`.

    Raises:
        ValueError: sizes below 1, or `std` below 0.

    >>> GroupLinear(6, 100, 64)(torch.ones(8, 6, 100)).shape
    torch.Size([8, 6, 64])
    """

    def __init__(
        self,
        num_groups: int,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        std: float | int = 0.01,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_groups = check_whole(num_groups, "num_groups")
        self.in_features = check_whole(in_features, "in_features")
        self.out_features = check_whole(out_features, "out_features")
        self.std = check_number(std, "std", at_least=0)
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(num_groups, in_features, out_features, **like))
        self.register_parameter("bias", nn.Parameter(torch.empty(num_groups, out_features, **like)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew; biases are zero."""
        nn.init.normal_(self.weight, std=self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Float[Tensor, "*leading groups size"]) -> Float[Tensor, "*leading groups out"]:
        """The products, and the bias if there is one."""
        return grouped(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.num_groups} x ({self.in_features}, {self.out_features}), bias={self.bias is not None}"


class _GroupCell(nn.Module):
    """Parameters and initial values, which the two cells share."""

    gates = 1
    biases: tuple[str, ...] = ()

    def __init__(
        self,
        num_groups: int,
        input_size: int,
        hidden_size: int,
        *,
        init: str = "reference",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_groups = check_whole(num_groups, "num_groups")
        self.input_size = check_whole(input_size, "input_size")
        self.hidden_size = check_whole(hidden_size, "hidden_size")
        self.init = check_choice(init, "init", INITS)
        rows = self.gates * hidden_size
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight_ih = nn.Parameter(torch.empty(num_groups, input_size, rows, **like))
        self.weight_hh = nn.Parameter(torch.empty(num_groups, hidden_size, rows, **like))
        for name in self.biases:
            self.register_parameter(name, nn.Parameter(torch.empty(num_groups, rows, **like)))
        self.reset_parameters()

    @property
    def bound(self) -> float:
        """Parameters start uniform within plus and minus this."""
        return 1 / math.sqrt(self.hidden_size * (self.num_groups if self.init == "reference" else 1))

    def reset_parameters(self) -> None:
        """Draw all parameters anew, uniform within `bound`."""
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -self.bound, self.bound)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.num_groups} x ({self.input_size}, {self.hidden_size})"


class GroupLSTMCell(_GroupCell):
    """n LSTM cells side by side; equal to one `nn.LSTMCell` of size n d whose matrices are block-diagonal.

    Args:
        num_groups: n.
        input_size, hidden_size: sizes of one group's input and state, d.
        init: "reference" draws within 1/sqrt(n d), as the dense cell of the authors' code does; "module" within
            1/sqrt(d), as n separate cells would.
        device, dtype: of the parameters.

    Parameters: `weight_ih` (n, in, 4d), `weight_hh` (n, d, 4d), `bias` (n, 4d); gates in the order i, f, g, o. The bias
    starts as the sum of two uniform ones, since `nn.LSTMCell` has two.

    >>> cell = GroupLSTMCell(6, 20, 5)
    >>> h, c = cell(torch.ones(2, 6, 20))
    >>> h.shape
    torch.Size([2, 6, 5])
    """

    gates = 4
    biases = ("bias",)
    bias: nn.Parameter

    def reset_parameters(self) -> None:
        """Draw all parameters anew, uniform within `bound`, the bias as a sum of two."""
        super().reset_parameters()
        with torch.no_grad():
            self.bias.add_(torch.empty_like(self.bias).uniform_(-self.bound, self.bound))

    def forward(
        self,
        input: Float[Tensor, "batch groups size"],
        hx: tuple[Float[Tensor, "batch groups hidden"], Float[Tensor, "batch groups hidden"]] | None = None,
    ) -> tuple[Float[Tensor, "batch groups hidden"], Float[Tensor, "batch groups hidden"]]:
        """One step, as `nn.LSTMCell`: `(h, c)` from the input and `(h, c)`, zeros by default."""
        if hx is None:
            zeros = input.new_zeros(input.shape[0], self.num_groups, self.hidden_size)
            hx = zeros, zeros
        h, c = hx
        return lstm_update(grouped(input, self.weight_ih) + grouped(h, self.weight_hh, self.bias), c)


class GroupGRUCell(_GroupCell):
    """n GRU cells side by side, in torch's convention.

    Args:
        num_groups: n.
        input_size, hidden_size: sizes of one group's input and state, d.
        init: "reference" draws within 1/sqrt(n d), "module" within 1/sqrt(d).
        device, dtype: of the parameters.

    Parameters: `weight_ih` (n, in, 3d), `weight_hh` (n, d, 3d), `bias_ih`, `bias_hh` (n, 3d); gates in the order r, z,
    n. There are two biases, as the gate r multiplies one of them.

    >>> GroupGRUCell(6, 20, 5)(torch.ones(2, 6, 20)).shape
    torch.Size([2, 6, 5])
    """

    gates = 3
    biases = "bias_ih", "bias_hh"
    bias_ih: nn.Parameter
    bias_hh: nn.Parameter

    def forward(
        self, input: Float[Tensor, "batch groups size"], hx: Float[Tensor, "batch groups hidden"] | None = None
    ) -> Float[Tensor, "batch groups hidden"]:
        """One step, as `nn.GRUCell`: `h` from the input and `h`, zeros by default."""
        if hx is None:
            hx = input.new_zeros(input.shape[0], self.num_groups, self.hidden_size)
        driven, recurrent = grouped(input, self.weight_ih, self.bias_ih), grouped(hx, self.weight_hh, self.bias_hh)
        return gru_update(driven, recurrent, hx)
