"""What a data set is: training, validation and test images with their labels, and a sentence about their origin."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from lae_fast import checks


class DataError(RuntimeError):
    """A data set cannot be found or read; the message names the data set or file, and the reason.

    Example:
        >>> import tempfile
        >>> from lae_fast import data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     try:
        ...         data.load(folder)
        ...     except data.DataError as error:
        ...         print(str(error).replace(folder, "folder").partition(";")[0])
        folder holds no pictures
    """


class Split(NamedTuple):
    """Images with their labels: a part of a data set.

    Example:
        >>> from lae_fast import data
        >>> split = data.Split(torch.zeros(10, 1, 8, 8), torch.arange(10))
        >>> split.at(slice(2, 4)).labels
        tensor([2, 3])
    """

    images: Tensor  # [N, c, h, w], uint8 in 0..255 or float32
    labels: Tensor | None = None  # [N] int64; None: there are none

    def at(self, index: Tensor | slice) -> Split:
        """The images of an index, with their labels."""
        return Split(self.images[index], None if self.labels is None else self.labels[index])

    def to(self, device: torch.device) -> Split:
        """The same on this device."""
        return Split(self.images.to(device), None if self.labels is None else self.labels.to(device))


class Source(NamedTuple):
    """A data set as read, before validation images are split off.

    Example:
        >>> from lae_fast import data
        >>> source = data.DATASETS["digits"](None)  # the function reads a folder of files, which these do not need
        >>> source.n_validation, source.train.images.shape
        (200, torch.Size([1437, 1, 8, 8]))
    """

    description: str  # content and origin, for people and records
    train: Split
    test: Split
    n_validation: int  # default number of validation images, the last of the training images
    classes: tuple[str, ...] | None = None  # by label, where the classes have names


class Dataset(NamedTuple):
    """Training, validation and test images under a name, with a sentence about their origin.

    Example:
        >>> from lae_fast import data
        >>> digits = data.load("digits")
        >>> digits.shape, [len(split.images) for split in (digits.train, digits.validation, digits.test)]
        ((1, 8, 8), [1237, 200, 360])
    """

    name: str
    source: str  # content and origin, for people and records
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...] | None = None  # by label, where the classes have names
    binarization: str = "none"  # dynamic: training images are grey, for `binarize` to draw them at each use

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        c, h, w = self.train.images.shape[1:]
        return c, h, w

    def fingerprint(self) -> str:
        """A hash of all images and labels: other data have another."""
        found = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            for t in split:
                found.update(f"{_described(t)} ".encode())
                if t is not None:
                    found.update(t.cpu().contiguous().numpy().data)
        return found.hexdigest()


def _described(t: Tensor | None) -> str:
    """Shape and type; grey squares [N, 1, side, side] as [N, side^2], the shape that runs of old have hashed."""
    if t is None:
        return "none"
    is_grey_square = t.dim() == 4 and t.shape[1] == 1 and t.shape[2] == t.shape[3]
    shape = [t.shape[0], t.shape[2] ** 2] if is_grey_square else list(t.shape)
    return f"{shape} {t.dtype}"


LEAST = 20  # images that can be parted
MOST_TEST, MOST_VALIDATION = 10_000, 5_000  # images that are split off, as MNIST has them


def parted(
    description: str,
    train: Split,
    validation: Split | None = None,
    test: Split | None = None,
    *,
    n_validation: int | None = None,
) -> Source:
    """A source of images that come in any order, by class perhaps. What is missing is split off the training images, a tenth
    each (at least 10 test images, and as many as MNIST has at most), after they have been put into an order that is always the
    same. So are test images that are given: the first of them stand for all; and validation images that are given, if
    only `n_validation` of them are asked for, the last ones.

    Raises:
        ValueError: there are too few images, or those of two parts differ in shape or type.
    """
    for part in filter(None, (validation, test)):
        if (part.images.shape[1:], part.images.dtype) != (train.images.shape[1:], train.images.dtype):
            raise ValueError(
                f"training images are {checks.describe(train.images)}, others are "
                f"{checks.describe(part.images)}; expected one shape and type"
            )
    n = len(train.images)
    if n < LEAST:
        raise ValueError(f"there are {n} training images; expected at least {LEAST}")
    train = _mixed(train)
    if test is not None:
        test = _mixed(test)
    else:
        n -= min(MOST_TEST, max(LEAST // 2, n // 10))
        train, test = train.at(slice(n)), train.at(slice(n, None))
    if validation is None:
        return Source(description, train, test, min(MOST_VALIDATION, n // 10))
    if n_validation is not None and 0 < n_validation < len(validation.images):
        validation = _mixed(validation)
    images = torch.cat((train.images, validation.images))
    labels = None
    if train.labels is not None and validation.labels is not None:
        labels = torch.cat((train.labels, validation.labels))
    return Source(description, Split(images, labels), test, len(validation.images))


def _mixed(split: Split) -> Split:
    """The same images in an order that their number alone decides."""
    order = torch.randperm(len(split.images), generator=torch.Generator().manual_seed(0), device="cpu")
    return split.at(order)
