"""Models by name: what the command line, files of weights and experiments build.

A model's signature is the truth about its options: its keyword-only arguments, those of its bases included. Nothing else
lists them, so that `build` takes whatever the model takes.
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

from lae_fast.models.autoencoder import Autoencoder
from lae_fast.models.hoffman import Hoffman
from lae_fast.models.lae import LAE
from lae_fast.models.likelihood import LIKELIHOODS
from lae_fast.models.nets import NETWORKS
from lae_fast.models.vae import VAE

MODELS: dict[str, type[Autoencoder]] = {"lae": LAE, "vae": VAE, "hoffman": Hoffman}
_SIZES = ("nx", "nz", "d")  # an architecture's, not options


@dataclasses.dataclass(frozen=True)
class Architecture:
    """All that decides a model's parameters and their shapes.

    Raises:
        ValueError: an unknown model, network or likelihood, or a size that is not positive.
    """

    model: str = "lae"
    network: str = "mlp"
    likelihood: str = "bernoulli"
    nx: int = 784
    nz: int = 8
    nh: int = 256
    depth: int = 3

    def __post_init__(self) -> None:
        for name, known in (("model", MODELS), ("network", NETWORKS), ("likelihood", LIKELIHOODS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        for name in ("nx", "nz", "nh", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a positive number")


def options_of(model: str) -> dict[str, Any]:
    """The options that a model takes, by name, with their defaults."""
    found: dict[str, Any] = {}
    for cls in MODELS[model].__mro__:
        if issubclass(cls, Autoencoder) and "__init__" in vars(cls):
            for p in inspect.signature(cls.__init__).parameters.values():
                if p.kind is p.KEYWORD_ONLY and p.name not in _SIZES:
                    found.setdefault(p.name, p.default)
    return found


def build(architecture: Architecture, **options: Any) -> Autoencoder:
    """A freshly initialised model, with options of its class.

    Raises:
        ValueError: an option that this model does not take, or a value that it refuses.
    """
    a, known = architecture, options_of(architecture.model)
    if unknown := options.keys() - known.keys():
        raise ValueError(
            f"{a.model} takes no option {', '.join(sorted(unknown))}; expected some of {', '.join(known)}"
        )
    encoder, decoder = NETWORKS[a.network](a.nx, a.nz, a.nh, a.depth)
    likelihood = LIKELIHOODS[a.likelihood]()
    return MODELS[a.model](encoder, decoder, likelihood, nx=a.nx, nz=a.nz, d=a.nh, **options)


def load(path: Path) -> Autoencoder:
    """The model in a file of weights that training wrote (best.safetensors), on the CPU, in evaluation mode.

    Raises:
        CheckpointError: the file is missing, damaged, or not of a model of this package.
    """
    from lae_fast import checkpoint  # it needs safetensors

    weights, metadata = checkpoint.load_weights(path)
    try:
        architecture = Architecture(**metadata)
    except (TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{path} is not of a model of this package: {error}") from error
    model = build(architecture)
    checkpoint.load_into(model, weights, path)
    return model.eval()
