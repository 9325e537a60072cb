"""The variational autoencoder (Kingma and Welling, 2014), for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from lae_fast.models.autoencoder import Autoencoder, check_whole, images_for, like_of
from lae_fast.models.likelihood import Likelihood
from lae_fast.models.precision import Precision


class VAE(Autoencoder):
    """q(z|x) = N(mu(x), diag(sigma^2(x))), both linear in the features. Arguments as for `Autoencoder`.

    Example:
        >>> from torch import nn
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU())  # [n, 3, 8, 8] -> features [n, 32]
        >>> model = lae_fast.VAE(encoder, nn.Linear(4, 192), lae_fast.Gaussian(), shape=(3, 8, 8), nz=4)
        >>> mean, std = model.posterior(torch.rand(16, 3, 8, 8))
        >>> mean.shape, model.decode(mean).shape
        (torch.Size([16, 4]), torch.Size([16, 3, 8, 8]))
    """

    name: ClassVar[str | None] = "vae"

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        *,
        nx: int | None = None,
        nz: int,
        d: int | None = None,
        shape: Sequence[int] | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(encoder, decoder, likelihood, nx=nx, nz=nz, d=d, shape=shape, precision=precision)
        head = nn.Linear(self.d, 2 * self.nz)  # mu and log sigma^2
        nn.init.orthogonal_(head.weight)
        nn.init.zeros_(head.bias)
        self.head = head.to(like_of(self))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not torch.compiler.is_compiling():
            check_whole(self.head, "model(x) instead of model.loss(x)", "head")
        x = images_for(self, x)
        mean, log_variance = self.head(self.features(x)).chunk(2, dim=-1)
        std = torch.exp(0.5 * log_variance)
        return mean.to(x.dtype), std.to(x.dtype)  # also under autocast, as `output` expects

    def training_loss(self, x: Tensor) -> Tensor:
        """The negative ELBO."""
        return self.negative_elbo(x)
