"""Many steps of chains in one call: a compiled potential, evaluated and followed by `transition`, again and again.

Python is paid once for all of them. The potential is a shared library that AOTInductor has made of its graph (compiled.py,
in `sampling`), with two results: V [C], float64 in nats, and grad V [C, D], contiguous, at rows [C, D].
"""

from __future__ import annotations

import torch
from torch import Tensor

from lae_fast.ops.langevin import transition_reference
from lae_fast.ops.library import define
from lae_fast.ops.torch_private import aot_loaded


@define(
    "walk(str potential_library, Tensor[] constants, Tensor(a!) phi, Tensor(b!) potential, Tensor(c!) grad, "
    "Tensor(d!) proposal, Tensor(e!) rng, Tensor(f!) log_step_size, Tensor(g!) counters, Tensor(h!) is_accepted, "
    "Tensor(i!) log_alpha, Tensor(j!)? adaptation, Tensor(k!) acceptance, Tensor(l!) draws, Tensor(m!) energies, "
    "Tensor(n!) rates, int n_steps, int thin, int since, bool mh) -> ()",
    fake=lambda *args: None,
    compiled_on=("cpu",),
)
def walk_reference(
    potential_library: str,
    constants: list[Tensor],  # further inputs of the library, after the rows
    phi: Tensor,  # [C, D]; this and the next nine: as `transition` takes them
    potential: Tensor,
    grad: Tensor,
    proposal: Tensor,
    rng: Tensor,
    log_step_size: Tensor,
    counters: Tensor,
    is_accepted: Tensor,
    log_alpha: Tensor,
    adaptation: Tensor | None,
    acceptance: Tensor,  # [C], float64: the sum since the last draw of min(1, alpha), without `mh` of acceptances
    draws: Tensor,  # [K, C, D], out: phi at every draw, K = (since + n_steps) // thin
    energies: Tensor,  # [K, C], float64, out
    rates: Tensor,  # [K, C], float64, out: acceptance / thin at every draw
    n_steps: int,
    thin: int,  # steps that lead to a draw
    since: int,  # of these, the steps before this call
    mh: bool,
) -> None:
    evaluate = aot_loaded(potential_library)
    for k in range(since + 1, since + n_steps + 1):
        transition_reference(
            phi,
            potential,
            grad,
            proposal,
            rng,
            log_step_size,
            counters,
            is_accepted,
            log_alpha,
            adaptation,
            *evaluate(proposal, *constants),
            mh,
            acceptance=acceptance,
        )
        if k % thin == 0:
            draw = k // thin - 1
            draws[draw], energies[draw], rates[draw] = phi, potential, acceptance / thin
            acceptance.zero_()


# For callers that own the state, as `transition_unchecked`; the compiled kernel checks the forms.
walk_unchecked = torch.ops.lae_fast.walk
