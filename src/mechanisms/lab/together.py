"""Processes that train one run together (torchrun): the first one looks at the disk and decides for all.

Only the first process holds locks and writes files. If each looked at the disk for itself, one could find a stage that
another has just stored and go on while that one waits for it in a collective operation.
"""

from __future__ import annotations

import atexit
import datetime
import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def world_size() -> int:
    """Number of processes that train together (1 unless started by torchrun)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process among those that train together; rank 0 writes the records."""
    return int(os.environ.get("RANK", "0"))


def first_decides(function: Callable[[], T]) -> T:
    """What `function` returns in the process of rank 0, given to every process; all of them must call this.

    An error is raised in every process, so that none waits for one that has given up.

    >>> first_decides(lambda: 3)
    3
    """
    if world_size() == 1:
        return function()
    import torch

    group = _group()
    told: list[Any] = [None, None]
    if rank() == 0:
        try:
            told[0] = function()
        except Exception as error:
            told[1] = error
    torch.distributed.broadcast_object_list(told, src=0, group=group, device=torch.device("cpu"))
    if told[1] is not None:
        raise told[1]
    return told[0]


def all_tell(value: T) -> list[T]:
    """What every process gave, by rank, in each of them; all of them must call this.

    >>> all_tell(3)
    [3]
    """
    if world_size() == 1:
        return [value]
    import torch

    told: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(told, value, group=_group())
    return told


@functools.cache
def _group() -> Any:
    """A group of its own: waiting for another driver's lock may take longer than a training step ever should."""
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        # Fabric uses a group that is there: it needs NCCL for tensors on GPUs.
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(distributed.destroy_process_group)
    return distributed.new_group(backend="gloo", timeout=datetime.timedelta(days=7))
