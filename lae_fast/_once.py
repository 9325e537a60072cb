"""Gradients that can be had once: whoever differentiates them again is told so, instead of getting silence."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gradient: Tensor, marker: Tensor, name: str) -> Tensor:  # noqa: ANN001
        ctx.name = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> None:  # noqa: ANN001
        raise RuntimeError(
            f"lae_fast: a second derivative through {ctx.name} was asked for; expected first derivatives only. For "
            "curvature write it in plain PyTorch"
        )


def is_transformed() -> bool:
    """Whether `torch.func` or forward-mode differentiation looks on: to them a fused op is a constant."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def differentiable_once(gradient: Tensor | None, name: str) -> Tensor | None:
    """For the backward pass of `name`: its gradient, marked where autograd would let it be differentiated again."""
    if gradient is None or not torch.is_grad_enabled():
        return gradient
    return _Once.apply(gradient, torch.zeros((), requires_grad=True), name)
