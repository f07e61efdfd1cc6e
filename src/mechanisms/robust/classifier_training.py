"""Training loops for classifiers on inputs in [0, 1]: standard and adversarial, plain and fortified.

`adversarial_training` attacks every batch, and minimises `fortified_loss` on it: for a plain classifier that is
1/2 CE(x) + 1/2 CE(x'), for a fortified one the reconstruction losses are added. `train_classifier` is the same loop
without an attack. The attack runs in evaluation mode; a model with `noise="always"` draws one noise for each gradient.

Weights are as the caller made them; the order of the batches, the attack's starts, and torch's own generator (dropout,
denoising noise) follow from `seed`. So models that are compared see the same batches.

>>> x, y = torch.rand(64, 20), torch.arange(64) % 3
>>> model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3))
>>> fit = adversarial_training(model, x, y, eps=0.1, steps=3, epochs=2)
>>> fit.history["loss"].shape
(2,)
"""

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mechanisms._base.device import resolve_device
from mechanisms._base.seeds import seeded, stream_seed, torch_generator
from mechanisms._base.validation import check_number
from mechanisms.robust._ascent import Attack, climb, frozen, random_points
from mechanisms.robust._classifier_checks import check_inputs
from mechanisms.robust._training_file import Place, read_training, write_training
from mechanisms.robust.denoising import mixes_rows
from mechanisms.robust.fortified import FortifiedLoss, fortified_loss

__all__ = ["ClassifierFit", "adversarial_training", "train_classifier"]

Progress = Callable[[int, int, float], None]
KEEP_EVERY = 60.0  # seconds between two states of a training that are stored within an epoch
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class ClassifierFit:
    """What the loops return.

    Attributes:
        model: the model that was given, trained, in evaluation mode, on the device it was trained on.
        history: means over the batches of each epoch, by name: "loss", "accuracy", "classification", "reconstruction"
            (epochs, layers), "norm_before", "norm_after" and "relative_error" (epochs, layers); after adversarial
            training also "adversarial", "adversarial_accuracy" and "adversarial_reconstruction".

    >>> fit = train_classifier(nn.Linear(3, 2), torch.rand(8, 3), torch.arange(8) % 2, epochs=3)
    >>> fit.history["accuracy"].shape, fit.model.training
    ((3,), False)
    """

    model: nn.Module
    history: dict[str, np.ndarray]


def train_classifier(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int = 10,
    batch_size: int = 128,
    lr: float | int = 1e-3,
    make_optimizer: MakeOptimizer | None = None,
    label_smoothing: float | int = 0.1,
    lambda_rec: float | int = 1.0,
    detach_target: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
) -> ClassifierFit:
    """Train on clean inputs; a fortified model also on its reconstruction.

    Args:
        model: a classifier, (n, ...) to logits (n, K), plain or fortified; moved to `device` and trained in place.
        x: inputs in [0, 1], (n, ...); moved to `device` as a whole.
        y: labels, (n,), integers from 0.
        epochs: passes through the data.
        batch_size: rows of a step; the last of an epoch may be smaller. A single row that is left over joins the batch
            before it where the model has batch normalisation, which has no statistics of one row.
        lr: of Adam, whose other settings are torch's.
        make_optimizer: makes another optimiser from the parameters.
        label_smoothing, lambda_rec, detach_target: as in `fortified_loss`.
        seed: of the order of batches, of noise and of attacks; the weights are the caller's.
        device: where to compute; "auto" takes an accelerator when there is one.
        progress: called with steps done, all steps and the last loss, some times a second.
        checkpoint: file that is written after every epoch, and every minute within one, and read at the start when it
            is there: a training that was killed goes on and ends with the same weights (on the CPU bit by bit). It is
            kept; delete it to start anew.

    The loop may stand inside `torch.autocast`; it has no scaling of gradients, so that bfloat16 is the type to take.

    Raises:
        ValueError: inputs outside [0, 1], labels that do not fit, settings out of range, a checkpoint of a training
            with other settings, other examples or another model.

    Source: the Fortified Networks paper's settings: Adam 1e-3, batches of 128, smoothing 0.1.

    >>> x = torch.rand(40, 3)
    >>> fit = train_classifier(nn.Linear(3, 2), x, (x[:, 0] > 0.5).long(), epochs=30, batch_size=8, lr=0.1)
    >>> bool(fit.history["accuracy"][-1] > 0.8)
    True
    """
    x, y, _ = _check_examples(x, y)
    losses = {"label_smoothing": label_smoothing, "lambda_rec": lambda_rec, "detach_target": detach_target}

    def objective(rows: Tensor, labels: Tensor, generator: torch.Generator) -> FortifiedLoss:
        return fortified_loss(model, rows, labels, **losses)

    loop = _Loop(epochs, batch_size, lr, make_optimizer, seed, device, progress, checkpoint)
    return loop.run(model, x, y, objective, losses)


def adversarial_training(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float | int,
    *,
    steps: int = 10,
    step_size: float | int | None = None,
    norm: str = "linf",
    random_start: bool = True,
    epochs: int = 10,
    batch_size: int = 128,
    lr: float | int = 1e-3,
    make_optimizer: MakeOptimizer | None = None,
    label_smoothing: float | int = 0.1,
    lambda_rec: float | int = 1.0,
    lambda_adv: float | int | None = None,
    detach_target: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
) -> ClassifierFit:
    """Train on clean inputs and on PGD's (with `steps=1, step_size=eps` FGSM's), half and half.

    Args:
        model, x, y: as in `train_classifier`.
        eps, steps, step_size, norm, random_start: the attack on each batch, as in `pgd`; its last iterate is taken.
        epochs, batch_size, lr, make_optimizer, seed, device, progress, checkpoint: as in `train_classifier`.
        label_smoothing, lambda_rec, lambda_adv, detach_target: as in `fortified_loss`; the attack climbs the loss
            without smoothing, whose gradient at the true class has the same sign.

    Raises:
        ValueError: as `train_classifier`, and an attack's settings out of range.

    Source: Madry et al., section 3; the half of clean inputs is the Fortified Networks paper's.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> fit = adversarial_training(model, torch.rand(16, 3), torch.arange(16) % 2, eps=0.05, steps=2, epochs=1)
    >>> sorted(fit.history)[:3]
    ['accuracy', 'adversarial', 'adversarial_accuracy']
    """
    x, y, classes = _check_examples(x, y)
    attack = Attack.checked(eps, steps, step_size, norm, random_start, "cross_entropy", "last")
    attack = replace(attack, classes=classes)
    losses = {
        "label_smoothing": label_smoothing,
        "lambda_rec": lambda_rec,
        "lambda_adv": lambda_adv,
        "detach_target": detach_target,
    }

    def objective(rows: Tensor, labels: Tensor, generator: torch.Generator) -> FortifiedLoss:
        model.eval()
        with frozen(model):
            start = random_points(rows, attack, generator) if attack.random_start else rows
            x_adv, _ = climb(model, rows, labels, attack, start)
        model.train()
        return fortified_loss(model, rows, labels, x_adv, **losses)

    loop = _Loop(epochs, batch_size, lr, make_optimizer, seed, device, progress, checkpoint)
    return loop.run(model, x, y, objective, losses | vars(attack))


class _Loop:
    """Epochs over shuffled batches; what they have in common."""

    def __init__(
        self,
        epochs: int,
        batch_size: int,
        lr: float | int,
        make_optimizer: MakeOptimizer | None,
        seed: int,
        device: str | torch.device,
        progress: Progress | None,
        checkpoint: str | Path | None,
    ) -> None:
        self.epochs = int(check_number(epochs, "epochs", at_least=1))
        self.batch_size = int(check_number(batch_size, "batch_size", at_least=1))
        self.lr = check_number(lr, "lr", at_least=0)
        self.make_optimizer = make_optimizer or (lambda parameters: torch.optim.Adam(parameters, lr=self.lr))
        self.seed, self.device = seed, resolve_device(device)
        self.progress, self.path = progress, None if checkpoint is None else Path(checkpoint)

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        objective: Callable[[Tensor, Tensor, torch.Generator], FortifiedLoss],
        settings: dict[str, Any],
    ) -> ClassifierFit:
        """Train, from the checkpoint's epoch on."""
        model.to(self.device)
        x, y = x.to(self.device), y.to(self.device)
        optimizer = self.make_optimizer(model.parameters())
        order = torch_generator(self.seed, "batches")
        starts = torch_generator(self.seed, "attack", self.device)
        settings = settings | {"batch_size": self.batch_size, "lr": self.lr, "seed": self.seed, "x": tuple(x.shape)}
        settings |= {"optimizer": type(optimizer).__name__}
        if self.path is not None:
            settings |= {"examples": _digest(x, y)}
        parts = {"model": model, "optimizer": optimizer}
        streams = {"batches": order, "attack": starts} | _noise_streams(model)
        history: dict[str, list[list[float]]] = {}
        sizes = self._sizes(model, len(x))
        total, shown = self.epochs * len(sizes), time.monotonic()
        with seeded(stream_seed(self.seed, "noise"), self.device):
            begun = Place() if self.path is None else read_training(self.path, settings, parts, streams, history)
            done, kept = begun.epochs * len(sizes) + begun.batches, time.monotonic()
            for epoch in range(begun.epochs, self.epochs):
                model.train()
                sums, before = _Sums(begun, self.device), order.clone_state()
                batches = torch.randperm(len(x), generator=order).to(self.device).split(sizes)
                for place, rows in enumerate(batches[begun.batches :], begun.batches + 1):
                    inputs, labels = x[rows], y[rows]
                    loss = objective(inputs, labels, starts)
                    optimizer.zero_grad(set_to_none=True)
                    loss.total.backward()
                    optimizer.step()
                    # Inside autocast the next pass would find this one's weights, cast before the step.
                    torch.clear_autocast_cache()
                    sums.add(loss, labels)
                    done += 1
                    # The loss is read from the device, which waits for it, only when it is shown.
                    if self.progress is not None and (time.monotonic() - shown >= 0.2 or done == total):
                        shown = time.monotonic()
                        self.progress(done, total, float(loss.total.detach()))
                    if self.path is not None and place < len(sizes) and time.monotonic() - kept >= KEEP_EVERY:
                        # The epoch's order is drawn again when it is gone on with.
                        now, drawn = Place(epoch, place, sums.sums, sums.rows), streams | {"batches": before}
                        write_training(self.path, settings, now, parts, drawn, history)
                        kept = time.monotonic()
                for name, values in sums.means().items():
                    history.setdefault(name, []).append(values)
                begun = Place(epoch + 1)
                if self.path is not None:
                    write_training(self.path, settings, begun, parts, streams, history)
                    kept = time.monotonic()
        single = {"loss", "accuracy", "classification", "adversarial", "adversarial_accuracy"}
        curves = {name: np.array(values) for name, values in history.items()}
        curves = {name: curve[:, 0] if name in single else curve for name, curve in curves.items()}
        return ClassifierFit(model.eval(), curves)

    def _sizes(self, model: nn.Module, rows: int) -> list[int]:
        """Rows of each batch of an epoch."""
        whole, rest = divmod(rows, self.batch_size)
        sizes = [self.batch_size] * whole + [rest] * (rest > 0)
        if len(sizes) > 1 and sizes[-1] == 1 and mixes_rows(model.train()):
            sizes[-2:] = [sizes[-2] + 1]
        return sizes


def _digest(x: Tensor, y: Tensor) -> str:
    """What tells one set of examples from another."""
    found = hashlib.sha256()
    for part in (x, y):
        found.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def _check_examples(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
    x, y, classes = check_inputs(x, y)
    if len(x) == 0:
        raise ValueError("x is empty; give at least one example")
    return x, y, classes


def _noise_streams(model: nn.Module) -> dict[str, torch.Generator]:
    """The generators that layers of the model draw from, by the layers' names."""
    found = {name: getattr(module, "generator", None) for name, module in model.named_modules()}
    return {f"noise/{name}": one for name, one in found.items() if isinstance(one, torch.Generator)}


class _Sums:
    """Row-weighted sums of an epoch's losses, kept on the device."""

    def __init__(self, begun: Place, device: torch.device) -> None:
        self.sums = {name: part.to(device) for name, part in begun.sums.items()}
        self.rows = begun.rows

    @torch.no_grad()
    def add(self, loss: FortifiedLoss, labels: Tensor) -> None:
        """One batch."""
        found = {
            "loss": loss.total.detach(),
            "accuracy": (loss.logits.argmax(1) == labels).float().mean(),
            "classification": loss.classification,
            "reconstruction": loss.reconstruction,
            "norm_before": loss.norm_before,
            "norm_after": loss.norm_after,
            "relative_error": loss.relative_error,
        }
        if loss.adversarial is not None and loss.adversarial_logits is not None:
            found["adversarial"] = loss.adversarial
            found["adversarial_accuracy"] = (loss.adversarial_logits.argmax(1) == labels).float().mean()
            assert loss.adversarial_reconstruction is not None
            found["adversarial_reconstruction"] = loss.adversarial_reconstruction
        for name, value in found.items():
            part = value.reshape(-1) * len(labels)
            self.sums[name] = self.sums[name] + part if name in self.sums else part
        self.rows += len(labels)

    def means(self) -> dict[str, list[float]]:
        """Of each quantity, read from the device."""
        return {name: (value / self.rows).tolist() for name, value in self.sums.items()}
