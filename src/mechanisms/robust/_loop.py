"""The loop below `training` and `baselines`: a stack of models, shared batches, and a loss whose gradient is known.

Cross-entropy under weights w has the gradient `w_i (softmax(z_i) - onehot(y_i))` at the logits; handing it to the
stack directly saves the graph above the logits, which for small models is a good part of a step.

Shapes: M models, B rows of a batch, K classes, n examples.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mechanisms._base.seeds import seeded, stream_seed, torch_generator
from mechanisms.robust._stack import ModelStack, SharedBatches, StackedOptimizer
from mechanisms.robust.groups import check_groups, group_weights

Rows = Tensor | slice  # of a batch: indices, or the whole set
Objective = Callable[[Tensor, Rows, int], tuple[Tensor, Tensor]]  # logits, rows, step -> gradient (M, B, K), loss (M,)
Progress = Callable[[int, int, float], None]


def train_stack(
    stack: ModelStack,
    optimizer: StackedOptimizer,
    inputs: Tensor,
    draw: Callable[[], Rows],
    objective: Objective,
    steps: int,
    evaluate_every: int = 50,
    checkpoint: Callable[[int], None] | None = None,
    progress: Progress | None = None,
) -> None:
    """Update all models `steps` times; at every checkpoint, and after the last step, evaluate and report."""
    if steps < 1 or evaluate_every < 1:
        raise ValueError(f"steps is {steps} and evaluate_every {evaluate_every}; each needs at least 1")
    stack.train()
    for step in range(1, steps + 1):
        rows = draw()
        logits, pull = stack.vjp(inputs[rows])
        with torch.no_grad():
            gradient, loss = objective(logits, rows, step)
        pull(gradient)
        optimizer.step()
        if step % evaluate_every == 0 or step == steps:
            if checkpoint is not None:
                checkpoint(step)
            if progress is not None:
                progress(step, steps, float(loss.mean()))
    stack.eval()


def weighted_cross_entropy(labels: Int[Tensor, " n"], weigh: Callable[[Tensor, Rows], Tensor]) -> Objective:
    """The objective sum_i w_i CE_i of each model, where `weigh` gives w (M, B) from the losses (M, B) and the rows."""

    def objective(logits: Tensor, rows: Rows, step: int) -> tuple[Tensor, Tensor]:
        log_p = logits.log_softmax(-1)
        target = labels[rows].expand(log_p.shape[:-1]).unsqueeze(-1)
        losses = log_p.gather(-1, target).squeeze(-1).neg()
        weights = weigh(losses, rows)
        gradient = log_p.exp().scatter_add(-1, target, target.new_full((), -1, dtype=log_p.dtype).expand(target.shape))
        return gradient.mul_(weights.unsqueeze(-1)), (weights * losses).sum(-1)

    return objective


def batches(
    times: np.ndarray,
    batch_size: tuple[int | None, ...],
    seed: int,
    stack: ModelStack,
    codes: np.ndarray | None = None,
) -> tuple[Callable[[], Rows], Float[Tensor, "models batch"]]:
    """What draws the rows of the next step, and how often each of them counts for each model.

    The training set holds example i `times[i]` times. With `codes` every group is drawn equally often. When all
    models take the whole set the rows are all rows, and what sampling does on average the counts do exactly.
    """
    total = int(times.sum())
    sizes = [min(size or total, total) for size in batch_size]
    if min(sizes) == total:
        counted = torch.from_numpy(times) if codes is None else group_weights(codes)
        return lambda: slice(None), counted.to(stack.dtype).to(stack.device).expand(stack.num_models, -1)
    generator = torch_generator(seed, "batches", stack.device)
    places = torch.arange(max(sizes), device=stack.device)
    counted = (places < torch.tensor(sizes, device=stack.device)[:, None]).to(stack.dtype)
    if codes is not None:
        return _balanced_rows(codes, max(sizes), generator), counted
    shared = SharedBatches(total, sizes, generator)
    if (times == 1).all():
        return shared.draw, counted
    pool = torch.from_numpy(np.repeat(np.arange(len(times)), times)).to(stack.device)
    return lambda: pool[shared.draw()], counted


def _balanced_rows(codes: np.ndarray, batch_size: int, generator: torch.Generator) -> Callable[[], Rows]:
    """RWG's rows: first a group, uniformly, then one of its examples. Same law as `group_weights`, O(1) per row."""
    _, index, sizes = np.unique(codes, return_inverse=True, return_counts=True)
    by_group = torch.from_numpy(np.argsort(index, kind="stable")).to(generator.device)
    size = torch.from_numpy(sizes).to(generator.device)
    start = size.cumsum(0) - size

    def stream() -> Iterator[Tensor]:
        shape = (64, batch_size)  # several batches at once: the operations cost more than the numbers
        while True:
            group = torch.randint(len(sizes), shape, generator=generator, device=generator.device)
            # The remainder of a 62-bit number is uniform up to the group's size in 2^62.
            member = torch.randint(2**62, shape, generator=generator, device=generator.device) % size[group]
            yield from by_group[start[group] + member]

    return stream().__next__


def build_stack(make_model: Callable[[], nn.Module], count: int, seed: int, device: torch.device) -> ModelStack:
    """`count` models, the i-th built under a seed of its own, so that it does not depend on how many there are."""
    models = []
    for index in range(count):
        with seeded(stream_seed(seed, f"weights/{index}")):
            models.append(make_model().to(device))
    return ModelStack(models)


def check_examples(
    x: ArrayLike | Tensor, y: ArrayLike | Tensor, stack: ModelStack, names: tuple[str, str] = ("x", "y")
) -> tuple[Tensor, Tensor]:
    """A user's examples on the stack's device, inputs in its dtype, or a ValueError that says what is wrong."""
    x_name, y_name = names
    inputs = torch.as_tensor(x if isinstance(x, Tensor) else np.asarray(x))
    if inputs.dim() < 2 or len(inputs) == 0:
        raise ValueError(f"{x_name} has shape {tuple(inputs.shape)}; expected (n, ...) with at least one example")
    if inputs.is_floating_point():
        inputs = inputs.to(stack.device, stack.dtype)
        if not bool(inputs.isfinite().all()):
            raise ValueError(f"{x_name} holds NaN or infinite values: impute or drop them first")
    else:
        # Whole numbers may be token ids, which an embedding needs as they are; linear layers need the weights' dtype.
        embeds = any(isinstance(module, nn.Embedding) for module in stack.extract(0).modules())
        inputs = inputs.to(stack.device, None if embeds else stack.dtype)
    labels = torch.from_numpy(check_groups(y, y_name, len(inputs))).to(stack.device)
    outputs = predict_stack(stack, inputs[:1])
    if outputs.dim() != 3 or outputs.shape[2] <= int(labels.max()):
        raise ValueError(
            f"the model returns shape {tuple(outputs.shape[1:])} for one example, {y_name} holds labels up to "
            f"{int(labels.max())}; expected (1, K) with labels from 0 to K - 1"
        )
    return inputs, labels


@torch.no_grad()
def predict_stack(stack: ModelStack, inputs: Tensor, rows: int = 4096) -> Tensor:
    """Logits (M, n, K) in evaluation mode, some thousand rows at a time; the stack is left in training mode."""
    stack.eval()
    logits = torch.cat([stack(part) for part in inputs.split(rows)], 1)
    stack.train()
    return logits


def predict(model: nn.Module, inputs: Tensor, rows: int = 4096) -> Tensor:
    """Logits (n, K) of one model in evaluation mode, some thousand rows at a time."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part) for part in inputs.split(rows)])


class Selection:
    """Keeps, for every model of a stack, the last checkpoint with the best accuracy on the worst validation group.

    With `candidates` only that many models, the first ones, may be chosen and are in the curves.
    """

    def __init__(
        self,
        stack: ModelStack,
        inputs: Tensor,
        labels: Int[Tensor, " n"],
        groups: ArrayLike | Tensor,
        candidates: int | None = None,
    ) -> None:
        codes = np.unique(check_groups(groups, "groups_val", len(labels)), return_inverse=True)[1]
        self._stack, self._inputs, self._labels, self._candidates = stack, inputs, labels, candidates
        self._groups = torch.from_numpy(codes).to(labels.device)
        self._sizes = torch.from_numpy(np.bincount(codes)).to(labels.device)
        # Ratios of counts rounded once in double precision: equal accuracies compare equal.
        self._dtype = torch.float32 if labels.device.type == "mps" else torch.float64
        self._best = torch.full((stack.num_models,), -1.0, dtype=self._dtype, device=labels.device)
        self._kept = {name: value.clone() for name, value in stack.state_dict().items()}
        self._worst: list[Tensor] = []
        self._average: list[Tensor] = []
        self.steps: list[int] = []

    @torch.no_grad()
    def __call__(self, step: int) -> None:
        """Evaluate all models after `step` updates."""
        right = predict_stack(self._stack, self._inputs).argmax(-1) == self._labels
        worst, average = self._accuracies(right)
        better = worst >= self._best
        self._best = torch.where(better, worst, self._best)
        for name, value in self._stack.state_dict().items():
            kept = self._kept[name]
            torch.where(better.view(-1, *[1] * (value.dim() - 1)), value, kept, out=kept)
        self._worst.append(worst)
        self._average.append(average)
        self.steps.append(step)

    def curves(self) -> tuple[np.ndarray, np.ndarray]:
        """Worst-group and average accuracy, each (checkpoints, candidates)."""
        worst, average = (torch.stack(curve).cpu().double().numpy() for curve in (self._worst, self._average))
        return worst[:, : self._candidates], average[:, : self._candidates]

    def choose(self) -> tuple[int, int, nn.Module]:
        """The best model: its index, the index of its checkpoint, and itself as it was then, in evaluation mode."""
        worst, average = self.curves()
        last = len(worst) - 1 - worst[::-1].argmax(0)
        models = np.arange(worst.shape[1])
        # Sorted by worst group, then average, then order: the first of the best comes last.
        chosen = int(np.lexsort((-models, average[last, models], worst[last, models]))[-1])
        self._stack.load_state_dict(self._kept)
        return chosen, int(last[chosen]), self._stack.extract(chosen).eval()

    def _accuracies(self, right: Bool[Tensor, "models n"]) -> tuple[Float[Tensor, " models"], Float[Tensor, " models"]]:
        hits = self._sizes.new_zeros(len(right), len(self._sizes))
        hits.scatter_add_(1, self._groups.expand(right.shape), right.to(hits.dtype))
        worst = (hits.to(self._dtype) / self._sizes.to(self._dtype)).amin(1)
        return worst, hits.sum(1).to(self._dtype) / right.shape[1]
