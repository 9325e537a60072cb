"""Annealed importance sampling of log p(x) (Neal, 2001), forward and reverse (Grosse et al., 2015).

Chains move from a base r(z|x) at beta = 0 to the posterior at beta = 1 through r(z|x)^(1 - beta) p(x, z)^beta, one
MALA step at each temperature, thousands of images x chains at once. The base is the prior, or the encoder's q(z|x),
which is closer to the posterior. The forward estimate, log mean w, is in expectation a lower bound of log p(x). The
reverse estimate is an upper bound; it starts at an exact draw of p(z|x), which is known for images that the model
itself has simulated. The gap between the two bounds shows how far each can be off.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lae_fast import checks, ops, seeds, sharing
from lae_fast import progress as bars
from lae_fast.graphs import Replayed
from lae_fast.isolation import differentiable
from lae_fast.models.autoencoder import Autoencoder, asks, images_for
from lae_fast.models.decoder_pass import DensePass, whole_pass
from lae_fast.models.likelihood import negative_log_prior
from lae_fast.sampling.acceptance import acceptance_rate
from lae_fast.sampling.adaptation import TARGET_ACCEPTANCE
from lae_fast.sharing import Shared

ROWS = 2048  # images x chains of one pass through the decoder
BASES = ("encoder", "prior")
COLLAPSED = 2.0  # effective sample sizes below this are of weights that have collapsed onto one chain
MANY = 1 / 3  # share of images with collapsed weights that deserves a warning


class Schedule(NamedTuple):
    """Temperatures and step sizes of annealing; a pilot run fixes them before anything is estimated.

    Attributes:
        seed: of the pilot run; an estimate must use another seed.
        base: "encoder" or "prior".
        beta: the temperatures, from 0 to 1, [K + 1], float64.
        step_size: eta of the moves at beta[1] .. beta[K - 1], in units of the base, [K - 1], float64.

    Example:
        >>> beta, step_size = (torch.linspace(0, 1, 11, dtype=torch.float64), torch.full((9,), 0.5, dtype=torch.float64))
        >>> schedule = lae_fast.Schedule(seed=1, base="prior", beta=beta, step_size=step_size)  # of one's own, without a pilot run
        >>> len(schedule.beta) - len(schedule.step_size)  # K + 1 temperatures, a move at each but the first and the last
        2
    """

    seed: int
    base: str
    beta: Tensor
    step_size: Tensor


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


class _Draws(NamedTuple):
    """What the chains of a batch of images draw before they start."""

    rng: Tensor  # int64 [3], of all their moves
    e: Tensor  # [C, n, nz], standard normals

    @classmethod
    def of(cls, x: Tensor, nz: int, n_chains: int, generator: torch.Generator) -> _Draws:
        """For images x [n, *shape]."""
        rng = ops.make_rng(x.device, generator)
        shape = (n_chains, len(x), nz)
        return cls(rng, torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device))


class _Annealing:
    """Rows e [C, n, nz], moved from N(0, I) at one temperature after another; z = m + s e.

    m and s [n, nz] are mean and standard deviation of the base: in e the base is round, and one step size fits all
    images. All tensors keep their memory, also from one batch of n images to the next: a CUDA graph of a move serves them
    all.

    Args:
        x: the first images, [n, *shape].
    """

    x: Tensor  # [n, *shape]
    images: Tensor  # [C n, nx], the same for each chain, where whole layers are evaluated
    mean: Tensor  # m, [n, nz]
    std: Tensor  # s, [n, nz]
    log_volume: Tensor  # float64 [n], the sum of log s
    rng: Tensor  # int64 [3]
    e: Tensor  # [C, n, nz]
    prior: Tensor  # float64 [C, n], -log N(e)
    log_ratio: Tensor  # float64 [C, n], log p(x, z) - log r(z|x), by which the weights grow
    slope: Tensor  # [C, n, nz], its derivative in e

    def __init__(self, model: Autoencoder, x: Tensor, base: str, draws: _Draws) -> None:
        self.model, self.base, self.n_chains = model, base, len(draws.e)
        self.decoder: DensePass | None = None
        if whole_pass(model, x.flatten(1)) is not None:  # it takes a row for each chain
            self._hold(images=x.flatten(1).repeat(self.n_chains, 1))
            self.decoder = whole_pass(model, self.images)
        # beta and step size of the next move, [1] each
        self.beta, self.step_size = torch.zeros(2, 1, dtype=torch.float64, device=x.device)
        self.start(x, draws)

    def start(self, x: Tensor, draws: _Draws) -> None:
        """Start the chains of images x [n, *shape], as many as before, at draws of the base."""
        mean, std = x.new_zeros(len(x), self.model.nz), x.new_ones(len(x), self.model.nz)
        if self.base == "encoder":
            mean, std = self.model.posterior(x)
        self._hold(x=x, mean=mean, std=std, log_volume=std.log().sum(-1, dtype=torch.float64))
        self._hold(rng=draws.rng)
        if self.decoder is not None:
            self._hold(images=x.flatten(1).repeat(self.n_chains, 1))
        self.start_at(draws.e)

    def start_at(self, e: Tensor) -> None:
        """Start the chains at e [C, n, nz]."""
        self._hold(e=e)
        prior, log_ratio, slope = self._evaluate(self.e)
        self._hold(prior=prior, log_ratio=log_ratio, slope=slope)

    def start_at_z(self, z: Tensor) -> None:
        """Start all chains of an image at its z [n, nz]."""
        self.start_at(((z - self.mean) / self.std).expand(self.n_chains, -1, -1))

    def _hold(self, **values: Tensor) -> None:
        """Keep values as attributes, each always in the same memory."""
        for name, value in values.items():
            if hasattr(self, name):
                getattr(self, name).copy_(value)
            else:
                setattr(self, name, value.clone(memory_format=torch.contiguous_format))

    def _evaluate(self, e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-log N(e) [C, n]; log p(x, z) - log r(z|x) [C, n]; and the derivative of the latter in e [C, n, nz]."""
        potential, gradient = self._by_autograd(e) if self.decoder is None else self._by_hand(e, self.decoder)
        prior = negative_log_prior(e)
        return prior, prior + self.log_volume - potential, e - gradient

    def _by_autograd(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """-log p(x, z) [C, n], and its derivative in e [C, n, nz]."""
        with differentiable():
            leaf = e.detach().requires_grad_()
            potential = self.model.potential(self.x, self.mean + self.std * leaf)
            (gradient,) = torch.autograd.grad(potential, leaf, torch.ones_like(potential))
        return potential.detach(), gradient

    def _by_hand(self, e: Tensor, decoder: DensePass) -> tuple[Tensor, Tensor]:
        z = torch.addcmul(self.mean, self.std, e)
        potential, z_grad = decoder.evaluate(z.flatten(0, 1))
        return potential.view(e.shape[:-1]), z_grad.view_as(e) * self.std

    def move(self) -> Tensor:
        """One MALA step that leaves r^(1 - beta) p^beta invariant; its acceptance rates [C, n]."""
        weight = self.beta.to(self.e.dtype)

        def rows(e: Tensor, prior: Tensor, log_ratio: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
            potential, grad = prior - self.beta * log_ratio, e - weight * slope
            return potential.flatten(), grad.flatten(0, 1)

        state = [self.e, self.prior, self.log_ratio, self.slope]
        potential, grad = rows(*state)
        e = self.e.flatten(0, 1)
        proposal, rng = ops.propose(e, grad, self.step_size, self.rng)
        new = [proposal.view_as(self.e), *self._evaluate(proposal.view_as(self.e))]
        new_potential, new_grad = rows(*new)
        accepted, _, log_alpha = ops.decide(
            e, proposal, potential, new_potential, grad, new_grad, self.step_size, rng
        )
        ops.keep([t.flatten(0, 1) for t in state], [t.flatten(0, 1) for t in new], ~accepted)
        self.rng.copy_(rng)
        return acceptance_rate(log_alpha).view_as(self.log_ratio)


def _repeated(call: Callable[[], Any], device: torch.device, capture: bool | None) -> Callable[[], Any]:
    """A call on the same memory every time; on a GPU a graph replays it, unless declined."""
    captures = device.type == "cuda" if capture is None else capture
    return Replayed(call, device) if captures else call


class _Descent:
    """All moves of one schedule, forward or in reverse, and what they add up to.

    What a move needs of the schedule lies on the device, at a position that the move itself advances: the host only
    repeats it.
    """

    def __init__(
        self, chains: _Annealing, schedule: Schedule, is_forward: bool, capture: bool | None
    ) -> None:
        growth = schedule.beta.diff()  # [K], steps of beta: growth[k] and growth[k + 1] lie around move k
        columns = [schedule.beta[1:-1], schedule.step_size, growth[1:] if is_forward else growth[:-1]]
        table = torch.stack(columns, 1)  # [K - 1, 3]
        self.table = table if is_forward else table.flip(0)
        self.first = growth[0 if is_forward else -1]
        self.chains, self.n_moves = chains, len(table)
        self.position = torch.zeros(1, dtype=torch.int64, device=table.device)
        self.log_w = torch.zeros_like(chains.log_ratio)  # [C, n]
        self.acceptance = torch.zeros_like(self.log_w[0])  # [n]: the mean over chains and moves
        self.move = _repeated(self._move, table.device, capture)

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


def _interpolate(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The piecewise linear function through (x, y), x ascending, at points within its range."""
    right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    x0, x1, y0, y1 = x[right - 1], x[right], y[right - 1], y[right]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)


@asks
def fit_schedule(
    model: Autoencoder,
    images: Tensor,
    *,
    base: Literal["encoder", "prior"] = "encoder",
    n_temperatures: int = 500,
    n_chains: int = 16,
    seed: int = 10_000,
    n_pilot: int = 200,
    capture: bool | None = None,
) -> Schedule:
    """Temperatures and step sizes from a pilot run on some images [n, *shape] in [0, 1], with noise of its own.

    Temperatures lie dense where the chains' weights would diverge fastest: their spacing is uniform in the
    thermodynamic length, the integral over beta of the standard deviation of log p(x, z) - log r(z|x). The step size
    adapts during the pilot run towards an acceptance of 0.574.

    Args:
        images: the pilot run uses the first `ROWS // n_chains`, as many as one pass of the decoder takes.
        base: "encoder" or "prior".
        n_temperatures: K.
        n_chains: chains for each image.
        seed: seed of the pilot run.
        n_pilot: temperatures of the pilot run, with two moves at each.
        capture: replay the moves from a CUDA graph; default: on a GPU.

    Raises:
        ValueError: images or counts have another form, the base is unknown, or the model is not finite at the images.

    Example:
        >>> from lae_fast import models
        >>> model = models.build(models.Architecture(nx=64, nz=2, nh=16, depth=1))
        >>> schedule = lae_fast.fit_schedule(model, torch.rand(8, 64).round(), n_temperatures=20, n_chains=4, n_pilot=10)
        >>> schedule.beta[[0, -1]].tolist(), len(schedule.beta), len(schedule.step_size)
        ([0.0, 1.0], 21, 19)
    """
    for name, value, least in (
        ("n_temperatures", n_temperatures, 2),
        ("n_chains", n_chains, 2),
        ("n_pilot", n_pilot, 1),
    ):
        checks.count(name, value, least)
    checks.seed("seed", seed)
    if capture is not None:
        checks.flag("capture", capture)
    checks.choice("base", base, BASES)
    images = images_for(model, images).detach()[: max(1, ROWS // n_chains)]
    generator = torch.Generator(images.device).manual_seed(seed)
    chains = _Annealing(model, images, base, _Draws.of(images, model.nz, n_chains, generator))
    run = _repeated(chains.move, images.device, capture)
    pilot = torch.linspace(0, 1, n_pilot + 1, dtype=torch.float64, device=images.device) ** 3
    log_step_size = pilot.new_zeros(())
    spread, steps = [chains.log_ratio.std(0).mean()], [log_step_size]
    for beta in pilot[1:]:
        for _ in range(2):
            chains.beta.copy_(beta)
            chains.step_size.copy_(log_step_size.exp())
            acceptance = run().mean()
            log_step_size = log_step_size + 0.5 * (acceptance - TARGET_ACCEPTANCE)
        spread.append(chains.log_ratio.std(0).mean())
        steps.append(log_step_size)
    density = torch.stack(spread) + 1e-9  # where nothing varies, even steps
    if not density.isfinite().all():
        raise ValueError(
            "log p(x, z) is not finite for some image and draw of the pilot run; expected finite values"
        )
    length = torch.cat((pilot.new_zeros(1), torch.cumulative_trapezoid(density, pilot)))
    even = torch.linspace(0, 1, n_temperatures + 1, dtype=torch.float64, device=images.device) * length[-1]
    beta = _interpolate(even, length, pilot)
    beta[0], beta[-1] = 0, 1
    return Schedule(seed, base, beta, _interpolate(even[1:-1], length, torch.stack(steps)).exp())


def _check_schedule(schedule: Schedule, device: torch.device) -> None:
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule is {checks.describe(schedule)}; expected a Schedule, from fit_schedule")
    checks.choice("schedule.base", schedule.base, BASES)
    if not isinstance(schedule.seed, int):
        raise TypeError(f"schedule.seed is {checks.describe(schedule.seed)}; expected a whole number")
    for name, value in (("beta", schedule.beta), ("step_size", schedule.step_size)):
        checks.tensor(f"schedule.{name}", value, "K", dtypes=(torch.float64,), device=device)
    beta, eta = schedule.beta, schedule.step_size
    if len(beta) < 3 or len(eta) != len(beta) - 2:
        raise ValueError(
            f"schedule has {len(beta)} temperatures and {len(eta)} step sizes; expected K + 1 and K - 1, K >= 2"
        )
    is_good = (
        beta[0] == 0
        and beta[-1] == 1
        and (beta.diff() >= 0).all()
        and eta.isfinite().all()
        and (eta >= 0).all()
    )
    if not is_good:  # a NaN is not, either
        raise ValueError("schedule: expected temperatures that rise from 0 to 1, and finite step sizes >= 0")


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
        _check_schedule(schedule, images.device)
        if checks.seed("seed", seed) == schedule.seed:
            raise ValueError(f"seed is {seed}, the pilot run's; expected another")
        if exact is not None:
            checks.tensor("exact", exact, f"{len(images)}, {model.nz}", device=images.device)
            if not exact.isfinite().all():
                raise ValueError("exact is not finite everywhere; expected draws of p(z|x)")
    batches = torch.arange(len(images), device="cpu").split(max(1, ROWS // n_chains))
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

    def anneal(index: Tensor, draws: _Draws) -> _Result:
        nonlocal latest
        x = images[index]
        if latest is None or len(x) != len(latest.chains.x):  # the last batch may be smaller
            chains = _Annealing(model, x, schedule.base, draws)
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
        yield partial(anneal, index, _Draws.of(images[index], model.nz, n_chains, generator))


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
    images, z = model.simulate(n_images, torch.Generator(next(model.parameters()).device).manual_seed(apart))
    below, above = _annealed(model, images, [(schedule, None), (schedule, z)], n_chains, seed, share=share)
    _warn(below, n_chains)
    return (above.log_likelihood - below.log_likelihood).mean().item()


@asks
def anneal(
    model: Autoencoder,
    images: Tensor,
    *,
    bases: Sequence[str] = BASES,
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
    checks.count("n_temperatures", n_temperatures, 2)
    checks.seed("seed", seed)
    images = images_for(model, images)
    sharing.check(share)

    def schedule(base: str) -> Schedule:
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
