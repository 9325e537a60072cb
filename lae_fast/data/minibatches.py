"""Minibatches of images that lie in memory: their order in an epoch, and the binary draw of their pixels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def shuffled(n: int, size: int, seed: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """One epoch of minibatches: indices [size] of n images, in an order that the seed decides; the rest is dropped."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(device)
    return iter(order[: n // size * size].split(size))


def binarize(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One Bernoulli draw per pixel of images [N, nx]: uint8 in 0..255 -> uint8, 0 or 255."""
    draw = torch.rand(images.shape, generator=generator, device=images.device)
    return (draw * 255 < images).to(torch.uint8) * 255
