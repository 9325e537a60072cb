"""IDX, the file format of MNIST: finding the four files, and reading arrays of unsigned bytes."""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from lae_fast.data.splits import DataError

MOST = 2**31  # bytes of a file: fifty times MNIST
CURE = "Delete it to have it fetched anew"


def read(path: Path, n_axes: int) -> np.ndarray:
    """An array of unsigned bytes in the IDX format of MNIST, gzipped or not. Never takes more memory than its header says.

    Raises:
        DataError: the file cannot be read, has another format, or is cut short.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            return _read(file, path, n_axes)
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise DataError(f"{path} cannot be read: {str(error) or type(error).__name__}. {CURE}") from error


def _read(file: gzip.GzipFile | io.BufferedReader, path: Path, n_axes: int) -> np.ndarray:
    start = file.read(4)
    if start[:3] != b"\0\0\x08" or len(start) < 4:
        raise DataError(f"{path} is not an IDX file of unsigned bytes. {CURE}")
    if start[3] != n_axes:
        raise DataError(f"{path} holds an array of {start[3]} axes; expected {n_axes}. {CURE}")
    sizes = file.read(4 * n_axes)
    if len(sizes) < 4 * n_axes:
        raise DataError(f"{path} holds {4 + len(sizes)} bytes, less than its header. {CURE}")
    shape = struct.unpack(f">{n_axes}I", sizes)
    n, header = math.prod(shape), 4 + 4 * n_axes
    if n > MOST:
        raise DataError(f"{path} says that it holds {n} bytes; expected at most {MOST}. {CURE}")
    there = path.stat().st_size
    most = (
        1100 * there if path.suffix == ".gz" else there - header
    )  # gzip makes nothing smaller than a 1,030th
    content = file.read(n + 1) if n <= most else b""
    if len(content) != n:
        held = header + len(content) if path.suffix == ".gz" else there
        raise DataError(f"{path} holds {held} bytes; expected {header + n}. {CURE}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _names(name: str) -> tuple[str, ...]:
    """What a file is called: at its origin, and on Kaggle."""
    variants = name, name.replace("-idx", ".idx")
    return *variants, *(f"{v}.gz" for v in variants)


def find(folder: Path, train: str = "train", test: str = "t10k") -> dict[str, tuple[Path, Path]] | None:
    """The four IDX files in `folder`, images and labels of each split, or None when any is missing.

    Args:
        train, test: what the names of the files begin with.
    """
    found = {}
    for split, start in (("train", train), ("test", test)):
        names = f"{start}-images-idx3-ubyte", f"{start}-labels-idx1-ubyte"
        images, labels = (
            next((folder / v for v in _names(n) if os.path.isfile(folder / v)), None) for n in names
        )
        if images is None or labels is None:
            return None
        found[split] = images, labels
    return found
