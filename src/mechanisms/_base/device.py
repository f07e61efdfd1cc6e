"""Where to compute."""

import torch


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device a name stands for; "auto" is an accelerator when there is one, else the CPU.

    Raises:
        ValueError: the name is unknown, that device is not here, or it computes nothing ("meta").

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if str(device) == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {str(device)!r} cannot be used here ({reason}); 'auto' chooses one that can"
        ) from None
    if chosen.type == "meta":
        raise ValueError(
            "device 'meta' holds shapes without numbers and computes nothing; 'auto' chooses one that does"
        )
    return chosen
