"""The file in which a training is kept while it runs: tensors, numbers and text; nothing in it is executed."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LAYOUT = 2


@dataclass
class Place:
    """How far a training is: whole epochs, batches of the next one, and the sums over those batches."""

    epochs: int = 0
    batches: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    rows: int = 0


def write_training(
    path: Path,
    settings: Mapping[str, Any],
    place: Place,
    parts: Mapping[str, Any],
    streams: Mapping[str, torch.Generator],
    history: Mapping[str, list[list[float]]],
) -> None:
    """Store a training; the file is there whole or not at all."""
    cuda = _cuda(streams)
    content = {
        "layout": LAYOUT,
        "settings": _as_text(settings),
        "place": vars(place),
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "streams": {name: stream.get_state() for name, stream in streams.items()},
        "random": torch.get_rng_state(),
        "random_cuda": None if cuda is None else torch.cuda.get_rng_state(cuda),
        "history": dict(history),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_training(
    path: Path,
    settings: Mapping[str, Any],
    parts: Mapping[str, Any],
    streams: Mapping[str, torch.Generator],
    history: dict[str, list[list[float]]],
) -> Place:
    """Bring parts, streams and torch's random state to where the training was left; returns that place.

    Raises:
        ValueError: the file is no such training, or one with other settings or of another model.
    """
    if not path.exists():
        return Place()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        layout, kept = content["layout"], content["settings"]
    except Exception as error:  # whatever a damaged or foreign file raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} is no training that can be gone on with ({reason}); delete it to start anew"
        ) from None
    asked = _as_text(settings)
    if layout != LAYOUT or kept != asked:
        differ = sorted(name for name in set(kept) | set(asked) if kept.get(name) != asked.get(name))
        raise ValueError(
            f"{path} holds a training with other settings ({', '.join(differ) or 'layout'}); give another file, or "
            "delete it to start anew"
        )
    if set(content["streams"]) != set(streams):
        raise ValueError(
            f"{path} holds a training whose layers had other generators of noise; set them alike, or delete it"
        )
    try:
        for name, part in parts.items():
            part.load_state_dict(content["parts"][name])
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} holds a training of another model; delete it to start anew: {reason}") from None
    for name, stream in streams.items():
        stream.set_state(content["streams"][name])
    torch.set_rng_state(content["random"])
    cuda = _cuda(streams)
    if cuda is not None and content["random_cuda"] is not None:
        torch.cuda.set_rng_state(content["random_cuda"], cuda)
    history.clear()
    history.update(content["history"])
    return Place(**content["place"])


def _as_text(settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: repr(value) for name, value in settings.items()}


def _cuda(streams: Mapping[str, torch.Generator]) -> torch.device | None:
    return next((stream.device for stream in streams.values() if stream.device.type == "cuda"), None)
