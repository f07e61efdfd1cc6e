"""Classifying images that are read pixel by pixel, in order or in one fixed random order.

    result = classify_pixels(lambda size: ZoneoutLSTM(size, 100), Pixels(data="mnist"), bench, name="zoneout")

trains a network on the sequence of pixels (784 for MNIST, 1,024 of three channels for CIFAR-10, 64 for the digits that
come with scikit-learn); its last output goes through a linear layer to the classes. Validation and test accuracy go
into the bench's curves; the test accuracy that is returned is that at the best validation accuracy. Data, permutation,
batches and the linear layer's first weights follow from the seed alone, so that networks are compared on equal terms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from mechanisms.lab import Bench, config

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from mechanisms.lab.data import Split, Splits


@config
class Pixels:
    """What is read, and how a network is trained on it.

    Args:
        data: "digits" (8 by 8, embedded), "mnist" or "cifar10", whose files are looked for where `mechanisms.lab.data`
            says.
        permutation: "none"; "true", a permutation; or "with-replacement", as the released code of Zoneout draws it,
            which never shows about 37 % of the pixels.
        permutation_seed: of the permutation; by default it follows from the run's seed.
        num_validation: training images that are set aside, the last ones (MNIST and CIFAR-10).
        num_train: train on so many images at most.
        batch_size, epochs: of training.
        optimizer, lr: "adam" or "rmsprop".
        decay: RMSProp's smoothing.
        clip: largest gradient norm; `None` clips nothing.
        evaluate_every: epochs between evaluations.
        evaluation_batch: images of a batch in evaluation.
    """

    data: Literal["digits", "mnist", "cifar10"] = "digits"
    permutation: Literal["none", "true", "with-replacement"] = "true"
    permutation_seed: int | None = None
    num_validation: int = 10_000
    num_train: int | None = None
    batch_size: int = 100
    epochs: int = 10
    optimizer: Literal["adam", "rmsprop"] = "rmsprop"
    lr: float = 1e-3
    decay: float = 0.99
    clip: float | None = 1.0
    evaluate_every: int = 1
    evaluation_batch: int = 500


def classify_pixels(
    make_network: Callable[[int], nn.Module],
    settings: Pixels,
    bench: Bench,
    *,
    name: str,
    penalty: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """Train a network on images read pixel by pixel.

    Args:
        make_network: makes a network from the number of channels; it maps (time, batch, channels) to an output
            (time, batch, features) and a state, as `Recurrent`, the drop-ins and `torch.nn.LSTM` do.
        settings: see `Pixels`.
        bench: seed, device, progress, curves.
        name: of the variant, for its checkpoint.
        penalty: added to the training loss; of the network's outputs (time, batch, features).

    Returns:
        `accuracy` on the test images at the best validation accuracy, `validation_accuracy`, the best;
        `final_accuracy` on the test images at the end; `best_epoch`.

    Raises:
        NotHere: the data are not on this machine.
    """
    import torch
    from torch.nn import functional as F

    from mechanisms._base.seeds import seeded, stream_seed
    from mechanisms.lab.batches import Batches
    from mechanisms.lab.training import train
    from mechanisms.papers._sequences.classifier import LastOutputClassifier

    splits = read_splits(settings, bench.seed)
    channels = 1 if splits.train.x.ndim == 3 else splits.train.x.shape[-1]
    pixels = splits.train.x.shape[1] * splits.train.x.shape[2]
    to_sequence = _reader(pixels, settings, bench)
    classes = 1 + int(max(split.y.max() for split in (splits.train, splits.validation, splits.test)))
    with seeded(stream_seed(bench.seed, "weights")):
        network = make_network(channels)
    with seeded(stream_seed(bench.seed, "head")):
        model = LastOutputClassifier(network, classes)
    x, y = torch.tensor(splits.train.x), torch.tensor(splits.train.y)

    def ready(examples: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return to_sequence(examples[0].to(bench.device)), examples[1].to(bench.device)

    batches = Batches(len(x), settings.batch_size, bench.seed, lambda rows: (x[rows], y[rows]), finish=ready)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits, outputs = model(batch[0])
        value = F.cross_entropy(logits, batch[1])
        return value if penalty is None else value + penalty(outputs)

    def evaluate(model: nn.Module) -> dict[str, float]:
        return {
            f"{part}_accuracy": accuracy(model, split, to_sequence, settings.evaluation_batch, bench.device)
            for part, split in (("validation", splits.validation), ("test", splits.test))
        }

    with seeded(stream_seed(bench.seed, "noise"), bench.device):
        train(
            bench,
            model,
            make_optimizer(model, settings),
            batches,
            loss,
            steps=settings.epochs * len(batches),
            evaluate=evaluate,
            every=settings.evaluate_every * len(batches),
            clip=settings.clip,
            checkpoint=name,
        )
    steps, validation = bench.curves["validation_accuracy"]
    test = bench.curves["test_accuracy"][1]
    best = validation.index(max(validation))
    return {
        "accuracy": test[best],
        "validation_accuracy": validation[best],
        "final_accuracy": test[-1],
        "best_epoch": steps[best] / len(batches),
    }


def read_splits(settings: Pixels, seed: int) -> Splits:
    """The images of the settings: (examples, height, width), or with channels last, in [0, 1] or bytes."""
    from mechanisms.lab import data

    if settings.data == "digits":
        splits = data.digits(seed)
    elif settings.data == "mnist":
        splits = data.mnist(num_validation=settings.num_validation)
    else:
        splits = data.cifar10(num_validation=settings.num_validation)
    if settings.num_train is None:
        return splits
    return data.Splits(splits.train.take(slice(0, settings.num_train)), splits.validation, splits.test)


def accuracy(
    model: nn.Module,
    split: Split,
    to_sequence: Callable[[Tensor], Tensor],
    batch_size: int,
    device: torch.device | str = "cpu",
) -> float:
    """The share of a split's images that a classifier names rightly; it must be in evaluation mode."""
    import torch

    right = torch.zeros((), dtype=torch.int64, device=device)
    for begin in range(0, len(split), batch_size):
        part = split.take(slice(begin, begin + batch_size))
        with torch.no_grad():
            logits, _ = model(to_sequence(torch.tensor(part.x).to(device)))
        right += (logits.argmax(-1) == torch.tensor(part.y).to(device)).sum()
    return int(right) / len(split)


def make_optimizer(model: nn.Module, settings: Pixels) -> torch.optim.Optimizer:
    """The optimiser of the settings."""
    import torch

    if settings.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=settings.lr)
    return torch.optim.RMSprop(model.parameters(), lr=settings.lr, alpha=settings.decay)


def _reader(pixels: int, settings: Pixels, bench: Bench) -> Callable[[Tensor], Tensor]:
    """The function from images to sequences (time, batch, channels) in [0, 1]."""
    import torch

    from mechanisms.recurrent import pixel_permutation, sequential_images

    order = None
    if settings.permutation != "none":
        generator = bench.generator("permutation")
        if settings.permutation_seed is not None:
            generator = torch.Generator().manual_seed(settings.permutation_seed)
        replacement = settings.permutation == "with-replacement"
        order = pixel_permutation(pixels, replacement=replacement, generator=generator).to(bench.device)

    def to_sequence(images: Tensor) -> Tensor:
        if images.dim() == 4:
            images = images.movedim(-1, 1)
        if not images.is_floating_point():
            images = images.to(torch.get_default_dtype()) / 255
        return sequential_images(images, permutation=order)

    return to_sequence
