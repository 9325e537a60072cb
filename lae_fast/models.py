"""Models by name: what the command line, checkpoints and experiments build."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lae_fast import checkpoint
from lae_fast.autoencoder import Autoencoder
from lae_fast.hoffman import Hoffman
from lae_fast.lae import LAE
from lae_fast.likelihood import LIKELIHOODS
from lae_fast.nets import NETWORKS
from lae_fast.vae import VAE


@dataclasses.dataclass(frozen=True)
class Architecture:
    """All that decides a model's parameters and their shapes."""

    model: str = "lae"  # lae, vae, hoffman
    network: str = "mlp"  # mlp, conv
    likelihood: str = "bernoulli"  # bernoulli, gaussian, logistic
    nx: int = 784
    nz: int = 8
    nh: int = 256
    depth: int = 3

    def __post_init__(self) -> None:
        choices = {
            "model": ("lae", "vae", "hoffman"),
            "network": tuple(NETWORKS),
            "likelihood": tuple(LIKELIHOODS),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        for name in ("nx", "nz", "nh", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a positive number")


def build(
    architecture: Architecture,
    *,
    n_steps: int = 2,
    mh: bool = True,
    step_size: float | None = None,
    adaptation_rate: float = 0.05,
    precision: str = "float32",
    chain_precision: str | None = None,
    window: str = "after",
    whiten: bool = False,
    gradient: str = "average",
    start: str = "encoder",
) -> Autoencoder:
    """A freshly initialised model. `precision` concerns training; the other options the chain: `window` and
    `whiten` of an LAE, `gradient` and `start` of Hoffman's method, the others of both; see there."""
    a = architecture
    encoder, decoder = NETWORKS[a.network](a.nx, a.nz, a.nh, a.depth)
    parts = (encoder, decoder, LIKELIHOODS[a.likelihood]())
    sizes = dict(nx=a.nx, nz=a.nz, d=a.nh, precision=precision)
    chain = dict(
        n_steps=n_steps,
        mh=mh,
        step_size=step_size,
        adaptation_rate=adaptation_rate,
        chain_precision=chain_precision,
    )
    if a.model == "vae":
        return VAE(*parts, **sizes)
    if a.model == "hoffman":
        return Hoffman(*parts, **sizes, **chain, gradient=gradient, start=start)
    return LAE(*parts, **sizes, **chain, window=window, whiten=whiten)


def load(path: Path) -> Autoencoder:
    """The model in a file of weights that training wrote (best.safetensors), on the CPU, in evaluation mode.

    Raises:
        CheckpointError: the file is missing, damaged, or not of a model of this package.
    """
    weights, metadata = checkpoint.load_weights(path)
    try:
        architecture = Architecture(**metadata)
    except (TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{path} is not of a model of this package: {error}") from error
    model = build(architecture)
    checkpoint.load_into(model, weights, path)
    return model.eval()
