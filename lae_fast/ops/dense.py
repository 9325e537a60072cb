"""The ops between a fully connected network's matrix products: layer norm with ReLU, its backward pass, selection.

models/mlp.py and models/decoder_pass.py call the ops with contiguous tensors that fit; the functions check nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lae_fast.ops.library import define


@define(
    "norm_relu(Tensor(a!) y, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor)",
    fake=lambda y, weight, bias, eps: (torch.empty_like(y), y.new_empty(y.shape[0])),
)
def norm_relu_reference(y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    value, mean, rstd = torch.native_layer_norm(y, weight.shape, weight, bias, eps)
    y.sub_(mean).mul_(rstd)
    return value.relu_(), rstd.flatten()


def norm_relu(
    y: Tensor,  # [n, d]
    weight: Tensor,  # [d]
    bias: Tensor,  # [d]
    eps: float,
) -> tuple[Tensor, Tensor]:  # [n, d], [n]
    """Layer normalization and ReLU of each row: relu((y - mean) rstd weight + bias), and rstd.

    The op overwrites y by (y - mean) rstd, which the backward pass needs.
    """
    return torch.ops.lae_fast.norm_relu(y, weight, bias, eps)


@define(
    "norm_relu_backward(Tensor grad, Tensor out, Tensor normalized, Tensor rstd, Tensor weight) -> Tensor",
    fake=lambda grad, out, normalized, rstd, weight: torch.empty_like(grad),
)
def norm_relu_backward_reference(
    grad: Tensor, out: Tensor, normalized: Tensor, rstd: Tensor, weight: Tensor
) -> Tensor:
    y_grad = grad.masked_fill(out <= 0, 0).mul_(weight)
    mean, slope = y_grad.mean(1, keepdim=True), (y_grad * normalized).mean(1, keepdim=True)
    return y_grad.sub_(mean).addcmul_(normalized, slope, value=-1).mul_(rstd[:, None])


def norm_relu_backward(
    grad: Tensor,  # [n, d]
    out: Tensor,  # [n, d]
    normalized: Tensor,  # [n, d]
    rstd: Tensor,  # [n]
    weight: Tensor,  # [d]
) -> Tensor:  # [n, d]
    """The gradient of y, from the gradient of the output and the tensors that `norm_relu` left; row by row."""
    return torch.ops.lae_fast.norm_relu_backward(grad, out, normalized, rstd, weight)


@define(
    "norm_relu_sums(Tensor grad, Tensor out, Tensor normalized, Tensor y_grad) -> Tensor",
    fake=lambda grad, out, normalized, y_grad: grad.new_empty(3, grad.shape[1]),
)
def norm_relu_sums_reference(grad: Tensor, out: Tensor, normalized: Tensor, y_grad: Tensor) -> Tensor:
    grad = grad.masked_fill(out <= 0, 0)
    return torch.stack(((grad * normalized).sum(0), grad.sum(0), y_grad.sum(0)))


def norm_relu_sums(
    grad: Tensor,  # [n, d]
    out: Tensor,  # [n, d]
    normalized: Tensor,  # [n, d]
    y_grad: Tensor,  # [n, d]
) -> Tensor:  # [3, d]
    """The gradients of weight and of bias, and the column sums of y's gradient, which is a linear layer's bias gradient.

    The rows may be those of several evaluations, selected by `keep`.
    """
    return torch.ops.lae_fast.norm_relu_sums(grad, out, normalized, y_grad)


@define(
    "keep(Tensor(a!)[] latest, Tensor[] previous, Tensor is_accepted) -> ()",
    fake=lambda latest, previous, is_accepted: None,
)
def keep_reference(latest: list[Tensor], previous: list[Tensor], is_accepted: Tensor) -> None:
    for new, old in zip(latest, previous, strict=True):
        torch.where(is_accepted.view(-1, *[1] * (new.dim() - 1)), new, old, out=new)


def keep(latest: list[Tensor], previous: list[Tensor], is_accepted: Tensor) -> None:
    """Select, tensor by tensor: `latest` keeps its rows where is_accepted, and takes those of `previous` elsewhere.

    The two tensors of a pair have the same shape. is_accepted [n] decides about n rows, the first axis of every tensor;
    is_accepted [1] decides about whole tensors. A rejected value leaves no trace, not even a NaN.
    """
    torch.ops.lae_fast.keep(latest, previous, is_accepted)
