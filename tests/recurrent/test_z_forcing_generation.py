"""Z-Forcing: samples, prefixes, posteriors and what lies between two sequences."""

import pytest
import torch

from mechanisms.recurrent.densities import LIKELIHOODS
from tests.recurrent.latents import KINDS, ROWS, STEPS, draw, make, sequence


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_samples_are_sequences_of_the_model_and_cold_ones_are_deterministic(kind: str) -> None:
    model = make(likelihood=kind, **KINDS[kind])
    drawn = model.sample(5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, model.sample(5, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(model.elbo(drawn[:-1], drawn[1:], num_samples=2)).all()
    cold = model.sample(5, 3, temperature=0)
    assert torch.equal(cold, model.sample(5, 3, temperature=0))
    assert torch.equal(cold[:, 0], cold[:, 1])
    prefix = sequence(kind)
    more = model.sample(2, prefix=prefix, temperature=0)
    assert more.shape[:2] == (2, ROWS)
    assert torch.equal(model.sample(1, prefix=prefix, temperature=0), more[:1])


def test_a_prefix_is_followed_from_where_its_posterior_leads() -> None:
    model, y = make(), sequence()
    state = model._infer(y[:-1], y[1:], None, model._noise(y[:-1], torch.zeros_like(draw()), None))[2]
    output, _ = model.cell.step(model.cell.project((model.embedding(y[-1]),)), state)
    expected = model.likelihood.mode(model.output(output.h))
    torch.testing.assert_close(model.sample(1, prefix=y, temperature=0)[0], expected)


def test_inference_gives_the_posterior_and_noise_of_zeros_its_mean() -> None:
    model, y = make(), sequence()
    mean, logvar, z = model.infer(y[:-1], y[1:], noise=draw())
    torch.testing.assert_close(z, mean + (logvar / 2).exp() * draw())
    mean, _, z = model.infer(y[:-1], y[1:], noise=torch.zeros_like(draw()))
    torch.testing.assert_close(z, mean)


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_interpolation_goes_from_one_sequence_to_the_other(kind: str) -> None:
    model, y = make(likelihood=kind, **KINDS[kind]), sequence(kind)
    found = model.interpolate(y[:, 0], y[:, 1], 5)
    assert found.shape[:2] == (5, STEPS)
    torch.testing.assert_close(found[0], model.interpolate(y[:, 0], y[:, 0], 2)[0])
    torch.testing.assert_close(found[-1], model.interpolate(y[:, 1], y[:, 1], 2)[0])
    drawn = [model.interpolate(y[:, 0], y[:, 1], 5, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*drawn)
