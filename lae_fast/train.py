"""`python -m lae_fast.train`: train a model on MNIST, watch it, stop and resume it."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import torch
import tyro
from tqdm import tqdm

from lae_fast import data, info
from lae_fast.checkpoint import CheckpointError
from lae_fast.data import DataError
from lae_fast.models import LAE
from lae_fast.ops.columns import NONFINITE, REJECTED
from lae_fast.training import run_folder
from lae_fast.training.config import Config, TrainingError
from lae_fast.training.trainer import N_BOUND, Event, Trainer


class Interrupt:
    """Ctrl-C asks the loop to stop after the current minibatch; a second one stops at once."""

    requested = False

    def __enter__(self) -> Interrupt:
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._previous)


def _device(config: Config) -> torch.device:
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise TrainingError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    if device.type not in ("cpu", "cuda"):
        raise TrainingError(f"--device is {name}; expected auto, cpu or cuda")
    if device.type != "cuda" and "tf32" in (config.precision, config.chain_precision):
        raise TrainingError(f"--precision tf32 on {device}; expected a GPU, or float32 or bf16")
    return device


def _parse(argv: Sequence[str] | None) -> Config:
    """Flags to options; with --resume, the options of that run with the flags given now on top."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Alone at first: flags that the run's own options allow may contradict the defaults.
    only_resume = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    only_resume.add_argument("--resume", type=Path)
    resume = only_resume.parse_known_args(arguments)[0].resume
    if resume is None:
        return tyro.cli(Config, args=arguments, prog="python -m lae_fast.train")
    try:
        saved = run_folder.read_options(resume)
        base = Config.from_json(saved | {"output_dir": None, "resume": str(resume)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        record = resume / "config.json"
        raise TrainingError(f"--resume {resume} is not the folder of a run: {record}: {error}") from error
    config = tyro.cli(Config, args=arguments, default=base, prog="python -m lae_fast.train")
    if config.dataset == "auto":  # the run's record knows which
        config = dataclasses.replace(config, dataset=base.dataset)
    config.check_resumed(base)
    return config


def _print_start(trainer: Trainer, source: str, facts: dict[str, str]) -> None:
    config, kind = trainer.config, trainer.device.type
    sizes = " / ".join(f"{len(s.images):,}" for s in (trainer.train, trainer.validation, trainer.test))
    n_parameters = sum(p.numel() for p in trainer.model.parameters())
    print(f"data      {source}; {sizes} train / validation / test images")
    print(f"kernels   {kind}: {facts[kind]}")
    print(f"model     {config.model}, nz {config.nz}, {n_parameters:,} parameters")
    if isinstance(trainer.model, LAE) and trainer.model.is_joint and config.nh < config.batch_size:
        print(
            f"note      {config.nh} features for minibatches of {config.batch_size}: with fewer features than images the law of"
        )
        print("          joint decisions is close to, but not, the product of the posteriors")
    if trainer.resumed_from:
        print(f"resume    from {trainer.resumed_from.path}")
    elif trainer.is_resumed:
        print("resume    no checkpoint was written yet: starting anew")


def _print_end(trainer: Trainer) -> None:
    model, chain = trainer.model, trainer.chain
    evaluation, bound = trainer.finish()
    n = min(N_BOUND, len(trainer.test.images))
    print(f"test      {evaluation.sentence()}")
    print(
        f"          -log p(x) at most {bound:.2f} nats: the importance-weighted bound, {n} images, 1,000 draws each"
    )
    if model.likelihood.density_of != ("grey" if trainer.config.binarize == "none" else "binary"):
        print(
            "          no probability of these pixels: compare with models of the same data and likelihood only"
        )
    if isinstance(model, LAE) and not model.spreads:
        s = ", ".join(f"{v:.2f}" for v in model.posterior_scale.tolist())
        print(f"          with q(z|x) = N(f(x), diag(s^2)), s = {s}: best on training data")
    if chain:
        rejected, nonfinite = (chain.counters[0, k].item() for k in (REJECTED, NONFINITE))
        proposals = chain.n_decisions.item()
        print(
            f"chain     {1 - (rejected + nonfinite) / proposals:.2f} of {proposals:,} proposals accepted, "
            f"{nonfinite} not finite; step size {chain.log_step_size.exp().item():.2g}"
        )
    print(f"written   {trainer.folder}: best.safetensors, metrics.jsonl, results.json, tensorboard, pictures")


def _fit(trainer: Trainer) -> bool:
    """Train under a bar; whether somebody asked to stop before the end."""
    size = trainer.config.batch_size
    total, done = trainer.config.epochs * trainer.n_batches * size, trainer.progress.step * size
    bar = tqdm(total=total, initial=done, unit=" images", unit_scale=True, disable=None, smoothing=0.05)
    with Interrupt() as interrupt, bar:

        def on_step(event: Event) -> bool:
            for message in event.messages:
                bar.write(message, file=sys.stderr)
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
            return interrupt.requested

        trainer.fit(on_step)
        return interrupt.requested and not trainer.is_over()


def train(config: Config, command: str = "") -> int:
    """Run the main job; the exit code."""
    device = _device(config)
    folder = run_folder.prepare(config)
    dataset = data.load(
        config.dataset, config.data_dir, validation=config.validation, binarization=config.binarize
    )
    # A resumed run has to find the data set that auto was.
    config = dataclasses.replace(config, dataset=dataset.name)
    trainer = Trainer(config, dataset, folder, device, resume=config.resume is not None)
    run_folder.check_room(folder, trainer.model)
    facts = info.report()
    _print_start(trainer, dataset.source, facts)
    run_folder.write_record(folder, config, data=dataset.source, command=command, versions=facts)
    if _fit(trainer):
        step = trainer.progress.step
        print(f"stopped at step {step}; continue with: python -m lae_fast.train --resume {folder}")
        return 130
    _print_end(trainer)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: a clear line instead of a traceback for whatever a user can mend."""
    try:
        arguments = sys.argv[1:] if argv is None else argv
        return train(_parse(argv), shlex.join(["python", "-m", "lae_fast.train", *arguments]))
    except (TrainingError, DataError, CheckpointError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "stopped; what was written stays, and --resume continues from the last checkpoint",
            file=sys.stderr,
        )
        return 130


if __name__ == "__main__":
    sys.exit(main())
