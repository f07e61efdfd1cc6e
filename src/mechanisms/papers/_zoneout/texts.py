"""Language models with Zoneout and its controls, on the Python manual, the Penn Treebank and text8."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from mechanisms.lab import Bench, config
from mechanisms.papers._sequences.language import Language, train_language
from mechanisms.papers._zoneout.networks import VARIANTS, network_maker, penalty_of

if TYPE_CHECKING:
    from mechanisms.lab.data import Tokens

# Claims ask for the gap after all updates of these; of the others only the best validation counts.
TO_THE_END = ("plain", "zoneout")


@config
class Text(Language):
    """Settings of a language model on one corpus; the rates are the paper's for characters.

    Args:
        data: the corpus; the paper's own are looked for where `mechanisms.lab.data` says.
        path, hub: a folder, or a name on the Hugging Face hub, for those.
        train, validation, test: characters that are used of each part; 0 for all.
        hidden_size: of the one layer.
        zoneout_cell, zoneout_hidden: rates of the memory and the hidden state.
        dropout: rate of recurrent dropout.
        stabiliser: weight β of the norm stabiliser.
        noise: standard deviation of weight noise.
        share_mask: whether memory and hidden state use the same draws.
        initialisation: "torch", uniform with 1 added to the forget gate's bias; or "paper", orthogonal blocks.
        least: updates of the variants whose gap no claim reads; they then go on until validation has turned.
    """

    data: Literal["manual", "penn-treebank", "penn-treebank-words", "text8"] = "manual"
    path: str = ""
    hub: str = ""
    train: int = 12_000
    validation: int = 20_000
    test: int = 20_000
    hidden_size: int = 128
    zoneout_cell: float = 0.5
    zoneout_hidden: float = 0.05
    dropout: float = 0.25
    stabiliser: float = 50.0
    noise: float = 0.075
    share_mask: bool = False
    initialisation: Literal["torch", "paper"] = "torch"
    least: int = 600
    patience: int = 3
    most_updates: int = 6000


def run_text(settings: Text, variant: str, bench: Bench) -> dict[str, Any]:
    """Train one variant; what `train_language` measures, and which text it was."""
    tokens = read_corpus(settings)
    chosen = dataclasses.replace(
        settings,
        weight_noise=settings.noise if VARIANTS[variant].shaken else 0.0,
        updates=settings.updates if variant in TO_THE_END else settings.least,
        most_updates=max(settings.updates, settings.most_updates),
    )
    result = train_language(
        network_maker(variant, settings, settings.window),
        tokens,
        chosen,
        bench,
        penalty=penalty_of(variant, settings.stabiliser),
        name=variant,
    )
    rounded = {name: round(value, 5) for name, value in result.metrics.items()}
    return rounded | {"vocabulary": len(tokens.vocabulary), "sha256": tokens.sha256[:16]}


def read_corpus(settings: Text) -> Tokens:
    """The corpus of the settings, cut to the lengths that are asked for."""
    from mechanisms.lab import data
    from mechanisms.papers._sequences.language_model import cut

    path = settings.path or None
    if settings.data == "manual":
        tokens = data.character_tokens(data.manual_text())
    elif settings.data == "text8":
        tokens = data.text8(path, hub=settings.hub)
    else:
        level = "words" if settings.data.endswith("words") else "characters"
        tokens = data.penn_treebank(path, level=level, hub=settings.hub)
    return cut(tokens, settings.train, settings.validation, settings.test)
