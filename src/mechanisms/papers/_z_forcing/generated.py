"""Generated sequences that ask for a latent: waves whose frequency jumps, and words under a hidden topic.

Frames: a mode out of four has a frequency ω; at each step it is drawn anew with probability 1/2. A frame is a stretch
of ten samples of the wave, plus noise; the next one goes on where it ended. So the next frame has four likely forms.
Tokens: each sequence has a hidden topic, a permutation of 20 words; the next word is the permuted last one with
probability 0.7, else any.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FREQUENCIES = (0.3, 0.6, 1.0, 1.5)
SAMPLES, NOISE, REDRAWN = 10, 0.1, 0.5  # of a frame; standard deviation; probability of a new mode
WORDS, TOPICS, FOLLOWED = 20, 4, 0.7


def frames(count: int, steps: int, generator: torch.Generator) -> Tensor:
    """Sequences (steps, count, 10)."""
    import torch

    shape = (steps, count)
    fresh = torch.randint(len(FREQUENCIES), shape, generator=generator)
    drawn = torch.rand(shape, generator=generator) < REDRAWN
    drawn[0] = True
    # The step of the last draw before each step.
    last = torch.where(drawn, torch.arange(steps).unsqueeze(1), 0).cummax(0).values
    frequency = torch.tensor(FREQUENCIES)[fresh.gather(0, last)]
    start = 2 * math.pi * torch.rand(count, generator=generator)
    phase = start + SAMPLES * (frequency.cumsum(0) - frequency)
    clean = torch.sin(phase.unsqueeze(-1) + frequency.unsqueeze(-1) * torch.arange(SAMPLES))
    return clean + NOISE * torch.randn(clean.shape, generator=generator)


def permutations(generator: torch.Generator) -> Tensor:
    """The topics of a seed: what follows each word (4, 20)."""
    import torch

    return torch.stack([torch.randperm(WORDS, generator=generator) for _ in range(TOPICS)])


def tokens(count: int, steps: int, topics: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences (steps, count) of word numbers, and the topic of each (count,)."""
    import torch

    topic = torch.randint(TOPICS, (count,), generator=generator)
    anything = torch.randint(WORDS, (steps, count), generator=generator)
    followed = torch.rand(steps, count, generator=generator) < FOLLOWED
    words = [anything[0]]
    for any_word, follows in zip(anything[1:], followed[1:], strict=True):
        words.append(torch.where(follows, topics[topic, words[-1]], any_word))
    return torch.stack(words), topic


def best_frames() -> float:
    """What a model that knows the mode's law could reach per frame at most: noise and mode entropy, in nats."""
    share = REDRAWN / len(FREQUENCIES)
    stay = 1 - REDRAWN + share
    entropy = -stay * math.log(stay) - (len(FREQUENCIES) - 1) * share * math.log(share)
    return -SAMPLES * (0.5 * math.log(2 * math.pi * math.e) + math.log(NOISE)) - entropy
