"""The study of `python -m lae_fast.experiments likelihood`: which model finds test images more likely, on level ground.

It has three parts, each with a document of its own: binary images, grey images, and the paper's own row.

Everything is chosen on validation images, by the importance-weighted bound: the batch size by the VAE, learning rate and
cooldown for each model and kind of data from the same grid, at nz 8 with a seed that is not among those that are scored. Then
all models train on the same minibatches for the same number of updates, for each seed and number of latent dimensions, and are
scored on test images that no choice has used. A second table gives each model the wall-clock time of our LAE instead.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from lae_fast.checkpoint import write_atomically
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
    paper_updates: int = 2750
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

    def _contender(self, name: str, kind: str, seed: int, batch_size: int, **options: object) -> Contender:
        updates = self.study.images // batch_size
        return Contender(
            name,
            kind,
            **(dict(nz=8, seed=seed, updates=updates, batch_size=batch_size, nh=self.study.nh) | options),
        )

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

    def trial_recipes(self, name: str, kind: str) -> Iterable[Recipe]:
        return self.trials(name, kind).values()

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

    def step_times(self, nz: int) -> tuple[StepTimes]:
        options = dict(batch_size=self.batch_size(), nz=nz, lr=1e-3, cooldown=0.2, updates=1)
        return (StepTimes(tuple(self._contender(name, "binary", 0, **options) for name in TIMED)),)

    def in_our_time(self, name: str, nz: int) -> int:
        """The number of updates that a model makes while our LAE makes its own; in steps of 1 %."""
        times, own = self.known(self.step_times(nz)[0]), self.study.images // self.batch_size()
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
        later: list[Callable[[], Iterable[Recipe]]] = [
            partial(self.trial_recipes, name, part) for name in NAMES
        ]
        later += [partial(self.scored, name, part, nz) for nz in self.study.dimensions for name in NAMES]
        if part == "binary":
            later += [partial(self.step_times, nz) for nz in self.study.dimensions]
            later += [partial(self.timed, name, nz) for nz in self.study.dimensions for name in TIMED]
        found: list[Recipe] = [*self.batch_trials().values()]
        for make in later:
            with contextlib.suppress(Unknown):
                found.extend(make())
        return list(dict.fromkeys(found))


# ---- the document ----


def mean_and_error(values: Sequence[float]) -> str:
    """Mean ± standard error."""
    middle = statistics.fmean(values)
    if len(values) < 2:
        return f"{middle:.2f}"
    return f"{middle:.2f} ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}"


def difference(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Mean ± standard error of the differences, seed by seed; bold beyond two standard errors."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    middle = statistics.fmean(differences)
    if len(differences) < 2:
        return f"{middle:+.2f}"
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    text = f"{middle:+.2f} ± {error:.2f}"
    return f"**{text}**" if abs(middle) > 2 * error else text


@dataclasses.dataclass(frozen=True)
class Document:
    """likelihood_PART.md and likelihood_PART.csv."""

    likelihood: Likelihood
    part: str
    facts: tuple[str, ...]

    def _values(self, recipes: Iterable[Recipe], key: str) -> list[float]:
        return [self.likelihood.known(r)[key] for r in recipes]

    def _row(self, label: str, cells: Iterable[Callable[[], str]]) -> str:
        """A line of a table; a cell that is not known yet says so, one that there cannot be is empty."""
        texts = []
        for cell in cells:
            try:
                texts.append(cell())
            except Unknown:
                texts.append("not run yet")
            except KeyError:
                texts.append("")
        return f"| {label} | {' | '.join(texts)} |"

    def _choices(self) -> Iterator[str]:
        found, part = self.likelihood, self.part
        trials = found.batch_trials()
        yield (
            f"The batch size is the largest whose bound on validation images is within {AS_GOOD} nats of the best one: the VAE, binary, "
            f"nz 8, lr 1e-3, cooldown 0.2:"
        )
        yield ""
        yield f"| batch size | {' | '.join(map(str, trials))} |"
        yield "|---|" + "---:|" * len(trials)
        yield self._row("bound, nats", [partial(self._mean, [t], "bound") for t in trials.values()])
        yield ""
        grid = [(lr, c) for lr in found.study.rates for c in found.study.cooldowns]
        yield "Learning rate and cooldown (the fraction of updates over which the rate falls to 0), each model's bound on validation images, nz 8; the choice in bold:"
        yield ""
        yield f"| model | {' | '.join(f'{lr:g}, {c:g}' for lr, c in grid)} |"
        yield "|---|" + "---:|" * len(grid)
        for name in NAMES:
            yield self._row(name, [partial(self._trial, name, part, at) for at in grid])
        yield ""

    def _trial(self, name: str, kind: str, at: tuple[float, float]) -> str:
        text = self._mean([self.likelihood.trials(name, kind)[at]], "bound")
        return f"**{text}**" if self.likelihood.choice(name, kind) == at else text

    def _mean(self, recipes: Iterable[Recipe], key: str) -> str:
        return mean_and_error(self._values(recipes, key))

    def _difference(self, recipes: Callable[[str, int], Iterable[Recipe]], name: str, nz: int) -> str:
        if name == OURS:
            return ""
        return difference(self._values(recipes(OURS, nz), "nll"), self._values(recipes(name, nz), "nll"))

    def _table(self, names: Iterable[str], recipes: Callable[[str, int], Iterable[Recipe]]) -> Iterator[str]:
        dimensions = self.likelihood.study.dimensions
        headings = [f"nz {nz}" for nz in dimensions] + [f"LAE minus it, nz {nz}" for nz in dimensions]
        yield f"| model | {' | '.join(headings)} |"
        yield "|---|" + "---:|" * len(headings)
        for name in names:
            cells = [lambda n=name, z=nz: self._mean(recipes(n, z), "nll") for nz in dimensions]
            cells += [partial(self._difference, recipes, name, nz) for nz in dimensions]
            yield self._row(name, cells)
        yield ""

    def _details(self) -> Iterator[str]:
        yield "| model | nz | negative ELBO | AIS gap | annealed from the prior | acceptance | unmoved | step size |"
        yield "|---|---:|" + "---:|" * 6
        for nz in self.likelihood.study.dimensions:
            for name in NAMES:

                def value(key: str, form: str, n: str = name, z: int = nz) -> str:
                    values = self._values(self.likelihood.scored(n, self.part, z), key)
                    return format(statistics.fmean(values), form)

                cells = [("negative_elbo", ".2f"), ("gap", ".2f"), ("is_from_prior", ".0%")]
                cells += [("acceptance", ".2f"), ("unmoved", ".2f"), ("step_size", ".2g")]
                yield self._row(f"{name} | {nz}", [partial(value, *cell) for cell in cells])
        yield ""

    def _scores(self) -> Iterator[str]:
        found, s = self.likelihood, self.likelihood.study
        yield (
            f"All models: the report's networks (nh {s.nh}), T = 2, Adam, {s.images:,} training images in the same minibatches, seed by "
            f"seed. -log p(x) in nats on the last {s.n_scored:,} test images, which no choice has used: nz 2 by quadrature, others by "
            f"AIS ({s.n_temperatures} temperatures, 8 chains), a stochastic upper bound. Mean ± standard error over {s.n_seeds} seeds; "
            "differences are paired by seed, negative where the LAE is better, bold beyond two standard errors."
        )
        yield ""
        if self.part == "grey":
            yield "Grey pixels under a Bernoulli likelihood are no density: these numbers compare with each other only."
            yield ""
        yield "## The same number of updates"
        yield ""
        yield from self._table(NAMES, lambda name, nz: found.scored(name, self.part, nz))
        if self.part == "binary":
            yield "## The same wall-clock time"
            yield ""
            yield "Each model makes as many updates as it can while the LAE makes its own (one thread, measured in turns):"
            yield ""
            yield f"| model | {' | '.join(f'updates, nz {nz}' for nz in s.dimensions)} |"
            yield "|---|" + "---:|" * len(s.dimensions)
            for name in TIMED:
                yield self._row(
                    name, [lambda n=name, z=nz: f"{found.in_our_time(n, z):,}" for nz in s.dimensions]
                )
            yield ""
            yield from self._table(TIMED, found.timed)
        yield "## Choices, on validation images"
        yield ""
        yield from self._choices()
        yield "## More about the first table's runs"
        yield ""
        yield "Means over seeds: the gap is reverse minus forward AIS on images that the model has simulated; the chain's numbers are of the last tenth of training."
        yield ""
        yield from self._details()

    def _paper(self) -> Iterator[str]:
        s = self.likelihood.study
        yield (
            f"Grey MNIST, discretized logistic, nh {s.paper_nh}, nz 8, batch 100, T = 2, SGD 1e-4 as in the authors' code; "
            f"{s.paper_updates:,} updates ({s.paper_updates * 100 / 55_000:.1f} epochs; theirs 50), one seed. Negative ELBO per dimension, "
            "nats, on 10,000 test images."
        )
        yield ""
        yield "| model | published | here |"
        yield "|---|---:|---:|"
        for name in PAPER:
            here = partial(self._values, [self.likelihood.paper(name)], "per_dimension")
            yield self._row(f"{name} | {PUBLISHED.get(name, '')}", [lambda v=here: f"{v()[0]:.3f}"])
        yield ""

    def lines(self) -> Iterator[str]:
        titles = {
            "binary": "How likely do the models find binary MNIST, on level ground?",
            "grey": "How well do the models fit grey MNIST, on level ground?",
            "paper": "The paper's own row",
        }
        yield from (f"# {titles[self.part]}", "", *(f"- {fact}" for fact in self.facts), "")
        yield from self._paper() if self.part == "paper" else self._scores()

    def rows(self) -> bytes:
        """Every measurement on a line of its own."""
        file, fields = io.StringIO(newline=""), [f.name for f in dataclasses.fields(Contender)]
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("kind", *fields, "metric", "value"))
        for recipe in self.likelihood.recipes(self.part):
            contender = getattr(recipe, "contender", None)
            values = [getattr(contender, f) for f in fields] if contender else [""] * len(fields)
            for key, value in (self.likelihood.metrics(recipe) or {}).items():
                writer.writerow((type(recipe).__name__, *values, key, f"{value:.6g}"))
        return file.getvalue().encode()

    def write(self, folder: Path) -> None:
        write_atomically(folder / f"likelihood_{self.part}.md", "\n".join(self.lines()).encode())
        write_atomically(folder / f"likelihood_{self.part}.csv", self.rows())
