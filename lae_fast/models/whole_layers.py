"""Fully connected networks by one op a layer: the functions of layers_in_parts.py, by other means.

There a layer is two ops, a product and a norm, whose results are all kept for weight gradients. Here it is one
(`ops.layer_forward`, `ops.layer_backward`), and what only weight gradients need is computed while one op makes them all, for the
states of a chain that count. On a GPU an evaluation of the report's decoder then takes 9 launches instead of 15, its weight
gradients one instead of some 20, and all products are made on tensor cores.

`obstacle` is the one place where the choice is made, and says why.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lae_fast import ops
from lae_fast.models.layers_in_parts import Layer
from lae_fast.models.precision import Precision
from lae_fast.ops.layer import MAX_INNER, aligned, means_of

VARIABLE = "LAE_FAST_LAYERS"
# whole, the default: where nothing stands against it.
CHOICES = ("whole", "parts")

# Of a network and its model; parameters must be aligned, too, as PyTorch's own are.
CONDITION = f"where widths are multiples of 4 up to {MAX_INNER}, and products are float32"


class Trace(NamedTuple):
    """The tensors that the backward pass of n rows needs."""

    inputs: list[Tensor]  # every layer's, before the norm and ReLU that lie between: [n, k]
    moments: list[Tensor]  # of each input but the first, [n, parts, 2]
    statistics: list[Tensor]  # of each input but the first, [n, 2]
    end: list[
        Tensor
    ]  # where the network ends in a norm and ReLU: its output and the normalized [n, m], the norm's rstd [n]

    def tensors(self) -> list[Tensor]:
        """What weight gradients are made from."""
        return [*self.inputs, *self.statistics, *self.end]


class Gradients(NamedTuple):
    """The tensors from which, with a trace, the weight gradients of n rows are made."""

    # At every layer's end, [n, m]: at the norm's output, after the ReLU's derivative; at the last linear layer's output.
    layers: list[Tensor]
    means: list[Tensor]  # of each but the last, [n, 2]
    end: list[Tensor]  # where the network ends in a norm and ReLU: at its output, [n, m]

    def tensors(self) -> list[Tensor]:
        return [*self.layers, *self.means, *self.end]


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
        return f"{VARIABLE}=parts asks for that"
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
    rounded: list[Any] = [p for p in precisions if p != "float32"]
    rounded += [layer.dtype or layer.grad_dtype for layer in layers if layer.dtype or layer.grad_dtype]
    rounded += [t.dtype for t in tensors if t.dtype != torch.float32]
    if torch.backends.cuda.matmul.fp32_precision == "tf32":
        rounded.append("tf32")
    if rounded:
        return f"products are {rounded[0]}; expected float32"
    unfit = [w for layer in layers for w in layer.weight.shape if w % 4 or not 0 < w <= MAX_INNER]
    if unfit:
        return f"a layer has {unfit[0]} features; expected multiples of 4, at most {MAX_INNER}"
    if not all(t.is_contiguous() and t.data_ptr() % 16 == 0 for t in tensors):
        return "a parameter is not contiguous, or does not begin at a multiple of 16 bytes"
    return None


def forward(layers: list[Layer], x: Tensor) -> tuple[Tensor, Trace]:
    """The network's output [n, m] for x [n, k], and the trace for the backward pass."""
    trace = Trace([], [], [], [])
    norm: tuple[Any, ...] = (None, None, None, 0.0)
    x = aligned(x)
    for layer in layers:
        trace.inputs.append(x)
        x, moments, statistics = ops.layer_forward_unchecked(x, layer.weight, layer.bias, *norm)
        if len(trace.inputs) > 1:
            trace.moments.append(norm[0])
            trace.statistics.append(statistics)
        norm = (moments, layer.norm_weight, layer.norm_bias, layer.eps)
    if layer.norm_weight is not None:  # nobody reads it by another op of a layer
        normalized = x
        x, rstd = ops.norm_relu_unchecked(normalized, layer.norm_weight, layer.norm_bias, layer.eps)
        trace.end.extend((x, normalized, rstd))
    return x, trace


def backward(
    layers: list[Layer], trace: Trace, grad: Tensor, *, to_input: bool = True
) -> tuple[Tensor | None, Gradients]:
    """The input's gradient [n, k], or None without `to_input`, from the output's gradient [n, m]; no weight gradients."""
    gradients, grad = Gradients([], [], []), aligned(grad)
    if trace.end:
        gradients.end.append(grad)
        grad = ops.norm_relu_backward_unchecked(grad, *trace.end, layers[-1].norm_weight)
    no_norm: tuple[Any, ...] = (None, None, None, None, 0.0)
    after = no_norm
    for i in reversed(range(len(layers))):
        gradients.layers.insert(0, grad)
        if i == 0 and not to_input:
            # What the op would tell of its gradient, without the op.
            gradients.means[:0] = [means_of(after[3], grad.shape[1])] if len(layers) > 1 else []
            return None, gradients
        before = no_norm
        if i > 0:
            x, moments, norm = trace.inputs[i], trace.moments[i - 1], layers[i - 1]
            before = (x, moments, norm.norm_weight, norm.norm_bias, norm.eps)
        grad, sums, means = ops.layer_backward_unchecked(grad, layers[i].weight, *after, *before)
        if i + 1 < len(layers):
            gradients.means.insert(0, means)
        if i > 0:
            after = (x, moments, norm.norm_weight, sums, norm.eps)
    return grad, gradients


def parameter_gradients(layers: list[Layer], trace: Trace, gradients: Gradients) -> list[Tensor]:
    """The gradients of all parameters, in the order of `MLP.parameters()`."""
    norms = layers[:-1]
    result: list[Tensor] = ops.layer_gradients_unchecked(
        trace.inputs,
        trace.statistics,
        [layer.norm_weight for layer in norms],
        [layer.norm_bias for layer in norms],
        gradients.layers,
        gradients.means,
    )
    if not trace.end:
        return result
    out, normalized, _ = trace.end
    weight, bias, _ = ops.norm_relu_sums_unchecked(*gradients.end, out, normalized, gradients.layers[-1])
    return [*result, weight, bias]
