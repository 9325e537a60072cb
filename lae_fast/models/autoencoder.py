"""The interface that all models share: p(x, z) = N(z; 0, I) p(x|z), an encoder, and an approximate posterior."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from lae_fast import checkpoint, checks, ops
from lae_fast.isolation import isolated, savable
from lae_fast.models.likelihood import LIKELIHOODS, Likelihood, gaussian_rate, negative_log_prior
from lae_fast.models.mlp import MLP
from lae_fast.models.nets import recognised
from lae_fast.models.precision import PRECISIONS, Precision, products_in
from lae_fast.ops.torch_private import is_transformed
from lae_fast.sampling.ald import value_at
from lae_fast.sharing import Shared

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound="Autoencoder")

SIZES = ("nx", "nz", "d", "shape")  # arguments that are no options
WEIGHTS = "best.safetensors"  # a folder's file of weights
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")  # names of files that `save` does not write


def images_for(model: Autoencoder, x: Tensor) -> Tensor:
    """Images as every function of a model takes them, in the form that the model computes with: its own type, [n, nx].

    Args:
        x: [n, *model.shape] or flat [n, nx]; also grey [n, h, w] without its one channel, and images of any shape with nx
            elements where the model's own shape is flat. On the model's device: uint8 in 0..255, or floating point in [0, 1], of
            any type. Under a likelihood without bounds, as the Gaussian is, all finite values are images. The values are
            checked on a CPU only, where this needs no synchronisation.

    Raises:
        TypeError: x is not a tensor.
        ValueError: x has another form, or the model's parameters are neither float32 nor float64.

    Example:
        >>> from lae_fast import models
        >>> model = models.build(models.Architecture(shape=(3, 8, 8), nh=16, depth=1))
        >>> x = models.images_for(model, torch.full((2, 3, 8, 8), 51, dtype=torch.uint8))
        >>> x.shape, round(x.max().item(), 3)  # flat, in [0, 1]
        (torch.Size([2, 192]), 0.2)
    """
    like = check_form(model, x)
    x = savable(x.flatten(1))
    if x.dtype == torch.uint8:
        return x.to(like.dtype) / 255
    x, bounds = x.to(like.dtype), getattr(model.likelihood, "bounds", (0.0, 1.0))
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and not is_transformed():
        values = x.detach().float().contiguous()
        # Nothing times 0 is a number but what is finite; and an op can be asked while an energy is traced.
        if not ops.in_unit_range(0 * values if bounds is None else values):  # a NaN fails too
            low, high = (v.item() for v in values.aminmax())
            expected = "finite ones" if bounds is None else "all in [0, 1], or uint8 in 0..255"
            raise ValueError(f"images have values from {low:g} to {high:g}; expected {expected}")
    return x


def like_of(model: Autoencoder) -> Tensor:
    """A tensor of the type and device in which a model computes, and which what it adds to its networks has: its first parameter;
    without any, a buffer of its networks, or phi."""
    networks = (model.encoder, model.decoder, model.likelihood)
    buffers = (t for network in networks for t in network.buffers() if t.is_floating_point())
    return next(itertools.chain(model.parameters(), buffers), getattr(model, "phi", torch.empty(0)))


def check_form(model: Autoencoder, x: Tensor) -> Tensor:
    """Raise as `images_for` does unless x has the shape, type and device of images; returns `like_of(model)`."""
    checks.tensor("images", x, dtypes=None)
    like = like_of(model)
    if like.dtype not in checks.FLOATS:
        raise ValueError(
            f"the model's parameters are {str(like.dtype).removeprefix('torch.')}; expected float32 or float64: what may be "
            "rounded in training is by precision='bf16'"
        )
    fits = x.dim() > 1 and x.shape[0] > 0 and _is_image(model, x.shape[1:]) and x.device == like.device
    if not fits or not (x.is_floating_point() or x.dtype == torch.uint8):
        raise ValueError(
            f"images are {checks.describe(x)}; expected floating point {_forms(model, 'n')} with n >= 1 on {like.device}, or uint8"
        )
    return like


def _forms(model: Autoencoder, n: int | str) -> str:
    """The shapes of n images, in words."""
    return " or ".join(f"[{n}, {', '.join(map(str, s))}]" for s in dict.fromkeys((model.shape, (model.nx,))))


def _is_image(model: Autoencoder, shape: torch.Size) -> bool:
    """Whether one image may have this shape."""
    if len(model.shape) == 1:
        return math.prod(shape) == model.nx
    long, own = ([size for size in s if size != 1] for s in (shape, model.shape))  # others order no pixels
    return shape == (model.nx,) or long == own


def _try(name: str, network: Callable[[Tensor], object], given: Tensor, what: str) -> None:
    """Raise a ValueError where a network cannot take what it is given."""
    try:
        network(given)
    except Exception as error:  # somebody else's code may raise anything
        reason = checks.first_line(error)
        raise ValueError(f"the {name} does not fit {what} {checks.describe(given)}: {reason}") from error


def asks(function: Callable[P, R]) -> Callable[P, R]:
    """Of a function whose first argument, `model`, is one that it only asks something: without gradients, in eval mode, and
    whatever the program around has switched on (isolation.py).

    Example:
        >>> from lae_fast import models
        >>> @models.asks
        ... def mean_code(model, x):
        ...     return model.encode(x).mean(0)
        >>> model = models.build(models.Architecture(nx=64, nz=2, nh=16, depth=1)).train()
        >>> mean_code(model, torch.rand(5, 64)).requires_grad, model.training
        (False, True)
    """

    @functools.wraps(function)
    def asking(*args: P.args, **kwargs: P.kwargs) -> R:
        model = args[0] if args else kwargs.get("model")
        if not isinstance(model, Autoencoder):
            raise TypeError(f"model is {checks.describe(model)}; expected an LAE, VAE or Hoffman")
        check_whole(model, "call model.unshard() before, and model.reshard() after")
        with torch.no_grad(), isolated(model):
            return function(*args, **kwargs)

    return asking


def check_whole(module: nn.Module, advice: str, prefix: str = "") -> None:
    """Raise a ValueError if a process has but a part of some parameter, as PyTorch's FSDP2 (`fully_shard`) leaves them.

    Args:
        advice: how to make them whole.
        prefix: of the parameters' names.
    """
    for name, p in module.named_parameters(prefix):
        if hasattr(p, "full_tensor"):  # DTensor's, which takes long to import
            raise ValueError(f"{name} is sharded over processes; expected whole parameters: {advice}")


def add_gradient(p: nn.Parameter, gradient: Tensor) -> None:
    """Add a gradient to those of a parameter, laid out in memory as the parameter is: fused optimizers pair elements by place."""
    if gradient.stride() != p.stride():
        gradient = torch.empty_like(p).copy_(gradient)
    p.grad = gradient if p.grad is None else p.grad + gradient


def option_defaults(cls: type[Autoencoder]) -> dict[str, Any]:
    """The options of a class of models, which are the keyword-only arguments of its signature, with their defaults."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in SIZES}


class Autoencoder(nn.Module):
    """Base of `LAE`, `VAE` and `Hoffman`. Keyword arguments are a model's options, see registry.py.

    `loss`, `encode`, `decode`, `posterior` and `potential` run in the mode that the model is in, train or eval, and can be
    differentiated; whatever else asks a model something runs in eval mode and without gradients, and restores the mode. What a
    model adds to its networks, and what it gives them, is of the type and on the device of its first parameter.

    Attributes:
        name: of the class, in files of weights; None: they do not know it.
        beta1, lr: Adam's momentum and learning rate that suit this model.

    Args:
        encoder: images [n, *shape] -> features [n, d]. An `MLP` is handed flat images [n, nx].
        decoder: latent variables [n, nz] -> the likelihood's input [n, *shape], or flat [n, nx].
        likelihood: one of `lae_fast.models.likelihood`.
        nx: elements of an image: that of a model whose images are flat, or the product of `shape`.
        nz: latent dimensions.
        d: features. None: as many as the encoder returns, which then sees two blank images.
        shape: of one image, as (c, h, w). None: (nx,), flat. With a shape, or without d, both networks are tried at once on
            two blank images, in eval mode.
        precision: the precision of matrix products in training, as far as the model allows it (precision.py).

    Raises:
        TypeError: a network is not an nn.Module, or the likelihood not a `Likelihood`.
        ValueError: nx, nz, d or a size of the shape is not positive, nx is not the shape's product, a network does not fit the
            images, or the precision is unknown.

    Example:
        >>> from lae_fast import models
        >>> model = models.build(models.Architecture(shape=(1, 8, 8), nz=2, nh=16, depth=1))
        >>> x = torch.rand(5, 1, 8, 8)
        >>> model.encode(x).shape, model.reconstruct(x).shape, model.potential(x, torch.zeros(7, 5, 2)).shape
        (torch.Size([5, 2]), torch.Size([5, 1, 8, 8]), torch.Size([7, 5]))
    """

    name: ClassVar[str | None] = None
    beta1, lr = 0.9, 1e-3

    encoder: nn.Module
    decoder: nn.Module
    likelihood: Likelihood
    shape: tuple[int, ...]
    nx: int
    nz: int
    d: int  # 0 until the constructor has seen what the encoder returns
    precision: Precision
    share: Shared | None = None

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        *,
        nx: int | None = None,
        nz: int,
        d: int | None = None,
        shape: Sequence[int] | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        module, density = (nn.Module, "an nn.Module"), (Likelihood, "a likelihood, as lae_fast.Bernoulli()")
        for name, part, (cls, kind) in (
            ("encoder", encoder, module),
            ("decoder", decoder, module),
            ("likelihood", likelihood, density),
        ):
            if not isinstance(part, cls):
                raise TypeError(f"{name} is {checks.describe(part)}; expected {kind}")
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.shape = checks.image_shape(shape, nx)
        self.nx, self.nz = math.prod(self.shape), checks.count("nz", nz)
        self.precision = checks.choice("precision", precision, PRECISIONS)
        self.d = 0 if d is None else checks.count("d", d)
        if shape is not None or d is None:
            self._try()

    @torch.no_grad()
    def _try(self) -> None:
        """Run both networks on two blank images, and take d from the encoder where it is not known.

        Raises:
            ValueError: one of them does not fit, or fails.
        """
        blank, z = (torch.zeros(2, n).to(like_of(self)) for n in (self.nx, self.nz))
        check_form(self, blank)
        with isolated(self.encoder, self.decoder), torch.random.fork_rng(devices=[]):
            _try("encoder", self.encoder, self._seen(blank), "images")
            self.d = self.features(blank).shape[1]
            _try("decoder", self.decoder, z, "z")
            self.output(z)

    def _seen(self, x: Tensor) -> Tensor:
        """Images as the encoder sees them: flat [n, nx] -> [n, *shape], or flat for an `MLP`."""
        return x if isinstance(self.encoder, MLP) else x.view(x.shape[0], *self.shape)

    def features(self, x: Tensor) -> Tensor:
        """The encoder's features g(x) [n, d] of flat images x [n, nx], as `images_for` returns them, and in their type.

        Raises:
            TypeError, ValueError: the encoder does not return d features for each image, or changes the images in place.
        """
        seen = self._seen(x)
        h: Tensor = value_at("the encoder", self.encoder, seen)
        fits = isinstance(h, Tensor) and h.is_floating_point() and h.dim() == 2
        if not fits or h.shape[0] != x.shape[0] or self.d not in (0, h.shape[1]):
            raise ValueError(
                f"the encoder returned {checks.describe(h)} for images {list(seen.shape)}; expected features "
                f"[{len(x)}, {self.d or 'd'}], floating point"
            )
        return h.to(x.dtype)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each [n, nz] of the model's own type, of the Gaussian q(z|x) for evaluation, at images x
        [n, *shape]."""
        raise NotImplementedError

    def loss(self, x: Tensor) -> Tensor:
        """In train mode the training loss [] of images x [n, *shape], nats per image; call `backward` on it. In eval mode
        `negative_elbo`, which compares between models; no chain moves.

        Raises:
            ValueError: images have another form (`images_for`).
        """
        x = self._constant_images(x)
        return self.training_loss(x) if self.training else self.negative_elbo(x)

    def _constant_images(self, x: Tensor) -> Tensor:
        x = images_for(self, x)
        if x.requires_grad:
            raise ValueError("images require a gradient; expected none: the loss has no derivative by them")
        return x

    def add_gradients(self, x: Tensor) -> Tensor:
        """Add the gradients of `loss` to those of the parameters, as `loss(x).backward()` does; returns the loss [], detached.

        A model whose gradients are known without autograd spares itself a graph of them.
        """
        loss = self.loss(x)
        loss.backward()
        return loss.detach()

    def forward(self, x: Tensor) -> Tensor:
        """`loss`: so that wrappers which call a module, such as DistributedDataParallel, serve."""
        return self.loss(x)

    def training_loss(self, x: Tensor) -> Tensor:
        """The training loss [], nats per image, of images x [n, nx] that `loss` has checked."""
        raise NotImplementedError

    def negative_elbo(self, x: Tensor) -> Tensor:
        """The negative ELBO [] of images x [n, nx], nats per image: one draw of q(z|x) for each, the rate in closed form."""
        with products_in(self.precision if self.training else "float32", x.device):
            mean, std = self.posterior(x)
            z = mean + std * self._normals(mean)
            output = self.output(z)
        return (self.likelihood.energy(output, x) + gaussian_rate(mean, std)).mean()

    def output(self, z: Tensor) -> Tensor:
        """The likelihood's input for latent variables: [..., nz] -> [..., nx].

        Raises:
            TypeError, ValueError: z has another form, or the decoder does not return an image for each z, or changes z in place.
        """
        like = like_of(self)
        checks.tensor("z", z, dtypes=(like.dtype,), device=like.device)
        if z.dim() < 2 or z.shape[-1] != self.nz or z.numel() == 0:
            raise ValueError(f"z is {checks.describe(z)}; expected [..., n, {self.nz}] with n >= 1")
        rows = z.flatten(0, -2)
        out = value_at("the decoder", self.decoder, rows)
        fits = isinstance(out, Tensor) and out.is_floating_point() and out.shape[:1] == rows.shape[:1]
        if not fits or not _is_image(self, out.shape[1:]):
            raise ValueError(
                f"the decoder returned {checks.describe(out)} for z {list(rows.shape)}; expected floating point "
                f"{_forms(self, len(rows))}"
            )
        return out.reshape(*z.shape[:-1], self.nx)

    def share_minibatches(self: M, process_group: ProcessGroup | None = None) -> M:
        """Treat every minibatch in train mode as one part of a larger one, which is split over the processes of a group.

        Each process calls `loss` with its own part, all of them with equally many images, and the chain is one: phi, step size and
        counters stay the same, bit for bit, on all processes. Joint decisions sum V and its gradient over all of them;
        datapoint decisions the acceptance, and the least squares by which phi remembers the codes. The noise of the chain is
        that of one process with the whole minibatch; so are other draws where the processes' random streams are alike.
        Gradients are each process's own, of its part's mean: `DistributedDataParallel`, or whatever trains
        the parameters, averages them. Eval mode shares nothing.

        Call it on all processes at once, when the model is on its device, before `fully_shard`: they take the weights and the chain of
        the first one.

        Args:
            process_group: default: all processes. A copy by `copy.deepcopy` shares too; a model that is read from a file does not.

        Returns:
            The model itself.

        Raises:
            ValueError: `torch.distributed` has no process group, or the parameters are sharded already.

        Example:
            >>> import torch.distributed as dist
            >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # or by torchrun, with any number
            >>> model = lae_fast.LAE(torch.nn.Linear(9, 8), torch.nn.Linear(2, 9), lae_fast.Bernoulli(), nx=9, nz=2)
            >>> shared = torch.nn.parallel.DistributedDataParallel(model.share_minibatches())
            >>> shared(torch.rand(16, 9)).backward()
            >>> dist.destroy_process_group()
        """
        check_whole(self, "share_minibatches() before fully_shard()")
        self.share = Shared(process_group)
        with torch.no_grad():
            self.share.of_first([*self.parameters(), *self.buffers()])
        return self

    @property
    def _sharing(self) -> Shared | None:
        """The processes that this minibatch is split over."""
        return self.share if self.training else None

    def _normals(self, like: Tensor) -> Tensor:
        """Standard normals [n, nz] for the images of a minibatch, by the generator that `torch.manual_seed` sets."""
        if self._sharing is None:
            return torch.randn_like(like)
        n, nz = like.shape
        return self._sharing.rows(like.new_empty(n * self._sharing.size, nz).normal_())

    def chain_state(self) -> dict[str, Tensor]:
        """The tensors that a chain needs, besides the weights, to continue exactly: a part of the `state_dict`; {} without a chain."""
        return {}

    def options(self) -> dict[str, Any]:
        """The model's options by name, see registry.py: with them and the same parts a twin can be made."""
        return {name: getattr(self, name) for name in option_defaults(type(self))}

    def save(self, path: str | Path) -> None:
        """Write the weights, the chain's state and the options, as `lae_fast.load` reads them.

        Networks and likelihoods of this package are recognised. Of your own ones the file holds the weights, and
        `load` wants them again: `load(path, encoder=..., decoder=...)`.

        Args:
            path: a folder, which is made where it is not there and then holds best.safetensors; or a file that ends in .safetensors.

        Raises:
            TypeError: path is not one.
            ValueError: path is a name of a pickle, as model.pt; the model's class is not one of this package, its parameters are not
                float32 or are on meta, or a value is not finite: `torch.save(model.state_dict(), file)` keeps these. Nothing is
                written.
            OSError: the file cannot be written.

        Example:
            >>> import pathlib, tempfile
            >>> model = lae_fast.VAE(torch.nn.Linear(9, 8), torch.nn.Linear(2, 9), lae_fast.Bernoulli(), nx=9, nz=2)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     model.save(folder)
            ...     [path.name for path in pathlib.Path(folder).iterdir()]
            ['best.safetensors']
        """
        path, advice = checks.path("path", path), "torch.save(model.state_dict(), file) keeps its weights"
        if "name" not in vars(type(self)):
            raise ValueError(
                f"model is {type(self).__name__}, a class of its own; expected an LAE, VAE or Hoffman: {advice}"
            )
        weights = {name: t.clone() for name, t in self.state_dict().items()}  # some may be one tensor
        parameters = dict(self.named_parameters(remove_duplicate=False))
        for name, t in weights.items():
            if t.is_meta:
                raise ValueError(f"{name} is {checks.describe(t)}; expected it on a device of this machine")
            if t.is_floating_point():
                if t.dtype != torch.float32 and name in parameters:  # buffers are of any type
                    raise ValueError(f"{name} is {checks.describe(t)}; expected float32: {advice}")
                # A step size of 0 has the logarithm -inf.
                if not (t.exp() if name == "log_step_size" else t).isfinite().all():
                    raise ValueError(
                        f"{name} holds values that are not finite; expected finite ones: {advice}"
                    )
        network = recognised(self.encoder, self.decoder, self.shape, self.nz, self.d)
        likelihoods = {cls: name for name, cls in LIKELIHOODS.items()}
        facts = {
            "model": self.name,
            "likelihood": likelihoods.get(type(self.likelihood)),
            "nz": self.nz,
            "shape": self.shape,
            **network,
            "options": self.options(),
            "frozen": [name for name, p in self.named_parameters() if not p.requires_grad],
        }
        if path.suffix in PICKLES and not path.is_dir():
            raise ValueError(f"path is {path}; expected a folder, or a file that ends in .safetensors")
        file = path if path.suffix == ".safetensors" else path / WEIGHTS
        with checkpoint.naming(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save_weights(file, weights, facts)

    def potential(self, x: Tensor, z: Tensor) -> Tensor:
        """U(x, z) = -log p(x|z) - log p(z) of images [n, *shape] and z [..., n, nz]: float64 [..., n], nats per image."""
        return self.reconstruction(x, z) + negative_log_prior(z)

    def reconstruction(self, x: Tensor, z: Tensor) -> Tensor:
        """-log p(x|z) of images [n, *shape] and z [..., n, nz]: float64 [..., n], nats per image."""
        return self.likelihood.energy(self.output(z), images_for(self, x))

    def encode(self, x: Tensor) -> Tensor:
        """The mean of q(z|x) for each image: [n, *shape] or [n, nx] -> [n, nz]."""
        return self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """The mean image of each latent variable: [..., nz] -> [..., *shape]."""
        output = self.output(z)
        return self._images("mean", self.likelihood.mean(output), output)

    def _images(self, name: str, pixels: Tensor, output: Tensor) -> Tensor:
        """Pixels [..., nx] that this method of the likelihood has made of an output [..., nx], as images [..., *shape]."""
        if not isinstance(pixels, Tensor) or pixels.shape != output.shape:
            raise ValueError(
                f"the likelihood's {name} returned {checks.describe(pixels)}; expected {list(output.shape)}, one for each pixel"
            )
        return pixels.unflatten(-1, self.shape)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean image of each image's code, in the shape of the images: [n, *shape] -> [n, *shape], [n, nx] -> [n, nx]."""
        with isolated(self):
            return self.decode(self.encode(x)).reshape(x.shape)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n mean images [n, *shape] of latent variables drawn from the prior."""
        with isolated(self):
            return self.decode(self._prior(n, generator))

    def _prior(self, n: int, generator: torch.Generator | None) -> Tensor:
        like = like_of(self)
        checks.count("n", n)
        checks.generator("generator", generator, like.device)
        return torch.randn(n, self.nz, generator=generator, device=like.device, dtype=like.dtype)

    @torch.no_grad()
    def simulate(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """n draws of the joint p(x, z): images [n, *shape], and z [n, nz], which is an exact draw of p(z|x)."""
        z = self._prior(n, generator)
        with isolated(self):
            output = self.output(z)
            return self._images("sample", self.likelihood.sample(output, generator), output), z

    @torch.no_grad()
    def interpolate(self, start: Tensor, end: Tensor, n_steps: int) -> Tensor:
        """Decoded straight lines between the codes of two image batches, in the shape of the first one's images: 2 x
        [n, *shape] -> [n, n_steps, *shape]."""
        checks.count("n_steps", n_steps)
        if isinstance(end, Tensor) and len(start) != len(end):
            raise ValueError(f"end holds {len(end)} images; expected {len(start)}, as start")
        with isolated(self):
            a, b = self.encode(start)[:, None], self.encode(end)[:, None]  # [n, 1, nz]
            t = torch.linspace(0, 1, n_steps, device=a.device, dtype=a.dtype)[:, None]  # [n_steps, 1]
            return self.decode(a + t * (b - a)).reshape(len(a), n_steps, *start.shape[1:])
