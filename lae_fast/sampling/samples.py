"""`Samples`: the result of a sampler, its conversion for arviz, and a plot of how it went."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lae_fast import checks


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """The result of a sampler: chains along the first axis, draws along the second, as in arviz.

    ALD decides once for a whole chain, the datapoint-wise sampler once for each datapoint. `potential` and
    `acceptance_rate` are therefore [C, draw] for ALD, and [C, draw, n] for the datapoint-wise sampler. The
    acceptance rate of unadjusted chains is the fraction of finite proposals.

    Attributes:
        z: the sample sets Z, [C, draw, n, nz].
        potential: V at each draw, [C, draw] or [C, draw, n], float64, nats.
        acceptance_rate: like potential: mean of min(1, alpha) over the steps that lead to each draw.
        step_size: eta of all draws, [C] or [C, n], float64.
        n_nonfinite: proposals after warm-up that were rejected because they were not finite.
        kind: "Metropolis-Hastings", "unadjusted", or "unadjusted, minibatches of m".
        phi: ALD's last state, [C, nz, d]; None of the datapoint-wise sampler.

    Example:
        >>> def energy(z):  # [C, n, nz] -> [C, n], nats
        ...     return 0.5 * z.square().sum(-1)
        >>> samples = lae_fast.langevin_sample(energy, torch.randn(4, 3, 2), n_draws=100, n_warmup=200, progress=False)
        >>> samples.z.shape, samples.potential.shape  # four chains, 100 draws, three datapoints, two latent dimensions
        (torch.Size([4, 100, 3, 2]), torch.Size([4, 100, 3]))
        >>> samples.kind, samples.n_nonfinite
        ('Metropolis-Hastings', 0)
    """

    z: Tensor
    potential: Tensor
    acceptance_rate: Tensor
    step_size: Tensor
    n_nonfinite: int
    kind: str
    phi: Tensor | None = None

    @classmethod
    def joined(cls, parts: Iterable[Samples]) -> Samples:
        """All chains, from parts that were drawn by calls with `chains=` each, in the order of the chains.

        Raises:
            TypeError, ValueError: a part is none, or there are no parts, or they were not drawn by the same call but for its
                chains.

        Example:
            >>> def energy(z):  # [C, n, nz] -> [C, n], nats
            ...     return 0.5 * z.square().sum(-1)
            >>> def drawn(chains):  # in one process, or in several
            ...     generator, options = torch.Generator().manual_seed(0), dict(n_draws=100, n_warmup=200, progress=False)
            ...     return lae_fast.langevin_sample(energy, torch.ones(4, 3, 2), chains=chains, generator=generator, **options)
            >>> samples = lae_fast.Samples.joined([drawn(range(0, 2)), drawn(range(2, 4))])
            >>> torch.equal(samples.z, drawn(None).z)  # the draws of one call with all chains
            True
        """
        parts = list(parts)
        for i, part in enumerate(parts):
            if not isinstance(part, Samples):
                raise TypeError(f"part {i} is {checks.describe(part)}; expected Samples")
        forms = {(p.z.shape[1:], p.potential.shape[2:], p.kind, p.phi is None) for p in parts}
        if len(forms) != 1:
            raise ValueError(
                f"parts are {len(parts)} Samples of {len(forms)} forms; expected at least one, all of the same call but for its chains"
            )
        values = {f.name: [getattr(part, f.name) for part in parts] for f in dataclasses.fields(cls)}
        n_nonfinite, kinds, phis = (values.pop(name) for name in ("n_nonfinite", "kind", "phi"))
        joined = {name: torch.cat(tensors) for name, tensors in values.items()}
        phi = None if phis[0] is None else torch.cat(phis)
        return cls(**joined, n_nonfinite=sum(n_nonfinite), kind=kinds[0], phi=phi)

    def __repr__(self) -> str:
        c, n_draws, n, nz = self.z.shape
        low, high = (t.item() for t in self.step_size.aminmax())
        return (
            f"Samples of z [{c} chains, {n_draws} draws, {n} datapoints, nz {nz}], {self.kind}: acceptance "
            f"{self.acceptance_rate.mean():.2f}, step sizes {low:.2g} to {high:.2g}, {self.n_nonfinite} proposals not finite"
        )

    def to_arviz(self) -> Any:
        """An `xarray.DataTree` for arviz's ESS, R-hat, summaries and plots.

        Raises:
            ImportError: the extra is missing: `pip install "lae_fast[diag]"`.
        """
        try:
            from arviz_base import from_dict
        except ImportError as error:
            raise ImportError('to_arviz needs arviz: pip install "lae_fast[diag]"') from error
        stats = {"lp": -self.potential.cpu().numpy(), "acceptance_rate": self.acceptance_rate.cpu().numpy()}
        return from_dict(
            {"posterior": {"z": self.z.cpu().numpy()}, "sample_stats": stats},
            dims={"z": ["datapoint", "latent"]}
            | dict.fromkeys(stats, ["datapoint"][: self.potential.dim() - 2]),
            check_conventions=False,  # more chains than draws is not a mistake
        )

    def plot(self) -> Any:
        """Acceptance, step size and energy over the draws, a line for each chain.

        The acceptance of single steps is noise: shown is its running mean, over a fiftieth of the draws. Where datapoints
        decide for themselves a line is their mean, and the band around it holds nine in ten of them.

        Returns:
            A matplotlib figure: `samples.plot().savefig("samples.png")`, or shown as it is by a notebook.

        Raises:
            ImportError: matplotlib is missing.
        """
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install matplotlib") from error
        figure, axes = pyplot.subplots(3, 1, sharex=True, figsize=(7, 6), layout="constrained")
        step_size = self.step_size[:, None].expand_as(self.potential)
        rows = {
            "acceptance rate": self.acceptance_rate,
            "step size": step_size,
            "energy V, nats": self.potential,
        }
        for ax, (name, values) in zip(axes, rows.items(), strict=True):
            for k, chain in enumerate(values.cpu().double().numpy()):  # [draw], or [draw, n]
                if name == "acceptance rate":
                    chain = _running_mean(chain, -(-len(chain) // 50))
                colour = f"C{k % 10}"
                if chain.ndim == 2:
                    low, high = np.quantile(chain, (0.05, 0.95), axis=1)
                    ax.fill_between(range(len(chain)), low, high, color=colour, alpha=0.15, linewidth=0)
                    chain = chain.mean(1)
                ax.plot(chain, color=colour, linewidth=1)
            ax.set_ylabel(name)
            ax.spines[["top", "right"]].set_visible(False)
        axes[0].set_ylim(0, 1)
        if (self.step_size > 0).all():
            axes[1].set_yscale("log")
        axes[2].set_xlabel("draw")
        return figure


def _running_mean(values: np.ndarray, n: int) -> np.ndarray:
    """Means over the last n draws, or over as many as there have been; of [draw, ...], as [draw, ...]."""
    total = values.cumsum(0)
    total[n:] -= total[:-n].copy()
    count = np.minimum(np.arange(1, len(values) + 1), n)
    return total / count.reshape(-1, *[1] * (values.ndim - 1))


class SamplingInterrupted(KeyboardInterrupt):
    """Ctrl-C has stopped a sampler; nothing that was drawn is lost.

    Attributes:
        samples: the draws so far, at least one of each chain. In a notebook: `sys.last_value.samples`.

    Example:
        >>> calls = []
        >>> def energy(z):
        ...     calls.append(z)
        ...     if len(calls) == 50:
        ...         raise KeyboardInterrupt  # as Ctrl-C does
        ...     return 0.5 * z.square().sum(-1)
        >>> try:
        ...     lae_fast.langevin_sample(energy, torch.zeros(1, 1, 1), n_draws=1000, n_warmup=0, step_size=1.0, progress=False)
        ... except lae_fast.SamplingInterrupted as stopped:
        ...     print(1 <= stopped.samples.z.shape[1] < 50)
        True
    """

    def __init__(self, samples: Samples, n_draws: int) -> None:
        super().__init__(samples, n_draws)  # as arguments, so that it can be pickled
        self.samples, self.n_draws = samples, n_draws

    def __str__(self) -> str:
        n = self.samples.z.shape[1]
        return f"stopped after {n} of {self.n_draws} draws, which this exception holds as .samples"
