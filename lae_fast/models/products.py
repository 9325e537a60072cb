"""The three matrix products of a linear layer, each by the fastest route that this torch offers on its device.

On a CPU torch gives float32 products to MKL, which does not use the wide registers of other makers' processors. oneDNN,
which torch brings too, uses them; it serves the products that are large enough to be worth its overhead.
Shapes: a [n, k] inputs, weight [m, k], bias [m], g [n, m] gradient of the layer's output. With `dtype` the factors and
the result of a product are rounded to this dtype, and the result returns in the dtype of a.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lae_fast.ops.torch_private import is_traced, onednn_linear

_MINIMUM = 2**19  # multiplications below which MKL's smaller overhead wins


_onednn = onednn_linear()  # None: this torch has no oneDNN


def _takes_onednn(a: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # the compiler chooses its own route, and fails at this op
        and bool(torch.backends.mkldnn.enabled)
        and a.dtype == torch.float32
        and a.device.type == "cpu"
        and a.shape[0] * weight.numel() >= _MINIMUM
        and a.shape[1] == weight.shape[1]  # else PyTorch's own error message is clearer
        and not is_traced()  # for the compiler
    )


def linear(a: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """a @ weight.T + bias: [n, m]."""
    if dtype is not None and dtype != a.dtype:
        bias = None if bias is None else bias.to(dtype)
        return torch.nn.functional.linear(a.to(dtype), weight.to(dtype), bias).to(a.dtype)
    if _onednn is not None and _takes_onednn(a, weight):
        bias = None if bias is None else bias.contiguous()  # oneDNN reads it as if it were contiguous
        return _onednn(a, weight, bias)
    return torch.nn.functional.linear(a, weight, bias)


def input_gradient(g: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """g @ weight: [n, k]."""
    return linear(g, weight.T, dtype=dtype)


def weight_gradient(g: Tensor, a: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """g.T @ a: [m, k]. The narrower factor is transposed in memory, which costs least."""
    if a.shape[1] < g.shape[1]:
        return linear(a.T, g.T, dtype=dtype).T
    return linear(g.T, a.T, dtype=dtype)
