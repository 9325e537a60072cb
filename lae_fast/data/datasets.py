"""The data sets by name. A new one is a function here and an entry in `DATASETS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lae_fast.data import idx, mnist_download
from lae_fast.data.idx import DataError

N_CLASSES = 10  # of each data set here


class Split(NamedTuple):
    images: Tensor  # [N, nx] uint8
    labels: Tensor  # [N] int64


class Source(NamedTuple):
    """A data set as read, before validation images are split off."""

    description: str  # content and origin, for people and records
    train: Split
    test: Split
    n_validation: int  # default number of validation images, the last of the training images


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64)))


def has_mnist(root: Path) -> bool:
    """Whether MNIST's files lie in `root`, intact or damaged."""
    return any(map(idx.find, _folders(root)))


def _folders(root: Path) -> tuple[Path, ...]:
    """Where the files may lie: as torchvision has them, also if `root` is one of its own folders."""
    return root / "MNIST" / "raw", root / "raw", root / "MNIST", root


def mnist(root: Path) -> Source:
    """MNIST from IDX files in `root`; if there are none, they are downloaded.

    Raises:
        DataError: the files are damaged, or they are missing and cannot be downloaded.
    """
    files = next(filter(None, map(idx.find, _folders(root))), None)
    source = f"MNIST, found in {root}"
    if files is None:
        try:
            mnist_download.download(_folders(root)[0])
        except (DataError, OSError) as error:
            raise DataError(f"MNIST is not in {root} and cannot be downloaded: {error}") from error
        files, source = idx.find(_folders(root)[0]), f"MNIST, downloaded to {root}"
    train, test = _read(files)
    if train.images.shape[1] != test.images.shape[1]:
        raise DataError(f"training and test images in {root} differ in size")
    return Source(source, train, test, n_validation=5000)


def _read(files: dict[str, tuple[Path, Path]]) -> list[Split]:
    """Training and test images with their labels.

    Raises:
        DataError: a file is damaged, or two do not belong together.
    """
    splits = []
    for split, (image_path, label_path) in files.items():
        images, labels = idx.read(image_path, n_axes=3), idx.read(label_path, n_axes=1)
        if labels.shape != images.shape[:1]:
            raise DataError(
                f"{split}: images {images.shape} and labels {labels.shape} do not belong together: "
                f"{image_path}, {label_path}"
            )
        if images.size == 0 or images.shape[1] != images.shape[2]:
            raise DataError(f"{image_path}: images are {images.shape}; expected square ones")
        if labels.max() >= N_CLASSES:
            raise DataError(f"{label_path} holds the label {labels.max()}; expected 0 to {N_CLASSES - 1}")
        splits.append(_split(images.reshape(len(images), -1), labels))
    return splits


def digits(root: Path) -> Source:
    """scikit-learn's bundled digits, 17 grey levels; `root` is not read."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.data * (255 / 16)).astype(np.uint8)
    n_test = 360
    return Source(
        "scikit-learn's bundled digits (1,797 real images of 8 x 8)",
        _split(images[:-n_test], bunch.target[:-n_test]),
        _split(images[-n_test:], bunch.target[-n_test:]),
        n_validation=200,
    )


DATASETS: dict[str, Callable[[Path], Source]] = {"mnist": mnist, "digits": digits}
