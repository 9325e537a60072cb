"""The latent variable models of the experiments, trained one by one or side by side."""

from __future__ import annotations

import copy
import dataclasses
import gc
import math
import time
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lae_fast import data, seeds
from lae_fast.evaluation import evaluate, fit_posterior_scale
from lae_fast.experiments.recipes import Lab, Product, Recipe
from lae_fast.experiments.report_rule import CountingReportLAE
from lae_fast.models import LAE, Architecture, Autoencoder, AutoencoderWithChain, build, options_of
from lae_fast.training import OwnNumbers, SideBySide, TrainingStep, adam

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

    def company(self) -> Hashable:
        """All but those whose rule waits for the device; about equally long steps are taken side by side."""
        waits = self.model == "report" and self.mh
        return None if waits else (self.batch_size, 0 if self.model == "vae" else self.n_steps)

    def make(self, lab: Lab) -> Product:
        ((_, found),) = train([self], lab)
        if isinstance(found, ArithmeticError):
            raise found
        return found

    @classmethod
    def make_all(
        cls, recipes: Sequence[Recipe], lab: Lab
    ) -> Iterator[tuple[Recipe, Product | ArithmeticError]]:
        of_this_kind = [r for r in recipes if isinstance(r, cls)]
        assert len(of_this_kind) == len(recipes)
        return train(of_this_kind, lab)

    def validation_loss(self, model: Autoencoder, lab: Lab) -> float:
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
    """A model with the q(z|x) of the report's code: the VAE, which has its own, or of an LAE a copy with N(f(x), 0.05^2 I)."""
    if not isinstance(model, LAE):
        return model
    copied = copy.deepcopy(model)
    copied.set_constant_std(REPORT_SCALE)
    return copied


class _Training:
    """The training of one model, epoch by epoch."""

    def __init__(self, recipe: TrainedAutoencoder, lab: Lab) -> None:
        self.recipe, self.lab, self.numbers = recipe, lab, OwnNumbers(recipe.seed, lab.device)
        images = lab.train.images
        with self.numbers():
            self.model = recipe.build(lab.nx).to(lab.device)
        self.trained: nn.Module = self.model
        if isinstance(self.model, LAE) and recipe.model == "report":
            self.trained = CountingReportLAE(self.model, recipe.n_steps, recipe.mh, recipe.step_size)
        self.step = TrainingStep(
            self.trained,
            adam(self.trained, recipe.lr, self.trained.beta1),
            read=lambda index: images[index] / 255,
            capture=False,
        )
        self.is_over, self.seconds = False, 0.0
        self.epoch, self.best, self.kept = 0, math.inf, dict[str, Tensor]()
        self.metrics = {"is_diverged": 0.0}

    def minibatches(self) -> Iterator[Tensor]:
        """Indices of the training images of one epoch; it begins with this."""
        self.epoch, self.before = self.epoch + 1, decisions(self.trained)
        n = len(self.lab.train.images)
        seed = seeds.mixed(self.recipe.seed, self.epoch)
        return data.shuffled(n, min(self.recipe.batch_size, n), seed, self.lab.device)

    def end_epoch(self, total: float) -> None:
        """Validate after an epoch whose losses have this sum, and tell whether training is over."""
        metrics, loss = self.metrics, math.nan
        if math.isfinite(total):
            if isinstance(self.trained, CountingReportLAE):
                self.trained.copy_to(self.model)
            loss = self.recipe.validation_loss(self.model, self.lab)
        if not math.isfinite(loss):
            metrics["is_diverged"], self.is_over = 1.0, True
            return
        accepted, proposed = (decisions(self.trained) - self.before).tolist()
        metrics |= {"epochs": self.epoch} | ({"acceptance": accepted / proposed} if proposed else {})
        if isinstance(self.model, AutoencoderWithChain) and self.trained is self.model:
            metrics["step_size"] = self.model.log_step_size.exp().item()
        if loss < self.best:
            self.best, metrics["best_epoch"] = loss, self.epoch
            self.kept = {name: t.clone() for name, t in self.model.state_dict().items()}
        has_patience = self.epoch - metrics["best_epoch"] < self.recipe.patience
        self.is_over = self.epoch == self.recipe.epochs or not has_patience

    def found(self) -> Product | ArithmeticError:
        if not self.kept:
            return ArithmeticError(f"training diverged in its first epoch: {self.recipe.describe()}")
        return Product(self.kept, self.metrics | {"seconds": self.seconds})


def train(
    recipes: Sequence[TrainedAutoencoder], lab: Lab
) -> Iterator[tuple[TrainedAutoencoder, Product | ArithmeticError]]:
    """Train models side by side, `lab.at_once` of them, and yield each with its product as soon as its training is over; then the next
    one takes its place. Each becomes what it would become alone. `seconds` are its share of the time."""
    waiting, active = list(recipes), list[_Training]()
    while waiting or active:
        n_free = lab.at_once - len(active)
        active += [_Training(recipe, lab) for recipe in waiting[:n_free]]
        del waiting[:n_free]
        captures = None if all(t.recipe.company() for t in active) else False
        steps = SideBySide([t.step for t in active], [t.numbers for t in active], capture=captures)
        while not any(t.is_over for t in active):
            start = time.perf_counter()
            _train_an_epoch(active, steps, lab.device)
            share = (time.perf_counter() - start) / len(active)
            for t in active:
                t.seconds += share
        for t in active:
            if t.is_over:
                yield t.recipe, t.found()
        active = [t for t in active if not t.is_over]
        del steps
        gc.collect()  # their graph, which knows them, and its memory


@torch.enable_grad()
def _train_an_epoch(active: Sequence[_Training], steps: SideBySide, device: torch.device) -> None:
    totals = torch.zeros(len(active), device=device)
    for indices in zip(*(t.minibatches() for t in active), strict=True):
        totals += steps(torch.stack(indices))
    for t, total in zip(active, totals.tolist(), strict=True):
        t.end_epoch(total)
