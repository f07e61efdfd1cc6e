"""Recurrent batch normalisation: an LSTM whose products and memory are normalised over the batch, step by step.

    a_t = BN(h_{t-1} W_hh; γ_h, 0) + BN(x_t W_ih; γ_x, 0) + b
    c_t = f c_{t-1} + i g                       the memory itself is not normalised
    h_t = o tanh(BN(c_t; γ_c, β_c))

Every step has statistics of its own; scales and shifts are shared. In training they are those of the batch, and a
training run moves the running ones, which evaluation uses, once, after the scan (`update_statistics`, which `Recurrent`
calls). With Zoneout around it, this is the paper's best network on permuted MNIST.

Cooijmans, Ballas, Laurent, Gülçehre, Courville: "Recurrent Batch Normalization", ICLR 2017, arXiv 1603.09025.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mechanisms._base.validation import check_number
from mechanisms.recurrent._orthogonal import fill_with_orthogonal_blocks
from mechanisms.recurrent.protocol import Cell, Device

EPSILON = 1e-5
MOMENTUM = 0.01  # share of the new batch in the running statistics


class BatchNormLSTMState(NamedTuple):
    """State: `h` and `c` (batch, hidden), and how many steps were taken (batch), the same in all rows.

    >>> BatchNormLSTMState(torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)).step
    tensor([0, 0])
    """

    h: Tensor
    c: Tensor
    step: Tensor


class BatchStatistics(NamedTuple):
    """Means and variances that a step used for the input's part, the state's part and the memory, and its number.

    >>> BatchStatistics._fields[:2]
    ('mean_x', 'var_x')
    """

    mean_x: Tensor
    var_x: Tensor
    mean_h: Tensor
    var_h: Tensor
    mean_c: Tensor
    var_c: Tensor
    step: Tensor


class BatchNormLSTMCell(Cell):
    """An LSTM with recurrent batch normalisation.

    Rows see each other through the statistics, so all rows must be at one step: resets and lengths concern the whole
    batch. Statistics of steps beyond those seen in training are the last step's.

    Args:
        input_size: size of the input.
        hidden_size: size H of `h` and `c`.
        max_length: steps that have running statistics.
        gamma: the scales γ at the start; 0.1 keeps tanh away from saturation.
        device, dtype: of the parameters.

    Parameters: `weight_ih` (4H, I), `weight_hh` (4H, H), gates i, f, g, o, with orthogonal blocks at the start; `bias`
    (4H), 1 for the forget gate at the start, else 0; scales `gamma_x`, `gamma_h` (4H), `gamma_c` (H), shift `beta_c`.

    Raises:
        ValueError: sizes below 1; in training, a batch of one, which has no variance.

    Source: equations 6 to 8 of Cooijmans et al.; section 4.3 of the Zoneout paper.

    >>> from mechanisms.recurrent.module import Recurrent
    >>> from mechanisms.recurrent.zoneout import Zoneout
    >>> network = Recurrent(lambda size: Zoneout(BatchNormLSTMCell(size, 4), 0.15), 3)
    >>> output, state = network(torch.randn(5, 2, 3))
    >>> output.shape
    torch.Size([5, 2, 4])
    """

    zoneable = ("h", "c")
    rows_independent = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        max_length: int = 1000,
        gamma: float | int = 0.1,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("max_length", max_length)):
            check_number(size, name, at_least=1)
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, hidden_size
        self.max_length, self.gamma = max_length, check_number(gamma, "gamma")
        like = {"device": device, "dtype": dtype}
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden_size, input_size, **like))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden_size, hidden_size, **like))
        self.bias, self.gamma_x, self.gamma_h = (nn.Parameter(torch.empty(4 * hidden_size, **like)) for _ in range(3))
        self.gamma_c, self.beta_c = (nn.Parameter(torch.empty(hidden_size, **like)) for _ in range(2))
        for name, size in (("x", 4 * hidden_size), ("h", 4 * hidden_size), ("c", hidden_size)):
            self.register_buffer(f"running_mean_{name}", torch.zeros(max_length, size, **like))
            self.register_buffer(f"running_var_{name}", torch.ones(max_length, size, **like))
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.int64, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights orthogonal by blocks, scales `gamma`, the forget gate's bias 1, everything else 0."""
        fill_with_orthogonal_blocks(self.weight_ih, self.hidden_size)
        fill_with_orthogonal_blocks(self.weight_hh, self.hidden_size)
        for scale in (self.gamma_x, self.gamma_h, self.gamma_c):
            nn.init.constant_(scale, self.gamma)
        nn.init.zeros_(self.beta_c)
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.bias[self.hidden_size : 2 * self.hidden_size] = 1

    def initial_state(
        self, batch_size: int, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> BatchNormLSTMState:
        """Zeros, at step 0."""
        zeros = self.weight_hh.new_zeros(batch_size, self.hidden_size, device=device, dtype=dtype)
        return BatchNormLSTMState(zeros, zeros, torch.zeros(batch_size, dtype=torch.int64, device=zeros.device))

    def project(self, inputs: Tensor, noise: None = None) -> Tensor:
        """`x W_ih`, not yet normalised."""
        return F.linear(inputs, self.weight_ih)

    def step(
        self, projected: Tensor, state: BatchNormLSTMState, noise: None = None, *, need_info: bool = False
    ) -> tuple[Tensor, BatchNormLSTMState] | tuple[Tensor, BatchNormLSTMState, BatchStatistics]:
        """One step, with the batch's statistics in training and the running ones of `state.step` in evaluation."""
        if self.training and projected.shape[0] < 2:
            raise ValueError(
                f"a batch of {projected.shape[0]} has no variance over rows to normalise by; train with at least two "
                "rows, or call eval()"
            )
        h, c = state.h, state.c
        from_x, mean_x, var_x = self._normalised("x", projected.to(c.dtype), state.step)
        from_h, mean_h, var_h = self._normalised("h", F.linear(h, self.weight_hh).to(c.dtype), state.step)
        i, f, g, o = torch.addcmul(torch.addcmul(self.bias, self.gamma_x, from_x), self.gamma_h, from_h).chunk(4, 1)
        c = torch.addcmul(torch.sigmoid(i) * torch.tanh(g), torch.sigmoid(f), c)
        inside, mean_c, var_c = self._normalised("c", c, state.step)
        h = torch.sigmoid(o) * torch.tanh(torch.addcmul(self.beta_c, self.gamma_c, inside))
        new = BatchNormLSTMState(h, c, state.step + 1)
        if not need_info:
            return h, new
        return h, new, BatchStatistics(mean_x, var_x, mean_h, var_h, mean_c, var_c, state.step)

    def _normalised(self, name: str, values: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.training:
            # A constant column (the first pixels of every digit) has variance 0 and becomes 0: that is right.
            var, mean = torch.var_mean(values, 0, correction=0)
        else:
            at = step.clamp(max=(self.steps_seen - 1).clamp(min=0))
            mean, var = getattr(self, f"running_mean_{name}")[at], getattr(self, f"running_var_{name}")[at]
        return (values - mean) * torch.rsqrt(var + EPSILON), mean, var

    @torch.no_grad()
    def update_statistics(self, info: BatchStatistics) -> None:
        """Move the running statistics of the steps of a training scan by 1 % towards the batch's.

        Args:
            info: what the scan recorded, leaves (time, ...).
        """
        at = info.step[:, 0]
        inside = at < self.max_length
        at = at[inside]
        for name in "xhc":
            for kind in ("mean", "var"):
                running = getattr(self, f"running_{kind}_{name}")
                batch = getattr(info, f"{kind}_{name}")[inside].to(running.dtype)
                running[at] = torch.lerp(running[at], batch, MOMENTUM)
        if at.numel():
            self.steps_seen.copy_(torch.maximum(self.steps_seen, at.max() + 1))
