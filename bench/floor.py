"""The floor of a training step: the matrix products of `nets.mlp`'s decoder and encoder body, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lae_fast.models import products

# for every linear layer: its weight [m, k], and stand-ins for its input [n, k] and its output's gradient [n, m]
Layers = list[tuple[Tensor, Tensor, Tensor]]


class Route(NamedTuple):
    """Who does the products, for a [n, k], weight [m, k], g [n, m]."""

    linear: Callable[[Tensor, Tensor], Tensor]  # a, weight -> a weight^T [n, m]
    input_gradient: Callable[[Tensor, Tensor], Tensor]  # g, weight -> g weight [n, k]
    weight_gradient: Callable[[Tensor, Tensor], Tensor]  # g, a -> g^T a [m, k]


ROUTES = {
    "torch.mm": Route(lambda a, weight: torch.mm(a, weight.T), torch.mm, lambda g, a: torch.mm(g.T, a)),
    "fastest route": Route(products.linear, products.input_gradient, products.weight_gradient),
}


def linear_layers(body: nn.Sequential, n: int) -> Layers:
    layers = []
    for layer in body:
        if isinstance(layer, nn.Linear):
            weight = layer.weight.detach().clone()
            layers.append((weight, *(torch.randn(n, size).to(weight) for size in reversed(weight.shape))))
    return layers


def evaluate(layers: Layers, route: Route) -> None:
    """The products of one energy and its gradient in z, for the decoder's linear layers."""
    for weight, a, _ in layers:
        route.linear(a, weight)
    for weight, _, g in reversed(layers):
        route.input_gradient(g, weight)


def floor(
    encoder: nn.Sequential, decoder: nn.Sequential, n: int, n_steps: int, route: Route
) -> Callable[[], None]:
    """What does the products of one step on n images, T = n_steps.

    T + 1 times the decoder forwards and its input-gradients (a gradient in z needs that of the first layer too), T times
    its weight-gradients, and once the encoder body's: forward, weight-gradients, and input-gradients of all but the
    first layer. phi's own products [n, d] x [d, nz] are left out: 1 % of these.
    """
    down, up = linear_layers(encoder, n), linear_layers(decoder, n)

    def run() -> None:
        for weight, a, _ in down:
            route.linear(a, weight)
        for i in range(n_steps + 1):
            for weight, a, _ in up:
                route.linear(a, weight)
            for weight, a, g in reversed(up):
                route.input_gradient(g, weight)
                if i > 0:
                    route.weight_gradient(g, a)
        for i, (weight, a, g) in reversed(list(enumerate(down))):
            if i > 0:
                route.input_gradient(g, weight)
            route.weight_gradient(g, a)

    return run
