"""What can be set, the reference's weights of the costs, and what is tried of each variant before it is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mechanisms.lab import config

if TYPE_CHECKING:
    from mechanisms.robust.ladder import LadderNetwork
    from mechanisms.robust.ladder_variants import LadderVariant

ALL = 0  # a number of labels: every training row has its label
# The encoder with noise alone, which tries as many strengths of noise as the others try weights.
TUNED_NOISE = "baseline-tuned-noise"


@config
class Ladders:
    """Data, network, training, and how the weight of the costs is chosen."""

    data: Literal["digits", "fashion-mnist", "mnist"] = "digits"
    path: str = ""  # folder of the files, if they are not where they are looked for
    hub: str = ""  # in place of MNIST's files, a name on the Hugging Face hub
    labels: tuple[int, ...] = (20, 50, ALL)
    num_train: int = 1097  # all of them unlabelled too
    num_validation: int = 200  # these labels choose a weight, and nothing else
    num_test: int = 500
    train_on_validation: bool = False  # once the weight is chosen
    hidden: tuple[int, ...] = (128, 64, 32, 32)
    noise: float = 0.3
    reference_noise: bool = False  # in the layers that of the reference: 0.2 at 1000 labels, 0.5 without a decoder
    multiples: tuple[float, ...] = (1.0, 0.1, 0.01, 0.001)  # of the reference's weights, tried on the tuning seeds
    noises: tuple[float, ...] = (0.1, 0.3, 0.5, 0.8)
    tuning_seeds: int = 3  # from 0
    untuned: bool = False  # whether the reference's weights are judged too, with the first number of labels
    init_std: float = 0.5
    epochs: int = 120
    batch_size: int = 100
    lr: float = 0.002
    statistics: Literal["all", "labelled"] = "all"
    points: int = 12  # of a learning curve
    watched: int = 1000  # rows of which reconstructions are measured


@dataclass(frozen=True)
class Reference:
    """The weights that the reference uses at a number of labels.

    Args:
        every: of the inputs, of the first layer, and of every layer above, where all have a cost.
        first: of the inputs, where only they have one.
        top: of the top, where only it has one.
        noise: in the layers.
    """

    every: tuple[float, float, float]
    first: float
    top: float
    noise: float = 0.3

    def weights(self, where: str, levels: int) -> list[float]:
        """One for each level."""
        if where == "first":
            return [self.first] * levels
        if where == "top":
            return [self.top] * levels
        return [self.every[min(level, 2)] for level in range(levels)]


REFERENCE = {
    100: Reference((1000.0, 10.0, 0.1), 5000.0, 0.5),
    1000: Reference((2000.0, 20.0, 0.1), 2000.0, 10.0, noise=0.2),
    ALL: Reference((1000.0, 1.0, 0.01), 2000.0, 2.0),
}
ENCODER_NOISE = 0.5  # the reference's, in the layers of an encoder without decoder


def reference(labels: int) -> Reference:
    """The line of the table for a number of labels: fewer than 1000 are as 100."""
    return REFERENCE[labels if labels == ALL else 100 if labels < 1000 else 1000]


def suffix(labels: int) -> str:
    """What the names of metrics end with."""
    return "all" if labels == ALL else str(labels)


def tried(settings: Ladders, variant: str) -> tuple[float, ...]:
    """Multiples of the reference's weights that are tried, or strengths of noise; one where there is nothing to try."""
    if variant == TUNED_NOISE:
        return settings.noises
    return settings.multiples if kind(variant).reconstruction != "none" else (1.0,)


def kind(variant: str) -> LadderVariant:
    """What a variant of the recipe is made of."""
    from mechanisms.robust.ladder_variants import VARIANTS

    return VARIANTS["baseline-noise" if variant == TUNED_NOISE else variant]


def make_network(
    settings: Ladders, variant: str, labels: int, value: float, seed: int, inputs: int, classes: int
) -> LadderNetwork:
    """A fresh network of a variant, with one of the values of `tried`."""
    from mechanisms.robust.ladder import LadderNetwork

    made = kind(variant)
    widths = [inputs, *settings.hidden, classes]
    row = reference(labels)
    layers = settings.noise
    if settings.reference_noise:
        layers = ENCODER_NOISE if made.reconstruction == "none" else row.noise
    if variant == TUNED_NOISE:
        layers, value = value, 1.0
    shares = made.noise_levels(1.0, len(widths))
    return LadderNetwork(
        widths,
        combinator=made.combinator,
        combinator_hidden=made.hidden,
        combinator_init_std=settings.init_std,
        noise_std=[share * (layers if level else settings.noise) for level, share in enumerate(shares)],
        reconstruction_weights=made.weights(len(widths), row.weights(made.reconstruction, len(widths)), scale=value),
        generator=seed,
    )
