"""Fully connected networks, a layer in parts: products, and norms with ReLU, each by its fastest route.

The functions return the tensors that autograd would hide: the activations that a backward pass needs, and the gradients
at every layer, from which weight gradients can be made later, or never. whole_layers.py has the same functions by other means.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lae_fast import ops
from lae_fast.models import products


class Layer(NamedTuple):
    """A linear layer, and the layer norm and ReLU that follow it (None: nothing follows, the last layer)."""

    weight: Tensor  # [m, k]
    bias: Tensor  # [m]
    norm_weight: Tensor | None = None  # [m]
    norm_bias: Tensor | None = None  # [m]
    eps: float = 0.0
    dtype: torch.dtype | None = None  # the dtype to which its forward product rounds: see products.py
    grad_dtype: torch.dtype | None = None  # the dtype to which its backward products round


class Trace(NamedTuple):
    """The tensors that the backward pass of n rows needs."""

    inputs: list[Tensor]  # every layer's input, [n, k], and the output if the network ends in a ReLU
    normalized: list[Tensor]  # every norm's (y - mean) / standard deviation, [n, m]
    rstd: list[Tensor]  # every norm's 1 / standard deviation, [n]

    def tensors(self) -> list[Tensor]:
        """What weight gradients are made from."""
        return [*self.inputs, *self.normalized]


class Gradients(NamedTuple):
    """The tensors from which the weight gradients of n rows are made."""

    outputs: list[Tensor]  # gradient at every linear layer's output, [n, m]
    norms: list[Tensor]  # gradient at every norm's output, after its ReLU, [n, m]

    def tensors(self) -> list[Tensor]:
        return [*self.outputs, *self.norms]


def forward(layers: list[Layer], x: Tensor) -> tuple[Tensor, Trace]:
    """The network's output [n, m] for x [n, k], and the trace for the backward pass."""
    trace = Trace([x], [], [])
    for layer in layers:
        x = products.linear(x, layer.weight, layer.bias, layer.dtype)
        if layer.norm_weight is not None:
            normalized = x
            x, rstd = ops.norm_relu_unchecked(normalized, layer.norm_weight, layer.norm_bias, layer.eps)
            trace.normalized.append(normalized)
            trace.rstd.append(rstd)
            trace.inputs.append(x)
    return x, trace


def backward(
    layers: list[Layer], trace: Trace, grad: Tensor, *, to_input: bool = True
) -> tuple[Tensor | None, Gradients]:
    """The input's gradient [n, k], or None without `to_input`, from the output's gradient [n, m]; no weight gradients."""
    n_layers = len(layers)
    gradients = Gradients([grad] * n_layers, [grad] * len(trace.rstd))
    for i in reversed(range(n_layers)):
        layer = layers[i]
        if layer.norm_weight is not None:
            gradients.norms[i] = grad
            grad = ops.norm_relu_backward_unchecked(
                grad, trace.inputs[i + 1], trace.normalized[i], trace.rstd[i], layer.norm_weight
            )
        gradients.outputs[i] = grad
        if i == 0 and not to_input:
            return None, gradients
        grad = products.input_gradient(grad, layer.weight, layer.grad_dtype)
    return grad, gradients


def parameter_gradients(layers: list[Layer], trace: Trace, gradients: Gradients) -> list[Tensor]:
    """The gradients of all parameters, in the order of `MLP.parameters()`."""
    result = []
    for i, layer in enumerate(layers):
        output_grad = gradients.outputs[i]
        weight = products.weight_gradient(output_grad, trace.inputs[i], layer.grad_dtype)
        if layer.norm_weight is None:
            result += [weight, output_grad.sum(0)]
        else:
            norm_weight, norm_bias, bias = ops.norm_relu_sums_unchecked(
                gradients.norms[i], trace.inputs[i + 1], trace.normalized[i], output_grad
            )
            result += [weight, bias, norm_weight, norm_bias]
    return result
