"""The model without latents: an LSTM that predicts the next element."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mechanisms.recurrent._driver import transformed
from mechanisms.recurrent._stochastic_kernel import lstm
from mechanisms.recurrent.cells import LSTMCell
from mechanisms.recurrent.densities import Likelihood
from mechanisms.recurrent.scan import scan
from mechanisms.recurrent.z_forcing import ZForcingOutput


class PlainModel(nn.Module):
    """p(y_t | h_t) with h_t an LSTM's state over x_1 .. x_t; it takes and gives what `ZForcing` does, KL 0."""

    def __init__(
        self, embedding: nn.Module, embedding_size: int, hidden_size: int, size: int, likelihood: str, **options: Any
    ) -> None:
        super().__init__()
        self.embedding, self.cell = embedding, LSTMCell(embedding_size, hidden_size)
        self.likelihood = Likelihood(likelihood, size, **options)
        self.output = nn.Linear(hidden_size, self.likelihood.num_parameters)
        nn.init.orthogonal_(self.cell.weight_hh)
        for bias in (self.cell.bias_ih, self.cell.bias_hh):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        lengths: list[int] | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ZForcingOutput:
        """Costs of a batch; noise plays no part."""
        embedded, cell = self.embedding(inputs), self.cell
        if transformed():
            h = lstm(cell.project(embedded), *cell.initial_state(inputs.shape[1]), cell.weight_hh.mT)[0]
        else:
            h = scan(cell, embedded, lengths=lengths).output
        prediction = self.output(h)
        costs = self.likelihood.nll(prediction, targets)
        steps = torch.full((inputs.shape[1],), inputs.shape[0], device=h.device)
        if lengths is not None:
            steps = torch.tensor(lengths, device=h.device)
            costs = torch.where(torch.arange(len(costs), device=h.device).unsqueeze(1) < steps, costs, 0)
        nll = costs.sum(0)
        zeros = torch.zeros_like(nll)
        return ZForcingOutput(nll, zeros, zeros, zeros, h[..., :0], prediction, steps)

    def loss(self, output: ZForcingOutput, **weights: Any) -> Tensor:
        """Mean over the sequences that are not empty."""
        return output.nll.sum() / (output.steps > 0).sum()

    @torch.no_grad()
    def elbo(self, inputs: Tensor, targets: Tensor, *, lengths: list[int] | None = None, **options: Any) -> Tensor:
        """The log-likelihood itself (batch,)."""
        return -self(inputs, targets, lengths=lengths).nll

    @torch.no_grad()
    def sample(
        self, num_steps: int, batch_size: int, *, prefix: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """New elements (num_steps, batch, ...) after a prefix."""
        result = scan(self.cell, self.embedding(prefix))
        h, state, elements = result.output[-1], result.state, []
        for _ in range(num_steps):
            elements.append(self.likelihood.sample(self.output(h), generator=generator))
            h, state = self.cell(self.embedding(elements[-1]), state)
        return torch.stack(elements)
