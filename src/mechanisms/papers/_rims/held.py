"""Held state: what is not updated stays the same to the bit, in exactly the share of modules that the sizes give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mechanisms.lab import Bench, config

if TYPE_CHECKING:
    from mechanisms.recurrent import Cell

# Modules and how many of them are updated, of each layer from bottom to top; the kind of module.
KINDS: dict[str, tuple[tuple[int, ...], tuple[int, ...], str]] = {
    "rims-6-of-6": ((6,), (6,), "lstm"),
    "rims-4-of-6": ((6,), (4,), "lstm"),
    "rims-3-of-6": ((6,), (3,), "lstm"),
    "gru-rims-3-of-6": ((6,), (3,), "gru"),
    "rims-2-of-5": ((5,), (2,), "lstm"),
    "brims": ((4, 3), (3, 2), "lstm"),
}


@config
class Held:
    """Untrained networks over random inputs, in training mode, with all dropout.

    Args:
        steps, batch_size, input_size, module_size: of the sequences and the modules.
    """

    steps: int = 50
    batch_size: int = 32
    input_size: int = 8
    module_size: int = 8


def run_held(settings: Held, variant: str, bench: Bench) -> dict[str, Any]:
    """Count the modules whose state is the same to the bit before and after a step.

    Returns:
        `held`, the share of modules and steps, one number for each layer; `error`, its distance from 1 - K/n.
    """
    import torch

    from mechanisms._base.seeds import seeded, stream_seed
    from mechanisms.recurrent import held_fraction
    from mechanisms.recurrent.scan import scan

    modules, active, _ = KINDS[variant]
    with seeded(stream_seed(bench.seed, "weights")):
        cell = _cell(settings, variant).to(bench.device)
    shape = settings.steps, settings.batch_size, settings.input_size
    x = torch.randn(shape, generator=bench.generator("data")).to(bench.device)
    with torch.no_grad(), seeded(stream_seed(bench.seed, "noise"), bench.device):
        before = cell.initial_state(settings.batch_size, device=bench.device)
        after = scan(cell, x, before, keep_states=True).states
    assert after is not None  # they were asked for
    states = [before, *after]  # the first are compared with the initial one
    shares = []
    for layer in range(len(modules)):
        layers = [state[layer] if len(modules) > 1 else state for state in states]
        # h and c side by side; GRU modules have no c.
        whole = torch.stack([torch.cat([leaf for leaf in state if leaf is not None], -1) for state in layers])
        shares.append(held_fraction(whole[1:], whole[0]))
    expected = [1 - k / n for n, k in zip(modules, active, strict=True)]
    return {"held": shares, "error": [share - one for share, one in zip(shares, expected, strict=True)]}


def _cell(settings: Held, variant: str) -> Cell:
    from mechanisms.recurrent import BRIMCell, RIMCell

    modules, active, kind = KINDS[variant]
    if len(modules) > 1:
        return BRIMCell(settings.input_size, (settings.module_size,) * len(modules), modules, active, cell=kind)
    return RIMCell(settings.input_size, settings.module_size, modules[0], active[0], cell=kind)
