"""Adaptation of step sizes: rows of the `adaptation` that a transition updates. ops/langevin.py states both rules."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lae_fast.ops.columns import AVERAGE, CENTRE, DUAL_AVERAGING, RATE, ROBBINS_MONRO, TARGET

TARGET_ACCEPTANCE = 0.574  # optimal for Langevin proposals in high dimension (Roberts and Rosenthal, 1998)


def robbins_monro(n: int, rate: float, target: float, device: torch.device) -> Tensor:
    """Rows [n, 2], float64: log eta += rate (acceptance - target), for as long as the chain runs."""
    rows = torch.empty(n, ROBBINS_MONRO, dtype=torch.float64, device=device)
    rows[:, TARGET], rows[:, RATE] = target, rate
    return rows


def dual_averaging(log_step_size: Tensor, target: float) -> Tensor:
    """Rows [S, 6] for log_step_size [S]: the constants of Hoffman and Gelman (2014), gamma = 0.05, mu = log(10 eta)."""
    rows = log_step_size.new_zeros(log_step_size.shape[0], DUAL_AVERAGING)
    rows[:, TARGET], rows[:, RATE] = target, 20.0  # 1 / gamma
    rows[:, CENTRE] = log_step_size + math.log(10)
    return rows


def averaged(adaptation: Tensor) -> Tensor:
    """log eta [S] to keep after a warm-up by dual averaging, from the rows `adaptation` [S, 6]."""
    return adaptation[:, AVERAGE]
