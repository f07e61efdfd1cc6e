"""Combinators of ladder networks keep their formulas, with kernels and without."""

import contextlib

import pytest
import torch
from torch import Tensor, nn

from mechanisms.robust import _ladder_kernels as kernels
from mechanisms.robust.ladder_combinators import (
    COMBINATORS,
    TERMS,
    VANILLA,
    CombinatorSettings,
    GaussianCombinator,
    PerceptronCombinator,
    VanillaCombinator,
    make_combinator,
    register_combinator,
)


def values(n: int = 6, d: int = 19, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    z, u = torch.randn(2, n, d, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return z, u


def shaken(module: nn.Module) -> nn.Module:
    numbers = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=numbers, dtype=torch.float64).to(p.dtype))
    return module


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", sorted(COMBINATORS))
def test_gradients(name: str, fused: bool) -> None:
    combinator = shaken(make_combinator(name, 3, CombinatorSettings((2, 3))).double())
    z, u = values(4, 3)
    names, parameters = zip(*combinator.named_parameters(), strict=True)

    def call(z: Tensor, u: Tensor, *state: Tensor) -> Tensor:
        for key, value in zip(names, state, strict=True):
            combinator.get_submodule(key.rpartition(".")[0])._parameters[key.rpartition(".")[2]] = value
        return combinator(z, u)

    given = (z.requires_grad_(), u.requires_grad_(), *(p.detach().requires_grad_() for p in parameters))
    with contextlib.nullcontext() if fused else kernels.plain_operations():
        assert torch.autograd.gradcheck(call, given)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", [1, 8, 16, 19, 100])
@pytest.mark.parametrize("name", ["vanilla", "no-lateral", "linear", "mlp", "amlp"])
def test_kernels_agree_with_plain_operations(name: str, width: int, dtype: torch.dtype) -> None:
    combinator = shaken(make_combinator(name, width)).to(dtype)
    z, u = values(5, width, dtype)
    given = (3 * z.requires_grad_(), 3 * u.requires_grad_())
    inputs = (z, u, *combinator.parameters())
    ours = combinator(*given)
    grads = torch.autograd.grad(ours.square().sum(), inputs, retain_graph=True)
    with kernels.plain_operations():
        theirs = combinator(*given)
        expected = torch.autograd.grad(theirs.square().sum(), inputs, materialize_grads=True)
    exact = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(ours, theirs, rtol=exact, atol=exact)
    for one, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=exact, atol=exact * float(other.abs().max().clamp_min(1)))


@pytest.mark.parametrize("name", ["vanilla", "mlp", "amlp"])
def test_values_of_several_batches_go_through_one_combinator(name: str) -> None:
    combinator = shaken(make_combinator(name, 3)).double()
    z, u = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(combinator(z, u), torch.stack([combinator(*one) for one in zip(z, u, strict=True)]))


@pytest.mark.user_input
@pytest.mark.parametrize("name", ["vanilla", "amlp"])
def test_values_of_other_units_are_refused(name: str) -> None:
    combinator = make_combinator(name, 3)
    for z, u in ((torch.zeros(5, 4), torch.zeros(5, 4)), (torch.zeros(5, 3), torch.zeros(4, 3))):
        with pytest.raises(RuntimeError):
            combinator(z, u)


def test_large_values_saturate_and_nan_stays() -> None:
    z = torch.tensor([[-1e4], [1e4], [float("nan")]])
    out = VanillaCombinator(1)(z, torch.zeros(3, 1))
    assert out[:2].flatten().tolist() == [-1e4, 1e4 + 1]
    assert out[2].isnan()


@pytest.mark.parametrize("fused", [True, False])
def test_vanilla_begins_as_the_lateral_value_and_its_sigmoid(fused: bool) -> None:
    z, u = values()
    with contextlib.nullcontext() if fused else kernels.plain_operations():
        out = VanillaCombinator(19).double()(z, u)
    torch.testing.assert_close(out, z + z.sigmoid(), rtol=1e-15, atol=1e-15)


def test_gaussian_at_its_first_values_and_at_two_others() -> None:
    z, u = values()
    combinator = GaussianCombinator(19).double()
    assert torch.equal(combinator(z, u), torch.zeros_like(z))
    with torch.no_grad():
        combinator.weight.zero_()
        combinator.weight[3] = 1.0
    assert torch.equal(combinator(z, u), u)
    with torch.no_grad():
        combinator.weight.zero_()
        combinator.weight[9] = 1.0
    assert torch.equal(combinator(z, u), z)


def test_gated_gaussian_lies_between_mean_and_lateral_value() -> None:
    z, u = values()
    combinator = GaussianCombinator(19, gated=True).double()
    torch.testing.assert_close(combinator(z, u), z / 2)


@pytest.mark.parametrize("name", [name for name in TERMS if TERMS[name].start is not None])
def test_reduced_forms_are_the_vanilla_one_with_zeros(name: str) -> None:
    z, u = values()
    reduced = shaken(make_combinator(name, 19)).double()
    whole = VanillaCombinator(19).double()
    with torch.no_grad():
        whole.weight.zero_()
        for row, term in enumerate(TERMS[name].names):
            whole.weight[VANILLA.index(term)] = reduced.weight[row]
    torch.testing.assert_close(reduced(z, u), whole(z, u), rtol=1e-13, atol=1e-13)


def test_first_values_of_the_vanilla_forms() -> None:
    z, u = values()
    torch.testing.assert_close(make_combinator("reversed-init", 19).double()(z, u), u + u.sigmoid())
    torch.testing.assert_close(make_combinator("no-lateral", 19).double()(z, u), u + u.sigmoid())
    torch.testing.assert_close(make_combinator("linear", 19).double()(z, u), z)
    drawn = [
        make_combinator(
            "random-init", 500, CombinatorSettings(init_std=0.1, generator=torch.Generator().manual_seed(s))
        )
        for s in (0, 0, 1)
    ]
    assert torch.equal(drawn[0].weight, drawn[1].weight)
    assert not torch.equal(drawn[0].weight, drawn[2].weight)
    # 4,500 numbers: the standard deviation is within 6 / sqrt(9000) but for one time in 10^8.
    assert abs(float(drawn[0].weight.std()) / 0.1 - 1) < 0.064


@pytest.mark.parametrize("augmented", [True, False])
def test_perceptrons_are_those_of_each_unit_by_itself(augmented: bool) -> None:
    z, u = values(5, 3)
    combinator = shaken(PerceptronCombinator(3, CombinatorSettings((4, 2)), augmented=augmented)).double()
    out = combinator(z, u)
    for unit in range(3):
        h = torch.stack([u[:, unit], z[:, unit], u[:, unit] * z[:, unit]][: 3 if augmented else 2], 1)
        for place in range(3):
            h = h @ combinator.weights[place][unit] + combinator.biases[place][unit]
            h = nn.functional.leaky_relu(h, 0.1) if place < 2 else h
        torch.testing.assert_close(out[:, unit], h[:, 0])


def test_a_perceptron_too_large_for_the_kernel_works_as_well() -> None:
    combinator = PerceptronCombinator(3, CombinatorSettings((12,)))
    assert combinator(*values(5, 3, torch.float32)).shape == (5, 3)


@pytest.mark.user_input
def test_registering_what_is_there_or_cannot_be_called() -> None:
    with pytest.raises(ValueError, match="already"):
        register_combinator("vanilla", lambda size, settings: nn.Identity())
    with pytest.raises(TypeError, match="give a function"):
        register_combinator("identity", nn.Identity())
    with pytest.raises(ValueError, match="names \\['w9'\\]"):
        VanillaCombinator(3, type(TERMS["vanilla"])(("w9",)))
