"""One training step on the CPU: ours, the published algorithms, a plain VAE, and the floor.

Everybody starts from the same weights and images and has the same fused Adam. Floor: the matrix products that a step
cannot do without, by torch.mm and by the fastest route there is. Peak MB: all that a step needs beyond weights,
optimizer state and images at its highest moment, gradients included.
"""

from __future__ import annotations

from collections.abc import Callable

from finding import Finding, Setting
from floor import ROUTES, floor
from memory import peak_bytes
from timing import Calls, Rows, compare
from torch import nn

from lae_fast import LAE, VAE
from subjects.contestants import (
    OFFICIAL,
    OFFICIAL_LOGISTIC,
    OURS,
    OURS_BF16,
    OURS_EACH,
    OURS_LOGISTIC,
    eager_step,
    models,
    our_step,
    random_images,
)

FASTEST_FLOOR, MM_FLOOR = "floor, fastest route", "floor, torch.mm"


def step_calls(found: dict[str, nn.Module], n: int) -> Calls:
    """One training step of each of `models`, and the floors, on the same n images."""
    x, steps = random_images(n), {}
    for name, model in found.items():
        step = our_step(model) if isinstance(model, (LAE, VAE)) else eager_step(model)
        steps[name] = lambda step=step: step(x)
    ours = found[OURS]
    for name, route in ((FASTEST_FLOOR, "fastest route"), (MM_FLOOR, "torch.mm")):
        steps[name] = floor(ours.encoder, ours.decoder, n, ours.n_steps, ROUTES[route])
    return steps


def peak_megabytes(step: Callable[[], object], model: nn.Module) -> float:
    """The peak memory of a training step, gradients included: they exist when a step begins."""
    peak = peak_bytes(step)
    return (peak + sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)) / 1e6


def step_targets(rows: Rows) -> dict[str, float]:
    """The targets of a step with MH, T = 2, by their keys."""

    def ratio(a: str, b: str) -> float:
        return rows[a]["ms"] / rows[b]["ms"]

    return {
        "step / floor": ratio(OURS, FASTEST_FLOOR),
        "step / torch.mm floor": ratio(OURS, MM_FLOOR),
        "report / step": ratio("report", OURS),
        "official / step": ratio(OFFICIAL, OURS),
        "official / step, logistic": ratio(OFFICIAL_LOGISTIC, OURS_LOGISTIC),
        "bf16 step / VAE": ratio(OURS_BF16, "plain VAE"),
        "datapoint / joint": ratio(OURS_EACH, OURS),
    }


def growth_targets(rows: Rows) -> dict[str, float]:
    """What the steps beyond the second cost, ours and the products alone: their ratios by the targets' keys."""

    def growth(name: str) -> float:
        return rows[name]["ms"] - rows[f"{name}, T = 2"]["ms"]

    return {
        "growth / floor": growth(OURS) / growth(FASTEST_FLOOR),
        "growth / torch.mm floor": growth(OURS) / growth(MM_FLOOR),
    }


def training_step(
    s: Setting, n: int = 512, nh: int = 256, nz: int = 8, n_steps: int = 2, mh: bool = True
) -> Finding:
    found = models(n, nh, nz, n_steps, mh)
    steps = step_calls(found, n)
    if n_steps == 50:  # for the growth from T = 2, by the same timer
        short = step_calls(models(n, nh, nz, 2, mh), n)
        steps |= {f"{name}, T = 2": short[name] for name in (OURS, FASTEST_FLOOR, MM_FLOOR)}
    rows = compare(steps, OURS, s.device, warmup=1 if n_steps == 50 else 3)
    for name, model in found.items():
        rows[name]["peak MB"] = peak_megabytes(steps[name], model)
    measured = {}
    if (n, nh, n_steps, mh) == (512, 256, 2, True):
        measured = step_targets(rows)
    if n_steps == 50:
        measured = growth_targets(rows)
    title = f"training step, batch {n}, nh {nh}, nz {nz}, T = {n_steps}, {'MH' if mh else 'no MH'}"
    return Finding(title, rows, OURS, measured, ours=steps[OURS])
