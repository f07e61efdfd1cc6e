"""Which data sets there are, where each is looked for, and how to get it: what `mech doctor` shows."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from mechanisms.lab.data.images import FASHION_FILES, GET_FASHION
from mechanisms.lab.folders import data_folders


@dataclass(frozen=True)
class DataSet:
    """What is known about one data set on this machine.

    Args:
        name: for people.
        looked: where it was looked for.
        here: whether it can be used now.
        get: how to get it; empty when it is here.

    >>> DataSet("digits", "embedded", True, "").here
    True
    """

    name: str
    looked: str
    here: bool
    get: str

    @property
    def detail(self) -> str:
        """One line: where it is, or where it was looked for and how to get it."""
        return self.looked if self.here else f"looked for in {self.looked}; {self.get}"


def data_sets() -> list[DataSet]:
    """Every data set the laboratory knows by name, and whether it is here.

    >>> [data_set.name for data_set in data_sets()]
    ['scikit-learn digits', 'generated sets', 'Python manual', 'Fashion-MNIST', 'Hugging Face hub']
    """
    folders = data_folders("fashion-mnist")
    fashion = any(all((folder / name).is_file() for name in FASHION_FILES.values()) for folder in folders)
    manual, hub = (importlib.util.find_spec(module) is not None for module in ("pydoc_data", "datasets"))
    return [
        DataSet("scikit-learn digits", "embedded", True, ""),
        DataSet("generated sets", "embedded", True, ""),
        DataSet(
            "Python manual",
            "the standard library (pydoc_data.topics)",
            manual,
            "" if manual else "on Debian: apt install libpython3-stdlib",
        ),
        DataSet("Fashion-MNIST", ", ".join(map(str, folders)), fashion, "" if fashion else GET_FASHION),
        DataSet("Hugging Face hub", "the Python package datasets", hub, "" if hub else "pip install 'mechanisms[hub]'"),
    ]
