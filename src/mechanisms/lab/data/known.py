"""Which data sets there are, where each is looked for, and how to get it: what `mech doctor` shows."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mechanisms.lab.data._places import find_files
from mechanisms.lab.data.cifar import find_cifar
from mechanisms.lab.data.folders import GET_PETS
from mechanisms.lab.data.handwriting import AMAT, GET_BINARISED, find_mnist
from mechanisms.lab.data.images import FASHION_FILES, GET_FASHION
from mechanisms.lab.data.language import find_penn_treebank, find_text8
from mechanisms.lab.data.portraits import find_celeba
from mechanisms.lab.data.reviews import GET as GET_IMDB
from mechanisms.lab.data.speech import GET_BLIZZARD, GET_TIMIT
from mechanisms.lab.folders import data_folders
from mechanisms.lab.paper import NotHere


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
    ['scikit-learn digits', 'generated sets', 'Python manual', 'Fashion-MNIST', 'MNIST', 'binarised MNIST', 'CIFAR-10',
     'CIFAR-100', 'CelebA', 'cats and dogs', 'Penn Treebank', 'text8', 'IMDB', 'TIMIT', 'Blizzard', 'Hugging Face hub']
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
        _found("MNIST", lambda: find_mnist()[0].parent),
        _found(
            "binarised MNIST",
            lambda: find_files("", "binarised-mnist", None, [[name] for name in AMAT], GET_BINARISED)[0].parent,
        ),
        _found("CIFAR-10", lambda: find_cifar("cifar-10")),
        _found("CIFAR-100", lambda: find_cifar("cifar-100")),
        _found("CelebA", lambda: find_celeba()[-1]),
        _folder("cats and dogs", "cats-and-dogs", GET_PETS),
        _found("Penn Treebank", lambda: find_penn_treebank()[0].parent),
        _found("text8", find_text8),
        _folder("IMDB", "imdb", GET_IMDB),
        _folder("TIMIT", "timit", GET_TIMIT),
        _folder("Blizzard", "blizzard", GET_BLIZZARD),
        DataSet("Hugging Face hub", "the Python package datasets", hub, "" if hub else "pip install 'mechanisms[hub]'"),
    ]


def _folder(title: str, name: str, get: str) -> DataSet:
    """A data set that is a folder of files, whose names differ."""
    places = data_folders(name)
    here = any(place.is_dir() for place in places)
    return DataSet(title, ", ".join(map(str, places)), here, "" if here else get)


def _found(name: str, find: Callable[[], Path]) -> DataSet:
    """A data set whose reader says where it is, or where it was looked for."""
    try:
        return DataSet(name, str(find()), True, "")
    except NotHere as missing:
        looked, _, get = str(missing).partition(" in ")[2].partition("; ")
        return DataSet(name, looked, False, get)
