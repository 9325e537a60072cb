"""Training steps of several models: one after the other, and side by side as branches of one CUDA graph."""

from __future__ import annotations

import copy
from collections.abc import Callable

from finding import Finding, Setting
from timing import compare
from torch import nn

from lae_fast.training import SideBySide, TrainingStep, adam
from subjects.contestants import OURS, OURS_EACH, models_on, our_step, random_images

KINDS = {OURS: "side by side", OURS_EACH: "side by side, datapoint", "VAE": "side by side, VAE"}
COUNTS = (2, 5, 10)


def together(models: list[nn.Module]) -> SideBySide:
    return SideBySide([TrainingStep(m, adam(m, 1e-4), capture=False) for m in models])


def side_by_side(
    s: Setting,
    n: int = 512,
    nh: int = 256,
    nz: int = 8,
    n_steps: int = 2,
    mh: bool = True,
    counts: tuple[int, ...] = COUNTS,
    **options: int,
) -> Finding:
    """One step of each of k models, for several k; alone each is captured in a graph of its own."""
    found, x = models_on(s.device, n, nh, nz, n_steps, mh), random_images(n, s.device)
    most = max(counts)
    calls: dict[str, Callable[[], object]] = {}
    for kind in KINDS:
        alone = our_step(copy.deepcopy(found[kind]))
        calls[f"{kind}, alone"] = lambda step=alone: step(x)
        for k in counts:
            steps = together([copy.deepcopy(found[kind]) for _ in range(k)])
            xs = x[None].repeat(k, 1, 1)
            calls[f"{kind}, {k} side by side"] = lambda steps=steps, xs=xs: steps(xs)
    against = f"{OURS_EACH}, alone"
    rows = compare(calls, against, s.device, **{"warmup": 6, "loops": 3} | options)
    for kind in KINDS:
        for k in counts:
            row = rows[f"{kind}, {k} side by side"]
            row["us a model"] = 1e3 * row["ms"] / k
    measured = {
        key: most * rows[f"{kind}, alone"]["ms"] / rows[f"{kind}, {most} side by side"]["ms"]
        for kind, key in KINDS.items()
    }
    title = f"steps of several models, batch {n}, nh {nh}, nz {nz}, T = {n_steps}, {'MH' if mh else 'no MH'}"
    note = "Alone: one model, captured by `TrainingStep`. Side by side: so many models, captured by `SideBySide`, one step of each."
    return Finding(title, rows, against, measured, (note,), calls[f"{OURS_EACH}, {most} side by side"])
