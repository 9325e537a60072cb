"""`likelihood_PART.md` and `likelihood_PART.csv`: a part of the study of likelihoods, as far as it is known."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from lae_fast.checkpoint import write_atomically
from lae_fast.experiments.contenders import OURS, Contender
from lae_fast.experiments.likelihood import AS_GOOD, NAMES, PAPER, PUBLISHED, TIMED, Likelihood, Unknown
from lae_fast.experiments.recipes import Recipe
from lae_fast.experiments.render import NOT_YET
from lae_fast.experiments.verdicts import FAILS, HOLDS, Row, judge

Scores = Callable[[str, int], Iterable[Recipe]]  # (name, nz) -> a recipe for each seed


def mean_and_error(values: Sequence[float], form: str = ".2f") -> str:
    """Mean ± standard error; of differences, which are taken seed by seed, with "+.2f"."""
    if not all(map(math.isfinite, values)):
        return "diverged"
    middle = format(statistics.fmean(values), form)
    if len(values) < 2:
        return middle
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{middle} ± {format(error, form.removeprefix('+'))}"


@dataclasses.dataclass(frozen=True)
class Document:
    """likelihood_PART.md and likelihood_PART.csv."""

    likelihood: Likelihood
    part: str
    facts: tuple[str, ...]
    data: str  # its name
    n_train: int
    n_test: int

    def _values(self, recipes: Iterable[Recipe], key: str) -> list[float]:
        return [self.likelihood.known(r)[key] for r in recipes]

    def _row(self, label: str, cells: Iterable[Callable[[], str]]) -> str:
        """A line of a table; a cell that is not known yet says so, one that there cannot be is empty."""
        texts = []
        for cell in cells:
            try:
                texts.append(cell())
            except Unknown:
                texts.append(NOT_YET)
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

    def _mean(self, recipes: Iterable[Recipe], key: str, form: str = ".2f") -> str:
        return mean_and_error(self._values(recipes, key), form)

    def _differences(self, names: Iterable[str], recipes: Scores) -> dict[tuple[str, int], str]:
        """Our LAE minus each of the others, by name and nz, as far as known; in bold those that noise does not explain."""
        found: dict[tuple[str, int], tuple[float, ...]] = {}
        for name, nz in itertools.product(names, self.likelihood.study.dimensions):
            with contextlib.suppress(Unknown):
                ours, theirs = (self._values(recipes(n, nz), "nll") for n in (OURS, name))
                found[name, nz] = tuple(a - b for a, b in zip(ours, theirs, strict=True))
        verdicts = judge([Row(d) for d in found.values()])
        texts = {key: mean_and_error(d, "+.2f") for key, d in found.items()}
        return {
            key: f"**{text}**" if verdict.text in (HOLDS, FAILS) else text
            for (key, text), verdict in zip(texts.items(), verdicts, strict=True)
        }

    def _table(self, names: Sequence[str], recipes: Scores) -> Iterator[str]:
        dimensions = self.likelihood.study.dimensions
        differences = self._differences([n for n in names if n != OURS], recipes)
        headings = [f"nz {nz}" for nz in dimensions] + [f"LAE minus it, nz {nz}" for nz in dimensions]
        yield f"| model | {' | '.join(headings)} |"
        yield "|---|" + "---:|" * len(headings)
        for name in names:
            cells = [lambda n=name, z=nz: self._mean(recipes(n, z), "nll") for nz in dimensions]
            unknown = "" if name == OURS else NOT_YET
            cells += [partial(str, differences.get((name, nz), unknown)) for nz in dimensions]
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
            "differences are paired by seed, negative where the LAE is better; bold where p is up to 0.05 by Student's t test, two-sided, "
            "after Holm's correction for the differences of the table."
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

            def updates(name: str, nz: int) -> str:
                return f"{found.in_our_time(name, nz):,}"

            for name in TIMED:
                yield self._row(name, [partial(updates, name, nz) for nz in s.dimensions])
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
            f"Grey {self.data}, discretized logistic, nh {s.paper_nh}, nz 8, batch 100, T = 2, SGD 1e-4 as in the authors' code; "
            f"{s.paper_updates:,} updates ({s.paper_updates * 100 / self.n_train:.1f} epochs; theirs 50), one seed. Negative ELBO per dimension, "
            f"nats, on {self.n_test:,} test images."
        )
        yield ""
        yield "| model | published | here |"
        yield "|---|---:|---:|"
        for name in PAPER:
            here = partial(self._mean, [self.likelihood.paper(name)], "per_dimension", ".3f")
            yield self._row(f"{name} | {PUBLISHED.get(name, '')}", [here])
        yield ""

    def lines(self) -> Iterator[str]:
        titles = {
            "binary": f"How likely do the models find binary {self.data}, on level ground?",
            "grey": f"How well do the models fit grey {self.data}, on level ground?",
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
