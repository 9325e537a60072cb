"""The report's own training rule, faults included: what reproduces its numbers, and what ours is compared with.

It computes what the published code computes in a step, no less and no more, from the weights of given encoder and decoder
bodies of `nets.mlp`; `loss(x)` of images [n, nx] is what that code differentiates.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lae_fast.models import LAE


def plain(body: nn.Sequential) -> nn.Sequential:
    """PyTorch's own layers with the weights of an `nets.mlp` body, which computes by itself what it can do faster."""
    return nn.Sequential(*(copy.deepcopy(layer) for layer in body))


class PublishedLAE(nn.Module):
    """The parts that both published codes have, with Adam's usual momentum.

    Args:
        phi: where its last layer starts, [nz, d].
        step_size: eta as in that code.
    """

    beta1 = 0.9

    def __init__(
        self,
        encoder: nn.Sequential,
        decoder: nn.Sequential,
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

    Faithful to what the report's code computes per training step: two evaluations of the energy for every
    Langevin step with MH (at the current state and at the proposal; one without), a Bernoulli reconstruction
    without prior term, drift with the batch-sum gradient and noise of variance 2 eta / n, a reverse proposal
    centred on the current state, a host decision for every acceptance, and the parameters' gradient from one
    more evaluation, of the last state alone. Nothing is repaired: these are the published rules, not good ones.
    """

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


class CountingReportLAE(ReportLAE):
    """`ReportLAE` with the weights of an LAE, counting what it accepts.

    Attributes:
        decisions: accepted proposals, and all proposals, so far: int64 [2].
    """

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
