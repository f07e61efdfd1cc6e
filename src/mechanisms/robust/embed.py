"""Features of a frozen body, computed once: the way to work with images or text on a laptop."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mechanisms._base.device import resolve_device
from mechanisms.robust._networks import map_tensors

__all__ = ["embed"]


def embed(
    body: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int = 256,
    num_workers: int = 0,
    device: str | torch.device = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Features and labels of a whole data set, in its order, on the CPU.

    The body runs once over each example in evaluation mode, without gradients; it is left where and as it was, on its
    own device. Environments are then discovered on the features with a linear head, as the XRM authors do with
    ImageNet ResNet-50 features of 2048 numbers.

    Args:
        body: from a batch of inputs to features (n, ...); what follows the first dimension is flattened.
        dataset: map-style, yielding (x, y) with x as the body takes it and y a number.
        batch_size: examples per pass.
        num_workers: worker processes that load examples.
        device: where the body runs.
        progress: called with (examples done, examples in all) after each batch.

    Returns:
        features (N, d) and labels (N,).

    Raises:
        TypeError: an iterable-style data set, or one that yields no numeric label.
        ValueError: an empty data set, or a body that does not return one row per example.

    >>> from torch.utils.data import TensorDataset
    >>> images, labels = torch.zeros(5, 3, 4, 4), torch.arange(5)
    >>> features, again = embed(nn.AvgPool2d(4), TensorDataset(images, labels), device="cpu")
    >>> features.shape, again.tolist()
    (torch.Size([5, 3]), [0, 1, 2, 3, 4])
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(f"{type(dataset).__name__} is iterable-style; embed needs a map-style Dataset with __len__")
    total = len(dataset)  # type: ignore[arg-type]
    if total == 0:
        raise ValueError("the data set is empty")
    chosen, was_training = resolve_device(device), body.training
    home = next((tensor.device for tensor in [*body.parameters(), *body.buffers()]), chosen)
    features, labels, done = [], [], 0
    try:
        body.to(chosen).eval()
        with torch.no_grad():
            for batch in DataLoader(dataset, batch_size=batch_size, num_workers=num_workers):
                inputs, targets = _split(batch)
                outputs = body(map_tensors(inputs, lambda values: values.to(chosen, non_blocking=True)))
                if not isinstance(outputs, Tensor) or outputs.dim() < 2 or len(outputs) != len(targets):
                    got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
                    raise ValueError(f"the body returned {got} for {len(targets)} examples, expected (n, features)")
                features.append(outputs.flatten(1).float().cpu())
                labels.append(targets)
                done += len(targets)
                if progress is not None:
                    progress(done, total)
    finally:
        body.to(home).train(was_training)
    return torch.cat(features), torch.cat(labels)


def _split(batch: Any) -> tuple[Any, Tensor]:
    if not isinstance(batch, list | tuple) or len(batch) < 2 or not isinstance(batch[1], Tensor):
        raise TypeError("the data set needs to yield (x, y) with a numeric y; encode text labels as integers")
    return batch[0], batch[1]
