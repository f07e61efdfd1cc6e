"""Tasks that ask a network to remember: copying, adding, denoising, images pixel by pixel.

Fresh data for every batch; what is drawn follows from the generator.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from mechanisms._base.validation import check_choice, check_number

ENCODINGS = ("one_hot", "tokens", "scalar")


class Batch(NamedTuple):
    """Inputs and targets of a task.

    >>> x, y = Batch(torch.zeros(5, 2, 1), torch.zeros(5, 2, dtype=torch.int64))
    """

    inputs: Tensor
    targets: Tensor


def copying_task(
    batch: int,
    delay: int,
    n: int = 10,
    symbols: int = 8,
    *,
    encoding: str = "one_hot",
    generator: torch.Generator | None = None,
) -> Batch:
    """Repeat n symbols after a delay: n symbols, delay - 1 blanks, a marker, n blanks.

    Args:
        batch: number of sequences.
        delay: steps T from the last symbol to the marker.
        n: number of symbols to remember.
        symbols: how many there are: classes 1 to `symbols`; 0 is blank, `symbols + 1` the marker.
        encoding: "one_hot": (time, batch, symbols + 2); "tokens": integers (time, batch), to be embedded; "scalar":
            the integers as numbers (time, batch, 1).
        generator: where the symbols come from; torch's own by default.

    Returns:
        Inputs, and targets (time, batch): blank for delay + n steps, then the symbols. Time is delay + 2n. The number
        of classes is `symbols + 2`. Score the last n steps: all others are blank.

    Raises:
        ValueError: a size below 1, or an unknown encoding.

    Source: Hochreiter and Schmidhuber, 1997; in this form Arjovsky, Shah and Bengio, 2016.

    >>> x, y = copying_task(2, 5, n=3, generator=torch.Generator().manual_seed(0))
    >>> x.shape, y.shape, bool((x[:3].argmax(-1) == y[-3:]).all())
    (torch.Size([11, 2, 10]), torch.Size([11, 2]), True)
    """
    _check_sizes(batch=batch, delay=delay, n=n, symbols=symbols)
    drawn = torch.randint(1, symbols + 1, (n, batch), generator=generator, device=_place(generator))
    tokens = drawn.new_zeros(delay + 2 * n, batch)
    tokens[:n] = drawn
    return _recall(tokens, drawn, delay, n, symbols, encoding)


def denoise_task(
    batch: int,
    delay: int,
    n: int = 10,
    symbols: int = 8,
    *,
    encoding: str = "one_hot",
    generator: torch.Generator | None = None,
) -> Batch:
    """Repeat n symbols that stand at random places among blanks: delay + n - 1 steps of both, a marker, n blanks.

    Args:
        batch: number of sequences.
        delay: as in `copying_task`: the sequences are equally long.
        n, symbols, encoding, generator: as in `copying_task`.

    Returns:
        Inputs, and targets (time, batch): blank for delay + n steps, then the symbols in their order.

    Raises:
        ValueError: a size below 1, or an unknown encoding.

    Source: Kerg et al., 2020 ("Untangling tradeoffs between recurrence and self-attention"), denoise task.

    >>> x, y = denoise_task(2, 5, n=3, encoding="tokens", generator=torch.Generator().manual_seed(0))
    >>> x.shape, int((x[:7] > 0).sum())
    (torch.Size([11, 2]), 6)
    """
    _check_sizes(batch=batch, delay=delay, n=n, symbols=symbols)
    device = _place(generator)
    drawn = torch.randint(1, symbols + 1, (n, batch), generator=generator, device=device)
    order = torch.rand(delay + n - 1, batch, generator=generator, device=device).argsort(0)
    places = order[:n].sort(0).values
    tokens = drawn.new_zeros(delay + 2 * n, batch).scatter_(0, places, drawn)
    return _recall(tokens, drawn, delay, n, symbols, encoding)


def _recall(tokens: Tensor, drawn: Tensor, delay: int, n: int, symbols: int, encoding: str) -> Batch:
    """The marker, the encoding, and the targets of both recall tasks."""
    check_choice(encoding, "encoding", ENCODINGS)
    tokens[delay + n - 1] = symbols + 1
    targets = torch.zeros_like(tokens)
    targets[-n:] = drawn
    if encoding == "tokens":
        return Batch(tokens, targets)
    if encoding == "scalar":
        return Batch(tokens.unsqueeze(-1).to(torch.get_default_dtype()), targets)
    return Batch(F.one_hot(tokens, symbols + 2).to(torch.get_default_dtype()), targets)


class RecallScores(NamedTuple):
    """How well symbols are recalled: each a tensor without dimensions.

    >>> RecallScores(*torch.zeros(3)).accuracy
    tensor(0.)
    """

    accuracy: Tensor
    recall_loss: Tensor
    loss: Tensor


def recall_scores(
    logits: Float[Tensor, "time batch classes"], targets: Int[Tensor, "time batch"], n: int
) -> RecallScores:
    """Scores of copying and denoising.

    Args:
        logits: predictions of every step.
        targets: the task's targets.
        n: number of symbols.

    Returns:
        The share of right symbols and the cross-entropy (nats) of the last n steps, and that of all steps. Only the
        first two can be compared between delays: the blanks are easy, and a longer delay has more of them.

    >>> x, y = copying_task(2, 5, n=3)
    >>> recall_scores(100 * F.one_hot(y, 10).float(), y, 3).accuracy
    tensor(1.)
    """
    last, wanted = logits[-n:], targets[-n:]
    return RecallScores(
        (last.argmax(-1) == wanted).float().mean(),
        F.cross_entropy(last.flatten(0, 1), wanted.flatten()),
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()),
    )


def adding_task(batch: int, steps: int, *, marker_channels: int = 1, generator: torch.Generator | None = None) -> Batch:
    """Add the two numbers that are marked, one in each half of the sequence.

    Args:
        batch: number of sequences.
        steps: their length, at least 2.
        marker_channels: 1 marks both numbers in one channel, 2 gives each a channel of its own.
        generator: where numbers and places come from; torch's own by default.

    Returns:
        Inputs (time, batch, 1 + marker_channels): a number uniform in [0, 1] and the marker; targets (batch,), the sum.
        Always predicting 1 has a mean squared error of 1/6.

    Raises:
        ValueError: a size is too small, or `marker_channels` is neither 1 nor 2.

    Source: Hochreiter and Schmidhuber, 1997.

    >>> x, y = adding_task(2, 10)
    >>> x.shape, bool(torch.allclose((x[..., 0] * x[..., 1]).sum(0), y))
    (torch.Size([10, 2, 2]), True)
    """
    _check_sizes(batch=batch)
    check_number(steps, "steps", at_least=2)
    check_number(marker_channels, "marker_channels", at_least=1, at_most=2)
    device = _place(generator)
    numbers = torch.rand(steps, batch, generator=generator, device=device)
    half = steps // 2
    first = torch.randint(0, half, (1, batch), generator=generator, device=device)
    second = torch.randint(half, steps, (1, batch), generator=generator, device=device)
    markers = numbers.new_zeros(steps, batch, marker_channels)
    markers[..., 0].scatter_(0, first, 1.0)
    markers[..., marker_channels - 1].scatter_(0, second, 1.0)
    total = numbers.gather(0, first) + numbers.gather(0, second)
    return Batch(torch.cat([numbers.unsqueeze(-1), markers], -1), total.squeeze(0))


def pixel_permutation(
    pixels: int, *, replacement: bool = False, generator: torch.Generator | None = None
) -> Int[Tensor, " pixels"]:
    """An order of pixels, the same for all images.

    Args:
        pixels: how many there are.
        replacement: draw each place anew, as the code of Zoneout did: then about 37 % of the pixels are never seen.
        generator: where it comes from; torch's own by default.

    >>> pixel_permutation(4).sort().values
    tensor([0, 1, 2, 3])
    """
    _check_sizes(pixels=pixels)
    if replacement:
        return torch.randint(0, pixels, (pixels,), generator=generator, device=_place(generator))
    return torch.randperm(pixels, generator=generator, device=_place(generator))


def sequential_images(
    images: Tensor, *, size: int | None = None, permutation: Tensor | None = None, threshold: float | int | None = None
) -> Float[Tensor, "time batch channels"]:
    """Images as sequences of pixels, row by row.

    Args:
        images: (batch, height, width) or (batch, channels, height, width).
        size: height and width to bring them to, by the nearest pixel; by default as they are.
        permutation: order of the pixels, from `pixel_permutation`.
        threshold: make pixels 1 where they are at least that, else 0.

    Raises:
        ValueError: another number of dimensions, or a permutation of another length.

    >>> sequential_images(torch.rand(2, 8, 8), size=4).shape
    torch.Size([16, 2, 1])
    """
    if images.dim() not in (3, 4):
        raise ValueError(
            f"images have shape {tuple(images.shape)}; expected (batch, height, width), with channels "
            "(batch, channels, height, width)"
        )
    if images.dim() == 3:
        images = images.unsqueeze(1)
    if not images.is_floating_point():
        images = images.to(torch.get_default_dtype())
    if threshold is not None:
        images = (images >= threshold).to(images.dtype)
    if size is not None:
        _check_sizes(size=size)
        images = F.interpolate(images, (size, size), mode="nearest")
    sequences = images.flatten(2).permute(2, 0, 1)
    if permutation is None:
        return sequences.contiguous()
    if tuple(permutation.shape) != (sequences.shape[0],):
        raise ValueError(
            f"the permutation has shape {tuple(permutation.shape)}; the images have {sequences.shape[0]} pixels"
        )
    return sequences[permutation]


def _place(generator: torch.Generator | None) -> torch.device | None:
    return None if generator is None else generator.device


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        check_number(size, name, at_least=1)
