"""What the questions share: data, networks, and how well environments match the true minority."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mechanisms.lab import Bench, NotHere

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mechanisms.lab.data import Split, Splits
DataName = Literal["waterbirds-like", "coloured-digits", "coloured-fashion", "colour-mnist", "features"]


def load(name: DataName, path: str, bench: Bench, spurious: float = 2.0) -> Splits:
    """The data of a run; they follow from the seed alone."""
    from mechanisms.lab.data import coloured_digits, coloured_fashion_mnist, features_file, waterbirds_like

    if name == "waterbirds-like":
        return waterbirds_like(bench.seed, spurious=spurious)
    if name == "coloured-digits":
        return coloured_digits(bench.seed)
    if name == "coloured-fashion":
        return coloured_fashion_mnist(bench.seed, path=path or None)
    if not path:
        what = "MNIST's IDX files: path=FOLDER" if name == "colour-mnist" else "features: path=FILE.npz or FILE.pt"
        raise NotHere(f"{name} is read from where you have it; give {what}")
    if name == "colour-mnist":
        return coloured_fashion_mnist(bench.seed, num_train=50_000, num_validation=10_000, path=path)
    return features_file(path)


def fingerprint(path: str) -> str:
    """What tells a file or folder from another of the same name: sizes and times; nothing for no path."""
    place = Path(path)
    files = sorted(place.iterdir()) if path and place.is_dir() else [place] if path and place.exists() else []
    return ";".join(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)


def model_factory(features: int, hidden: tuple[int, ...], classes: int) -> Callable[[], nn.Module]:
    """A linear head that starts at zero, or a Xavier-uniform multi-layer perceptron with zero biases."""
    from torch import nn

    sizes = (features, *hidden, classes)

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for width, following in pairwise(sizes):
            layer = nn.Linear(width, following)
            nn.init.zeros_(layer.bias)
            nn.init.xavier_uniform_(layer.weight) if hidden else nn.init.zeros_(layer.weight)
            layers += [layer, nn.ReLU()]
        return nn.Sequential(*layers[:-1]) if hidden else layers[0]

    return make


def agreement(environments: Tensor, minority: Tensor) -> dict[str, float]:
    """How well environment 1 matches the true minority: recall, false positives, F1 and balanced accuracy."""
    found, true = environments.bool(), minority.bool()
    hits = float((found & true).sum())
    recall = hits / max(float(true.sum()), 1.0)
    false_positives = float((found & ~true).sum()) / max(float((~true).sum()), 1.0)
    f1 = 2 * hits / max(float(found.sum() + true.sum()), 1.0)
    return {
        "recall": recall,
        "false_positive_rate": false_positives,
        "f1": f1,
        "balanced_accuracy": (recall + 1 - false_positives) / 2,
    }


def classes_of(splits: Splits) -> int:
    """Number of classes."""
    return int(splits.train.y.max()) + 1


def true_groups(split: Split) -> Any:
    """Label and attribute, as one integer."""
    assert split.attribute is not None
    return (int(split.attribute.max()) + 1) * split.y + split.attribute
