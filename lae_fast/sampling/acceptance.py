"""Acceptance: what a person should know of chains that accept too little, or nearly everything."""

from __future__ import annotations

from torch import Tensor

FROZEN, NEEDLESSLY_SMALL = 0.05, 0.95  # acceptances beyond which a chain deserves a warning


def acceptance_rate(log_alpha: Tensor) -> Tensor:
    """min(1, alpha): the probability of acceptance, from log_alpha [...]."""
    return log_alpha.exp().clamp(max=1)


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
