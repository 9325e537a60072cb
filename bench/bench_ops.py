"""The fused ops on their own: against eager PyTorch, `torch.compile` of the same, and a copy of the same bytes.

Run with `pytest bench/ --benchmark-only`. GB/s counts each array that an op has to read or write once, in every row alike;
the copy moves as many bytes, half of them read and half written.
"""

from __future__ import annotations

import eager
import pytest
import torch
from targets import record
from timing import Calls, Rows, round_robin, show, summary
from torch import Tensor

from lae_fast import ops

SHAPES = [(1, 2**11), (1, 2**20), (1, 2**24), (64, 256), (100_000, 8)]
EAGER, COMPILED, COPY = "eager PyTorch", "torch.compile", "copy of the same bytes"


def copy_of(n_bytes: int):
    """What reads n_bytes / 2 and writes as many."""
    source = torch.ones(n_bytes // 2, dtype=torch.uint8)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def compare(benchmark, capsys, title: str, calls: Calls, n_bytes: int, n_elements: int, why_not: str) -> Rows:
    """Time all, small ones many times a turn, and show them against the first."""
    ours = next(iter(calls))
    calls = {name: call for name, call in calls.items() if call is not None} | {COPY: copy_of(n_bytes)}
    loops = max(1, 2**16 // n_elements)
    rows = summary(round_robin(calls, warmup=2, loops=loops), against=ours)
    for row in rows.values():
        row["GB/s"] = n_bytes / row["ms"] / 1e6
    show(benchmark, capsys, title, rows, against=ours, notes=(why_not,) if why_not else ())
    benchmark.pedantic(calls[ours], rounds=5, iterations=loops, warmup_rounds=1)
    return rows


def chains(
    c: int, d: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """A state of C chains of D elements, each with its own step size, and the next proposal's evaluation.

    The gradients are small, so that next to all proposals are accepted: the costlier way for who updates in place.
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
):
    """What takes one step of copies of these chains in place, as all samplers here call it; and the copies, log_alpha [C]
    and the counters [C, 2] too."""
    phi, per_chain = state["phi"], state["potential"]
    own = {name: value.clone() for name, value in state.items()}
    own["log_alpha"] = torch.zeros_like(per_chain)
    own["counters"] = torch.zeros(len(phi), 2, dtype=torch.int64, device=phi.device)
    adaptation = per_chain.new_tensor([[eager.TARGET, rate]]).repeat(len(phi), 1)
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
    )
    return lambda: ops.transition_unchecked(*arguments), own


@pytest.mark.parametrize(("c", "d"), SHAPES)
@pytest.mark.benchmark(group="ops: transition")
def test_transition(benchmark, capsys, c, d):
    state = chains(c, d)
    same_type = [value.to(torch.float32) for value in state.values()]
    compiled, why_not = eager.compiled(eager.transition, lambda run: run(*same_type))
    calls = {
        "transition": our_transition(state)[0],
        EAGER: lambda: eager.transition(*same_type),
        COMPILED: compiled and (lambda: compiled(*same_type)),
    }
    n_bytes = 4 * 7 * c * d  # phi, grad, proposal read and written, proposal_grad read
    rows = compare(benchmark, capsys, f"transition, {c} x {d}", calls, n_bytes, c * d, why_not)
    key = {(1, 2**11): "transition 2^11", (1, 2**20): "transition 2^20"}.get((c, d))
    if key:
        record(benchmark, {key: rows[EAGER]["ms"] / rows["transition"]["ms"]})


@pytest.mark.parametrize(("c", "d"), SHAPES)
@pytest.mark.benchmark(group="ops: noise")
def test_noise(benchmark, capsys, c, d):
    rng, like = ops.make_rng("cpu"), torch.empty(c, d)
    compiled, why_not = eager.compiled(torch.randn_like, lambda run: run(like))
    calls = {
        "noise": lambda: ops.noise(rng, c, d, torch.float32),
        EAGER: lambda: torch.randn_like(like),
        COMPILED: compiled and (lambda: compiled(like)),
    }
    compare(benchmark, capsys, f"noise, {c} x {d}", calls, 4 * c * d, c * d, why_not)


def images(n: int, nx: int = 784) -> tuple[Tensor, Tensor, Tensor]:
    """A decoder's output and images of 256 levels, [n, nx] each, and a logarithm of a scale."""
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(n, nx, generator=generator)
    x = torch.randint(256, (n, nx), generator=generator) / 255
    return output, x, torch.tensor(-1.0)


KINDS = {"bernoulli": ops.BERNOULLI, "gaussian": ops.GAUSSIAN, "logistic": ops.LOGISTIC}


@pytest.mark.parametrize(
    ("kind", "n"),
    [("bernoulli", 4), ("bernoulli", 512), ("bernoulli", 21_400), ("gaussian", 512), ("logistic", 512)],
)
@pytest.mark.benchmark(group="ops: energy and derivative")
def test_energy(benchmark, capsys, kind, n):
    output, x, log_scale = images(n)
    energy, scale = eager.ENERGIES[kind], None if kind == "bernoulli" else log_scale

    def forward_and_backward(energy: eager.Energy):
        return eager.energy_and_derivatives(energy, output, x, log_scale)

    compiled, why_not = eager.compiled(energy, forward_and_backward)
    calls = {
        "energy": lambda: ops.energy(output, x, KINDS[kind], scale),
        EAGER: lambda: forward_and_backward(energy),
        COMPILED: compiled and (lambda: forward_and_backward(compiled)),
    }
    n_bytes = 4 * 3 * output.numel()  # output and x read, the derivative written
    rows = compare(benchmark, capsys, f"{kind} energy, {n} x 784", calls, n_bytes, output.numel(), why_not)
    if (kind, n) == ("bernoulli", 512):
        record(benchmark, {"energy": rows[EAGER]["ms"] / rows["energy"]["ms"]})
