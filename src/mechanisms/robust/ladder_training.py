"""Training ladder networks: the loop of the paper, for one network or for many side by side.

Every step takes a batch of labelled and one of unlabelled rows; labelled rows come round again and again, an epoch is
one pass over the unlabelled ones. Adam, with a rate that is constant for two thirds of the epochs and then falls
linearly to 0. Networks of one architecture train in one batch (`ladder_stack`), which is how seeds and weights of the
costs are compared on a laptop.

Order of batches and noise depend on a network's seed alone, not on what trains beside it, so that variants with the
same seed are paired.

>>> from mechanisms.robust.ladder_variants import VARIANTS
>>> x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
>>> y = (x[:, 0] > 0).long()
>>> networks = [VARIANTS["vanilla"].network([4, 8, 2], scale=scale, generator=0) for scale in (0.1, 1.0)]
>>> fit = train_ladders(networks, x[:20], y[:20], x, epochs=2, batch_size=20, seeds=[0, 0])
>>> fit.loss_curve.shape, fit.networks[0](x).shape
(torch.Size([2, 2]), torch.Size([60, 2]))
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechanisms._base.device import resolve_device
from mechanisms._base.validation import as_finite, check_choice, check_number
from mechanisms.robust._ladder_batches import Noise, Rows
from mechanisms.robust._ladder_rows import check_inputs, check_labels
from mechanisms.robust.ladder import LadderNetwork
from mechanisms.robust.ladder_stack import can_stack_ladders, stack_ladders, unstack_ladders

__all__ = ["LadderFit", "train_ladders"]

_LABELLED = 100  # rows of a labelled batch


@dataclass(frozen=True)
class LadderFit:
    """What `train_ladders` returns, for M networks.

    Attributes:
        networks: the trained ones, in evaluation mode, with statistics.
        loss_curve: the total cost, averaged over the steps of each epoch, (epochs, M).
        validation_accuracy: after each epoch, (epochs, M); None without validation rows.
        best_epoch: the epoch (from 1) whose weights each network has; None without validation rows.

    >>> x = torch.eye(4)
    >>> train_ladders([LadderNetwork([4, 2])], x, torch.tensor([0, 1, 0, 1]), x, epochs=3).loss_curve.shape
    torch.Size([3, 1])
    """

    networks: list[LadderNetwork]
    loss_curve: Tensor
    validation_accuracy: Tensor | None = None
    best_epoch: Tensor | None = None


def train_ladders(
    networks: Sequence[LadderNetwork],
    x_labelled: Tensor,
    y: Tensor,
    x_unlabelled: Tensor,
    *,
    epochs: int = 150,
    batch_size: int = 100,
    labelled_batch_size: int | None = None,
    lr: float | int = 0.002,
    decay_from: float | int = 0.67,
    seeds: Sequence[int] | None = None,
    statistics: str = "all",
    x_val: Tensor | None = None,
    y_val: Tensor | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
    watch: Callable[[int, LadderNetwork, Sequence[int]], None] | None = None,
    warn: bool = True,
) -> LadderFit:
    """Train networks, side by side where they can be stacked, else one after the other.

    Args:
        networks: M of them; they are copied, not changed.
        x_labelled: (n_l, ...), or (M, n_l, d) where every network has its own rows.
        y: labels (n_l,), or (M, n_l).
        x_unlabelled: (n_u, ...) or (M, n_u, d); usually all training rows, labelled ones included.
        epochs: passes over the unlabelled rows; each takes n_u // batch_size steps, at least one.
        batch_size: unlabelled rows of a step, at most n_u.
        labelled_batch_size: labelled rows of a step; default min(100, n_l), and n_l takes all of them at every step.
        lr: Adam's rate.
        decay_from: share of the epochs after which the rate begins to fall.
        seeds: one for each network, of batches and noise; default 0 for all.
        statistics: "all" or "labelled", of `LadderNetwork.update_statistics`: from the unlabelled rows, or from the
            labelled ones.
        x_val, y_val: rows that choose: every network gets the weights of its last epoch with the best accuracy there.
            Shapes as of the labelled ones. Without them the last epoch counts.
        device: where to train; "auto" takes an accelerator when there is one. The networks stay there.
        progress: called with (epochs done, epochs in all).
        watch: called after each epoch with its number (from 1), the network in training or the stack of them, and
            which of the given ones it is made of: for learning curves. Its mode may be changed, its weights not.
        warn: whether to warn of classes without labelled rows.

    Raises:
        ValueError: shapes and labels that do not fit, fewer than two rows in a part, numbers out of range, inputs that
            are infinite or not a number.

    Warns:
        UserWarning: a class without labelled rows; the message names it.

    Source: Rasmus et al. 2015, section 4 and code.

    >>> x = torch.eye(4)
    >>> fit = train_ladders([LadderNetwork([4, 2])], x, torch.tensor([0, 1, 0, 1]), x, epochs=3, progress=None)
    >>> fit.networks[0].training
    False
    """
    networks = list(networks)
    if not networks:
        raise ValueError("networks is empty; give at least one LadderNetwork")
    place = resolve_device(device)
    plan = _plan(epochs, batch_size, labelled_batch_size, lr, decay_from, statistics)
    seeds = [0] * len(networks) if seeds is None else list(seeds)
    if len(seeds) != len(networks):
        raise ValueError(f"seeds has {len(seeds)} numbers for {len(networks)} networks; give one for each")
    if (x_val is None) != (y_val is None):
        raise ValueError("x_val and y_val go together; give both or neither")
    data = _Data(
        as_finite(x_labelled, "x_labelled").to(place),
        y.to(place),
        as_finite(x_unlabelled, "x_unlabelled").to(place),
        None if x_val is None else as_finite(x_val, "x_val").to(place),
        None if y_val is None else y_val.to(place),
    )
    if warn and (missing := missing_classes(y, networks[0].num_classes)):
        warnings.warn(
            f"class {', '.join(map(str, missing))} has no labelled row: the network will hardly ever predict it",
            UserWarning,
            stacklevel=2,
        )
    if len(networks) > 1 and can_stack_ladders(networks):
        stack = stack_ladders(networks).to(place)
        fit = _train(stack, data, plan, seeds, progress, _watcher(watch, range(len(networks))))
        return LadderFit(unstack_ladders(stack), *fit)
    trained, curves = [], []
    for index, (network, seed) in enumerate(zip(networks, seeds, strict=True)):
        one = copy.deepcopy(network).to(place)
        own = data.of(index, len(networks))
        report = None
        if progress is not None:
            begun, total = index * epochs, len(networks) * epochs

            def report(done: int, _: int, begun: int = begun, total: int = total) -> None:
                progress(begun + done, total)

        curves.append(_train(one, own, plan, [seed], report, _watcher(watch, (index,))))
        trained.append(one)
    losses, accuracies, best = zip(*curves, strict=True)
    if x_val is None:
        return LadderFit(trained, torch.cat(losses, 1))
    return LadderFit(trained, torch.cat(losses, 1), torch.cat(accuracies, 1), torch.cat(best))


@dataclass(frozen=True)
class _Plan:
    epochs: int
    batch_size: int
    labelled_batch_size: int | None
    lr: float
    decay_from: float
    statistics: str

    def rate(self, epoch: int) -> float:
        """Adam's rate in an epoch, counted from 0."""
        left = (1 - epoch / self.epochs) / max(1 - self.decay_from, 1e-12)
        return self.lr * min(1.0, left)


def _plan(
    epochs: int, batch_size: int, labelled: int | None, lr: float | int, decay_from: float | int, statistics: str
) -> _Plan:
    return _Plan(
        _whole(epochs, "epochs", 1),
        _whole(batch_size, "batch_size", 2),
        None if labelled is None else _whole(labelled, "labelled_batch_size", 2),
        check_number(lr, "lr", above=0),
        check_number(decay_from, "decay_from", at_least=0, at_most=1),
        check_choice(statistics, "statistics", ("all", "labelled")),
    )


def _whole(value: int, name: str, at_least: int) -> int:
    if (number := check_number(value, name, at_least=at_least)) % 1:
        raise ValueError(f"{name}={value}: it must be a whole number")
    return int(number)


@dataclass(frozen=True)
class _Data:
    x_labelled: Tensor
    y: Tensor
    x_unlabelled: Tensor
    x_val: Tensor | None
    y_val: Tensor | None

    def of(self, index: int, models: int) -> "_Data":
        """What one network sees where each has its own."""

        def pick(x: Tensor, axes: int) -> Tensor:
            return x[index] if x.dim() == axes and len(x) == models else x

        return _Data(
            pick(self.x_labelled, 3),
            pick(self.y, 2),
            pick(self.x_unlabelled, 3),
            None if self.x_val is None else pick(self.x_val, 3),
            None if self.y_val is None else pick(self.y_val, 2),
        )

    def check(self, network: LadderNetwork) -> None:
        """An error unless the network, or the stack, can be trained on these."""
        check_inputs(self.x_labelled, "x_labelled", network, at_least=2)
        check_inputs(self.x_unlabelled, "x_unlabelled", network, at_least=2)
        check_labels(self.y, "y", self.x_labelled, network)
        if self.x_val is not None and self.y_val is not None:
            check_inputs(self.x_val, "x_val", network, at_least=1)
            check_labels(self.y_val, "y_val", self.x_val, network)


def _train(
    network: LadderNetwork,
    data: _Data,
    plan: _Plan,
    seeds: list[int],
    progress: Callable[[int, int], None] | None,
    watch: Callable[[int, LadderNetwork], None],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Train in place; the curves of `LadderFit`."""
    data.check(network)
    network.train()
    models = network.num_models
    labelled_size = plan.labelled_batch_size or _LABELLED
    labelled = Rows(data.x_labelled, data.y, labelled_size, seeds, "labelled batches", models)
    unlabelled = Rows(data.x_unlabelled, None, plan.batch_size, seeds, "batches", models)
    steps = max(1, unlabelled.count // unlabelled.size)
    # Without a decoder the unlabelled rows are not looked at, and their noise is not drawn.
    decoded = network._lowest < len(network.shapes)
    noise = Noise(network, seeds, labelled.size + (unlabelled.size if decoded else 0), network.gamma.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=plan.lr, fused=network.gamma.device.type in ("cpu", "cuda"))
    curve, best = [], None
    for epoch in range(plan.epochs):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(epoch)
        labelled.epoch(steps, fresh=False)
        unlabelled.epoch(steps, fresh=True)
        total = torch.zeros(() if models is None else (models,), device=network.gamma.device)
        for _ in range(steps):
            x, y = labelled.next()
            assert y is not None
            loss = network.losses(x, y, unlabelled.next()[0], noise=noise.draw())
            optimizer.zero_grad()
            loss.total.sum().backward()
            optimizer.step()
            total += loss.total.detach()
        curve.append((total / steps).reshape(-1))
        if data.x_val is not None and data.y_val is not None:
            _statistics(network, data, plan)
            best = _Best.after(best, network, data.x_val, data.y_val)
        watch(epoch + 1, network)
        network.train()
        if progress is not None:
            progress(epoch + 1, plan.epochs)
    if best is None:
        _statistics(network, data, plan)
    else:
        best.restore(network)
    network.eval()
    losses = torch.stack(curve).cpu()
    return (losses, None, None) if best is None else (losses, torch.stack(best.curve).cpu(), best.epoch.cpu())


def _watcher(
    watch: Callable[[int, LadderNetwork, Sequence[int]], None] | None, places: Sequence[int]
) -> Callable[[int, LadderNetwork], None]:
    if watch is None:
        return lambda epoch, network: None
    return lambda epoch, network: watch(epoch, network, places)


def _statistics(network: LadderNetwork, data: _Data, plan: _Plan) -> None:
    if plan.statistics == "all":
        network.update_statistics(data.x_unlabelled)
        return
    # Batches as in training; what is left over at the end is left out.
    rows = data.x_labelled
    axis = 1 if rows.dim() == 3 else 0
    size = min(plan.labelled_batch_size or _LABELLED, rows.shape[axis])
    network.update_statistics(
        [part for part in rows.split(size, axis) if part.shape[axis] == size], statistics=plan.statistics
    )


class _Best:
    """The state of each network after its last epoch with the best accuracy."""

    def __init__(self, network: LadderNetwork, accuracy: Tensor) -> None:
        self.accuracy, self.curve = accuracy, [accuracy]
        self.epoch = torch.ones_like(accuracy, dtype=torch.int64)
        self._kept = {name: value.clone() for name, value in network.state_dict().items()}

    @classmethod
    def after(cls, best: "_Best | None", network: LadderNetwork, x: Tensor, y: Tensor) -> "_Best":
        network.eval()
        with torch.no_grad():
            right = network(x).argmax(-1) == y
        network.train()
        accuracy = right.double().mean(-1).reshape(-1) if x.device.type != "mps" else right.float().mean(-1).reshape(-1)
        if best is None:
            return cls(network, accuracy)
        best.curve.append(accuracy)
        better = accuracy >= best.accuracy
        best.accuracy = torch.where(better, accuracy, best.accuracy)
        best.epoch = torch.where(better, len(best.curve), best.epoch)
        for name, value in network.state_dict().items():
            kept = best._kept[name]
            if network.num_models is None or value.dim() == 0:
                kept.copy_(torch.where(better.any(), value, kept))
            else:
                kept.copy_(torch.where(better.view(-1, *[1] * (value.dim() - 1)), value, kept))
        return best

    def restore(self, network: LadderNetwork) -> None:
        network.load_state_dict(self._kept)


def missing_classes(y: Tensor, classes: int) -> list[int]:
    """Classes from 0 to K - 1 that no label names.

    >>> missing_classes(torch.tensor([0, 2]), 3)
    [1]
    """
    there = torch.zeros(classes, dtype=torch.bool)
    there[y.flatten().cpu().clamp(0, classes - 1).long()] = True
    return (~there).nonzero().flatten().tolist()
