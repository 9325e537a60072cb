"""One training step on a GPU, captured in a graph: against the published algorithms, a plain VAE, and its products alone."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from unittest import mock

import torch
from finding import Finding, Setting
from floor import ROUTES, floor
from graphs import captured
from timing import Rows, compare
from torch import Tensor

from lae_fast import LAE, training
from lae_fast.models import decoder_pass, whole_layers
from lae_fast.ops import energies
from subjects.contestants import (
    OFFICIAL,
    OURS,
    OURS_BF16,
    OURS_EACH,
    OURS_TF32,
    eager_step,
    models_on,
    our_step,
    random_images,
)

OURS_EAGER = "LAE, eager"
# Rows of the step by routes of before, layers in parts: all of these, and what each next one of ours makes of it.
OTHER_ROUTES = {
    "LAE, autograd for all gradients, PyTorch's prior and Adam": ("gradients", "prior", "adam"),
    "LAE, PyTorch's prior and Adam": ("prior", "adam"),
    "LAE, PyTorch's Adam": ("adam",),
    "LAE, layers in parts": (),
}
PRODUCTS, PRODUCTS_BF16 = "products alone", "products alone, bf16"
ROUTE_NAMES = {PRODUCTS: "torch.mm", f"{PRODUCTS}, by our routes": "fastest route"}
WARMUP = 6  # calls before anything is timed: captures and compilers are done by then


def other_step(model: LAE, x: Tensor, routes: tuple[str, ...]) -> Callable[[], None]:
    """Our step on images x [n, nx] by other `routes`."""
    lr = torch.tensor(1e-4, device=x.device)
    optimizer = training.adam(model, 1e-4)
    if "adam" in routes:
        optimizer = torch.optim.Adam(model.parameters(), lr, fused=True, capturable=True)
    prior = energies.add_prior_reference_ if "prior" in routes else energies.add_prior_unchecked_
    layers = {whole_layers.VARIABLE: "parts"}

    def step() -> None:
        optimizer.zero_grad()
        with (
            mock.patch.object(decoder_pass, "add_prior_unchecked_", prior),
            mock.patch.dict(os.environ, layers),
        ):
            if "gradients" in routes:
                model.loss(x).backward()
            else:
                model.add_gradients(x)
        optimizer.step()

    return step


def captured_step_targets(rows: Rows) -> dict[str, float]:
    def ratio(a: str, b: str) -> float:
        return rows[a]["ms"] / rows[b]["ms"]

    return {
        "official / step": ratio(OFFICIAL, OURS),
        "report / step": ratio("report", OURS),
        "step / products": max(ratio(OURS, name) for name in ROUTE_NAMES),  # the faster of the two
        "step / VAE": ratio(OURS, "plain VAE"),
        "datapoint / joint": ratio(OURS_EACH, OURS),
    }


def captured_step(
    s: Setting, n: int = 512, nh: int = 256, nz: int = 8, n_steps: int = 2, mh: bool = True, **options: int
) -> Finding:
    """One step of each, on the same images: ours captured, the published ones and a plain VAE eager."""
    found, x = models_on(s.device, n, nh, nz, n_steps, mh), random_images(n, s.device)
    calls: dict[str, Callable[[], object]] = {}
    for name, model in found.items():
        step = our_step(model) if name.startswith(("LAE", "VAE")) else eager_step(model)
        calls[name] = lambda step=step: step(x)
    eager = our_step(copy.deepcopy(found[OURS]), capture=False)
    calls[OURS_EAGER] = lambda: eager(x)
    bodies = [copy.deepcopy(body).to(s.device) for body in (found[OURS].encoder, found[OURS].decoder)]
    graphs = {}
    for name, route in ROUTE_NAMES.items():
        graphs[name] = captured(floor(*bodies, n, n_steps, ROUTES[route]), s.device)
    for name, routes in OTHER_ROUTES.items():
        graphs[name] = captured(other_step(copy.deepcopy(found[OURS]), x, routes), s.device)
    rounded = [copy.deepcopy(body).bfloat16() for body in bodies]
    graphs[PRODUCTS_BF16] = captured(floor(*rounded, n, n_steps, ROUTES["torch.mm"]), s.device)
    calls |= {name: graph.replay for name, graph in graphs.items()}
    rows = compare(calls, OURS, s.device, **{"warmup": WARMUP, "loops": 5} | options)
    for name in (
        OURS,
        OURS_EACH,
        OURS_TF32,
        OURS_BF16,
        "VAE",
    ):  # the steps' own graphs do not tell: once more
        if name in found:
            again = our_step(copy.deepcopy(found[name]), capture=False)
            graphs[name] = captured(lambda again=again: again(x), s.device)
    for name, graph in graphs.items():
        if graph.n_launches is not None:
            rows[name] |= {"launches": graph.n_launches, "copies and fills": graph.n_others}
    notes = (
        "LAE and VAE without further word: captured in a CUDA graph by `TrainingStep`, the copy of the images into it included. "
        "float32 products unless said (TF32 and bfloat16: gradients and encoder; energies stay float32). "
        "Weights, optimizer state and activations of a step lie in L2, as in training.",
        "The rows with PyTorch's Adam and the one of layers in parts (LAE_FAST_LAYERS=parts) are the step by routes of before, all "
        "without the copy of the images.",
        "Products alone: those of the floor (bench/floor.py), in a graph; the target takes the faster float32 row.",
    )
    unfit = whole_layers.unfit(s.device)
    notes += (f"Layers are in parts in all rows: {unfit}.",) if unfit else ()
    title = f"training step, batch {n}, nh {nh}, nz {nz}, T = {n_steps}, {'MH' if mh else 'no MH'}"
    return Finding(title, rows, OURS, captured_step_targets(rows), notes, calls[OURS])
