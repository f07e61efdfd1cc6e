"""Large tensors on the CPU whose memory is used again: the system clears new memory, and that can take longer than what
a pass computes there.

What a tensor leaves behind is kept for the next one of about its size. Until then it is lent to the system, which takes
pages of it when it runs short. Where the system cannot be told so, nothing is kept.
"""

import mmap
import weakref
from typing import Any

import torch
from torch import Tensor

LARGE = 1 << 25  # bytes; malloc keeps smaller blocks itself
_LEND: int | None = getattr(mmap, "MADV_FREE", None)
_LARGE_PAGES: int | None = getattr(mmap, "MADV_HUGEPAGE", None)

# Only methods of list that need no lock: memory comes back whenever a tensor dies, in any thread.
_spare: list[Any] = []


def empty(count: int, dtype: torch.dtype) -> Tensor:
    """A tensor (count) with anything in it, on the CPU.

    >>> empty(3, torch.float32).shape
    torch.Size([3])
    """
    size = count * dtype.itemsize
    if size < LARGE or _LEND is None:
        return torch.empty(count, dtype=dtype, device="cpu")
    pages = memoryview(_find(size))
    weakref.finalize(pages, _keep, pages.obj).atexit = False
    return torch.frombuffer(pages, dtype=dtype, count=count)  # it holds `pages` as long as its storage lives


def _find(size: int) -> Any:
    """Spare memory that fits, else new; then what does not fit is given up, so that never more is kept than was used at
    once."""
    for pages in sorted(_spare, key=len):
        if size <= len(pages) <= 2 * size:
            try:
                _spare.remove(pages)
            except ValueError:  # another thread has it
                continue
            return pages
    _spare.clear()
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if _LARGE_PAGES is not None:
        _advise(pages, _LARGE_PAGES)  # small ones take up to a tenth of a forward pass
    return pages


def _keep(pages: Any) -> None:
    if _LEND is not None and _advise(pages, _LEND):
        _spare.append(pages)


def _advise(pages: Any, advice: int) -> bool:
    try:
        pages.madvise(advice)
    except OSError:  # a kernel without it
        return False
    return True
