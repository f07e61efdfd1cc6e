"""Time as a function of the margin, and its inverse, for many modes at once.

Every mode of cross-entropy is `df/dtau = sigmoid(-f) w(f)` in a time `tau` of its own, so that

    tau(f) = integral from f0 to f of (1 + e^u) / w(u) du,     w(u) = sqrt(kappa^2 + u^2)  or  u^power.

Each mode gets a table of panels over [f0, F] on which four Gauss-Legendre points are exact to rounding. A time is then
found in its panel, guessed by a cubic through both ends, and polished by a step of Newton's method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

PANEL = 0.1  # widest panel, in asinh(u / scale) and in u
POINTS, WEIGHTS = (values.tolist() for values in np.polynomial.legendre.leggauss(4))
CHUNK = {"cpu": 1 << 15}  # pairs at a time: what the processor's cache holds
LARGEST = 700.0  # e^margin has to stay a number
SMALLEST = 1e-150  # and the square of a margin above zero


@dataclass(frozen=True)
class Speed:
    """w(u): `sqrt(kappa^2 + u^2)` for power 1, `u^power` otherwise (then kappa is zero)."""

    power: float
    plain: bool = False  # kappa is 0 and u above 0, so that w(u) = u

    def at(self, u: Tensor, kappa: Tensor) -> Tensor:
        """w(u)."""
        if self.power != 1:
            return u.pow(self.power)
        return u if self.plain else torch.addcmul(kappa.square(), u, u).sqrt_()

    def density(self, u: Tensor, kappa: Tensor) -> Tensor:
        """dtau/du = (1 + e^u) / w(u)."""
        return u.exp().add_(1).div_(self.at(u, kappa))

    def slope(self, u: Tensor, kappa: Tensor) -> Tensor:
        """How dtau/du falls with kappa: kappa (1 + e^u) / w(u)^3."""
        w = self.at(u, kappa)
        return u.exp().add_(1).mul_(kappa / w / w / w)


def integral(
    density: Any,
    low: Float[Tensor, "modes times"],
    high: Float[Tensor, "modes times"],
    kappa: Float[Tensor, "modes 1"],
) -> Float[Tensor, "modes times"]:
    """Gauss-Legendre over [low, high]; point by point, so that nothing larger than the result is kept."""
    half = (high - low) / 2
    middle = low + half
    total = torch.zeros_like(half)
    for point, weight in zip(POINTS, WEIGHTS, strict=True):
        total.add_(density(torch.add(middle, half, alpha=point), kappa), alpha=weight)
    return total.mul_(half)


@dataclass(frozen=True)
class Table:
    """Panels of some modes: margins at their ends, rising, and the time at each of them."""

    speed: Speed
    kappa: Float[Tensor, "modes 1"]
    margins: Float[Tensor, "modes ends"]
    times: Float[Tensor, "modes ends"]

    @classmethod
    def over(
        cls,
        speed: Speed,
        start: Float[Tensor, " modes"],
        kappa: Float[Tensor, " modes"],
        end: Float[Tensor, " modes"],
    ) -> Table:
        """A table from `start` to `end`; panels are short beside the distance to w's zero, and in e^u."""
        low, high, kappa = start[:, None], end[:, None], kappa[:, None]
        scale = torch.maximum(kappa, low)  # w is smooth on the scale of kappa, and of what lies between 0 and f0
        first, last = (low / scale).asinh(), (high / scale).asinh()
        count = [math.ceil(max(1.0, float(span.max()) / PANEL)) for span in (last - first, high - low)]
        curved, even = (torch.linspace(0, 1, number + 1, dtype=start.dtype, device=start.device) for number in count)
        ends = torch.cat([(first + (last - first) * curved).sinh() * scale, low + (high - low) * even], dim=1)
        ends = ends.clamp(low, high).sort(dim=1).values
        steps = integral(speed.density, ends[:, :-1], ends[:, 1:], kappa)
        return cls(speed, kappa, ends, torch.cat([torch.zeros_like(low), steps.cumsum(dim=1)], dim=1))

    def at(self, margins: Float[Tensor, "modes times"]) -> Float[Tensor, "modes times"]:
        """Time at margins within the table."""
        panel = self._panel(self.margins, margins)
        low = self.margins.gather(1, panel)
        return self.times.gather(1, panel) + integral(self.speed.density, low, margins, self.kappa)

    def reached(self, times: Float[Tensor, "modes times"]) -> Float[Tensor, "modes times"]:
        """Margin at times within the table."""
        panel = self._panel(self.times, times)
        low, high = self.margins.gather(1, panel), self.margins.gather(1, panel + 1)
        began, ended = self.times.gather(1, panel), self.times.gather(1, panel + 1)
        rate = 1 / self.speed.density(self.margins, self.kappa)
        x = ((times - began) / (ended - began).clamp(min=torch.finfo(times.dtype).tiny)).clamp(0, 1)
        # The cubic with the right values and slopes at both ends of the panel.
        width = ended - began
        guess = (
            low
            + (high - low) * x.square() * (3 - 2 * x)
            + width * x * (1 - x) * (rate.gather(1, panel) * (1 - x) - rate.gather(1, panel + 1) * x)
        )
        guess = torch.minimum(torch.maximum(guess, low), high)
        # The guess is within about 1e-6 of the panel's width, so one step of Newton's method is exact to rounding.
        error = began + integral(self.speed.density, low, guess, self.kappa) - times
        guess = guess - error / self.speed.density(guess, self.kappa)
        return torch.minimum(torch.maximum(guess, low), high)

    def sensitivity(self, margins: Float[Tensor, "modes times"]) -> Float[Tensor, "modes times"]:
        """How the time at a margin falls with kappa: the integral of kappa (1 + e^u) / w^3."""
        steps = integral(self.speed.slope, self.margins[:, :-1], self.margins[:, 1:], self.kappa)
        whole = torch.cat([torch.zeros_like(steps[:, :1]), steps.cumsum(dim=1)], dim=1)
        panel = self._panel(self.margins, margins)
        part = integral(self.speed.slope, self.margins.gather(1, panel), margins, self.kappa)
        return whole.gather(1, panel) + part

    @staticmethod
    def _panel(ends: Tensor, values: Tensor) -> Tensor:
        found = torch.searchsorted(ends, values.contiguous(), right=True) - 1
        return found.clamp(0, ends.shape[1] - 2)


class _Elapsed(torch.autograd.Function):
    """tau(f; f0, kappa), with its first derivatives."""

    @staticmethod
    def forward(ctx: Any, margins: Tensor, start: Tensor, kappa: Tensor, speed: Speed) -> Tensor:
        end = torch.maximum(margins.amax(dim=1), start)
        table = Table.over(speed, start, kappa, end)
        ctx.table = table
        ctx.save_for_backward(margins, start)
        return table.at(margins)

    @staticmethod
    @once_differentiable
    def backward(  # pyrefly: ignore[bad-override]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad,) = grads
        margins, start = ctx.saved_tensors
        table: Table = ctx.table
        density = table.speed.density
        by_start = -(grad.sum(dim=1)) * density(start[:, None], table.kappa)[:, 0]
        by_kappa = -(grad * table.sensitivity(margins)).sum(dim=1)
        return grad * density(margins, table.kappa), by_start, by_kappa, None


class _Reached(torch.autograd.Function):
    """f(tau; f0, kappa), with its first derivatives by the implicit function theorem."""

    @staticmethod
    def forward(ctx: Any, times: Tensor, start: Tensor, kappa: Tensor, speed: Speed) -> Tensor:
        table = Table.over(speed, start, kappa, ceiling(speed, start, kappa, times.amax(dim=1)))
        margins = table.reached(times)
        ctx.table = table
        ctx.save_for_backward(margins, start)
        return margins

    @staticmethod
    @once_differentiable
    def backward(  # pyrefly: ignore[bad-override]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad,) = grads
        margins, start = ctx.saved_tensors
        table: Table = ctx.table
        density = table.speed.density
        by_time = grad / density(margins, table.kappa)
        by_start = by_time.sum(dim=1) * density(start[:, None], table.kappa)[:, 0]
        by_kappa = (by_time * table.sensitivity(margins)).sum(dim=1)
        return by_time, by_start, by_kappa, None


def ceiling(
    speed: Speed, start: Float[Tensor, " modes"], kappa: Float[Tensor, " modes"], times: Float[Tensor, " modes"]
) -> Float[Tensor, " modes"]:
    """A margin that is not reached by then: the last unit before F alone takes (1 - 1/e) e^F / w(F) or longer."""
    bound = torch.full_like(start, 1.1 * LARGEST)
    for _ in range(8):  # falls towards the solution from above
        bound = (times * speed.at(bound, kappa) / (1 - math.exp(-1))).clamp(min=1.0).log().clamp(min=2.0)
    return torch.maximum(bound, start + 1)


def elapsed(
    margins: Float[Tensor, "modes times"], start: Float[Tensor, " modes"], kappa: Float[Tensor, " modes"], power: float
) -> Float[Tensor, "modes times"]:
    """tau from `start` to each margin, in chunks of modes."""
    return _in_chunks(_Elapsed, margins, start, kappa, power)


def reached(
    times: Float[Tensor, "modes times"], start: Float[Tensor, " modes"], kappa: Float[Tensor, " modes"], power: float
) -> Float[Tensor, "modes times"]:
    """The margin at each tau, in chunks of modes."""
    return _in_chunks(_Reached, times, start, kappa, power)


def _in_chunks(
    function: type[torch.autograd.Function], values: Tensor, start: Tensor, kappa: Tensor, power: float
) -> Tensor:
    if values.numel() == 0:
        return values
    size = max(1, CHUNK.get(values.device.type, 1 << 22) // values.shape[1])
    plain = power == 1 and not bool((kappa != 0).any())
    rows = zip(values.split(size), start.split(size), kappa.split(size), strict=True)
    return torch.cat([function.apply(*row, Speed(power, plain)) for row in rows])


class _Relation(torch.autograd.Function):
    """The s that solves s + k (e^s - 1) = total, elementwise."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, k: Tensor) -> Tensor:
        total, k = torch.broadcast_tensors(total, k)
        # The left side is convex: from above, Newton's method falls to the solution. Both starts lie above it.
        s = total / (1 + k)
        positive = total.clamp(min=0)
        s = torch.where(total > 0, torch.minimum(s, (positive / k).log1p()), s)
        for _ in range(12):
            s = s - (s + k * s.expm1() - total) / (1 + k * s.exp())
        ctx.save_for_backward(s, k)
        return s

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grads
        s, k = ctx.saved_tensors
        by_total = grad / (1 + k * s.exp())
        return by_total, -by_total * s.expm1()


def solve_relation(total: Tensor, k: Tensor) -> Tensor:
    """The s that solves s + k (e^s - 1) = total: total + k - W(k e^(total + k)) without its overflow; k >= 0.

    >>> s = solve_relation(torch.tensor(1e3), torch.tensor(1.0))
    >>> round(float(s + s.expm1()))
    1000
    """
    total, k = torch.broadcast_tensors(total, k)
    return _Relation.apply(total, k)
