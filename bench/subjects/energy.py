"""The energy of a decoder's output and its derivative, in one pass: on the CPU, and on a GPU as a fraction of its ceilings."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from compiling import compiled
from finding import Finding, Setting
from graphs import captured
from rivals import ops as eager
from timing import compare
from torch import Tensor

from lae_fast import ops
from subjects.cpu_op import COMPILED, EAGER, cpu_op
from subjects.transition import COPY


def images(n: int, nx: int = 784) -> tuple[Tensor, Tensor, Tensor]:
    """A decoder's output and images of 256 levels, [n, nx] each, and a logarithm of a scale."""
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(n, nx, generator=generator)
    x = torch.randint(256, (n, nx), generator=generator) / 255
    return output, x, torch.tensor(-1.0)


KINDS = {"bernoulli": ops.BERNOULLI, "gaussian": ops.GAUSSIAN, "logistic": ops.LOGISTIC}


def energy(s: Setting, kind: str, n: int) -> Finding:
    """On the CPU, for n images."""
    output, x, log_scale = images(n)
    scale = None if kind == "bernoulli" else log_scale

    def forward_and_backward(energy: eager.Energy):
        return eager.energy_and_derivatives(energy, output, x, log_scale)

    theirs = eager.ENERGIES[kind]
    compiled_energy, why_not = compiled(theirs, forward_and_backward)
    calls = {
        "energy": lambda: ops.energy(output, x, KINDS[kind], scale),
        EAGER: lambda: forward_and_backward(theirs),
        COMPILED: compiled_energy and (lambda: forward_and_backward(compiled_energy)),
    }
    n_bytes = 4 * 3 * output.numel()  # output and x read, the derivative written
    found = cpu_op(f"{kind} energy, {n} x 784", calls, n_bytes, output.numel(), why_not)
    if (kind, n) == ("bernoulli", 512):
        found.measured["energy"] = found.rows[EAGER]["ms"] / found.rows["energy"]["ms"]
    return found


def energy_bytes(n: int, nx: int) -> int:
    """Output and images read, the derivative written, float32; the energies [n] are 0.1 % of it."""
    return 3 * 4 * n * nx


def cold_sets(n_bytes: int, cache: int) -> int:
    """How many sets of n_bytes, used in turn, push the first set out of the cache: eight times the cache's size."""
    return 1 + math.ceil(8 * cache / n_bytes)


def cold_energy(s: Setting, n: int = 8192, nx: int = 784) -> Finding:
    """The Bernoulli energy and its derivative, on one set of arrays after another."""
    n_bytes = energy_bytes(n, nx)
    n_sets = cold_sets(n_bytes, s.cache)
    output, x, log_scale = (t.to(s.device) for t in images(n, nx))
    sets = [(output.roll(i, 0), x.roll(i, 0)) for i in range(n_sets)]
    half = n_bytes // 8
    copies = [(torch.randn(half, device=s.device), torch.empty(half, device=s.device)) for _ in range(n_sets)]

    def of_all(call: Callable[..., object], arguments: list[tuple[Tensor, ...]]) -> Callable[[], object]:
        return lambda: [call(*a) for a in arguments]

    runs = {
        "energy": of_all(lambda output, x: ops.energy(output, x, ops.BERNOULLI), sets),
        EAGER: of_all(lambda o, x: eager.energy_and_derivatives(eager.bernoulli, o, x, log_scale), sets),
        COPY: of_all(lambda source, target: target.copy_(source), copies),
    }
    calls = {name: captured(run, s.device).replay for name, run in runs.items()}
    rows = compare(calls, "energy", s.device, dict.fromkeys(calls, n_sets), loops=5)
    for row in rows.values():
        rate = n_bytes / row["ms"] * 1e3
        row |= {"GB/s": rate / 1e9, "% of copy": 100 * rate / s.copy_rate}
    note = (
        f"L2-cold: {n_sets} sets of {n_bytes / 1e6:.0f} MB in turn, in one graph. GB/s counts output and images read and "
        "the derivative written, in every row alike."
    )
    title = f"Bernoulli energy and derivative, {n} x {nx}"
    return Finding(title, rows, "energy", {"energy": rows["energy"]["% of copy"]}, (note,), calls["energy"])
