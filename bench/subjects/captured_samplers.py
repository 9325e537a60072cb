"""Langevin samplers on a GPU, in steps per second: ours replayed from a CUDA graph, and everybody's as they are."""

from __future__ import annotations

import functools
from typing import Any

import torch
from finding import Finding, Setting
from graphs import captured
from rivals.samplers import (
    Run,
    energy_and_gradient,
    evaluations,
    mala,
    other_packages,
    unadjusted_langevin,
)
from timing import compare
from torch import Tensor

from lae_fast import langevin_sample
from subjects.samplers import FLOOR, Rivals, gaussian

SAMPLE, EAGER = "langevin_sample, captured", "langevin_sample"
COMPILED, GIVEN = f"{SAMPLE} and compiled", f"{SAMPLE}, its gradient given"
# times as many steps a call where they are captured: capturing itself takes as long as some hundred
MANY = 50
# steps/s of torchebm 0.8.9's eager LangevinDynamics on an A100-SXM4-80GB, torch 2.11 (torchebm-benchmarks)
PUBLISHED = {(64, 8): 2163, (1024, 128): 2429}


def rivals(start: Tensor, step_size: float) -> Rivals:
    """The samplers by name, on chains that begin at start [C, D]. All run eagerly, except ours that say "captured"."""
    c, d = start.shape

    def ours(mh: bool, **options: Any) -> Run:
        options |= dict(n_draws=1, n_warmup=0, step_size=step_size, mh=mh, progress=False)
        return lambda n_steps: langevin_sample(gaussian, start.view(c, 1, d), thin=n_steps, **options).z

    routes = {
        SAMPLE: dict(compile=False, capture=start.is_cuda),
        COMPILED: dict(compile=start.is_cuda, capture=start.is_cuda),  # for CPUs: jitted_samplers.py
        GIVEN: dict(compile=False, capture=start.is_cuda, value_and_grad=lambda z: (gaussian(z), z)),
        EAGER: dict(compile=False, capture=False),
    }
    found: dict[str, Run] = {}
    for name, options in routes.items():
        found |= {name: ours(False, **options), f"{name}, MH": ours(True, **options)}
    found["eager PyTorch"] = lambda n_steps: unadjusted_langevin(gaussian, start, step_size, n_steps)
    found["eager PyTorch, MH"] = lambda n_steps: mala(gaussian, start, step_size, n_steps)
    packages, why_not = other_packages(gaussian, start, step_size)
    return found | packages | {FLOOR: evaluations(gaussian, start)}, why_not


def chain_targets(c: int, d: int, rates: dict[str, float]) -> dict[str, float]:
    """What the steps per second say about the targets; {} for sizes without published numbers."""
    if (c, d) not in PUBLISHED:
        return {}
    size, published = f"{c} x {d}", PUBLISHED[c, d]
    found = {
        f"{size} / published": rates[SAMPLE] / published,
        f"{size}, eager / published": rates[EAGER] / published,
        f"{size}, us": 1e6 / max(rates[name] for name in (SAMPLE, COMPILED, GIVEN)),
    }
    if "torchebm" in rates:
        found[f"{size} / torchebm"] = rates[SAMPLE] / rates["torchebm"]
    return found


def captured_chains(
    s: Setting, c: int, d: int, step_size: float, n_steps: int = 100, rounds: int = 10
) -> Finding:
    """C chains of D elements on a standard Gaussian, one evaluation a step."""
    start = torch.randn(c, d, generator=torch.Generator().manual_seed(0)).to(s.device)
    eager, why_not = rivals(start, step_size)
    counts = {name: MANY if name.startswith(SAMPLE) else 1 for name in eager}
    calls = {name: functools.partial(run, n_steps * counts[name]) for name, run in eager.items()}
    calls[f"{FLOOR}, in a graph"] = captured(
        lambda: energy_and_gradient(gaussian, start), s.device, n_steps
    ).replay
    rows = compare(calls, SAMPLE, s.device, counts, rounds=rounds, warmup=2)
    for row in rows.values():
        row |= {"us a step": 1e3 * row["ms"] / n_steps, "steps/s": 1e3 * n_steps / row["ms"]}
    notes = (
        f"{n_steps} steps; captured, {MANY} times as many a call, its capture included, "
        "but not what a compiler takes the first time. All on a standard Gaussian, no MH "
        "unless said. Published: torchebm "
        f"{PUBLISHED.get((c, d), 'nothing')} steps/s on an A100, its own target.",
        *why_not,
    )
    measured = chain_targets(c, d, {name: row["steps/s"] for name, row in rows.items()})
    return Finding(f"{c} chains of {d} elements", rows, SAMPLE, measured, notes, calls[SAMPLE])
