"""`python -m lae_fast.train`: train a model on MNIST, watch it, stop and resume it.

On the way of a minibatch nothing comes back from the device; numbers for people are read every `--log-every` steps.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import math
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from lae_fast import checkpoint, data, info, models, pictures
from lae_fast.chained import ChainedAutoencoder
from lae_fast.chains import acceptance_warning
from lae_fast.checkpoint import Checkpoint, CheckpointError
from lae_fast.config import Config
from lae_fast.data import DataError, Dataset
from lae_fast.evaluate import Evaluation, evaluate, fit_posterior_scale
from lae_fast.lae import LAE
from lae_fast.runlog import RunLog
from lae_fast.step import TrainingStep, adam

# Options that a checkpoint's position, chain and metrics depend on: a run keeps them for life. (Those of the
# architecture are checked against the checkpoint itself.)
_FIXED = (
    "batch_size",
    "seed",
    "n_steps",
    "mh",
    "step_size",
    "adaptation_rate",
    "precision",
    "chain_precision",
    "window",
    "whiten",
    "gradient",
    "start",
    "beta1",
    "validation",
    "binarize",
)


class TrainingError(RuntimeError):
    """Training cannot start or go on; the message says why and what is left."""


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


@dataclasses.dataclass
class Progress:
    """Where training stands: with the weights, the optimizer and the chain, all that a checkpoint needs."""

    epoch: int = 0  # complete epochs
    position: int = 0  # minibatches of the current one
    step: int = 0  # minibatches in all
    best: float = math.inf  # validation loss, nats per image
    best_epoch: int = 0
    decisions: int = 0  # of the chain when the current epoch began
    rejections: int = 0
    is_finished: bool = False


class Trainer:
    """One run in one folder."""

    def __init__(self, config: Config, dataset: Dataset, folder: Path, device: torch.device) -> None:
        self.config, self.dataset, self.folder, self.device = config, dataset, folder, device
        self.train, self.validation, self.test = (
            data.Split(*(t.to(device) for t in split))
            for split in (dataset.train, dataset.validation, dataset.test)
        )
        self.n_batches = len(self.train.images) // config.batch_size
        if self.n_batches < 1:
            raise TrainingError(
                f"--batch-size is {config.batch_size}; expected at most {len(self.train.images)} images"
            )
        if len(self.test.images) < 10:
            raise TrainingError(f"the test set holds {len(self.test.images)} images; expected at least 10")
        self.shown = self.test.images[: min(30, len(self.test.images) // 10 * 10)]  # rows of ten
        self.fit_images = self.train.images[:2000]  # what the LAE's posterior scale is fitted on
        if config.binarize == "dynamic":
            self.fit_images = data.binarize(self.fit_images, torch.Generator(device).manual_seed(0))
        torch.manual_seed(config.seed)
        self.architecture = config.architecture(self.train.images.shape[1])
        self.model = models.build(
            self.architecture,
            n_steps=config.n_steps,
            mh=config.mh,
            step_size=None if config.step_size == "auto" else config.step_size,
            adaptation_rate=config.adaptation_rate,
            precision=config.precision,
            chain_precision=None if config.chain_precision == "auto" else config.chain_precision,
            window=config.window,
            whiten=config.whiten,
            gradient=config.gradient,
            start=config.start,
        )
        self.model.to(device)
        is_repaired = config.model == "lae" and config.window == "after"
        beta1 = (0.5 if is_repaired else 0.9) if config.beta1 == "auto" else config.beta1
        self.optimizer = adam(self.model, config.lr, beta1)
        self.step = TrainingStep(self.model, self.optimizer)
        self.progress = Progress()
        self.window = torch.zeros(2, dtype=torch.float64, device=device)  # sums of loss and acceptance since
        self.n_window = 0  # the last log line, over so many minibatches
        self.has_warned = False
        self.seconds = time.perf_counter()

    # ---- checkpoints ----

    def metadata(self) -> dict[str, object]:
        return dataclasses.asdict(self.architecture)

    def save(self) -> None:
        """Write a checkpoint; refuse to keep weights that are not finite."""
        self._check_finite()
        self.log.flush()
        state = {
            "progress": dataclasses.asdict(self.progress),
            "optimizer": self.optimizer.state_dict(),
            "chain": self.model.chain_state() if isinstance(self.model, ChainedAutoencoder) else {},
            "torch_rng": torch.get_rng_state(),
            "device_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "window": self.window,
            "n_window": self.n_window,
        }
        checkpoint.save(
            self.folder / "checkpoints", self.progress.step, self.model.state_dict(), self.metadata(), state
        )

    def restore(self, saved: Checkpoint) -> None:
        """Continue from a checkpoint exactly where it was written."""
        for name, value in self.metadata().items():
            if saved.metadata.get(name) != value:
                raise CheckpointError(
                    f"{saved.path} is of another architecture: {name} is {saved.metadata.get(name)!r} there, "
                    f"{value!r} in this run"
                )
        checkpoint.load_into(self.model, saved.weights, saved.path)
        state = saved.state
        try:
            self.progress = Progress(**state["progress"])
            self.progress.is_finished = self._is_out_of_patience()
            options = [group | {} for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(state["optimizer"])
            for group, own in zip(self.optimizer.param_groups, options, strict=True):  # of this run's device
                group.update(lr=own["lr"], capturable=own["capturable"])
            if isinstance(self.model, ChainedAutoencoder):
                self.model.load_chain_state(state["chain"])
            torch.set_rng_state(state["torch_rng"])
            if state["device_rng"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["device_rng"], self.device)
            self.window.copy_(state["window"])
            self.n_window = state["n_window"]
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{saved.path}/state.pt is not a state of this training job: {error}"
            ) from error

    def _check_finite(self) -> None:
        values = [self.window.sum(), *(p.detach().double().sum() for p in self.model.state_dict().values())]
        if not torch.stack([v.double().cpu() for v in values]).isfinite().all():
            kept = sorted(p.name for p in (self.folder / "checkpoints").glob("step-*"))
            left = (
                f"the last good checkpoint is {self.folder / 'checkpoints' / kept[-1]}"
                if kept
                else "no checkpoint was written yet"
            )
            raise TrainingError(
                f"loss or weights are not finite at step {self.progress.step}; {left}. "
                "A smaller --lr or --step-size usually helps"
            )

    # ---- the loop ----

    def batches(self) -> Iterator[Tensor]:
        """The rest of the current epoch's minibatches, float [n, nx] in [0, 1]; the order depends on seed and epoch."""
        seed = self.config.seed * 1_000_003 + self.progress.epoch
        order = data.shuffled(len(self.train.images), self.config.batch_size, seed, self.device)
        for index in itertools.islice(order, self.progress.position, None):
            images = self.train.images[index]
            if self.config.binarize == "dynamic":
                images = data.binarize(images)
            yield images / 255

    def fit(self, interrupt: Interrupt) -> None:
        """Train until the epochs are over, patience is, or somebody asks to stop."""
        total = self.config.epochs * self.n_batches * self.config.batch_size
        done = self.progress.step * self.config.batch_size
        with tqdm(
            total=total, initial=done, unit=" images", unit_scale=True, disable=None, smoothing=0.05
        ) as bar:
            while not self.is_over():
                for x in self.batches():
                    self._step(x, bar)
                    if interrupt.requested:
                        break
                if interrupt.requested:
                    self._end_epoch_if_due(bar)
                    self.save()
                    return
                self._end_epoch_if_due(bar)
                self.save()

    def _set_learning_rate(self) -> None:
        left = 1 - self.progress.step / (self.config.epochs * self.n_batches)
        factor = min(1.0, left / self.config.cooldown) if self.config.cooldown else 1.0
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self.config.lr * factor)
            else:
                group["lr"] = self.config.lr * factor

    def _step(self, x: Tensor, bar: tqdm) -> None:
        self._set_learning_rate()
        self.window[0] += self.step(x)
        if isinstance(self.model, ChainedAutoencoder):
            self.window[1] += self.model.acceptance_rate
        self.n_window += 1
        self.progress.step += 1
        self.progress.position += 1
        bar.update(len(x))
        if self.progress.step % self.config.log_every == 0:
            self._log(bar)
        every = self.config.checkpoint_every
        if every and self.progress.step % every == 0 and self.progress.position < self.n_batches:
            self.save()

    def _log(self, bar: tqdm) -> None:
        loss, acceptance = (self.window / self.n_window).tolist()
        now = time.perf_counter()
        values = {"epoch": self.progress.epoch + self.progress.position / self.n_batches, "loss": loss}
        if isinstance(self.model, ChainedAutoencoder):
            values |= {
                "acceptance_rate": acceptance,
                "step_size": self.model.log_step_size.exp().item(),
                "nonfinite": self.model.counters[0, 1].item(),
            }
        if not math.isfinite(loss):
            self._check_finite()
        self.log.scalars(
            self.progress.step,
            values | {"images_per_second": self.n_window * self.config.batch_size / (now - self.seconds)},
        )
        bar.set_postfix(
            {"loss": f"{loss:.1f}"} | ({"acceptance": f"{acceptance:.2f}"} if "step_size" in values else {})
        )
        self.window.zero_()
        self.n_window, self.seconds = 0, now

    def _end_epoch_if_due(self, bar: tqdm) -> None:
        """Validate, keep the best weights, decide about patience."""
        if self.progress.position < self.n_batches:
            return
        self.progress.epoch += 1
        self.progress.position = 0
        epoch, step = self.progress.epoch, self.progress.step
        start = time.perf_counter()
        self._check_finite()
        fit_posterior_scale(self.model, self.fit_images)
        values = {"epoch": float(epoch)}
        if isinstance(self.model, ChainedAutoencoder):
            values["epoch_acceptance_rate"] = self._epoch_acceptance_rate(bar)
        if isinstance(self.model, LAE):
            values |= {
                "phi_norm": self.model.phi.norm().item(),
                "posterior_scale": self.model.posterior_scale.item(),
            }
        if len(self.validation.images):
            result = evaluate(self.model, self.validation.images)
            values |= {f"validation_{name}": value for name, value in result._asdict().items()}
            if result.negative_elbo < self.progress.best:
                self.progress.best, self.progress.best_epoch = result.negative_elbo, epoch
                checkpoint.save_weights(
                    self.folder / "best.safetensors", self.model.state_dict(), self.metadata()
                )
            bar.write(f"epoch {epoch}: validation {_describe(result)}", file=sys.stderr)
            self.progress.is_finished = self._is_out_of_patience()
        self.log.scalars(step, values)
        self.log.picture(step, "samples", pictures.samples(self.model))
        self.log.picture(step, "reconstructions", pictures.reconstructions(self.model, self.shown / 255))
        self.seconds += time.perf_counter() - start  # images per second are those of training

    def _epoch_acceptance_rate(self, bar: tqdm) -> float:
        """The fraction of the epoch's proposals that were accepted; a warning, once, if it is no good."""
        decisions, rejections = self.model.n_decisions.item(), self.model.counters.sum().item()
        progress = self.progress
        rate = 1 - (rejections - progress.rejections) / (decisions - progress.decisions)
        progress.decisions, progress.rejections = decisions, rejections
        # In the first epoch adaptation may still be on its way.
        is_settled = progress.epoch > 1 or self.config.step_size != "auto"
        message = acceptance_warning(torch.tensor([rate])) if self.model.mh and is_settled else None
        if message and not self.has_warned:
            bar.write(f"epoch {progress.epoch}: {message}", file=sys.stderr)
            self.has_warned = True
        return rate

    def _is_out_of_patience(self) -> bool:
        waited = self.progress.epoch - self.progress.best_epoch
        return len(self.validation.images) > 0 and waited >= self.config.patience

    def is_over(self) -> bool:
        """Whether all epochs are done, or patience is."""
        return self.progress.epoch >= self.config.epochs or self.progress.is_finished

    def finish(self) -> Evaluation:
        """Test the best weights (without validation data: the last ones) and leave pictures."""
        best = self.folder / "best.safetensors"
        if len(self.validation.images) and best.exists():
            checkpoint.load_into(self.model, checkpoint.load_weights(best)[0], best)
        else:
            checkpoint.save_weights(best, self.model.state_dict(), self.metadata())
        result = evaluate(self.model, self.test.images, n_draws=5)
        images = self.test.images / 255
        pictures.save_picture(pictures.samples(self.model), self.folder / "samples.png")
        pictures.save_picture(
            pictures.reconstructions(self.model, self.shown / 255), self.folder / "reconstructions.png"
        )
        if self.config.nz == 2:
            pictures.save_latent_plane(self.model, images, self.test.labels, self.folder / "latent_plane.png")
        values = {f"test_{name}": value for name, value in result._asdict().items()}
        checkpoint.write_atomically(self.folder / "results.json", json.dumps(values, indent=2).encode())
        return result


def _describe(result: Evaluation) -> str:
    return (
        f"negative ELBO {result.negative_elbo:.2f} = reconstruction {result.reconstruction:.2f} "
        f"+ rate {result.rate:.2f} nats per image, MSE {result.mse:.4f} per pixel"
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise TrainingError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    if device.type not in ("cpu", "cuda"):
        raise TrainingError(f"--device is {name}; expected auto, cpu or cuda")
    return device


def _check_precision(config: Config, device: torch.device) -> None:
    if device.type != "cuda" and "tf32" in (config.precision, config.chain_precision):
        raise TrainingError(f"--precision tf32 on {device}; expected a GPU, or float32 or bf16")


def _prepare_folder(config: Config) -> tuple[Path, bool]:
    """The run's folder, made if need be, and whether a run is to be continued there."""
    if config.resume is not None:
        return config.resume, True
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = config.output_dir or Path("runs") / f"{config.model}-{stamp}"
    if (folder / "config.json").exists():
        raise TrainingError(
            f"{folder} holds a run already; continue it with --resume {folder}, or choose another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"--output-dir {folder} cannot be made: {error}") from error
    return folder, False


def _check_room(folder: Path, model: torch.nn.Module) -> None:
    """Three generations of weights and optimizer state, and some pictures, must fit on the disk."""
    bytes_needed = 3 * 3 * sum(p.numel() * p.element_size() for p in model.parameters()) + 4 * 2**20
    free = shutil.disk_usage(folder).free
    if free < bytes_needed:
        raise TrainingError(
            f"{folder} has {free / 2**20:.0f} MB free; this run needs about {bytes_needed / 2**20:.0f} MB"
        )


def _parse(argv: Sequence[str] | None) -> Config:
    """Flags to options; with --resume, the options of that run with the flags given now on top."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    config = tyro.cli(Config, args=arguments, prog="python -m lae_fast.train")
    if config.resume is None:
        return config
    path = config.resume / "config.json"
    try:
        saved = json.loads(path.read_text())["options"]
        base = Config.from_json(saved | {"output_dir": None, "resume": str(config.resume)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"--resume {config.resume} is not the folder of a run: {path}: {error}"
        ) from error
    config = tyro.cli(Config, args=arguments, default=base, prog="python -m lae_fast.train")
    for name in _FIXED:
        before, now = getattr(base, name), getattr(config, name)
        if before != now:
            raise TrainingError(
                f"--{name.replace('_', '-')} was {before}, now {now}: a run keeps it when it resumes"
            )
    return config


def train(config: Config, command: str = "") -> int:
    """Run the main job; the exit code."""
    device = _device(config.device)
    _check_precision(config, device)
    folder, is_resumed = _prepare_folder(config)
    dataset = data.load(
        config.dataset, config.data_dir, validation=config.validation, binarization=config.binarize
    )
    trainer = Trainer(config, dataset, folder, device)
    saved = checkpoint.load_latest(folder / "checkpoints") if is_resumed else None
    if saved:
        trainer.restore(saved)
    _check_room(folder, trainer.model)

    facts = info.report()
    sizes = " / ".join(f"{len(s.images):,}" for s in (trainer.train, trainer.validation, trainer.test))
    print(f"data      {dataset.source}; {sizes} train / validation / test images")
    print(f"kernels   {device.type}: {facts[device.type]}")
    print(
        f"model     {config.model}, nz {config.nz}, {sum(p.numel() for p in trainer.model.parameters()):,} parameters"
    )
    if config.model == "lae" and config.nh < config.batch_size:
        print(
            f"note      {config.nh} features for minibatches of {config.batch_size}: with fewer features than images the"
        )
        print("          chain's law is close to, but not, the product of the posteriors")
    if is_resumed:
        print(
            f"resume    {f'from {saved.path}' if saved else 'no checkpoint was written yet: starting anew'}"
        )
    record = {"options": config.to_json(), "data": dataset.source, "command": command, "versions": facts}
    checkpoint.write_atomically(folder / "config.json", json.dumps(record, indent=2).encode())

    nothing = -1 if is_resumed else None
    trainer.log = RunLog(folder, trainer.progress.step if saved else nothing)
    try:
        with Interrupt() as interrupt:
            trainer.fit(interrupt)
    finally:
        trainer.log.close()
    if interrupt.requested and not trainer.is_over():
        print(
            f"stopped at step {trainer.progress.step}; continue with: python -m lae_fast.train --resume {folder}"
        )
        return 130
    result = trainer.finish()
    print(f"test      {_describe(result)}")
    if isinstance(trainer.model, LAE):
        print(
            f"          with q(z|x) = N(f(x), s^2 I), s = {trainer.model.posterior_scale.item():.3f}, best on training data"
        )
    if isinstance(trainer.model, ChainedAutoencoder):
        rejected, nonfinite = trainer.model.counters[0].tolist()
        proposals = trainer.model.n_decisions.item()
        print(
            f"chain     {1 - (rejected + nonfinite) / proposals:.2f} of {proposals:,} proposals accepted, "
            f"{nonfinite} not finite; step size {trainer.model.log_step_size.exp().item():.2g}"
        )
    print(f"written   {folder}: best.safetensors, metrics.jsonl, results.json, tensorboard, pictures")
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
