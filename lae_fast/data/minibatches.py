"""Minibatches of images that lie in memory: their order in an epoch, and the binary draw of their pixels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lae_fast import checks


def shuffled(n: int, size: int, seed: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """One epoch of minibatches: indices [size] of n images, in an order that the seed decides; the rest is dropped.

    Raises:
        TypeError, ValueError: n or size is no whole number from 1, the seed none from 0, size is more than n, or there is no such
            device.

    Example:
        >>> from lae_fast import data
        >>> [len(index) for index in data.shuffled(10, size=4, seed=0)]  # two images wait for the next epoch
        [4, 4]
    """
    n = checks.count("n", n)
    size = checks.count("size", size, most=n)
    checks.seed("seed", seed)
    # on the CPU, whatever torch's default is: the same seed has to give the same order
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed), device="cpu")
    order = order.to(checks.device("device", device))
    return iter(order[: n // size * size].split(size))


def binarize(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One Bernoulli draw per pixel of images [N, ...]: uint8 in 0..255 -> uint8, 0 or 255; floating point in [0, 1] -> 0.0 or 1.0.

    Raises:
        TypeError, ValueError: images are of another type, or the generator is on another device; on a CPU, where looking at them
            needs no synchronisation, also for values that are not in [0, 1].

    Example:
        >>> from lae_fast import data
        >>> data.binarize(torch.tensor([[0, 255]], dtype=torch.uint8))
        tensor([[  0, 255]], dtype=torch.uint8)
        >>> drawn = data.binarize(torch.full((1, 10_000), 0.3))
        >>> drawn.unique().tolist(), bool((drawn.mean() - 0.3).abs() < 0.03)
        ([0.0, 1.0], True)
    """
    checks.tensor("images", images, dtypes=(torch.uint8, *checks.FLOATS))
    checks.generator("generator", generator, images.device)
    if images.is_floating_point() and images.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = (v.item() for v in images.detach().aminmax()) if images.numel() else (0.0, 1.0)
        if not 0 <= low <= high <= 1:  # a NaN fails too
            raise ValueError(
                f"images have values from {low:g} to {high:g}; expected all in [0, 1], or uint8 in 0..255"
            )
    # in float32, whatever torch's default is: the same seed has to give the same images
    draw = torch.rand(images.shape, generator=generator, device=images.device, dtype=torch.float32)
    if images.is_floating_point():
        return (draw < images).to(images.dtype)
    return (draw * 255 < images).to(torch.uint8) * 255


def pixels(images: Tensor) -> Tensor:
    """Images as models compute with them: uint8 in 0..255 -> floating point in [0, 1]; floating point stays what it is.

    Raises:
        TypeError, ValueError: images are of another type.

    Example:
        >>> from lae_fast import data
        >>> data.pixels(torch.tensor([[0, 51, 255]], dtype=torch.uint8))
        tensor([[0.0000, 0.2000, 1.0000]])
    """
    checks.tensor("images", images, dtypes=(torch.uint8, *checks.FLOATS))
    return images / 255 if images.dtype == torch.uint8 else images
