"""Fortified networks: denoising layers inside a classifier of one's own, trained with it.

Adversarial inputs push hidden states off the manifold that real data occupy. A fortified network sends the hidden state
h_k of chosen layers through a denoising autoencoder and goes on with D_k(h_k) in its place. With clean inputs x and
adversarial ones x', h_k and h'_k what layer k gets in either pass:

    L_rec = mean_n mean_d (D_k(h_k) - h_k)^2        L_adv = mean_n mean_d (D_k(h'_k) - h_k)^2
    L = 1/2 CE(x) + 1/2 CE(x') + λ_rec sum_k L_rec + λ_adv sum_k L_adv

The target of both is the clean state. The mean over features is the released code's; the paper writes a squared norm,
which is a factor d_k in λ. Both losses are smaller when the states themselves shrink: `fortified_loss` reports their
norm and the relative error L_rec / mean h^2, so that shrinking does not pass for denoising, and `detach_target` closes
that way.

>>> from mechanisms.robust.adversarial import pgd
>>> from mechanisms.robust.denoising import DenoisingLayer
>>> x, y = torch.rand(32, 20), torch.arange(32) % 3
>>> network = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3))
>>> model = fortify(network, {"1": DenoisingLayer(features=16, hidden=8)})
>>> optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
>>> for _ in range(2):
...     x_adv = pgd(model.eval(), x, y, eps=0.1, steps=5)
...     loss = fortified_loss(model.train(), x, y, x_adv)
...     optimizer.zero_grad()
...     loss.total.backward()
...     optimizer.step()

Lamb, Binas, Goyal, Serdyuk, Subramanian, Mitliagkas, Bengio: "Fortified Networks: Improving the Robustness of Deep
Networks by Modeling the Manifold of Hidden Representations", 2018, arXiv 1804.02485.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mechanisms._base.validation import check_number
from mechanisms.robust._insertions import (
    Insertion,
    Tape,
    check_layers,
    check_places,
    full,
    inserted,
    module_named,
    unwrapped,
)
from mechanisms.robust.denoising import ConvDenoisingLayer, DenoisingLayer, draws_noise, mixes_rows

__all__ = ["FortifiedLoss", "FortifiedModel", "Trace", "fortified_loss", "fortify"]


class Trace(NamedTuple):
    """One pass through a fortified model; the lists have an entry for each fortified layer, in the order of its names.

    Attributes:
        logits: (n, K).
        before: h_k, what each layer got, (n, ...).
        after: D_k(h_k), what it gave, of the same shape.

    >>> from mechanisms.robust.denoising import DenoisingLayer
    >>> model = fortify(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), {"0": DenoisingLayer(4, 2)})
    >>> logits, before, after = model.trace(torch.ones(5, 3))
    >>> len(before), after[0].shape
    (1, torch.Size([5, 4]))
    """

    logits: Tensor
    before: list[Tensor]
    after: list[Tensor]


class FortifiedModel(nn.Module):
    """A model with denoising layers behind some of its modules; `fortify` makes it.

    It is called like the model. `state_dict` has the model's parameters under "model." and each layer's under
    "layers." and the name of its module, with "/" in place of "."; those of `model.state_dict()` keep their names.

    Attributes:
        model: the model that was given, which goes through the layers too when it is called by itself, until `remove`.
        layers: the denoising layers.
        names: names of the modules behind which they are; "" stands for the input.

    >>> from mechanisms.robust.denoising import DenoisingLayer
    >>> network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> model = fortify(network, {"1": DenoisingLayer(4, 2)})
    >>> model(torch.ones(5, 3)).shape, model.names
    (torch.Size([5, 2]), ('1',))
    >>> model.remove() is network
    True
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], inputs: nn.Module | None = None) -> None:
        super().__init__()
        check_layers(layers, inputs, model)
        modules = dict(model.named_modules(remove_duplicate=False))
        places = {name: module_named(modules, name) for name in layers}
        check_places(places, inputs is not None, model)
        self.model, self.names = model, tuple(([] if inputs is None else [""]) + list(layers))
        self.layers = nn.ModuleDict()
        self._tape = Tape()
        self._handles = []
        if inputs is not None:
            self.layers["/input"] = inputs
            insertion = Insertion("the input", 0, inputs, self._tape)
            self._handles.append(model.register_forward_pre_hook(insertion.before))
        for place, (name, layer) in enumerate(layers.items(), len(self.layers)):
            key = name.replace(".", "/")
            # Of a name that module dictionaries have for themselves ("values"), no entry can be made.
            self.layers[f"/{key}" if hasattr(self.layers, key) else key] = layer
            insertion = Insertion(f"layer {name!r}", place, layer, self._tape)
            self._handles.append(places[name].register_forward_hook(insertion.after))
        # The layers alone: of the model some modules may be kept in evaluation mode on purpose.
        self.training = model.training
        self.layers.train(model.training)

    @property
    def draws_noise(self) -> bool:
        """Whether a call draws noise in the present mode: then an attack must average over it."""
        return draws_noise(self)

    def forward(self, *inputs: Any, trace: bool = False, **named: Any) -> Any:
        """Logits (n, K) of what the model takes; with `trace`, a `Trace`."""
        entries: list[tuple[int, Tensor, Tensor]] = []
        # Set at every pass: one that ended with an error must not leave a list behind.
        self._tape.entries = entries if trace else None
        logits = self.model(*inputs, **named)
        self._tape.entries = None
        if not trace:
            return logits
        reached = {place for place, _, _ in entries}
        if len(reached) < len(self.names):
            missed = [name for place, name in enumerate(self.names) if place not in reached]
            raise ValueError(f"the pass did not go through {missed}; fortify modules that the model calls")
        entries.sort(key=lambda entry: entry[0])
        return Trace(logits, [before for _, before, _ in entries], [after for _, _, after in entries])

    def trace(self, *inputs: Any, **named: Any) -> Trace:
        """Logits and what each fortified layer got and gave.

        A module that the model calls several times has an entry for each call; one that the pass leaves out is a
        ValueError. Through a wrapper such as `DistributedDataParallel`, ask by `wrapped(x, trace=True)`.
        """
        return self(*inputs, trace=True, **named)

    def set_generator(self, generator: torch.Generator | None) -> None:
        """Draw the noise of all layers from this generator; `None` is torch's."""
        for layer in self.layers.modules():
            if isinstance(layer, DenoisingLayer | ConvDenoisingLayer):
                layer.generator = generator

    def remove(self) -> nn.Module:
        """Take the layers out; returns the model, which is as it was before `fortify`, with its present weights."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.names, self.layers = [], (), nn.ModuleDict()
        return self.model


def fortify(model: nn.Module, layers: Mapping[str, nn.Module], *, inputs: nn.Module | None = None) -> FortifiedModel:
    """Put denoising layers into a model, by the names of the modules behind which they stand.

    The model itself is changed, not a copy: an optimiser of its parameters stays valid. `FortifiedModel.remove` takes
    the layers out again. No layer at all makes the plain model with the same interface.

    Args:
        model: any classifier, (n, ...) to logits (n, K).
        layers: by name (as in `model.named_modules()`), what to apply to that module's output: a `DenoisingLayer`, a
            `ConvDenoisingLayer`, or any module that keeps the shape. Name the activation function to denoise what
            comes out of it.
        inputs: a layer for the model's (first) input.

    Raises:
        KeyError: no module has that name; the message lists those there are.
        TypeError: a layer is no module.
        ValueError: two names of one module, one layer twice, a module that is fortified already, or a compiled model
            (compile the fortified one); when the model is called, an activation that does not fit its layer, or is no
            tensor.

    >>> from mechanisms.robust.denoising import DenoisingLayer
    >>> network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> model = fortify(network, {"1": DenoisingLayer(4, 2)}, inputs=DenoisingLayer(3, 2))
    >>> len(model.trace(torch.ones(5, 3)).before)
    2
    """
    return FortifiedModel(model, layers, inputs)


@dataclass(frozen=True)
class FortifiedLoss:
    """What `fortified_loss` returns; `total` is for `backward`, the rest is detached. K fortified layers.

    Attributes:
        total: L, a scalar.
        classification: CE(x), a scalar.
        adversarial: CE(x'), a scalar, or None without adversarial inputs.
        reconstruction: L_rec of each layer, (K,).
        adversarial_reconstruction: L_adv of each layer, (K,), or None.
        norm_before: mean over rows of ||h_k||, clean, (K,).
        norm_after: mean over rows of ||D_k(h_k)||, clean, (K,).
        relative_error: L_rec / mean h_k^2, (K,).
        logits: of the clean inputs, (n, classes).
        adversarial_logits: (n, classes), or None.

    >>> from mechanisms.robust.denoising import DenoisingLayer
    >>> model = fortify(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), {"0": DenoisingLayer(4, 2)})
    >>> loss = fortified_loss(model, torch.rand(6, 3), torch.arange(6) % 2)
    >>> loss.relative_error.shape, loss.adversarial
    (torch.Size([1]), None)
    """

    total: Tensor
    classification: Tensor
    adversarial: Tensor | None
    reconstruction: Tensor
    adversarial_reconstruction: Tensor | None
    norm_before: Tensor
    norm_after: Tensor
    relative_error: Tensor
    logits: Tensor
    adversarial_logits: Tensor | None


def fortified_loss(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    x_adv: Tensor | None = None,
    *,
    lambda_rec: float | int = 1.0,
    lambda_adv: float | int | None = None,
    label_smoothing: float | int = 0.1,
    detach_target: bool = False,
    one_pass: bool | None = None,
) -> FortifiedLoss:
    """All losses of a fortified network by one call.

    Args:
        model: a `FortifiedModel`, also inside `DistributedDataParallel` or compiled; any other classifier has the
            classification terms alone.
        x: clean inputs, (n, ...).
        y: labels, (n,), integers from 0.
        x_adv: adversarial inputs of the shape of `x`, taken as constants; without them L = CE(x) + λ_rec sum_k L_rec.
        lambda_rec: weight of L_rec; the paper's is 1 against white-box and 0.01 against black-box attacks.
        lambda_adv: weight of L_adv; by default that of L_rec with adversarial inputs and 0 without.
        label_smoothing: what the true class gives away, to the others evenly: 0.1 has targets 0.9 and 0.1 / 9 in ten
            classes. (Torch's argument of that name also gives the true class its share: 0.91 and 0.01.)
        detach_target: "blocking": the reconstruction's target and input are constants, and it draws noise of its own,
            so that neither loss can shrink the states; only the denoising layers learn from them.
        one_pass: whether clean and adversarial rows go through the model as one batch; by default unless a batch
            normalisation would mix them.

    Raises:
        ValueError: a negative weight, a weight for L_adv without `x_adv`, shapes of `x` and `x_adv` that differ,
            smoothing outside [0, 1 - 1 / K]; a model that holds denoising layers without being a `FortifiedModel`, so
            that its reconstruction cannot be seen.

    Source: the paper, section 3; the released code's means over features.

    >>> from mechanisms.robust.denoising import DenoisingLayer
    >>> model = fortify(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), {"0": DenoisingLayer(4, 2)})
    >>> x, y = torch.rand(6, 3), torch.arange(6) % 2
    >>> loss = fortified_loss(model, x, y, x_adv=(x + 0.1).clamp(0, 1), lambda_rec=1.0, lambda_adv=1.0)
    >>> loss.total.backward()
    """
    lambda_rec = check_number(lambda_rec, "lambda_rec", at_least=0)
    if lambda_adv is None:
        lambda_adv = 0.0 if x_adv is None else lambda_rec
    lambda_adv = check_number(lambda_adv, "lambda_adv", at_least=0)
    if x_adv is None and lambda_adv > 0:
        raise ValueError(f"lambda_adv={lambda_adv:g} without x_adv: give adversarial inputs, or lambda_adv=0")
    if x_adv is not None and x_adv.shape != x.shape:
        raise ValueError(f"x has shape {tuple(x.shape)} and x_adv {tuple(x_adv.shape)}; they must be alike")

    inner = unwrapped(model)
    if lambda_rec + lambda_adv > 0 and not isinstance(inner, FortifiedModel) and any(True for _ in inserted(inner)):
        raise ValueError(
            f"the model is a {type(inner).__name__} with denoising layers inside, whose reconstruction cannot be seen; "
            "give the FortifiedModel (fortify the outermost model), or lambda_rec=0"
        )
    clean, attacked = _passes(model, x, x_adv, one_pass)
    if detach_target and isinstance(inner, FortifiedModel):
        clean, attacked = _blocked(inner, clean), None if attacked is None else _blocked(inner, attacked)

    targets = clean.before
    reconstruction = _errors(clean.after, targets, x)
    smoothing = _torch_smoothing(label_smoothing, clean.logits)
    y = y if y.is_floating_point() else y.long()
    classification = functional.cross_entropy(clean.logits, y, label_smoothing=smoothing)
    total, adversarial, adversarial_reconstruction = classification, None, None
    if attacked is not None:
        adversarial = functional.cross_entropy(attacked.logits, y, label_smoothing=smoothing)
        total = 0.5 * classification + 0.5 * adversarial
        adversarial_reconstruction = _errors(attacked.after, targets, x)
        if lambda_adv > 0:
            total = total + lambda_adv * adversarial_reconstruction.sum()
    if lambda_rec > 0:
        total = total + lambda_rec * reconstruction.sum()

    with torch.no_grad():
        norms = [torch.linalg.vector_norm(full(h).flatten(1), dim=1) for h in [*targets, *clean.after]]
        squares = [
            norm.square().mean() / max(1, math.prod(h.shape[1:])) for norm, h in zip(norms, targets, strict=False)
        ]
        means = _stack([norm.mean() for norm in norms], x)
    return FortifiedLoss(
        total=total,
        classification=classification.detach(),
        adversarial=None if adversarial is None else adversarial.detach(),
        reconstruction=reconstruction.detach(),
        adversarial_reconstruction=None if adversarial_reconstruction is None else adversarial_reconstruction.detach(),
        norm_before=means[: len(targets)],
        norm_after=means[len(targets) :],
        relative_error=reconstruction.detach() / _stack(squares, x).clamp(min=torch.finfo(torch.float32).tiny),
        logits=clean.logits.detach(),
        adversarial_logits=None if attacked is None else attacked.logits.detach(),
    )


def _passes(model: nn.Module, x: Tensor, x_adv: Tensor | None, one_pass: bool | None) -> tuple[Trace, Trace | None]:
    fortified = isinstance(unwrapped(model), FortifiedModel)

    def traced(rows: Tensor) -> Trace:
        return model(rows, trace=True) if fortified else Trace(model(rows), [], [])

    if x_adv is None:
        return traced(x), None
    x_adv = x_adv.detach()
    if one_pass is None:
        one_pass = not mixes_rows(model)
    if not one_pass:
        return traced(x), traced(x_adv)
    both = traced(torch.cat([x, x_adv]))
    before, after = ([h.split(len(x)) for h in states] for states in (both.before, both.after))
    clean, attacked = both.logits.split(len(x))
    return (
        Trace(clean, [h[0] for h in before], [h[0] for h in after]),
        Trace(attacked, [h[1] for h in before], [h[1] for h in after]),
    )


def _blocked(model: FortifiedModel, trace: Trace) -> Trace:
    """The trace whose layers are applied anew to constant states."""
    if len(model.layers) != len(trace.before):
        raise ValueError(
            f"detach_target needs one call of each fortified module in a pass: {len(model.layers)} modules, "
            f"{len(trace.before)} calls"
        )
    before = [h.detach() for h in trace.before]
    after = [layer(h) for layer, h in zip(model.layers.values(), before, strict=True)]
    return Trace(trace.logits, before, after)


def _errors(after: list[Tensor], targets: list[Tensor], like: Tensor) -> Tensor:
    pairs = zip(after, targets, strict=True)
    return _stack([functional.mse_loss(full(found), full(target)) for found, target in pairs], like)


def _stack(values: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(values) if values else like.new_zeros(0, dtype=torch.float32)


def _torch_smoothing(label_smoothing: float | int, logits: Tensor) -> float:
    """Torch's smoothing ε' gives 1 - ε' + ε'/K to the true class; this is the ε' for which that is 1 - ε."""
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"the model returns shape {tuple(logits.shape)}; expected logits (n, K) of at least two classes"
        )
    classes = logits.shape[1]
    smoothing = check_number(label_smoothing, "label_smoothing", at_least=0, at_most=1 - 1 / classes)
    return min(1.0, smoothing * classes / (classes - 1))
