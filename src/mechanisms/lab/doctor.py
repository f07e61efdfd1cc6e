"""What is here and how to get the rest: devices, extras, data sets, folders."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from dataclasses import dataclass

from mechanisms.lab.folders import cache_folder, results_folder


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: a topic, what was looked for, whether it is here, and what to know or do."""

    topic: str
    name: str
    here: bool
    detail: str


def examine() -> list[Finding]:
    """Look at devices, extras, data sets and folders; nothing is downloaded."""
    return [*_devices(), *_extras(), *_data(), *_folders()]


def _devices() -> list[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [
        Finding("device", "cpu", True, f"{cores} cores, Python {platform.python_version()}, torch {torch.__version__}")
    ]
    for index in range(torch.accelerator.device_count()):
        kind = torch.accelerator.current_accelerator()
        name = torch.cuda.get_device_name(index) if torch.cuda.is_available() else str(kind)
        found.append(Finding("device", f"{kind}:{index}", True, name))
    if len(found) == 1:
        found.append(Finding("device", "accelerator", False, "none seen by torch; `laptop` scale does not need one"))
    return found


def _extras() -> list[Finding]:
    """Every extra with the packages it lacks, from this package's own metadata."""
    needs: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("mechanisms") or []:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if name and extra and name.group() != "mechanisms":
            needs.setdefault(extra.group(1), []).append(name.group())
    found = []
    for extra, packages in needs.items():
        missing = [package for package in packages if not _installed(package)]
        detail = f"lacks {', '.join(missing)}: pip install 'mechanisms[{extra}]'" if missing else ", ".join(packages)
        found.append(Finding("extra", extra, not missing, detail))
    return found


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _data() -> list[Finding]:
    from mechanisms.lab.data import data_sets

    return [Finding("data", data.name, data.here, data.detail) for data in data_sets()]


def _folders() -> list[Finding]:
    results = results_folder()
    try:
        cache = cache_folder()
    except OSError as error:
        return [Finding("folder", "cache", False, str(error))]
    free = shutil.disk_usage(cache).free / 2**30
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) / 2**20
    return [
        Finding("folder", "cache", os.access(cache, os.W_OK), f"{cache}: {size:.1f} MiB used, {free:.1f} GiB free"),
        Finding(
            "folder",
            "results",
            results.is_dir(),
            f"{results.resolve()}" + ("" if results.is_dir() else " (made by mech run)"),
        ),
    ]
