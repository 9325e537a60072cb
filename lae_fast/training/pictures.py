"""The pictures of a run: samples, reconstructions, and the latent plane."""

from __future__ import annotations

import io
import math
from pathlib import Path

import torch
from torch import Tensor

from lae_fast.checkpoint import write_atomically
from lae_fast.models.autoencoder import Autoencoder


def grid(images: Tensor, n_columns: int) -> Tensor:
    """Flat square images [n, nx] in [0, 1] -> one picture [rows * side, n_columns * side]."""
    side = math.isqrt(images.shape[1])
    rows = -(-len(images) // n_columns)
    padded = torch.zeros(rows * n_columns, side, side)
    padded[: len(images)] = images.detach().cpu().float().view(-1, side, side).clamp(0, 1)
    return padded.view(rows, n_columns, side, side).transpose(1, 2).reshape(rows * side, n_columns * side)


@torch.no_grad()
def samples(model: Autoencoder, seed: int = 0) -> Tensor:
    """8 x 8 mean images of latent variables drawn from the prior: one picture [8 side, 8 side]."""
    device = next(model.parameters()).device
    return grid(model.sample(64, torch.Generator(device).manual_seed(seed)), 8)


@torch.no_grad()
def reconstructions(model: Autoencoder, x: Tensor) -> Tensor:
    """One picture: rows of ten images, each row above its reconstructions, for x [n, nx] with n a multiple of ten."""
    pairs = torch.stack((x.unflatten(0, (-1, 10)), model.reconstruct(x).unflatten(0, (-1, 10))), 1)
    return grid(pairs.flatten(0, 2), 10)


def save_picture(picture: Tensor, path: Path) -> None:
    """Save a picture [height, width] in [0, 1] as a grey PNG with 3 x 3 pixels for each of its pixels."""
    from matplotlib import image

    large, buffer = picture.repeat_interleave(3, 0).repeat_interleave(3, 1), io.BytesIO()
    image.imsave(buffer, large.numpy(), format="png", cmap="gray", vmin=0, vmax=1)
    write_atomically(path, buffer.getvalue())


@torch.no_grad()
def save_latent_plane(model: Autoencoder, x: Tensor, labels: Tensor, path: Path) -> None:
    """Save a plot of the codes of images x [n, nx] in the plane (nz = 2), coloured by labels [n]."""
    from matplotlib.figure import Figure

    z = model.encode(x).cpu()
    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axes = figure.subplots()
    dots = axes.scatter(
        z[:, 0], z[:, 1], c=labels.cpu(), s=3, cmap="tab10", vmin=-0.5, vmax=9.5, linewidths=0
    )
    figure.colorbar(dots, ax=axes, ticks=range(10), label="class")
    axes.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomically(path, buffer.getvalue())
