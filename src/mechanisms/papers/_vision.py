"""What the image experiments share: networks, batches on the device, weights from files, accuracy and an attack.

The residual networks have the parameter names of torchvision's, so that its state dictionaries load into them.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from mechanisms._base.seeds import numpy_generator
from mechanisms.lab import NotHere
from mechanisms.lab.batches import Batches

if TYPE_CHECKING:
    from mechanisms.lab.data import Splits

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of the channels, in [0, 1]
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
VGG_LAYERS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class Block(nn.Module):
    """Two 3x3 convolutions (depth 18 and 34) beside a shortcut; pre-activated ones normalise before they convolve."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, pre_activation: bool = False) -> None:
        super().__init__()
        self.pre_activation = pre_activation
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels if pre_activation else width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride, norm=not pre_activation)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out h w"]:
        """One block."""
        if self.pre_activation:
            active = functional.relu(self.bn1(x))
            beside = x if self.downsample is None else self.downsample(active)
            return self.conv2(functional.relu(self.bn2(self.conv1(active)))) + beside
        beside = x if self.downsample is None else self.downsample(x)
        return functional.relu(self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))) + beside)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut (depth 50); the stride is that of the 3x3 one."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, pre_activation: bool = False) -> None:
        super().__init__()
        assert not pre_activation, "pre-activated networks here are made of plain blocks"
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(channels, 4 * width, stride)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out h w"]:
        """One block."""
        beside = x if self.downsample is None else self.downsample(x)
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + beside)


def _shortcut(channels: int, out: int, stride: int, norm: bool = True) -> nn.Module | None:
    if stride == 1 and channels == out:
        return None
    layers: list[nn.Module] = [nn.Conv2d(channels, out, 1, stride, bias=False)]
    return nn.Sequential(*layers, nn.BatchNorm2d(out)) if norm else nn.Sequential(*layers)


class ResNet(nn.Module):
    """A residual network of depth 18, 34 or 50.

    Args:
        depth: 18 and 34 have plain blocks, 50 bottlenecks.
        num_outputs: of the linear head.
        width: channels of the first group; the four groups have 1, 2, 4 and 8 times as many.
        stem: "small" for images of 32 pixels (3x3, no pooling), "large" for 224 (7x7, stride 2, max-pooling).
        pre_activation: batch norm and ReLU before each convolution (He et al. 2016b).
    """

    def __init__(
        self,
        depth: int = 18,
        num_outputs: int = 10,
        *,
        width: int = 64,
        stem: Literal["small", "large"] = "small",
        pre_activation: bool = False,
    ) -> None:
        super().__init__()
        block: type[Block | Bottleneck] = Bottleneck if depth >= 50 else Block
        self.conv1 = (
            nn.Conv2d(3, width, 3, 1, 1, bias=False) if stem == "small" else nn.Conv2d(3, width, 7, 2, 3, bias=False)
        )
        out = 8 * width * block.expansion
        self.bn1 = nn.BatchNorm2d(out if pre_activation else width)
        self.maxpool = nn.Identity() if stem == "small" else nn.MaxPool2d(3, 2, 1)
        self.pre_activation = pre_activation
        groups: list[nn.Sequential] = []
        channels = width
        for group, count in enumerate(BLOCKS[depth]):
            layers: list[nn.Module] = []
            for number in range(count):
                stride = 2 if group and not number else 1
                layers.append(block(channels, width << group, stride, pre_activation))
                channels = (width << group) * block.expansion
            groups.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = groups
        self.fc = nn.Linear(out, num_outputs)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch outputs"]:
        """Logits."""
        x = self.conv1(x)
        x = self.maxpool(x if self.pre_activation else functional.relu(self.bn1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        if self.pre_activation:
            x = functional.relu(self.bn1(x))
        return self.fc(x.mean((2, 3)))


def vgg(depth: int = 16, num_outputs: int = 10, width: int = 64) -> nn.Sequential:
    """VGG with batch norm for images of 32 pixels: five groups of 3x3 convolutions, each halved, and a linear head."""
    layers: list[nn.Module] = []
    channels = 3
    for group, count in enumerate(VGG_LAYERS[depth]):
        out = width << min(group, 3)
        for _ in range(count):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, num_outputs))


class Normalised(nn.Module):
    """A network that takes pixels in [0, 1] and normalises them itself, so that an attack moves real pixels."""

    def __init__(self, network: nn.Module, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
        super().__init__()
        self.network = network
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in statistics)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outputs"]:
        """Logits of images in [0, 1]."""
        return self.network((x - self.mean) / self.std)


def place(model: nn.Module, device: torch.device) -> None:
    """Move a network to a device, there in the memory layout in which its convolutions are fastest."""
    model.to(device)
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]


def load_weights(model: nn.Module, path: str, head: str | None = "fc.") -> None:
    """Load a state dictionary (`.safetensors`, or `.pt`/`.pth` without other objects) into all but the head, if any.

    Raises:
        NotHere: there is no such file.
        ValueError: it cannot be read safely, or its names or shapes are not those of the network.
    """
    place = Path(path).expanduser()
    if not path or not place.is_file():
        raise NotHere(
            f"there are no pretrained weights at {path or '(no path given)'}; give weights=FILE, a state dictionary "
            "with torchvision's names (its resnet50 ImageNet weights, saved as .safetensors or .pth)"
        )
    try:
        if place.suffix == ".safetensors":
            import safetensors.torch

            found: Any = safetensors.torch.load_file(place)
        else:
            found = torch.load(place, map_location="cpu", weights_only=True)
        body = {name: value for name, value in found.items() if head is None or not name.startswith(head)}
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{place} cannot be read safely as a state dictionary ({reason})") from None
    expected = {name: value for name, value in model.state_dict().items() if head is None or not name.startswith(head)}
    # Files from before batch norm counted its batches lack the counters; they change nothing.
    lacking = [name for name in expected if name not in body and not name.endswith("num_batches_tracked")]
    wrong = lacking or [name for name in body if name not in expected or body[name].shape != expected[name].shape]
    if wrong:
        raise ValueError(
            f"{place} does not fit the network: {len(wrong)} names are missing, unknown or of another shape, "
            f"{wrong[0]} for example; it must have torchvision's names"
        )
    model.load_state_dict(body, strict=False)


def generated_images(num_train: int, num_test: int, classes: int, seed: int, size: int = 32) -> Splits:
    """Images in CIFAR's format that need no data: each class a grating of its own, under noise."""
    from mechanisms.lab.data import Split, Splits

    generator = numpy_generator(seed, "data")
    labels = generator.integers(0, classes, num_train + num_test)
    angle = np.pi * np.arange(classes) / classes
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    waves = np.sin(0.6 * (np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y))
    pixels = 128 + 60 * waves[labels][..., None] + generator.normal(0, 30, (len(labels), size, size, 3))
    whole = Split(pixels.clip(0, 255).astype(np.uint8), labels.astype(np.int64))
    train, test = whole.take(slice(0, num_train)), whole.take(slice(num_train, None))
    return Splits(train, train.take(slice(0, 0)), test)


def on_device(images: np.ndarray, device: torch.device) -> UInt8[Tensor, "n channels height width"]:
    """Images (examples, height, width, channels) uint8 as they are kept on the device, channels first."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device)


def in_memory(
    x: UInt8[Tensor, "n channels height width"],
    y: Int[Tensor, " n"],
    batch_size: int,
    seed: int,
    *,
    augment: bool = False,
    drop_last: bool = False,
) -> Batches:
    """Shuffled batches `(images in [0, 1], labels)` of data that lie on the device; augmented there if asked for."""

    def finish(
        batch: tuple[Tensor, Tensor], generator: torch.Generator
    ) -> tuple[Float[Tensor, "batch channels height width"], Int[Tensor, " batch"]]:
        images = batch[0].float() / 255
        return (crop_and_flip(images, generator) if augment else images), batch[1]

    return Batches(
        len(x), batch_size, seed, lambda rows: (x[rows], y[rows]), finish=finish, device=x.device, drop_last=drop_last
    )


def crop_and_flip(
    x: Float[Tensor, "batch channels height width"], generator: torch.Generator, pad: int = 4
) -> Float[Tensor, "batch channels height width"]:
    """Each image shifted by up to `pad` pixels (zeros come in) and mirrored or not, all in one indexing operation."""
    batch, _, height, width = x.shape
    options: dict[str, Any] = {"generator": generator, "device": x.device}
    shift = torch.randint(0, 2 * pad + 1, (2, batch, 1), **options)
    mirrored = torch.rand((batch, 1), **options) < 0.5
    rows = torch.arange(height, device=x.device) + shift[0]
    columns = torch.arange(width, device=x.device).expand(batch, width)
    columns = torch.where(mirrored, width - 1 - columns, columns) + shift[1]
    padded = functional.pad(x, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    image = torch.arange(batch, device=x.device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def outputs(
    model: nn.Module | Callable[[Tensor], Tensor], x: UInt8[Tensor, "n channels height width"], batch_size: int = 500
) -> Float[Tensor, "n outputs"]:
    """Outputs for images that are kept as bytes, in float32, batch by batch; the model must be in evaluation mode."""
    return torch.cat([model(part.float() / 255).float() for part in x.split(batch_size)])


def attack(
    model: nn.Module,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float | int,
    step_size: float | int,
    steps: int,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """Projected gradient ascent of the cross-entropy within `epsilon` of each pixel and within [0, 1].

    Args:
        model: takes pixels in [0, 1]; in evaluation mode.
        x, y: images and labels.
        epsilon: largest change of a pixel.
        step_size: change of a pixel in a step.
        steps: their number.
        generator: draws the start within the allowed cube; without one the start is `x`.
    """
    moved = x.clone()
    if generator is not None:
        noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        moved = (x + epsilon * (2 * noise - 1)).clamp(0, 1)
    for _ in range(steps):
        moved.requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(functional.cross_entropy(model(moved), y, reduction="sum"), moved)
        moved = moved.detach() + step_size * gradient.sign()
        moved = torch.minimum(torch.maximum(moved, x - epsilon), x + epsilon).clamp(0, 1)
    return moved.detach()


def thin(curves: dict[str, tuple[list[float], list[float]]], name: str, points: int = 120) -> None:
    """Shorten a logged curve to means over bins that are even in the logarithm of the step, for a small record."""
    steps, values = (np.array(part, float) for part in curves[name])
    if len(steps) <= points:
        return
    bins = np.floor(points * np.log(steps / steps[0]) / np.log(steps[-1] / steps[0] * (1 + 1e-9))).astype(int)
    kept = np.unique(bins)
    curves[name] = (
        [float(round(steps[bins == one].mean(), 2)) for one in kept],
        [float(round(values[bins == one].mean(), 5)) for one in kept],
    )
