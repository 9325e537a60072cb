"""Models by name: what the command line, checkpoints and experiments build."""

from __future__ import annotations

import dataclasses

from lae_fast.autoencoder import Autoencoder
from lae_fast.lae import LAE
from lae_fast.likelihood import LIKELIHOODS
from lae_fast.nets import NETWORKS
from lae_fast.vae import VAE


@dataclasses.dataclass(frozen=True)
class Architecture:
    """All that decides a model's parameters and their shapes."""

    model: str = "lae"  # lae, vae
    network: str = "mlp"  # mlp, conv
    likelihood: str = "bernoulli"  # bernoulli, gaussian, logistic
    nx: int = 784
    nz: int = 8
    nh: int = 256
    depth: int = 3

    def __post_init__(self) -> None:
        choices = {"model": ("lae", "vae"), "network": tuple(NETWORKS), "likelihood": tuple(LIKELIHOODS)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        for name in ("nx", "nz", "nh", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a positive number")


def build(
    architecture: Architecture, *, n_steps: int = 2, mh: bool = True, step_size: float | None = None
) -> Autoencoder:
    """A freshly initialised model; the chain's arguments (see `LAE`) concern an LAE only."""
    a = architecture
    encoder, decoder = NETWORKS[a.network](a.nx, a.nz, a.nh, a.depth)
    parts = (encoder, decoder, LIKELIHOODS[a.likelihood]())
    sizes = dict(nx=a.nx, nz=a.nz, d=a.nh)
    if a.model == "vae":
        return VAE(*parts, **sizes)
    return LAE(*parts, **sizes, n_steps=n_steps, mh=mh, step_size=step_size)
