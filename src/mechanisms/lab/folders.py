"""Where things are kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder of downloads and cached stages, readable by its owner alone.

    `$MECHANISMS_CACHE`, else `mechanisms` below `$XDG_CACHE_HOME`, else `~/.cache/mechanisms`.

    >>> cache_folder().name != ""
    True
    """
    if given := os.environ.get("MECHANISMS_CACHE"):
        folder = Path(given)
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mechanisms"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def results_folder() -> Path:
    """The folder of the records: `$MECHANISMS_RESULTS`, else `results` in the current folder."""
    return Path(os.environ.get("MECHANISMS_RESULTS", "results"))
