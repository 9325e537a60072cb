"""`python -m lae_fast.experiments`: the report's tables and figures, measured here, in one document."""

from __future__ import annotations

import dataclasses
import datetime
import io
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import tyro

from lae_fast import checks, console, progress
from lae_fast.checkpoint import CheckpointError, sweep, write_atomically
from lae_fast.console import complain, say
from lae_fast.data import DataError
from lae_fast.experiments import drawings, render
from lae_fast.experiments.claims import claims
from lae_fast.experiments.design import Design
from lae_fast.experiments.figures import drawings as figures
from lae_fast.experiments.likelihood import DIVERGED, PARTS, QUICK, Likelihood, Study
from lae_fast.experiments.likelihood_document import Document
from lae_fast.experiments.presets import PRESETS, Preset
from lae_fast.experiments.questions import questions
from lae_fast.experiments.recipes import Lab, Recipe, ordered
from lae_fast.experiments.record import Drawn, Measured, Record
from lae_fast.experiments.runner import run
from lae_fast.experiments.style import STYLE
from lae_fast.experiments.tables import Table, tables

SKETCHES = {
    "figure1": (
        "Algorithm 3: training a classifier with variations drawn from a latent variable model",
        drawings.training,
    ),
    "figure2": ("The fully connected networks of LAE and VAE", drawings.architecture),
}


FOLDERS = {"quick": "runs/quick", "cpu": "results", "report": "results/full"}  # of presets
BAR = "{percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left"


@dataclasses.dataclass(frozen=True)
class Options:
    """The report's experiments, beside the published numbers, with a verdict on each of its claims."""

    artefacts: tyro.conf.Positional[tuple[str, ...]] = ("all",)
    """all; or any of table1 .. table9, figure1 .. figure5, beyond, or of the latter beyond-few-labels, beyond-imbalance and
    beyond-adversarial. Or likelihood, and perhaps which of its parts, binary, grey and paper: which model finds test images more likely, on
    level ground; each part has a document of its own."""
    preset: Literal["quick", "cpu", "report"] = "cpu"
    """quick: a small subset, some minutes, to see that everything works. cpu: what two cores do in a night, ten hours and more. report: the
    report's own setting, up to 1,000 epochs: for a GPU, or table by table."""
    seeds: int | None = None
    """Seeds of every row that is made; default: the preset's. The document shows what the record has of the preset's others, too."""
    output: Path | None = None
    """Folder of report.md, report.csv and the figures; default results, with quick runs/quick, with report results/full. What its
    report.jsonl (of likelihood: likelihood.jsonl) has from earlier runs stays in the document, with its commit, until it is measured anew."""
    cache: Path = Path("runs/experiments")
    """Folder of what has been trained and measured. Nothing in it is computed twice: the same command goes on where it was stopped."""
    dataset: Literal["auto", "mnist", "fashion-mnist", "kmnist", "emnist-digits", "digits"] = "auto"
    """auto: MNIST, found or downloaded; without a network scikit-learn's digits, enlarged to 28 x 28."""
    data_dir: Path = Path("~/.cache/lae_fast")
    """Where MNIST lies or goes (torchvision's layout: MNIST/raw inside)."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, ..."""
    workers: int | None = None
    """Processes of one thread each; default: one for every core. 1: all in one process, with all threads; on a GPU the default."""
    side_by_side: int | None = None
    """Models that one process trains at once, with --workers 1; default: 10 on a GPU, where their steps are branches of one CUDA graph,
    else 1."""
    missing: bool = False
    """Make only the numbers of tables and claims that report.jsonl lacks, by whatever code it has the others. A model is trained only
    if such a number, or a figure, needs it."""

    def __post_init__(self) -> None:
        checks.expand_paths(self, "output", "cache")
        for name in ("seeds", "workers", "side_by_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{checks.option(name)} is {value}; expected at least 1")

        if (self.workers or 1) > 1 and (self.side_by_side or 1) > 1:
            raise ValueError(
                f"--side-by-side is {self.side_by_side} with --workers {self.workers}; expected --workers 1"
            )
        if self.artefacts[:1] == ("likelihood",) and self.missing:
            raise ValueError("--missing is for tables and claims; expected none with likelihood")
        if self.artefacts[:1] == ("likelihood",) and (wrong := set(self.artefacts[1:]) - set(PARTS)):
            raise ValueError(
                f"likelihood {' '.join(sorted(wrong))} is unknown; expected some of {', '.join(PARTS)}"
            )

    def parts(self) -> tuple[str, ...]:
        """The parts of the study of likelihoods that are asked for."""
        return self.artefacts[1:] or PARTS

    def designs(self) -> tuple[Design, Design]:
        """That of what is to be made, and that of the document, which has as many seeds as the preset at least."""
        preset: Preset = PRESETS[self.preset]
        n_seeds = self.seeds or preset.n_seeds
        made, shown = (
            dataclasses.replace(preset, n_seeds=n) for n in (n_seeds, max(n_seeds, preset.n_seeds))
        )
        return Design(made), Design(shown)

    def command(self) -> str:
        """What was asked for, as a command: without folders and processes, which decide no number."""
        told = {name: getattr(self, name) for name in ("preset", "seeds", "dataset")}
        flags = [w for k, v in told.items() if v != getattr(Options, k) for w in (f"--{k}", str(v))]
        missing = ["--missing"] if self.missing else []
        return shlex.join(["python", "-m", "lae_fast.experiments", *self.artefacts, *flags, *missing])

    def folder(self) -> Path:
        return self.output or Path(FOLDERS[self.preset])


class Experiments:
    """What was asked for, what is known of it so far, and the document that says so."""

    def __init__(self, options: Options) -> None:
        device = str(checks.command_device(options.device))
        self.options, self.device = options, device
        self.design, shown = options.designs()
        self.tables, self.claims, self.questions = tables(shown), claims(shown), questions(shown)
        self.figures = figures(self.design)
        is_study = options.artefacts[:1] == ("likelihood",)
        self.names = [] if is_study else self.chosen()  # before the data are opened, perhaps downloaded
        is_gpu = device.startswith("cuda")
        alone = is_gpu or (options.side_by_side or 1) > 1
        self.workers = options.workers or (1 if alone else os.cpu_count() or 1)
        at_once = options.side_by_side or (10 if is_gpu and self.workers == 1 else 1)
        preset = PRESETS[options.preset]
        self.open_lab = partial(
            Lab.open,
            options.dataset,
            options.data_dir,
            device,
            options.cache,
            preset.n_train,
            preset.n_test,
            at_once,
        )
        self.lab = self.open_lab()
        self.folder = options.folder()
        name = "likelihood" if is_study else "report"
        self.record = Record(self.folder / f"{name}.jsonl", self.lab.digest)
        if self.record.is_of_other_data():
            raise ValueError(
                f"{self.folder} holds measurements of other data than {self.lab.source}; expected an --output of its own for these"
            )
        for folder in (self.folder, options.cache):
            sweep(folder, age=3600.0)  # what killed runs have left; others may write there now
        self.failed: dict[Recipe, str] = {}
        self._known: dict[Recipe, dict[str, float]] = {}
        self._recorded: dict[Recipe, Measured | None] = {}
        self._provenance: dict[Recipe, dict[str, str]] = {}

    def chosen(self) -> list[str]:
        """Names of tables and figures in order.

        Raises:
            ValueError: an unknown one.
        """
        names = [*self.tables, *self.figures]
        found: list[str] = []
        for name in self.options.artefacts:
            groups = {
                "all": [*SKETCHES, *names],
                "beyond": [n for n in self.tables if self.tables[n].is_beyond],
            }
            if name not in names and name not in groups and name not in SKETCHES:
                known = ", ".join([*names, *SKETCHES])
                raise ValueError(f"{name!r} is unknown; expected all, beyond, {known}; or likelihood first")
            found += groups.get(name, [name])
        return list(dict.fromkeys(found))

    def metrics(self, recipe: Recipe) -> dict[str, float] | None:
        """What a recipe and those that it needs have measured, by today's code or as the record has it; None: not yet."""
        if recipe not in self._known:
            if recipe in self.failed:  # today's code has nothing to say, and that is what counts
                return None
            if not all(self.lab.has(r) for r in ordered([recipe])):
                return self._earlier(recipe)
            inherited = [self.metrics(r) or {} for r in recipe.needs()]
            product = self.lab.get(recipe)
            self._known[recipe] = {k: v for m in (*inherited, product.metrics) for k, v in m.items()}
            self._provenance[recipe] = product.provenance or {}
            self.record.add(recipe, Measured(self._known[recipe], self._provenance[recipe]))
        return self._known[recipe]

    def _earlier(self, recipe: Recipe) -> dict[str, float] | None:
        if recipe not in self._recorded:
            self._recorded[recipe] = self.record.find(recipe)
        if (found := self._recorded[recipe]) is None:
            return None
        self._provenance[recipe] = found.provenance
        return found.metrics

    def _asked(self, name: str) -> list[Recipe]:
        """The recipes of one table, figure or sketch."""
        found = tables(self.design).get(name) or self.figures.get(name)
        return list(found.recipes()) if found else []

    def _to_make(
        self, asked: Sequence[Recipe], left_out: dict[Recipe, str], *, weights: bool = False
    ) -> list[Recipe]:
        """What is to be made of those asked for, and all that it needs. What this machine cannot make is added to `left_out`.

        weights: the trained models are asked for; else what they measure, which with --missing earlier runs may have measured.
        """
        only_missing = self.options.missing and not weights
        found = [r for r in asked if not only_missing or self.metrics(r) is None]
        left_out |= {r: reason for r in found if not self.lab.has(r) and (reason := r.obstacle())}
        return ordered(r for r in found if r not in left_out)

    def _n_at_once(self) -> int:
        return max(self.workers, self.lab.at_once)

    def run(self) -> int:
        """Make what is missing, writing table by table; the exit code."""
        self.folder.mkdir(parents=True, exist_ok=True)
        left_out: dict[Recipe, str] = {}
        parts = {
            name: self._to_make(self._asked(name), left_out, weights=name in self.figures)
            for name in self.names
        }
        if "all" in self.options.artefacts:
            judged = [r for claim in claims(self.design) for r in claim.recipes()]
            parts["claims"] = self._to_make(judged, left_out)
        todo = [r for r in ordered(r for part in parts.values() for r in part) if not self.lab.has(r)]
        say(f"data      {self.lab.source}")
        n_all = len(set().union(*parts.values()))
        say(
            f"work      {len(todo)} of {n_all} models and measurements to make, {self._n_at_once()} at a time; "
            f"kept in {self.options.cache}"
        )
        for reason, n in Counter(left_out.values()).items():
            say(f"left out  {n} measurements: {reason}, which is not installed")
        self._finish(parts)
        try:
            self._make(todo, lambda: self._finish(parts))
        finally:
            self.record.write()  # also what is of no complete table
        say(f"written   {self.folder}: report.md, report.csv and figures")
        return 1 if self.failed else 0

    def run_likelihood(self, part: str) -> int:
        """Make a part of the study of likelihoods, whose choices decide what comes next; the exit code."""
        study = QUICK if self.options.preset == "quick" else Study()
        if self.options.seeds is not None:
            if self.options.seeds < study.n_seeds and not self.options.output:
                raise ValueError(
                    f"--seeds is {self.options.seeds}, and {self.folder} has documents of {study.n_seeds}; expected an --output of "
                    "its own for fewer"
                )
            study = dataclasses.replace(study, n_seeds=self.options.seeds)
        likelihood = Likelihood(study, lambda r: DIVERGED if r in self.failed else self.metrics(r))
        self.folder.mkdir(parents=True, exist_ok=True)
        say(f"data      {self.lab.source}")

        def wanted() -> list[Recipe]:
            return ordered(likelihood.recipes(part))

        def write() -> None:
            sizes = len(self.lab.train.images), len(self.lab.test.images)
            document = Document(
                likelihood, part, tuple(self._facts(wanted())), self.lab.source.split(",")[0], *sizes
            )
            document.write(self.folder)
            self.record.write()

        write()
        while todo := [r for r in wanted() if not self.lab.has(r) and r not in self.failed]:
            say(
                f"work      {part}: {len(todo)} models and measurements to make, {self._n_at_once()} at a time"
            )
            self._make(todo, write)
        say(f"written   {self.folder}: likelihood_{part}.md, likelihood_{part}.csv")
        return 1 if self.failed else 0

    def _make(self, todo: Sequence[Recipe], after_each: Callable[[], None]) -> None:
        """Make what is missing, under a bar."""
        total = sum(r.cost() for r in todo)
        with progress.bar(total=total, unit=" s", bar_format=BAR) as bar:
            for recipe, failure in run(todo, self.open_lab, self.workers):
                if failure:
                    self.failed[recipe] = failure
                    with bar.external_write_mode(file=sys.stderr):
                        complain(f"failed: {failure}")
                else:
                    self.metrics(recipe)  # into the record
                bar.update(recipe.cost())
                after_each()

    def _finish(self, parts: dict[str, list[Recipe]]) -> None:
        """Draw and write down what has become complete, and take it off the list."""
        complete = [n for n, part in parts.items() if all(self.lab.has(r) or r in self.failed for r in part)]
        for name in complete:
            part = parts.pop(name)
            if not any(r in self.failed for r in part):
                self._draw(name)
        if complete:
            self._write()

    def _draw(self, name: str) -> None:
        """Figures alone; a table is all in the document."""
        import matplotlib

        if name not in SKETCHES and name not in self.figures:
            return
        with matplotlib.rc_context(STYLE):
            figure = SKETCHES[name][1]() if name in SKETCHES else self.figures[name].draw(self.lab)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
            write_atomically(self.folder / f"{name}.png", buffer.getvalue())
        if name in self.figures:
            self.record.add(Drawn(name), Measured({}, self.lab.provenance))

    def _origins(self, what: str, known: Iterable[Recipe]) -> str:
        """All commits, machines or versions that made these products; with counts if there are several."""
        counts = Counter(p[what] for r in dict.fromkeys(known) if what in (p := self._provenance.get(r, {})))
        if len(counts) < 2:
            return next(iter(counts), "nothing was measured")
        return ", ".join(f"{name} ({n} of {counts.total()})" for name, n in counts.most_common())

    def _signed(self, table: Table) -> Table:
        """The table, which says what commits have measured it if they are not the same for all tables."""
        known = [r for r in table.recipes() if self.metrics(r)]
        if not known or len({p.get("commit") for p in self._provenance.values()}) < 2:
            return table
        origin = self._origins("commit", known)
        return dataclasses.replace(table, note=f"{table.note} Commit: {origin}.")

    def _facts(self, recipes: Iterable[Recipe]) -> list[str]:
        """Where the known products among the recipes come from."""
        known = {r: m for r in recipes if (m := self.metrics(r))}
        seconds = [m["seconds"] for m in known.values() if "seconds" in m]
        return [
            f"Machine: {self._origins('machine', known)}; {self.device}",
            f"Versions: {self._origins('versions', known)}",
            f"Commit: {self._origins('commit', known)}",
            f"Data: {self.lab.source.split(', found')[0]}; {len(self.lab.train.images):,} training, {len(self.lab.validation.images):,} validation, "
            f"{len(self.lab.test.images):,} test images",
            f"Written: {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d} by `{self.options.command()}`; what earlier runs measured is kept",
            f"Time: {sum(seconds) / 3600:.2f} hours for {len(seconds)} of the {len(known)} models and measurements in the record; what else "
            "was trained for them is not counted",
        ]

    def _write(self) -> None:
        shown = [r for table in self.tables.values() for r in table.recipes()]
        shown += [r for figure in self.figures.values() for r in figure.recipes()]
        judged = [r for c in (*self.claims, *self.questions) for r in c.recipes()]
        facts = self._facts(ordered([*shown, *judged]))
        captions = {name: title for name, (title, _) in SKETCHES.items()}
        for name, figure in self.figures.items():
            if drawn := self.record.find(Drawn(name)):  # of this data
                captions[name] = f"{figure.title}. Commit: {drawn.provenance['commit']}"
        render.write(
            self.folder,
            facts,
            [self._signed(t) for t in self.tables.values()],
            captions,
            self.claims,
            self.questions,
            self.metrics,
            len(self.lab.train.images),
        )
        self.record.write()


def _run(argv: Sequence[str] | None) -> int:
    argv = console.arguments(argv)
    options = tyro.cli(Options, args=argv, prog=" ".join(console.typed("experiments")))
    experiments = Experiments(options)
    if options.artefacts[:1] == ("likelihood",):
        return max(experiments.run_likelihood(part) for part in options.parts())
    return experiments.run()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: a clear line instead of a traceback for whatever a user can mend."""
    return console.run(
        lambda: _run(argv),
        (DataError, CheckpointError, ValueError, OSError, torch.OutOfMemoryError, BrokenProcessPool),
        "stopped; what is finished is kept: the same command goes on from there",
    )


if __name__ == "__main__":
    sys.exit(main())
