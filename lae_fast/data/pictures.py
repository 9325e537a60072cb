"""What PIL's pictures are read as: 8 bits, grey or RGB. PIL itself is imported by who opens them."""

from __future__ import annotations

from typing import Any

import numpy as np

GREY, COLOUR = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # PIL's modes of 8 bits
CUT = (
    ";16B",
    ";16L",
    ";16N",
)  # the last letters of PIL's codes of 16 bits a channel, of which it would read 8


def mode(picture: Any, name: str) -> str:
    """L or RGB: what a picture can be read as. Of a file, the header is enough.

    Raises:
        ValueError: its pixels are something else.
    """
    if picture.mode not in GREY + COLOUR:
        raise ValueError(f"{name} has pixels of mode {picture.mode}; expected 8 bits, grey or RGB")
    if _is_cut(picture):
        raise ValueError(f"{name} has 16 bits a channel; expected 8 bits, grey or RGB")
    return "L" if picture.mode in GREY else "RGB"


def _is_cut(picture: Any) -> bool:
    """Whether a file has more bits a channel than the 8 that PIL would read: PNG by its code, TIFF by its tag BitsPerSample, PPM by
    its greatest value."""
    if max(getattr(picture, "tag_v2", {}).get(258, (1,))) > 8:
        return True
    for decoder, _, _, args in getattr(picture, "tile", ()):
        code, *more = args if isinstance(args, tuple) else (args,)
        if str(code).endswith(CUT) or (decoder in ("ppm", "ppm_plain") and more and more[0] > 255):
            return True
    return False


def pixels(picture: Any, mode: str, name: str) -> np.ndarray:
    """uint8 [h, w] in mode L, [h, w, 3] in mode RGB.

    Raises:
        ValueError: pixels are transparent.
    """
    if "A" in picture.getbands() or "transparency" in picture.info:
        lowest = picture.convert("RGBA").getchannel("A").getextrema()[0]
        if lowest < 255:
            raise ValueError(f"{name} has transparent pixels; expected none")
    return np.asarray(picture.convert(mode))
