r"""A simulator of two-layer ReLU networks under gradient flow or gradient descent, for many initialisations at once.

    f(x) = z^T (W x)_+
    dz_i/dt = sum_x p_x y g(y f(x)) (w_i.x)_+
    dw_i/dt = sum_x p_x y g(y f(x)) z_i 1[w_i.x > 0] x

on the mean loss (p_x = 1/n, or weights of your own), with g(m) = sigmoid(-m) for cross-entropy and 1[m < 1] for hinge.
It is what the closed forms of `modes` are laid beside, and the tool where they end: classes that overlap, units that
are active on both.

Reference: Tachet des Combes, Pezeshki, Shabanian, Courville, Bengio, "On the Learning Dynamics of Deep Neural
Networks", 2018, arXiv:1809.06848.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mechanisms._base.validation import as_finite, check_choice, check_number
from mechanisms.dynamics._checks import Values, refuse
from mechanisms.dynamics.modes import LOSSES, Loss

State = tuple[Tensor, ...]
METHODS = ("flow", "descent")


@dataclass(frozen=True)
class Trajectory:
    """What a simulation gave.

    Attributes:
        times: (times,), when.
        outputs: (..., times, samples), f(x) of every sample, not signed by the label.
        W: (..., units, features) at the end.
        z: (..., units) at the end.

    >>> flow = GradientFlow(step=0.1)
    >>> flow.simulate([[1.0]], [0.5], X=[[1.0]], y=[1], times=[0.0, 1.0]).outputs.shape
    torch.Size([2, 1])
    """

    times: Tensor
    outputs: Tensor
    W: Tensor
    z: Tensor


@dataclass(frozen=True)
class GradientFlow:
    """Integrates bias-free two-layer ReLU networks, a whole batch of them in one product of matrices.

    Args:
        step: the largest step of "flow"; the learning rate of "descent".
        method: "flow" is the classical Runge-Kutta method of order four, whose steps end at the times asked for;
            "descent" is full-batch gradient descent, each step of which takes `step` of time.

    Raises:
        ValueError: a step that is not above 0, an unknown method.

    >>> flow = GradientFlow(step=0.5)
    >>> a = torch.tensor([0.1, 1.0, 0.1])  # three networks with one unit each
    >>> z = torch.tensor([0.1, -0.5, -0.5])
    >>> found = flow.simulate(a.reshape(3, 1, 1), z.reshape(3, 1), X=[[1.0]], y=[1], times=[20.0])
    >>> (found.outputs[:, 0, 0] > 0).tolist()
    [True, True, False]
    """

    step: float | int = 0.01
    method: Literal["flow", "descent"] = "flow"

    def __post_init__(self) -> None:
        check_number(self.step, "step", above=0)
        check_choice(self.method, "method", METHODS)

    def simulate(
        self,
        W: Values,
        z: Values,
        X: Values,
        y: Values,
        times: Values,
        *,
        loss: Loss = "cross_entropy",
        weights: Values | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Trajectory:
        """Outputs on all samples at the given times, and the weights at the last of them.

        Args:
            W: hidden weights (..., units, features).
            z: output weights (..., units).
            X: inputs (samples, features), or (..., samples, features) for data of their own.
            y: labels +1 or -1, (samples,) or (..., samples).
            times: rising, from 0 on. With "descent" they must be multiples of the step.
            loss: "cross_entropy" or "hinge".
            weights: what each sample counts for, (samples,) or (..., samples); 1/samples by default. Copies of one
                input are one row with their total weight.
            progress: called with the step and the number of steps.

        Raises:
            ValueError: shapes that do not fit, labels other than +1 and -1, negative weights, times that do not rise.
        """
        check_choice(loss, "loss", LOSSES)
        W, z, X, y, share = self._checked(W, z, X, y, weights)
        signed = share * y

        def rates(state: State) -> State:
            inner = state[0] @ X.mT  # (..., units, samples)
            active = inner > 0
            hidden = torch.where(active, inner, 0)
            pull = signed * _pull(y * (state[1].unsqueeze(-2) @ hidden).squeeze(-2), loss)
            by_z = (hidden @ pull.unsqueeze(-1)).squeeze(-1)
            by_w = (torch.where(active, pull.unsqueeze(-2), 0) @ X) * state[1].unsqueeze(-1)
            return by_w, by_z

        def outputs(state: State) -> Tensor:
            return (state[1].unsqueeze(-2) @ (state[0] @ X.mT).relu()).squeeze(-2)

        marks = _rising(times)
        with torch.no_grad():
            kept, (W, z) = _integrate(rates, (W, z), marks, outputs, float(self.step), self.method, progress)
        return Trajectory(torch.tensor(marks, dtype=torch.float64), torch.stack(kept, dim=-2), W, z)

    def _checked(self, W: object, z: object, X: object, y: object, weights: object) -> tuple[Tensor, ...]:
        W, z, X, y = (
            as_finite(value, name, dtype=torch.float64)  # pyrefly: ignore
            for value, name in ((W, "W"), (z, "z"), (X, "X"), (y, "y"))
        )
        if W.ndim < 2 or z.shape != W.shape[:-1]:
            raise ValueError(
                f"W has shape {tuple(W.shape)} and z {tuple(z.shape)}; expected (..., units, features) and (..., units)"
            )
        if X.ndim < 2 or X.shape[-1] != W.shape[-1]:
            raise ValueError(f"X has shape {tuple(X.shape)}; expected (samples, {W.shape[-1]}), the features of W")
        if y.shape[-1:] != X.shape[-2:-1]:
            raise ValueError(f"y has shape {tuple(y.shape)}; expected one label for each of {X.shape[-2]} samples")
        refuse(y.abs() != 1, y, "y", "labels are +1 and -1")
        if weights is None:
            share = torch.full_like(y, 1 / y.shape[-1])
        else:
            share = as_finite(weights, "weights", dtype=torch.float64)  # pyrefly: ignore
            refuse(share < 0, share, "weights", "a sample counts for 0 or more")
        batch = W.shape[:-2]
        for value, name, inner in ((X, "X", 2), (y, "y", 1), (share, "weights", 1)):
            try:
                fits = torch.broadcast_shapes(value.shape[: value.ndim - inner], batch) == batch
            except RuntimeError:
                fits = False
            if not fits or (name == "weights" and value.shape[-1] != y.shape[-1]):
                raise ValueError(f"{name} has shape {tuple(value.shape)}, which does not fit W of {tuple(W.shape)}")
        return W, z, X, y, share


def chain_flow(
    layers: Values,
    times: Values,
    *,
    norm: Values = 1.0,
    frequency: Values = 1.0,
    loss: Loss = "cross_entropy",
    step: float | int = 0.01,
) -> Tensor:
    """The margin over time of a chain of L scalar layers on one direction, f = r u_1 ... u_L, balanced or not.

    Args:
        layers: u at time 0, (..., L).
        times: rising, from 0 on.
        norm: r > 0, of shape batch or one number.
        frequency: p in (0, 1], likewise.
        loss: "cross_entropy" or "hinge".
        step: the largest step of the classical Runge-Kutta method.

    Returns:
        (..., times), float64.

    Raises:
        ValueError: no layers, values out of range, times that do not rise.

    >>> from mechanisms.dynamics.modes import Mode, margin_curve
    >>> simulated = chain_flow([0.5, 0.5, 0.5], [5.0, 10.0], step=0.1)
    >>> torch.allclose(simulated, margin_curve(Mode(1.0, 1.0, 0.125, depth=3), [5.0, 10.0]))
    True
    """
    check_choice(loss, "loss", LOSSES)
    named = ((layers, "layers"), (norm, "norm"), (frequency, "frequency"))
    u, r, p = (as_finite(value, name, dtype=torch.float64) for value, name in named)
    if u.ndim < 1 or u.shape[-1] == 0:
        raise ValueError(f"layers has shape {tuple(u.shape)}; expected (..., layers)")
    refuse(r <= 0, r, "norm", "it must be above 0")
    refuse((p <= 0) | (p > 1), p, "frequency", "it is a fraction of the samples, in (0, 1]")

    def margin(state: State) -> Tensor:
        return r * state[0].prod(dim=-1)

    def rates(state: State) -> State:
        depth = state[0].shape[-1]
        others = torch.stack([_without(state[0], layer).prod(dim=-1) for layer in range(depth)], dim=-1)
        return ((p * r * _pull(margin(state), loss)).unsqueeze(-1) * others,)

    with torch.no_grad():
        kept, _ = _integrate(rates, (u,), _rising(times), margin, check_number(step, "step", above=0), "flow")
    return torch.stack(kept, dim=-1)


def _without(u: Tensor, layer: int) -> Tensor:
    return torch.cat([u[..., :layer], u[..., layer + 1 :]], dim=-1)


def _pull(margin: Tensor, loss: Loss) -> Tensor:
    """g(m) = -l'(m)."""
    return torch.sigmoid(-margin) if loss == "cross_entropy" else (margin < 1).to(margin.dtype)


def _rising(times: Values) -> list[float]:
    """Times as a list of numbers that rise from 0 on.

    >>> _rising([0, 1.5])
    [0.0, 1.5]
    """
    t = as_finite(times, "times", dtype=torch.float64)
    if t.ndim != 1 or t.numel() == 0:
        raise ValueError(f"times has shape {tuple(t.shape)}; expected (times,), one or more")
    refuse(t < 0, t, "times", "they start at 0")
    if bool((t.diff() < 0).any()):
        raise ValueError("times must rise; sort them")
    return t.tolist()


def _integrate(
    rates: Callable[[State], State],
    state: State,
    times: list[float],
    read: Callable[[State], Tensor],
    step: float,
    method: str,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[list[Tensor], State]:
    """What is read of the state at each time, and the last state.

    >>> kept, _ = _integrate(lambda s: (-s[0],), (torch.ones(1),), [1.0], lambda s: s[0], 0.01, "flow")
    >>> round(float(kept[0]), 6)
    0.36788
    """
    plan = []
    clock = 0.0
    for place, time in enumerate(times):
        count = (time - clock) / step
        if method == "descent":
            if abs(count - round(count)) > 1e-6 * max(1.0, count):
                raise ValueError(f"times[{place}]={time:g}: with descent times are multiples of the step {step:g}")
            plan.append((round(count), step))
        else:
            # Not one step more because a difference of times was rounded up.
            number = math.ceil(count - 1e-9)
            plan.append((number, (time - clock) / number if number else 0.0))
        clock = clock + plan[-1][0] * plan[-1][1]
    total, done, kept = sum(count for count, _ in plan), 0, []
    advance = _descent_step if method == "descent" else _runge_kutta_step
    for count, size in plan:
        for _ in range(count):
            state = advance(rates, state, size)
            done += 1
            if progress is not None:
                progress(done, total)
        kept.append(read(state))
    return kept, state


def _descent_step(rates: Callable[[State], State], state: State, size: float) -> State:
    return tuple(torch.add(value, rate, alpha=size) for value, rate in zip(state, rates(state), strict=True))


def _runge_kutta_step(rates: Callable[[State], State], state: State, size: float) -> State:
    def moved(slopes: State, by: float) -> State:
        return tuple(torch.add(value, slope, alpha=by) for value, slope in zip(state, slopes, strict=True))

    one = rates(state)
    two = rates(moved(one, size / 2))
    three = rates(moved(two, size / 2))
    four = rates(moved(three, size))
    return tuple(
        value + size / 6 * (a + 2 * (b + c) + d) for value, a, b, c, d in zip(state, one, two, three, four, strict=True)
    )
