"""Langevin samplers compiled whole, in steps per CPU second and per second: ours, and blackjax's where it is installed.

Runs are long, as whoever compiles has many steps to take; the compilation itself comes before. Both draw from a standard Gaussian.
"""

from __future__ import annotations

import torch
from finding import Finding, Setting
from rivals.jitted import blackjax_langevin
from timing import cpu_seconds, host_seconds, round_robin, summary
from torch import Tensor

from lae_fast import langevin_sample
from subjects.samplers import gaussian

COMPILED, PLAIN = "langevin_sample, compiled", "langevin_sample, not compiled"


def ours(start: Tensor, step_size: float, mh: bool, compile: bool, n_steps: int) -> Tensor:
    options = dict(step_size=step_size, mh=mh, compile=compile, progress=False)
    return langevin_sample(gaussian, start[:, None], n_draws=1, n_warmup=0, thin=n_steps, **options).z[
        :, 0, 0
    ]


def jitted_chains(s: Setting, c: int, d: int, step_size: float, mh: bool, n_steps: int) -> Finding:
    """C chains of D elements each."""
    torch.manual_seed(0)
    start = torch.randn(c, d)
    runs = {
        COMPILED: lambda: ours(start, step_size, mh, True, n_steps),
        PLAIN: lambda: ours(start, step_size, mh, False, n_steps // 10),
    }
    theirs = blackjax_langevin(start, step_size, mh)
    if theirs is not None:
        runs["blackjax, jitted"] = lambda: theirs(n_steps)
    n = {name: n_steps // 10 if name == PLAIN else n_steps for name in runs}
    seconds = {
        timer: {
            name: [t / n[name] for t in times]
            for name, times in round_robin(runs, rounds=7, warmup=1, timer=timer).items()
        }
        for timer in (cpu_seconds, host_seconds)
    }
    rows = summary(seconds[cpu_seconds], COMPILED)
    wall = summary(seconds[host_seconds], COMPILED)
    for name, row in rows.items():
        row |= {
            "us a step": 1e3 * row["ms"],
            "steps/CPU second": 1e3 / row["ms"],
            "steps/s": 1e3 / wall[name]["ms"],
        }
    title = f"{c} chains of {d} elements, {'MH' if mh else 'no MH'}, compiled, {n_steps} steps a call"
    notes = ("Times are CPU seconds of one step, of all threads together.",)
    if theirs is None:
        notes += ("blackjax is not installed.",)
    return Finding(title, rows, COMPILED, {}, notes, runs[COMPILED])
