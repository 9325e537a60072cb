"""The layers of the report's networks by themselves: one op each, as a chain evaluates a decoder, or a product and a norm; and the
weight gradients of all layers, one op, or products and sums."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from finding import Finding, Setting
from graphs import captured
from timing import compare
from torch import Tensor

from lae_fast import ops
from lae_fast.models import layers_in_parts, nets, products, whole_layers
from lae_fast.models.mlp import MLP
from lae_fast.ops.layer import moments_of, sums_of

EPS = 1e-5
PARTS = ", in parts"


def layer_calls(
    n: int, k: int, m: int, is_first: bool, is_last: bool, device: torch.device
) -> dict[str, Callable[[], object]]:
    """Forward and backward pass of a layer [n, k] -> [n, m], by name. A norm and ReLU lie between two layers: as a whole the
    next layer's op computes it, in parts an op of its own, after a product forward and backward."""
    torch.manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape).to(device)

    x, y, grad, weight, bias = normal(n, k), normal(n, m), normal(n, m), normal(m, k) / k**0.5, normal(m)
    norm_of_x, norm_of_y = (normal(k), normal(k)), (normal(m), normal(m))
    before = (None, None, None, 0.0) if is_first else (moments_of(x), *norm_of_x, EPS)
    around = dict(after=(None,) * 4 + (0.0,), before=(None,) * 4 + (0.0,))
    if not is_last:
        around["after"] = (y, moments_of(y), norm_of_y[0], sums_of(grad, y, norm_of_y[0]), EPS)
    if not is_first:
        around["before"] = (x, moments_of(x), *norm_of_x, EPS)
    out, rstd = ops.norm_relu(x.clone(), *norm_of_x, EPS)

    def forward_in_parts() -> object:
        product = products.linear(x, weight, bias)
        return product if is_last else ops.norm_relu_unchecked(product, *norm_of_y, EPS)

    def backward_in_parts() -> object:
        product = products.input_gradient(grad, weight)
        return product if is_first else ops.norm_relu_backward_unchecked(product, out, x, rstd, norm_of_x[0])

    name = f"{k} to {m}"
    calls: dict[str, Callable[[], object]] = {
        f"forward, {name}{PARTS}": forward_in_parts,
        f"backward, {name}{PARTS}": backward_in_parts,
    }
    if has_whole_layers(device):
        calls[f"forward, {name}"] = lambda: ops.layer_forward_unchecked(x, weight, bias, *before)
        calls[f"backward, {name}"] = lambda: ops.layer_backward_unchecked(
            grad, weight, *around["after"], *around["before"]
        )
    return calls


def has_whole_layers(device: torch.device) -> bool:
    """On a CPU the references serve, for tests."""
    return device.type != "cuda" or whole_layers.unfit(device) is None


def network_calls(name: str, net: MLP, n: int, is_chain: bool) -> dict[str, Callable[[], object]]:
    """The weight gradients of a network for n rows, by name; and all of its training where no chain evaluates it."""
    layers = net.layers()
    device = layers[0].weight.device
    x, grad = (torch.randn(n, size, device=device) for size in (net[0].in_features, len(layers[-1].weight)))
    calls: dict[str, Callable[[], object]] = {}
    for network, suffix in ((layers_in_parts, PARTS), (whole_layers, "")):
        if network is whole_layers and not has_whole_layers(device):
            continue

        def passes(network=network):
            _, trace = network.forward(layers, x)
            return trace, network.backward(layers, trace, grad, to_input=is_chain)[1]

        def training(network=network, passes=passes):
            return network.parameter_gradients(layers, *passes())

        calls[f"weight gradients, {name}{suffix}"] = partial(network.parameter_gradients, layers, *passes())
        if not is_chain:
            calls[f"forward, backward and weight gradients, {name}{suffix}"] = training
    return calls


@torch.no_grad()
def layers(s: Setting, n: int = 512, nz: int = 8, nh: int = 256, nx: int = 784, count: int = 200) -> Finding:
    """Many of each in one graph, warm, as their neighbours leave them."""
    calls: dict[str, Callable[[], object]] = {}
    for i, (k, m) in enumerate([(nz, nh), (nh, nh), (nh, nx)]):
        calls |= layer_calls(n, k, m, i == 0, i == 2, s.device)
    encoder, decoder = (net.to(s.device) for net in nets.mlp(nx, nz, nh=nh))
    calls |= network_calls("decoder", decoder, n, True) | network_calls("encoder", encoder, n, False)
    runs = {name: captured(call, s.device, count) for name, call in calls.items()}
    against = f"forward, {nh} to {nh}{PARTS}"
    replays = {name: run.replay for name, run in runs.items()}
    rows = compare(replays, against, s.device, dict.fromkeys(runs, count), rounds=10)
    for name, run in runs.items():
        rows[name]["us"] = 1e3 * rows[name]["ms"]
        if run.n_launches is not None:
            rows[name] |= {"launches": run.n_launches / count}
    whole = f"forward, {nh} to {nh}"
    obstacle = None if whole in rows else f"Not as a whole: {whole_layers.unfit(s.device)}."
    notes = (f"{count} in a row in one graph; arrays in L2.", *([obstacle] if obstacle else []))
    measured = {"layer": rows[whole]["us"]} if whole in rows else {}
    return Finding(
        f"layers of a decoder, weight gradients, and an encoder, batch {n}",
        rows,
        against,
        measured,
        notes,
        replays.get(whole, replays[against]),
    )
