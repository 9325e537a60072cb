"""Amortized Langevin dynamics, one step at a time, for any differentiable potential.

The chain moves `phi`, for instance the last layer of an encoder, so that exp(-V(phi)) is its target; latent
variables are read off the encoder. Taniguchi et al., 2022 (arXiv:2209.07036), Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from lae_fast import checks, ops
from lae_fast.isolation import differentiable, exact, savable
from lae_fast.ops.torch_private import version
from lae_fast.sampling.acceptance import acceptance_rate

Potential = Callable[[Tensor], Tensor]
R = TypeVar("R")


class ALDState(NamedTuple):
    """The state that the next step needs. It belongs to the potential that made it: see `ald_init`.

    One chain: phi of any shape. C chains: phi [C, ...], one chain a row.

    Attributes:
        phi: detached, float32 or float64.
        potential: V(phi), [] or [C], float64, nats; in grad mode it has a graph, which leads to all inputs of V except phi. To
            copy, plot or keep states, take the steps under `torch.no_grad()`.
        grad: grad V(phi), like phi; None after a step with evaluate=False.
        rng: int64 [3]: seed, step, scratch.
        step_size: eta of the last step, [1] or [C], float64.

    Example:
        >>> with torch.no_grad():
        ...     state = lae_fast.ald_init(lambda phi: 0.5 * phi.square().sum(), torch.ones(3), step_size=0.1)
        >>> state.potential.numpy(), state.grad.tolist()
        (array(1.5), [1.0, 1.0, 1.0])
    """

    phi: Tensor
    potential: Tensor
    grad: Tensor | None
    rng: Tensor
    step_size: Tensor | None


class ALDInfo(NamedTuple):
    """Facts about one step, for people; all on the device, [] for one chain or [C].

    Attributes:
        is_accepted: bool.
        log_alpha: log of the Metropolis-Hastings ratio, float64; -inf for a proposal that could not be accepted.
        acceptance_rate: min(1, alpha), the probability of the acceptance, float64.
        is_nonfinite: bool: rejected because energy, gradient or proposal was not finite.

    Example:
        >>> def potential(phi):
        ...     return 0.5 * phi.square().sum()
        >>> state, info = lae_fast.ald_step(potential, lae_fast.ald_init(potential, torch.ones(3)), step_size=1e-8)
        >>> info.is_accepted.item(), round(info.acceptance_rate.item(), 2)  # nearly every step is, that is as short
        (True, 1.0)
    """

    is_accepted: Tensor
    log_alpha: Tensor
    acceptance_rate: Tensor
    is_nonfinite: Tensor


def _rows(t: Tensor, n_chains: int | None) -> Tensor:
    return t.reshape(1 if n_chains is None else n_chains, -1)


def value_at(name: str, function: Callable[..., R], place: Tensor, *others: Tensor) -> R:
    """What a function of the user's returns.

    Raises:
        ValueError: it has changed the place in place: the chain that is there, a caller's images.
    """
    before = version(place)
    value = function(place, *others)
    if version(place) != before:
        raise ValueError(f"{name} has changed its argument in place; expected a function: clone it first")
    return value


def evaluate_potential(
    potential: Potential, phi: Tensor, n_chains: int | None, mh: bool = True
) -> tuple[Tensor, Tensor]:
    """V(phi), float64 [] or [C], nats, and grad V(phi), like phi; phi is [C, ...], or any shape if n_chains is None.

    Args:
        mh: whether V will decide.

    Raises:
        ValueError: V does not depend on phi, changes phi in place, is complex, is in half precision though it will decide, or has
            another shape than [], [n] or, with n_chains, [C], [C, n].

    Example:
        >>> from lae_fast import sampling
        >>> v, grad = sampling.evaluate_potential(lambda phi: phi.square().sum(1), torch.ones(2, 3), n_chains=2)
        >>> v.tolist(), grad.unique().tolist()
        ([3.0, 3.0], [2.0])
    """
    keep_graph = torch.is_grad_enabled()
    with differentiable():
        leaf = savable(phi.detach()).requires_grad_()
        energy = value_at("the potential", potential, leaf)
        if not isinstance(energy, Tensor) or not energy.requires_grad:
            raise _independent(energy)
        if not energy.is_floating_point():  # complex
            raise ValueError(f"potential(phi) returned {checks.describe(energy)}; expected floating point")
        if mh:
            check_precision("potential(phi)", energy)
        n_axes = 0 if n_chains is None else 1
        if energy.dim() not in (n_axes, n_axes + 1) or (n_axes and energy.shape[0] != n_chains):
            wanted = "[] or [n]" if n_chains is None else f"[{n_chains}] or [{n_chains}, n]"
            raise ValueError(f"potential(phi) returned shape {list(energy.shape)}; expected {wanted}")
        # from the energies themselves: their sum in float64 would only lengthen the graph
        ones = torch.ones_like(energy)
        (grad,) = torch.autograd.grad(energy, leaf, ones, retain_graph=keep_graph, allow_unused=True)
    if grad is None:  # it requires one for a parameter
        raise _independent(energy)
    # a copy, as chains update the total in place, and the energies may be a view of phi
    total = (energy if keep_graph else energy.detach()).to(torch.float64, copy=True)
    return total if total.dim() == n_axes else total.sum(-1), grad.to_dense() if grad.is_sparse else grad


def _independent(energy: object) -> ValueError:
    form = checks.describe(energy)
    return ValueError(f"potential(phi) is {form}, which does not depend on phi; expected a tensor that does")


def check_precision(name: str, energy: Tensor) -> None:
    """Raise a ValueError if an energy that decides is in half precision: near 1,000 nats bfloat16 counts in steps of 4."""
    if energy.dtype not in checks.FLOATS:
        raise ValueError(
            f"{name} returned {checks.describe(energy)}; expected float32 or float64, as it decides about acceptance: compute it "
            "from network outputs in float32, output.float(), also under autocast, or take mh=False"
        )


def check_start(energy: Tensor, grad: Tensor) -> None:
    """Raise a ValueError unless a chain may start where its energy is `energy`, with gradient `grad`."""
    for name, value in (("energy", energy), ("gradient of the energy", grad)):
        if not value.isfinite().all():
            total = value.detach().sum().item()
            raise ValueError(f"the {name} is {total} where the chains start; expected finite values")


def check_function(energy: Tensor, again: Tensor) -> None:
    """Raise a ValueError unless two evaluations at the same place, of the same shape, agree."""
    # Sums in another order, as on a GPU, differ by far less.
    if not torch.allclose(energy, again, rtol=1e-5, atol=1e-6, equal_nan=True):
        i = (energy - again).abs().argmax()
        raise ValueError(
            f"the potential is not a function: two evaluations where the chains start gave {energy.flatten()[i].item():.6g} and "
            f"{again.flatten()[i].item():.6g} nats; expected the same (Dropout needs eval mode, and so does BatchNorm, which makes "
            "one datapoint's potential depend on others; a potential of fresh minibatches has no decisions: mh=False)"
        )


def check_alone(evaluate: Callable[[Tensor], Tensor], start: Tensor, energy: Tensor) -> None:
    """Raise a ValueError unless V of a chain is a function, and one of this chain alone: half of the chains are evaluated again,
    beside others that have moved.

    Args:
        evaluate: chains [C, ...] -> V [C].
        start, energy: chains [C, ...], and their V [C].
    """
    half = (len(start) + 1) // 2
    rows = torch.cat((start[:half], start[half:] + 1))
    check_function(energy[:half], evaluate(rows)[:half])


def _as_step_size(step_size: float | Tensor | None, phi: Tensor, n_chains: int | None) -> Tensor | None:
    """[1] or [C], float64, on phi's device."""
    if step_size is None:
        return None
    step_size = checks.step_sizes("step_size", step_size, n_chains or 1, phi.device).to(phi.device)
    if _is_cheap_to_look_at(phi) and not ((step_size >= 0) & step_size.isfinite()).all():
        raise ValueError(f"step_size is {step_size.tolist()}; expected finite numbers >= 0")
    return step_size


def _is_cheap_to_look_at(t: Tensor) -> bool:
    return t.device.type == "cpu" and not torch.compiler.is_compiling()


def ald_init(
    potential: Potential,
    phi: Tensor | ALDState,
    step_size: float | Tensor | None = None,
    *,
    mh: bool = True,
    n_chains: int | None = None,
    generator: torch.Generator | None = None,
) -> ALDState:
    """Evaluate `potential` at `phi` and start a chain there.

    A state holds V and grad V of the potential that made it. After a new minibatch, or an optimizer step
    on anything that V depends on, V and grad V are stale and the acceptance ratio would be wrong: call
    `ald_init(potential, state)`, which evaluates both again and keeps phi, random stream and step size.

    Args:
        potential: V as in `ald_step`.
        phi: the start, of any shape, or [C, ...] with `n_chains=C`, copied; or the state to continue from.
        step_size: eta, a number or a tensor [] or [C], copied; the state keeps it for steps that do not name one.
        mh: whether decisions will be made. Then V must be a function of phi; at a start from phi (not from a state), on
            a CPU, V is evaluated twice to see whether it is.
        n_chains: the number of chains along phi's first axis; None for one chain.
        generator: decides the chain's seed; default: the generator that `torch.manual_seed` sets.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: phi is not float32 or float64, the step size is not finite and >= 0, V has the wrong shape, does not depend on
            phi or changes it in place, with mh is in half precision, n_chains or generator stand beside a state that has its own or
            (on the CPU, where the check is cheap) V or its gradient is not finite at phi, or V of a chain is not a function of this
            chain alone. On a GPU a chain that is not finite rejects every step.

    Example:
        >>> def potential(phi):  # [D] -> [], nats: a standard normal
        ...     return 0.5 * phi.square().sum()
        >>> state = lae_fast.ald_init(potential, torch.ones(3), step_size=0.1)
        >>> state.potential.item(), state.grad
        (1.5, tensor([1., 1., 1.]))
    """
    checks.function("potential", potential)
    checks.flag("mh", mh)
    if not isinstance(phi, ALDState):
        checks.tensor("phi", phi)
        if n_chains is not None:
            checks.count("n_chains", n_chains)
            if phi.dim() == 0 or phi.shape[0] != n_chains:
                raise ValueError(
                    f"phi is {list(phi.shape)} for n_chains={n_chains}; expected [{n_chains}, ...]"
                )
        rng = ops.make_rng(phi.device, checks.generator("generator", generator, phi.device))
        start = phi.detach().clone()
    else:
        n_chains = _chains_of(phi, n_chains, generator)
        rng, start = phi.rng, phi.phi
        step_size = phi.step_size if step_size is None else step_size
    step_size = _as_step_size(step_size, start, n_chains)
    with exact():
        energy, grad = evaluate_potential(potential, start, n_chains, mh)
        grad = grad.clone()  # a function of the user's may need its own again
        if _is_cheap_to_look_at(start):
            check_start(energy, grad)
            if mh and not isinstance(phi, ALDState):
                with torch.no_grad():
                    check_alone(
                        lambda rows: evaluate_potential(potential, rows.view_as(start), n_chains)[0].view(-1),
                        _rows(start, n_chains),
                        energy.detach().view(-1),
                    )
    return ALDState(start, energy, grad, rng, step_size)


def _chains_of(state: ALDState, n_chains: int | None, generator: torch.Generator | None) -> int | None:
    """The number of chains of a state; None for one chain without an axis of its own."""
    for name, value in zip(state._fields[:4], state, strict=False):
        if name == "grad" and value is None:
            continue
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_nested:
            raise TypeError(
                f"the state's {name} is {checks.describe(value)}; expected a tensor, as ald_init makes it"
            )
    grad_shape = state.phi.shape if state.grad is None else state.grad.shape
    if grad_shape != state.phi.shape or state.potential.dim() > 1:
        raise ValueError(
            f"the state's phi is {list(state.phi.shape)}, its grad {list(grad_shape)}, its potential "
            f"{list(state.potential.shape)}; expected shapes as ald_init makes them"
        )
    own = state.potential.shape[0] if state.potential.dim() else None
    if n_chains is not None and checks.count("n_chains", n_chains) != own:
        raise ValueError(
            f"n_chains is {n_chains} beside a state of {own or 'one chain'}; expected None, or {own}"
        )
    if generator is not None:
        raise ValueError(
            "generator is given beside a state, which has a random stream of its own; expected None"
        )
    return own


def ald_step(
    potential: Potential,
    state: ALDState | Tensor,
    step_size: float | Tensor | None = None,
    *,
    mh: bool = True,
    evaluate: bool = True,
    n_chains: int | None = None,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    uniform: Tensor | None = None,
) -> tuple[ALDState, ALDInfo]:
    """One step of amortized Langevin dynamics (LAE paper, eq. 7), with one evaluation of the potential (in grad mode one more, below).

        phi' = phi - eta grad V(phi) + sqrt(2 eta) eps,    eps ~ N(0, I)
        accept with probability min(1, exp(V(phi) - V(phi') + log q(phi|phi') - log q(phi'|phi)))

    It targets exp(-V); with `mh=False` up to a bias of order eta. eta is the paper's step size: drift eta,
    noise variance 2 eta, V summed over the batch (so TFP's step size is twice this one). On a GPU there is no host
    synchronisation. V is evaluated without autocast and without rounded float32 products, whatever the program has set.

    To train what V depends on, take the steps under `torch.no_grad()`, and differentiate `potential(state.phi)` at the
    states that count: one evaluation more for each of them, and no graph of what was rejected. Or take the steps in grad
    mode: then `state.potential` is differentiable in all inputs of V except phi, and its graph is that of the current
    state alone, so that `backward()` may free it at each step. V is evaluated once more for that where a chain rejects; on a
    GPU, which must not wait for the decisions, at each step.

    Args:
        potential: maps phi to energies in nats: one chain, [] or [n] (per example; summed here in float64,
            which is exact enough for any n, whereas a float32 scalar near 1e5 is only good to 1e-2);
            C chains, [C] or [C, n].
        state: the state after the last step, or phi itself (then `ald_init` runs first).
        step_size: eta >= 0, a number or a tensor [] or [C]; default: the state's step size.
        mh: Metropolis-Hastings accept or reject. False accepts every finite proposal.
        evaluate: whether V is evaluated at the new state. Without decisions the last step before a new minibatch can do without:
            T steps are then T evaluations, `ald_init` included, and not T + 1. Such a state has a V of NaN and no gradient, and
            only `ald_init` goes on from it.
        n_chains, generator: as in `ald_init`, when `state` is phi.
        noise, uniform: pre-drawn eps (like phi) and u ([] or [C], float64 in (0, 1]), for parity tests.

    Returns:
        The new state, and facts about the step.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: no step size is known, the step size is negative, shapes, types or devices do not fit, V does not depend on
            phi or changes it in place, a decision is to be made without evaluation or from half precision, or V was not evaluated at
            the state.

    Example:
        >>> def potential(phi):  # [C, D] -> [C], nats: C chains, a standard normal
        ...     return 0.5 * phi.square().sum(1)
        >>> with torch.no_grad():  # no graphs: nobody trains the potential
        ...     state = lae_fast.ald_init(potential, torch.zeros(4, 3), step_size=0.1, n_chains=4)
        ...     for _ in range(100):
        ...         state, info = lae_fast.ald_step(potential, state)
        >>> state.phi.shape, info.is_accepted.shape
        (torch.Size([4, 3]), torch.Size([4]))
    """
    checks.function("potential", potential)
    if checks.flag("mh", mh) and not checks.flag("evaluate", evaluate):
        raise ValueError(
            "evaluate is False with mh=True; expected mh=False: a decision takes V at the proposal"
        )
    if isinstance(state, ALDState):
        n_chains = _chains_of(state, n_chains, generator)
    else:
        state = ald_init(potential, state, mh=mh, n_chains=n_chains, generator=generator)
    if state.grad is None:
        raise ValueError("V was not evaluated at the state; expected ald_init(potential, state) first")
    eta = state.step_size if step_size is None else _as_step_size(step_size, state.phi, n_chains)
    if eta is None:
        raise ValueError("step_size is None; expected one here or in ald_init")
    for name, given, like in (("noise", noise, state.phi), ("uniform", uniform, state.potential)):
        if given is not None:
            checks.tensor(
                name, given, ", ".join(map(str, like.shape)), dtypes=(like.dtype,), device=like.device
            )
    rows, energy = _rows(state.phi, n_chains), state.potential.detach().reshape(-1)
    noise = None if noise is None else _rows(noise, n_chains)
    uniform = None if uniform is None else uniform.reshape(-1)

    proposal, rng = ops.propose(rows, _rows(state.grad, n_chains), eta, state.rng, noise)
    if not evaluate:
        return _moved(state, proposal, rng, eta)
    with exact():
        new_potential, new_grad = evaluate_potential(
            potential, proposal.reshape(state.phi.shape), n_chains, mh
        )
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
    answers = accepted, log_alpha, acceptance_rate(log_alpha), nonfinite
    info = ALDInfo(*(t.reshape(state.potential.shape) for t in answers))
    selected = _selected(potential, phi, n_chains, new_potential, state.potential, info.is_accepted)
    return ALDState(phi, selected, grad.reshape(state.phi.shape), rng, eta), info


def _moved(state: ALDState, proposal: Tensor, rng: Tensor, eta: Tensor) -> tuple[ALDState, ALDInfo]:
    """The state [C, D] that an unadjusted step has proposed, where it is finite; nobody has evaluated it."""
    is_finite = proposal.isfinite().all(1)  # [C]
    phi = torch.where(is_finite[:, None], proposal, _rows(state.phi, len(proposal)))
    is_accepted = is_finite.reshape(state.potential.shape)
    log_alpha = torch.zeros_like(state.potential, requires_grad=False).where(is_accepted, -math.inf)
    info = ALDInfo(is_accepted, log_alpha, acceptance_rate(log_alpha), ~is_accepted)
    unknown = torch.full_like(state.potential, math.nan, requires_grad=False)
    return ALDState(phi.reshape(state.phi.shape), unknown, None, rng, eta), info


def _selected(
    potential: Potential, phi: Tensor, n_chains: int | None, new: Tensor, old: Tensor, is_accepted: Tensor
) -> Tensor:
    """V at the state phi that was selected, [] or [C], with its graph."""
    if not torch.is_grad_enabled():
        return torch.where(is_accepted, new, old)
    if _is_cheap_to_look_at(phi) and is_accepted.all():
        return new
    # A select of both would hold the graphs of all states so far, and the old one may have been freed.
    with exact():
        return evaluate_potential(potential, phi, n_chains, mh=False)[0]  # the decision is made
