"""`python -m lae_fast.score RUN [RUN ...]`: the likelihood of test images under trained models, in one table.

For each run of `lae_fast.train` the table has the negative ELBO, the importance-weighted bound and the estimate of
annealed importance sampling (AIS), with the gap between forward and reverse AIS on images that the model has simulated; with
one or two latent dimensions also the likelihood itself, by quadrature. Processes that torchrun has started share the work: the
first one reads, writes and speaks.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import tyro

from lae_fast import checkpoint, checks, console, data, models
from lae_fast.checkpoint import CheckpointError
from lae_fast.console import complain, say
from lae_fast.data import DataError
from lae_fast.evaluation import (
    BASES,
    anneal,
    evaluate,
    importance_bound,
    quadrature,
    simulated_gap,
)
from lae_fast.evaluation.grid import N_CELLS
from lae_fast.sharing import ProcessError, Shared
from lae_fast.training import run_folder, runlog
from lae_fast.training.config import Config, TrainingError
from lae_fast.training.processes import ALONE, Processes


@dataclasses.dataclass(frozen=True)
class Options:
    """Likelihoods of trained models on test images."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders that `python -m lae_fast.train` has written."""
    images: int = 500
    """Test images, the first of the set."""
    n_temperatures: int = 500
    """Temperatures of annealed importance sampling (AIS)."""
    n_chains: int = 16
    """Chains per image."""
    base: Literal[(*BASES, "both")] = "both"
    """The distribution that AIS anneals from. both: the estimate with the higher mean over the images; each estimate is
    a lower bound, and noise makes the higher one too high by at most about its standard error."""
    n_draws: int = 1000
    """Draws per image of the importance-weighted bound."""
    simulated: int = 100
    """Simulated images for the comparison of forward and reverse AIS."""
    seed: int = 0
    """Seed of all draws; the pilot run that fixes the AIS schedule uses separate noise."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ...; auto: CUDA where there is one."""
    data: Path | None = None
    """Images of your own, where they lie now; default: where the run found them (for runs on --data)."""
    data_dir: Path | None = None
    """Folder of the data sets by name; default: the folder that the run used."""
    output: Path | None = None
    """CSV file to write, one line a run."""

    def __post_init__(self) -> None:
        checks.expand_paths(self, "runs", "data", "data_dir", "output")
        object.__setattr__(self, "runs", tuple({os.path.realpath(run): run for run in self.runs}.values()))
        if not self.runs:
            raise ValueError("no RUN is given; expected folders that `lae-fast train` has written")
        for name, least in (
            ("images", 1),
            ("n_temperatures", 2),
            ("n_chains", 2),
            ("n_draws", 1),
            ("simulated", 1),
            ("seed", 0),
        ):
            checks.count(checks.option(name), getattr(self, name), least)
        if self.output is not None:  # now, and not after an hour
            file = Path(os.path.realpath(self.output))  # a link stays one; what it leads to is replaced
            if not file.parent.is_dir() or (self.output.exists() and not self.output.is_file()):
                raise ValueError(f"--output {self.output}: expected a file in a folder that exists")
            if not os.access(file.parent, os.W_OK):
                raise ValueError(f"--output {self.output}: {file.parent} cannot be written to")
            object.__setattr__(self, "output", file)


@dataclasses.dataclass(frozen=True)
class Score:
    """The scores of a run, in nats per image unless a field says otherwise; `gap` and `standard_error` concern AIS."""

    run: str
    model: str
    nz: int
    seed: int
    epochs: int
    data: str
    is_comparable: bool  # to published numbers: a probability of exactly these pixels, binary or 8-bit
    images: int
    negative_elbo: float
    reconstruction: float
    rate: float
    importance_bound: float  # upper bound of the negative log-likelihood
    ais: float  # negative log-likelihood, estimated by AIS
    standard_error: float
    effective_sample_size: float  # of AIS's weights, mean over images: near 1 the standard error says nothing
    base: str  # the distribution from which `ais` was annealed
    gap: float  # reverse minus forward log-likelihood, on simulated images
    quadrature: float | None  # negative log-likelihood by quadrature; None: too many latent dimensions
    bits_per_dim: float  # `quadrature`, or else `ais`, in bits per pixel
    ais_acceptance: float
    training_acceptance: float | None  # mean over the last epoch
    step_size: float | None
    seconds_per_epoch: float
    image_chain_steps_per_second: float  # speed of AIS; its time includes the pilot run


class _Run(NamedTuple):
    """What a score needs of a run, on the CPU."""

    config: Config
    lines: list[dict[str, Any]]  # of its records
    epochs: int
    model: models.Autoencoder
    data: str  # in words
    n_train: int
    images: torch.Tensor  # uint8 [n, *shape]


def _read(folder: Path, options: Options) -> _Run:
    config, lines = run_folder.read_config(folder), runlog.read(folder / "metrics.jsonl")
    model, best = models.load(folder), folder / "best.safetensors"
    expected = config.architecture(model.shape)
    found = models.architecture_in(checkpoint.load_weights(best)[1], best)
    if found != expected:
        raise CheckpointError(f"{best} holds {found}; expected {expected}, as config.json says")
    dataset = run_folder.data_to_evaluate(folder, config, options.data, options.data_dir)
    images = dataset.test.images[: options.images].clone()
    kind = "fixed" if config.binarize != "none" else "grey" if dataset.shape[0] == 1 else "colour"
    data_in_words, epochs = f"{dataset.name}, {kind}", run_folder.epochs(folder, lines)
    return _Run(config, lines, epochs, model, data_in_words, len(dataset.train.images), images)


def score(folder: Path, options: Options, processes: Processes = ALONE) -> Score:
    """Evaluate one run's best weights, on all processes at once; the first one reads the folder.

    Raises:
        CheckpointError, DataError, ValueError: the folder holds no run with best weights, or its data cannot be read.
        ProcessError, SystemExit: another process has failed, and says why.
    """
    run = processes.of_first(lambda: _read(folder, options))
    config, lines = run.config, run.lines
    model, x = processes.together(
        lambda: (run.model.to(options.device), data.pixels(run.images.to(options.device)))
    )
    share = None if processes.size == 1 else Shared()
    # Minutes are shared; what takes seconds is the first one's.
    quality = processes.of_first(lambda: evaluate(model, x, n_draws=20, seed=options.seed))
    bound = importance_bound(model, x, n_draws=options.n_draws, seed=options.seed, share=share)
    annealing: dict[str, Any] = dict(n_chains=options.n_chains, seed=options.seed, share=share)
    bases = BASES if options.base == "both" else (options.base,)
    start = time.perf_counter()
    forward, schedule = anneal(model, x, bases=bases, n_temperatures=options.n_temperatures, **annealing)
    seconds = (time.perf_counter() - start) / len(bases)
    nll = -forward.log_likelihood.mean().item()
    exact = None
    if model.nz in N_CELLS:
        exact = -processes.of_first(lambda: quadrature(model, x)).mean().item()

    def last(key: str) -> float | None:
        return next((line[key] for line in reversed(lines) if key in line), None)

    rates = [rate for line in lines if (rate := line.get("images_per_second", 0)) > 0]
    return Score(
        run=folder.resolve().name,
        model=config.model,
        nz=config.nz,
        seed=config.seed,
        epochs=run.epochs,
        data=run.data,
        is_comparable=model.likelihood.density_of == ("grey" if config.binarize == "none" else "binary"),
        images=len(x),
        negative_elbo=quality.negative_elbo,
        reconstruction=quality.reconstruction,
        rate=quality.rate,
        importance_bound=-bound.mean().item(),
        ais=nll,
        standard_error=forward.standard_error.square().sum().sqrt().item() / len(x),
        effective_sample_size=forward.effective_sample_size.mean().item(),
        base=schedule.base,
        gap=simulated_gap(model, schedule, options.simulated, **annealing),
        quadrature=exact,
        bits_per_dim=(nll if exact is None else exact) / (model.nx * math.log(2)),
        ais_acceptance=forward.acceptance_rate.mean().item(),
        training_acceptance=last("epoch_acceptance_rate"),
        step_size=last("step_size"),
        seconds_per_epoch=run.n_train / statistics.median(rates) if rates else math.nan,
        image_chain_steps_per_second=len(x) * options.n_chains * len(schedule.step_size) / seconds,
    )


def _report(s: Score) -> str:
    label = "" if s.is_comparable else "   (no probability of these pixels: compare among themselves only)"
    by_ais = f"{s.ais:.2f} ± {s.standard_error:.2f} by AIS (gap {s.gap:.2f} from the {s.base}, effective sample size {s.effective_sample_size:.1f})"
    exact = "" if s.quadrature is None else f"{s.quadrature:.2f} by quadrature, "
    return (
        f"{s.run}: -log p(x) {exact}{by_ais}, {s.bits_per_dim:.4f} bits per dim; "
        f"importance bound {s.importance_bound:.2f}, negative ELBO {s.negative_elbo:.2f}{label}"
    )


def _table(scores: Sequence[Score]) -> bytes:
    """The scores as CSV, one line a run."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, [f.name for f in dataclasses.fields(Score)])
    writer.writeheader()
    writer.writerows(
        {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in dataclasses.asdict(s).items()}
        for s in scores
    )
    return buffer.getvalue().encode("utf-8", "backslashreplace")


def _score_all(options: Options, processes: Processes) -> int:
    """Score each run, and name each that cannot be scored, or whose score cannot be written; the exit code."""
    device = processes.together(lambda: checks.command_device(processes.device(options.device)))
    if device.type == "cuda" and processes.size > 1:
        torch.cuda.set_device(device)  # NCCL asks for it
    processes.of_first(lambda: run_folder.check_places(options.runs, options.data, options.data_dir))
    options = dataclasses.replace(options, device=str(device))
    scores, failures = [], 0
    for folder in options.runs:
        try:
            scores.append(score(folder, options, processes))
            processes.of_first(lambda: _show(scores, options.output))
        except (*ERRORS, ProcessError, SystemExit) as error:
            if isinstance(error, ERRORS):  # and not that of another process, which says it
                complain(f"error: {error}")
            failures += 1
    return 2 if failures else 0


def _show(scores: Sequence[Score], output: Path | None) -> None:
    """The scores so far as a file, and the last one as a line."""
    try:
        if output:
            checkpoint.write_atomically(output, _table(scores))
    finally:  # what was measured is shown, though it could not be written
        say(_report(scores[-1]))


ERRORS = (CheckpointError, DataError, ValueError, OSError, torch.OutOfMemoryError)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    processes, stopped = Processes.started(), "the runs scored so far are above, and in the file of --output"

    def parse() -> Options:
        return tyro.cli(Options, args=console.arguments(argv), prog=" ".join(console.typed("score")))

    def body() -> int:
        with processes.joined(stopped), warnings.catch_warnings():
            if not processes.is_first:  # the first one's are enough
                warnings.simplefilter("ignore")
            return _score_all(processes.of_first(parse), processes)

    return console.run(body, (*ERRORS, TrainingError), f"stopped; {stopped}" if processes.is_first else "")


if __name__ == "__main__":
    sys.exit(main())
