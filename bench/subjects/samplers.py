"""Langevin samplers on Gaussians on the CPU, in steps per second: ours, eager PyTorch's, and other packages' where installed.

In every table all rivals run the same number of steps a call, from the same state, with one evaluation of the energy a
step. Floor: the energies and their gradients alone. Ours also check and set up once a call (`ald_sample` decomposes
the features), which is part of its row and named below the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from finding import Finding, Setting
from rivals.samplers import Run, evaluations, mala, other_packages, unadjusted_langevin
from timing import compare
from torch import Tensor

from lae_fast import ald_sample, langevin_sample

FLOOR = "energy and gradient alone"
Rivals = tuple[dict[str, Run], tuple[str, ...]]  # by name, ours first; and why some of them do not run


def gaussian(z: Tensor) -> Tensor:
    """Nats of a standard Gaussian, without its constant: [..., D] -> [...]."""
    return 0.5 * z.square().sum(-1)


def others(potential: Callable[[Tensor], Tensor], start: Tensor, step_size: float, mh: bool) -> Rivals:
    """Everyone's sampler but ours for `potential` [C, D] -> [C], and the floor; with `mh` the eager one alone."""
    if mh:
        found, why_not = {}, ()
        eager = mala
    else:
        found, why_not = other_packages(potential, start, step_size)
        eager = unadjusted_langevin
    found = {"eager PyTorch": lambda n_steps: eager(potential, start, step_size, n_steps)} | found
    return found | {FLOOR: evaluations(potential, start)}, why_not


def ald_rivals(
    energy: Callable[[Tensor], Tensor],
    features: Tensor,
    phi: Tensor,
    step_size: float,
    mh: bool,
    whiten: bool,
) -> Rivals:
    """Chains of phi [C, nz, d]; energy as `ald_sample` has it. The others move phi as it is."""

    def ours(n_steps: int) -> Tensor:
        return ald_sample(
            energy,
            features,
            phi,
            n_draws=1,
            n_warmup=0,
            thin=n_steps,
            step_size=step_size,
            mh=mh,
            whiten=whiten,
            progress=False,
        ).phi

    def potential(rows: Tensor) -> Tensor:
        return energy((rows.view(phi.shape) @ features.T).mT).sum(1)  # the faster order of the two

    theirs, why_not = others(potential, phi.flatten(1), step_size, mh)
    return {"ald_sample": ours} | theirs, why_not


def langevin_rivals(energy: Callable[[Tensor], Tensor], start: Tensor, step_size: float, mh: bool) -> Rivals:
    """C chains of D elements, start [C, D]; energy [..., D] -> [...]."""
    c, d = start.shape

    def ours(n_steps: int) -> Tensor:
        return langevin_sample(
            energy,
            start.view(c, 1, d),
            n_draws=1,
            n_warmup=0,
            thin=n_steps,
            step_size=step_size,
            mh=mh,
            progress=False,
        ).z

    theirs, why_not = others(energy, start, step_size, mh)
    return {"langevin_sample": ours} | theirs, why_not


def steps_per_second(s: Setting, title: str, rivals: Rivals, n_steps: int) -> Finding:
    """All of them against the first."""
    runs, why_not = rivals
    ours = next(iter(runs))
    calls = {name: lambda run=run: run(n_steps) for name, run in runs.items()}
    rows = compare(calls | {"one step": lambda: runs[ours](1)}, ours, s.device, rounds=20, warmup=1)
    one_step = rows.pop("one step")["ms"]
    once = (n_steps * one_step - rows[ours]["ms"]) / (n_steps - 1)
    for row in rows.values():
        row |= {"us a step": 1e3 * row["ms"] / n_steps, "steps/s": 1e3 * n_steps / row["ms"]}
    later = 1e3 / (rows[ours]["ms"] - once) * n_steps
    note = f"{once:.2f} ms of a call of {ours} are spent once; without them: {later:.0f} steps/s"
    return Finding(f"{title}, {n_steps} steps a call", rows, ours, {}, (note, *why_not), calls[ours])


def one_chain(s: Setting, nz: int, n: int, d: int, step_size: float, n_steps: int, mh: bool) -> Finding:
    """ALD of n datapoints with d features each."""
    torch.manual_seed(0)
    # n = d: phi is a standard Gaussian of nz d elements; n < d: the n z are one, seen through random features
    features = torch.eye(d) if n == d else torch.randn(n, d) / math.sqrt(d)
    rivals = ald_rivals(gaussian, features, torch.randn(1, nz, d), step_size, mh, whiten=n == d)
    title = f"one chain of ALD, phi {nz} x {d}, n = {n}, {'MH' if mh else 'no MH'}"
    return steps_per_second(s, title, rivals, n_steps)


def many_chains(s: Setting, c: int, d: int, step_size: float, mh: bool) -> Finding:
    """C chains of D elements each."""
    torch.manual_seed(0)
    start = torch.randn(c, d)
    runs, why_not = langevin_rivals(gaussian, start, step_size, mh)
    amortized, _ = ald_rivals(gaussian, torch.eye(d), start.view(c, 1, d), step_size, mh, whiten=True)
    runs = {
        "langevin_sample": runs.pop("langevin_sample"),
        "ald_sample, features I": amortized["ald_sample"],  # the same law, by a matrix product more
    } | runs
    title = f"{c} chains of {d} elements, {'MH' if mh else 'no MH'}"
    return steps_per_second(s, title, (runs, why_not), n_steps=50)
