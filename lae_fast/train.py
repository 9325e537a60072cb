"""`python -m lae_fast.train`: train a model on MNIST or images of your own, watch it, stop and resume it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import tyro

from lae_fast import checkpoint, checks, console, data, info, progress, view
from lae_fast.checkpoint import CheckpointError
from lae_fast.console import complain, say
from lae_fast.data import DataError, Dataset
from lae_fast.models import LAE
from lae_fast.ops.columns import NONFINITE, REJECTED
from lae_fast.training import config_file, run_folder, runlog
from lae_fast.training.config import Config, TrainingError
from lae_fast.training.config_file import Flags
from lae_fast.training.processes import ALONE, Processes
from lae_fast.training.trainer import N_BOUND, N_PARTS, Event, Trainer


def _device(config: Config, processes: Processes) -> torch.device:
    device = checks.command_device(processes.device(config.device))
    if device.type != "cuda" and "tf32" in (config.precision, config.chain_precision):
        name = "precision" if config.precision == "tf32" else "chain-precision"
        raise TrainingError(f"--{name} tf32 on {device}; expected a GPU, or float32 or bf16")
    if device.type == "cuda" and processes.size > 1:
        torch.cuda.set_device(device)  # NCCL asks for it
    return device


def _path(text: str) -> Path | None:
    """A path, as tyro reads it from the command line."""
    return None if text == "None" else Path(text)


def _parse(arguments: Sequence[str], processes: Processes = ALONE, command: str = "") -> Config:
    """Flags to options, on top of the defaults, of the file after --config, or of the run after --resume. A run that torchrun
    starts once more goes on."""
    prog, arguments = " ".join(console.typed("train")), console.arguments(arguments)
    # These alone at first: they say what the others have by default.
    bases = argparse.ArgumentParser(prog, f"{prog} [OPTIONS]", add_help=False, allow_abbrev=False)
    bases.add_argument("--resume", type=_path)
    bases.add_argument("--config", type=_path)
    bases.add_argument("--data", type=_path)
    bases.add_argument("--dataset")
    given = bases.parse_known_args(arguments)[0]
    if given.resume and given.config:
        raise TrainingError(f"--config {given.config} beside --resume: a run goes on with its own options")
    base = Flags()
    if given.resume:
        base = Flags(**vars(_resumed(given.resume)))
    elif given.config:
        base = config_file.read(given.config)
        if given.data is not None:  # instead of the file's data
            base = dataclasses.replace(base, dataset="auto")
        if given.dataset is not None:
            base = dataclasses.replace(base, data=None)
    flags = tyro.cli(Flags, args=arguments, default=base, prog=prog, description=Config.__doc__)
    config = flags.options()
    if given.resume:
        if config.dataset == "auto":  # the run's record knows which
            config = dataclasses.replace(config, dataset=base.dataset)
        config.check_resumed(base)
    elif (
        processes.job
        and config.output_dir
        and run_folder.is_of_job(config.output_dir, processes.job, command)
    ):
        config = _resumed(config.output_dir)
    processes.check_restarts(config.resume or (config.output_dir if processes.job else None))
    return config


def _resumed(folder: Path) -> Config:
    """The options of the run in that folder, which is to go on."""
    folder = checks.path("--resume", folder)
    try:
        return run_folder.read_config(folder, output_dir=None, resume=str(folder))
    except CheckpointError as error:
        raise TrainingError(f"--resume {error}") from error


def _print_start(trainer: Trainer, source: str, facts: dict[str, str], idle: Sequence[str]) -> None:
    config, kind = trainer.config, trainer.device.type
    sizes = " / ".join(f"{len(s.images):,}" for s in (trainer.train, trainer.validation, trainer.test))
    n_parameters = sum(p.numel() for p in trainer.model.parameters())
    say(f"data      {source}; {sizes} train / validation / test images")
    say(f"kernels   {kind}: {facts[kind]}")
    say(f"model     {config.model}, nz {config.nz}, {n_parameters:,} parameters")
    if (n := trainer.processes.size) > 1:
        each = trainer.batch_size // n
        say(
            f"processes {n} share the work: of each minibatch of {trainer.batch_size} images a process has {each}"
        )
    if config.deterministic_reduce:
        say(
            f"parts     {N_PARTS} of each minibatch, whose sums have one order: the same bits for 1, 2, 4 or {N_PARTS} processes"
        )
    if isinstance(trainer.model, LAE) and trainer.model.is_joint and config.nh < trainer.batch_size:
        say(
            f"note      {config.nh} features for minibatches of {trainer.batch_size}: with fewer features than images the law of"
        )
        say("          joint decisions is close to, but not, the product of the posteriors")
    if idle:
        say(f"note      without effect beside the other options: {', '.join(idle)}")
    if reason := runlog.why_no_board():
        say(f"note      no curves for TensorBoard, {reason}")
    if trainer.resumed_from:
        say(f"resume    from {trainer.resumed_from.path}")
    elif config.resume:
        say("resume    no checkpoint was written yet: starting anew")


def _print_end(trainer: Trainer) -> None:
    model, chain = trainer.model, trainer.chain
    if chain:  # of the whole training, before the best weights are loaded
        rejected, nonfinite = (chain.counters[0, k].item() for k in (REJECTED, NONFINITE))
        proposals, step_size = chain.n_decisions.item(), chain.log_step_size.exp().item()
    evaluation, bound = trainer.finish()
    whole = len(trainer.test.images)
    n = min(N_BOUND, whole)
    say(f"test      {evaluation.sentence()}, of all {whole:,} images")
    say(
        f"          -log p(x) at most {bound:.2f} nats: the importance-weighted bound, of the first {n} images, 1,000 draws each"
    )
    if model.likelihood.density_of != ("grey" if trainer.config.binarize == "none" else "binary"):
        say(
            "          no probability of these pixels: compare with models of the same data and likelihood only"
        )
    if isinstance(model, LAE) and not model.spread:
        s = ", ".join(f"{v:.2f}" for v in model.posterior_scale.tolist())
        say(f"          with q(z|x) = N(f(x), diag(s^2)), s = {s}: best on training data")
    if chain:
        say(
            f"chain     {1 - (rejected + nonfinite) / proposals:.2f} of {proposals:,} proposals accepted, "
            f"{nonfinite} not finite; step size {step_size:.2g}"
        )
    board = "" if runlog.why_no_board() else ", tensorboard"
    say(f"written   {trainer.folder}: best.safetensors, metrics.jsonl, results.json{board}, pictures")
    _write_page(trainer)


def _write_page(trainer: Trainer) -> None:
    """The run as a page for a browser. The run is done: whatever hinders the page is said, and stops nothing."""
    try:
        path = view.write(trainer.folder, trainer.model, trainer.test, classes=trainer.classes)
        say(f"view      {path}: open it in a browser")
    except Exception as error:
        say(f"view      no page was written: {checks.reason(error)}")


def _fit(trainer: Trainer) -> int:
    """Train under a bar; the signal that asked any process to stop before the end, or 0."""
    size, first = trainer.batch_size, trainer.processes.is_first
    total, done = trainer.epochs * trainer.n_batches * size, trainer.progress.step * size
    bar = progress.bar(
        total=total, initial=done, unit=" images", unit_scale=True, smoothing=0.05, shown=first
    )
    with console.Interrupt() as interrupt, bar:

        def on_step(event: Event) -> bool:
            for message in event.messages if first else ():
                with bar.external_write_mode(file=sys.stderr):
                    complain(message)
            shown = {
                "loss": ("loss", ".1f"),
                "acceptance_rate": ("acceptance", ".2f"),
                "unmoved": ("unmoved", ".2f"),
            }
            if event.metrics:
                bar.set_postfix(
                    {s: f"{event.metrics[k]:{f}}" for k, (s, f) in shown.items() if k in event.metrics}
                )
            bar.update(event.n_images)
            return interrupt.requested > 0

        trainer.fit(on_step)
        return 0 if trainer.is_over() else trainer.processes.largest(interrupt.requested)


def _begin(trainer: Trainer, dataset: Dataset, fingerprint: str, command: str, idle: Sequence[str]) -> None:
    """Say what starts, and write the run's record."""
    run_folder.check_room(trainer.folder, trainer.model)
    facts, job = info.report(), trainer.processes.job
    _print_start(trainer, dataset.source, facts, idle)
    run_folder.write_record(
        trainer.folder,
        trainer.config,
        command,
        data=dataset.source,
        fingerprint=fingerprint,
        versions=facts,
        **({"job": job} if job else {}),
    )


def train(config: Config, command: str = "", processes: Processes = ALONE) -> int:
    """Run the main job; the exit code."""
    device = processes.together(lambda: _device(config, processes))
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))  # seeded below
        folder = processes.of_first(lambda: stack.enter_context(run_folder.claimed(config)))
        dataset = processes.by_host(
            lambda: data.load(
                config.data or config.dataset,
                config.data_dir,
                validation=config.validation,
                binarization=config.binarize,
            )
        )
        fingerprint = dataset.fingerprint()
        processes.check_alike("data", fingerprint)
        processes.check_alike("devices", device.type)
        saved = processes.of_first(lambda: _saved(config, folder, fingerprint))
        idle = [] if config.resume else config.without_effect()  # while auto is what it was
        # A resumed run has to find the data set that auto was, and files from any folder.
        if config.data is None:
            place = config.data_dir if str(config.data_dir).startswith("~") else config.data_dir.absolute()
            config = dataclasses.replace(config, dataset=dataset.name, data_dir=place)
        else:
            config = dataclasses.replace(config, data=config.data.absolute())
        trainer = processes.together(
            lambda: Trainer(config, dataset, folder, device, saved=saved, processes=processes)
        )
        processes.of_first(lambda: _begin(trainer, dataset, fingerprint, command, idle))
        if stopped := _fit(trainer):
            again = shlex.join([*console.typed("train"), "--resume", str(folder)])
            if processes.is_first:
                say(f"stopped at step {trainer.progress.step}; continue with: {again}")
            return 128 + stopped
        processes.of_first(lambda: _print_end(trainer))
        return 0


def _saved(config: Config, folder: Path, fingerprint: str) -> checkpoint.Checkpoint | None:
    """What a resumed run goes on from, if there is a checkpoint yet."""
    if config.resume is None:
        return None
    run_folder.check_data(folder, fingerprint)
    return checkpoint.load_latest(folder / "checkpoints")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: a clear line instead of a traceback for whatever a user can mend."""
    arguments = sys.argv[1:] if argv is None else argv
    command = shlex.join([*console.typed("train"), *arguments])
    processes = Processes.started()
    stays = "what was written stays, and --resume continues from the last checkpoint if there is one"

    def body() -> int:
        with processes.joined(stays):
            config = processes.of_first(lambda: _parse(arguments, processes, command))
            return train(config, command, processes)

    errors = (TrainingError, DataError, CheckpointError, ValueError, OSError, torch.OutOfMemoryError)
    return console.run(body, errors, f"stopped; {stays}" if processes.is_first else "")


if __name__ == "__main__":
    sys.exit(main())
