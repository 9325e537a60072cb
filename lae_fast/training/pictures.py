"""The pictures of a run: samples, reconstructions, and the latent plane."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lae_fast.checkpoint import write_atomically
from lae_fast.models.autoencoder import Autoencoder, like_of

SIDE, GAP = 84, 2  # pixels of a tile's longer side, as far as whole factors reach, and between two tiles


def _tiles(images: Tensor) -> Tensor:
    """Images [n, c, h, w], [n, h, w] or flat [n, nx] -> [n, h, w, 1 or 3], in [0, 1], on the CPU.

    Flat images are square and grey, or else one row. Of other numbers of channels than 1 and 3 the mean is shown.
    """
    images = images.detach().cpu().float().clamp(0, 1)
    if images.dim() == 2:
        nx, side = images.shape[1], math.isqrt(images.shape[1])
        images = images.view(-1, *((side, side) if side * side == nx else (1, nx)))
    images = images.flatten(1, -3) if images.dim() > 3 else images[:, None]
    if images.shape[1] not in (1, 3):
        images = images.mean(1, keepdim=True)
    return images.movedim(1, -1)


def grid(images: Tensor, n_columns: int, *, gap: int = 0, scale: int | None = 1) -> Tensor:
    """Images in [0, 1] side by side: one picture [height, width], or [height, width, 3] in colour.

    Args:
        images: [n, c, h, w], [n, h, w], or flat [n, nx]: square and grey.
        gap: white pixels between two images.
        scale: pixels that stand for one, in both directions; None: as many as make a side of 84.
    """
    tiles = _tiles(images)  # [n, h, w, c]
    scale = max(1, SIDE // max(tiles.shape[1:3])) if scale is None else scale
    tiles = tiles.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    (n, h, w, c), rows = tiles.shape, -(-len(tiles) // n_columns)
    cells = torch.zeros(rows * n_columns, h + gap, w + gap, c)
    cells[:, h:], cells[:, :, w:] = 1, 1
    cells[:n, :h, :w] = tiles
    picture = cells.view(rows, n_columns, h + gap, w + gap, c).transpose(1, 2)
    picture = picture.reshape(rows * (h + gap), n_columns * (w + gap), c)
    return picture[: len(picture) - gap, : picture.shape[1] - gap].squeeze(-1)


@torch.no_grad()
def samples(model: Autoencoder, seed: int = 0) -> Tensor:
    """One picture: 8 x 8 mean images of latent variables drawn from the prior."""
    device = like_of(model).device
    return grid(model.sample(64, torch.Generator(device).manual_seed(seed)), 8, gap=GAP, scale=None)


@torch.no_grad()
def reconstructions(model: Autoencoder, x: Tensor) -> Tensor:
    """One picture: rows of ten images, each row above its reconstructions, for x [n, *shape] with n a multiple of ten."""
    x = x.view(len(x), *model.shape)
    pairs = torch.stack((x.unflatten(0, (-1, 10)), model.reconstruct(x).unflatten(0, (-1, 10))), 1)
    return grid(pairs.flatten(0, 2), 10, gap=GAP, scale=None)


def save_picture(picture: Tensor, path: Path) -> None:
    """Save a picture [height, width] or [height, width, 3] in [0, 1] as a PNG."""
    from matplotlib import image

    buffer = io.BytesIO()
    image.imsave(buffer, picture.numpy(), format="png", cmap="gray", vmin=0, vmax=1)
    write_atomically(path, buffer.getvalue())


@torch.no_grad()
def save_latent_plane(model: Autoencoder, x: Tensor, labels: Tensor | None, path: Path) -> None:
    """Save a plot of the codes of images x [n, *shape] in the plane (nz = 2), coloured by labels [n], if there are any."""
    from matplotlib.figure import Figure

    z = model.encode(x).cpu()
    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axes = figure.subplots()
    if labels is None:
        axes.scatter(z[:, 0], z[:, 1], s=3, linewidths=0)
    else:
        n_classes = max(10, int(labels.max()) + 1)
        style: dict[str, Any] = dict(
            cmap="tab10" if n_classes == 10 else "turbo", vmin=-0.5, vmax=n_classes - 0.5
        )
        dots = axes.scatter(z[:, 0], z[:, 1], c=labels.cpu(), s=3, linewidths=0, **style)
        figure.colorbar(dots, ax=axes, ticks=range(10) if n_classes == 10 else None, label="class")
    axes.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomically(path, buffer.getvalue())
