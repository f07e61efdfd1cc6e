"""A cell with a latent: one Gaussian vector per step enters the recurrence and shapes all that follows.

    prior      p(z_t | h_{t-1})       = N(μ^p, e^{l^p}),  [μ^p, l^p] = MLP_p(h_{t-1})
    posterior  q(z_t | h_{t-1}, b_t)  = N(μ^q, e^{l^q}),  [μ^q, l^q] = MLP_q([h_{t-1}; b_t])
    z_t = μ + e^{l/2} ε_t,   (h_t, c_t) = cell([G z_t ; e_t], (h_{t-1}, c_{t-1}))

`StochasticCell` takes any cell of the protocol and is one. With the inputs (e_t, b_t) the latent comes from the
posterior, with (e_t,) alone from the prior. Densities, costs and heads have no place in a step: they are computed from
the outputs of all steps at once, as `z_forcing` does.

Goyal, Sordoni, Côté, Ke, Bengio: "Z-Forcing: Training Stochastic Recurrent Networks", NIPS 2017, arXiv 1711.05411.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mechanisms._base.validation import check_number
from mechanisms.recurrent._perceptron import Perceptron, gaussian_sample, in_type
from mechanisms.recurrent._stochastic_kernel import stochastic_lstm
from mechanisms.recurrent._trees import Tree, first_tensor
from mechanisms.recurrent.cells import GRUCell, LSTMCell, LSTMState, RNNCell
from mechanisms.recurrent.conditional_norm import ConditionalNormLSTMCell
from mechanisms.recurrent.protocol import Cell, Device, Noise, State, project
from mechanisms.recurrent.zoneout import Zoneout

AFFINE = (LSTMCell, GRUCell, RNNCell)  # cells that see their input through one product, which may be split


class StochasticOutput(NamedTuple):
    """What one step of a `StochasticCell` gives; with time in front, what a scan gives.

    Attributes:
        h: output of the cell inside (batch, output).
        z: the latent (batch, Z).
        posterior: mean and log-variance (batch, 2Z) of what z was drawn from.
        prior: mean and log-variance (batch, 2Z) that the state gives alone; the posterior too, where there is no b.
        before: the vector of the state before the step (batch, H), which prior and posterior have read.

    >>> cell = StochasticCell(LSTMCell(3 + 5, 4), 2, mlp_size=3)
    >>> output, state = cell((torch.ones(6, 5), torch.ones(6, 4)))
    >>> output.z.shape, output.prior.shape
    (torch.Size([6, 2]), torch.Size([6, 4]))
    """

    h: Tensor
    z: Tensor
    posterior: Tensor
    prior: Tensor
    before: Tensor


class StochasticProjection(NamedTuple):
    """What is known of a step before the state: the inner cell's part, and b's part of the posterior's first layer.

    >>> StochasticProjection(inner=torch.zeros(2, 16), context=None).context
    """

    inner: Tree
    context: Tensor | None


class StochasticCell(Cell):
    """A latent around a cell.

    Whole sequences of an `LSTMCell` run in one call with hand-written derivatives; with any other cell, and where
    gradients of gradients are asked for, the steps are taken one by one.

    Args:
        cell: any cell of the protocol that takes one tensor, the product G z (mlp_size) followed by the embedding e; or
            a `ConditionalNormLSTMCell`, which takes (e, z).
        latent_size: size Z of the latent.
        context_size: size of b; that of the cell's hidden vector by default.
        mlp_size: width M of the networks, and size of G z; the hidden size by default.

    Raises:
        TypeError: the cell takes several inputs and is no `ConditionalNormLSTMCell`.
        ValueError: sizes below 1, or a cell whose input leaves no room for e beside G z.

    Source: section 3 of the paper.

    >>> cell = StochasticCell(LSTMCell(3 + 5, 4), latent_size=2, mlp_size=3)
    >>> output, state = cell((torch.ones(6, 5),))  # from the prior
    >>> output.h.shape, bool((output.posterior == output.prior).all())
    (torch.Size([6, 4]), True)
    """

    noise_in_eval = True

    def __init__(
        self, cell: Cell, latent_size: int, *, context_size: int | None = None, mlp_size: int | None = None
    ) -> None:
        super().__init__()
        self.latent_size = int(check_number(latent_size, "latent_size", at_least=1))
        hidden = cell.hidden(cell.initial_state(1)).shape[-1]
        self.mlp_size = int(check_number(hidden if mlp_size is None else mlp_size, "mlp_size", at_least=1))
        context = int(check_number(hidden if context_size is None else context_size, "context_size", at_least=1))
        self.cell, self.output_size = cell, cell.output_size
        self.growing, self.rows_independent = cell.growing, cell.rows_independent
        self.exact_gradient, self.constant_leaves = cell.exact_gradient, cell.constant_leaves
        self.twice_differentiable = cell.twice_differentiable
        base = cell.cell if type(cell) is Zoneout else cell
        if isinstance(base, ConditionalNormLSTMCell):
            self.kind, embedding, own = "condition", base.weight_ih.shape[1], base.condition.first.in_features
            if own != self.latent_size:
                raise ValueError(f"the cell takes a condition of size {own}; latent_size is {self.latent_size}")
        elif not isinstance(cell.input_size, int):
            raise TypeError(
                f"{type(cell).__name__} takes several inputs {cell.input_size}; a cell with one is expected, which "
                "reads G z followed by e"
            )
        else:
            self.kind = "affine" if type(base) in AFFINE else "any"
            embedding = cell.input_size - self.mlp_size
            if embedding < 1:
                raise ValueError(
                    f"the cell has input_size={cell.input_size}, of which G z takes mlp_size={self.mlp_size}: nothing "
                    "is left for the embedding; make the cell with input_size = mlp_size + embedding size"
                )
            self.latent = nn.Linear(self.latent_size, self.mlp_size)
        self.input_size = (embedding, context)
        self.prior = Perceptron(hidden, self.mlp_size, 2 * self.latent_size)
        self.posterior = Perceptron(hidden + context, self.mlp_size, 2 * self.latent_size)
        self.hidden_size = hidden

    def initial_state(self, batch_size: int, *, device: Device = None, dtype: torch.dtype | None = None) -> State:
        """The inner cell's."""
        return self.cell.initial_state(batch_size, device=device, dtype=dtype)

    def noise(
        self,
        steps: int,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> Noise:
        """Standard normal numbers (steps, batch, Z), in evaluation too, and the inner cell's noise."""
        like = self.prior.first.weight
        own = torch.randn(
            steps,
            batch_size,
            self.latent_size,
            generator=generator,
            device=like.device if device is None else device,
            dtype=dtype or like.dtype,
        )
        return Noise(own, self.cell.noise(steps, batch_size, generator=generator, device=device, dtype=dtype))

    def project(self, inputs: tuple[Tensor, ...], noise: Noise | None = None) -> StochasticProjection:
        """The inner cell's product with e, and b's part of the posterior's first layer."""
        embedded = inputs[0]
        inner: Tree = embedded
        if self.kind == "affine":
            own, rest = self._split()
            bias = F.linear(self.latent.bias, own)
            given = self._own_bias()
            inner = F.linear(embedded, rest, bias if given is None else bias + given)
        elif self.kind == "condition":
            inner = project(self.cell, (embedded,), None if noise is None else noise.inner)
        if len(inputs) < 2:
            return StochasticProjection(inner, None)
        _, weight = self.posterior.split(self.hidden_size)
        return StochasticProjection(inner, F.linear(inputs[1], weight, self.posterior.first.bias))

    def step(
        self, projected: StochasticProjection, state: State, noise: Noise | None = None, *, need_info: bool = False
    ) -> tuple[Any, ...]:
        """One step; without noise the latent is the mean."""
        h = self.cell.hidden(state)
        own, inner = (None, None) if noise is None else noise
        prior = in_type(self.prior(h), h)
        posterior = prior
        if projected.context is not None:
            weight, _ = self.posterior.split(self.hidden_size)
            posterior = in_type(self.posterior.rest(projected.context + F.linear(h, weight)), h)
        z = gaussian_sample(posterior, own)
        output, new, *info = self.advance(projected, z, state, inner, need_info=need_info)
        return StochasticOutput(first_tensor(output), z, posterior, prior, h), new, *info

    def advance(
        self, projected: StochasticProjection, z: Tensor, state: State, noise: Tree = None, *, need_info: bool = False
    ) -> tuple[Any, ...]:
        """One step of the inner cell with a latent that is given: its output and state, and info if that is asked for.

        >>> cell = StochasticCell(LSTMCell(3 + 5, 4), latent_size=2, mlp_size=3)
        >>> projected = cell.project((torch.ones(6, 5),))
        >>> output, state = cell.advance(projected, torch.zeros(6, 2), cell.initial_state(6))
        >>> output.shape
        torch.Size([6, 4])
        """
        inner = projected.inner
        if self.kind == "affine":
            inner = inner + F.linear(F.linear(z, self.latent.weight), self._split()[0])
        elif self.kind == "condition":
            inner = inner._replace(condition=z)
        else:
            inner = project(self.cell, torch.cat([in_type(self.latent(z), inner), inner], -1), noise)
        if need_info:
            return self.cell.step(inner, state, noise, need_info=True)
        return self.cell.step(inner, state, noise)

    def sequence(
        self, inputs: tuple[Tensor, ...], state: State, noise: Noise | None, *, lengths: list[int] | None = None
    ) -> Any:
        """All steps of an LSTM in one call; `lengths` masks what lies beyond."""
        cell = self.cell
        if type(cell) is not LSTMCell or torch.compiler.is_compiling():
            return NotImplemented
        weight = cell.weight_hh
        if torch.is_autocast_enabled(weight.device.type):
            # As torch's kernels do here: in and out in the parameters' type.
            with torch.autocast(weight.device.type, enabled=False):
                return self.sequence(tuple(part.to(weight.dtype) for part in inputs), state, noise, lengths=lengths)
        steps, rows = inputs[0].shape[:2]
        own = inputs[0].new_zeros(steps, rows, self.latent_size) if noise is None else noise.own
        given = (*inputs, own, *state)
        if own.requires_grad or any(part.dtype != weight.dtype or part.device != weight.device for part in given):
            return NotImplemented
        projected = self.project(inputs)
        network, hidden = self.posterior, projected.context
        if hidden is None:
            network, hidden = self.prior, self.prior.first.bias.expand(steps, rows, -1)
        from_h, _ = network.split(self.hidden_size)
        w_z = (self._split()[0] @ self.latent.weight).mT
        h, c, z, posterior = stochastic_lstm(
            torch.cat([projected.inner, hidden], -1),
            state.h,
            state.c,
            torch.cat([weight, from_h]).mT,
            own,
            network.second.weight.mT,
            network.second.bias,
            w_z,
        )
        before = torch.cat([state.h.unsqueeze(0), h[:-1]])
        # The prior plays no part in the recurrence when there is a posterior: all steps at once.
        prior = posterior if projected.context is None else self.prior(before)
        output = StochasticOutput(h, z, posterior, prior, before)
        if lengths is None:
            return output, LSTMState(h[-1], c[-1])
        ends = torch.tensor(lengths, device=h.device)
        active = (torch.arange(steps, device=h.device).unsqueeze(1) < ends).unsqueeze(-1)
        last = LSTMState(*(_last(part, first, ends) for part, first in ((h, state.h), (c, state.c))))
        return StochasticOutput(*(torch.where(active, part, part.new_zeros(())) for part in output)), last

    @property
    def sequence_takes_lengths(self) -> bool:
        """Whether `sequence` may be given lengths: always."""
        return True

    def hidden(self, state: State) -> Tensor:
        """The inner cell's."""
        return self.cell.hidden(state)

    def with_hidden(self, state: State, h: Tensor) -> State:
        """The inner cell's."""
        return self.cell.with_hidden(state, h)

    def reset(self, state: State, done: Tensor) -> State:
        """The inner cell's."""
        return self.cell.reset(state, done)

    def freeze(self, active: Tensor, new: State, old: State) -> State:
        """The inner cell's."""
        return self.cell.freeze(active, new, old)

    def update_statistics(self, info: Tree) -> None:
        """The inner cell's."""
        self.cell.update_statistics(info)

    def _split(self) -> tuple[Tensor, Tensor]:
        """The input weights' columns for G z, and for e."""
        weight = self._inner().weight_ih
        own, rest = weight.split([self.mlp_size, weight.shape[1] - self.mlp_size], 1)
        return own, rest

    def _own_bias(self) -> Tensor | None:
        """What the inner cell adds to its product with the input."""
        base = self._inner()
        return base.bias_ih if isinstance(base, GRUCell) else base._both_biases()

    def _inner(self) -> LSTMCell | GRUCell | RNNCell:
        base = self.cell.cell if isinstance(self.cell, Zoneout) else self.cell
        assert isinstance(base, AFFINE)
        return base

    def extra_repr(self) -> str:
        """The sizes, as `print` shows them."""
        return f"latent_size={self.latent_size}, mlp_size={self.mlp_size}"


def _last(values: Tensor, first: Tensor, ends: Tensor) -> Tensor:
    """Of (T, B, H) each row's value at its end, the initial one for rows of length 0."""
    found = values.gather(0, (ends - 1).clamp(min=0).view(1, -1, 1).expand(1, -1, values.shape[-1])).squeeze(0)
    return torch.where((ends > 0).unsqueeze(1), found, first)
