"""Seeds made of a seed: one for each epoch, one for a pilot run. Their numbers decide results, so they never change."""

from __future__ import annotations

STRIDE = 1_000_003  # a prime, far above the number of epochs


def mixed(seed: int, i: int) -> int:
    """A seed of its own for the i-th use of `seed`, as for the order of images in an epoch."""
    return seed * STRIDE + i


def apart(seed: int) -> int:
    """A seed far from `seed` and from its neighbours, as for a pilot run beside the run itself."""
    return seed + STRIDE
