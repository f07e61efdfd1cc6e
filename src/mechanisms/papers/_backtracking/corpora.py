"""Language models of characters, cut into short sequences as in the paper."""

from __future__ import annotations

from typing import Any, Literal

from mechanisms.lab import Bench, config
from mechanisms.papers._backtracking.networks import make_network
from mechanisms.papers._sequences.language import Language


@config
class Characters(Language):
    """A corpus, and the sizes of the networks. `path` is where it lies, if not where data are looked for.

    `window` counts the tokens of a sequence, the first of which is not predicted. `most` keeps so many tokens of each
    part, 0 all.
    """

    corpus: Literal["manual", "penn-treebank", "text8"] = "penn-treebank"
    path: str = ""
    most: int = 0
    hidden_size: int = 512
    k_trunc: int = 10
    k_top: int = 5
    k_att: int = 2


def run_characters(settings: Characters, variant: str, bench: Bench) -> dict[str, Any]:
    """Train; bits per character on the test text, with the weights that were best on the validation text."""
    from mechanisms.lab import data
    from mechanisms.papers._sequences.language import train_language
    from mechanisms.papers._sequences.language_model import cut

    path = settings.path or None
    if settings.corpus == "penn-treebank":
        tokens = data.penn_treebank(path)
    elif settings.corpus == "text8":
        tokens = data.text8(path)
    else:
        tokens = data.character_tokens(data.manual_text())
    tokens = cut(tokens, settings.most, settings.most, settings.most)
    return train_language(
        make_network(variant, settings), tokens, settings, bench, name=f"characters-{variant}"
    ).metrics
