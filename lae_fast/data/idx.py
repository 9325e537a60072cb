"""IDX, the file format of MNIST: finding the four files, and reading arrays of unsigned bytes."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class DataError(RuntimeError):
    """A data set cannot be found or read; the message names the data set or file, and the reason."""


def read(path: Path) -> np.ndarray:
    """An array of unsigned bytes in the IDX format of MNIST, gzipped or not.

    Raises:
        DataError: the file cannot be read, has another format, or is cut short.
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


def find(folder: Path) -> dict[str, tuple[Path, Path]] | None:
    """The four IDX files in `folder`, or None when any is missing."""
    found = {}
    for split, names in FILES.items():
        paths = [next((p for p in (folder / n, folder / f"{n}.gz") if p.is_file()), None) for n in names]
        if None in paths:
            return None
        found[split] = tuple(paths)
    return found
