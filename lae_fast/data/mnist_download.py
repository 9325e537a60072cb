"""MNIST from the network: its four files, from a mirror, compared with the hashes of the originals. Nothing but Python is needed."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from lae_fast import checks, progress
from lae_fast.data.splits import DataError

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",  # torchvision's
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
FILES = {  # size in bytes, SHA-256
    "train-images-idx3-ubyte.gz": (
        9_912_422,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    "train-labels-idx1-ubyte.gz": (
        28_881,
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    "t10k-images-idx3-ubyte.gz": (
        1_648_877,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        4_542,
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
}
TIMEOUT = 20  # seconds without an answer


def download(folder: Path) -> None:
    """Put MNIST's files into a folder, which is made when they are there: all of them, or none.

    Raises:
        DataError: no mirror has given a file; the message has the reasons.
        OSError: the folder cannot be written to.
    """
    total = sum(size for size, _ in FILES.values())
    with progress.bar(total=total, desc="MNIST", unit="B", unit_scale=True) as bar:
        contents = {name: _fetched(name, bar.update) for name in FILES}
    folder.mkdir(parents=True, exist_ok=True)
    with private(folder) as place:
        for name, content in contents.items():
            (place / name).write_bytes(content)
        for name in FILES:
            (place / name).replace(folder / name)


@contextlib.contextmanager
def private(folder: Path) -> Iterator[Path]:
    """A folder for a download inside `folder`; what killed ones have left there, a day ago and more, goes."""
    for left in folder.glob(".download.*"):
        with contextlib.suppress(FileNotFoundError):  # somebody else sweeps, too
            if left.stat().st_mtime < time.time() - 86400:
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".download.", dir=folder) as place:
        yield Path(place)


def _fetched(name: str, tell: Callable[[int], object]) -> bytes:
    """A file's content from the first mirror that has it whole; `tell` hears of every piece."""
    reasons = []
    for mirror in MIRRORS:
        content = bytearray()
        try:
            with urllib.request.urlopen(mirror + name, timeout=TIMEOUT) as answer:
                while len(content) <= FILES[name][0] and (piece := answer.read(2**16)):
                    content += piece
                    tell(len(piece))
            if (len(content), hashlib.sha256(content).hexdigest()) == FILES[name]:
                return bytes(content)
            reason = "is another file, or cut"
        except (OSError, HTTPException) as error:
            reason = checks.reason(error)
        tell(-len(content))
        reasons.append(f"{name} at {urlsplit(mirror).netloc}: {reason}")
    raise DataError("; ".join(reasons))
