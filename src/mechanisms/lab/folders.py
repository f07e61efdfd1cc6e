"""Where the laboratory keeps and looks for files."""

import os
from pathlib import Path

from mechanisms._base.files import whole_file as whole_file
from mechanisms._base.folders import cache_folder as cache_folder

SYSTEM_DATA = Path("/usr/share/datasets")  # where Debian's data set packages put their files


def results_folder() -> Path:
    """The folder of the records: `$MECHANISMS_RESULTS`, else `results` in the current folder."""
    return Path(os.environ.get("MECHANISMS_RESULTS", "results"))


def data_folders(name: str) -> list[Path]:
    """Where a data set called `name` is looked for, first to last: `$MECHANISMS_DATA/<name>`, then the system's folder.

    >>> data_folders("fashion-mnist")[-1].as_posix()
    '/usr/share/datasets/fashion-mnist'
    """
    own = os.environ.get("MECHANISMS_DATA")
    return [*([Path(own).expanduser() / name] if own else []), SYSTEM_DATA / name]
