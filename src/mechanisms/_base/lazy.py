"""Packages whose names are loaded when they are first used, so that importing the package stays instant."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` that finds each name in its home.

    Args:
        package: dotted name of the package, `__name__` in its `__init__.py`.
        homes: for each public name the module that defines it, as a relative import from the package names it: "seeds"
            is the package's own, ".seeds" its neighbour.

    >>> getattribute = lazy_names("mechanisms._base", {"as_seed": "seeds"})
    >>> getattribute("as_seed")(7)
    7
    """

    def __getattr__(name: str) -> Any:
        if name in homes:
            return getattr(importlib.import_module(f".{homes[name]}", package), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__
