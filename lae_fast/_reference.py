"""Every op in plain PyTorch: the specification, and the fallback where no kernel is compiled.

Argument shapes are in ops.py. Noise is computed in float64 and rounded once; everything else is in the
state's own type, sums in float64, in the same order of operations as csrc/langevin_math.h.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SEED, STEP, TICKET = 0, 1, 2  # rng int64 [3]
TARGET, RATE, COUNT, ERROR, AVERAGE, CENTRE = range(6)  # adaptation float64 [S, 2 or 6]
REJECTED, NONFINITE = 0, 1  # counters int64 [C, 2]
INTEGERS, UNIFORMS, NORMALS, ACCEPT = 0, 1, 2, 3  # kinds of `noise`

_PURPOSE_NORMALS, _PURPOSE_UNIFORM, _PURPOSE_NORMALS_LOW = 0, 1, 2
_LOW32 = 0xFFFFFFFF


def _mul_hi_lo(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower 32 bits of a * b for 32-bit words held in int64, without 64-bit overflow."""
    low = a * (b & 0xFFFF)
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(rng: Tensor, n_chains: int, n_blocks: int, purpose: int) -> Tensor:
    """Philox4x32-10 (Salmon et al., 2011): the words of every block, int64 [C, B, 4]."""
    device = rng.device
    seed, step = rng[SEED], rng[STEP]
    k0, k1 = seed & _LOW32, (seed >> 32) & _LOW32
    shape = (n_chains, n_blocks)
    c0 = torch.arange(n_blocks, device=device).expand(shape)
    c1 = torch.arange(n_chains, device=device)[:, None].expand(shape)
    c2 = (step & _LOW32).expand(shape)
    c3 = (((step >> 32) << 8) & _LOW32 | purpose).expand(shape)
    for _ in range(10):
        h0, l0 = _mul_hi_lo(0xD2511F53, c0)
        h1, l1 = _mul_hi_lo(0xCD9E8D57, c2)
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
        k0, k1 = (k0 + 0x9E3779B9) & _LOW32, (k1 + 0xBB67AE85) & _LOW32
    return torch.stack((c0, c1, c2, c3), dim=-1)


def _fraction53(high: Tensor, low: Tensor) -> Tensor:
    return ((high >> 5) * 2**26 + (low >> 6)).double()


def uniforms(rng: Tensor, n_chains: int, n_elements: int, dtype: torch.dtype) -> Tensor:
    """The uniforms behind the normals, float64 [C, n]: even elements in (0, 1], odd ones in [0, 1)."""
    n_blocks = -(-n_elements // 4)
    words = philox(rng, n_chains, n_blocks, _PURPOSE_NORMALS).flatten(1)
    if dtype == torch.float32:
        fraction, scale = (words >> 8).double(), 2.0**-24
    else:
        low = philox(rng, n_chains, n_blocks, _PURPOSE_NORMALS_LOW).flatten(1)
        fraction, scale = _fraction53(words, low), 2.0**-53
    fraction[:, 0::2] += 1
    return (fraction * scale)[:, :n_elements]


def normals(rng: Tensor, n_chains: int, n_elements: int, dtype: torch.dtype) -> Tensor:
    """Standard normals by Box-Muller on pairs of uniforms, [C, n]."""
    n_padded = 4 * -(-n_elements // 4)
    u = uniforms(rng, n_chains, n_padded, dtype)
    radius = (-2 * u[:, 0::2].log()).sqrt()
    angle = 2 * math.pi * u[:, 1::2]
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    return pairs.flatten(1)[:, :n_elements].to(dtype)


def accept_uniforms(rng: Tensor, n_chains: int) -> Tensor:
    """The Metropolis-Hastings uniform of every chain, float64 [C] in (0, 1]."""
    words = philox(rng, n_chains, 1, _PURPOSE_UNIFORM)[:, 0]
    return (_fraction53(words[:, 0], words[:, 1]) + 1) * 2.0**-53


def noise(out: Tensor, rng: Tensor, kind: int) -> None:
    n_chains, n_elements = out.shape
    if kind == INTEGERS:
        out.copy_(philox(rng, n_chains, -(-n_elements // 4), _PURPOSE_NORMALS).flatten(1)[:, :n_elements])
    elif kind == UNIFORMS:
        out.copy_(uniforms(rng, n_chains, n_elements, out.dtype))
    elif kind == NORMALS:
        out.copy_(normals(rng, n_chains, n_elements, out.dtype))
    else:
        out.copy_(accept_uniforms(rng, n_chains)[:, None])


def _proposal(phi: Tensor, grad: Tensor, step_size: Tensor, eps: Tensor) -> Tensor:
    drift = step_size.to(phi.dtype)[:, None]
    noise_scale = (2 * step_size).sqrt().to(phi.dtype)[:, None]
    return phi - drift * grad + noise_scale * eps


def propose(
    phi: Tensor, grad: Tensor, step_size: Tensor, rng: Tensor, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    eps = normals(rng, *phi.shape, phi.dtype) if noise is None else noise
    next_rng = torch.stack((rng[SEED], rng[STEP] + 1, torch.zeros_like(rng[TICKET])))
    return _proposal(phi, grad, step_size, eps), next_rng


def decide(
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


def _adapt(log_step_size: Tensor, adaptation: Tensor, acceptance: Tensor) -> None:
    """Move the step sizes [S] after acceptances [S]: Robbins and Monro, or (6 columns) dual averaging."""
    rate, error = adaptation[:, RATE], adaptation[:, TARGET] - acceptance
    if adaptation.shape[1] == 2:
        log_step_size -= rate * error
        return
    count, mean_error, average = (adaptation[:, k].clone() for k in (COUNT, ERROR, AVERAGE))
    count += 1
    root = count.sqrt()
    mean_error += (error - mean_error) / (count + 10)
    following = adaptation[:, CENTRE] - rate * root * mean_error
    average += (following - average) / (root * root.sqrt())
    is_on = rate != 0
    log_step_size.copy_(following.where(is_on, log_step_size))
    for k, value in ((COUNT, count), (ERROR, mean_error), (AVERAGE, average)):
        adaptation[:, k] = value.where(is_on, adaptation[:, k])


def transition(
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
) -> None:
    accepted, nonfinite, log_ratio = decide(
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
    if mh and adaptation is not None:
        acceptance = log_ratio.exp().clamp(max=1)
        is_joint = log_step_size.shape[0] == 1 < phi.shape[0]
        _adapt(log_step_size, adaptation, acceptance.mean(0, keepdim=True) if is_joint else acceptance)
    next_proposal, next_rng = propose(phi, grad, log_step_size.exp(), rng, noise)
    proposal.copy_(next_proposal)
    rng.copy_(next_rng)
