"""How images become pictures, and pictures PNG in the page's own text: what every browser shows, and the standard library writes."""

from __future__ import annotations

import base64
import itertools
import math
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_BYTES = (
    28_000  # of a picture, before compression: 96 x 96 in colour; 184 of them make 7 MB of page at most
)
_COLOURS = {1: 0, 3: 2}  # channels: PNG's name for grey and for RGB


class Pixels(NamedTuple):
    """How images become pictures."""

    shape: tuple[int, int, int]  # channels, height, width of an image
    low: float  # the value shown as black
    high: float  # the value shown as white

    @classmethod
    def of(cls, images: Tensor, own: Sequence[int] = ()) -> Pixels:
        """Of test images [n, c, h, w], or flat [n, nx]: uint8, or floating point. Flat ones are of the model's own shape, where
        that has two or three axes; else they are square."""
        is_own = 2 <= len(own) <= 3 and math.prod(own) == images[0].numel()
        axes = own if is_own else images.shape[1:]
        if 2 <= len(axes) <= 3:
            channels, height, width = (1, *axes)[-3:]
            shape = channels, height, width
        else:
            nx = math.prod(images.shape[1:])
            side = math.isqrt(nx)
            shape = (1, side, side) if side * side == nx else (1, 1, nx)
        if images.dtype == torch.uint8:
            return cls(shape, 0.0, 1.0)
        low, high = (v.item() for v in images.float().aminmax())
        return cls(shape, min(low, 0.0), max(high, 1.0))

    def pictures(self, images: Tensor) -> Tensor:
        """Images, uint8 or floating point, n of them -> uint8 [n, 1 or 3, h, w]; of two channels, or four, the first is shown.
        Large ones are shrunk by a whole factor."""
        images = images.reshape(len(images), *self.shape)
        if images.dtype != torch.uint8:
            scaled = (images.float() - self.low) / (self.high - self.low)
            images = (scaled.clamp(0, 1) * 255).round().to(torch.uint8)
        return _shrunk(images if self.shape[0] == 3 else images[:, :1])


def _shrunk(pictures: Tensor) -> Tensor:
    """Pictures [n, c, h, w], uint8, as means of the smallest square blocks with which each takes at most MOST_BYTES."""
    channels, *sides = pictures.shape[1:]
    block = next(
        k for k in itertools.count(1) if channels * math.prod(-(-side // k) for side in sides) <= MOST_BYTES
    )
    if block == 1:
        return pictures
    size = [min(block, side) for side in sides]
    means = [
        F.avg_pool2d(picture.float(), size, ceil_mode=True) for picture in pictures
    ]  # one by one: n may be large
    return torch.stack(means).round().to(torch.uint8)


def png(pixels: Tensor) -> bytes:
    """A picture [c, h, w], uint8, grey or RGB, as a PNG file."""
    channels, height, width = pixels.shape
    rows = pixels.permute(1, 2, 0).reshape(height, width * channels).cpu().numpy()
    filtered = b"".join(b"\0" + row.tobytes() for row in rows)  # 0: each row as it is
    header = struct.pack(">2I5B", width, height, 8, _COLOURS[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def data_uri(pixels: Tensor) -> str:
    """The same as an address that holds the file itself."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"
