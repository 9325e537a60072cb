"""`Samples`: what a sampler returns, and its way to arviz."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a sampler returns: chains along the first axis, draws along the second, as arviz has it.

    ALD decides once for a whole chain, the datapoint-wise sampler for each datapoint: whatever belongs to a
    decision is [C, draw] for the one and [C, draw, n] for the other.
    """

    z: Tensor  # [C, draw, n, nz]: the sample sets Z
    potential: Tensor  # float64, nats: V at each draw
    acceptance_rate: Tensor  # float64: mean of min(1, alpha) over the steps that lead to each draw
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
            check_conventions=False,  # more chains than draws are no mistake
        )
