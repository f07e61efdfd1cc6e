"""Language models of words: WikiText-2 and WikiText-103."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from mechanisms.lab import Bench, config
from mechanisms.papers._rims.networks import Sizes, in_frame, make_network
from mechanisms.papers._sequences.language import Language

if TYPE_CHECKING:
    from mechanisms.lab.data import Tokens


@config
class Texts(Language, Sizes):
    """A corpus, how a network is trained on it, and its size.

    Args:
        corpus: "wikitext-2" or "wikitext-103", by words; "manual", the Python manual by characters.
        path: folder of the corpus, if not where data are looked for.
        hub: a name on the Hugging Face hub in place of a path.
        most: keep so many tokens of each part; 0 for all.
        dropout: before and behind the network.
    """

    corpus: Literal["manual", "wikitext-2", "wikitext-103"] = "wikitext-2"
    path: str = ""
    hub: str = ""
    most: int = 0
    dropout: float = 0.5


def run_texts(settings: Texts, variant: str, bench: Bench) -> dict[str, Any]:
    """Train; perplexity (or bits) of the test text with the weights that were best on the validation text.

    Raises:
        NotHere: the corpus is not on this machine.
    """
    from mechanisms.papers._sequences.language import train_language

    make = in_frame(make_network(variant, settings), dropout=settings.dropout)
    tokens = read_text(settings)
    bench.note(f"{settings.corpus}: sha256 of the tokens {tokens.sha256}")
    return train_language(make, tokens, settings, bench, name=f"texts-{variant}").metrics


def read_text(settings: Texts) -> Tokens:
    """The corpus of the settings."""
    from mechanisms.lab import data
    from mechanisms.lab.data.wikipedia import wikitext
    from mechanisms.papers._sequences.language_model import cut

    if settings.corpus == "manual":
        tokens = data.character_tokens(data.manual_text())
    else:
        size = settings.corpus.removeprefix("wikitext-")
        tokens = wikitext(settings.path or None, size=size, hub=settings.hub)
    return cut(tokens, settings.most, settings.most, settings.most)
