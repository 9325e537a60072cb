"""How good a trained model is: the report's columns, and columns that are equal for all models."""

from __future__ import annotations

import dataclasses

import torch

from lae_fast.evaluation import anneal, evaluate, fit_posterior_scale
from lae_fast.experiments.autoencoders import TrainedAutoencoder, report_posterior
from lae_fast.experiments.recipes import Lab, Product, Recipe
from lae_fast.models import LAE, Autoencoder


@dataclasses.dataclass(frozen=True)
class Quality(Recipe):
    """A trained model's quality on the test images: the report's columns, and columns that are equal for all models."""

    autoencoder: TrainedAutoencoder
    n_images: int = 200  # test images for the likelihood
    n_temperatures: int = 200
    n_chains: int = 8

    def cost(self) -> float:
        return 25 * self.n_images * self.n_chains * self.n_temperatures / 320_000

    def make(self, lab: Lab) -> Product:
        model, images = self.autoencoder.load(lab), lab.test.images
        # The report's "BCE" is the whole negative ELBO for the VAE, and the reconstruction alone for the LAE.
        as_reported = evaluate(report_posterior(model), images, seed=self.autoencoder.seed)
        is_lae = isinstance(model, LAE)
        bce = as_reported.reconstruction if is_lae else as_reported.negative_elbo
        fit_posterior_scale(model, lab.train.images)
        quality = evaluate(model, images, n_draws=5)
        torch.manual_seed(self.autoencoder.seed)
        estimate, schedule = anneal(
            model,
            images[: self.n_images] / 255,
            n_temperatures=self.n_temperatures,
            n_chains=self.n_chains,
            seed=self.autoencoder.seed,
            progress=False,
        )
        metrics = quality._asdict() | {
            "report_bce": bce,
            "ais": -estimate.log_likelihood.mean().item(),
            "is_ais_from_prior": float(schedule.base == "prior"),
        }
        return Product({}, metrics | self._plane(model, lab))

    @torch.no_grad()
    def _plane(self, model: Autoencoder, lab: Lab) -> dict[str, float]:
        """The distance of the test images' codes, taken together, from the prior."""
        mean, std = (
            torch.cat(t)
            for t in zip(*(model.posterior(x / 255) for x in lab.test.images.split(1000)), strict=True)
        )
        covariance = mean.double().T.cov() + std.double().square().mean(0).diag()
        centre = mean.double().mean(0)
        # KL(N(centre, covariance) || N(0, I)), nats, for the Gaussian with the moments of the aggregate posterior
        kl = 0.5 * (covariance.trace() + centre.square().sum() - model.nz - covariance.logdet())
        return {"code_rms": mean.square().mean().sqrt().item(), "aggregate_kl": kl.item()}
