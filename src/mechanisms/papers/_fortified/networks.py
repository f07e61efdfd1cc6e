"""The networks, as modules with names, and where each of them can be fortified."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import nn

from mechanisms._base.seeds import seeded, stream_seed
from mechanisms.papers._vision import CIFAR, Block, Normalised
from mechanisms.robust.denoising import ConvDenoisingLayer, DenoisingLayer
from mechanisms.robust.fortified import fortify

if TYPE_CHECKING:
    from mechanisms.papers._fortified.settings import Fortified, Variant

CLASSES = 10
Shape = tuple[int, int, int]


def build(settings: Fortified, variant: Variant, shape: Shape, seed: int) -> nn.Module:
    """The network of a variant: its own weights follow from the seed alone, so do those of its denoising layers."""
    with seeded(stream_seed(seed, "weights")):
        network, states = _network(settings, shape)
    if variant.place == "none":
        return network
    with seeded(stream_seed(seed, "denoising layers")):
        if variant.place == "input":
            return fortify(network, {}, inputs=_layer(settings, variant, (math.prod(shape),)))
        names = list(states)[-1:] if variant.place == "last" else list(states)
        return fortify(network, {name: _layer(settings, variant, states[name]) for name in names})


def perceptron(features: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """Images to logits through ReLU layers: "flatten", "linear1", "relu1", ..., "head"."""
    layers: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
    for place, (inputs, outputs) in enumerate(zip((features, *hidden), hidden, strict=False), 1):
        layers += [(f"linear{place}", nn.Linear(inputs, outputs)), (f"relu{place}", nn.ReLU())]
    return nn.Sequential(OrderedDict([*layers, ("head", nn.Linear((features, *hidden)[-1], CLASSES))]))


def _network(settings: Fortified, shape: Shape) -> tuple[nn.Module, dict[str, tuple[int, ...]]]:
    """A network, and the sizes of its hidden states by the names of the modules that they come out of."""
    if settings.network == "mlp":
        states: dict[str, tuple[int, ...]] = {
            f"relu{place}": (units,) for place, units in enumerate(settings.hidden, 1)
        }
        return perceptron(math.prod(shape), settings.hidden), states
    if settings.network == "cnn":
        return _convolutional(settings.width, shape)
    if shape[0] != 3:
        raise ValueError(f"images of {shape[0]} channels; the residual network takes colours, 3 channels")
    network, inner = _residual(settings.width, settings.units, shape)
    return Normalised(network, CIFAR), {f"network.{name}": size for name, size in inner.items()}


def _convolutional(width: int, shape: Shape) -> tuple[nn.Module, dict[str, tuple[int, ...]]]:
    """Three convolutions: 8x8 with stride 2, 6x6 with stride 2, 5x5; for 28 pixels the last map is a single point."""
    channels, height, _ = shape
    side = ((height + 6 - 8) // 2 + 1 - 6) // 2 + 1 - 4
    if side < 1:
        raise ValueError(f"images of {height} pixels are too small for the three convolutions; they take 28 or more")
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, width, 8, 2, 3),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(width, 2 * width, 6, 2),
        relu2=nn.ReLU(),
        conv3=nn.Conv2d(2 * width, 2 * width, 5),
        relu3=nn.ReLU(),
        flatten=nn.Flatten(),
        head=nn.Linear(2 * width * side * side, CLASSES),
    )
    first = (height + 6 - 8) // 2 + 1
    states: dict[str, tuple[int, ...]] = {
        "relu1": (width, first, first),
        "relu2": (2 * width, (first - 6) // 2 + 1, (first - 6) // 2 + 1),
        "flatten": (2 * width * side * side,),
    }
    return nn.Sequential(layers), states


def _residual(width: int, units: int, shape: Shape) -> tuple[nn.Module, dict[str, tuple[int, ...]]]:
    """A residual network of three stages with 1, 2 and 4 times `width` channels; each halves the one before it."""
    channels, side, _ = shape
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(channels, width, 3, 1, 1, bias=False), norm=nn.BatchNorm2d(width), relu=nn.ReLU()
    )
    states: dict[str, tuple[int, ...]] = {}
    inner = width
    for stage in range(3):
        outer = width << stage
        blocks = [Block(inner if not unit else outer, outer, 2 if stage and not unit else 1) for unit in range(units)]
        layers[f"stage{stage + 1}"] = nn.Sequential(*blocks)
        inner, side = outer, side if stage == 0 else (side + 1) // 2
        states[f"stage{stage + 1}"] = (outer, side, side)
    # The last stage is denoised as a whole, maps and places together.
    states["stage3"] = (math.prod(states["stage3"]),)
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": nn.Linear(inner, CLASSES)}
    return nn.Sequential(layers), states


def _layer(settings: Fortified, variant: Variant, size: tuple[int, ...]) -> nn.Module:
    activation = variant.activation or settings.activation
    if len(size) == 3:
        return ConvDenoisingLayer(
            size[0], size[0], stride=2, activation=activation, noise_std=settings.noise_std, noise=variant.noise
        )
    return DenoisingLayer(
        size[0], settings.code, activation=activation, noise_std=settings.noise_std, noise=variant.noise
    )
