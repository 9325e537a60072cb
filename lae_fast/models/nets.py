"""Encoder and decoder bodies. Images are flat, [n, nx] with nx = side^2; features are [n, d]."""

from __future__ import annotations

import itertools
import math

from torch import nn

from lae_fast.models.mlp import MLP


def _orthogonal(net: nn.Sequential) -> nn.Sequential:
    """Orthogonal weights and zero biases, as in the report."""
    for layer in net:
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return net


def _blocks(n_in: int, nh: int, depth: int) -> list[nn.Module]:
    layers = []
    for i in range(depth):
        layers += [nn.Linear(n_in if i == 0 else nh, nh), nn.LayerNorm(nh), nn.ReLU()]
    return layers


def mlp(nx: int, nz: int, nh: int = 256, depth: int = 3) -> tuple[MLP, MLP]:
    """The report's network: `depth` blocks of Linear, LayerNorm, ReLU, mirrored.

    Returns:
        The encoder's body, [n, nx] -> features [n, nh], and the decoder, [n, nz] -> output [n, nx].
    """
    encoder = MLP(*_blocks(nx, nh, depth))
    decoder = MLP(*_blocks(nz, nh, depth), nn.Linear(nh, nx))
    return _orthogonal(encoder), _orthogonal(decoder)


def conv(nx: int, nz: int, nh: int = 256, depth: int = 2) -> tuple[nn.Sequential, nn.Sequential]:
    """A small convolutional network: `depth` halvings of the image with 32, 64, ... channels, mirrored.

    Returns:
        Encoder and decoder, as `mlp`.

    Raises:
        ValueError: the image is not square, or its side cannot be halved `depth` times.
    """
    side = math.isqrt(nx)
    if side * side != nx or side % 2**depth:
        raise ValueError(f"conv needs square images whose side is divisible by {2**depth}; got nx = {nx}")
    small, channels = side // 2**depth, [1] + [32 * 2**i for i in range(depth)]
    flat = channels[-1] * small**2
    down, up = [], []
    for before, after in itertools.pairwise(channels):
        down += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
        up = [nn.ReLU(), nn.ConvTranspose2d(after, before, 4, stride=2, padding=1), *up]
    encoder = [nn.Unflatten(1, (1, side, side)), *down, nn.Flatten(), *_blocks(flat, nh, 1)]
    decoder = [*_blocks(nz, nh, 1), nn.Linear(nh, flat), nn.Unflatten(1, (channels[-1], small, small)), *up]
    return _orthogonal(nn.Sequential(*encoder)), _orthogonal(nn.Sequential(*decoder, nn.Flatten()))


NETWORKS = {"mlp": mlp, "conv": conv}
