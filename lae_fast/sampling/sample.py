"""Samples of p(z|x): amortized Langevin dynamics (Algorithm 1) and its datapoint-wise counterpart."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from lae_fast import checks, ops, progress
from lae_fast.isolation import differentiable, exactly, savable
from lae_fast.ops.columns import NONFINITE
from lae_fast.sampling.acceptance import acceptance_warning
from lae_fast.sampling.adaptation import TARGET_ACCEPTANCE, averaged, dual_averaging
from lae_fast.sampling.ald import (
    check_alone,
    check_function,
    check_precision,
    check_start,
    evaluate_potential,
    value_at,
)
from lae_fast.sampling.chains import Chains, Evaluate
from lae_fast.sampling.compiled import Compiled, agree, compiled
from lae_fast.sampling.plan import AT_ONCE, Plan
from lae_fast.sampling.samples import Samples, SamplingInterrupted

Draws = tuple[Tensor, Tensor, Tensor]  # K of them: rows [K, R, D], V [K, R], mean acceptances [K, R]
ValueAndGrad = Callable[..., tuple[Tensor, Tensor]]


def _sample(
    potential: Callable[[Tensor], Tensor],
    given: Evaluate | None,
    start: Tensor,
    read: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    n_chains: int,
    plan: Plan,
    kind: str = "",
    phi: Callable[[Tensor], Tensor | None] = lambda rows: None,
    is_function: bool = True,
) -> Samples:
    """Warm up, freeze the step sizes, draw.

    Args:
        potential: rows [R, D] -> energies [R] or [R, m], nats.
        given: rows [R, D] -> V [R] and grad V [R, D], float64 and like the rows; None: autograd takes the potential's.
        start: [R, D].
        read: rows [R, D] -> z [C, n, nz]; K R rows, those of K draws -> [K C, n, nz].
        shape: (C,) or (C, n): the axes that the R rows stand for.
        n_chains: of all calls with this plan; these are the C of `plan.own`.
        kind: added to the samples' kind.
        phi: rows [R, D] -> the samples' phi.
        is_function: whether the potential is one, and not an estimate by minibatches.
    """
    n_rows = start.shape[0]
    each = n_rows // shape[0]
    first = plan.own(n_chains).start * each
    log_step_size = plan.log_step_sizes((n_chains, *shape[1:]), start.device)
    if len(log_step_size) > 1:
        log_step_size = log_step_size[first : first + n_rows]

    def by_autograd(rows: Tensor) -> tuple[Tensor, Tensor]:
        return evaluate_potential(potential, rows, n_rows, plan.mh)

    evaluate = given or by_autograd
    chains = Chains(
        evaluate,
        start,
        log_step_size,
        ops.make_rng(start.device, plan.generator),
        mh=plan.mh,
        adaptation=dual_averaging(log_step_size, float(plan.target_acceptance)) if plan.adapts else None,
        first=first,
    )
    check_start(chains.potential, chains.grad)
    if plan.mh:
        check_alone(lambda rows: evaluate(rows)[0], start, chains.potential)
    if given and is_function and not agree((chains.potential, chains.grad), by_autograd(start)):
        raise ValueError(
            "value_and_grad differs from energy and its gradient where the chains start; expected the same"
        )
    z = read(start).new_empty(shape[0], plan.n_draws, *read(start).shape[1:])
    energies = chains.potential.new_empty(shape[0], plan.n_draws, *shape[1:])
    rates, accepted = torch.empty_like(energies), chains.acceptance  # since the last draw
    n_drawn = 0

    def keep(draws: Draws) -> None:
        nonlocal n_drawn
        rows, v, rate = draws
        drawn = slice(n_drawn, n_drawn + len(rows))
        z[:, drawn] = read(rows.flatten(0, 1)).unflatten(0, (-1, shape[0])).transpose(0, 1)
        energies[:, drawn] = v.unflatten(1, shape).transpose(0, 1)
        rates[:, drawn] = rate.unflatten(1, shape).transpose(0, 1)
        n_drawn = drawn.stop

    def samples(n: int) -> Samples:
        step_size = chains.log_step_size.exp().expand(n_rows).reshape(shape).clone()
        return Samples(
            z[:, :n],
            energies[:, :n],
            rates[:, :n],
            step_size,
            int(chains.counters[:, NONFINITE].sum()),
            ("Metropolis-Hastings" if plan.mh else "unadjusted") + kind,
            phi(chains.phi),
        )

    try:
        with progress.bar(total=plan.n_steps, unit="step", shown=plan.progress) as bar:
            found, note = None, ""
            if plan.compiles and is_function:
                bar.set_postfix_str("compiling the energy")
                found, note = _compiled(evaluate, chains, start, plan)
                bar.unpause()
            if found:
                chains.evaluate = found.evaluate
            library = found.library if found and first == 0 else None  # its noise begins with chain 0
            run = plan.prepared(chains.step, start.device)
            for t, n_steps in plan.spans(AT_ONCE if library else 1):
                if t == plan.n_warmup:
                    chains.set_step_size(averaged(chains.adaptation) if plan.adapts else chains.log_step_size)
                    chains.counters.zero_()
                    accepted.zero_()
                    # The chains' step sizes are another tensor now.
                    run = plan.prepared(chains.step, start.device)
                is_sampling = t >= plan.n_warmup
                thin, since = (
                    (plan.thin, (t - plan.n_warmup) % plan.thin) if is_sampling else (n_steps + 1, 0)
                )
                if found and library:
                    keep(chains.walk(library, found.constants, n_steps, thin, since))
                else:
                    run()
                    if since + 1 == thin:
                        keep((chains.phi[None], chains.potential[None], accepted[None] / thin))
                        accepted.zero_()
                end = t + n_steps
                if not bar.disable and end // 50 > t // 50:  # the loop waits for the device only here
                    phase = "sampling" if is_sampling else "warm-up"
                    bar.set_postfix_str(
                        f"{phase}, acceptance {chains.acceptance_rate().mean():.2f}{note}", refresh=False
                    )
                    bar.update(end - bar.n)
            bar.update(plan.n_steps - bar.n)
    except KeyboardInterrupt as error:
        if n_drawn == 0:
            raise
        raise SamplingInterrupted(samples(n_drawn), plan.n_draws) from error
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
    return samples(plan.n_draws)


def _compiled(evaluate: Evaluate, chains: Chains, start: Tensor, plan: Plan) -> tuple[Compiled | None, str]:
    """The compiled potential and a note for the bar; None, and a warning if it was asked for, where it has to run as it is."""
    began = time.perf_counter()
    try:
        check_function(chains.potential, evaluate(start)[0])
        return compiled(
            evaluate, start, chains.proposal
        ), f", compiled in {time.perf_counter() - began:.0f} s"
    except Exception as error:
        if plan.compile:
            warnings.warn(f"the energy runs uncompiled: {checks.reason(error)[:300]}", stacklevel=5)
        return None, ""


def _checked(u: Tensor, n_chains: int, n: int, mh: bool, name: str = "energy") -> Tensor:
    if not isinstance(u, Tensor) or u.shape != (n_chains, n) or not u.is_floating_point():
        raise ValueError(f"{name} returned {checks.describe(u)}; expected floating point [{n_chains}, {n}]")
    if mh:
        check_precision(name, u)
    if name == "energy" and not u.requires_grad:
        raise ValueError(
            f"energy returned {checks.describe(u)}, which does not depend on z; expected a tensor that does"
        )
    return u


def _given(
    value_and_grad: ValueAndGrad, z: Tensor, mh: bool, index: tuple[Tensor, ...] = ()
) -> tuple[Tensor, Tensor]:
    """U [C, n], float64, and dU/dz [C, n, nz] from the user's function at z [C, n, nz]."""
    with differentiable():
        result = value_at("value_and_grad", value_and_grad, savable(z.detach()), *index)
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        form = f"U {list(z.shape[:2])} and dU/dz {list(z.shape)}"
        raise TypeError(f"value_and_grad returned {checks.describe(result)}; expected {form}")
    value, grad = _checked(result[0], len(z), z.shape[1], mh, "value_and_grad"), result[1]
    checks.tensor(
        "the gradient of value_and_grad",
        grad,
        ", ".join(map(str, z.shape)),
        dtypes=(z.dtype,),
        device=z.device,
    )
    return value.detach().to(torch.float64, copy=True), grad.detach()


def _whitened(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q [n, r], R [r, d] and R's pseudoinverse [d, r]: features H [n, d] = Q R of rank r, orthonormal columns of Q."""
    u, s, vh = torch.linalg.svd(features.detach().double(), full_matrices=False)
    is_seen = s > s.max() * max(features.shape) * torch.finfo(features.dtype).eps
    u, s, vh = u[:, is_seen], s[is_seen, None], vh[is_seen]
    return u.to(features), (s * vh).to(features), (vh / s).T.to(features)


def _check_features(features: Tensor) -> None:
    checks.tensor("features", features, "n, d")
    if not features.numel() or not features.isfinite().all() or not features.any():
        raise ValueError(f"features are {list(features.shape)}; expected at least one, finite and not all 0")


def _starts(
    phi: Tensor | None,
    features: Tensor,
    nz: int | None,
    n_chains: int | None,
    generator: torch.Generator | None,
) -> Tensor:
    """The start of the chains, [C, nz, d]: the checked phi, or a draw that makes z about as large as the prior's."""
    d = features.shape[1]
    if phi is None:
        if nz is None:
            raise ValueError("phi is None, nz is None; expected one of them")
        checks.count("nz", nz)
        n_chains = 4 if n_chains is None else checks.count("n_chains", n_chains)
        scale = features.square().sum(1).mean().rsqrt()
        eps = torch.randn(n_chains, nz, d, generator=generator, dtype=features.dtype, device=features.device)
        return scale * eps
    checks.tensor("phi", phi, f"C, nz, {d}", dtypes=(features.dtype,), device=features.device)
    if phi.numel() == 0:
        raise ValueError(f"phi is {list(phi.shape)}; expected at least one chain and one row")
    if nz is not None and checks.count("nz", nz) != phi.shape[1]:
        raise ValueError(f"nz is {nz} beside a phi with {phi.shape[1]} rows; expected None")
    if n_chains is not None and checks.count("n_chains", n_chains) != phi.shape[0]:
        raise ValueError(f"n_chains is {n_chains} beside a phi of {phi.shape[0]} chains; expected None")
    return phi


@exactly
def ald_sample(
    energy: Callable[..., Tensor],
    features: Tensor,
    phi: Tensor | None = None,
    *,
    nz: int | None = None,
    n_chains: int | None = None,
    whiten: bool = True,
    batch_size: int | None = None,
    value_and_grad: ValueAndGrad | None = None,
    n_draws: int,
    n_warmup: int = 1000,
    thin: int = 1,
    step_size: float | Tensor | None = None,
    initial_step_size: float = 1e-3,
    mh: bool = True,
    target_acceptance: float = TARGET_ACCEPTANCE,
    share_step_size: bool = False,
    chains: range | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
    capture: bool = False,
    compile: bool | None = None,
) -> Samples:
    """Amortized Langevin dynamics for frozen features and decoder (LAE paper, Algorithm 1).

    C independent chains of phi target exp(-V), V(phi) = sum_i U(x_i, phi h_i), and each draw gives the sample
    set Z = (phi h_1, ..., phi h_n). If the features' rank is n (so d >= n), Z follows the product of the
    posteriors p(z_i|x_i); otherwise Z cannot, and a warning says so. An `LAE` with datapoint decisions does not depend on
    the rank: for frozen features its chain is that of `langevin_sample`.

    Dual averaging finds the step sizes during warm-up; they are frozen after it, so that the draws form a Markov
    chain. `whiten` moves phi R^T instead of phi, where H = Q R and Q [n, r] has orthonormal columns: Z has the same
    law, in coordinates where no feature weighs more than another. Directions of phi that no datapoint uses then
    do not move, and eta is a step size of z. Without `whiten`, eta is a step size of phi.

    Args:
        energy: U(x_i, z_i) = -log p(x_i|z_i) - log p(z_i) in nats, z [C, n, nz] -> [C, n]. With `batch_size`,
            energy(z [C, m, nz], index [m]) of the datapoints in a minibatch.
        features: h_i = g(x_i), [n, d], float32 or float64.
        phi: the start of all chains, [C, nz, d]. None: `n_chains` starts (default: 4) with `nz` rows, drawn so that z is
            about as large as the prior's draws.
        batch_size: m of SGALD: every step takes the gradient of n/m times the sum over m fresh datapoints. SGALD
            has no decision, so it requires `mh=False`; the reported potential is the same estimate. All chains see
            the same minibatches: the chains are not independent of each other. They are never compiled.
        value_and_grad: the energy with its gradient, of the same arguments: U [C, n] and dU/dz [C, n, nz] (of a minibatch
            [C, m] and [C, m, nz]), where you can do better than autograd. It is compared with `energy` at the start.
        n_draws: as all others, a field of `lae_fast.sampling.Plan`, which says what they mean.

    Returns:
        `Samples`. Memory grows with `n_draws`, not with the number of steps.

    Energies are evaluated without autocast and without rounded float32 products, whatever the program has set; modules stay
    in their mode. To go on with chains that have ended or were interrupted, start at `samples.phi` with
    `step_size=samples.step_size` and `n_warmup=0`.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a shape, count or step size is not valid, V or its gradient is not finite at the start, or, with `mh`, the
            energy of a chain is in half precision, or not a function of this chain: Dropout and BatchNorm need eval mode; the energy
            or value_and_grad changes the chains in place; or value_and_grad differs from the energy and its gradient at the start.
        SamplingInterrupted: Ctrl-C after the first draw; it holds the draws so far.

    Warns:
        UserWarning: the rank is below n; a chain accepts less than 5 % or more than 95 % of 100 or more proposals; an
            unadjusted chain diverges; an energy that `compile=True` was to compile runs as it is.

    Example:
        >>> x = torch.tensor([[-1.0, 0.0], [2.0, 1.0]])  # [n, nz]: x = z + noise of variance 1
        >>> def energy(z):  # [C, n, nz] -> [C, n], nats
        ...     return 0.5 * (x - z).square().sum(-1) + 0.5 * z.square().sum(-1)
        >>> features = torch.randn(2, 16)  # [n, d]
        >>> samples = lae_fast.ald_sample(energy, features, nz=2, n_draws=1000, n_warmup=300, progress=False)
        >>> samples.z.shape, samples.phi.shape
        (torch.Size([4, 1000, 2, 2]), torch.Size([4, 2, 16]))
        >>> (samples.z.mean((0, 1)) - x / 2).abs().max() < 0.2  # posteriors: N(x / 2, 1 / 2)
        tensor(True)
    """
    checks.function("energy", energy)
    if value_and_grad is not None:
        checks.function("value_and_grad", value_and_grad)
    plan = Plan(
        n_draws=n_draws,
        n_warmup=n_warmup,
        thin=thin,
        step_size=step_size,
        initial_step_size=initial_step_size,
        mh=mh,
        target_acceptance=target_acceptance,
        share_step_size=share_step_size,
        chains=chains,
        generator=generator,
        progress=progress,
        capture=capture,
        compile=compile,
    )
    _check_features(features)
    features = savable(features)
    checks.generator("generator", plan.generator, features.device)
    checks.flag("whiten", whiten)
    phi = _starts(phi, features, nz, n_chains, plan.generator)
    n_chains = len(phi)
    own = plan.own(n_chains)
    phi = phi[own.start : own.stop]
    n, d = features.shape
    if batch_size is not None and (plan.mh or not 1 <= checks.count("batch_size", batch_size, 0) <= n):
        raise ValueError(
            f"batch_size is {batch_size} with mh={plan.mh}; expected 1 to {n} with mh=False: a minibatch's estimate of V "
            "cannot decide about acceptance"
        )
    if batch_size is not None and compile:
        raise ValueError(
            "compile is True beside a batch_size; expected None or False: every step has an energy of its own"
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
    c, nz = phi.shape[:2]

    def read(rows: Tensor, index: Tensor | None = None) -> Tensor:
        h = basis if index is None else basis[index]
        return (rows.view(-1, nz, basis.shape[1]) @ h.T).mT  # [C, n, nz]; h @ rows.mT is several times slower

    def minibatch() -> Tensor:
        return torch.rand(n, device=features.device, generator=plan.generator).argsort()[:batch_size]

    def potential(rows: Tensor) -> Tensor:
        if batch_size is None:
            return _checked(energy(read(rows)), c, n, plan.mh)
        index = minibatch()
        return _checked(energy(read(rows, index), index), c, batch_size, plan.mh).double() * (n / batch_size)

    def given(rows: Tensor) -> tuple[Tensor, Tensor]:
        index = () if batch_size is None else (minibatch(),)
        assert value_and_grad is not None
        value, grad = _given(value_and_grad, read(rows, *index), plan.mh, index)
        weight = n / grad.shape[1]
        return weight * value.sum(1), weight * (grad.mT @ basis[index]).flatten(1)

    def last(rows: Tensor) -> Tensor:
        rows = rows.view(start.shape)
        return phi + (rows - start) @ r_inverse.T if whiten else rows

    kind = "" if batch_size is None else f", minibatches of {batch_size}"
    by_user = None if value_and_grad is None else given
    return _sample(
        potential, by_user, start.flatten(1), read, (c,), n_chains, plan, kind, last, batch_size is None
    )


@exactly
def langevin_sample(
    energy: Callable[[Tensor], Tensor],
    z: Tensor,
    *,
    value_and_grad: ValueAndGrad | None = None,
    n_draws: int,
    n_warmup: int = 1000,
    thin: int = 1,
    step_size: float | Tensor | None = None,
    initial_step_size: float = 1e-3,
    mh: bool = True,
    target_acceptance: float = TARGET_ACCEPTANCE,
    share_step_size: bool = False,
    chains: range | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
    capture: bool = False,
    compile: bool | None = None,
) -> Samples:
    """Datapoint-wise Langevin dynamics on z itself (the report's eq. 3); with `mh`, MALA.

    There are C n independent chains of nz elements: C for each datapoint. Each has its own decisions and (unless
    shared) its own step size.

    Args:
        energy: U(x_i, z_i) in nats, z [C, n, nz] -> [C, n].
        z: the start of all chains, [C, n, nz], float32 or float64.
        value_and_grad: as for `ald_sample`.
        step_size: a number, [C, n] or [C n]; this and all others as for `ald_sample`.

    Result, errors and warnings are those of `ald_sample`, except the warning about the rank. To go on with chains, start at
    `samples.z[:, -1]` with `step_size=samples.step_size` and `n_warmup=0`.

    Example:
        >>> x = torch.tensor([[-1.0, 0.0], [2.0, 1.0]])  # [n, nz]: x = z + noise of variance 1
        >>> def energy(z):  # [C, n, nz] -> [C, n], nats
        ...     return 0.5 * (x - z).square().sum(-1) + 0.5 * z.square().sum(-1)
        >>> samples = lae_fast.langevin_sample(energy, torch.zeros(8, 2, 2), n_draws=500, n_warmup=200, progress=False)
        >>> samples.acceptance_rate.shape, samples.step_size.shape
        (torch.Size([8, 500, 2]), torch.Size([8, 2]))
        >>> (samples.z.mean((0, 1)) - x / 2).abs().max() < 0.2  # posteriors: N(x / 2, 1 / 2)
        tensor(True)
    """
    checks.function("energy", energy)
    if value_and_grad is not None:
        checks.function("value_and_grad", value_and_grad)
    plan = Plan(
        n_draws=n_draws,
        n_warmup=n_warmup,
        thin=thin,
        step_size=step_size,
        initial_step_size=initial_step_size,
        mh=mh,
        target_acceptance=target_acceptance,
        share_step_size=share_step_size,
        chains=chains,
        generator=generator,
        progress=progress,
        capture=capture,
        compile=compile,
    )
    checks.tensor("z", z, "C, n, nz")
    checks.generator("generator", plan.generator, z.device)
    if z.numel() == 0:
        raise ValueError(f"z is {list(z.shape)}; expected at least one chain, datapoint and dimension")
    n_chains, n, nz = z.shape
    own = plan.own(n_chains)
    z, c = z[own.start : own.stop], len(own)

    def potential(rows: Tensor) -> Tensor:
        return _checked(energy(rows.view(c, n, nz)), c, n, plan.mh).reshape(c * n)

    def given(rows: Tensor) -> tuple[Tensor, Tensor]:
        assert value_and_grad is not None
        value, grad = _given(value_and_grad, rows.view(c, n, nz), plan.mh)
        return value.reshape(c * n), grad.reshape(c * n, nz)

    by_user = None if value_and_grad is None else given
    return _sample(
        potential, by_user, z.reshape(c * n, nz), lambda rows: rows.view(-1, n, nz), (c, n), n_chains, plan
    )
