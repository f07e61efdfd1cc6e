"""Gradient starvation: which features of a network are not learned because others already classify the examples.

For people who suspect that an easy feature keeps a network from learning a better one: `starvation_index` measures it
on their own network and batch, `spectral_decoupling` is the remedy the paper proposes. Under cross-entropy an example
that is classified well gives no gradient, whichever feature classifies it. In the linear regime (f = Phi theta with the
Jacobian Phi) this can be computed: with Y Phi = U diag(s) V^T and z_j* the response to feature j where training with
weight decay comes to rest,

    feature i starves feature j   if   d z_j* / d (s_i^2) < 0                              (paper, definition 2)

Implicit differentiation of the fixed point alpha = sigmoid(-K alpha / lambda), with P = U^T diag(alpha (1 - alpha)) U:

    [d z_j / d (s_i^2)]_ji = (1 / lambda) (I + diag(s^2) P / lambda)^-1 diag(U^T alpha)

With the penalty on the logits instead (spectral decoupling) z* does not depend on s at all: nothing starves. The same
fact says what it does: it pulls every margin to one value, as a squared loss would.

Everything needed is importable from here: the loss (`mechanisms.dynamics.decoupling`), features of a network
(`mechanisms.dynamics.features`) and the dual (`mechanisms.dynamics.dual`).

Source: Pezeshki, Kaba, Bengio, Courville, Precup, Lajoie, "Gradient Starvation: A Learning Proclivity in Neural
Networks", NeurIPS 2021.

>>> toy = FeatureDecomposition(torch.tensor([[0.75**0.5, -0.5], [0.5, 0.75**0.5]]), torch.tensor([4.0, 2.0]))
>>> print(round(float(starvation_matrix(toy, 0.01)[0, 1]), 6))  # the first feature starves the second
-0.016327
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mechanisms._base.validation import check_number
from mechanisms.dynamics.decoupling import SpectralDecouplingLoss, spectral_decoupling
from mechanisms.dynamics.dual import FixedPoint, as_features, check_l2, decoupled_margin, dual_flow, fixed_point
from mechanisms.dynamics.features import (
    FeatureDecomposition,
    Output,
    Progress,
    check_inputs,
    check_signs,
    decompose,
    decompose_kernel,
    jacobian_features,
    jacobian_kernel,
    responses,
)

__all__ = [
    "FeatureDecomposition",
    "FixedPoint",
    "SpectralDecouplingLoss",
    "Starvation",
    "decompose",
    "decompose_kernel",
    "decoupled_margin",
    "dual_flow",
    "fixed_point",
    "jacobian_features",
    "jacobian_kernel",
    "responses",
    "spectral_decoupling",
    "starvation_index",
    "starvation_matrix",
]

JACOBIAN_NUMBERS = 2**27  # up to here the Jacobian is kept (512 MiB in float32), so that its kernel can be in float64
PART = 2**16  # of its columns that are in float64 at a time


class Starvation(NamedTuple):
    """What `starvation_index` found, for the strongest features in the order of their strengths.

    Attributes:
        index: (k,), how strongly the others starve feature j: by how many per cent its response would fall if each
            feature that starves it became stronger by one per cent (in s^2). 0: by none. NaN: no response to lose.
        matrix: (k, k), entry [i, j] is d z_j / d (s_i^2) at the fixed point.
        strengths: s, (k,).
        responses: z, (k,), of the network as it is.
        predicted: z, (k,), where the linearised network would come to rest.
        margins: y f, (n,), of the network as it is.
        decomposition: all features of the batch.

    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> found = starvation_index(model, torch.diag(torch.tensor([3.0, 1.0])), torch.tensor([1, -1]), l2=0.1)
    >>> found.index  # one feature for each example: nothing to starve
    tensor([0., 0.], dtype=torch.float64)
    """

    index: Tensor
    matrix: Tensor
    strengths: Tensor
    responses: Tensor
    predicted: Tensor
    margins: Tensor
    decomposition: FeatureDecomposition

    def summary(self) -> str:
        """A table of the features, as text.

        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> inputs = torch.tensor([[4.0, 1.0], [2.0, 2.0]])
        >>> print(starvation_index(model, inputs, torch.tensor([1, 1]), l2=0.01).summary())
        feature   strength   response   at rest   starved by others
              1      4.844      0.000     8.682               0.038
              2      1.239      0.000     0.610               0.501
        """
        lines = ["feature   strength   response   at rest   starved by others"]
        rows = zip(self.strengths, self.responses, self.predicted, self.index, strict=True)
        for place, (strength, response, rest, index) in enumerate(rows, 1):
            lines.append(f"{place:>7} {strength:>10.3f} {response:>10.3f} {rest:>9.3f} {index:>19.3f}")
        return "\n".join(lines)


def starvation_index(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    l2: float | int,
    num_features: int = 10,
    output: Output = None,
    chunk_size: int | None = None,
    progress: Progress | None = None,
) -> Starvation:
    """Which features of your network on your batch are starved by others.

    The network is linearised around its present parameters: at initialisation this is the paper's setting, later it
    describes the features the network has by then.

    Args:
        model: a network with one logit, in evaluation mode where it has dropout or batch norm.
        inputs: (n, ...), the batch; a few hundred examples are enough.
        labels: (n,), in {-1, +1}.
        l2: lambda of the summed loss, above 0; weight decay wd of a trainer with a mean over n examples is n wd.
        num_features: how many of the strongest features are reported; the fixed point is that of all.
        output: for several logits: an index, or a pair (a, b), whose difference is the logit of class a against b; give
            examples of these two classes then.
        chunk_size, progress: see `jacobian_features`.

    Raises:
        ValueError: what `jacobian_features`, `decompose` and `fixed_point` raise: labels in {0, 1}, training mode, l2
            of 0 or less.

    >>> _ = torch.manual_seed(0)
    >>> x, y = torch.randn(40, 3), torch.where(torch.arange(40) % 2 == 0, 1, -1)
    >>> x[:, 0] += 5 * y  # an easy feature
    >>> x[:, 1] += y      # a harder one
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    >>> found = starvation_index(model, x, y, l2=0.4, num_features=3)
    >>> bool(found.index[1:].max() > found.index[0])
    True
    """
    check_l2(l2)
    most = int(check_number(num_features, "num_features", at_least=1))
    check_inputs(inputs)
    signs = check_signs(labels, len(inputs)).to(inputs.device)
    width = sum(value.numel() for value in model.parameters() if value.requires_grad)
    ways = {"output": output, "chunk_size": chunk_size, "progress": progress}
    if len(inputs) * width <= JACOBIAN_NUMBERS:
        # All that follows depends on the kernel, which takes a small part of the time of a singular value decomposition
        # and in double precision says as much.
        kernel = torch.zeros(len(inputs), len(inputs), dtype=torch.float64, device=inputs.device)
        for part in jacobian_features(model, inputs, **ways).split(PART, 1):
            columns = part.double()
            kernel.addmm_(columns, columns.T)
    else:
        kernel = jacobian_kernel(model, inputs, **ways)
    found = decompose_kernel(kernel, signs, num_features=min(len(inputs), width))
    with torch.no_grad():
        logits = model(inputs).reshape(len(inputs), -1)
    values = logits[:, output[0]] - logits[:, output[1]] if isinstance(output, tuple) else logits[:, output or 0]
    rest = fixed_point(found, l2)
    matrix = starvation_matrix(found, l2)
    keep = min(most, len(found.strengths))
    falls = _falls(matrix, found.strengths.double(), rest.responses)
    return Starvation(
        index=falls[:keep],
        matrix=matrix[:keep, :keep],
        strengths=found.strengths[:keep],
        responses=responses(values, signs, found)[:keep],
        predicted=rest.responses[:keep],
        margins=values * signs.to(values),
        decomposition=found,
    )


def starvation_matrix(decomposition: FeatureDecomposition, l2: float | int) -> Tensor:
    """How the responses at the fixed point change with the strengths: entry [i, j] is d z_j / d (s_i^2).

    A negative entry: feature i starves feature j. The diagonal has the sign of z: a stronger feature is always
    responded to more. (For cross-entropy with weight decay; with spectral decoupling every entry is 0.)

    Args:
        decomposition: of a batch.
        l2: lambda of the summed loss, above 0.

    Returns:
        (k, k), float64.

    Raises:
        ValueError: as `fixed_point`.

    Source: definition 2 and theorem 1, in exact form by implicit differentiation.

    >>> starvation_matrix(FeatureDecomposition(torch.eye(2), torch.tensor([2.0, 1.0])), 0.1)[0, 1] == 0
    tensor(True)
    """
    weights, strengths = as_features(decomposition)
    alpha = fixed_point(decomposition, l2).alpha
    squares = strengths.square() / l2
    inner = (weights.T * (alpha * (1 - alpha))) @ weights
    identity = torch.eye(len(strengths), dtype=weights.dtype, device=weights.device)
    return torch.linalg.solve(identity + squares[:, None] * inner, torch.diag(weights.T @ alpha)).T / l2


def _falls(matrix: Tensor, strengths: Tensor, at_rest: Tensor) -> Tensor:
    """The sum of the negative elasticities of each response with respect to the strengths of the others."""
    elasticity = matrix * strengths.square()[:, None] / at_rest
    others = elasticity - torch.diag(elasticity.diagonal())
    fall = -others.clamp(max=0).sum(0) + 0.0
    return torch.where(at_rest.abs() > 1e-10 * at_rest.abs().max(), fall, torch.nan)
