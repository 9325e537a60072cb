"""The fused Langevin ops: schemas, fake kernels, validation, thin typed functions.

The only file that says `torch.ops`. Each op has one schema and three implementations: the reference
(`_reference.py`), and compiled kernels for CPU and CUDA that win as soon as their library is loaded.

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

from lae_fast import _ext, _reference
from lae_fast._reference import ACCEPT, INTEGERS, NORMALS, UNIFORMS

_SCHEMAS = {
    "propose": "(Tensor phi, Tensor grad, Tensor step_size, Tensor rng, Tensor? noise=None) -> (Tensor, Tensor)",
    "decide": "(Tensor phi, Tensor proposal, Tensor potential, Tensor proposal_potential, Tensor grad, "
    "Tensor proposal_grad, Tensor step_size, Tensor rng, bool mh, Tensor? uniform=None) "
    "-> (Tensor, Tensor, Tensor)",
    "transition": "(Tensor(a!) phi, Tensor(b!) potential, Tensor(c!) grad, Tensor(d!) proposal, Tensor(e!) rng, "
    "Tensor(f!) log_step_size, Tensor(g!) counters, Tensor(h!) is_accepted, Tensor(i!) log_alpha, "
    "Tensor(j!)? adaptation, Tensor proposal_potential, Tensor proposal_grad, bool mh, Tensor? noise=None, "
    "Tensor? uniform=None) -> ()",
    "noise": "(Tensor(a!) out, Tensor rng, int kind) -> ()",
}


def _reference_kernel(name: str):  # noqa: ANN202 - a closure for the dispatcher
    implementation = getattr(_reference, name)

    def kernel(*args):  # noqa: ANN002, ANN202
        _ext.announce_reference(args[0].device.type)
        return implementation(*args)

    return kernel


_library = torch.library.Library("lae_fast", "DEF")
for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema)
    _library.impl(_name, _reference_kernel(_name), "CompositeExplicitAutograd")
_ext.load_all()


@torch.library.register_fake("lae_fast::propose", lib=_library)
def _(phi, grad, step_size, rng, noise=None):  # noqa: ANN001, ANN202
    return torch.empty_like(phi), torch.empty_like(rng)


@torch.library.register_fake("lae_fast::decide", lib=_library)
def _(phi, proposal, potential, *rest, **options):  # noqa: ANN001, ANN002, ANN003, ANN202
    flags = potential.new_empty(potential.shape, dtype=torch.bool)
    return flags, torch.empty_like(flags), torch.empty_like(potential)


@torch.library.register_fake("lae_fast::transition", lib=_library)
def _(*args, **options) -> None:  # noqa: ANN002, ANN003
    pass


@torch.library.register_fake("lae_fast::noise", lib=_library)
def _(out, rng, kind) -> None:  # noqa: ANN001
    pass


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


__all__ = [
    "ACCEPT",
    "INTEGERS",
    "NORMALS",
    "UNIFORMS",
    "decide",
    "make_rng",
    "noise",
    "propose",
    "transition",
    "transition_unchecked",
]
