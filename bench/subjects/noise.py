"""Normal noise on the CPU."""

from __future__ import annotations

import torch
from compiling import compiled
from finding import Finding, Setting

from lae_fast import ops
from subjects.cpu_op import COMPILED, EAGER, cpu_op


def noise(s: Setting, c: int, d: int) -> Finding:
    rng, like = ops.make_rng("cpu"), torch.empty(c, d)
    compiled_noise, why_not = compiled(torch.randn_like, lambda run: run(like))
    calls = {
        "noise": lambda: ops.noise(rng, c, d, torch.float32),
        EAGER: lambda: torch.randn_like(like),
        COMPILED: compiled_noise and (lambda: compiled_noise(like)),
    }
    return cpu_op(f"noise, {c} x {d}", calls, 4 * c * d, c * d, why_not)
