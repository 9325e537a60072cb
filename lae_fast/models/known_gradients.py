"""A value whose gradients a chain has told, for autograd, which could not find them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


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
            gradients = _scaled(gradients, cotangent * ctx.scale)
        if not torch.compiler.is_compiling():  # compiled code has first derivatives only
            gradients = _Once.apply(gradients, *inputs)
        return None, None, *gradients, *([None] * len(gradients))


class _Once(torch.autograd.Function):
    """Gradients as they are. They depend on the inputs, in a way that nobody knows: a second derivative by these raises an error, and
    is not silently wrong."""

    @staticmethod
    def forward(ctx: Any, gradients: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradients)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> None:
        raise RuntimeError(
            "lae_fast: a second derivative through the training loss was asked for; expected first derivatives only. For curvature "
            "write it in plain PyTorch"
        )


def _scaled(gradients: Sequence[Tensor], factor: Tensor) -> list[Tensor]:
    """factor * gradients. Some are transposed in memory; the results are contiguous, as most parameters are."""
    factor, results = factor.to(gradients[0].dtype), []
    for g in gradients:
        out = torch.empty_like(g, memory_format=torch.contiguous_format)
        results.append(torch.mul(g, factor.to(g.dtype), out=out))
    return results
