r"""Learning curves of your own two-layer ReLU network, predicted before it is trained; and when that is possible.

For binary classification by `f(x) = z^T (W x)_+` (no biases, labels y = +1 or -1, P(y = +1 | x) = sigmoid(f(x))) under
full-batch gradient flow on the mean loss, the paper assumes

    H1   x.x' > 0 within a class, x.x' <= 0 between the classes;
    H2   each hidden unit is active on all of one class and on nothing of the other, with that class's sign of z.

Both then hold for ever, and the classes are learned as *independent modes*: f on a class depends on that class's units
and samples alone. Where a class is one direction, its curve is a closed form (`modes`).

`check_separability` and `check_initialisation` say whether H1 and H2 hold, and which pair or unit breaks them;
`mode_state` reads the modes off a network and data; `forecast` tells when each class is learned.

Reference: Tachet des Combes, Pezeshki, Shabanian, Courville, Bengio, "On the Learning Dynamics of Deep Neural
Networks", 2018, arXiv:1809.06848.

>>> X = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
>>> y = torch.tensor([1, -1, -1, -1])
>>> W, z = torch.tensor([[0.1, -0.1], [-0.1, 0.1]]), torch.tensor([0.1, -0.1])
>>> forecast((W, z), X, y, confidence=0.9).times
{1: 13.73..., -1: 10.08...}
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechanisms._base.validation import as_finite, check_number
from mechanisms.dynamics._checks import Values, labelled
from mechanisms.dynamics.conditions import check_initialisation, check_separability
from mechanisms.dynamics.modes import Loss, Mode, error_curve, time_to_confidence

Network = nn.Module | tuple[Tensor, Tensor]


def mode_state(model: Network, X: Values, y: Values, *, approximate: bool = False) -> list[Mode]:
    """The modes of a network at its present weights: that of class +1, then that of class -1.

    Args:
        model: `nn.Sequential(nn.Linear(d, h, bias=False), nn.ReLU(), nn.Linear(h, 1, bias=False))`, or (W, z) with W
            (units, features) and z (units,).
        X: inputs (samples, features).
        y: labels +1 or -1, (samples,).
        approximate: replace each class by its mean input. The closed forms are exact only where a class is copies of
            one input; for others this says roughly when it is learned.

    Raises:
        TypeError: a model of another form.
        ValueError: biases; H1 or H2 does not hold (the worst pair, the first unit is named); a class without units; a
            class of several directions unless `approximate`; shapes or labels that do not fit.

    >>> W, z = torch.tensor([[0.1, 0.0], [0.0, 0.2]]), torch.tensor([0.1, -0.2])
    >>> up, down = mode_state((W, z), X=[[1.0, 0.0], [0.0, 3.0]], y=[1, -1])
    >>> round(float(down.norm), 6), round(float(down.initial_margin), 6), float(down.imbalance)
    (3.0, 0.12, 0.0)
    """
    W, z = two_layers(model)
    inputs, labels = labelled(X, y)
    check_separability(inputs, labels).require()
    report = check_initialisation(W, z, inputs, labels)
    report.require()
    W, z = W.to(inputs.device), z.to(inputs.device)
    modes = []
    for label in (1, -1):
        own = inputs[labels == label]
        if len(own) == 0:
            continue
        centre = own.mean(dim=0)
        spread = (own - centre).norm(dim=1) / centre.norm()
        if not approximate and float(spread.max()) > 1e-6:
            raise ValueError(
                f"class {label:+d} has several directions: a sample is {float(spread.max()):.2g} of the mean's norm "
                "away from the mean. The closed forms need copies of one input; approximate=True takes the mean"
            )
        units = report.classes == label
        if not bool(units.any()):
            raise ValueError(f"no unit is active on class {label:+d}: its output stays 0 and it is never learned")
        a, signed, r = W[units] @ centre, label * z[units], centre.norm()
        # S^2 - 4 r^2 f^2 as a product of sums of squares, which keeps its digits near C = 0.
        c = ((a - r * signed).square().sum() * (a + r * signed).square().sum()).sqrt()
        modes.append(Mode(len(own) / len(inputs), r, (signed * a).sum(), c))
    return modes


@dataclass(frozen=True)
class Forecast:
    """When each class is learned.

    Attributes:
        modes: by class label, +1 and -1.
        times: time of gradient flow to the confidence, by class label; infinite where the loss stops before.
        confidence: the probability of the right class that is asked for.
        loss: "cross_entropy" or "hinge".

    >>> weights = (torch.tensor([[0.1, 0.0], [0.0, 0.2]]), torch.tensor([0.1, -0.2]))
    >>> found = forecast(weights, X=[[1.0, 0.0], [0.0, 3.0]], y=[1, -1])
    >>> found.times[1] > found.times[-1]
    True
    """

    modes: dict[int, Mode]
    times: dict[int, float]
    confidence: float
    loss: Loss

    def steps(self, lr: float | int) -> dict[int, float]:
        """Steps of full-batch gradient descent to the confidence, by class, at a learning rate on the mean loss."""
        size = check_number(lr, "lr", above=0)
        return {label: time / size for label, time in self.times.items()}

    def errors(self, times: Values) -> dict[int, Tensor]:
        """The probability given to the wrong class over time, by class: `error_curve` of each mode."""
        return {label: error_curve(mode, times, loss=self.loss) for label, mode in self.modes.items()}


def forecast(
    model: Network,
    X: Values,
    y: Values,
    *,
    confidence: float | int = 0.9,
    loss: Loss = "cross_entropy",
    approximate: bool = False,
) -> Forecast:
    """How long each class takes until the right answer has a given probability, before any training.

    Args:
        model, X, y, approximate: see `mode_state`, also for the errors.
        confidence: probability of the right class, in (0, 1); above 0.731 hinge never arrives.
        loss: "cross_entropy" or "hinge", averaged over the samples.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.tensor([[0.1, -0.1], [-0.1, 0.1]]))
    ...     _ = model[2].weight.copy_(torch.tensor([[0.1, -0.1]]))
    >>> found = forecast(model, X=[[2.0, 0.0], [0.0, 1.0]], y=[1, -1])
    >>> {label: round(steps) for label, steps in found.steps(lr=0.1).items()}
    {1: 69, -1: 151}
    """
    target = check_number(confidence, "confidence", above=0, below=1)
    modes = mode_state(model, X, y, approximate=approximate)
    _, labels = labelled(X, y)
    present = [label for label in (1, -1) if bool((labels == label).any())]
    named = dict(zip(present, modes, strict=True))
    times = {label: float(time_to_confidence(mode, target, loss=loss)) for label, mode in named.items()}
    return Forecast(named, times, target, loss)


def two_layers(model: Network) -> tuple[Float[Tensor, "units features"], Float[Tensor, " units"]]:
    """The weights W and z of a bias-free two-layer ReLU network, as float64.

    >>> W, z = two_layers(nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 1, bias=False)))
    >>> tuple(W.shape), tuple(z.shape)
    ((5, 3), (5,))
    """
    form = "nn.Sequential(nn.Linear(d, h, bias=False), nn.ReLU(), nn.Linear(h, 1, bias=False))"
    if isinstance(model, nn.Module):
        layers = list(model.children()) if isinstance(model, nn.Sequential) else []
        kinds = (nn.Linear, nn.ReLU, nn.Linear)
        if len(layers) != 3 or not all(isinstance(layer, kind) for layer, kind in zip(layers, kinds, strict=True)):
            raise TypeError(f"the model is a {type(model).__name__} of another form; expected {form}, or (W, z)")
        hidden, _, output = layers
        if hidden.bias is not None or output.bias is not None:
            raise ValueError(f"the model has biases, with which modes are not independent; expected {form}")
        W, z = hidden.weight.detach(), output.weight.detach()
    elif isinstance(model, tuple) and len(model) == 2:
        W, z = model
    else:
        raise TypeError(f"model is a {type(model).__name__}; expected {form}, or (W, z)")
    W, z = (as_finite(value, name, dtype=torch.float64) for value, name in ((W, "W"), (z, "z")))
    if z.ndim == 2 and len(z) == 1:
        z = z[0]
    if W.ndim != 2 or z.shape != W.shape[:1]:
        raise ValueError(
            f"W has shape {tuple(W.shape)} and z {tuple(z.shape)}; expected (units, features) and (units,): one output"
        )
    return W, z
