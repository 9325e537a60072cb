"""A decoder as a browser runs it: a list of layers by kind (decoder.js knows each), and all weights as 16-bit floats."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lae_fast.models.autoencoder import Autoencoder, asks, like_of
from lae_fast.models.likelihood import Bernoulli, DiscretizedLogistic, Gaussian
from lae_fast.models.mlp import MLP
from lae_fast.ops.torch_private import is_altered

MOST_WEIGHTS = 2_000_000  # 5 MB of page
MOST_MULTIPLICATIONS = 100_000_000  # about 0.1 s an image in a browser


class CannotRun(ValueError):
    """The page cannot run this decoder; the message says why, in half a sentence."""


class Layer(NamedTuple):
    """One layer: what decoder.js calls it, its options, and its weights by name."""

    kind: str
    options: dict[str, Any]
    weights: dict[str, Tensor | None]  # None: there is none, as of a layer without bias


# From the decoder's output to the image that the likelihood shows.
MEANS = {Bernoulli: [Layer("sigmoid", {}, {})], Gaussian: [], DiscretizedLogistic: [Layer("clamp", {}, {})]}
POINTWISE = {nn.ReLU: "relu", nn.SiLU: "silu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}
CONVOLUTIONS = {nn.Conv2d: "conv", nn.ConvTranspose2d: "conv_transpose"}
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in eval mode


@asks
def network(model: Autoencoder) -> dict[str, Any]:
    """A model's decoder and the mean of its likelihood, ready for JSON: z [nz] -> image [nx], rounded to float16.

    Returns:
        layers, each with the shapes of its weights; weights, all of them in this order, little-endian and in base64; and
        n_weights.

    Raises:
        CannotRun: it holds layers that decoder.js does not know, or is too big.
    """
    if type(model.likelihood) not in MEANS:
        raise CannotRun(f"it does not know the likelihood {type(model.likelihood).__name__}")
    layers = [*_layers(model.decoder), *MEANS[type(model.likelihood)]]
    tensors = [t for layer in layers for t in layer.weights.values() if t is not None]
    n_weights = sum(t.numel() for t in tensors)
    if n_weights > MOST_WEIGHTS:
        raise CannotRun(f"it has {n_weights:,} weights, and a page takes {MOST_WEIGHTS:,}")
    if (n := _multiplications(model)) > MOST_MULTIPLICATIONS:
        raise CannotRun(f"it takes {n:,} multiplications an image, and a page {MOST_MULTIPLICATIONS:,}")
    halves = [t.detach().to("cpu", torch.float16) for t in tensors]
    if not all(t.isfinite().all() for t in halves):
        raise CannotRun("its weights are too large for 16 bits")
    content = b"".join(t.contiguous().numpy().astype("<f2").tobytes() for t in halves)
    described = [
        {"kind": kind, **options, "weights": {k: list(t.shape) for k, t in weights.items() if t is not None}}
        for kind, options, weights in layers
    ]
    return {"layers": described, "weights": base64.b64encode(content).decode(), "n_weights": n_weights}


def _multiplications(model: Autoencoder) -> int:
    """Multiplications that the convolutions and matrices take for one image."""
    found = []

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        per_image = min(inputs[0][0, 0], output[0, 0], key=Tensor.numel)  # of a convolution
        uses = output[..., 0] if type(module) is nn.Linear else per_image  # of each weight
        found.append(module.get_parameter("weight").numel() * uses.numel())

    counted = (nn.Linear, *CONVOLUTIONS)
    hooks = [m.register_forward_hook(count) for m in model.decoder.modules() if type(m) in counted]
    try:
        model.output(like_of(model).new_zeros(1, model.nz))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(found)


def _layers(module: nn.Module) -> Iterator[Layer]:
    """The layers of a module in order."""
    kind = type(module)
    if is_altered(module):
        raise CannotRun(f"its {kind.__name__} has a hook, or a forward of its own")
    if type(module) is nn.Sequential or type(module) is MLP:
        for part in module:
            yield from _layers(part)
    elif type(module) is nn.Linear:
        yield Layer("linear", {}, {"weight": module.weight, "bias": module.bias})
    elif type(module) is nn.LayerNorm:
        options = {"size": math.prod(module.normalized_shape), "eps": module.eps}
        yield Layer("layer_norm", options, {"weight": module.weight, "bias": module.bias})
    elif (type(module) is nn.BatchNorm1d or type(module) is nn.BatchNorm2d) and (
        module.running_mean is not None and module.running_var is not None
    ):
        scale = (module.running_var + module.eps).rsqrt() * (1 if module.weight is None else module.weight)
        shift = (0 if module.bias is None else module.bias) - scale * module.running_mean
        yield Layer("affine", {}, {"scale": scale, "shift": shift})
    elif type(module) is nn.Conv2d or type(module) is nn.ConvTranspose2d:
        yield _convolution(module)
    elif type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
        yield Layer("flatten", {}, {})
    elif type(module) is nn.Unflatten and module.dim == 1:
        yield Layer("unflatten", {"sizes": list(module.unflattened_size)}, {})
    elif type(module) is nn.LeakyReLU:
        yield Layer("leaky_relu", {"slope": module.negative_slope}, {})
    elif kind in POINTWISE:
        yield Layer(POINTWISE[kind], {}, {})
    elif kind not in NOTHING:
        raise CannotRun(f"it does not know the layer {kind.__name__}")


def _convolution(module: nn.Conv2d | nn.ConvTranspose2d) -> Layer:
    is_plain = module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    if not is_plain or isinstance(module.padding, str):
        raise CannotRun(f"it knows no {module}")
    options = {"stride": module.stride, "padding": module.padding, "output_padding": module.output_padding}
    return Layer(CONVOLUTIONS[type(module)], options, {"weight": module.weight, "bias": module.bias})
