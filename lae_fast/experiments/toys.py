"""`python -m lae_fast.experiments.toys`: the samplers beside known answers, in three figures.

Two posteriors in the plane: one Gaussian, for which everything is known in closed form, and one under a small
random network, whose moments and probabilities come from a fine grid.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import tyro
from torch import Tensor

from lae_fast.experiments.style import COLOURS, GREY, STYLE
from lae_fast.sampling import Samples, ald_sample, langevin_sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _normals(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class Problem:
    """p(z) = N(0, I) and p(x|z) = N(decode(z), noise).

    Energies are in nats up to a constant: U(x, z) = |z|^2 / 2 + (x - decode(z))^T noise^-1 (x - decode(z)) / 2.
    """

    x: Tensor  # [n, 2]; [C, n, 2] gives every chain data of its own
    noise: Tensor  # [2, 2]
    decode: Callable[[Tensor], Tensor]  # [..., 2] -> [..., 2]

    def energy(self, z: Tensor) -> Tensor:
        """U(x_i, z_i), [C, n] for z [C, n, 2]."""
        residual = self.x - self.decode(z)
        return 0.5 * ((residual @ self.noise.inverse()) * residual + z.square()).sum(-1)


def conjugate(x: Tensor) -> Problem:
    """x|z ~ N(z, noise) with correlated noise, for observations x [n, 2]."""
    return Problem(x, torch.tensor([[0.7, 0.6], [0.6, 0.8]], dtype=torch.float64), lambda z: z)


def conjugate_posterior(problem: Problem) -> tuple[Tensor, Tensor]:
    """Means [n, 2], and the covariance S = (I + noise^-1)^-1 [2, 2] that all posteriors share."""
    precision = problem.noise.inverse()
    covariance = (torch.eye(2, dtype=torch.float64) + precision).inverse()
    return problem.x @ precision @ covariance, covariance


def neural() -> Problem:
    """x|z ~ N(network(z), 0.3^2 I): 16 tanh units with random weights, and three observations drawn from it.

    The seed gives posteriors that are far from Gaussian, lie apart, and have only modes that a chain can reach.
    """
    generator = torch.Generator().manual_seed(17)
    shapes = (2, 16), (16,), (16, 2), (3, 2), (3, 2)
    w1, b1, w2, z, noise = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)

    def decode(z: Tensor) -> Tensor:
        return (1.2 * z @ w1 + b1).tanh() @ (0.375 * w2)

    return Problem(decode(z) + 0.3 * noise, 0.09 * torch.eye(2, dtype=torch.float64), decode)


PROBLEMS = {
    "Gaussian": conjugate(torch.tensor([[-2.4, -1.0], [0.4, 2.3], [2.0, 0.0]], dtype=torch.float64)),
    "neural": neural(),
}


def random_features(x: Tensor, d: int, seed: int = 0) -> Tensor:
    """h_i = tanh(A x_i + b) with standard normal A and b, [n, d] for observations x [n, 2]."""
    weights = _normals(seed, 3, d)
    return (x @ weights[:2] + weights[2]).tanh()


@dataclasses.dataclass(frozen=True)
class Posterior:
    """p(z_i|x_i) by the midpoint rule on [-6, 6]^2; outside this square the prior leaves next to nothing.

    The densities are so smooth and the cells so fine that the rule is exact to rounding.
    """

    z: Tensor  # [cells, 2]: midpoints
    probability: Tensor  # [cells, n]
    log_evidence: Tensor  # [n]: log of the integral of exp(-U)
    width: float  # width of a cell

    @classmethod
    def of(cls, problem: Problem, n_cells: int = 400) -> Posterior:
        """The posteriors of a problem on n_cells^2 cells."""
        width = 12 / n_cells
        axis = -6 + width * (torch.arange(n_cells, dtype=torch.float64) + 0.5)
        z = torch.cartesian_prod(axis, axis)
        log_mass = 2 * math.log(width) - problem.energy(z[:, None])
        log_evidence = log_mass.logsumexp(0)
        return cls(z, (log_mass - log_evidence).exp(), log_evidence, width)

    @property
    def mean(self) -> Tensor:  # [n, 2]
        return self.probability.T @ self.z

    @property
    def covariance(self) -> Tensor:  # [n, 2, 2]
        centred = self.z[:, None] - self.mean
        return torch.einsum("cn,cni,cnj->nij", self.probability, centred, centred)

    def draw(self, n_draws: int, generator: torch.Generator) -> Tensor:
        """Independent draws, [n_draws, n, 2]: a cell by its probability, and a place in it."""
        index = self.probability.T.multinomial(n_draws, replacement=True, generator=generator)
        place = torch.rand(*index.T.shape, 2, generator=generator, dtype=torch.float64) - 0.5
        return self.z[index.T] + self.width * place


def best_gaussian(problem: Problem, start: Posterior) -> tuple[Tensor, Tensor]:
    """Means [n, 2] and Cholesky factors [n, 2, 2] of the Gaussians with the least KL(q || p), the aim of a VAE.

    Expectations are by Gauss and Hermite's rule; the search starts at the posteriors' own moments.
    """
    import numpy as np

    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(40))
    eps, weights = torch.cartesian_prod(nodes, nodes), torch.cartesian_prod(weights, weights).prod(1)
    mean, factor = start.mean, torch.linalg.cholesky(start.covariance).contiguous()
    optimizer = torch.optim.LBFGS(
        [mean.requires_grad_(), factor.requires_grad_()], max_iter=500, line_search_fn="strong_wolfe"
    )

    def divergence() -> Tensor:
        optimizer.zero_grad()
        z = mean + torch.einsum("nij,cj->cni", factor.tril(), eps)
        entropy = factor.diagonal(dim1=1, dim2=2).abs().log().sum()
        kl: Tensor = (weights / weights.sum() @ problem.energy(z)).sum() - entropy
        kl.backward()
        return kl

    optimizer.step(divergence)
    return mean.detach(), factor.detach().tril()


def _contours(axes: Axes, grid: Posterior, density: Tensor, masses: tuple[float, ...], **style: Any) -> None:
    """Lines around the smallest regions that hold these masses, rising, of a density [cells] on the grid."""
    p = density / density.sum()
    highest = p.sort(descending=True).values
    levels = [highest[(highest.cumsum(0) < mass).sum()].item() for mass in reversed(masses)]
    side = math.isqrt(len(p))
    axes.contour(*(t.view(side, side) for t in (*grid.z.unbind(1), p)), levels=levels, **style)


def toy_posteriors(n_draws: int = 1000) -> tuple[Figure, str]:
    """Both problems: the posteriors, what the samplers draw, and the best Gaussians."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.35), layout="constrained")
    panels = figure.subplots(len(PROBLEMS), 4, sharex=True, sharey=True)
    masses = (0.2, 0.5, 0.8, 0.95)
    for row, (name, problem) in zip(panels, PROBLEMS.items(), strict=True):
        generator = torch.Generator().manual_seed(1)
        options: dict[str, Any] = dict(n_draws=1, n_warmup=500, thin=500, generator=generator, progress=False)
        ald = ald_sample(problem.energy, random_features(problem.x, 16), nz=2, n_chains=n_draws, **options)
        langevin = langevin_sample(problem.energy, _normals(2, n_draws, 3, 2), **options)
        posterior = Posterior.of(problem)
        means, factors = best_gaussian(problem, posterior)
        for i, colour in enumerate(COLOURS):
            exact = posterior.probability[:, i]
            _contours(row[0], posterior, exact, masses, colors=colour, linewidths=0.8)
            for axes, samples in zip(row[1:3], (ald, langevin), strict=True):
                axes.scatter(*samples.z[:, 0, i].T, s=1, color=colour, alpha=0.5, linewidths=0)
            white = (posterior.z - means[i]) @ factors[i].inverse().T
            gaussian = (-0.5 * white.square().sum(1)).exp()
            _contours(row[3], posterior, gaussian, masses, colors=colour, linewidths=0.8)
            for axes in row[1:]:
                _contours(axes, posterior, exact, masses[-1:], colors=GREY, linewidths=0.6)
        row[0].set_ylabel(name)
    for axes, title in zip(panels[0], ("exact", "ALD", "Langevin", "best Gaussian"), strict=True):
        axes.set_title(title)
    for axes in panels.flat:
        axes.set(aspect="equal", xlim=(-3.3, 3.3), ylim=(-3, 3.6), xticks=[], yticks=[])
        axes.spines[:].set_visible(True)
    return figure, (
        f"p(z|x) of three observations; contours hold 20, 50, 80 and 95 %, grey ones 95 % of the exact posterior. "
        f"{n_draws} draws, each the end of a chain of its own; best Gaussian: least KL(q || p), full covariance."
    )


def gaussian_errors(
    d: int, seed: int, n: int = 12, n_chains: int = 500, n_draws: int = 10
) -> tuple[float, float]:
    """The errors of variances and means of ALD with d random features on n Gaussian posteriors.

    Returns:
        The mean of |estimated variance / variance - 1|, and the root mean square of the means' errors in posterior
        standard deviations.
    """
    problem = conjugate(3**0.5 * _normals(100 + seed, n, 2))
    mean, covariance = conjugate_posterior(problem)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the features have rank")
        samples = ald_sample(
            problem.energy,
            random_features(problem.x, d, seed),
            nz=2,
            n_chains=n_chains,
            n_draws=n_draws,
            n_warmup=200,
            thin=20,
            generator=torch.Generator().manual_seed(seed),
            progress=False,
        )
    z, variance = samples.z.flatten(0, 1), covariance.diagonal()
    of_variances = (z.var(0) / variance - 1).abs().mean()
    of_means = ((z.mean(0) - mean).square() / variance).mean().sqrt()
    return of_variances.item(), of_means.item()


def capacity(n: int = 12, n_seeds: int = 5) -> tuple[Figure, str]:
    """The rank condition: ALD follows the product of n posteriors if it has at least n features."""
    from matplotlib.figure import Figure

    ranks = range(1, 2 * n + 1)
    errors = torch.tensor([[gaussian_errors(d, seed, n) for seed in range(n_seeds)] for d in ranks])
    figure = Figure(figsize=(4.2, 2.9), layout="constrained")
    axes = figure.subplots()
    x = torch.tensor(ranks) / n
    axes.plot([0, 1, 2], [1, 0, 0], color=GREY, linestyle="--", label=r"theory, variances: $1 - d/n$")
    styles: list[dict[str, Any]] = [
        dict(fmt="o", label="variances"),
        dict(fmt="s", fillstyle="none", label="means"),
    ]
    for values, colour, style in zip(errors.unbind(2), COLOURS, styles, strict=False):
        axes.errorbar(x, values.mean(1), values.std(1), color=colour, elinewidth=0.8, **style)
    axes.set(xlabel="features per datapoint, $d / n$", ylabel="error of ALD's posteriors", xlim=(0, 2.05))
    axes.set(ylim=(-0.05, None), xticks=[0, 0.5, 1, 1.5, 2])
    axes.legend()
    return figure, (
        f"{n} Gaussian posteriors, 5000 draws each; mean and standard deviation over {n_seeds} sets of "
        f"data and features. Variances: mean relative error; means: r.m.s. error in posterior deviations."
    )


def step_size_bias(n_chains: int = 500) -> tuple[Figure, str]:
    """The bias of a posterior's total variance, with and without Metropolis-Hastings."""
    from matplotlib.figure import Figure

    problem = PROBLEMS["Gaussian"]
    mean, covariance = conjugate_posterior(problem)
    eigenvalues: Tensor = torch.linalg.eigvalsh(covariance)
    total = eigenvalues.sum()

    def theory(eta: Tensor) -> Tensor:
        """Relative bias [k] of the trace of S (I - eta S^-1 / 2)^-1, plain Langevin's covariance, at step sizes [k]."""
        return (eigenvalues / (1 - 0.5 * eta[:, None] / eigenvalues)).sum(1) / total - 1

    def measure(sampler: Callable[..., Samples], eta: float, mh: bool) -> tuple[float, float]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*needlessly small steps")
            samples = sampler(
                n_draws=40,
                n_warmup=600,
                thin=10,
                step_size=eta,
                mh=mh,
                progress=False,
                generator=torch.Generator().manual_seed(1),
            )
        of_chains = (samples.z - mean).square().sum(3).mean((1, 2)) / total - 1
        return of_chains.mean().item(), of_chains.std().item() / n_chains**0.5

    features, start = random_features(problem.x, 16), _normals(2, n_chains, 3, 2)
    samplers = {
        "ALD": partial(ald_sample, problem.energy, features, nz=2, n_chains=n_chains),
        "Langevin": partial(langevin_sample, problem.energy, start),
    }
    figure = Figure(figsize=(4.2, 2.9), layout="constrained")
    axes = figure.subplots()
    curve = torch.linspace(0, 0.205, 200, dtype=torch.float64)
    axes.plot(curve, theory(curve), color=GREY, linestyle="--", label="theory, unadjusted")
    axes.axhline(0, color=GREY, linewidth=0.6)
    step_sizes = torch.tensor([0.01, 0.04, 0.08, 0.12, 0.16, 0.2], dtype=torch.float64)
    for mh, colour in ((False, COLOURS[1]), (True, COLOURS[0])):
        for (name, sampler), marker, shift in zip(samplers.items(), "os", (-1e-3, 1e-3), strict=True):
            bias, error = zip(*(measure(sampler, eta, mh) for eta in step_sizes.tolist()), strict=True)
            label = f"{name}, {'Metropolis-Hastings' if mh else 'unadjusted'}"
            style: dict[str, Any] = dict(fmt=marker, color=colour, elinewidth=0.8, label=label)
            axes.errorbar(step_sizes + shift, bias, error, **style)
    axes.set(xlabel=r"step size $\eta$", ylabel="relative bias of the variance", xlim=(0, 0.205))
    axes.set(xticks=[0, 0.05, 0.1, 0.15, 0.2])
    axes.legend()
    return figure, (
        f"Three Gaussian posteriors, total variance; {n_chains} chains of 40 draws, mean and standard error over chains."
    )


def main(output: Path = Path("results")) -> None:
    """Write toy_posteriors.png, capacity.png and step_size_bias.png.

    Args:
        output: the folder for these files.
    """
    import matplotlib

    output.mkdir(parents=True, exist_ok=True)
    for draw in (toy_posteriors, capacity, step_size_bias):
        with matplotlib.rc_context(STYLE):
            figure, caption = draw()
            path = output / f"{draw.__name__}.png"
            figure.savefig(path, dpi=160, metadata={"Description": caption, "Software": None})
        print(path)


if __name__ == "__main__":
    tyro.cli(main)
