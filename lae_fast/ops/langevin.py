"""The ops of a Langevin chain: propose, decide, and the fused transition of both. The target is exp(-V).

    propose   phi' = phi - eta grad V(phi) + sqrt(2 eta) eps,   eps ~ N(0, I)
    decide    log alpha = V(phi) - V(phi') + 1/4 sum (g + g') (2 (phi' - phi) + eta (g - g')),
              the Metropolis-Hastings ratio of the two Gaussian proposals; accept if log u <= log alpha

`mh=False` accepts every finite proposal. V' = +inf is an ordinary rejection; V' = NaN or -inf, a non-finite
proposal or gradient, or a non-finite ratio is a rejection counted apart. Rejected values never enter the state.

With `mh` each step size adapts to the acceptance min(1, alpha) of its chain; a shared step size adapts to the mean over
all chains. The number of columns of `adaptation` selects the rule; with rate 0 the step size stays:

    2   Robbins and Monro: log eta += rate (acceptance - target), for as long as the chain runs
    6   dual averaging (Hoffman and Gelman, 2014, section 3.2.1) with gamma = 1 / rate, t0 = 10, kappa = 3/4; its
        state: count, mean error, average of log eta (the value to keep after warm-up), and the centre mu

Shapes and types of all arguments: arguments.py. The compiled twin of each reference: csrc/langevin_math.h.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lae_fast import checks
from lae_fast.ops.arguments import expect, expect_constants, written
from lae_fast.ops.columns import (
    AVERAGE,
    CENTRE,
    COUNT,
    ERROR,
    NONFINITE,
    RATE,
    REJECTED,
    ROBBINS_MONRO,
    SEED,
    STEP,
    TARGET,
    TICKET,
)
from lae_fast.ops.library import define
from lae_fast.ops.philox import accept_uniforms, normals

T0 = 10  # dual averaging: steps by which the first ones are damped

# ---- propose ----


@define(
    "propose(Tensor phi, Tensor grad, Tensor step_size, Tensor rng, Tensor? noise=None) -> (Tensor, Tensor)",
    fake=lambda phi, grad, step_size, rng, noise=None: (torch.empty_like(phi), torch.empty_like(rng)),
)
def propose_reference(
    phi: Tensor, grad: Tensor, step_size: Tensor, rng: Tensor, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    eps = normals(rng, len(phi), phi.shape[1], phi.dtype) if noise is None else noise
    drift = step_size.to(phi.dtype)[:, None]
    noise_scale = (2 * step_size).sqrt().to(phi.dtype)[:, None]
    next_rng = torch.stack((rng[SEED], rng[STEP] + 1, torch.zeros_like(rng[TICKET])))
    return phi - drift * grad + noise_scale * eps, next_rng


def propose(
    phi: Tensor,  # [C, D]
    grad: Tensor,  # [C, D]
    step_size: Tensor,  # [S]
    rng: Tensor,  # [3]
    noise: Tensor | None = None,  # [C, D]
) -> tuple[Tensor, Tensor]:
    """The Langevin proposal [C, D], and the rng [3] advanced by one step.

    Equivalent PyTorch: `phi - eta * grad + (2 * eta).sqrt() * randn_like(phi)`. `noise` replaces the draw.

    Raises:
        TypeError, ValueError: an argument does not fit, or somebody wants a derivative, which this op does not have.

    Example:
        >>> phi, grad = torch.zeros(1, 2), torch.ones(1, 2)
        >>> step_size, rng = torch.full((1,), 0.1, dtype=torch.float64), lae_fast.ops.make_rng("cpu")
        >>> proposal, advanced = lae_fast.ops.propose(phi, grad, step_size, rng, noise=torch.zeros(1, 2))
        >>> proposal, (advanced - rng)[1].item()  # without noise, the drift; one step on
        (tensor([[-0.1000, -0.1000]]), 1)
    """
    expect("propose", phi, step_size, step_size=step_size, rng=rng, grad=grad, noise=noise)
    expect_constants("propose", dict(phi=phi, grad=grad, step_size=step_size, noise=noise))
    noise = None if noise is None else noise.contiguous()
    return torch.ops.lae_fast.propose(
        phi.contiguous(), grad.contiguous(), step_size.contiguous(), rng.contiguous(), noise
    )


# ---- decide ----


def _empty_decision(
    phi: Tensor, proposal: Tensor, potential: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, ...]:
    flags = potential.new_empty(potential.shape, dtype=torch.bool)
    return flags, torch.empty_like(flags), torch.empty_like(potential)


@define(
    "decide(Tensor phi, Tensor proposal, Tensor potential, Tensor proposal_potential, Tensor grad, "
    "Tensor proposal_grad, Tensor step_size, Tensor rng, bool mh, Tensor? uniform=None) -> (Tensor, Tensor, Tensor)",
    fake=_empty_decision,
)
def decide_reference(
    phi: Tensor,
    proposal: Tensor,
    potential: Tensor,
    proposal_potential: Tensor,
    grad: Tensor,
    proposal_grad: Tensor,
    step_size: Tensor,
    rng: Tensor,
    mh: bool,
    uniform: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    if mh:
        g, h = grad.double(), proposal_grad.double()
        delta = proposal.double() - phi.double()
        ratio = ((g + h) * (2 * delta + step_size[:, None] * (g - h))).sum(1)
        log_alpha = potential - proposal_potential + 0.25 * ratio
    else:
        log_alpha = torch.zeros_like(potential)
    is_outside = proposal_potential == math.inf
    is_finite = (
        proposal_potential.isfinite()
        & log_alpha.isfinite()
        & proposal.isfinite().all(1)
        & proposal_grad.isfinite().all(1)
    )
    log_alpha = log_alpha.where(is_finite, -math.inf)
    u = accept_uniforms(rng, phi.shape[0]) if uniform is None else uniform
    return is_finite & (u.log() <= log_alpha), ~is_outside & ~is_finite, log_alpha


def decide(
    phi: Tensor,  # [C, D]
    proposal: Tensor,  # [C, D]
    potential: Tensor,  # [C], V(phi)
    proposal_potential: Tensor,  # [C], V(phi')
    grad: Tensor,  # [C, D]
    proposal_grad: Tensor,  # [C, D]
    step_size: Tensor,  # [S]
    rng: Tensor,  # [3]
    mh: bool = True,
    uniform: Tensor | None = None,  # [C]
) -> tuple[Tensor, Tensor, Tensor]:
    """The Metropolis-Hastings decision: is_accepted [C], is_nonfinite [C], log_alpha [C].

    log_alpha is -inf for a proposal that cannot be accepted; with `mh` False it is 0 for every other proposal.

    Raises:
        TypeError, ValueError: an argument does not fit, or somebody wants a derivative, which this op does not have.

    Example:
        >>> step_size, rng = torch.full((1,), 0.1, dtype=torch.float64), lae_fast.ops.make_rng("cpu")
        >>> phi, grad = torch.ones(1, 2), torch.ones(1, 2)  # a standard normal: V = 1, grad V = phi
        >>> v = torch.ones(1, dtype=torch.float64)
        >>> accepted, nonfinite, log_alpha = lae_fast.ops.decide(phi, phi, v, v, grad, grad, step_size, rng)
        >>> accepted.item(), log_alpha.item()  # a proposal that stays where it is
        (True, 0.0)
    """
    tensors = dict(
        phi=phi,
        proposal=proposal,
        potential=potential,
        proposal_potential=proposal_potential,
        grad=grad,
        proposal_grad=proposal_grad,
        step_size=step_size,
        rng=rng,
    )
    expect("decide", phi, step_size, **tensors, uniform=uniform)
    checks.flag("decide: mh", mh)
    expect_constants("decide", tensors | {"uniform": uniform})
    uniform = None if uniform is None else uniform.contiguous()
    return torch.ops.lae_fast.decide(*(t.contiguous() for t in tensors.values()), mh, uniform)


# ---- transition ----


def adapt(log_step_size: Tensor, adaptation: Tensor, acceptance: Tensor) -> None:
    """Move the step sizes [S] after acceptances [S], in place, by the rule of `adaptation` [S, K]."""
    rate, error = adaptation[:, RATE], adaptation[:, TARGET] - acceptance
    if adaptation.shape[1] == ROBBINS_MONRO:
        log_step_size -= rate * error
        return
    count, mean_error, average = (adaptation[:, k].clone() for k in (COUNT, ERROR, AVERAGE))
    count += 1
    root = count.sqrt()
    mean_error += (error - mean_error) / (count + T0)
    following = adaptation[:, CENTRE] - rate * root * mean_error
    average += (following - average) / (root * root.sqrt())
    is_on = rate != 0
    log_step_size.copy_(following.where(is_on, log_step_size))
    for k, value in ((COUNT, count), (ERROR, mean_error), (AVERAGE, average)):
        adaptation[:, k] = value.where(is_on, adaptation[:, k])


@define(
    "transition(Tensor(a!) phi, Tensor(b!) potential, Tensor(c!) grad, Tensor(d!) proposal, Tensor(e!) rng, "
    "Tensor(f!) log_step_size, Tensor(g!) counters, Tensor(h!) is_accepted, Tensor(i!) log_alpha, "
    "Tensor(j!)? adaptation, Tensor proposal_potential, Tensor proposal_grad, bool mh, Tensor? noise=None, "
    "Tensor? uniform=None, Tensor(k!)? acceptance=None, Tensor(l!)? known_finite=None) -> ()",
    fake=lambda *args, **options: None,
)
def transition_reference(
    phi: Tensor,
    potential: Tensor,
    grad: Tensor,
    proposal: Tensor,
    rng: Tensor,
    log_step_size: Tensor,
    counters: Tensor,
    is_accepted: Tensor,
    log_alpha: Tensor,
    adaptation: Tensor | None,
    proposal_potential: Tensor,
    proposal_grad: Tensor,
    mh: bool,
    noise: Tensor | None = None,
    uniform: Tensor | None = None,
    acceptance: Tensor | None = None,
    known_finite: Tensor | None = None,
) -> None:
    accepted, nonfinite, log_ratio = decide_reference(
        phi,
        proposal,
        potential,
        proposal_potential,
        grad,
        proposal_grad,
        log_step_size.exp(),
        rng,
        mh,
        uniform,
    )
    is_accepted.copy_(accepted)
    log_alpha.copy_(log_ratio)
    counters[:, REJECTED] += ~accepted & ~nonfinite
    counters[:, NONFINITE] += nonfinite
    potential.copy_(proposal_potential.where(accepted, potential))
    phi.copy_(proposal.where(accepted[:, None], phi))
    grad.copy_(proposal_grad.where(accepted[:, None], grad))
    rate = log_ratio.exp().clamp(max=1)
    if acceptance is not None:
        acceptance += rate
    if known_finite is not None:
        known_finite.zero_()  # decide_reference looks for itself
    if mh and adaptation is not None and len(phi):
        is_joint = log_step_size.shape[0] == 1 < phi.shape[0]
        adapt(log_step_size, adaptation, rate.mean(0, keepdim=True) if is_joint else rate)
    next_proposal, next_rng = propose_reference(phi, grad, log_step_size.exp(), rng, noise)
    proposal.copy_(next_proposal)
    rng.copy_(next_rng)


def transition(
    phi: Tensor,  # [C, D]
    potential: Tensor,  # [C], V(phi)
    grad: Tensor,  # [C, D], grad V(phi)
    proposal: Tensor,  # [C, D]: phi' on entry, the next proposal on return
    rng: Tensor,  # [3]
    log_step_size: Tensor,  # [S]
    counters: Tensor,  # [C, 2], added to
    is_accepted: Tensor,  # [C], out
    log_alpha: Tensor,  # [C], out
    *,
    adaptation: Tensor | None,  # [S, K]; None: the step sizes stay
    proposal_potential: Tensor,  # [C], V(phi')
    proposal_grad: Tensor,  # [C, D], grad V(phi')
    mh: bool = True,
    noise: Tensor | None = None,  # [C, D]
    uniform: Tensor | None = None,  # [C]
    acceptance: Tensor | None = None,  # [C], added to
    known_finite: Tensor | None = None,  # [C], in and out
) -> None:
    """One whole inner step, in place: decide, select, adapt the step size, propose again, advance the rng.

    All positional arguments and `adaptation` are updated. `noise` and `uniform` replace the draws. `acceptance` is a running
    total of min(1, alpha), so that nobody has to sum it up beside the op. `known_finite` is the op's memory between two
    unadjusted steps: True where the proposal on entry is known to be finite, and need not be read again to see it; false to
    begin with, and whenever somebody else has written the proposal. On a GPU this is one launch (two where a shared step
    size waits for all decisions) and no host synchronisation.

    Raises:
        TypeError, ValueError: an argument does not fit, or somebody wants a derivative, which this op does not have.

    Example:
        >>> from lae_fast import ops
        >>> phi, grad, rng = torch.zeros(1, 2), torch.zeros(1, 2), ops.make_rng("cpu")  # standard normal, at its mode
        >>> potential, log_step_size = torch.zeros(2, 1, dtype=torch.float64)
        >>> counters, accepted, log_alpha = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.bool), potential.clone()
        >>> proposal = phi.clone()
        >>> state = phi, potential, grad, proposal, rng, log_step_size, counters, accepted, log_alpha
        >>> ops.transition(*state, adaptation=None, proposal_potential=potential.clone(), proposal_grad=grad.clone())
        >>> accepted.item(), rng[1].item(), bool((proposal != phi).all())  # accepted where it was; proposed anew
        (True, 1, True)
    """
    state = dict(
        phi=phi,
        potential=potential,
        grad=grad,
        proposal=proposal,
        rng=rng,
        log_step_size=log_step_size,
        counters=counters,
        is_accepted=is_accepted,
        log_alpha=log_alpha,
        adaptation=adaptation,
    )
    inputs = dict(proposal_potential=proposal_potential, proposal_grad=proposal_grad)
    optional = dict(noise=noise, uniform=uniform)
    totals = dict(acceptance=acceptance, known_finite=known_finite)
    expect("transition", phi, log_step_size, **state, **inputs, **optional, **totals)
    checks.flag("transition: mh", mh)
    writes = state | totals
    expect_constants("transition", writes | inputs | optional, writes=tuple(writes))
    packed, given, drawn, added = (
        [None if t is None else t.contiguous() for t in tensors.values()]
        for tensors in (state, inputs, optional, totals)
    )
    torch.ops.lae_fast.transition(*packed, *given, mh, *drawn, *added)
    for original, updated in zip(writes.values(), (*packed, *added), strict=True):
        if updated is not original:
            original.copy_(updated)
    written(*(t for t in writes.values() if t is not None))


# `transition` for callers that own the state: contiguous tensors that fit and need no gradients, in the schema's order. The
# compiled kernels check the forms anyway; a second check here would take as long as a small transition.
transition_unchecked = torch.ops.lae_fast.transition
