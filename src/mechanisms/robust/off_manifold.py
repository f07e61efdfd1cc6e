"""Detecting inputs whose hidden states are far from those of real data, by the error of denoising them.

A denoising layer that was trained on real data's hidden states leaves them nearly as they are and moves others. The
score of an input is sum_k mean_d (D_k(h_k) - h_k)^2, its own part of the reconstruction loss. A detector is a threshold
on it: the smallest of n calibration scores that at most floor((n + 1) α) - 1 of them exceed. Then a new row of the same
distribution is flagged with probability at most α, whatever that distribution is (split conformal prediction; Vovk,
Gammerman, Shafer: "Algorithmic Learning in a Random World", 2005). That holds for rows the network was not trained on:
of training rows the scores are too small.

An attacker who knows the detector can keep its score low. It finds inputs that are odd by accident, or adversarial by
an attack that does not know of it.
"""

import math
import warnings
from dataclasses import dataclass, field

import torch
from scipy.stats import beta
from torch import Tensor, nn

from mechanisms._base.seeds import torch_generator
from mechanisms._base.validation import check_number
from mechanisms.robust._classifier_checks import check_evaluating
from mechanisms.robust._insertions import full, unwrapped
from mechanisms.robust.denoising import draws_noise
from mechanisms.robust.fortified import FortifiedModel

__all__ = ["FalsePositives", "OffManifoldDetector", "off_manifold_detector", "off_manifold_score"]

ROWS = 1024


@torch.no_grad()
def off_manifold_score(model: nn.Module, x: Tensor) -> Tensor:
    """How far the hidden states of each input are moved by denoising.

    Args:
        model: a fortified model with at least one layer, in evaluation mode; also compiled.
        x: inputs, (n, ...).

    Returns:
        (n,), from 0: sum_k mean_d (D_k(h_k) - h_k)^2, without noise in the layers whose noise is "train". Not a number
        for inputs that are not finite.

    Raises:
        TypeError: the model is no `FortifiedModel`.
        ValueError: it has no layers, or is in training mode.

    >>> from torch import nn
    >>> from mechanisms.robust.denoising import DenoisingLayer
    >>> from mechanisms.robust.fortified import fortify
    >>> network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> model = fortify(network, {"1": DenoisingLayer(4, 2)}).eval()
    >>> off_manifold_score(model, torch.rand(5, 3)).shape
    torch.Size([5])
    """
    inner = unwrapped(model)
    if not isinstance(inner, FortifiedModel):
        raise TypeError(f"the model is a {type(inner).__name__}; fortify it first, and train it")
    if not inner.names:
        raise ValueError("the model has no denoising layers; fortify it with at least one")
    check_evaluating(model)
    scores = [_errors(model, rows) for rows in x.split(ROWS)]
    return torch.cat(scores)


@dataclass(frozen=True)
class FalsePositives:
    """How often a detector flags clean rows.

    Attributes:
        rows: how many were looked at.
        flagged: how many were flagged.
        rate: their share.
        low, high: 95 % interval of the rate (Clopper and Pearson).
        asked: the rate that was asked for.

    >>> found = FalsePositives.counted(flagged=6, rows=100, asked=0.05)
    >>> found.rate, round(found.low, 3), round(found.high, 3), found.holds
    (0.06, 0.022, 0.126, True)
    """

    rows: int
    flagged: int
    rate: float
    low: float
    high: float
    asked: float

    @classmethod
    def counted(cls, flagged: int, rows: int, asked: float) -> "FalsePositives":
        """From counts."""
        low = float(beta.ppf(0.025, flagged, rows - flagged + 1)) if flagged else 0.0
        high = float(beta.ppf(0.975, flagged + 1, rows - flagged)) if flagged < rows else 1.0
        return cls(rows, flagged, flagged / rows, low, high, asked)

    @property
    def holds(self) -> bool:
        """Whether these rows are in agreement with a rate of at most `asked`."""
        return self.low <= self.asked


@dataclass(frozen=True)
class OffManifoldDetector:
    """A threshold on `off_manifold_score`; `off_manifold_detector` makes it.

    Attributes:
        model: the fortified model.
        threshold: rows with a larger score are flagged, and those with none, because they are not finite.
        false_positive_rate: the rate that was asked for.
        held_out: the rate on clean rows that took no part in the choice of the threshold.

    >>> from torch import nn
    >>> from mechanisms.robust.denoising import DenoisingLayer
    >>> from mechanisms.robust.fortified import fortify
    >>> network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> model = fortify(network, {"1": DenoisingLayer(4, 2)}).eval()
    >>> detector = off_manifold_detector(model, torch.rand(200, 3))
    >>> detector(torch.full((2, 3), 50.0))
    tensor([True, True])
    """

    model: nn.Module = field(repr=False)
    threshold: float
    false_positive_rate: float
    held_out: FalsePositives

    def __call__(self, x: Tensor) -> Tensor:
        """Which rows of `x` (n, ...) are flagged, (n,) of truth values."""
        return _above(off_manifold_score(self.model, x), self.threshold)

    def verify(self, x_clean: Tensor) -> FalsePositives:
        """The rate on other clean rows: those of a later day, say."""
        if len(x_clean) == 0:
            raise ValueError("x_clean is empty; give at least one row")
        return FalsePositives.counted(int(self(x_clean).sum()), len(x_clean), self.false_positive_rate)


def off_manifold_detector(
    model: nn.Module,
    x_clean: Tensor,
    false_positive_rate: float | int = 0.05,
    *,
    held_out: float | int = 0.5,
    seed: int = 0,
) -> OffManifoldDetector:
    """A detector that flags clean inputs at most at the given rate, verified on rows that did not set its threshold.

    Args:
        model: a fortified model, trained, in evaluation mode.
        x_clean: clean inputs that it was not trained on, (n, ...); the first part of a random order sets the threshold,
            the rest verifies it.
        false_positive_rate: α, between 0 and 1.
        held_out: share of the rows that verify.
        seed: of the order.

    Raises:
        TypeError, ValueError: as `off_manifold_score`; clean rows without a finite score; too few rows for the rate:
            the threshold takes at least 1 / α - 1 of them (19 for 0.05).

    Warns:
        UserWarning: the held-out rows are flagged more often than chance explains; or the model draws noise when
            evaluated, so that a verdict on one row changes from call to call.

    >>> from torch import nn
    >>> from mechanisms.robust.denoising import DenoisingLayer
    >>> from mechanisms.robust.fortified import fortify
    >>> network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> model = fortify(network, {"1": DenoisingLayer(4, 2)}).eval()
    >>> detector = off_manifold_detector(model, torch.rand(400, 3), false_positive_rate=0.1)
    >>> detector.held_out.rows, detector.held_out.holds
    (200, True)
    """
    rate = check_number(false_positive_rate, "false_positive_rate", above=0, below=1)
    share = check_number(held_out, "held_out", above=0, below=1)
    count = len(x_clean) - max(1, round(share * len(x_clean)))
    # A tiny slack, because (n + 1) * 0.05 may be rounded to just below a whole number.
    allowed = math.floor((count + 1) * rate * (1 + 1e-12)) - 1
    if allowed < 0:
        needed = math.ceil((1 / rate - 1) * (1 - 1e-12))
        raise ValueError(
            f"{len(x_clean)} clean rows leave {max(0, count)} for the threshold; a rate of {rate:g} takes at least "
            f"{needed}: give more rows, or a higher rate"
        )
    if draws_noise(model):
        warnings.warn(
            "the model draws noise when it is evaluated: verdicts change from call to call (noise='train' does not)",
            stacklevel=2,
        )
    order = torch.randperm(len(x_clean), generator=torch_generator(seed, "calibration")).to(x_clean.device)
    scores = off_manifold_score(model, x_clean[order])
    if not bool(scores.isfinite().all()):
        bad = int((~scores.isfinite()).sum())
        raise ValueError(f"{bad} of {len(scores)} clean rows have no finite score; clean or drop them")
    first, rest = scores[:count], scores[count:]
    threshold = float(first.sort(descending=True).values[allowed])
    verified = FalsePositives.counted(int(_above(rest, threshold).sum()), len(rest), rate)
    # Rows of one set are flagged this often once in a million sets or less.
    if verified.flagged and beta.ppf(1e-6, verified.flagged, verified.rows - verified.flagged + 1) > rate:
        warnings.warn(
            f"{verified.rate:.3f} of the held-out clean rows are flagged, {rate:g} were asked for: the rows of x_clean "
            "hang together (several of one source, say); calibrate on independent ones",
            stacklevel=2,
        )
    return OffManifoldDetector(model, threshold, rate, verified)


def _above(scores: Tensor, threshold: float) -> Tensor:
    # What is not a number is above every threshold.
    return ~(scores <= threshold)


def _errors(model: nn.Module, rows: Tensor) -> Tensor:
    _, before, after = model(rows, trace=True)
    errors = [full(found - h).flatten(1).square().mean(1) for h, found in zip(before, after, strict=True)]
    return torch.stack(errors).sum(0)
