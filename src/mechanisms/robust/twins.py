"""Twin networks that adopt each other's held-out mistakes: phase 1 of XRM for any `nn.Module`.

Two networks f^a, f^b of one architecture are trained on random halves of the data, m_i saying which half example i is
in. For a minibatch, with working labels t_i that start as the labels y_i,

    held-in    hi_i = m_i f^a(x_i) + (1 - m_i) f^b(x_i)
    held-out   ho_i = (1 - m_i) f^a(x_i) + m_i f^b(x_i)            (no gradient)
    loss       L = sum over classes c present of  mean over {i: t_i = c} of CE(hi_i, t_i)

and after the optimiser's step each t_i becomes the held-out prediction with probability

    P(flip_i)  = clamp((max softmax(ho_i) - 1/K) K / (K - 1), 0, 1),

so that both networks come to rely on what is learned fastest: the shortcut. An example that either network gets wrong,
judged by its original label, is in environment 1, all others in environment 0 (`cross_mistakes`).

Reference: Pezeshki, Bouchacourt, Ibrahim, Ballas, Vincent, Lopez-Paz, "Discovering Environments with XRM", ICML 2024,
arXiv 2309.16748, section 3.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler

from mechanisms._base.device import resolve_device
from mechanisms._base.seeds import RandomState, as_seed, seeded, stream_seed, torch_generator
from mechanisms.robust._networks import call_network, check_factory, check_logits, map_tensors, to_network
from mechanisms.robust._rows import tensors_of

# Classes smaller than this are split evenly between the twins: a coin could leave one twin without any.
_EVEN_BELOW = 4
_ANNOTATION_ROWS = 1024


class TwinTrainer:
    """Trains twin networks with label flipping on batches that the caller supplies.

    Each row is passed forward through both networks and backward through one: the held-out pass needs no gradient.
    Networks with layers that mix rows in training mode (batch normalisation) see the whole batch in both passes, so
    that their statistics are those of the batch.

    Assignment, initial weights, flips and the networks' own noise (dropout) draw from separate streams of one seed.

    Args:
        make_model: returns a fresh network from inputs (n, ...) to logits (n, K); called twice.
        labels: (N,) class indices 0..K-1 of the whole training set, in data-set order.
        num_classes: K, at least 2.
        make_optimizer: from the parameters of both networks to one `torch.optim.Optimizer`.
        make_scheduler: from that optimiser to a learning-rate scheduler, stepped once per `step`; default none.
        generator: seed or generator; default a fresh seed.
        flips: False leaves all labels as they are (ablation).
        balanced: False replaces the sum of class means by the plain mean (ablation).
        held_out: False flips to the prediction of the network that trains on the example (ablation: self-training).
        device: where the networks live; default an accelerator when there is one.

    Raises:
        TypeError: a network, not a function that returns one.
        ValueError: fewer than two classes, labels out of range, or a network without trained parameters.

    >>> inputs = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    >>> labels = (inputs[:, 0] > 0).long()
    >>> trainer = TwinTrainer(lambda: nn.Linear(3, 2), labels, 2,
    ...     make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5), generator=0, device="cpu")
    >>> for _ in range(50):
    ...     state = trainer.step(torch.arange(64), inputs)
    >>> sorted(state)
    ['flip_rate', 'loss']
    >>> trainer.annotate(inputs, labels).shape
    torch.Size([64])
    """

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        labels: Tensor,
        num_classes: int,
        *,
        make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        make_scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        generator: RandomState = None,
        flips: bool = True,
        balanced: bool = True,
        held_out: bool = True,
        device: str | torch.device = "auto",
    ) -> None:
        _check_labels(labels, num_classes)
        self.device = resolve_device(device)
        self.num_classes, self.num_steps = num_classes, 0
        self._flips, self._balanced, self._held_out = flips, balanced, held_out
        seed = as_seed(generator)
        self._noise_seed = stream_seed(seed, "noise")
        self._flip_generator = torch_generator(seed, "flips", self.device)
        self.labels = labels.to(self.device, torch.int64)
        self.working_labels = self.labels.clone()
        # On the CPU, where loaders leave their indices: finding a batch's halves there lets no accelerator wait.
        self.assignment = draw_assignment(labels, num_classes, torch_generator(seed, "assignment"))
        self.twins = nn.ModuleList(make_twins(make_model, seed, self.device))
        self.optimizer = make_optimizer(self.twins.parameters())
        self.scheduler = None if make_scheduler is None else make_scheduler(self.optimizer)

    @property
    def flip_rate(self) -> Float[Tensor, ""]:
        """Share of the training set whose working label differs from the original one."""
        return (self.working_labels != self.labels).float().mean()

    def step(self, indices: Tensor, inputs: Any) -> dict[str, Tensor]:
        """One update of both networks, then flips of the labels of this batch.

        Args:
            indices: (B,) positions of the batch in the training set. When one occurs twice, the later row's flip
                stays (on an accelerator: either one's).
            inputs: (B, ...) or a dictionary, list or tuple of such tensors, as the network takes them; floating-point
                ones are brought to its dtype.

        Returns:
            "loss" of the batch and "flip_rate" of the whole training set after the flips, as tensors: reading them
            every step would make an accelerator wait.

        Raises:
            ValueError: another number of indices than of rows, or inputs or outputs that do not fit the network.
        """
        rows = {len(values) for values in tensors_of(inputs)}
        if rows != {len(indices)}:
            raise ValueError(
                f"got {len(indices)} indices for inputs of {sorted(rows)} rows; give one index for each row"
            )
        in_a = self.assignment[indices.cpu()]
        indices = indices.to(self.device, non_blocking=True)
        inputs = to_network(inputs, self.twins, self.device)
        targets = self.working_labels[indices]
        # Seeding by the step makes a resumed run draw the same dropout masks as an uninterrupted one.
        with seeded(self._noise_seed + self.num_steps, self.device):
            held_in, held_out = self._pass(inputs, in_a)
        loss_function = balanced_cross_entropy if self._balanced else _mean_cross_entropy
        loss = loss_function(held_in, targets, self.num_classes)

        self.optimizer.zero_grad()
        loss.backward()
        # A network without a row in the batch has a gradient of zero, not none: momentum and decay go on.
        for parameter in self.twins.parameters():
            if parameter.grad is None and parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.num_steps += 1

        if self._flips:
            source = held_out if self._held_out else held_in.detach()
            confidence, predicted = source.softmax(1).max(1)
            chance = torch.rand(
                len(indices), generator=self._flip_generator, device=self.device, dtype=confidence.dtype
            )
            flip = chance < flip_probability(confidence, self.num_classes)
            self.working_labels[indices] = torch.where(flip, predicted, targets)
        return {"loss": loss.detach(), "flip_rate": self.flip_rate}

    def predict(self, inputs_or_loader: Any) -> tuple[Tensor, Tensor]:
        """Logits (n, K) of both networks in evaluation mode, in the order of the data.

        Args:
            inputs_or_loader: (n, ...) tensor, or an iterable of batches: inputs, or tuples that begin with them.

        Raises:
            ValueError: a loader that shuffles: its rows would not be those of the data set.
        """
        was_training = self.twins.training
        self.twins.eval()
        outputs: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            for batch in batches_in_order(inputs_or_loader):
                batch = to_network(batch, self.twins, self.device)
                outputs.append((self._logits(0, batch), self._logits(1, batch)))
        self.twins.train(was_training)
        one, other = zip(*outputs, strict=True)
        return torch.cat(one), torch.cat(other)

    def annotate(self, inputs_or_loader: Any, labels: Tensor) -> Int64[Tensor, " examples"]:
        """Environment 0 or 1 of labelled examples: 1 where either network errs on the original label.

        Args:
            inputs_or_loader: as for `predict`; training, validation or new data, in data-set order.
            labels: (n,) original class indices.

        Raises:
            ValueError: a shuffling loader, another number of labels than of rows, or logits that are not finite:
                the inputs hold NaN, or the twins diverged.
        """
        one, other = self.predict(inputs_or_loader)
        check_logits(one, other)
        if len(labels) != len(one):
            raise ValueError(f"{len(one)} rows of inputs but {len(labels)} labels; annotate one data set, in order")
        return cross_mistakes(one, other, labels.to(self.device))

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run needs to continue bit for bit."""
        return {
            "twins": self.twins.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "working_labels": self.working_labels.clone(),
            "assignment": self.assignment.clone(),
            "num_steps": self.num_steps,
            "noise_seed": self._noise_seed,
            "flip_generator": self._flip_generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: the state belongs to a training set of another size.
        """
        if state["working_labels"].shape != self.labels.shape:
            raise ValueError(
                f"the state is of {len(state['working_labels'])} training examples, this trainer has {len(self.labels)}"
            )
        self.twins.load_state_dict(state["twins"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.working_labels.copy_(state["working_labels"])
        self.assignment.copy_(state["assignment"])
        self.num_steps, self._noise_seed = state["num_steps"], state["noise_seed"]
        self._flip_generator.set_state(state["flip_generator"].cpu())

    def _pass(self, inputs: Any, in_a: Bool[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        """Held-in logits with gradient and held-out logits without, rows as in the batch."""
        if any(_mixes_rows(module) for module in self.twins.modules()):
            one, other = self._logits(0, inputs), self._logits(1, inputs)
            choose = in_a.unsqueeze(1).to(self.device, non_blocking=True)
            return torch.where(choose, one, other), torch.where(choose, other, one).detach()
        held_in, held_out, order = [], [], []
        for twin, half in enumerate((in_a, ~in_a)):
            rows = half.nonzero().flatten().to(self.device, non_blocking=True)
            if len(rows):
                part = map_tensors(inputs, lambda values, rows=rows: values[rows])
                held_in.append(self._logits(twin, part))
                with torch.no_grad():
                    held_out.append(self._logits(1 - twin, part))
                order.append(rows)
        back = torch.cat(order).argsort()
        return torch.cat(held_in)[back], torch.cat(held_out)[back]

    def _logits(self, twin: int, inputs: Any) -> Tensor:
        logits = call_network(self.twins[twin], inputs)
        rows = len(next(tensors_of(inputs)))
        if not isinstance(logits, Tensor) or logits.shape != (rows, self.num_classes):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the model returned {got}, expected logits of shape {(rows, self.num_classes)}")
        # Probabilities and losses in half precision would round flip probabilities to a few values.
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def flip_probability(probabilities: Tensor, num_classes: int | None = None) -> Tensor:
    """Probability of adopting a held-out prediction: 0 at chance, 1 at certainty (section 3 of the paper).

    Args:
        probabilities: (n, K) softmax outputs, or their maxima (n,) together with `num_classes`.
        num_classes: K; needed for maxima only.

    Returns:
        (n,) in [0, 1]. The clamp catches rounding, which can push the value at chance below 0.

    Raises:
        ValueError: maxima without `num_classes`, or fewer than two classes.

    >>> flip_probability(torch.tensor([[0.5, 0.5], [0.75, 0.25], [0.0, 1.0]])).tolist()
    [0.0, 0.5, 1.0]
    >>> flip_probability(torch.tensor([0.625]), num_classes=4).tolist()
    [0.5]
    """
    if probabilities.dim() == 2:
        num_classes, confidence = probabilities.shape[1], probabilities.amax(1)
    else:
        confidence = probabilities
    if num_classes is None or num_classes < 2:
        raise ValueError(
            f"flip_probability needs (n, K) probabilities with K >= 2, or (n,) maxima and num_classes; got shape "
            f"{tuple(probabilities.shape)} and num_classes={num_classes}"
        )
    return ((confidence - 1 / num_classes) * (num_classes / (num_classes - 1))).clamp(0, 1)


def balanced_cross_entropy(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"], num_classes: int
) -> Float[Tensor, ""]:
    """Sum over the classes present of the mean cross-entropy within the class.

    The means are summed, not averaged: uniform logits give K' log K for K' classes present.

    Args:
        logits: (n, K).
        labels: (n,) class indices.
        num_classes: K.

    >>> balanced_cross_entropy(torch.zeros(3, 2), torch.tensor([0, 0, 1]), 2)
    tensor(1.3863)
    """
    losses = F.cross_entropy(logits, labels, reduction="none")
    counts = torch.zeros(num_classes, dtype=losses.dtype, device=losses.device)
    counts = counts.index_add_(0, labels, torch.ones_like(losses, requires_grad=False))
    return (losses / counts[labels]).sum()


def cross_mistakes(
    logits_a: Float[Tensor, "examples classes"],
    logits_b: Float[Tensor, "examples classes"],
    labels: Int64[Tensor, " examples"],
) -> Int64[Tensor, " examples"]:
    """Environment of each example: 1 when either network's prediction differs from the original label, else 0.

    >>> right, wrong = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    >>> [int(cross_mistakes(a, b, torch.tensor([1]))) for a, b in [(right, right), (right, wrong), (wrong, wrong)]]
    [0, 1, 1]
    """
    return ((logits_a.argmax(1) != labels) | (logits_b.argmax(1) != labels)).long()


def draw_assignment(
    labels: Int64[Tensor, " examples"], num_classes: int, generator: torch.Generator
) -> Bool[Tensor, " examples"]:
    """Which twin trains on each example: True for a, False for b, a fair coin each.

    Classes with two or three examples are split evenly, so that neither twin is left without any of them.

    >>> draw_assignment(torch.tensor([0, 0, 1, 1]), 2, torch.Generator().manual_seed(0)).sum()
    tensor(2)
    """
    labels = labels.cpu()
    chance = torch.rand(len(labels), generator=generator)
    assignment = chance < 0.5
    counts = labels.bincount(minlength=num_classes)
    for small in ((counts > 0) & (counts < _EVEN_BELOW)).nonzero().flatten():
        members = (labels == small).nonzero().flatten()
        order = members[chance[members].argsort()]
        assignment[order] = torch.arange(len(order)) % 2 == 0
    return assignment


def make_twins(
    make_model: Callable[[], nn.Module], seed: int, device: torch.device, dtype: torch.dtype | None = None
) -> tuple[nn.Module, nn.Module]:
    """Two networks whose initial weights follow from the seed; the global generators stay as they were.

    >>> one, other = make_twins(lambda: nn.Linear(1, 2), 0, torch.device("cpu"))
    >>> torch.equal(one.weight, other.weight)
    False
    """
    check_factory(make_model)
    with seeded(stream_seed(seed, "weights"), device):
        twins = make_model().to(device, dtype), make_model().to(device, dtype)
    if not any(parameter.requires_grad for parameter in twins[0].parameters()):
        raise ValueError(
            f"the model ({type(twins[0]).__name__}) has no parameters that require gradients; unfreeze a layer, or add "
            "a head to the frozen body"
        )
    return twins


def batches_in_order(inputs_or_loader: Any) -> Iterator[Any]:
    """Batches of inputs from a tensor or from a loader that keeps the order of its data set.

    >>> [len(batch) for batch in batches_in_order(torch.zeros(3, 2))]
    [3]
    """
    if isinstance(inputs_or_loader, Tensor):
        yield from inputs_or_loader.split(_ANNOTATION_ROWS)
        return
    if isinstance(inputs_or_loader, DataLoader) and isinstance(inputs_or_loader.sampler, RandomSampler):
        raise ValueError("this DataLoader shuffles, so its rows are not those of the data set; use shuffle=False")
    for batch in inputs_or_loader:
        yield batch[0] if isinstance(batch, list | tuple) else batch


def _mean_cross_entropy(logits: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    return F.cross_entropy(logits, labels)


def _mixes_rows(module: nn.Module) -> bool:
    """Whether the outputs for a row, or what the module remembers, depend on the other rows of the batch."""
    if not module.training:
        return False
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return module.track_running_stats
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _check_labels(labels: Tensor, num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(f"at least two classes are needed, got num_classes={num_classes}")
    if labels.dim() != 1 or labels.is_floating_point() or len(labels) == 0:
        raise ValueError(f"labels need shape (N,) and an integer dtype, got {tuple(labels.shape)} of {labels.dtype}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels need to lie in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}; "
            "encode them, or raise num_classes"
        )
