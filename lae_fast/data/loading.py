"""`load`: a data set by name, split into training, validation and test images, grey or binary.

No data set is substituted silently: `auto` falls back to the digits, and the description says so.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch

from lae_fast import checks
from lae_fast.data.datasets import DATASETS, Split, has_mnist
from lae_fast.data.idx import DataError
from lae_fast.data.minibatches import binarize

BINARIZATIONS = ("none", "fixed", "dynamic")


class Dataset(NamedTuple):
    name: str
    source: str  # content and origin, for people and records
    train: Split
    validation: Split
    test: Split

    def fingerprint(self) -> str:
        """A hash of all images and labels: other data have another."""
        found = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            for t in split:
                found.update(f"{list(t.shape)} {t.dtype} ".encode())
                found.update(t.cpu().contiguous().numpy())
        return found.hexdigest()


def load(
    name: str = "auto",
    root: str | Path = "~/.cache/lae_fast",
    *,
    validation: int | None = None,
    binarization: str = "none",
) -> Dataset:
    """Read a data set.

    Args:
        name: one of `DATASETS`; or auto: MNIST, or the digits if MNIST is missing and cannot be downloaded.
        root: the folder of MNIST, also for the download, in torchvision's layout.
        validation: number of validation images, the last of the training set; default: the data set's own number
            (MNIST 5,000, digits 200).
        binarization: none: grey; fixed: every image is drawn once, always with the same seed; dynamic: as fixed, but
            the training images stay grey, so that `binarize` can draw them again at each use.

    Raises:
        ValueError: the name or the binarization is unknown, or the validation set leaves no training images.
        TypeError: root is no path, or validation no whole number.
        DataError: the files are damaged, or they are missing and cannot be downloaded.
    """
    checks.choice("dataset", name, ("auto", *DATASETS))
    checks.choice("binarize", binarization, BINARIZATIONS)
    if validation is not None:
        checks.count("validation", validation, least=0)
    if not isinstance(root, (str, Path)):
        raise TypeError(f"root is {checks.describe(root)}; expected a path")
    try:
        root = Path(root).expanduser()
    except RuntimeError as error:  # ~name of nobody
        raise ValueError(f"root is {root}; expected a folder: {error}") from error
    chosen = "mnist" if name == "auto" else name
    try:
        source = DATASETS[chosen](root)
    except DataError as error:
        # Damaged files are an error; only their absence is a reason to take something else.
        if name != "auto" or has_mnist(root):
            raise
        chosen, source = "digits", DATASETS["digits"](root)
        source = source._replace(description=f"{source.description}, because {error}")
    train, test = source.train, source.test
    n_validation = source.n_validation if validation is None else validation
    n_train = len(train.images) - n_validation
    if n_train < 1:
        raise ValueError(f"validation is {n_validation}; expected 0 to {len(train.images) - 1} for {chosen}")
    splits = [Split(*(t[:n_train] for t in train)), Split(*(t[n_train:] for t in train)), test]
    if binarization != "none":
        generator = torch.Generator().manual_seed(0)
        drawn = [Split(binarize(s.images, generator), s.labels) for s in splits]
        splits = [splits[0] if binarization == "dynamic" else drawn[0], *drawn[1:]]
    return Dataset(chosen, source.description, *splits)
