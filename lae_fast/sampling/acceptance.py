"""Acceptance rates, and a warning about chains that accept too few proposals, or nearly all."""

from __future__ import annotations

from torch import Tensor

FROZEN, NEEDLESSLY_SMALL = 0.05, 0.95  # acceptances beyond which a chain deserves a warning


def acceptance_rate(log_alpha: Tensor) -> Tensor:
    """min(1, alpha): the probability of acceptance, from log_alpha [...].

    Example:
        >>> from lae_fast import sampling
        >>> sampling.acceptance_rate(torch.tensor([1.0, 0.5, 0.25]).log())
        tensor([1.0000, 0.5000, 0.2500])
    """
    return log_alpha.exp().clamp(max=1)


def acceptance_warning(rates: Tensor) -> str | None:
    """A warning about the mean acceptance rates [...] of chains, for people; None if all rates are good, or there are none.

    Example:
        >>> from lae_fast import sampling
        >>> sampling.acceptance_warning(torch.tensor([0.6, 0.5])) is None
        True
        >>> sampling.acceptance_warning(torch.tensor([0.6, 0.0])).partition(":")[0]
        '1 of 2 chains accept less than 5% of the proposals (lowest 0.000)'
    """
    if not rates.numel():
        return None
    faults = (
        (
            rates < FROZEN,
            f"less than {FROZEN:.0%} of the proposals (lowest {rates.min():.3f}): frozen, no sample of its target; take a "
            "smaller step size, or let it adapt",
        ),
        (
            rates > NEEDLESSLY_SMALL,
            f"more than {NEEDLESSLY_SMALL:.0%} of the proposals (highest {rates.max():.3f}): needlessly small steps; take a "
            "larger step size, or let it adapt",
        ),
        (~rates.isfinite(), "a share of the proposals that is not a number: their energies are not, either"),
    )
    n = rates.numel()
    found = [
        f"{int(is_at_fault.sum())} of {n} chains accept {fault}" if n > 1 else f"the chain accepts {fault}"
        for is_at_fault, fault in faults
        if is_at_fault.any()
    ]
    return "; and ".join(found) or None
