"""Data sets, one function each, as NumPy arrays with a stated shape, type and range.

Embedded ones need no download; those that lie elsewhere raise `mechanisms.lab.NotHere`, which says where they were
looked for and how to get them. Everything random follows from a seed.

>>> from mechanisms.lab import data
>>> data.digits().train.x.shape
(1100, 8, 8)
"""

from mechanisms.lab.data.downloads import ChecksumError, download
from mechanisms.lab.data.files import features_file, hub_dataset, read_arrays
from mechanisms.lab.data.generated import WATERBIRDS_SIZES, gaussian_blobs, two_moons, waterbirds_like
from mechanisms.lab.data.images import (
    RECIPES,
    ColourRecipe,
    colour,
    coloured_digits,
    coloured_fashion_mnist,
    digits,
    fashion_mnist,
    read_idx,
)
from mechanisms.lab.data.known import DataSet, data_sets
from mechanisms.lab.data.splits import Split, Splits
from mechanisms.lab.data.text import Corpus, manual_text
from mechanisms.lab.tables import TableError, read_table, write_table

__all__ = [
    "RECIPES",
    "WATERBIRDS_SIZES",
    "ChecksumError",
    "ColourRecipe",
    "Corpus",
    "DataSet",
    "Split",
    "Splits",
    "TableError",
    "colour",
    "coloured_digits",
    "coloured_fashion_mnist",
    "data_sets",
    "digits",
    "download",
    "fashion_mnist",
    "features_file",
    "gaussian_blobs",
    "hub_dataset",
    "manual_text",
    "read_arrays",
    "read_idx",
    "read_table",
    "two_moons",
    "waterbirds_like",
    "write_table",
]
