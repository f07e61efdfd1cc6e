"""Checkpoints of long runs: all that decides how a run goes on, in one file that is there whole or not at all.

A run that is killed, or stopped with Ctrl-C, goes on from its last checkpoint when it is asked for again, and ends with
the same bits as one that was never stopped (on the CPU; on a GPU as far as its kernels repeat themselves). The file
holds tensors, numbers and text; nothing in it is executed when it is read.
"""

from __future__ import annotations

import pickle
import time
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from mechanisms.lab.folders import whole_file
from mechanisms.lab.stages import private_folder
from mechanisms.lab.together import all_tell, first_decides, rank

if TYPE_CHECKING:
    from mechanisms.lab.bench import Bench

LAYOUT = 1
FIELDS = {"layout", "step", "shared", "processes", "curves", "notes"}
# What zipfile and torch.load raise for a file that is no checkpoint, or a damaged one.
DAMAGED = (
    OSError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
)


@runtime_checkable
class Stateful(Protocol):
    """What knows its own state, as modules, optimisers, schedulers and `mechanisms.lab.batches.Batches` do."""

    def state_dict(self) -> Any:
        """The state, in tensors, numbers, text and containers of them."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Take a state over."""
        ...


class Checkpoint:
    """The file of one run's state; `Bench.checkpoint` makes it, and `train(checkpoint=...)` uses it.

    Loops of a recipe's own (two networks that play a game, say) call `restore` before the first step and `keep`
    between steps. Beside the parts given it keeps the bench's curves and notes and torch's own random state.

    Args:
        bench: whose curves and notes are kept.
        path: of the file; `None` keeps nothing.
        seconds: the least time between two savings.

    >>> import tempfile
    >>> from mechanisms.lab import Bench
    >>> bench, model = Bench(0), torch.nn.Linear(2, 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoint = Checkpoint(bench, Path(folder) / "run.pt", seconds=0)
    ...     begun = checkpoint.restore({"model": model})
    ...     kept = checkpoint.keep(7, {"model": model})
    ...     begun, kept, checkpoint.restore({"model": torch.nn.Linear(2, 1)})
    (0, True, 7)
    """

    def __init__(self, bench: Bench, path: Path | None, *, seconds: float | int = 300.0) -> None:
        self.path = path
        self._bench, self._seconds, self._kept = bench, seconds, time.monotonic()

    def restore(self, parts: Mapping[str, Stateful | torch.Generator]) -> int:
        """Bring the parts, the bench's curves and torch's random state to where the run was left.

        Args:
            parts: by name, the same names as for `keep`; what has `state_dict`, and generators.

        Returns:
            The number of steps done, 0 when there is no checkpoint (nothing is changed then).

        Raises:
            ValueError: the checkpoint has other parts.
        """
        content = first_decides(self._read)
        if content is None:
            return 0
        if set(content["shared"]) | set(content["processes"][0]["generators"]) != set(parts):
            raise ValueError(
                f"the checkpoint {self.path} holds {', '.join(content['shared'])}, the run has {', '.join(parts)}; "
                "delete the file to start anew"
            )
        own = content["processes"][rank()]
        for name, part in parts.items():
            if isinstance(part, torch.Generator):
                part.set_state(own["generators"][name])
            else:
                part.load_state_dict(content["shared"][name])
        torch.set_rng_state(own["random"]["cpu"])
        if "cuda" in own["random"]:
            torch.cuda.set_rng_state(own["random"]["cuda"], self._bench.device)
        self._bench.curves.clear()
        self._bench.curves.update({name: (list(steps), list(values)) for name, (steps, values) in content["curves"]})
        for text in content["notes"]:
            self._bench.note(text)
        return content["step"]

    def keep(self, step: int, parts: Mapping[str, Stateful | torch.Generator], *, now: bool = False) -> bool:
        """Store the state after `step` steps if the last storing is long enough ago, or `now`.

        Processes that train together must all call it at the same steps.

        Returns:
            Whether it was stored. When it could not be (the disk is full, the folder cannot be written) the run goes
            on, with a warning and a note; the last checkpoint is as it was.
        """
        if self.path is None or not first_decides(lambda: now or time.monotonic() - self._kept >= self._seconds):
            return False
        processes = all_tell(
            {
                "generators": {n: p.get_state() for n, p in parts.items() if isinstance(p, torch.Generator)},
                "random": _random_state(self._bench.device),
            }
        )
        content = {
            "layout": LAYOUT,
            "step": step,
            # Networks are kept equal by DDP, so one process's stand for all.
            "shared": {n: p.state_dict() for n, p in parts.items() if not isinstance(p, torch.Generator)},
            "processes": processes,
            "curves": list(self._bench.curves.items()),
            "notes": list(self._bench.notes),
        }
        self._kept = time.monotonic()
        if failure := first_decides(lambda: self._write(content)):
            text = f"the checkpoint {self.path} could not be stored ({failure}); the run goes on without it"
            warnings.warn(text, stacklevel=2)
            self._bench.note(text)
        return not failure

    def remove(self) -> None:
        """Delete the file: the run is over."""
        if self.path is not None and rank() == 0:
            self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any] | None:
        if self.path is None or not self.path.is_file():
            return None
        try:
            with zipfile.ZipFile(self.path) as file:  # torch.load does not look at the checksums
                whole = file.testzip() is None
            content = torch.load(self.path, map_location="cpu", weights_only=True) if whole else None
        except DAMAGED:
            content = None
        if not isinstance(content, dict) or content.get("layout") != LAYOUT or set(content) != FIELDS:
            self._bench.note(f"the checkpoint {self.path.name} could not be read: the run began anew")
            return None
        return content

    def _write(self, content: dict[str, Any]) -> str:
        """Store the file; what went wrong, as text, or nothing."""
        assert self.path is not None
        try:
            private_folder(self.path.parent)
            with whole_file(self.path, private=True) as file:
                torch.save(content, file)
        except (OSError, RuntimeError) as error:  # torch's writer hides the system's error behind one of its own
            cause = error if isinstance(error, OSError) else error.__context__
            return (cause.strerror if isinstance(cause, OSError) else None) or str(error).splitlines()[0]
        return ""


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states
