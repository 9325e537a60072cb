"""p(z|y) from few labels: a normal distribution of codes for each class, fitted to codes most of which have no label."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

N_ITERATIONS = 30
POOLED = 0.2  # of each covariance is that of all classes together: it stays regular for a class of few codes


class Mixture(NamedTuple):
    """Normal distributions of the codes of c classes, which are equally likely."""

    means: Tensor  # [c, nz]
    factors: Tensor  # [c, nz, nz], lower triangular: of the covariances, by Cholesky

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """z ~ p(z|y), a new code for each label: [n] -> [n, nz]."""
        means = self.means[labels]
        noise = torch.randn(means.shape, generator=generator, device=means.device, dtype=means.dtype)
        return means + torch.einsum("nij,nj->ni", self.factors[labels], noise)

    def posterior(self, z: Tensor) -> Tensor:
        """p(y|z): [n, nz] -> [n, c]."""
        centred = (z - self.means[:, None]).mT  # [c, nz, n]
        white = torch.linalg.solve_triangular(self.factors, centred, upper=False)
        log_volumes = self.factors.diagonal(dim1=1, dim2=2).log().sum(1)
        log_densities: Tensor = -0.5 * white.square().sum(1).T - log_volumes
        return log_densities.softmax(1)


def fit(z: Tensor, labels: Tensor, unlabelled: Tensor, n_classes: int) -> Mixture:
    """The mixture of codes z [n, nz] with their labels [n], and of others [N, nz], by EM (Nigam et al., 2000).

    It starts from the labelled ones alone: they are of every class, and enough for one covariance, n - n_classes >= nz.
    """
    known = F.one_hot(labels, n_classes).double()  # [n, c]
    codes = torch.cat((z, unlabelled)).double()
    mixture = _weighted(z.double(), known, pooled=1.0)
    for _ in range(N_ITERATIONS):
        mixture = _weighted(codes, torch.cat((known, mixture.posterior(codes[len(z) :]))))
    return Mixture(*(t.to(z.dtype) for t in mixture))


def _weighted(z: Tensor, weights: Tensor, pooled: float = POOLED) -> Mixture:
    """The distributions of codes z [n, nz] that belong to the classes by these weights [n, c]."""
    totals = weights.sum(0)
    means = weights.T @ z / totals[:, None]
    centred = z - means[:, None]  # [c, n, nz]
    scatters = (weights.T[:, :, None] * centred).mT @ centred  # [c, nz, nz]
    covariances = (1 - pooled) * scatters / totals[:, None, None] + pooled * scatters.sum(0) / len(z)
    return Mixture(means, torch.linalg.cholesky(covariances))
