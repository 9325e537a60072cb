"""Fully connected networks by one op a layer, for the evaluations of a chain: the functions of mlp.py, by other means.

In mlp.py a layer is two ops, a product and a norm, whose results are all kept for weight gradients. Here it is one
(`ops.layer_forward`, `ops.layer_backward`), and what only weight gradients need is computed for the states that count. On a
GPU an evaluation of the report's decoder then takes 9 launches instead of 15, and its products are made on tensor cores.

`obstacle` is the one place where the choice is made, and says why.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lae_fast import ops
from lae_fast.models import mlp
from lae_fast.models.mlp import Layer
from lae_fast.models.precision import Precision
from lae_fast.ops.layer import MAX_INNER

VARIABLE = "LAE_FAST_LAYERS"
# whole: where nothing stands against it. Not the default before a card has measured it.
CHOICES = ("parts", "whole")

# Of a network and its model; parameters must be aligned, too, as PyTorch's own are.
CONDITION = (
    f"where widths are multiples of 4 up to {MAX_INNER}, products are float32, and the last layer is linear"
)


class Trace(NamedTuple):
    """The tensors that the backward pass of n rows needs."""

    x: Tensor  # [n, k]
    outputs: list[Tensor]  # what every linear layer but the last gave, before its norm, [n, m]
    moments: list[Tensor]  # theirs, [n, parts, 2]

    def tensors(self) -> list[Tensor]:
        """What weight gradients are made from."""
        return [self.x, *self.outputs]


class Gradients(NamedTuple):
    """The tensors from which, with a trace, the weight gradients of n rows are made."""

    output: Tensor  # gradient at the network's output, [n, m]
    norms: list[Tensor]  # gradient at every norm's output, after the ReLU's derivative, [n, m]

    def tensors(self) -> list[Tensor]:
        return [self.output, *self.norms]


def obstacle(
    device: torch.device, layers: list[Layer] | None = None, precisions: Sequence[Precision] = ()
) -> str | None:
    """Why layers are not evaluated as a whole; None if they are. Arguments: as of `unfit`.

    Raises:
        ValueError: the environment variable LAE_FAST_LAYERS is neither "parts" nor "whole".
    """
    asked = os.environ.get(VARIABLE, CHOICES[0])
    if asked not in CHOICES:
        raise ValueError(f"{VARIABLE}={asked!r}; expected one of {', '.join(CHOICES)}")
    if asked == "parts":
        return f"{VARIABLE}=whole would ask for one kernel"
    return unfit(device, layers, precisions)


def unfit(
    device: torch.device, layers: list[Layer] | None = None, precisions: Sequence[Precision] = ()
) -> str | None:
    """Why layers could not be evaluated as a whole; None if they could.

    Args:
        layers: a network's. None: asks for the device alone.
        precisions: of its products, as its model has them.
    """
    if torch.compiler.is_compiling():
        return "the compiler makes kernels of its own"
    if device.type != "cuda":
        return "only GPUs have kernels of whole layers"
    if not ops.is_compiled(device):
        return "the compiled kernels for GPUs are not in use"
    capability = torch.cuda.get_device_capability(device)
    if capability != (9, 0):
        return "the GPU has compute capability {}.{}; expected 9.0".format(*capability)
    return None if layers is None else _obstacle_in(layers, precisions)


def _obstacle_in(layers: list[Layer], precisions: Sequence[Precision]) -> str | None:
    """What in a network stands against it."""
    tensors = [t for layer in layers for t in layer[:4] if t is not None]
    rounded = [p for p in precisions if p != "float32"]
    if rounded or any(t.dtype != torch.float32 for t in tensors):
        return f"products are {rounded[0] if rounded else tensors[0].dtype}; expected float32"
    if layers[-1].norm_weight is not None:
        return "the network ends in a ReLU; expected a linear layer"
    unfit = [width for layer in layers for width in layer.weight.shape if width % 4 or width > MAX_INNER]
    if unfit:
        return f"a layer has {unfit[0]} features; expected multiples of 4, at most {MAX_INNER}"
    if not all(t.is_contiguous() and t.data_ptr() % 16 == 0 for t in tensors):
        return "a parameter is not contiguous, or does not begin at a multiple of 16 bytes"
    return None


def forward(layers: list[Layer], x: Tensor) -> tuple[Tensor, Trace]:
    """The network's output [n, m] for x [n, k], and the trace for the backward pass."""
    trace = Trace(x, [], [])
    norm: tuple[Any, ...] = (None, None, None, 0.0)
    for layer in layers:
        x, moments = ops.layer_forward_unchecked(x, layer.weight, layer.bias, *norm)
        if layer.norm_weight is not None:
            norm = (moments, layer.norm_weight, layer.norm_bias, layer.eps)
            trace.outputs.append(x)
            trace.moments.append(moments)
    return x, trace


def backward(layers: list[Layer], trace: Trace, grad: Tensor) -> tuple[Tensor, Gradients]:
    """The input's gradient [n, k] from the output's gradient [n, m]; no weight gradients."""
    gradients = Gradients(grad, [])
    no_norm: tuple[Any, ...] = (None, None, None, None, 0.0)
    after = no_norm
    for i in reversed(range(len(layers))):
        before = no_norm
        if i > 0:
            y, moments, norm = trace.outputs[i - 1], trace.moments[i - 1], layers[i - 1]
            before = (y, moments, norm.norm_weight, norm.norm_bias, norm.eps)
        grad, sums = ops.layer_backward_unchecked(grad, layers[i].weight, *after, *before)
        if i > 0:
            after = (y, moments, norm.norm_weight, sums, norm.eps)
            gradients.norms.insert(0, grad)
    return grad, gradients


def parameter_gradients(layers: list[Layer], trace: Trace, gradients: Gradients) -> list[Tensor]:
    """The gradients of all parameters, in the order of `MLP.parameters()`."""
    whole, outputs = mlp.Trace([trace.x], [], []), []
    for layer, y, grad in zip(layers, trace.outputs, gradients.norms, strict=False):
        y = y.clone()  # the op normalizes it, and the state may count again
        x, rstd = ops.norm_relu_unchecked(y, layer.norm_weight, layer.norm_bias, layer.eps)
        whole.inputs.append(x)
        whole.normalized.append(y)
        whole.rstd.append(rstd)
        outputs.append(ops.norm_relu_backward_unchecked(grad, x, y, rstd, layer.norm_weight))
    return mlp.parameter_gradients(
        layers, whole, mlp.Gradients([*outputs, gradients.output], gradients.norms)
    )
