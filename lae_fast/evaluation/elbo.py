"""One definition of quality for all models, so that all models fit in the same columns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lae_fast.models.autoencoder import Autoencoder, check_images
from lae_fast.models.lae import LAE
from lae_fast.models.likelihood import negative_log_prior
from lae_fast.models.vae import gaussian_rate


class Evaluation(NamedTuple):
    """Means over the images."""

    negative_elbo: float  # nats per image: reconstruction + rate
    reconstruction: float  # nats per image: E_q[-log p(x|z)]
    rate: float  # nats per image: KL(q(z|x) || p(z))
    mse: float  # per pixel: squared error of the image decoded from the mean of q(z|x)

    def sentence(self) -> str:
        """The evaluation as a sentence, for people."""
        return (
            f"negative ELBO {self.negative_elbo:.2f} = reconstruction {self.reconstruction:.2f} "
            f"+ rate {self.rate:.2f} nats per image, MSE {self.mse:.4f} per pixel"
        )


def _batches(images: Tensor, nx: int, size: int) -> Iterator[Tensor]:
    """Float batches [size, nx] in [0, 1] of images [N, nx] that may be stored as uint8."""
    for batch in images.split(size):
        x = batch / 255 if batch.dtype == torch.uint8 else batch
        check_images(x, nx)
        yield x


@torch.no_grad()
def evaluate(
    model: Autoencoder, images: Tensor, *, n_draws: int = 1, seed: int = 0, batch_size: int = 1000
) -> Evaluation:
    """Reconstruction, rate, negative ELBO and MSE with the model's own q(z|x), `n_draws` of z per image.

    The q of a VAE is its encoder's; the q of an LAE is N(f(x), s^2 I) with s = `model.posterior_scale` (see
    `fit_posterior_scale`). The draws depend on `seed` alone.

    Args:
        images: [N, nx], float in [0, 1] or uint8 in 0..255.

    Raises:
        ValueError: images have another form.
    """
    totals = torch.zeros(3, dtype=torch.float64)
    generator = torch.Generator(images.device).manual_seed(seed)
    for x in _batches(images, model.nx, batch_size):
        mean, std = model.posterior(x)
        for _ in range(n_draws):
            eps = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
            energy = model.likelihood.energy(model.decoder(mean + std * eps), x).sum()
            totals[0] += energy.cpu() / n_draws
        totals[1] += gaussian_rate(mean, std).sum().cpu()
        totals[2] += (model.decode(mean) - x).square().mean(1, dtype=torch.float64).sum().cpu()
    reconstruction, rate, mse = (totals / images.shape[0]).tolist()
    return Evaluation(reconstruction + rate, reconstruction, rate, mse)


@torch.no_grad()
def importance_bound(
    model: Autoencoder, images: Tensor, *, n_draws: int = 1000, seed: int = 0, rows: int = 2048
) -> Tensor:
    """The importance-weighted lower bound of log p(x) (Burda et al., 2016): float64 [N], nats per image.

        log (1/K) sum_k p(x, z_k) / q(z_k|x),   z_k ~ q(z|x),   K = n_draws

    with the model's own q, as in `evaluate`; K = 1 is the ELBO. K does not change the memory: `rows` images x draws are
    computed at a time.

    Args:
        images: [N, nx], float in [0, 1] or uint8 in 0..255.

    Raises:
        ValueError: images have another form, or n_draws < 1.
    """
    if n_draws < 1:
        raise ValueError(f"n_draws is {n_draws}; expected at least 1")
    generator = torch.Generator(images.device).manual_seed(seed)
    bounds = []
    for x in _batches(images, model.nx, rows):
        mean, std = model.posterior(x)
        total = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
        for chunk in torch.arange(n_draws).split(max(1, rows // len(x))):
            shape = (len(chunk), *mean.shape)
            eps = torch.randn(shape, generator=generator, device=mean.device, dtype=mean.dtype)
            log_q = -negative_log_prior(eps) - std.log().sum(-1, dtype=torch.float64)
            log_w = -model.potential(x, mean + std * eps) - log_q
            total = torch.logaddexp(total, log_w.logsumexp(0))
        bounds.append(total - math.log(n_draws))
    return torch.cat(bounds).cpu()


@torch.no_grad()
def fit_posterior_scale(model: Autoencoder, images: Tensor, *, seed: int = 0, n_images: int = 2000) -> None:
    """Set an LAE's `posterior_scale`: the s of q(z|x) = N(f(x), s^2 I) with the smallest negative ELBO on images.

    Uses the first `n_images` of (training) images [N, nx], and two grids of log s; the second grid lies between the
    neighbours of the first grid's best point. All evaluations use the same draws. Other models have nothing to fit.

    Raises:
        ValueError: images have another form than `evaluate` takes.
    """
    if not isinstance(model, LAE):
        return
    images = images[:n_images]
    low, high = torch.tensor([0.01, 2.0]).log().tolist()
    for _ in range(2):
        grid = torch.linspace(low, high, 12)
        losses = []
        for log_scale in grid.tolist():
            model.posterior_scale.fill_(log_scale).exp_()
            losses.append(evaluate(model, images, seed=seed).negative_elbo)
        best = int(torch.tensor(losses).nan_to_num(nan=torch.inf).argmin())
        low, high = grid[max(best - 1, 0)].item(), grid[min(best + 1, 11)].item()
    model.posterior_scale.fill_(grid[best]).exp_()
