"""Images read pixel by pixel as tokens, at one resolution in training and at others in the test.

Grey images become tokens 0 and 1 at their own resolution, before they are resized; colours become 256 tokens for each
channel. What is trained is selected twice: on validation images at the trained resolution, which a user could do; and
on validation images of each tested resolution, as the released code does, which looks at what is to be shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from mechanisms.lab import Bench, config
from mechanisms.papers._rims.networks import BRIMS, Sizes, make_network

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor, nn

    from mechanisms.lab.data import Splits


@config
class Resolutions(Sizes):
    """What is read, at which sizes, and how a network is trained on it; the defaults are those of digits.

    Args:
        data: "digits" (8 by 8, embedded), "mnist" or "cifar10", whose files are looked for where `mechanisms.lab.data`
            says.
        path: where they lie, if not there.
        hub: a name on the Hugging Face hub in place of a path.
        size: height and width in training, by the nearest pixel.
        test_sizes: other sizes to test at.
        noise: standard deviation of noise on colours from 0 to 1, clamped to that range, in a second test; 0 for none.
        embedding: features of a step, over all channels.
        layer_embedding: the same for BRIMs; 0 for as many.
        dropout: behind the embedding and behind the network.
        num_validation: training images that are set aside (MNIST and CIFAR-10).
        num_train, num_evaluated: images that are trained on, and of validation and test each, at most.
        batch_size, epochs, lr, clip: of Adam; clip is the largest norm of the gradient, 0 for none.
        evaluate_every: epochs between evaluations.
        evaluation_batch: images of a batch in evaluation.
    """

    data: Literal["digits", "mnist", "cifar10"] = "digits"
    path: str = ""
    hub: str = ""
    size: int = 8
    test_sizes: tuple[int, ...] = (9, 10, 12)
    noise: float = 0.0
    embedding: int = 32
    layer_embedding: int = 0
    dropout: float = 0.2
    num_validation: int = 10_000
    num_train: int | None = None
    num_evaluated: int | None = None
    batch_size: int = 64
    epochs: int = 40
    lr: float = 2e-3
    clip: float = 1.0
    evaluate_every: int = 8
    evaluation_batch: int = 500


TINY = Resolutions(
    hidden_size=8,
    module_size=4,
    layer_sizes=(4, 4),
    test_sizes=(10,),
    num_train=32,
    num_evaluated=16,
    batch_size=16,
    epochs=1,
    evaluate_every=1,
)


def run_resolutions(settings: Resolutions, variant: str, bench: Bench) -> dict[str, Any]:
    """Train at one resolution, test at all.

    Returns:
        `accuracy_<size>`: on the test images of a size, at the epoch that was best on validation images of the trained
        one; `ratio_<size>`: that, divided by the accuracy at the trained one; `tuned_<size>`: at the epoch that was
        best on validation images of this size; `noisy_accuracy_<size>` if there is noise; `best_epoch`.

    Raises:
        NotHere: the data are not on this machine.
    """
    import torch
    from torch.nn import functional as F

    from mechanisms._base.seeds import seeded, stream_seed
    from mechanisms.lab.batches import Batches
    from mechanisms.lab.training import train
    from mechanisms.papers._rims.frame import TokenClassifier
    from mechanisms.papers._sequences.pixels import accuracy

    splits = read_images(settings, bench.seed)
    channels = 1 if splits.train.x.ndim == 3 else splits.train.x.shape[-1]
    embedding = settings.layer_embedding if variant in BRIMS and settings.layer_embedding else settings.embedding
    with seeded(stream_seed(bench.seed, "weights")):
        model = TokenClassifier(
            make_network(variant, settings),
            tokens=2 if channels == 1 else 256,
            channels=channels,
            embedding=embedding,
            classes=10,
            dropout=settings.dropout,
        )
    x, y = torch.tensor(splits.train.x), torch.tensor(splits.train.y)

    def ready(examples: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = (part.to(bench.device) for part in examples)
        return as_tokens(images, settings.size), labels

    batches = Batches(len(x), settings.batch_size, bench.seed, lambda rows: (x[rows], y[rows]), finish=ready)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0])[0], batch[1])

    def reader(size: int, noise: float | int = 0.0) -> Callable[[Tensor], Tensor]:
        drawn = bench.generator(f"noise {size}")
        return lambda images: as_tokens(images, size, noise=noise, generator=drawn)

    sizes = (settings.size, *settings.test_sizes)

    def evaluate(model: nn.Module) -> dict[str, float]:
        found = {}
        for size in sizes:
            for part, split in (("validation", splits.validation), ("test", splits.test)):
                right = accuracy(model, split, reader(size), settings.evaluation_batch, bench.device)
                found[f"{part}_{size}"] = round(right, 5)
            if settings.noise:
                noisy = reader(size, settings.noise)
                right = accuracy(model, splits.test, noisy, settings.evaluation_batch, bench.device)
                found[f"noisy_test_{size}"] = round(right, 5)
        return found

    with seeded(stream_seed(bench.seed, "noise"), bench.device):
        train(
            bench,
            model,
            torch.optim.Adam(model.parameters(), lr=settings.lr),
            batches,
            loss,
            steps=settings.epochs * len(batches),
            evaluate=evaluate,
            every=settings.evaluate_every * len(batches),
            clip=settings.clip or None,
            checkpoint=f"resolutions-{variant}",
        )
    return selected(bench.curves, sizes, noisy=settings.noise > 0) | {
        "best_epoch": bench.curves[f"validation_{settings.size}"][0][best(bench.curves, settings.size)] / len(batches)
    }


def selected(curves: Any, sizes: tuple[int, ...], *, noisy: bool = False) -> dict[str, float]:
    """The test accuracies at the two selections, from curves of validation and test; the first size is the trained one.

    >>> curves = {"validation_8": ([1, 2], [0.5, 0.4]), "test_8": ([1, 2], [0.5, 0.3])}
    >>> curves |= {"validation_9": ([1, 2], [0.1, 0.2]), "test_9": ([1, 2], [0.1, 0.4])}
    >>> selected(curves, (8, 9))
    {'accuracy_8': 0.5, 'accuracy_9': 0.1, 'ratio_9': 0.2, 'tuned_9': 0.4}
    """
    honest = best(curves, sizes[0])
    found = {f"accuracy_{size}": curves[f"test_{size}"][1][honest] for size in sizes}
    for size in sizes[1:]:
        trained = found[f"accuracy_{sizes[0]}"]
        found[f"ratio_{size}"] = found[f"accuracy_{size}"] / trained if trained else float("nan")
        found[f"tuned_{size}"] = curves[f"test_{size}"][1][best(curves, size)]
    if noisy:
        found |= {f"noisy_accuracy_{size}": curves[f"noisy_test_{size}"][1][honest] for size in sizes}
    return found


def best(curves: Any, size: int) -> int:
    """Which evaluation was the first with the best accuracy on validation images of a size."""
    validation = curves[f"validation_{size}"][1]
    return validation.index(max(validation))


def as_tokens(
    images: Tensor, size: int, *, noise: float | int = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """Images as tokens (time, batch, channels), row by row.

    Args:
        images: (batch, height, width) grey, or (batch, height, width, channels) in colour; bytes, or from 0 to 1.
        size: height and width to bring them to: row i is row floor(i * height / size).
        noise: standard deviation of noise on colours.
        generator: draws it; on the CPU, so that the noise is the same wherever the network runs.

    >>> import torch
    >>> as_tokens(torch.tensor([[[0.2, 0.5], [0.9, 0.0]]]), 2).flatten().tolist()
    [0, 1, 1, 0]
    """
    import torch

    from mechanisms.recurrent import sequential_images

    values = images if images.is_floating_point() else images.to(torch.get_default_dtype()) / 255
    if values.dim() == 3:
        return sequential_images(values, size=size, threshold=0.5).long()
    values = values.movedim(-1, 1)
    if noise:
        drawn = torch.randn(values.shape, generator=generator).to(values.device)
        values = (values + noise * drawn).clamp(0, 1)
    return sequential_images(values.mul(255).round(), size=size).long()


def read_images(settings: Resolutions, seed: int) -> Splits:
    """The images of the settings."""
    from mechanisms.lab.data import Splits, cifar10, digits, mnist

    path = settings.path or None
    if settings.data == "digits":
        splits = digits(seed)
    elif settings.data == "mnist":
        splits = mnist(path, hub=settings.hub, num_validation=settings.num_validation)
    else:
        splits = cifar10(path, hub=settings.hub, num_validation=settings.num_validation)
    most = (settings.num_train, settings.num_evaluated, settings.num_evaluated)
    parts = (splits.train, splits.validation, splits.test)
    return Splits(*(part.take(slice(0, count)) for part, count in zip(parts, most, strict=True)))
