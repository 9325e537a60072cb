"""One definition of quality for all models, so that all models fit in the same columns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lae_fast import checks, sharing
from lae_fast.isolation import differentiable
from lae_fast.models.autoencoder import Autoencoder, asks, check_form, images_for
from lae_fast.models.lae import LAE
from lae_fast.models.likelihood import gaussian_rate, negative_log_prior


class Evaluation(NamedTuple):
    """Means over the images.

    Attributes:
        negative_elbo: reconstruction + rate, nats per image.
        reconstruction: E_q[-log p(x|z)], nats per image.
        rate: KL(q(z|x) || p(z)), nats per image.
        mse: squared error per pixel of the image decoded from the mean of q(z|x).

    Example:
        >>> lae_fast.Evaluation(negative_elbo=100.0, reconstruction=88.0, rate=12.0, mse=0.01).sentence()
        'negative ELBO 100.00 = reconstruction 88.00 + rate 12.00 nats per image, MSE 0.0100 per pixel'
    """

    negative_elbo: float
    reconstruction: float
    rate: float
    mse: float

    def sentence(self) -> str:
        """The evaluation as a sentence, for people."""
        return (
            f"negative ELBO {self.negative_elbo:.2f} = reconstruction {self.reconstruction:.2f} "
            f"+ rate {self.rate:.2f} nats per image, MSE {self.mse:.4f} per pixel"
        )


def batches(model: Autoencoder, images: Tensor, size: int) -> Iterator[Tensor]:
    """Flat batches [size, nx] of images [N, *shape] (see `images_for`), as the model computes with them.

    Raises:
        TypeError, ValueError: as `images_for`, before the first batch; for values, at the batch that has them.
    """
    checks.count("batch_size", size)
    check_form(model, images)
    return (images_for(model, batch) for batch in images.detach().split(size))


@asks
def evaluate(
    model: Autoencoder, images: Tensor, *, n_draws: int = 1, seed: int = 0, batch_size: int = 1000
) -> Evaluation:
    """Reconstruction, rate, negative ELBO and MSE with the model's own q(z|x), `n_draws` of z per image.

    q is that of `model.posterior`; where nothing has trained its standard deviation, see `fit_posterior_scale`. The draws
    depend on `seed` and `batch_size` alone.

    Args:
        images: [N, *shape] or [N, nx], float in [0, 1] or uint8 in 0..255.

    Raises:
        TypeError, ValueError: images have another form, or a number is not one.

    Example:
        >>> from lae_fast import models
        >>> model = models.build(models.Architecture(nx=64, nz=2, nh=16, depth=1))
        >>> quality = lae_fast.evaluate(model, torch.rand(100, 64).round(), n_draws=5)
        >>> abs(quality.negative_elbo - (quality.reconstruction + quality.rate)) < 1e-6
        True
    """
    checks.count("n_draws", n_draws)
    checks.seed("seed", seed)
    all_batches = batches(model, images, batch_size)
    generator = torch.Generator(images.device).manual_seed(seed)
    totals = torch.zeros(3, dtype=torch.float64, device=images.device)
    for x in all_batches:
        mean, std = model.posterior(x)
        for _ in range(n_draws):
            eps = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
            energy = model.reconstruction(x, mean + std * eps).sum()
            totals[0] += energy / n_draws
        totals[1] += gaussian_rate(mean, std).sum()
        totals[2] += (model.decode(mean).flatten(1) - x).square().mean(1, dtype=torch.float64).sum()
    reconstruction, rate, mse = (totals / images.shape[0]).tolist()
    return Evaluation(reconstruction + rate, reconstruction, rate, mse)


@asks
def importance_bound(
    model: Autoencoder,
    images: Tensor,
    *,
    n_draws: int = 1000,
    seed: int = 0,
    rows: int = 2048,
    share: sharing.Shared | None = None,
) -> Tensor:
    """The importance-weighted lower bound of log p(x) (Burda et al., 2016): float64 [N], nats per image.

        log (1/K) sum_k p(x, z_k) / q(z_k|x),   z_k ~ q(z|x),   K = n_draws

    with the model's own q, as in `evaluate`; K = 1 is the ELBO. K does not change the memory: `rows` images x draws are
    computed at a time, which draws follow from the seed depends on it.

    Args:
        images: [N, *shape] or [N, nx], float in [0, 1] or uint8 in 0..255.
        share: processes that all call this with the same arguments, and of which each computes a part; the bound is the
            same for any number of them. None: this process alone.

    Raises:
        TypeError, ValueError: images have another form, or a number is not one.
        ProcessError: another process has failed.

    Example:
        >>> from torch import nn
        >>> model = lae_fast.VAE(nn.Linear(1, 4), nn.Identity(), lae_fast.Gaussian(1.0), nx=1, nz=1)  # p(x) = N(0, 2)
        >>> bound = lae_fast.importance_bound(model, torch.zeros(1, 1), n_draws=10_000)
        >>> abs(bound.item() - -1.2655) < 0.1  # log p(0) = -log(4 pi) / 2
        True
    """
    checks.count("n_draws", n_draws)
    checks.seed("seed", seed)
    sharing.check(share)
    all_batches = batches(model, images, checks.count("rows", rows))
    n_chunks: list[int] = []  # of each batch

    def tasks() -> Iterator[Callable[[], Tensor]]:
        generator = torch.Generator(images.device).manual_seed(seed)
        for x in all_batches:
            mean, std = model.posterior(x)
            chunks = torch.arange(n_draws, device="cpu").split(max(1, rows // len(x)))
            n_chunks.append(len(chunks))
            for chunk in chunks:
                shape = (len(chunk), *mean.shape)
                eps = torch.randn(shape, generator=generator, device=mean.device, dtype=mean.dtype)
                yield partial(log_weight, x, mean, std, eps)

    def log_weight(x: Tensor, mean: Tensor, std: Tensor, eps: Tensor) -> Tensor:
        """The logarithm [n] of the sum of weights p(x, z) / q(z|x) over draws eps [k, n, nz]."""
        log_q = -negative_log_prior(eps) - std.log().sum(-1, dtype=torch.float64)
        log_w = -model.potential(x, mean + std * eps) - log_q
        return log_w.logsumexp(0) if share is None else log_w.logsumexp(0).cpu()

    found, bounds = iter(sharing.done(tasks(), share)), []
    for n in n_chunks:
        total = torch.tensor(-math.inf, dtype=torch.float64, device=images.device)
        for part in itertools.islice(found, n):
            total = torch.logaddexp(total, part.to(images.device))
        bounds.append(total - math.log(n_draws))
    return torch.cat(bounds).cpu()


@asks
def fit_posterior_scale(model: Autoencoder, images: Tensor, *, seed: int = 0, n_images: int = 2000) -> None:
    """Set the standard deviations s [nz] of q(z|x) = N(f(x), diag(s^2)), of an LAE that does not train them.

    Uses the first `n_images` of (training) images [N, *shape], and the same draws in all evaluations of the negative ELBO. One s
    for all dimensions comes first, by two grids of log s; the second grid lies between the neighbours of the first grid's
    best point. Then s_j is divided by the root of E[s_j eps_j dU/dz_j], which is 1 where the negative ELBO is stationary,
    a few times; of all these s the best one stays. Models that train their q have nothing to fit.

    Raises:
        TypeError, ValueError: images have another form than `evaluate` takes, or a number is not one. s is then as before.

    Example:
        >>> from torch import nn
        >>> model = lae_fast.LAE(nn.Linear(2, 4), nn.Identity(), lae_fast.Gaussian(1.0), nx=2, nz=2, spread=False)
        >>> lae_fast.fit_posterior_scale(model, torch.randn(2000, 2))
        >>> (model.posterior_scale - 0.5**0.5).abs().max() < 0.05  # p(z|x) has the variance 1/2
        tensor(True)
    """
    if not isinstance(model, LAE) or model.spread:
        return
    before = model.posterior_scale.clone()
    try:
        _fit(model, images, checks.seed("seed", seed), checks.count("n_images", n_images))
    except BaseException:
        model.set_constant_std(before)
        raise


def _fit(model: LAE, images: Tensor, seed: int, n_images: int) -> None:
    batches(model, images, 1000)  # raises
    images = images[:n_images]

    def loss_at(log_std: Tensor) -> float:
        model.set_constant_std(log_std.exp())
        loss = evaluate(model, images, seed=seed).negative_elbo
        return loss if math.isfinite(loss) else math.inf

    low, high = math.log(0.01), math.log(2.0)
    for _ in range(2):
        grid = torch.linspace(low, high, 12, dtype=torch.float64, device="cpu")
        best = min(grid, key=loss_at)
        low, high = max(low, best - (grid[1] - grid[0])), min(high, best + (grid[1] - grid[0]))
    found = [best.to(images.device).expand(model.nz)]
    for _ in range(4):
        model.set_constant_std(found[-1].exp())
        slopes = _spread_slopes(model, images, seed).nan_to_num(1.0)  # of a model that has diverged: s stays
        found.append(found[-1] - 0.5 * slopes.clamp(0.1, 10).log())
    model.set_constant_std(min(found, key=loss_at).exp())


def _spread_slopes(model: LAE, images: Tensor, seed: int) -> Tensor:
    """E[s_j eps_j dU/dz_j] over images and draws of q, [nz]; eps comes with -eps, so that slopes at the mean cancel."""
    generator = torch.Generator(images.device).manual_seed(seed)
    total = torch.zeros(model.nz, dtype=torch.float64, device=images.device)
    for x in batches(model, images, 1000):
        mean, std = model.posterior(x)
        eps = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        moves = torch.stack((std * eps, -std * eps))
        with differentiable():
            z = (mean + moves).requires_grad_()
            (slope,) = torch.autograd.grad(model.potential(x, z).sum(), z)
        total += (moves * slope).sum((0, 1), dtype=torch.float64)
    return total / (2 * len(images))
