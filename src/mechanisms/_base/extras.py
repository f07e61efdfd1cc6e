"""Optional dependencies: one clear line when an extra is missing."""

import importlib
from types import ModuleType


class MissingExtra(ImportError):
    """An optional dependency is needed and not installed; the message names the command that installs it."""


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which extra of this package brings it.

    Args:
        module: dotted name of the module, for example "plotly.graph_objects".
        extra: the extra of `mechanisms` that installs it, for example "lab".

    Raises:
        MissingExtra: the module is not installed.

    >>> require("json", "lab").dumps([1])
    '[1]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A module that is present but lacks one of its own needs is not our extra missing.
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtra(
            f"{module.split('.')[0]} is not installed; it comes with: pip install 'mechanisms[{extra}]'"
        ) from error
