"""Where an attacked image may be: within eps of the image and within the bounds; R images at once, each with its eps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def per_row(values: Tensor, x: Tensor) -> Tensor:
    """[R] -> [R, 1, ...], to multiply images x [R, ...]."""
    return values.view(-1, *[1] * (x.dim() - 1))


def _norm(x: Tensor, order: float = 2) -> Tensor:
    """The norm of each image, [R, ...] -> [R, 1, ...]; it is never 0, so that callers can divide by it."""
    norm: Tensor = torch.linalg.vector_norm(x, order, dim=tuple(range(1, x.dim())), keepdim=True)
    return norm.clamp_(min=torch.finfo(x.dtype).tiny)


def _unit(x: Tensor) -> Tensor:
    """x / |x|_2 of each image, [R, ...] -> [R, ...]; 0 for x = 0.

    x is scaled before it is squared: a confident model's gradients are so small that their squares vanish in float32.
    """
    x = x / _norm(x, math.inf)
    return x.div_(_norm(x))


class Box:
    """Images [R, ...] within eps of x in every pixel, and within the bounds."""

    def __init__(self, x: Tensor, eps: Tensor, low: float, high: float) -> None:
        self.x, self.eps = x, eps  # [R, ...], [R, 1, ...]
        self.lower, self.upper = (x - eps).clamp_(min=low), (x + eps).clamp_(max=high)
        self.sign = torch.empty_like(x)

    def random(self, generator: torch.Generator | None) -> Tensor:
        """Images uniform within eps, then clamped to the bounds: the start of Madry et al."""
        u = torch.rand(self.x.shape, generator=generator, dtype=self.x.dtype, device=self.x.device)
        return (self.x + self.eps * (2 * u - 1)).clamp_(self.lower, self.upper)

    def move_(self, adversary: Tensor, gradient: Tensor, step: Tensor) -> Tensor:
        """Move adversary [R, ...] along the sign of gradient [R, ...] by step [R, 1, ...], in place."""
        # Not in place: the gradient may be an expanded tensor, or belong to the model.
        torch.sign(gradient, out=self.sign)
        return self.project_(adversary.addcmul_(self.sign, step))

    def project_(self, adversary: Tensor) -> Tensor:
        """The nearest images of the region, in place."""
        return adversary.clamp_(self.lower, self.upper)


class Ball:
    """Images [R, ...] within eps of x in Euclidean distance, and within the bounds."""

    def __init__(self, x: Tensor, eps: Tensor, low: float, high: float) -> None:
        self.x, self.eps, self.bounds = x, eps, (low, high)

    def random(self, generator: torch.Generator | None) -> Tensor:
        """Images uniform within eps, then clamped to the bounds."""
        options: dict[str, Any] = dict(generator=generator, dtype=self.x.dtype, device=self.x.device)
        direction = _unit(torch.randn(self.x.shape, **options))
        radius = torch.rand(self.eps.shape, **options).pow_(1 / self.x[0].numel())  # P(radius < r) = r^D
        return (self.x + self.eps * radius * direction).clamp_(*self.bounds)

    def move_(self, adversary: Tensor, gradient: Tensor, step: Tensor) -> Tensor:
        """Move adversary [R, ...] along gradient [R, ...] by a distance step [R, 1, ...], in place."""
        return self.project_(adversary.addcmul_(_unit(gradient), step))

    def project_(self, adversary: Tensor) -> Tensor:
        """Images of the region near these, in place: the nearest ones of the ball, clamped to the bounds."""
        delta = adversary - self.x
        shrink = (self.eps / _norm(delta)).clamp_(max=1)
        # x lies within the bounds, so clamping to the bounds does not increase the distance from x.
        return torch.addcmul(self.x, delta, shrink, out=adversary).clamp_(*self.bounds)


Region = Box | Ball
REGIONS: dict[str, type[Box] | type[Ball]] = {"linf": Box, "l2": Ball}
