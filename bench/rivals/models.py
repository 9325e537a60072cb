"""What a training step is compared with: the authors' Langevin autoencoder and a VAE, in eager PyTorch.

Each computes what the published code computes in a step, no less and no more, from the weights of given encoder and
decoder bodies of `nets.mlp`; `loss(x)` of images [n, nx] is what that code differentiates. The report's is
`lae_fast.experiments.report_rule`.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from lae_fast.experiments.report_rule import PublishedLAE, plain


def discretized_logistic(mean: Tensor, scale: Tensor, x: Tensor, lowest: float = -1.0) -> Tensor:
    """-log of the logistic mass of each pixel's bin, nats: mean, x -> [n, nx], images with 256 levels from `lowest` to 1.

    As the official code has it: a difference of sigmoids, held above float32's epsilon, and both open outer bins
    worked out everywhere, to be selected afterwards.
    """
    half_bin = (1 - lowest) / 510
    upper, lower = ((x + side * half_bin - mean) / scale for side in (1, -1))
    inner = -(upper.sigmoid() - lower.sigmoid()).clamp(min=torch.finfo(torch.float32).eps).log()
    nats = torch.where(x + half_bin > 1, F.softplus(lower), inner)
    return torch.where(x - half_bin < lowest, F.softplus(upper) - upper, nats)


class OfficialLAE(PublishedLAE):
    """The LAE of the paper's authors (github.com/iShohei220/LAE), with its discretized logistic or our Bernoulli energy.

    Faithful to what its code computes per training step: two evaluations of the energy for every Langevin step
    with MH (at the current state, though it was evaluated as a proposal before, and at the proposal; one without),
    T + 1 such steps, as the first only moves phi, the mean gradient as drift and noise of variance 2 eta / n, proposal
    densities by `torch.distributions` with its argument checks, a host decision for every acceptance; and the
    average of the energy before each of the last T steps, all of whose graphs are kept for one backward pass through
    decoder and encoder.

    Repaired, for it cannot run as published: the decoder is built with the number of latent variables (published: an
    undefined name), and the first Langevin step is called with the arguments it takes (published: one too many).
    Left out, in its favour: the reconstruction of every minibatch that it makes for its progress report, and
    the wrapper for several processes. With the Bernoulli energy images stay in [0, 1]; its own takes them to [-1, 1].

    Args (beyond the base's):
        likelihood: "bernoulli" or "logistic".
        n_images: of the data set, by which the scale's prior is divided.
    """

    def __init__(self, *args, likelihood: str = "bernoulli", n_images: int = 60_000, **options) -> None:
        super().__init__(*args, **options)
        self.is_logistic, self.n_images = likelihood == "logistic", n_images
        self.logit_tau = nn.Parameter(torch.zeros(1), requires_grad=self.is_logistic)
        for layer in [*self.encoder.modules(), *self.decoder.modules()]:
            if isinstance(layer, nn.ReLU):
                layer.inplace = True  # as there

    def energy(self, x: Tensor, z: Tensor, scale: Tensor) -> Tensor:
        """Reconstruction plus prior term of each image, nats: x [n, nx], z [n, nz] -> [n]."""
        output = self.decoder(z)
        if self.is_logistic:
            nats = discretized_logistic(output, scale, x)
        else:
            nats = F.binary_cross_entropy_with_logits(output, x, reduction="none")
        return nats.sum(1) + z.square().sum(1) / 2

    def proposal_law(self, phi: Tensor, grad: Tensor, n: int) -> Independent:
        return Independent(Normal(phi - self.step_size * grad, math.sqrt(2 * self.step_size / n)), 2)

    def langevin_step(self, x: Tensor, h: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """phi [nz, d] after one step, and the energy [n] before it, with its graph."""
        phi = phi.detach().requires_grad_()
        scale = F.softplus(self.logit_tau).rsqrt()
        energy = self.energy(x, F.linear(h, phi), scale)
        (grad,) = torch.autograd.grad(energy.mean(), phi, retain_graph=True)
        forward = self.proposal_law(phi.detach(), grad, len(x))
        proposal = forward.sample()
        if not self.mh:
            return proposal, energy
        proposal.requires_grad_()
        new_energy = self.energy(x, F.linear(h.detach(), proposal), scale)
        (new_grad,) = torch.autograd.grad(new_energy.mean(), proposal)
        reverse = self.proposal_law(proposal.detach(), new_grad, len(x))
        log_alpha = energy.sum() - new_energy.sum() + reverse.log_prob(phi) - forward.log_prob(proposal)
        rate = log_alpha.exp().clamp(max=1)
        is_accepted = bool(torch.rand_like(rate) < rate)  # here the host waits for the device
        return (proposal if is_accepted else phi).detach(), energy

    def loss(self, x: Tensor) -> Tensor:
        x = 2 * x - 1 if self.is_logistic else x
        h = self.encoder(x)
        phi, _ = self.langevin_step(x, h, self.phi)
        total = 0.0
        for _ in range(self.n_steps):
            phi, energy = self.langevin_step(x, h, phi)
            total = total + energy
        self.phi = phi
        loss = (total / self.n_steps).mean()
        if self.is_logistic:
            loss = loss + (self.logit_tau + 2 * F.softplus(-self.logit_tau)).sum() / self.n_images
        return loss


class PlainVAE(nn.Module):
    """A VAE as everybody writes it: Bernoulli pixels, the rate in closed form, everything in float32.

    Args:
        head: features [n, d] -> mean and log variance [n, 2 nz].
    """

    def __init__(self, encoder: nn.Sequential, decoder: nn.Sequential, head: nn.Linear) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head = plain(encoder), plain(decoder), copy.deepcopy(head)

    def loss(self, x: Tensor) -> Tensor:
        mean, log_variance = self.head(self.encoder(x)).chunk(2, dim=1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        energy = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        rate = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
        return (energy + rate) / len(x)
