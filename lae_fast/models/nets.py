"""Encoder and decoder bodies: images [n, c, h, w] or flat [n, nx] -> features [n, d], and z [n, nz] -> images."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lae_fast import checks
from lae_fast.models.mlp import MLP
from lae_fast.ops.torch_private import is_altered

Net = TypeVar("Net", bound=nn.Sequential)


def _orthogonal(net: Net) -> Net:
    """Orthogonal weights and zero biases, as in the report."""
    for layer in net:
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.orthogonal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return net


def _blocks(n_in: int, nh: int, depth: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(n_in if i == 0 else nh, nh), nn.LayerNorm(nh), nn.ReLU()]
    return layers


def mlp(shape: int | Sequence[int], nz: int, nh: int = 256, depth: int = 3) -> tuple[MLP, MLP]:
    """The report's network, and the paper's: `depth` blocks of Linear, LayerNorm, ReLU, mirrored.

    The authors' code has this network for every data set, with nh 1024 and depth 3: also for the 32 x 32 and 64 x 64 colour
    images of SVHN, CIFAR-10 and CelebA (github.com/iShohei220/LAE, model.py).

    Args:
        shape: of an image, (c, h, w); or nx, its number of elements.

    Returns:
        The encoder's body, flat [n, nx] -> features [n, nh], and the decoder, [n, nz] -> output [n, nx].
    """
    nx = math.prod(_sizes(shape))
    encoder = MLP(*_blocks(nx, nh, depth))
    decoder = MLP(*_blocks(nz, nh, depth), nn.Linear(nh, nx))
    return _orthogonal(encoder), _orthogonal(decoder)


class AsImages(nn.Module):
    """Images [n, ...] -> [n, *shape], however they come."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.shape)  # not len(x), which `torch.export` would fix

    def extra_repr(self) -> str:
        return str(self.shape)


def conv(
    shape: int | Sequence[int], nz: int, nh: int = 256, depth: int = 2, channels: int = 32
) -> tuple[nn.Sequential, nn.Sequential]:
    """A small convolutional network: `depth` halvings of the image with `channels`, 2 `channels`, ... channels, mirrored.

    A side s becomes s/2, rounded up. On the way back a kernel of 4 makes s/2 to s where s is even, and a kernel of 3 where it is
    odd, so that images of any size come back as they were.

    Args:
        shape: of an image, (c, h, w); or nx, the number of elements of square grey images.

    Returns:
        The encoder's body, images, flat or not -> features [n, nh], and the decoder, [n, nz] -> output [n, c, h, w].

    Raises:
        ValueError: flat images are not square, the shape is not (c, h, w), or a single pixel is to be halved.
    """
    shape = _sizes(shape)
    if len(shape) == 1 and (side := math.isqrt(shape[0])) ** 2 == shape[0]:
        shape = (1, side, side)
    if len(shape) != 3:
        raise ValueError(f"conv got images {list(shape)}; expected [c, h, w], or square ones [h * h]")
    most = (max(shape[1:]) - 1).bit_length()
    if depth > most:
        raise ValueError(
            f"depth is {depth}; expected at most {most}: images {list(shape)} cannot be halved more often"
        )
    c, h, w = shape
    sizes = [(h, w)]
    widths = [c] + [channels * 2**i for i in range(depth)]
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        h, w = sizes[-1]
        kernel = (3 if h % 2 else 4, 3 if w % 2 else 4)
        sizes.append((-(-h // 2), -(-w // 2)))
        down += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
        up = [nn.ReLU(), nn.ConvTranspose2d(after, before, kernel, stride=2, padding=1), *up]
    small = (widths[-1], *sizes[-1])
    encoder = [AsImages(shape), *down, nn.Flatten(), *_blocks(math.prod(small), nh, 1)]
    decoder = [*_blocks(nz, nh, 1), nn.Linear(nh, math.prod(small)), nn.Unflatten(1, small), *up]
    return _orthogonal(nn.Sequential(*encoder)), _orthogonal(nn.Sequential(*decoder))


def _sizes(shape: int | Sequence[int]) -> tuple[int, ...]:
    return checks.image_shape(*((None, shape) if isinstance(shape, int) else (shape, None)))


NETWORKS: dict[str, Callable[..., tuple[nn.Module, nn.Module]]] = {"mlp": mlp, "conv": conv}


def _is_twin(own: nn.Module, twin: nn.Module) -> bool:
    """Whether a network is made as the other is, with parameters of the same names and shapes, and nothing done to it since."""
    sizes, wanted = ({name: t.shape for name, t in net.state_dict().items()} for net in (own, twin))
    is_same = type(own) is type(twin) and str(own) == str(twin) and sizes == wanted
    return is_same and not any(is_altered(m) for m in own.modules())


def recognised(
    encoder: nn.Module, decoder: nn.Module, shape: Sequence[int], nz: int, d: int
) -> dict[str, Any]:
    """The fields of an `Architecture` with which these two networks are made; {"network": None} of other networks."""
    convolutions = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
    depth = len(convolutions) or sum(isinstance(layer, nn.Linear) for layer in encoder.modules())
    sizes = {"nh": d, "depth": depth, "channels": convolutions[0].out_channels if convolutions else 32}
    for name, network in NETWORKS.items():
        known = inspect.signature(network).parameters
        try:
            with torch.device("meta"):
                twins = network(shape, nz=nz, **{n: size for n, size in sizes.items() if n in known})
        except ValueError:  # it cannot be made for these sizes
            continue
        pairs = zip((encoder, decoder), twins, strict=True)
        if all(_is_twin(own, twin) for own, twin in pairs):
            return {"network": name, **sizes}
    return {"network": None}
