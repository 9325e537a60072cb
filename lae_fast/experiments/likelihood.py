"""The study of `python -m lae_fast.experiments likelihood`: which model finds test images more likely, on level ground.

It has three parts, each with a document of its own: binary images, grey images, and the paper's own row.

Everything is chosen on validation images, by the importance-weighted bound: the batch size by the VAE, learning rate and
cooldown for each model and kind of data from the same grid, at nz 8 with a seed that is not among those that are scored. Then
all models train on the same minibatches for the same number of updates, for each seed and number of latent dimensions, and are
scored on test images that no choice has used. A second table gives each model the wall-clock time of our LAE instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from lae_fast.experiments.contenders import (
    CONTENDERS,
    DATA,
    OURS,
    Contender,
    ElboPerDimension,
    Scored,
    StepTimes,
    Validated,
)
from lae_fast.experiments.recipes import Recipe

Metrics = Callable[[Recipe], dict[str, float] | None]  # None: not known yet
DIVERGED = dict.fromkeys(("bound", "nll", "per_dimension"), math.inf)  # the metrics of what has diverged
NAMES = tuple(CONTENDERS)[:5]
PUBLISHED = {"VAE": 1.189, "Hoffman's method": 1.189, "LAE, joint, authors' step": 1.177}  # the paper's table
PAPER = ("VAE", "Hoffman's method", *tuple(CONTENDERS)[5:], OURS)
TIMED = ("VAE", "Hoffman's method", OURS)
PARTS = (*DATA, "paper")
TUNING_SEED = 100
AS_GOOD = 0.5  # nats: by how much a larger batch size may be worse


@dataclasses.dataclass(frozen=True)
class Study:
    """Sizes of the study."""

    n_seeds: int = 5
    dimensions: tuple[int, ...] = (2, 8, 16)
    images: int = 550_000  # training images that a model sees: ten epochs
    batch_sizes: tuple[int, ...] = (128, 256, 512)
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3)
    cooldowns: tuple[float, ...] = (0.2, 0.5)
    n_scored: int = 1000
    n_temperatures: int = 100
    nh: int = 256
    paper_updates: int = 11_000  # of 100 images: twenty epochs
    paper_nh: int = 1024


QUICK = Study(
    n_seeds=2,
    dimensions=(2, 3),
    images=2000,
    batch_sizes=(50, 100),
    rates=(1e-3, 2e-3),
    cooldowns=(0.2,),
    n_scored=20,
    n_temperatures=5,
    nh=32,
    paper_updates=5,
    paper_nh=32,
)


class Unknown(Exception):
    """Something has to be measured before this can be said."""


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """The study with what is known of it so far. Methods raise `Unknown` for what is not."""

    study: Study
    metrics: Metrics

    def known(self, recipe: Recipe) -> dict[str, float]:
        found = self.metrics(recipe)
        if found is None:
            raise Unknown
        return found

    # ---- choices ----

    def _contender(self, name: str, kind: str, seed: int, batch_size: int, **options: Any) -> Contender:
        updates = self.study.images // batch_size
        sizes: dict[str, Any] = dict(nz=8, updates=updates, batch_size=batch_size, nh=self.study.nh)
        return Contender(name, kind, seed=seed, **(sizes | options))

    def batch_trials(self) -> dict[int, Validated]:
        """Batch size -> the VAE's validation, on binary images."""
        return {
            size: Validated(self._contender("VAE", "binary", TUNING_SEED, size, lr=1e-3, cooldown=0.2))
            for size in self.study.batch_sizes
        }

    def batch_size(self) -> int:
        """The largest, and so the fastest, that is as good as the best one."""
        bounds = {size: self.known(trial)["bound"] for size, trial in self.batch_trials().items()}
        return max(size for size, bound in bounds.items() if bound <= min(bounds.values()) + AS_GOOD)

    def trials(self, name: str, kind: str) -> dict[tuple[float, float], Validated]:
        """(learning rate, cooldown) -> validation."""
        size = self.batch_size()
        return {
            (lr, cooldown): Validated(
                self._contender(name, kind, TUNING_SEED, size, lr=lr, cooldown=cooldown)
            )
            for lr in self.study.rates
            for cooldown in self.study.cooldowns
        }

    def choice(self, name: str, kind: str) -> tuple[float, float]:
        """The learning rate and the cooldown of a model for a kind of data."""
        trials = self.trials(name, kind)
        return min(trials, key=lambda t: self.known(trials[t])["bound"])

    # ---- what is scored ----

    def scored(self, name: str, kind: str, nz: int, updates: int | None = None) -> tuple[Scored, ...]:
        """One for each seed; after as many updates as all others by default."""
        (lr, cooldown), size = self.choice(name, kind), self.batch_size()
        options = dict(nz=nz, lr=lr, cooldown=cooldown) | ({} if updates is None else dict(updates=updates))
        return tuple(
            Scored(
                self._contender(name, kind, seed, size, **options),
                self.study.n_scored,
                self.study.n_temperatures,
            )
            for seed in range(self.study.n_seeds)
        )

    def step_times(self, nz: int) -> StepTimes:
        return StepTimes(TIMED, nz, self.batch_size(), self.study.nh)

    def in_our_time(self, name: str, nz: int) -> int:
        """The number of updates that a model makes while our LAE makes its own; in steps of 1 %."""
        times, own = self.known(self.step_times(nz)), self.study.images // self.batch_size()
        ratio = times[f"seconds_{OURS}"] / times[f"seconds_{name}"]
        return round(own * round(ratio, 2))

    def timed(self, name: str, nz: int) -> tuple[Scored, ...]:
        if name == OURS:
            return self.scored(name, "binary", nz)
        return self.scored(name, "binary", nz, self.in_our_time(name, nz))

    def paper(self, name: str) -> ElboPerDimension:
        s = self.study
        return ElboPerDimension(
            Contender(name, "grey", 8, 0, s.paper_updates, 100, 1e-4, 0.0, s.paper_nh, "logistic", "sgd")
        )

    def recipes(self, part: str) -> list[Recipe]:
        """The part's recipes that can be named by now, in the order of interest."""
        if part == "paper":
            return [self.paper(name) for name in PAPER]

        def tried(name: str) -> Iterable[Recipe]:
            return self.trials(name, part).values()

        def timing(nz: int) -> Iterable[Recipe]:
            return [self.step_times(nz)]

        later: list[Callable[[], Iterable[Recipe]]] = [partial(tried, name) for name in NAMES]
        later += [partial(self.scored, name, part, nz) for nz in self.study.dimensions for name in NAMES]
        if part == "binary":
            later += [partial(timing, nz) for nz in self.study.dimensions]
            later += [partial(self.timed, name, nz) for nz in self.study.dimensions for name in TIMED]
        found: list[Recipe] = [*self.batch_trials().values()]
        for make in later:
            with contextlib.suppress(Unknown):
                found.extend(make())
        return list(dict.fromkeys(found))
