"""Data sets, one function each, as NumPy arrays with a stated shape, type and range.

Embedded ones need no download; those that lie elsewhere raise `mechanisms.lab.NotHere`, which says where they were
looked for and how to get them. Everything random follows from a seed. The names below are loaded when they are first
used, so that a recipe depends on the sets it uses and on no other.

>>> from mechanisms.lab import data
>>> data.digits().train.x.shape
(1100, 8, 8)
"""

from typing import TYPE_CHECKING

from mechanisms._base.lazy import lazy_names

if TYPE_CHECKING:
    from mechanisms.lab.data.audio import Recording as Recording
    from mechanisms.lab.data.audio import open_recording as open_recording
    from mechanisms.lab.data.cifar import cifar10 as cifar10
    from mechanisms.lab.data.cifar import cifar100 as cifar100
    from mechanisms.lab.data.cifar import read_cifar as read_cifar
    from mechanisms.lab.data.downloads import ChecksumError as ChecksumError
    from mechanisms.lab.data.downloads import download as download
    from mechanisms.lab.data.files import features_file as features_file
    from mechanisms.lab.data.files import hub_dataset as hub_dataset
    from mechanisms.lab.data.files import read_arrays as read_arrays
    from mechanisms.lab.data.folders import brightness as brightness
    from mechanisms.lab.data.folders import image_folder as image_folder
    from mechanisms.lab.data.folders import read_image as read_image
    from mechanisms.lab.data.folders import read_images as read_images
    from mechanisms.lab.data.generated import WATERBIRDS_SIZES as WATERBIRDS_SIZES
    from mechanisms.lab.data.generated import gaussian_blobs as gaussian_blobs
    from mechanisms.lab.data.generated import two_moons as two_moons
    from mechanisms.lab.data.generated import waterbirds_like as waterbirds_like
    from mechanisms.lab.data.handwriting import Unlabelled as Unlabelled
    from mechanisms.lab.data.handwriting import binarised_mnist as binarised_mnist
    from mechanisms.lab.data.handwriting import mnist as mnist
    from mechanisms.lab.data.images import RECIPES as RECIPES
    from mechanisms.lab.data.images import ColourRecipe as ColourRecipe
    from mechanisms.lab.data.images import colour as colour
    from mechanisms.lab.data.images import coloured_digits as coloured_digits
    from mechanisms.lab.data.images import coloured_fashion_mnist as coloured_fashion_mnist
    from mechanisms.lab.data.images import digits as digits
    from mechanisms.lab.data.images import fashion_mnist as fashion_mnist
    from mechanisms.lab.data.images import read_idx as read_idx
    from mechanisms.lab.data.known import DataSet as DataSet
    from mechanisms.lab.data.known import data_sets as data_sets
    from mechanisms.lab.data.language import Tokens as Tokens
    from mechanisms.lab.data.language import character_tokens as character_tokens
    from mechanisms.lab.data.language import penn_treebank as penn_treebank
    from mechanisms.lab.data.language import text8 as text8
    from mechanisms.lab.data.portraits import celeba as celeba
    from mechanisms.lab.data.reviews import Sentences as Sentences
    from mechanisms.lab.data.reviews import imdb as imdb
    from mechanisms.lab.data.reviews import split_sentences as split_sentences
    from mechanisms.lab.data.speech import FrameBatch as FrameBatch
    from mechanisms.lab.data.speech import Frames as Frames
    from mechanisms.lab.data.speech import FrameSplits as FrameSplits
    from mechanisms.lab.data.speech import blizzard as blizzard
    from mechanisms.lab.data.speech import frames as frames
    from mechanisms.lab.data.speech import moments as moments
    from mechanisms.lab.data.speech import timit as timit
    from mechanisms.lab.data.splits import Split as Split
    from mechanisms.lab.data.splits import Splits as Splits
    from mechanisms.lab.data.text import Corpus as Corpus
    from mechanisms.lab.data.text import manual_text as manual_text
    from mechanisms.lab.table_files import TableError as TableError
    from mechanisms.lab.table_files import read_table as read_table
    from mechanisms.lab.table_files import write_table as write_table

_HOMES = {
    "ChecksumError": "downloads",
    "ColourRecipe": "images",
    "Corpus": "text",
    "DataSet": "known",
    "FrameBatch": "speech",
    "FrameSplits": "speech",
    "Frames": "speech",
    "RECIPES": "images",
    "Recording": "audio",
    "Sentences": "reviews",
    "Split": "splits",
    "Splits": "splits",
    "TableError": ".table_files",
    "Tokens": "language",
    "Unlabelled": "handwriting",
    "WATERBIRDS_SIZES": "generated",
    "binarised_mnist": "handwriting",
    "blizzard": "speech",
    "brightness": "folders",
    "celeba": "portraits",
    "character_tokens": "language",
    "cifar10": "cifar",
    "cifar100": "cifar",
    "colour": "images",
    "coloured_digits": "images",
    "coloured_fashion_mnist": "images",
    "data_sets": "known",
    "digits": "images",
    "download": "downloads",
    "fashion_mnist": "images",
    "features_file": "files",
    "frames": "speech",
    "gaussian_blobs": "generated",
    "hub_dataset": "files",
    "image_folder": "folders",
    "imdb": "reviews",
    "manual_text": "text",
    "mnist": "handwriting",
    "moments": "speech",
    "open_recording": "audio",
    "penn_treebank": "language",
    "read_arrays": "files",
    "read_cifar": "cifar",
    "read_idx": "images",
    "read_image": "folders",
    "read_images": "folders",
    "read_table": ".table_files",
    "split_sentences": "reviews",
    "text8": "language",
    "timit": "speech",
    "two_moons": "generated",
    "waterbirds_like": "generated",
    "write_table": ".table_files",
}
__all__ = list(_HOMES)  # pyrefly: ignore
__getattr__ = lazy_names(__name__, _HOMES)
