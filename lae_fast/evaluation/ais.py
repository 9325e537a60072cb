"""Annealed importance sampling of log p(x) (Neal, 2001), forward and reverse (Grosse et al., 2015).

Chains anneal from a base, the prior or the encoder's q(z|x), which is closer to the posterior (annealing.py), at the
temperatures of a schedule (schedule.py). The forward estimate, log mean w, is in expectation a lower bound of log p(x). The
reverse estimate is an upper bound; it starts at an exact draw of p(z|x), which is known for images that the model
itself has simulated. The gap between the two bounds shows how far each can be off.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lae_fast import checks, seeds, sharing
from lae_fast import progress as bars
from lae_fast.evaluation.annealing import Annealing, Draws, per_pass, repeated
from lae_fast.evaluation.schedule import BASES, Base, Schedule, check_schedule, fit_schedule
from lae_fast.models.autoencoder import Autoencoder, asks, images_for, like_of
from lae_fast.sharing import Shared

COLLAPSED = 2.0  # effective sample sizes below this are of weights that have collapsed onto one chain
MANY = 1 / 3  # share of images with collapsed weights that deserves a warning


class AISEstimate(NamedTuple):
    """One value for each image, float64 [n], on the CPU.

    The standard error is that of `log_likelihood`, by the delta method; for a reverse estimate it is conditional on the
    one exact draw of each image. C chains cannot report more than about 1 nat: where one chain holds nearly all weight, and
    the effective sample size is near 1, the estimate can be off by many times the standard error.

    Attributes:
        log_likelihood: log of the mean weight, nats.
        standard_error: of `log_likelihood`, nats.
        acceptance_rate: a mean over chains and temperatures.
        effective_sample_size: of the weights, 1 to n_chains: near 1 the standard error says nothing.

    Example:
        >>> from torch import nn
        >>> model = lae_fast.VAE(nn.Linear(2, 4), nn.Identity(), lae_fast.Gaussian(1.0), nx=2, nz=2)
        >>> x = torch.randn(8, 2)
        >>> schedule = lae_fast.fit_schedule(model, x, base="prior", n_temperatures=50, n_pilot=25)
        >>> found = lae_fast.annealed_log_likelihood(model, x, schedule, n_chains=4, progress=False)
        >>> size = found.effective_sample_size  # of four weights for each of eight images
        >>> size.shape, bool((size > 0.999).all() and (size < 4.001).all())
        (torch.Size([8]), True)
    """

    log_likelihood: Tensor
    standard_error: Tensor
    acceptance_rate: Tensor
    effective_sample_size: Tensor


class _Descent:
    """All moves of one schedule, forward or in reverse, and what they add up to.

    What a move needs of the schedule lies on the device, at a position that the move itself advances: the host only
    repeats it.
    """

    def __init__(self, chains: Annealing, schedule: Schedule, is_forward: bool, capture: bool | None) -> None:
        growth = schedule.beta.diff()  # [K], steps of beta: growth[k] and growth[k + 1] lie around move k
        columns = [schedule.beta[1:-1], schedule.step_size, growth[1:] if is_forward else growth[:-1]]
        table = torch.stack(columns, 1)  # [K - 1, 3]
        self.table = table if is_forward else table.flip(0)
        self.first = growth[0 if is_forward else -1]
        self.chains, self.n_moves = chains, len(table)
        self.position = torch.zeros(1, dtype=torch.int64, device=table.device)
        self.log_w = torch.zeros_like(chains.log_ratio)  # [C, n]
        self.acceptance = torch.zeros_like(self.log_w[0])  # [n]: the mean over chains and moves
        self.move = repeated(self._move, table.device, capture)

    def start(self) -> None:
        self.position.zero_()
        self.acceptance.zero_()
        torch.mul(self.chains.log_ratio, self.first, out=self.log_w)

    def _move(self) -> None:
        chains = self.chains
        beta, step_size, growth = self.table.index_select(0, self.position).unbind(1)  # [1] each
        chains.beta.copy_(beta)
        chains.step_size.copy_(step_size)
        self.acceptance += chains.move().mean(0) / self.n_moves
        self.log_w += chains.log_ratio * growth
        self.position += 1


def _warn(estimate: AISEstimate, n_chains: int, side: str = "low") -> None:
    """Warn the caller of the function that calls this one, if many images' weights have collapsed."""
    is_collapsed = estimate.effective_sample_size < COLLAPSED
    if n_chains > COLLAPSED and is_collapsed.double().mean() > MANY:
        warnings.warn(
            f"the weights of {int(is_collapsed.sum())} of {len(is_collapsed)} images have collapsed: of {n_chains} chains less "
            f"than {COLLAPSED:g} count, and log p(x) can be too {side} by far more than the standard error; take more "
            "temperatures, or the other base",
            stacklevel=4,
        )


@asks
def annealed_log_likelihood(
    model: Autoencoder,
    images: Tensor,
    schedule: Schedule,
    *,
    n_chains: int = 16,
    seed: int = 0,
    exact: Tensor | None = None,
    progress: bool = True,
    capture: bool | None = None,
    share: Shared | None = None,
) -> AISEstimate:
    """log p(x) of images [n, *shape] in [0, 1], estimated by `n_chains` annealed chains for each image.

    Args:
        schedule: from `fit_schedule` with another seed.
        exact: posterior draws [n, nz] of images that the model itself has simulated (`Autoencoder.simulate`): the
            chains then anneal from these draws to the base, for the upper bound.
        capture: as in `fit_schedule`.
        share: processes that all call this with the same arguments. Batches of `ROWS // n_chains` images are shared out among
            them; the estimates are the same for any number of processes. None: this process alone.

    Raises:
        ValueError: images, draws or schedule have another form, fewer than 2 chains, or the pilot run's seed.
        ProcessError: another process has failed.

    Example:
        >>> from torch import nn
        >>> model = lae_fast.VAE(nn.Linear(2, 4), nn.Identity(), lae_fast.Gaussian(1.0), nx=2, nz=2)  # p(x) = N(0, 2 I)
        >>> x = torch.zeros(1, 2)
        >>> schedule = lae_fast.fit_schedule(model, x, n_temperatures=50, n_pilot=25)
        >>> found = lae_fast.annealed_log_likelihood(model, x, schedule, progress=False)
        >>> abs(found.log_likelihood.item() - -2.531) < 0.2  # log p(0) = -log(4 pi)
        True
    """
    runs = [(schedule, exact)]
    (estimate,) = _annealed(model, images, runs, n_chains, seed, progress, capture, share)
    _warn(estimate, n_chains, "low" if exact is None else "high")
    return estimate


_Run = tuple[Schedule, Tensor | None]  # and exact draws [n, nz], where the chains anneal in reverse


def _annealed(
    model: Autoencoder,
    images: Tensor,
    runs: Sequence[_Run],
    n_chains: int,
    seed: int,
    progress: bool = False,
    capture: bool | None = None,
    share: Shared | None = None,
) -> list[AISEstimate]:
    """`annealed_log_likelihood` of some runs, without its warning: callers give theirs, which names the line that called
    them. Processes share the batches of all runs."""
    images = images_for(model, images).detach()
    checks.count("n_chains", n_chains, 2)  # for a standard error
    checks.flag("progress", progress)
    if capture is not None:
        checks.flag("capture", capture)
    sharing.check(share)
    for schedule, exact in runs:
        check_schedule(schedule, images.device)
        if checks.seed("seed", seed) == schedule.seed:
            raise ValueError(f"seed is {seed}, the pilot run's; expected another")
        if exact is not None:
            checks.tensor("exact", exact, f"{len(images)}, {model.nz}", device=images.device)
            if not exact.isfinite().all():
                raise ValueError("exact is not finite everywhere; expected draws of p(z|x)")
    batches = torch.arange(len(images), device="cpu").split(per_pass(n_chains))
    n_each = -(
        -len(batches) * len(runs) // (1 if share is None else share.size)
    )  # of the first process, which has most
    n_steps, shown = n_each * len(runs[0][0].step_size), progress and (share is None or share.rank == 0)
    with bars.bar(total=n_steps, unit="step", desc="AIS", shown=shown) as bar:

        def descents() -> Iterator[Callable[[], _Result]]:
            for run in runs:
                yield from _descents(model, images, batches, run, n_chains, seed, capture, bar.update)

        results = sharing.done(descents(), share)
    estimates = []
    for i, (_, exact) in enumerate(runs):
        log_weights, acceptances = zip(*results[i * len(batches) : (i + 1) * len(batches)], strict=True)
        estimates.append(_estimate(torch.cat(log_weights, 1), torch.cat(acceptances), exact is None))
    return estimates


_Result = tuple[Tensor, Tensor]  # of a batch, on the CPU: log weights [C, n], acceptance rates [n]


def _descents(
    model: Autoencoder,
    images: Tensor,
    batches: Sequence[Tensor],
    run: _Run,
    n_chains: int,
    seed: int,
    capture: bool | None,
    on_move: Callable[[], object],
) -> Iterator[Callable[[], _Result]]:
    """A function for each batch, which anneals its chains. The draws of a batch are made when it comes, also if nobody here
    calls its function: the batches of other processes leave the noise of ours as it is."""
    schedule, exact = run
    generator = torch.Generator(images.device).manual_seed(seed)
    latest: _Descent | None = None

    def anneal(index: Tensor, draws: Draws) -> _Result:
        nonlocal latest
        x = images[index]
        if latest is None or len(x) != len(latest.chains.x):  # the last batch may be smaller
            chains = Annealing(model, x, schedule.base, draws)
            latest = _Descent(chains, schedule, exact is None, capture)
        else:
            latest.chains.start(x, draws)
        if exact is not None:
            latest.chains.start_at_z(exact[index].to(images.dtype))
        latest.start()
        for _ in range(latest.n_moves):
            latest.move()
            on_move()
        # Copies, as the next batch takes the same memory.
        return latest.log_w.to("cpu", copy=True), latest.acceptance.to("cpu", copy=True)

    for index in batches:
        yield partial(anneal, index, Draws.of(images[index], model.nz, n_chains, generator))


def _estimate(log_w: Tensor, acceptance: Tensor, is_forward: bool) -> AISEstimate:
    """From log weights [C, n], and acceptance rates [n]."""
    sign, n_chains = 1 if is_forward else -1, len(log_w)  # reverse weights average to 1 / p(x)
    log_mean = torch.logsumexp(sign * log_w, 0) - math.log(n_chains)
    weights = (sign * log_w - log_mean).exp()  # their mean is 1
    error = weights.std(0) / math.sqrt(n_chains)
    effective = weights.sum(0).square() / weights.square().sum(0)
    return AISEstimate(sign * log_mean, error, acceptance, effective)


@asks
def simulated_gap(
    model: Autoencoder,
    schedule: Schedule,
    n_images: int,
    *,
    n_chains: int = 16,
    seed: int = 0,
    share: Shared | None = None,
) -> float:
    """Reverse minus forward log p(x), nats, averaged over `n_images` that the model simulates: how far each can be off.

    The reverse chains start at the z that the image was made from, an exact draw of p(z|x). Processes `share` the batches of
    both, as in `annealed_log_likelihood`.

    Example:
        >>> from torch import nn
        >>> from lae_fast import evaluation
        >>> model = lae_fast.VAE(nn.Linear(2, 4), nn.Identity(), lae_fast.Gaussian(1.0), nx=2, nz=2)
        >>> schedule = lae_fast.fit_schedule(model, torch.randn(20, 2), base="prior", n_temperatures=50, n_pilot=25)
        >>> abs(evaluation.simulated_gap(model, schedule, n_images=50)) < 0.5  # nats: both sides agree
        True
    """
    checks.count("n_images", n_images)
    # The chains start with the numbers of `seed`, and pilot runs with those of `apart(seed)`: z must be independent of both.
    apart = seeds.apart(seeds.apart(checks.seed("seed", seed)))
    images, z = model.simulate(n_images, torch.Generator(like_of(model).device).manual_seed(apart))
    below, above = _annealed(model, images, [(schedule, None), (schedule, z)], n_chains, seed, share=share)
    _warn(below, n_chains)
    return (above.log_likelihood - below.log_likelihood).mean().item()


@asks
def anneal(
    model: Autoencoder,
    images: Tensor,
    *,
    bases: Sequence[Base] = BASES,
    n_temperatures: int = 500,
    n_chains: int = 16,
    seed: int = 0,
    progress: bool = True,
    share: Shared | None = None,
) -> tuple[AISEstimate, Schedule]:
    """log p(x) of images [n, *shape] in [0, 1], annealed from each base: the estimate with the higher mean, and its
    schedule.

    For each base, `fit_schedule` runs on the first 50 images (with at most 200 pilot temperatures), then
    `annealed_log_likelihood` on all images. Each estimate is a lower bound in expectation; noise makes the higher of
    two estimates too high by at most about its standard error. Arguments and errors are those of the two functions; of
    processes that `share` the work one fits the schedule of a base, and all take batches of all bases.

    Example:
        >>> from lae_fast import evaluation, models
        >>> model = models.build(models.Architecture(nx=64, nz=2, nh=16, depth=1))
        >>> x = torch.rand(8, 64).round()
        >>> found, schedule = evaluation.anneal(model, x, n_temperatures=10, n_chains=4, progress=False)
        >>> found.log_likelihood.shape, schedule.base in evaluation.BASES
        (torch.Size([8]), True)
    """
    if isinstance(bases, str) or not len(bases):
        raise ValueError(f"bases are {bases!r}; expected a sequence of {', '.join(BASES)}")
    for base in bases:
        checks.choice("base", base, BASES)
    for name, value in (("n_temperatures", n_temperatures), ("n_chains", n_chains)):
        checks.count(name, value, 2)
    checks.seed("seed", seed)
    checks.flag("progress", progress)
    images = images_for(model, images)
    sharing.check(share)

    def schedule(base: Base) -> Schedule:
        found = fit_schedule(
            model,
            images[:50],
            base=base,
            n_temperatures=n_temperatures,
            n_pilot=min(200, n_temperatures),
            seed=seeds.apart(seed),
        )
        return found._replace(beta=found.beta.cpu(), step_size=found.step_size.cpu())

    device, fitted = images.device, sharing.done([partial(schedule, base) for base in bases], share)
    schedules = [s._replace(beta=s.beta.to(device), step_size=s.step_size.to(device)) for s in fitted]
    estimates = _annealed(
        model, images, [(s, None) for s in schedules], n_chains, seed, progress, share=share
    )
    best = max(zip(estimates, schedules, strict=True), key=lambda f: f[0].log_likelihood.mean())
    _warn(best[0], n_chains)
    return best
