"""What a decoder's output means: -log p(x|z) of Bernoulli, Gaussian and discretized logistic pixels.

`energy(output, x)` maps a decoder's output [..., n, nx] and images x [n, nx] in [0, 1] to -log p(x|z), float64
[..., n], in nats summed over pixels. `mean(output)` is the image a person wants to see, `sample(output)` a draw of
p(x|z).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _BernoulliEnergy(torch.autograd.Function):
    """softplus(l) - x l summed over pixels, and its derivative sigmoid(l) - x in the same pass."""

    @staticmethod
    def forward(ctx, logits: Tensor, x: Tensor) -> Tensor:  # noqa: ANN001 - torch's own context
        # log(1 + e) with e <= 1: within one rounding of the pixel's unit, and vectorised where log1p is not
        softplus = logits.abs().neg_().exp_().add_(1).log_().add_(logits.clamp(min=0))
        ctx.save_for_backward(torch.sigmoid(logits).sub_(x))
        return softplus.addcmul_(logits, x, value=-1).sum(-1, dtype=torch.float64)

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent: Tensor) -> tuple[Tensor, None]:  # noqa: ANN001
        (derivative,) = ctx.saved_tensors
        return derivative * cotangent.to(derivative.dtype)[..., None], None


class Bernoulli(nn.Module):
    """Output: logits. Exact for binary x; for grey x in [0, 1] the usual cross-entropy, which is no density."""

    def energy(self, output: Tensor, x: Tensor) -> Tensor:
        return _BernoulliEnergy.apply(output, x)

    def mean(self, output: Tensor) -> Tensor:
        return torch.sigmoid(output)

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(torch.sigmoid(output), generator=generator)


class Gaussian(nn.Module):
    """Output: means. One scale for all pixels, fixed, or learned when `scale` is None (from 0.1 on)."""

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        if scale is not None and not scale > 0:
            raise ValueError(f"scale is {scale}; expected a positive number, or None to learn it")
        log_scale = torch.tensor(math.log(0.1 if scale is None else scale))
        self.log_scale = nn.Parameter(log_scale, requires_grad=scale is None)

    def energy(self, output: Tensor, x: Tensor) -> Tensor:
        residual = (x - output) * torch.exp(-self.log_scale)
        constant = self.log_scale + 0.5 * math.log(2 * math.pi)
        return 0.5 * residual.square().sum(-1, dtype=torch.float64) + x.shape[-1] * constant

    def mean(self, output: Tensor) -> Tensor:
        return output

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        eps = torch.randn(output.shape, generator=generator, dtype=output.dtype, device=output.device)
        return output + self.log_scale.exp() * eps  # pixels may leave [0, 1]: the model's own do


class DiscretizedLogistic(nn.Module):
    """Output: means. x holds the 256 levels k/255; p(k) is the logistic mass of its bin, the outer bins open.

    One learned scale for all pixels. A proper probability of 8-bit images (Kingma et al., 2016, eq. 13).
    """

    n_levels = 256

    def __init__(self, scale: float = 0.1) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale is {scale}; expected a positive number")
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def energy(self, output: Tensor, x: Tensor) -> Tensor:
        half_bin = 0.5 / (self.n_levels - 1)
        inverse_scale = torch.exp(-self.log_scale)
        upper = (x - output + half_bin) * inverse_scale
        lower = (x - output - half_bin) * inverse_scale
        # log(sigmoid(u) - sigmoid(l)) = log sigmoid(u) + log sigmoid(-l) + log(1 - exp(l - u)), without
        # cancellation; the outermost bins lose the factor of their open side.
        inner = torch.log(-torch.expm1(-2 * half_bin * inverse_scale))
        is_first, is_last = x < half_bin, x > 1 - half_bin
        log_mass = torch.where(is_last, 0.0, F.logsigmoid(upper)) + torch.where(
            is_first, 0.0, F.logsigmoid(-lower)
        )
        log_mass = log_mass + torch.where(is_first | is_last, 0.0, inner)
        return -log_mass.sum(-1, dtype=torch.float64)

    def mean(self, output: Tensor) -> Tensor:
        return output.clamp(0, 1)

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        u = torch.rand(output.shape, generator=generator, dtype=output.dtype, device=output.device)
        x = output + self.log_scale.exp() * torch.logit(u)
        return (x * (self.n_levels - 1)).round().clamp(0, self.n_levels - 1) / (self.n_levels - 1)


LIKELIHOODS = {"bernoulli": Bernoulli, "gaussian": Gaussian, "logistic": DiscretizedLogistic}
