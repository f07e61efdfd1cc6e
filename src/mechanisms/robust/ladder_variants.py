"""The variants of the ladder network that its deconstruction compares, as a table.

Each says which combinator it has, where noise is added and where reconstructions are paid for; everything else is the
same network. Add lines of your own, or change one: `dataclasses.replace(VARIANTS["vanilla"], noise="first")`.

>>> network = VARIANTS["amlp-2-2-2"].network([8, 16, 3], generator=0)
>>> network.combinators["0"]
PerceptronCombinator(
  8, hidden=2 2 2, augmented=True
  ...
>>> VARIANTS["first-noise"].noise_levels(0.3, 3)
(0.3, 0.0, 0.0)

Reference: Pezeshki, Fan, Brakel, Courville, Bengio, "Deconstructing the Ladder Network Architecture", ICML 2016,
arXiv 1511.06430, section 3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mechanisms._base.validation import check_choice
from mechanisms.robust.ladder import LadderNetwork
from mechanisms.robust.ladder_combinators import COMBINATORS, Maker
from mechanisms.robust.ladder_layers import Layer

__all__ = ["REFERENCE_WEIGHTS", "VARIANTS", "LadderVariant", "as_variant"]

# lambda_0, lambda_1, and that of every level above, of the reference at 100 labels.
REFERENCE_WEIGHTS = (1000.0, 10.0, 0.1)


@dataclass(frozen=True)
class LadderVariant:
    """What a variant of the ladder network consists of.

    Args:
        combinator: a name in `ladder_combinators.COMBINATORS`, or a function as `register_combinator` takes it.
        hidden: hidden units of "mlp" and "amlp".
        noise: levels with noise: "all", "first" (the inputs) or "none".
        reconstruction: levels with a cost: "all", "first" (the inputs), "top" or "none".

    Raises:
        ValueError: an unknown choice.

    >>> LadderVariant(reconstruction="top").weights(4, scale=5.0)
    (0.0, 0.0, 0.0, 0.5)
    """

    combinator: str | Maker = "vanilla"
    hidden: tuple[int, ...] = (2, 2, 2)
    noise: Literal["all", "first", "none"] = "all"
    reconstruction: Literal["all", "first", "top", "none"] = "all"

    def __post_init__(self) -> None:
        if isinstance(self.combinator, str):
            check_choice(self.combinator, "combinator", tuple(COMBINATORS))
        check_choice(self.noise, "noise", ("all", "first", "none"))
        check_choice(self.reconstruction, "reconstruction", ("all", "first", "top", "none"))

    def noise_levels(self, std: float | int, levels: int) -> tuple[float, ...]:
        """Noise of each of the L + 1 levels where it is `std` wherever this variant has some.

        >>> LadderVariant(noise="none").noise_levels(0.3, 2)
        (0.0, 0.0)
        """
        return tuple(float(std) if _is_there(self.noise, level, levels) else 0.0 for level in range(levels))

    def weights(
        self, levels: int, weights: Sequence[float | int] | None = None, *, scale: float | int = 1.0
    ) -> tuple[float, ...]:
        """lambda_0 to lambda_L: those given where this variant pays for reconstructions, else 0.

        Args:
            levels: L + 1.
            weights: one for each level; default `REFERENCE_WEIGHTS`, the last for all levels above.
            scale: multiplies all of them.

        Raises:
            ValueError: another number of weights than levels.

        >>> LadderVariant(reconstruction="first").weights(3)
        (1000.0, 0.0, 0.0)
        """
        if weights is None:
            weights = [REFERENCE_WEIGHTS[min(level, len(REFERENCE_WEIGHTS) - 1)] for level in range(levels)]
        if len(weights) != levels:
            raise ValueError(f"weights has {len(weights)} values for {levels} levels (the inputs and the layers)")
        return tuple(
            float(scale * weight) if _is_there(self.reconstruction, level, levels) else 0.0
            for level, weight in enumerate(weights)
        )

    def network(
        self,
        widths: Sequence[int | tuple[int, int, int] | Layer],
        *,
        noise_std: float | int = 0.3,
        reconstruction_weights: Sequence[float | int] | None = None,
        scale: float | int = 1.0,
        **settings: Any,
    ) -> LadderNetwork:
        """A fresh network of this variant.

        Args:
            widths: as `LadderNetwork` takes them.
            noise_std, reconstruction_weights, scale: as in `noise_levels` and `weights`.
            **settings: the others of `LadderNetwork`, such as `generator` and `combinator_init_std`.

        >>> VARIANTS["gamma"].network([4, 5, 2], generator=0).combinators
        ModuleDict(
          (2): LateralCombinator(2)
        )
        """
        return LadderNetwork(
            widths,
            combinator=self.combinator,
            combinator_hidden=self.hidden,
            noise_std=self.noise_levels(noise_std, len(widths)),
            reconstruction_weights=self.weights(len(widths), reconstruction_weights, scale=scale),
            **settings,
        )


def _is_there(where: str, level: int, levels: int) -> bool:
    return where == "all" or (where == "first" and level == 0) or (where == "top" and level == levels - 1)


VARIANTS: Mapping[str, LadderVariant] = {
    "vanilla": LadderVariant(),
    # Parts of the network.
    "no-noise": LadderVariant(noise="none"),
    "first-noise": LadderVariant(noise="first"),
    "first-reconstruction": LadderVariant(reconstruction="first"),
    "first-noise-and-reconstruction": LadderVariant(noise="first", reconstruction="first"),
    "gamma": LadderVariant("lateral", reconstruction="top"),
    "baseline-noise": LadderVariant(reconstruction="none"),
    "baseline": LadderVariant(noise="none", reconstruction="none"),
    # Parts of the vanilla combinator, and its first values.
    "no-lateral": LadderVariant("no-lateral"),
    "no-sigmoid": LadderVariant("no-sigmoid"),
    "no-product": LadderVariant("no-product"),
    "linear": LadderVariant("linear"),
    "random-init": LadderVariant("random-init"),
    "reversed-init": LadderVariant("reversed-init"),
    # Other combinators.
    "gaussian": LadderVariant("gaussian"),
    "gated-gaussian": LadderVariant("gated-gaussian"),
    "mlp-4": LadderVariant("mlp", (4,)),
    "mlp-2-2": LadderVariant("mlp", (2, 2)),
    "mlp-2-2-2": LadderVariant("mlp", (2, 2, 2)),
    "amlp-4": LadderVariant("amlp", (4,)),
    "amlp-2-2": LadderVariant("amlp", (2, 2)),
    "amlp-2-2-2": LadderVariant("amlp", (2, 2, 2)),
}


def as_variant(variant: str | LadderVariant) -> LadderVariant:
    """A variant by name, or the variant itself.

    Raises:
        ValueError: no variant has this name.

    >>> as_variant("linear").combinator
    'linear'
    """
    if isinstance(variant, LadderVariant):
        return variant
    return VARIANTS[check_choice(variant, "variant", tuple(VARIANTS))]
