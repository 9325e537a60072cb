"""Data sets as uint8 tensors, with a sentence on where they came from.

MNIST is read from IDX files on disk; where there are none, torchvision downloads them; where that fails too,
`auto` falls back to scikit-learn's bundled digits and says so. Nothing is ever substituted silently.
"""

from __future__ import annotations

import gzip
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

DATASETS = ("auto", "mnist", "digits")
BINARIZATIONS = ("none", "fixed", "dynamic")
DOWNLOAD_TIMEOUT = 20  # seconds without an answer, per file
_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class DataError(RuntimeError):
    """A data set that cannot be had or read; the message says which and why."""


class Split(NamedTuple):
    images: Tensor  # [N, nx] uint8
    labels: Tensor  # [N] int64


class Dataset(NamedTuple):
    name: str
    source: str  # where it came from, for people and records
    train: Split
    validation: Split
    test: Split


def _read_idx(path: Path) -> np.ndarray:
    """An array of unsigned bytes in the IDX format of MNIST, gzipped or not.

    Raises:
        DataError: not such a file, or cut short.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{path} is not an IDX file of unsigned bytes")
    n_axes = content[3]
    header = 4 + 4 * n_axes
    shape = struct.unpack(f">{n_axes}I", content[4:header]) if len(content) >= header else ()
    expected = header + int(np.prod(shape, dtype=np.int64))
    if not shape or len(content) != expected:
        raise DataError(
            f"{path} holds {len(content)} bytes; expected {expected}. Delete it to have it fetched anew"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _find_idx(folder: Path) -> dict[str, tuple[Path, Path]] | None:
    """The four IDX files in `folder`, or None when any is missing."""
    found = {}
    for split, names in _IDX_FILES.items():
        paths = [next((p for p in (folder / n, folder / f"{n}.gz") if p.is_file()), None) for n in names]
        if None in paths:
            return None
        found[split] = tuple(paths)
    return found


def _download(root: Path) -> None:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        from torchvision.datasets import MNIST  # beside a torch it does not fit, the import itself fails

        MNIST(root=str(root), download=True)
    except (ImportError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())  # on one line
        raise DataError(f"MNIST is not in {root} and cannot be downloaded: {reason}") from error
    finally:
        socket.setdefaulttimeout(timeout)


def _mnist(root: Path) -> tuple[str, Split, Split]:
    folders = (root / "MNIST" / "raw", root)
    files = next(filter(None, map(_find_idx, folders)), None)
    source = f"MNIST, found in {root}"
    if files is None:
        _download(root)
        files, source = _find_idx(folders[0]), f"MNIST, downloaded to {root}"
        if files is None:
            raise DataError(f"torchvision left no MNIST files in {folders[0]}")
    splits = []
    for split, (image_path, label_path) in files.items():
        images, labels = _read_idx(image_path), _read_idx(label_path)
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise DataError(
                f"{split}: images {images.shape} and labels {labels.shape} do not belong together"
            )
        if images.size == 0 or images.shape[1] != images.shape[2]:
            raise DataError(f"{split}: images are {images.shape}; expected square ones")
        splits.append(_split(images.reshape(len(images), -1), labels))
    if splits[0].images.shape[1] != splits[1].images.shape[1]:
        raise DataError(f"training and test images in {root} differ in size")
    return source, *splits


def _digits() -> tuple[str, Split, Split]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.data * (255 / 16)).astype(np.uint8)  # 17 grey levels
    n_test = 360
    source = "scikit-learn's bundled digits (1,797 real images of 8 x 8)"
    return (
        source,
        _split(images[:-n_test], bunch.target[:-n_test]),
        _split(images[-n_test:], bunch.target[-n_test:]),
    )


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64)))


def binarize(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One Bernoulli draw per pixel: uint8 in 0..255 -> uint8, 0 or 255."""
    draw = torch.rand(images.shape, generator=generator, device=images.device)
    return (draw * 255 < images).to(torch.uint8) * 255


def shuffled(n: int, size: int, seed: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """One epoch of minibatches: indices [size] of n images in an order that the seed decides; the ragged rest is dropped."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(device)
    return iter(order[: n // size * size].split(size))


def load(
    name: str = "auto",
    root: str | Path = "~/.cache/lae_fast",
    *,
    validation: int | None = None,
    binarization: str = "none",
) -> Dataset:
    """Read a data set.

    Args:
        name: mnist; digits; or auto: MNIST, or the digits where it can neither be found nor downloaded.
        root: where MNIST lies or goes, in torchvision's layout.
        validation: how many images of the training set's end validate; default 5,000 (digits: 200).
        binarization: none: grey; fixed: every image drawn once, the same for everybody; dynamic: as fixed, but
            the training images stay grey, for `binarize` to draw anew at each use.

    Raises:
        ValueError: an unknown name, or a validation set that does not leave any training data.
        DataError: the files cannot be had, or are damaged.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset is {name!r}; expected one of {', '.join(DATASETS)}")
    if binarization not in BINARIZATIONS:
        raise ValueError(f"binarize is {binarization!r}; expected one of {', '.join(BINARIZATIONS)}")
    root = Path(root).expanduser()
    chosen = name
    if name == "digits":
        source, train, test = _digits()
    else:
        try:
            source, train, test = _mnist(root)
            chosen = "mnist"
        except DataError as error:
            # Damaged files are an error; only their absence is a reason to take something else.
            if name == "mnist" or _find_idx(root / "MNIST" / "raw") or _find_idx(root):
                raise
            source, train, test = _digits()
            source, chosen = f"{source}, because {error}", "digits"
    if validation is None:
        validation = 5000 if chosen == "mnist" else 200
    n_train = len(train.images) - validation
    if validation < 0 or n_train < 1:
        raise ValueError(f"validation is {validation}; expected 0 to {len(train.images) - 1} for {chosen}")
    splits = [Split(*(t[:n_train] for t in train)), Split(*(t[n_train:] for t in train)), test]
    if binarization != "none":
        generator = torch.Generator().manual_seed(0)
        drawn = [Split(binarize(s.images, generator), s.labels) for s in splits]
        splits = [splits[0] if binarization == "dynamic" else drawn[0], *drawn[1:]]
    return Dataset(chosen, source, *splits)
