"""Random streams: independent generators that follow from one seed and a name.

Data, initial weights, batch order and flips each draw from a stream of their own, so that changing how often one of
them draws leaves the others as they were, and variants of an experiment stay paired.
"""

import hashlib
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch

RandomState = int | np.integer | np.random.Generator | np.random.RandomState | torch.Generator | None


def stream_seed(seed: int, name: str) -> int:
    """A 63-bit seed for the stream `name` of `seed`; distinct names give unrelated streams.

    >>> stream_seed(0, "weights") == stream_seed(0, "weights")
    True
    >>> stream_seed(0, "weights") == stream_seed(0, "batches")
    False
    """
    digest = hashlib.sha256(f"{int(seed)}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for the stream `name` of `seed`, on `device`.

    >>> torch.randint(10, (3,), generator=torch_generator(0, "weights")).shape
    torch.Size([3])
    """
    return torch.Generator(device=device).manual_seed(stream_seed(seed, name))


def numpy_generator(seed: int, name: str) -> np.random.Generator:
    """A NumPy generator for the stream `name` of `seed`.

    >>> bool(0 <= numpy_generator(0, "data").random() < 1)
    True
    """
    return np.random.default_rng(stream_seed(seed, name))


def as_seed(random_state: RandomState) -> int:
    """One integer seed from what scikit-learn or torch users pass as `random_state` or `generator`.

    An integer is itself, `None` draws a fresh one from the operating system, a generator gives its next draw.

    Raises:
        TypeError: anything else.

    >>> as_seed(7)
    7
    """
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1, np.uint64)[0] >> 1)
    if isinstance(random_state, torch.Generator):
        return int(torch.randint(2**62, (), generator=random_state, device=random_state.device))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**62))
    if isinstance(random_state, int | np.integer) and not isinstance(random_state, bool):
        return int(random_state)
    raise TypeError(
        f"random_state is a {type(random_state).__name__}; give an integer, None, or a NumPy or torch generator"
    )


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Generator[None]:
    """Torch's own generators, on the CPU and on `device`, seeded inside the block and as before behind it.

    For what draws from them and takes no generator: fresh weights, dropout.

    >>> with seeded(0):
    ...     first = torch.rand(2)
    >>> with seeded(0):
    ...     bool((torch.rand(2) == first).all())
    True
    """
    place = torch.device(device)
    # Not torch.manual_seed: it would also reseed accelerators that are not restored afterwards.
    cuda = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        torch.default_generator.manual_seed(seed)
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield
