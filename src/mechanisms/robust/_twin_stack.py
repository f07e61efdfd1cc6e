"""All twins of a hyper-parameter search trained in one pass on shared minibatches.

P pairs of twins are 2P models of one `ModelStack`, models 2p and 2p + 1 being f^a and f^b of pair p. The gradient of
the balanced loss with respect to the logits has a closed form, so that the step computes one softmax, from which both
that gradient and the flips follow:

    dL/dlogits = (softmax - onehot(t_i)) / count(t_i)    for the held-in network of row i, 0 for the other

Shapes: P pairs, K classes, B rows of the shared batch. Rows are the last dimension throughout, as the stack keeps them.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mechanisms._base.seeds import seeded, stream_seed, torch_generator
from mechanisms.robust._settings import Setting
from mechanisms.robust._stack import ModelStack, SharedBatches, StackedOptimizer
from mechanisms.robust.twins import cross_mistakes, draw_assignment, make_twins

_ANNOTATION_ROWS = 8192


class TwinStack:
    """Twins of several settings with the same assignment, initial weights, batches and flip draws.

    Args:
        make_model: fresh network from (n, ...) to (n, K) without layers that mix rows.
        inputs: (N, ...) on the device where all is computed.
        labels: (N,) class indices on the same device.
        num_classes: K.
        settings: one per pair; optimizer and momentum must agree.
        seed: seed of all streams.
        flips, balanced, held_out: as for `TwinTrainer`.
    """

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        inputs: Tensor,
        labels: Tensor,
        num_classes: int,
        settings: Sequence[Setting],
        *,
        seed: int,
        flips: bool = True,
        balanced: bool = True,
        held_out: bool = True,
    ) -> None:
        device, pairs = inputs.device, len(settings)
        self.num_classes, self.num_pairs, self.num_steps = num_classes, pairs, 0
        self._inputs, self._labels = inputs, labels
        self._flips, self._balanced, self._held_out = flips, balanced, held_out
        self._noise_seed = stream_seed(seed, "noise")
        self._flip_generator = torch_generator(seed, "flips", device)
        twins = make_twins(make_model, seed, device, inputs.dtype)
        self._noisy = any(isinstance(layer, nn.Dropout) for layer in twins[0].modules())
        self.stack = ModelStack([*twins] * pairs)
        _check_outputs(self.stack, inputs, num_classes)
        self.working_labels = labels.repeat(pairs, 1)
        self.assignment = draw_assignment(labels, num_classes, torch_generator(seed, "assignment")).to(device)
        self._batches = SharedBatches(
            len(labels), [one.batch_size for one in settings], torch_generator(seed, "batches", device)
        )
        self._counted = self._batches.weights.to(inputs.dtype)
        self._ragged = bool((self._counted == 0).any())
        # Row 0 is 1 where f^a trains on the example, row 1 where f^b does.
        self._held_in = torch.stack([self.assignment, ~self.assignment]).to(inputs.dtype)
        self._classes = torch.arange(num_classes, device=device).view(1, -1, 1)
        self._optimizer = StackedOptimizer(
            self.stack,
            settings[0].optimizer,
            lr=[one.lr for one in settings for _ in range(2)],
            weight_decay=[one.weight_decay for one in settings for _ in range(2)],
            momentum=settings[0].momentum,
        )

    def step(self) -> None:
        """One update of all pairs, then flips of the labels of the batch."""
        rows = self._batches.draw()
        targets = self.working_labels.index_select(1, rows)
        held_in = self._held_in.index_select(1, rows).view(1, 2, 1, -1)
        with seeded(self._noise_seed + self.num_steps, rows.device) if self._noisy else nullcontext():
            logits, pull = self.stack.vjp(self._inputs.index_select(0, rows))
        probabilities = logits.mT.softmax(1).view(self.num_pairs, 2, self.num_classes, -1)

        hot = (targets.unsqueeze(1) == self._classes).to(probabilities.dtype)
        if self._ragged:
            hot *= self._counted.unsqueeze(1)
        if self._balanced:
            weights = hot / hot.sum(2, keepdim=True).clamp_(min=1)
        else:
            weights = hot / hot.sum((1, 2), keepdim=True)
        own = probabilities * held_in
        gradient = (own * weights.sum(1).view(self.num_pairs, 1, 1, -1)).sub_(weights.unsqueeze(1) * held_in)
        pull(gradient.view(2 * self.num_pairs, self.num_classes, -1).mT)
        self._optimizer.step()
        self.num_steps += 1

        if self._flips:
            held_in_sum = own.sum(1)
            source = probabilities.sum(1).sub_(held_in_sum) if self._held_out else held_in_sum
            confidence, predicted = source.max(1)
            chance = torch.rand(len(rows), generator=self._flip_generator, device=rows.device, dtype=source.dtype)
            k = self.num_classes
            flip = chance * ((k - 1) / k) < confidence - 1 / k
            if self._ragged:
                flip &= self._counted.bool()
            self.working_labels.index_copy_(1, rows, torch.where(flip, predicted, targets))

    def flip_rates(self) -> Float[Tensor, " pairs"]:
        """Share of flipped training labels of each pair."""
        return (self.working_labels != self._labels).float().mean(1)

    def annotate(
        self, inputs: Tensor, labels: Tensor
    ) -> tuple[Int64[Tensor, "pairs examples"], Bool[Tensor, " pairs"]]:
        """Environments of labelled examples by each pair, and whether all of its logits are finite."""
        parts, finite = [], torch.ones(self.num_pairs, dtype=torch.bool, device=inputs.device)
        for rows, some in zip(inputs.split(_ANNOTATION_ROWS), labels.split(_ANNOTATION_ROWS), strict=True):
            logits = self._logits(rows).unflatten(0, (-1, 2))
            finite &= logits.isfinite().flatten(1).all(1)
            parts.append(torch.stack([cross_mistakes(a, b, some) for a, b in logits]))
        return torch.cat(parts, 1), finite

    def twins(self, pair: int) -> tuple[nn.Module, nn.Module]:
        """The networks of one pair as ordinary modules."""
        return self.stack.extract(2 * pair), self.stack.extract(2 * pair + 1)

    def _logits(self, inputs: Tensor) -> Tensor:
        self.stack.eval()
        with torch.no_grad():
            logits = self.stack(inputs)
        self.stack.train()
        return logits


def _check_outputs(stack: ModelStack, inputs: Tensor, num_classes: int) -> None:
    some = inputs[:2]
    try:
        got = tuple(stack(some).shape[1:])
    except RuntimeError as error:
        raise ValueError(f"the model cannot take inputs of shape {tuple(some.shape)}: {error}") from None
    if got != (len(some), num_classes):
        raise ValueError(f"the model returned {got}, expected logits of shape {(len(some), num_classes)}")
