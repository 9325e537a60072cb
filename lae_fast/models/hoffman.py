"""Hoffman's method (2017): a VAE whose decoder learns from Langevin chains started at the encoder's draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lae_fast import checks
from lae_fast.models.decoder_pass import is_dense
from lae_fast.models.known_gradients import KnownGradients
from lae_fast.models.likelihood import Likelihood, gaussian_rate
from lae_fast.models.precision import Precision, chain_context, products_in
from lae_fast.models.vae import VAE
from lae_fast.models.with_chain import AutoencoderWithChain
from lae_fast.sampling.ald import evaluate_potential
from lae_fast.sampling.chains import Chains


class Hoffman(AutoencoderWithChain, VAE):
    """q(z|x) is that of a VAE; a draw z of q takes T datapoint-wise Langevin steps before the decoder sees z.

    The decoder and the likelihood learn from -log p(x, z_t), averaged over t = 1..T (the report's eq. 4) or at t = T
    (Hoffman's own rule); the encoder learns by the ELBO with the decoder held fixed. Each image of a minibatch has one
    chain of nz elements. All chains share one step size, which is a step size of z: drift eta, noise variance 2 eta.

    Args (beyond those of `AutoencoderWithChain`):
        gradient: "average" or "last".
        start: "encoder": the chains start at draws of q; or "prior": they start at draws of N(0, I), the traditional
            way, and the encoder is trained only to evaluate the model.

    Raises:
        ValueError: as for `AutoencoderWithChain`, or gradient or start is unknown.

    Example:
        >>> from torch import nn
        >>> model = lae_fast.Hoffman(nn.Linear(784, 64), nn.Linear(8, 784), lae_fast.Bernoulli(), nx=784, nz=8, n_steps=5)
        >>> model.loss(torch.rand(16, 784).round()).backward()
        >>> model.n_decisions.item()  # five steps of a chain for each of 16 images
        80
    """

    name: ClassVar[str | None] = "hoffman"
    gradients, starts = ("average", "last"), ("encoder", "prior")
    first_step_size = 1e-2
    unadjusted_step_size = 1e-3

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
        gradient: Literal["average", "last"] = "average",
        start: Literal["encoder", "prior"] = "encoder",
        n_steps: int = 2,
        mh: bool = True,
        step_size: float | None = None,
        adaptation_rate: float = 0.05,
        chain_precision: Precision | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(
            encoder,
            decoder,
            likelihood,
            nx=nx,
            nz=nz,
            d=d,
            shape=shape,
            n_steps=n_steps,
            mh=mh,
            step_size=step_size,
            adaptation_rate=adaptation_rate,
            chain_precision=chain_precision,
            precision=precision,
        )
        self.gradient = checks.choice("gradient", gradient, self.gradients)
        self.start = checks.choice("start", start, self.starts)

    def training_loss(self, x: Tensor) -> Tensor:
        """-log p(x, z_t) [] of images x [n, nx], averaged over images and over t (or at t = T): nats per image.

        The encoder's part is the negative ELBO, with the decoder's derivative taken at the encoder's draw. This part
        enters only the gradient, not the value.

        Raises:
            ValueError: an image's potential depends on other images (BatchNorm in the decoder) or, with `mh`, is not a function
                (Dropout).
        """
        with products_in(self.precision, x.device):
            mean, std = self.posterior(x)
        z = mean + std * self._normals(mean)  # [n, nz]
        with torch.no_grad(), chain_context(self.mh, x.device):
            visited, slope = self._run_chain(x, z.detach())
        reconstruction = KnownGradients.apply((z.detach() * slope).sum(dtype=torch.float64), 1.0, z, slope)
        encoder_loss = (reconstruction + gaussian_rate(mean, std).sum()) / len(x)
        n_visited = len(visited) if self.gradient == "average" else 1
        with products_in(self.precision, x.device):
            decoder_loss = self.potential(x, visited[-n_visited:]).mean()
        return decoder_loss + (encoder_loss - encoder_loss.detach())

    def _run_chain(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The states z_1 .. z_T [T, n, nz] of T steps, and the derivative of -log p(x|z) at z [n, nz]."""
        n = len(x)

        def evaluate(rows: Tensor) -> tuple[Tensor, Tensor]:
            with products_in(self.chain_precision, x.device):
                return evaluate_potential(lambda z: self.potential(x, z), rows, n, self.mh)

        if not is_dense(self, x):
            self._check_function(x, z, by_row=True)
        start = z.clone() if self.start == "encoder" else self._normals(z)
        chains = Chains(
            evaluate,
            start,
            self.log_step_size,
            self.rng,
            mh=self.mh,
            adaptation=self.adaptation if self.mh else None,
            share=self._sharing,
            copies=False,
        )
        slope = chains.grad - z if self.start == "encoder" else evaluate(z)[1] - z
        visited = []
        for _ in range(self.n_steps):
            chains.step()
            visited.append(chains.phi.clone())
        self._keep(chains)
        return torch.stack(visited), slope
