"""Likelihoods, which interpret a decoder's output: -log p(x|z) of Bernoulli, Gaussian and discretized logistic pixels.

`energy(output, x)` maps a decoder's output [..., n, nx] and images x [n, nx] in [0, 1] to -log p(x|z), float64
[..., n], in nats summed over pixels, by one fused op (`lae_fast.ops.energy`). `mean(output)` [..., n, nx] is the image to
show to people, `sample(output)` [..., n, nx] a draw of p(x|z).

A likelihood without a kernel is a subclass of `Likelihood` with `pixel_energies`, `mean` and `sample`, and an entry in
`LIKELIHOODS`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lae_fast import checks, ops
from lae_fast.ops.energies import logistic_pixels
from lae_fast.ops.torch_private import is_transformed

PAIRED = 2**22  # pixels that `all_pairs` holds at a time, or those of one output beside all images


def negative_log_prior(z: Tensor) -> Tensor:
    """-log N(z; 0, I) for z [..., nz]: float64 [...], nats.

    Example:
        >>> from lae_fast import models
        >>> round(models.negative_log_prior(torch.zeros(2)).item(), 4)  # log 2 pi
        1.8379
    """
    return 0.5 * z.square().sum(-1, dtype=torch.float64) + 0.5 * z.shape[-1] * math.log(2 * math.pi)


def gaussian_rate(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, I)) for mean and std [n, nz]: float64 [n], nats per image."""
    return 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).sum(-1, dtype=torch.float64)


class Likelihood(nn.Module):
    """Base of all likelihoods. Outputs in half precision are converted to float32.

    Attributes:
        kind: the fused kernel that computes the energy; None: there is no kernel, and `pixel_energies` computes the energy. A
            subclass with `pixel_energies` of its own has none, unless it names one itself.
        log_scale: [], the logarithm of the scale that all pixels share; None: there is no scale.
        density_of: the pixels for which the likelihood is a normalized probability, "binary" or "grey"; None: neither,
            and the numbers of this likelihood compare only with each other.
        bounds: the lowest and the highest value of a pixel; None: any finite value is a pixel.

    Example:
        >>> class Laplace(lae_fast.models.Likelihood):
        ...     bounds = None  # pixels of any value
        ...     def pixel_energies(self, output, x):  # -log p of each pixel, nats
        ...         return (x - output).abs() + 0.6931
        ...     def mean(self, output):
        ...         return output
        >>> round(Laplace().energy(torch.zeros(1, 4), torch.ones(1, 4)).item(), 3)
        6.772
    """

    kind: int | None = None
    density_of: str | None = None
    bounds: tuple[float, float] | None = (0.0, 1.0)
    log_scale: Tensor | None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        origin: Any = next(base for base in cls.__mro__ if "kind" in vars(base))
        if cls.pixel_energies is not origin.pixel_energies:
            cls.kind = None  # that kernel computes other energies

    def energy(self, output: Tensor, x: Tensor) -> Tensor:
        """-log p(x|z) for output [..., n, nx] and images x [n, nx]: float64 [..., n], nats per image."""
        for name, t in (("output", output), ("x", x)):
            if not isinstance(t, Tensor) or not t.is_floating_point():
                raise TypeError(f"{name} is {checks.describe(t)}; expected a floating point tensor")
        if output.dtype in (torch.float16, torch.bfloat16):
            output = output.float()
        x = x.to(output.dtype)
        if self.kind is None or is_transformed():
            energies = self.pixel_energies(output, x)
            expected = torch.broadcast_shapes(output.shape, x.shape)
            fits = isinstance(energies, Tensor) and energies.shape[:-1] == expected[:-1]
            if not fits:  # sums over pixels would be summed over images, too
                raise ValueError(
                    f"pixel_energies returned {checks.describe(energies)}; expected {list(expected)}, one for each pixel"
                )
            return energies.sum(-1, dtype=torch.float64)
        scale = None if self.log_scale is None else self.log_scale.to(output.dtype)
        return ops.energy(output, x, self.kind, scale)[0]

    def pixel_energies(self, output: Tensor, x: Tensor) -> Tensor:
        """-log p of every pixel [..., n, nx], nats, in PyTorch that can be differentiated any number of times."""
        raise NotImplementedError(
            f"{type(self).__name__} has no pixel_energies(output, x): -log p of each pixel"
        )

    def mean(self, output: Tensor) -> Tensor:
        """The image to show to people: [..., n, nx] -> [..., n, nx]."""
        raise NotImplementedError(f"{type(self).__name__} has no mean(output): images to show")

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw of p(x|z): [..., n, nx] -> [..., n, nx]."""
        raise NotImplementedError(f"{type(self).__name__} has no sample(output, generator): draws of p(x|z)")

    def all_pairs(self, output: Tensor, x: Tensor) -> Tensor:
        """-log p of every image under every output, [m, nx] and [n, nx]: float64 [m, n], nats per image."""
        each = max(1, PAIRED // max(1, x.numel()))
        # One tensor for all: small ones between the energies' large ones would leave holes in memory that nothing fits into.
        pairs = output.new_empty(len(output), len(x), dtype=torch.float64)
        for i in range(0, len(output), each):
            pairs[i : i + each] = self.energy(output[i : i + each, None].expand(-1, len(x), -1), x)
        return pairs


def keeps_methods(part: nn.Module, cls: type[nn.Module], *names: str) -> bool:
    """Whether these methods of a part are those of `cls`: neither its class nor the part itself has others."""
    return all(getattr(type(part), n) is getattr(cls, n) and n not in vars(part) for n in names)


def has_kernel(likelihood: nn.Module) -> bool:
    """Whether a fused kernel computes this likelihood's energy, and its derivatives are all there are.

    Nobody has replaced the energy then, and nothing is learned but `log_scale` itself.
    """
    is_ours = isinstance(likelihood, Likelihood) and keeps_methods(likelihood, Likelihood, "energy")
    learned = {name for name, _ in likelihood.named_parameters()}
    return is_ours and likelihood.kind is not None and learned <= {"log_scale"}


class Bernoulli(Likelihood):
    """Output: logits. Exact for binary x; for grey x in [0, 1] the usual cross-entropy, which is not a density.

    Example:
        >>> likelihood, logits = lae_fast.Bernoulli(), torch.zeros(1, 784)  # each pixel is black or white, one as likely as the other
        >>> energy = likelihood.energy(logits, torch.ones(1, 784))  # [1], nats: -log p(x|z), 784 log 2
        >>> round(energy.item(), 2), likelihood.mean(logits).unique().item()
        (543.43, 0.5)
    """

    kind, density_of, log_scale = ops.BERNOULLI, "binary", None

    def pixel_energies(self, output: Tensor, x: Tensor) -> Tensor:
        return -x * F.logsigmoid(output) - (1 - x) * F.logsigmoid(-output)

    def all_pairs(self, output: Tensor, x: Tensor) -> Tensor:
        if type(self) is not Bernoulli:  # a subclass may have changed the energy
            return super().all_pairs(output, x)
        log_partition = F.softplus(output).sum(-1, dtype=torch.float64)  # [m]
        return log_partition[:, None] - (output @ x.to(output.dtype).T).double()

    def mean(self, output: Tensor) -> Tensor:
        return torch.sigmoid(output)

    @torch.no_grad()
    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(torch.sigmoid(output), generator=generator)


class Gaussian(Likelihood):
    """Output: means. One scale for all pixels: fixed, or learned if `scale` is None (starting at 0.1).

    Raises:
        ValueError: the scale is not positive.

    Example:
        >>> energy = lae_fast.Gaussian(scale=2.0).energy(torch.zeros(1, 1), torch.full((1, 1), 3.0))
        >>> round(energy.item(), 4)  # nats: 0.5 (3 / 2)^2 + log 2 + 0.5 log 2 pi
        2.7371
    """

    kind, bounds = ops.GAUSSIAN, None
    log_scale: nn.Parameter

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        if scale is not None:
            checks.number("scale", scale, above=0)
        log_scale = torch.tensor(math.log(0.1 if scale is None else scale))
        self.log_scale = nn.Parameter(log_scale, requires_grad=scale is None)

    def pixel_energies(self, output: Tensor, x: Tensor) -> Tensor:
        residual = (x - output) * torch.exp(-self.log_scale)
        return 0.5 * residual.square() + self.log_scale + 0.5 * math.log(2 * math.pi)

    def mean(self, output: Tensor) -> Tensor:
        return output

    @torch.no_grad()
    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        eps = torch.randn(output.shape, generator=generator, dtype=output.dtype, device=output.device)
        return output + self.log_scale.exp() * eps  # pixels may leave [0, 1], as the model's pixels do


class DiscretizedLogistic(Likelihood):
    """Output: means. x holds the 256 levels k/255; p(k) is the logistic mass of its bin, the outer bins open.

    One learned scale for all pixels. A proper probability of 8-bit images (Kingma et al., 2016, eq. 13).

    Raises:
        ValueError: the scale is not positive.

    Example:
        >>> levels = torch.arange(256).view(256, 1) / 255  # all values of an image of one pixel
        >>> energy = lae_fast.DiscretizedLogistic(scale=0.1).energy(torch.full((256, 1), 0.3), levels)  # [256], nats
        >>> round((-energy).exp().sum().item(), 4)  # probabilities
        1.0
    """

    kind, density_of = ops.LOGISTIC, "grey"
    n_levels = 256
    log_scale: nn.Parameter

    def __init__(self, scale: float = 0.1) -> None:
        super().__init__()
        checks.number("scale", scale, above=0)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def pixel_energies(self, output: Tensor, x: Tensor) -> Tensor:
        return logistic_pixels(output.double(), x.double(), self.log_scale.double())[0]

    def mean(self, output: Tensor) -> Tensor:
        return output.clamp(0, 1)

    @torch.no_grad()
    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        u = torch.rand(output.shape, generator=generator, dtype=output.dtype, device=output.device)
        x = output + self.log_scale.exp() * torch.logit(u)
        return (x * (self.n_levels - 1)).round().clamp(0, self.n_levels - 1) / (self.n_levels - 1)


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "logistic": DiscretizedLogistic,
}
