"""The variational autoencoder (Kingma and Welling, 2014), for comparison."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lae_fast.models.autoencoder import Autoencoder, check_images
from lae_fast.models.precision import products_in


def gaussian_rate(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, I)) for mean and std [n, nz]: float64 [n], nats per image."""
    return 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).sum(-1, dtype=torch.float64)


class VAE(Autoencoder):
    """q(z|x) = N(mu(x), diag(sigma^2(x))), both linear in the features. Arguments as for `Autoencoder`."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, likelihood: nn.Module, **options: Any) -> None:
        super().__init__(encoder, decoder, likelihood, **options)
        self.head = nn.Linear(self.d, 2 * self.nz)  # mu and log sigma^2
        nn.init.orthogonal_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.head(self.encoder(x)).chunk(2, dim=-1)
        return mean, torch.exp(0.5 * log_variance)

    def loss(self, x: Tensor) -> Tensor:
        """The negative ELBO [] of images x [n, nx], nats per image: one draw of z for each, the rate in closed form."""
        check_images(x, self.nx)
        with products_in(self.precision, x.device):
            mean, std = (t.to(x.dtype) for t in self.posterior(x))
            z = mean + std * torch.randn_like(mean)
            output = self.decoder(z)
        return (self.likelihood.energy(output, x) + gaussian_rate(mean, std)).mean()
