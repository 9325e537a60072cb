"""Models on level ground: the same minibatches, numbers of updates and tuning for all, and scores of their likelihood."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lae_fast import data, seeds
from lae_fast.evaluation import (
    anneal,
    annealed_log_likelihood,
    evaluate,
    fit_posterior_scale,
    importance_bound,
    quadrature,
    simulated_gap,
)
from lae_fast.evaluation.grid import N_CELLS
from lae_fast.experiments.recipes import Lab, Product, Recipe
from lae_fast.models import Architecture, Autoencoder, AutoencoderWithChain, build
from lae_fast.training import TrainingStep, adam, cool_down

JOINT: dict[str, Any] = dict(decisions="joint")
CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> model and its options
    "VAE": ("vae", {}),
    "Hoffman's method": ("hoffman", {}),
    "LAE, joint, fixed step": ("lae", JOINT | dict(step_size=1e-3)),  # as the report publishes it
    "LAE, joint, best recipe": (
        "lae",
        JOINT | dict(decoder_window="before", feature_window="before", whiten=True, adaptation_rate=0.01),
    ),
    "LAE": ("lae", {}),
    # as in the authors' code, without and with Metropolis-Hastings
    "LAE, joint, authors' step, no MH": ("lae", JOINT | dict(step_size=1e-4, mh=False)),
    "LAE, joint, authors' step": ("lae", JOINT | dict(step_size=1e-4)),
}
OURS = "LAE"
DATA = ("binary", "grey")


def pixels(images: Tensor, kind: str, seed: int = 0) -> Tensor:
    """uint8 images [N, nx] as a kind of data: grey, or one binary draw of each pixel that the seed decides."""
    if kind == "grey":
        return images
    return data.binarize(images, torch.Generator(images.device).manual_seed(seed))


@dataclasses.dataclass(frozen=True)
class Contender(Recipe):
    """A contender after `updates` steps of its optimizer. The seed decides minibatches and binary draws, for all alike."""

    name: str  # of CONTENDERS
    data: str  # of DATA: binary images are drawn anew at each use
    nz: int
    seed: int
    updates: int
    batch_size: int
    lr: float
    cooldown: float  # fraction of the updates, the last ones, over which the learning rate falls to 0
    nh: int = 256
    likelihood: str = "bernoulli"
    optimizer: str = "adam"  # or sgd

    def cost(self) -> float:
        passes = {"vae": 1.0, "hoffman": 3.5, "lae": 2.7}[CONTENDERS[self.name][0]]
        return passes * self.updates * (4e-3 + self.batch_size * self.nh**2 * 4e-10)

    def build(self, nx: int) -> Autoencoder:
        model, options = CONTENDERS[self.name]
        a = Architecture(model, nx=nx, nz=self.nz, nh=self.nh, likelihood=self.likelihood)
        return build(a, **options)

    def batches(self, lab: Lab) -> Iterator[Tensor]:
        """Minibatches [n, nx] in [0, 1] without end."""
        generator = torch.Generator(lab.device).manual_seed(seeds.mixed(self.seed, 1))
        size = min(self.batch_size, len(lab.train.images))
        for epoch in itertools.count():
            for index in data.shuffled(
                len(lab.train.images), size, seeds.mixed(self.seed, epoch), lab.device
            ):
                x = lab.train.images[index]
                yield (data.binarize(x, generator) if self.data == "binary" else x) / 255

    def make(self, lab: Lab) -> Product:
        torch.manual_seed(self.seed)
        model = self.build(lab.nx).to(lab.device)
        optimizer: torch.optim.Optimizer
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(model.parameters(), self.lr)
        else:
            optimizer = adam(model, self.lr, model.beta1)
        step = TrainingStep(model, optimizer, capture=False if self.optimizer == "sgd" else None)
        acceptance = unmoved = total = torch.zeros((), dtype=torch.float64, device=lab.device)
        last = max(1, self.updates // 10)  # updates that the means of what the chain did are taken over
        for i, x in enumerate(itertools.islice(self.batches(lab), self.updates)):
            cool_down(optimizer, self.lr, i / self.updates, self.cooldown)
            total = total + step(x)
            if isinstance(model, AutoencoderWithChain) and i >= self.updates - last:
                acceptance, unmoved = acceptance + model.acceptance_rate, unmoved + model.unmoved
        if not math.isfinite(float(total)):
            raise ArithmeticError(f"training diverged: {self.describe()}")
        fit_posterior_scale(model, pixels(lab.train.images[:2000], self.data))
        metrics = {}
        if isinstance(model, AutoencoderWithChain):
            metrics = {"acceptance": float(acceptance) / last, "unmoved": float(unmoved) / last}
            metrics["step_size"] = model.log_step_size.exp().item()
        return Product({k: t.clone() for k, t in model.state_dict().items()}, metrics)

    def load(self, lab: Lab) -> Autoencoder:
        model = self.build(lab.nx)
        model.load_state_dict(lab.get(self).weights)
        return model.to(lab.device).eval()


@dataclasses.dataclass(frozen=True)
class Validated(Recipe):
    """The importance-weighted bound of -log p(x) on validation images: `bound`, nats per image. Choices are made by it."""

    contender: Contender
    n_images: int = 1000
    n_draws: int = 200

    def cost(self) -> float:
        return self.n_images * self.n_draws * 2e-5

    def make(self, lab: Lab) -> Product:
        model = self.contender.load(lab)
        x = pixels(lab.validation.images[: self.n_images], self.contender.data, seed=1) / 255
        return Product({}, {"bound": -importance_bound(model, x, n_draws=self.n_draws).mean().item()})


@dataclasses.dataclass(frozen=True)
class Scored(Recipe):
    """-log p(x) of the last `n_images` test images, `nll` in nats per image: by quadrature for nz up to 2, else by AIS.

    A pilot on validation images chooses the base that AIS anneals from. `gap` is reverse minus forward AIS on images that
    the model has simulated.
    """

    contender: Contender
    n_images: int = 1000
    n_temperatures: int = 100
    n_chains: int = 8
    n_simulated: int = 50

    def cost(self) -> float:
        if self.contender.nz in N_CELLS:
            return 15.0
        return 1.4 * self.n_images * self.n_chains * self.n_temperatures * 2e-5

    def make(self, lab: Lab) -> Product:
        model, kind = self.contender.load(lab), self.contender.data
        x = pixels(lab.test.images[-self.n_images :], kind, seed=2) / 255
        quality = evaluate(model, x, n_draws=5)
        metrics = {"negative_elbo": quality.negative_elbo, "rate": quality.rate}
        if model.nz in N_CELLS:
            return Product({}, metrics | {"nll": -quadrature(model, x).mean().item()})
        pilot = pixels(lab.validation.images[: self.n_simulated], kind, seed=1) / 255
        options: dict[str, Any] = dict(n_chains=self.n_chains, seed=self.contender.seed)
        _, schedule = anneal(model, pilot, n_temperatures=self.n_temperatures, progress=False, **options)
        forward = annealed_log_likelihood(model, x, schedule, progress=False, **options)
        return Product(
            {},
            metrics
            | {
                "nll": -forward.log_likelihood.mean().item(),
                "gap": simulated_gap(model, schedule, self.n_simulated, **options),
                "ais_acceptance": forward.acceptance_rate.mean().item(),
                "is_from_prior": float(schedule.base == "prior"),
            },
        )


@dataclasses.dataclass(frozen=True)
class ElboPerDimension(Recipe):
    """The negative ELBO of all test images, nats per pixel."""

    contender: Contender

    def cost(self) -> float:
        return 10.0

    def make(self, lab: Lab) -> Product:
        model, images = self.contender.load(lab), pixels(lab.test.images, self.contender.data, seed=2)
        return Product({}, {"per_dimension": evaluate(model, images, n_draws=5).negative_elbo / lab.nx})


@dataclasses.dataclass(frozen=True)
class StepTimes(Recipe):
    """Seconds of one update of each contender on binary images, in turns: `seconds_NAME`, medians."""

    names: tuple[str, ...]
    nz: int
    batch_size: int
    nh: int
    n_turns: int = 30

    def cost(self) -> float:
        return self.n_turns * 0.1

    def make(self, lab: Lab) -> Product:
        steps: dict[str, tuple[TrainingStep, Iterator[Tensor]]] = {}
        spent: dict[str, list[float]] = {name: [] for name in self.names}
        for name in self.names:
            c = Contender(name, "binary", self.nz, 0, self.n_turns, self.batch_size, 1e-3, 0.0, self.nh)
            model = c.build(lab.nx).to(lab.device)
            steps[name] = TrainingStep(model, adam(model, c.lr, model.beta1)), c.batches(lab)
        for _ in range(self.n_turns):
            for name, (step, batches) in steps.items():
                x = next(batches)
                start = time.perf_counter()
                float(step(x))
                spent[name].append(time.perf_counter() - start)
        return Product({}, {f"seconds_{name}": statistics.median(times) for name, times in spent.items()})
