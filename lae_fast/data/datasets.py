"""The data sets by name. A new one is a function here and an entry in `DATASETS`."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lae_fast.data import idx
from lae_fast.data.idx import DataError

DOWNLOAD_TIMEOUT = 20  # seconds without an answer, per file


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


def _download_mnist(root: Path) -> None:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        from torchvision.datasets import MNIST  # the import fails if torchvision does not fit this torch

        MNIST(root=str(root), download=True)
    except (ImportError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())  # on one line
        raise DataError(f"MNIST is not in {root} and cannot be downloaded: {reason}") from error
    finally:
        socket.setdefaulttimeout(timeout)


def has_mnist(root: Path) -> bool:
    """Whether MNIST's files lie in `root`, intact or damaged."""
    return any(map(idx.find, _folders(root)))


def _folders(root: Path) -> tuple[Path, Path]:
    return root / "MNIST" / "raw", root


def mnist(root: Path) -> Source:
    """MNIST from IDX files in `root`; if there are none, torchvision downloads them.

    Raises:
        DataError: the files are damaged, or they are missing and cannot be downloaded.
    """
    files = next(filter(None, map(idx.find, _folders(root))), None)
    source = f"MNIST, found in {root}"
    if files is None:
        _download_mnist(root)
        files, source = idx.find(_folders(root)[0]), f"MNIST, downloaded to {root}"
        if files is None:
            raise DataError(f"torchvision left no MNIST files in {_folders(root)[0]}")
    splits = []
    for split, (image_path, label_path) in files.items():
        images, labels = idx.read(image_path), idx.read(label_path)
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise DataError(
                f"{split}: images {images.shape} and labels {labels.shape} do not belong together"
            )
        if images.size == 0 or images.shape[1] != images.shape[2]:
            raise DataError(f"{split}: images are {images.shape}; expected square ones")
        splits.append(_split(images.reshape(len(images), -1), labels))
    if splits[0].images.shape[1] != splits[1].images.shape[1]:
        raise DataError(f"training and test images in {root} differ in size")
    return Source(source, *splits, n_validation=5000)


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
