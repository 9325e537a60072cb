"""The ops between a fully connected network's matrix products: layer norm with ReLU, its backward pass, selection.

None has a derivative: models/mlp.py and models/decoder_pass.py are where autograd meets them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lae_fast import checks
from lae_fast.checks import describe
from lae_fast.ops.arguments import (
    expect_constants,
    expect_contiguous,
    expect_floats,
    expect_like,
    written,
)
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

    The op overwrites y, which must be contiguous, by (y - mean) rstd, which the backward pass needs.

    Raises:
        TypeError, ValueError: an argument does not fit, or somebody wants a derivative, which this op does not have.

    Example:
        >>> y = torch.tensor([[1.0, 3.0]])
        >>> out, rstd = lae_fast.ops.norm_relu(y, torch.ones(2), torch.zeros(2), 0.0)
        >>> out.tolist(), y.tolist(), rstd.tolist()  # y is normalized now
        ([[0.0, 1.0]], [[-1.0, 1.0]], [1.0])
    """
    _expect_rows("norm_relu", "y", y)
    width = y.shape[1:]
    expect_like("norm_relu", "y", y.dtype, y.device, weight=(weight, width), bias=(bias, width))
    eps = checks.number("norm_relu: eps", eps, least=0)
    expect_constants("norm_relu", {"y": y, "weight": weight, "bias": bias}, writes=("y",))
    expect_contiguous("norm_relu", "y", y)
    result = torch.ops.lae_fast.norm_relu(y, weight.contiguous(), bias.contiguous(), eps)
    written(y)
    return result


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
    """The gradient of y, from the gradient of the output and the tensors that `norm_relu` left; row by row.

    Raises:
        TypeError, ValueError: an argument does not fit, or somebody wants a derivative, which this op does not have.

    Example:
        >>> y, weight = torch.randn(5, 8), torch.ones(8)
        >>> out, rstd = lae_fast.ops.norm_relu(y, weight, torch.zeros(8), 1e-5)
        >>> grad = lae_fast.ops.norm_relu_backward(torch.randn(5, 8), out, y, rstd, weight)
        >>> bool(grad.sum(1).abs().max() < 1e-4)  # a constant added to a row changes nothing
        True
    """
    _expect_rows("norm_relu_backward", "grad", grad)
    expect_like(
        "norm_relu_backward",
        "grad",
        grad.dtype,
        grad.device,
        out=(out, grad.shape),
        normalized=(normalized, grad.shape),
        rstd=(rstd, grad.shape[:1]),
        weight=(weight, grad.shape[1:]),
    )
    tensors = dict(grad=grad, out=out, normalized=normalized, rstd=rstd, weight=weight)
    expect_constants("norm_relu_backward", tensors)
    return torch.ops.lae_fast.norm_relu_backward(*(t.contiguous() for t in tensors.values()))


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

    Raises:
        TypeError, ValueError: an argument does not fit, or somebody wants a derivative, which this op does not have.

    Example:
        >>> y, weight = torch.randn(5, 8), torch.ones(8)
        >>> out, rstd = lae_fast.ops.norm_relu(y, weight, torch.zeros(8), 1e-5)
        >>> upstream = torch.randn(5, 8)
        >>> grad = lae_fast.ops.norm_relu_backward(upstream, out, y, rstd, weight)
        >>> sums = lae_fast.ops.norm_relu_sums(upstream, out, y, grad)
        >>> torch.allclose(sums[2], grad.sum(0), atol=1e-5)
        True
    """
    _expect_rows("norm_relu_sums", "grad", grad)
    tensors = dict(grad=grad, out=out, normalized=normalized, y_grad=y_grad)
    shapes = {name: (t, grad.shape) for name, t in tensors.items()}
    expect_like("norm_relu_sums", "grad", grad.dtype, grad.device, **shapes)
    expect_constants("norm_relu_sums", tensors)
    return torch.ops.lae_fast.norm_relu_sums(*(t.contiguous() for t in tensors.values()))


@define(
    "keep(Tensor(a!)[] latest, Tensor[] previous, Tensor is_accepted) -> ()",
    fake=lambda latest, previous, is_accepted: None,
)
def keep_reference(latest: list[Tensor], previous: list[Tensor], is_accepted: Tensor) -> None:
    for new, old in zip(latest, previous, strict=True):
        rows = [-1, *[1] * (new.dim() - 1)] if new.dim() else []
        torch.where(is_accepted.view(rows), new, old, out=new)


def keep(latest: list[Tensor], previous: list[Tensor], is_accepted: Tensor) -> None:
    """Select, tensor by tensor: `latest` keeps its rows where is_accepted, and takes those of `previous` elsewhere.

    The two tensors of a pair have the same shape. is_accepted [n] decides about n rows, the first axis of every tensor;
    is_accepted [1] decides about whole tensors. A rejected value leaves no trace, not even a NaN.
    The tensors of `latest` must be contiguous.

    Raises:
        TypeError, ValueError: an argument does not fit, or somebody wants a derivative, which this op does not have.

    Example:
        >>> latest, previous = torch.ones(2, 3), torch.zeros(2, 3)
        >>> lae_fast.ops.keep([latest], [previous], torch.tensor([True, False]))
        >>> latest.tolist()
        [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """
    _expect_pairs(latest, previous, is_accepted)
    lists = (("latest", latest), ("previous", previous))
    pairs = {f"{name}[{i}]": t for name, ts in lists for i, t in enumerate(ts)}
    writes = tuple(pairs)[: len(latest)]
    expect_constants("keep", pairs | {"is_accepted": is_accepted}, writes=writes)
    for name in writes:
        expect_contiguous("keep", name, pairs[name])
    torch.ops.lae_fast.keep(latest, [old.contiguous() for old in previous], is_accepted.contiguous())
    written(*latest)


def _expect_pairs(latest: Any, previous: Any, is_accepted: Any) -> None:
    """Raise the error about the first argument of `keep` that does not fit, if there is one."""
    checks.tensor("keep: is_accepted", is_accepted, "n", dtypes=(torch.bool,))
    n_rows, device = len(is_accepted), is_accepted.device
    if n_rows == 0:
        raise ValueError(f"keep: is_accepted is {describe(is_accepted)}; expected [n] with n >= 1")
    for name, tensors in (("latest", latest), ("previous", previous)):
        if not isinstance(tensors, (list, tuple)):
            raise TypeError(f"keep: {name} is {describe(tensors)}; expected a list of tensors")
    if len(latest) != len(previous):
        raise ValueError(f"keep: previous has {len(previous)} tensors; expected {len(latest)}, as latest has")
    for i, (new, old) in enumerate(zip(latest, previous, strict=True)):
        name = f"latest[{i}]"
        checks.tensor(f"keep: {name}", new, dtypes=None)
        if new.device != device:
            raise ValueError(f"keep: {name} is on {new.device}; expected {device}, as is_accepted")
        expect_like("keep", name, new.dtype, device, **{f"previous[{i}]": (old, new.shape)})
        if n_rows != 1 and new.shape[:1] != (n_rows,):
            wanted = f"[{n_rows}, ...], as many rows as is_accepted has"
            raise ValueError(f"keep: {name} is {describe(new)}; expected {wanted}")


def _expect_rows(op: str, name: str, value: Any) -> None:
    """Check the first tensor [n, d] of an op that takes means over d."""
    expect_floats(op, name, value, "n, d")
    if value.shape[1] == 0:
        raise ValueError(f"{op}: {name} is {describe(value)}; expected [n, d] with d >= 1")


# For callers that own the tensors, outside autograd: contiguous tensors that fit, in the schema's order. A check here takes
# longer than a small op; the compiled kernels check the forms anyway.
norm_relu_unchecked = torch.ops.lae_fast.norm_relu
norm_relu_backward_unchecked = torch.ops.lae_fast.norm_relu_backward
norm_relu_sums_unchecked = torch.ops.lae_fast.norm_relu_sums
keep_unchecked = torch.ops.lae_fast.keep
