"""Denoising layers: what they are exactly, their noise, and the habits of modules."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mechanisms.robust.denoising import (
    ConvDenoisingLayer,
    DenoisingLayer,
    ExpectationOverNoise,
    draws_noise,
    mixes_rows,
)


def test_without_noise_it_is_the_papers_formula() -> None:
    layer = DenoisingLayer(6, 4, noise_std=0.0)
    nn.init.normal_(layer.biases[0])
    nn.init.normal_(layer.decoder_biases[0])
    h, A = torch.randn(5, 6), layer.weights[0].T
    act = nn.LeakyReLU(0.2)
    expected = act(act(h @ A + layer.biases[0]) @ A.T + layer.decoder_biases[0])
    torch.testing.assert_close(layer(h), expected)


def test_orthonormal_weights_and_identity_are_the_identity() -> None:
    layer = DenoisingLayer(5, 8, activation="identity", noise_std=0.0, dtype=torch.float64)
    with torch.no_grad():
        layer.weights[0].copy_(torch.linalg.qr(torch.randn(8, 5, dtype=torch.float64))[0])
    h = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(h), h, rtol=0, atol=1e-14)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "leaky_relu", "identity"])
def test_dense_gradients(tied: bool, activation: str) -> None:
    torch.manual_seed(0)
    layer = DenoisingLayer(4, (3, 2), tied=tied, activation=activation, iterations=2, noise_std=0.0).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)  # away from the kinks, where numerical derivatives are none
    h = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    parameters = tuple(layer.parameters())
    assert torch.autograd.gradcheck(lambda h, *_: layer(h), (h, *parameters))


@pytest.mark.parametrize("tied", [True, False])
def test_convolutional_gradients(tied: bool) -> None:
    torch.manual_seed(0)
    layer = ConvDenoisingLayer(2, 3, tied=tied, stride=2, activation="tanh", noise_std=0.0).double()
    h = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h, *_: layer(h), (h, *layer.parameters()))


def test_the_tied_convolutional_decoder_is_the_transposed_map() -> None:
    layer = ConvDenoisingLayer(2, 3, kernel_size=5, stride=3, activation="identity", noise_std=0.0).double()
    h = torch.randn(1, 2, 7, 8, dtype=torch.float64)
    code = layer._encode(h, layer.weights[0], layer.biases[0])
    z = torch.randn_like(code)
    back = layer._decode(z, layer.weights[0], layer.decoder_biases[0], h.shape)
    torch.testing.assert_close((code * z).sum(), (h * back).sum())


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 4),
    rows=st.integers(1, 3),
)
def test_maps_of_every_size_keep_it(height: int, width: int, kernel: int, stride: int, rows: int) -> None:
    layer = ConvDenoisingLayer(2, (3, 2), kernel_size=kernel, stride=stride)
    assert layer(torch.randn(rows, 2, height, width)).shape == (rows, 2, height, width)


def test_initial_weights_have_the_papers_law_and_biases_are_zero() -> None:
    layer = DenoisingLayer(300, 100, tied=False)
    for weight in (layer.weights[0], layer.decoder_weights[0]):
        assert weight.abs().max() <= 1 / 20
        # A uniform number's square has mean bound^2 / 3; of 30,000 the mean is within 3 % of it beyond six sigma.
        assert abs(weight.square().mean() * 3 * 400 - 1) < 0.04
    assert not layer.biases[0].any()
    assert not layer.decoder_biases[0].any()
    assert not torch.equal(layer.weights[0], layer.decoder_weights[0])


def test_noise_is_drawn_where_it_was_asked_for() -> None:
    h = torch.ones(2, 6)
    for noise, training, expected in (("train", True, True), ("train", False, False), ("always", False, True)):
        layer = DenoisingLayer(6, 3, noise=noise).train(training)
        assert layer.draws_noise == expected
        assert torch.equal(layer(h), layer(h)) != expected
    silent = DenoisingLayer(6, 3, noise_std=0.0, noise="always")
    assert not silent.draws_noise
    assert torch.equal(silent(h), silent(h))
    deep = DenoisingLayer(6, (4, 2), noise_std=0.0, bottleneck_noise_std=0.1)
    assert not torch.equal(deep(h), deep(h))


def test_noise_is_on_the_first_iteration_only() -> None:
    layer = DenoisingLayer(6, 4, iterations=3, generator=torch.Generator().manual_seed(1))
    once = copy.deepcopy(layer)
    h = torch.randn(5, 6)
    once.iterations = 1
    first = once(h)
    once.eval()
    torch.testing.assert_close(layer(h), once(once(first)))


def test_the_noise_has_the_standard_deviation_asked_for() -> None:
    layer = DenoisingLayer(3, 3, activation="identity", noise_std=0.3)
    with torch.no_grad():
        layer.weights[0].copy_(torch.eye(3))
    noise = layer(torch.zeros(200_000, 3))
    # The standard error of a standard deviation of 600,000 numbers is 0.1 %; 1 % is eleven of them.
    assert abs(noise.std() / 0.3 - 1) < 0.01


def test_a_generator_repeats_the_noise_and_leaves_torchs_alone() -> None:
    layer = DenoisingLayer(6, 3, generator=torch.Generator().manual_seed(5))
    again = DenoisingLayer(6, 3, generator=torch.Generator().manual_seed(5))
    again.load_state_dict(layer.state_dict())
    before = torch.get_rng_state()
    assert torch.equal(layer(torch.ones(4, 6)), again(torch.ones(4, 6)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_and_single_rows(dtype: torch.dtype) -> None:
    for layer, shape in ((DenoisingLayer(6, 3, dtype=dtype), (1, 6)), (ConvDenoisingLayer(2, 3), (1, 2, 4, 4))):
        layer = layer.to(dtype)
        assert layer(torch.ones(shape, dtype=dtype)).dtype == dtype
        assert layer(torch.ones(shape, dtype=dtype)[:0]).shape == (0, *shape[1:])
    with torch.autocast("cpu", torch.bfloat16):
        assert DenoisingLayer(6, 3)(torch.ones(1, 6)).dtype == torch.bfloat16


def test_saving_loading_and_copying() -> None:
    layer = DenoisingLayer(6, (4, 2), tied=False, generator=torch.Generator().manual_seed(0))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = DenoisingLayer(6, (4, 2), tied=False).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    h = torch.randn(3, 6)
    clone = copy.deepcopy(layer)
    assert torch.equal(clone(h), layer(h))  # the generator was copied in its state
    assert torch.equal(other(h), layer.eval()(h))


@pytest.mark.unhooked
def test_compiled_layers_give_the_same() -> None:
    for layer, h in (
        (DenoisingLayer(6, (4, 3), iterations=2), torch.randn(3, 6)),
        (ConvDenoisingLayer(2, 3, stride=2), torch.randn(2, 2, 5, 5)),
    ):
        layer.eval()
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(h), layer(h))
        assert compiled.train()(h).shape == h.shape


def test_the_expectation_averages_noise_away() -> None:
    torch.manual_seed(0)
    noisy = nn.Sequential(DenoisingLayer(6, 5, activation="identity", noise="always"), nn.Linear(5 + 1, 3)).eval()
    exact = copy.deepcopy(noisy)
    exact[0].noise = "train"
    x = torch.rand(4, 6)
    found = ExpectationOverNoise(noisy, draws=20_000)(x)
    spread = (noisy(x.repeat(20_000, 1)) - exact(x).repeat(20_000, 1)).std() / 20_000**0.5
    # The network is linear, so that the mean is that without noise; twelve numbers beyond seven sigma: one in 10^10.
    assert ((found - exact(x)).abs() < 7 * spread).all()


def test_the_expectation_goes_in_parts_and_carries_gradients() -> None:
    inner = nn.Sequential(DenoisingLayer(6, 3), nn.Linear(6, 2)).eval()
    seen: list[int] = []
    inner.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    x = torch.rand(5, 6, requires_grad=True)
    for rows in (1000, 10, 1):
        found = ExpectationOverNoise(inner, draws=7, rows=rows)(x)
        torch.testing.assert_close(found, inner(x))
    assert seen == [35, 5, 10, 10, 10, 5, 5, *[5] * 7, 5]
    assert torch.autograd.grad(found.sum(), x)[0].abs().sum() > 0


def test_rows_that_change_each_other_are_not_repeated() -> None:
    seen = []
    inner = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2))
    inner.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    ExpectationOverNoise(inner, draws=3)(torch.rand(4, 6))
    assert mixes_rows(inner)
    assert seen == [4, 4, 4]
    assert not mixes_rows(inner.eval())


def test_who_draws_noise() -> None:
    noisy = nn.Sequential(DenoisingLayer(4, 2, noise="always"), nn.Linear(4, 2)).eval()
    assert draws_noise(noisy)
    assert not draws_noise(ExpectationOverNoise(noisy))
    assert not draws_noise(nn.Sequential(nn.Flatten(), ExpectationOverNoise(noisy)))
    assert draws_noise(nn.Sequential(noisy[0], ExpectationOverNoise(copy.deepcopy(noisy))))
    assert not draws_noise(nn.Linear(2, 2))


@pytest.mark.user_input
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DenoisingLayer(0, 2), "features=0: it must be >= 1"),
        (lambda: DenoisingLayer(4, 0), "hidden=0: it must be >= 1"),
        (lambda: DenoisingLayer(4, ()), "hidden is empty"),
        (lambda: DenoisingLayer(4, 2, activation="relu"), "activation='relu': it must be one of"),
        (lambda: DenoisingLayer(4, 2, noise="never"), "noise='never': it must be one of 'train', 'always'"),
        (lambda: DenoisingLayer(4, 2, noise_std=-0.1), "noise_std=-0.1"),
        (lambda: DenoisingLayer(4, 2, iterations=0), "iterations=0"),
        (lambda: ConvDenoisingLayer(4, 2, kernel_size=4), "kernel_size=4: it must be odd"),
        (lambda: ConvDenoisingLayer(4, 2, stride=0), "stride=0"),
        (lambda: DenoisingLayer(4, 2)(torch.ones(3, 5)), "5 features in each row.*features=4; make it with features=5"),
        (lambda: ConvDenoisingLayer(4, 2)(torch.ones(3, 5, 2, 2)), r"takes \(n, 4, height, width\)"),
        (lambda: ConvDenoisingLayer(4, 2)(torch.ones(3, 4)), r"takes \(n, 4, height, width\)"),
        (lambda: ExpectationOverNoise(nn.Linear(2, 2), draws=0), "draws=0: it must be >= 1"),
    ],
)
def test_mistakes_say_what_to_do(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
