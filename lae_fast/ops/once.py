"""Gradients that cannot be differentiated again: a second derivative raises an error, and is not silently wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, name: str, *inputs: Tensor) -> Tensor:
        ctx.name = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> None:
        raise RuntimeError(
            f"lae_fast: a second derivative through {ctx.name} was asked for; expected first derivatives only. For "
            "curvature write it in plain PyTorch"
        )


def differentiable_once(gradient: Tensor | None, name: str, *inputs: Tensor) -> Tensor | None:
    """The gradient, of any shape, that the backward pass of `name` returns; None stays None.

    Where autograd could differentiate it again, the gradient is marked: a second backward pass raises a RuntimeError, and so does
    `torch.autograd.grad` by any of `inputs`: all tensors on which the gradient depends, the cotangent among them. Compiled
    code has first derivatives only.
    """
    if gradient is None or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return gradient
    return _Once.apply(gradient, name, *inputs)
