"""Densities of diagonal Gaussians and of the outputs of a generative model, in nats.

    KL(N(mu_q, e^l_q) || N(mu_p, e^l_p)) = 1/2 sum_j [l_p - l_q + e^(l_q - l_p) + (mu_q - mu_p)^2 e^(-l_p) - 1]
    -log N(x; mu, e^l)                   = 1/2 sum_j [log 2 pi + l + (x - mu)^2 e^(-l)]

`l` is the **log-variance**, not the logarithm of the standard deviation. A density of data that were divided by s is
larger by log s in each dimension: add it before figures of differently scaled data are compared.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mechanisms._base.validation import check_choice, check_number

LIKELIHOODS = ("gaussian", "gaussian_mixture", "bernoulli", "categorical")
LOG_TWO_PI = math.log(2 * math.pi)


def gaussian_kl(mu_q: Tensor, logvar_q: Tensor, mu_p: Tensor, logvar_p: Tensor) -> Tensor:
    """Kullback-Leibler divergence of diagonal Gaussians, KL(q || p), summed over the last dimension.

    Args:
        mu_q, logvar_q: mean and log-variance of q (..., Z).
        mu_p, logvar_p: mean and log-variance of p (..., Z).

    Returns:
        nats (...), never below 0 but for rounding.

    >>> mean = torch.tensor([0.0, 1.0])
    >>> gaussian_kl(mean[:1], torch.zeros(1), mean[1:], torch.tensor([4.0]).log())
    tensor(0.4431)
    """
    difference = logvar_q - logvar_p
    return 0.5 * (torch.exp(difference) - difference + (mu_q - mu_p).square() * torch.exp(-logvar_p) - 1).sum(-1)


def gaussian_nll(x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Negative log-density of a diagonal Gaussian, summed over the last dimension.

    Args:
        x: values (..., D).
        mu, logvar: mean and log-variance (..., D).

    Returns:
        nats (...).

    >>> gaussian_nll(torch.zeros(2), torch.zeros(2), torch.zeros(2))
    tensor(1.8379)
    """
    return 0.5 * (LOG_TWO_PI + logvar + (x - mu).square() * torch.exp(-logvar)).sum(-1)


class Likelihood:
    """What a network's output says of the next element: density, most likely value, samples.

    Args:
        kind: "gaussian" (mean and log-variance), "gaussian_mixture" (weights, means, log-variances), "bernoulli"
            (logits; targets in [0, 1]) or "categorical" (logits; targets are integers).
        size: dimension D of an element, or the number of classes.
        num_components: components of a mixture.
        logvar_range: where log-variances are clamped; without a floor silence makes densities infinite.

    Attributes:
        num_parameters: size of the network's output.

    Raises:
        ValueError: another kind, sizes below 1, or a range that is none.

    >>> Likelihood("gaussian_mixture", 3, num_components=2).num_parameters
    14
    """

    def __init__(
        self,
        kind: str,
        size: int,
        *,
        num_components: int = 20,
        logvar_range: tuple[float | int, float | int] = (-8.0, 8.0),
    ) -> None:
        self.kind = check_choice(kind, "likelihood", LIKELIHOODS)
        self.size = int(check_number(size, "size", at_least=1))
        self.num_components = int(check_number(num_components, "num_components", at_least=1))
        self.low, self.high = (check_number(end, "logvar_range") for end in logvar_range)
        if not self.low < self.high:
            raise ValueError(f"logvar_range={tuple(logvar_range)}: the lower end comes first, and below the upper one")
        self.num_parameters = {
            "gaussian": 2 * size,
            "gaussian_mixture": num_components * (2 * size + 1),
        }.get(kind, size)

    def nll(self, parameters: Tensor, targets: Tensor) -> Tensor:
        """Negative log-density (...) of targets (..., D), or (...) integers, given parameters (..., P).

        >>> Likelihood("bernoulli", 2).nll(torch.zeros(2), torch.ones(2))
        tensor(1.3863)
        """
        if self.kind == "gaussian":
            mu, logvar = self._gaussian(parameters)
            return gaussian_nll(targets, mu, logvar)
        if self.kind == "gaussian_mixture":
            weights, mu, logvar = self._mixture(parameters)
            return -torch.logsumexp(weights - gaussian_nll(targets.unsqueeze(-2), mu, logvar), -1)
        if self.kind == "bernoulli":
            return F.binary_cross_entropy_with_logits(parameters, targets.to(parameters.dtype), reduction="none").sum(
                -1
            )
        return -torch.log_softmax(parameters, -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)

    def mode(self, parameters: Tensor) -> Tensor:
        """The most likely value: the mean of a Gaussian, that of the heaviest component, the likelier class.

        >>> Likelihood("categorical", 3).mode(torch.tensor([0.0, 2.0, 1.0]))
        tensor(1)
        """
        return self.sample(parameters, temperature=0)

    def sample(
        self, parameters: Tensor, *, temperature: float | int = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """A draw (..., D), or (...) integers; `temperature` scales deviations and divides logits, and 0 is the mode.

        >>> draw = Likelihood("gaussian", 2).sample(torch.zeros(5, 4), generator=torch.Generator().manual_seed(0))
        >>> draw.shape
        torch.Size([5, 2])
        """
        if self.kind == "gaussian":
            return _draw(*self._gaussian(parameters), temperature, generator)
        if self.kind == "gaussian_mixture":
            weights, mu, logvar = self._mixture(parameters)
            chosen = _choose(weights, temperature, generator)[..., None, None].expand(*mu.shape[:-2], 1, self.size)
            mu, logvar = (part.gather(-2, chosen).squeeze(-2) for part in (mu, logvar))
            return _draw(mu, logvar, temperature, generator)
        if self.kind == "bernoulli":
            if temperature == 0:
                return (parameters > 0).to(parameters.dtype)
            return torch.bernoulli(torch.sigmoid(parameters / temperature), generator=generator)
        return _choose(parameters, temperature, generator)

    def _gaussian(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = parameters.chunk(2, -1)
        return mu, logvar.clamp(self.low, self.high)

    def _mixture(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithms of the weights (..., K), means and log-variances (..., K, D)."""
        count = self.num_components
        weights, mu, logvar = parameters.split([count, count * self.size, count * self.size], -1)
        shape = (*parameters.shape[:-1], count, self.size)
        return torch.log_softmax(weights, -1), mu.reshape(shape), logvar.reshape(shape).clamp(self.low, self.high)


def _draw(mu: Tensor, logvar: Tensor, temperature: float | int, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return mu
    noise = torch.randn(mu.shape, generator=generator, device=mu.device, dtype=mu.dtype)
    return mu + temperature * torch.exp(0.5 * logvar) * noise


def _choose(logits: Tensor, temperature: float | int, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    shares = torch.softmax(logits.float() / temperature, -1)
    return torch.multinomial(shares.flatten(0, -2), 1, generator=generator).view(logits.shape[:-1])
