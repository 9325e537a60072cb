"""The fused ops on a GPU, as fractions of its ceilings. Run by gpu_table.py, and by `pytest bench/` where there is a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import eager
import torch
from bench_ops import chains, images, our_transition
from card import Finding, Setting, compare
from graphs import captured
from torch import Tensor

from lae_fast import ops

EAGER, COPY = "eager PyTorch", "copy of as many bytes"


class Traffic(NamedTuple):
    """Arrays [C, D] that a transition has to read and write: each counted once in a pass over the elements."""

    read: int
    written: int

    @property
    def total(self) -> int:
        return self.read + self.written


def transition_traffic(mh: bool, is_accepted: bool = True) -> Traffic:
    """The least a transition can do.

    Advancing, accepted: proposal and its gradient are read, phi, grad and the next proposal written. Rejected: phi and grad
    are read, the next proposal written. Metropolis-Hastings has to have read all four before it knows which: a pass of
    its own.
    """
    advance = Traffic(2, 3) if is_accepted else Traffic(2, 1)
    return Traffic(advance.read + (4 if mh else 0), advance.written)


_ACCEPT, _REJECT = 1e-300, 1e30  # a uniform draw that accepts everything, a potential that is never accepted
# by name: Metropolis-Hastings, what it decides, and the target's key
LONG = {
    "no MH": (False, True, "transition, no MH"),
    "MH, accepted": (True, True, "transition, accepted"),
    "MH, rejected": (True, False, "transition, rejected"),
}


def long_transition(s: Setting, d: int = 2**26) -> Finding:
    """One chain too long for the cache: of copy bandwidth, accepted and rejected apart."""
    state = chains(1, d, device=s.device)
    uniform = torch.full((1,), _ACCEPT, dtype=torch.float64, device=s.device)
    source = torch.randn(d, device=s.device)
    target, calls, owned = torch.empty_like(source), {}, {}
    for name, (mh, is_accepted, _) in LONG.items():
        potential = state["proposal_potential"] if is_accepted else state["proposal_potential"] + _REJECT
        calls[name], owned[name] = our_transition(
            state | {"proposal_potential": potential}, uniform if is_accepted else None, mh=mh, rate=0.0
        )
    del state
    calls[COPY] = lambda: target.copy_(source)
    rounds, warmup, loops = 20, 2, 5
    rows = compare(calls, COPY, s.device, rounds=rounds, warmup=warmup, loops=loops)
    measured = {}
    for name, (mh, is_accepted, key) in LONG.items():
        n_rejected, n_nonfinite = owned[name]["counters"][0].tolist()
        expected = 0 if is_accepted else (rounds + warmup) * loops
        if (n_rejected, n_nonfinite) != (expected, 0):  # then it was something else that was timed
            raise RuntimeError(
                f"{name}: {n_rejected} rejections and {n_nonfinite} not finite; expected {expected} and 0"
            )
        traffic, row = transition_traffic(mh, is_accepted), rows[name]
        rate = traffic.total * 4 * d / row["ms"] * 1e3
        row |= {"arrays": traffic.total, "GB": traffic.total * 4 * d / 1e9, "GB/s": rate / 1e9}
        row["% of copy"] = measured[key] = 100 * rate / s.copy_rate
        moved = traffic.total + (0 if mh else 2)
        row["% of copy, as two passes"] = 100 * moved * 4 * d / row["ms"] * 1e3 / s.copy_rate
    rows[COPY] |= {"arrays": 2, "GB": 8 * d / 1e9, "GB/s": 8 * d / rows[COPY]["ms"] / 1e6}
    rows[COPY]["% of copy"] = 8 * d / rows[COPY]["ms"] * 1e5 / s.copy_rate
    notes = (
        "Arrays, each counted once in a pass: accepted, the proposal and its gradient are read, phi, grad and the next "
        "proposal written (5); rejected, phi and grad read, the next proposal written (3); with Metropolis-Hastings all four "
        "are read before, for the decision.",
        "As two passes: what the kernel moves, which reads the proposal and its gradient first also without MH, to see whether "
        "everything is finite. Cold by size: every array is several times the L2.",
    )
    return Finding(f"transition, 1 x {d:,}, float32", rows, COPY, measured, notes)


def short_transition(s: Setting, d: int = 2**11, n: int = 200) -> Finding:
    """One chain of a usual length, as a training step calls it: many in one graph, warm, as its neighbours leave it."""
    state = chains(1, d, device=s.device)
    same_type = [value.to(torch.float32) for value in state.values()]
    ours = our_transition(state)[0]
    one = torch.zeros(1, device=s.device)
    runs = {
        "transition": captured(ours, s.device, n),
        EAGER: captured(lambda: eager.transition(*same_type), s.device, n),
        "one launch": captured(lambda: one.add_(1), s.device, n),
    }
    rows = compare(
        {name: run.replay for name, run in runs.items()},
        "transition",
        s.device,
        dict.fromkeys(runs, n),
        loops=5,
    )
    for name, run in runs.items():
        rows[name]["us"] = 1e3 * rows[name]["ms"]
        if run.n_launches is not None:
            rows[name] |= {"launches": run.n_launches / n, "copies and fills": run.n_others / n}
    measured = {"transition 2^11": rows["transition"]["us"]}
    if "launches" in rows["transition"]:
        measured["transition 2^11, launches"] = sum(
            rows["transition"][k] for k in ("launches", "copies and fills")
        )
    note = f"{n} in a row in one graph; arrays in L2, as in a chain. Launches: the graph's own nodes."
    return Finding(f"transition, 1 x {d:,}, in a graph", rows, "transition", measured, (note,))


def energy_bytes(n: int, nx: int) -> int:
    """Output and images read, the derivative written, float32; the energies [n] are 0.1 % of it."""
    return 3 * 4 * n * nx


def cold_sets(n_bytes: int, cache: int) -> int:
    """Of that many bytes: how many sets in turn leave nothing of the first in the cache, eight times over."""
    return 1 + math.ceil(8 * cache / n_bytes)


def energy(s: Setting, n: int = 8192, nx: int = 784) -> Finding:
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
    return Finding(
        f"Bernoulli energy and derivative, {n} x {nx}",
        rows,
        "energy",
        {"energy": rows["energy"]["% of copy"]},
        (note,),
    )
