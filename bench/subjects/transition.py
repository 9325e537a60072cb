"""The transition of a chain by itself: on the CPU, and on a GPU as a fraction of its ceilings."""

from __future__ import annotations

from typing import NamedTuple

import torch
from compiling import compiled
from finding import Finding, Setting
from graphs import captured
from rivals import ops as eager
from timing import compare
from torch import Tensor

from lae_fast import ops
from subjects.cpu_op import COMPILED, EAGER, cpu_op

COPY = "copy of as many bytes"


def chain_state(
    c: int, d: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """A state of C chains of D elements, each with its own step size, and the next proposal's evaluation.

    The gradients are small and step sizes hardly adapt, so that next to all proposals are accepted: the costlier way for who
    updates in place.
    """
    torch.manual_seed(0)
    phi = torch.randn(c, d, dtype=dtype, device=device)
    per_chain = torch.zeros(c, dtype=torch.float64, device=device)
    return {
        "phi": phi,
        "potential": per_chain.clone(),
        "grad": 1e-3 * torch.randn_like(phi),
        "proposal": phi + 1e-2 * torch.randn_like(phi),
        "log_step_size": torch.full_like(per_chain, 5e-5).log(),
        "proposal_potential": per_chain,
        "proposal_grad": 1e-3 * torch.randn_like(phi),
    }


def our_transition(
    state: dict[str, Tensor],
    uniform: Tensor | None = None,
    noise: Tensor | None = None,
    mh: bool = True,
    rate: float = eager.RATE,
    remembers: bool = True,
):
    """What takes one step of copies of these chains in place, as all samplers here call it; and the copies, log_alpha [C]
    and the counters [C, 2] too. `remembers`: without `mh`, proposals that are known to be finite are not read again."""
    phi, per_chain = state["phi"], state["potential"]
    own = {name: value.clone() for name, value in state.items()}
    own["log_alpha"] = torch.zeros_like(per_chain)
    own["counters"] = torch.zeros(len(phi), 2, dtype=torch.int64, device=phi.device)
    adaptation = per_chain.new_tensor([[eager.TARGET, rate]]).repeat(len(own["log_step_size"]), 1)
    known_finite = torch.zeros_like(per_chain, dtype=torch.bool) if remembers and not mh else None
    arguments = (
        *(own[name] for name in ("phi", "potential", "grad", "proposal")),
        ops.make_rng(phi.device),
        own["log_step_size"],
        own["counters"],
        torch.zeros_like(per_chain, dtype=torch.bool),
        own["log_alpha"],
        adaptation,
        own["proposal_potential"],
        own["proposal_grad"],
        mh,
        noise,
        uniform,
        torch.zeros_like(per_chain),
        known_finite,
    )
    return lambda: ops.transition_unchecked(*arguments), own


def transition(s: Setting, c: int, d: int) -> Finding:
    """On the CPU, by its size."""
    state = chain_state(c, d)
    same_type = [value.to(torch.float32) for value in state.values()]
    compiled_transition, why_not = compiled(eager.transition, lambda run: run(*same_type))
    calls = {
        "transition": our_transition(state)[0],
        EAGER: lambda: eager.transition(*same_type),
        COMPILED: compiled_transition and (lambda: compiled_transition(*same_type)),
    }
    n_bytes = 4 * 7 * c * d  # phi, grad, proposal read and written, proposal_grad read
    found = cpu_op(f"transition, {c} x {d}", calls, n_bytes, c * d, why_not)
    key = {(1, 2**11): "transition 2^11", (1, 2**20): "transition 2^20"}.get((c, d))
    if key:
        found.measured[key] = found.rows[EAGER]["ms"] / found.rows["transition"]["ms"]
    return found


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
FORGETFUL = "no MH, proposals read twice"


def _moved(n_arrays: int, d: int, ms: float, copy_rate: float) -> dict[str, float]:
    return {"arrays moved": n_arrays, "% of copy, moved": 100 * n_arrays * 4 * d / ms * 1e3 / copy_rate}


def long_transition(s: Setting, d: int = 2**26) -> Finding:
    """One chain too long for the cache: of copy bandwidth, accepted and rejected apart."""
    state = chain_state(1, d, device=s.device)
    uniform = torch.full((1,), _ACCEPT, dtype=torch.float64, device=s.device)
    source = torch.randn(d, device=s.device)
    target, calls, owned = torch.empty_like(source), {}, {}
    for name, (mh, is_accepted, _) in LONG.items():
        potential = state["proposal_potential"] if is_accepted else state["proposal_potential"] + _REJECT
        calls[name], owned[name] = our_transition(
            state | {"proposal_potential": potential}, uniform if is_accepted else None, mh=mh, rate=0.0
        )
    calls[FORGETFUL] = our_transition(state, mh=False, rate=0.0, remembers=False)[0]
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
        row |= _moved(traffic.total + (0 if mh else 1), d, row["ms"], s.copy_rate)
    rows[FORGETFUL] |= _moved(transition_traffic(mh=False).total + 2, d, rows[FORGETFUL]["ms"], s.copy_rate)
    rows[COPY] |= {"arrays": 2, "GB": 8 * d / 1e9, "GB/s": 8 * d / rows[COPY]["ms"] / 1e6}
    rows[COPY]["% of copy"] = 8 * d / rows[COPY]["ms"] * 1e5 / s.copy_rate
    notes = (
        "Arrays, each counted once in a pass: accepted, the proposal and its gradient are read, phi, grad and the next "
        "proposal written (5); rejected, phi and grad read, the next proposal written (3); with Metropolis-Hastings all four "
        "are read before, for the decision.",
        "Moved: what the kernel reads and writes. Without MH it reads the proposal's gradient first (6 arrays in all), to see "
        "whether everything is finite, and the proposal too (7) where nobody recorded that when it was written. Cold by size: "
        "every array is several times the L2.",
    )
    return Finding(f"transition, 1 x {d:,}, float32", rows, COPY, measured, notes, calls["no MH"])


def short_transition(s: Setting, d: int = 2**11, n: int = 200) -> Finding:
    """One chain of a usual length, as a training step calls it: many in one graph, warm, as its neighbours leave it.

    Beside it one of four elements more, which at 2,048 is another kernel's: a block in which all warps do the same scalars;
    and the codes of a minibatch, each a chain, with one step size for all.
    """
    state = chain_state(1, d, device=s.device)
    same_type = [value.to(torch.float32) for value in state.values()]
    ours, longer = (our_transition(chain_state(1, k, device=s.device))[0] for k in (d, d + 4))
    codes = chain_state(512, 8, device=s.device)
    codes["log_step_size"] = codes["log_step_size"][:1]
    datapoints = our_transition(codes)[0]
    one = torch.zeros(1, device=s.device)
    runs = {
        "transition": captured(ours, s.device, n),
        f"transition, 1 x {d + 4:,}": captured(longer, s.device, n),
        "transition, 512 x 8, one step size": captured(datapoints, s.device, n),
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
    title = f"transition, 1 x {d:,}, in a graph"
    return Finding(title, rows, "transition", measured, (note,), runs["transition"].replay)
