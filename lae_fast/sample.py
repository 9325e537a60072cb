"""Samples of p(z|x): amortized Langevin dynamics (Algorithm 1) and its datapoint-wise counterpart."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lae_fast import ops
from lae_fast.ald import evaluate_potential
from lae_fast.chains import TARGET_ACCEPTANCE, Chains, acceptance_warning, dual_averaging
from lae_fast.graphs import Replayed


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a sampler returns: chains along the first axis, draws along the second, as arviz has it.

    ALD decides once for a whole chain, the datapoint-wise sampler for each datapoint: whatever belongs to a
    decision is [C, draw] for the one and [C, draw, n] for the other.
    """

    z: Tensor  # [C, draw, n, nz]: the sample sets Z
    potential: Tensor  # float64, nats: V at each draw
    acceptance_rate: Tensor  # float64: mean of min(1, alpha) over the steps that lead to each draw
    step_size: Tensor  # [C] or [C, n], float64: eta of all draws
    n_nonfinite: int  # proposals after warm-up that were rejected because they were not finite
    kind: str  # "Metropolis-Hastings", "unadjusted", or "unadjusted, minibatches of m"
    phi: Tensor | None = None  # [C, nz, d]: ALD's last state

    def to_arviz(self) -> Any:
        """An `xarray.DataTree` for arviz's ESS, R-hat, summaries and plots.

        Raises:
            ImportError: the extra is missing: `pip install "lae_fast[diag]"`.
        """
        try:
            from arviz_base import from_dict
        except ImportError as error:
            raise ImportError('to_arviz needs arviz: pip install "lae_fast[diag]"') from error
        stats = {"lp": -self.potential.cpu().numpy(), "acceptance_rate": self.acceptance_rate.cpu().numpy()}
        return from_dict(
            {"posterior": {"z": self.z.cpu().numpy()}, "sample_stats": stats},
            dims={"z": ["datapoint", "latent"]}
            | dict.fromkeys(stats, ["datapoint"][: self.potential.dim() - 2]),
            check_conventions=False,  # more chains than draws are no mistake
        )


class _Plan(NamedTuple):
    """The arguments that both samplers share."""

    n_draws: int
    n_warmup: int
    thin: int
    step_size: float | Tensor | None
    mh: bool
    target_acceptance: float
    share_step_size: bool
    generator: torch.Generator | None
    progress: bool
    capture: bool

    def check(self) -> None:
        for name, least in (("n_draws", 1), ("n_warmup", 0), ("thin", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if not 0 < self.target_acceptance < 1:
            raise ValueError(
                f"target_acceptance is {self.target_acceptance}; expected a number between 0 and 1"
            )
        if self.step_size is None and not self.mh:
            raise ValueError(
                "step_size is None; expected a number: only Metropolis-Hastings tells how large it may be"
            )
        if self.step_size is None and self.n_warmup < 1:
            raise ValueError("n_warmup is 0; expected more, or a step_size: it is found during warm-up")

    def log_step_sizes(self, n_chains: int, device: torch.device) -> Tensor:
        """log eta [1] or [C] at the start; dual averaging finds its way over many orders of magnitude."""
        eta = torch.as_tensor(1e-3 if self.step_size is None else self.step_size, dtype=torch.float64)
        n = 1 if self.share_step_size else n_chains
        if eta.numel() not in (1, n) or not ((eta >= 0) & eta.isfinite()).all():
            raise ValueError(f"step_size is {self.step_size}; expected finite and >= 0, one number or {n}")
        return eta.to(device).reshape(-1).expand(n).log()

    def prepared(self, step: Callable[[], None], device: torch.device) -> Callable[[], None]:
        """`step` as it will be run: as it is, or replayed."""
        if not self.capture:
            return step
        return Replayed(step, device, [g for g in (self.generator,) if g and g.device.type == "cuda"])


def _sample(
    potential: Callable[[Tensor], Tensor], start: Tensor, read: Callable[[Tensor], Tensor], shape: tuple[int, ...],
    plan: _Plan,
) -> tuple[Samples, Tensor]:  # fmt: skip
    """Warm up, freeze the step sizes, draw.

    Args:
        potential: rows [R, D] -> [R, ...]. start: [R, D]. read: rows -> z [C, n, nz].
        shape: (C,) or (C, n), with R as its product: what the rows are.

    Returns:
        The samples, and the last rows [R, D].
    """
    from tqdm import tqdm

    n_rows = start.shape[0]
    log_step_size = plan.log_step_sizes(n_rows, start.device)
    adapts = plan.mh and plan.step_size is None
    chains = Chains(
        lambda rows: evaluate_potential(potential, rows, n_rows), start, log_step_size,
        ops.make_rng(start.device, plan.generator), mh=plan.mh,
        adaptation=dual_averaging(log_step_size, plan.target_acceptance) if adapts else None,
    )  # fmt: skip
    for name, value in (("energy", chains.potential), ("gradient of the energy", chains.grad)):
        if not value.isfinite().all():
            total = value.sum().item()
            raise ValueError(f"the {name} is {total} where the chains start; expected finite values")
    z = read(start).new_empty(shape[0], plan.n_draws, *read(start).shape[1:])
    energies = chains.potential.new_empty(shape[0], plan.n_draws, *shape[1:])
    rates, accepted = torch.empty_like(energies), torch.zeros_like(chains.potential)
    n_steps = plan.n_warmup + plan.n_draws * plan.thin

    def step() -> None:
        chains.step()
        accepted.add_(chains.acceptance_rate() if plan.mh else chains.is_accepted)

    run = plan.prepared(step, start.device)
    with tqdm(total=n_steps, unit="step", disable=None if plan.progress else True) as bar:
        for t in range(n_steps):
            if t == plan.n_warmup:
                chains.set_step_size(chains.adaptation[:, 4] if adapts else chains.log_step_size)
                chains.counters.zero_()
                accepted.zero_()
                run = plan.prepared(step, start.device)  # the chains' step sizes lie elsewhere now
            run()
            draw, rest = divmod(t - plan.n_warmup, plan.thin)
            if draw >= 0 and rest == plan.thin - 1:
                rates[:, draw] = accepted.div_(plan.thin).view(shape)
                accepted.zero_()
                z[:, draw], energies[:, draw] = read(chains.phi), chains.potential.view(shape)
            if not bar.disable and (t + 1) % 50 == 0:  # the only look at the device
                phase = "sampling" if draw >= 0 else "warm-up"
                bar.set_postfix_str(
                    f"{phase}, acceptance {chains.acceptance_rate().mean():.2f}", refresh=False
                )
                bar.update(50)
        bar.update(n_steps - bar.n)
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
    return Samples(z, energies, rates, step_size, int(chains.counters[:, 1].sum()), kind), chains.phi


def _checked(u: Tensor, n_chains: int, n: int) -> Tensor:
    if u.shape != (n_chains, n):
        raise ValueError(f"energy returned shape {list(u.shape)}; expected [{n_chains}, {n}]")
    return u


def _whitened(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """H [n, d] = Q R of rank r with orthonormal columns of Q [n, r]; R [r, d] and its pseudoinverse [d, r]."""
    u, s, vh = torch.linalg.svd(features.detach().double(), full_matrices=False)
    is_seen = s > s.max() * max(features.shape) * torch.finfo(features.dtype).eps
    u, s, vh = u[:, is_seen], s[is_seen, None], vh[is_seen]
    return u.to(features), (s * vh).to(features), (vh / s).T.to(features)


@torch.no_grad()
def ald_sample(
    energy: Callable[..., Tensor],
    features: Tensor,
    phi: Tensor | None = None,
    *,
    n_draws: int,
    n_warmup: int = 1000,
    thin: int = 1,
    nz: int | None = None,
    n_chains: int = 4,
    step_size: float | Tensor | None = None,
    mh: bool = True,
    target_acceptance: float = TARGET_ACCEPTANCE,
    share_step_size: bool = False,
    whiten: bool = True,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
    capture: bool = False,
) -> Samples:
    """Amortized Langevin dynamics for frozen features and decoder (LAE paper, Algorithm 1).

    C independent chains of phi target exp(-V), V(phi) = sum_i U(x_i, phi h_i), and each draw reads off the sample
    set Z = (phi h_1, ..., phi h_n). If the features' rank is n (so d >= n), Z follows the product of the
    posteriors p(z_i|x_i); if not, it cannot, and a warning says so.

    Step sizes are found by dual averaging during warm-up and frozen after it, so that what is drawn is a Markov
    chain. `whiten` moves phi R instead of phi, where H = Q R and Q [n, r] has orthonormal columns: the same law of
    Z in coordinates where no feature weighs more than another. Directions of phi that no datapoint sees then stay
    where they were, and eta is a step size of z; without it, eta is one of phi.

    Args:
        energy: U(x_i, z_i) = -log p(x_i|z_i) - log p(z_i) in nats, z [C, n, nz] -> [C, n]. With `batch_size`,
            energy(z [C, m, nz], index [m]) of the datapoints in a minibatch.
        features: h_i = g(x_i), [n, d], float32 or float64.
        phi: where the chains start, [C, nz, d]. None: `n_chains` of them with `nz` rows, drawn so that the z are
            about as large as the prior's.
        n_draws, n_warmup, thin: draws kept of each chain, steps before the first, steps that lead to each.
        step_size: eta (drift eta, noise variance 2 eta), a number or [C], not adapted. None: adapted, which takes `mh`.
        mh: Metropolis-Hastings accept or reject. False: unadjusted, biased at order eta, and labelled so.
        target_acceptance: what dual averaging aims at.
        share_step_size: one for all chains, adapted to their mean acceptance, instead of one each.
        batch_size: m of SGALD: every step takes the gradient of (n/m) sum over m fresh datapoints. Unadjusted by
            nature, so `mh=False`; the potential reported is that estimate too. All chains see the same minibatches:
            they are not independent of each other.
        generator: decides all that is random; default: the one `torch.manual_seed` sets.
        progress: show a bar with the acceptance, on a terminal.
        capture: on a GPU, replay the steps from a CUDA graph, several times as fast for small problems. `energy` then
            runs as Python a few times only, and must neither wait for the device nor depend on anything but device
            tensors that stay where they are.

    Returns:
        `Samples`. Memory grows with `n_draws`, not with the steps.

    Raises:
        ValueError: shapes, counts or step sizes make no sense, or V is not finite at the start.

    Warns:
        UserWarning: rank below n; a chain that accepts less than 5 % or more than 95 % of 100 proposals or more; an
            unadjusted chain that diverges.
    """
    plan = _Plan(
        n_draws,
        n_warmup,
        thin,
        step_size,
        mh,
        target_acceptance,
        share_step_size,
        generator,
        progress,
        capture,
    )
    plan.check()
    if features.dim() != 2 or features.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"features are {features.dtype} {list(features.shape)}; expected float32 or float64 [n, d]"
        )
    n, d = features.shape
    if n < 1 or d < 1 or not features.isfinite().all() or not features.any():
        raise ValueError(f"features are {list(features.shape)}; expected at least one, finite and not all 0")
    if phi is None:
        if nz is None or nz < 1 or n_chains < 1:
            raise ValueError(
                f"phi is None, nz is {nz}, n_chains is {n_chains}; expected phi, or nz and n_chains"
            )
        scale = features.square().sum(1).mean().rsqrt()
        eps = torch.randn(n_chains, nz, d, generator=generator, dtype=features.dtype, device=features.device)
        phi = scale * eps
    if (
        phi.dim() != 3
        or phi.shape[2] != d
        or not phi.numel()
        or (phi.dtype, phi.device) != (features.dtype, features.device)
    ):
        raise ValueError(
            f"phi is {phi.dtype} {list(phi.shape)} on {phi.device}; expected {features.dtype} [C, nz, {d}] on "
            f"{features.device}, like the features"
        )
    if batch_size is not None and (mh or not 1 <= batch_size <= n):
        raise ValueError(
            f"batch_size is {batch_size} with mh={mh}; expected 1 to {n} with mh=False: a minibatch's estimate of V "
            "cannot decide about acceptance"
        )
    q, r, r_inverse = _whitened(features)
    if q.shape[1] < n:
        warnings.warn(
            f"the features have rank {q.shape[1]} for n = {n} datapoints (d = {d}): the draws do not follow the product "
            "of the posteriors, which takes rank n and so d >= n",
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
        index = torch.rand(n, device=features.device, generator=generator).argsort()[:batch_size]
        return _checked(energy(read(rows, index), index), c, batch_size).double() * (n / batch_size)

    samples, rows = _sample(potential, start.flatten(1), read, (c,), plan)
    last = rows.view(start.shape)
    if whiten:
        last = phi + (last - start) @ r_inverse.T
    kind = samples.kind if batch_size is None else f"{samples.kind}, minibatches of {batch_size}"
    return dataclasses.replace(samples, kind=kind, phi=last)


@torch.no_grad()
def langevin_sample(
    energy: Callable[[Tensor], Tensor],
    z: Tensor,
    *,
    n_draws: int,
    n_warmup: int = 1000,
    thin: int = 1,
    step_size: float | Tensor | None = None,
    mh: bool = True,
    target_acceptance: float = TARGET_ACCEPTANCE,
    share_step_size: bool = False,
    generator: torch.Generator | None = None,
    progress: bool = True,
    capture: bool = False,
) -> Samples:
    """Datapoint-wise Langevin dynamics on z itself (the report's eq. 3); with `mh`, MALA.

    C n independent chains of nz elements, one for each chain and datapoint, each with a decision and (unless
    shared) a step size of its own.

    Args:
        energy: U(x_i, z_i) in nats, z [C, n, nz] -> [C, n].
        z: where the chains start, [C, n, nz], float32 or float64.
        step_size: a number, or [C n].

    The other arguments, the result, and what it raises and warns of are those of `ald_sample`.
    """
    plan = _Plan(
        n_draws,
        n_warmup,
        thin,
        step_size,
        mh,
        target_acceptance,
        share_step_size,
        generator,
        progress,
        capture,
    )
    plan.check()
    if z.dim() != 3 or z.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"z is {z.dtype} {list(z.shape)}; expected float32 or float64 [C, n, nz]")
    c, n, nz = z.shape

    def potential(rows: Tensor) -> Tensor:
        return _checked(energy(rows.view(c, n, nz)), c, n).reshape(c * n)

    return _sample(potential, z.reshape(c * n, nz), lambda rows: rows.view(c, n, nz), (c, n), plan)[0]
