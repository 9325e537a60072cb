"""Acceptance rates, and a warning about chains that accept too few proposals, or nearly all."""

from __future__ import annotations

from torch import Tensor

FROZEN, NEEDLESSLY_SMALL = 0.05, 0.95  # acceptances beyond which a chain deserves a warning


def acceptance_rate(log_alpha: Tensor) -> Tensor:
    """min(1, alpha): the probability of acceptance, from log_alpha [...]."""
    return log_alpha.exp().clamp(max=1)


def acceptance_warning(rates: Tensor) -> str | None:
    """A warning about the mean acceptance rates [...] of chains, for people; None if all rates are good."""
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
