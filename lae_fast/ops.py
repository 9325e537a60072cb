"""The fused ops, checked and typed; no other file says `torch.ops.lae_fast`. What serves them: _library.py.

Shapes and types, throughout:

    C chains of D elements, one chain a row; S step sizes: 1 (shared by all chains) or C
    phi, grad, proposal, proposal_grad, noise   [C, D]  float32 or float64, the same for all
    potential, proposal_potential, log_alpha    [C]     float64, in nats
    step_size, log_step_size                    [S]     float64, eta of the proposal below
    uniform                                     [C]     float64 in (0, 1]
    rng                                         [3]     int64: seed, step, ticket (scratch, 0 between launches)
    adaptation                                  [S, K]  float64, K = 2 or 6: how step sizes adapt, below
    counters                                    [C, 2]  int64: rejections, non-finite proposals
    is_accepted, is_nonfinite                   [C]     bool

One Langevin step targets exp(-V):

    propose   phi' = phi - eta grad V(phi) + sqrt(2 eta) eps,   eps ~ N(0, I)
    decide    log alpha = V(phi) - V(phi') + 1/4 sum (g + g') (2 (phi' - phi) + eta (g - g')),
              the Metropolis-Hastings ratio of the two Gaussian proposals; accept if log u <= log alpha

`mh=False` accepts every finite proposal. V' = +inf is an ordinary rejection; V' = NaN or -inf, a non-finite
proposal or gradient, or a NaN ratio is a rejection counted apart. Rejected values never enter the state.

Step sizes adapt with `mh` to the acceptance min(1, alpha) of their chain, or to the mean over all chains if
these share one. The row `adaptation` holds, by its columns: a target, a rate (0: the step size stays); that is

    2   Robbins and Monro: log eta += rate (acceptance - target), for as long as the chain runs
    6   dual averaging (Hoffman and Gelman, 2014, section 3.2.1) with gamma = 1 / rate, t0 = 10, kappa = 3/4; its
        state: count, mean error, average of log eta (what to keep after warm-up), and the centre mu

Noise is a pure function of (seed, step, chain, element): Philox4x32-10 with the seed as key and counter
(element / 4, chain, step, purpose), normals by Box-Muller. Decisions at step s use the uniforms of step s,
proposals the normals of step s, and a proposal advances the step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lae_fast import (
    _ext,
    _library,  # noqa: F401 - defines what torch.ops.lae_fast holds
)
from lae_fast._reference import ACCEPT, INTEGERS, NORMALS, UNIFORMS
from lae_fast._reference_dense import BERNOULLI, GAUSSIAN, LOGISTIC


def is_compiled(device: torch.device) -> bool:
    """Whether compiled kernels serve this device, not plain PyTorch."""
    return device.type in _ext.backends and _ext.backends[device.type].is_compiled


def _describe(t: Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)} on {t.device}"


def _expect(op: str, phi: Tensor, step_size: Tensor, rng: Tensor, **arguments: Tensor | None) -> None:
    """Check every argument of one op against phi; the first misfit is named with what was expected."""
    if phi.dim() != 2 or phi.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{op}: phi is {_describe(phi)}; expected float32 or float64 [C, D]")
    n_chains = phi.shape[0]
    n_step_sizes = 1 if step_size.shape == (1,) else n_chains
    f64 = torch.float64
    expected = {
        "potential": ((n_chains,), f64),
        "proposal_potential": ((n_chains,), f64),
        "log_alpha": ((n_chains,), f64),
        "uniform": ((n_chains,), f64),
        "is_accepted": ((n_chains,), torch.bool),
        "counters": ((n_chains, 2), torch.int64),
        "adaptation": ((n_step_sizes, "2 or 6"), f64),
    }
    like_phi, device = (phi.shape, phi.dtype), phi.device
    arguments |= {"step_size": step_size, "rng": rng}
    expected |= {"step_size": ((n_step_sizes,), f64), "rng": ((3,), torch.int64)}
    for name, t in arguments.items():
        if t is None:
            continue
        shape, dtype = expected.get(name, like_phi)
        if t.shape == shape and t.dtype == dtype and t.device == device:
            continue
        fits = t.dim() == len(shape) and all(
            n in (2, 6) if e == "2 or 6" else n == e for e, n in zip(shape, t.shape, strict=True)
        )
        if not fits or t.dtype != dtype or t.device != phi.device:
            sizes = ", ".join(str(e) for e in shape)
            wanted = f"{str(dtype).removeprefix('torch.')} [{sizes}] on {phi.device}"
            raise ValueError(f"{op}: {name} is {_describe(t)}; expected {wanted}")


def propose(
    phi: Tensor, grad: Tensor, step_size: Tensor, rng: Tensor, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The Langevin proposal [C, D], and the rng [3] advanced by one step.

    Equivalent PyTorch: `phi - eta * grad + (2 * eta).sqrt() * randn_like(phi)`. `noise` replaces the draw.
    """
    _expect("propose", phi, step_size, rng, grad=grad, noise=noise)
    noise = None if noise is None else noise.contiguous()
    return torch.ops.lae_fast.propose(
        phi.contiguous(), grad.contiguous(), step_size.contiguous(), rng.contiguous(), noise
    )


def decide(
    phi: Tensor,
    proposal: Tensor,
    potential: Tensor,
    proposal_potential: Tensor,
    grad: Tensor,
    proposal_grad: Tensor,
    step_size: Tensor,
    rng: Tensor,
    mh: bool = True,
    uniform: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The Metropolis-Hastings decision: is_accepted [C], is_nonfinite [C], log_alpha [C].

    log_alpha is -inf for a proposal that cannot be accepted, and 0 for any other if `mh` is False.
    """
    matrices = {"proposal": proposal, "grad": grad, "proposal_grad": proposal_grad}
    rows = {"potential": potential, "proposal_potential": proposal_potential, "uniform": uniform}
    _expect("decide", phi, step_size, rng, **matrices, **rows)
    uniform = None if uniform is None else uniform.contiguous()
    tensors = (phi, proposal, potential, proposal_potential, grad, proposal_grad, step_size, rng)
    return torch.ops.lae_fast.decide(*(t.contiguous() for t in tensors), mh, uniform)


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
    *,
    adaptation: Tensor | None,
    proposal_potential: Tensor,
    proposal_grad: Tensor,
    mh: bool = True,
    noise: Tensor | None = None,
    uniform: Tensor | None = None,
) -> None:
    """One whole inner step, in place: decide, select, adapt the step size, propose anew, advance the rng.

    All positional arguments are updated; `proposal` holds phi' on entry and the next proposal on return.
    `adaptation` is updated too; None: the step sizes stay. On a GPU this is one launch (three where a shared
    step size waits for all decisions) and no host synchronisation.
    """
    state = (phi, potential, grad, proposal, rng, log_step_size, counters, is_accepted, log_alpha, adaptation)
    _expect(
        "transition",
        phi,
        log_step_size,
        rng,
        grad=grad,
        proposal=proposal,
        proposal_grad=proposal_grad,
        noise=noise,
        potential=potential,
        proposal_potential=proposal_potential,
        counters=counters,
        is_accepted=is_accepted,
        log_alpha=log_alpha,
        adaptation=adaptation,
        uniform=uniform,
    )
    packed = [None if t is None else t.contiguous() for t in state]
    inputs = [t.contiguous() for t in (proposal_potential, proposal_grad)]
    optional = [None if t is None else t.contiguous() for t in (noise, uniform)]
    torch.ops.lae_fast.transition(*packed, *inputs, mh, *optional)
    for original, updated in zip(state, packed, strict=True):
        if updated is not original:
            original.copy_(updated)


# `transition` for whoever owns the state: contiguous tensors that fit, in the schema's order. The compiled kernels
# check them all the same; checking here too would take as long as a small transition.
transition_unchecked = torch.ops.lae_fast.transition


def noise(rng: Tensor, n_chains: int, n_elements: int, dtype: torch.dtype, kind: int = NORMALS) -> Tensor:
    """The noise [C, n] that a proposal at this rng uses; `kind` one of the four constants below.

    NORMALS: standard normals. UNIFORMS: the uniforms they are made of. INTEGERS: the 32-bit words these
    are made of, int64. ACCEPT: the uniforms of the decisions, [C, 1].
    """
    if kind not in (INTEGERS, UNIFORMS, NORMALS, ACCEPT) or dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"noise: kind is {kind} and dtype {dtype}; expected one of the four, float32 or float64"
        )
    dtype = {INTEGERS: torch.int64, ACCEPT: torch.float64}.get(kind, dtype)
    out = torch.empty(n_chains, 1 if kind == ACCEPT else n_elements, dtype=dtype, device=rng.device)
    torch.ops.lae_fast.noise(out, rng, kind)
    return out


def make_rng(device: torch.device | str, generator: torch.Generator | None = None) -> Tensor:
    """A fresh rng [3], its seed drawn from `generator` (default: the one `torch.manual_seed` sets).

    The draw happens on `device`, without a host synchronisation; a generator must live there too.
    """
    device = torch.device(device)
    if generator is not None and generator.device.type != device.type:
        raise ValueError(f"generator is on {generator.device}; expected one on {device}, where the chain is")
    seed = torch.randint(2**63 - 1, (1,), device=device, generator=generator)
    return torch.cat((seed, seed.new_zeros(2)))


def energy(
    output: Tensor, x: Tensor, kind: int, log_scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """-log p(x|z) and its derivatives in one pass over a decoder's output.

    Args:
        output: [..., n, nx], float32 or float64: logits (BERNOULLI) or means (GAUSSIAN, LOGISTIC).
        x: images [n, nx] of the same type; in [0, 1] for BERNOULLI, k / 255 for LOGISTIC.
        kind: BERNOULLI, GAUSSIAN or LOGISTIC.
        log_scale: [], of that type: the logarithm of the last two's scale; None for BERNOULLI.

    Returns:
        The energies [..., n], float64, nats summed over pixels (float64 sums; a Gaussian's constant included); their
        derivative by the output [..., n, nx]; and by log_scale [..., n], float64 (empty for BERNOULLI). The first is
        differentiable in output and log_scale, once. Equivalent PyTorch for BERNOULLI:
        `binary_cross_entropy_with_logits(output, x, reduction="none").sum(-1)` and `sigmoid(output) - x`.

    Raises:
        ValueError: shapes, types or devices do not fit, or x requires a gradient.
    """
    if output.dim() < 2 or output.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"energy: output is {_describe(output)}; expected float32 or float64 [..., n, nx]")
    if x.shape != output.shape[-2:] or x.dtype != output.dtype or x.device != output.device:
        wanted = _describe(output.flatten(0, -3)[0] if output.dim() > 2 else output)
        raise ValueError(f"energy: x is {_describe(x)}; expected {wanted}, as the output")
    if kind not in (BERNOULLI, GAUSSIAN, LOGISTIC):
        raise ValueError(f"energy: kind is {kind}; expected BERNOULLI, GAUSSIAN or LOGISTIC")
    if (kind == BERNOULLI) != (log_scale is None):
        raise ValueError("energy: log_scale belongs to GAUSSIAN and LOGISTIC, and only there")
    if log_scale is not None and (
        log_scale.shape != () or log_scale.dtype != output.dtype or log_scale.device != output.device
    ):
        raise ValueError(f"energy: log_scale is {_describe(log_scale)}; expected [] like {_describe(output)}")
    if x.requires_grad:
        raise ValueError(
            "energy: x requires a gradient; expected none, energies are differentiated by the output"
        )
    rows = output.reshape(-1, output.shape[-1]).contiguous()
    energies, derivative, slope = torch.ops.lae_fast.energy(rows, x.contiguous(), kind, log_scale)
    shape = output.shape[:-1]
    return (
        energies.reshape(shape),
        derivative.reshape(output.shape),
        slope.reshape(shape if slope.numel() else (0,)),
    )


# `energy` for rows [R, nx] of an output that fit, contiguous, R a multiple of n. The derivative takes the output's place;
# returned are the energies and their derivatives by log_scale. Outside autograd.
energy_ = torch.ops.lae_fast.energy_

# The ops between a fully connected network's products, for dense.py, which owns what it passes: contiguous tensors
# that fit. y [n, d] becomes (y - mean) rstd, row by row; returned are relu of that times weight plus bias, and rstd [n].
norm_relu = torch.ops.lae_fast.norm_relu
# The gradient of that output [n, d] becomes the gradient of y; returned are [3, d], summed over the n rows: the
# gradients of weight and bias, and the sum of what grad has become.
norm_relu_backward = torch.ops.lae_fast.norm_relu_backward
# `latest` keeps its values if is_accepted [1], else takes those of `previous`: tensor by tensor, by selection.
keep = torch.ops.lae_fast.keep
in_unit_range = (
    torch.ops.lae_fast.in_unit_range
)  # [n, nx] -> bool; for tensors on the CPU, where looking is free


__all__ = [
    "ACCEPT",
    "BERNOULLI",
    "GAUSSIAN",
    "INTEGERS",
    "LOGISTIC",
    "NORMALS",
    "UNIFORMS",
    "decide",
    "energy",
    "energy_",
    "in_unit_range",
    "keep",
    "make_rng",
    "noise",
    "norm_relu",
    "norm_relu_backward",
    "propose",
    "transition",
    "transition_unchecked",
]
