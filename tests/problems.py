"""Targets with known answers, shared by the tests of every sampler. Energies are [C] for phi [C, 2].

Posteriors of several datapoints, with energies [C, n] for z [C, n, 2], are those of `lae_fast.experiments.toys`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lae_fast.experiments.toys import Posterior, Problem


class Gaussian:
    """A correlated Gaussian: mean m, covariance S."""

    mean = torch.tensor([1.0, -2.0], dtype=torch.float64)
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)

    def __call__(self, phi: Tensor) -> Tensor:
        centred = phi - self.mean.to(phi)
        return 0.5 * ((centred @ torch.linalg.inv(self.covariance).to(phi)) * centred).sum(1)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        white = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return self.mean + white @ torch.linalg.cholesky(self.covariance).T

    def unadjusted_covariance(self, eta: float) -> Tensor:
        """The stationary covariance of plain Langevin at step size eta: S (I - eta S^-1 / 2)^-1."""
        identity = torch.eye(2, dtype=torch.float64)
        return self.covariance @ torch.linalg.inv(identity - 0.5 * eta * torch.linalg.inv(self.covariance))

    moments = (1.0, -2.0, 1.0, 0.6, 0.5)

    def statistics(self, phi: Tensor) -> Tensor:
        """Functions [n, 5] whose expectations are `moments`: the means and the covariances."""
        c = phi.double() - self.mean
        return torch.stack((phi[:, 0], phi[:, 1], c[:, 0] ** 2, c[:, 0] * c[:, 1], c[:, 1] ** 2), 1).double()


class Banana:
    """x ~ N(0, 1), y = w - b (x^2 - 1) with w ~ N(0, 1): E y = 0, E y^2 = 1 + 2 b^2, E x^2 y = -2 b."""

    b = 0.7

    def __call__(self, phi: Tensor) -> Tensor:
        x, y = phi.unbind(1)
        return 0.5 * x**2 + 0.5 * (y + self.b * (x**2 - 1)) ** 2

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        x, w = torch.randn(2, n, generator=generator, dtype=torch.float64)
        return torch.stack((x, w - self.b * (x**2 - 1)), 1)

    moments = (0.0, 0.0, 1.0, 0.0, 1 + 2 * b**2)

    def statistics(self, phi: Tensor) -> Tensor:
        x, y = phi.double().unbind(1)
        return torch.stack((x, y, x**2, x * y, y**2), 1)


class ZScores(NamedTuple):
    values: Tensor

    @classmethod
    def of(cls, samples: Tensor, expected: tuple[float, ...]) -> ZScores:
        """(mean - expected) / standard error of each column of independent samples [n, k]."""
        error = samples.std(0) / samples.shape[0] ** 0.5
        return cls((samples.mean(0) - torch.tensor(expected, dtype=samples.dtype)) / error)


def second_moments(z: Tensor, mean: Tensor) -> Tensor:
    """z_1, z_2 and the three products of their deviations from mean [n, 2], for each datapoint: [..., 5 n]."""
    a, b = (z - mean).unbind(-1)
    return torch.stack((z[..., 0], z[..., 1], a * a, a * b, b * b), -1).flatten(-2)


def expected_moments(mean: Tensor, covariance: Tensor) -> tuple[float, ...]:
    """What `second_moments` are on average, for means [n, 2] and covariances [n, 2, 2]."""
    return tuple(torch.cat((mean, covariance.flatten(1)[:, [0, 1, 3]]), 1).flatten().tolist())


class Histogram:
    """Posterior probabilities of 20 x 20 cells over +-4 posterior deviations, and of all that lies outside."""

    n_cells, n_parts = 20, 20  # the midpoint rule takes 20 x 20 points of each cell

    def __init__(self, problem: Problem, posterior: Posterior) -> None:
        deviation = posterior.covariance.diagonal(dim1=1, dim2=2).sqrt()
        self.low, self.width = posterior.mean - 4 * deviation, 8 * deviation / self.n_cells
        axis = (torch.arange(self.n_cells * self.n_parts, dtype=torch.float64) + 0.5) / self.n_parts
        z = self.low + torch.cartesian_prod(axis, axis)[:, None] * self.width
        mass = (-problem.energy(z) - posterior.log_evidence).exp() * (self.width / self.n_parts).prod(1)
        inside = mass.new_zeros(self.n_cells**2 + 1, mass.shape[1]).scatter_add(0, self.cells(z), mass)
        inside[-1] = 1 - inside.sum(0)
        self.probability = inside

    def cells(self, z: Tensor) -> Tensor:
        """The cell of each z [N, n, 2], [N, n]."""
        place = ((z - self.low) / self.width).floor().long()
        is_inside = ((place >= 0) & (place < self.n_cells)).all(-1)
        return torch.where(is_inside, place[..., 0] * self.n_cells + place[..., 1], self.n_cells**2)

    def total_variation(self, z: Tensor) -> Tensor:
        """Half the summed differences between the shares of draws [N, n, 2] and the probabilities, [n]."""
        shares = torch.zeros_like(self.probability).scatter_add(
            0, self.cells(z), torch.ones(1, dtype=torch.float64).expand(z.shape[:2])
        )
        return 0.5 * (shares / len(z) - self.probability).abs().sum(0)
