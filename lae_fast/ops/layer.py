"""A network's linear layer as one op: the layer norm and ReLU of its input happen while the op reads it.

Between two layers stands what the first one's product gave, and its moments: the mean and the sum of squared distances from
it of every `PART` columns of a row. The next layer joins them to the row's mean and variance (Chan, Golub, LeVeque 1983).
Backward alike: with a gradient comes what the norm's backward pass must know of it, its sums over every `PART` columns.
What a layer has joined, it gives back: `layer_gradients`, all weight gradients of a network, reads it once more.

On a GPU of compute capability 8.0 or more the products are made on tensor cores, of pairs of halves (csrc/cuda/halves.h), with
float32's accuracy: an error of 2e-7 of a row's norm. Numbers beyond 65504 become infinite; weights below 1e-4 lose digits, to
about 1e-11 each. Gradients have float32's range, and an error of 5e-6: a proposal may follow any drift, as its Metropolis-Hastings ratio uses the same one. A block's shared memory holds
whole rows: up to 896 columns on 9.0, 640 on 8.0, 384 on 8.6 and 8.9; a wider layer is an error there. On a CPU the
reference serves, as products have faster routes there. None of these ops has a derivative.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lae_fast import checks
from lae_fast.checks import describe
from lae_fast.ops.arguments import expect_constants, expect_like, is_dense
from lae_fast.ops.library import define

T = TypeVar("T", bound="Tensor | None")

PART = 32  # columns of a row that share moments
# Columns of a row that a block's shared memory holds as pairs of halves, on compute capability 9.0.
MAX_INNER = 896


def n_parts(width: int) -> int:
    return -(-width // PART)


def moments_of(y: Tensor) -> Tensor:
    """[n, width] -> [n, parts, 2]: mean, and sum of squared distances from it, of every `PART` columns."""
    parts = y.split(PART, 1)
    means = [part.mean(1) for part in parts]
    squares = [(part - mean[:, None]).square().sum(1) for part, mean in zip(parts, means, strict=True)]
    return torch.stack((torch.stack(means, 1), torch.stack(squares, 1)), 2)


def statistics_of(moments: Tensor, width: int, eps: float) -> Tensor:
    """Mean and 1 / standard deviation of each row [n, 2], from the moments of its parts."""
    sizes = moments.new_full((n_parts(width),), PART)
    sizes[-1] = width - PART * (n_parts(width) - 1)
    means, squares = moments.unbind(2)
    mean = (sizes * means).sum(1, keepdim=True) / width
    square = (squares + sizes * (means - mean).square()).sum(1, keepdim=True)
    return torch.cat((mean, (square / width + eps).rsqrt()), 1)


def normalized(y: Tensor, statistics: Tensor) -> Tensor:
    """(y - mean) / standard deviation [n, width], with the rows' `statistics_of` [n, 2]."""
    mean, rstd = statistics.split(1, 1)
    return (y - mean) * rstd


def means_of(sums: Tensor, width: int) -> Tensor:
    """The row's means [n, 2] of g and of g times the normalized number, from `sums_of` [n, parts, 2]."""
    return sums.sum(1) / width


def norm_backward(
    grad: Tensor, normalized: Tensor, rstd: Tensor, norm_weight: Tensor, means: Tensor
) -> Tensor:
    """The gradient [n, width] of a norm's input from that of its output, which `means_of` belongs to."""
    mean, slope = means.split(1, 1)
    return (grad * norm_weight - mean - normalized * slope) * rstd


@define(
    "layer_forward(Tensor x, Tensor weight, Tensor bias, Tensor? moments, Tensor? norm_weight, Tensor? norm_bias, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    fake=lambda x, weight, bias, moments, norm_weight, norm_bias, eps: (
        x.new_empty(len(x), len(weight)),
        x.new_empty(len(x), n_parts(len(weight)), 2),
        x.new_empty(0 if moments is None else len(x), 2),
    ),
    compiled_on=("cuda",),
)
def layer_forward_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    moments: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty(0, 2) if moments is None else statistics_of(moments, x.shape[1], eps)
    if moments is not None:
        x = torch.addcmul(norm_bias, normalized(x, statistics), norm_weight).relu_()
    y = torch.nn.functional.linear(x, weight, bias)
    return y, moments_of(y), statistics


def layer_forward(
    x: Tensor,  # [n, k]
    weight: Tensor,  # [m, k]
    bias: Tensor,  # [m]
    moments: Tensor | None = None,  # [n, parts of k, 2]
    norm_weight: Tensor | None = None,  # [k]
    norm_bias: Tensor | None = None,  # [k]
    eps: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:  # [n, m], [n, parts of m, 2], [n, 2]
    """A linear layer y = a weight^T + bias, the moments of y, and mean and 1 / standard deviation of the rows of x.

    With the moments of x, a = relu(layer norm of x), by norm_weight, norm_bias and eps; without, a = x, and the last result is
    empty. All in float32; k and m are multiples of 4, k is at most 896, and less on a GPU with less shared memory than an H100.

    Raises:
        TypeError, ValueError: an argument does not fit, or somebody wants a derivative, which this op does not have.

    Example:
        >>> first, second = torch.nn.Linear(8, 64), torch.nn.Linear(64, 12)
        >>> norm, x = torch.nn.LayerNorm(64), torch.randn(5, 8)
        >>> with torch.no_grad():
        ...     y, moments, _ = lae_fast.ops.layer_forward(x, first.weight, first.bias)
        ...     norm_of_y = moments, norm.weight, norm.bias, norm.eps
        ...     out, _, _ = lae_fast.ops.layer_forward(y, second.weight, second.bias, *norm_of_y)
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
    norm = dict(
        moments=(moments, (len(x), n_parts(k), 2)),
        norm_weight=(norm_weight, (k,)),
        norm_bias=(norm_bias, (k,)),
    )
    _expect_all_or_none(op, "x", x, **norm)
    eps = checks.number(f"{op}: eps", eps, least=0)
    tensors = dict(
        x=x, weight=weight, bias=bias, moments=moments, norm_weight=norm_weight, norm_bias=norm_bias
    )
    expect_constants(op, tensors)
    return torch.ops.lae_fast.layer_forward(*map(aligned, tensors.values()), eps)


def sums_of(grad: Tensor, normalized: Tensor, norm_weight: Tensor) -> Tensor:
    """What a norm's backward pass must know of its gradient [n, width], after the ReLU: [n, parts, 2], the sums over every
    `PART` columns of g = grad norm_weight, and of g normalized."""
    g = grad * norm_weight
    columns = [torch.stack([part.sum(1) for part in t.split(PART, 1)], 1) for t in (g, g * normalized)]
    return torch.stack(columns, 2)


@define(
    "layer_backward(Tensor grad, Tensor weight, Tensor? y, Tensor? y_moments, Tensor? y_norm_weight, Tensor? y_sums, float y_eps,"
    " Tensor? x, Tensor? x_moments, Tensor? x_norm_weight, Tensor? x_norm_bias, float x_eps) -> (Tensor, Tensor, Tensor)",
    fake=lambda grad, weight, y, y_moments, y_norm_weight, y_sums, y_eps, x, *_: (
        grad.new_empty(len(grad), weight.shape[1]),
        grad.new_empty(len(grad), 0 if x is None else n_parts(weight.shape[1]), 2),
        grad.new_empty(0 if y is None else len(grad), 2),
    ),
    compiled_on=("cuda",),
)
def layer_backward_reference(
    grad: Tensor,
    weight: Tensor,
    y: Tensor | None,
    y_moments: Tensor | None,
    y_norm_weight: Tensor | None,
    y_sums: Tensor | None,
    y_eps: float,
    x: Tensor | None,
    x_moments: Tensor | None,
    x_norm_weight: Tensor | None,
    x_norm_bias: Tensor | None,
    x_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    means = grad.new_empty(0, 2) if y is None else means_of(y_sums, y.shape[1])
    if y is not None:
        statistics = statistics_of(y_moments, y.shape[1], y_eps)
        grad = norm_backward(grad, normalized(y, statistics), statistics[:, 1:], y_norm_weight, means)
    x_grad = grad @ weight
    if x is None:
        return x_grad, x_grad.new_empty(len(grad), 0, 2), means
    before = normalized(x, statistics_of(x_moments, x.shape[1], x_eps))
    x_grad = x_grad.masked_fill(torch.addcmul(x_norm_bias, before, x_norm_weight) <= 0, 0)
    return x_grad, sums_of(x_grad, before, x_norm_weight), means


def layer_backward(
    grad: Tensor,  # [n, m]
    weight: Tensor,  # [m, k]
    y: Tensor | None = None,  # [n, m]
    y_moments: Tensor | None = None,  # [n, parts of m, 2]
    y_norm_weight: Tensor | None = None,  # [m]
    y_sums: Tensor | None = None,  # [n, parts of m, 2]
    y_eps: float = 0.0,
    x: Tensor | None = None,  # [n, k]
    x_moments: Tensor | None = None,  # [n, parts of k, 2]
    x_norm_weight: Tensor | None = None,  # [k]
    x_norm_bias: Tensor | None = None,  # [k]
    x_eps: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:  # [n, k], [n, parts of k, 2], [n, 2]
    """From the gradient at a layer's end to that of its input, y = a weight^T + bias, as `layer_forward` computes it.

    With y, its moments, norm and sums, a norm and ReLU follow the layer: grad is that of the norm's output, after the ReLU's
    derivative, and the sums are those that came with it. Without, grad is that of y. With x, its moments and norm, a is the
    norm and ReLU of x: the result is the gradient of the norm's output, 0 where the ReLU cut off, and its sums. Without, it is that of
    a, with no sums. The last result are the sums of y over all columns, divided by m, empty without y. All in float32; k and m are
    multiples of 4; m, and k beside x, are at most 896, and fewer on a GPU with less shared memory than an H100.

    Raises:
        TypeError, ValueError: an argument does not fit, or somebody wants a derivative, which this op does not have.

    Example:
        >>> layer, x = torch.nn.Linear(8, 12), torch.randn(5, 8, requires_grad=True)
        >>> grad = torch.randn(5, 12)
        >>> wanted, = torch.autograd.grad(layer(x), x, grad)
        >>> with torch.no_grad():
        ...     x_grad, _, _ = lae_fast.ops.layer_backward(grad, layer.weight)
        >>> torch.allclose(x_grad, wanted, atol=1e-4)
        True
    """
    op = "layer_backward"
    _expect_matrix(op, "grad", grad, "n, m")
    m = _expect_width(op, "grad", grad, MAX_INNER)
    k = weight.shape[1] if is_dense(weight) and weight.dim() == 2 else 4
    expect_like(op, "grad", grad.dtype, grad.device, weight=(weight, (m, k)))
    _expect_width(op, "weight", weight, None if x is None else MAX_INNER)
    n = len(grad)
    norm = dict(
        y=(y, (n, m)),
        y_moments=(y_moments, (n, n_parts(m), 2)),
        y_norm_weight=(y_norm_weight, (m,)),
        y_sums=(y_sums, (n, n_parts(m), 2)),
    )
    input_norm = dict(
        x=(x, (n, k)),
        x_moments=(x_moments, (n, n_parts(k), 2)),
        x_norm_weight=(x_norm_weight, (k,)),
        x_norm_bias=(x_norm_bias, (k,)),
    )
    _expect_all_or_none(op, "grad", grad, **norm)
    _expect_all_or_none(op, "grad", grad, **input_norm)
    y_eps = checks.number(f"{op}: y_eps", y_eps, least=0)
    x_eps = checks.number(f"{op}: x_eps", x_eps, least=0)
    tensors = dict(grad=grad, weight=weight)
    tensors |= {name: t for name, (t, _) in (norm | input_norm).items()}
    expect_constants(op, tensors)
    grad, weight, *rest = map(aligned, tensors.values())
    return torch.ops.lae_fast.layer_backward(grad, weight, *rest[:4], y_eps, *rest[4:], x_eps)


def _empty_gradients(inputs: list[Tensor], *lists: list[Tensor]) -> list[Tensor]:
    *_, grads, means = lists
    result = []
    for i, (x, grad) in enumerate(zip(inputs, grads, strict=True)):
        m = grad.shape[1]
        result += [x.new_empty(m, x.shape[1]), *(x.new_empty(m) for _ in range(3 if i < len(means) else 1))]
    return result


@define(
    "layer_gradients(Tensor[] inputs, Tensor[] statistics, Tensor[] norm_weights, Tensor[] norm_biases, Tensor[] grads,"
    " Tensor[] means) -> Tensor[]",
    fake=_empty_gradients,
    compiled_on=("cuda",),
)
def layer_gradients_reference(
    inputs: list[
        Tensor
    ],  # of each layer, [n, k]: the network's; then what the previous layer gave, before its norm
    statistics: list[Tensor],  # of each input but the first, [n, 2], as `layer_forward` gives them
    norm_weights: list[Tensor],  # of each norm, [k]
    norm_biases: list[Tensor],
    grads: list[
        Tensor
    ],  # [n, m]: of each norm's output, after the ReLU's derivative; the last layer's is that of its output
    means: list[Tensor],  # of each grad but the last, [n, 2], as `layer_backward` gives them
) -> list[Tensor]:
    """The gradients of a network's parameters: of each layer weight [m, k] and bias [m], and where a norm follows those of its
    weight and bias [m]."""
    result: list[Tensor] = []
    a = inputs[0]
    for i, grad in enumerate(grads):
        if i == len(means):
            return [*result, grad.T @ a, grad.sum(0)]
        y = normalized(inputs[i + 1], statistics[i])
        at_layer = norm_backward(grad, y, statistics[i][:, 1:], norm_weights[i], means[i])
        result += [at_layer.T @ a, at_layer.sum(0), (grad * y).sum(0), grad.sum(0)]
        a = torch.addcmul(norm_biases[i], y, norm_weights[i]).relu_()
    raise ValueError(f"layer_gradients: {len(grads)} grads beside {len(means)} means; expected one more")


def _expect_matrix(op: str, name: str, value: Any, axes: str) -> None:
    checks.tensor(f"{op}: {name}", value, axes, dtypes=(torch.float32,))


def _expect_width(op: str, name: str, t: Tensor, most: int | None = None) -> int:
    """Check how many columns a matrix has: loads are of four numbers, and shared memory holds `most`."""
    width = t.shape[1]
    if width == 0 or width % 4 or (most and width > most):
        limit = f", at most {most}" if most else ""
        raise ValueError(f"{op}: {name} is {describe(t)}; expected columns in multiples of 4{limit}")
    return width


def _expect_all_or_none(op: str, first: str, t: Tensor, **tensors: tuple[Any, tuple[int, ...]]) -> None:
    """Check what belongs to a norm, each tensor given with the shape that it should have."""
    given = [name for name, (value, _) in tensors.items() if value is not None]
    missing = [name for name in tensors if name not in given]
    if given and missing:
        names = ", ".join(tensors)
        raise ValueError(
            f"{op}: {missing[0]} is None beside {given[0]}; expected all of {names}, or none of them"
        )
    if given:
        expect_like(op, first, t.dtype, t.device, **tensors)


def aligned(t: T) -> T:
    """A tensor as the kernels load it, 16 bytes at once."""
    if t is None:
        return None
    t = t.contiguous()
    return t if torch.compiler.is_compiling() or _begins_at(t) % 16 == 0 else t.clone()


def _begins_at(t: Tensor) -> int:
    """The address of a tensor, which need not be what its offset says: its memory may be another library's. 0: it has none yet."""
    try:
        return t.data_ptr() if type(t) in (Tensor, nn.Parameter) else t.element_size() * t.storage_offset()
    except RuntimeError:  # a transform's or a tracer's
        return 0


# For callers that own the tensors, outside autograd: contiguous tensors that fit and are aligned, in the schema's order.
layer_forward_unchecked = torch.ops.lae_fast.layer_forward
layer_backward_unchecked = torch.ops.lae_fast.layer_backward
layer_gradients_unchecked = torch.ops.lae_fast.layer_gradients
