"""C chains moved in place by the fused transition: the loop behind everything here that samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lae_fast import ops

TARGET_ACCEPTANCE = 0.574  # optimal for Langevin proposals in high dimension (Roberts and Rosenthal, 1998)
FROZEN, NEEDLESSLY_SMALL = 0.05, 0.95  # acceptances beyond which a chain deserves a warning

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]


def robbins_monro(n: int, rate: float, target: float, device: torch.device) -> Tensor:
    """Rows [n, 2] of `ops`' adaptation: log eta += rate (acceptance - target), as long as the chain runs."""
    return torch.tensor([target, rate], dtype=torch.float64, device=device).repeat(n, 1)


def dual_averaging(log_step_size: Tensor, target: float) -> Tensor:
    """Rows [S, 6] of `ops`' adaptation, with the constants of Hoffman and Gelman (2014) and mu = log(10 eta)."""
    rows = log_step_size.new_zeros(log_step_size.shape[0], 6)
    rows[:, 0], rows[:, 1] = target, 20.0  # gamma = 0.05
    rows[:, 5] = log_step_size + math.log(10)
    return rows


class Chains:
    """C chains of D elements and what they remember between steps, all on their device.

    Args:
        evaluate: rows [C, D] -> V [C], float64 in nats, and grad V [C, D], both detached.
        phi: where the chains start, [C, D]; copied.
        log_step_size: [S], float64, S = 1 (shared) or C; copied.
        rng: [3] of `ops.make_rng`; copied.
        mh: Metropolis-Hastings accept or reject.
        adaptation: [S, 2 or 6] as `ops` describes it, updated in place; None: the step sizes stay.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        phi: Tensor,
        log_step_size: Tensor,
        rng: Tensor,
        *,
        mh: bool = True,
        adaptation: Tensor | None = None,
    ) -> None:
        n_chains = phi.shape[0]
        self.evaluate, self.mh, self.adaptation = evaluate, mh, adaptation
        self.phi, self.rng = phi.detach().clone(memory_format=torch.contiguous_format), rng.clone()
        self.potential, grad = evaluate(self.phi)
        self.grad = grad.clone(memory_format=torch.contiguous_format)
        self.counters = torch.zeros(n_chains, 2, dtype=torch.int64, device=phi.device)
        self.is_accepted = torch.zeros(n_chains, dtype=torch.bool, device=phi.device)
        self.log_alpha = torch.zeros_like(self.potential)
        self.log_step_size = log_step_size.clone()
        self._propose()

    def _propose(self) -> None:
        self.proposal, self.rng = ops.propose(self.phi, self.grad, self.log_step_size.exp(), self.rng)

    def set_step_size(self, log_step_size: Tensor) -> None:
        """From now on, and no longer adapted; the pending proposal, made with the old one, is drawn anew."""
        self.log_step_size, self.adaptation = log_step_size.clone(), None
        self._propose()

    def step(self) -> None:
        """Evaluate the proposal; then one fused transition decides, selects, adapts and proposes anew."""
        potential, grad = self.evaluate(self.proposal)
        ops.transition_unchecked(
            self.phi, self.potential, self.grad, self.proposal, self.rng, self.log_step_size, self.counters,
            self.is_accepted, self.log_alpha, self.adaptation, potential, grad.contiguous(), self.mh,
        )  # fmt: skip

    def acceptance_rate(self) -> Tensor:
        """min(1, alpha) of the last step, [C]."""
        return self.log_alpha.exp().clamp(max=1)


def acceptance_warning(rates: Tensor) -> str | None:
    """What a person should know about the chains' mean acceptance rates [C]; None if all is well."""
    n, frozen, small = rates.numel(), int((rates < FROZEN).sum()), int((rates > NEEDLESSLY_SMALL).sum())
    of = f"{{}} of {n} chains" if n > 1 else "the chain"
    if frozen:
        return (
            f"{of.format(frozen)} accept{'s' if n == 1 else ''} less than {FROZEN:.0%} of the proposals (lowest "
            f"{rates.min():.3f}): frozen, no sample of its target; take a smaller step size, or let it adapt"
        )
    if small:
        return (
            f"{of.format(small)} accept{'s' if n == 1 else ''} more than {NEEDLESSLY_SMALL:.0%} of the proposals "
            f"(highest {rates.max():.3f}): needlessly small steps; take a larger step size, or let it adapt"
        )
    return None
