"""The main job's options: one dataclass, turned into flags by tyro."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lae_fast import checks
from lae_fast.data import BINARIZATIONS, DATASETS
from lae_fast.models import LAE, LIKELIHOODS, MODELS, NETWORKS, Architecture, Hoffman, options_of
from lae_fast.models.precision import PRECISIONS, Precision, chosen_chain_precision

_LAE, _HOFFMAN = options_of("lae"), options_of("hoffman")

# What may be given anew when a run resumes: all else decides what the run has computed so far, and stays.
CHANGEABLE = (
    "epochs",
    "lr",
    "cooldown",
    "patience",
    "device",
    "data",
    "data_dir",
    "output_dir",
    "resume",
    "log_every",
    "checkpoint_every",
)

# What auto means for batch size, epochs and patience: the first three on data sets as large as MNIST. Of few images, as the digits, a
# minibatch of 256 is a fifth, and 30 epochs are 120 updates; they need more of them.
BATCH_SIZE, EPOCHS, PATIENCE = 256, 30, 10
LEAST_BATCH, LEAST_BATCHES, LEAST_UPDATES = 16, 8, 1000  # images; minibatches in an epoch, and in all


class TrainingError(RuntimeError):
    """Training cannot start or go on; the message says why and what is left."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a Langevin autoencoder, or a VAE or Hoffman's method to compare with, on MNIST or images of your own."""

    model: Literal[tuple(MODELS)] = "lae"
    """lae: Langevin autoencoder; vae: variational autoencoder; hoffman: Hoffman's method between the two."""
    nz: int = 8
    """Latent dimensions."""
    nh: int = 256
    """Width of the hidden layers; also the number of features d that phi acts on."""
    depth: int = 3
    """Blocks of Linear, LayerNorm, ReLU (conv: halvings of the image) on each side."""
    network: Literal[tuple(NETWORKS)] = "mlp"
    """mlp: the report's fully connected network, and with --nh 1024 the paper's for images of any size; conv: a small
    convolutional one."""
    channels: int = 32
    """Channels of conv's first halving; each further one doubles them."""
    likelihood: Literal[tuple(LIKELIHOODS)] = "bernoulli"
    """p(x|z). bernoulli: on logits; gaussian, logistic (256 levels): with a learned scale."""

    # The model's own options: `options_of` holds their defaults, and `model_options` passes them on.
    n_steps: int = _LAE["n_steps"]
    """Langevin steps T per minibatch (LAE, Hoffman)."""
    mh: bool = _LAE["mh"]
    """Metropolis-Hastings accept or reject (LAE, Hoffman)."""
    step_size: float | Literal["auto"] = "auto"
    """Langevin step size: of z, for an LAE in units of q(z|x)'s variance where chains start at its draws; with joint decisions per
    example, as published (eta = step_size / batch size). auto: adapted on the device towards an acceptance of 0.574; without
    MH 0.1 in units of q, else the published 1e-3."""
    adaptation_rate: float = _LAE["adaptation_rate"]
    """How fast the logarithm of the step size follows the acceptance, at every step of the chain (LAE, Hoffman)."""
    decisions: Literal[LAE.kinds] = _LAE["decisions"]
    """datapoint: each image's code has a chain and decisions of its own, and all are then written back into phi; joint: one
    chain moves phi itself and decides for the whole minibatch, as published (LAE)."""
    decoder_window: Literal[("auto", *LAE.windows)] = "auto"
    """States that the decoder learns from, on average: after each of the T steps, as published; before each step; the first
    state, or the last one. auto: last, for joint decisions after (LAE)."""
    feature_window: Literal[("auto", *LAE.windows)] = "auto"
    """The same for the features. auto: first, which is what the encoder itself predicts; for joint decisions after (LAE)."""
    spread: bool = _LAE["spread"]
    """Start the chains at draws of q(z|x), with a learned standard deviation, and not at the codes (LAE, datapoint
    decisions)."""
    memory: int = _LAE["memory"]
    """Minibatches over which phi averages the codes that are written back, and --whiten the features' moments (LAE)."""
    ridge: float = _LAE["ridge"]
    """Added to the features' second moments, in units of their mean, in the write-back and in --whiten (LAE)."""
    whiten: bool = _LAE["whiten"]
    """Move phi in coordinates where the features' running Gram matrix is the identity (LAE, joint decisions)."""
    gradient: Literal[Hoffman.gradients] = _HOFFMAN["gradient"]
    """States from which the decoder learns: all T states of the chain, or the last (Hoffman)."""
    start: Literal[Hoffman.starts] = _HOFFMAN["start"]
    """Start of the chains: a draw of the encoder, or a draw of the prior, the traditional way (Hoffman)."""

    precision: Precision = _LAE["precision"]
    """Precision of matrix products in training: in the encoder, in gradients and, where no Metropolis-Hastings decision
    depends on them, in the energies. bf16 with --network conv: of its gradients those of weights, with joint decisions
    none. tf32 is for GPUs."""
    chain_precision: Literal[("auto", *PRECISIONS)] = "auto"
    """Precision of the decoder's products when it evaluates the energy of the chain's proposals. auto: --precision, but never
    too coarse for Metropolis-Hastings decisions."""

    batch_size: int | Literal["auto"] = "auto"
    """Images per minibatch, under torchrun of all processes together; the ragged last batch of an epoch is dropped. auto: 256,
    or of few images so many that an epoch has at least eight minibatches; not below 16."""
    epochs: int | Literal["auto"] = "auto"
    """Passes over the training images, at most. auto: 30, or of few images so many as make 1,000 minibatches."""
    lr: float | Literal["auto"] = "auto"
    """Learning rate of Adam: constant, then linear to 0 over the last epochs (--cooldown). auto: what did best on validation
    images, 2e-3 for an LAE with datapoint decisions, else 1e-3."""
    beta1: float | Literal["auto"] = "auto"
    """Adam's momentum. auto: 0.5 for an LAE whose features learn from the states after each step, in which phi has undone
    part of the change that the momentum remembers; else 0.9."""
    cooldown: float = 0.2
    """Fraction of the epochs, at the end, over which the learning rate falls to 0; 0: never."""
    patience: int | Literal["auto"] = "auto"
    """Stop after this many epochs without a better validation loss. auto: 10, or of few images more, by the factor of --epochs."""
    seed: int = 0
    """Decides everything random: initial weights, order of the images, chain."""
    deterministic_reduce: bool = False
    """The same bits for 1, 2, 4 or 8 processes of one kind: each minibatch is computed in eight parts, whose sums have one order. A
    step takes longer, three times for small minibatches; on CPUs a process has one thread."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:1, ...; under torchrun each process takes a GPU of its own."""

    dataset: Literal[("auto", *DATASETS)] = "auto"
    """auto: MNIST, found or downloaded; without a network scikit-learn's 8 x 8 digits. celeba: 64 x 64."""
    data: Path | None = None
    """Images of your own, and no --dataset: a folder of pictures of one size (sub-folders are classes, or train and test), a file
    .npy or .npz of images (and labels), or .pt of tensors."""
    data_dir: Path = Path("~/.cache/lae_fast")
    """Folder of the data sets by name, also for downloads (torchvision's layout: MNIST/raw inside)."""
    validation: int | None = None
    """Last images of the training set kept for validation (default 5,000, of digits 200, of celeba its own; --data: a tenth,
    or its own). 0: train on all, no early stopping."""
    binarize: Literal[BINARIZATIONS] = "none"
    """none: grey pixels in [0, 1]; fixed: binary pixels, drawn once; dynamic: drawn again each time an image is used in
    training."""

    output_dir: Path | None = None
    """Folder of the run; default runs/MODEL-DATE-TIME. Must not hold another run."""
    resume: Path | None = None
    """Folder of a run to continue from its last checkpoint, with the run's own options. Options that do not change the
    finished part of the run (more --epochs or --patience, another --lr, ...) may be given again."""
    log_every: int = 20
    """Minibatches between lines of metrics.jsonl and looks at the device."""
    checkpoint_every: int = 0
    """Minibatches between checkpoints within an epoch; 0: only at its end."""

    def __post_init__(self) -> None:
        for name, kind in _kinds().items():
            value = getattr(self, name)
            if not _fits(value, kind):
                raise TypeError(f"{checks.option(name)} is {checks.describe(value)}; expected {_words(kind)}")
            if type(value) is int and float in _parts(kind):  # an integer may be too large for torch
                object.__setattr__(self, name, _as_float(value))
        # data_dir by whoever reads: ~ in a record serves on other machines
        checks.expand_paths(self, "data", "output_dir", "resume")
        for name in (
            "nz",
            "nh",
            "depth",
            "channels",
            "n_steps",
            "batch_size",
            "epochs",
            "patience",
            "log_every",
            "memory",
        ):
            if (value := getattr(self, name)) != "auto":
                checks.count(checks.option(name), value)
        for name in ("checkpoint_every", "seed", "validation"):
            if (value := getattr(self, name)) is not None:
                checks.count(checks.option(name), value, least=0)
        if self.lr != "auto" and not 0 < self.lr < math.inf:
            raise ValueError(f"--lr is {self.lr}; expected a positive finite number, or auto")
        if not 0 <= self.adaptation_rate < math.inf:
            raise ValueError(f"--adaptation-rate is {self.adaptation_rate}; expected a finite number >= 0")
        if not 0 <= self.ridge < math.inf:
            raise ValueError(f"--ridge is {self.ridge}; expected a finite number >= 0")
        if self.beta1 != "auto" and not 0 <= self.beta1 < 1:
            raise ValueError(f"--beta1 is {self.beta1}; expected a number from 0 to below 1, or auto")
        checks.fraction("--cooldown", self.cooldown)
        if self.step_size != "auto" and not 0 <= self.step_size < math.inf:
            raise ValueError(f"--step-size is {self.step_size}; expected a finite number >= 0, or auto")
        self._check_together()

    def _check_together(self) -> None:
        """Raise a ValueError where options contradict each other."""
        if self.model == "lae" and self.whiten and self.decisions != "joint":
            raise ValueError(
                "--whiten moves phi, and --decisions datapoint do not; expected --decisions joint with it"
            )
        if "chain_precision" in options_of(self.model):
            asked = None if self.chain_precision == "auto" else self.chain_precision
            chosen_chain_precision(self.precision, asked, self.mh)  # raises
        if self.data is not None and self.dataset != "auto":
            raise ValueError(f"--data {self.data} beside --dataset {self.dataset}; expected only one of them")
        folder = str(self.resume or self.output_dir)
        if folder != folder.encode(errors="ignore").decode():
            raise ValueError(
                f"the run's folder is {folder}; expected a name in UTF-8: safetensors knows no others"
            )
        places = {path.absolute() for path in (self.resume, self.output_dir) if path is not None}
        if len(places) > 1:
            raise ValueError(
                f"--output-dir {self.output_dir} beside --resume {self.resume}: a run stays in its folder"
            )

    def for_images(self, n: int) -> tuple[int, int, int]:
        """Batch size, epochs and patience for n training images: as given, and numbers where they are auto."""
        power = 1 << max(0, (n // LEAST_BATCHES).bit_length() - 1)  # of 2
        few = min(n, BATCH_SIZE, max(LEAST_BATCH, power))
        size = few if self.batch_size == "auto" else self.batch_size
        n_batches = max(1, n // size)
        longer = max(EPOCHS, -(-LEAST_UPDATES // n_batches))
        wait = max(PATIENCE, -(-LEAST_UPDATES * PATIENCE // (EPOCHS * n_batches)))
        epochs = longer if self.epochs == "auto" else self.epochs
        return size, epochs, wait if self.patience == "auto" else self.patience

    def architecture(self, shape: Sequence[int]) -> Architecture:
        """The model's part of the options, for images of this shape: (c, h, w), or (nx,) for flat ones."""
        return Architecture(
            self.model,
            self.network,
            self.likelihood,
            nz=self.nz,
            nh=self.nh,
            depth=self.depth,
            shape=tuple(shape),
            channels=self.channels,
        )

    def model_options(self) -> dict[str, Any]:
        """What the model's signature asks for; auto leaves an option to the model."""
        values = {name: getattr(self, name) for name in options_of(self.model)}
        return {name: value for name, value in values.items() if value != "auto"}

    def without_effect(self) -> list[str]:
        """Flags of other values than the defaults that do nothing beside the other options."""
        idle = {name for model in MODELS for name in options_of(model)} - options_of(self.model).keys()
        if self.network != "conv":
            idle.add("channels")
        if self.step_size != "auto" or not self.mh:
            idle.add("adaptation_rate")
        if self.decisions == "joint":
            idle |= {"spread"} if self.whiten else {"spread", "memory", "ridge"}
        if self.validation == 0:
            idle.add("patience")
        if self.data is not None or self.dataset == "digits":
            idle.add("data_dir")
        fields = (field for field in dataclasses.fields(self) if field.name in idle)
        return [checks.option(field.name) for field in fields if getattr(self, field.name) != field.default]

    def check_resumed(self, before: Config) -> None:
        """Raise a ValueError unless a run that was started with the options `before` may go on with these."""
        for field in dataclasses.fields(self):
            old, new = getattr(before, field.name), getattr(self, field.name)
            if field.name not in CHANGEABLE and old != new:
                raise ValueError(
                    f"{checks.option(field.name)} was {old}, now {new}: a run keeps it when it resumes"
                )

    def to_json(self) -> dict[str, object]:
        """Plain values; `from_json` undoes it."""
        values = dataclasses.asdict(self)
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Config:
        """A configuration of options by name.

        Raises:
            TypeError, ValueError: a name is that of no option, or a value does not fit.
        """
        for name in values:
            if name not in _kinds():
                guess = difflib.get_close_matches(
                    str(name), _kinds().keys() - {"resume"}, 1
                )  # of a command alone
                known = "expected options as --help lists them, like batch_size"
                raise ValueError(f"{name!r} is no option; {f'did you mean {guess[0]}?' if guess else known}")
        paths = {name for name, kind in _kinds().items() if Path in _parts(kind)}
        for name in paths & values.keys():
            if values[name] == "":
                raise ValueError(f"{checks.option(name)} is empty; expected a path")
        values = {k: Path(v) if k in paths and isinstance(v, str) else v for k, v in values.items()}
        return cls(**values)


def renamed(options: dict[str, Any]) -> dict[str, Any]:
    """The options in a record of any version, as they are called today."""
    options = dict(options)
    if "window" in options:  # from before decisions were a choice, and windows two
        window = options.pop("window")
        options |= {"decisions": "joint", "decoder_window": window, "feature_window": window}
    return options


@functools.cache
def _kinds() -> dict[str, Any]:
    """The type of each option, as written above."""
    return typing.get_type_hints(Config)


def _parts(kind: Any) -> tuple[Any, ...]:
    """The types that an option may have."""
    return typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, to the letter: a record of a run may hold anything, True for 1 and "8" for 8."""
    for part in _parts(kind):
        if typing.get_origin(part) is Literal:
            if isinstance(value, str) and value in typing.get_args(part):
                return True
        elif (isinstance(value, part) and not (part is int and isinstance(value, bool))) or (
            part is float and type(value) is int
        ):
            return True
    return False


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _words(kind: Any) -> str:
    """A type for people."""
    names = {
        int: "a whole number",
        float: "a number",
        bool: "True or False",
        str: "a name",
        type(None): "None",
    }
    texts = [
        ", ".join(typing.get_args(p)) if typing.get_origin(p) is Literal else names.get(p, "a path")
        for p in _parts(kind)
    ]
    return " or ".join(texts)
