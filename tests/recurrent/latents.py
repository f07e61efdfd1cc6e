"""Small Z-Forcing models, sequences of each kind, and noise."""

import torch
from torch import Tensor

from mechanisms.recurrent.z_forcing import ZForcing

STEPS, ROWS, SIZE = 6, 4, 3
KINDS = {
    "gaussian": {},
    "gaussian_mixture": {"num_components": 3},
    "bernoulli": {},
    "categorical": {},
}


def make(seed: int = 0, size: int = SIZE, hidden: int = 8, latent: int = 2, **options) -> ZForcing:
    torch.manual_seed(seed)
    return ZForcing(size, hidden, latent, **options).double()


def sequence(kind: str = "gaussian", steps: int = STEPS + 1, rows: int = ROWS, size: int = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if kind == "categorical":
        return torch.randint(size, (steps, rows), generator=generator)
    frames = torch.randn(steps, rows, size, generator=generator, dtype=torch.float64)
    return (frames > 0).double() if kind == "bernoulli" else frames


def draw(steps: int = STEPS, rows: int = ROWS, latent: int = 2) -> Tensor:
    return torch.randn(steps, rows, latent, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
