"""A value whose gradients a chain has told, for autograd, which could not find them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lae_fast.ops.once import differentiable_once

NAME = "the training loss"


class KnownGradients(torch.autograd.Function):
    """scale * value, whose gradients with respect to `inputs` are scale * gradients, which are already computed."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: float, *inputs_and_gradients: Tensor) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(*inputs_and_gradients)
        return value * scale

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        n = len(ctx.saved_tensors) // 2
        inputs, gradients = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        with torch.no_grad():
            scaled = _scaled(gradients, cotangent * ctx.scale)
        return None, None, *(differentiable_once(g, NAME, cotangent, *inputs) for g in scaled), *([None] * n)


def _scaled(gradients: Sequence[Tensor], factor: Tensor) -> list[Tensor]:
    """factor * gradients. Some are transposed in memory; the results are contiguous, as most parameters are."""
    factor, results = factor.to(gradients[0].dtype), []
    for g in gradients:
        out = torch.empty_like(g, memory_format=torch.contiguous_format)
        results.append(torch.mul(g, factor.to(g.dtype), out=out))
    return results
