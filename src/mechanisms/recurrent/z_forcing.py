"""Z-Forcing: a recurrent generative model whose latents are kept in use by an auxiliary cost.

An autoregressive network with a latent per step (`StochasticCell`) is trained on a lower bound of the likelihood. The
approximate posterior sees the future through a second network that runs backward over the targets; its states b_t are
also what the latent alone must reconstruct: a reason to carry information that does not depend on the task.

    L = sum_t [-log p(y_t | h_t) + w_KL KL(q_t || p_t) + α (-log p_ξ(b_t | z_t)) + β (-log p(x_t | b_t))]
    p_ξ(b_t | z_t) = N(tanh(m), e^v),  [m, v] = MLP_a(z_t)

The gradient is stopped at b_t where it is a target. To generate, the backward network and the auxiliary head are not
needed. Targets are the inputs one step later, time first.

Goyal, Sordoni, Côté, Ke, Bengio: "Z-Forcing: Training Stochastic Recurrent Networks", NIPS 2017, arXiv 1711.05411.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mechanisms._base.validation import check_choice, check_number
from mechanisms.recurrent import _sequence_doors as doors
from mechanisms.recurrent._driver import transformed
from mechanisms.recurrent._perceptron import Perceptron
from mechanisms.recurrent._stochastic_kernel import lstm
from mechanisms.recurrent._z_forcing_generation import decode_between, generate
from mechanisms.recurrent.cells import LSTMCell
from mechanisms.recurrent.conditional_norm import ConditionalNormLSTMCell
from mechanisms.recurrent.densities import Likelihood, gaussian_kl, gaussian_nll
from mechanisms.recurrent.protocol import Cell, Noise
from mechanisms.recurrent.scan import scan
from mechanisms.recurrent.stochastic import StochasticCell, StochasticOutput

AUXILIARIES = ("gaussian", "l2")


class ZForcingOutput(NamedTuple):
    """Costs and latents of a batch; costs are sums over the valid steps of each sequence, in nats, (batch,).

    Attributes:
        nll: -log p(y_t | h_t).
        kl: KL(q_t || p_t).
        auxiliary_nll: -log p_ξ(b_t | z_t), or the squared distance; zeros without an auxiliary cost.
        backward_nll: -log p(x_t | b_t).
        z: the latents (time, batch, Z).
        prediction: the likelihood's parameters (time, batch, P).
        steps: valid steps of each sequence.

    >>> model = ZForcing(3, 8, 2)
    >>> frames = torch.randn(6, 4, 3)
    >>> output = model(frames[:-1], frames[1:])
    >>> output.kl.shape, output.z.shape
    (torch.Size([4]), torch.Size([5, 4, 2]))
    """

    nll: Tensor
    kl: Tensor
    auxiliary_nll: Tensor
    backward_nll: Tensor
    z: Tensor
    prediction: Tensor
    steps: Tensor


class ZForcing(nn.Module):
    """A recurrent generative model with a latent per step, its posterior, and the auxiliary cost.

    Args:
        input_size: size D of a frame; for tokens, how many there are (a start symbol included).
        hidden_size: size H of both networks.
        latent_size: size Z of the latent.
        embedding: maps inputs and targets to what the networks read, (..., D) or integers (...) to (..., E); by
            default a linear layer, or a table for tokens, with E = M.
        mlp_size: width M of the small networks; half of H by default.
        likelihood: "gaussian", "gaussian_mixture", "bernoulli" (targets in [0, 1]) or "categorical" (integers).
        num_classes: how many tokens may be predicted, the first of the table; all by default.
        num_components: components of a mixture.
        make_cell: makes the forward cell for an input size (M + E): any cell of the protocol; an `LSTMCell` with
            orthogonal recurrent weights and biases 0 by default.
        auxiliary: "gaussian", "l2" (a squared distance) or `None`.
        auxiliary_sees_hidden: whether the auxiliary network reads h_{t-1} too, as the released code's does by default;
            the paper's reads z alone.
        condition: "input" adds the latent to the cell's input, "layer_norm" lets it set gains and biases of the
            recurrent layer norm (`ConditionalNormLSTMCell`).
        logvar_range: where log-variances of outputs are clamped.
        batch_first: whether sequences are (batch, time, ...).

    Raises:
        ValueError: sizes below 1, unknown names, or `make_cell` together with "layer_norm", which has its own cell.

    Source: sections 3 and 4 of the paper; sizes of its speech models: H 1024 or 2048, E = M = H / 2, Z 256.

    >>> model = ZForcing(3, 8, 2)
    >>> frames = torch.randn(6, 4, 3)
    >>> output = model(frames[:-1], frames[1:])
    >>> loss = model.loss(output, kl_weight=0.5, auxiliary_weight=0.0005)
    >>> loss.backward()
    >>> model.elbo(frames[:-1], frames[1:], num_samples=10).shape, model.sample(7, batch_size=2).shape
    (torch.Size([4]), torch.Size([7, 2, 3]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        latent_size: int,
        *,
        embedding: nn.Module | None = None,
        mlp_size: int | None = None,
        likelihood: str = "gaussian",
        num_classes: int | None = None,
        num_components: int = 20,
        make_cell: Callable[[int], Cell] | None = None,
        auxiliary: str | None = "gaussian",
        auxiliary_sees_hidden: bool = False,
        condition: str = "input",
        logvar_range: tuple[float | int, float | int] = (-8.0, 8.0),
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "latent_size": latent_size}
        for name, size in sizes.items():
            check_number(size, name, at_least=1)
        width = max(1, hidden_size // 2) if mlp_size is None else int(check_number(mlp_size, "mlp_size", at_least=1))
        if auxiliary is not None:
            check_choice(auxiliary, "auxiliary", AUXILIARIES)
        check_choice(condition, "condition", ("input", "layer_norm"))
        if condition == "layer_norm" and make_cell is not None:
            raise ValueError("condition='layer_norm' has a cell of its own; leave make_cell out")
        self.input_size, self.hidden_size, self.latent_size = input_size, hidden_size, latent_size
        self.auxiliary, self.auxiliary_sees_hidden, self.batch_first = auxiliary, auxiliary_sees_hidden, batch_first
        self.tokens = likelihood == "categorical"
        if num_classes is not None and not self.tokens:
            raise ValueError(f"num_classes={num_classes} with likelihood={likelihood!r}: only 'categorical' has them")
        classes = input_size if num_classes is None else int(check_number(num_classes, "num_classes", at_least=1))
        if classes > input_size:
            raise ValueError(f"num_classes={classes} of {input_size} tokens: what is predicted is also read")
        options: dict[str, Any] = {"num_components": num_components, "logvar_range": logvar_range}
        self.likelihood = Likelihood(likelihood, classes, **options)
        self.backward_likelihood = Likelihood(likelihood, input_size, **options)
        if embedding is None:
            embedding = nn.Embedding(input_size, width) if self.tokens else nn.Linear(input_size, width)
        self.embedding = embedding
        size = doors.embedding_size(embedding, None if self.tokens else input_size)
        if condition == "layer_norm":
            cell: Cell = ConditionalNormLSTMCell((size, latent_size), hidden_size, mlp_size=width)
        elif make_cell is None:
            cell = _orthogonal(LSTMCell(width + size, hidden_size), biases=False)
        else:
            cell = make_cell(width + size)
        self.cell = StochasticCell(cell, latent_size, context_size=hidden_size, mlp_size=width)
        self.backward_cell = _orthogonal(LSTMCell(size, hidden_size), biases=True)
        self.output = nn.Linear(cell.output_size, self.likelihood.num_parameters)
        self.backward_output = nn.Linear(hidden_size, self.backward_likelihood.num_parameters)
        self.reconstruction = None
        if auxiliary is not None:
            read = latent_size + (self.cell.hidden_size if auxiliary_sees_hidden else 0)
            self.reconstruction = Perceptron(read, width, (2 if auxiliary == "gaussian" else 1) * hidden_size)

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        lengths: Any = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ZForcingOutput:
        """Costs of a batch, with one sample of the posterior.

        Args:
            inputs: x (time, batch, D), or integers (time, batch): the targets one step before.
            targets: y, of the same shape.
            lengths: valid steps of each sequence (batch,); rows of length 0 cost nothing and count for nothing.
            noise: standard normal numbers (time, batch, Z) in place of a draw.
            generator: where the draw comes from, on the inputs' device; torch's own by default.

        Raises:
            TypeError: integers where frames are expected, or the reverse.
            ValueError: shapes, lengths, tokens out of range, Bernoulli targets outside [0, 1].
        """
        x, y, valid = self._open(inputs, targets, lengths)
        found, b, _ = self._infer(x, y, valid, self._noise(x, noise, generator))
        mask = doors.mask(valid, x)
        prediction = doors.full(self.output(found.h))
        nll = self.likelihood.nll(prediction, y)
        kl = gaussian_kl(*doors.full(found.posterior).chunk(2, -1), *doors.full(found.prior).chunk(2, -1))
        backward_nll = self.backward_likelihood.nll(doors.full(self.backward_output(b)), x)
        auxiliary_nll = torch.zeros_like(nll)
        if self.reconstruction is not None:
            auxiliary_nll = self._reconstruct(self.reconstruction, found, b)
        nll, kl, auxiliary_nll, backward_nll = (
            doors.total(cost, mask) for cost in (nll, kl, auxiliary_nll, backward_nll)
        )
        z, prediction = self._out(found.z), self._out(prediction)
        return ZForcingOutput(nll, kl, auxiliary_nll, backward_nll, z, prediction, doors.steps(valid, x))

    def loss(
        self,
        output: ZForcingOutput,
        *,
        kl_weight: float | int = 1.0,
        auxiliary_weight: float | int = 0.0,
        backward_weight: float | int = 0.0,
    ) -> Tensor:
        """What is minimised: the weighted costs per sequence, averaged over the sequences that are not empty.

        Looking whether it is finite costs one synchronisation on a GPU.

        Args:
            output: what the forward pass gave.
            kl_weight: w_KL; `LinearSchedule` raises it slowly.
            auxiliary_weight: α. The cost is a sum over H, so that α must be the smaller the larger H: 0.005 and 0.0025
                at the sizes of speech.
            backward_weight: β; with 0 the backward network learns through the posterior alone.

        Raises:
            ValueError: a weight is negative, or there is no auxiliary cost to weigh.
            FloatingPointError: the loss is not finite; the message names the cost.
        """
        weights = {"kl": kl_weight, "auxiliary_nll": auxiliary_weight, "backward_nll": backward_weight}
        for name, weight in weights.items():
            check_number(weight, f"the weight of {name}", at_least=0)
        if auxiliary_weight and self.reconstruction is None:
            raise ValueError(f"auxiliary_weight={auxiliary_weight}, but the model has none: auxiliary=None")
        total = output.nll
        for name, weight in weights.items():
            if weight:
                total = total + weight * getattr(output, name)
        loss = total.sum() / (output.steps > 0).sum()
        if doors.eager() and not bool(torch.isfinite(loss)):
            bad = [
                name
                for name in ("nll", *(name for name, weight in weights.items() if weight))
                if not bool(torch.isfinite(getattr(output, name)).all())
            ]
            raise FloatingPointError(
                f"the loss is {float(loss.detach())}: not finite in {', '.join(bad) or 'the sum'}; clip gradients, "
                "lower the learning rate, or look at the data"
            )
        return loss

    def elbo(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        lengths: Any = None,
        num_samples: int = 1,
        chunk: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A lower bound of log p(y) for each sequence, in nats (batch,).

        With one sample, sum_t [log p(y_t | h_t) - KL_t]; with K > 1 the importance-weighted bound
        log (1/K) sum_k prod_t p(y_t | h_t) p(z_t | h_{t-1}) / q(z_t | h_{t-1}, b_t), which is the tighter the more
        samples. The samples are rows of one batch.

        Args:
            inputs, targets, lengths, generator: as for the forward pass.
            num_samples: K.
            chunk: cut sequences into so many steps and begin anew in each, as the released evaluation does with 40;
                whole sequences by default.
            noise: standard normal numbers (time, K * batch, Z) in place of a draw, sample by sample; not with `chunk`.

        Raises:
            ValueError: fewer than one sample or step, beside what the forward pass raises.
        """
        count = int(check_number(num_samples, "num_samples", at_least=1))
        x, y, valid = self._open(inputs, targets, lengths)
        rows = x.shape[1]
        if chunk is not None:
            if noise is not None:
                raise ValueError("noise is for whole sequences; leave chunk out")
            x, y, valid = doors.chunks(x, y, valid, int(check_number(chunk, "chunk", at_least=1)))
        many = x.shape[1]
        b = self._recognise(y, valid)
        x, y, b = (doors.repeat(part, count) for part in (x, y, b))
        valid = None if valid is None else valid * count
        found, _, _ = self._infer(x, y, valid, self._noise(x, noise, generator), b)
        log_ratio = -self.likelihood.nll(doors.full(self.output(found.h)), y)
        q, p = (doors.full(part).chunk(2, -1) for part in (found.posterior, found.prior))
        if count == 1:
            log_ratio = log_ratio - gaussian_kl(*q, *p)
        else:
            z = doors.full(found.z)
            log_ratio = log_ratio - gaussian_nll(z, *p) + gaussian_nll(z, *q)
        log_weight = doors.total(log_ratio, doors.mask(valid, x)).view(count, many // rows, rows).sum(1)
        return torch.logsumexp(log_weight, 0) - math.log(count)

    def infer(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        lengths: Any = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The posterior of each step: mean, log-variance and a sample of it (time, batch, Z each), zeros in padding.

        Args:
            inputs, targets, lengths, noise, generator: as for the forward pass; with a noise of zeros the sample, and
                what follows from it, is the mean.
        """
        x, y, valid = self._open(inputs, targets, lengths)
        found, _, _ = self._infer(x, y, valid, self._noise(x, noise, generator))
        mean, logvar = found.posterior.chunk(2, -1)
        return self._out(mean), self._out(logvar), self._out(found.z)

    @torch.no_grad()
    def sample(
        self,
        num_steps: int,
        batch_size: int = 1,
        *,
        prefix: Tensor | None = None,
        temperature: float | int = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """New sequences: latents from the prior, elements from the output, fed back; (num_steps, batch, ...).

        Args:
            num_steps: how many elements.
            batch_size: how many sequences; that of the prefix, where there is one.
            prefix: what went before (time, batch, ...); the latents of its steps come from the posterior. By default
                one zero frame, or the last token of the table where it is none of `num_classes`, else token 0.
            temperature: scales the deviations of latents and outputs, divides logits; 0 is deterministic.
            generator: where the draws come from.

        Raises:
            ValueError: no steps, a negative temperature, an empty prefix.
        """
        return self._out(generate(self, num_steps, batch_size, prefix, temperature, generator))

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, steps: int, *, generator: torch.Generator | None = None) -> Tensor:
        """What lies between two sequences: decodes latents between their posterior means, (steps, time, ...).

        Args:
            a, b: sequences (time + 1, ...) of one length, without a batch; their first elements are the first inputs,
                mixed like the latents (for tokens, the nearer one's).
            steps: how many sequences, the first with the latents of `a`, the last with those of `b`.
            generator: draws the elements; by default the most likely is taken.

        Raises:
            ValueError: fewer than two steps, or sequences of different shapes.
        """
        return decode_between(self, a, b, steps, generator)

    # --- what the methods share ---------------------------------------------------------------------------------------

    def _open(self, inputs: Tensor, targets: Tensor, lengths: Any) -> tuple[Tensor, Tensor, list[int] | None]:
        """Checked sequences, time first, zero beyond their lengths."""
        if inputs is targets:
            warnings.warn(
                "inputs and targets are one tensor: each step would be asked for what it was just told; targets are "
                "the inputs one step later, as in model(sequence[:-1], sequence[1:])",
                stacklevel=3,
            )
        return doors.open_pair(
            doors.time_first(inputs, self.batch_first),
            doors.time_first(targets, self.batch_first),
            lengths,
            self.likelihood,
            self.input_size,
        )

    def _noise(self, x: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> Noise:
        steps, rows = x.shape[:2]
        if noise is None:
            return self.cell.noise(steps, rows, generator=generator, device=x.device)
        wanted = (steps, rows, self.latent_size)
        given = doors.time_first(noise, self.batch_first)
        if tuple(given.shape) != wanted:
            raise ValueError(f"noise has shape {tuple(given.shape)}; expected {wanted}: time, batch, latent_size")
        return Noise(given, self.cell.cell.noise(steps, rows, generator=generator, device=x.device))

    def _recognise(self, y: Tensor, valid: list[int] | None) -> Tensor:
        """b (time, batch, H): what the backward network has read from the end down to each target."""
        embedded, cell = self.embedding(y), self.backward_cell
        if valid is None and transformed():
            # torch's kernel knows no vmap.
            state = cell.initial_state(y.shape[1], device=y.device)
            return lstm(cell.project(embedded.flip(0)), *state, cell.weight_hh.mT)[0].flip(0)
        return scan(cell, doors.full_as(embedded, cell.weight_hh), lengths=valid, reverse=True).output

    def _infer(
        self, x: Tensor, y: Tensor, valid: list[int] | None, noise: Noise, b: Tensor | None = None
    ) -> tuple[StochasticOutput, Tensor, Any]:
        """The forward network with latents from the posterior: its outputs, the backward states, the last state."""
        if b is None:
            b = self._recognise(y, valid)
        inputs = doors.full_as(self.embedding(x), b), b
        if valid is None and transformed():
            found = self.cell.sequence(inputs, self.cell.initial_state(x.shape[1], device=x.device), noise)
            if found is not NotImplemented:
                return found[0], b, found[1]
        result = scan(self.cell, inputs, noise=noise, lengths=valid)
        return result.output, b, result.state

    def _reconstruct(self, network: Perceptron, found: StochasticOutput, b: Tensor) -> Tensor:
        """-log p_ξ(b_t | z_t) of each step; b is a target alone, and sends no gradient back."""
        read = torch.cat([found.before, found.z], -1) if self.auxiliary_sees_hidden else found.z
        target, outputs = doors.full(b.detach()), doors.full(network(read))
        if self.auxiliary == "l2":
            return (target - torch.tanh(outputs)).square().sum(-1)
        mean, logvar = outputs.chunk(2, -1)
        return gaussian_nll(target, torch.tanh(mean), logvar)

    def _out(self, sequence: Tensor) -> Tensor:
        return doors.time_first(sequence, self.batch_first)

    def extra_repr(self) -> str:
        """The sizes, and what is not the default."""
        return (
            f"{self.input_size}, {self.hidden_size}, {self.latent_size}, likelihood={self.likelihood.kind!r}"
            + ("" if self.auxiliary == "gaussian" else f", auxiliary={self.auxiliary!r}")
            + (", batch_first=True" if self.batch_first else "")
        )


def _orthogonal(cell: LSTMCell, *, biases: bool) -> LSTMCell:
    """The released code's initial weights: recurrent ones orthogonal, the forward network's biases zero."""
    nn.init.orthogonal_(cell.weight_hh)
    if not biases:
        for bias in (cell.bias_ih, cell.bias_hh):
            if bias is not None:
                nn.init.zeros_(bias)
    return cell
