"""One run in one folder: trains a model, keeps checkpoints and records, and goes on where it stopped.

Between log lines the host never waits for the device; it reads numbers for people every `log_every` steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lae_fast import checkpoint, checks, data, models, seeds
from lae_fast.checkpoint import Checkpoint, CheckpointError
from lae_fast.data import Dataset
from lae_fast.evaluation import Evaluation, evaluate, fit_posterior_scale, importance_bound
from lae_fast.models import LAE, LIKELIHOODS, AutoencoderWithChain
from lae_fast.ops.columns import NONFINITE
from lae_fast.sampling import acceptance_warning
from lae_fast.training import pictures
from lae_fast.training.config import CHANGEABLE, Config, TrainingError, renamed
from lae_fast.training.processes import ALONE, Processes
from lae_fast.training.runlog import RunLog
from lae_fast.training.saved_state import (
    Progress,
    check_architecture,
    checked_progress,
    restore_chain,
    restore_optimizer,
)
from lae_fast.training.step import TrainingStep, adam, cool_down


class Event(NamedTuple):
    """What training reports after each minibatch."""

    n_images: int  # in the minibatch
    metrics: dict[str, float]  # a line of the log; {} between two lines
    messages: tuple[str, ...]  # sentences for people


N_BOUND = 100  # test images of the importance-weighted bound
N_PLANE = 10_000  # test images in the latent plane
N_PARTS = 8  # of a minibatch, whose sums have one order
SETTLED = 10  # the adaptation's rate times the steps of the chain that it takes to find a step size, about


OnStep = Callable[[Event], bool]  # whether to stop after this minibatch


class Trainer:
    """One run in one folder.

    Args:
        config: the run's options; where batch size, epochs and patience are auto, `self.config` has numbers.
        dataset: what it trains on, validates on and is tested on.
        folder: where checkpoints and records go; it exists.
        device: where everything runs.
        saved: the folder's last checkpoint, to go on from; None: start anew.
        processes: those that train together, each with a trainer of the same arguments.

    Raises:
        TrainingError: too few images, values that the likelihood does not know, or minibatches that do not divide among processes.
        CheckpointError: the checkpoint is damaged, or of another architecture.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        folder: Path,
        device: torch.device,
        *,
        saved: Checkpoint | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.batch_size, self.epochs, self.patience = config.for_images(len(dataset.train.images))
        self.config = config = dataclasses.replace(
            config, batch_size=self.batch_size, epochs=self.epochs, patience=self.patience
        )
        self.folder, self.device, self.processes = folder, device, processes
        _check_values(dataset, config.likelihood)
        self.train, self.validation, self.test = (
            split.to(device) for split in (dataset.train, dataset.validation, dataset.test)
        )
        self.classes = dataset.classes
        self.n_batches = len(self.train.images) // self.batch_size
        if self.n_batches < 1:
            raise TrainingError(
                f"--batch-size is {self.batch_size}; expected at most {len(self.train.images)} images"
            )
        if self.batch_size % processes.size:
            raise TrainingError(
                f"--batch-size is {self.batch_size}; expected a multiple of {processes.size}, the number of processes"
            )
        if config.deterministic_reduce:
            self._check_parts()
        if len(self.test.images) < 10:
            raise TrainingError(f"the test set holds {len(self.test.images)} images; expected at least 10")
        n_shown = min(30, len(self.test.images) // 10 * 10)  # rows of ten
        self.shown = data.pixels(self.test.images[:n_shown])
        self.fit_images = self.train.images[:2000]  # what an LAE's s is fitted on
        if config.binarize == "dynamic":
            self.fit_images = data.binarize(self.fit_images, torch.Generator(device).manual_seed(0))
        self.architecture = config.architecture(dataset.shape)
        self.resumed_from = saved
        if saved:
            check_architecture(self.architecture, saved)  # before it takes memory
        torch.manual_seed(config.seed)
        try:
            self.model = models.build(self.architecture, **config.model_options()).to(device)
        except (RuntimeError, MemoryError, OverflowError) as error:
            raise TrainingError(f"{self.architecture} cannot be built: {error}") from error
        self.chain = self.model if isinstance(self.model, AutoencoderWithChain) else None
        beta1 = self.model.beta1 if config.beta1 == "auto" else config.beta1
        self.lr = self.model.lr if config.lr == "auto" else config.lr
        self.optimizer = adam(self.model, self.lr, beta1)
        self.progress = Progress()
        # Sums of loss, acceptance and unmoved chains since the last log line, and how many minibatches they are sums over.
        self.window, self.n_window = torch.zeros(3, dtype=torch.float64, device=device), 0
        self.n_timed = 0  # those of them that this process has made, since `seconds`
        self.has_warned = False
        self.seconds = time.perf_counter()
        if saved:
            self._restore(saved)

    # ---- the loop ----

    def fit(self, on_step: OnStep | None = None) -> None:
        """Train until the epochs or the patience are over, or until `on_step` returns True, on any of the processes.

        `on_step` is called after every minibatch.
        """
        if self.processes.size > 1:
            self.model.share_minibatches()
        with self._threads(), self.processes.together(self._records) as self.log:
            while not self.is_over():
                for index in self.batches():
                    metrics = self._step(index)
                    ends_epoch = self.progress.position == self.n_batches
                    messages = self._end_epoch() if ends_epoch else ()
                    wants_stop = on_step is not None and on_step(Event(len(index), metrics, messages))
                    stops = self.processes.largest(wants_stop)
                    every = self.config.checkpoint_every
                    if ends_epoch or stops or (every and self.progress.step % every == 0):
                        self.save()
                    if stops:
                        return

    def _check_parts(self) -> None:
        """Raise a TrainingError unless minibatches can be computed in parts of a fixed order."""
        if N_PARTS % self.processes.size:
            raise TrainingError(
                f"--deterministic-reduce with {self.processes.size} processes; expected 1, 2, 4 or {N_PARTS}"
            )
        if self.batch_size % N_PARTS:
            raise TrainingError(
                f"--batch-size is {self.batch_size} with --deterministic-reduce; expected a multiple of {N_PARTS}, the parts"
            )

    @contextlib.contextmanager
    def _threads(self) -> Iterator[None]:
        """Where bits have to be those of any number of processes, one thread: sums over several threads have another order."""
        own = torch.get_num_threads()
        if self.config.deterministic_reduce:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(own)

    def _records(self) -> contextlib.AbstractContextManager[Any]:
        """What takes the run's records, on the first process."""
        resume_step = self.progress.step or (-1 if self.config.resume else None)
        if not self.processes.is_first:
            return contextlib.nullcontext()
        return RunLog(self.folder, resume_step, self.config.to_json())

    @functools.cached_property
    def training_step(self) -> TrainingStep:
        """Made when it is first asked for: by then it is known who shares the minibatches."""
        n_parts = N_PARTS if self.config.deterministic_reduce else None
        return TrainingStep(self.model, self.optimizer, read=self.images, n_parts=n_parts)

    def is_over(self) -> bool:
        """Whether all epochs are done, or the patience is over."""
        return self.progress.epoch >= self.epochs or self.progress.is_finished

    def batches(self) -> Iterator[Tensor]:
        """The rest of the current epoch's minibatches, indices [n] of training images; the order depends on seed and epoch."""
        seed = seeds.mixed(self.config.seed, self.progress.epoch)
        order = data.shuffled(len(self.train.images), self.batch_size, seed, self.device)
        return itertools.islice(order, self.progress.position, None)

    def images(self, index: Tensor) -> Tensor:
        """A minibatch of training images, float [n, c, h, w] in [0, 1], of their indices [n]; this process's part of them."""
        images = self.train.images[index]
        if self.config.binarize == "dynamic":
            images = data.binarize(images)  # all of them, as one process draws them
        return data.pixels(images if self.model.share is None else self.model.share.rows(images))

    def _step(self, index: Tensor) -> dict[str, float]:
        """Train on one minibatch; returns the metrics of a log line if one is due, else {}."""
        done = self.progress.step / (self.epochs * self.n_batches)
        cool_down(self.optimizer, self.lr, done, self.config.cooldown)
        self.window[0] += self.training_step(index)
        if self.chain:
            self.window[1] += self.chain.acceptance_rate
            self.window[2] += self.chain.unmoved
        self.n_window, self.n_timed = self.n_window + 1, self.n_timed + 1
        self.progress.step += 1
        self.progress.position += 1
        return self._log() if self.progress.step % self.config.log_every == 0 else {}

    def _log(self) -> dict[str, float]:
        """Write a log line: means since the last line. Here the host waits for the device."""
        values = self.processes.of_first(self._write_line)
        self.window.zero_()
        self.n_window, self.n_timed, self.seconds = 0, 0, time.perf_counter()
        return values

    def _write_line(self) -> dict[str, float]:
        loss, acceptance, unmoved = (self.window / self.n_window).tolist()
        seconds = time.perf_counter() - self.seconds
        values = {"epoch": self.progress.epoch + self.progress.position / self.n_batches, "loss": loss}
        if self.chain:
            values |= {
                "acceptance_rate": acceptance,
                "unmoved": unmoved,
                "step_size": self.chain.log_step_size.exp().item(),
                "nonfinite": self.chain.counters[0, NONFINITE].item(),
            }
        if not math.isfinite(loss):
            self._check_finite()
        values["images_per_second"] = self.n_timed * self.batch_size / seconds
        self.log.scalars(self.progress.step, values)
        return values

    def _end_epoch(self) -> tuple[str, ...]:
        """Validate, note the best epoch, decide about patience; returns sentences for people."""
        start = time.perf_counter()
        self.progress.epoch += 1
        self.progress.position = 0
        self.progress, messages = self.processes.of_first(self._validate)
        if self.model.share is not None:
            self.model.share.of_first([*self.model.buffers()])  # s, which has been fitted, is one of them
        self.seconds += time.perf_counter() - start  # images per second are those of training
        return messages

    def _validate(self) -> tuple[Progress, tuple[str, ...]]:
        epoch, step, messages = self.progress.epoch, self.progress.step, []
        self._check_finite()
        fit_posterior_scale(self.model, self.fit_images)
        values = {"epoch": float(epoch)}
        if self.chain:
            values["epoch_acceptance_rate"] = rate = self._epoch_acceptance_rate(self.chain)
            messages += self._acceptance_warning(self.chain, rate)
        if isinstance(self.model, LAE):
            std = self.model.posterior(self.shown)[1]
            values |= {"phi_norm": self.model.phi.norm().item(), "posterior_std": std.mean().item()}
        if len(self.validation.images):
            result = evaluate(self.model, self.validation.images)
            values |= {f"validation_{name}": value for name, value in result._asdict().items()}
            if result.negative_elbo < self.progress.best:
                self.progress.best, self.progress.best_epoch = result.negative_elbo, epoch
            messages.append(f"epoch {epoch}: validation {result.sentence()}")
            if not math.isfinite(result.negative_elbo):
                messages.append(
                    f"epoch {epoch}: these weights are not kept as the best ones, as validation is not finite; expected images "
                    "that the likelihood can tell"
                )
            self.progress.is_finished = self._is_out_of_patience()
        else:
            self.progress.best_epoch = epoch
        self.log.scalars(step, values)
        self.log.picture(step, "samples", pictures.samples(self.model))
        self.log.picture(step, "reconstructions", pictures.reconstructions(self.model, self.shown))
        return self.progress, tuple(messages)

    def _epoch_acceptance_rate(self, chain: AutoencoderWithChain) -> float:
        """The fraction of the epoch's proposals that were accepted."""
        decisions, rejections = int(chain.n_decisions), int(chain.counters.sum())
        progress = self.progress
        rate = 1 - (rejections - progress.rejections) / (decisions - progress.decisions)
        progress.decisions, progress.rejections = decisions, rejections
        return rate

    def _acceptance_warning(self, chain: AutoencoderWithChain, rate: float) -> list[str]:
        """A warning if an epoch's acceptance rate is too low or too high, once until training stops."""
        # While the step size is still adapting there is nothing to be done.
        adapted = chain.adaptation_rate * self.config.n_steps * (self.progress.epoch - 1) * self.n_batches
        is_settled = chain.adaptation_rate == 0 or adapted >= SETTLED
        message = acceptance_warning(torch.tensor([rate])) if chain.mh and is_settled else None
        if message is None or self.has_warned:
            return []
        self.has_warned = True
        return [f"epoch {self.progress.epoch}: {message}"]

    def _is_out_of_patience(self) -> bool:
        waited = self.progress.epoch - self.progress.best_epoch
        return len(self.validation.images) > 0 and waited >= self.patience

    # ---- checkpoints ----

    def metadata(self) -> dict[str, object]:
        """What a file of weights says of itself."""
        return dataclasses.asdict(self.architecture) | {"options": self.config.model_options()}

    def _keep_weights(self) -> None:
        """Write best.safetensors: the weights that did best on validation images; without any those of the last whole epoch, and its
        number."""
        facts = {} if len(self.validation.images) else {"epoch": self.progress.epoch}
        weights = self.model.state_dict()
        checkpoint.save_weights(self.folder / "best.safetensors", weights, self.metadata() | facts)

    def save(self) -> None:
        """Write all records so far and a checkpoint; refuse to keep weights that are not finite, or not the same on all
        processes."""
        if self.processes.size > 1:
            self.processes.check_alike("weights or random numbers", self._summary())
        self.processes.of_first(self._write)

    def _summary(self) -> list[bytes]:
        """What differs where weights or random streams do."""
        sums = torch.stack([t.double().sum().cpu() for t in self.model.state_dict().values()])
        streams = [torch.get_rng_state()]
        if self.device.type == "cuda":
            streams.append(torch.cuda.get_rng_state(self.device))
        return [t.numpy().tobytes() for t in (sums, *streams)]

    def _write(self) -> None:
        self.log.flush()
        self._check_finite()
        state = {
            "progress": dataclasses.asdict(self.progress),
            "optimizer": self.optimizer.state_dict(),
            "options": {n: v for n, v in self.config.to_json().items() if n not in CHANGEABLE},
            "torch_rng": torch.get_rng_state(),
            "device_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "window": self.window,
            "n_window": self.n_window,
        }
        checkpoint.save(
            self.folder / "checkpoints", self.progress.step, self.model.state_dict(), self.metadata(), state
        )
        if self._is_best():
            self._keep_weights()

    def _is_best(self) -> bool:
        """Whether the weights are those of the best epoch. Their file follows the checkpoint, and whoever resumes from it writes that
        anew: no kill leaves weights of an epoch that no checkpoint knows."""
        return self.progress.position == 0 < self.progress.epoch == self.progress.best_epoch

    def _restore(self, saved: Checkpoint) -> None:
        """Continue from a checkpoint exactly where it was written."""
        checkpoint.load_into(self.model, saved.weights, saved.path / "model.safetensors")
        path = saved.path / "state.pt"
        try:
            self._restore_state(saved.state, path, saved.weights)
        except CheckpointError:
            raise
        except Exception as error:  # the values of the state may be anything
            raise CheckpointError(f"{path} is not a state of this training job: {error}") from error
        if saved.path.name != f"step-{self.progress.step:09d}":
            raise CheckpointError(
                f"{path} is not a state of this training job: it is of step {self.progress.step}"
            )
        if not self.processes.is_first:
            return
        best = self.folder / "best.safetensors"
        if self._is_best():
            self._keep_weights()
        elif self.progress.best_epoch:  # now, and not after the epochs that are left
            checkpoint.check_tensors(
                self.model.state_dict(),
                checkpoint.load_weights(best)[0],
                best,
                optional=self.model.chain_state(),
                unbounded=["log_step_size"],
            )

    def _restore_state(self, state: dict[str, Any], path: Path, weights: dict[str, Tensor]) -> None:
        needed = {"progress", "optimizer", "window", "n_window", "torch_rng", "device_rng"}
        if missing := needed - state.keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        if "options" in state:  # older checkpoints leave them to the record
            free = {name: v for name, v in self.config.to_json().items() if name in CHANGEABLE}
            self.config.check_resumed(Config.from_json(renamed(state["options"]) | free))
        restore_chain(self.model, state, weights, path)
        self.progress = checked_progress(state["progress"], self.n_batches, self.model)
        self.progress.is_finished = self._is_out_of_patience()
        restore_optimizer(self.optimizer, state["optimizer"], path)
        checkpoint.check_tensors({"window": self.window}, {"window": state["window"]}, path)
        self.window.copy_(state["window"])
        self.n_window = checks.count("n_window", state["n_window"], least=0)
        torch.set_rng_state(state["torch_rng"])
        if state["device_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["device_rng"], self.device)

    def _check_finite(self) -> None:
        weights = {n: t for n, t in self.model.state_dict().items() if n != "log_step_size"}
        values = [self.window.sum(), *(t.detach().double().sum() for t in weights.values())]
        if self.chain:
            values.append(self.chain.log_step_size.exp().sum())  # a step size of 0 is the exponential of -inf
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

    # ---- the end ----

    def finish(self) -> tuple[Evaluation, float]:
        """Test the best weights (without validation data: those of the last whole epoch) and leave pictures. Of several processes
        the first one does this.

        Returns:
            The evaluation, and an upper bound of -log p(x): the importance-weighted one, nats per image, on 100 test images.
        """
        best = self.folder / "best.safetensors"
        if self.progress.best_epoch:
            checkpoint.load_into(self.model, checkpoint.load_weights(best)[0], best)
        else:  # there was no whole epoch, or no validation was finite
            self._keep_weights()
        result = evaluate(self.model, self.test.images, n_draws=5)
        pictures.save_picture(pictures.samples(self.model), self.folder / "samples.png")
        pictures.save_picture(
            pictures.reconstructions(self.model, self.shown), self.folder / "reconstructions.png"
        )
        if self.config.nz == 2:
            images, labels = self.test.at(slice(N_PLANE))
            pictures.save_latent_plane(
                self.model, data.pixels(images), labels, self.folder / "latent_plane.png"
            )
        few = self.test.images[:N_BOUND]
        bound = -importance_bound(self.model, few).mean().item()
        values = {f"test_{name}": value for name, value in result._asdict().items()}
        values |= {"test_importance_bound": bound, "test_importance_bound_images": len(few)}
        values |= {"epochs": self.progress.epoch}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        text = json.dumps(finite, indent=2, allow_nan=False)  # JSON knows no others
        checkpoint.write_atomically(self.folder / "results.json", text.encode())
        return result, bound


def _check_values(dataset: Dataset, likelihood: str) -> None:
    """Raise a TrainingError unless all images have values that the likelihood knows; bytes always do."""
    known = LIKELIHOODS[likelihood]
    for images in (dataset.train.images, dataset.validation.images, dataset.test.images):
        if not images.is_floating_point() or not len(images):
            continue
        if known.density_of == "grey":
            raise TrainingError(
                f"images are {checks.describe(images)}; expected uint8 under --likelihood {likelihood}, which knows 256 levels"
            )
        low, high = (v.item() for v in images.aminmax())
        if known.bounds and not known.bounds[0] <= low <= high <= known.bounds[1]:
            raise TrainingError(
                f"images have values from {low:g} to {high:g}; expected all in [{known.bounds[0]:g}, {known.bounds[1]:g}] under "
                f"--likelihood {likelihood}; the Gaussian knows others"
            )
