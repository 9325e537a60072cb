"""A classifier's training step with Algorithm 3: what the variations cost beside it, ours and the published loop.

All ratios are to one step of the report's classifier on a ready-made batch of (n + 1) 128 images. Everybody has the same
classifier, weights and fused Adam. Floor: the matrix products that the variations cannot do without. The published loop
decodes and classifies one variation after the other and differentiates through the frozen model, for gradients that
nobody uses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from finding import Finding, Setting
from floor import ROUTES, Route, evaluate, linear_layers
from timing import Calls, compare
from torch import Tensor, nn

from lae_fast import LAE, VAE, Bernoulli
from lae_fast.augmentation import augment
from lae_fast.experiments.classifiers import as_images, classifier
from lae_fast.experiments.report_rule import plain
from lae_fast.models import Autoencoder, nets
from subjects.contestants import NX, adam, random_images

M, NH, NZ, T = 128, 256, 8, 2
CLASSIFIER = "classifier step alone"
# by name: a model's class and where its variations come from
SOURCES = {
    "LAE, isotropic": (LAE, "isotropic"),
    "VAE, encoder": (VAE, "encoder"),
    "LAE, chain": (LAE, "chain"),
}


def models() -> dict[type[Autoencoder], Autoencoder]:
    """One of each class, from the same weights."""
    torch.manual_seed(0)
    bodies, sizes = nets.mlp(NX, NZ, NH), dict(nx=NX, nz=NZ, d=NH)
    lae = LAE(*copy.deepcopy(bodies), Bernoulli(), **sizes, n_steps=T, decisions="joint")
    return {LAE: lae, VAE: VAE(*copy.deepcopy(bodies), Bernoulli(), **sizes)}


def classifier_step() -> Callable[[Tensor, Tensor], None]:
    """What takes one training step on images [n, 1, 28, 28] and labels [n]."""
    torch.manual_seed(1)
    net = classifier()
    optimizer = adam(net)

    def step(x: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        F.nll_loss(net(x), labels).backward()
        optimizer.step()

    return step


def published_step(model: Autoencoder, n: int, scale: float | None) -> Callable[[Tensor, Tensor], None]:
    """Algorithm 3 as published, for images [m, 784], in eager PyTorch; scale: of z around f(x); None: q's own."""
    torch.manual_seed(1)
    net = classifier()
    optimizer = adam(net)
    eager = copy.deepcopy(model)
    eager.encoder, eager.decoder = plain(model.encoder), plain(model.decoder)

    def step(x: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        mean, std = eager.posterior(x)
        std = std if scale is None else scale
        outputs = [net(as_images(x))]
        for _ in range(n):
            z = mean + std * torch.randn_like(mean)
            outputs.append(net(as_images(torch.sigmoid(eager.decoder(z)))))
        F.nll_loss(torch.cat(outputs), labels.repeat(n + 1)).backward()
        optimizer.step()

    return step


def floor(model: Autoencoder, n: int, n_steps: int, route: Route) -> Callable[[], None]:
    """The products behind n variations of M images: encoder and decoder forwards; for a chain of n_steps also its
    energies and their gradients in z, the first for one chain alone, since all start from the same phi."""
    down, start, up = (
        linear_layers(model.encoder, M),
        linear_layers(model.decoder, M),
        linear_layers(model.decoder, n * M),
    )
    evaluations = [start, *[up] * n_steps] if n_steps else []

    def run() -> None:
        for weight, a, _ in [*down, *up]:
            route.linear(a, weight)
        for layers in evaluations:
            evaluate(layers, route)

    return run


def calls(n: int) -> Calls:
    """All that is compared, on the same M images, for n variations of each."""
    generator = torch.Generator().manual_seed(0)
    labels, x, found = torch.randint(10, (M,), generator=generator), random_images(M), models()
    step, batch = classifier_step(), augment(found[LAE], as_images(x), labels, n)
    found_calls = {CLASSIFIER: lambda: step(*batch)}
    for name, (cls, source) in SOURCES.items():

        def variations(model: nn.Module = found[cls], source: str = source) -> tuple[Tensor, Tensor]:
            return augment(model, as_images(x), labels, n, source=source)

        found_calls[f"augment: {name}"] = variations
        found_calls[f"augment and step: {name}"] = lambda variations=variations: step(*variations())
    for name, scale in (("LAE, isotropic", 0.05), ("VAE, encoder", None)):
        rival = published_step(found[SOURCES[name][0]], n, scale)
        found_calls[f"published loop: {name}"] = lambda rival=rival: rival(x, labels)
    for route in ("fastest route", "torch.mm"):
        for what, n_steps in (("augment", 0), ("augment, chain", T)):
            found_calls[f"floor of {what}, {route}"] = floor(found[LAE], n, n_steps, ROUTES[route])
    return found_calls


def augmented_step(s: Setting, n: int) -> Finding:
    """A classifier's training step with n variations of each image, ours and the published loop."""
    compared = calls(n)
    rows = compare(compared, CLASSIFIER, s.device)
    notes = []
    for name in SOURCES:
        step_ms = rows[f"augment and step: {name}"]["ms"]
        share = rows[f"augment: {name}"]["ms"] / step_ms
        note = f"{name}: variations are {share:.0%} of a step"
        if published := rows.get(f"published loop: {name}"):
            note += f"; the published loop takes {published['ms'] / step_ms:.2f} times as long as ours"
        notes.append(note)
    title = f"Algorithm 3, batch {M}, n = {n}, nh {NH}, nz {NZ}, T = {T}"
    ours = compared["augment and step: LAE, isotropic"]
    return Finding(title, rows, CLASSIFIER, {}, tuple(notes), ours)
