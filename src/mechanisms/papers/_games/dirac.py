"""The Dirac GAN: a discriminator psi x, real data at 0, a fake at theta, and the saturating loss."""

from __future__ import annotations

from typing import Any

from mechanisms.lab import Bench, config

# Order of play and momenta of (discriminator, generator).
PLAYS: dict[str, tuple[str, tuple[float, float]]] = {
    "alternating-negative": ("alternating", (-0.5, -0.5)),
    "alternating-one-negative": ("alternating", (-0.5, 0.0)),
    "alternating": ("alternating", (0.0, 0.0)),
    "alternating-effective": ("alternating", (0.0, 0.0)),  # at lr / 1.5, the effective step of -1/2
    "alternating-positive": ("alternating", (0.5, 0.5)),
    "simultaneous-negative": ("simultaneous", (-0.5, -0.5)),
    "simultaneous-one-negative": ("simultaneous", (-0.5, 0.0)),
    "simultaneous": ("simultaneous", (0.0, 0.0)),
    "simultaneous-positive": ("simultaneous", (0.5, 0.5)),
    "extragradient": ("simultaneous", (0.0, 0.0)),
    "optimistic": ("simultaneous", (0.0, 0.0)),
    "consensus": ("simultaneous", (0.0, 0.0)),
}


@config
class Dirac:
    """From (1, 1)."""

    lr: float = 0.5
    steps: int = 5000
    drawn: int = 150
    consensus: float = 0.5


def run_dirac(settings: Dirac, variant: str, bench: Bench) -> dict[str, float]:
    """Play with the part's own optimisers, in double precision."""
    import torch
    from torch.nn.functional import logsigmoid

    from mechanisms.dynamics.extrapolation import ExtraGradient, OptimisticGradient
    from mechanisms.dynamics.games import play
    from mechanisms.dynamics.negative_momentum import NegativeMomentumSGD

    order, momenta = PLAYS[variant]
    lr = settings.lr / 1.5 if variant == "alternating-effective" else settings.lr
    psi, theta = (torch.nn.Parameter(torch.ones((), dtype=torch.float64)) for _ in range(2))

    def value() -> torch.Tensor:
        return logsigmoid(theta * psi)

    losses = [lambda: -value(), value]
    if variant == "consensus":
        regularised = consensus(value, psi, theta, settings.consensus)
        losses = [lambda: -value() + regularised(), lambda: value() + regularised()]
    make: Any = {"extragradient": ExtraGradient, "optimistic": OptimisticGradient}.get(variant)
    if make is None:
        optimizers: list[Any] = [
            NegativeMomentumSGD([player], lr=lr, momentum=beta)
            for player, beta in zip((psi, theta), momenta, strict=True)
        ]
    else:
        optimizers = [make([player], lr=lr) for player in (psi, theta)]
    first, every = 2.0**0.5, max(1, settings.steps // 100)
    for step in range(settings.steps + 1):
        if step <= settings.drawn:
            bench.log(step, psi=psi.item(), theta=theta.item())
        if step % every == 0:
            bench.log(step, distance=max((psi.item() ** 2 + theta.item() ** 2) ** 0.5, 1e-30))
        if step < settings.steps:
            play(losses, optimizers, order=order)
        bench.progress(step, settings.steps)
    distance = (psi.item() ** 2 + theta.item() ** 2) ** 0.5
    return {"distance": distance, "shrinkage": distance / first, "converged": float(distance < 1e-6)}


def consensus(value: Any, psi: Any, theta: Any, weight: float) -> Any:
    """The regulariser of consensus optimisation, weight |v|² / 2, whose gradient is weight J^T v."""
    import torch

    def regularised() -> torch.Tensor:
        gradients = torch.autograd.grad(value(), [psi, theta], create_graph=True)
        return weight / 2 * torch.stack(gradients).square().sum()

    return regularised
