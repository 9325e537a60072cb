"""The energies, and the ops of fully connected networks, in plain PyTorch: specification and fallback.

Argument shapes are in ops.py.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BERNOULLI, GAUSSIAN, LOGISTIC = 0, 1, 2  # kinds of `energy`
HALF_BIN = 0.5 / 255
_SMALLEST_SCALE = HALF_BIN / 500


def energy(
    output: Tensor, x: Tensor, kind: int, log_scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    x = x.repeat(output.shape[0] // max(len(x), 1), 1)
    if kind == BERNOULLI:
        pixels, derivative, slope = _bernoulli(output, x)
    elif kind == GAUSSIAN:
        pixels, derivative, slope = _gaussian(output, x, log_scale.double())
    else:
        log_scale = log_scale.double().clamp(min=math.log(_SMALLEST_SCALE))
        pixels, derivative, slope = logistic_pixels(output.double(), x.double(), log_scale)
    total = pixels.sum(1, dtype=torch.float64)
    if kind == GAUSSIAN:
        total = total + output.shape[1] * (log_scale.double() + 0.5 * math.log(2 * math.pi))
    slope = total.new_empty(0) if slope is None else slope.sum(1, dtype=torch.float64)
    return total, derivative.to(output.dtype), slope


def energy_(output: Tensor, x: Tensor, kind: int, log_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    total, derivative, slope = energy(output, x, kind, log_scale)
    output.copy_(derivative)
    return total, slope


def _bernoulli(logits: Tensor, x: Tensor) -> tuple[Tensor, Tensor, None]:
    size = logits.abs()
    pixels = size * torch.where(logits < 0, x, 1 - x) + torch.log1p(torch.exp(-size))
    return pixels, torch.sigmoid(logits) - x, None


def _gaussian(mean: Tensor, x: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    inverse = torch.exp(-log_scale)
    square = ((x - mean) * inverse.to(x.dtype)).square()
    return 0.5 * square, (mean - x) * inverse.square().to(x.dtype), 1 - square.double()


def logistic_pixels(mean: Tensor, x: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    inverse = torch.exp(-log_scale)
    upper, lower = (x - mean + HALF_BIN) * inverse, (x - mean - HALF_BIN) * inverse
    # log(sigmoid(u) - sigmoid(l)) = log sigmoid(u) + log sigmoid(-l) + log(1 - exp(l - u)), without cancellation;
    # the outermost bins lose the factor of their open side
    is_first, is_last = x < HALF_BIN, x > 1 - HALF_BIN
    width = 2 * HALF_BIN * inverse
    above = torch.where(is_last, 0.0, -F.logsigmoid(upper))
    below = torch.where(is_first, 0.0, -F.logsigmoid(-lower))
    inner = torch.where(is_first | is_last, 0.0, -torch.log(-torch.expm1(-width)))
    above_slope = torch.where(is_last, 0.0, torch.sigmoid(-upper))
    below_slope = torch.where(is_first, 0.0, torch.sigmoid(lower))
    inner_slope = torch.where(is_first | is_last, 0.0, width / torch.expm1(width))
    slope = above_slope * upper - below_slope * lower + inner_slope
    return above + below + inner, (above_slope - below_slope) * inverse, slope


def in_unit_range(x: Tensor) -> bool:
    low, high = x.aminmax()
    return bool(low >= 0) and bool(high <= 1)


def norm_relu(y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    value, mean, rstd = torch.native_layer_norm(y, weight.shape, weight, bias, eps)
    y.sub_(mean).mul_(rstd)
    return value.relu_(), rstd.flatten()


def norm_relu_backward(grad: Tensor, out: Tensor, normalized: Tensor, rstd: Tensor, weight: Tensor) -> Tensor:
    grad.masked_fill_(out <= 0, 0)
    of_weight, of_bias = (grad * normalized).sum(0), grad.sum(0)
    grad.mul_(weight)
    mean, slope = grad.mean(1, keepdim=True), (grad * normalized).mean(1, keepdim=True)
    grad.sub_(mean).addcmul_(normalized, slope, value=-1).mul_(rstd[:, None])
    return torch.stack((of_weight, of_bias, grad.sum(0)))


def keep(latest: list[Tensor], previous: list[Tensor], is_accepted: Tensor) -> None:
    for new, old in zip(latest, previous, strict=True):
        torch.where(is_accepted, new, old, out=new)
