"""Samples of p(z|x): amortized Langevin dynamics (Algorithm 1) and its datapoint-wise counterpart."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lae_fast import ops
from lae_fast.ops.columns import NONFINITE
from lae_fast.sampling.acceptance import acceptance_warning
from lae_fast.sampling.adaptation import averaged, dual_averaging
from lae_fast.sampling.ald import evaluate_potential
from lae_fast.sampling.chains import Chains
from lae_fast.sampling.plan import Plan, shows_plan
from lae_fast.sampling.samples import Samples


def _sample(
    potential: Callable[[Tensor], Tensor],
    start: Tensor,
    read: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    plan: Plan,
) -> tuple[Samples, Tensor]:
    """Warm up, freeze the step sizes, draw.

    Args:
        potential: rows [R, D] -> energies [R] or [R, m], nats.
        start: [R, D].
        read: rows [R, D] -> z [C, n, nz].
        shape: (C,) or (C, n): the axes that the R rows stand for.

    Returns:
        The samples, and the last rows [R, D].
    """
    from tqdm import tqdm

    n_rows = start.shape[0]
    log_step_size = plan.log_step_sizes(n_rows, start.device)
    chains = Chains(
        lambda rows: evaluate_potential(potential, rows, n_rows),
        start,
        log_step_size,
        ops.make_rng(start.device, plan.generator),
        mh=plan.mh,
        adaptation=dual_averaging(log_step_size, plan.target_acceptance) if plan.adapts else None,
    )
    for name, value in (("energy", chains.potential), ("gradient of the energy", chains.grad)):
        if not value.isfinite().all():
            total = value.sum().item()
            raise ValueError(f"the {name} is {total} where the chains start; expected finite values")
    z = read(start).new_empty(shape[0], plan.n_draws, *read(start).shape[1:])
    energies = chains.potential.new_empty(shape[0], plan.n_draws, *shape[1:])
    rates, accepted = torch.empty_like(energies), torch.zeros_like(chains.potential)

    def step() -> None:
        chains.step()
        accepted.add_(chains.acceptance_rate() if plan.mh else chains.is_accepted)

    run = plan.prepared(step, start.device)
    with tqdm(total=plan.n_steps, unit="step", disable=None if plan.progress else True) as bar:
        for t in range(plan.n_steps):
            if t == plan.n_warmup:
                chains.set_step_size(averaged(chains.adaptation) if plan.adapts else chains.log_step_size)
                chains.counters.zero_()
                accepted.zero_()
                run = plan.prepared(step, start.device)  # the chains' step sizes are another tensor now
            run()
            draw, rest = divmod(t - plan.n_warmup, plan.thin)
            if draw >= 0 and rest == plan.thin - 1:
                rates[:, draw] = accepted.div_(plan.thin).view(shape)
                accepted.zero_()
                z[:, draw], energies[:, draw] = read(chains.phi), chains.potential.view(shape)
            if not bar.disable and (t + 1) % 50 == 0:  # the loop waits for the device only here
                phase = "sampling" if draw >= 0 else "warm-up"
                bar.set_postfix_str(
                    f"{phase}, acceptance {chains.acceptance_rate().mean():.2f}", refresh=False
                )
                bar.update(50)
        bar.update(plan.n_steps - bar.n)
    message = None
    if plan.mh and plan.n_draws * plan.thin >= 100:  # the mean over a few steps says little about a chain
        message = acceptance_warning(rates.mean(1))
    elif not plan.mh and chains.counters.any():
        message = (
            f"{chains.counters.any(1).sum()} of {n_rows} unadjusted chains reached energies that are not finite: they have "
            "diverged; take a smaller step size"
        )
    if message:
        warnings.warn(message, stacklevel=4)
    step_size = chains.log_step_size.exp().expand(n_rows).reshape(shape).clone()
    kind = "Metropolis-Hastings" if plan.mh else "unadjusted"
    return Samples(z, energies, rates, step_size, int(chains.counters[:, NONFINITE].sum()), kind), chains.phi


def _checked(u: Tensor, n_chains: int, n: int) -> Tensor:
    if u.shape != (n_chains, n):
        raise ValueError(f"energy returned shape {list(u.shape)}; expected [{n_chains}, {n}]")
    return u


def _whitened(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q [n, r], R [r, d] and R's pseudoinverse [d, r]: features H [n, d] = Q R of rank r, orthonormal columns of Q."""
    u, s, vh = torch.linalg.svd(features.detach().double(), full_matrices=False)
    is_seen = s > s.max() * max(features.shape) * torch.finfo(features.dtype).eps
    u, s, vh = u[:, is_seen], s[is_seen, None], vh[is_seen]
    return u.to(features), (s * vh).to(features), (vh / s).T.to(features)


def _check_features(features: Tensor) -> None:
    if features.dim() != 2 or features.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"features are {features.dtype} {list(features.shape)}; expected float32 or float64 [n, d]"
        )
    if not features.numel() or not features.isfinite().all() or not features.any():
        raise ValueError(f"features are {list(features.shape)}; expected at least one, finite and not all 0")


def _starts(
    phi: Tensor | None, features: Tensor, nz: int | None, n_chains: int, generator: torch.Generator | None
) -> Tensor:
    """The start of the chains, [C, nz, d]: the checked phi, or a draw that makes z about as large as the prior's."""
    d = features.shape[1]
    if phi is None:
        if nz is None or nz < 1 or n_chains < 1:
            raise ValueError(
                f"phi is None, nz is {nz}, n_chains is {n_chains}; expected phi, or nz and n_chains"
            )
        scale = features.square().sum(1).mean().rsqrt()
        eps = torch.randn(n_chains, nz, d, generator=generator, dtype=features.dtype, device=features.device)
        return scale * eps
    fits = phi.dim() == 3 and phi.shape[2] == d and phi.numel() > 0
    if not fits or (phi.dtype, phi.device) != (features.dtype, features.device):
        raise ValueError(
            f"phi is {phi.dtype} {list(phi.shape)} on {phi.device}; expected {features.dtype} [C, nz, {d}] on "
            f"{features.device}, like the features"
        )
    return phi


@shows_plan
@torch.no_grad()
def ald_sample(
    energy: Callable[..., Tensor],
    features: Tensor,
    phi: Tensor | None = None,
    *,
    nz: int | None = None,
    n_chains: int = 4,
    whiten: bool = True,
    batch_size: int | None = None,
    **plan: Any,
) -> Samples:
    """Amortized Langevin dynamics for frozen features and decoder (LAE paper, Algorithm 1).

    C independent chains of phi target exp(-V), V(phi) = sum_i U(x_i, phi h_i), and each draw gives the sample
    set Z = (phi h_1, ..., phi h_n). If the features' rank is n (so d >= n), Z follows the product of the
    posteriors p(z_i|x_i); otherwise Z cannot, and a warning says so. An `LAE` with datapoint decisions does not depend on
    the rank: for frozen features its chain is that of `langevin_sample`.

    Dual averaging finds the step sizes during warm-up; they are frozen after it, so that the draws form a Markov
    chain. `whiten` moves phi R instead of phi, where H = Q R and Q [n, r] has orthonormal columns: Z has the same
    law, in coordinates where no feature weighs more than another. Directions of phi that no datapoint uses then
    do not move, and eta is a step size of z. Without `whiten`, eta is a step size of phi.

    Args:
        energy: U(x_i, z_i) = -log p(x_i|z_i) - log p(z_i) in nats, z [C, n, nz] -> [C, n]. With `batch_size`,
            energy(z [C, m, nz], index [m]) of the datapoints in a minibatch.
        features: h_i = g(x_i), [n, d], float32 or float64.
        phi: the start of the chains, [C, nz, d]. None: `n_chains` starts with `nz` rows, drawn so that z is about as
            large as the prior's draws.
        batch_size: m of SGALD: every step takes the gradient of n/m times the sum over m fresh datapoints. SGALD
            has no decision, so it requires `mh=False`; the reported potential is the same estimate. All chains see
            the same minibatches: the chains are not independent of each other.
        plan: `n_draws` and the other fields of `lae_fast.sampling.Plan`, which says what they mean.

    Returns:
        `Samples`. Memory grows with `n_draws`, not with the number of steps.

    Raises:
        ValueError: a shape, count or step size is not valid, or V or its gradient is not finite at the start.

    Warns:
        UserWarning: the rank is below n; a chain accepts less than 5 % or more than 95 % of 100 or more proposals; an
            unadjusted chain diverges.
    """
    plan = Plan(**plan)
    _check_features(features)
    phi = _starts(phi, features, nz, n_chains, plan.generator)
    n, d = features.shape
    if batch_size is not None and (plan.mh or not 1 <= batch_size <= n):
        raise ValueError(
            f"batch_size is {batch_size} with mh={plan.mh}; expected 1 to {n} with mh=False: a minibatch's estimate of V "
            "cannot decide about acceptance"
        )
    q, r, r_inverse = _whitened(features)
    if q.shape[1] < n:
        warnings.warn(
            f"the features have rank {q.shape[1]} for n = {n} datapoints (d = {d}): the draws do not follow the product "
            "of the posteriors, which takes rank n and so d >= n; langevin_sample draws every z_i by a chain of its own, "
            "whatever d and n are",
            stacklevel=3,
        )
    basis, start = (q, phi @ r.T) if whiten else (features, phi)
    c = phi.shape[0]

    def read(rows: Tensor, index: Tensor | None = None) -> Tensor:
        h = basis if index is None else basis[index]
        return (rows.view(c, -1, basis.shape[1]) @ h.T).mT  # [C, n, nz]; h @ rows.mT is several times slower

    def potential(rows: Tensor) -> Tensor:
        if batch_size is None:
            return _checked(energy(read(rows)), c, n)
        index = torch.rand(n, device=features.device, generator=plan.generator).argsort()[:batch_size]
        return _checked(energy(read(rows, index), index), c, batch_size).double() * (n / batch_size)

    samples, rows = _sample(potential, start.flatten(1), read, (c,), plan)
    last = rows.view(start.shape)
    if whiten:
        last = phi + (last - start) @ r_inverse.T
    kind = samples.kind if batch_size is None else f"{samples.kind}, minibatches of {batch_size}"
    return dataclasses.replace(samples, kind=kind, phi=last)


@shows_plan
@torch.no_grad()
def langevin_sample(energy: Callable[[Tensor], Tensor], z: Tensor, **plan: Any) -> Samples:
    """Datapoint-wise Langevin dynamics on z itself (the report's eq. 3); with `mh`, MALA.

    There are C n independent chains of nz elements: C for each datapoint. Each has its own decisions and (unless
    shared) its own step size.

    Args:
        energy: U(x_i, z_i) in nats, z [C, n, nz] -> [C, n].
        z: the start of the chains, [C, n, nz], float32 or float64.
        plan: as for `ald_sample`; a step size is a number, or [C n].

    Result, errors and warnings are those of `ald_sample`, except the warning about the rank.
    """
    plan = Plan(**plan)
    if z.dim() != 3 or z.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"z is {z.dtype} {list(z.shape)}; expected float32 or float64 [C, n, nz]")
    c, n, nz = z.shape

    def potential(rows: Tensor) -> Tensor:
        return _checked(energy(rows.view(c, n, nz)), c, n).reshape(c * n)

    return _sample(potential, z.reshape(c * n, nz), lambda rows: rows.view(c, n, nz), (c, n), plan)[0]
