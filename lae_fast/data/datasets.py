"""The data sets by name. A new one is a function here and an entry in `DATASETS`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lae_fast.data import idx, mnist_download
from lae_fast.data.images import as_split
from lae_fast.data.splits import DataError, Source, Split
from lae_fast.data.torchvision_sets import celeba, cifar10, datasets, downloading, svhn

N_CLASSES = 10  # of MNIST and its kin, and of the digits


class IDXSet(NamedTuple):
    """A data set in MNIST's format.

    Attributes:
        title: its name for people.
        kind: torchvision's class, and the folder that torchvision puts it in.
        prefixes: what names of files begin with: those of the training images, and of the test images.
        options: what torchvision's class takes beside a folder.
        is_transposed: whether rows of the files are columns of the images.
    """

    title: str
    kind: str
    prefixes: tuple[str, str] = ("train", "t10k")
    options: tuple[tuple[str, str], ...] = ()
    is_transposed: bool = False


MNIST = IDXSet("MNIST", "MNIST")
IDX_SETS = {
    "mnist": MNIST,
    "fashion-mnist": IDXSet("Fashion-MNIST", "FashionMNIST"),
    "kmnist": IDXSet("KMNIST", "KMNIST"),
    "emnist-digits": IDXSet(
        "EMNIST digits",
        "EMNIST",
        ("emnist-digits-train", "emnist-digits-test"),
        (("split", "digits"),),
        is_transposed=True,
    ),
}


def _folders(what: IDXSet, root: Path) -> tuple[Path, ...]:
    """Where the files may lie: as torchvision has them, also if `root` is one of its own folders."""
    places = root / what.kind / "raw", root / "raw", root / what.kind, root
    return tuple(place for place in places if _kind(place) == what.kind)


def _kind(folder: Path) -> str:
    """Whose files are expected in a folder, as those of MNIST, Fashion-MNIST and KMNIST are called the same: by the nearest name that
    is one of torchvision's, wherever one stands; without such a name, MNIST's."""
    kinds = {what.kind for what in IDX_SETS.values()}
    return next((name for name in reversed(Path(os.path.abspath(folder)).parts) if name in kinds), MNIST.kind)


def _find(what: IDXSet, root: Path) -> dict[str, tuple[Path, Path]] | None:
    return next(filter(None, (idx.find(p, *what.prefixes) for p in _folders(what, root))), None)


def has_mnist(root: Path) -> bool:
    """Whether MNIST's files lie in `root`, intact or damaged."""
    return _find(MNIST, root) is not None


def _download(what: IDXSet, root: Path) -> None:
    """MNIST by this package's own means. Else let torchvision download into a folder of its own, and move the files when they are
    whole: it takes cut ones for whole."""
    raw = _folders(what, root)[0]
    with downloading(what.title, root):
        if what is MNIST:
            return mnist_download.download(raw)
        root.mkdir(parents=True, exist_ok=True)
        with mnist_download.private(root) as place:
            getattr(datasets(), what.kind)(root=str(place), download=True, **dict(what.options))
            files = _find(what, place)
            if files is None:
                raise RuntimeError(f"torchvision left no {what.title} files")
            _read(what, files)
            raw.mkdir(parents=True, exist_ok=True)
            for path in (path for paths in files.values() for path in paths):
                path.replace(raw / path.name)


def idx_set(what: IDXSet, root: Path) -> Source:
    """A data set from IDX files in `root`; if there are none, they are downloaded.

    Raises:
        DataError: the files are damaged, or they are missing and cannot be downloaded.
    """
    files, source = _find(what, root), f"{what.title}, found in {root}"
    if files is None:
        _download(what, root)
        files, source = _find(what, root), f"{what.title}, downloaded to {root}"
    if files is None:
        raise DataError(f"{what.title} was downloaded to {root}, and is there no more")
    train, test = _read(what, files)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(f"training and test images in {root} differ in size")
    return Source(source, train, test, n_validation=5000)


def _read(what: IDXSet, files: dict[str, tuple[Path, Path]]) -> list[Split]:
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
        try:
            splits.append(as_split(images.transpose(0, 2, 1) if what.is_transposed else images, labels))
        except ValueError as error:
            raise DataError(f"{image_path}: {error}") from error
    return splits


def digits(root: Path) -> Source:
    """scikit-learn's bundled digits, 17 grey levels; `root` is not read."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(f"the digits are scikit-learn's: {error}; expected it installed") from error
    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    n_test = 360
    return Source(
        "scikit-learn's bundled digits (1,797 real images of 8 x 8)",
        as_split(images[:-n_test], bunch.target[:-n_test]),
        as_split(images[-n_test:], bunch.target[-n_test:]),
        n_validation=200,
    )


DATASETS: dict[str, Callable[[Path], Source]] = {
    **{name: functools.partial(idx_set, what) for name, what in IDX_SETS.items()},
    "cifar10": cifar10,
    "svhn": svhn,
    "celeba": celeba,
    "digits": digits,
}
