"""Denoising layers: small autoencoders that map hidden states back to where real data put them.

    D(h) = act(act((h + s ε) A + b) A^T + c),   ε ~ N(0, I),   s = 0.1

The activation is on the output too, and the decoder's weights are the encoder's, transposed, unless `tied=False`. A is
drawn from U(-1/sqrt(d+r), +1/sqrt(d+r)) for d features and r hidden units (of a convolution, channels times the
kernel's size, so that sums are as large), biases are 0. `iterations=2` applies D
twice, with noise the first time only; several hidden sizes make a deeper autoencoder, whose innermost code may have
noise too.

`DenoisingLayer` flattens what it gets, `ConvDenoisingLayer` keeps maps as they are and has a convolution for A. Either
is put into a model of one's own by `mechanisms.robust.fortified.fortify`.

Noise: `"train"` draws it in training mode only, so that an evaluated model is a function; `"always"` also when
evaluating, as the released code does: a random defence, whose robustness is overstated by attacks that see one draw.

Lamb, Binas, Goyal, Serdyuk, Subramanian, Mitliagkas, Bengio: "Fortified Networks: Improving the Robustness of Deep
Networks by Modeling the Manifold of Hidden Representations", 2018, arXiv 1804.02485.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from mechanisms._base.validation import check_choice, check_number
from mechanisms.robust._insertions import modules_reached

__all__ = ["ConvDenoisingLayer", "DenoisingLayer", "ExpectationOverNoise", "draws_noise", "mixes_rows"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": lambda h: functional.leaky_relu(h, 0.2),  # TensorFlow's default slope, not torch's
    "tanh": torch.tanh,
    "identity": lambda h: h,
}


class _Denoiser(nn.Module):
    """What both layers share: noise, iterations, activation, weights in a list of encoders and of decoders."""

    def __init__(
        self,
        sizes: Sequence[int],
        kernel: tuple[int, ...],
        activation: str,
        noise_std: float | int,
        bottleneck_noise_std: float | int,
        noise: str,
        tied: bool,
        iterations: int,
        generator: torch.Generator | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.activation = check_choice(activation, "activation", tuple(ACTIVATIONS))
        self.noise_std = check_number(noise_std, "noise_std", at_least=0)
        self.bottleneck_noise_std = check_number(bottleneck_noise_std, "bottleneck_noise_std", at_least=0)
        self.noise = check_choice(noise, "noise", ("train", "always"))
        self.iterations = int(check_number(iterations, "iterations", at_least=1))
        self.tied, self.generator = tied, generator
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.decoder_weights, self.decoder_biases = nn.ParameterList(), nn.ParameterList()
        made = {"device": device, "dtype": dtype}
        for outer, inner in pairwise(sizes):
            self.weights.append(nn.Parameter(torch.empty(inner, outer, *kernel, **made)))
            self.biases.append(nn.Parameter(torch.empty(inner, **made)))
            self.decoder_biases.append(nn.Parameter(torch.empty(outer, **made)))
            if not tied:
                # Laid out as the encoder's, so that both read the same.
                self.decoder_weights.append(nn.Parameter(torch.empty(inner, outer, *kernel, **made)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, from torch's generator, and set the biases to 0."""
        for weight in [*self.weights, *self.decoder_weights]:
            bound = 1 / math.sqrt((weight.shape[0] + weight.shape[1]) * weight[0, 0].numel())
            nn.init.uniform_(weight, -bound, bound)
        for bias in [*self.biases, *self.decoder_biases]:
            nn.init.zeros_(bias)

    @property
    def draws_noise(self) -> bool:
        """Whether a call draws noise in the present mode."""
        present = self.noise_std > 0 or self.bottleneck_noise_std > 0
        return present and (self.training or self.noise == "always")

    def _denoise(self, h: Tensor) -> Tensor:
        act, noisy = ACTIVATIONS[self.activation], self.draws_noise
        decoders = self.weights if self.tied else self.decoder_weights
        levels = range(len(self.weights))
        for _ in range(self.iterations):
            shapes = []
            code = self._noised(h, self.noise_std) if noisy else h
            for level in levels:
                shapes.append(code.shape)
                code = act(self._encode(code, self.weights[level], self.biases[level]))
            if noisy:
                code = self._noised(code, self.bottleneck_noise_std)
            for level in reversed(levels):
                code = act(self._decode(code, decoders[level], self.decoder_biases[level], shapes[level]))
            h, noisy = code, False
        return h

    def _noised(self, h: Tensor, std: float) -> Tensor:
        if std == 0:
            return h
        if self.generator is None:
            return torch.add(h, torch.randn_like(h), alpha=std)
        place = self.generator.device
        drawn = torch.randn(h.shape, generator=self.generator, device=place, dtype=h.dtype)
        return torch.add(h, drawn.to(h.device), alpha=std)

    def _encode(self, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        raise NotImplementedError

    def _decode(self, code: Tensor, weight: Tensor, bias: Tensor, shape: torch.Size) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The settings, as modules show them."""
        sizes = [self.weights[0].shape[1], *(weight.shape[0] for weight in self.weights)]
        return (
            f"{' -> '.join(map(str, sizes))}, activation={self.activation!r}, noise_std={self.noise_std:g}, "
            f"noise={self.noise!r}, tied={self.tied}, iterations={self.iterations}"
        )


class DenoisingLayer(_Denoiser):
    """A denoising autoencoder on hidden states of any shape, flattened inside; keeps nothing between calls.

    Args:
        features: d, numbers in the hidden state of one example: 256 after `nn.Linear(..., 256)`, C H W after a
            convolution.
        hidden: r, hidden units; several sizes, from the outermost in, make a deeper autoencoder.
        activation: "leaky_relu" (slope 0.2, the paper's), "tanh" or "identity"; on the output too.
        noise_std: s, of the noise on the input.
        bottleneck_noise_std: of noise on the innermost code; the paper's deeper variant has 0.1.
        noise: "train" (default) or "always"; see the module's page.
        tied: whether the decoder's weights are the encoder's, transposed.
        iterations: how often the autoencoder is applied; noise is drawn for the first time only.
        generator: of the noise; torch's by default. Weights are drawn from torch's generator.
        device, dtype: of the parameters.

    Raises:
        ValueError: sizes or iterations below 1, a negative standard deviation, an unknown name; when called, an
            activation that has another number of features.

    Source: the paper, section 3; sizes of its networks: 256 units on 512, 128 for CIFAR-10, 512 with tanh in residual
        networks.

    >>> layer = DenoisingLayer(features=12, hidden=5)
    >>> layer(torch.randn(4, 3, 2, 2)).shape
    torch.Size([4, 3, 2, 2])
    >>> layer = layer.eval()
    >>> bool((layer(torch.ones(1, 12)) == layer(torch.ones(1, 12))).all())
    True
    """

    def __init__(
        self,
        features: int,
        hidden: int | Sequence[int],
        *,
        activation: str = "leaky_relu",
        noise_std: float | int = 0.1,
        bottleneck_noise_std: float | int = 0.0,
        noise: str = "train",
        tied: bool = True,
        iterations: int = 1,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = _sizes(features, "features", hidden, "hidden")
        options = (activation, noise_std, bottleneck_noise_std, noise, tied, iterations, generator, device, dtype)
        super().__init__(sizes, (), *options)
        self.features = sizes[0]

    def forward(self, h: Tensor) -> Tensor:
        """Denoised hidden states of the shape of `h`, (n, ...) with `features` numbers in each row."""
        found = math.prod(h.shape[1:])
        if found != self.features:
            raise ValueError(
                f"the activation has shape {tuple(h.shape)}, {found} features in each row, and this DenoisingLayer has "
                f"features={self.features}; make it with features={found}"
            )
        return self._denoise(h.reshape(len(h), self.features)).view(h.shape)

    def _encode(self, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.linear(h, weight, bias)

    def _decode(self, code: Tensor, weight: Tensor, bias: Tensor, shape: torch.Size) -> Tensor:
        return functional.linear(code, weight.T, bias)


class ConvDenoisingLayer(_Denoiser):
    """A convolutional denoising autoencoder on maps (n, channels, height, width), of any height and width.

    The encoder is a convolution and the decoder a transposed one, with the same weights unless `tied=False`: exactly
    the transposed linear map, as in the dense layer.

    Args:
        channels: of the hidden state.
        hidden: channels of the code; several, from the outermost in, make a deeper autoencoder.
        kernel_size: odd, so that maps keep their places; padding is half of it.
        stride: of each convolution; the code of a map of height H is ceil(H / stride) high.
        activation, noise_std, bottleneck_noise_std, noise, tied, iterations, generator, device, dtype: as in
            `DenoisingLayer`.

    Raises:
        ValueError: as `DenoisingLayer`, an even kernel size; when called, anything but maps with these channels.

    Source: the paper, section 3, convolutional variant; the released code's refers to a name that is not there, so that
        its sizes are not known to have run.

    >>> layer = ConvDenoisingLayer(channels=4, hidden=8, stride=2)
    >>> layer(torch.randn(2, 4, 7, 9)).shape
    torch.Size([2, 4, 7, 9])
    """

    def __init__(
        self,
        channels: int,
        hidden: int | Sequence[int],
        *,
        kernel_size: int = 3,
        stride: int = 1,
        activation: str = "leaky_relu",
        noise_std: float | int = 0.1,
        bottleneck_noise_std: float | int = 0.0,
        noise: str = "train",
        tied: bool = True,
        iterations: int = 1,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = _sizes(channels, "channels", hidden, "hidden")
        side = int(check_number(kernel_size, "kernel_size", at_least=1))
        if side % 2 == 0:
            raise ValueError(f"kernel_size={side}: it must be odd, so that maps keep their places; try {side + 1}")
        options = (activation, noise_std, bottleneck_noise_std, noise, tied, iterations, generator, device, dtype)
        super().__init__(sizes, (side, side), *options)
        self.channels, self.kernel_size = sizes[0], side
        self.stride = int(check_number(stride, "stride", at_least=1))

    def forward(self, h: Tensor) -> Tensor:
        """Denoised maps of the shape of `h`, (n, channels, height, width)."""
        if h.dim() != 4 or h.shape[1] != self.channels:
            raise ValueError(
                f"the activation has shape {tuple(h.shape)} and this ConvDenoisingLayer takes (n, {self.channels}, "
                "height, width); make it with the activation's channels, or take a DenoisingLayer"
            )
        return self._denoise(h)

    def _encode(self, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.conv2d(h, weight, bias, self.stride, self.kernel_size // 2)

    def _decode(self, code: Tensor, weight: Tensor, bias: Tensor, shape: torch.Size) -> Tensor:
        # Several heights have codes of the same height; the rest says which of them is meant.
        rest = [(shape[side] - 1) % self.stride for side in (2, 3)]
        return functional.conv_transpose2d(code, weight, bias, self.stride, self.kernel_size // 2, rest)


class ExpectationOverNoise(nn.Module):
    """A random classifier as the mean of its logits over draws of its noise: what an attack on it must see.

    An attack whose gradients, and whose verdict, see one draw overstates the robustness of a model with
    `noise="always"`. Accuracy and attacks alike go through this module; what is left of the noise falls with the root
    of the number of draws.

    Args:
        model: any model that draws noise when evaluated; rows of a batch have noise of their own.
        draws: how many passes are averaged; at least 20 for a report.
        rows: the most rows of one pass; all draws go together while they are fewer.

    Raises:
        ValueError: no draws, or no rows.

    Source: Athalye, Carlini, Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018, arXiv
        1802.00420, section 4.

    >>> noisy = nn.Sequential(DenoisingLayer(6, 3, noise="always"), nn.Linear(6, 2)).eval()
    >>> model = ExpectationOverNoise(noisy, draws=30).eval()
    >>> model(torch.ones(5, 6)).shape, draws_noise(noisy), draws_noise(model)
    (torch.Size([5, 2]), True, False)
    """

    def __init__(self, model: nn.Module, draws: int = 20, *, rows: int = 4096) -> None:
        super().__init__()
        self.model = model
        self.draws = int(check_number(draws, "draws", at_least=1))
        self.rows = int(check_number(rows, "rows", at_least=1))
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        """Mean logits (n, K) of inputs (n, ...)."""
        # Rows that change each other must not meet copies of themselves.
        together = 1 if mixes_rows(self.model) else max(1, self.rows // max(1, len(x)))
        total, left = torch.zeros((), device=x.device), self.draws
        while left:
            count = min(left, together)
            logits = self.model(x.repeat(count, *[1] * (x.dim() - 1)) if count > 1 else x)
            total = total + logits.reshape(count, len(x), *logits.shape[1:]).sum(0)
            left -= count
        return total / self.draws

    def extra_repr(self) -> str:
        """The settings, as modules show them."""
        return f"draws={self.draws}"


def draws_noise(model: nn.Module) -> bool:
    """Whether an answer of `model` in its present mode hangs on one draw of a denoising layer's noise.

    >>> layer = DenoisingLayer(4, 2, noise="train")
    >>> draws_noise(layer), draws_noise(layer.eval())
    (True, False)
    """
    averages = [module for module in model.modules() if isinstance(module, ExpectationOverNoise)]
    averaged = {id(inner) for module in averages for inner in modules_reached(module)}
    return any(
        isinstance(module, _Denoiser) and module.draws_noise and id(module) not in averaged
        for module in modules_reached(model)
    )


def mixes_rows(model: nn.Module) -> bool:
    """Whether rows of a batch may change each other's outputs: a batch normalisation that uses the batch's statistics.

    >>> mixes_rows(nn.BatchNorm1d(3)), mixes_rows(nn.BatchNorm1d(3).eval())
    (True, False)
    """
    return any(
        isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
        for module in modules_reached(model)
    )


def _sizes(outer: int, outer_name: str, hidden: int | Sequence[int], name: str) -> list[int]:
    inner = [hidden] if isinstance(hidden, int) else list(hidden)
    if not inner:
        raise ValueError(f"{name} is empty; give one size or several")
    return [int(check_number(outer, outer_name, at_least=1)), *(int(check_number(h, name, at_least=1)) for h in inner)]
