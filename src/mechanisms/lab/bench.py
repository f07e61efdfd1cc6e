"""The bench of one run: its seed, random streams, device, progress, logging, and stages shared between variants."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat, TypeVar

from mechanisms.lab import stages
from mechanisms.lab.configuration import as_dict, dict_hash

if TYPE_CHECKING:
    import lightning_fabric
    import numpy as np
    import torch

    from mechanisms.lab.checkpoints import Checkpoint

T = TypeVar("T")

# (step, total, numbers shown beside the bar)
Report = Callable[[int, int | None, Mapping[str, float]], None]


class Bench:
    """What a recipe's `run` gets beside its configuration and variant.

    Args:
        seed: everything random follows from it.
        device: a name, or "auto".
        settings: the run's configuration; it is part of the key of cached stages.
        owner: what the stages belong to, for example "xrm/coloured-digits".
        code: hash of the source the run depends on; part of the key of cached stages.
        cache: folder of the cached stages; `None` computes every stage anew.
        threads: CPU threads, recorded and part of the key of cached stages.
        report: called with progress, at most ten times a second.
        logger: makes a Fabric logger that receives what `log` is given, beside the record.

    Attributes:
        precision: Fabric's, "32-true" or "bf16-mixed" for example; a recipe sets it before `fabric` is first used.

    >>> bench = Bench(seed=3)
    >>> bench.generator("weights").initial_seed() == Bench(seed=3).generator("weights").initial_seed()
    True
    """

    def __init__(
        self,
        seed: int,
        *,
        device: str = "cpu",
        settings: Any = None,
        owner: str = "",
        code: str = "",
        cache: Path | None = None,
        threads: int = 1,
        report: Report | None = None,
        logger: Callable[[], Any] | None = None,
    ) -> None:
        from mechanisms._base.device import resolve_device

        self.seed = seed
        self.device: torch.device = resolve_device(device)
        self.threads = threads
        self.curves: dict[str, tuple[list[float], list[float]]] = {}
        self.notes: list[str] = []
        self.stages: dict[str, float] = {}
        self.waited = 0.0
        self._settings, self._owner, self._code, self._cache = settings, owner, code, cache
        self._report, self._logger = report, None
        if logger is not None:
            self._logger = self._logged(logger)
        self._reported = 0.0
        self.precision = "32-true"
        self._checkpoints: list[Checkpoint] = []
        self._fabric: lightning_fabric.Fabric | None = None

    def generator(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A torch generator for the stream `name` of this seed."""
        from mechanisms._base.seeds import torch_generator

        return torch_generator(self.seed, name, device)

    def numpy(self, name: str) -> np.random.Generator:
        """A NumPy generator for the stream `name` of this seed."""
        from mechanisms._base.seeds import numpy_generator

        return numpy_generator(self.seed, name)

    @property
    def fabric(self) -> lightning_fabric.Fabric:
        """Lightning Fabric on this run's device (all devices under torchrun), launched."""
        if self._fabric is None:
            from mechanisms.lab.training import make_fabric

            self._fabric = make_fabric(self.device, self._logger, self.precision)
        return self._fabric

    def progress(self, step: int, total: int | None = None, **numbers: SupportsFloat) -> None:
        """Show how far the run is; `numbers` (a loss, say) stand beside the bar. Cheap: call it every step.

        Numbers are read only when something is drawn, so tensors may be passed without a device synchronisation.
        """
        if self._report is None:
            return
        now = time.monotonic()
        if now - self._reported >= 0.1 or step == total:
            self._reported = now
            self._report(step, total, {name: float(value) for name, value in numbers.items()})

    def log(self, step: SupportsFloat, **values: SupportsFloat) -> None:
        """Add a point to the run's curves; they go into the record and to the logger the user chose.

        Raises:
            ValueError: `step` is infinite or not a number.
        """
        if not math.isfinite(float(step)):
            raise ValueError(f"step={float(step)}: the step of a curve must be a finite number")
        for name, value in values.items():
            steps, points = self.curves.setdefault(name, ([], []))
            steps.append(float(step))
            points.append(float(value))
        if (logger := self._logger) is not None:
            numbers = {name: float(value) for name, value in values.items()}
            self._logged(lambda: logger.log_metrics(numbers, step=int(float(step))))

    def close(self) -> None:
        """The run is over: let the logger write what it still holds, and take its checkpoints away."""
        for checkpoint in self._checkpoints:
            checkpoint.remove()
        if (logger := self._logger) is not None:
            self._logged(lambda: logger.finalize("success"))

    def _logged(self, action: Callable[[], T]) -> T | None:
        """A logger that fails (its folder cannot be written, say) is noted and left: the record keeps the curves."""
        try:
            return action()
        except Exception as error:  # each logger wraps the system's errors in its own way
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self.note(f"the logger failed and was left out from then on ({reason})")
            self._logger = None
            return None

    def note(self, text: str) -> None:
        """Keep a remark in the record, once."""
        if text not in self.notes:
            self.notes.append(text)

    def cached(self, key: str, function: Callable[[], T], settings: Mapping[str, Any] | None = None) -> T:
        """The value of an expensive stage that several variants share, computed once per configuration and seed.

        It is stored atomically and locked across processes; its seconds go into the record of the run that computed it.

        Args:
            key: name of the stage.
            function: computes it. It must draw only from this bench's streams, and return tensors, arrays, numbers,
                text and None in dictionaries, lists and tuples.
            settings: the part of the configuration it depends on; the whole one by default. A narrower one lets
                experiments and overrides share the stage.

        Raises:
            TypeError: the value holds something that cannot be stored without pickle.
        """
        identity = self._identity(key, settings)
        started, before = time.perf_counter(), self.waited
        if self._cache is None:
            value = function()
            seconds = time.perf_counter() - started
        else:
            path = self._cache / f"{key}.{dict_hash(identity)}.safetensors"
            value, seconds = stages.load_or_compute(path, function)
        if seconds is not None:  # stages inside this one report their own
            self.stages[key] = seconds - (self.waited - before)
        self.waited = before + time.perf_counter() - started
        return value

    def checkpoint(self, key: str, seconds: float | int = 300.0) -> Checkpoint:
        """The file that keeps this run's state, so that it goes on where it was killed; gone when the run is over.

        Args:
            key: name of the run within this configuration and seed: say the variant in it.
            seconds: the least time between two savings.
        """
        from mechanisms.lab.checkpoints import Checkpoint
        from mechanisms.lab.together import world_size

        path = None
        if self._cache is not None:
            identity = self._identity(key, None) | {"processes": world_size(), "precision": self.precision}
            path = self._cache / f"{key}.{dict_hash(identity)}.checkpoint"
        self._checkpoints.append(Checkpoint(self, path, seconds=seconds))
        return self._checkpoints[-1]

    def _identity(self, key: str, settings: Mapping[str, Any] | None) -> dict[str, Any]:
        """What tells one stage or checkpoint from another."""
        import torch

        whole = as_dict(self._settings) if self._settings is not None else {}
        return {
            "owner": self._owner if settings is None else self._owner.split("/")[0],
            "key": key,
            "settings": whole if settings is None else dict(settings),
            "seed": self.seed,
            "code": self._code,
            "threads": self.threads,
            "device": self.device.type,
            "torch": torch.__version__,
        }
