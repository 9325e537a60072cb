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
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lae_fast import checks, ops, seeds
from lae_fast import progress as bars
from lae_fast.graphs import Replayed
from lae_fast.isolation import differentiable
from lae_fast.models.autoencoder import Autoencoder, asks, images_for
from lae_fast.models.likelihood import negative_log_prior
from lae_fast.sampling.acceptance import acceptance_rate
from lae_fast.sampling.adaptation import TARGET_ACCEPTANCE

ROWS = 2048  # images x chains of one pass through the decoder
BASES = ("encoder", "prior")
COLLAPSED = 2.0  # effective sample sizes below this are of weights that have collapsed onto one chain
MANY = 1 / 3  # share of images with collapsed weights that deserves a warning


class Schedule(NamedTuple):
    """Temperatures and step sizes of annealing; a pilot run fixes them before anything is estimated.

    Example:
        >>> beta, step_size = (torch.linspace(0, 1, 11, dtype=torch.float64), torch.full((9,), 0.5, dtype=torch.float64))
        >>> schedule = lae_fast.Schedule(seed=1, base="prior", beta=beta, step_size=step_size)  # of one's own, without a pilot run
        >>> len(schedule.beta) - len(schedule.step_size)  # K + 1 temperatures, a move at each but the first and the last
        2
    """

    seed: int  # seed of the pilot run; an estimate must use another seed
    base: str  # "encoder" or "prior"
    beta: Tensor  # [K + 1], float64: from 0 to 1
    step_size: Tensor  # [K - 1], float64: eta of the moves at beta[1] .. beta[K - 1], in units of the base


class AISEstimate(NamedTuple):
    """One value for each image, float64 [n], on the CPU.

    The standard error is that of `log_likelihood`, by the delta method; for a reverse estimate it is conditional on the
    one exact draw of each image. C chains cannot report more than about 1 nat: where one chain holds nearly all weight, and
    the effective sample size is near 1, the estimate can be off by many times the standard error.

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

    log_likelihood: Tensor  # nats: log of the mean weight
    standard_error: Tensor  # nats
    acceptance_rate: Tensor  # mean over chains and temperatures
    effective_sample_size: Tensor  # of the weights, 1 to n_chains: near 1 the standard error says nothing


class _Annealing:
    """Rows e [C, n, nz], moved from N(0, I) at one temperature after another; z = m + s e.

    m and s [n, nz] are mean and standard deviation of the base: in e the base is round, and one step size fits all
    images. `log_ratio` [C, n] is log p(x, z) - log r(z|x), by which the weights grow. A move changes all tensors in
    place, so that a CUDA graph can replay it.
    """

    def __init__(
        self, model: Autoencoder, x: Tensor, base: str, n_chains: int, generator: torch.Generator
    ) -> None:
        self.model, self.x = model, x
        self.mean, self.std = x.new_zeros(len(x), model.nz), x.new_ones(len(x), model.nz)
        if base == "encoder":
            self.mean, self.std = model.posterior(x)
        self.rng = ops.make_rng(x.device, generator)
        # beta and step size of the next move, [1] each
        self.beta, self.step_size = torch.zeros(2, 1, dtype=torch.float64, device=x.device)
        shape = (n_chains, len(x), model.nz)
        self.start_at(torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device))

    def start_at(self, e: Tensor) -> None:
        """Start the chains at e [C, n, nz]."""
        self.e = e.contiguous()
        self.log_ratio, self.slope = self._evaluate(self.e)

    def start_at_z(self, z: Tensor, n_chains: int) -> None:
        """Start `n_chains` chains at z [n, nz]."""
        self.start_at(((z - self.mean) / self.std).expand(n_chains, -1, -1))

    def _evaluate(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x, z) - log r(z|x) [C, n], and its derivative in e [C, n, nz]."""
        with differentiable():
            leaf = e.detach().requires_grad_()
            log_joint = -self.model.potential(self.x, self.mean + self.std * leaf)
            (slope,) = torch.autograd.grad(log_joint.sum(), leaf)
        log_base = -negative_log_prior(e) - self.std.log().sum(-1, dtype=torch.float64)
        return log_joint.detach() - log_base, slope + e

    def move(self) -> Tensor:
        """One MALA step that leaves r^(1 - beta) p^beta invariant; its acceptance rates [C, n]."""

        def rows(e: Tensor, log_ratio: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            potential = negative_log_prior(e) - self.beta * log_ratio
            grad = e - self.beta.to(e.dtype) * slope
            return e.flatten(0, 1), potential.flatten(), grad.flatten(0, 1)

        e, potential, grad = rows(self.e, self.log_ratio, self.slope)
        proposal, rng = ops.propose(e, grad, self.step_size, self.rng)
        new = proposal.view_as(self.e), *self._evaluate(proposal.view_as(self.e))
        _, new_potential, new_grad = rows(*new)
        accepted, _, log_alpha = ops.decide(
            e, proposal, potential, new_potential, grad, new_grad, self.step_size, rng
        )
        accepted = accepted.view_as(self.log_ratio)
        for state, proposed in zip((self.e, self.log_ratio, self.slope), new, strict=True):
            is_accepted = accepted if state.dim() == 2 else accepted[..., None]
            torch.where(is_accepted, proposed, state, out=state)
        self.rng.copy_(rng)
        return acceptance_rate(log_alpha).view_as(self.log_ratio)


class _Moves:
    """`moves(beta, step_size)`, both []: one `_Annealing.move`; on a GPU a graph replays it, unless declined."""

    def __init__(self, chains: _Annealing, capture: bool | None) -> None:
        captures = chains.e.is_cuda if capture is None else capture
        self.chains, self.run = chains, Replayed(chains.move, chains.e.device) if captures else chains.move

    def __call__(self, beta: Tensor, step_size: Tensor) -> Tensor:
        self.chains.beta.copy_(beta)
        self.chains.step_size.copy_(step_size)
        return self.run()


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
    chains = _Annealing(model, images, base, n_chains, generator)
    move = _Moves(chains, capture)
    pilot = torch.linspace(0, 1, n_pilot + 1, dtype=torch.float64, device=images.device) ** 3
    log_step_size = pilot.new_zeros(())
    spread, steps = [chains.log_ratio.std(0).mean()], [log_step_size]
    for beta in pilot[1:]:
        for _ in range(2):
            acceptance = move(beta, log_step_size.exp()).mean()
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
) -> AISEstimate:
    """log p(x) of images [n, *shape] in [0, 1], estimated by `n_chains` annealed chains for each image.

    Args:
        schedule: from `fit_schedule` with another seed.
        exact: posterior draws [n, nz] of images that the model itself has simulated (`Autoencoder.simulate`): the
            chains then anneal from these draws to the base, for the upper bound.
        capture: as in `fit_schedule`.

    Raises:
        ValueError: images, draws or schedule have another form, fewer than 2 chains, or the pilot run's seed.

    Example:
        >>> from torch import nn
        >>> model = lae_fast.VAE(nn.Linear(2, 4), nn.Identity(), lae_fast.Gaussian(1.0), nx=2, nz=2)  # p(x) = N(0, 2 I)
        >>> x = torch.zeros(1, 2)
        >>> schedule = lae_fast.fit_schedule(model, x, n_temperatures=50, n_pilot=25)
        >>> found = lae_fast.annealed_log_likelihood(model, x, schedule, progress=False)
        >>> abs(found.log_likelihood.item() - -2.531) < 0.2  # log p(0) = -log(4 pi)
        True
    """
    estimate = _annealed(model, images, schedule, n_chains, seed, exact, progress, capture)
    _warn(estimate, n_chains, "low" if exact is None else "high")
    return estimate


def _annealed(
    model: Autoencoder,
    images: Tensor,
    schedule: Schedule,
    n_chains: int,
    seed: int,
    exact: Tensor | None = None,
    progress: bool = False,
    capture: bool | None = None,
) -> AISEstimate:
    """`annealed_log_likelihood`, without its warning: callers give theirs, which names the line that called them."""
    images = images_for(model, images).detach()
    _check_schedule(schedule, images.device)
    if checks.seed("seed", seed) == schedule.seed:
        raise ValueError(f"seed is {seed}, the pilot run's; expected another")
    checks.count("n_chains", n_chains, 2)  # for a standard error
    checks.flag("progress", progress)
    if capture is not None:
        checks.flag("capture", capture)
    if exact is not None:
        checks.tensor("exact", exact, f"{len(images)}, {model.nz}", device=images.device)
        exact = exact.to(images.dtype)
        if not exact.isfinite().all():
            raise ValueError("exact is not finite everywhere; expected draws of p(z|x)")
    generator = torch.Generator(images.device).manual_seed(seed)
    is_forward, n_moves = exact is None, len(schedule.step_size)
    growth = schedule.beta.diff()  # [K], steps of beta: growth[k] and growth[k + 1] lie around move k
    log_weights, acceptances = [], []
    batches = torch.arange(len(images), device="cpu").split(max(1, ROWS // n_chains))
    with bars.bar(total=len(batches) * n_moves, unit="step", desc="AIS", shown=progress) as bar:
        for index in batches:
            x = images[index]
            chains, acceptance = _Annealing(model, x, schedule.base, n_chains, generator), x.new_zeros(len(x))
            if not is_forward:
                chains.start_at_z(exact[index], n_chains)
            move = _Moves(chains, capture)
            log_w = chains.log_ratio * growth[0 if is_forward else -1]
            for k in range(n_moves) if is_forward else reversed(range(n_moves)):
                rate = move(schedule.beta[k + 1], schedule.step_size[k])
                acceptance = acceptance + rate.mean(0) / n_moves
                log_w += chains.log_ratio * growth[k + 1 if is_forward else k]
                bar.update()
            log_weights.append(log_w.cpu())
            acceptances.append(acceptance.cpu())
    log_w = torch.cat(log_weights, 1)  # [C, n]
    sign = 1 if is_forward else -1  # reverse weights average to 1 / p(x)
    log_mean = torch.logsumexp(sign * log_w, 0) - math.log(n_chains)
    weights = (sign * log_w - log_mean).exp()  # their mean is 1
    error = weights.std(0) / math.sqrt(n_chains)
    effective = weights.sum(0).square() / weights.square().sum(0)
    return AISEstimate(sign * log_mean, error, torch.cat(acceptances), effective)


@asks
def simulated_gap(
    model: Autoencoder, schedule: Schedule, n_images: int, *, n_chains: int = 16, seed: int = 0
) -> float:
    """Reverse minus forward log p(x), nats, averaged over `n_images` that the model simulates: how far each can be off.

    The reverse chains start at the z that the image was made from, an exact draw of p(z|x).

    Example:
        >>> from torch import nn
        >>> from lae_fast import evaluation
        >>> model = lae_fast.VAE(nn.Linear(2, 4), nn.Identity(), lae_fast.Gaussian(1.0), nx=2, nz=2)
        >>> schedule = lae_fast.fit_schedule(model, torch.randn(20, 2), base="prior", n_temperatures=50, n_pilot=25)
        >>> abs(evaluation.simulated_gap(model, schedule, n_images=50)) < 0.5  # nats: both sides agree
        True
    """
    checks.count("n_images", n_images)
    generator = torch.Generator(next(model.parameters()).device).manual_seed(checks.seed("seed", seed))
    images, z = model.simulate(n_images, generator)
    below, above = (_annealed(model, images, schedule, n_chains, seed, exact) for exact in (None, z))
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
) -> tuple[AISEstimate, Schedule]:
    """log p(x) of images [n, *shape] in [0, 1], annealed from each base: the estimate with the higher mean, and its
    schedule.

    For each base, `fit_schedule` runs on the first 50 images (with at most 200 pilot temperatures), then
    `annealed_log_likelihood` on all images. Each estimate is a lower bound in expectation; noise makes the higher of
    two estimates too high by at most about its standard error. Arguments and errors are those of the two functions.

    Example:
        >>> from lae_fast import evaluation, models
        >>> model = models.build(models.Architecture(nx=64, nz=2, nh=16, depth=1))
        >>> x = torch.rand(8, 64).round()
        >>> found, schedule = evaluation.anneal(model, x, n_temperatures=10, n_chains=4, progress=False)
        >>> found.log_likelihood.shape, schedule.base in evaluation.BASES
        (torch.Size([8]), True)
    """
    found = []
    if isinstance(bases, str) or not len(bases):
        raise ValueError(f"bases are {bases!r}; expected a sequence of {', '.join(BASES)}")
    for base in bases:
        checks.choice("base", base, BASES)
    checks.count("n_temperatures", n_temperatures, 2)
    checks.seed("seed", seed)
    images = images_for(model, images)
    for base in bases:
        schedule = fit_schedule(
            model,
            images[:50],
            base=base,
            n_temperatures=n_temperatures,
            n_pilot=min(200, n_temperatures),
            seed=seeds.apart(seed),
        )
        estimate = _annealed(model, images, schedule, n_chains, seed, progress=progress)
        found.append((estimate, schedule))
    best = max(found, key=lambda f: f[0].log_likelihood.mean())
    _warn(best[0], n_chains)
    return best
