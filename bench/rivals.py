"""The report's algorithm in eager PyTorch, as it would be written without this package.

Faithful to what the report's code computes per training step: two evaluations of the energy for every
Langevin step with MH (at the current state and at the proposal; one without), a Bernoulli reconstruction
without prior term, drift with the batch-sum gradient and noise of variance 2 eta / n, a reverse proposal
centred on the current state, a host decision for every acceptance, and the parameters' gradient from one
more evaluation, of the last state alone. Nothing is repaired: these are the published rules, not good ones.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReportLAE(nn.Module):
    """The report's LAE, on copies of given encoder and decoder bodies.

    Args:
        phi: where its last layer starts, [nz, d].
        step_size: eta as in its code: multiplies the batch-sum gradient.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, phi: Tensor, n_steps: int, mh: bool, step_size: float
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = copy.deepcopy(encoder), copy.deepcopy(decoder)
        self.register_buffer("phi", phi.clone())
        self.n_steps, self.mh, self.step_size = n_steps, mh, step_size

    def energy(self, x: Tensor, h: Tensor, phi: Tensor) -> Tensor:
        """Reconstruction of the whole batch, nats: no prior term."""
        return F.binary_cross_entropy_with_logits(self.decoder(h @ phi.T), x, reduction="sum")

    def energy_and_gradient(self, x: Tensor, h: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = phi.detach().requires_grad_()
            energy = self.energy(x, h, leaf)
            return energy.detach(), torch.autograd.grad(energy, leaf)[0]

    @torch.no_grad()
    def langevin_step(self, x: Tensor, h: Tensor) -> None:
        variance = 2 * self.step_size / len(x)
        energy, grad = self.energy_and_gradient(x, h, self.phi)
        mean = self.phi - self.step_size * grad
        proposal = mean + math.sqrt(variance) * torch.randn_like(self.phi)
        if self.mh:
            new_energy, new_grad = self.energy_and_gradient(x, h, proposal)
            reverse_mean = self.phi - self.step_size * new_grad  # published so; right would be proposal - ...
            log_forward = -((proposal - mean) ** 2).sum() / (2 * variance)
            log_reverse = -((self.phi - reverse_mean) ** 2).sum() / (2 * variance)
            accept_rate = torch.exp(energy - new_energy + log_reverse - log_forward).clamp(max=1)
            if torch.rand(()) >= accept_rate:  # here the host waits for the device
                return
        self.phi.copy_(proposal)

    def loss(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        for _ in range(self.n_steps):
            self.langevin_step(x, h.detach())
        return self.energy(x, h, self.phi) / len(x)
