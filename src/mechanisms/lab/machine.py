"""What a record says of the machine it was made on: device, versions, and the memory at a run's peak."""

from __future__ import annotations

import contextlib
import platform
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def device_name(device: torch.device) -> str:
    """The device's type and, for CUDA, which model it is (other accelerators have no name in common).

    >>> import torch
    >>> device_name(torch.device("mps"))
    'mps'
    """
    import torch

    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def versions() -> dict[str, str]:
    """Versions that a result depends on.

    >>> sorted(versions())
    ['mechanisms', 'numpy', 'python', 'system', 'torch']
    """
    import numpy
    import torch

    import mechanisms

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "mechanisms": mechanisms.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Generator[Callable[[], int]]:
    """Bytes at the peak of the block: allocated on a CUDA device, else resident in the process.

    >>> import torch
    >>> with peak_memory(torch.device("cpu")) as peak:
    ...     values = list(range(1000))
    >>> peak() > 1_000_000
    True
    """
    import resource

    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    with contextlib.suppress(OSError):
        # Linux: the high-water mark starts anew, else it is the process's.
        Path("/proc/self/clear_refs").write_text("5")

    def peak() -> int:
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    yield peak


@contextlib.contextmanager
def thread_limit(threads: int) -> Generator[None]:
    """At most `threads` CPU threads in the block, for torch and for the BLAS and OpenMP of NumPy, SciPy, scikit-learn.

    >>> import torch
    >>> with thread_limit(1):
    ...     torch.get_num_threads()
    1
    """
    # What is loaded later would not be limited: scikit-learn brings SciPy's BLAS and an OpenMP of its own.
    import scipy.linalg  # noqa: F401
    import sklearn.utils._openmp_helpers  # noqa: F401
    import threadpoolctl
    import torch

    before = torch.get_num_threads()
    with threadpoolctl.threadpool_limits(threads):
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
