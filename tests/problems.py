"""Targets with known answers, shared by the tests of every sampler. Energies are [C] for phi [C, 2]."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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
