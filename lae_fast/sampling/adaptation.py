"""Adaptation of step sizes: rows of the `adaptation` that a transition updates. ops/langevin.py states both rules."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lae_fast import checks
from lae_fast.ops.columns import AVERAGE, CENTRE, DUAL_AVERAGING, RATE, ROBBINS_MONRO, TARGET
from lae_fast.sampling.ald import ALDInfo, ALDState

TARGET_ACCEPTANCE = 0.574  # optimal for Langevin proposals in high dimension (Roberts and Rosenthal, 1998)


def robbins_monro(n: int, rate: float, target: float, device: torch.device) -> Tensor:
    """Rows [n, 2], float64: log eta += rate (acceptance - target), for as long as the chain runs.

    Example:
        >>> from lae_fast import sampling
        >>> sampling.robbins_monro(1, rate=0.05, target=0.574, device=torch.device("cpu")).tolist()
        [[0.574, 0.05]]
    """
    rows = torch.empty(n, ROBBINS_MONRO, dtype=torch.float64, device=device)
    rows[:, TARGET], rows[:, RATE] = target, rate
    return rows


def dual_averaging(log_step_size: Tensor, target: float) -> Tensor:
    """Rows [S, 6] for log_step_size [S]: the constants of Hoffman and Gelman (2014), gamma = 0.05, mu = log(10 eta).

    Example:
        >>> from lae_fast import sampling
        >>> sampling.dual_averaging(torch.zeros(4, dtype=torch.float64), target=0.574).shape
        torch.Size([4, 6])
    """
    rows = log_step_size.new_zeros(log_step_size.shape[0], DUAL_AVERAGING)
    rows[:, TARGET], rows[:, RATE] = target, 20.0  # 1 / gamma
    rows[:, CENTRE] = log_step_size + math.log(10)
    return rows


def averaged(adaptation: Tensor) -> Tensor:
    """log eta [S] to keep after a warm-up by dual averaging, from the rows `adaptation` [S, 6]."""
    return adaptation[:, AVERAGE]


def adapt_step_size(
    state: ALDState, info: ALDInfo, *, rate: float = 0.05, target: float = TARGET_ACCEPTANCE
) -> ALDState:
    """The state with a step size that follows the acceptance of the step that led to it, in a loop of `ald_step`.

    log eta += rate (acceptance - target), the rule of Robbins and Monro by which the models adapt theirs; all on the device.
    One step size for several chains follows their mean acceptance. A chain whose step size moves has exp(-V) as its law
    only nearly: to sample, adapt for some steps and then stop; to train, go on.

    Args:
        state, info: of the same `ald_step`, with Metropolis-Hastings decisions: without them no acceptance guides eta.
        rate: how fast log eta moves. In a warm-up it may fall, as 1 / sqrt(t).
        target: the acceptance to reach, in (0, 1).

    Raises:
        TypeError: an argument is of another kind.
        ValueError: the state has no step size, the info is of another number of chains, or a number is out of range.

    Example:
        >>> def potential(phi):  # [C, D] -> [C], nats: a normal with deviation 0.01
        ...     return 0.5 * (phi / 0.01).square().sum(1)
        >>> state = lae_fast.ald_init(potential, torch.zeros(64, 3), step_size=1e-6, n_chains=64)
        >>> for _ in range(200):  # towards an acceptance of 0.574
        ...     state, info = lae_fast.ald_step(potential, state)
        ...     state = lae_fast.adapt_step_size(state, info)
        >>> 5e-5 < state.step_size.item() < 5e-4
        True
    """
    if not isinstance(state, ALDState) or not isinstance(info, ALDInfo):
        given = checks.describe(info if isinstance(state, ALDState) else state)
        raise TypeError(f"adapt_step_size got {given}; expected the state and the info that ald_step returns")
    rate = checks.number("rate", rate, least=0, below=100)
    target = checks.number("target", target, above=0, below=1)
    if state.step_size is None:
        raise ValueError("the state's step_size is None; expected the state that ald_step returns")
    energy = checks.tensor("the state's potential", state.potential).reshape(-1)  # [C]
    eta = checks.tensor(
        "the state's step_size", state.step_size, dtypes=(torch.float64,), device=energy.device
    )
    acceptance = checks.tensor("the info's acceptance_rate", info.acceptance_rate, device=energy.device)
    acceptance = acceptance.reshape(-1)
    if acceptance.shape != energy.shape or eta.shape not in ((1,), energy.shape):
        raise ValueError(
            f"info is of {len(acceptance)} chains, the state of {len(energy)} with step sizes {list(eta.shape)}; expected those "
            "of one ald_step"
        )
    if len(eta) == 1:
        acceptance = acceptance.mean(0, keepdim=True)
    return state._replace(step_size=eta * (rate * (acceptance - target)).exp())
