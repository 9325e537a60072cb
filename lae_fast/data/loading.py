"""`load` and `from_images`: data sets by name, from files or from memory, split into training, validation and test images,
grey or binary.

No data set is substituted silently: `auto` falls back to the digits, and the description says so.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from lae_fast import checks
from lae_fast.data import files
from lae_fast.data.datasets import DATASETS, has_mnist
from lae_fast.data.images import as_split
from lae_fast.data.minibatches import binarize
from lae_fast.data.splits import DataError, Dataset, Source, Split, parted

BINARIZATIONS = ("none", "fixed", "dynamic")


def load(
    name: str | Path = "auto",
    root: str | Path = "~/.cache/lae_fast",
    *,
    validation: int | None = None,
    binarization: str = "none",
) -> Dataset:
    """Read a data set.

    Args:
        name: one of `DATASETS`; or auto: MNIST, or the digits if MNIST is missing and cannot be downloaded; or the path of images
            of your own, a folder or a file: see `files.read`.
        root: the folder of data sets, also for downloads, in torchvision's layout.
        validation: number of validation images, the last of the training set; default: the data set's own number (MNIST
            5,000, digits 200; of your own images a tenth). Validation images of your own come last in it: a smaller number takes
            some of them, of all classes, and the others train; a larger one takes training images, too.
        binarization: none: as they are; fixed: every image is drawn once, always with the same seed; dynamic: as fixed, but
            the training images stay grey, so that `binarize` can draw them again at each use.

    Example:
        >>> from lae_fast import data
        >>> data.load("digits").shape
        (1, 8, 8)

    Raises:
        ValueError: the name or the binarization is unknown, the validation set leaves no training images, or images that are
            not grey are to be binarized.
        TypeError: root is no path, or validation no whole number.
        DataError: the files are damaged, or they are missing and cannot be downloaded.
    """
    _check(validation, binarization)
    if isinstance(name, Path) or (
        isinstance(name, str) and name not in ("auto", *DATASETS) and os.path.exists(os.path.expanduser(name))
    ):
        path = checks.path("name", name).absolute()
        return _dataset(path.name, files.read(path, validation), validation, binarization)
    try:
        checks.choice("name", name, ("auto", *DATASETS))
    except ValueError as error:
        raise ValueError(f"{error}, or the path of a folder or file of images") from None
    chosen = "mnist" if name == "auto" else name
    root = (
        Path() if chosen == "digits" else checks.path("root (--data-dir)", root)
    )  # digits need no home folder
    try:
        source = DATASETS[chosen](root)
    except DataError as error:
        # Damaged files are an error; only their absence is a reason to take something else.
        if name != "auto" or has_mnist(root):
            raise
        chosen, source = "digits", DATASETS["digits"](root)
        source = source._replace(description=f"{source.description}, because {error}")
    return _dataset(chosen, source, validation, binarization)


def from_images(
    images: Any,
    labels: Any = None,
    *,
    test: Any = None,
    test_labels: Any = None,
    validation: int | None = None,
    binarization: str = "none",
) -> Dataset:
    """A data set of images in memory.

    They are put into an order that is always the same for as many images. A tenth of them are test images, if none are given, at
    least 10 and at most 10,000; a tenth of the rest, at most 5,000, are validation images.

    Args:
        images: a tensor or array, uint8 in 0..255, bool or floating point: [n, h, w], [n, c, h, w] or [n, h, w, c], grey or RGB, or
            flat grey squares [n, nx]. Or a `Split` of them; or any `torch.utils.data.Dataset` or sequence of such images, tensors,
            arrays or PIL's, or of pairs (image, label). Floating point values stay what they are.
        labels: whole numbers [n]; default: those of the split or the pairs, if there are any.
        test, test_labels: the same for test images.
        validation, binarization: as in `load`.

    Example:
        >>> from lae_fast import data
        >>> data.from_images(torch.rand(100, 3, 32, 32)).train.images.shape
        torch.Size([81, 3, 32, 32])

    Raises:
        TypeError, ValueError: images or labels are something else, images differ in size, a value is not finite, bytes are 0 and 1
            alone, there are fewer than 20 images, or as in `load`.
    """
    _check(validation, binarization)
    if test is None and test_labels is not None:
        raise ValueError("test_labels are given without test images")
    train = as_split(images, labels)
    own_test = None if test is None else as_split(test, test_labels, "test images")
    c, h, w = train.images.shape[1:]
    what = f"{len(train.images):,} images from memory ({c} x {h} x {w})"
    return _dataset("images", parted(what, train, test=own_test), validation, binarization)


def _check(validation: int | None, binarization: str) -> None:
    checks.choice("binarization", binarization, BINARIZATIONS)
    if validation is not None:
        checks.count("validation", validation, least=0)


def _dataset(name: str, source: Source, validation: int | None, binarization: str) -> Dataset:
    """A source with its validation images split off, and binarized."""
    train, test = source.train, source.test
    n_validation = source.n_validation if validation is None else validation
    n_train = len(train.images) - n_validation
    if n_train < 1:
        raise ValueError(f"validation is {n_validation}; expected 0 to {len(train.images) - 1} for {name}")
    splits = [train.at(slice(n_train)), train.at(slice(n_train, None)), test]
    if binarization != "none":
        generator = torch.Generator().manual_seed(0)
        drawn = [_binary(split, binarization, generator) for split in splits]
        splits = [splits[0] if binarization == "dynamic" else drawn[0], *drawn[1:]]
    train, rest, test = splits
    return Dataset(name, source.description, train, rest, test, source.classes, binarization)


def _binary(split: Split, binarization: str, generator: torch.Generator) -> Split:
    images = split.images
    if images.shape[1] != 1:
        raise ValueError(
            f"binarization is {binarization}, and images have {images.shape[1]} channels; expected grey ones, or none"
        )
    if images.is_floating_point() and len(images) and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"binarization is {binarization}, and images have values from {images.min():g} to {images.max():g}; expected all in "
            "[0, 1], or none"
        )
    return split._replace(images=binarize(images, generator))
