"""Labelled variations of images [n, 1, h, w] in [0, 1]: drawn from a model of images, or by controls that know no model."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lae_fast.augmentation import augment
from lae_fast.models import Autoencoder

# report: as the report's code draws them; residual: what a step of the code changes, added to the image. Controls, without a
# model: noise in principal components, and small shifts, rotations and changes of size.
OF_MODELS, CONTROLS = ("report", "residual"), ("components", "affine")
N_COMPONENTS = 16
SCALE = 0.5  # of noise in principal components: that of residual variations in codes
SHIFT, ANGLE, ZOOM = 2.0, 10.0, 0.1  # pixels, degrees, and the change of size, each at most


def components(images: Tensor) -> Tensor:
    """The first 16 principal components of images [N, 1, h, w], each as long as its standard deviation: [<= 16, 1, h, w]."""
    variances, directions = torch.linalg.eigh(
        images.flatten(1).float().T.cov().double()
    )  # from the smallest on
    scaled = directions.T * variances.clamp(min=0).sqrt()[:, None]
    largest: Tensor = scaled.flip(0)[:N_COMPONENTS].to(images.dtype)
    return largest.reshape(-1, *images.shape[1:])


def along(parts: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
    """x [n, 1, h, w] with normal noise along each of its components [k, 1, h, w]."""
    noise = torch.randn(len(x), len(parts), generator=generator, device=x.device)
    return (x + SCALE * torch.einsum("nk,kchw->nchw", noise, parts)).clamp(0, 1)


def affine(x: Tensor, generator: torch.Generator) -> Tensor:
    """x [n, 1, h, w], each image shifted, turned and resized a little, at random."""
    u = 2 * torch.rand(len(x), 4, generator=generator, device=x.device) - 1
    angle, zoom = (math.radians(ANGLE) * u[:, 0]), 1 + ZOOM * u[:, 1]
    shift = 2 * SHIFT / x.shape[-1] * u[:, 2:]  # the image reaches from -1 to 1
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = [torch.stack((cos, -sin, shift[:, 0]), 1), torch.stack((sin, cos, shift[:, 1]), 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


class Variations:
    """Draws n variations of each image of a minibatch.

    Args:
        kinds: one kind; or, with a plus between, two: "affine+residual" turns images first, and varies the result.
        model: for the kinds that have one.
        images: the training images [N, 1, h, w], for "components".
    """

    def __init__(self, kinds: str, n: int, model: Autoencoder | None, images: Tensor) -> None:
        self.kinds, self.n, self.model = kinds.split("+"), n, model
        self.parts = components(images) if "components" in self.kinds else None

    def __call__(self, x: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x [m, 1, h, w] and their variations [(n + 1) m, 1, h, w], and their labels."""
        varied, theirs = x.repeat(self.n, 1, 1, 1), labels.repeat(self.n)
        for kind in self.kinds:
            varied = self._once(kind, varied, theirs, generator)
        return torch.cat((x, varied)), labels.repeat(self.n + 1)

    def _once(self, kind: str, x: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        if kind == "affine":
            return affine(x, generator)
        if kind == "components":
            assert self.parts is not None
            return along(self.parts, x, generator)
        assert self.model is not None
        source: Literal["residual"] | None = "residual" if kind == "residual" else None
        return augment(self.model, x, labels, 1, source=source, generator=generator)[0][len(x) :]
