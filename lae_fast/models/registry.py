"""Models by name, for the command line, for files of weights and for experiments.

The options of a model are the keyword-only arguments of its signature, apart from sizes: `build` takes exactly the options that
the model takes.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lae_fast import checkpoint, checks
from lae_fast.models.autoencoder import WEIGHTS, Autoencoder, option_defaults
from lae_fast.models.hoffman import Hoffman
from lae_fast.models.lae import LAE
from lae_fast.models.likelihood import LIKELIHOODS, Likelihood
from lae_fast.models.nets import NETWORKS
from lae_fast.models.vae import VAE

MODELS: dict[str, type[Autoencoder]] = {"lae": LAE, "vae": VAE, "hoffman": Hoffman}


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
        TypeError: a size is not a whole number, or the shape none of an image.
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
    return option_defaults(MODELS[checks.choice("model", model, MODELS)])


def build(architecture: Architecture, **options: Any) -> Autoencoder:
    """A freshly initialised model, with options of its class.

    Raises:
        TypeError: architecture is not an `Architecture`, or an option's value has another type.
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
    encoder, decoder = a.bodies()
    return MODELS[a.model](
        encoder, decoder, LIKELIHOODS[a.likelihood](), **_sizes(a), nz=a.nz, d=a.nh, **options
    )


def _sizes(a: Architecture) -> dict[str, Any]:
    """The arguments of a model that say the shape of an image."""
    return {"nx": a.nx} if a.shape == (a.nx,) else {"shape": a.shape}


def load(
    path: str | Path,
    *,
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
    likelihood: Likelihood | None = None,
) -> Autoencoder:
    """A trained model: with its weights, its options and its chain's state, on the CPU, in eval mode.

    Args:
        path: a run's folder, a folder that `model.save` wrote, or a file of weights.
        encoder, decoder, likelihood: parts that are not of this package: their weights are replaced by those of the file.

    Raises:
        TypeError: path is not one, or a part is not an nn.Module.
        ValueError: other parts are given than those that are not of this package, or one is on meta.
        CheckpointError: the file is missing or damaged, holds no model of this package, or one of other parts.

    Example:
        >>> import tempfile
        >>> encoder, decoder = torch.nn.Linear(9, 8), torch.nn.Linear(2, 9)
        >>> model = lae_fast.LAE(encoder, decoder, lae_fast.Bernoulli(), nx=9, nz=2, n_steps=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(folder)
        ...     lae_fast.load(folder, encoder=encoder, decoder=decoder).n_steps
        3
    """
    path, given = (
        checks.path("path", path),
        {"encoder": encoder, "decoder": decoder, "likelihood": likelihood},
    )
    own = {name: part for name, part in given.items() if part is not None}
    for name, part in own.items():
        if not isinstance(part, nn.Module):
            raise TypeError(f"{name} is {checks.describe(part)}; expected an nn.Module")
        if any(t.is_meta for t in (*part.parameters(), *part.buffers())):
            raise ValueError(
                f"{name} is on meta, where weights cannot be kept; expected it on a device of this machine"
            )
    # Of pathlib's errors none, here and below: the reader tells them.
    path = _weights_in(path) if os.path.isdir(path) else path
    weights, metadata = checkpoint.load_weights(path)
    wanted = ["encoder", "decoder"] if metadata.get("network", "") is None else []
    wanted += ["likelihood"] if metadata.get("likelihood", "") is None else []
    if own.keys() != set(wanted):
        call = f"load(path, {', '.join(f'{name}=...' for name in wanted)}), as they are not of this package"
        message = (
            f"{path}: the parts given are {', '.join(own) or 'none'}; expected {call if wanted else 'none'}"
        )
        raise ValueError(message) if own else checkpoint.CheckpointError(message)
    options, frozen = metadata.pop("options", None), metadata.pop("frozen", [])  # older files hold none
    if wanted:
        known = {"network": "mlp", "likelihood": "bernoulli"}  # which stand in for the own ones
        metadata |= {name: known[name] for name in known if metadata.get(name, "") is None}
    architecture = architecture_in(metadata, path)
    if "encoder" not in own:
        check_sizes(architecture, weights, path)
    if options is None:
        # The one that decides names of parameters: joint decisions, and chains that start at the codes, have one s for all images.
        options = {"spread": False} if architecture.model == "lae" and "posterior_scale" in weights else {}
    try:
        if own:
            model = _assembled(architecture, encoder, decoder, likelihood, options)
        else:
            model = build(architecture, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = "is of other parts than those given" if own else "holds options that its model does not take"
        raise checkpoint.CheckpointError(f"{path} {reason}: {error}") from error
    checkpoint.load_into(model, weights, path)
    for name, p in model.named_parameters():
        p.requires_grad_(name not in frozen)
    return model.eval()


def _weights_in(folder: Path) -> Path:
    """A folder's file of weights.

    Raises:
        CheckpointError: there is none; of a run that was stopped before its first epoch was over, the last checkpoint is named.
    """
    path = folder / WEIGHTS
    if not os.path.exists(path) and (kept := sorted(folder.glob("checkpoints/step-*/model.safetensors"))):
        raise checkpoint.CheckpointError(
            f"{path} is not there yet; the run's last checkpoint is {kept[-1]}, which can be loaded"
        )
    return path


def _assembled(
    a: Architecture,
    encoder: nn.Module | None,
    decoder: nn.Module | None,
    likelihood: Likelihood | None,
    options: dict[str, Any],
) -> Autoencoder:
    """A model of parts of which some are not of this package; d is what the encoder returns."""
    if encoder is None or decoder is None:
        encoder, decoder = a.bodies()
    likelihood = likelihood or LIKELIHOODS[a.likelihood]()
    return MODELS[a.model](encoder, decoder, likelihood, **_sizes(a), nz=a.nz, **options)


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
    try:
        return Architecture(
            **{name: value for name, value in metadata.items() if name not in ("options", "frozen", "epoch")}
        )
    except (TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{path} is not of a model of this package: {error}") from error


def check_sizes(architecture: Architecture, weights: dict[str, Tensor], path: Path) -> None:
    """Compare the networks of an architecture, which comes from a file, with that file's weights, before they take memory.

    Raises:
        CheckpointError: they do not fit.
    """
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
