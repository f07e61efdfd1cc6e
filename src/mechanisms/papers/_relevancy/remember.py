"""Copying and denoising: who learns them, who transfers to longer delays, and what the relevant set holds.

Denoising decides more than copying: there the symbols stand at random places, where in copying they are the very first
states, which an untrained network keeps already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from mechanisms.lab import Bench, config
from mechanisms.papers._relevancy.networks import SCREENED, Initialisation, network_maker
from mechanisms.papers._sequences.recall import Recall, draw, train_recall_network, with_readout

if TYPE_CHECKING:
    from torch import Tensor

DENOISE = ("lstm", "full", "relevant", "few", "normalised")
COPYING = ("lstm", "full", "relevant")
ORIGINAL = ("lstm", "full-released", "released", "rnn", "full-rnn", "relevant-rnn", "sab")


@config
class Remember(Recall):
    """A task of recall, and the sizes of buffer and relevant set.

    `few` are the places of the variant of that name, fewer than there are symbols. `initialisation`, `rotation` and
    `nonlinearity` are told in `networks`. `probe` sequences show what the set holds.
    """

    task: Literal["copying", "denoise", "adding"] = "denoise"
    n: int = 3
    updates: int = 4000
    short_term: int = 5
    relevant: int = 10
    few: int = 2
    initialisation: Initialisation = "torch"
    rotation: Literal["henaff", "cayley"] = "henaff"
    nonlinearity: Literal["tanh", "modrelu"] = "tanh"
    probe: int = 256


def run_remember(settings: Remember, variant: str, bench: Bench) -> dict[str, Any]:
    """Train, test at the delays of the settings, and look into the relevant set before and after training.

    `cues` is the share of the symbols' steps that are in the set when the marker is read, `cues_untrained` that of the
    same network before training, `cues_gain` the difference.
    """
    from mechanisms._base.seeds import seeded, stream_seed

    maker = network_maker(settings, variant)
    found, model = train_recall_network(settings, maker, bench)
    if variant not in SCREENED:
        return found
    with seeded(stream_seed(bench.seed, "weights")):
        untrained = with_readout(settings, maker).to(bench.device)
    inputs, _ = draw(settings, settings.probe, settings.delay, bench.generator("probe"), bench.device)
    after, before = held(settings, model, inputs), held(settings, untrained, inputs)
    cues = _cues(settings, inputs)
    shares = [float((one & cues).sum() / cues.sum()) for one in (after, before)]
    for step in range(len(cues[0])):
        of_cues, of_blanks = cues[:, step], ~cues[:, step]
        for name, one in (("trained", after), ("untrained", before)):
            for kind, rows in (("symbols", of_cues), ("blanks", of_blanks)):
                if bool(rows.any()):
                    bench.log(step, **{f"held_{kind}_{name}": round(float(one[rows, step].float().mean()), 3)})
    return found | {"cues": shares[0], "cues_untrained": shares[1], "cues_gain": shares[0] - shares[1]}


def held(settings: Remember, model: Any, inputs: Tensor) -> Tensor:
    """Whether each step is in the relevant set when the marker has been read: booleans (batch, steps to there)."""
    import torch

    steps = settings.delay + settings.n
    model.eval()
    with torch.no_grad():
        _, states = model.network(inputs[:steps])
    index = states[-1].set_index
    member = torch.zeros(len(index), steps + 1, dtype=torch.bool, device=index.device)
    return member.scatter_(1, torch.where(index < 0, steps, index), True)[:, :steps]


def _cues(settings: Remember, inputs: Tensor) -> Tensor:
    """Which steps show a symbol: booleans (batch, steps up to the marker)."""
    steps = settings.delay + settings.n
    tokens = inputs[:steps].argmax(-1).T
    return (tokens > 0) & (tokens <= settings.symbols)
