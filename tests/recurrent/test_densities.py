"""Densities of the outputs and latents: torch's values, scales, and samples that follow them."""

import math

import pytest
import torch

from mechanisms.recurrent.densities import LIKELIHOODS, Likelihood, gaussian_kl, gaussian_nll

KINDS = {
    "gaussian": {},
    "gaussian_mixture": {"num_components": 3},
    "bernoulli": {},
    "categorical": {},
}


def test_kl_of_equal_gaussians_is_zero_and_the_closed_form_is_torch_s() -> None:
    mu_q, l_q, mu_p, l_p = torch.randn(4, 1000, 5, dtype=torch.float64)
    assert gaussian_kl(mu_q, l_q, mu_q, l_q).abs().max() == 0
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mu_q, (l_q / 2).exp()), normal(mu_p, (l_p / 2).exp())).sum(-1)
    found = gaussian_kl(mu_q, l_q, mu_p, l_p)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.min() >= 0
    one = torch.ones(1, dtype=torch.float64)
    value = gaussian_kl(0 * one, 0 * one, one, (4 * one).log())
    assert float(value) == pytest.approx(0.5 * (math.log(4) + 0.25 + 0.25 - 1), abs=1e-12)
    assert float(value) == pytest.approx(0.443147, abs=1e-6)


def test_the_gaussian_density_is_torch_s_and_rescaling_data_adds_log_scale() -> None:
    x, mu, logvar = torch.randn(3, 50, 4, dtype=torch.float64)
    expected = -torch.distributions.Normal(mu, (logvar / 2).exp()).log_prob(x).sum(-1)
    torch.testing.assert_close(gaussian_nll(x, mu, logvar), expected, rtol=0, atol=1e-12)
    scale = 3.7
    rescaled = gaussian_nll(scale * x, scale * mu, logvar + 2 * math.log(scale))
    torch.testing.assert_close(rescaled - gaussian_nll(x, mu, logvar), torch.full((50,), 4 * math.log(scale)).double())


def test_likelihoods_are_those_of_torch() -> None:
    distributions = torch.distributions
    parameters = torch.randn(40, 3 * (2 * 2 + 1), dtype=torch.float64)
    weights, mu, logvar = parameters.split([3, 6, 6], -1)
    mixture = distributions.MixtureSameFamily(
        distributions.Categorical(logits=weights),
        distributions.Independent(
            distributions.Normal(mu.view(40, 3, 2), (logvar.view(40, 3, 2) / 2).exp()),
            1,
        ),
    )
    x = torch.randn(40, 2, dtype=torch.float64)
    found = Likelihood("gaussian_mixture", 2, num_components=3).nll(parameters, x)
    torch.testing.assert_close(found, -mixture.log_prob(x))
    logits = torch.randn(40, 5, dtype=torch.float64)
    bits, classes = (torch.rand(40, 5) < 0.5).double(), torch.randint(5, (40,))
    expected = -distributions.Bernoulli(logits=logits).log_prob(bits).sum(-1)
    torch.testing.assert_close(Likelihood("bernoulli", 5).nll(logits, bits), expected)
    expected = -distributions.Categorical(logits=logits).log_prob(classes)
    torch.testing.assert_close(Likelihood("categorical", 5).nll(logits, classes), expected)


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_samples_follow_their_density(kind: str) -> None:
    """Means over 40,000 draws, six standard errors: two in a thousand million by chance."""
    likelihood = Likelihood(kind, 3, num_components=2)
    parameters = torch.randn(likelihood.num_parameters, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    many = parameters.expand(40_000, -1)
    drawn = likelihood.sample(many, generator=torch.Generator().manual_seed(3))
    cost = likelihood.nll(many, drawn)
    # E[-log p(x)] is at most the cross-entropy to any other density, and the drawn shares are those of the classes.
    other = likelihood.nll(many + 0.5 * torch.randn_like(parameters), drawn)
    assert cost.mean() < other.mean() + 6 * (cost - other).std() / 200
    if kind == "categorical":
        shares, counts = torch.softmax(parameters, -1), torch.bincount(drawn, minlength=3) / 40_000
        assert ((counts - shares).abs() < 6 * (shares * (1 - shares) / 40_000).sqrt()).all()
    if kind == "gaussian":
        mean, deviation = parameters[:3], (parameters[3:] / 2).exp()
        assert ((drawn.mean(0) - mean).abs() < 6 * deviation / 200).all()
    assert torch.equal(likelihood.sample(parameters, temperature=0), likelihood.mode(parameters))
