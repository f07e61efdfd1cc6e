"""Order parameters of gradient flow in the limit of many dimensions: a contour integral over complex ridge penalties.

A ridge penalty -z off the spectrum gives every learned fraction r_i(z) by the equation of `_replica`, and a filter
h(L) of the eigenvalues of X^T X is an integral over such penalties (Cauchy's formula):

    R = -(1/(2 pi i)) oint (h(z)/z) sum_i H_i r_i(z) dz
    Q = (1/(2 pi i))^2 oint oint (h(z)/z) (h(z')/z') Qc(z, z') dz dz'
    Qc = S (1 + T/nu),  S = sum_i H_i r_i r_i',  T = (sigma^2 + sum_i H_i (1-r_i)(1-r_i')) / (1 - S/nu)

The paper has no such formula: it reads flow as ridge. The contour is the pair of rays at +-45 degrees around the
positive axis. In u = log|z| the integrand is analytic in a strip of half-width pi/4 and vanishes at both ends, so the
trapezoidal rule converges geometrically: steps of 0.25 leave about 1e-9. The lower ray is the conjugate of the upper
one, so only the upper one is kept.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from mechanisms.dynamics._replica import Order, mismatch, solve_mu, with_gradient
from mechanisms.dynamics.limits import Limit

ANGLE = math.pi / 4
STEP = 0.25
TAIL = 1e-8
TURNS = 24
LARGEST_BLOCK = 2**20  # entries of a kernel, or of the weights of all times, that are held at once

Filter = Callable[[Complex[Tensor, "problems times nodes"]], Complex[Tensor, "problems times nodes"]]


def nodes(longest: float, largest: float) -> Float[Tensor, " nodes"]:
    """log|z| of the nodes: from where the latest time has learned nothing yet to far beyond the spectrum.

    Args:
        longest: the latest time tau.
        largest: a bound of the spectrum.
    """
    start, end = math.log(TAIL / max(longest, 1e-300)), math.log(largest / TAIL)
    # Times that are over before anything is learned leave the contour empty; one node is then enough.
    return torch.arange(max(1, math.ceil((end - start) / STEP) + 1), dtype=torch.float64) * STEP + start


def weights(
    h: Complex[Tensor, "*problems times nodes"],
) -> Complex[Tensor, "*problems times nodes"]:
    """-(1/(2 pi i)) h dz/z on the upper ray, which the contour runs inwards; twice the real part adds the lower one."""
    return h * (STEP / (2j * math.pi))


def flow_filter(z: Complex[Tensor, "..."], tau: Tensor, l2: Tensor) -> Complex[Tensor, "..."]:
    """h(z) = z (1 - exp(-tau (z + lambda))) / (z + lambda): the fraction of an eigendirection that is learned."""
    return -torch.expm1(-tau * (z + l2)) * (z / (z + l2))


def solve_on_ray(
    limit: Limit, log_size: Float[Tensor, "problems nodes"]
) -> tuple[Complex[Tensor, "problems nodes groups"], Complex[Tensor, "problems nodes groups"]]:
    """Learned fractions r_i(z) and 1 - r_i(z) at the nodes of the upper ray.

    For negative z (a real ridge penalty) the root is unique. From there all nodes turn to the ray together, in small
    steps of the angle, each corrected by Newton: off the positive axis mu(z) is analytic, so the root is not lost.
    """
    shares, ratio = limit.shares[:, None].to(torch.complex128), limit.ratio[:, None]
    # Penalties of the real problem at |z|: g = s^2 / |z|; on the ray they turn by the opposite of the angle of -z.
    size = limit.scales.square()[:, None] * torch.exp(-log_size)[..., None]
    with torch.no_grad():
        mu = solve_mu(limit.shares[:, None], size, ratio).to(torch.complex128)
        for turn in range(1, TURNS + 1):
            g = size * _turned(turn)
            for _ in range(2 if turn < TURNS else 5):
                value, slope = mismatch(mu, shares, g, ratio)
                mu = mu - value / slope
    g = size * _turned(TURNS)
    mu = with_gradient(mu, shares, g, ratio)
    unlearned = 1 / (1 + mu[..., None] * g)
    return mu[..., None] * g * unlearned, unlearned


def _turned(turn: int) -> complex:
    """-|z|/z when z has turned from the angle pi towards the ray."""
    angle = (math.pi - ANGLE) * turn / TURNS
    return complex(math.cos(angle), math.sin(angle))


def order_by_contour(limit: Limit, longest: float, times: int, make_filter: Callable[[int, int], Filter]) -> Order:
    """Order parameters of any filter, in blocks of problems that keep the kernels small.

    Args:
        limit: problems whose largest scale is 1.
        longest: the latest time tau of all.
        times: how many there are.
        make_filter: gives the filter h of the problems from the first up to the second index.
    """
    log_size = nodes(longest, 1 + float(limit.ratio.detach().max()))
    block = max(1, LARGEST_BLOCK // (len(log_size) * max(len(log_size), times)))
    parts = []
    for first in range(0, len(limit.ratio), block):
        last = min(first + block, len(limit.ratio))
        part = Limit(*(field[first:last] for field in limit))
        parts.append(_block(part, log_size.to(limit.ratio.device), make_filter(first, last)))
    return Order(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _block(limit: Limit, log_size: Float[Tensor, " nodes"], h: Filter) -> Order:
    learned, unlearned = solve_on_ray(limit, log_size.expand(len(limit.ratio), -1))
    z = torch.exp(log_size) * complex(math.cos(ANGLE), math.sin(ANGLE))
    w = weights(h(z.expand(len(limit.ratio), 1, -1)))
    shares = limit.shares.to(torch.complex128)
    alignment = 2 * torch.einsum("ptz,pzg,pg->pt", w, learned, shares).real
    same = _norm_kernel(limit, learned, unlearned, learned, unlearned)
    across = _norm_kernel(limit, learned, unlearned, learned.conj(), unlearned.conj())
    # Both rays with both rays: upper-upper and its conjugate, upper-lower and its conjugate.
    norm = 2 * ((w @ same * w).sum(-1) + (w @ across * w.conj()).sum(-1)).real
    return Order(alignment, norm, 1 + limit.noise.square()[:, None] - 2 * alignment + norm)


def _norm_kernel(
    limit: Limit,
    learned: Complex[Tensor, "problems nodes groups"],
    unlearned: Complex[Tensor, "problems nodes groups"],
    learned_too: Complex[Tensor, "problems nodes groups"],
    unlearned_too: Complex[Tensor, "problems nodes groups"],
) -> Complex[Tensor, "problems nodes nodes"]:
    """Qc(z, z') for all pairs of nodes, computed once for all times."""
    shares, ratio = limit.shares[:, None].to(torch.complex128), limit.ratio[:, None, None]
    overlap = (shares * learned) @ learned_too.mT
    missing = limit.noise.square()[:, None, None] + (shares * unlearned) @ unlearned_too.mT
    return overlap * (1 + missing / (ratio - overlap))


def flow_order(limit: Limit, tau: Float[Tensor, "problems times"]) -> Order:
    """Order parameters of gradient flow at the times tau."""
    # In units where the largest scale is 1 all problems share their nodes.
    top = torch.where(limit.shares > 0, limit.scales, 0.0).max(1).values.detach()
    scaled = limit._replace(scales=limit.scales / top[:, None], l2=limit.l2 / top.square())
    tau = tau * top.square()[:, None]

    def make_filter(first: int, last: int) -> Filter:
        time, l2 = tau[first:last, :, None], scaled.l2[first:last, None, None]
        return lambda z: flow_filter(z, time, l2)

    return order_by_contour(scaled, float(tau.detach().max()), tau.shape[1], make_filter)
