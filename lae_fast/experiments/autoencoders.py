"""The latent variable models of the experiments: their training and their evaluation."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from lae_fast import data, seeds
from lae_fast.evaluation import anneal, evaluate, fit_posterior_scale
from lae_fast.experiments.recipes import Lab, Product, Recipe
from lae_fast.experiments.report_rule import CountingReportLAE
from lae_fast.models import LAE, Architecture, Autoencoder, AutoencoderWithChain, build, options_of
from lae_fast.training import TrainingStep, adam

REPORT_SCALE = 0.05  # s of the report's q(z|x) = N(f(x), s^2 I)


def decisions(trained: nn.Module) -> Tensor:
    """The numbers of accepted and of all proposals so far, int64 [2]; 0 for a model without a chain."""
    if isinstance(trained, AutoencoderWithChain):
        return torch.stack((trained.n_decisions - trained.counters.sum(), trained.n_decisions))
    return getattr(trained, "decisions", torch.zeros(2, dtype=torch.int64)).clone()


@dataclasses.dataclass(frozen=True)
class TrainedAutoencoder(Recipe):
    """A model with the report's network, trained for `epochs`, or until validation has not improved for `patience`.

    The product holds the best weights on the validation images and, for a chain, its last step size.
    """

    model: str  # vae, lae, hoffman, or report: an LAE by the report's own rule
    nz: int
    seed: int
    epochs: int
    lr: float
    n_steps: int = 2
    mh: bool = False
    step_size: float | None = 1e-3  # per example, as published (Hoffman: for z); None: adapted
    batch_size: int = 512
    nh: int = 256
    patience: int = 10
    decisions: str = "joint"  # of an LAE's chain

    def cost(self) -> float:
        evaluations = 1.0 if self.model == "vae" else 1.2 * (self.n_steps + 1)
        return self.epochs * evaluations * 1.5

    def build(self, nx: int) -> Autoencoder:
        """The freshly initialised model, on the CPU, for images of nx pixels."""
        kind = "lae" if self.model == "report" else self.model
        names = ("n_steps", "mh", "step_size", "decisions")
        options: dict[str, Any] = {name: getattr(self, name) for name in names if name in options_of(kind)}
        return build(Architecture(kind, nx=nx, nz=self.nz, nh=self.nh), **options)

    def make(self, lab: Lab) -> Product:
        torch.manual_seed(self.seed)
        model = self.build(lab.nx).to(lab.device)
        trained: nn.Module = model
        if self.model == "report":
            trained = CountingReportLAE(model, self.n_steps, self.mh, self.step_size)
        step = TrainingStep(
            trained,
            adam(trained, self.lr, trained.beta1),
            capture=False if self.model == "report" else None,  # this rule waits for the device
        )
        batch_size = min(self.batch_size, len(lab.train.images))
        best, kept, metrics = math.inf, {}, {"is_diverged": 0.0}
        for epoch in range(1, self.epochs + 1):
            seed, total, before = seeds.mixed(self.seed, epoch), 0.0, decisions(trained)
            for index in data.shuffled(len(lab.train.images), batch_size, seed, lab.device):
                total = total + step(lab.train.images[index] / 255)
            if not math.isfinite(float(total)):
                metrics["is_diverged"] = 1.0
                break
            if trained is not model:
                trained.copy_to(model)
            loss = self._validation_loss(model, lab)
            accepted, proposed = (decisions(trained) - before).tolist()
            metrics |= {"epochs": epoch} | ({"acceptance": accepted / proposed} if proposed else {})
            if isinstance(trained, AutoencoderWithChain):
                metrics["step_size"] = trained.log_step_size.exp().item()
            if loss < best:
                best, metrics["best_epoch"] = loss, epoch
                kept = {name: t.clone() for name, t in model.state_dict().items()}
            elif epoch - metrics["best_epoch"] >= self.patience:
                break
        if not kept:
            raise ArithmeticError(f"training diverged in its first epoch: {self.describe()}")
        return Product(kept, metrics)

    def _validation_loss(self, model: Autoencoder, lab: Lab) -> float:
        """The negative ELBO, or for the report's rule its own loss, the reconstruction: nats per image."""
        if self.model == "report":
            return evaluate(report_posterior(model), lab.validation.images).reconstruction
        fit_posterior_scale(model, lab.train.images, n_images=500)
        return evaluate(model, lab.validation.images).negative_elbo

    def load(self, lab: Lab) -> Autoencoder:
        """The trained model, in evaluation mode; its chain has the step size from the end of training."""
        product, model = lab.get(self), self.build(lab.nx)
        model.load_state_dict(product.weights)
        if isinstance(model, AutoencoderWithChain) and "step_size" in product.metrics:
            model.log_step_size.fill_(math.log(product.metrics["step_size"]))
        return model.to(lab.device).eval()


def report_posterior(model: Autoencoder) -> Autoencoder:
    """The model, now with the q(z|x) of the report's code: the VAE's own, or for an LAE N(f(x), 0.05^2 I)."""
    if isinstance(model, LAE):
        model.set_constant_std(REPORT_SCALE)
    return model


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
        if is_lae:
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
