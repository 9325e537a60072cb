"""Annealed importance sampling of log p(x) (Neal, 2001), forward and reverse (Grosse et al., 2015).

From the prior at beta = 0 to the posterior at beta = 1 through p(z) p(x|z)^beta, one MALA step at each
temperature, thousands of images x chains at once. Forward, log mean w is in expectation a lower bound of log p(x); the
reverse from an exact draw of p(z|x), known for data simulated by the model itself, is an upper bound. Their gap says
how far either can be off.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lae_fast import ops
from lae_fast.autoencoder import Autoencoder, check_images, negative_log_prior
from lae_fast.chains import TARGET_ACCEPTANCE

ROWS = 2048  # images x chains of one pass through the decoder


class Schedule(NamedTuple):
    """What annealing is done by; fixed by a pilot run, frozen before anything is estimated."""

    beta: Tensor  # [K + 1], float64: from 0 to 1
    step_size: Tensor  # [K - 1], float64: of the moves at beta[1] .. beta[K - 1]


class AISEstimate(NamedTuple):
    """One value an image, float64 [n], on the CPU."""

    log_likelihood: Tensor  # nats: log of the mean weight
    standard_error: Tensor  # nats: of that, by the delta method
    acceptance_rate: Tensor  # mean over chains and temperatures


class _Annealing:
    """Rows z [C, n, nz] and the cached -log p(x|z) and its gradient, moved at one temperature after another."""

    def __init__(self, model: Autoencoder, x: Tensor, z: Tensor, rng: Tensor) -> None:
        self.model, self.x, self.z, self.rng = model, x, z, rng
        self.energy, self.grad = self._evaluate(z)  # [C, n] and [C, n, nz]

    def _evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            energy = self.model.reconstruction(self.x, leaf)
            return energy.detach(), torch.autograd.grad(energy.sum(), leaf)[0]

    def move(self, beta: Tensor, step_size: Tensor) -> Tensor:
        """One MALA step that leaves p(z) p(x|z)^beta invariant; its acceptance rates [C, n]."""

        def potential(z: Tensor, energy: Tensor) -> Tensor:
            return (negative_log_prior(z) + beta * energy).flatten()

        def gradient(z: Tensor, grad: Tensor) -> Tensor:
            return (z + beta.to(z.dtype) * grad).flatten(0, 1)

        rows, g = self.z.flatten(0, 1), gradient(self.z, self.grad)
        proposal, rng = ops.propose(rows, g, step_size.view(1), self.rng)
        z = proposal.view_as(self.z)
        energy, grad = self._evaluate(z)
        accepted, _, log_alpha = ops.decide(
            rows, proposal, potential(self.z, self.energy), potential(z, energy), g, gradient(z, grad),
            step_size.view(1), rng,
        )  # fmt: skip
        accepted = accepted.view_as(energy)
        self.rng = rng
        self.z = torch.where(accepted[..., None], z, self.z)
        self.grad = torch.where(accepted[..., None], grad, self.grad)
        self.energy = torch.where(accepted, energy, self.energy)
        return log_alpha.exp().clamp(max=1).view_as(energy)


def _prior(model: Autoencoder, n_chains: int, x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(n_chains, len(x), model.nz, generator=generator, dtype=x.dtype, device=x.device)


@torch.no_grad()
def fit_schedule(
    model: Autoencoder, images: Tensor, *, n_temperatures: int = 500, n_chains: int = 16, seed: int = 10_000,
    n_pilot: int = 200,
) -> Schedule:  # fmt: skip
    """Temperatures and step sizes from a pilot run on some images [n, nx] in [0, 1], with noise of its own.

    Temperatures lie dense where log p(x|z) varies most between chains: in equal steps of the integral of its standard
    deviation over beta, which is the thermodynamic length. Step sizes follow the acceptance to 0.574 along the way.

    Raises:
        ValueError: images are not of that form, or fewer than 2 temperatures.
    """
    if n_temperatures < 2:
        raise ValueError(f"n_temperatures is {n_temperatures}; expected at least 2")
    check_images(images, model.nx)
    generator = torch.Generator(images.device).manual_seed(seed)
    chains = _Annealing(
        model, images, _prior(model, n_chains, images, generator), ops.make_rng(images.device, generator)
    )
    pilot = torch.linspace(0, 1, n_pilot + 1, dtype=torch.float64, device=images.device) ** 4
    log_step_size = torch.zeros((), dtype=torch.float64, device=images.device)
    spread, steps = [chains.energy.std(0).mean()], [log_step_size]
    for beta in pilot[1:]:
        for _ in range(2):
            acceptance = chains.move(beta, log_step_size.exp()).mean()
            log_step_size = log_step_size + 0.5 * (acceptance - TARGET_ACCEPTANCE)
        spread.append(chains.energy.std(0).mean())
        steps.append(log_step_size)
    density = torch.stack(spread)
    length = torch.cat((density.new_zeros(1), torch.cumulative_trapezoid(density, pilot)))
    even = torch.linspace(0, 1, n_temperatures + 1, dtype=torch.float64, device=images.device) * length[-1]
    beta = _interpolate(even, length, pilot)
    beta[0], beta[-1] = 0, 1
    return Schedule(beta, _interpolate(even[1:-1], length, torch.stack(steps)).exp())


def _interpolate(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The piecewise linear function through (x, y), x ascending, at points within its range."""
    right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    x0, x1, y0, y1 = x[right - 1], x[right], y[right - 1], y[right]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)


@torch.no_grad()
def annealed_log_likelihood(
    model: Autoencoder, images: Tensor, schedule: Schedule, *, n_chains: int = 16, seed: int = 0,
    exact: Tensor | None = None, progress: bool = True,
) -> AISEstimate:  # fmt: skip
    """log p(x) of images [n, nx] in [0, 1], estimated by `n_chains` annealed chains for each.

    Args:
        schedule: of `fit_schedule`, which must have used another seed.
        exact: posterior draws [n, nz] of images that the model itself has simulated (`Autoencoder.simulate`): anneal
            from them to the prior instead, for the upper bound.

    Raises:
        ValueError: images or draws are not of that form, or fewer than 2 chains.
    """
    from tqdm import tqdm

    check_images(images, model.nx)
    if n_chains < 2:
        raise ValueError(f"n_chains is {n_chains}; expected at least 2, for a standard error")
    if exact is not None and exact.shape != (len(images), model.nz):
        raise ValueError(f"exact is {list(exact.shape)}; expected [{len(images)}, {model.nz}]")
    generator = torch.Generator(images.device).manual_seed(seed)
    results = []
    n_moves = len(schedule.step_size)
    size = max(1, ROWS // n_chains)
    bar = tqdm(
        total=-(-len(images) // size) * n_moves, unit="step", desc="AIS", disable=None if progress else True
    )
    with bar:
        for start in range(0, len(images), size):
            x = images[start : start + size]
            if exact is None:
                z, order = _prior(model, n_chains, x, generator), range(n_moves)
            else:
                z, order = exact[start : start + size].expand(n_chains, -1, -1), range(n_moves)[::-1]
            chains = _Annealing(model, x, z.contiguous(), ops.make_rng(x.device, generator))
            gaps, acceptance = schedule.beta.diff(), 0.0
            log_w = -chains.energy * (gaps[0] if exact is None else gaps[-1])
            for k in order:  # at beta[k + 1], between gaps[k] and gaps[k + 1]
                acceptance = acceptance + chains.move(schedule.beta[k + 1], schedule.step_size[k]).mean(0)
                log_w -= chains.energy * gaps[k + 1 if exact is None else k]
                bar.update()
            results.append((log_w.cpu(), (acceptance / n_moves).cpu()))
    log_w = torch.cat([w for w, _ in results], 1)  # [C, n]
    sign = 1 if exact is None else -1  # the reverse weights average to 1 / p(x)
    log_mean = torch.logsumexp(sign * log_w, 0) - math.log(n_chains)
    error = (sign * log_w - log_mean).exp().std(0) / math.sqrt(n_chains)
    return AISEstimate(sign * log_mean, error, torch.cat([a for _, a in results]))
