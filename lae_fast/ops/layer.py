"""A network's linear layer as one op: the layer norm and ReLU of its input happen while the op reads it.

Between two layers stands what the first one's product gave, and its moments: the mean and the sum of squared distances from
it of every `PART` columns of a row. The next layer joins them to the row's mean and variance (Chan, Golub, LeVeque 1983).

On a GPU the products are made on tensor cores, of pairs of halves (csrc/cuda/halves.h), with float32's accuracy: an error of
2e-7 of a row's norm. Numbers beyond 65504 become infinite. On a CPU the reference serves: its products have faster routes.
None of these ops has a derivative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lae_fast import checks
from lae_fast.checks import describe
from lae_fast.ops.arguments import expect_constants, expect_like, is_dense
from lae_fast.ops.library import define

PART = 32  # columns of a row that share moments
MAX_INNER = 896  # columns of a row that a block's shared memory holds as pairs of halves


def n_parts(width: int) -> int:
    return -(-width // PART)


def moments_of(y: Tensor) -> Tensor:
    """[n, width] -> [n, parts, 2]: mean, and sum of squared distances from it, of every `PART` columns."""
    parts = y.split(PART, 1)
    means = [part.mean(1) for part in parts]
    squares = [(part - mean[:, None]).square().sum(1) for part, mean in zip(parts, means, strict=True)]
    return torch.stack((torch.stack(means, 1), torch.stack(squares, 1)), 2)


def _normalized(y: Tensor, moments: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(y - mean) / standard deviation [n, width], and 1 / standard deviation [n, 1], from the parts' moments."""
    width = y.shape[1]
    sizes = moments.new_full((n_parts(width),), PART)
    sizes[-1] = width - PART * (n_parts(width) - 1)
    means, squares = moments.unbind(2)
    mean = (sizes * means).sum(1, keepdim=True) / width
    square = (squares + sizes * (means - mean).square()).sum(1, keepdim=True)
    rstd = (square / width + eps).rsqrt()
    return (y - mean) * rstd, rstd


@define(
    "layer_forward(Tensor x, Tensor weight, Tensor bias, Tensor? moments, Tensor? norm_weight, Tensor? norm_bias, float eps)"
    " -> (Tensor, Tensor)",
    fake=lambda x, weight, bias, moments, norm_weight, norm_bias, eps: (
        x.new_empty(len(x), len(weight)),
        x.new_empty(len(x), n_parts(len(weight)), 2),
    ),
    compiled_for=("cuda",),
)
def layer_forward_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    moments: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    if moments is not None:
        x = torch.addcmul(norm_bias, _normalized(x, moments, eps)[0], norm_weight).relu_()
    y = torch.nn.functional.linear(x, weight, bias)
    return y, moments_of(y)


def layer_forward(
    x: Tensor,  # [n, k]
    weight: Tensor,  # [m, k]
    bias: Tensor,  # [m]
    moments: Tensor | None = None,  # [n, parts of k, 2]
    norm_weight: Tensor | None = None,  # [k]
    norm_bias: Tensor | None = None,  # [k]
    eps: float = 0.0,
) -> tuple[Tensor, Tensor]:  # [n, m], [n, parts of m, 2]
    """A linear layer y = a weight^T + bias, and the moments of y.

    With the moments of x, a = relu(layer norm of x), by norm_weight, norm_bias and eps; without, a = x. All in float32; k and m
    are multiples of 4, k is at most 896.

    Raises:
        TypeError, ValueError: an argument does not fit, or somebody wants a derivative, which this op does not have.

    Example:
        >>> first, second = torch.nn.Linear(8, 64), torch.nn.Linear(64, 12)
        >>> norm, x = torch.nn.LayerNorm(64), torch.randn(5, 8)
        >>> with torch.no_grad():
        ...     y, moments = lae_fast.ops.layer_forward(x, first.weight, first.bias)
        ...     out, _ = lae_fast.ops.layer_forward(y, second.weight, second.bias, moments, norm.weight, norm.bias, norm.eps)
        >>> torch.allclose(out, torch.nn.Sequential(first, norm, torch.nn.ReLU(), second)(x), atol=1e-5)
        True
    """
    op = "layer_forward"
    _expect_matrix(op, "x", x, "n, k")
    k = _expect_width(op, "x", x, MAX_INNER)
    m = len(weight) if is_dense(weight) and weight.dim() == 2 else 4
    expect_like(op, "x", x.dtype, x.device, weight=(weight, (m, k)))
    expect_like(op, "weight", x.dtype, x.device, bias=(bias, (m,)))
    _expect_width(op, "weight.T", weight.T)
    _expect_norm(op, "x", x, moments=moments, norm_weight=norm_weight, norm_bias=norm_bias)
    eps = checks.number(f"{op}: eps", eps, least=0)
    tensors = dict(
        x=x, weight=weight, bias=bias, moments=moments, norm_weight=norm_weight, norm_bias=norm_bias
    )
    expect_constants(op, tensors)
    return torch.ops.lae_fast.layer_forward(*map(_aligned, tensors.values()), eps)


def _expect_matrix(op: str, name: str, value: Any, axes: str) -> None:
    checks.tensor(f"{op}: {name}", value, axes, dtypes=(torch.float32,))


def _expect_width(op: str, name: str, t: Tensor, most: int | None = None) -> int:
    """Check how many columns a matrix has: loads are of four numbers, and shared memory holds `most`."""
    width = t.shape[1]
    if width == 0 or width % 4 or (most and width > most):
        limit = f", at most {most}" if most else ""
        raise ValueError(f"{op}: {name} is {describe(t)}; expected columns in multiples of 4{limit}")
    return width


def _expect_norm(op: str, first: str, t: Tensor, **tensors: Any) -> None:
    """Check the moments of t [n, width], and the parameters of the norm that follows it: all of them, or none."""
    names = list(tensors)
    given = [name for name in names if tensors[name] is not None]
    if given and len(given) < len(names):
        missing = next(name for name in names if name not in given)
        raise ValueError(
            f"{op}: {missing} is None beside {given[0]}; expected all of {', '.join(names)}, or none"
        )
    if given:
        moments, *parameters = names
        shapes = {moments: (tensors[moments], (len(t), n_parts(t.shape[1]), 2))}
        shapes |= {name: (tensors[name], t.shape[1:]) for name in parameters}
        expect_like(op, first, t.dtype, t.device, **shapes)


def _aligned(t: Tensor | None) -> Tensor | None:
    """A tensor as the kernels load it, 16 bytes at once."""
    if t is None:
        return None
    t = t.contiguous()
    return t if t.storage_offset() % 4 == 0 else t.clone()


# For callers that own the tensors, outside autograd: contiguous tensors that fit and are aligned, in the schema's order.
layer_forward_unchecked = torch.ops.lae_fast.layer_forward
