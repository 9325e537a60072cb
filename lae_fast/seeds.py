"""Seeds made of a seed: one for each epoch, one for a pilot run. Their numbers decide results, so they never change."""

from __future__ import annotations

STRIDE = 1_000_003  # a prime, far above the number of epochs


def mixed(seed: int, i: int) -> int:
    """A seed of its own for the i-th use of `seed`, as for the order of images in an epoch."""
    return _wrapped(seed * STRIDE + i)


def apart(seed: int) -> int:
    """A seed far from `seed` and from its neighbours, as for a pilot run beside the run itself."""
    return _wrapped(seed + STRIDE)


def _wrapped(seed: int) -> int:
    """Torch takes 64 bits; modulo 2^64 different seeds stay different, as the stride is odd."""
    return seed % 2**64
