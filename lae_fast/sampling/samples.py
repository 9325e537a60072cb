"""`Samples`: the result of a sampler, and its conversion for arviz."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Samples:
    """The result of a sampler: chains along the first axis, draws along the second, as in arviz.

    ALD decides once for a whole chain, the datapoint-wise sampler once for each datapoint. `potential` and
    `acceptance_rate` are therefore [C, draw] for ALD, and [C, draw, n] for the datapoint-wise sampler. The
    acceptance rate of unadjusted chains is the fraction of finite proposals.
    """

    z: Tensor  # [C, draw, n, nz]: the sample sets Z
    potential: Tensor  # [C, draw] or [C, draw, n], float64, nats: V at each draw
    acceptance_rate: Tensor  # like potential: mean of min(1, alpha) over the steps that lead to each draw
    step_size: Tensor  # [C] or [C, n], float64: eta of all draws
    n_nonfinite: int  # proposals after warm-up that were rejected because they were not finite
    kind: str  # "Metropolis-Hastings", "unadjusted", or "unadjusted, minibatches of m"
    phi: Tensor | None = None  # [C, nz, d]: ALD's last state

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


class SamplingInterrupted(KeyboardInterrupt):
    """Ctrl-C has stopped a sampler; nothing that was drawn is lost.

    Attributes:
        samples: the draws so far, at least one of each chain. In a notebook: `sys.last_value.samples`.
    """

    def __init__(self, samples: Samples, n_draws: int) -> None:
        super().__init__(samples, n_draws)  # as arguments, so that it can be pickled
        self.samples, self.n_draws = samples, n_draws

    def __str__(self) -> str:
        n = self.samples.z.shape[1]
        return f"stopped after {n} of {self.n_draws} draws, which this exception holds as .samples"
