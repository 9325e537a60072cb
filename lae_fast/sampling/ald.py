"""Amortized Langevin dynamics, one step at a time, for any differentiable potential.

The chain moves `phi`, for instance the last layer of an encoder, so that exp(-V(phi)) is its target; latent
variables are read off the encoder. Taniguchi et al., 2022 (arXiv:2209.07036), Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lae_fast import ops
from lae_fast.sampling.acceptance import acceptance_rate

Potential = Callable[[Tensor], Tensor]


class ALDState(NamedTuple):
    """The state that the next step needs. It belongs to the potential that made it: see `ald_init`.

    One chain: phi of any shape. C chains: phi [C, ...], one chain a row.
    """

    phi: Tensor  # detached, float32 or float64
    potential: Tensor  # [] or [C], float64, nats; attached to all inputs of V except phi
    grad: Tensor  # like phi: grad V(phi)
    rng: Tensor  # [3] int64: seed, step, scratch
    step_size: Tensor | None  # [1] or [C], float64: eta of the last step


class ALDInfo(NamedTuple):
    """Facts about one step, for people; all on the device, [] for one chain or [C]."""

    is_accepted: Tensor  # bool
    log_alpha: Tensor  # float64; -inf for a proposal that could not be accepted
    acceptance_rate: Tensor  # float64: min(1, alpha), the probability of the acceptance
    is_nonfinite: Tensor  # bool: rejected because energy, gradient or proposal was not finite


def _rows(t: Tensor, n_chains: int | None) -> Tensor:
    return t.reshape(1 if n_chains is None else n_chains, -1)


def evaluate_potential(potential: Potential, phi: Tensor, n_chains: int | None) -> tuple[Tensor, Tensor]:
    """V(phi), float64 [] or [C], nats, and grad V(phi), like phi; phi is [C, ...], or any shape if n_chains is None.

    Raises:
        ValueError: V does not depend on phi, or has another shape than [], [n] or, with n_chains, [C], [C, n].
    """
    keep_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = phi.detach().requires_grad_()
        energy = potential(leaf)
        if not isinstance(energy, Tensor) or not energy.requires_grad:
            raise ValueError(f"potential(phi) returned {type(energy).__name__} that does not depend on phi")
        n_axes = 0 if n_chains is None else 1
        if energy.dim() not in (n_axes, n_axes + 1) or (n_axes and energy.shape[0] != n_chains):
            wanted = "[] or [n]" if n_chains is None else f"[{n_chains}] or [{n_chains}, n]"
            raise ValueError(f"potential(phi) returned shape {list(energy.shape)}; expected {wanted}")
        # from the energies themselves: their sum in float64 would only lengthen the graph
        (grad,) = torch.autograd.grad(energy, leaf, torch.ones_like(energy), retain_graph=keep_graph)
    # a copy, as chains update the total in place, and the energies may be a view of phi
    total = (energy if keep_graph else energy.detach()).to(torch.float64, copy=True)
    return total if total.dim() == n_axes else total.sum(-1), grad


def _as_step_size(step_size: float | Tensor | None, phi: Tensor) -> Tensor | None:
    if step_size is None:
        return None
    if not isinstance(step_size, Tensor):
        if not (0 <= step_size < math.inf):
            raise ValueError(f"step_size is {step_size}; expected a finite number >= 0")
        return torch.full((1,), step_size, dtype=torch.float64, device=phi.device)
    step_size = step_size.detach().to(phi.device, torch.float64).reshape(-1)
    if phi.device.type == "cpu" and not torch.compiler.is_compiling() and not (step_size >= 0).all():
        raise ValueError(f"step_size is {step_size.tolist()}; expected numbers >= 0")
    return step_size


def ald_init(
    potential: Potential,
    phi: Tensor | ALDState,
    step_size: float | Tensor | None = None,
    *,
    n_chains: int | None = None,
    generator: torch.Generator | None = None,
) -> ALDState:
    """Evaluate `potential` at `phi` and start a chain there.

    A state holds V and grad V of the potential that made it. After a new minibatch, or an optimizer step
    on anything that V depends on, V and grad V are stale and the acceptance ratio would be wrong: call
    `ald_init(potential, state)`, which evaluates both again and keeps phi, random stream and step size.

    Args:
        potential: V as in `ald_step`.
        phi: the start, of any shape, or [C, ...] with `n_chains=C`; or the state to continue from.
        step_size: eta, a number or a tensor [] or [C]; the state keeps it for steps that do not name one.
        n_chains: the number of chains along phi's first axis; None for one chain.
        generator: decides the chain's seed; default: the generator that `torch.manual_seed` sets.

    Raises:
        ValueError: phi is not float32 or float64, the step size is not finite and >= 0, V has the wrong shape or (on
            the CPU, where the check is cheap) is not finite at phi. On a GPU such a chain rejects every step as
            non-finite.
    """
    if isinstance(phi, ALDState):
        n_chains = phi.potential.shape[0] if phi.potential.dim() else None
        rng, start = phi.rng, phi.phi
        step_size = phi.step_size if step_size is None else step_size
    else:
        if not isinstance(phi, Tensor) or phi.dtype not in (torch.float32, torch.float64):
            given = phi.dtype if isinstance(phi, Tensor) else type(phi).__name__
            raise ValueError(f"phi is {given}; expected a float32 or float64 tensor")
        if n_chains is not None and (phi.dim() == 0 or phi.shape[0] != n_chains):
            raise ValueError(f"phi is {list(phi.shape)} for n_chains={n_chains}; expected [{n_chains}, ...]")
        rng, start = ops.make_rng(phi.device, generator), phi.detach()
    energy, grad = evaluate_potential(potential, start, n_chains)
    if start.device.type == "cpu" and not torch.compiler.is_compiling() and not energy.isfinite().all():
        raise ValueError(
            f"potential(phi) is {energy.detach().tolist()} where the chain starts; expected finite values"
        )
    return ALDState(start, energy, grad, rng, _as_step_size(step_size, start))


def ald_step(
    potential: Potential,
    state: ALDState | Tensor,
    step_size: float | Tensor | None = None,
    *,
    mh: bool = True,
    n_chains: int | None = None,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    uniform: Tensor | None = None,
) -> tuple[ALDState, ALDInfo]:
    """One step of amortized Langevin dynamics (LAE paper, eq. 7), with one evaluation of the potential.

        phi' = phi - eta grad V(phi) + sqrt(2 eta) eps,    eps ~ N(0, I)
        accept with probability min(1, exp(V(phi) - V(phi') + log q(phi|phi') - log q(phi'|phi)))

    It targets exp(-V); with `mh=False` up to a bias of order eta. eta is the paper's step size: drift eta,
    noise variance 2 eta, V summed over the batch (so TFP's step size is twice this one). There is no host
    synchronisation. All inputs of V except phi stay attached: `state.potential` is the differentiable select
    of the two energies, to be averaged over steps and differentiated. To sample without training, use
    `torch.no_grad()`: no graph is kept then.

    Args:
        potential: maps phi to energies in nats: one chain, [] or [n] (per example; summed here in float64,
            which is exact enough for any n, whereas a float32 scalar near 1e5 is only good to 1e-2);
            C chains, [C] or [C, n].
        state: the state after the last step, or phi itself (then `ald_init` runs first: one more evaluation).
        step_size: eta >= 0, a number or a tensor [] or [C]; default: the state's step size.
        mh: Metropolis-Hastings accept or reject. False accepts every finite proposal.
        n_chains, generator: as in `ald_init`, when `state` is phi.
        noise, uniform: pre-drawn eps (like phi) and u ([] or [C], float64 in (0, 1]), for parity tests.

    Returns:
        The new state, and facts about the step. A rejected proposal never enters the state. However, the
        proposal stays in the graph of `state.potential` with weight zero, and 0 * NaN is NaN: where V is
        infinite or NaN at a proposal, the gradients of V's parameters can be NaN too (`lae_fast.LAE`
        selects gradients instead, and does not have this limit).

    Raises:
        ValueError: no step size is known, the step size is negative, or shapes, types or devices do not fit.
    """
    if not isinstance(state, ALDState):
        state = ald_init(potential, state, n_chains=n_chains, generator=generator)
    n_chains = state.potential.shape[0] if state.potential.dim() else None
    eta = state.step_size if step_size is None else _as_step_size(step_size, state.phi)
    if eta is None:
        raise ValueError("step_size is None; expected one here or in ald_init")
    rows, energy = _rows(state.phi, n_chains), state.potential.detach().reshape(-1)
    noise = None if noise is None else _rows(noise, n_chains)
    uniform = None if uniform is None else uniform.reshape(-1)

    proposal, rng = ops.propose(rows, _rows(state.grad, n_chains), eta, state.rng, noise)
    new_potential, new_grad = evaluate_potential(potential, proposal.reshape(state.phi.shape), n_chains)
    accepted, nonfinite, log_alpha = ops.decide(
        rows,
        proposal,
        energy,
        new_potential.detach().reshape(-1),
        _rows(state.grad, n_chains),
        _rows(new_grad, n_chains),
        eta,
        rng,
        mh,
        uniform,
    )
    phi = torch.where(accepted[:, None], proposal, rows).reshape(state.phi.shape)
    grad = torch.where(accepted[:, None], _rows(new_grad, n_chains), _rows(state.grad, n_chains))
    info = (
        t.reshape(state.potential.shape) for t in (accepted, log_alpha, acceptance_rate(log_alpha), nonfinite)
    )
    info = ALDInfo(*info)
    selected = torch.where(info.is_accepted, new_potential, state.potential)
    return ALDState(phi, selected, grad.reshape(state.phi.shape), rng, eta), info
