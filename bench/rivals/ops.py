"""The fused ops as they would be written in plain PyTorch: out of place, nothing counted, nothing checked."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rivals.models import discretized_logistic

# Of an adaptation that is computed, and moves nothing: acceptances stay what they are.
TARGET, RATE = 0.574, 1e-12


def transition(
    phi: Tensor,
    potential: Tensor,
    grad: Tensor,
    proposal: Tensor,
    log_step_size: Tensor,
    proposal_potential: Tensor,
    proposal_grad: Tensor,
    uniform: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Decide, select, adapt the step size, propose anew, as the textbook has it.

    phi, grad, proposal, proposal_grad, noise [C, D]; potential, proposal_potential, uniform [C]; log_step_size [C];
    all of one dtype. `uniform` and `noise` replace the draws.

    Returns:
        phi, potential, grad, proposal, log_step_size of the next step, and log_alpha [C].
    """
    eta = log_step_size.exp()
    forward = (proposal - phi + eta[:, None] * grad).square().sum(1)
    reverse = (phi - proposal + eta[:, None] * proposal_grad).square().sum(1)
    log_alpha = potential - proposal_potential + (forward - reverse) / (4 * eta)
    uniform = torch.rand_like(log_alpha) if uniform is None else uniform
    is_accepted = uniform.log() <= log_alpha
    phi = torch.where(is_accepted[:, None], proposal, phi)
    grad = torch.where(is_accepted[:, None], proposal_grad, grad)
    potential = torch.where(is_accepted, proposal_potential, potential)
    log_step_size = log_step_size + RATE * (log_alpha.exp().clamp(max=1) - TARGET)
    eta = log_step_size.exp()[:, None]
    noise = torch.randn_like(phi) if noise is None else noise
    proposal = phi - eta * grad + (2 * eta).sqrt() * noise
    return phi, potential, grad, proposal, log_step_size, log_alpha


# Energies of a decoder's output [R, nx] and images x [R, nx] in [0, 1], nats summed over everything.
Energy = Callable[[Tensor, Tensor, Tensor], Tensor]


def bernoulli(output: Tensor, x: Tensor, log_scale: Tensor) -> Tensor:
    """Output: logits; it has no scale."""
    return F.binary_cross_entropy_with_logits(output, x, reduction="sum")


def gaussian(output: Tensor, x: Tensor, log_scale: Tensor) -> Tensor:
    residual = (x - output) / log_scale.exp()
    return (0.5 * residual.square() + log_scale + 0.5 * math.log(2 * math.pi)).sum()


def logistic(output: Tensor, x: Tensor, log_scale: Tensor) -> Tensor:
    return discretized_logistic(output, log_scale.exp(), x, lowest=0.0).sum()


ENERGIES: dict[str, Energy] = {"bernoulli": bernoulli, "gaussian": gaussian, "logistic": logistic}


def energy_and_derivatives(
    energy: Energy, output: Tensor, x: Tensor, log_scale: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One of the above, forward and backward: its value, d/d output [R, nx] and d/d log_scale (None: it has none)."""
    output, log_scale = (t.detach().requires_grad_() for t in (output, log_scale))
    value = energy(output, x, log_scale)
    return value.detach(), *torch.autograd.grad(value, (output, log_scale), allow_unused=True)
