"""`Plan`: how long a sampler runs, and how its step sizes are found; what `ald_sample` and `langevin_sample` share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from lae_fast.graphs import Replayed
from lae_fast.sampling.adaptation import TARGET_ACCEPTANCE


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Options of both samplers.

    Args:
        n_draws: draws kept of each chain.
        n_warmup: steps before the first draw.
        thin: steps that lead to each draw.
        step_size: eta (drift eta, noise variance 2 eta), a number or one for each chain, not adapted. None: found by dual
            averaging during warm-up, which takes `mh`.
        mh: Metropolis-Hastings accept or reject. False: unadjusted, biased at order eta, and labelled so.
        target_acceptance: what dual averaging aims at.
        share_step_size: one step size for all chains, adapted to their mean acceptance, instead of one each.
        generator: decides all that is random; default: the one `torch.manual_seed` sets.
        progress: show a bar with the acceptance, on a terminal.
        capture: on a GPU, replay the steps from a CUDA graph, several times as fast for small problems. The energy then
            runs as Python a few times only, and must neither wait for the device nor depend on anything but device
            tensors that stay where they are.

    Raises:
        ValueError: counts or acceptances make no sense, or nothing tells how large a step may be.
    """

    n_draws: int
    n_warmup: int = 1000
    thin: int = 1
    step_size: float | Tensor | None = None
    mh: bool = True
    target_acceptance: float = TARGET_ACCEPTANCE
    share_step_size: bool = False
    generator: torch.Generator | None = None
    progress: bool = True
    capture: bool = False

    def __post_init__(self) -> None:
        for name, least in (("n_draws", 1), ("n_warmup", 0), ("thin", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if not 0 < self.target_acceptance < 1:
            raise ValueError(
                f"target_acceptance is {self.target_acceptance}; expected a number between 0 and 1"
            )
        if self.step_size is None and not self.mh:
            raise ValueError(
                "step_size is None; expected a number: only Metropolis-Hastings tells how large it may be"
            )
        if self.adapts and self.n_warmup < 1:
            raise ValueError("n_warmup is 0; expected more, or a step_size: it is found during warm-up")

    @property
    def adapts(self) -> bool:
        """Whether step sizes are found during warm-up."""
        return self.step_size is None

    @property
    def n_steps(self) -> int:
        return self.n_warmup + self.n_draws * self.thin

    def log_step_sizes(self, n_chains: int, device: torch.device) -> Tensor:
        """log eta [1] or [C] at the start; dual averaging finds its way over many orders of magnitude."""
        eta = torch.as_tensor(1e-3 if self.step_size is None else self.step_size, dtype=torch.float64)
        n = 1 if self.share_step_size else n_chains
        if eta.numel() not in (1, n) or not ((eta >= 0) & eta.isfinite()).all():
            raise ValueError(f"step_size is {self.step_size}; expected finite and >= 0, one number or {n}")
        return eta.to(device).reshape(-1).expand(n).log()

    def prepared(self, step: Callable[[], None], device: torch.device) -> Callable[[], None]:
        """`step` as it will be run: as it is, or replayed."""
        if not self.capture:
            return step
        return Replayed(step, device, [g for g in (self.generator,) if g and g.device.type == "cuda"])
