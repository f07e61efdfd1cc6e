"""What attacks, training loops and detectors check alike before they begin."""

import torch
from torch import Tensor, nn

from mechanisms.robust._insertions import inserted


def check_inputs(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
    """Inputs without their graph, labels that index, and how many classes they name."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x is {kind}; expected a floating-point tensor (n, ...) in [0, 1]")
    if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"y is {kind}; expected a tensor (n,) of integer labels")
    if x.dim() < 2 or y.shape != x.shape[:1]:
        raise ValueError(f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}; expected (n, ...) and (n,)")
    if x.device != y.device:
        raise ValueError(f"x is on {x.device} and y on {y.device}; move one of them")
    x, y = x.detach(), y.long()
    if x.numel() == 0:
        return x, y, 0
    low, high = x.aminmax()
    if not bool((low >= 0) & (high <= 1)):
        raise ValueError(
            f"x goes from {float(low):g} to {float(high):g}; expected [0, 1]: scale it; standardise in the model"
        )
    if int(y.min()) < 0:
        raise ValueError(f"y holds {int(y.min())}; labels are integers from 0")
    return x, y, int(y.max()) + 1


def check_evaluating(model: nn.Module) -> None:
    """An error for a model in training mode, whose answers depend on batch and noise."""
    if model.training:
        raise ValueError("the model is in training mode; call its eval() before evaluating it")
    # A network that was fortified does not know its layers: its own eval() leaves them as they are.
    if any(layer.training for layer in inserted(model)):
        raise ValueError("denoising layers of the model are in training mode; call eval() of the FortifiedModel")
