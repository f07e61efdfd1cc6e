"""Where cross-entropy with an L2 penalty comes to rest in the linear regime, by its convex dual.

For margins m = Y f of a model that is linear in its features (`mechanisms.dynamics.features`), K = Y Phi Phi^T Y:

    weights   min sum_i log(1 + exp(-m_i)) + (lambda / 2) |theta|^2     K alpha = lambda m,  alpha = sigmoid(-m)
    logits    min sum_i log(1 + exp(-m_i)) + (lambda / 2) |m - t|^2     alpha = lambda (m - t), each example alone

The dual variables alpha in (0, 1) are the gradients that the examples still give. Those of the first line follow

    d alpha / dt = eta ( -log alpha + log(1 - alpha) - K alpha / lambda )                          (paper, Eq. 8)

The penalty is that of the summed loss: a trainer's weight decay wd with a mean over n examples is lambda = n wd, and
the coefficient c of spectral decoupling with a mean is lambda = 2 c, whatever n.

Source: Pezeshki et al., "Gradient Starvation: A Learning Proclivity in Neural Networks", NeurIPS 2021.

>>> features = FeatureDecomposition(torch.eye(2), torch.tensor([5.0, 1.0]))
>>> print([round(z, 6) for z in fixed_point(features, 0.01).responses.tolist()])
[6.025614, 3.359275]
>>> print(round(float(decoupled_margin(0.002)), 6))
4.66512
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechanisms._base.validation import as_finite, check_choice, check_number
from mechanisms.dynamics.features import FeatureDecomposition, decompose_kernel

__all__ = ["FixedPoint", "decoupled_margin", "dual_flow", "fixed_point"]

NEWTON_STEPS = 500
PENALTIES = ("weights", "logits")


class FixedPoint(NamedTuple):
    """Where training comes to rest; float64.

    Attributes:
        alpha: the dual variables, (n,), in (0, 1): sigmoid(-margins).
        margins: m = Y f, (n,).
        responses: z = U^T m, (k,), in the order of the strengths.
        closed_form: whether every example was solved by itself (`penalty="logits"` and full row rank).

    >>> fixed_point(torch.eye(2), 0.1).closed_form
    False
    """

    alpha: Tensor
    margins: Tensor
    responses: Tensor
    closed_form: bool


def fixed_point(
    features: FeatureDecomposition | Tensor,
    l2: float | int,
    *,
    penalty: str = "weights",
    target: float | int | Tensor = 0.0,
) -> FixedPoint:
    """The unique optimum of cross-entropy with an L2 penalty on the weights or on the logits.

    Args:
        features: a decomposition, or the kernel Y Phi Phi^T Y, (n, n), with the labels in it.
        l2: lambda of the summed loss, above 0: without it the margins diverge.
        penalty: "weights" (weight decay) or "logits" (spectral decoupling).
        target: for the penalty on logits, where it pulls the margins: a number or one for each example, y gamma_y.

    Raises:
        ValueError: l2 of 0 or less, weights that are not orthonormal, a kernel that is not symmetric, a target of the
            wrong length or with the penalty on weights.

    Warns:
        UserWarning: the penalty is on the logits and there are fewer features than examples: they do not move freely,
            so that margins differ and the optimum is found numerically.

    Damped Newton steps in the space of the features; the step ln(1 + d) / d, with d the
    largest change of a margin, decreases logistic losses always (Sun and Tran-Dinh, 2019).

    >>> toy = FeatureDecomposition(torch.tensor([[0.75**0.5, -0.5], [0.5, 0.75**0.5]]), torch.tensor([4.0, 2.0]))
    >>> print([round(z, 5) for z in fixed_point(toy, 0.01).responses.tolist()])
    [7.81205, 1.46681]
    >>> print([round(z, 5) for z in fixed_point(toy, 0.002, penalty="logits").responses.tolist()])
    [6.37267, 1.70755]
    """
    check_choice(penalty, "penalty", PENALTIES)
    strength = check_l2(l2)
    weights, strengths = as_features(features)
    examples = len(weights)
    pulls = _as_double(target).to(weights.device)
    if pulls.shape not in ((), (examples,)):
        raise ValueError(f"target has shape {tuple(pulls.shape)}, expected a number or ({examples},), one an example")
    pulls = pulls.expand(examples)
    if penalty == "weights":
        if bool((pulls != 0).any()):
            raise ValueError("target pulls logits, so it needs penalty='logits'")
        scaled = weights * strengths
        margins = scaled @ _newton(scaled, strength, scaled.new_zeros(scaled.shape[1]))
        return FixedPoint(torch.sigmoid(-margins), margins, weights.T @ margins, False)
    tolerance = max(weights.shape) * torch.finfo(torch.float32).eps
    free = strengths > tolerance * strengths.max()
    if int(free.sum()) == examples:
        margins = decoupled_margin(strength, target=pulls)
        return FixedPoint(torch.sigmoid(-margins), margins, weights.T @ margins, True)
    warnings.warn(
        f"{int(free.sum())} features for {examples} examples: the logits cannot move freely, so spectral decoupling "
        "does not give every example its own margin; solved numerically",
        UserWarning,
        stacklevel=2,
    )
    basis = weights * free
    margins = basis @ _newton(basis, strength, basis.T @ pulls)
    return FixedPoint(torch.sigmoid(-margins), margins, weights.T @ margins, False)


def decoupled_margin(l2: float | int, *, target: float | int | Tensor = 0.0) -> Tensor:
    """The margin that spectral decoupling gives every example when the logits are free.

    It solves sigmoid(-w) = lambda (w - target); without a target, w (1 + exp(w)) = 1 / lambda.

    Args:
        l2: lambda, above 0: twice the coefficient c of `spectral_decoupling`.
        target: where the penalty pulls the margin, y gamma_y; any shape.

    Returns:
        The target's shape, float64.

    Raises:
        ValueError: l2 of 0 or less.

    >>> print(round(float(decoupled_margin(0.2, target=2.5)), 5), round(float(decoupled_margin(0.2, target=-0.44)), 5))
    2.78948 0.95221
    """
    strength = check_l2(l2)
    pulls = _as_double(target)
    low, high = pulls, pulls + 1 / strength  # sigmoid is between 0 and 1
    margin = torch.minimum(high, pulls.clamp(min=0) + np.log1p(1 / strength))
    for _ in range(100):
        alpha = torch.sigmoid(-margin)
        error = strength * (margin - pulls) - alpha
        low, high = torch.where(error < 0, margin, low), torch.where(error < 0, high, margin)
        following = margin - error / (strength + alpha * (1 - alpha))
        following = torch.where((following > low) & (following < high), following, (low + high) / 2)
        if bool(((following - margin).abs() <= 1e-15 * (1 + margin.abs())).all()):
            break
        margin = following
    return margin


def dual_flow(
    features: FeatureDecomposition | Tensor,
    l2: float | int,
    times: Tensor,
    *,
    start: float | int = 1e-8,
    rate: float | int = 1.0,
) -> Tensor:
    """The dual variables over time under the gradient flow of cross-entropy with an L2 penalty on the weights.

    Args:
        features: a decomposition, or the kernel Y Phi Phi^T Y, (n, n), with the labels in it.
        l2: lambda of the summed loss, above 0.
        times: (t,), increasing, from 0 on.
        start: all of alpha at time 0, in (0, 1).
        rate: eta.

    Returns:
        alpha, (t, n), float64, on the CPU. Margins are `alpha @ K / l2`.

    Raises:
        ValueError: times that do not increase, a start outside (0, 1), and what `fixed_point` raises.
        RuntimeError: the solver gave up.

    Source: Eq. 8. The logits of alpha are integrated, so that alpha stays in (0, 1), by an implicit
    Runge-Kutta method (Radau): the flow is stiff.

    >>> alpha = dual_flow(torch.eye(2), 0.1, torch.tensor([0.0, 100.0]))
    >>> bool(torch.allclose(alpha[1], fixed_point(torch.eye(2), 0.1).alpha, atol=1e-6))
    True
    """
    from scipy.integrate import solve_ivp

    strength, speed = check_l2(l2), check_number(rate, "rate", above=0)
    first = check_number(start, "start", above=0, below=1)
    moments = as_finite(times, "times", dtype=torch.float64).cpu().numpy()
    if moments.ndim != 1 or len(moments) == 0 or moments[0] < 0 or not np.all(np.diff(moments) > 0):
        raise ValueError(f"times have shape {moments.shape}; expected increasing numbers from 0 on")
    weights, strengths = as_features(features)
    kernel = ((weights * strengths**2) @ weights.T).cpu().numpy()

    def sides(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        alpha = np.exp(-np.logaddexp(0, -logits))
        return alpha, alpha * np.exp(-np.logaddexp(0, logits)), -logits - kernel @ alpha / strength

    def slope(time: float, logits: np.ndarray) -> np.ndarray:
        _, spread, force = sides(logits)
        return speed * force / spread

    def jacobian(time: float, logits: np.ndarray) -> np.ndarray:
        alpha, spread, force = sides(logits)
        inner = -np.eye(len(logits)) - kernel * spread / strength
        return speed * (inner / spread[:, None] - np.diag(force * (1 - 2 * alpha) / spread))

    begin = np.full(len(kernel), np.log(first) - np.log1p(-first))
    solution = (
        solve_ivp(slope, (0.0, moments[-1]), begin, method="Radau", t_eval=moments, jac=jacobian, rtol=1e-8, atol=1e-10)
        if moments[-1] > 0
        else None
    )
    if solution is None:
        return torch.sigmoid(torch.from_numpy(begin)[None])
    if not solution.success:
        raise RuntimeError(f"the dual flow could not be integrated up to time {moments[-1]:g}: {solution.message}")
    return torch.sigmoid(torch.from_numpy(solution.y.T.copy()))


def as_features(features: FeatureDecomposition | Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal weights (n, k) and strengths (k,) in float64, from a decomposition or a kernel with labels in it.

    Raises:
        ValueError: weights that are not orthonormal, or what `decompose_kernel` raises.

    >>> as_features(torch.diag(torch.tensor([4.0, 9.0])))[1]
    tensor([3., 2.], dtype=torch.float64)
    """
    if not isinstance(features, FeatureDecomposition):
        features = decompose_kernel(features)
    weights = as_finite(features.weights, "weights").double()
    strengths = as_finite(features.strengths, "strengths").double()
    if weights.dim() != 2 or strengths.shape != weights.shape[1:]:
        raise ValueError(
            f"weights have shape {tuple(weights.shape)} and strengths {tuple(strengths.shape)}; "
            "expected (examples, features) and (features,)"
        )
    if bool((strengths < 0).any()):
        raise ValueError(f"strengths must be 0 or more, the smallest is {float(strengths.min()):g}")
    gram = weights.T @ weights
    off = float((gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).abs().max())
    if off > 1e-3:
        raise ValueError(f"the columns of weights must be orthonormal; U^T U differs from the identity by {off:.2g}")
    return weights, strengths


def _as_double(target: float | int | Tensor) -> Tensor:
    return as_finite(torch.as_tensor(target, dtype=torch.float64), "target")


def check_l2(l2: float | int) -> float:
    """A penalty above 0.

    Raises:
        ValueError: it is not; the message says why it has to be.

    >>> check_l2(1)
    1.0
    """
    try:
        return check_number(l2, "l2", above=0)
    except ValueError as error:
        raise ValueError(f"{error}; without a penalty the margins diverge and there is no fixed point") from None


def _newton(
    scaled: Float[Tensor, "examples features"], l2: float, centre: Float[Tensor, " features"]
) -> Float[Tensor, " features"]:
    """The minimum over v of sum softplus(-scaled v) + (l2 / 2) |v - centre|^2."""
    v = centre.clone()
    ridge = l2 * torch.eye(len(centre), dtype=centre.dtype, device=centre.device)
    for _ in range(NEWTON_STEPS):
        alpha = torch.sigmoid(-(scaled @ v))
        gradient = l2 * (v - centre) - scaled.T @ alpha
        hessian = (scaled.T * (alpha * (1 - alpha))) @ scaled + ridge
        step = torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(hessian))[:, 0]
        change = float((scaled @ step).abs().max())
        v = v - (float(np.log1p(change)) / change if change > 1e-6 else 1.0) * step
        if change <= 1e-13 * (1 + float(v.abs().max())):
            return v
    raise RuntimeError(f"no fixed point after {NEWTON_STEPS} Newton steps; l2={l2:g} is very small for these features")
