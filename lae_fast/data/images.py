"""Images and labels in any common layout -> the one that this package uses: [N, c, h, w] uint8 or float32, [N] int64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from lae_fast import checks
from lae_fast.data import pictures
from lae_fast.data.splits import Split

CHANNELS = (1, 3)  # grey, RGB
EXPECTED = (
    "uint8 in 0..255, bool or floating point, [n, h, w], [n, c, h, w] or [n, h, w, c] with one channel or three, or flat "
    "grey squares [n, nx]"
)


def as_split(images: Any, labels: Any = None, name: str = "images") -> Split:
    """Images, and labels if there are any.

    Args:
        images: a tensor or array of uint8 in 0..255, bool or floating point: [n, h, w], [n, c, h, w], [n, h, w, c] with one
            channel or three, or flat grey squares [n, nx]. Or a `Split` of them; or a `torch.utils.data.Dataset` or sequence
            of such images or of pairs (image, label); an image may be PIL's.
        labels: whole numbers [n]; default: those of a split, or of a data set's pairs if they are whole numbers.
        name: what errors call the images.

    Raises:
        TypeError, ValueError: they are something else, they differ in size, a value is not finite, or bytes are 0 and 1 alone.
    """
    images, own = stacked(images, name)
    labels, found = own if labels is None else labels, _in_layout(name, images)
    return Split(found, None if labels is None else _as_labels(labels, len(found)))


def stacked(images: Any, name: str = "images") -> tuple[Tensor, Tensor | list[int] | None]:
    """Images as `as_split` takes them, in their own layout [n, ...]: uint8 or float32, on the CPU; and their own labels."""
    labels: Tensor | list[int] | None = None
    if isinstance(images, Split):
        found, labels = _tensor(name, images.images), images.labels
    elif isinstance(images, (Tensor, np.ndarray)):
        found = _tensor(name, images)
    else:
        found, labels = _gathered(name, list(images) if isinstance(images, IterableDataset) else images)
    check_levels(name, found)
    return found, labels


def check_levels(name: str, images: Tensor) -> None:
    """Raise a ValueError for bytes 0 and 1: binary images, which would pass for black ones."""
    if images.dtype == torch.uint8 and images.numel() and images.max() == 1:
        raise ValueError(
            f"{name} are {checks.describe(images)} of 0 and 1; expected bytes from 0 to 255, or bool or floating point in "
            "[0, 1]; multiply them by 255, say"
        )


def _tensor(name: str, value: Any) -> Tensor:
    """A tensor or array of pixels: uint8, or float32 with finite values, on the CPU."""
    verb = "are" if name.endswith("s") else "is"
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fb" and value.dtype != np.uint8:
            raise ValueError(f"{name} {verb} {value.dtype} {list(value.shape)}; expected {EXPECTED}")
        with np.errstate(over="ignore"):  # infinity is told below
            native = value.astype(np.float32 if value.dtype.kind == "f" else value.dtype, copy=False)
        value = torch.from_numpy(np.require(native, requirements=["C", "W"]))
    t = checks.tensor(name, value, dtypes=None)
    is_pixels = t.dtype in (torch.uint8, torch.bool) or t.is_floating_point()
    if not is_pixels or t.is_meta:
        raise ValueError(f"{name} {verb} {checks.describe(t)}; expected {EXPECTED}")
    t = t.detach().cpu()
    if t.dtype == torch.bool:
        return t.to(torch.uint8) * 255
    if t.dtype == torch.uint8:
        return t
    t = t.float()
    low, high = (v.item() for v in t.aminmax()) if t.numel() else (0.0, 0.0)
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError(f"values of {name} go from {low:g} to {high:g}; expected finite ones")
    return t


def _in_layout(name: str, t: Tensor) -> Tensor:
    """[n, nx], [n, h, w], [n, c, h, w] or [n, h, w, c] -> [n, c, h, w]."""
    if t.numel():
        if t.dim() == 2 and (side := math.isqrt(t.shape[1])) ** 2 == t.shape[1]:
            return t.reshape(-1, 1, side, side)
        if t.dim() == 3:
            return t[:, None].contiguous()
        if t.dim() == 4:
            is_first, is_last = t.shape[1] in CHANNELS, t.shape[3] in CHANNELS
            if is_first and is_last:
                raise ValueError(
                    f"{name} are {checks.describe(t)}: the channels may be first or last; expected only one of them"
                )
            if is_first or is_last:
                return (t if is_first else t.permute(0, 3, 1, 2)).contiguous()
    raise ValueError(f"{name} are {checks.describe(t)}; expected {EXPECTED}, with n >= 1")


def _as_labels(value: Any, n: int) -> Tensor:
    """Whole numbers [n] or [n, 1] -> [n] int64."""
    expected = f"expected whole numbers [{n}], one for each of the images"
    try:
        if not isinstance(value, Tensor):
            found = np.array(value)
            value = torch.from_numpy(found.astype(found.dtype.newbyteorder("="), copy=False))
        t: Tensor = value.detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"labels are {checks.describe(value)}; {expected}") from None
    is_whole = t.layout == torch.strided and not t.is_floating_point() and not t.is_complex()
    if not is_whole or t.shape not in ((n,), (n, 1)):
        raise ValueError(f"labels are {checks.describe(t)}; {expected}")
    whole = t.reshape(n).to(torch.int64)
    if t.dtype == torch.uint64 and (whole < 0).any():
        raise ValueError(f"labels are {checks.describe(t)}, from 2^63 on; {expected}, below")
    return whole


def _gathered(name: str, items: Sequence[Any]) -> tuple[Tensor, list[int] | None]:
    """The images of a data set or sequence, as they are [n, ...], and their labels if all have a whole number."""
    if isinstance(items, (str, bytes, dict)) or not (
        hasattr(items, "__len__") and hasattr(items, "__getitem__")
    ):
        raise TypeError(
            f"{name} are {checks.describe(items)}; expected a tensor, an array, or a Dataset with a length"
        )
    images, labels, one = None, [], name.removesuffix("s")
    for i in range(len(items)):
        image, label = items[i], None
        if isinstance(image, (tuple, list)) and image:
            image, label = image[0], image[1] if len(image) > 1 else None
        if hasattr(image, "getbands"):  # the method of PIL's
            image = pictures.pixels(image, pictures.mode(image, f"{one} {i}"), f"{one} {i}")
        t = _tensor(f"{one} {i}", image)
        if images is None:
            images = t.new_empty(len(items), *t.shape)
        elif (t.shape, t.dtype) != (images.shape[1:], images.dtype):
            raise ValueError(
                f"{one} {i} is {checks.describe(t)}, {one} 0 {checks.describe(images[0])}; expected one size and type"
            )
        images[i] = t
        labels.append(_whole(label))
    if images is None:
        raise ValueError(f"{name} are {checks.describe(items)}; expected at least one")
    whole = [label for label in labels if label is not None]
    return images, whole if len(whole) == len(labels) else None


def _whole(label: Any) -> int | None:
    """A label as a whole number; None if it is something else."""
    if isinstance(label, Tensor):
        is_whole = label.numel() == 1 and not (
            label.is_floating_point() or label.is_complex() or label.is_meta
        )
        return int(label.item()) if is_whole else None
    try:
        found = np.asarray(label)
    except ValueError:  # a list of lists of several lengths
        return None
    return int(found.item()) if found.size == 1 and found.dtype.kind in "biu" else None
