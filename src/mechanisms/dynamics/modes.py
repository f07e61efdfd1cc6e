r"""Learning curves in closed form: the margin of one mode over training time, and the time to a margin.

A *mode* is one class, or one direction of the data: inputs of norm r that make up a fraction p of the samples, and the
hidden units that are active on them. Under gradient flow on the mean loss its margin f (label times logit) obeys

    df/dt = p g(f) sqrt(C^2 + 4 r^2 f^2)              two layers, C^2 = S^2 - 4 r^2 f^2 conserved      (1)
    df/dt = L p r^(2/L) g(f) f^(2 - 2/L)              L balanced layers (L = 2 is C = 0)

with g(f) = sigmoid(-f) for cross-entropy and 1 below margin 1 for hinge. Time is that of gradient flow: a step of
gradient descent of size lr takes lr of it. Losses that are summed, not averaged, run n times faster.

Reference: Tachet des Combes, Pezeshki, Shabanian, Courville, Bengio, "On the Learning Dynamics of Deep Neural
Networks", 2018, arXiv:1809.06848.

>>> mode = Mode(frequency=0.3, norm=1.7, initial_margin=0.00425)
>>> hinge = time_to_margin(mode, 1.0, loss="hinge")
>>> cross_entropy = time_to_confidence(mode, [0.6, 0.9, 0.99, 0.999])
>>> [round(float(t), 2) for t in (hinge, *cross_entropy)]
[5.35, 9.38, 16.52, 40.95, 186.02]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechanisms._base.validation import as_finite, check_choice
from mechanisms.dynamics._checks import Values, refuse
from mechanisms.dynamics._clock import LARGEST, SMALLEST, elapsed, reached, solve_relation
from mechanisms.dynamics._expi import expi

Loss = Literal["cross_entropy", "hinge"]
LOSSES = ("cross_entropy", "hinge")


@dataclass(frozen=True)
class Mode:
    """One class or direction of the data, or a batch of them: fields may be tensors that broadcast together.

    Args:
        frequency: p, the fraction of the samples that belong to it, in (0, 1].
        norm: r > 0, the norm of its inputs.
        initial_margin: f0, the label times the network's output (the logit) at time 0. Above 0 where all layers are
            balanced; at or below 0 the mode would stay at, or fall into, the saddle for ever.
        imbalance: C >= 0, conserved; 0 where every unit has `w.x = r z`. Two layers only; `imbalance` computes it.
        depth: L >= 1, the number of layers; 1 is logistic regression. One number for the whole batch.

    Raises:
        ValueError: a field out of its range, an imbalance with another depth than 2, fields that do not broadcast.

    >>> Mode(frequency=torch.tensor([0.3, 0.7]), norm=1.0, initial_margin=0.01).shape
    torch.Size([2])
    """

    frequency: Values
    norm: Values
    initial_margin: Values
    imbalance: Values = 0.0
    depth: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.depth, bool) or not isinstance(self.depth, int) or self.depth < 1:
            raise ValueError(f"depth={self.depth!r}: it must be a whole number of layers, 1 or more")
        p, r, f0, c = self.fields()
        refuse(~((p > 0) & (p <= 1)), p, "frequency", "it is a fraction of the samples, in (0, 1]")
        refuse(r <= 0, r, "norm", "it must be above 0")
        refuse(c < 0, c, "imbalance", "C is a square root, 0 or more")
        refuse(f0 > LARGEST, f0, "initial_margin", f"it must be at most {LARGEST:g}")
        if self.depth != 2:
            refuse(c > 0, c, "imbalance", f"only depth 2 has it, and depth is {self.depth}; leave it at 0")
        if self.depth > 1:
            stuck = "with imbalance 0 the mode stays at the saddle for ever: give a margin above 0, or its imbalance"
            refuse((c <= SMALLEST) & (f0 <= SMALLEST), f0, "initial_margin", stuck)

    def fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Frequency, norm, initial margin and imbalance as float64 tensors of one shape."""
        named = {name: getattr(self, name) for name in ("frequency", "norm", "initial_margin", "imbalance")}
        places = [value.device for value in named.values() if isinstance(value, Tensor)]
        place = places[0] if places else None
        values = [as_finite(value, name, dtype=torch.float64) for name, value in named.items()]
        values = [value.to(place) if value.ndim == 0 else value for value in values]
        try:
            p, r, f0, c = torch.broadcast_tensors(*values)
        except RuntimeError:
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in zip(named, values, strict=True))
            raise ValueError(f"the fields of a mode must broadcast together, got {shapes}") from None
        return p, r, f0, c

    @property
    def shape(self) -> torch.Size:
        """Shape of the batch; empty for a single mode."""
        return self.fields()[0].shape

    def __iter__(self) -> Iterator[Mode]:
        """The modes of a batch, one by one."""
        for values in zip(*(value.reshape(-1) for value in self.fields()), strict=True):
            yield Mode(*values, depth=self.depth)


def imbalance(activity: Values, margin: Values, norm: Values) -> Tensor:
    """C, the conserved imbalance, from S = sum over units of (w.x)^2 + r^2 z^2, the margin f and the norm r.

    Args:
        activity: S, 0 or more.
        margin: f = sum over units of z (w.x), signed by the label.
        norm: r > 0.

    Raises:
        ValueError: S < 2 r |f|, which no network has; rounding (1e-12 of S) is forgiven.

    >>> float(imbalance(activity=5.0, margin=2.0, norm=1.0))
    3.0
    """
    s, f, r = (
        as_finite(value, name, dtype=torch.float64)
        for value, name in ((activity, "activity"), (margin, "margin"), (norm, "norm"))
    )
    refuse(r <= 0, r, "norm", "it must be above 0")
    least = 2 * r * f.abs()
    s, least = torch.broadcast_tensors(s, least)
    refuse(
        s < least * (1 - 1e-12), s, "activity", "S is at least 2 r |margin|, so C^2 < 0: no network is in this state"
    )
    return ((s - least).clamp(min=0) * (s + least)).sqrt()


def margin_curve(mode: Mode, times: Values, *, loss: Loss = "cross_entropy") -> Tensor:
    """The margin f(t) of a mode, or of a batch of modes, under gradient flow.

    Hinge and logistic regression are closed forms; cross-entropy with two or more layers inverts the time integral (2)
    to about 1e-13. First derivatives with respect to times and the fields of the mode flow through it.

    Args:
        mode: fields of shape B.
        times: 0 or more, of shape (times,) for all modes, (B..., times) for each its own, or a single number.
        loss: "cross_entropy" or "hinge"; hinge stops at margin 1.

    Returns:
        float64 of shape (B..., times), or B for a single time.

    Raises:
        ValueError: negative or non-finite times, a shape that does not fit, an unknown loss.

    >>> mode = Mode(frequency=0.5, norm=2.0, initial_margin=0.01)
    >>> margin_curve(mode, [0.0, 2.0, 4.0], loss="hinge")
    tensor([0.0100, 0.5460, 1.0000], dtype=torch.float64)
    >>> margin_curve(mode, [0.0, 2.0, 4.0, 1000.0])
    tensor([0.0100, 0.0716, 0.4311, 9.7443], dtype=torch.float64)
    """
    check_choice(loss, "loss", LOSSES)
    fields, t, shape = _laid_out(mode, times, "times")
    refuse(t < 0, t, "times", "they start at 0")
    curve = _hinge_margin(mode.depth, *fields, t) if loss == "hinge" else _entropy_margin(mode.depth, *fields, t)
    return curve.reshape(shape)


def error_curve(mode: Mode, times: Values, *, loss: Loss = "cross_entropy") -> Tensor:
    """The error e(t) = sigmoid(-f(t)), the probability given to the wrong class: a plateau, a fast drop, a slow tail.

    Args and errors are those of `margin_curve`.

    >>> mode = Mode(frequency=0.5, norm=2.0, initial_margin=0.01)
    >>> [round(float(e), 3) for e in error_curve(mode, [0.0, 5.0, 50.0])]
    [0.498, 0.297, 0.002]
    """
    return torch.sigmoid(-margin_curve(mode, times, loss=loss))


def time_to_margin(mode: Mode, margin: Values, *, loss: Loss = "cross_entropy") -> Tensor:
    """The time (2) at which a mode first has a margin: 0 if it begins with it, infinite for hinge beyond 1.

    Args:
        mode: fields of shape B.
        margin: of shape (margins,) for all modes, (B..., margins) for each its own, or a single number; at most 700.
        loss: "cross_entropy" or "hinge".

    Returns:
        float64 of shape (B..., margins), or B for a single margin; differentiable once.

    Raises:
        ValueError: non-finite or too large margins, a shape that does not fit, an unknown loss.

    >>> mode = Mode(frequency=torch.tensor([0.5, 0.25]), norm=2.0, initial_margin=0.01)
    >>> time_to_margin(mode, 1.0, loss="hinge")
    tensor([2.3026, 4.6052], dtype=torch.float64)
    >>> float(time_to_margin(Mode(0.5, 2.0, 0.01), 1.5, loss="hinge"))
    inf
    """
    check_choice(loss, "loss", LOSSES)
    fields, f, shape = _laid_out(mode, margin, "margin")
    refuse(f > LARGEST, f, "margin", f"it must be at most {LARGEST:g}")
    f0 = fields[2][:, None]
    there = f <= f0
    goal = torch.where(there, f0, f)
    if loss == "hinge":
        time = _hinge_time(mode.depth, *fields, goal)
        time = torch.where(goal > 1, torch.inf, time)
    else:
        time = _entropy_time(mode.depth, *fields, goal)
    return torch.where(there, torch.zeros_like(time), time).reshape(shape)


def time_to_confidence(mode: Mode, confidence: Values, *, loss: Loss = "cross_entropy") -> Tensor:
    """The time at which the right class is given a probability: `time_to_margin` of the confidence's logit.

    Args:
        mode, loss: see `time_to_margin`, also for the shapes.
        confidence: in (0, 1). Hinge stops at margin 1, a confidence of 0.731.

    Raises:
        ValueError: a confidence outside (0, 1), beside what `time_to_margin` raises.

    >>> slow, fast = time_to_confidence(Mode(torch.tensor([0.1, 0.2]), norm=1.0, initial_margin=0.01), 0.9)
    >>> round(float(slow / fast), 9)
    2.0
    """
    c = as_finite(confidence, "confidence", dtype=torch.float64)
    refuse((c <= 0) | (c >= 1), c, "confidence", "it must lie in (0, 1)")
    return time_to_margin(mode, torch.logit(c), loss=loss)


def _laid_out(
    mode: Mode, values: Values, name: str
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor, torch.Size]:
    """The mode's fields as (modes,), the values as (modes, values), and the shape of the result."""
    fields = mode.fields()
    shape = fields[0].shape
    v = as_finite(values, name, dtype=torch.float64).to(fields[0].device)
    count = v.shape[-1:]
    try:
        whole = torch.broadcast_shapes(shape + count if v.ndim else shape, v.shape)
    except RuntimeError:
        whole = None
    if v.ndim and (whole is None or whole != shape + count):
        raise ValueError(
            f"{name} has shape {tuple(v.shape)}; expected one number, ({name},) for all modes, or "
            f"{(*shape, name)} for modes of shape {tuple(shape)}"
        )
    result = shape + count
    if not v.ndim:
        v = v.reshape(1)
    rows = v.expand(*shape, v.shape[-1]).reshape(fields[0].numel(), v.shape[-1])
    p, r, f0, c = (field.reshape(-1) for field in fields)
    return (p, r, f0, c), rows, result


Fields = Float[Tensor, " modes"]
Rows = Float[Tensor, "modes values"]


def _pace(depth: int, r: Fields) -> Fields:
    """What multiplies p t: L r^(2/L)."""
    return depth * r.pow(2 / depth)


def _entropy_margin(depth: int, p: Fields, r: Fields, f0: Fields, c: Fields, t: Rows) -> Rows:
    clock = (p * _pace(depth, r))[:, None] * t
    if depth == 1:  # f + e^f grows like time
        return solve_relation((f0 + f0.expm1())[:, None] + clock, torch.ones_like(clock))
    return reached(clock, f0, c / (2 * r), 2.0 - 2.0 / depth)


def _entropy_time(depth: int, p: Fields, r: Fields, f0: Fields, c: Fields, f: Rows) -> Rows:
    pace = (p * _pace(depth, r))[:, None]
    start = f0[:, None]
    if depth == 1:
        return (f - start + start.exp() * (f - start).expm1()) / pace
    if depth == 2 and not (bool((c != 0).any()) or c.requires_grad):
        return ((f / start).log() + expi(f) - expi(start)) / pace
    return elapsed(f, f0, c / (2 * r), 2.0 - 2.0 / depth) / pace


def _hinge_time(depth: int, p: Fields, r: Fields, f0: Fields, c: Fields, f: Rows) -> Rows:
    """Time to a margin while no sample is satisfied."""
    pace = (p * _pace(depth, r))[:, None]
    start, kappa = f0[:, None], (c / (2 * r))[:, None]
    if depth == 1:
        return (f - start) / pace
    if depth == 2:
        return (_above(f, kappa).log() - _above(start, kappa).log()) / pace
    power = 1 - 2 / depth
    return (start.pow(-power) - f.pow(-power)) / (power * pace)


def _above(f: Rows, kappa: Float[Tensor, "modes 1"]) -> Rows:
    """f + sqrt(kappa^2 + f^2), without cancellation below 0."""
    root = torch.hypot(kappa.expand_as(f), f)
    safe = torch.where(f < 0, root - f, torch.ones_like(f))
    return torch.where(f < 0, kappa.square() / safe, f + root)


def _hinge_margin(depth: int, p: Fields, r: Fields, f0: Fields, c: Fields, t: Rows) -> Rows:
    start = f0[:, None]
    one = torch.ones_like(start)
    stops = torch.where(start < 1, _hinge_time(depth, p, r, f0, c, torch.maximum(one, start)), torch.zeros_like(start))
    over = t >= stops
    clock = (p * _pace(depth, r))[:, None] * torch.where(over, torch.zeros_like(t), t)
    if depth == 1:
        f = start + clock
    elif depth == 2:  # kappa sinh(clock + asinh(f0 / kappa)), in a form that also serves kappa = 0
        kappa = (c / (2 * r))[:, None]
        root = torch.hypot(kappa, start)
        sign = torch.where(start < 0, -one, one)
        f = start * (sign * clock).exp() + kappa.square() / (root + start.abs()) * clock.sinh()
    else:
        power = 1 - 2 / depth
        f = (start.pow(-power) - power * clock).pow(-1 / power)
    return torch.where(over, torch.maximum(one, start), f)
