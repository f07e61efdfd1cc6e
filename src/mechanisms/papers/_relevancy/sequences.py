"""Images pixel by pixel and the characters of the Penn Treebank, with the networks that are compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from mechanisms.lab import Bench, config
from mechanisms.papers._relevancy.networks import Initialisation, network_maker
from mechanisms.papers._sequences.language import Language, train_language
from mechanisms.papers._sequences.pixels import Pixels, classify_pixels

VARIANTS = ("lstm", "released", "rnn", "full-rnn", "relevant-rnn")


@config
class RelevantPixels(Pixels):
    """Images, and the sizes of the networks; see `networks` for the other settings."""

    hidden_size: int = 100
    short_term: int = 10
    relevant: int = 10
    few: int = 5
    initialisation: Initialisation = "released"
    rotation: Literal["henaff", "cayley"] = "henaff"
    nonlinearity: Literal["tanh", "modrelu"] = "modrelu"
    permutation_seed: int | None = 100
    rnn_optimizer: Literal["adam", "rmsprop"] = "adam"
    rnn_lr: float = 1e-4


@config
class RelevantCharacters(Language):
    """Text, and the sizes of the networks; `corpus` "manual" is the Python manual of the standard library."""

    corpus: Literal["penn-treebank", "manual"] = "penn-treebank"
    length: int | None = None
    hidden_size: int = 1024
    short_term: int = 10
    relevant: int = 10
    few: int = 5
    initialisation: Initialisation = "released"
    rotation: Literal["henaff", "cayley"] = "cayley"
    nonlinearity: Literal["tanh", "modrelu"] = "modrelu"


def run_pixels(settings: RelevantPixels, variant: str, bench: Bench) -> dict[str, Any]:
    """Accuracy on images. Plain networks have an optimiser of their own, and their gradients are not clipped."""
    if variant.endswith("rnn"):
        settings = replace(settings, optimizer=settings.rnn_optimizer, lr=settings.rnn_lr, clip=None)
    return classify_pixels(network_maker(settings, variant), settings, bench, name=variant)


def run_characters(settings: RelevantCharacters, variant: str, bench: Bench) -> dict[str, Any]:
    """Bits per character."""
    from mechanisms.lab import data

    if settings.corpus == "manual":
        tokens = data.character_tokens(data.manual_text())
    else:
        tokens = data.penn_treebank(level="characters")
    if settings.length is not None:
        parts = {name: getattr(tokens, name)[: settings.length] for name in ("train", "validation", "test")}
        tokens = replace(tokens, **parts)
    # A state that grows cannot be handed on for ever: full attention starts anew with each window.
    if variant.startswith("full"):
        settings = replace(settings, carry=False)
    return train_language(network_maker(settings, variant), tokens, settings, bench, name=variant).metrics
