"""Cats and dogs whose brightness betrays the class in training: does a convolutional network look at anything else?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from mechanisms.lab import Bench, Claim, Experiment, all_of, at_least, at_most, better_than, config
from mechanisms.lab.figures import bars, curves

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from mechanisms.lab.data import Split

VARIANTS = ("biased", "biased-hinge", "unbiased")
CAT = 0  # light cats, dark dogs


@config
class Pets:
    """Settings of the runs on cats and dogs.

    `path` is a folder with the folders `cat` and `dog`; without it `$MECHANISMS_DATA/cats-and-dogs` is looked at. In
    the biased training set a share `q` of each class has the class's brightness (light cats, dark dogs), the others
    have any. An image is light above the median brightness of all, and dark below; `margin` is the share of the images
    around it that are left out. The share `test` of the images of each class and brightness is kept for the test.
    """

    data: Literal["folder", "generated"] = "folder"
    path: str = ""
    q: float = 1.0
    margin: float = 0.2
    test: float = 0.2
    size: int = 64
    depth: int = 18
    width: int = 64
    epochs: int = 30
    batch_size: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"


def run(settings: Pets, variant: str, bench: Bench) -> dict[str, Any]:
    """Train once; test on images of the class's brightness and on those of the opposite one."""
    import torch
    from torch.nn.functional import relu, softplus

    from mechanisms._base.seeds import seeded, stream_seed
    from mechanisms.lab.training import train
    from mechanisms.papers._vision import CIFAR, Normalised, ResNet, in_memory, on_device, outputs, place

    images, labels, light = load(settings, bench)
    chosen, tests = choose(labels, light, 0.0 if variant == "unbiased" else settings.q, settings, bench.numpy("choice"))
    bench.precision = settings.precision
    device = bench.fabric.device
    pixels = on_device(images, device)
    y = torch.from_numpy(labels).to(device)
    rows = torch.from_numpy(chosen).to(device)
    with seeded(stream_seed(bench.seed, "weights")):
        model = Normalised(ResNet(settings.depth, 1, width=settings.width), CIFAR)
    place(model, device)
    batches = in_memory(pixels[rows], y[rows], settings.batch_size, bench.seed, augment=True)
    steps = settings.epochs * len(batches)
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=settings.momentum)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        margins = (2 * batch[1] - 1) * network(batch[0])[:, 0]
        return (relu(1 - margins) if variant == "biased-hinge" else softplus(-margins)).mean()

    def evaluate(network: nn.Module) -> dict[str, float]:
        found = {}
        for name, part in tests.items():
            shown = torch.from_numpy(part).to(device)
            found[f"{name}_accuracy"] = float(((outputs(network, pixels[shown])[:, 0] > 0) == y[shown]).float().mean())
        bench.log(len(bench.curves.get("opposite_accuracy", ([], []))[0]) + 1, **found)
        return {}

    train(
        bench,
        model,
        optimizer,
        batches,
        loss,
        steps=steps,
        evaluate=evaluate,
        every=len(batches),
        scheduler=scheduler,
        checkpoint=variant,
    )
    metrics = {name: bench.curves[name][1][-1] for name in ("aligned_accuracy", "opposite_accuracy")}
    agree = float((light[chosen] == (labels[chosen] == CAT)).mean())
    return {**metrics, "train_images": len(chosen), "train_agreement": agree}


def load(settings: Pets, bench: Bench) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (examples, size, size, 3) uint8, labels (0 cat, 1 dog), and whether each is light.

    Images near the median brightness are left out, and so are files that cannot be decoded, which is noted.
    """
    import numpy as np

    from mechanisms.lab.data.folders import brightness, image_folder, read_images

    if settings.data == "generated":
        split, level = generated(settings.size, bench)
        whole = split.x
    else:
        found = image_folder(settings.path or None)
        level = brightness(found.x, progress=lambda done, total: bench.progress(done, total))
        damaged = np.isnan(level)
        if damaged.any():
            bench.note(
                f"{damaged.sum()} of {len(found)} files could not be decoded and were left out, "
                f"{found.x[damaged][0]} for example"
            )
        split, level, whole = found.take(~damaged), level[~damaged], None
    low, high = np.quantile(level, [0.5 - settings.margin / 2, 0.5 + settings.margin / 2])
    keep = np.flatnonzero((level <= low) | (level > high))
    images = read_images(split.x[keep], size=settings.size) if whole is None else whole[keep]
    return images, split.y[keep], level[keep] > high


def generated(size: int, bench: Bench) -> tuple[Split, np.ndarray]:
    """Squares and crosses on grounds of any brightness, with their mean brightness."""
    import numpy as np

    from mechanisms.lab.data import Split

    generator = bench.numpy("data")
    count, middle = 160, slice(size // 4, 3 * size // 4)
    labels = generator.integers(0, 2, count)
    x = generator.integers(20, 200, (count, 1, 1, 1)) + generator.integers(0, 20, (count, size, size, 3))
    shape = np.eye(size // 2, dtype=np.int64)
    shapes = np.where(labels[:, None, None] == CAT, shape | shape[::-1], 1)
    x[:, middle, middle] += 30 * shapes[..., None]
    return Split(x.clip(0, 255).astype(np.uint8), labels), x.mean((1, 2, 3)) / 255


def choose(
    labels: np.ndarray, light: np.ndarray, q: float, settings: Pets, generator: np.random.Generator
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rows of the training set, and of the aligned and the opposite test images.

    Every class gives as many training images whatever `q` is, so that runs with different `q` can be compared: as many
    as it has of its own brightness.
    """
    import numpy as np

    own = light == (labels == CAT)
    parts: list[np.ndarray] = []
    tests: dict[str, list[np.ndarray]] = {"aligned": [], "opposite": []}
    pools: dict[tuple[int, str], np.ndarray] = {}
    for label in (0, 1):
        for name, there in (("aligned", own), ("opposite", ~own)):
            rows = generator.permutation(np.flatnonzero((labels == label) & there))
            held = round(settings.test * len(rows))
            if held < 1 or held == len(rows):
                raise ValueError(
                    f"class {label} has {len(rows)} {name} images: too few to train and test with test={settings.test}"
                )
            tests[name].append(rows[:held])
            pools[label, name] = rows[held:]
    # Only now: how much this draws depends on q, and the test images must not.
    for label in (0, 1):
        aligned = pools[label, "aligned"]
        biased = round(q * len(aligned))
        rest = generator.permutation(np.concatenate([aligned[biased:], pools[label, "opposite"]]))
        parts.append(np.concatenate([aligned[:biased], rest[: len(aligned) - biased]]))
    return np.concatenate(parts), {name: np.concatenate(rows) for name, rows in tests.items()}


RECALLED = (
    "a network trained on light cats and dark dogs learns brightness and fails on the opposite images (as recalled)"
)
OURS = "Threshold and all settings are ours: the paper's are not known."
EXPERIMENT = Experiment(
    name="light-and-dark",
    description="A ResNet-18 on cats and dogs of 64 pixels: in training cats are light and dogs are dark, the test has "
    "both these and the opposite. Needs photographs (path=FOLDER or MECHANISMS_DATA); q=SHARE weakens the bias.",
    run=run,
    variants=VARIANTS,
    scales={
        "smoke": Pets(data="generated", size=16, width=2, epochs=2, batch_size=16),
        "paper": Pets(),
    },
    claims=(
        Claim(
            "The network learns brightness and fails on the opposite images",
            all_of(
                at_most("opposite_accuracy", "biased", 0.5, bounds=(0, 1)),
                at_least("aligned_accuracy", "biased", "unbiased", bounds=(0, 1)),
            ),
            published=RECALLED,
            scales=("paper",),
            note=OURS,
        ),
        Claim(
            "... which it can tell apart when brightness does not betray the class",
            better_than("opposite_accuracy", "unbiased", "biased", bounds=(0, 1)),
            published=RECALLED,
            scales=("paper",),
            note=OURS,
        ),
    ),
    figures=(
        bars("opposite_accuracy", "Accuracy on dark cats and light dogs", variants=VARIANTS),
        bars("aligned_accuracy", "Accuracy on light cats and dark dogs", variants=VARIANTS),
        curves("opposite_accuracy", "Opposite images over the epochs", variants=VARIANTS, x="epoch"),
    ),
)
