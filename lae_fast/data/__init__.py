"""Data sets, by name, from files or from memory, as tensors of images with a sentence about their origin."""

from lae_fast.data.datasets import DATASETS
from lae_fast.data.loading import BINARIZATIONS, from_images, load
from lae_fast.data.minibatches import binarize, pixels, shuffled
from lae_fast.data.splits import DataError, Dataset, Source, Split

__all__ = [
    "BINARIZATIONS",
    "DATASETS",
    "DataError",
    "Dataset",
    "Source",
    "Split",
    "binarize",
    "from_images",
    "load",
    "pixels",
    "shuffled",
]
