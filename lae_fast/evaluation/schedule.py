"""Temperatures and step sizes of annealing, from a pilot run."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lae_fast import checks
from lae_fast.evaluation.annealing import Annealing, Draws, per_pass, repeated
from lae_fast.models.autoencoder import Autoencoder, asks, images_for
from lae_fast.sampling.adaptation import TARGET_ACCEPTANCE

Base = Literal["encoder", "prior"]
BASES: tuple[Base, ...] = ("encoder", "prior")


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
    base: Base = "encoder",
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
    checks.count("n_temperatures", n_temperatures, 2)
    checks.count("n_chains", n_chains, 2)
    checks.count("n_pilot", n_pilot)
    checks.seed("seed", seed)
    if capture is not None:
        checks.flag("capture", capture)
    checks.choice("base", base, BASES)
    images = images_for(model, images).detach()[: per_pass(n_chains)]
    generator = torch.Generator(images.device).manual_seed(seed)
    chains = Annealing(model, images, base, Draws.of(images, model.nz, n_chains, generator))
    run = repeated(chains.move, images.device, capture)
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


def check_schedule(schedule: Schedule, device: torch.device) -> None:
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
