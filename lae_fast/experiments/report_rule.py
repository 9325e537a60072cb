"""The report's own training rule, faults included: it reproduces the report's numbers, and ours is compared with it.

A step computes exactly the same as a step of the published code, from the weights of given encoder and decoder bodies
of `nets.mlp`. The published code differentiates `loss(x)` of images x [n, nx].
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lae_fast.models import LAE


def plain(body: nn.Module) -> nn.Sequential:
    """PyTorch's own layers with copies of the weights of an `nets.mlp` body, without its faster route."""
    return nn.Sequential(*(copy.deepcopy(layer) for layer in body.children()))


class PublishedLAE(nn.Module):
    """The parts that both published codes have, with Adam's usual momentum.

    Args:
        phi: the start of the last layer, [nz, d].
        step_size: eta as in the published code.
    """

    beta1 = 0.9
    phi: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        phi: Tensor,
        n_steps: int,
        mh: bool,
        step_size: float,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = plain(encoder), plain(decoder)
        self.register_buffer("phi", phi.clone())
        self.n_steps, self.mh, self.step_size = n_steps, mh, step_size


class ReportLAE(PublishedLAE):
    """The report's LAE.

    A training step computes the same as the report's code: two evaluations of the energy for every
    Langevin step with MH (at the current state and at the proposal; one without), a Bernoulli reconstruction
    without prior term, drift with the batch-sum gradient and noise of variance 2 eta / n, a reverse proposal
    centred on the current state, a host decision for every acceptance, and the parameters' gradient from one
    more evaluation, of the last state alone. No fault is repaired: the rules are as published, not good ones.
    """

    def energy(self, x: Tensor, h: Tensor, phi: Tensor) -> Tensor:
        """Reconstruction [] of a batch x [n, nx] with features h [n, d] and phi [nz, d], summed nats, no prior term."""
        return F.binary_cross_entropy_with_logits(self.decoder(h @ phi.T), x, reduction="sum")

    def energy_and_gradient(self, x: Tensor, h: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """The energy [] and its gradient by phi [nz, d]."""
        with torch.enable_grad():
            leaf = phi.detach().requires_grad_()
            energy = self.energy(x, h, leaf)
            return energy.detach(), torch.autograd.grad(energy, leaf)[0]

    @torch.no_grad()
    def langevin_step(self, x: Tensor, h: Tensor) -> None:
        """Move phi by one step, in place, for images x [n, nx] with features h [n, d]."""
        variance = 2 * self.step_size / len(x)
        energy, grad = self.energy_and_gradient(x, h, self.phi)
        mean = self.phi - self.step_size * grad
        proposal = mean + math.sqrt(variance) * torch.randn_like(self.phi)
        if self.mh:
            new_energy, new_grad = self.energy_and_gradient(x, h, proposal)
            reverse_mean = self.phi - self.step_size * new_grad  # as published; correct: proposal - ...
            log_forward = -((proposal - mean) ** 2).sum() / (2 * variance)
            log_reverse = -((self.phi - reverse_mean) ** 2).sum() / (2 * variance)
            accept_rate = torch.exp(energy - new_energy + log_reverse - log_forward).clamp(max=1)
            if torch.rand(()) >= accept_rate:  # here the host waits for the device
                return
        self.phi.copy_(proposal)

    def loss(self, x: Tensor) -> Tensor:
        """Reconstruction [] of images x [n, nx] at the chain's last state, nats per image."""
        h = self.encoder(x)
        for _ in range(self.n_steps):
            self.langevin_step(x, h.detach())
        return self.energy(x, h, self.phi) / len(x)


class CountingReportLAE(ReportLAE):
    """`ReportLAE` with the weights of an LAE; it counts its accepted proposals.

    Attributes:
        decisions: accepted proposals, and all proposals, so far: int64 [2].
    """

    decisions: Tensor

    def __init__(self, model: LAE, n_steps: int, mh: bool, step_size: float) -> None:
        super().__init__(model.encoder, model.decoder, model.phi, n_steps, mh, step_size)
        self.register_buffer("decisions", torch.zeros(2, dtype=torch.int64, device=model.phi.device))

    def langevin_step(self, x: Tensor, h: Tensor) -> None:
        before = self.phi.clone()
        super().langevin_step(x, h)
        self.decisions[0] += (self.phi != before).any()
        self.decisions[1] += 1

    def copy_to(self, model: LAE) -> None:
        """Give the model the weights that this rule has trained."""
        model.encoder.load_state_dict(self.encoder.state_dict())
        model.decoder.load_state_dict(self.decoder.state_dict())
        model.phi.copy_(self.phi)
