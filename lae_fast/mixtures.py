"""p(z|y) from few labels: a normal distribution of codes for each class, fitted to codes most of which have no label."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lae_fast import checks
from lae_fast.isolation import exact

N_ITERATIONS = 30
# Of each covariance this part comes from all classes together: that of a class with few codes stays regular.
POOLED = 0.2
RIDGE = 1e-6  # added to the diagonals, in units of their means: codes may lie in a plane, but for rounding


class ClassMixture(NamedTuple):
    """Normal distributions of the codes of c classes, which are equally likely.

    Attributes:
        means: [c, nz].
        factors: [c, nz, nz], lower triangular: of the covariances, by Cholesky.

    Example:
        >>> classes = lae_fast.mixtures.ClassMixture(torch.tensor([[-3.0], [3.0]]), torch.ones(2, 1, 1))
        >>> classes.posterior(torch.tensor([[-3.0], [0.0]])).round(decimals=2)
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000]])
    """

    means: Tensor
    factors: Tensor

    def draw(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """New codes z ~ p(z|y), one for each label: int64 [n] -> [n, nz].

        Args:
            labels: from 0 to c - 1, on the device of the codes; values are checked on a CPU only.
            generator: source of randomness; default: the generator that `torch.manual_seed` sets.

        Raises:
            TypeError, ValueError: labels have another form, or the generator is on another device.
        """
        _check_labels(labels, self.means, len(self.means))
        checks.generator("generator", generator, self.means.device)
        means = self.means[labels]
        noise = torch.randn(means.shape, generator=generator, device=means.device, dtype=means.dtype)
        with exact():
            return means + torch.einsum("nij,nj->ni", self.factors[labels], noise)

    def posterior(self, z: Tensor) -> Tensor:
        """p(y|z) of codes: [n, nz] -> [n, c].

        Raises:
            TypeError, ValueError: z has another form.
        """
        axes, device = f"n, {self.means.shape[1]}", self.means.device
        checks.tensor("z", z, axes, dtypes=(self.means.dtype,), device=device)
        log_densities = []
        for mean, factor in zip(self.means.double(), self.factors.double(), strict=True):
            white = torch.linalg.solve_triangular(factor, (z - mean).T, upper=False)  # [nz, n]
            log_densities.append(-0.5 * white.square().sum(0) - factor.diagonal().log().sum())
        return torch.stack(log_densities, 1).softmax(1).to(z.dtype)


@torch.no_grad()
def fit_classes(z: Tensor, labels: Tensor, unlabelled: Tensor | None = None) -> ClassMixture:
    """The normal distributions of the codes of c classes, from few codes with a label and many without, by EM (Nigam et al., 2000).

    It starts from the labelled codes, with one covariance for all classes, and takes 30 steps. The label of a code is believed; the
    others belong to the classes by p(y|z). A fifth of each covariance is the mean one, and a millionth of the mean variance is added.

    Args:
        z: codes with labels, [n, nz], as of `model.encode`.
        labels: int64 [n], from 0 to c - 1, each of them at least once.
        unlabelled: more codes, [N, nz].

    Raises:
        TypeError, ValueError: an argument has another form or values that are not finite, a class has no label, there are
            fewer than nz + c labelled codes, or these do not differ.

    Example:
        >>> labels = torch.arange(2).repeat(500)
        >>> z = torch.randn(1000, 2) + 6 * labels[:, None]
        >>> classes = lae_fast.fit_classes(z[:6], labels[:6], z[6:])  # three labels of each class
        >>> bool((classes.posterior(z).argmax(1) == labels).double().mean() > 0.98)
        True
        >>> classes.draw(torch.tensor([0, 1, 1])).shape  # new codes, for `model.decode`
        torch.Size([3, 2])
    """
    checks.tensor("z", z, "n, nz")
    if unlabelled is None:
        unlabelled = z[:0]
    checks.tensor("unlabelled", unlabelled, f"N, {z.shape[1]}", dtypes=(z.dtype,), device=z.device)
    _check_labels(labels, z)
    if len(labels) != len(z):
        raise ValueError(f"labels are {checks.describe(labels)}; expected one for each of {len(z)} codes")
    if int(labels.max()) >= len(labels):
        raise ValueError(
            f"labels are from 0 to {int(labels.max())}, of {len(labels)} codes; expected each label at least once"
        )
    counts = labels.bincount()
    if not counts.all():
        raise ValueError(
            f"label {int(counts.argmin())} is of no code; expected each from 0 to {len(counts) - 1}"
        )
    if len(z) - len(counts) < z.shape[1]:
        raise ValueError(
            f"there are {len(z)} codes with labels; expected at least {z.shape[1] + len(counts)}, of {len(counts)} classes and "
            f"{z.shape[1]} dimensions"
        )
    codes = torch.cat((z, unlabelled)).double()
    if not codes.isfinite().all():
        raise ValueError("codes have values that are not finite; expected finite ones")
    known = F.one_hot(labels).double()  # [n, c]
    mixture = _weighted(z.double(), known, pooled=1.0)
    for _ in range(N_ITERATIONS):
        mixture = _weighted(codes, torch.cat((known, mixture.posterior(codes[len(z) :]))))
    return ClassMixture(*(t.to(z.dtype) for t in mixture))


def _check_labels(labels: Tensor, like: Tensor, n_classes: int | None = None) -> None:
    """Raise a TypeError or ValueError unless labels are whole numbers [n] from 0 to n_classes - 1; None: any number of classes."""
    checks.tensor("labels", labels, "n", dtypes=(torch.int64,), device=like.device)
    if labels.numel() == 0 or labels.is_meta:
        raise ValueError(f"labels are {checks.describe(labels)}; expected at least one")
    if n_classes is not None and labels.device.type != "cpu":
        return  # a look would wait for the device
    least, most = (int(v) for v in labels.aminmax())
    if least < 0 or (n_classes is not None and most >= n_classes):
        raise ValueError(
            f"labels are from {least} to {most}; expected all from 0"
            + ("" if n_classes is None else f" to {n_classes - 1}")
        )


def _weighted(z: Tensor, weights: Tensor, pooled: float = POOLED) -> ClassMixture:
    """The distributions of codes z [n, nz] that belong to the classes by these weights [n, c]."""
    totals = weights.sum(0)
    means = weights.T @ z / totals[:, None]
    scatters = torch.stack(
        [(w[:, None] * (z - m)).T @ (z - m) for w, m in zip(weights.T, means, strict=True)]
    )  # [c, nz, nz]
    covariances = (1 - pooled) * scatters / totals[:, None, None] + pooled * scatters.sum(0) / len(z)
    variances = covariances.diagonal(dim1=1, dim2=2)
    variances += RIDGE * variances.mean(1, keepdim=True)
    factors, failed = torch.linalg.cholesky_ex(covariances)
    if failed.any():
        raise ValueError(
            "codes do not differ, or by more than numbers hold; expected codes with a covariance"
        )
    return ClassMixture(means, factors)
