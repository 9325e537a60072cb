"""Networks of PyTorch's own layers, run one after another: gradients at every layer, from which weight gradients can be made
later, or never. The counterpart of layers_in_parts.py for convolutions and norms."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lae_fast.isolation import differentiable
from lae_fast.models import products
from lae_fast.models.mlp import MLP
from lae_fast.models.nets import AsImages
from lae_fast.ops.torch_private import is_altered, own_parameters

CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
# Each is a function of its input and its own parameters, row by row.
KNOWN = (nn.Linear, *CONVOLUTIONS, nn.LayerNorm, nn.GroupNorm)
WITHOUT_PARAMETERS = (
    *(AsImages, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Upsample, nn.PixelShuffle),
    *(nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softsign, nn.LogSigmoid),
)


class Trace(NamedTuple):
    """One pass of n rows through a network. A learning layer is one with parameters that are trained."""

    start: Tensor  # the network's input, a leaf of autograd's graph
    inputs: list[Tensor]  # every learning layer's input, [n, ...]
    outputs: list[Tensor]  # every learning layer's output, [n, ...], attached to the graph
    end: Tensor  # the network's output, attached


def layers_of(net: nn.Module) -> list[nn.Module] | None:
    """The layers of a network in order; None unless their inputs, and the gradients at their outputs, are enough to know all
    weight gradients: an `nn.Sequential`, also nested, of `KNOWN` layers and those `WITHOUT_PARAMETERS`. Other modules may do
    anything: mix rows, or use a weight that is not their own."""
    found = list(_flat(net))
    parameters = [p for layer in found for p in layer.parameters()]
    if len({id(p) for p in parameters}) < len(parameters) or any(map(is_altered, net.modules())):
        return None
    return found if all(map(_is_known, found)) else None


def _flat(net: nn.Module) -> list[nn.Module]:
    """The layers of nested Sequentials, from outside to inside."""
    if type(net) is nn.Sequential or type(net) is MLP:
        return [layer for part in net for layer in _flat(part)]
    return [net]


def _is_known(layer: nn.Module) -> bool:
    if type(layer) in (nn.Flatten, nn.Unflatten):
        axis = layer.start_dim if type(layer) is nn.Flatten else layer.dim
        return isinstance(axis, int) and axis >= 1  # rows stay rows
    if type(layer) in WITHOUT_PARAMETERS:
        return True
    is_plain = getattr(layer, "padding_mode", "zeros") == "zeros" and not isinstance(
        getattr(layer, "padding", 0), str
    )
    return type(layer) in KNOWN and is_plain


def _learned(layer: nn.Module) -> list[nn.Parameter]:
    return [p for p in own_parameters(layer).values() if p is not None and p.requires_grad]


def forward(layers: list[nn.Module], z: Tensor) -> Trace:
    """The network at z [n, nz]."""
    with differentiable():
        a = z.detach().requires_grad_()
        trace = Trace(a, [], [], a)
        for layer in layers:
            if _learned(layer):
                trace.inputs.append(a.detach().contiguous())
                a = layer(a)
                trace.outputs.append(a)
            else:
                # The trace needs what an output was.
                a = layer(a.clone() if getattr(layer, "inplace", False) else a)
        return trace._replace(end=a)


def backward(trace: Trace, grad: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The gradient at the input [n, nz], and those at the learning layers' outputs, from the output's gradient [n, ...]; no
    weight gradients. The trace's graph is gone afterwards."""
    with differentiable():
        found = torch.autograd.grad(trace.end, [trace.start, *trace.outputs], grad.view_as(trace.end))
    z_grad, *gradients = (g.contiguous() for g in found)
    return z_grad, gradients


def parameter_gradients(
    layers: list[nn.Module], inputs: list[Tensor], gradients: list[Tensor]
) -> list[Tensor]:
    """The gradients of all trained parameters, in the order of `parameters()`."""
    learning = [layer for layer in layers if _learned(layer)]
    return [g for part in zip(learning, inputs, gradients, strict=True) for g in _of_layer(*part)]


def _of_layer(layer: nn.Module, a: Tensor, grad: Tensor) -> list[Tensor]:
    """The gradients of one layer's trained parameters, for its input a and the gradient at its output."""
    if type(layer) is nn.Linear:
        grad, a = grad.flatten(0, -2), a.flatten(0, -2)
        found = {"weight": products.weight_gradient(grad, a), "bias": grad.sum(0)}
    elif isinstance(layer, CONVOLUTIONS):
        _, weight, bias = torch.ops.aten.convolution_backward(
            grad,
            a,
            layer.weight.detach(),
            [layer.out_channels],
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.transposed,
            layer.output_padding,
            layer.groups,
            (False, True, True),
        )
        found = {"weight": weight, "bias": bias}
    else:
        with differentiable():
            return list(torch.autograd.grad(layer(a), _learned(layer), grad))
    return [found[name] for name, p in own_parameters(layer).items() if p is not None and p.requires_grad]
