"""Data sets that torchvision downloads, compares with checksums and reads: CIFAR-10, SVHN and CelebA."""

from __future__ import annotations

import importlib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lae_fast import checks
from lae_fast.data.decoding import decoded
from lae_fast.data.images import as_split
from lae_fast.data.splits import DataError, Source, Split

TIMEOUT = 20  # seconds without an answer, per file
# Each torchvision works with exactly one torch: named, the one that is there stays.
EXTRA = f"pip install 'lae_fast[data]' torch=={torch.__version__.partition('+')[0]}"


@contextmanager
def downloading(name: str, root: Path) -> Iterator[None]:
    """Within: a download that ends when nobody answers, and whose failure names the data set.

    Raises:
        DataError: torchvision, or what it needs, is missing or does not fit; there is no network; files are damaged.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    except ImportError as error:
        raise DataError(
            f"{name} is not in {root} and cannot be downloaded: {checks.reason(error)}; {EXTRA} installs what it takes"
        ) from error
    except Exception as error:  # what fetches and unpacks for torchvision has errors of its own, as gdown
        raise DataError(
            f"{name} is not in {root} and cannot be downloaded: {checks.reason(error)}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def datasets() -> Any:
    """torchvision's data sets. The import fails if torchvision does not fit this torch."""
    return importlib.import_module("torchvision.datasets")


def _open(name: str, root: Path, kind: str, *options: dict[str, Any]) -> list[Any]:
    """torchvision's data set of that class, once for each of the options; it is downloaded where it is not there yet."""
    with downloading(name, root):
        return [getattr(datasets(), kind)(root, download=True, **given) for given in options]


def cifar10(root: Path) -> Source:
    """CIFAR-10, RGB, 32 x 32: 50,000 training and 10,000 test images of 10 classes."""
    train, test = _open("CIFAR-10", root, "CIFAR10", {"train": True}, {"train": False})
    return Source(
        f"CIFAR-10 in {root}",
        as_split(train.data, train.targets),
        as_split(test.data, test.targets),
        n_validation=5000,
        classes=tuple(train.classes),
    )


def svhn(root: Path) -> Source:
    """SVHN, RGB, 32 x 32: 73,257 training and 26,032 test images of 10 digits."""
    train, test = _open("SVHN", root, "SVHN", {"split": "train"}, {"split": "test"})
    return Source(
        f"SVHN in {root}",
        as_split(train.data, train.labels),
        as_split(test.data, test.labels),
        n_validation=5000,
    )


SIDE = 64  # of CelebA's images


def celeba(root: Path) -> Source:
    """CelebA, RGB, 64 x 64, its own 162,770 training, 19,867 validation and 19,962 test images; no labels.

    The shorter side (178 pixels) is resized to 64 and the centre cut out, as the code of the LAE paper does. The images lie in
    memory as bytes, 2.5 GB; they are read anew each time, by all cores.
    """
    options: list[dict[str, Any]] = [{"split": s, "target_type": []} for s in ("train", "valid", "test")]
    train, validation, test = _open("CelebA", root, "CelebA", *options)
    from torchvision.transforms import CenterCrop, Compose, Resize

    small = Compose([Resize(SIDE), CenterCrop(SIDE)])
    both: torch.utils.data.ConcatDataset[Any] = torch.utils.data.ConcatDataset([train, validation])
    return Source(
        f"CelebA in {root}, {SIDE} x {SIDE}",
        _read("CelebA", both, small),
        _read("CelebA", test, small),
        n_validation=len(validation),
    )


def _read(name: str, pictures: Any, small: Callable[[Any], Any]) -> Split:
    def read(i: int) -> np.ndarray:
        return np.asarray(small(pictures[i][0]).convert("RGB")).transpose(2, 0, 1)

    return Split(torch.from_numpy(decoded(name, len(pictures), (3, SIDE, SIDE), read)))
