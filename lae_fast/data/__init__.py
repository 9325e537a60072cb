"""Data sets as uint8 tensors, with a sentence about their origin."""

from lae_fast.data.datasets import DATASETS, Source, Split
from lae_fast.data.idx import DataError
from lae_fast.data.loading import BINARIZATIONS, Dataset, load
from lae_fast.data.minibatches import binarize, shuffled

__all__ = [
    "BINARIZATIONS",
    "DATASETS",
    "DataError",
    "Dataset",
    "Source",
    "Split",
    "binarize",
    "load",
    "shuffled",
]
