r"""Which initial states of a hidden ReLU unit can learn, and how likely they are; data and weights under H1 and H2.

A unit with a = w.x on a class of one direction of norm r = |x|, and output weight z (signed by the label), moves on a
hyperbola a^2 - r^2 z^2 = const, for every loss and frequency:

    a <= 0                      inactive: no gradient, for ever
    a > 0, z >= 0               learns: both grow
    a > 0, z < 0, a > r |z|     learns: z crosses 0 first
    a > 0, z < 0, a < r |z|     dies: a reaches 0 first
    a > 0, z < 0, a = r |z|     converges to the saddle (0, 0)

All active units of such a class share one clock, so the class is learned if and only if one of them learns.

Reference: Tachet des Combes, Pezeshki, Shabanian, Courville, Bengio, "On the Learning Dynamics of Deep Neural
Networks", 2018, arXiv:1809.06848.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mechanisms._base.validation import as_finite, check_number
from mechanisms.dynamics._checks import Values, labelled, refuse
from mechanisms.dynamics.conditions import check_initialisation, check_separability

OUTCOMES = ("inactive", "learns", "learns, z crossing zero", "dies", "saddle")


def unit_outcome(preactivation: Values, output_weight: Values, norm: Values) -> Tensor:
    """What becomes of a hidden unit, elementwise: a place in `OUTCOMES`.

    Args:
        preactivation: a = w.x on the class's input.
        output_weight: z, times the class's label (+1 or -1).
        norm: r = |x| > 0; all three broadcast together.

    Returns:
        int64: 0 inactive, 1 learns, 2 learns after z has crossed zero, 3 dies, 4 falls into the saddle.

    Raises:
        ValueError: non-finite values, a norm that is not above 0, shapes that do not broadcast.

    >>> [OUTCOMES[int(k)] for k in unit_outcome([-1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, -0.5, -2.0, -1.0], norm=1.0)]
    ['inactive', 'learns', 'learns, z crossing zero', 'dies', 'saddle']
    """
    a, z, r = _states(preactivation, output_weight, norm)
    signed = a + r * z
    negative = torch.where(signed > 0, 2, torch.where(signed < 0, 3, 4))
    return torch.where(a <= 0, 0, torch.where(z >= 0, 1, negative))


def will_learn(preactivation: Values, output_weight: Values, norm: Values) -> Tensor:
    """Whether a hidden unit learns its class: a > 0 and z > -a/r, elementwise; arguments as in `unit_outcome`.

    Returns:
        bool.

    >>> will_learn(preactivation=[1.0, 1.0, -1.0], output_weight=[-0.4, -0.6, 1.0], norm=2.0)
    tensor([ True, False, False])
    """
    a, z, r = _states(preactivation, output_weight, norm)
    return (a > 0) & (a + r * z > 0)


def success_probability(weight_std: Values, output_std: Values, width: Values = 1) -> Tensor:
    """The probability that a randomly initialised layer learns a class of one direction.

    One unit with w.x ~ N(0, (s_w r)^2) and z ~ N(0, s_z^2) learns with probability 1/4 + arctan(s_w / s_z) / (2 pi):
    3/8 at equal scales, 1/2 for small output weights. Of `width` independent units one suffices.

    Args:
        weight_std: s_w, of the entries of w; 0 or more.
        output_std: s_z, of z; 0 or more, not both 0.
        width: number of hidden units, 1 or more; all broadcast together.

    Returns:
        float64.

    Raises:
        ValueError: a negative scale, both scales 0, a width below 1.

    >>> success_probability(1.0, 1.0)
    tensor(0.3750, dtype=torch.float64)
    >>> success_probability(1.0, 1.0, width=[4, 20])
    tensor([0.8474, 0.9999], dtype=torch.float64)
    """
    named = ((weight_std, "weight_std"), (output_std, "output_std"), (width, "width"))
    s_w, s_z, h = torch.broadcast_tensors(*(as_finite(v, name, dtype=torch.float64) for v, name in named))
    for scale, name in ((s_w, "weight_std"), (s_z, "output_std")):
        refuse(scale < 0, scale, name, "a standard deviation is 0 or more")
    refuse((s_w == 0) & (s_z == 0), s_w, "weight_std", "with both scales 0 every unit starts at the saddle")
    refuse(h < 1, h, "width", "there must be a hidden unit")
    one = 0.25 + torch.atan2(s_w, s_z) / (2 * math.pi)
    return 1 - (1 - one).pow(h)


def separable_classes(
    num_samples: int,
    dim: int,
    *,
    generator: torch.Generator,
    frequency: float | int = 0.5,
    norms: tuple[float | int, float | int] | None = None,
    single_direction: bool = False,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Two classes that satisfy H1: inner products above 0 within a class, at or below 0 between them.

    With k = dim/2: class +1 is |N(0, 1)| on the first k coordinates and 0 elsewhere; class -1 is -0.2 |N(0, 1)| on the
    first k and 1 + |N(0, 1)| on the rest.

    Args:
        num_samples: n, 2 or more.
        dim: d, even.
        generator: draws the inputs.
        frequency: the fraction of class +1; each class gets at least one sample.
        norms: rescale the inputs of class +1 and of class -1 to these norms.
        single_direction: every class is copies of one input, the case of the closed forms.
        dtype: of the inputs.

    Returns:
        X (num_samples, dim), class +1 first, and y (num_samples,) of +1 and -1.

    Raises:
        ValueError: fewer than two samples, an odd or too small dim, a frequency outside (0, 1), norms not above 0.

    >>> X, y = separable_classes(6, 4, generator=torch.Generator().manual_seed(0))
    >>> bool((X[y > 0] @ X[y < 0].T <= 0).all())
    True
    """
    if num_samples < 2:
        raise ValueError(f"num_samples={num_samples}: two classes need at least two samples")
    if dim < 2 or dim % 2:
        raise ValueError(f"dim={dim}: it must be even and at least 2, half of it for each class")
    share, k = check_number(frequency, "frequency", above=0, below=1), dim // 2
    first = min(max(round(share * num_samples), 1), num_samples - 1)
    counts = (first, num_samples - first)
    drawn = [1, 1] if single_direction else counts
    device = generator.device

    def positive(rows: int) -> Tensor:
        return torch.randn(rows, k, generator=generator, device=device, dtype=dtype).abs()

    ones = torch.cat([positive(drawn[0]), torch.zeros(drawn[0], k, device=device, dtype=dtype)], dim=1)
    twos = torch.cat([-0.2 * positive(drawn[1]), 1 + positive(drawn[1])], dim=1)
    parts = []
    for place, (part, count) in enumerate(zip((ones, twos), counts, strict=True)):
        if norms is not None:
            length = check_number(norms[place], f"norms[{place}]", above=0)
            part = part * (length / part.norm(dim=1, keepdim=True))
        parts.append(part.expand(count, -1) if single_direction else part)
    y = torch.ones(num_samples, device=device, dtype=dtype)
    y[first:] = -1
    return torch.cat(parts), y


def mode_initialisation(
    X: Values,
    y: Values,
    width: int,
    *,
    generator: torch.Generator,
    weight_scale: float | int = 0.1,
    output_scale: float | int = 0.1,
    balanced: bool = False,
) -> tuple[Tensor, Tensor]:
    """Weights that satisfy H2 on data that satisfy H1: every unit is active on one class only, with its sign.

    A unit of a class is a random positive combination of the class's inputs. By H1 it is active on all of that class
    and on nothing of the other.

    Args:
        X: inputs (samples, features) that satisfy H1.
        y: labels +1 or -1.
        width: number of units, 2 or more; the first half (rounded up) belongs to class +1.
        generator: draws the combinations and sizes.
        weight_scale: |w| is this times a number uniform in [0.5, 1.5].
        output_scale: |z| likewise.
        balanced: |z| = |w| instead. On classes of a single direction the imbalance C is then 0.

    Returns:
        W (width, features) and z (width,).

    Raises:
        ValueError: H1 does not hold (the worst pair is named), only one class, a width below 2, scales not above 0.

    >>> X, y = separable_classes(6, 4, generator=torch.Generator().manual_seed(0))
    >>> W, z = mode_initialisation(X, y, 4, generator=torch.Generator().manual_seed(0))
    >>> ((W @ X.T) > 0).int().tolist()
    [[1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]]
    """
    inputs, labels = labelled(X, y)
    check_separability(inputs, labels).require()
    if width < 2:
        raise ValueError(f"width={width}: each of the two classes needs a unit, so at least 2")
    scales = [
        check_number(value, name, above=0)
        for value, name in ((weight_scale, "weight_scale"), (output_scale, "output_scale"))
    ]
    device = generator.device
    sizes = scales[0] * (0.5 + torch.rand(width, generator=generator, device=device, dtype=inputs.dtype))
    outputs = scales[1] * (0.5 + torch.rand(width, generator=generator, device=device, dtype=inputs.dtype))
    rows = []
    for unit in range(width):
        own = inputs[labels == (1 if unit < (width + 1) // 2 else -1)]
        if len(own) == 0:
            raise ValueError("y has one class only; the two modes need both +1 and -1")
        mix = torch.rand(len(own), generator=generator, device=device, dtype=inputs.dtype).to(own.device)
        row = (mix + 1e-3) @ own
        rows.append(row / row.norm())
    sizes, outputs = sizes.to(inputs.device), outputs.to(inputs.device)
    W = torch.stack(rows) * sizes[:, None]
    z = sizes if balanced else outputs
    z = torch.cat([z[: (width + 1) // 2], -z[(width + 1) // 2 :]])
    check_initialisation(W, z, inputs, labels).require()
    return W, z


def _states(a: Values, z: Values, r: Values) -> tuple[Tensor, Tensor, Tensor]:
    named = ((a, "preactivation"), (z, "output_weight"), (r, "norm"))
    values = [as_finite(value, name, dtype=torch.float64) for value, name in named]
    refuse(values[2] <= 0, values[2], "norm", "it must be above 0")
    try:
        a, z, r = torch.broadcast_tensors(*values)
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for (_, name), value in zip(named, values, strict=True))
        raise ValueError(f"the arguments must broadcast together, got {shapes}") from None
    return a, z, r
