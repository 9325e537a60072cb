"""A value whose gradients a chain has told, for autograd, which could not find them."""

from __future__ import annotations

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
        gradients = _Scaled.apply(cotangent * ctx.scale, *ctx.saved_tensors)
        return None, None, *gradients, *([None] * len(gradients))


class _Scaled(torch.autograd.Function):
    """factor * gradients. They depend on the inputs, too, in a way that nobody knows: a second derivative by these raises an error,
    and is not silently wrong."""

    @staticmethod
    def forward(ctx: Any, factor: Tensor, *inputs_and_gradients: Tensor) -> tuple[Tensor, ...]:
        gradients, results = inputs_and_gradients[len(inputs_and_gradients) // 2 :], []
        factor = factor.to(gradients[0].dtype)
        for g in gradients:
            # Some gradients are transposed in memory; the results are contiguous, as most parameters are.
            out = torch.empty_like(g, memory_format=torch.contiguous_format)
            results.append(torch.mul(g, factor.to(g.dtype), out=out))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> None:
        raise RuntimeError(
            "lae_fast: a second derivative through the training loss was asked for; expected first derivatives only. For curvature "
            "write it in plain PyTorch"
        )
