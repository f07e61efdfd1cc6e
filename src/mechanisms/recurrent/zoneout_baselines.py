"""What Zoneout is compared with: recurrent dropout, the norm stabiliser, weight noise.

    recurrent dropout:  c_t = f c_{t-1} + d_t i g,  d_t ~ Bernoulli(1 - p);  in evaluation 1 - p in place of d_t
    norm stabiliser:    β mean over rows and steps of (||h_t|| - ||h_{t-1}||)²
    weight noise:       Gaussian noise on the weights, fresh for every batch

Stochastic depth is Zoneout with `mask="layer"`.

Semeniuta, Severyn, Barth: "Recurrent Dropout without Memory Loss", 2016; Krueger, Memisevic: "Regularizing RNNs by
Stabilizing Activations", 2015.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechanisms._base.validation import check_number
from mechanisms.recurrent.cells import LSTMCell, LSTMState
from mechanisms.recurrent.protocol import Device
from mechanisms.recurrent.zoneout import check_rate, draw_masks


class RecurrentDropoutLSTMCell(LSTMCell):
    """An LSTM that drops what it would write into its memory, per step, row and unit; nothing is rescaled.

    Args:
        input_size, hidden_size, bias, learn_initial_state, device, dtype: as for `LSTMCell`.
        rate: probability p of dropping; in `eval()` what is written is multiplied by 1 - p.

    Raises:
        ValueError: the rate is outside [0, 1].

    Source: Semeniuta, Severyn and Barth, 2016; the Zoneout paper's strongest baseline.

    >>> output, state = RecurrentDropoutLSTMCell(3, 4, rate=1.0)(torch.ones(2, 3))
    >>> bool((state.c == 0).all())
    True
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        rate: float | int = 0.25,
        learn_initial_state: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, bias, learn_initial_state=learn_initial_state, device=device, dtype=dtype
        )
        self.rate = check_rate(rate, "dropout rate")

    def noise(
        self,
        steps: int,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor | None:
        """Which writes are dropped (steps, batch, hidden); `None` in evaluation and at rates 0 and 1."""
        if not self.training or self.rate in (0, 1):
            return None
        place = self.weight_hh.device if device is None else device
        return draw_masks((steps, batch_size, self.hidden_size), self.rate, generator, place)

    def project(self, inputs: Float[Tensor, "*leading size"], noise: Tensor | None = None) -> Tensor:
        """As in `LSTMCell`; the noise plays no part here."""
        return super().project(inputs)

    def step(
        self, projected: Tensor, state: LSTMState, noise: Tensor | None = None, *, need_info: bool = False
    ) -> tuple[Tensor, LSTMState]:
        """One step; without noise, what is written is multiplied by 1 - p."""
        gates = torch.addmm(projected, state.h, self.weight_hh.t()).to(state.c.dtype)
        i, f, g, o = gates.chunk(4, 1)
        written = torch.sigmoid(i) * torch.tanh(g)
        written = written * (1 - self.rate) if noise is None else written * ~noise
        c = torch.addcmul(written, torch.sigmoid(f), state.c)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, LSTMState(h, c)

    def _whole_step(self, input: Tensor, state: LSTMState, noise: Tensor | None) -> tuple[Tensor, LSTMState]:
        return self.step(self.project(input), state, noise)

    def sequence(self, inputs: Tensor, state: LSTMState, noise: Tensor | None) -> Any:
        """At rate 0 torch's kernel; otherwise there is none."""
        return super().sequence(inputs, state, None) if self.rate == 0 else NotImplemented


def norm_stabilizer(states: Float[Tensor, "time batch hidden"], weight: float | int = 50.0) -> Float[Tensor, ""]:
    """A penalty on hidden states whose norms change from step to step; add it to the loss.

    Args:
        states: hidden states (time, batch, hidden), at least two steps.
        weight: β; 50 in Zoneout's released code.

    Raises:
        ValueError: there is a single step.

    Source: Krueger and Memisevic, 2015, equation 1.

    >>> norm_stabilizer(torch.tensor([[[3.0, 4.0]], [[0.0, 4.0]]]), weight=2)
    tensor(2.)
    """
    if states.shape[0] < 2:
        raise ValueError(f"norm_stabilizer compares neighbouring steps; the states have {states.shape[0]} of them")
    # The least normal number keeps the root's derivative finite where a state is zero.
    norms = states.square().sum(-1).clamp_min(torch.finfo(states.dtype).tiny).sqrt()
    return weight * norms.diff(dim=0).square().mean()


@contextmanager
def weight_noise(
    module: nn.Module, std: float | int = 0.075, *, generator: torch.Generator | None = None
) -> Generator[None]:
    """Gaussian noise on a module's weights inside the block, which must hold the forward and the backward pass.

    Biases (one-dimensional parameters) get none. Behind the block the weights are what they were, and their gradients
    those at the noisy weights. Call the optimiser's step behind the block.

    Args:
        module: its parameters of two and more dimensions become noisy.
        std: standard deviation; 0.075 in the paper.
        generator: where the noise comes from, on the parameters' device; torch's own by default.

    Raises:
        ValueError: `std` is negative.

    Source: section 4.1 of the Zoneout paper; Graves, 2011.

    >>> network = nn.LSTM(3, 4)
    >>> with weight_noise(network):
    ...     network(torch.ones(5, 2, 3))[0].sum().backward()
    """
    std = check_number(std, "std", at_least=0)
    weights = [parameter for parameter in module.parameters() if parameter.dim() > 1]
    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            drawn = torch.randn(weight.shape, generator=generator, device=weight.device, dtype=weight.dtype)
            weight.add_(drawn, alpha=std)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, clean in zip(weights, kept, strict=True):
                weight.copy_(clean)
