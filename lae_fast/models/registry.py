"""Models by name, for the command line, for files of weights and for experiments.

The options of a model are the keyword-only arguments of its signature and of its bases' signatures: `build` takes
exactly the options that the model takes.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lae_fast import checks
from lae_fast.models.autoencoder import Autoencoder
from lae_fast.models.hoffman import Hoffman
from lae_fast.models.lae import LAE
from lae_fast.models.likelihood import LIKELIHOODS
from lae_fast.models.nets import NETWORKS
from lae_fast.models.vae import VAE

MODELS: dict[str, type[Autoencoder]] = {"lae": LAE, "vae": VAE, "hoffman": Hoffman}
_SIZES = ("nx", "nz", "d", "shape")  # fields of an architecture, not options


@dataclasses.dataclass(frozen=True)
class Architecture:
    """All choices that decide a model's parameters and their shapes.

    Attributes:
        nx: elements of an image; None: the product of `shape`, or 784.
        nh: width of the hidden layers, and the number of features.
        depth: of the network, see nets.py.
        shape: of an image, (c, h, w); None: flat, (nx,).
        channels: of conv's first halving.

    Raises:
        ValueError: the model, network or likelihood is unknown, a size is not positive, or nx is not the product of the shape.

    Example:
        >>> from lae_fast import models
        >>> architecture = models.Architecture(model="vae", network="conv", shape=(3, 32, 32), nz=16)
        >>> architecture.nx
        3072
        >>> encoder, decoder = architecture.bodies()
        >>> decoder(torch.zeros(1, 16)).shape
        torch.Size([1, 3, 32, 32])
    """

    model: str = "lae"
    network: str = "mlp"
    likelihood: str = "bernoulli"
    nx: int | None = None
    nz: int = 8
    nh: int = 256
    depth: int = 3
    shape: tuple[int, ...] | None = None
    channels: int = 32

    def __post_init__(self) -> None:
        for name, known in (("model", MODELS), ("network", NETWORKS), ("likelihood", LIKELIHOODS)):
            checks.choice(name, getattr(self, name), known)
        for name in ("nz", "nh", "depth", "channels"):
            checks.count(name, getattr(self, name))
        shape = checks.image_shape(self.shape, 784 if self.nx is None and self.shape is None else self.nx)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "nx", math.prod(shape))

    def bodies(self) -> tuple[nn.Module, nn.Module]:
        """Freshly initialised encoder and decoder: a network's arguments are fields of this class."""
        network = NETWORKS[self.network]
        return network(**{name: getattr(self, name) for name in inspect.signature(network).parameters})


def options_of(model: str) -> dict[str, Any]:
    """The options that a model takes, by name, with their defaults.

    Example:
        >>> from lae_fast import models
        >>> models.options_of("vae")
        {'precision': 'float32'}
        >>> models.options_of("lae")["decisions"]
        'datapoint'
    """
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
        ValueError: the model does not take an option, or refuses its value.

    Example:
        >>> from lae_fast import models
        >>> model = models.build(models.Architecture(model="lae", nx=784, nz=4), decisions="joint", n_steps=5)
        >>> model.phi.shape, model.n_steps
        (torch.Size([4, 256]), 5)
    """
    if not isinstance(architecture, Architecture):
        raise TypeError(f"architecture is {checks.describe(architecture)}; expected an Architecture")
    a, known = architecture, options_of(architecture.model)
    if unknown := options.keys() - known.keys():
        raise ValueError(
            f"{a.model} takes no option {', '.join(sorted(unknown))}; expected some of {', '.join(known)}"
        )
    shape = {"nx": a.nx} if len(a.shape) == 1 else {"shape": a.shape}
    return MODELS[a.model](*a.bodies(), LIKELIHOODS[a.likelihood](), **shape, nz=a.nz, d=a.nh, **options)


def load(path: str | Path) -> Autoencoder:
    """The model in a file of weights that training wrote (best.safetensors), with its options and its chain, on the CPU, in
    eval mode.

    Raises:
        TypeError: path is not one.
        CheckpointError: the file is missing or damaged, or holds no model of this package.
    """
    from lae_fast import checkpoint  # here, as it needs safetensors

    path = checks.path("path", path)
    weights, metadata = checkpoint.load_weights(path)
    options = metadata.pop("options", None)  # older files hold none
    architecture = architecture_in(metadata, path)
    check_sizes(architecture, weights, path)
    if options is None:
        # The one that decides names of parameters: joint decisions, and chains that start at the codes, have one s for all images.
        options = {"spread": False} if architecture.model == "lae" and "posterior_scale" in weights else {}
    try:
        model = build(architecture, **options)
    except (TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(
            f"{path} holds options that its model does not take: {error}"
        ) from error
    checkpoint.load_into(model, weights, path)
    return model.eval()


def architecture_in(metadata: dict[str, Any], path: Path) -> Architecture:
    """The architecture that a file says its weights have; older files lack some of its fields.

    Raises:
        CheckpointError: it is none of this package.

    Example:
        >>> from pathlib import Path
        >>> from lae_fast import models
        >>> models.architecture_in({"model": "vae", "nx": 64}, Path("file.safetensors")).nx
        64
    """
    from lae_fast import checkpoint

    try:
        return Architecture(**{name: value for name, value in metadata.items() if name != "options"})
    except (TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{path} is not of a model of this package: {error}") from error


def check_sizes(architecture: Architecture, weights: dict[str, Tensor], path: Path) -> None:
    """Compare the networks of an architecture, which comes from a file, with that file's weights, before they take memory.

    Raises:
        CheckpointError: they do not fit.
    """
    from lae_fast import checkpoint

    a, networks = architecture, ("encoder", "decoder")
    try:
        if a.depth > len(weights):  # before that many layers are made
            raise ValueError(f"depth is {a.depth}, and it holds {len(weights)} tensors")
        with torch.device("meta"):
            bodies = a.bodies()
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise checkpoint.CheckpointError(f"{path} is not of a model of this package: {error}") from error
    expected = {
        f"{n}.{k}": t for n, body in zip(networks, bodies, strict=True) for k, t in body.state_dict().items()
    }
    given = {name: t for name, t in weights.items() if name.split(".")[0] in networks}
    checkpoint.check_tensors(expected, given, path)
