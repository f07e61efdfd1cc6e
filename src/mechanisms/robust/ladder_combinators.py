"""Combinators of ladder networks: how a layer's noisy value and what comes down from above make a denoised value.

    vanilla         b0 + w0z z + w0u u + w0zu z u + ws sigmoid(b1 + w1z z + w1u u + w1zu z u)
    gaussian        (z - m(u)) v(u) + m(u),   m = a1 sigmoid(a2 u + a3) + a4 u + a5,
                                              v = a6 sigmoid(a7 u + a8) + a9 u + a10
    gated-gaussian  the same with sigmoid(v) in place of v
    mlp, amlp       a small perceptron of (u, z), or of (u, z, u z), for each unit
    lateral         w z + b

z is the lateral value, u the vertical one, and every letter a vector with one number per unit (per channel of an
image). The reduced forms of the deconstruction study are rows of `TERMS`: they name the vanilla form's terms and first
values.

A combinator is a module that takes z and u (n, d) and returns (n, d). `register_combinator` adds one of your own:

>>> class Mean(nn.Module):
...     def forward(self, z, u):
...         return (z + u) / 2
>>> register_combinator("mean", lambda size, settings: Mean())
>>> make_combinator("mean", 3)(torch.ones(2, 3), torch.zeros(2, 3))[0, 0].item()
0.5
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechanisms.robust import _ladder_kernels as kernels

__all__ = [
    "COMBINATORS",
    "TERMS",
    "CombinatorSettings",
    "GaussianCombinator",
    "LateralCombinator",
    "PerceptronCombinator",
    "VanillaCombinator",
    "make_combinator",
    "register_combinator",
]

# The vanilla form's numbers, in the order of the kernel: outside the sigmoid, its weight, inside it.
VANILLA = ("b0", "w0z", "w0u", "w0zu", "ws", "b1", "w1z", "w1u", "w1zu")
_START = {"w0z": 1.0, "w1z": 1.0, "ws": 1.0}
_REVERSED = {"w0u": 1.0, "w1u": 1.0, "ws": 1.0}


@dataclass(frozen=True)
class Terms:
    """Which numbers of the vanilla form there are, and where they start (0 if not named; None draws all at random).

    >>> Terms(("w0u", "b0"), {"w0u": 1.0}).names
    ('w0u', 'b0')
    """

    names: tuple[str, ...] = VANILLA
    start: Mapping[str, float] | None = field(default_factory=lambda: _START)


TERMS: Mapping[str, Terms] = {
    "vanilla": Terms(),
    "no-sigmoid": Terms(("b0", "w0z", "w0u", "w0zu")),
    "no-product": Terms(("b0", "w0z", "w0u", "ws", "b1", "w1z", "w1u")),
    "linear": Terms(("b0", "w0z", "w0u")),
    "random-init": Terms(start=None),
    "reversed-init": Terms(start=_REVERSED),
    # What is left starts where the reversed one does: from a weight of 0 nothing would come down at first.
    "no-lateral": Terms(("b0", "w0u", "ws", "b1", "w1u"), _REVERSED),
}


@dataclass(frozen=True)
class CombinatorSettings:
    """What makers of combinators may need.

    Args:
        hidden: hidden units of each layer of the perceptrons.
        init_std: standard deviation of first weights that are random.
        generator: where these come from; None is torch's own.

    >>> CombinatorSettings().hidden
    (2, 2, 2)
    """

    hidden: tuple[int, ...] = (2, 2, 2)
    init_std: float = 0.5
    generator: torch.Generator | None = None


class VanillaCombinator(nn.Module):
    """`b0 + w0z z + w0u u + w0zu z u + ws sigmoid(b1 + w1z z + w1u u + w1zu z u)`, or a part of it.

    Args:
        size: units d.
        terms: a row of `TERMS`, or one of your own; what it leaves out is zero for good.
        settings: `init_std` and `generator` for a random start.

    `weight` has shape (terms, d), its rows in the order of `names`.

    Source: Rasmus et al. 2015, equation 2; Pezeshki et al. 2016, section 3.

    >>> z, u = torch.randn(2, 5, 3)
    >>> torch.equal(VanillaCombinator(3)(z, u), z + z.sigmoid())
    True
    """

    needs_vertical = True
    stackable = True

    def __init__(self, size: int, terms: Terms = TERMS["vanilla"], settings: CombinatorSettings | None = None) -> None:
        super().__init__()
        if unknown := set(terms.names) - set(VANILLA):
            raise ValueError(f"terms names {sorted(unknown)}; the terms are {list(VANILLA)}")
        self.names = terms.names
        self._places = tuple(terms.names.index(name) if name in terms.names else -1 for name in VANILLA)
        if terms.start is None:
            self.weight = nn.Parameter(_random((len(terms.names), size), settings or CombinatorSettings()))
        else:
            first = torch.tensor([terms.start.get(name, 0.0) for name in terms.names])
            self.weight = nn.Parameter(first.unsqueeze(1).repeat(1, size))

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        """Denoised values (..., n, d) from lateral and vertical ones."""
        own = (*self.weight.shape[:-2], self.weight.shape[-1])
        if kernels.fit(z, u, own) and kernels.usable(z, u, self.weight):
            return kernels.Vanilla.apply(z, u, self.weight, self._places)
        rows = self.weight.unsqueeze(-2).unbind(-3)
        b0, w0z, w0u, w0zu, ws, b1, w1z, w1u, w1zu = (None if p < 0 else rows[p] for p in self._places)
        out = _affine(z, u, b0, w0z, w0u, w0zu)
        if ws is None:
            return out
        return out + ws * _affine(z, u, b1, w1z, w1u, w1zu).sigmoid()

    def extra_repr(self) -> str:
        """Size and terms."""
        return f"{self.weight.shape[-1]}, terms={' '.join(self.names)}"


class GaussianCombinator(nn.Module):
    """`(z - m(u)) v(u) + m(u)`: optimal where the values of a unit are Gaussian, given what is above.

    Args:
        size: units d.
        gated: sigmoid(v) in place of v.

    `weight` has shape (10, d): a1 to a10.

    Source: Rasmus et al. 2015, appendix B; Pezeshki et al. 2016, section 3.

    >>> z, u = torch.randn(2, 5, 3)
    >>> GaussianCombinator(3)(z, u).abs().max().item()
    0.0
    """

    needs_vertical = True
    stackable = True

    def __init__(self, size: int, *, gated: bool = False) -> None:
        super().__init__()
        self.gated = gated
        first = torch.zeros(10, size)
        first[[1, 6]] = 1.0
        self.weight = nn.Parameter(first)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        """Denoised values (..., n, d) from lateral and vertical ones."""
        a1, a2, a3, a4, a5, a6, a7, a8, a9, a10 = self.weight.unsqueeze(-2).unbind(-3)
        mean = a1 * (a2 * u + a3).sigmoid() + a4 * u + a5
        share = a6 * (a7 * u + a8).sigmoid() + a9 * u + a10
        return torch.lerp(mean, z, share.sigmoid()) if self.gated else (z - mean) * share + mean

    def extra_repr(self) -> str:
        """Size and gate."""
        return f"{self.weight.shape[-1]}, gated={self.gated}"


class PerceptronCombinator(nn.Module):
    """A perceptron of its own for each unit: leaky ReLU (slope 0.1), a linear output.

    All units are computed at once, as one batched product per layer.

    Args:
        size: units d.
        settings: `hidden`, and `init_std` of the weights; biases start at 0.
        augmented: whether u z is an input beside u and z.

    `weights[k]` has shape (d, inputs, outputs), `biases[k]` (d, 1, outputs).

    Raises:
        ValueError: no hidden layer, or one without units.

    Source: Pezeshki et al. 2016, section 3.3.

    >>> combine = PerceptronCombinator(3, CombinatorSettings(hidden=(4,)), augmented=True)
    >>> combine(torch.ones(5, 3), torch.ones(5, 3)).shape
    torch.Size([5, 3])
    """

    needs_vertical = True
    stackable = True

    def __init__(self, size: int, settings: CombinatorSettings | None = None, *, augmented: bool = False) -> None:
        super().__init__()
        settings = settings or CombinatorSettings()
        if not settings.hidden or min(settings.hidden) < 1:
            raise ValueError(f"hidden={settings.hidden}: expected at least one layer, each with at least one unit")
        self.augmented = augmented
        widths = (3 if augmented else 2, *settings.hidden, 1)
        self.weights = nn.ParameterList(
            _random((size, below, above), settings) for below, above in itertools.pairwise(widths)
        )
        self.biases = nn.ParameterList(torch.zeros(size, 1, above) for above in widths[1:])

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        """Denoised values (..., n, d) from lateral and vertical ones."""
        weights = tuple(self.weights)
        small = kernels.fit(z, u, weights[0].shape[:-2]) and kernels.perceptron_fits(weights)
        if small and kernels.usable(z, u, *weights, *self.biases):
            return kernels.Perceptron.apply(z, u, self.augmented, *weights, *self.biases)
        hidden = torch.stack((u, z, u * z) if self.augmented else (u, z), -1).transpose(-3, -2)
        last = len(self.weights) - 1
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = hidden.to(weight.dtype) @ weight + bias
            if place < last:
                hidden = nn.functional.leaky_relu(hidden, 0.1)
        return hidden.squeeze(-1).mT

    def extra_repr(self) -> str:
        """Size and layers."""
        sizes = " ".join(str(weight.shape[-1]) for weight in self.weights[:-1])
        return f"{self.weights[0].shape[-3]}, hidden={sizes}, augmented={self.augmented}"


class LateralCombinator(nn.Module):
    """`w z + b`, for decoders to which nothing comes from above: the Gamma model.

    Args:
        size: units d.

    `weight` has shape (2, d): w, which starts at 1, and b.

    >>> z = torch.randn(5, 3)
    >>> torch.equal(LateralCombinator(3)(z, z), z)
    True
    """

    needs_vertical = False
    stackable = True

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([torch.ones(size), torch.zeros(size)]))

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        """Denoised values (..., n, d); the vertical ones are not looked at."""
        w, b = self.weight.unsqueeze(-2).unbind(-3)
        return w * z + b

    def extra_repr(self) -> str:
        """Size."""
        return str(self.weight.shape[-1])


Maker = Callable[[int, CombinatorSettings], nn.Module]


def _vanilla(terms: Terms) -> Maker:
    return lambda size, settings: VanillaCombinator(size, terms, settings)


COMBINATORS: dict[str, Maker] = {
    **{name: _vanilla(terms) for name, terms in TERMS.items()},
    "gaussian": lambda size, settings: GaussianCombinator(size),
    "gated-gaussian": lambda size, settings: GaussianCombinator(size, gated=True),
    "mlp": lambda size, settings: PerceptronCombinator(size, settings),
    "amlp": lambda size, settings: PerceptronCombinator(size, settings, augmented=True),
    "lateral": lambda size, settings: LateralCombinator(size),
}


def register_combinator(name: str, make: Maker) -> None:
    """Make a combinator known by name to `LadderNetwork` and `LadderClassifier`.

    Args:
        name: a new one.
        make: called with the number of units d and `CombinatorSettings`; returns a module that takes z and u (n, d)
            and returns (n, d). A class attribute `needs_vertical = False` says that u is not looked at;
            `stackable = True` says that the module also works with parameters that have a model axis in front, on
            values (M, n, d). Without it, networks that train side by side are mapped by `torch.vmap`.

    Raises:
        ValueError: the name is taken.
        TypeError: `make` cannot be called.

    >>> register_combinator("keep", lambda size, settings: LateralCombinator(size))
    """
    if name in COMBINATORS:
        raise ValueError(f"there is a combinator {name!r} already; choose another name than {sorted(COMBINATORS)}")
    if not callable(make) or isinstance(make, nn.Module):
        raise TypeError(f"make is a {type(make).__name__}; give a function of the size and the settings")
    COMBINATORS[name] = make


def make_combinator(name: str | Maker, size: int, settings: CombinatorSettings | None = None) -> nn.Module:
    """A fresh combinator of `size` units, by name or by a function as `register_combinator` takes it.

    Raises:
        ValueError: the name is unknown.
        TypeError: the function returns no module.

    >>> make_combinator("linear", 4)
    VanillaCombinator(4, terms=b0 w0z w0u)
    """
    if isinstance(name, str) and name not in COMBINATORS:
        raise ValueError(f"combinator={name!r}: it must be one of {', '.join(map(repr, COMBINATORS))}")
    make = COMBINATORS[name] if isinstance(name, str) else name
    module = make(size, settings or CombinatorSettings())
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"the maker of combinators returned a {type(module).__name__}; it must return a torch.nn.Module"
        )
    return module


def _affine(
    z: Float[Tensor, "*models rows units"],
    u: Float[Tensor, "*models rows units"],
    b: Tensor | None,
    wz: Tensor | None,
    wu: Tensor | None,
    wzu: Tensor | None,
) -> Float[Tensor, "*models rows units"]:
    parts = [w * x for w, x in ((wz, z), (wu, u)) if w is not None]
    if wzu is not None:
        parts.append(wzu * (z * u))
    if b is not None:
        parts.append(b.expand_as(z) if not parts else b)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _random(shape: tuple[int, ...], settings: CombinatorSettings) -> Tensor:
    drawn = torch.randn(shape, generator=settings.generator, dtype=torch.float64)
    return drawn.mul_(settings.init_std).to(torch.get_default_dtype())
